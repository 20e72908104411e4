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

from boxopt import contrib, diagnostics, optimizers, regularizers, schedules, sets
from boxopt.bar import progress
from boxopt.constrain.barrier import add_barrier, barrier, log_barrier
from boxopt.constrain.frank_wolfe import frank_wolfe, frank_wolfe_gap
from boxopt.constrain.mirror import exponentiated_gradient, mirror
from boxopt.constrain.penalty import add_penalty, penalize, penalty
from boxopt.constrain.project import project
from boxopt.constrain.projected import projected
from boxopt.constrain.prox import prox
from boxopt.constrain.tangent import tangent
from boxopt.core.combine import MaskedState, chain, masked, named_chain, partition
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
from boxopt.core.types import MaskedNode
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
from boxopt.meta.implicit import ImplicitSolution, implicit_minimizer
from boxopt.meta.unroll import unroll
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
from boxopt.recording import RecordState, history, record, scalars
from boxopt.regularizers import L1, L2, ElasticNet
from boxopt.run.bound_module import bound_module
from boxopt.run.checkpoint import load, save, state_from_dict, state_to_dict
from boxopt.run.chunks import chunked
from boxopt.run.communication import count_communication
from boxopt.run.compile import CompiledStep, compile
from boxopt.run.distributed import on_members, shard_members
from boxopt.run.ensemble import best_members, stack, take_members, unstack
from boxopt.run.torch_optimizer import TorchOptimizer
from boxopt.scale.accumulation import ApplyEvery, apply_every
from boxopt.scale.adadelta import ScaleByAdaDeltaState, scale_by_adadelta
from boxopt.scale.adam import ScaleByAdamState, scale_by_adam
from boxopt.scale.adan import ScaleByAdanState, scale_by_adan
from boxopt.scale.backtracking import (
    BacktrackingLinesearchInfo,
    ScaleByBacktrackingLinesearchState,
    scale_by_backtracking_linesearch,
)
from boxopt.scale.belief import ScaleByBeliefState, scale_by_belief, scale_by_yogi
from boxopt.scale.centralize import centralize
from boxopt.scale.clipping import adaptive_grad_clip, clip, clip_by_block_rms, clip_by_global_norm
from boxopt.scale.distance_over_gradients import ScaleByDistanceOverGradientsState, scale_by_distance_over_gradients
from boxopt.scale.factored import FactoredState, scale_by_factored_rms
from boxopt.scale.freezing import ZeroNansState, freeze, set_to_zero, zero_nans
from boxopt.scale.largest_moment import ScaleByAmsgradState, scale_by_adamax, scale_by_amsgrad
from boxopt.scale.layerwise import (
    normalize_by_update_norm,
    scale_by_param_block_norm,
    scale_by_param_block_rms,
    scale_by_trust_ratio,
)
from boxopt.scale.lbfgs import ScaleByLBFGSState, lbfgs, scale_by_lbfgs
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
    ScaleByRmsWithCountState,
    ScaleByRssState,
    ScaleByStddevState,
    ScaleByStddevWithCountState,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
)
from boxopt.scale.rprop import ScaleByRpropState, scale_by_rprop
from boxopt.scale.scale import add_decayed_weights, scale, scale_by_learning_rate, scale_by_schedule
from boxopt.scale.sign import ScaleByLionState, scale_by_lion, scale_by_sign
from boxopt.scale.sm3 import ScaleBySM3State, scale_by_sm3
from boxopt.scale.zoom import ScaleByZoomLinesearchState, ZoomLinesearchInfo, scale_by_zoom_linesearch
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
from boxopt.solve.augmented_lagrangian import AugmentedLagrangianState, augmented_lagrangian
from boxopt.solve.fista import FistaState, fista
from boxopt.solve.gauss_newton import gauss_newton
from boxopt.solve.interior_point import InteriorPointState, interior_point
from boxopt.solve.lbfgsb import LBFGSBState, lbfgsb
from boxopt.solve.least_squares import LeastSquaresResult, covariance, least_squares
from boxopt.solve.levenberg_marquardt import LevenbergMarquardtState, levenberg_marquardt
from boxopt.solve.losses import Poisson
from boxopt.solve.minimize import minimize
from boxopt.solve.multistart import multistart
from boxopt.solve.nnls import bvls, nnls
from boxopt.solve.projected_newton import ProjectedNewtonState, projected_newton
from boxopt.solve.result import Result, Status
from boxopt.solve.scipy_minimize import scipy_minimize
from boxopt.solve.spg import SpgState, spg
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
    "AddNoiseState",
    "ApplyEvery",
    "ApplyIfFiniteState",
    "AugmentedLagrangianState",
    "BacktrackingLinesearchInfo",
    "Box",
    "CompiledStep",
    "ConditionallyMaskState",
    "ConditionallyTransformState",
    "ConsumedError",
    "CountState",
    "ElasticNet",
    "EmaParamsState",
    "EmaState",
    "EmptyState",
    "FactorState",
    "FactoredState",
    "FistaState",
    "FreezeActiveState",
    "GradientTransformation",
    "ImplicitSolution",
    "InjectHyperparamsState",
    "InteriorPointState",
    "LBFGSBState",
    "Layout",
    "LeastSquaresResult",
    "LevenbergMarquardtState",
    "LookaheadState",
    "MaskedNode",
    "MaskedState",
    "MasterWeightsState",
    "MonitorState",
    "MultiStepsState",
    "Packed",
    "PackedState",
    "Poisson",
    "ProjectedNewtonState",
    "RecordState",
    "Result",
    "ScaleByAdaDeltaState",
    "ScaleByAdamState",
    "ScaleByAdanState",
    "ScaleByAmsgradState",
    "ScaleByBacktrackingLinesearchState",
    "ScaleByBeliefState",
    "ScaleByDistanceOverGradientsState",
    "ScaleByLBFGSState",
    "ScaleByLionState",
    "ScaleByNovogradState",
    "ScaleByOptimisticGradientState",
    "ScaleByRmsState",
    "ScaleByRmsWithCountState",
    "ScaleByRpropState",
    "ScaleByRssState",
    "ScaleBySM3State",
    "ScaleByStddevState",
    "ScaleByStddevWithCountState",
    "ScaleByZoomLinesearchState",
    "SnapshotState",
    "SpgState",
    "Status",
    "StochasticRoundingState",
    "TorchOptimizer",
    "TraceState",
    "ZeroNansState",
    "ZoomLinesearchInfo",
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
    "apply_if_finite",
    "apply_updates",
    "augmented_lagrangian",
    "barrier",
    "best_members",
    "bound_module",
    "bvls",
    "centralize",
    "chain",
    "chunked",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "compile",
    "conditionally_mask",
    "conditionally_transform",
    "constant_schedule",
    "contrib",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "count_communication",
    "covariance",
    "diagnostics",
    "elementwise",
    "ema",
    "ema_params",
    "exponential_decay",
    "exponentiated_gradient",
    "finished",
    "fisher_diag",
    "fista",
    "flatten",
    "frank_wolfe",
    "frank_wolfe_gap",
    "freeze",
    "freeze_active",
    "fromage",
    "gauss_newton",
    "gauss_newton_product",
    "hessian_diag",
    "history",
    "hutchinson_diag",
    "hutchinson_trace",
    "hvp",
    "identity",
    "implicit_minimizer",
    "incremental_update",
    "inject_hyperparams",
    "interior_point",
    "is_feasible",
    "join_schedules",
    "lamb",
    "lars",
    "lbfgs",
    "lbfgsb",
    "least_squares",
    "levenberg_marquardt",
    "linear_onecycle_schedule",
    "linear_schedule",
    "lion",
    "load",
    "log_barrier",
    "lookahead",
    "masked",
    "master_weights",
    "microbatch",
    "minimize",
    "mirror",
    "monitor",
    "multi_steps",
    "multistart",
    "nadam",
    "nadamw",
    "named_chain",
    "nnls",
    "noisy_sgd",
    "normalize_by_update_norm",
    "novograd",
    "on_leaves",
    "on_members",
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
    "periodic_update",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "polyak_sgd",
    "polynomial_schedule",
    "progress",
    "project",
    "projected",
    "projected_newton",
    "prox",
    "radam",
    "rademacher_like",
    "record",
    "regularizers",
    "rmsprop",
    "rprop",
    "save",
    "scalars",
    "scale",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adan",
    "scale_by_amsgrad",
    "scale_by_backtracking_linesearch",
    "scale_by_belief",
    "scale_by_distance_over_gradients",
    "scale_by_factored_rms",
    "scale_by_lbfgs",
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
    "scale_by_zoom_linesearch",
    "schedules",
    "scipy_minimize",
    "set_to_zero",
    "sets",
    "sgd",
    "sgdr_schedule",
    "shard_members",
    "sign_sgd",
    "signum",
    "skip_large_updates",
    "skip_nonfinite",
    "skip_not_finite",
    "sm3",
    "snapshot",
    "spg",
    "stack",
    "state_from_dict",
    "state_to_dict",
    "stateless",
    "stochastic_rounding",
    "take_members",
    "tangent",
    "trace",
    "tree_get",
    "tree_get_all",
    "tree_map_params",
    "tree_set",
    "unroll",
    "unstack",
    "violation",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "yogi",
    "zero_nans",
]
