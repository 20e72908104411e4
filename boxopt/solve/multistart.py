"""The best of several starts, side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from boxopt.core import tree
from boxopt.core.random import make_key, normal, split, uniform
from boxopt.core.transform import GradientTransformation
from boxopt.sets.box import Box
from boxopt.solve.batching import is_each, map_bound, put_together, refuse_ambiguous, shared, take_apart
from boxopt.solve.driver import batch_of, checked, flattened
from boxopt.solve.flat import Flat
from boxopt.solve.minimize import minimize
from boxopt.solve.result import Result
from boxopt.solve.track import constraint_of


def multistart(
    fun: Callable[..., Any],
    params: Any,
    solver: GradientTransformation,
    starts: int = 16,
    *,
    sample: Callable[[Tensor, Any], Any] | None = None,
    seed: int | Tensor = 0,
    args: tuple[Any, ...] = (),
    batch_dims: int = 0,
    **options: Any,
) -> Result:
    """Minimize from several starts, and keep the best for each problem.

    The starts are one more dimension of the batch: all run side by side, each to its own end.

    Args:
        fun: As of `boxopt.minimize`.
        params: The first start.
        solver: As of `boxopt.minimize`.
        starts: How many starts, the first included.
        sample: ``sample(key, params)``, a start from a key, two integers (see `boxopt.core.random`), and the first
            start of its problem; it runs under ``vmap``. By default a coordinate between two bounds is uniform, and any
            other normal around the first start, with deviation max(1, ``|x|``).
        seed: An integer or a key, from which all keys are made.
        args: As of `boxopt.minimize`. With a batch they are repeated for each start.
        batch_dims: As of `boxopt.minimize`.
        **options: Further arguments of `boxopt.minimize`.

    Returns:
        A `Result`, with what `boxopt.minimize` found from the start with the least loss. ``steps`` counts the
        evaluations from all of them.

    Raises:
        ValueError: ``starts`` is less than 1; or as `boxopt.minimize` does.

    Example:
        A function with many minima:

        >>> import torch, boxopt as bx
        >>> def rastrigin(x):
        ...     return (x**2 - 10 * torch.cos(2 * torch.pi * x) + 10).sum()
        >>> box = bx.Box(-5.12, 4.12)
        >>> start = torch.tensor([2.2, -3.3], dtype=torch.float64)
        >>> bx.minimize(rastrigin, start, bx.lbfgsb(box)).value.round(decimals=3)
        tensor(0.9950, dtype=torch.float64)
        >>> bx.multistart(rastrigin, start, bx.lbfgsb(box), 100).value.round(decimals=3)
        tensor(0., dtype=torch.float64)
    """
    if starts < 1:
        raise ValueError(f"multistart needs at least one start, got {starts!r}")
    tree.check_parameters(params)
    batch = batch_of(params, batch_dims)
    refuse_ambiguous(solver, params, batch)

    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.unsqueeze(batch_dims).expand((*batch, starts, *leaf.shape[batch_dims:]))

    def spread(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or is_each(leaf, batch):
            return repeat(leaf)
        leaf = shared(leaf, batch)
        return leaf.reshape((1,) * (batch_dims + 1) + leaf.shape) if leaf.ndim else leaf

    result = minimize(
        fun,
        _starts(params, constraint_of(solver), sample, seed, batch, starts),
        map_bound(spread, solver),
        args=tree.map(repeat, checked(args, batch)),
        batch_dims=batch_dims + 1,
        **options,
    )
    best = torch.where(result.value.isnan(), torch.inf, result.value).argmin(dim=-1)

    def choose(leaf: Tensor) -> Tensor:
        place = best.reshape(best.shape + (1,) * (leaf.ndim - best.ndim)).to(leaf.device)
        place = place.expand((*batch, 1, *leaf.shape[batch_dims + 1 :]))
        return leaf.gather(batch_dims, place).squeeze(batch_dims)

    return tree.map(choose, result)._replace(steps=result.steps.sum(-1))


def _starts(
    params: Any,
    constraint: Any,
    sample: Callable[[Tensor, Any], Any] | None,
    seed: int | Tensor,
    batch: tuple[int, ...],
    starts: int,
) -> Any:
    """The starts of all problems, with a dimension for them after those of the batch; the first is given."""
    setting, tensors = take_apart(constraint)
    each = [is_each(tensor, batch) for tensor in tensors]
    rows = [
        flattened(tensor, batch) if own else shared(tensor, batch) for tensor, own in zip(tensors, each, strict=True)
    ]
    leaves, structure = tree.flatten(tree.map(lambda leaf: flattened(leaf, batch), params))
    count = leaves[0].shape[0] if batch and leaves else 1
    keys = split(make_key(seed, tree.device_of(params)), count * (starts - 1))
    keys = keys.reshape((count, starts - 1, 2) if batch else (starts - 1, 2))

    def draw(key: Tensor, leaves: list[Tensor], rows: list[Tensor]) -> list[Tensor]:
        point = tree.unflatten(structure, leaves)
        chosen = sample(key, point) if sample is not None else _between(key, point, put_together(setting, rows))
        return tree.leaves(tree.map(lambda new, old: new.to(old.dtype), chosen, point))

    if starts > 1 and leaves:
        draw = vmap(draw, in_dims=(0, None, None))
        if batch:
            draw = vmap(draw, in_dims=(0, 0, [0 if own else None for own in each]))
        drawn = draw(keys, leaves, rows)
        dim = 1 if batch else 0
        leaves = [torch.cat([leaf.unsqueeze(dim), new], dim) for leaf, new in zip(leaves, drawn, strict=True)]
    else:
        leaves = [leaf.unsqueeze(1 if batch else 0) for leaf in leaves]
    return tree.unflatten(structure, [leaf.reshape((*batch, *leaf.shape[1 if batch else 0 :])) for leaf in leaves])


def _between(key: Tensor, params: Any, constraint: Any) -> Any:
    """A point between the bounds where there are two; where there are not, and for other sets, near the parameters."""
    flat = Flat.of(params)
    point = flat.ravel(params)
    first, second = split(key)
    around = point + normal(first, point.shape, flat.dtype) * point.abs().clamp_min(1)
    if not isinstance(constraint, Box):
        return flat.unravel(around)
    lower, upper = flat.bounds(constraint)
    share = uniform(second, point.shape, flat.dtype)
    bounded = (lower > -torch.inf) & (upper < torch.inf)
    inside = torch.where(bounded, lower, 0.0) * (1 - share) + torch.where(bounded, upper, 0.0) * share
    return flat.unravel(torch.where(bounded, inside, around).clamp(lower, upper))
