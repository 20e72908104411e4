"""Ready-made chains: gradients in, updates to be added out. Bound them by chaining `project`, `barrier`, … after."""

from boxopt.optimizers.adam import adam, adamax, adamaxw, adamw, amsgrad, nadam, nadamw
from boxopt.optimizers.adam_variants import adabelief, adan, radam, yogi
from boxopt.optimizers.gradient_descent import sgd
from boxopt.optimizers.root_mean_square import adagrad, rmsprop
from boxopt.optimizers.sign import lion

__all__ = [
    "adabelief",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "amsgrad",
    "lion",
    "nadam",
    "nadamw",
    "radam",
    "rmsprop",
    "sgd",
    "yogi",
]
