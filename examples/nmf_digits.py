"""Images as sums of parts
=======================

Digits as sums of parts: free, nonnegative, and within [0, 1], beside scikit-learn's NMF.

::

    python examples/nmf_digits.py

An image is written as a sum of 16 parts, each times a number: X ≈ codes · parts. The images are scikit-learn's digits.
Without bounds the best parts are those of the singular value decomposition, and have negative ink. With codes and
parts that are not negative, ink is only ever added, and the parts are strokes: nonnegative matrix factorization. With
both in [0, 1] each part is an image of its own, no blacker than black, and enters at most once; scikit-learn has no
upper bound.

The three differ in their bounds alone, which are tensors: all kinds, each from several starts, are one `vmap` around
`chain(adam, project(box))`. A bound is held exactly, so that the zeros are zeros.

What to expect, of half the squared error of 900 images and the best of 4 starts: free 297.35, which is that of the
singular values; nonnegative 418.88, which is that of scikit-learn's coordinate descent from the same starts (its
multiplicative updates: 430.82); in [0, 1] 420.01, the upper bound costing a quarter of a percent.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure, SubFigure
from sklearn.datasets import load_digits
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.func import grad, vmap

import boxopt as bx

PARTS, SIDE = 16, 8
KINDS = {"free": (-torch.inf, torch.inf), "nonnegative": (0.0, torch.inf), "in [0, 1]": (0.0, 1.0)}
SHOWN = 5  # of a digit's parts
Factors = dict[str, Tensor]


class Fit(NamedTuple):
    """The best of some starts: codes, (images, parts), parts, (parts, pixels), and half the squared error."""

    factors: Factors
    error: float


def make_starts(pixels: Tensor, starts: int) -> Factors:
    """As scikit-learn's ``init="random"``: half-normal numbers whose products are as large as the images."""
    generator = torch.Generator().manual_seed(0)
    scale = (pixels.mean() / PARTS).sqrt()
    shapes = {"codes": (starts, len(pixels), PARTS), "parts": (starts, PARTS, pixels.shape[1])}
    return {name: scale * torch.randn(shape, generator=generator).abs() for name, shape in shapes.items()}


def loss(factors: Factors, pixels: Tensor) -> Tensor:
    """Half the squared error."""
    return ((factors["codes"] @ factors["parts"] - pixels) ** 2).sum() / 2


def factorize(start: Factors, lower: Tensor, upper: Tensor, pixels: Tensor, steps: int) -> tuple[Factors, Tensor]:
    """One factorization: nothing here knows that there are others."""
    tx = bx.chain(bx.adam(bx.cosine_decay_schedule(0.05, steps), b2=0.95), bx.project(bx.Box(lower, upper)))
    factors, state = start, tx.init(start)
    for _ in range(steps):
        updates, state = tx.update(grad(loss)(factors, pixels), state, factors)
        factors = bx.apply_updates(factors, updates)
    return factors, loss(factors, pixels)


def fit(pixels: Tensor, starts: int, steps: int) -> dict[str, Fit]:
    """All kinds from all starts in one batch; the best of each kind."""
    lower, upper = torch.tensor(list(KINDS.values())).T

    def run(start: Factors, lower: Tensor, upper: Tensor) -> tuple[Factors, Tensor]:
        return factorize(start, lower, upper, pixels, steps)

    on_starts = vmap(run, in_dims=(0, None, None))
    factors, losses = vmap(on_starts, in_dims=(None, 0, 0))(make_starts(pixels, starts), lower, upper)
    best = losses.argmin(1)
    return {
        kind: Fit({name: leaf[i, best[i]] for name, leaf in factors.items()}, float(losses[i, best[i]]))
        for i, kind in enumerate(KINDS)
    }


def fit_peers(pixels: Tensor, starts: int) -> dict[str, float]:
    """The errors of the singular value decomposition, and of scikit-learn's two solvers from the same starts."""
    errors = {"free: singular values": float((torch.linalg.svdvals(pixels)[PARTS:] ** 2).sum() / 2)}
    for solver in ("cd", "mu"):
        found = []
        for start in range(starts):
            codes, parts = (leaf[start].numpy() for leaf in make_starts(pixels, starts).values())
            model = NMF(PARTS, init="custom", solver=solver, tol=1e-6, max_iter=1000)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(pixels.numpy(), W=codes.copy(), H=parts.copy())
            found.append(float(model.reconstruction_err_**2 / 2))
        errors[f"nonnegative: scikit-learn, {solver}"] = min(found)
    return errors


# What is shown


def show(axes: Any, image: np.ndarray, title: str = "", edge: str = "0.8") -> None:
    """Ink in black, negative ink in orange."""
    colored = np.ones((SIDE, SIDE, 3)) - np.clip(image.reshape(SIDE, SIDE, 1), 0, 1)
    missing = np.clip(-image.reshape(SIDE, SIDE, 1), 0, 1)
    axes.imshow(colored - missing * (1 - np.array([0xD5, 0x5E, 0x00]) / 255), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=11)
    for spine in axes.spines.values():
        spine.set_color(edge)


def show_parts(panel: SubFigure, factors: Factors, title: str) -> None:
    """The sixteen parts, each as strong as it ever enters an image."""
    panel.suptitle(title, fontsize=12)
    parts, most = factors["parts"].numpy(), factors["codes"].abs().amax(0).numpy()
    order = np.argsort(-(parts**2).sum(1) * (factors["codes"].numpy() ** 2).mean(0))
    for axes, k in zip(panel.subplots(4, 4).flat, order, strict=True):
        part = parts[k] * most[k]
        show(axes, part / np.abs(part).max() * np.sign(part.sum()))


def show_sum(panel: SubFigure, factors: Factors, image: Tensor, index: int) -> None:
    """A digit, and the parts that it is the sum of, the strongest first."""
    terms = (factors["codes"][index][:, None] * factors["parts"]).numpy()
    order = np.argsort(-np.abs(terms).sum(1))
    rest = terms[order[SHOWN:]].sum(0)
    pictures = [("the image", image.numpy()), ("sum of parts", terms.sum(0))]
    pictures += [(f"{float(factors['codes'][index, k]):.2f} × part".replace("-", "−"), terms[k]) for k in order[:SHOWN]]
    pictures.append((f"{PARTS - SHOWN} others", rest))
    for axes, sign, (title, picture) in zip(
        panel.subplots(1, len(pictures)), ["", "≈", "=", *["+"] * SHOWN], pictures, strict=True
    ):
        show(axes, picture, title)
        axes.text(-0.16, 0.5, sign, transform=axes.transAxes, ha="center", va="center", fontsize=18)


def save_picture(path: Path, fits: dict[str, Fit], peers: dict[str, float], pixels: Tensor) -> None:
    figure = Figure(figsize=(13, 9.2), layout="constrained")
    top, *sums = figure.subfigures(3, 1, height_ratios=(2.6, 1, 1), hspace=0.03)
    shares = {kind: float((fit.factors["parts"] == 0).float().mean()) for kind, fit in fits.items()}
    negative = float((fits["free"].factors["parts"] < 0).float().mean())
    reference = peers["nonnegative: scikit-learn, cd"]
    titles = (
        f"free: error {fits['free'].error:.0f}\n{negative:.0%} negative ink (orange)",
        f"nonnegative: error {fits['nonnegative'].error:.0f} (scikit-learn {reference:.0f})\n"
        f"{shares['nonnegative']:.0%} of the parts exactly 0",
        f"in [0, 1]: error {fits['in [0, 1]'].error:.0f}\n{shares['in [0, 1]']:.0%} exactly 0, each part an image",
    )
    for panel, one, title in zip(top.subfigures(1, 3, wspace=0.04), fits.values(), titles, strict=True):
        show_parts(panel, one.factors, title)
    index = 3
    for panel, kind in zip(sums, ("free", "in [0, 1]"), strict=True):
        panel.suptitle(f"A digit from parts that are {kind}", fontsize=12)
        show_sum(panel, fits[kind].factors, pixels[index], index)
    figure.suptitle("Bounds make parts out of factors: digits as sums of 16 parts", fontsize=15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> tuple[dict[str, Fit], dict[str, float]]:
    """Factorize, compare, draw; returns the fits and the errors of the peers, for the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--images", type=int, default=900)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)
    pixels = torch.tensor(load_digits().data[: options.images] / 16, dtype=torch.float32)
    fits, peers = fit(pixels, options.starts, options.steps), fit_peers(pixels, options.starts)
    print(f"{'half the squared error':36}{'':10}{'parts exactly 0':>18}{'largest':>10}{'violation':>11}")
    for kind, one in fits.items():
        parts = one.factors["parts"]
        violation = float(bx.violation(bx.Box(*KINDS[kind]), one.factors))
        zeros = float((parts == 0).float().mean())
        print(f"{kind + ': boxopt':36}{one.error:10.2f}{zeros:18.1%}{float(parts.max()):10.2f}{violation:11g}")
    for name, error in peers.items():
        print(f"{name:36}{error:10.2f}")
    path = options.output / "nmf_digits.png"
    save_picture(path, fits, peers, pixels)
    print(f"picture: {path}")
    return fits, peers


if __name__ == "__main__":
    main()
