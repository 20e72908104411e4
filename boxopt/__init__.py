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

from boxopt import diagnostics, optimizers, schedules, sets
from boxopt.constrain.barrier import add_barrier, barrier, log_barrier
from boxopt.constrain.penalty import add_penalty, penalize, penalty
from boxopt.constrain.project import project
from boxopt.constrain.prox import L1, L2, ElasticNet, prox
from boxopt.constrain.tangent import tangent
from boxopt.core.combine import MaskedNode, MaskedState, chain, masked, named_chain, partition
from boxopt.core.donation import ConsumedError
from boxopt.core.pack import Layout, Packed, PackedState, flatten, on_leaves, pack, packed
from boxopt.core.state import tree_get, tree_get_all, tree_map_params, tree_set
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
from boxopt.curvature import (
    fisher_diag,
    gauss_newton_product,
    hessian_diag,
    hutchinson_diag,
    hutchinson_trace,
    hvp,
    rademacher_like,
)
from boxopt.diagnostics import active, is_feasible, optimality, violation
from boxopt.optimizers import adagrad, adam, adamw, lion, rmsprop, sgd
from boxopt.run.compile import CompiledStep, compile
from boxopt.scale.adam import ScaleByAdamState, scale_by_adam
from boxopt.scale.clipping import clip, clip_by_global_norm
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
from boxopt.schedules import (
    constant_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    exponential_decay,
    join_schedules,
    linear_onecycle_schedule,
    linear_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    polynomial_schedule,
    sgdr_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
)
from boxopt.sets import Box
from boxopt.wrap.apply_if_finite import ApplyIfFiniteState, apply_if_finite, skip_nonfinite
from boxopt.wrap.average import EmaParamsState, ema_params, incremental_update, periodic_update
from boxopt.wrap.conditional import (
    ConditionallyMaskState,
    ConditionallyTransformState,
    conditionally_mask,
    conditionally_transform,
)
from boxopt.wrap.freeze_active import FreezeActiveState, freeze_active
from boxopt.wrap.hyperparams import InjectHyperparamsState, inject_hyperparams
from boxopt.wrap.lookahead import LookaheadState, lookahead
from boxopt.wrap.microbatch import microbatch
from boxopt.wrap.multi_steps import MultiStepsState, multi_steps
from boxopt.wrap.precision import MasterWeightsState, StochasticRoundingState, master_weights, stochastic_rounding
from boxopt.wrap.skipping import skip_large_updates, skip_not_finite

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L2",
    "ApplyIfFiniteState",
    "Box",
    "CompiledStep",
    "ConditionallyMaskState",
    "ConditionallyTransformState",
    "ConsumedError",
    "CountState",
    "ElasticNet",
    "EmaParamsState",
    "EmptyState",
    "FreezeActiveState",
    "GradientTransformation",
    "InjectHyperparamsState",
    "Layout",
    "LookaheadState",
    "MaskedNode",
    "MaskedState",
    "MasterWeightsState",
    "MultiStepsState",
    "Packed",
    "PackedState",
    "ScaleByAdamState",
    "ScaleByLionState",
    "ScaleByRmsState",
    "ScaleByRssState",
    "ScaleByStddevState",
    "StochasticRoundingState",
    "TraceState",
    "active",
    "adagrad",
    "adam",
    "adamw",
    "add_barrier",
    "add_decayed_weights",
    "add_penalty",
    "apply_if_finite",
    "apply_updates",
    "barrier",
    "chain",
    "clip",
    "clip_by_global_norm",
    "compile",
    "conditionally_mask",
    "conditionally_transform",
    "constant_schedule",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "diagnostics",
    "elementwise",
    "ema_params",
    "exponential_decay",
    "finished",
    "fisher_diag",
    "flatten",
    "freeze_active",
    "gauss_newton_product",
    "hessian_diag",
    "hutchinson_diag",
    "hutchinson_trace",
    "hvp",
    "identity",
    "incremental_update",
    "inject_hyperparams",
    "is_feasible",
    "join_schedules",
    "linear_onecycle_schedule",
    "linear_schedule",
    "lion",
    "log_barrier",
    "lookahead",
    "masked",
    "master_weights",
    "microbatch",
    "multi_steps",
    "named_chain",
    "on_leaves",
    "optimality",
    "optimizers",
    "pack",
    "packed",
    "partition",
    "penalize",
    "penalty",
    "periodic_update",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "polynomial_schedule",
    "project",
    "prox",
    "rademacher_like",
    "rmsprop",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_stddev",
    "schedules",
    "sets",
    "sgd",
    "sgdr_schedule",
    "skip_large_updates",
    "skip_nonfinite",
    "skip_not_finite",
    "stateless",
    "stochastic_rounding",
    "tangent",
    "trace",
    "tree_get",
    "tree_get_all",
    "tree_map_params",
    "tree_set",
    "violation",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
]
