"""The contributed optimizers against optax, live: 300 steps on three problems, and what has no peer by itself."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree

import boxopt as bx
from boxopt.core.transform import accepted
from tests.contrib_table import CONTRIB_ROWS

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jax
    import jax.numpy as jnp
    import optax

STEPS = 300
# Some paths are chaotic, so that an ulp in the start grows past 1e-10: see their notes in the table.
FEWER = {
    "mechanize": 30,
    "scale_by_backtracking_linesearch": 50,
    "scale_by_zoom_linesearch": 30,
    "scale_by_lbfgs": 40,
    "lbfgs": 30,
}
SCALES = 10.0 ** np.linspace(-2, 1, 8).reshape(4, 2)
INPUTS = np.sin(np.arange(24.0).reshape(8, 3))
TARGETS = np.cos(1.3 * np.arange(8.0).reshape(8, 1))


def quadratic(params, xp):
    """Badly scaled: curvatures from 1e-2 to 10."""
    scales = xp.asarray(SCALES, dtype=params["a"].dtype)
    return (scales * (params["a"] - 1) ** 2).sum() / 2 + ((params["b"] + 0.5) ** 2).sum() / 2


def rosenbrock(params, xp):
    """In eight dimensions, of which six are a matrix."""
    x = xp.concatenate([params["matrix"].reshape(-1), params["vector"]])
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum() / 100


def network(params, xp):
    dtype = params["inner"]["weight"].dtype
    inputs, targets = xp.asarray(INPUTS, dtype=dtype), xp.asarray(TARGETS, dtype=dtype)
    hidden = xp.tanh(inputs @ params["inner"]["weight"] + params["inner"]["bias"])
    return ((hidden @ params["outer"] - targets) ** 2).mean()


def spread(*shape, low=-1.2, high=0.9):
    return np.linspace(low, high, int(np.prod(shape))).reshape(shape)


PROBLEMS = {
    "quadratic": (quadratic, {"a": spread(4, 2), "b": spread(3)}),
    "rosenbrock": (rosenbrock, {"matrix": spread(2, 3), "vector": spread(2)}),
    "network": (network, {"inner": {"bias": spread(4), "weight": spread(3, 4) ** 3}, "outer": spread(4, 1)}),
}


def extra_arguments(names, objective, params, value, gradients, slope):
    """What an optimizer asks its caller for."""
    everything = {
        "value": value,
        "grad": gradients,
        "value_fn": objective,
        "obj_fn": objective,
        "grad_fn": lambda point, step: slope(point),
    }
    return {name: everything[name] for name in names}


def names_of(tx):
    return sorted((accepted(tx) or frozenset()) - {"step_size"})


def our_path(tx, problem, dtype, steps):
    function, start = PROBLEMS[problem]
    objective = partial(function, xp=torch)
    value_and_slope = torch.func.grad_and_value(objective)
    params = pytree.tree_map(lambda x: torch.tensor(x, dtype=getattr(torch, dtype)), start)
    state, path, names = tx.init(params), [], names_of(tx)
    for _ in range(steps):
        gradients, value = value_and_slope(params)
        extra = extra_arguments(names, objective, params, value, gradients, lambda p: value_and_slope(p)[0])
        updates, state = tx.update(gradients, state, params, **extra)
        params = bx.apply_updates(params, updates)
        path.append(torch.cat([leaf.flatten() for leaf in pytree.tree_leaves(params)]))
    return torch.stack(path).numpy()


def optax_path(tx, names, problem, dtype, steps):
    function, start = PROBLEMS[problem]
    objective = partial(function, xp=jnp)
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda x: jnp.asarray(x, dtype), start)

        def step(carry, _):
            params, state = carry
            value, gradients = jax.value_and_grad(objective)(params)
            extra = extra_arguments(names, objective, params, value, gradients, jax.grad(objective))
            updates, state = tx.update(gradients, state, params, **extra)
            params = optax.apply_updates(params, updates)
            return (params, state), jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])

        scan = jax.jit(
            lambda carry: jax.lax.scan(step, carry, None, steps)[1],
            compiler_options={"xla_backend_optimization_level": 0},  # compiles faster, with the same numbers
        )
        return np.asarray(scan((params, tx.init(params))))


def distance(path, reference):
    """The largest difference, relative to the largest coordinate of each step."""
    scale = np.abs(reference).max(axis=1, keepdims=True)
    return float((np.abs(path.astype(float) - reference) / scale).max())


# In float32 one problem is enough; the other two are a matter of rounding alone.
CASES = [("quadratic", "float64"), ("rosenbrock", "float64"), ("network", "float64"), ("network", "float32")]


@pytest.mark.parametrize("row", [row for row in CONTRIB_ROWS if row.optax], ids=lambda row: row.name)
def test_optax(row):
    """Within the tolerance or, in float32, at most as far from optax's as that is from its own float64 path."""
    names, paths = names_of(row.ours()), {}
    for problem, dtype in CASES:
        steps = FEWER.get(row.name, STEPS if dtype == "float64" else 100)
        path = our_path(row.ours(), problem, dtype, steps)
        reference = paths[problem, dtype] = optax_path(row.optax(), names, problem, dtype, steps)
        assert path.dtype == reference.dtype
        assert np.isfinite(reference).all()
        tolerance = row.tolerance
        if dtype == "float32":
            tolerance = 1e-5 + 2 * distance(reference, paths[problem, "float64"][:steps])
        assert distance(path, reference) <= tolerance, (problem, dtype)
