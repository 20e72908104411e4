"""What must not matter: wrappers that do nothing, and from which end a derivative is taken."""

import dataclasses
import random
import re

import torch
import torch.utils._cxx_pytree as pytree

from boxopt.core import tree
from tests.fuzz.agreement import Finding, Skipped, agree, deviation, finite, jitter, same
from tests.fuzz.programs import NAMES
from tests.fuzz.reference import clearly, reference


def always(step):
    return step >= 0


def one_label(params):
    return pytree.tree_map(lambda x: None if x is None else "all", params)


# Each leaves a transformation as it is.
NEUTRAL = [
    "bx.chain({})",
    "bx.chain(bx.identity(), {})",
    "bx.named_chain(('one', bx.identity()), ('two', {}))",
    "bx.masked({}, True)",
    "bx.partition({{'all': {}}}, one_label)",
    "bx.multi_steps({}, 1)",
    "bx.conditionally_mask({}, always)",
    "bx.conditionally_transform({}, always)",
    "bx.on_leaves({})",
]
ENTRY = re.compile(r"entry\('[^']+', h\[\d\]\)")


def wrapped(program, steps):
    """With neutral wrappers around the whole and around its parts the updates are the same: see below for the bits."""
    chance = random.Random(str(program))
    around = lambda found: chance.choice(NEUTRAL).format(found[0])  # noqa: E731
    text = chance.choice(NEUTRAL).format(ENTRY.sub(around, program.transformation))
    names = NAMES | {"always": always, "one_label": one_label}
    tx = clearly(lambda: eval(f"lambda h: {text}", names)(program.hypers))
    plain, state = program.build(program.hypers), clearly(tx.init, steps[0].params)
    # A choice between two step sizes is a tensor, and parts of packed leaves have theirs as vectors, where there was a
    # number, which Python multiplies without rounding to the parameters' dtype.
    parts = "packed(" in program.transformation and ("masked(" in text or "partition(" in text)
    tensors = parts or "multi_steps(" in text or "conditionally_" in text
    for step in steps:
        updates, state = tx.update(step.gradients, state, step.params)
        what = f"updates of {text}"
        if not tensors and all(x is None or x.is_contiguous() for x in pytree.tree_leaves(step[:3])):
            same(updates, step.updates, what)
        elif any(deviation(updates, step.updates, what)):
            # A wrapper that copies lays numbers out anew, and sums add them as they lie; later states have parted.
            agree(updates, step.updates, lambda *a: plain.update(*a)[0], step[:3], what, 64)
            return


def directions(program, steps):
    """Derivatives are the same forwards and backwards: v·(J u) = (Jᵀ v)·u, in float64 where rounding cannot hide it.

    The program is run anew in float64, with noise for gradients and no extreme strengths, and looked at in its second
    step.
    """
    params = re.sub(r"'(f32|bf16|f16)'", "'f64'", program.params)
    hypers = tuple(h if 1e-12 <= h.mu <= 1e12 else h._replace(mu=0.01) for h in program.hypers)
    noise = (("noise", 1.0), ("noise", 1.0))
    program = dataclasses.replace(program, params=params, hypers=hypers, gradients=noise)
    step, tx = reference(program)[-1], program.build(program.hypers)
    leaves = tree.leaves(step.params)
    if not leaves or not program.tame or not finite(step):
        raise Skipped("no parameters, or large")
    structures = [tree.flatten(values)[1] for values in (step.gradients, step.params)]
    count = len(leaves)

    def update(*values):
        gradients, params = (
            tree.unflatten(structure, list(part))
            for structure, part in zip(structures, (values[:count], values[count:]), strict=True)
        )
        return tuple(tree.leaves(tx.update(gradients, step.state, params)[0]))

    values = tuple(x.clone() for x in (*tree.leaves(step.gradients), *leaves))
    generator = torch.Generator().manual_seed(7)
    right, left = (
        tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in xs) for xs in (values, leaves)
    )
    forwards = lambda at: torch.func.jvp(update, at, right)[1]  # noqa: E731
    made, backwards = forwards(values), torch.func.vjp(update, *values)[1](left)
    apart = _inner(left, made) - _inner(right, backwards)
    scale = _inner(left, made, absolute=True) + _inner(right, backwards, absolute=True)
    if not scale < float("inf"):
        raise Skipped("infinite or NaN")
    # Half of the digits; and some ulps of the directions, since x⁺ − x has the derivative 1 − 1 where little moves.
    limit = 1e-7 * scale + 1e-14 * (_inner(left, left) * _inner(right, right)) ** 0.5
    if abs(apart) <= limit:
        return
    moved = [_inner(left, forwards(tuple(jitter(x, generator) for x in values))) for _ in range(6)]
    if abs(apart) <= limit + 50 * max(abs(x - _inner(left, made)) for x in moved):
        raise Skipped("ill-conditioned")
    raise Finding(f"derivatives differ by {apart:.3e} of {scale:.3e}: {made}\n{backwards}")


def _inner(one, other, absolute=False):
    """The inner product of two lists, or that of their sizes."""
    terms = [v * x for v, x in zip(one, other, strict=True)]
    return float(sum(x.abs().sum() if absolute else x.sum() for x in terms))
