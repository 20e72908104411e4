"""An ensemble: hyperparameters and parameters for each member, run one after the other."""

from functools import partial

import torch
import torch.utils._cxx_pytree as pytree

import boxopt as bx
from tests.fuzz.reference import Step, clearly
from tests.registry import Hyper

MEMBERS = 3


def batch(program, members):
    """The hyperparameters of an ensemble's members, and their parameters."""

    def vary(name, value, i):
        if name in ("lower", "upper"):
            return value * (1 + 0.25 * i)
        if name == "weight":
            return value * (1 - 0.125 * i)
        return value * (1 + 0.5 * i)

    each = [
        tuple(
            Hyper(*(torch.tensor(vary(n, v, i), dtype=torch.float64) for n, v in zip(Hyper._fields, h, strict=True)))
            for h in program.hypers
        )
        for i in range(members)
    ]
    return each


def stack(trees):
    return pytree.tree_map(lambda *xs: None if xs[0] is None else torch.stack(xs), *trees)


def take(values, index):
    return pytree.tree_map(lambda x: None if x is None else x[index], values)


def _times(factor, x):
    return None if x is None else (x * factor).to(x.dtype)


def member_runs(program, steps, members, shared):
    """For each member its hyperparameters and the steps of a loop over members."""
    runs = []
    for i, h in enumerate(batch(program, members)):
        tx = clearly(program.build, h)
        factor = 1.0 if shared else 1 - 0.25 * i
        params = pytree.tree_map(partial(_times, factor), steps[0].params)
        state, run = clearly(tx.init, params), []
        for number in range(len(steps)):
            gradients = program.gradient(number, params, seed=i)
            updates, new = tx.update(gradients, state, params)
            run.append(Step(gradients, state, params, updates, new))
            params, state = bx.apply_updates(params, updates), new
        runs.append((h, run))
    return runs
