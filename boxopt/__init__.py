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

from boxopt import contrib, diagnostics, optimizers, schedules, sets
from boxopt.constrain.barrier import add_barrier, barrier, log_barrier
from boxopt.constrain.penalty import add_penalty, penalize, penalty
from boxopt.constrain.project import project
from boxopt.constrain.prox import L1, L2, ElasticNet, prox
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
from boxopt.optimizers import adagrad, adam, adamw, lion, rmsprop, sgd
from boxopt.run.compile import CompiledStep, compile
from boxopt.scale.adam import ScaleByAdamState, scale_by_adam
from boxopt.scale.backtracking import (
    BacktrackingLinesearchInfo,
    ScaleByBacktrackingLinesearchState,
    scale_by_backtracking_linesearch,
)
from boxopt.scale.clipping import clip, clip_by_global_norm
from boxopt.scale.distance_over_gradients import ScaleByDistanceOverGradientsState, scale_by_distance_over_gradients
from boxopt.scale.lbfgs import ScaleByLBFGSState, lbfgs, scale_by_lbfgs
from boxopt.scale.momentum import TraceState, trace
from boxopt.scale.root_mean_square import (
    ScaleByRmsState,
    ScaleByRssState,
    ScaleByStddevState,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
)
from boxopt.scale.scale import add_decayed_weights, scale, scale_by_learning_rate, scale_by_schedule
from boxopt.scale.sign import ScaleByLionState, scale_by_lion
from boxopt.scale.zoom import ScaleByZoomLinesearchState, ZoomLinesearchInfo, scale_by_zoom_linesearch
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
    "BacktrackingLinesearchInfo",
    "Box",
    "CompiledStep",
    "ConsumedError",
    "CountState",
    "ElasticNet",
    "EmptyState",
    "GradientTransformation",
    "Layout",
    "MaskedNode",
    "MaskedState",
    "Packed",
    "PackedState",
    "ScaleByAdamState",
    "ScaleByBacktrackingLinesearchState",
    "ScaleByDistanceOverGradientsState",
    "ScaleByLBFGSState",
    "ScaleByLionState",
    "ScaleByRmsState",
    "ScaleByRssState",
    "ScaleByStddevState",
    "ScaleByZoomLinesearchState",
    "TraceState",
    "ZoomLinesearchInfo",
    "active",
    "adagrad",
    "adam",
    "adamw",
    "add_barrier",
    "add_decayed_weights",
    "add_penalty",
    "apply_updates",
    "barrier",
    "chain",
    "clip",
    "clip_by_global_norm",
    "compile",
    "constant_schedule",
    "contrib",
    "cosine_decay_schedule",
    "diagnostics",
    "elementwise",
    "exponential_decay",
    "finished",
    "identity",
    "is_feasible",
    "lbfgs",
    "linear_schedule",
    "lion",
    "log_barrier",
    "masked",
    "named_chain",
    "on_leaves",
    "optimality",
    "optimizers",
    "pack",
    "packed",
    "partition",
    "penalize",
    "penalty",
    "project",
    "prox",
    "rmsprop",
    "scale",
    "scale_by_adam",
    "scale_by_backtracking_linesearch",
    "scale_by_distance_over_gradients",
    "scale_by_lbfgs",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_stddev",
    "scale_by_zoom_linesearch",
    "schedules",
    "sets",
    "sgd",
    "stateless",
    "tangent",
    "trace",
    "violation",
    "warmup_cosine_decay_schedule",
]
