"""boxopt: bounded optimization in PyTorch, functional and composable.

>>> import torch, boxopt as bx
>>> tx = bx.chain(bx.adam(0.1), bx.project(bx.Box(0.0, 1.0)))
>>> params = {"x": torch.tensor([0.9, 0.2])}
>>> state = tx.init(params)
>>> for _ in range(300):
...     gradients = torch.func.grad(lambda p: ((p["x"] - torch.tensor([2.0, 0.5])) ** 2).sum())(params)
...     updates, state = tx.update(gradients, state, params)
...     params = bx.apply_updates(params, updates)
>>> params
{'x': tensor([1.0000, 0.5000])}
"""

from boxopt import diagnostics, optimizers, regularizers, schedules, sets
from boxopt.constrain.barrier import add_barrier, barrier, log_barrier
from boxopt.constrain.frank_wolfe import frank_wolfe, frank_wolfe_gap
from boxopt.constrain.mirror import exponentiated_gradient, mirror
from boxopt.constrain.penalty import add_penalty, penalize, penalty
from boxopt.constrain.project import project
from boxopt.constrain.projected import projected
from boxopt.constrain.prox import prox
from boxopt.constrain.tangent import tangent
from boxopt.core.combine import MaskedNode, MaskedState, chain, masked, named_chain, partition
from boxopt.core.donation import ConsumedError
from boxopt.core.pack import Layout, Packed, PackedState, on_leaves, pack, packed
from boxopt.core.transform import (
    EmptyState,
    GradientTransformation,
    apply_updates,
    elementwise,
    finished,
    identity,
    stateless,
)
from boxopt.core.values import CountState
from boxopt.diagnostics import active, is_feasible, optimality, violation
from boxopt.optimizers import (
    adabelief,
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamax,
    adamaxw,
    adamw,
    adan,
    amsgrad,
    fromage,
    lamb,
    lars,
    lion,
    nadam,
    nadamw,
    noisy_sgd,
    novograd,
    optimistic_adam,
    optimistic_adam_v2,
    optimistic_gradient_descent,
    polyak_sgd,
    radam,
    rmsprop,
    rprop,
    sgd,
    sign_sgd,
    signum,
    sm3,
    yogi,
)
from boxopt.regularizers import L1, L2, ElasticNet
from boxopt.run.compile import CompiledStep, compile
from boxopt.scale.accumulation import ApplyEvery, apply_every
from boxopt.scale.adadelta import ScaleByAdaDeltaState, scale_by_adadelta
from boxopt.scale.adam import ScaleByAdamState, scale_by_adam
from boxopt.scale.adan import ScaleByAdanState, scale_by_adan
from boxopt.scale.belief import ScaleByBeliefState, scale_by_belief, scale_by_yogi
from boxopt.scale.centralize import centralize
from boxopt.scale.clipping import adaptive_grad_clip, clip, clip_by_block_rms, clip_by_global_norm
from boxopt.scale.factored import FactoredState, scale_by_factored_rms
from boxopt.scale.freezing import ZeroNansState, freeze, set_to_zero, zero_nans
from boxopt.scale.largest_moment import ScaleByAmsgradState, scale_by_adamax, scale_by_amsgrad
from boxopt.scale.layerwise import (
    normalize_by_update_norm,
    scale_by_param_block_norm,
    scale_by_param_block_rms,
    scale_by_trust_ratio,
)
from boxopt.scale.momentum import EmaState, TraceState, ema, trace
from boxopt.scale.monitoring import MonitorState, SnapshotState, monitor, snapshot
from boxopt.scale.noise import AddNoiseState, add_noise
from boxopt.scale.norms import FactorState
from boxopt.scale.novograd import ScaleByNovogradState, scale_by_novograd
from boxopt.scale.optimistic import ScaleByOptimisticGradientState, scale_by_optimistic_gradient
from boxopt.scale.polyak import scale_by_polyak
from boxopt.scale.rectified import scale_by_radam
from boxopt.scale.root_mean_square import (
    ScaleByRmsState,
    ScaleByRssState,
    ScaleByStddevState,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
)
from boxopt.scale.rprop import ScaleByRpropState, scale_by_rprop
from boxopt.scale.scale import add_decayed_weights, scale, scale_by_learning_rate, scale_by_schedule
from boxopt.scale.sign import ScaleByLionState, scale_by_lion, scale_by_sign
from boxopt.scale.sm3 import ScaleBySM3State, scale_by_sm3
from boxopt.schedules import (
    constant_schedule,
    cosine_decay_schedule,
    exponential_decay,
    linear_schedule,
    warmup_cosine_decay_schedule,
)
from boxopt.sets import Box

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L2",
    "AddNoiseState",
    "ApplyEvery",
    "Box",
    "CompiledStep",
    "ConsumedError",
    "CountState",
    "ElasticNet",
    "EmaState",
    "EmptyState",
    "FactorState",
    "FactoredState",
    "GradientTransformation",
    "Layout",
    "MaskedNode",
    "MaskedState",
    "MonitorState",
    "Packed",
    "PackedState",
    "ScaleByAdaDeltaState",
    "ScaleByAdamState",
    "ScaleByAdanState",
    "ScaleByAmsgradState",
    "ScaleByBeliefState",
    "ScaleByLionState",
    "ScaleByNovogradState",
    "ScaleByOptimisticGradientState",
    "ScaleByRmsState",
    "ScaleByRpropState",
    "ScaleByRssState",
    "ScaleBySM3State",
    "ScaleByStddevState",
    "SnapshotState",
    "TraceState",
    "ZeroNansState",
    "active",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "adaptive_grad_clip",
    "add_barrier",
    "add_decayed_weights",
    "add_noise",
    "add_penalty",
    "amsgrad",
    "apply_every",
    "apply_updates",
    "barrier",
    "centralize",
    "chain",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "compile",
    "constant_schedule",
    "cosine_decay_schedule",
    "diagnostics",
    "elementwise",
    "ema",
    "exponential_decay",
    "exponentiated_gradient",
    "finished",
    "frank_wolfe",
    "frank_wolfe_gap",
    "freeze",
    "fromage",
    "identity",
    "is_feasible",
    "lamb",
    "lars",
    "linear_schedule",
    "lion",
    "log_barrier",
    "masked",
    "mirror",
    "monitor",
    "nadam",
    "nadamw",
    "named_chain",
    "noisy_sgd",
    "normalize_by_update_norm",
    "novograd",
    "on_leaves",
    "optimality",
    "optimistic_adam",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "optimizers",
    "pack",
    "packed",
    "partition",
    "penalize",
    "penalty",
    "polyak_sgd",
    "project",
    "projected",
    "prox",
    "radam",
    "regularizers",
    "rmsprop",
    "rprop",
    "scale",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adan",
    "scale_by_amsgrad",
    "scale_by_belief",
    "scale_by_factored_rms",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_novograd",
    "scale_by_optimistic_gradient",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "scale_by_polyak",
    "scale_by_radam",
    "scale_by_rms",
    "scale_by_rprop",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_sign",
    "scale_by_sm3",
    "scale_by_stddev",
    "scale_by_trust_ratio",
    "scale_by_yogi",
    "schedules",
    "set_to_zero",
    "sets",
    "sgd",
    "sign_sgd",
    "signum",
    "sm3",
    "snapshot",
    "stateless",
    "tangent",
    "trace",
    "violation",
    "warmup_cosine_decay_schedule",
    "yogi",
    "zero_nans",
]
