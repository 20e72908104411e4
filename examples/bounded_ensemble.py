"""An ensemble over learning rates and bounds
==========================================

Train 64 bounded classifiers at once, each with its own learning rate, barrier and weight bound.

::

    make demo                                      (or: python examples/bounded_ensemble.py)
    make demo ARGS="--compile"                     (compile the whole step: vmap, gradients and optimizer)
    make demo ARGS="--members 16 --steps 200"      (something smaller)
    python examples/bounded_ensemble.py --help

The question: how large do the weights of a small network have to be? Each member of the ensemble learns to read the
1,797 handwritten digits that come with scikit-learn (8 × 8 pixels) under the promise that no weight ever leaves
[-b, b]. The 64 bounds b run from 0.02 to 2; learning rates and barrier strengths vary along with them.

What it shows:

1. **A bounded optimizer is a chain.** `bx.adam` makes a step, `bx.project` cuts it off at the walls, and `bx.barrier`
   moves it strictly inside.
2. **An ensemble is a vmap.** `init_member` and `step_member` below are written for one network. `torch.func.vmap` runs
   them for all networks together; the learning rate, mu and the bounds are then batched tensors, and the optimizer is
   built from them *inside* the vmapped function. Nothing in it needs to know.
3. **The bounds hold exactly.** Not to within a rounding error: the violation over all members is 0.

The last lines compare the time with a Python loop over `torch.optim.Adam` and `clamp_`, and a picture is saved.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from tqdm import tqdm

import boxopt as bx

Weights = dict[str, Tensor]

SMALLEST_BOUND, LARGEST_BOUND = 0.02, 2.0
LEARNING_RATES = (3e-4, 1e-3, 5e-3, 3e-2)
MUS = (1e-8, 1e-7, 1e-6, 1e-5)  # the barrier's strength for each weight, in units of the loss
BATCH_SIZE = 128
NEAR = 0.01  # a weight is called active if it is nearer to a wall than this share of the bound
LOOP_STEPS, LOOP_SECONDS = 40, 4.0  # how long the Python loop is timed: steps a member, seconds altogether


class Settings(NamedTuple):
    """What tells the members apart. Each field has one entry a member; inside vmap it is a single number."""

    bound: Tensor
    learning_rate: Tensor
    mu: Tensor


class Data(NamedTuple):
    """The digits: pixels between 0 and 1, and what they show."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Report(NamedTuple):
    """What is measured of trained members: one entry a member."""

    accuracy: Tensor
    largest: Tensor
    active: Tensor
    violation: Tensor


class Result(NamedTuple):
    """What `main` returns."""

    settings: Settings
    weights: Weights
    report: Report
    picture: Path


# The data and the ensemble


def load_data(device: torch.device) -> Data:
    """Three quarters to train on, a quarter held out, with the same share of each digit."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images / 16, labels, test_size=0.25, stratify=labels, random_state=0
    )
    return Data(
        torch.tensor(train_images, dtype=torch.float32, device=device),
        torch.tensor(train_labels, device=device),
        torch.tensor(test_images, dtype=torch.float32, device=device),
        torch.tensor(test_labels, device=device),
    )


def make_settings(members: int, device: torch.device) -> Settings:
    """Bounds evenly spread in the logarithm; learning rates and mus take turns, so that all pairs of them occur."""
    index = torch.arange(members)
    return Settings(
        bound=torch.logspace(math.log10(SMALLEST_BOUND), math.log10(LARGEST_BOUND), members, device=device),
        learning_rate=torch.tensor(LEARNING_RATES)[index % len(LEARNING_RATES)].to(device),
        mu=torch.tensor(MUS)[index // len(LEARNING_RATES) % len(MUS)].to(device),
    )


def make_network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def make_batches(examples: int, steps: int, seed: int, device: torch.device) -> Tensor:
    """One row a step: which examples are in its mini-batch. Each epoch is a new permutation."""
    generator = torch.Generator().manual_seed(seed)
    rows = examples // BATCH_SIZE
    epochs = [
        torch.randperm(examples, generator=generator)[: rows * BATCH_SIZE].view(rows, BATCH_SIZE)
        for _ in range(math.ceil(steps / rows))
    ]
    return torch.cat(epochs)[:steps].to(device)


# One member: what follows is written for a single network, and never mentions the ensemble


def make_optimizer(settings: Settings) -> bx.GradientTransformation:
    """Adam, cut off at the walls, then pushed away from them with strength mu."""
    box = bx.Box(-settings.bound, settings.bound)
    return bx.chain(bx.adam(settings.learning_rate), bx.project(box), bx.barrier(box, settings.mu))


def init_member(weights: Weights, settings: Settings) -> tuple[Weights, Any]:
    """The starting point and the optimizer's state. A barrier wants to start strictly inside: hence the smaller box."""
    weights = bx.Box(-0.9 * settings.bound, 0.9 * settings.bound).project(weights)
    return weights, make_optimizer(settings).init(weights)


def loss(weights: Weights, images: Tensor, labels: Tensor, network: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(functional_call(network, weights, (images,)), labels)


def step_member(
    weights: Weights, state: Any, settings: Settings, images: Tensor, labels: Tensor, network: nn.Module
) -> tuple[Weights, Any]:
    """One step: a pure function, from weights and state to new weights and new state."""
    gradients = grad(loss)(weights, images, labels, network)
    updates, state = make_optimizer(settings).update(gradients, state, weights)
    return bx.apply_updates(weights, updates), state


def measure_member(weights: Weights, settings: Settings, images: Tensor, labels: Tensor, network: nn.Module) -> Report:
    box = bx.Box(-settings.bound, settings.bound)
    right = functional_call(network, weights, (images,)).argmax(dim=-1) == labels
    sides = bx.active(box, weights, tolerance=NEAR * settings.bound)  # −1 or 1 near a wall, 0 between
    return Report(
        accuracy=right.float().mean(),
        largest=flatten(weights).abs().amax(),
        active=(flatten(sides) != 0).float().mean(),
        violation=bx.violation(box, weights),
    )


def flatten(weights: Weights) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in weights.values()])


# Training, and its time


def train(
    step: Callable[..., tuple[Weights, Any]],
    weights: Weights,
    state: Any,
    settings: Settings,
    data: Data,
    batches: Tensor,
    progress: bool = False,
) -> tuple[Weights, Any]:
    """Repeat ``step`` over the mini-batches. This too serves a single member as well as all of them."""
    for batch in tqdm(batches, desc="training", unit="step", disable=not progress):
        weights, state = step(weights, state, settings, data.train_images[batch], data.train_labels[batch])
    return weights, state


def clock(device: torch.device) -> float:
    """The time in seconds, once the device has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_loop(networks: Sequence[nn.Module], settings: Settings, data: Data, batches: Tensor) -> tuple[float, int]:
    """The same training without vmap and without a barrier: a Python loop over `torch.optim.Adam` and a clamp.

    Returns:
        The seconds a step of one member takes, and how many members were timed before time was up.
    """
    device, warm_up, total, timed = batches.device, 5, 0.0, 0
    for network, bound, rate in zip(networks, settings.bound.tolist(), settings.learning_rate.tolist(), strict=True):
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        for number, batch in enumerate(batches[: warm_up + LOOP_STEPS]):
            if number == warm_up:
                start = clock(device)
            optimizer.zero_grad()
            outputs = network(data.train_images[batch])
            nn.functional.cross_entropy(outputs, data.train_labels[batch]).backward()
            optimizer.step()
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.clamp_(-bound, bound)
        total, timed = total + clock(device) - start, timed + 1
        if total > LOOP_SECONDS:
            break
    return total / timed / LOOP_STEPS, timed


# What is shown


def print_table(settings: Settings, report: Report, rows: Sequence[int], best: int) -> None:
    print("\n bound     rate      mu        accuracy   largest |w|   active   violation")
    for row in rows:
        values = [float(column[row]) for column in (*settings, *report)]
        bound, rate, mu, accuracy, largest, active, violation = values
        print(
            f" {bound:<8.4f}  {rate:<8.0e}  {mu:<8.0e}  {accuracy:>7.1%}   {largest:>11.6f}   {active:>6.1%}   "
            f"{violation:>9g}{'   <- best' if row == best else ''}"
        )
    print(f" active: nearer to a wall than {NEAR:.0%} of the bound; the barrier lets none touch it")


def save_picture(path: Path, settings: Settings, weights: Weights, report: Report, shown: Sequence[int]) -> None:
    """Left, accuracy against the bound; right, the weights of some members against their walls."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = sorted(set(settings.learning_rate.tolist()))
    for rate, colour in zip(rates, colormaps["viridis_r"](torch.linspace(0.15, 1, len(rates)).numpy()), strict=True):
        chosen = settings.learning_rate == rate
        label = f"learning rate {rate:.0e}"
        left.plot(settings.bound[chosen], report.accuracy[chosen], "o", color=colour, label=label)
    good = report.accuracy > report.accuracy.max() - 0.01
    enough = float(settings.bound[good].min())
    left.set(
        xscale="log",
        xlabel="bound on every weight",
        ylabel="accuracy on held-out digits",
        title=f"A bound of {enough:.2g} costs less than a point of accuracy",
    )
    left.legend(frameon=False, loc="lower right")
    left.grid(alpha=0.3)
    for number, member in enumerate(shown):
        bound, colour = float(settings.bound[member]), ("#0072b2", "#d55e00", "#009e73", "#cc79a7")[number % 4]
        values = flatten({name: leaf[member] for name, leaf in weights.items()})
        right.hist(values.numpy(), bins=60, density=True, alpha=0.5, color=colour, label=f"bound {bound:.2f}")
        for wall in (-bound, bound):
            right.axvline(wall, color=colour, linestyle="--", linewidth=1)
    right.set(
        xlabel="weight", ylabel="density", yscale="log", title="A tight wall collects the weights (dashed: the walls)"
    )
    right.legend(loc="upper left", bbox_to_anchor=(0.02, 0.98))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> Result:
    """Train, measure, print, draw; returns what was found, for the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--compile", action="store_true", help="compile the whole step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="print every member")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)

    device = torch.device(options.device)
    print(f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads; {options.members} members")
    torch.manual_seed(options.seed)
    data, settings = load_data(device), make_settings(options.members, device)
    networks = [make_network().to(device) for _ in range(options.members)]
    network = networks[0]
    weights, _ = stack_module_state(networks)
    weights = {name: leaf.detach() for name, leaf in weights.items()}  # functional steps want no autograd history
    batches = make_batches(len(data.train_labels), options.steps, options.seed, device)

    weights, state = vmap(init_member)(weights, settings)
    # Settings, weights and state have one entry a member; the mini-batch is the same for all.
    step = vmap(partial(step_member, network=network), in_dims=(0, 0, 0, None, None))
    if options.compile:
        step = bx.compile(step)  # in a loop of your own, donate_argnums=(0, 1) would also save the copies
    start = clock(device)
    train(step, weights, state, settings, data, batches[:3])  # warm-up, thrown away: the steps are pure
    if options.compile:
        print(f"compiled in {clock(device) - start:.1f} s")
    start = clock(device)
    weights, state = train(step, weights, state, settings, data, batches, progress=True)
    together = (clock(device) - start) / options.steps
    measure = vmap(partial(measure_member, network=network), in_dims=(0, 0, None, None))
    report = measure(weights, settings, data.test_images, data.test_labels)

    settings, weights, report = (
        type(group)(*(x.cpu() for x in group)) if isinstance(group, tuple) else {k: x.cpu() for k, x in group.items()}
        for group in (settings, weights, report)
    )
    best = int(report.accuracy.argmax())
    spread = torch.linspace(0, options.members - 1, min(16, options.members)).long().tolist()
    print_table(settings, report, range(options.members) if options.all else sorted({*spread, best}), best)
    bound, rate, accuracy = (float(x[best]) for x in (settings.bound, settings.learning_rate, report.accuracy))
    print(f"\nbest: bound {bound:.3f}, learning rate {rate:.0e}, {accuracy:.1%}")
    print(f"largest violation over all {options.members} members: {float(report.violation.amax()):g}")

    picture = options.output / "bounded_ensemble.png"
    save_picture(picture, settings, weights, report, [options.members // 3, 5 * options.members // 8])
    alone, timed = time_loop(networks, settings, data, batches)
    loop, mode = alone * options.members, "compiled" if options.compile else "eager; try --compile"
    print(
        f"\nall members at once (vmap, {mode}): {1e3 * together:.1f} ms a step, barrier included\n"
        f"loop over torch.optim.Adam and clamp_:  {1e3 * loop:.1f} ms a step, {loop / together:.1f} times as long "
        f"(measured on {timed} members, scaled to {options.members})\npicture: {picture}"
    )
    return Result(settings, weights, report, picture)


if __name__ == "__main__":
    main()
