"""The contributed optimizers against optax, live: 300 steps on three problems, and what has no peer by itself."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree

import boxopt as bx
from boxopt.core.transform import accepted
from boxopt.scale import kronecker
from tests.contrib_table import CONTRIB_ROWS, CONTRIB_VARIANTS
from tests.registry import ENTRIES

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jax
    import jax.numpy as jnp
    import optax

STEPS = 300
# Some paths are chaotic, so that an ulp in the start grows past 1e-10, and some steps slow: see the notes in the table.
FEWER = {
    "mechanize": 30,
    "scale_by_backtracking_linesearch": 40,
    "scale_by_zoom_linesearch": 20,
    "scale_by_lbfgs": 20,
    "lbfgs": 20,
    "prodigy": 250,
    "sophia": 120,
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
    compare(row, CASES)


@pytest.mark.parametrize("row", CONTRIB_VARIANTS, ids=lambda row: row.name)
def test_variants_against_optax(row):
    compare(row, [("network", "float64")])


def compare(row, cases):
    """Within the tolerance or, in float32, at most as far from optax's as that is from its own float64 path."""
    names, paths = names_of(row.ours()), {}
    for problem, dtype in cases:
        steps = min(FEWER.get(row.name, STEPS), STEPS if dtype == "float64" else 60)
        path = our_path(row.ours(), problem, dtype, steps)
        reference = paths[problem, dtype] = optax_path(row.optax(), names, problem, dtype, steps)
        assert path.dtype == reference.dtype
        assert np.isfinite(reference).all()
        tolerance = row.tolerance
        if dtype == "float32":
            tolerance = 1e-5 + 2 * distance(reference, paths[problem, "float64"][:steps])
        assert distance(path, reference) <= tolerance, (problem, dtype)


# --- what optax lacks, against the papers' formulas in numpy ---------------------------------------------------------


def inverse_root(moment, power, eps):
    values, vectors = np.linalg.eigh(moment + eps * np.eye(len(moment)))
    return vectors @ np.diag(values ** (-1 / power)) @ vectors.T


def in_blocks(update, gradient, state, size=2):
    """A function of one block and its state, applied to all blocks of a matrix."""
    matrix = gradient if gradient.ndim == 2 else gradient[:, None]
    new = np.zeros_like(matrix)
    for i in range(0, matrix.shape[0], size):
        for j in range(0, matrix.shape[1], size):
            block = matrix[i : i + size, j : j + size]
            new[i : i + size, j : j + size], state[i, j] = update(block, state.get((i, j)))
    return new.reshape(gradient.shape)


def shampoo_in_numpy(gradients, eps=1e-6, momentum=0.9):
    def update(g, state):
        left, right = state or (0.0, 0.0)
        left, right = left + g @ g.T, right + g.T @ g
        if vector:
            return inverse_root(left, 2, eps) @ g, (left, right)
        return inverse_root(left, 4, eps) @ g @ inverse_root(right, 4, eps), (left, right)

    vector, state, trace = gradients[0].ndim == 1, {}, 0.0
    for gradient in gradients:
        trace = momentum * trace + in_blocks(update, gradient, state)
        yield -0.05 * trace


def soap_in_numpy(gradients, beta=0.95, eps=1e-4, frequency=3):
    def adam(mean, square, t):
        return mean / (1 - beta**t) / (np.sqrt(square / (1 - beta**t)) + eps)

    def update(g, state):
        if vector:
            t, mean, square = state or (0, 0.0, 0.0)
            mean, square = beta * mean + (1 - beta) * g, beta * square + (1 - beta) * g * g
            return adam(mean, square, t + 1), (t + 1, mean, square)
        t, mean, square, left, right, ql, qr = state or (0, 0.0, 0.0, 0.0, 0.0, None, None)
        left, right = beta * left + (1 - beta) * g @ g.T, beta * right + (1 - beta) * g.T @ g
        if ql is None:
            ql, qr = np.linalg.eigh(left)[1], np.linalg.eigh(right)[1]
        rotated = ql.T @ g @ qr
        mean, square = beta * mean + (1 - beta) * g, beta * square + (1 - beta) * rotated**2
        new = ql @ adam(ql.T @ mean @ qr, square, t + 1) @ qr.T
        if t and t % frequency == 0:
            ql, qr = np.linalg.qr(left @ ql)[0], np.linalg.qr(right @ qr)[0]
        return new, (t + 1, mean, square, left, right, ql, qr)

    vector, state = gradients[0].ndim == 1, {}
    for gradient in gradients:
        yield -0.01 * in_blocks(update, gradient, state)


@pytest.mark.parametrize(("name", "reference"), [("shampoo", shampoo_in_numpy), ("soap", soap_in_numpy)])
@pytest.mark.parametrize("shape", [(5, 3), (4,)])
def test_preconditioners_against_their_formulas(name, reference, shape):
    tx = {
        "shampoo": bx.contrib.shampoo(0.05, block_size=2),
        # With an eps that is not small, since the first gradient's moments have no full rank.
        "soap": bx.contrib.soap(0.01, eps=1e-4, weight_decay=0.0, precondition_frequency=3, block_size=2),
    }[name]
    gradients = [np.sin(7 * k + np.arange(np.prod(shape)) ** 1.5).reshape(shape) + 0.3 for k in range(12)]
    params = torch.zeros(shape, dtype=torch.float64)
    state = tx.init(params)
    for gradient, expected in zip(gradients, reference(gradients), strict=True):
        updates, state = tx.update(torch.from_numpy(gradient), state, params)
        np.testing.assert_allclose(updates.numpy(), expected, rtol=1e-8, atol=1e-12)


# --- random numbers, examples, complex parameters --------------------------------------------------------------------


def test_dpsgd_is_optax_s_noise_included():
    gradients = {"a": np.sin(np.arange(24.0)).reshape(4, 2, 3), "b": np.cos(np.arange(4.0))}
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tx = optax.contrib.dpsgd(0.1, 0.7, 0.3, seed=5, momentum=0.9)
        state, theirs = tx.init({"a": jnp.zeros((2, 3)), "b": jnp.zeros(())}), []
        for _ in range(3):
            updates, state = tx.update(jax.tree.map(jnp.asarray, gradients), state)
            theirs.append(jax.tree.map(np.asarray, updates))
    tx = bx.contrib.dpsgd(0.1, 0.7, 0.3, seed=5, momentum=0.9)
    params = {"a": torch.zeros(2, 3, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}
    state = tx.init(params)
    for expected in theirs:
        updates, state = tx.update(pytree.tree_map(torch.from_numpy, gradients), state, params)
        for name in updates:
            np.testing.assert_allclose(updates[name].numpy(), expected[name], rtol=1e-12)
    with pytest.raises(ValueError, match=r"leaf 'b'.*a gradient of each example"):
        tx.update(params | {"a": torch.zeros(4, 2, 3)}, state, params)


def test_members_of_an_ensemble_have_noise_of_their_own():
    def update(seed):
        tx, params = bx.contrib.dpsgd(1.0, 1.0, 1.0, seed=seed), torch.zeros(3)
        return tx.update(torch.zeros(2, 3), tx.init(params), params)[0]

    seeds = torch.tensor([1, 2])
    together = torch.func.vmap(update)(seeds)
    torch.testing.assert_close(together, torch.stack([update(1), update(2)]))
    assert (together[0] != together[1]).all()


def test_complex_parameters_are_two_real_ones():
    tx = bx.contrib.split_real_and_imaginary(bx.chain(bx.adam(0.1), bx.project(bx.Box(-0.9, 0.5))))
    whole = {"a": torch.tensor([0.4 + 0.1j, -0.5 - 0.8j], dtype=torch.complex128), "b": torch.tensor([0.3])}
    other = bx.chain(bx.adam(0.1), bx.project(bx.Box(-0.9, 0.5)))
    parts = {"re": whole["a"].real, "im": whole["a"].imag, "b": whole["b"]}
    state, parts_state = tx.init(whole), other.init(parts)
    for _ in range(5):
        updates, state = tx.update({"a": 2 * whole["a"] - 1, "b": -whole["b"]}, state, whole)
        gradients = {"re": 2 * parts["re"] - 1, "im": 2 * parts["im"], "b": -parts["b"]}
        expected, parts_state = other.update(gradients, parts_state, parts)
        whole, parts = bx.apply_updates(whole, updates), bx.apply_updates(parts, expected)
        torch.testing.assert_close(whole["a"], torch.complex(parts["re"], parts["im"]), rtol=0, atol=0)
        torch.testing.assert_close(whole["b"], parts["b"], rtol=0, atol=0)
    with pytest.raises(TypeError, match=r"leaf 'b'.*torch\.int64"):
        tx.init({"a": whole["a"], "b": torch.tensor([1])})


# --- step sizes and derivatives --------------------------------------------------------------------------------------

c = bx.contrib
# Those whose update is the gradient times the step size in every step; the others are in the first.
WITHOUT_MEMORY = {
    "acprop": lambda: c.acprop(0.1, b2=0.9),
    "dog": lambda: c.dog(0.5, ("heuristic", 1e-2)),
    "dog, learning rate": lambda: c.dog(0.5, ("learning_rate", 0.1)),
    "dowg": lambda: c.dowg(0.5),
    "layerwise": lambda: bx.chain(bx.scale_by_distance_over_gradients(0.1), bx.scale(-1.0)),
    "plateau": lambda: bx.chain(bx.sgd(0.1), c.reduce_on_plateau(0.5, 1)),
    "sophia": lambda: c.sophia(0.1, b1=0.0, weight_decay=0.0, update_interval=2),
    "ademamix": lambda: c.ademamix(0.1, b1=0.0, alpha=0.0),
    "dadapt": lambda: c.dadapt_adamw(betas=(0.0, 0.9), estim_lr0=0.1),
    "momo": lambda: c.momo(beta=0.0),
    "momo_adam": lambda: c.momo_adam(b1=0.0),
    "backtracking": lambda: bx.chain(bx.sgd(2.0), bx.scale_by_backtracking_linesearch(9)),
    "zoom": lambda: bx.chain(bx.sgd(2.0), bx.scale_by_zoom_linesearch(9)),
    "sam": lambda: c.sam(bx.sgd(0.1), bx.sgd(0.0), opaque_mode=True),
}
IN_THE_FIRST_STEP = {
    "simplified_ademamix": lambda: c.simplified_ademamix(0.1),
    "prodigy": lambda: c.prodigy(estim_lr0=0.1),
    "cocob": lambda: c.cocob(0.5),
    "madgrad": lambda: c.madgrad(0.1),
    "mechanize": lambda: c.mechanize(bx.adam(1.0), s_init=0.1),
    "schedule_free": lambda: c.schedule_free_adamw(0.1, b1=0.7),
}


@pytest.mark.parametrize("name", [*WITHOUT_MEMORY, *IN_THE_FIRST_STEP])
def test_step_size_is_the_factor_of_the_gradient(name):
    build = WITHOUT_MEMORY.get(name) or IN_THE_FIRST_STEP[name]
    tx, objective = build(), partial(quadratic, xp=torch)
    params = {"a": torch.from_numpy(spread(4, 2)), "b": torch.from_numpy(spread(3))}
    state = tx.init(params)
    for _ in range(3 if name in WITHOUT_MEMORY else 1):
        gradients, value = torch.func.grad_and_value(objective)(params)
        slope = torch.func.grad(objective)
        extra = extra_arguments(names_of(tx), objective, params, value, gradients, slope)
        updates, state = tx.update(gradients, state, params, **extra)
        sizes = bx.core.tree.expand(tx.step_size(state, 1.0), params)
        for key in params:
            size = sizes[key]
            torch.testing.assert_close(updates[key], -size * gradients[key], rtol=1e-9, atol=1e-12)
        params = bx.apply_updates(params, updates)


MATRICES = {
    "muon": lambda: c.scale_by_muon(beta=0.5),
    "muon, aol": lambda: c.scale_by_muon(beta=0.5, preconditioning="aol"),
    "muon, adaptive": lambda: c.scale_by_muon(beta=0.5, preconditioning="schatten", adaptive=True),
    "shampoo": lambda: c.scale_by_shampoo(eps=0.1),
}


@pytest.mark.parametrize("name", MATRICES)
def test_derivatives_of_preconditioners(name):
    tx, params = MATRICES[name](), torch.zeros(2, 3, dtype=torch.float64)

    def update(gradients):
        first, state = tx.update(gradients, tx.init(params), params)
        return first + tx.update(gradients.cos(), state, params)[0]

    gradients = torch.tensor([[0.5, -0.2, 0.9], [0.1, 0.7, -0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(update, gradients, rtol=1e-4)
    assert torch.autograd.gradgradcheck(update, gradients, atol=1e-4, rtol=1e-3)
    zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(tx.update(zero, tx.init(params), params)[0].sum(), zero, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), zero, allow_unused=True, materialize_grads=True)
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()


def test_muon_takes_dimension_numbers():
    numbers = {"heads": c.MuonDimensionNumbers(0, (1, 2)), "flat": None}
    params = {"heads": torch.linspace(-1, 1, 24, dtype=torch.float64).sin().reshape(4, 3, 2), "flat": torch.eye(2)}
    tx, plain = c.muon(0.1, muon_weight_dimension_numbers=numbers), c.muon(0.1)
    updates, _ = tx.update(params, tx.init(params), params)
    matrix = params["heads"].reshape(4, 6)
    expected, _ = plain.update(matrix, plain.init(matrix), matrix)
    torch.testing.assert_close(updates["heads"].reshape(4, 6), expected)
    adam = bx.adamw(0.1, weight_decay=0.0, nesterov=True)
    torch.testing.assert_close(
        updates["flat"], adam.update(params["flat"], adam.init(params["flat"]), params["flat"])[0]
    )


@pytest.mark.parametrize("wrapper", [c.mechanize, lambda tx: c.schedule_free(tx, 0.1)])
def test_wrappers_that_change_updates_refuse_finished_steps(wrapper):
    with pytest.raises(ValueError, match="Put the step after"):
        wrapper(bx.chain(bx.sgd(0.1), bx.project(bx.Box(0.0, 1.0))))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: c.reduce_on_plateau(1.5), "factor is between 0 and 1"),
        (lambda: c.reduce_on_plateau(rtol=0.0), "zero for both"),
        (lambda: c.reduce_on_plateau(rtol=-1.0), "rtol is between"),
        (lambda: c.scale_by_dog(("guess", 1.0)), "'guess'"),
        (lambda: c.sam(bx.sgd(0.1), bx.sgd(0.1), 0), "sync_period"),
        (lambda: c.muon(0.1, "fast"), "'fast'"),
        (lambda: c.muon(0.1, (1.0, 2.0)), "the shape"),
        (lambda: c.galore(0.1, 0), "rank"),
        (lambda: c.soap(block_size=0), "block_size"),
        (lambda: c.differentially_private_aggregate(-1.0, 1.0, 0), "l2_norm_clip"),
        (lambda: bx.scale_by_lbfgs(0), "memory_size"),
        (lambda: bx.scale_by_zoom_linesearch(5, initial_guess_strategy="two"), "'two'"),
    ],
)
def test_bad_hyperparameters(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_every_contributed_name_is_tested():
    table = {row.name for row in CONTRIB_ROWS}
    elsewhere = {"MuonDimensionNumbers", "GaLoreDimensionNumbers", "schedule_free_eval_params"}
    registered = {name.removeprefix("contrib.") for entry in ENTRIES for name in entry.names}
    states = {name for name in c.__all__ if name.endswith("State")}
    assert set(c.__all__) - registered - table - elsewhere - states == set()
    peers = {name for name, value in vars(optax.contrib).items() if callable(value)}
    assert peers - set(c.__all__) == {"NormalizeState"}  # an EmptyState


def run_five_steps(tx, problem):
    function, start = PROBLEMS[problem]
    objective, slope = partial(function, xp=torch), torch.func.grad(partial(function, xp=torch))
    params = pytree.tree_map(torch.from_numpy, start)
    state = tx.init(params)
    for _ in range(5):
        gradients = slope(params)
        extra = extra_arguments(names_of(tx), objective, params, objective(params), gradients, slope)
        updates, state = tx.update(gradients, state, params, **extra)
        params = bx.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("row", [*CONTRIB_ROWS, *CONTRIB_VARIANTS], ids=lambda row: row.name)
def test_before_a_set_and_packed(row):
    """The step size of each reaches the set after it, and on packed parameters the numbers are the same."""
    tx = bx.chain(row.ours(), bx.project(bx.Box(-1.0, 0.7)), bx.barrier(bx.Box(-1.1, 0.8), 1e-3))
    whole, packed = run_five_steps(tx, "network"), run_five_steps(bx.packed(tx), "network")
    for one, other in zip(pytree.tree_leaves(whole), pytree.tree_leaves(packed), strict=True):
        assert ((one > -1.1) & (one < 0.8)).all()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_roots_of_a_matrix_that_is_singular_but_for_rounding():
    """Whether torch follows or not; the inverse that derivatives go through cannot be found by elimination."""
    vector = torch.tensor([1e5, 2e5, 3e5], requires_grad=True)
    moment = vector[:, None] * vector
    followed = kronecker.inverse_root(moment, 4, 1e-30).detach()
    torch.testing.assert_close(followed, kronecker.inverse_root(moment.detach(), 4, 1e-30))
    zero = torch.zeros(2, 2, requires_grad=True)
    torch.testing.assert_close(kronecker.inverse_root(zero, 4, 1e-4).detach(), 10 * torch.eye(2))


def test_sophia_without_a_limit_is_a_diagonal_newton_step():
    scales = torch.tensor([1.0, 4.0], dtype=torch.float64)
    objective = lambda x: (scales * x * x).sum() / 2  # noqa: E731
    tx = bx.contrib.scale_by_sophia(b1=0.0, b2=0.0, gamma=1.0, clip_threshold=None)
    x = torch.tensor([3.0, -2.0], dtype=torch.float64)
    gradient = torch.func.grad(objective)(x)
    _, state = tx.update(
        gradient, tx.init(x), x, obj_fn=objective
    )  # what it sees of the curvature is for the next step
    updates, state = tx.update(gradient, state, x, obj_fn=objective)
    torch.testing.assert_close(updates, x)
    torch.testing.assert_close(tx.step_size(state, 1.0), 1 / scales)


def test_galore_with_rows_and_columns_as_they_are_named():
    """Of a leaf with three dimensions, two of which are rows, and for some leaves of a tree: as the matrix would be."""
    g = torch.randn(2, 3, 4, dtype=torch.float64)
    dims = bx.contrib.GaLoreDimensionNumbers((0, 1), 2)
    flat, cubic = bx.contrib.scale_by_galore(2), bx.contrib.scale_by_galore(2, weight_dimension_numbers=dims)
    by_function = bx.contrib.scale_by_galore(2, weight_dimension_numbers=lambda tree: {"a": dims, "b": None})
    expected, _ = flat.update(g.reshape(6, 4), flat.init(g.reshape(6, 4)), g.reshape(6, 4))
    torch.testing.assert_close(cubic.update(g, cubic.init(g), g)[0].reshape(6, 4), expected)
    both = {"a": g, "b": torch.ones(3, dtype=torch.float64)}
    updates, _ = by_function.update(both, by_function.init(both), both)
    torch.testing.assert_close(updates["a"].reshape(6, 4), expected)


def test_a_line_search_without_an_approximate_condition_keeps_to_wolfes():
    loss = lambda x: x.square().sum() - 3 * x.sum()  # noqa: E731
    tx = bx.chain(bx.sgd(10.0), bx.scale_by_zoom_linesearch(20, approx_dec_rtol=None))
    x = torch.tensor([0.5, -2.0], dtype=torch.float64)
    slope, value = torch.func.grad_and_value(loss)(x)
    extra = {"value": value, "grad": slope, "value_fn": loss}
    update, _ = tx.update(slope, tx.init(x), x, **extra)
    before, after = (slope * update).sum(), (torch.func.grad(loss)(x + update) * update).sum()
    assert loss(x + update) <= value + 1e-4 * before
    assert after.abs() <= 0.9 * before.abs()


def test_lbfgs_without_a_scale_begins_with_the_gradient():
    tx, x = bx.scale_by_lbfgs(3, scale_init_precond=False), torch.tensor([30.0, -20.0])
    assert tx.update(x, tx.init(x), x)[0].tolist() == [30, -20]
