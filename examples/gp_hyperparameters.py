"""Gaussian processes with bounded hyperparameters
===============================================

Fit Gaussian processes of BoTorch and GPyTorch without SciPy: all restarts side by side, in one batch.

BoTorch fits hyperparameters by SciPy's L-BFGS-B, one start at a time. Here the marginal likelihood is taken from the
model as it is, its kernel, mean, noise, priors and bounds, and `boxopt.multistart` minimizes it from many starts at
once. Then the parameters go back into the model.

::

    pip install 'boxopt[examples,interop]'
    python examples/gp_hyperparameters.py [--restarts N] [--points N]
"""

from __future__ import annotations

import argparse
import copy
import math
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

import boxopt as bx
from boxopt.core.random import normal


class Row(NamedTuple):
    """A fit: who did it, the log marginal likelihood a point reached, and the seconds that it took."""

    model: str
    fit: str
    likelihood: float
    seconds: float


class SameInputs(TorchFunctionMode):
    """Answers what kernels ask, whether both of their inputs are equal: under ``vmap`` that has no other answer.

    In training they are the same points.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if function is torch.equal else function(*args, **(kwargs or {}))


class Likelihood(torch.nn.Module):
    """The exact log marginal likelihood of a model, with its priors, in operations that `vmap` knows."""

    def __init__(self, mll: Any) -> None:
        super().__init__()
        self.mll = mll

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        model, count = self.mll.model, len(y)
        with SameInputs():
            kernel = model.covar_module(x).to_dense()
        covariance = kernel + model.likelihood.noise * torch.eye(count, dtype=y.dtype)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        white = torch.linalg.solve_triangular(factor, (y - model.mean_module(x)).unsqueeze(-1), upper=False)
        value = -(white**2).sum() / 2 - factor.diagonal().log().sum() - count / 2 * math.log(2 * math.pi)
        for _, module, prior, closure, _ in model.named_priors():
            value = value + prior.log_prob(closure(module)).sum()
        return torch.where(failed == 0, value, torch.nan) / count  # a trial to be rejected


def bounds_of(mll: Any) -> bx.Box:
    """The bounds of the parameters that a model bounds itself rather than through a transformation."""
    constraints = {
        f"mll.{name}": constraint
        for name, _, constraint in mll.named_parameters_and_constraints()
        if constraint is not None
    }
    held = {name: c for name, c in constraints.items() if not c.enforced}
    names = [f"mll.{name}" for name, _ in mll.named_parameters()]
    lower = {name: held[name].lower_bound if name in held else None for name in names}
    return bx.Box(lower, {name: held[name].upper_bound if name in held else None for name in names})


def sample(key: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Another start: each number times e^z, z being standard normal, where it is not 0."""
    draws = normal(key, (sum(leaf.numel() for leaf in params.values()),), torch.float64)
    parts = draws.split([leaf.numel() for leaf in params.values()])
    return {
        name: leaf * part.reshape(leaf.shape).exp() for (name, leaf), part in zip(params.items(), parts, strict=True)
    }


def fit(mll: Any, restarts: int = 16) -> bx.Result:
    """What ``botorch.fit.fit_gpytorch_mll(mll)`` does: fit a model, and leave the best parameters in it."""
    (x,), y = mll.model.train_inputs, mll.model.train_targets
    module = Likelihood(copy.deepcopy(mll.train()))  # linear operators keep what they have computed
    params = {name: leaf.detach() for name, leaf in module.named_parameters()}

    def loss(params: dict[str, Tensor]) -> Tensor:
        return -functional_call(module, params, (x, y))

    solver = bx.lbfgsb(bounds_of(mll))
    result = bx.multistart(loss, params, solver, restarts, sample=sample, tol=1e-5, max_steps=300)
    with torch.no_grad():
        for name, parameter in mll.named_parameters():
            parameter.copy_(result.params[f"mll.{name}"])
    mll.eval()
    return result


def truth(x: Tensor) -> Tensor:
    """A wave along the first input, a parabola along the second, nothing along the third."""
    return torch.sin(9 * x[..., 0]) + x[..., 1] ** 2


def make_data(points: int) -> tuple[Tensor, Tensor]:
    """Inputs, and what is measured there."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(points, 3, dtype=torch.float64, generator=generator)
    return x, truth(x) + 0.1 * torch.randn(points, dtype=torch.float64, generator=generator)


def make_models(points: int) -> dict[str, Any]:
    """Two models of the same noisy data: BoTorch's standard one, and one as in GPyTorch's tutorials."""
    import gpytorch
    from botorch.models import SingleTaskGP
    from botorch.models.gpytorch import GPyTorchModel
    from gpytorch.mlls import ExactMarginalLogLikelihood

    class Plain(gpytorch.models.ExactGP, GPyTorchModel):
        _num_outputs = 1  # with the base class, what BoTorch's fit asks of a model

        def __init__(self, x: Tensor, y: Tensor) -> None:
            super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=x.shape[1]))

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    x, y = make_data(points)
    y = (y - y.mean()) / y.std()
    models = {"BoTorch's SingleTaskGP": SingleTaskGP(x, y[:, None]), "GPyTorch's ExactGP": Plain(x, y).double()}
    return {name: ExactMarginalLogLikelihood(model.likelihood, model) for name, model in models.items()}


def likelihood(mll: Any) -> float:
    """The log marginal likelihood a point, as GPyTorch computes it."""
    mll.train()
    with torch.no_grad():
        return float(mll(mll.model(*mll.model.train_inputs), mll.model.train_targets))


def save_picture(path: Path, theirs: Any, ours: Any, points: int, restarts: int) -> None:
    """What GPyTorch's model predicts along each input, the others in the middle, fitted in both ways."""
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    y = make_data(points)[1]
    lengths = ours.model.covar_module.base_kernel.lengthscale.detach().flatten()
    place = torch.linspace(0, 1, 101, dtype=torch.float64)
    for index, axes in enumerate(figure.subplots(1, 3, sharey=True)):
        line = torch.full((101, 3), 0.5, dtype=torch.float64)
        line[:, index] = place
        axes.plot(place, truth(line), color="black", linewidth=1.5, label="the truth")
        for mll, color, style, label in (
            (ours, "#0072b2", "-", f"boxopt, {restarts} starts"),
            (theirs, "#d55e00", "--", "SciPy, one start"),
        ):
            mll.eval()
            with torch.no_grad():
                found = mll.model(line)
            mean, spread = found.mean * y.std() + y.mean(), 2 * found.stddev * y.std()
            axes.plot(place, mean, style, color=color, linewidth=2.5, label=label)
            if mll is ours:
                band = {"color": color, "alpha": 0.15, "linewidth": 0, "label": "two standard deviations"}
                axes.fill_between(place, mean - spread, mean + spread, **band)
        axes.set(xlabel=f"input {index + 1}", title=f"length scale {float(lengths[index]):.2g}")
        axes.grid(alpha=0.25)
        if index == 0:
            axes.set_ylabel("prediction, the other inputs being 0.5")
        if index == 2:
            axes.legend(loc="upper right", frameon=False)
    figure.suptitle(
        "One fit of all starts finds what SciPy finds: a wave, a parabola, and an input without effect", fontsize=15
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=16)
    parser.add_argument("--points", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)
    from botorch.fit import fit_gpytorch_mll

    rows = []
    theirs, ours = make_models(options.points), make_models(options.points)
    for name in theirs:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit_gpytorch_mll(theirs[name])
        rows.append(Row(name, "SciPy, one start", likelihood(theirs[name]), time.perf_counter() - start))
        start = time.perf_counter()
        fit(ours[name], options.restarts)
        rows.append(
            Row(name, f"boxopt, {options.restarts} starts", likelihood(ours[name]), time.perf_counter() - start)
        )
    for row in rows:
        print(f"{row.model:24} {row.fit:20} log likelihood a point {row.likelihood:9.6f}   {row.seconds:6.2f} s")
    path = options.output / "gp_hyperparameters.png"
    save_picture(path, theirs["GPyTorch's ExactGP"], ours["GPyTorch's ExactGP"], options.points, options.restarts)
    print(f"picture: {path}")
    return rows


if __name__ == "__main__":
    main()
