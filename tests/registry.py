"""Everything the library exports that the laws apply to. To add a transformation is to add a line here."""

from collections.abc import Callable
from dataclasses import dataclass, field
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
        quick: Whether its own code generation is left to ``pytest --inductor``, because what it is made of, operation by
            operation, is generated for other entries; its capture by ``torch.compile`` is checked always.
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
    E_(("trace",), lambda h: bx.trace(h.weight, nesterov=True)),
    E_(("scale_by_adam",), lambda h: bx.scale_by_adam(eps_root=1e-8)),
    E_(("scale_by_adam", "nesterov"), lambda h: bx.scale_by_adam(b1=h.weight, nesterov=True)),
    E_(("scale_by_rms",), lambda h: bx.scale_by_rms(h.weight)),
    E_(("scale_by_rms", "outside"), lambda h: bx.scale_by_rms(h.weight, eps_in_sqrt=False)),
    E_(("scale_by_stddev",), lambda h: bx.scale_by_stddev(h.weight)),
    E_(("scale_by_rss",), lambda h: bx.scale_by_rss(0.0)),
    E_(("scale_by_lion",), lambda h: bx.scale_by_lion(h.weight)),
    E_(("sgd",), lambda h: bx.sgd(h.lr)),
    E_(("sgd", "momentum"), lambda h: bx.sgd(h.lr, momentum=h.weight, nesterov=True, weight_decay=0.1)),
    E_(("adam",), lambda h: bx.adam(h.lr)),
    E_(("adamw",), lambda h: bx.adamw(h.lr, weight_decay=h.weight)),
    E_(("adamw", "schedule"), lambda h: bx.adamw(schedule(h), weight_decay=h.weight)),
    E_(("rmsprop",), lambda h: bx.rmsprop(h.lr, centered=True, momentum=0.5)),
    E_(("adagrad",), lambda h: bx.adagrad(h.lr)),
    E_(("lion",), lambda h: bx.lion(h.lr)),
    E_(("project",), lambda h: bx.project(h.box), lands="closed"),
    E_(("barrier",), lambda h: bx.barrier(h.box, h.mu), lands="strictly"),
    E_(("barrier", "schedule"), lambda h: bx.barrier(h.box, bx.exponential_decay(h.mu, 10, 0.5)), lands="strictly"),
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
    E_(("chain",), lambda h: bx.chain(bx.adam(h.lr), bx.project(h.box)), lands="closed"),
    E_(
        ("chain", "named_chain"),
        lambda h: bx.named_chain(
            ("adam", bx.adamw(h.lr)),
            ("project", bx.project(h.box)),
            ("barrier", bx.barrier(h.box, h.mu)),
        ),
        lands="strictly",
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
    "warmup_cosine_decay_schedule": lambda h: bx.warmup_cosine_decay_schedule(0.0, h.lr, 3, 10, 0.01),
}

# Public names that are neither transformations nor schedules, and where they are tested.
OTHERS = {
    "Box": "test_box.py",
    "pack": "test_pack.py",
    "Packed": "test_pack.py",
    "Layout": "test_pack.py",
    "PackedState": "a state",
    "elementwise": "test_pack.py",
    "compile": "test_compile.py",
    "CompiledStep": "test_compile.py",
    "ConsumedError": "test_compile.py",
    "L1": "prox",
    "L2": "prox",
    "ElasticNet": "prox",
    "CountState": "a state",
    "EmptyState": "a state",
    "MaskedNode": "a state",
    "MaskedState": "a state",
    "ScaleByAdamState": "a state",
    "ScaleByLionState": "a state",
    "ScaleByRmsState": "a state",
    "ScaleByRssState": "a state",
    "ScaleByStddevState": "a state",
    "TraceState": "a state",
    "GradientTransformation": "the protocol",
    "apply_updates": "test_exactness.py",
    "finished": "test_combine.py",
    "active": "test_diagnostics.py",
    "is_feasible": "test_diagnostics.py",
    "optimality": "test_diagnostics.py",
    "violation": "test_diagnostics.py",
    "penalty": "test_penalty.py",
    "log_barrier": "test_barrier.py",
    "diagnostics": "a module",
    "optimizers": "a module",
    "schedules": "a module",
    "sets": "a module",
}
