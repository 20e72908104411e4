"""Regularizers: their proximal steps against optimality conditions, cvxpy, closed forms and scikit-learn."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from sklearn.linear_model import Lasso
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vmap

import boxopt as bx
from boxopt.regularizers import total_variation
from tests.registry import REGULARIZERS, Hyper

R = bx.regularizers
DOUBLE = torch.float64


def soft(x, threshold):
    return torch.sign(x) * (x.abs() - threshold).clamp_min(0.0)


def fused_excess(g, l1, weight):
    """How far g is from −(the steps of some |u| ≤ weight) + [−l1, l1], following the interval that u can be in."""
    low = high = torch.zeros(g.shape[:-1], dtype=g.dtype)
    excess = torch.zeros_like(low)
    for index in range(g.shape[-1]):
        low, high = low - g[..., index] - l1, high - g[..., index] + l1
        bound = weight if index < g.shape[-1] - 1 else 0.0
        excess = torch.maximum(excess, torch.maximum(low - bound, -bound - high))
        low, high = low.clamp(-bound, bound), high.clamp(-bound, bound)
    return excess


def variation(x):
    return cp.norm1(cp.diff(x)) if x.shape[0] > 1 else 0.0


@dataclass(frozen=True)
class Case:
    """A regularizer that is positively homogeneous: g is a subgradient at x if and only if g·x = r(x) and r°(g) ≤ 0.

    Attributes:
        name: The export.
        build: From a weight to the regularizer, of vectors along the last dimension.
        outside: How far (y − x)/step is outside the set of subgradients at 0, r°.
        model: The same function of a vector, or matrix, for cvxpy.
    """

    name: str
    build: Callable[[Any], Any]
    outside: Callable[[torch.Tensor, float], torch.Tensor]
    model: Callable[[Any, float], Any]
    shape: tuple[int, ...] = (3, 6)

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("L1", lambda w: bx.L1(w), lambda g, w: g.abs() - w, lambda x, w: w * cp.norm1(x)),
    Case(
        "GroupLasso", R.GroupLasso, lambda g, w: torch.linalg.vector_norm(g, dim=-1) - w, lambda x, w: w * cp.norm2(x)
    ),
    Case(
        "SparseGroupLasso",
        lambda w: R.SparseGroupLasso(0.4 * w, w),
        lambda g, w: torch.linalg.vector_norm(soft(g, 0.4 * w), dim=-1) - w,
        lambda x, w: 0.4 * w * cp.norm1(x) + w * cp.norm2(x),
    ),
    Case("LInf", R.LInf, lambda g, w: g.abs().sum(-1) - w, lambda x, w: w * cp.norm_inf(x)),
    Case("TotalVariation", R.TotalVariation, lambda g, w: fused_excess(g, 0.0, w), lambda x, w: w * variation(x)),
    Case(
        "FusedLasso",
        lambda w: R.FusedLasso(0.5 * w, w),
        lambda g, w: fused_excess(g, 0.5 * w, w),
        lambda x, w: 0.5 * w * cp.norm1(x) + w * variation(x),
    ),
    Case(
        "Nuclear",
        R.Nuclear,
        lambda g, w: torch.linalg.svdvals(g)[..., 0] - w,
        lambda x, w: w * cp.normNuc(x),
        shape=(2, 4, 3),
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
both_metrics = pytest.mark.parametrize("in_metric", [False, True], ids=["scalar", "metric"])
VECTORS = [case for case in CASES if case.name != "Nuclear"]


def draw(shape, seed=0, scale=2.0, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=DOUBLE)).to(dtype)


def steps(shape, seed=0, spread=1.0, dtype=DOUBLE):
    return torch.exp(draw(shape, seed + 100, spread)).to(dtype)


def assert_is_proximal_step(case, weight, y, step, x, tolerance):
    """(y − x)/step is a subgradient at x, up to the tolerance in x and the rounding of y."""
    step = torch.as_tensor(step, dtype=DOUBLE).expand(y.shape)
    rounding = 32 * torch.finfo(DOUBLE).eps * float(y.abs().max()) * y.shape[-1] + tolerance
    g = (y - x) / step
    assert float(case.outside(g, weight).max()) <= rounding / float(step.min())
    gap = case.build(weight)(x) - (g * x).sum()
    assert abs(float(gap)) <= rounding * float((x.abs() / step).sum() + weight) + tolerance


def test_every_regularizer_is_tested():
    assert {case.name for case in CASES} | {"L2", "ElasticNet", "Sum", "Regularizer"} == set(R.__all__)


@every_case
@both_metrics
def test_optimality_condition(case, in_metric):
    for seed in range(12):
        y = draw(case.shape, seed, 10.0 ** (seed % 3 - 1))
        step = steps(case.shape, seed) if in_metric else 0.7
        weight = 2.0 ** (seed % 5 - 2)
        x = case.build(weight).prox(y, step)
        assert_is_proximal_step(case, weight, y, step, x, 1e-12)


@pytest.mark.parametrize("shape", [(5, 5), (3, 6), (7, 2), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("spread", [0.5, 1.5, 2.5])
def test_low_rank_in_metrics_that_vary_much(shape, spread):
    """Against the conditions of optimality, where step sizes differ by up to 10⁶; and exactly of low rank."""
    case, ranks = next(case for case in CASES if case.name == "Nuclear"), set()
    for seed in range(5):
        y, step, weight = 2 * draw(shape, seed), steps(shape, seed, spread), 4.0 ** (seed - 1)
        x = case.build(weight).prox(y, step)
        for one, other, rate in zip(*(part.reshape(-1, *shape[-2:]) for part in (x, y, step)), strict=True):
            assert_is_proximal_step(case, weight, other, rate, one, 1e-10)
            values = torch.linalg.svdvals(one)
            assert not ((values > 1e-13) & (values < 1e-10)).any()
            ranks.add(int((values > 1e-10).sum()))
    assert min(ranks) < max(ranks)


@every_case
@both_metrics
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_product_of_weight_and_step_counts(case, in_metric, size):
    """Also where products of step sizes leave the numbers' range."""
    y, step = draw(case.shape, 1).float(), steps(case.shape, 2).float() if in_metric else torch.tensor(0.7)
    expected = case.build(0.5).prox(y, step)
    torch.testing.assert_close(case.build(0.5 / size).prox(y, size * step), expected, rtol=1e-5, atol=1e-6)


@every_case
def test_subnormal_steps(case):
    y = draw(case.shape, 3).float()
    step = torch.full(case.shape, 1e-45) * torch.randint(1, 9, case.shape)
    torch.testing.assert_close(case.build(0.5).prox(y, step), y, rtol=1e-6, atol=1e-30)


ADVERSARIAL = {
    "zeros": torch.zeros(6, dtype=DOUBLE),
    "ties": torch.tensor([2.0, 2.0, -2.0, 2.0, 1.0, 1.0], dtype=DOUBLE),
    "constant": torch.full((6,), 3.0, dtype=DOUBLE),
    "offset": 1e6 + draw(6, 1),
    "negative offset": -1e6 + draw(6, 2),
    "tiny": 1e-30 * draw(6, 3),
    "mixed": torch.tensor([1e6, -1e-30, 1.0, 0.0, -1e6, 1e-3], dtype=DOUBLE),
}


@pytest.mark.parametrize("case", VECTORS, ids=str)
@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_adversarial_values(case, kind):
    y = ADVERSARIAL[kind]
    for weight in (0.0, 1e-30, 0.3, 1e3):
        for step in (1.0, steps(6, 4)):
            x = case.build(weight).prox(y, step)
            assert torch.isfinite(x).all()
            assert_is_proximal_step(case, weight, y, step, x, 1e-12)
            if weight == 0:
                torch.testing.assert_close(x, y, rtol=1e-14, atol=1e-16 * float(y.abs().max()))
            single = case.build(weight).prox(y.float(), step if isinstance(step, float) else step.float())
            exact = case.build(weight).prox(
                y.float().double(), step if isinstance(step, float) else step.float().double()
            )
            torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=1e-37)


@every_case
def test_step_of_zero_stays_and_one_number_is_a_vector(case):
    y = draw(case.shape, 5)
    for step in (0.0, torch.zeros(case.shape, dtype=DOUBLE)):
        torch.testing.assert_close(case.build(1.0).prox(y, step), y, rtol=1e-14, atol=1e-14)
    some = steps(case.shape, 6)
    some[..., 0, 0] = 0.0
    x = case.build(1.0).prox(y, some)
    torch.testing.assert_close(x[..., 0, 0], y[..., 0, 0], rtol=0, atol=1e-7 if case.name == "Nuclear" else 1e-14)
    if case.name == "Nuclear":
        return
    one = torch.tensor([[3.0], [-0.1]], dtype=DOUBLE)
    total = {"SparseGroupLasso": 1.4, "TotalVariation": 0.0, "FusedLasso": 0.5}.get(case.name, 1.0)
    for step in (0.5, torch.full((2, 1), 0.5, dtype=DOUBLE)):
        torch.testing.assert_close(case.build(1.0).prox(one, step), soft(one, 0.5 * total))


def assert_agrees_with_cvxpy(x, model, y, step, constraints=lambda x: [], tolerance=1e-9):
    """``x`` is near cvxpy's proximal step, as near as its solver comes, feasible, and has an objective as low."""
    variable = cp.Variable(y.shape)
    distance = cp.sum_squares(cp.multiply(np.sqrt(0.5 / step.numpy()), variable - y.numpy()))
    problem = cp.Problem(cp.Minimize(model(variable) + distance), constraints(variable))
    least = problem.solve(solver=cp.CLARABEL)
    torch.testing.assert_close(x, torch.from_numpy(variable.value), rtol=0, atol=1e-4)
    variable.value = x.numpy()
    assert problem.objective.value <= least + 10 * tolerance
    assert all(np.max(constraint.violation()) <= tolerance for constraint in problem.constraints)


@every_case
@both_metrics
def test_against_cvxpy(case, in_metric):
    shape = case.shape[1:]
    for seed, weight in ((7, 0.3), (8, 1.5)):
        y = draw(shape, seed)
        step = steps(shape, seed) if in_metric else torch.full(shape, 0.7, dtype=DOUBLE)
        x = case.build(weight).prox(y, step if in_metric else 0.7)
        assert_agrees_with_cvxpy(x, lambda x, w=weight: case.model(x, w), y, step)


BOX = bx.Box(-0.75, 0.75)
COMPOSITIONS = {
    "elastic net, box": (
        bx.prox(bx.ElasticNet(0.3, 0.5)),
        bx.project(bx.Box(-0.2, 0.9)),
        lambda x: 0.3 * cp.norm1(x) + 0.25 * cp.sum_squares(x),
        lambda x: [x >= -0.2, x <= 0.9],
    ),
    "L∞, symmetric box": (
        bx.prox(R.LInf(0.8)),
        bx.project(BOX),
        lambda x: 0.8 * cp.norm_inf(x),
        lambda x: [cp.abs(x) <= 0.75],
    ),
    "total variation, box": (
        bx.prox(R.TotalVariation(0.3)),
        bx.project(bx.Box(-0.2, 0.9)),
        lambda x: 0.3 * variation(x),
        lambda x: [x >= -0.2, x <= 0.9],
    ),
    "fused lasso, box": (
        bx.prox(R.FusedLasso(0.2, 0.3)),
        bx.project(bx.Box(-0.2, 0.9)),
        lambda x: 0.2 * cp.norm1(x) + 0.3 * variation(x),
        lambda x: [x >= -0.2, x <= 0.9],
    ),
    "cone, group lasso": (
        bx.project(bx.sets.NonNegative()),
        bx.prox(R.GroupLasso(0.6)),
        lambda x: 0.6 * cp.norm2(x),
        lambda x: [x >= 0],
    ),
    "cone, sparse group lasso": (
        bx.project(bx.sets.NonNegative()),
        bx.prox(R.SparseGroupLasso(0.3, 0.6)),
        lambda x: 0.3 * cp.norm1(x) + 0.6 * cp.norm2(x),
        lambda x: [x >= 0],
    ),
    "cone, L∞": (
        bx.project(bx.sets.NonNegative()),
        bx.prox(R.LInf(0.8)),
        lambda x: 0.8 * cp.norm_inf(x),
        lambda x: [x >= 0],
    ),
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_exact_compositions(name):
    """Two transformations in the order that is listed are the proximal step of both, in every metric."""
    first, second, model, constraints = COMPOSITIONS[name]
    for seed in (9, 10):
        y, step = draw(6, seed), steps(6, seed)
        scaler = bx.GradientTransformation(bx.identity().init, bx.identity().update, lambda state, _, step=step: step)
        tx, params = bx.chain(scaler, first, second), torch.zeros(6, dtype=DOUBLE)
        x, _ = tx.update(y, tx.init(params), params)
        assert_agrees_with_cvxpy(x, model, y, step, constraints)


def test_total_variation_then_soft_threshold_in_a_scalar_step_size():
    y = draw((50, 20), 11)
    both = R.FusedLasso(0.3, 0.6).prox(y, 0.9)
    torch.testing.assert_close(both, soft(R.TotalVariation(0.6).prox(y, 0.9), 0.27))


@pytest.mark.parametrize("name", ["LInf", "TotalVariation", "FusedLasso"])
def test_group_lasso_after_another_norm_in_a_scalar_step_size(name):
    """The group lasso scales a vector, which leaves the subgradients of a norm as they are."""
    case = next(case for case in CASES if case.name == name)
    y = draw(6, 30)
    x = R.GroupLasso(0.5).prox(case.build(0.4).prox(y, 0.7), 0.7)
    step = torch.full((6,), 0.7, dtype=DOUBLE)
    assert_agrees_with_cvxpy(x, lambda x: case.model(x, 0.4) + 0.5 * cp.norm2(x), y, step)


def test_nuclear_norm_of_semidefinite_matrices():
    y = draw((4, 4), 12)
    x = cp.Variable((4, 4), PSD=True)
    distance = cp.sum_squares(x - y.numpy()) / (2 * 0.7)
    cp.Problem(cp.Minimize(0.5 * cp.trace(x) + distance)).solve(solver=cp.CLARABEL)
    ours = R.Nuclear(0.5).prox(bx.sets.PSD().project(y), 0.7)
    torch.testing.assert_close(ours, torch.from_numpy(x.value), rtol=0, atol=1e-5)


SUMS = {
    "group lasso + box": (
        R.Sum(R.GroupLasso(0.6), bx.Box(-0.2, 0.9), sweeps=100),
        lambda x: 0.6 * cp.norm2(x),
        lambda x: [x >= -0.2, x <= 0.9],
    ),
    "L1 + hyperplane": (
        R.Sum(bx.L1(0.4), bx.sets.Hyperplane(torch.tensor([1.0, -1.0, 2.0, 0.5, 1.0, 1.0]), 0.5), sweeps=100),
        lambda x: 0.4 * cp.norm1(x),
        lambda x: [np.array([1.0, -1.0, 2.0, 0.5, 1.0, 1.0]) @ x == 0.5],
    ),
    "three": (
        R.Sum(R.TotalVariation(0.3), R.GroupLasso(0.5), bx.L1(0.1), sweeps=200),
        lambda x: 0.3 * variation(x) + 0.5 * cp.norm2(x) + 0.1 * cp.norm1(x),
        lambda x: [],
    ),
}


@pytest.mark.parametrize("name", SUMS)
@both_metrics
def test_sums_against_cvxpy(name, in_metric):
    regularizer, model, constraints = SUMS[name]
    y = draw(6, 13)
    step = steps(6, 13) if in_metric else torch.full((6,), 0.7, dtype=DOUBLE)
    x = regularizer.prox(y, step if in_metric else 0.7)
    assert_agrees_with_cvxpy(x, model, y, step, constraints, tolerance=1e-8)
    if isinstance(regularizer.terms[-1], bx.Box):
        assert float(bx.violation(regularizer.terms[-1], x)) == 0


def test_sums_of_separable_terms_run_packed():
    regularizer = R.Sum(bx.L1(0.3), BOX, sweeps=2)
    assert regularizer.separable
    tx, params = bx.chain(bx.adam(0.1), bx.prox(regularizer)), {"a": draw((2, 3), 31), "b": draw(4, 32)}
    expected, _ = tx.update(params, tx.init(params), params)
    packed = bx.packed(tx)
    found, _ = packed.update(params, packed.init(params), params)
    for name in params:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-14, atol=1e-14)


def test_sum_lands_in_its_last_set():
    box = bx.Box(-0.1, 0.0703)
    tx = bx.chain(bx.adam(0.1), bx.prox(R.Sum(R.GroupLasso(0.1), box, sweeps=5)))
    for dtype in (DOUBLE, torch.float32, torch.bfloat16):
        params = box.project(draw((4, 3), 14, dtype=dtype))
        state = tx.init(params)
        for step in range(10):
            updates, state = tx.update(draw((4, 3), step, dtype=dtype), state, params)
            params = bx.apply_updates(params, updates)
            assert float(box.violation(params.double())) == 0


@every_case
@both_metrics
def test_firmly_nonexpansive(case, in_metric):
    step = steps(case.shape, 15) if in_metric else torch.ones(case.shape, dtype=DOUBLE)
    regularizer = case.build(0.8)
    for seed in range(10):
        one, other = draw(case.shape, seed), draw(case.shape, seed + 50)
        gap = regularizer.prox(one, step if in_metric else 1.0) - regularizer.prox(other, step if in_metric else 1.0)
        assert (gap * gap / step).sum() <= (gap * (one - other) / step).sum() + 1e-12


@every_case
@both_metrics
def test_gradcheck_and_gradgradcheck(case, in_metric):
    y = draw(case.shape, 16).requires_grad_()
    step = (steps(case.shape, 17, 0.5) if in_metric else torch.tensor(0.7, dtype=DOUBLE)).requires_grad_()
    weight = torch.tensor(0.6, dtype=DOUBLE, requires_grad=True)

    def value_and_prox(y, step, weight):
        regularizer = case.build(weight)
        return regularizer.prox(y, step), regularizer(y)

    assert torch.autograd.gradcheck(value_and_prox, (y, step, weight), atol=1e-6, rtol=1e-5)
    assert torch.autograd.gradgradcheck(value_and_prox, (y, step, weight), atol=1e-5, rtol=1e-4)


@every_case
@pytest.mark.parametrize("place", ["zero", "ties", "small"])
def test_derivatives_are_finite_everywhere(case, place):
    y = {"zero": torch.zeros, "ties": torch.ones, "small": lambda *a, **k: 1e-3 * draw(case.shape)}[place](
        case.shape, dtype=DOUBLE
    )
    for step in (1.0, steps(case.shape, 18, 0.2)):
        for strength in (0.0, 0.3, 1.0):
            point = y.clone().requires_grad_()
            weight = torch.tensor(strength, dtype=DOUBLE, requires_grad=True)
            regularizer = case.build(weight)
            total = (regularizer.prox(point, step) * draw(case.shape, 19)).sum() + regularizer(point)
            first = torch.autograd.grad(total, (point, weight), create_graph=True)
            assert all(torch.isfinite(x).all() for x in first)
            square = sum((x * x).sum() for x in first)
            second = torch.autograd.grad(square, (point, weight), allow_unused=True, materialize_grads=True)
            assert all(torch.isfinite(x).all() for x in second)


def test_derivative_where_a_weight_is_zero_is_that_of_the_identity():
    zeros = torch.zeros(4, dtype=DOUBLE)
    for case in VECTORS:
        if case.name in ("L1", "SparseGroupLasso", "FusedLasso"):
            continue  # soft thresholds are 0 at a tie
        for step in (1.0, torch.ones(4, dtype=DOUBLE)):
            jacobian = torch.func.jacrev(lambda y, c=case, s=step: c.build(0.0).prox(y, s))(zeros)
            torch.testing.assert_close(jacobian, torch.eye(4, dtype=DOUBLE))


EVERY = [*CASES, Case("Sum", lambda w: R.Sum(R.GroupLasso(w), BOX, sweeps=2), None, None)]


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_vmap_equals_loop(case):
    y, step = draw((5, *case.shape), 20), steps((5, *case.shape), 21)
    weight = 0.2 * torch.arange(5, dtype=DOUBLE)

    def apply(y, step, weight):
        regularizer = case.build(weight)
        return regularizer.prox(y, step), regularizer.prox(y, step.mean()), regularizer(y)

    together = vmap(apply)(y, step, weight)
    for index in range(5):
        alone = apply(y[index], step[index], weight[index])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[index], other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_compiles(case):
    """The proximal step and its derivative, vmapped, with a weight for each member; the laws compile the rest."""
    in_metric = case.name != "Nuclear"  # where it is a hundred times the same
    y, weight = draw((2, *case.shape), 23), torch.tensor([0.6, 0.3], dtype=DOUBLE)
    step = steps((2, *case.shape), 22) if in_metric else torch.tensor([0.7, 0.3], dtype=DOUBLE)

    def both(y, step, weight):
        def square(y):
            x = case.build(weight).prox(y, step)
            return (x * x).sum(), x

        return grad(square, has_aux=True)(y)

    torch._dynamo.reset()
    compiled = torch.compile(vmap(both), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y, step, weight), vmap(both)(y, step, weight), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_pure_narrow_and_pickles(case):
    y = draw(case.shape, 24)
    before, regularizer = y.clone(), case.build(0.6)
    x = regularizer.prox(y, 0.7)
    assert torch.equal(y, before)
    assert torch.equal(pickle.loads(pickle.dumps(regularizer)).prox(y, 0.7), x)
    narrow = y.bfloat16()
    assert regularizer.prox(narrow, 0.7).dtype == torch.bfloat16
    torch.testing.assert_close(
        regularizer.prox(narrow, 0.7).double(), regularizer.prox(narrow.double(), 0.7), rtol=4e-3, atol=1e-6
    )
    leaves, structure = pytree.tree_flatten(regularizer)
    assert torch.equal(structure.unflatten(leaves).prox(y, 0.7), x)
    empty = torch.zeros((0, *case.shape[1:]))
    assert regularizer.prox(empty).shape == empty.shape
    assert float(regularizer(empty)) == 0


@pytest.mark.parametrize("case", VECTORS, ids=str)
def test_dim_names_the_vectors(case):
    if case.name == "L1":
        assert case.build(1.0).separable
        return
    regularizer = case.build(0.6)
    fields = {name: value for name, value in vars(regularizer).items() if name != "dim"}
    y, step = draw((3, 4, 5), 25), steps((3, 4, 5), 26)
    expected = regularizer.prox(y.movedim(0, -1), step.movedim(0, -1)).movedim(-1, 0)
    torch.testing.assert_close(type(regularizer)(**fields, dim=0).prox(y, step), expected)
    flat = regularizer.prox(y.flatten(), step.flatten()).reshape(y.shape)
    torch.testing.assert_close(type(regularizer)(**fields, dim=None).prox(y, step), flat)
    torch.testing.assert_close(type(regularizer)(**fields, dim=(0, 1, 2)).prox(y, step), flat)
    with pytest.raises(ValueError, match=r"leaf 'w'.*dim=7 does not exist"):
        type(regularizer)(**fields, dim=7).check({"w": y})
    each = 0.1 * torch.arange(1, 4, dtype=DOUBLE)
    rows = case.build(each).prox(y[:, 0], step[:, 0]) if case.name in ("GroupLasso", "LInf", "TotalVariation") else None
    for index in range(3 if rows is not None else 0):
        torch.testing.assert_close(rows[index], case.build(each[index]).prox(y[index, 0], step[index, 0]))


def test_bad_input():
    with pytest.raises(ValueError, match="weight is not negative"):
        R.GroupLasso(-1.0)
    with pytest.raises(ValueError, match="l1 is not negative"):
        R.FusedLasso(float("nan"), 1.0)
    with pytest.raises(TypeError, match="a set is for `project`"):
        bx.prox(bx.Box(0.0, 1.0))
    with pytest.raises(TypeError, match="Sum is of regularizers and sets, got int"):
        R.Sum(bx.L1(1.0), 3)
    with pytest.raises(ValueError, match=r"leaf 'b'.*Nuclear is of matrices"):
        bx.prox(R.Nuclear(1.0)).init({"a": torch.zeros(2, 2), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"leaf 'a'.*weight has shape \(3,\), which does not broadcast to \(2,\)"):
        bx.prox(R.Sum(bx.L1(1.0), R.LInf(torch.ones(3)))).init({"a": torch.zeros(2, 4)})


@pytest.mark.parametrize("size", [2, 33, 500, 4000])
def test_rounds_of_the_taut_string(size, monkeypatch):
    """Compiled and vmapped, `_ROUNDS` rounds are exact: for these shapes of vectors they are more than enough."""
    counts = []
    levels = total_variation._levels
    monkeypatch.setattr(total_variation, "_levels", lambda *a: counts.append(1) or levels(*a))
    t = torch.linspace(0.0, 1.0, size, dtype=DOUBLE)
    noise = draw(size, 27, 1.0)
    shapes = (noise, noise.cumsum(0), torch.sin(99 * t), torch.exp(25 * t), t, t * t, (t > 0.5).double(), t % 0.013)
    for y in (s * scale for s in shapes for scale in (1.0, 100.0)):
        for weight in (0.0, 0.01, 1.0, 100.0):
            for step in (1.0, steps(size, 28)):
                counts.clear()
                x = R.TotalVariation(weight).prox(y, step)
                assert len(counts) - 2 <= total_variation._ROUNDS
                g = (y - x) / step
                dual = -g.cumsum(-1)
                slack = 1e-11 * max(1.0, float((y.abs() / step).max()))
                assert float(dual.abs().max()) <= weight + slack
                assert float(torch.where(x.diff() == 0, 0.0, dual[:-1] - weight * x.diff().sign()).abs().max()) <= slack


def test_a_fixed_number_of_rounds_equals_as_many_as_needed():
    y, step = draw((3, 300), 33).cumsum(-1), steps((3, 300), 34)
    for weight in (0.1, 3.0, 100.0):
        regularizer = R.TotalVariation(weight)
        torch.testing.assert_close(vmap(regularizer.prox)(y, step), regularizer.prox(y, step), rtol=0, atol=1e-12)


def rational_l_inf(y, step, weight):
    """The proximal step of the L∞ norm in rational numbers, by sorting."""
    ordered = sorted(((abs(v), s) for v, s in zip(y, step, strict=True)), reverse=True)
    mass = total = Fraction(0)
    level = Fraction(0)
    for index, (v, s) in enumerate(ordered):
        mass, total = mass + 1 / s, total + v / s
        level = (total - weight) / mass
        if index + 1 == len(ordered) or level >= ordered[index + 1][0]:
            break
    return [min(max(v, -max(level, 0)), max(level, 0)) for v in y]


def rational_total_variation(y, step, weight):
    """The proximal step of the total variation in rational numbers, by Johnson's dynamic program."""
    pieces = [(None, 1 / step[0], -y[0] / step[0])]  # of a derivative: from where on, slope, intercept
    limits = []

    def root(value):
        for index, (_, slope, intercept) in enumerate(pieces):
            end = pieces[index + 1][0] if index + 1 < len(pieces) else None
            if slope > 0 and (end is None or slope * end + intercept >= value):
                return index, (value - intercept) / slope
        raise AssertionError("a derivative that increases to infinity has a root")

    for v, s in zip(y[1:], step[1:], strict=True):
        (first, low), (last, high) = root(-weight), root(weight)
        limits.append((low, high))
        inner = [(low, *pieces[first][1:]), *pieces[first + 1 : last + 1]]
        clipped = [(None, Fraction(0), -weight), *inner, (high, Fraction(0), weight)]
        pieces = [(start, slope + 1 / s, intercept - v / s) for start, slope, intercept in clipped]
    x = [root(Fraction(0))[1]]
    for low, high in reversed(limits):
        x.append(min(max(x[-1], low), high))
    return x[::-1]


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
@pytest.mark.parametrize(
    ("regularizer", "reference"), [(R.LInf, rational_l_inf), (R.TotalVariation, rational_total_variation)]
)
def test_against_rational_numbers(regularizer, reference, spread):
    """Precise to rounding also where step sizes differ by many orders of magnitude, or are next to nothing."""
    generator = torch.Generator().manual_seed(29)
    for trial in range(60):
        size = int(torch.randint(1, 25, (), generator=generator))
        y, step = draw(size, trial, 1.0).cumsum(0), steps(size, trial, spread)
        y = y.round() if trial % 3 == 0 else y
        step[trial % size] = 1e-200 if trial % 4 == 0 else step[trial % size]
        weight = float(10 ** (3 * torch.rand((), generator=generator) - 2) * (1e-3 + y.abs().max()) / step.mean())
        exact = reference(*([Fraction(float(v)) for v in values] for values in (y, step)), Fraction(weight))
        expected = torch.tensor([float(v) for v in exact], dtype=DOUBLE)
        atol = 1e-14 * float(y.abs().max())
        torch.testing.assert_close(regularizer(weight).prox(y, step), expected, rtol=0, atol=atol)


def problem():
    generator = torch.Generator().manual_seed(5)
    matrix = torch.randn(40, 8, generator=generator, dtype=DOUBLE)
    truth = torch.tensor([2.0, 0.0, -1.0, 0.0, 0.0, 0.5, 0.0, 3.0], dtype=DOUBLE)
    return matrix, matrix @ truth + 0.1 * torch.randn(40, generator=generator, dtype=DOUBLE)


def descend(tx, loss, params, count):
    state = tx.init(params)
    step = torch.func.grad(loss)
    for _ in range(count):
        updates, state = tx.update(step(params), state, params)
        params = bx.apply_updates(params, updates)
    return params


def test_lasso_with_adam_against_scikit_learn():
    """The threshold follows Adam's step size of each coordinate, zeros are exact, and the limit is scikit-learn's."""
    matrix, target = problem()
    fit = Lasso(alpha=0.3, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(matrix.numpy(), target.numpy())
    tx = bx.chain(bx.adam(bx.cosine_decay_schedule(0.1, 600, 1e-3)), bx.prox(bx.L1(0.3)))
    params = descend(tx, lambda x: 0.5 * ((matrix @ x - target) ** 2).mean(), torch.zeros(8, dtype=DOUBLE), 600)
    np.testing.assert_allclose(params.numpy(), fit.coef_, atol=1e-4)
    assert ((params.numpy() == 0) == (fit.coef_ == 0)).all()


def test_group_lasso_with_adam_against_cvxpy():
    matrix, target = problem()
    x = cp.Variable(8)
    penalty = 0.4 * (cp.norm2(x[:2]) + cp.norm2(x[2:4]) + cp.norm2(x[4:6]) + cp.norm2(x[6:]))
    cp.Problem(cp.Minimize(cp.sum_squares(matrix.numpy() @ x - target.numpy()) / 80 + penalty)).solve(
        solver=cp.CLARABEL
    )
    tx = bx.chain(bx.adam(bx.cosine_decay_schedule(0.1, 600, 1e-3)), bx.prox(R.GroupLasso(0.4)))

    def loss(groups):
        return 0.5 * ((matrix @ groups.flatten() - target) ** 2).mean()

    params = descend(tx, loss, torch.zeros(4, 2, dtype=DOUBLE), 600)
    np.testing.assert_allclose(params.flatten().numpy(), x.value, atol=1e-4)
    assert ((params == 0).all(-1).numpy() == (np.abs(x.value.reshape(4, 2)).max(-1) < 1e-6)).all()


@pytest.mark.parametrize("momentum", [None, 0.9, torch.tensor(0.9, dtype=torch.float64)])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("kind", ["prox", "penalize", "barrier"])
def test_momentum_does_not_weaken_what_follows_it(momentum, nesterov, kind):
    """A sum of gradients is 1/(1 − β) times as long as one of them; weights mean the same all the same."""
    target, box = torch.tensor([3.0, 0.2, -1.5], dtype=torch.float64), bx.Box(-1.0, 1.0)
    tail, value = {
        "prox": (bx.prox(bx.L1(0.5)), lambda x: 0.5 * x.abs().sum()),
        "penalize": (bx.penalize(box, 2.0), lambda x: 2 * bx.penalty(box, x)),
        "barrier": (bx.barrier(box, 0.1), lambda x: 0.1 * bx.log_barrier(box, x, relax=0.0)),
    }[kind]
    tx = bx.chain(bx.sgd(0.05, momentum=momentum, nesterov=nesterov), tail)
    x = torch.zeros(3, dtype=torch.float64)
    state = tx.init(x)
    for _ in range(400):
        updates, state = tx.update(x - target, state, x)
        x = bx.apply_updates(x, updates)
    slope = grad(lambda x: ((x - target) ** 2).sum() / 2 + value(x))(x)
    fixed = torch.where(x == 0, slope.abs() <= 0.5, slope.abs() < 1e-6)
    assert fixed.all(), (x, slope)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_steps_of_fake_tensors_in_a_metric(name):
    tx = bx.chain(bx.adam(0.1), REGULARIZERS[name](Hyper()))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        params = mode.from_tensor(torch.ones(4, 3))
        updates, _ = tx.update(params, tx.init(params), params)
    assert updates.shape == (4, 3)
