"""Meta-learning through bounded steps: what can be learned, and what the derivatives at bounds are."""

import math

import pytest
import torch
from torch.func import grad, grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map

import boxopt as bx

F64 = {"dtype": torch.float64}
META = {
    "start": torch.tensor([0.3, -0.1, 0.9, 0.45], **F64),
    "lr": torch.tensor([0.1, 0.2, 0.15, 0.12], **F64),
    "lower": torch.tensor(-0.15, **F64),
    "upper": torch.tensor(0.5, **F64),
    "target": torch.tensor([1.0, -2.0, 0.2, 0.1], **F64),
    "mu": torch.tensor(0.01, **F64),
    "weight": torch.tensor(0.3, **F64),
}

ENDS = {  # how the set takes part in the step, and the numbers of META that matter then
    "project": (lambda box, meta: bx.project(box), {"mu", "weight"}),
    "barrier": (lambda box, meta: bx.barrier(box, mu=meta["mu"]), {"weight"}),
    "penalize": (lambda box, meta: bx.penalize(box, meta["weight"]), {"mu"}),
}


def trained(meta, end="project", optimizer=bx.sgd, steps=12, **options):
    """Where some steps of inner optimization end."""
    box = bx.Box(meta["lower"], meta["upper"])
    tx = bx.chain(optimizer(1.0), bx.scale(1.0), _scaled(meta["lr"]), ENDS[end][0](box, meta))

    def inner(x):
        return ((x - meta["target"]) ** 2).sum() + x.prod() + (x**4).sum() / 5

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(grad(inner)(x), state, x)
        return (bx.apply_updates(x, updates), state), None

    (x, _), _ = bx.unroll(step, (meta["start"], tx.init(meta["start"])), length=steps, **options)
    return x
