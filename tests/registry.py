"""Everything the library exports that the laws apply to. To add a transformation is to add a line here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

import boxopt as bx


class Hyper(NamedTuple):
    """Hyperparameters: numbers, tensors, or the batched tensors of an ensemble."""

    lr: Any = 0.1
    mu: Any = 0.01
    weight: Any = 0.3
    lower: Any = -1.0
    upper: Any = 0.75

    @property
    def box(self) -> bx.Box:
        return bx.Box(self.lower, self.upper)


@dataclass(frozen=True)
class Entry:
    """A transformation and what the laws need to know of it.

    Attributes:
        names: The exports that the entry covers.
        build: From hyperparameters to the transformation.
        lands: Whether its updates keep parameters in the box, and "strictly" if in the interior.
        kinked: Whether it has kinks in the gradients, so that second derivatives are checked at a distance from them.
        quick: Whether its own code generation is left to ``pytest --inductor``, because what it is made of is generated
            for other entries; its capture by ``torch.compile`` is checked always.
        exempt: Laws that cannot hold, and why.
    """

    names: tuple[str, ...]
    build: Callable[[Hyper], bx.GradientTransformation]
    lands: str = ""
    quick: bool = False
    exempt: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "+".join(self.names)


def schedule(h: Hyper) -> Any:
    return bx.cosine_decay_schedule(h.lr, 50, alpha=0.1)


def bias_labels(params: Any) -> Any:
    """Every second leaf: a labelling function that fits any tree."""
    leaves, structure = torch.utils._pytree.tree_flatten(params, is_leaf=lambda x: x is None)
    return structure.unflatten([None if x is None else ("even", "odd")[i % 2] for i, x in enumerate(leaves)])


def even_mask(params: Any) -> Any:
    leaves, structure = torch.utils._pytree.tree_flatten(params, is_leaf=lambda x: x is None)
    return structure.unflatten([None if x is None else i % 2 == 0 for i, x in enumerate(leaves)])


def double(updates: Any, params: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda u: None if u is None else 2 * u, updates)


def are_matrices(params: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda x: None if x is None else getattr(x, "ndim", 0) == 2, params)


REGULARIZERS: dict[str, Callable[[Hyper], bx.GradientTransformation]] = {
    "GroupLasso": lambda h: bx.prox(bx.regularizers.GroupLasso(h.weight)),
    "SparseGroupLasso": lambda h: bx.prox(bx.regularizers.SparseGroupLasso(0.5, h.weight)),
    "LInf": lambda h: bx.prox(bx.regularizers.LInf(h.weight)),
    "TotalVariation": lambda h: bx.prox(bx.regularizers.TotalVariation(h.weight)),
    "FusedLasso": lambda h: bx.prox(bx.regularizers.FusedLasso(0.1, h.weight)),
    "Nuclear": lambda h: bx.chain(bx.identity(), bx.masked(bx.prox(bx.regularizers.Nuclear(h.weight)), are_matrices)),
    "Sum": lambda h: bx.prox(bx.regularizers.Sum(bx.regularizers.GroupLasso(h.weight), h.box, sweeps=2)),
}


def size(updates: Any) -> Any:
    """A measurement of any tree: the sum of absolute values."""
    leaves = torch.utils._pytree.tree_leaves(updates)
    return sum((u.abs().sum().double() for u in leaves if u is not None), torch.zeros((), dtype=torch.float64))


def with_value(tx: bx.GradientTransformation) -> bx.GradientTransformation:
    """A transformation that takes ``value=``, given that of a loss of the parameters, which the laws do not know."""
    return bx.GradientTransformation(tx.init, partial(_with_value_update, transformation=tx), tx.step_size)


def _with_value_update(updates: Any, state: Any, params: Any, *, transformation: Any, **extra: Any) -> Any:
    return transformation.update(updates, state, params, value=size(params), **extra)


OVER_LEAVES = {"stacked": "a norm, or an average, of each leaf"}
OVER_ALL = {"stacked": "the norm is over all that it is given"}


def every_two_then_one(step: Any) -> Any:
    return torch.where(step < 1, 2, 1)


def few_and_finite(updates: Any, step: Any, params: Any) -> Any:
    """Gradients to skip: none of the laws', but it takes some counting to know."""
    skip, info = bx.skip_not_finite(updates, step, params)
    large, more = bx.skip_large_updates(updates, step, params, max_squared_norm=1e8)
    return skip | large, {**info, "norm_squared": more["norm_squared"]}


def odd_steps(step: Any) -> Any:
    return step % 2 == 1


def smooth_adam(lr: Any) -> bx.GradientTransformation:
    """Adam with derivatives that finite differences can follow where its moments are still zero."""
    return bx.adam(lr, eps_root=0.1)


def small_first(step: Any) -> Any:
    return step < 2


def loss(params: Any) -> torch.Tensor:
    """What transformations are told that ask for a value."""
    leaves = [x for x in torch.utils._pytree.tree_leaves(params) if x is not None]
    return sum(
        (0.7 * (x - 0.1).to(torch.promote_types(x.dtype, torch.float32)).square().sum() for x in leaves),
        torch.zeros(()),
    )


def one_example(updates: Any, params: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda u: None if u is None else u[None], updates)


def slope(params: Any, step: int) -> Any:
    return torch.utils._pytree.tree_map(lambda x: None if x is None else 1.4 * (x - 0.1), params)


def curvature(params: Any) -> torch.Tensor:
    """The Hessian of `loss` over all leaves as one vector."""
    leaves = [x for x in torch.utils._pytree.tree_leaves(params) if x is not None]
    return 1.4 * torch.eye(sum(x.numel() for x in leaves), dtype=torch.float64)


def _told_update(updates: Any, state: Any, params: Any, *, transformation: Any, asks: tuple[str, ...]) -> Any:
    whole = lambda x: x.unpack() if isinstance(x, bx.Packed) else x  # noqa: E731  as `value_fn` sees them, to the bit
    extra = {
        "value": lambda: loss(whole(params)),
        "grad": lambda: whole(updates),
        "value_fn": lambda: loss,
        "obj_fn": lambda: loss,
        "grad_fn": lambda: slope,
        "curvature": lambda: curvature(params),
    }
    return transformation.update(updates, state, params, **{name: extra[name]() for name in asks})


def told(transformation: bx.GradientTransformation, *asks: str) -> bx.GradientTransformation:
    """A transformation that is told by the test what it asks its caller for."""
    update = partial(_told_update, transformation=transformation, asks=asks)
    return bx.GradientTransformation(transformation.init, update, transformation.step_size)


OVER_ALL = {"stacked": "its norms and products are over all that it is given"}

SEARCH = OVER_ALL | {"derivative": "which trials a search accepts changes by jumps, and so do its steps"}

E_ = Entry
ENTRIES = [
    E_(("identity",), lambda h: bx.identity()),
    E_(("stateless",), lambda h: bx.stateless(double)),
    E_(("scale",), lambda h: bx.scale(h.weight)),
    E_(("scale_by_learning_rate",), lambda h: bx.scale_by_learning_rate(h.lr)),
    E_(("scale_by_schedule",), lambda h: bx.scale_by_schedule(schedule(h))),
    E_(("add_decayed_weights",), lambda h: bx.add_decayed_weights(h.weight)),
    E_(("clip",), lambda h: bx.clip(h.weight)),
    E_(
        ("clip_by_global_norm",),
        lambda h: bx.clip_by_global_norm(h.weight),
        exempt={"stacked": "the norm is over all that it is given"},
    ),
    E_(("clip_by_block_rms",), lambda h: bx.clip_by_block_rms(h.weight), quick=True, exempt=OVER_LEAVES),
    E_(("adaptive_grad_clip",), lambda h: bx.adaptive_grad_clip(h.weight), quick=True, exempt=OVER_LEAVES),
    E_(("normalize_by_update_norm",), lambda h: bx.normalize_by_update_norm(h.weight), quick=True, exempt=OVER_ALL),
    E_(("centralize",), lambda h: bx.centralize(), quick=True, exempt=OVER_LEAVES),
    E_(("zero_nans",), lambda h: bx.zero_nans(), quick=True, exempt={"stacked": "one flag a leaf"}),
    E_(("freeze", "set_to_zero"), lambda h: bx.freeze(even_mask), quick=True),
    E_(("apply_every",), lambda h: bx.apply_every(2), quick=True),
    E_(
        ("record",),
        lambda h: bx.chain(bx.record(h.box, 4), bx.sgd(h.lr), bx.project(h.box)),
        "yes",
        quick=True,
        exempt={"derivative": "what is recorded has no derivative", "stacked": "one record for all"},
    ),
    E_(("snapshot",), lambda h: bx.snapshot("size", size), quick=True, exempt=OVER_ALL),
    E_(
        ("monitor", "ema"),
        lambda h: bx.monitor({"size": size, "mean": bx.ema(h.weight)}),
        quick=True,
        exempt=OVER_ALL,
    ),
    E_(
        ("noisy_sgd", "add_noise"),
        lambda h: bx.noisy_sgd(h.lr, h.weight),
        exempt={"stacked": "each number of a leaf has noise of its own"},
    ),
    E_(("trace",), lambda h: bx.trace(h.weight, nesterov=True)),
    E_(("scale_by_adam",), lambda h: bx.scale_by_adam(eps_root=1e-8)),
    E_(("scale_by_adam", "nesterov"), lambda h: bx.scale_by_adam(b1=h.weight, nesterov=True)),
    E_(("scale_by_rms",), lambda h: bx.scale_by_rms(h.weight)),
    E_(("scale_by_rms", "corrected"), lambda h: bx.scale_by_rms(h.weight, bias_correction=True), quick=True),
    E_(("scale_by_stddev", "corrected"), lambda h: bx.scale_by_stddev(h.weight, bias_correction=True), quick=True),
    E_(("scale_by_rms", "outside"), lambda h: bx.scale_by_rms(h.weight, eps_in_sqrt=False)),
    E_(("scale_by_stddev",), lambda h: bx.scale_by_stddev(h.weight)),
    E_(("scale_by_rss",), lambda h: bx.scale_by_rss(0.0)),
    E_(("scale_by_lion", "smooth"), lambda h: bx.scale_by_lion(h.weight, mode="smooth", smooth_beta=h.lr), quick=True),
    E_(("scale_by_lion",), lambda h: bx.scale_by_lion(h.weight)),
    E_(("sgd",), lambda h: bx.sgd(h.lr), quick=True),
    E_(("sgd", "momentum"), lambda h: bx.sgd(h.lr, momentum=h.weight, nesterov=True, weight_decay=0.1)),
    E_(("adam",), lambda h: bx.adam(h.lr), quick=True),
    E_(("adamw",), lambda h: bx.adamw(h.lr, weight_decay=h.weight)),
    E_(("adamw", "schedule"), lambda h: bx.adamw(schedule(h), weight_decay=h.weight)),
    E_(("nadam", "nadamw"), lambda h: bx.nadamw(h.lr, weight_decay=h.weight), quick=True),
    E_(("adamax", "adamaxw", "scale_by_adamax"), lambda h: bx.adamaxw(h.lr, h.weight), quick=True),
    E_(("amsgrad", "scale_by_amsgrad"), lambda h: bx.amsgrad(h.lr, h.weight, bias_correction_nu=False), quick=True),
    E_(("radam", "scale_by_radam"), lambda h: bx.radam(h.lr, h.weight, nesterov=True), quick=True),
    E_(("adabelief", "scale_by_belief"), lambda h: bx.adabelief(h.lr, h.weight, 0.9, 1e-8, 1e-2), quick=True),
    E_(("yogi", "scale_by_yogi"), lambda h: bx.yogi(h.lr, h.weight), quick=True),
    E_(("adan", "scale_by_adan"), lambda h: bx.adan(h.lr, h.weight, weight_decay=0.1), quick=True),
    E_(("adadelta", "scale_by_adadelta"), lambda h: bx.adadelta(h.lr, h.weight, 1e-3), quick=True),
    E_(
        ("adafactor", "scale_by_factored_rms", "scale_by_param_block_rms"),
        lambda h: bx.adafactor(h.lr, 2, momentum=h.weight, weight_decay_rate=0.1, eps=1e-3),
        exempt=OVER_LEAVES,
    ),
    E_(("scale_by_factored_rms", "elementwise"), lambda h: bx.scale_by_factored_rms(False), quick=True),
    E_(("sm3", "scale_by_sm3"), lambda h: bx.sm3(h.lr, h.weight), quick=True, exempt=OVER_LEAVES),
    E_(("sign_sgd", "scale_by_sign"), lambda h: bx.sign_sgd(h.lr), quick=True),
    E_(("signum", "ema"), lambda h: bx.signum(h.lr, h.weight), quick=True),
    E_(("rprop", "scale_by_rprop"), lambda h: bx.rprop(h.lr), quick=True),
    E_(("lamb", "scale_by_trust_ratio"), lambda h: bx.lamb(h.lr, h.weight), quick=True, exempt=OVER_LEAVES),
    E_(("lars",), lambda h: bx.lars(h.lr, h.weight), quick=True, exempt=OVER_LEAVES),
    E_(("fromage",), lambda h: bx.fromage(schedule(h)), quick=True, exempt=OVER_LEAVES),
    E_(
        ("scale_by_param_block_norm",),
        lambda h: bx.scale_by_param_block_norm(h.weight),
        quick=True,
        exempt=OVER_LEAVES,
    ),
    E_(
        ("novograd", "scale_by_novograd"),
        lambda h: bx.novograd(h.lr, h.weight, weight_decay=0.1),
        quick=True,
        exempt=OVER_LEAVES,
    ),
    E_(
        ("optimistic_gradient_descent", "scale_by_optimistic_gradient"),
        lambda h: bx.optimistic_gradient_descent(h.lr, h.weight, h.mu),
        quick=True,
    ),
    E_(("optimistic_adam",), lambda h: bx.optimistic_adam(h.lr, h.weight), quick=True),
    E_(("optimistic_adam_v2",), lambda h: bx.optimistic_adam_v2(h.lr, beta=h.weight), quick=True),
    E_(
        ("polyak_sgd", "scale_by_polyak"),
        lambda h: with_value(bx.polyak_sgd(h.weight, f_min=-1.0, variant="sps+")),
        quick=True,
        exempt=OVER_ALL,
    ),
    E_(("rmsprop",), lambda h: bx.rmsprop(h.lr, centered=True, momentum=0.5)),
    E_(("adagrad",), lambda h: bx.adagrad(h.lr), quick=True),
    E_(("lion",), lambda h: bx.lion(h.lr), quick=True),
    E_(("project",), lambda h: bx.project(h.box), lands="closed"),
    E_(("barrier",), lambda h: bx.barrier(h.box, h.mu), lands="strictly"),
    E_(
        ("barrier", "schedule"),
        lambda h: bx.barrier(h.box, bx.exponential_decay(h.mu, 10, 0.5)),
        "strictly",
        quick=True,
    ),
    E_(
        ("barrier", "L2Ball"),
        lambda h: bx.barrier(bx.sets.L2Ball(1.0 + h.weight, None), h.mu),
        quick=True,
        exempt={"stacked": "a vector is a whole leaf", "empty tensor": "a vector needs entries"},
    ),
    E_(
        ("add_barrier", "L2Ball"),
        lambda h: bx.add_barrier(bx.sets.L2Ball(1.0 + h.weight, None), h.mu, 0.1),
        quick=True,
        exempt={"stacked": "a vector is a whole leaf", "empty tensor": "a vector needs entries"},
    ),
    E_(("penalize",), lambda h: bx.penalize(h.box, h.weight)),
    E_(("penalize", "exact"), lambda h: bx.penalize(h.box, h.weight, "exact")),
    E_(("penalize", "huber"), lambda h: bx.penalize(h.box, h.weight, "huber", delta=0.5)),
    E_(("tangent",), lambda h: bx.tangent(h.box)),
    E_(("add_penalty",), lambda h: bx.add_penalty(h.box, h.weight)),
    E_(("add_penalty", "exact"), lambda h: bx.add_penalty(h.box, h.weight, "exact")),
    E_(("add_penalty", "huber"), lambda h: bx.add_penalty(h.box, h.weight, "huber", delta=0.5)),
    E_(("add_barrier",), lambda h: bx.add_barrier(h.box, h.mu, relax=0.01)),
    E_(("prox", "L1"), lambda h: bx.prox(bx.L1(h.weight))),
    E_(("prox", "L2"), lambda h: bx.prox(bx.L2(h.weight))),
    E_(("prox", "ElasticNet"), lambda h: bx.prox(bx.ElasticNet(h.weight, 0.5))),
    *(
        E_(("prox", name), build, quick=True, exempt={"stacked": "leaves, or their last dimension, are vectors"})
        for name, build in REGULARIZERS.items()
    ),
    E_(("chain",), lambda h: bx.chain(bx.adam(h.lr), bx.project(h.box)), lands="closed"),
    E_(
        ("chain", "named_chain"),
        lambda h: bx.named_chain(
            ("adam", bx.adamw(h.lr)),
            ("project", bx.project(h.box)),
            ("barrier", bx.barrier(h.box, h.mu)),
        ),
        lands="strictly",
        quick=True,  # test_compile.py generates this chain's code
    ),
    E_(
        ("chain", "rmsprop", "penalize"),
        lambda h: bx.chain(bx.tangent(h.box), bx.rmsprop(h.lr), bx.penalize(h.box, h.weight)),
    ),
    E_(
        ("chain", "adagrad", "prox"),
        lambda h: bx.chain(bx.adagrad(h.lr), bx.prox(bx.L1(h.weight)), bx.project(h.box)),
        lands="closed",
    ),
    E_(("projected",), lambda h: bx.projected(bx.sgd(h.lr, momentum=0.5), h.box), lands="closed", quick=True),
    E_(("projected", "noisy"), lambda h: bx.projected(bx.adam(h.lr), h.box, deterministic=False), "closed", quick=True),
    E_(("frank_wolfe",), lambda h: bx.frank_wolfe(h.box), lands="closed", quick=True),
    E_(("lbfgsb",), lambda h: told(bx.lbfgsb(h.box), "value"), "closed", quick=True, exempt=SEARCH),
    E_(
        ("lbfgsb", "pairs"),
        lambda h: told(bx.lbfgsb(h.box, memory=1), "value"),
        "closed",
        quick=True,
        exempt=SEARCH,
    ),
    E_(
        ("projected_newton",),
        lambda h: told(bx.projected_newton(h.box), "value", "value_fn"),
        "closed",
        quick=True,
        exempt=SEARCH,
    ),
    E_(
        ("projected_newton", "products"),
        lambda h: told(bx.projected_newton(h.box, cg_steps=1), "value", "value_fn"),
        "closed",
        quick=True,
        exempt=SEARCH,
    ),
    E_(
        ("interior_point",),
        lambda h: told(bx.interior_point(h.box), "value", "value_fn"),
        "strictly",
        quick=True,
        exempt=SEARCH,
    ),
    E_(
        ("interior_point", "products"),
        lambda h: told(bx.interior_point(h.box, cg_steps=1), "value", "value_fn"),
        "strictly",
        quick=True,
        exempt=SEARCH,
    ),
    E_(("fista",), lambda h: told(bx.fista(h.box, bx.L1(h.weight)), "value"), "closed", quick=True, exempt=SEARCH),
    E_(
        ("augmented_lagrangian",),
        lambda h: told(bx.augmented_lagrangian(bx.spg(h.box), equality=size, penalty=h.weight), "value"),
        "closed",
        quick=True,
        exempt=SEARCH,
    ),
    E_(("spg",), lambda h: told(bx.spg(h.box), "value"), "closed", quick=True, exempt=SEARCH),
    E_(
        ("frank_wolfe", "short step"),
        lambda h: bx.frank_wolfe(h.box, lipschitz=h.weight),
        lands="closed",
        exempt={"stacked": "one step for all that it is given"},
    ),
    E_(
        ("mirror",),
        lambda h: bx.chain(bx.adam(h.lr), bx.mirror(bx.sets.Simplex(h.weight))),
        quick=True,
        exempt={"stacked": "a number alone is a vector of one entry", "empty tensor": "no weights can have a sum"},
    ),
    E_(
        ("exponentiated_gradient",),
        lambda h: bx.exponentiated_gradient(h.lr, bx.sets.Simplex(h.weight)),
        exempt={"stacked": "a number alone is a vector of one entry", "empty tensor": "no weights can have a sum"},
    ),
    E_(("masked",), lambda h: bx.masked(bx.adam(h.lr), even_mask)),
    E_(
        ("partition",),
        lambda h: bx.partition(
            {
                "even": bx.chain(bx.adam(h.lr), bx.project(h.box), bx.barrier(h.box, h.mu)),
                "odd": bx.chain(bx.sgd(h.lr), bx.project(h.box)),
            },
            bias_labels,
        ),
        lands="closed",
        quick=True,
    ),
    E_(
        ("multi_steps", "skip_large_updates", "skip_not_finite"),
        lambda h: bx.chain(
            bx.multi_steps(smooth_adam(h.lr), every_two_then_one, True, few_and_finite),
            bx.project(h.box),
        ),
        lands="closed",
        quick=True,
    ),
    E_(
        ("apply_if_finite", "skip_nonfinite"),
        lambda h: bx.apply_if_finite(bx.chain(bx.skip_nonfinite(bx.adam(h.lr)), bx.project(h.box)), 3),
        lands="closed",
        quick=True,
    ),
    E_(
        ("conditionally_transform", "conditionally_mask"),
        lambda h: bx.chain(
            bx.conditionally_transform(bx.scale_by_adam(eps_root=0.1), small_first),
            bx.conditionally_mask(bx.scale_by_learning_rate(h.lr), odd_steps),
            bx.barrier(h.box, h.mu),
        ),
        lands="strictly",
        quick=True,
    ),
    E_(
        ("freeze_active",),
        lambda h: bx.chain(
            bx.freeze_active(bx.chain(bx.scale_by_adam(eps_root=0.1), bx.scale_by_learning_rate(schedule(h))), h.box),
            bx.project(h.box),
        ),
        lands="closed",
        quick=True,
        exempt={"counters": "each number counts the updates that it took part in"},
    ),
    E_(
        ("master_weights",),
        lambda h: bx.master_weights(bx.chain(bx.adam(h.lr), bx.project(h.box)), h.box),
        lands="closed",
        quick=True,
    ),
    E_(
        ("stochastic_rounding",),
        lambda h: bx.stochastic_rounding(bx.chain(bx.adam(h.lr), bx.project(h.box)), h.box, seed=3),
        lands="closed",
        quick=True,
    ),
    E_(
        ("inject_hyperparams", "lookahead", "ema_params"),
        lambda h: bx.chain(
            bx.lookahead(
                bx.chain(bx.inject_hyperparams(bx.adam)(schedule(h), b1=h.weight), bx.project(h.box)), 2, h.weight
            ),
            bx.ema_params(h.weight),
        ),
        lands="closed",
        quick=True,
    ),
    E_(
        ("inject_hyperparams", "box"),
        lambda h: bx.chain(
            bx.inject_hyperparams(bx.adam)(h.lr), bx.inject_hyperparams(bx.project)(h.box), bx.ema_params(None)
        ),
        lands="closed",
        quick=True,
    ),
    E_(("packed", "flatten"), lambda h: bx.packed(bx.chain(bx.adam(h.lr), bx.project(h.box))), lands="closed"),
    *[
        E_(names, build, quick=True, exempt=exempt)
        for names, build, exempt in [
            (
                ("contrib.acprop", "scale_by_acprop"),
                lambda h: bx.contrib.acprop(h.lr, b2=h.weight, weight_decay=0.1),
                {},
            ),
            (("contrib.ademamix", "scale_by_ademamix"), lambda h: bx.contrib.ademamix(h.lr, alpha=h.weight), {}),
            (
                ("contrib.simplified_ademamix", "scale_by_simplified_ademamix"),
                lambda h: bx.contrib.simplified_ademamix(h.lr, alpha=h.weight),
                {},
            ),
            (("contrib.adopt", "scale_by_adopt"), lambda h: bx.contrib.adopt(h.lr, h.weight, nesterov=True), {}),
            (("contrib.cocob", "scale_by_cocob"), lambda h: bx.contrib.cocob(h.lr, weight_decay=h.weight), {}),
            (("contrib.madgrad", "scale_by_madgrad"), lambda h: bx.contrib.madgrad(h.lr, h.weight), {}),
            (("contrib.dog", "scale_by_dog"), lambda h: bx.contrib.dog(h.lr, ("heuristic", h.weight)), OVER_ALL),
            (
                ("contrib.dog", "learning_rate"),
                lambda h: bx.contrib.dog(schedule(h), ("learning_rate", h.weight), weight_decay=0.1),
                OVER_ALL,
            ),
            (("contrib.dowg", "scale_by_dowg"), lambda h: bx.contrib.dowg(h.lr, h.weight), OVER_ALL),
            (
                ("scale_by_distance_over_gradients",),
                lambda h: bx.scale_by_distance_over_gradients(h.weight, global_scale=h.lr),
                OVER_ALL,
            ),
            (
                ("contrib.dadapt_adamw",),
                lambda h: bx.contrib.dadapt_adamw(h.lr, (0.9, 0.8), estim_lr0=h.weight, weight_decay=0.1),
                OVER_ALL,
            ),
            (
                ("contrib.prodigy",),
                lambda h: bx.contrib.prodigy(schedule(h), (0.9, 0.8), estim_lr0=h.weight, weight_decay=0.1),
                OVER_ALL | {"zero weight": "it divides by the first estimate of the distance"},
            ),
            (
                ("contrib.mechanize",),
                lambda h: bx.chain(bx.contrib.mechanize(bx.adam(h.lr), h.weight, 0.1, 0.1), bx.project(h.box)),
                OVER_ALL,
            ),
            (("contrib.momo",), lambda h: told(bx.contrib.momo(h.lr, weight_decay=h.weight), "value"), OVER_ALL),
            (
                ("contrib.momo_adam",),
                lambda h: told(bx.contrib.momo_adam(h.lr, weight_decay=h.weight, adapt_lower_bound=True), "value"),
                OVER_ALL,
            ),
            (
                ("contrib.reduce_on_plateau",),
                lambda h: told(
                    bx.chain(bx.sgd(h.lr), bx.contrib.reduce_on_plateau(h.weight, 1, min_scale=h.mu)), "value"
                ),
                OVER_ALL,
            ),
            (
                ("contrib.muon", "scale_by_muon"),
                lambda h: bx.contrib.muon(h.lr, beta=h.weight, weight_decay=0.1),
                {"stacked": "what counts as a matrix has two dimensions"},
            ),
            (
                ("contrib.schedule_free",),
                lambda h: bx.chain(
                    bx.contrib.schedule_free(bx.adam(h.lr, b1=0.0), schedule(h), h.weight), bx.project(h.box)
                ),
                {},
            ),
            (("contrib.schedule_free_sgd",), lambda h: bx.contrib.schedule_free_sgd(h.lr, 5, h.weight, 0.1), {}),
            (("contrib.schedule_free_adamw",), lambda h: bx.contrib.schedule_free_adamw(h.lr, 5, h.weight), {}),
            (
                ("contrib.sophia", "scale_by_sophia", "hutchinson_estimator_diag_hessian"),
                lambda h: told(bx.contrib.sophia(h.lr, gamma=h.weight, clip_threshold=2.0, eps=h.mu), "obj_fn"),
                {"stacked": "the random signs of a stack are others than those of its members"},
            ),
            (
                ("contrib.galore", "scale_by_galore"),
                lambda h: bx.contrib.galore(h.lr, 1, 2, h.weight, weight_decay=0.1),
                {"stacked": "what counts as a matrix has two dimensions"},
            ),
            (
                ("contrib.dpsgd", "differentially_private_aggregate"),
                lambda h: bx.chain(bx.stateless(one_example), bx.contrib.dpsgd(h.lr, h.weight, h.mu, 3, 0.9)),
                OVER_ALL | {"packed": "the gradients of examples have other shapes than the parameters"},
            ),
            (
                ("contrib.split_real_and_imaginary",),
                lambda h: bx.contrib.split_real_and_imaginary(bx.chain(bx.adam(h.lr), bx.project(h.box))),
                {"real parameters": "complex ones are what it is for"},
            ),
            (("scale_by_lbfgs",), lambda h: bx.chain(bx.scale_by_lbfgs(3), bx.scale(h.lr)), OVER_ALL),
            (
                ("scale_by_backtracking_linesearch",),
                lambda h: told(
                    bx.chain(
                        bx.sgd(h.lr),
                        bx.scale_by_backtracking_linesearch(3, max_learning_rate=h.weight, store_grad=True),
                    ),
                    "value",
                    "grad",
                    "value_fn",
                ),
                OVER_ALL,
            ),
            (
                ("lbfgs", "scale_by_zoom_linesearch"),
                lambda h: told(
                    bx.lbfgs(h.lr, 2, linesearch=bx.scale_by_zoom_linesearch(3)), "value", "grad", "value_fn"
                ),
                OVER_ALL | {"derivative": "the learning rate that the search finds is a constant to derivatives"},
            ),
            (
                ("contrib.shampoo", "scale_by_shampoo"),
                lambda h: bx.contrib.shampoo(h.lr, b2=h.weight, eps=0.05, block_size=2),
                {"stacked": "each leaf has matrices of its own"},
            ),
            (
                ("contrib.soap", "scale_by_soap"),
                lambda h: bx.contrib.soap(h.lr, h.weight, eps=1e-2, precondition_frequency=2, block_size=2),
                {"stacked": "what counts as a matrix has two dimensions"},
            ),
            (
                ("contrib.sam", "normalize"),
                lambda h: bx.contrib.sam(bx.adam(h.lr), bx.chain(bx.contrib.normalize(), bx.sgd(h.weight))),
                OVER_ALL,
            ),
            (
                ("contrib.sam", "opaque"),
                lambda h: told(
                    bx.contrib.sam(
                        bx.chain(bx.adam(h.lr), bx.project(h.box)),
                        bx.chain(bx.contrib.normalize(), bx.sgd(h.weight)),
                        opaque_mode=True,
                    ),
                    "grad_fn",
                ),
                OVER_ALL,
            ),
        ]
    ],
    E_(
        ("levenberg_marquardt", "gauss_newton"),
        lambda h: told(bx.levenberg_marquardt(h.box, damping=h.lr), "value", "curvature"),
        lands="closed",
        quick=True,
        exempt=OVER_ALL | {"derivative": "a solver compares values, and asks where it was told to"},
    ),
    E_(("packed",), lambda h: bx.packed(bx.chain(bx.adam(h.lr), bx.project(h.box))), lands="closed"),
    E_(
        ("packed", "partition", "on_leaves"),
        lambda h: bx.packed(
            bx.partition(
                {
                    "even": bx.chain(bx.adamw(h.lr), bx.project(h.box), bx.barrier(h.box, h.mu)),
                    "odd": bx.chain(bx.stateless(double), bx.sgd(h.lr), bx.project(h.box)),
                },
                bias_labels,
            )
        ),
        lands="closed",
    ),
]

SCHEDULES = {
    "constant_schedule": lambda h: bx.constant_schedule(h.lr),
    "linear_schedule": lambda h: bx.linear_schedule(h.lr, 0.0, 10, 2),
    "cosine_decay_schedule": lambda h: bx.cosine_decay_schedule(h.lr, 10, 0.1, 2.0),
    "exponential_decay": lambda h: bx.exponential_decay(h.lr, 10, 0.5, 2, end_value=0.01),
    "polynomial_schedule": lambda h: bx.polynomial_schedule(h.lr, 0.0, 1.5, 10, 2),
    "cosine_onecycle_schedule": lambda h: bx.cosine_onecycle_schedule(12, h.lr),
    "linear_onecycle_schedule": lambda h: bx.linear_onecycle_schedule(12, h.lr),
    "join_schedules": lambda h: bx.join_schedules([bx.constant_schedule(h.lr), bx.linear_schedule(h.lr, 0.0, 5)], [4]),
    "piecewise_constant_schedule": lambda h: bx.piecewise_constant_schedule(h.lr, {7: 0.1, 3: 0.5}),
    "piecewise_interpolate_schedule": lambda h: bx.piecewise_interpolate_schedule("cosine", h.lr, {7: 0.1, 3: 0.5}),
    "sgdr_schedule": lambda h: bx.sgdr_schedule(
        [{"init_value": 0.0, "peak_value": h.lr, "warmup_steps": 2, "decay_steps": 6}] * 2
    ),
    "warmup_constant_schedule": lambda h: bx.warmup_constant_schedule(0.0, h.lr, 3),
    "warmup_exponential_decay_schedule": lambda h: bx.warmup_exponential_decay_schedule(0.0, h.lr, 3, 4, 0.5, 1),
    "warmup_cosine_decay_schedule": lambda h: bx.warmup_cosine_decay_schedule(0.0, h.lr, 3, 10, 0.01),
}

# Public names that are neither transformations nor schedules, and where they are tested.
OTHERS = {
    "TorchOptimizer": "test_torch_optimizer.py",
    "bound_module": "test_torch_optimizer.py",
    "Box": "test_box.py",
    "least_squares": "test_least_squares.py",
    "covariance": "test_least_squares.py",
    "Poisson": "test_least_squares.py",
    "nnls": "test_nnls.py",
    "bvls": "test_nnls.py",
    "LeastSquaresResult": "a result",
    "minimize": "test_minimize.py",
    "multistart": "test_minimize.py",
    "scipy_minimize": "test_minimize.py",
    "Result": "test_minimize.py",
    "Status": "test_minimize.py",
    "pack": "test_pack.py",
    "Packed": "test_pack.py",
    "Layout": "test_pack.py",
    "elementwise": "test_pack.py",
    "unroll": "test_unroll.py",
    "implicit_minimizer": "test_implicit.py",
    "ImplicitSolution": "test_implicit.py",
    "compile": "test_compile.py",
    "CompiledStep": "test_compile.py",
    "ConsumedError": "test_compile.py",
    "L1": "prox",
    "L2": "prox",
    "ElasticNet": "prox",
    "ApplyEvery": "a state",
    "MaskedNode": "a state",
    "history": "test_recording.py",
    "scalars": "test_recording.py",
    "progress": "test_recording.py",
    "GradientTransformation": "the protocol",
    "apply_updates": "test_exactness.py",
    "finished": "test_combine.py",
    "active": "test_diagnostics.py",
    "is_feasible": "test_diagnostics.py",
    "optimality": "test_diagnostics.py",
    "fisher_diag": "test_curvature.py",
    "gauss_newton_product": "test_curvature.py",
    "hessian_diag": "test_curvature.py",
    "hutchinson_diag": "test_curvature.py",
    "hutchinson_trace": "test_curvature.py",
    "hvp": "test_curvature.py",
    "incremental_update": "test_wrap.py",
    "microbatch": "test_wrap.py",
    "periodic_update": "test_wrap.py",
    "rademacher_like": "test_curvature.py",
    "tree_get": "test_state_access.py",
    "tree_get_all": "test_state_access.py",
    "tree_map_params": "test_state_access.py",
    "tree_set": "test_state_access.py",
    "best_members": "test_ensemble.py",
    "chunked": "test_ensemble.py",
    "stack": "test_ensemble.py",
    "take_members": "test_ensemble.py",
    "unstack": "test_ensemble.py",
    "load": "test_checkpoint.py",
    "count_communication": "test_distributed.py",
    "on_members": "test_distributed.py",
    "shard_members": "test_distributed.py",
    "save": "test_checkpoint.py",
    "state_from_dict": "test_checkpoint.py",
    "state_to_dict": "test_checkpoint.py",
    "violation": "test_diagnostics.py",
    "penalty": "test_penalty.py",
    "log_barrier": "test_barrier.py",
    "frank_wolfe_gap": "test_feasible_steps.py",
    "BacktrackingLinesearchInfo": "a state",
    "ZoomLinesearchInfo": "a state",
    "contrib": "a module",
    "diagnostics": "a module",
    "optimizers": "a module",
    "regularizers": "a module",
    "schedules": "a module",
    "sets": "a module",
}
