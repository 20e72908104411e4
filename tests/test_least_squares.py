"""Fits in a box against SciPy's, each problem of a batch by itself, and what is said of how sure they are."""

from functools import partial

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import vmap

import boxopt as bx

DTYPE = torch.float64
AXIS = torch.linspace(-5, 5, 32, dtype=DTYPE)
GRID = torch.meshgrid(torch.linspace(-4, 4, 9, dtype=DTYPE), torch.linspace(-4, 4, 9, dtype=DTYPE), indexing="ij")


def peak(p):
    """A Gaussian peak on a slope: height, center, width, offset, slope."""
    return p[0] * torch.exp(-(((AXIS - p[1]) / p[2]) ** 2) / 2) + p[3] + p[4] * AXIS


def spot(p):
    """A Gaussian spot in the plane: height, two centers, width, offset."""
    square = (GRID[0] - p[1]) ** 2 + (GRID[1] - p[2]) ** 2
    return (p[0] * torch.exp(-square / (2 * p[3] ** 2)) + p[4]).reshape(-1)


MODELS = {
    "peak": (peak, [2, -2, 0.6, 0, -0.2], [10, 2, 2, 1, 0.2], [0, -4, 0.2, -5, -1], [20, 4, 4, 5, 1]),
    "spot": (spot, [2, -2, -2, 0.7, 0], [10, 2, 2, 2, 1], [0, -4, -4, 0.3, -5], [20, 4, 4, 4, 5]),
}


class Fits:
    """Noisy peaks; in every second problem a bound cuts off the true value of one parameter."""

    def __init__(self, kind, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.model, least, most, lower, upper = MODELS[kind]
        least, most = torch.tensor(least, dtype=DTYPE), torch.tensor(most, dtype=DTYPE)
        true = least + (most - least) * torch.rand(count, len(least), dtype=DTYPE, generator=generator)
        clean = vmap(self.model)(true)
        self.data = clean + 0.3 * torch.randn(clean.shape, dtype=DTYPE, generator=generator)
        self.lower = torch.tensor(lower, dtype=DTYPE).repeat(count, 1)
        self.upper = torch.tensor(upper, dtype=DTYPE).repeat(count, 1)
        which = torch.randint(len(least), (count,), generator=generator)
        for index in range(0, count, 2):
            value, j = true[index, which[index]], int(which[index])
            margin = 0.1 * value.abs() + 0.05
            if index % 4:
                self.lower[index, j] = value + margin
            else:
                self.upper[index, j] = value - margin
        start = true + 0.3 * (torch.rand(true.shape, dtype=DTYPE, generator=generator) - 0.5)
        self.start = torch.clamp(start, self.lower, self.upper)

    @property
    def bounds(self):
        return bx.Box(self.lower, self.upper)

    def residual(self, p, data):
        return self.model(p) - data

    def scipy(self, index, **options):
        """SciPy's fit of one problem, with derivatives by torch."""
        data = self.data[index]
        lower, upper = self.lower[index].numpy(), self.upper[index].numpy()
        jacobian = torch.func.jacrev(self.model)
        return scipy.optimize.least_squares(
            lambda p: (self.model(torch.as_tensor(p)) - data).numpy(),
            self.start[index].numpy().clip(lower + 1e-9, upper - 1e-9),
            jac=lambda p: jacobian(torch.as_tensor(p)).numpy(),
            bounds=(lower, upper),
            **{"ftol": 1e-12, "xtol": 1e-12, "gtol": 1e-12} | options,
        )


def stationary(fits, result):
    """The largest cosine of the residuals and a column of the Jacobian that no bound holds, found independently."""
    jacobian = vmap(torch.func.jacrev(fits.model))(result.params)
    residual = vmap(fits.model)(result.params) - fits.data
    gradient = (jacobian.mT @ residual[..., None])[..., 0]
    outward = (result.params <= fits.lower) & (gradient > 0) | (result.params >= fits.upper) & (gradient < 0)
    cosine = gradient.abs() / (jacobian.norm(dim=1) * residual.norm(dim=1, keepdim=True))
    return torch.where(outward, 0.0, cosine).amax(-1)


@pytest.mark.parametrize("kind", MODELS)
def test_peaks_against_scipy(kind):
    """Bounds active in half; the benchmark does the same for 100,000."""
    fits = Fits(kind, 300)
    result = bx.least_squares(fits.residual, fits.start, fits.bounds, args=(fits.data,), batch_dims=1)
    assert (stationary(fits, result) <= 2e-6).all()  # none stopped at a clamped point
    assert ((result.params >= fits.lower) & (result.params <= fits.upper)).all()
    assert 0.4 < (result.active != 0).any(-1).double().mean() < 0.6
    sample = range(0, 300, 7)
    costs = torch.tensor([fits.scipy(index).cost for index in sample], dtype=DTYPE)
    assert (result.value[::7] <= costs * (1 + 1e-6)).all()


def test_float32():
    fits = Fits("peak", 100)
    exact = bx.least_squares(fits.residual, fits.start, fits.bounds, args=(fits.data,), batch_dims=1)
    box = bx.Box(fits.lower.float(), fits.upper.float())

    def residual(p, data):
        return peak(p).float() - data

    result = bx.least_squares(residual, fits.start.float(), box, args=(fits.data.float(),), batch_dims=1)
    assert result.params.dtype == result.value.dtype == torch.float32
    assert (result.value <= exact.value * (1 + 1e-5)).all()


def test_alone_as_in_a_batch_whatever_the_neighbours_do():
    fits = Fits("peak", 6)
    alone = [
        bx.least_squares(fits.residual, fits.start[i], bx.Box(fits.lower[i], fits.upper[i]), args=(fits.data[i],))
        for i in range(6)
    ]
    data = fits.data.clone()
    data[1] = torch.nan  # never finite
    data[3] = 0.0  # flat: height 0 explains all
    fits.upper[4], fits.lower[4] = torch.inf, -torch.inf
    data[4] = AXIS * 1e200  # overflows
    for options in ({}, {"chunk_size": 2}):
        result = bx.least_squares(
            fits.residual, fits.start, fits.bounds, args=(data,), batch_dims=1, max_steps=100, **options
        )
        assert result.status[1] == bx.Status.NONFINITE
        for index in (0, 2, 5):
            one = alone[index]
            torch.testing.assert_close(result.params[index], one.params, rtol=1e-9, atol=1e-9)
            assert result.steps[index] == one.steps
            assert result.status[index] == one.status == bx.Status.GRADIENT


@pytest.mark.parametrize("loss", ["linear", "huber", "soft_l1", "cauchy", "arctan"])
def test_robust_losses_are_scipys(loss):
    fits = Fits("peak", 8)
    fits.data[:, ::9] += 6.0  # outliers
    result = bx.least_squares(
        fits.residual, fits.start, fits.bounds, args=(fits.data,), batch_dims=1, loss=loss, f_scale=0.5
    )
    for index in range(8):
        expected = fits.scipy(index, loss=loss, f_scale=0.5)
        assert result.value[index] <= expected.cost * (1 + 1e-6)
        there = scipy.optimize.least_squares(
            lambda p, data=fits.data[index]: (peak(torch.as_tensor(p)) - data).numpy(),
            result.params[index].numpy(),
            loss=loss,
            f_scale=0.5,
            max_nfev=1,
        )
        np.testing.assert_allclose(there.cost, result.value[index], rtol=1e-12)


@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy", "arctan"])
def test_robust_losses_with_many_outliers_from_near_and_far(loss):
    """Every fit comes to an end, and near it is that of SciPy, which starts where it ended."""
    generator = torch.Generator().manual_seed(0)
    t, outlying = torch.linspace(0, 3, 60, dtype=DTYPE), torch.rand(40, 60, generator=generator) < 0.2
    noise = torch.randn(40, 60, dtype=DTYPE, generator=generator) * torch.where(outlying, 3.0, 0.05)
    data = 2 * torch.exp(-1.2 * t) + 0.3 + noise
    decay = lambda p, data: p[0] * torch.exp(-p[1] * t) + p[2] - data  # noqa: E731
    fit = partial(bx.least_squares, decay, bounds=bx.Box(-10.0, 10.0), args=(data,), loss=loss, f_scale=0.1)
    for start in ([1.0, 1.0, 1.0], [5.0, 0.1, -2.0]):
        result = fit(torch.tensor(start, dtype=DTYPE).expand(40, 3).clone(), batch_dims=1)
        assert result.converged.float().mean() > 0.97
        for x, y, value in zip(result.params[:8], data, result.value, strict=False):
            residual = lambda p, y=y: decay(torch.as_tensor(p), y).numpy()  # noqa: E731
            options = {"bounds": (-10, 10), "loss": loss, "f_scale": 0.1, "xtol": 1e-12, "gtol": 1e-10}
            better = scipy.optimize.least_squares(residual, x.numpy(), **options)
            np.testing.assert_allclose(value, better.cost, rtol=1e-6)


@pytest.mark.parametrize("loss", ["linear", "huber", "soft_l1", "cauchy"])
def test_a_start_where_all_residuals_are_outliers_is_no_solution(loss):
    matrix = torch.randn(12, 3, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    right = matrix.sum(1)
    for bounds in (bx.Box(-1e3, 1e3), bx.Box(), bx.Box(-1e3, None)):
        fit = bx.least_squares(lambda x: matrix @ x - right, torch.full((3,), -900.0, dtype=DTYPE), bounds, loss=loss)
        assert fit.status == bx.Status.GRADIENT
        torch.testing.assert_close(fit.params, torch.ones(3, dtype=DTYPE), rtol=1e-5, atol=1e-5)


def test_a_loss_of_the_users():
    def huber(z):
        root = z.clamp(min=1).sqrt()
        return torch.where(z <= 1, z, 2 * root - 1), 1 / root, torch.where(z <= 1, 0.0, -0.5 / root**3)

    fits = Fits("peak", 4)
    options = {"args": (fits.data,), "batch_dims": 1, "f_scale": 0.1, "tol": 1e-10}
    one, other = (bx.least_squares(fits.residual, fits.start, fits.bounds, loss=x, **options) for x in (huber, "huber"))
    torch.testing.assert_close(one.params, other.params)


def test_poisson_is_the_maximum_likelihood():
    torch.manual_seed(1)
    counts = torch.poisson(3 * peak(torch.tensor([4.0, 0.5, 1.0, 0.5, 0.0], dtype=DTYPE)))
    lower, upper = torch.tensor([[0.0, -4.0, 0.3, 1e-3, -0.01], [50.0, 4.0, 4.0, 9.0, 0.01]], dtype=DTYPE)
    start = torch.tensor([5.0, 0.0, 1.5, 3.0, 0.0], dtype=DTYPE)
    fit = bx.least_squares(lambda p: peak(p) - counts, start, bx.Box(lower, upper), loss=bx.Poisson(counts), tol=1e-9)
    assert fit.status == bx.Status.GRADIENT

    def likelihood(p):
        mean = peak(torch.as_tensor(p))
        value = (mean - torch.xlogy(counts, mean)).sum()
        return value.item()

    bounds = list(zip(lower.tolist(), upper.tolist(), strict=True))
    best = scipy.optimize.minimize(likelihood, start.numpy(), bounds=bounds, method="Nelder-Mead", tol=1e-11)
    assert likelihood(fit.params) <= best.fun + 1e-9
    deviance = (torch.xlogy(counts, counts) - counts).sum()
    assert float(fit.value) == pytest.approx(likelihood(fit.params) + float(deviance))


def test_jacobians_agree():
    fits = Fits("spot", 5)
    options = {"args": (fits.data,), "batch_dims": 1, "tol": 1e-10}
    forward = bx.least_squares(fits.residual, fits.start, fits.bounds, **options)
    for jac in ("reverse", torch.func.jacfwd(fits.residual)):
        other = bx.least_squares(fits.residual, fits.start, fits.bounds, jac=jac, **options)
        torch.testing.assert_close(other.params, forward.params)


def test_many_parameters():
    """More of them than are differentiated one by one."""
    generator = torch.Generator().manual_seed(0)
    matrix, right = (torch.randn(*s, dtype=DTYPE, generator=generator) for s in ((60, 40), (60,)))
    fit = bx.least_squares(lambda x: matrix @ x - right, torch.zeros(40, dtype=DTYPE), bx.Box(-0.05, 0.1), tol=1e-10)
    torch.testing.assert_close(fit.params, bx.bvls(matrix, right, -0.05, 0.1), rtol=1e-6, atol=1e-8)


def test_linear_problems_end_where_direct_solvers_do():
    """Columns nearly parallel: here a step that is solved for and then clamped ends where nothing is stationary."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(200, 12, 6, dtype=DTYPE, generator=generator) + 1.0
    right = torch.randn(200, 12, dtype=DTYPE, generator=generator)
    fit = bx.least_squares(
        lambda x, matrix, right: matrix @ x - right,
        torch.zeros(200, 6, dtype=DTYPE),
        bx.Box(torch.full((1, 6), -0.3, dtype=DTYPE), torch.full((1, 6), 0.4, dtype=DTYPE)),
        args=(matrix, right),
        batch_dims=1,
    )
    best = ((matrix @ bx.bvls(matrix, right, -0.3, 0.4)[..., None])[..., 0] - right).square().sum(-1) / 2
    assert (fit.value <= best * (1 + 1e-9)).all()
    assert fit.steps.max() < 15


def test_covariance_is_that_of_curve_fit():
    fits = Fits("peak", 1, seed=3)
    sigma = torch.linspace(0.2, 0.5, 32, dtype=DTYPE)
    free = {"lower": -torch.inf, "upper": torch.inf}
    for absolute in (False, True):
        fit = bx.least_squares(fits.residual, fits.start[0], bx.Box(**free), args=(fits.data[0],), weights=sigma**-2)
        _, expected = scipy.optimize.curve_fit(
            lambda t, *p: peak(torch.tensor(p)).numpy(),
            AXIS.numpy(),
            fits.data[0].numpy(),
            fits.start[0].numpy(),
            sigma=sigma.numpy(),
            absolute_sigma=absolute,
            ftol=1e-12,
        )
        found = bx.covariance(fit, absolute_sigma=absolute)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-7)  # SciPy's are of finite differences


def test_covariance_takes_what_is_at_a_bound_as_known():
    fits = Fits("peak", 2, seed=3)
    fits.data[1] += AXIS  # more slope than is allowed
    fit = bx.least_squares(fits.residual, fits.start, fits.bounds, args=(fits.data,), batch_dims=1)
    assert fit.active[1].tolist() == [0, 0, 0, 0, 1]
    assert fit.degrees[1] == 32 - 4
    found = bx.covariance(fit)[1]
    _, expected = scipy.optimize.curve_fit(
        lambda t, *p: peak(torch.tensor([*p, 1.0])).numpy(),
        AXIS.numpy(),
        fits.data[1].numpy(),
        fits.start[1, :4].numpy(),
        ftol=1e-12,
    )
    np.testing.assert_allclose(found[:4, :4], expected, rtol=2e-3, atol=1e-7)
    assert (found[4] == 0).all()
    assert (found[:, 4] == 0).all()


@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy", "linear"])
def test_covariance_of_robust_fits_is_how_much_they_vary(loss):
    """In 2,000 fits of data with outliers; curve_fit's is off by up to 2.6 times."""
    generator = torch.Generator().manual_seed(1)
    axis, count = torch.linspace(-1, 1, 60, dtype=DTYPE), 2000
    noise = torch.randn(count, 60, dtype=DTYPE, generator=generator)
    noise = torch.where(torch.rand(count, 60, generator=generator) < 0.1, 5 * noise, noise)
    spread = torch.linspace(0.5, 2.0, 60, dtype=DTYPE)

    def residual(p, data):
        return (p[0] + p[1] * axis + p[2] * axis**2 - data) / spread

    data = 1 - 2 * axis + noise * spread
    fit = bx.least_squares(residual, torch.zeros(count, 3, dtype=DTYPE), args=(data,), loss=loss, batch_dims=1)
    estimated = bx.covariance(fit).median(0).values.diagonal()
    assert (estimated / torch.cov(fit.params.mT).diagonal() - 1).abs().max() < 0.15
    alone = bx.least_squares(residual, torch.zeros(3, dtype=DTYPE), args=(data[0],), loss=loss)
    torch.testing.assert_close(alone.variance, fit.variance[0])


@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy", "arctan"])
def test_robust_variance_without_outliers_is_that_of_least_squares(loss):
    fits = Fits("peak", 2, seed=3)
    data = torch.where(torch.arange(32) == 5, torch.nan, fits.data)
    weights = torch.linspace(1, 2, 32, dtype=DTYPE) * (torch.arange(32) != 5)
    options = {"args": (data,), "weights": weights, "batch_dims": 1}
    plain = bx.least_squares(fits.residual, fits.start, fits.bounds, **options)
    robust = bx.least_squares(fits.residual, fits.start, fits.bounds, loss=loss, f_scale=1e4, **options)
    torch.testing.assert_close(robust.variance, plain.variance, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(bx.covariance(robust), bx.covariance(plain), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("jac", ["forward", "reverse"])
def test_gauss_newton_is_the_loss_its_gradient_and_about_its_hessian(jac):
    fits, weights = Fits("peak", 1, seed=3), torch.linspace(1, 2, 32, dtype=DTYPE)
    evaluate = bx.gauss_newton(fits.residual, "soft_l1", f_scale=0.5, weights=weights, jac=jac)
    start = fits.start[0]

    def loss(p):
        return (weights * 0.25 * (torch.sqrt(1 + 4 * fits.residual(p, fits.data[0]) ** 2) - 1)).sum()

    gradient, other = evaluate(start, fits.data[0])
    torch.testing.assert_close(gradient, torch.func.grad(loss)(start))
    torch.testing.assert_close(other["value"], loss(start))
    slopes = torch.func.jacfwd(fits.residual)(start, fits.data[0])
    weight = weights / torch.sqrt(1 + 4 * fits.residual(start, fits.data[0]) ** 2)
    torch.testing.assert_close(other["curvature"], slopes.mT @ (weight[:, None] * slopes))


def test_covariance_of_counts_is_that_of_their_likelihood():
    counts = torch.tensor([3.0, 0.0, 6.0, 7.0], dtype=DTYPE)
    fit = bx.least_squares(lambda rate: rate - counts, torch.ones((), dtype=DTYPE), loss=bx.Poisson(counts))
    torch.testing.assert_close(bx.covariance(fit), torch.full((1, 1), 4.0 / 4, dtype=DTYPE))
    with pytest.raises(ValueError, match="Poisson's counts"):
        bx.least_squares(lambda rate: rate - counts, torch.ones((), dtype=DTYPE), loss=bx.Poisson(counts[:3]))


def test_covariance_of_what_the_data_do_not_determine_is_infinite():
    data = torch.arange(4.0, dtype=DTYPE)
    fit = bx.least_squares(lambda p: p[0] + 0 * p[1] - data, torch.zeros(2, dtype=DTYPE))
    assert torch.isinf(bx.covariance(fit)).all()


def test_weights_leave_out_residuals():
    fits = Fits("peak", 3)
    keep = (torch.arange(32) % 3 > 0).to(DTYPE)
    data = torch.where(keep > 0, fits.data, torch.nan)
    options = {"batch_dims": 1, "tol": 1e-10}
    masked = bx.least_squares(fits.residual, fits.start, fits.bounds, args=(data,), weights=keep, **options)
    each = bx.least_squares(fits.residual, fits.start, fits.bounds, args=(data,), weights=keep.repeat(3, 1), **options)
    fewer = bx.least_squares(
        lambda p, data: (peak(p) - data)[keep > 0], fits.start, fits.bounds, args=(fits.data,), **options
    )
    for one in (masked, each):
        torch.testing.assert_close(one.params, fewer.params)
        assert one.degrees.tolist() == fewer.degrees.tolist()


def test_units_change_nothing():
    fits = Fits("peak", 20)
    scale = torch.tensor([1e6, 1e-3, 1e3, 1e-6, 1.0], dtype=DTYPE)
    plain = bx.least_squares(fits.residual, fits.start, fits.bounds, args=(fits.data,), batch_dims=1, tol=1e-10)
    scaled = bx.least_squares(
        lambda p, data: 1e-9 * (peak(p / scale) - data),
        fits.start * scale,
        bx.Box(fits.lower * scale, fits.upper * scale),
        args=(fits.data,),
        batch_dims=1,
        tol=1e-10,
    )
    torch.testing.assert_close(scaled.params / scale, plain.params, rtol=1e-7, atol=1e-7)
    assert (scaled.status == bx.Status.GRADIENT).all()
    assert (scaled.steps - plain.steps).abs().max() <= 2


def test_zero_residuals():
    rosenbrock = lambda x: torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])  # noqa: E731
    fit = bx.least_squares(rosenbrock, torch.tensor([-1.2, 1.0], dtype=DTYPE))
    torch.testing.assert_close(fit.params, torch.ones(2, dtype=DTYPE))
    assert fit.status == bx.Status.GRADIENT
    assert fit.steps < 40


def test_a_loss_of_zero_at_a_point_that_determines_nothing():
    for bounds in (bx.Box(), bx.Box(0.0, None)):
        fit = bx.least_squares(lambda x: (x * x).repeat(2), torch.tensor([0.0, 1e-170], dtype=DTYPE), bounds)
        assert (fit.status, fit.steps, fit.optimality) == (bx.Status.GRADIENT, 1, 0)


def test_trees_from_an_infeasible_start_in_two_batch_dimensions():
    fits = Fits("peak", 6)
    fold = lambda x: x.reshape(2, 3, *x.shape[1:])  # noqa: E731
    start = {"shape": fold(fits.start[:, :3]) + 100.0, "ground": [fold(fits.start[:, 3]), fold(fits.start[:, 4]), None]}
    box = bx.Box(0.0, {"shape": torch.tensor([20.0, 4.0, 4.0]).reshape(1, 1, 3), "ground": 5.0})

    def residual(p, data):
        return {"all": peak(torch.cat([p["shape"], torch.stack(p["ground"][:2])])) - data}

    fit = bx.least_squares(residual, start, box, args=(fold(fits.data),), batch_dims=2)
    assert fit.value.shape == fit.degrees.shape == (2, 3)
    assert fit.active["shape"].shape == (2, 3, 3)
    assert fit.active["ground"][2] is None
    assert bx.covariance(fit).shape == (2, 3, 5, 5)
    assert bx.violation(bx.Box(0.0, 20.0), fit.params) == 0


def test_compiled_as_eager(request, monkeypatch):
    """What is captured; code is generated with ``pytest --inductor``, and for the benchmark."""
    if not request.config.getoption("--inductor"):
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    fits = Fits("peak", 40)
    height = fits.data.amax(1)
    options = {"args": (fits.data, height), "batch_dims": 1, "loss": "soft_l1"}

    def residual(p, data, height):
        return height * torch.exp(-(((AXIS - p[0]) / p[1]) ** 2) / 2) - data

    start, box = fits.start[:, 1:3], bx.Box(fits.lower[:, 1:3], fits.upper[:, 1:3])
    eager = bx.least_squares(residual, start, box, **options)
    compiled = bx.least_squares(residual, start, box, compile=True, **options)
    torch._dynamo.reset()
    torch.testing.assert_close(compiled.params, eager.params, rtol=1e-7, atol=1e-7)
    assert compiled.status.tolist() == eager.status.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "l2"}, "loss is one of"),
        ({"jac": "both"}, "jac is 'forward'"),
        ({"weights": torch.ones(7)}, r"weights has the shape \(7,\) in a problem of 3 residuals"),
        ({"loss": bx.Poisson(torch.ones(2))}, r"counts has the shape \(2,\)"),
        ({"bounds": bx.Box(torch.zeros(3))}, "lower bound has shape"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        bx.least_squares(lambda p: p.sum() - torch.arange(3.0), torch.zeros(2), **options)


def test_a_damping_in_another_dtype_takes_the_parameters():
    params = torch.tensor([0.5], dtype=torch.float32)
    state = bx.levenberg_marquardt(damping=torch.tensor(0.1, dtype=torch.float64)).init(params)
    assert state.damping.dtype == torch.float32


def test_a_fit_says_how_it_went_and_nothing_takes_no_steps():
    fit = bx.least_squares(lambda p: p - 3.0, torch.zeros(2), bx.Box(0.0, 1.0))
    assert str(fit).startswith("converged")
    assert "value 4, optimality 0" in str(fit)
    none = bx.least_squares(lambda p: p - 3.0, torch.zeros(0, 2), bx.Box(0.0, 1.0), batch_dims=1)
    assert none.params.shape == (0, 2)
