"""Every optimizer of the table against its peers, live: 300 steps on three problems, in float64 and float32."""

import warnings
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from sklearn.datasets import load_digits

import boxopt as bx
from boxopt.core.transform import accepted
from boxopt.core.tree import expand
from tests.optimizer_table import ROWS, TRANSFORMATIONS, VARIANTS

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jax
    import jax.numpy as jnp
    import optax

STEPS = 300
FLOAT32 = 1e-5
QUICK = {"xla_backend_optimization_level": 0}  # the compiler's time is most of the test's


# Losses with their gradients, written once for both libraries: xp is torch or jax.numpy.


def quadratic(xp, params, data):
    """Badly scaled: curvatures from 1e-3 to 10."""
    (curvature,), x = data, params["x"]
    return (curvature * (x - 1) ** 2).sum() / 2, {"x": curvature * (x - 1)}


def rosenbrock(xp, params, data):
    """In eight dimensions, over 100."""
    x = params["x"]
    valley = x[1:] - x[:-1] ** 2
    zero = x[:1] * 0
    slope = xp.concatenate((-400 * x[:-1] * valley - 2 * (1 - x[:-1]), zero)) + xp.concatenate((zero, 200 * valley))
    return (100 * valley**2 + (1 - x[:-1]) ** 2).sum() / 100, {"x": slope / 100}


def network(xp, params, data):
    """A network with eight hidden units on 64 digits."""
    images, labels = data
    hidden = xp.tanh(images @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    odds = xp.exp(logits)
    total = odds.sum(-1)
    error = (odds / total[:, None] - labels) / 64
    back = (error @ params["w2"].T) * (1 - hidden * hidden)
    gradients = {"w1": images.T @ back, "b1": back.sum(0), "w2": hidden.T @ error, "b2": error.sum(0)}
    return (xp.log(total) - (logits * labels).sum(-1)).sum() / 64, gradients


def digits():
    images, labels = load_digits(return_X_y=True)
    return images[:64] / 16, np.eye(10)[labels[:64]]


_RANDOM = np.random.default_rng(0)
START = {
    "quadratic": {"x": np.linspace(-1.2, 0.9, 8)},
    "rosenbrock": {"x": np.linspace(-1.2, 0.9, 8)},
    "network": {
        "b1": _RANDOM.normal(size=8) / 8,
        "b2": _RANDOM.normal(size=10) / 8,
        "w1": _RANDOM.normal(size=(64, 8)) / 8,
        "w2": _RANDOM.normal(size=(8, 10)) / 3,
    },
}
DATA = {"quadratic": (10.0 ** np.linspace(-3, 1, 8),), "rosenbrock": (), "network": digits()}
LOSSES = {"quadratic": quadratic, "rosenbrock": rosenbrock, "network": network}


def flat(params):
    return torch.cat([params[name].reshape(-1) for name in sorted(params)])


def tensors(problem, dtype):
    cast = lambda x: torch.tensor(x, dtype=getattr(torch, dtype))  # noqa: E731
    return {name: cast(x) for name, x in START[problem].items()}, tuple(cast(x) for x in DATA[problem])


@torch.no_grad()
def our_path(tx, problem, dtype, noise=0.0, seed=0):
    """The parameters after each step, which are moved by ``noise`` times themselves, at random."""
    random = torch.Generator().manual_seed(seed)
    params, data = tensors(problem, dtype)
    state, path, takes_value = tx.init(params), [], "value" in (accepted(tx) or ())
    for _ in range(STEPS):
        value, gradients = LOSSES[problem](torch, params, data)
        updates, state = tx.update(gradients, state, params, **({"value": value} if takes_value else {}))
        params = bx.apply_updates(params, updates)
        if noise:
            params = {
                name: x * (1 + noise * torch.randn(x.shape, generator=random, dtype=x.dtype))
                for name, x in params.items()
            }
        path.append(flat(params))
    return torch.stack(path).numpy()


@torch.no_grad()
def torch_path(build, problem, dtype):
    params, data = tensors(problem, dtype)
    optimizer, path = build([x.requires_grad_() for x in params.values()]), []
    for _ in range(STEPS):
        _, gradients = LOSSES[problem](torch, params, data)
        for name, x in params.items():
            x.grad = gradients[name]
        optimizer.step()
        path.append(flat(params))
    return torch.stack(path).numpy()


def optax_paths(build, dtype):
    """All three problems in one compiled program."""
    with jax.enable_x64(dtype == "float64"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tx = optax.with_extra_args_support(build())
        data = jax.tree.map(lambda x: jnp.asarray(x, dtype), DATA)

        def run(start):
            return {problem: path(problem, params) for problem, params in start.items()}

        def path(problem, params):
            def step(carry, _):
                params, state = carry
                value, gradients = LOSSES[problem](jnp, params, data[problem])
                updates, state = tx.update(gradients, state, params, value=value)
                params = optax.apply_updates(params, updates)
                return (params, state), jnp.concatenate([params[name].reshape(-1) for name in sorted(params)])

            return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[1]

        start = jax.tree.map(lambda x: jnp.asarray(x, dtype), START)
        paths = jax.jit(run).lower(start).compile(QUICK)(start)
        return {problem: np.asarray(path) for problem, path in paths.items()}


def distance(path, reference):
    """The largest difference over the path, relative to the largest parameter at each step."""
    scale = np.abs(reference).max(axis=1, keepdims=True)
    return float((np.abs(path.astype(float) - reference) / scale).max())


def peers(row):
    """From a dtype to the paths of each peer that the row has."""
    if row.optax is not None:
        yield "optax", lambda dtype: optax_paths(row.optax, dtype)
    if row.torch is not None:
        yield "torch.optim", lambda dtype: {problem: torch_path(row.torch, problem, dtype) for problem in LOSSES}


# Variants and single transformations have the arithmetic of the rows, which are compared in float32 too.
DTYPES = [(row, ("float64", "float32")) for row in ROWS] + [(row, ("float64",)) for row in TRANSFORMATIONS + VARIANTS]


@pytest.mark.parametrize(("row", "dtypes"), DTYPES, ids=[row.name for row, _ in DTYPES])
def test_same_path_as_its_peers(row, dtypes):
    """In float64 within the tolerance. In float32 rounding is amplified, by either library: there ours is as near to
    the peer's path in float64 as the peer's own in float32 is, within 1e-5 and a factor of 2. Where one number decides
    over the rest of a path, and rounds otherwise on another machine, ours is as near as one in float64 stays whose
    parameters are moved by a rounding of float32 in each step."""
    ours = {dtype: {problem: our_path(row.ours(), problem, dtype) for problem in LOSSES} for dtype in dtypes}
    for name, paths in peers(row):
        precise = paths("float64")
        coarse = paths("float32") if "float32" in dtypes else {}
        for problem in LOSSES:
            path = ours["float64"][problem]
            assert path.dtype == precise[problem].dtype
            assert np.isfinite(path).all()
            assert distance(path, precise[problem]) <= row.tolerance, (name, problem)
            if coarse:
                path = ours["float32"][problem]
                assert path.dtype == coarse[problem].dtype
                limit = max(FLOAT32, row.tolerance) + 2 * distance(coarse[problem], precise[problem])
                apart = distance(path, precise[problem])
                if apart > limit:
                    limit += 2 * rounding(row, problem, precise[problem])
                assert apart <= limit, (name, problem)


def rounding(row, problem, reference, samples=5):
    """How far roundings of float32 move a path in float64: the largest of some draws."""
    noise = torch.finfo(torch.float32).eps / 2
    paths = (our_path(row.ours(), problem, "float64", noise, seed) for seed in range(samples))
    return max(distance(path, reference) for path in paths)


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam"])
def test_in_float32_nearer_to_float64_than_optax_is(name):
    """Its 1 − 0.999ᵗ in float32 is off by up to 6e-5 of itself; ours is computed in float64."""
    row = next(row for row in ROWS if row.name == name)
    precise, coarse = (optax_paths(row.optax, dtype)["quadratic"] for dtype in ("float64", "float32"))
    ours = our_path(row.ours(), "quadratic", "float32")
    assert distance(ours, precise) < distance(coarse, precise) / 4


def test_every_optimizer_has_a_row():
    names = [row.name for row in ROWS]
    assert names == sorted(bx.optimizers.__all__)


def test_the_documentation_prints_this_table():
    """Run python docs/optimizer_table.py after a change of the table."""
    script = run_path(str(Path(__file__).parent.parent / "docs" / "optimizer_table.py"))
    assert script["rendered"]() == script["PAGE"].read_text(encoding="utf-8")


@torch.no_grad()
def steps_to_leave(*transformations):
    """Pressed against a bound for 1,000 steps, then drawn away: in how many steps it leaves, and is half way."""
    tx, params = bx.chain(*transformations, bx.project(bx.Box(0.0, 1.0))), torch.tensor(0.5, dtype=torch.float64)
    state, path = tx.init(params), []
    for step in range(4000):
        slope = torch.full_like(params, 1.0 if step < 1000 else -0.01)
        updates, state = tx.update(slope, state, params)
        params = bx.apply_updates(params, updates)
        path.append(params)
    path = torch.stack(path[1000:])
    return int((path > 0).nonzero()[0]) + 1, int((path >= 0.5).nonzero()[0]) + 1


def test_what_the_documentation_says_of_active_bounds():
    box = bx.Box(0.0, 1.0)
    for name, tx in {"adam": bx.adam(0.01), "lion": bx.lion(0.01, weight_decay=0.0)}.items():
        plain, tangent = steps_to_leave(tx), steps_to_leave(bx.tangent(box), tx)
        assert (plain, tangent) == {"adam": ((44, 2289), (1, 685)), "lion": ((450, 499), (1, 50))}[name]


@torch.no_grad()
@pytest.mark.parametrize("build", [bx.lion, bx.adamw])
def test_bounds_win_over_the_set_of_the_decay(build):
    for decay, expected in ((0.0, 3.0), (1.0, 2.0)):
        tx = bx.chain(build(0.005, weight_decay=decay), bx.project(bx.Box(2.0, 4.0)))
        params = torch.tensor(2.5, dtype=torch.float64)
        state = tx.init(params)
        for _ in range(1500):
            updates, state = tx.update(2 * (params - 3), state, params)
            params = bx.apply_updates(params, updates)
        assert float(params) == pytest.approx(expected, abs=0.01)


def test_frozen_parameters_stay_under_a_barrier():
    box, params = bx.Box(0.0, 1.0), {"frozen": torch.tensor([0.01]), "free": torch.tensor([0.01])}
    tx = bx.chain(bx.adam(0.01), bx.freeze("frozen"), bx.project(box), bx.barrier(box, 1e-2))
    updates, _ = tx.update({name: torch.zeros(1) for name in params}, tx.init(params), params)
    assert float(updates["frozen"]) == 0
    assert float(updates["free"]) > 0


FIRST_STEPS = {
    "adabelief": lambda: bx.adabelief(0.1),
    "adafactor": lambda: bx.adafactor(0.1, 2),
    "adagrad": lambda: bx.adagrad(0.1),
    "adam": lambda: bx.adam(0.1, eps_root=0.01),
    "adamax": lambda: bx.adamax(0.1),
    "adan": lambda: bx.adan(0.1),
    "amsgrad": lambda: bx.amsgrad(0.1),
    "fromage": lambda: bx.chain(bx.scale_by_trust_ratio(1e-6), bx.scale(-0.1)),
    "lamb": lambda: bx.lamb(0.1),
    "lars": lambda: bx.lars(0.1),
    "lion": lambda: bx.lion(0.1, weight_decay=0.0),
    "novograd": lambda: bx.novograd(0.1),
    "optimistic_adam": lambda: bx.optimistic_adam(0.1, nesterov=False),
    "optimistic_adam_v2": lambda: bx.optimistic_adam_v2(0.1, alpha=0.5, nesterov=False),
    "optimistic_gradient_descent": lambda: bx.optimistic_gradient_descent(0.1, alpha=0.5),
    "polyak_sgd": lambda: bx.polyak_sgd(scaling=0.5),
    "radam": lambda: bx.radam(0.1),
    "rmsprop": lambda: bx.rmsprop(0.1),
    "rprop": lambda: bx.rprop(0.1),
    "sgd": lambda: bx.sgd(0.1, momentum=0.9),
    "sign_sgd": lambda: bx.sign_sgd(0.1),
    "signum": lambda: bx.signum(0.1),
    "normalize_by_update_norm": lambda: bx.chain(bx.normalize_by_update_norm(2.0), bx.scale(-1.0)),
    "scale_by_param_block_norm": lambda: bx.chain(bx.scale_by_param_block_norm(), bx.scale(-1.0)),
}


@pytest.mark.parametrize("packed", [False, True], ids=["leaves", "packed"])
@pytest.mark.parametrize("name", FIRST_STEPS)
def test_the_first_step_is_the_step_size_times_the_gradient_or_its_sign(name, packed):
    """At first all averages, their bias corrected, are the gradient, and its square; not so sums."""
    tx, extra = FIRST_STEPS[name](), {"value": 0.3} if name == "polyak_sgd" else {}
    generator = torch.Generator().manual_seed(0)
    draw = lambda: {  # noqa: E731
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in {"a": (2, 3), "b": 4}.items()
    }
    params, gradients = draw(), draw()
    unpack = lambda tree: tree  # noqa: E731
    if packed:
        params, unpack = bx.pack(params)
        gradients = unpack.pack(gradients)
    updates, state = tx.update(gradients, tx.init(params), params, **extra)
    sizes = tx.step_size(state, 1.0)
    sizes = unpack.expand(sizes) if packed else sizes
    signed = name in {"lion", "sign_sgd", "signum", "rprop"}
    direction = pytree.tree_map(torch.sign, gradients) if signed else gradients
    # Rank one fits a squared gradient only roughly: Adafactor clips what its step size does not know of.
    ratio = pytree.tree_map(lambda u, size, d: -u / (size * d), updates, expand(sizes, updates), direction)
    for leaf in pytree.tree_leaves(unpack(ratio)):
        torch.testing.assert_close(leaf, leaf.flatten()[:1].expand_as(leaf.flatten()).view_as(leaf))
        share = 0.1 if name in {"sgd", "lars"} else 1  # of the sum to which a gradient adds up with a momentum of 0.9
        assert name == "adafactor" or float(leaf.flatten()[0]) == pytest.approx(share)


@pytest.mark.parametrize("nesterov", [False, True])
def test_adam_alone_with_its_defaults(nesterov):
    gradients = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = bx.scale_by_adam(nesterov=nesterov), optax.scale_by_adam(nesterov=nesterov)
    params = torch.zeros(3, dtype=torch.float64)
    with jax.enable_x64(True):
        state, their_state = ours.init(params), theirs.init(jnp.zeros(3))
        for gradient in gradients:
            updates, state = ours.update(gradient, state, params)
            expected, their_state = theirs.update(jnp.asarray(gradient.numpy()), their_state)
            np.testing.assert_allclose(updates.numpy(), np.asarray(expected), rtol=1e-12)


def test_the_units_of_clipping_may_be_named():
    """Along the last dimension in the place of the first: the transpose's."""
    params, gradients = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    rows, columns = bx.adaptive_grad_clip(0.1, axis=1), bx.adaptive_grad_clip(0.1)
    by_rows, _ = rows.update(gradients, rows.init(params), params)
    by_columns, _ = columns.update(gradients.mT, columns.init(params.mT), params.mT)
    torch.testing.assert_close(by_rows, by_columns.mT)
    assert (by_rows.norm(dim=1) <= 0.1 * params.norm(dim=1) * (1 + 1e-12)).all()
