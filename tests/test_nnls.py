"""Direct solvers of bounded linear least squares against SciPy's."""

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import vmap

import boxopt as bx

DTYPE = torch.float64


def problems(rows, columns, count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(count, rows, columns, dtype=DTYPE, generator=generator)
    return matrix, torch.randn(count, rows, dtype=DTYPE, generator=generator)


def distances(matrix, x, right):
    return ((matrix @ x[..., None])[..., 0] - right).norm(dim=-1)


@pytest.mark.parametrize("shape", [(5, 1), (8, 3), (30, 10), (60, 40)], ids=str)
def test_nnls_is_scipys(shape):
    matrix, right = problems(*shape)
    solution = bx.nnls(matrix, right)
    expected = [scipy.optimize.nnls(a.numpy(), b.numpy())[0] for a, b in zip(matrix, right, strict=True)]
    np.testing.assert_allclose(solution, np.stack(expected), atol=1e-13)
    assert (solution >= 0).all()


def test_one_matrix_or_one_right_hand_side_is_for_all():
    matrix, right = problems(5, 3, 4)
    for a, b in ((matrix[0], right), (matrix, right[0]), (matrix[:, None], right)):
        x = bx.nnls(a, b)
        a, b = (
            torch.broadcast_tensors(a, b[..., None])[0],
            b.expand(*torch.broadcast_shapes(a.shape[:-2], b.shape[:-1]), 5),
        )
        flat = [bx.nnls(m, v) for m, v in zip(a.reshape(-1, 5, 3), b.reshape(-1, 5), strict=True)]
        torch.testing.assert_close(x.reshape(-1, 3), torch.stack(flat))


@pytest.mark.parametrize("shape", [(8, 3), (30, 10), (60, 40)], ids=str)
def test_bvls_is_scipys(shape):
    matrix, right = problems(*shape)
    solution = bx.bvls(matrix, right, -0.1, 0.2)
    for a, b, x in zip(matrix, right, solution, strict=True):
        expected = scipy.optimize.lsq_linear(a.numpy(), b.numpy(), (-0.1, 0.2), method="bvls", tol=1e-14)
        np.testing.assert_allclose(x, expected.x, atol=1e-12)
    assert ((solution >= -0.1) & (solution <= 0.2)).all()


def test_each_problem_has_its_own_bounds_and_some_have_none():
    matrix, right = problems(12, 4)
    lower = torch.linspace(-1, 0.4, 20, dtype=DTYPE)[:, None]
    solution = bx.bvls(matrix, right, lower, lower + 0.5)
    for index in range(20):
        alone = bx.bvls(matrix[index], right[index], lower[index], lower[index] + 0.5)
        torch.testing.assert_close(solution[index], alone, rtol=1e-13, atol=1e-13)
    free = bx.bvls(matrix, right, -torch.inf, torch.inf)
    torch.testing.assert_close(free, torch.linalg.lstsq(matrix, right[..., None]).solution[..., 0])
    fixed = bx.bvls(matrix, right, 0.3, 0.3)
    assert (fixed == 0.3).all()


def test_more_columns_than_rows_and_columns_that_repeat_or_vanish():
    matrix, right = problems(10, 15)
    matrix[:, :, 3], matrix[:, :, 7] = matrix[:, :, 2], 0.0
    solution = bx.nnls(matrix, right)
    best = [scipy.optimize.nnls(a.numpy(), b.numpy())[1] for a, b in zip(matrix, right, strict=True)]
    np.testing.assert_allclose(distances(matrix, solution, right), best, rtol=1e-7, atol=1e-7)
    assert (solution >= 0).all()


def test_ill_conditioned():
    """The refinement makes good what the normal equations, of condition 5e9, lose."""
    points = torch.linspace(0, 1, 40, dtype=DTYPE)
    matrix = torch.stack([torch.exp(-rate * points) for rate in (0.5, 0.8, 1.2, 1.8, 2.6)], 1)
    true = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.5], dtype=DTYPE)
    right = matrix @ true
    assert torch.linalg.cond(matrix.mT @ matrix) > 1e9
    torch.testing.assert_close(bx.nnls(matrix, right), true, rtol=1e-7, atol=1e-7)


COLUMNS = {
    "twins": lambda a: torch.cat([a[..., :-1], a[..., :1]], -1),
    "near twins": lambda a: torch.cat([a[..., :-1], a[..., :1] + 1e-7 * a[..., -1:]], -1),
    "low rank": lambda a: a[..., :2] @ a[..., :2, :],
    "scales": lambda a: a * torch.logspace(-6, 6, a.shape[-1], dtype=DTYPE),
    "whole numbers": torch.round,
    "Hilbert's": lambda a: 1 / (1 + torch.arange(a.shape[-2])[:, None] + torch.arange(a.shape[-1])).to(DTYPE) + 0 * a,
    "large": lambda a: 1e8 * a,
    "small": lambda a: 1e-8 * a,
}
BOUNDS = {
    "none": (-torch.inf, torch.inf),
    "not negative": (0.0, torch.inf),
    "box": (-0.3, 0.2),
    "some": (torch.tensor([-torch.inf, -0.1, 0.0]), torch.tensor([0.1, torch.inf, 0.0])),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(9, 6), (6, 6), (3, 6)], ids=str)
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_optimal_whatever_the_columns(columns, bounds, shape, dtype):
    """Of each column the slope is 0, or holds the coordinate at its bound, to the roundings of the residual."""
    matrix, right = problems(*shape, count=50)
    matrix, right = COLUMNS[columns](matrix).to(dtype), right.to(dtype)
    if columns == "whole numbers":
        right = right.round()
    lower, upper = (torch.as_tensor(b, dtype=dtype).repeat(6)[:6].expand(50, 6) for b in BOUNDS[bounds])
    x = bx.bvls(matrix, right, lower, upper)
    assert ((x >= lower) & (x <= upper)).all()
    matrix, right, x = matrix.double(), right.double(), x.double()
    residual = (matrix @ x[..., None])[..., 0] - right
    size = (matrix.abs() @ x[..., None].abs())[..., 0].norm(dim=-1) + right.norm(dim=-1)
    unit = size[:, None] * matrix.norm(dim=-2)
    slope = (matrix.mT @ residual[..., None])[..., 0] / torch.where(unit > 0, unit, 1.0)
    tolerance = 100 * torch.finfo(dtype).eps
    assert (slope[x > lower] < tolerance).all()
    assert (slope[x < upper] > -tolerance).all()


def test_a_neighbour_that_is_not_a_number_changes_nothing():
    matrix, right = problems(8, 3, count=4)
    expected = bx.nnls(matrix, right)
    right[1], matrix[2, 0, 0] = torch.nan, torch.inf
    found = bx.nnls(matrix, right)
    torch.testing.assert_close(found[[0, 3]], expected[[0, 3]], rtol=0, atol=0)


def test_under_vmap_and_compile():
    matrix, right = problems(6, 4)
    expected = bx.nnls(matrix, right)
    torch.testing.assert_close(vmap(bx.nnls)(matrix, right), expected)
    shared = vmap(bx.nnls, in_dims=(None, 0))(matrix[0], right)
    torch.testing.assert_close(shared, bx.nnls(matrix[:1], right))
    compiled = torch.compile(vmap(bx.nnls), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(matrix, right), expected)
    torch._dynamo.reset()


def test_nested_vmap_over_some_arguments():
    matrix, right = problems(6, 4, count=3)
    lower = torch.linspace(-1, 0, 5, dtype=DTYPE)
    every = vmap(lambda a, b: vmap(lambda low: bx.bvls(a, b, low, 0.2))(lower))(matrix, right)
    swapped = vmap(lambda low: vmap(lambda a: bx.bvls(a, right[0], low, 0.2))(matrix))(lower)
    for i in range(3):
        for j in range(5):
            torch.testing.assert_close(every[i, j], bx.bvls(matrix[i], right[i], lower[j], 0.2))
            torch.testing.assert_close(swapped[j, i], bx.bvls(matrix[i], right[0], lower[j], 0.2))


def test_nothing_to_solve():
    for rows, columns in ((0, 2), (3, 0), (0, 0)):
        found = bx.bvls(torch.ones(2, rows, columns), torch.ones(2, rows), -1.0, 0.5)
        assert found.shape == (2, columns)
        assert ((found >= -1.0) & (found <= 0.5)).all()


def test_derivatives():
    matrix, right = (x[0].requires_grad_() for x in problems(6, 4))
    lower = torch.full((4,), -0.1, dtype=DTYPE, requires_grad=True)
    upper = torch.full((4,), 0.3, dtype=DTYPE, requires_grad=True)
    solution = bx.bvls(matrix, right, lower, upper)
    assert ((solution == -0.1) | (solution == 0.3)).any()
    assert ((solution > -0.1) & (solution < 0.3)).any()
    assert torch.autograd.gradcheck(bx.bvls, (matrix, right, lower, upper))
    assert torch.autograd.gradgradcheck(bx.bvls, (matrix, right, lower, upper))


def test_float32():
    matrix, right = problems(30, 10)
    solution = bx.nnls(matrix.float(), right.float())
    assert solution.dtype == torch.float32
    torch.testing.assert_close(solution.double(), bx.nnls(matrix, right), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3, 2), torch.ones(2), 0.0, 1.0), ValueError, r"\(\.\.\., m, n\)"),
        ((torch.ones(3, 2), torch.ones(3).double(), 0.0, 1.0), TypeError, "float32 or float64"),
        ((torch.ones(3, 2), torch.ones(3), 1.0, 0.0), ValueError, "above the upper"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        bx.bvls(*arguments)
