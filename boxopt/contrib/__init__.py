"""Optimizers that optax has under ``optax.contrib``, by the same names, and some that it does not have."""

from boxopt.contrib.adaptive import acprop, ademamix, adopt, simplified_ademamix, sophia
from boxopt.contrib.matrix import galore, muon, shampoo, soap
from boxopt.contrib.parameter_free import cocob, dog, dowg, madgrad
from boxopt.contrib.private import dpsgd
from boxopt.contrib.schedule_free import schedule_free_adamw, schedule_free_sgd
from boxopt.scale.acprop import ScaleByAcpropState, scale_by_acprop
from boxopt.scale.ademamix import (
    ScaleByAdemamixState,
    ScaleBySimplifiedAdEMAMixState,
    scale_by_ademamix,
    scale_by_simplified_ademamix,
)
from boxopt.scale.adopt import scale_by_adopt
from boxopt.scale.coin_betting import COCOBState, scale_by_cocob
from boxopt.scale.complex_valued import SplitRealAndImaginaryState, split_real_and_imaginary
from boxopt.scale.d_adaptation import DAdaptAdamWState, ProdigyState, dadapt_adamw, prodigy
from boxopt.scale.distance_over_gradients import DoGState, DoWGState, scale_by_dog, scale_by_dowg
from boxopt.scale.dual_averaging import MadgradState, scale_by_madgrad
from boxopt.scale.galore import GaLoreDimensionNumbers, GaLoreState, scale_by_galore
from boxopt.scale.mechanic import MechanicState, mechanize
from boxopt.scale.momentum_models import MomoAdamState, MomoState, momo, momo_adam
from boxopt.scale.muon import MuonDimensionNumbers, MuonState, scale_by_muon
from boxopt.scale.plateau import ReduceLROnPlateauState, reduce_on_plateau
from boxopt.scale.privacy import DifferentiallyPrivateAggregateState, differentially_private_aggregate
from boxopt.scale.schedule_free import ScheduleFreeState, schedule_free, schedule_free_eval_params
from boxopt.scale.shampoo import ScaleByShampooState, scale_by_shampoo
from boxopt.scale.sharpness import SAMState, normalize, sam
from boxopt.scale.soap import ScaleBySoapState, scale_by_soap
from boxopt.scale.sophia import HutchinsonState, SophiaState, hutchinson_estimator_diag_hessian, scale_by_sophia

__all__ = [
    "COCOBState",
    "DAdaptAdamWState",
    "DifferentiallyPrivateAggregateState",
    "DoGState",
    "DoWGState",
    "GaLoreDimensionNumbers",
    "GaLoreState",
    "HutchinsonState",
    "MadgradState",
    "MechanicState",
    "MomoAdamState",
    "MomoState",
    "MuonDimensionNumbers",
    "MuonState",
    "ProdigyState",
    "ReduceLROnPlateauState",
    "SAMState",
    "ScaleByAcpropState",
    "ScaleByAdemamixState",
    "ScaleByShampooState",
    "ScaleBySimplifiedAdEMAMixState",
    "ScaleBySoapState",
    "ScheduleFreeState",
    "SophiaState",
    "SplitRealAndImaginaryState",
    "acprop",
    "ademamix",
    "adopt",
    "cocob",
    "dadapt_adamw",
    "differentially_private_aggregate",
    "dog",
    "dowg",
    "dpsgd",
    "galore",
    "hutchinson_estimator_diag_hessian",
    "madgrad",
    "mechanize",
    "momo",
    "momo_adam",
    "muon",
    "normalize",
    "prodigy",
    "reduce_on_plateau",
    "sam",
    "scale_by_acprop",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_cocob",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_galore",
    "scale_by_madgrad",
    "scale_by_muon",
    "scale_by_shampoo",
    "scale_by_simplified_ademamix",
    "scale_by_soap",
    "scale_by_sophia",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_eval_params",
    "schedule_free_sgd",
    "shampoo",
    "simplified_ademamix",
    "soap",
    "sophia",
    "split_real_and_imaginary",
]
