"""Wrappers against optax's, and what is boxopt's own: bounds, members, chains, packed trees."""

import inspect
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


def test_lookahead_is_optax_s():
    for reset in (False, True):
        with jax.enable_x64(True):
            peer = optax.lookahead(optax.adam(0.1), 3, 0.4, reset)
            theirs = optax.LookaheadParams.init_synced(jax.tree.map(jax.numpy.asarray, START))
            tx, params = bx.lookahead(bx.adam(0.1), 3, 0.4, reset), {k: torch.tensor(v) for k, v in START.items()}
            peer_state, state = peer.init(theirs), tx.init(params)
            peer_update = jax.jit(peer.update)
            for step in range(STEPS):
                draw = finite_gradients(step)
                updates, peer_state = peer_update(jax.tree.map(jax.numpy.asarray, draw), peer_state, theirs)
                theirs = optax.apply_updates(theirs, updates)
                updates, state = tx.update({k: torch.tensor(v) for k, v in draw.items()}, state, params)
                params = bx.apply_updates(params, updates)
                for leaf in SHAPES:
                    np.testing.assert_allclose(params[leaf], theirs.fast[leaf], rtol=1e-11, atol=1e-13)
                    np.testing.assert_allclose(state.slow[leaf], theirs.slow[leaf], rtol=1e-11, atol=1e-13)


def test_inject_hyperparams_is_optax_s():
    """A schedule, a constant, and a constant that is set on the way."""
    with jax.enable_x64(True):
        peer = optax.inject_hyperparams(optax.adam)(
            optax.exponential_decay(0.1, 10, 0.5), b1=lambda step: 0.9 - 0.01 * step, b2=0.99
        )
        tx = bx.inject_hyperparams(bx.adam)(
            bx.exponential_decay(0.1, 10, 0.5), b1=lambda step: 0.9 - 0.01 * step, b2=0.99
        )
        theirs, params = jax.tree.map(jax.numpy.asarray, START), {k: torch.tensor(v) for k, v in START.items()}
        peer_state, state = peer.init(theirs), tx.init(params)
        for step in range(STEPS):
            draw = finite_gradients(step)
            if step == 10:
                peer_state = optax.tree_utils.tree_set(peer_state, b2=jax.numpy.asarray(0.95))
                state = bx.tree_set(state, b2=0.95)
            updates, peer_state = peer.update(jax.tree.map(jax.numpy.asarray, draw), peer_state, theirs)
            theirs = optax.apply_updates(theirs, updates)
            updates, state = tx.update({k: torch.tensor(v) for k, v in draw.items()}, state, params)
            params = bx.apply_updates(params, updates)
            for leaf in SHAPES:
                np.testing.assert_allclose(
                    params[leaf], theirs[leaf], rtol=1e-6, atol=1e-7
                )  # its schedule is in float32
            for name in ("learning_rate", "b1", "b2"):
                np.testing.assert_allclose(state.hyperparams[name], peer_state.hyperparams[name], rtol=1e-6)


# --- hyperparameters in the state ----------------------------------------------------------------------------------


def test_hyperparameters_are_batched_differentiated_and_set_without_recompilation():
    torch._dynamo.reset()
    tx = bx.chain(bx.inject_hyperparams(bx.sgd)(0.1), bx.inject_hyperparams(bx.project)(BOX))
    params = torch.tensor([0.5, -0.5])

    def after(state):
        return bx.apply_updates(params, tx.update(torch.tensor([1.0, 2.0]), state, params)[0])

    state = tx.init(params)
    assert set(state[0].hyperparams) == {"learning_rate"}  # nesterov and the Nones are no numbers
    assert state[1].hyperparams["constraint"].upper == 0.75
    rates = torch.tensor([0.1, 0.2, 0.9])
    together = vmap(lambda rate: after(bx.tree_set(state, learning_rate=rate)))(rates)
    torch.testing.assert_close(together, torch.tensor([[0.4, -0.7], [0.3, -0.9], [-0.4, -1.0]]))
    slope = grad(lambda rate: after(bx.tree_set(state, learning_rate=rate)).sum())(torch.tensor(0.1))
    assert slope == -3
    compiled = torch.compile(tx.update, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rate, upper in ((0.1, 0.75), (0.3, 0.15)):
            state = bx.tree_set(state, learning_rate=rate, upper=upper)
            updates, _ = compiled(torch.tensor([1.0, 2.0]), state, params)
            assert torch.equal(bx.apply_updates(params, updates), after(state))
            assert after(state)[0].item() == pytest.approx(min(0.5 - rate, upper), abs=1e-7)


def optimizers():
    made = (getattr(bx.optimizers, name) for name in dir(bx.optimizers))
    return [f for f in made if inspect.isfunction(f) and "learning_rate" in inspect.signature(f).parameters]


@pytest.mark.parametrize("optimizer", optimizers(), ids=lambda f: f.__name__)
def test_every_optimizer_takes_hyperparameters_from_its_state(optimizer):
    params = {name: torch.tensor(leaf) for name, leaf in START.items()}
    plain, injected = optimizer(learning_rate=0.1), bx.inject_hyperparams(optimizer)(learning_rate=0.1)
    states = plain.init(params), injected.init(params)
    extra = {"value": torch.tensor(3.0)} if optimizer is bx.polyak_sgd else {}
    for step in range(3):
        slopes = {name: torch.tensor(leaf) for name, leaf in finite_gradients(step).items()}
        expected, first = plain.update(slopes, states[0], params, **extra)
        updates, second = injected.update(slopes, states[1], params, **extra)
        states = first, second
        torch.testing.assert_close(updates, expected, rtol=1e-12, atol=1e-14)


def test_first_moments_that_are_hyperparameters_are_batched():
    """``init`` needs no value of them: not under vmap, nor where a state is only imagined."""
    values = torch.tensor([0.25, 4.0], dtype=torch.float64)
    make = bx.inject_hyperparams(lambda initial: bx.scale_by_rms(initial_scale=initial))
    params = torch.ones(3)
    together = vmap(lambda value: make(value).init(params).inner_state.nu)(values)
    torch.testing.assert_close(together, values[:, None].float().expand(2, 3), rtol=0, atol=0)
    weight = torch.nn.Parameter(params.clone())
    optimizer = bx.TorchOptimizer([weight], make(0.25))
    weight.grad = torch.ones(3)
    optimizer.step()
    fresh = bx.TorchOptimizer([weight], make(0.25))
    fresh.load_state_dict(optimizer.state_dict())


def test_inject_hyperparams_says_what_is_wrong():
    with pytest.raises(ValueError, match="static_args names 'maks'; the arguments are 'learning_rate'"):
        bx.inject_hyperparams(bx.adamw, static_args="maks")
    with pytest.raises(TypeError, match="learning_rate"):
        bx.inject_hyperparams(bx.adam)()
    with pytest.raises(ValueError, match="finished step"):
        bx.chain(bx.inject_hyperparams(bx.project)(BOX), bx.scale(2.0))
    tx = bx.inject_hyperparams(bx.adamw, static_args="mask")(0.1, mask=lambda params: {"w": True, "b": False})
    params = {"w": torch.ones(1), "b": torch.ones(1)}
    updates, state = tx.update({"w": torch.zeros(1), "b": torch.zeros(1)}, tx.init(params), params)
    assert updates["w"] < 0
    assert updates["b"] == 0
    assert "mask" not in state.hyperparams


# --- averages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_averages_and_slow_parameters_stay_in_the_box_to_the_bit(dtype):
    box = bx.Box(-1.01, 0.0703)
    tx = bx.chain(bx.lookahead(bx.chain(bx.sgd(0.1), bx.project(box)), 2, 0.3), bx.ema_params(0.9))
    params = torch.empty(20_000, dtype=dtype).uniform_(-1.0, 0.07, generator=torch.Generator().manual_seed(0))
    state = tx.init(params)
    for step in range(12):
        noise = torch.randn(params.shape, generator=torch.Generator().manual_seed(step)).to(dtype)
        updates, state = tx.update(noise * 10 ** (step % 3), state, params)
        params = bx.apply_updates(params, updates)
        for points in (params, state[0].slow, state[1].ema):
            assert ((points.double() >= -1.01) & (points.double() <= 0.0703)).all()
        if step % 2:
            assert torch.equal(params, state[0].slow)


def test_ema_params_are_the_debiased_average():
    tx, plain = bx.ema_params(0.9), bx.ema_params(None)
    params = torch.tensor([1.0, -2.0], dtype=torch.float64)
    states, total, mean = (tx.init(params), plain.init(params)), torch.zeros(2), []
    for step in range(1, 20):
        update = torch.tensor([0.1, 1.0 / step], dtype=torch.float64)
        states = tuple(t.update(update, s, params)[1] for t, s in zip((tx, plain), states, strict=True))
        params = params + update
        total = 0.9 * total + 0.1 * params
        mean.append(params)
        torch.testing.assert_close(states[0].ema, total / (1 - 0.9**step))
        torch.testing.assert_close(states[1].ema, torch.stack(mean).mean(0))
    model = torch.nn.Linear(1, 1)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    tx, params = bx.ema_params(0.9, debias=False), {k: v.detach().clone() for k, v in model.named_parameters()}
    state = tx.init(params)
    averaged.update_parameters(model)  # torch starts its average with the first call
    for _ in range(4):
        updates = {name: torch.ones_like(leaf) for name, leaf in params.items()}
        _, state = tx.update(updates, state, params)
        params = bx.apply_updates(params, updates)
        model.load_state_dict(params)
        averaged.update_parameters(model)
    for name, leaf in averaged.module.named_parameters():
        torch.testing.assert_close(state.ema[name], leaf.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_target_networks(dtype):
    draw = torch.Generator().manual_seed(1)
    new, old = (torch.empty(20_000, dtype=dtype).uniform_(-1.01, 0.0703, generator=draw) for _ in range(2))
    between = bx.incremental_update({"a": new}, {"a": old}, 0.3)["a"]
    assert ((between >= torch.minimum(new, old)) & (between <= torch.maximum(new, old))).all()
    with jax.enable_x64(True):
        one, two = (jax.numpy.asarray(x.double().numpy()) for x in (new, old))
        expected = np.asarray(optax.incremental_update(one, two, 0.3))
        np.testing.assert_allclose(between.double(), expected, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
        for step in range(7):
            ours = bx.periodic_update(new, old, torch.tensor(step), 3)
            assert torch.equal(ours.double(), torch.tensor(np.asarray(optax.periodic_update(one, two, step, 3))))


# --- parts of a batch ----------------------------------------------------------------------------------------------


def test_microbatch_is_optax_s_and_the_whole_batch_s():
    def ours(w, x, *, y):
        each = (x @ w - y) ** 2
        return {"each": each, "total": each.sum(), "mean": each.mean()}

    def theirs(w, x, *, y):
        each = (x @ w - y) ** 2
        return {"each": each, "total": each.sum(), "mean": each.mean()}

    draw = np.random.default_rng(0)
    w, x, y = draw.normal(size=3), draw.normal(size=(12, 3)), draw.normal(size=12)
    kinds = {"each": "concat", "total": "sum", "mean": "mean"}
    arguments = torch.from_numpy(w), torch.from_numpy(x)
    mine = bx.microbatch(ours, 1, 4, kinds, argnames="y")(*arguments, y=torch.from_numpy(y))
    whole = ours(*arguments, y=torch.from_numpy(y))
    kind = optax.microbatching.AccumulationType
    with jax.enable_x64(True):
        peer = optax.microbatch(
            theirs, 1, 4, {"each": kind.CONCAT, "total": kind.SUM, "mean": kind.MEAN}, argnames="y"
        )(jax.numpy.asarray(w), jax.numpy.asarray(x), y=jax.numpy.asarray(y))
    for name in kinds:
        torch.testing.assert_close(mine[name], whole[name])
        np.testing.assert_allclose(mine[name], peer[name], rtol=1e-12)

    def loss(params, columns):
        return (columns.T @ params["w"]).square().mean()

    slope = bx.microbatch(grad(loss), [1], 3, "mean", in_axes=1)
    params = {"w": arguments[0], "none": None}
    accumulate = vmap(lambda w, x: slope({"w": w}, x)["w"])
    together = accumulate(torch.stack([arguments[0]] * 2), torch.stack([arguments[1].T] * 2))
    torch.testing.assert_close(together[1], grad(lambda w: loss({**params, "w": w}, arguments[1].T))(arguments[0]))
    assert bx.microbatch(ours, 1, None) is ours
    with pytest.raises(ValueError, match="microbatch_size is 5, which does not divide the 12 rows"):
        bx.microbatch(ours, 1, 5, argnames="y")(*arguments, y=arguments[1][:, 0])
    with pytest.raises(ValueError, match="number of rows: 7, 12"):
        bx.microbatch(ours, 1, 4, argnames="y")(*arguments, y=arguments[1][:7, 0])
    with pytest.raises(ValueError, match=r"one of sum, mean, concat, got 'max' at leaf 'each'"):
        bx.microbatch(ours, 1, 4, {"each": "max"})


# --- 16-bit parameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_masters_are_a_float32_run_and_parameters_follow_in_the_box(dtype):
    box, rate = bx.Box(-1.01, 0.0703), 1e-3
    start = torch.empty(5000).uniform_(-1.0, 0.07, generator=torch.Generator().manual_seed(0)).to(dtype)
    inner = bx.chain(bx.adam(rate), bx.project(box))
    for packed in (False, True):
        tx = bx.packed(bx.master_weights(inner, box)) if packed else bx.master_weights(inner, box)
        params, alone = start, start.float()
        state, alone_state = tx.init(params), inner.init(alone)
        for step in range(60):
            noise = torch.randn(params.shape, generator=torch.Generator().manual_seed(step)).to(dtype) - 0.5
            updates, state = tx.update(noise, state, params)
            params = bx.apply_updates(params, updates)
            wide, alone_state = inner.update(noise.float(), alone_state, alone)
            alone = bx.apply_updates(alone, wide)
            assert updates.dtype == dtype
            assert ((params.double() >= -1.01) & (params.double() <= 0.0703)).all()
        masters = bx.tree_get(state, "masters")
        masters = masters.unpack() if packed else masters
        assert torch.equal(masters, alone)
        # Where the sum can reach it; elsewhere it is as near as a rounding of the update allows.
        missed = (params.double() - box.project(alone.to(dtype)).double()).abs()
        assert (missed <= torch.finfo(dtype).eps * updates.double().abs()).all()
        assert (missed > 0).double().mean() < 0.01
    assert (box.project(alone.to(dtype)) != alone.to(dtype)).any()  # rounding alone would have left the box


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stochastic_rounding_is_right_on_average_and_never_leaves_the_box(dtype):
    """Steps far below the resolution, which rounding to nearest would lose."""
    box, count = bx.Box(-1.01, 0.7), 10_000
    tx = bx.stochastic_rounding(bx.chain(bx.sgd(1e-5), bx.project(box)), box)
    for start, slope in ((0.5, 1.0), (0.25, -3.0), (-0.6, -0.5)):
        params = torch.full((count,), start, dtype=dtype)
        start = params[0].item()
        state = tx.init(params)
        for _ in range(50):
            updates, state = tx.update(torch.full_like(params, slope), state, params)
            params = bx.apply_updates(params, updates)
        spread = torch.finfo(dtype).eps * 50**0.5 / count**0.5
        assert params.double().mean().item() == pytest.approx(start - 50e-5 * slope, abs=5 * spread)
    params = torch.full((count,), 0.7, dtype=dtype).clamp(max=box.project(torch.tensor([0.7], dtype=dtype)).item())
    state = tx.init(params)
    for step in range(50):
        updates, state = tx.update(torch.full_like(params, -(10.0 ** (step % 5))), state, params)
        params = bx.apply_updates(params, updates)
        assert (params.double() <= 0.7).all()
    assert (params == box.project(torch.tensor([0.7], dtype=dtype))).all()

    seeds = torch.tensor([1, 2])
    draw = vmap(lambda seed: bx.stochastic_rounding(bx.sgd(1e-5), seed=seed).init(params).key)(seeds)
    assert not torch.equal(draw[0], draw[1])


# --- moments at an active bound ------------------------------------------------------------------------------------


def test_frozen_coordinates_go_on_as_if_the_frozen_updates_had_not_been():
    """Each coordinate against an Adam of its own that is only called where it is free."""
    box, rate = bx.Box(-0.5, 0.5), bx.exponential_decay(0.3, 10, 0.8)
    adam = bx.adam(rate, b1=0.8, b2=0.9)
    tx = bx.chain(bx.freeze_active(adam, box), bx.project(box))
    params = torch.tensor([0.5, 0.45, -0.3, -0.5], dtype=torch.float64)
    state = tx.init(params)
    alone = [adam.init(x) for x in params]
    counts = [0] * 4
    for step in range(60):
        slopes = torch.cos(torch.tensor(step / 6.0, dtype=torch.float64) + torch.arange(4)) + 0.1 * params
        expected = params.clone()
        for i, x in enumerate(params):
            if (x >= 0.5 and slopes[i] < 0) or (x <= -0.5 and slopes[i] > 0):
                continue
            update, alone[i] = adam.update(slopes[i], alone[i], x)
            expected[i] = (x + update).clamp(-0.5, 0.5)
            counts[i] += 1
        updates, state = tx.update(slopes, state, params)
        params = bx.apply_updates(params, updates)
        torch.testing.assert_close(params, expected, rtol=1e-14, atol=1e-14)
        assert bx.tree_get_all(state, "count")[0][1].tolist() == counts
    assert 5 < min(counts) < 50  # there was something to freeze


def test_a_released_coordinate_moves_at_once():
    """Plain averages need steps to forget a force that the bound had cancelled."""
    box, params = bx.Box(0.0, 1.0), torch.zeros(1)

    def released(scaler):
        tx = bx.chain(scaler, bx.scale(-0.01), bx.project(box))
        x, state = params, tx.init(params)
        for step in range(120):
            updates, state = tx.update(torch.full((1,), 5.0 if step < 100 else -0.1), state, x)
            x = bx.apply_updates(x, updates)
        return x.item()

    assert released(bx.scale_by_adam()) == 0
    assert released(bx.freeze_active(bx.scale_by_adam(), box)) == pytest.approx(0.2, rel=1e-5)


def test_freeze_active_passes_things_on():
    box = bx.Box(0.0, 1.0)
    params = {"a": torch.tensor([0.0, 0.4]), "b": torch.tensor(0.6), "c": torch.zeros(0)}
    inner = bx.GradientTransformation(bx.identity().init, add_value)
    tx = bx.chain(bx.scale(0.5), bx.freeze_active(inner, box))
    updates, _ = tx.update({**params, "a": torch.ones(2)}, tx.init(params), params, value=3.0)
    assert updates["a"].tolist() == [0.0, 2.0]
    simplex = bx.chain(bx.freeze_active(bx.scale_by_adam(), box), bx.scale(-0.1), bx.project(bx.sets.Simplex()))
    plain = bx.chain(bx.scale_by_adam(), bx.scale(-0.1), bx.project(bx.sets.Simplex()))
    params = torch.tensor([0.2, 0.3, 0.5])
    slope = torch.tensor([1.0, 2.0, 3.0])
    one, two = (t.update(slope, t.init(params), params)[0] for t in (simplex, plain))
    torch.testing.assert_close(one, two)
    packed, unpack = bx.pack({"a": torch.tensor([0.0, 0.4]), "b": torch.tensor(0.6)})
    tx = bx.chain(bx.freeze_active(bx.adam(0.1), box), bx.project(box))
    one, _ = tx.update(packed, tx.init(packed), packed)
    two, _ = tx.update(unpack(packed), tx.init(unpack(packed)), unpack(packed))
    torch.testing.assert_close(unpack(one), two)
    with pytest.raises(ValueError, match="Simplex does not constrain each number by itself"):
        bx.freeze_active(bx.adam(0.1), bx.sets.Simplex())
    with pytest.raises(ValueError, match="declared elementwise"):
        bx.freeze_active(bx.chain(bx.stateless(lambda updates, params: updates), bx.adam(0.1)), box)


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
    "inject_hyperparams": lambda tx: bx.inject_hyperparams(lambda rate: tx)(0.1),
    "lookahead": lambda tx: bx.lookahead(tx, 9, 0.5),
    "master_weights": bx.master_weights,
    "stochastic_rounding": bx.stochastic_rounding,
}


LAST = ("lookahead", "master_weights")


@bx.elementwise
def add_value(updates, state, params, *, value, step_size=1.0):
    return torch.utils._pytree.tree_map(lambda u: u + value * step_size, updates), state


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_pass_things_on(name):
    """The mark of a finished step, the step size, extra arguments and packed trees."""
    wrap = WRAPPERS[name]
    with pytest.raises(ValueError, match="counts on its updates" if name in LAST else "finished step"):
        bx.chain(wrap(bx.chain(bx.adam(0.1), bx.project(BOX))), bx.scale(2.0))
    chained = lambda tx: bx.chain(wrap(bx.chain(bx.adam(0.1), bx.project(BOX))), tx)  # noqa: E731
    chained(bx.ema_params(0.9))
    if name in LAST:
        with pytest.raises(
            ValueError, match=rf"\(barrier\) comes after member 0 \({name}\), which counts on its updates"
        ):
            chained(bx.barrier(BOX, 0.1))
        with pytest.raises(ValueError, match="which counts on its updates"):
            bx.chain(bx.chain(bx.sgd(0.1), bx.ema_params(0.9)), wrap(bx.sgd(0.1)))
    else:
        chained(bx.barrier(BOX, 0.1))

    inner = bx.GradientTransformation(bx.identity().init, add_value)
    tx = bx.chain(bx.scale(0.5), wrap(inner))
    params = {"a": torch.zeros(2), "b": torch.zeros(())}
    updates, _ = tx.update(params, tx.init(params), params, value=3.0)
    assert updates["a"].tolist() == [1.5, 1.5]
    with pytest.raises(TypeError, match="vlaue"):
        tx.update(params, tx.init(params), params, vlaue=3.0)

    if name not in LAST:
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


def test_wrapped_steps_can_be_compiled_with_donation():
    """No state shares memory with the parameters, another state or what the transformation was made of."""
    rate = torch.tensor(0.1)
    tx = bx.chain(
        bx.inject_hyperparams(bx.scale_by_learning_rate)(rate),
        bx.lookahead(bx.chain(bx.multi_steps(bx.trace(0.9), 2), bx.project(BOX)), 2, 0.5),
        bx.ema_params(0.9),
    )

    def step(params, state):
        updates, state = tx.update(2 * params - 1, state, params)
        return bx.apply_updates(params, updates), state

    params = torch.linspace(-0.5, 0.5, 7)
    expected = params, tx.init(params)
    given = params.clone(), tx.init(params)
    compiled = bx.compile(step, donate_argnums=(0, 1), backend="aot_eager")
    for _ in range(4):
        expected, given = step(*expected), compiled(*given)
        torch.testing.assert_close(torch.utils._pytree.tree_leaves(given), torch.utils._pytree.tree_leaves(expected))
    assert rate == 0.1


@pytest.mark.parametrize("wrapper", [bx.master_weights, bx.stochastic_rounding])
def test_16_bit_steps_into_a_set_of_packed_vectors(wrapper):
    """Such a set sees whole leaves."""
    simplex = bx.sets.Simplex()
    params = {"a": torch.full((4,), 0.25, dtype=torch.bfloat16), "b": torch.full((2,), 0.5, dtype=torch.bfloat16)}
    packed, _ = bx.pack(params)
    tx = wrapper(bx.chain(bx.sgd(0.1), bx.project(simplex)), simplex)
    gradients = torch.utils._pytree.tree_map(lambda x: torch.arange(len(x), dtype=x.dtype), params)
    updates, _ = tx.update(bx.pack(gradients)[0], tx.init(packed), packed)
    after = bx.apply_updates(packed, updates).unpack()
    assert float(bx.violation(simplex, after)) <= 0.02
    assert all(leaf[0] > leaf[-1] for leaf in after.values())
