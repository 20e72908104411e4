"""Ready-made chains: gradients in, updates to be added out. Bound them by chaining `project`, `barrier`, … after."""

from boxopt.optimizers.adam import adam, adamax, adamaxw, adamw, amsgrad, nadam, nadamw
from boxopt.optimizers.adam_variants import adabelief, adan, radam, yogi
from boxopt.optimizers.gradient_descent import (
    noisy_sgd,
    optimistic_adam,
    optimistic_adam_v2,
    optimistic_gradient_descent,
    polyak_sgd,
    sgd,
)
from boxopt.optimizers.layerwise import fromage, lamb, lars, novograd
from boxopt.optimizers.root_mean_square import adadelta, adafactor, adagrad, rmsprop, sm3
from boxopt.optimizers.sign import lion, rprop, sign_sgd, signum

__all__ = [
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "amsgrad",
    "fromage",
    "lamb",
    "lars",
    "lion",
    "nadam",
    "nadamw",
    "noisy_sgd",
    "novograd",
    "optimistic_adam",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "polyak_sgd",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "sign_sgd",
    "signum",
    "sm3",
    "yogi",
]
