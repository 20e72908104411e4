"""Wrappers against optax's, and what is boxopt's own: bounds, members, chains, packed trees."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
import torch
from torch.func import grad, vmap

import boxopt as bx

BOX = bx.Box(-1.0, 0.75)
STEPS = 40
SHAPES = {"w": (3, 2), "b": (2,)}


def gradients(step):
    """Noise; large at some steps, infinite or NaN at others, several times in a row once."""
    draw = np.random.default_rng(step)
    tree = {name: draw.normal(size=shape) for name, shape in SHAPES.items()}
    if step % 7 == 3:
        tree["w"] *= 100
    if step % 11 == 5 or 20 <= step < 24:
        tree["b"][1] = (np.nan, np.inf, -np.inf)[step % 3]
    return tree


def finite_gradients(step):
    return {name: np.clip(np.nan_to_num(leaf), -9, 9) for name, leaf in gradients(step).items()}


START = {name: np.random.default_rng(99).normal(size=shape) for name, shape in SHAPES.items()}


def our_path(tx, draw):
    params = {name: torch.tensor(leaf) for name, leaf in START.items()}
    state, path = tx.init(params), []
    for step in range(STEPS):
        updates, state = tx.update({k: torch.tensor(v) for k, v in draw(step).items()}, state, params)
        params = bx.apply_updates(params, updates)
        path.append({name: leaf.numpy() for name, leaf in params.items()})
    return path, state


def optax_path(tx, draw):
    params = jax.tree.map(jax.numpy.asarray, START)
    state, path = tx.init(params), []
    update = jax.jit(tx.update)
    for step in range(STEPS):
        updates, state = update(jax.tree.map(jax.numpy.asarray, draw(step)), state, params)
        params = optax.apply_updates(params, updates)
        path.append(jax.tree.map(np.asarray, params))
    return path, state


def cautious(step):
    return step < 4


def with_value(step, value, **extra):
    return value > 0


OPTAX = {
    "multi_steps": (
        lambda: bx.multi_steps(bx.adam(0.1), 3),
        lambda: optax.MultiSteps(optax.adam(0.1), 3, accumulator_dtype="float64"),
        finite_gradients,
    ),
    "multi_steps, sums on a schedule": (
        lambda: bx.multi_steps(bx.adam(0.1), lambda step: torch.where(step < 3, 4, 2), use_grad_mean=False),
        lambda: optax.MultiSteps(
            optax.adam(0.1),
            lambda step: jax.numpy.where(step < 3, 4, 2),
            use_grad_mean=False,
            accumulator_dtype="float64",
        ),
        finite_gradients,
    ),
    "multi_steps, skip_not_finite": (
        lambda: bx.multi_steps(bx.adam(0.1), 2, should_skip_update_fn=bx.skip_not_finite),
        lambda: optax.MultiSteps(
            optax.adam(0.1), 2, should_skip_update_fn=optax.skip_not_finite, accumulator_dtype="float64"
        ),
        gradients,
    ),
    "multi_steps, skip_large_updates": (
        lambda: bx.multi_steps(
            bx.adam(0.1), 2, should_skip_update_fn=partial(bx.skip_large_updates, max_squared_norm=50.0)
        ),
        lambda: optax.MultiSteps(
            optax.adam(0.1),
            2,
            should_skip_update_fn=partial(optax.skip_large_updates, max_squared_norm=50.0),
            accumulator_dtype="float64",
        ),
        gradients,
    ),
    "apply_if_finite": (
        lambda: bx.apply_if_finite(bx.adam(0.1), 5),
        lambda: optax.apply_if_finite(optax.adam(0.1), 5),
        gradients,
    ),
    "apply_if_finite, gives up": (
        lambda: bx.apply_if_finite(bx.adam(0.1), 2),
        lambda: optax.apply_if_finite(optax.adam(0.1), 2),
        gradients,
    ),
    "conditionally_transform": (
        lambda: bx.conditionally_transform(bx.adam(0.1), cautious),
        lambda: optax.conditionally_transform(optax.adam(0.1), cautious),
        finite_gradients,
    ),
    "conditionally_mask": (
        lambda: bx.conditionally_mask(bx.adam(0.1), cautious),
        lambda: optax.conditionally_mask(optax.adam(0.1), cautious),
        finite_gradients,
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_optax(name):
    build, peer, draw = OPTAX[name]
    with jax.enable_x64(True):
        expected, theirs = optax_path(peer(), draw)
        path, ours = our_path(build(), draw)
        for mine, other in zip(path, expected, strict=True):
            for leaf in SHAPES:
                np.testing.assert_allclose(mine[leaf], other[leaf], rtol=1e-11, atol=1e-13)
        for field in ("mini_step", "gradient_step", "notfinite_count", "last_finite", "total_notfinite", "step"):
            if hasattr(theirs, field):
                assert getattr(ours, field).item() == getattr(theirs, field).item()


# --- bounds, members, chains ---------------------------------------------------------------------------------------


def test_one_diverging_member_touches_no_other():
    """Neither its neighbours' numbers nor, through 0 · inf, any derivative."""
    params = torch.linspace(-0.5, 0.5, 12).reshape(4, 3).double()
    bad = torch.tensor([0.0, torch.inf, 0.0, torch.nan]).double()[:, None]

    def train(params, bad, rate, wrap):
        tx = bx.chain(wrap(bx.adam(rate)), bx.project(BOX), bx.barrier(BOX, 1e-3))
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(params - 2 + bad, state, params)
            params = bx.apply_updates(params, updates)
        return params

    rates = torch.full((4,), 0.1).double()
    for wrap in (bx.skip_nonfinite, lambda tx: bx.multi_steps(tx, 1, should_skip_update_fn=bx.skip_not_finite)):
        after = vmap(partial(train, wrap=wrap))(params, bad, rates)
        good = torch.tensor([0, 2])
        expected = vmap(partial(train, wrap=lambda tx: tx))(params[good], bad[good], rates[good])
        torch.testing.assert_close(after[good], expected, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(
            after[1::2], bx.barrier(BOX, 0.0).update(0 * params, (), params)[0][1::2] + params[1::2]
        )
        total = lambda rates, wrap=wrap: vmap(partial(train, wrap=wrap))(params, bad, rates).sum()  # noqa: E731
        slopes = grad(total)(rates)
        assert torch.isfinite(slopes).all()
        assert (slopes[1::2] == 0).all()
        assert (slopes[::2] != 0).all()


def test_skipped_steps_leave_the_parameters_to_the_bit():
    """The step size of a skipped update is 0: a barrier that follows does not move either; nor does a simplex."""
    params = torch.tensor([0.2, 0.3, 0.5])
    for finish in (
        bx.barrier(bx.Box(0.0, 1.0), 0.1),
        bx.project(bx.sets.Simplex()),
        bx.penalize(bx.Box(0.3, 0.4), 1.0),
    ):
        tx = bx.chain(bx.multi_steps(bx.adam(0.1), 3), finish)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(torch.randn(3), state, params)
            assert (bx.apply_updates(params, updates) - params).abs().max() <= 1e-7
        updates, state = tx.update(torch.tensor([1.0, 2.0, 3.0]), state, params)
        assert updates.abs().max() > 1e-3


def test_members_accumulate_over_different_numbers_of_updates():
    def train(every):
        tx, params = bx.multi_steps(bx.sgd(1.0), every), torch.zeros(())
        state, path = tx.init(params), []
        for step in range(6):
            updates, state = tx.update(torch.tensor(float(step)), state, params)
            params = bx.apply_updates(params, updates)
            path.append(params)
        return torch.stack(path)

    together = vmap(train)(torch.tensor([1, 2, 3]))
    assert together.tolist() == [[0, -1, -3, -6, -10, -15], [0, -0.5, -0.5, -3, -3, -7.5], [0, 0, -1, -1, -1, -5]]


WRAPPERS = {
    "multi_steps": lambda tx: bx.multi_steps(tx, 1),
    "apply_if_finite": lambda tx: bx.apply_if_finite(tx, 2),
    "conditionally_mask": lambda tx: bx.conditionally_mask(tx, lambda step: step >= 0),
    "conditionally_transform": lambda tx: bx.conditionally_transform(tx, lambda step: step >= 0),
}


@bx.elementwise
def add_value(updates, state, params, *, value, step_size=1.0):
    return torch.utils._pytree.tree_map(lambda u: u + value * step_size, updates), state


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_pass_things_on(name):
    """The mark of a finished step, the step size, extra arguments and packed trees."""
    wrap = WRAPPERS[name]
    with pytest.raises(ValueError, match="finished step"):
        bx.chain(wrap(bx.chain(bx.adam(0.1), bx.project(BOX))), bx.scale(2.0))
    bx.chain(wrap(bx.chain(bx.adam(0.1), bx.project(BOX))), bx.barrier(BOX, 0.1))

    inner = bx.GradientTransformation(bx.identity().init, add_value)
    tx = bx.chain(bx.scale(0.5), wrap(inner))
    params = {"a": torch.zeros(2), "b": torch.zeros(())}
    updates, _ = tx.update(params, tx.init(params), params, value=3.0)
    assert updates["a"].tolist() == [1.5, 1.5]
    with pytest.raises(TypeError, match="vlaue"):
        tx.update(params, tx.init(params), params, vlaue=3.0)

    simplex = bx.chain(wrap(bx.adam(0.1)), bx.project(bx.sets.Simplex()))
    plain = bx.chain(bx.adam(0.1), bx.project(bx.sets.Simplex()))
    params = torch.tensor([0.2, 0.3, 0.5])
    states = simplex.init(params), plain.init(params)
    for slope in (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 2.0, -3.0])):
        one, first = simplex.update(slope, states[0], params)
        two, second = plain.update(slope, states[1], params)
        torch.testing.assert_close(one, two)
        states = first, second

    packed, unpack = bx.pack({"a": torch.tensor([0.5, -0.5]), "b": torch.tensor(0.1)})
    tx = wrap(bx.chain(bx.clip_by_global_norm(0.5), bx.adam(0.1), bx.project(BOX)))
    one, _ = tx.update(packed, tx.init(packed), packed)
    two, _ = tx.update(unpack(packed), tx.init(unpack(packed)), unpack(packed))
    torch.testing.assert_close(unpack(one), two)


def test_conditions_may_take_extra_arguments():
    tx = bx.chain(bx.conditionally_mask(bx.sgd(1.0), with_value, forward_extra_args=True), bx.project(BOX))
    params = torch.zeros(1)
    for value, expected in ((1.0, -1.0), (-1.0, 0.0)):
        assert tx.update(torch.ones(1), tx.init(params), params, value=value)[0].item() == expected
    named = bx.chain(bx.conditionally_mask(bx.sgd(1.0), lambda step, value: value > 0, forward_extra_args=True))
    assert named.update(torch.ones(1), named.init(params), params, value=1.0)[0].item() == -1
    with pytest.raises(TypeError, match="other"):
        named.update(torch.ones(1), named.init(params), params, other=1.0)


def test_bad_input():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        bx.multi_steps(bx.sgd(0.1), 0)
