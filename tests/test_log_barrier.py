"""The scalar barrier step against bisection, and its derivatives against finite differences and closed forms."""

import numpy as np
import pytest
import torch
from torch.func import grad

import boxopt as bx
from boxopt.sets.log_barrier import prox_log_barrier, relaxed_log, relaxed_log_slope

COUNT = 40_000
BOXES = {
    "lower 0": (0.0, np.inf),
    "lower -1": (-1.0, np.inf),
    "upper 3": (-np.inf, 3.0),
    "unit": (0.0, 1.0),
    "symmetric": (-1.0, 1.0),
    "wide": (1e-6, 1e6),
    "narrow": (1.0, 1.001),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def bisection(y, tau, low, high):
    """The root by bisection on the slack of the nearer wall, in extended precision where the platform has it."""
    y, tau = y.astype(np.longdouble), tau.astype(np.longdouble)
    low, high = np.longdouble(low), np.longdouble(high)
    mirrored = (y - low) > (high - y)
    w = np.where(mirrored, high - y, y - low)
    length = high - low
    below = np.full_like(w, -800 * np.log(10.0))
    above = np.log(np.minimum(np.abs(w) + 2 * np.sqrt(tau), length / 2))
    for _ in range(90):
        middle = (below + above) / 2
        a = np.exp(middle)
        positive = a - w - tau / a + tau / (length - a) > 0
        above, below = np.where(positive, middle, above), np.where(positive, below, middle)
    a = np.exp((above + below) / 2)
    return np.where(mirrored, high - a, low + a), np.where(mirrored, high, low)


def draw(dtype, low, high):
    g = torch.Generator().manual_seed(0)
    uniform = lambda a, b: torch.rand(COUNT, generator=g, dtype=torch.float64) * (b - a) + a  # noqa: E731
    tau = 10 ** uniform(-30, 10)
    top = 4 if dtype == torch.float16 else 6
    y = torch.randn(COUNT, generator=g, dtype=torch.float64) * 10 ** uniform(-6, top)
    finite = (low if np.isfinite(low) else high - 1), (high if np.isfinite(high) else low + 1)
    y[::3] = uniform(*finite)[::3]
    y = y.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    return y, tau.float().double() if dtype != torch.float64 else tau


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_bisection_to_four_ulp(dtype, box):
    """40 decades of τ, candidates of every size inside and out; an ulp is that of x or, near it, of the wall."""
    low, high = BOXES[box]
    if box == "narrow" and torch.finfo(dtype).bits == 16:
        pytest.skip("no number of the dtype is strictly inside")
    y, tau = draw(dtype, low, high)
    inner = bx.Box(low, high)
    x = inner.prox_barrier(y, tau)
    assert x.dtype == dtype
    # The reference is for the bounds as the dtype has them.
    ends = inner.project(torch.tensor([-np.inf, np.inf], dtype=dtype)).double().numpy()
    reference, wall = bisection(y.double().numpy(), tau.numpy(), *ends)
    largest = torch.finfo(dtype).max
    reference = np.clip(reference, -largest, largest)
    ulp = torch.finfo(dtype).eps * np.maximum(np.abs(reference), np.abs(wall)) + torch.finfo(dtype).smallest_normal
    error = np.abs(x.double().numpy().astype(np.longdouble) - reference) / ulp
    assert float(error.max()) <= 4
    strict = (x.double() > low) & (x.double() < high)
    assert strict.all()


def test_tends_to_the_projection():
    y = torch.linspace(-3, 3, 61, dtype=torch.float64)
    box = bx.Box(-1.0, 1.0)
    errors = [
        float((box.prox_barrier(y, tau) - box.project(y)).abs().max()) for tau in (1e-2, 1e-4, 1e-8, 1e-16, 1e-30)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= 2e-15


def test_no_bound_means_no_barrier():
    y = torch.tensor([-1e30, 0.0, 3.0])
    assert torch.equal(bx.Box().prox_barrier(y, 1.0), y)


def test_one_bound_in_closed_form():
    y, tau = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64), 0.25
    expected = (y + torch.sqrt(y * y + 4 * tau)) / 2
    torch.testing.assert_close(bx.Box(lower=0.0).prox_barrier(y, tau), expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(bx.Box(upper=0.0).prox_barrier(-y, tau), -expected, rtol=1e-15, atol=0)


def solve(y, tau, low, high):
    return prox_log_barrier(y, tau, low, high)


@pytest.mark.parametrize("y", [-3.0, -1.0, 0.2, 0.9999, 40.0])
@pytest.mark.parametrize("tau", [1e-4, 0.3, 50.0])
def test_derivatives(y, tau):
    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (y, tau, -1.0, 1.5)]
    assert torch.autograd.gradcheck(solve, inputs)
    assert torch.autograd.gradgradcheck(solve, inputs)


@pytest.mark.parametrize("y", [-0.7, 0.1, 2.0])
def test_five_derivatives_against_the_closed_form(y):
    """With one bound the root is elementary, and torch can differentiate it as often as one likes."""
    y = torch.tensor(y, dtype=torch.float64)
    ours = lambda t: bx.Box(lower=0.0).prox_barrier(y, t)  # noqa: E731
    closed = lambda t: (y + torch.sqrt(y * y + 4 * t)) / 2  # noqa: E731
    t = torch.tensor(0.3, dtype=torch.float64)
    for _ in range(5):
        ours, closed = grad(ours), grad(closed)
        torch.testing.assert_close(ours(t), closed(t), rtol=1e-9, atol=1e-9)


def test_five_derivatives_with_two_bounds():
    """The inverse y(x) = x − τ/(x + 1) + τ/(1 − x) is elementary, and x(y(x)) = x has no second derivative."""
    tau = 0.2
    box = bx.Box(-1.0, 1.0)
    roundtrip = lambda x: box.prox_barrier(x - tau / (x + 1) + tau / (1 - x), tau)  # noqa: E731
    x = torch.tensor(0.37, dtype=torch.float64)
    function, expected = roundtrip, [0.37, 1.0, 0.0, 0.0, 0.0, 0.0]
    for value in expected:
        assert abs(float(function(x)) - value) < 1e-8
        function = grad(function)


def test_derivatives_at_an_underflowing_strength_are_those_of_the_projection():
    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-2.0, 0.3, 5.0)]
    box = bx.Box(-1.0, 1.0)
    slopes = [float(grad(lambda y: box.prox_barrier(y, 0.0))(y.detach())) for y in inputs]
    assert slopes == [0.0, 1.0, 0.0]


def test_extended_logarithm():
    delta = torch.tensor(0.1, dtype=torch.float64)
    slack = torch.linspace(-1, 1, 201, dtype=torch.float64)
    inside = slack >= delta
    torch.testing.assert_close(relaxed_log(slack, delta)[inside], -torch.log(slack[inside]))
    torch.testing.assert_close(
        torch.func.vmap(grad(lambda s: relaxed_log(s, delta)))(slack), relaxed_log_slope(slack, delta)
    )
    for order in range(3):  # value, slope and curvature meet at delta
        f = lambda s: relaxed_log(s, delta)  # noqa: E731
        for _ in range(order):
            f = grad(f)
        torch.testing.assert_close(f(delta - 1e-12), f(delta + 1e-12), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_on_a_wall_without_a_force_the_derivative_is_finite(dtype):
    y = torch.tensor([0.0, 1.0, 0.5], dtype=dtype, requires_grad=True)
    low, high = torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)
    x = prox_log_barrier(y, torch.zeros((), dtype=dtype), low, high)
    (slope,) = torch.autograd.grad(x.sum(), y)
    assert torch.isfinite(slope).all()
    assert slope[2] == 1
