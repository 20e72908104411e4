"""A million bounded fits
======================

The lifetime of a decay in every pixel of a stack of images, and where a bound holds it.

::

    python examples/decay_maps.py

Each pixel's counts fall off as height · exp(−t/lifetime) + background over sixteen frames, as in fluorescence lifetime
imaging, and each is fitted by maximum likelihood for Poisson counts, within bounds: nothing is negative, and the
lifetime lies between what one frame and the whole stack can resolve.

No package that this project uses comes with such a stack, so it is **synthesized**: the red, green and blue of a
photograph (scikit-learn's "china.jpg", by default enlarged to 1000 × 1000) serve as height, lifetime and background,
and the counts are drawn from Poisson's law. In the sky the true lifetime is beyond the upper bound, and where the
photograph is dark there is no background: there bounds have to be active, and a map shows which ones are.

Written are the maps, to examples/output/decay_maps.png; and printed are the speed, the shares of pixels at each bound,
a comparison with SciPy on a sample, and how many true lifetimes lie within two standard errors.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import torch
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image
from torch import Tensor

import boxopt as bx

FRAMES = torch.arange(16.0)
BOUNDS = bx.Box(
    {"height": 0.0, "lifetime": 1.0, "background": 0.0},
    {"height": None, "lifetime": 8.0, "background": None},
)
KINDS = ("between bounds", "lifetime at its upper bound", "lifetime at its lower bound", "no background", "several")
COLORS = ("#e8e8e8", "#d55e00", "#0072b2", "#009e73", "#cc79a7")


class Maps(NamedTuple):
    """What is fitted: the counts, the true parameters, and the fit."""

    counts: Tensor
    true: dict[str, Tensor]
    fit: bx.LeastSquaresResult
    seconds: float


def expected(p: dict[str, Tensor]) -> Tensor:
    """The counts to be expected of one pixel."""
    return p["height"] * torch.exp(-FRAMES / p["lifetime"]) + p["background"]


def residual(p: dict[str, Tensor], counts: Tensor) -> Tensor:
    return expected(p) - counts


def synthesize(side: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Counts of ``side`` × ``side`` pixels, (pixels, frames), and the parameters that they are drawn with."""
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255.0
    size = min(photograph.shape[-2:])
    left = (photograph.shape[-1] - size) // 2
    cut = photograph[..., :size, left : left + size]
    red, green, blue = torch.nn.functional.interpolate(cut, (side, side), mode="bilinear", antialias=True)[0]
    true = {
        "height": (40 + 200 * red).flatten(),
        "lifetime": (1.2 + 8.5 * green).flatten(),
        "background": (12 * (blue - 0.25).clamp(min=0)).flatten(),
    }
    mean = true["height"][:, None] * torch.exp(-FRAMES / true["lifetime"][:, None]) + true["background"][:, None]
    return torch.poisson(mean, torch.Generator().manual_seed(0)), true


def fit_maps(side: int, compiled: bool) -> Maps:
    """Fit every pixel from the same rough start."""
    counts, true = synthesize(side)
    start = {
        "height": counts[:, :2].mean(1) + 1,
        "lifetime": torch.full((len(counts),), 3.0),
        "background": counts[:, -3:].mean(1) / 2 + 0.1,
    }

    def fit(count: int) -> bx.LeastSquaresResult:
        return bx.least_squares(
            residual,
            {name: x[:count] for name, x in start.items()},
            BOUNDS,
            args=(counts[:count],),
            loss=bx.Poisson(counts[:count]),
            batch_dims=1,
            compile=compiled,
        )

    if compiled:
        fit(2048)  # compiles
    began = time.perf_counter()
    result = fit(len(counts))
    return Maps(counts, true, result, time.perf_counter() - began)


def compare_with_scipy(maps: Maps, sample: int) -> float:
    """By how much, at most, SciPy's likelihood is better than ours, of a sample of pixels: a half of a deviance."""
    worst = -np.inf
    frames = FRAMES.numpy().astype(float)
    for index in np.linspace(0, len(maps.counts) - 1, sample).astype(int):
        counts = maps.counts[index].numpy().astype(float)

        def minus_log_likelihood(p: np.ndarray, counts: np.ndarray = counts) -> float:
            mean = np.maximum(p[0] * np.exp(-frames / p[1]) + p[2], 1e-300)
            return float((mean - counts * np.log(mean)).sum())

        ours = np.array([float(maps.fit.params[name][index]) for name in ("height", "lifetime", "background")])
        best = scipy.optimize.minimize(
            minus_log_likelihood,
            ours + np.array([1.0, 0.0, 0.05]),
            method="L-BFGS-B",
            bounds=[(0, None), (1, 8), (0, None)],
        )
        worst = max(worst, minus_log_likelihood(ours) - best.fun)
    return worst


def kinds(active: dict[str, Tensor]) -> Tensor:
    """Which of `KINDS` each pixel is."""
    long, short = active["lifetime"] > 0, active["lifetime"] < 0
    bare = active["background"] < 0
    kind = torch.where(long, 1, torch.where(short, 2, torch.where(bare, 3, 0)))
    return torch.where((long | short) & bare | (active["height"] < 0), 4, kind)


def report(maps: Maps, sample: int) -> None:
    fit, pixels = maps.fit, len(maps.counts)
    print(
        f"{pixels:,} fits in {maps.seconds:.1f} s: {pixels / maps.seconds:,.0f} a second, "
        f"{fit.steps.double().mean():.1f} steps each"
    )
    for code, count in zip(*[x.tolist() for x in fit.status.unique(return_counts=True)], strict=True):
        print(f"  {count / pixels:7.2%}  {bx.Status(code)}")
    for name, count in zip(KINDS, torch.bincount(kinds(fit.active), minlength=len(KINDS)).tolist(), strict=True):
        print(f"  {count / pixels:7.2%}  {name}")
    error = bx.covariance(fit, absolute_sigma=True)[:, 1, 1].sqrt()
    free = fit.active["lifetime"] == 0
    within = ((fit.params["lifetime"] - maps.true["lifetime"]).abs() <= 2 * error)[free].double().mean()
    print(f"  {within:7.2%}  of the lifetimes between bounds within two standard errors of the truth")
    gap = compare_with_scipy(maps, sample)
    print(f"  {gap:.1e}  at most by which SciPy's log-likelihood is better, in {sample} pixels")


def draw(maps: Maps, path: Path) -> None:
    """Maps of what was fitted, of the truth, and of the bounds that are active."""
    side = round(len(maps.counts) ** 0.5)
    image = lambda x: x.reshape(side, side).numpy()  # noqa: E731
    fit = maps.fit.params
    figure = Figure(figsize=(13, 7.9), layout="constrained")
    axes = figure.subplots(2, 3)
    panels: list[tuple[Any, str, dict[str, Any]]] = [
        (maps.counts[:, 0], "counts in the first frame", {"cmap": "gray"}),
        (fit["lifetime"], "lifetime, fitted within [1, 8] frames", {"cmap": "viridis", "vmin": 1, "vmax": 9.7}),
        (maps.true["lifetime"], "lifetime, true: up to 9.7 frames", {"cmap": "viridis", "vmin": 1, "vmax": 9.7}),
        (fit["height"], "height, fitted", {"cmap": "magma"}),
        (fit["background"], "background, fitted, at least 0", {"cmap": "magma", "vmax": 20}),
    ]
    for axis, (values, title, options) in zip(axes.flat, panels, strict=False):
        figure.colorbar(axis.imshow(image(values), interpolation="none", **options), ax=axis, shrink=0.85)
        axis.set_title(title, fontsize=12)
    shown = axes.flat[-1].imshow(
        image(kinds(maps.fit.active)),
        interpolation="none",
        cmap=ListedColormap(COLORS),
        norm=BoundaryNorm(np.arange(len(KINDS) + 1) - 0.5, len(KINDS)),
    )
    bar = figure.colorbar(shown, ax=axes.flat[-1], shrink=0.85, ticks=range(len(KINDS)))
    bar.ax.set_yticklabels([name.replace(" at its ", "\nat its ") for name in KINDS], fontsize=8)
    share = float((kinds(maps.fit.active) > 0).double().mean())
    axes.flat[-1].set_title(f"{100 * share:.0f} % of the pixels are at a bound", fontsize=12)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(f"{len(maps.counts):,} decays fitted by maximum likelihood, each within its bounds", fontsize=15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> Maps:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1000, help="pixels along each side")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--sample", type=int, default=50, help="pixels that are compared with SciPy")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)
    maps = fit_maps(options.side, not options.eager)
    report(maps, options.sample)
    draw(maps, options.output / "decay_maps.png")
    return maps


if __name__ == "__main__":
    main()
