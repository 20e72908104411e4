"""How fast are bounded fits of peaks in a batch, beside a loop over SciPy, and do they end at the same points?

    python benchmarks/least_squares.py [peaks] [spots] [sizes] [memory] [--problems N]

``peaks`` and ``spots`` fit 100,000 Gaussian peaks of five parameters, on a line of 40 points and on 9 × 9 pixels, with
noise, and in every second problem a bound that cuts off a true value. SciPy takes a sample of them, by
`least_squares(method="trf")` with analytic derivatives and its own tolerances. "Stationary" are, of all fits, those
whose residuals make a cosine of at most 1e-4 (float32: 1e-2) with every column of the Jacobian that no bound holds,
computed here in float64.

``sizes`` is the time of a fit over the size of the batch; ``memory`` the peak of a process with a million fits.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize
import torch
from measure import machine
from torch import Tensor
from torch.func import vmap

import boxopt as bx

AXIS = torch.linspace(-5, 5, 40, dtype=torch.float64)
ROWS, COLUMNS = (
    x.reshape(-1) for x in torch.meshgrid(*[torch.linspace(-4, 4, 9, dtype=torch.float64)] * 2, indexing="ij")
)


class Model(NamedTuple):
    """A peak, its derivatives in numpy for SciPy, and from where parameters and bounds are drawn."""

    function: Callable[[Tensor], Tensor]
    jacobian: Callable[[np.ndarray], np.ndarray]
    least: tuple[float, ...]
    most: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]


def peak(p: Tensor) -> Tensor:
    t = AXIS.to(p.dtype)
    return p[0] * torch.exp(-(((t - p[1]) / p[2]) ** 2) / 2) + p[3] + p[4] * t


def peak_jacobian(p: np.ndarray) -> np.ndarray:
    t = AXIS.numpy()
    z = (t - p[1]) / p[2]
    shape = np.exp(-(z**2) / 2)
    return np.stack([shape, p[0] * shape * z / p[2], p[0] * shape * z**2 / p[2], np.ones_like(t), t], 1)


def spot(p: Tensor) -> Tensor:
    x, y = ROWS.to(p.dtype) - p[1], COLUMNS.to(p.dtype) - p[2]
    return p[0] * torch.exp(-(x**2 + y**2) / (2 * p[3] ** 2)) + p[4]


def spot_jacobian(p: np.ndarray) -> np.ndarray:
    x, y = ROWS.numpy() - p[1], COLUMNS.numpy() - p[2]
    square = x**2 + y**2
    shape = np.exp(-square / (2 * p[3] ** 2))
    slope = p[0] * shape / p[3] ** 2
    return np.stack([shape, slope * x, slope * y, slope * square / p[3], np.ones_like(x)], 1)


MODELS = {
    "peaks": Model(
        peak, peak_jacobian, (2, -2, 0.6, 0, -0.2), (10, 2, 2, 1, 0.2), (0, -4, 0.2, -5, -1), (20, 4, 4, 5, 1)
    ),
    "spots": Model(spot, spot_jacobian, (2, -2, -2, 0.7, 0), (10, 2, 2, 2, 1), (0, -4, -4, 0.3, -5), (20, 4, 4, 4, 5)),
}


class Fits(NamedTuple):
    """Starts, bounds and data of a batch, in float64."""

    model: Model
    start: Tensor
    lower: Tensor
    upper: Tensor
    data: Tensor


def draw(model: Model, count: int) -> Fits:
    generator = torch.Generator().manual_seed(0)
    uniform = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    least, most = torch.tensor(model.least, dtype=torch.float64), torch.tensor(model.most, dtype=torch.float64)
    true = least + (most - least) * uniform(count, 5)
    clean = vmap(model.function)(true)
    data = clean + 0.3 * torch.randn(clean.shape, dtype=torch.float64, generator=generator)
    lower = torch.tensor(model.lower, dtype=torch.float64).repeat(count, 1)
    upper = torch.tensor(model.upper, dtype=torch.float64).repeat(count, 1)
    row = torch.arange(count)
    which = torch.randint(5, (count,), generator=generator)
    value, margin = true[row, which], 0.1 * true[row, which].abs() + 0.05
    lower[row[1::4], which[1::4]] = (value + margin)[1::4]
    upper[row[3::4], which[3::4]] = (value - margin)[3::4]
    start = torch.clamp(true + 0.3 * (uniform(count, 5) - 0.5), lower, upper)
    return Fits(model, start, lower, upper, data)


def peak_residual(p: Tensor, data: Tensor) -> Tensor:
    return peak(p) - data


def spot_residual(p: Tensor, data: Tensor) -> Tensor:
    return spot(p) - data


RESIDUALS = {"peaks": peak_residual, "spots": spot_residual}


def fit(kind: str, fits: Fits, dtype: torch.dtype, compiled: bool) -> bx.LeastSquaresResult:
    start, lower, upper, data = (x.to(dtype) for x in fits[1:])
    box = bx.Box(lower, upper)
    return bx.least_squares(RESIDUALS[kind], start, box, args=(data,), batch_dims=1, compile=compiled)


def with_scipy(fits: Fits, index: int) -> float:
    data, lower, upper = (x[index].numpy() for x in (fits.data, fits.lower, fits.upper))
    result = scipy.optimize.least_squares(
        lambda p: fits.model.function(torch.from_numpy(p)).numpy() - data,
        fits.start[index].numpy().clip(lower + 1e-9, upper - 1e-9),
        jac=fits.model.jacobian,
        bounds=(lower, upper),
        method="trf",
    )
    return float(result.cost)


def checked(fits: Fits, result: bx.LeastSquaresResult) -> tuple[Tensor, Tensor]:
    """The loss, and the largest cosine that no bound holds, of all fits in float64."""
    losses, cosines = [], []
    for part in torch.arange(len(fits.start)).split(10_000):
        params = result.params[part].double()
        lower, upper = (x[part].to(result.params.dtype).double() for x in (fits.lower, fits.upper))
        residual = vmap(fits.model.function)(params) - fits.data[part]
        jacobian = vmap(torch.func.jacfwd(fits.model.function))(params)
        gradient = (jacobian.mT @ residual[..., None])[..., 0]
        held = (params <= lower) & (gradient > 0) | (params >= upper) & (gradient < 0)
        cosine = gradient.abs() / (jacobian.norm(dim=1) * residual.norm(dim=1, keepdim=True))
        losses.append(residual.square().sum(-1) / 2)
        cosines.append(torch.where(held, 0.0, cosine).amax(-1))
    return torch.cat(losses), torch.cat(cosines)


def seconds(call: Callable[[], object], rounds: int = 3) -> float:
    """The median processor time, which other processes disturb less than the clock; that of all threads together."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return statistics.median(times)


def section_peaks(count: int, kind: str = "peaks") -> None:
    fits = draw(MODELS[kind], count)
    sample = np.linspace(0, count - 1, min(count, 2000)).astype(int)
    costs: list[float] = []
    theirs = seconds(lambda: costs.extend(with_scipy(fits, i) for i in sample), 1) / len(sample)
    print(f"\n## {count:,} {kind}\n\nSciPy, a loop: {1e6 * theirs:.0f} µs of processor time a fit.\n")
    print("| | µs a fit | × SciPy | steps | converged | at most 1e-6 above SciPy | stationary | at a bound | warm-up |")
    print("|---" * 9 + "|")
    for dtype in (torch.float64, torch.float32):
        for compiled in (False, True):
            some = Fits(fits.model, *(x[:2048] for x in fits[1:]))
            began = time.perf_counter()
            fit(kind, some, dtype, compiled)
            warm_up = time.perf_counter() - began
            own = seconds(lambda dtype=dtype, compiled=compiled: fit(kind, fits, dtype, compiled), 3 if compiled else 1)
            result = fit(kind, fits, dtype, compiled)
            loss, cosine = checked(fits, result)
            below = (loss[sample] <= torch.tensor(costs, dtype=torch.float64) * (1 + 1e-6)).double().mean()
            still = (cosine <= (1e-4 if dtype == torch.float64 else 1e-2)).double().mean()
            good = ((result.status >= 1) & (result.status <= 4)).double().mean()
            print(
                f"| {str(dtype).removeprefix('torch.')}, {'compiled' if compiled else 'eager'} | "
                f"{1e6 * own / count:.1f} | {theirs * count / own:.0f} | {result.steps.double().mean():.1f} | "
                f"{good:.3%} | "
                f"{below:.2%} | {still:.3%} | {(result.active != 0).any(-1).double().mean():.0%} | {warm_up:.0f} s |",
                flush=True,
            )


def section_spots(count: int) -> None:
    section_peaks(count, "spots")


def section_sizes(count: int) -> None:
    """Microseconds of the clock for a fit, over the size of the batch."""
    print("\n## Over the size of the batch, peaks in float32, µs of processor time a fit\n")
    sizes = [size for size in (1, 10, 100, 1000, 10_000, 100_000, 1_000_000) if size <= max(count, 1)]
    print("| | " + " | ".join(f"{size:,}" for size in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    fits = draw(MODELS["peaks"], sizes[-1])
    for compiled in (False, True):
        row = []
        for size in sizes:
            some = Fits(fits.model, *(x[:size] for x in fits[1:]))
            fit("peaks", some, torch.float32, compiled)
            row.append(
                1e6 * seconds(lambda some=some, compiled=compiled: fit("peaks", some, torch.float32, compiled)) / size
            )
        print(f"| {'compiled' if compiled else 'eager'} | " + " | ".join(f"{x:,.1f}" for x in row) + " |", flush=True)


def section_memory(count: int) -> None:
    """The peak of a process of its own, above that of one that fits a single peak."""
    print("\n## Peak memory of ten times as many peaks, float32, eager\n")
    peaks = []
    for size in (1, 10 * count):
        code = (
            "import torch, resource, least_squares as b; torch.set_num_threads(1); fits = b.draw(b.MODELS['peaks'], "
            f"{size}); small = b.Fits(fits.model, *(x.float() for x in fits[1:])); del fits; "
            "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; b.fit('peaks', small, torch.float32, False); "
            "print(base, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="benchmarks"
        )
        peaks.append([int(x) / 2**20 for x in found.stdout.split()])
    data = 10 * count * (40 + 15) * 4 / 2**30
    print(f"{10 * count:,} fits: {peaks[1][1]:.2f} GiB, of which {data:.2f} are data, starts and bounds, and")
    print(
        f"{peaks[0][1]:.2f} those of a process that fits one peak; drawing the data in float64 had reached "
        f"{peaks[1][0]:.2f}."
    )


def main() -> None:
    sections = {name.removeprefix("section_"): call for name, call in globals().items() if name.startswith("section_")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*sections, []])
    parser.add_argument("--problems", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine("scipy"))
    for name in options.sections or sections:
        sections[name](options.problems)


if __name__ == "__main__":
    main()
