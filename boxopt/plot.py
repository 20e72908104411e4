"""Pictures of bounded optimization, from what `boxopt.record` wrote or from plain tensors. Needs matplotlib.

``pip install 'boxopt[plot]'``; the rest of the library does not import this module. Every function draws on the ``ax``
it is given, or on a new figure's, and returns it; none shows or saves anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from boxopt.core import tree
from boxopt.sets.box import Box
from boxopt.sets.intersection import ByPath

try:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap, LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator
except ImportError as error:  # pragma: no cover
    raise ImportError("boxopt.plot needs matplotlib: pip install 'boxopt[plot]'") from error

Written = Mapping[str, Tensor]
"""What `boxopt.history` returns."""

LOWER, FREE, UPPER = "#0072b2", "#f2f2f2", "#d55e00"
WALL = "#444444"
LINES = {
    "value": ("loss − least", "#0072b2"),
    "optimality": ("optimality", "#d55e00"),
    "violation": ("violation", "#009e73"),
}


def trajectory(
    points: Tensor | Written,
    box: Box | None = None,
    objective: Callable[[Tensor], Tensor] | None = None,
    *,
    ax: Axes | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """The path of two parameters, over the walls of a box and the contours of a loss.

    Args:
        points: The points in their order, ``[steps, 2]``, or a record with ``params``; those not finite are left out.
        box: The box whose walls to draw, on parameters of shape ``[2]``.
        objective: The loss, from a tensor of shape ``[2]`` to a scalar, for contours; it runs under ``vmap``.
        ax: Where to draw; a new figure unless given.
        label: The path's name in a legend.
        color: The path's color.

    Returns:
        The axes.

    Raises:
        ValueError: The points are not pairs, or the record has no parameters.

    Example:
        >>> import torch, boxopt as bx, boxopt.plot
        >>> points = torch.tensor([[0.2, 0.9], [0.6, 0.5], [1.0, 0.4]])
        >>> ax = bx.plot.trajectory(points, bx.Box(0.0, 1.0), lambda x: ((x - 2) ** 2).sum())
        >>> len(ax.lines)
        1
    """
    if isinstance(points, Mapping):
        if "params" not in points:
            raise ValueError("a trajectory is drawn of the parameters: record(box, params=True)")
        points = points["params"]
    path = _numbers(points)
    if path.ndim != 2 or path.shape[1] != 2:
        raise ValueError(f"a trajectory is drawn of two parameters, expected points [steps, 2], got {list(path.shape)}")
    path = path[np.isfinite(path).all(1)]
    ax = _axes(ax, size=(5.0, 4.5))
    low, high = _walls(box, torch.zeros(2))
    corners = np.stack([path, *(np.broadcast_to(np.where(np.isfinite(b), b, path), path.shape) for b in (low, high))])
    least, greatest = corners.min((0, 1)), corners.max((0, 1))
    margin = 0.12 * np.maximum(greatest - least, 1e-12)
    least, greatest = least - margin, greatest + margin
    if ax.has_data():
        least = np.minimum(least, [ax.get_xlim()[0], ax.get_ylim()[0]])
        greatest = np.maximum(greatest, [ax.get_xlim()[1], ax.get_ylim()[1]])
    if objective is not None:
        _draw_contours(ax, objective, least, greatest, points.dtype)
    if box is not None:
        _draw_walls(ax, low, high, least, greatest)
    (line,) = ax.plot(path[:, 0], path[:, 1], "-o", markersize=3, linewidth=1.2, label=label, color=color, zorder=3)
    ax.scatter(*path[-1], marker="*", s=110, color=line.get_color(), edgecolor="white", linewidth=0.6, zorder=4)
    ax.set(xlim=(least[0], greatest[0]), ylim=(least[1], greatest[1]), xlabel="$x_1$", ylabel="$x_2$")
    return ax


def active_set(written: Tensor | Written, box: Box | None = None, *, ax: Axes | None = None) -> Axes:
    """Which coordinate was at which bound, step by step: a heat map.

    Args:
        written: A record with ``sides``, or with ``params`` and the box; or sides ``[steps, coordinates]`` as
            `boxopt.active` returns them.
        box: The box of a record that has ``params`` alone, on its flat parameters.
        ax: Where to draw; a new figure unless given.

    Returns:
        The axes: steps to the right, coordinates downwards, blue at the lower bound, orange at the upper.

    Raises:
        ValueError: A record has no ``sides``, and ``params`` and a box are not given.

    Example:
        >>> import torch, boxopt as bx, boxopt.plot
        >>> ax = bx.plot.active_set(torch.tensor([[0, 0, 0], [-1, 0, 0], [-1, 0, 1]]))
        >>> ax.get_xlabel()
        'step'
    """
    if isinstance(written, Mapping):
        sides = written.get("sides")
        if sides is None:
            if box is None or "params" not in written:
                raise ValueError("active_set needs a record with sides, record(box, sides=True), or params and the box")
            sides = torch.stack([box.active(point) for point in written["params"]])
        steps = _numbers(written["step"])
    else:
        sides, steps = written, np.arange(len(written))
    ax = _axes(ax)
    ax.imshow(
        _numbers(sides).T,
        cmap=ListedColormap([LOWER, FREE, UPPER]),
        norm=Normalize(-1, 1),
        aspect="auto",
        interpolation="nearest",
        extent=(steps[0] - 0.5, steps[-1] + 0.5, sides.shape[1] - 0.5, -0.5),
    )
    ax.set(xlabel="step", ylabel="coordinate")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    for color, name in ((LOWER, "at the lower bound"), (FREE, "between"), (UPPER, "at the upper bound")):
        ax.scatter([], [], marker="s", color=color, edgecolor="#999999", linewidth=0.5, label=name)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3, frameon=False, fontsize="small")
    return ax


def convergence(written: Written, *, least: float | None = None, ax: Axes | None = None) -> Axes:
    """The loss, the optimality and the violation of a run, on a logarithmic scale.

    Args:
        written: A record, as `boxopt.history` returns it.
        least: The least value of the loss, which is subtracted from it; the least in the record unless given.
        ax: Where to draw; a new figure unless given.

    Returns:
        The axes. Zeros are left out: an exactly feasible run has no line of violations.

    Example:
        >>> import torch, boxopt as bx, boxopt.plot
        >>> written = {"step": torch.arange(3), "value": torch.tensor([3.0, 1.0, 0.5]), "optimality": torch.ones(3)}
        >>> [line.get_label() for line in bx.plot.convergence(written).lines]
        ['loss − least', 'optimality']
    """
    ax = _axes(ax)
    steps = _numbers(written["step"])
    for name, (label, color) in LINES.items():
        if name not in written:
            continue
        numbers = _numbers(written[name])
        if name == "value":
            numbers = numbers - (np.nanmin(numbers) if least is None else least)
        if (numbers > 0).any():
            ax.plot(steps, np.where(numbers > 0, numbers, np.nan), label=label, color=color)
    ax.set(yscale="log", xlabel="step")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    return ax


def weights(params: Any, box: Box | ByPath | None = None, *, bins: int = 60, ax: Axes | None = None) -> Axes:
    """A histogram of all parameters, against the walls of their box.

    Args:
        params: A tree of tensors.
        box: The box whose bounds to draw, or boxes by path; each value once.
        bins: How many bars.
        ax: Where to draw; a new figure unless given.

    Returns:
        The axes, with the share of the parameters at each bound in the legend.

    Example:
        >>> import torch, boxopt as bx, boxopt.plot
        >>> ax = bx.plot.weights({"w": torch.tensor([-1.0, 0.0, 0.2, 1.0])}, bx.Box(-1.0, 1.0))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['lower bound (25 % there)', 'upper bound (25 % there)']
    """
    ax = _axes(ax)
    numbers = np.concatenate([_numbers(leaf).reshape(-1) for leaf in tree.leaves(params)])
    ax.hist(numbers, bins=bins, color="#88aacc")
    ax.set(xlabel="value", ylabel="parameters")
    if box is None:
        return ax
    sides = np.concatenate([_numbers(side).reshape(-1) for side in tree.leaves(box.active(params))])
    boxes = [member for member in (box.sets.values() if isinstance(box, ByPath) else [box]) if isinstance(member, Box)]
    for side, name, color in ((-1, "lower", LOWER), (1, "upper", UPPER)):
        bounds = [bound for member in boxes for _, bound in tree.prefix_items(getattr(member, name))]
        given = [torch.as_tensor(bound).reshape(-1) for bound in bounds if bound is not None]
        values = np.unique(_numbers(torch.cat([bound.double() for bound in given]))) if given else np.zeros(0)
        label = f"{name} bound ({(sides == side).mean():.0%} there)".replace("%", " %")
        for value in values[np.isfinite(values)][:20]:
            ax.axvline(value, color=color, linestyle="--", label=label)
            label = None
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    return ax


def ensemble(
    written: Tensor | Written,
    by: Tensor | None = None,
    *,
    name: str = "value",
    label: str | None = None,
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """A line for each member of an ensemble, colored by its hyperparameter, and their median.

    The median is left out where members have made different numbers of steps.

    Args:
        written: The record of an ensemble, or numbers ``[members, steps]``.
        by: A hyperparameter of each member, ``[members]``; one color for all unless given.
        name: Which measurement of a record to draw.
        label: The hyperparameter's name, on the scale of colors.
        log: Whether ``by`` is colored on a logarithmic scale.
        ax: Where to draw; a new figure unless given.

    Returns:
        The axes.

    Raises:
        ValueError: The numbers are not ``[members, steps]``.

    Example:
        >>> import torch, boxopt as bx, boxopt.plot
        >>> losses = torch.tensor([[1.0, 0.5, 0.2], [1.0, 0.8, 0.7]])
        >>> bx.plot.ensemble(losses, torch.tensor([0.1, 0.01]), label="learning rate").get_xlabel()
        'step'
    """
    if isinstance(written, Mapping):
        numbers, steps = _numbers(written[name]), _numbers(written["step"])
    else:
        numbers = _numbers(written)
        steps = np.arange(numbers.shape[-1])
    if numbers.ndim != 2:
        raise ValueError(f"an ensemble is drawn of numbers [members, steps], got {list(numbers.shape)}")
    ax = _axes(ax)
    steps = np.broadcast_to(steps, numbers.shape)
    segments = [
        np.column_stack([own, row])[own >= 0]
        for own, row in zip(steps, numbers, strict=True)  # -1: not written
    ]
    lines = LineCollection(segments, linewidths=0.9, alpha=0.75)
    if by is None:
        lines.set_color("#88aacc")
    else:
        lines.set(array=_numbers(by), cmap="viridis", norm=LogNorm() if log else Normalize())
    ax.add_collection(lines)
    if by is not None:
        figure = ax.get_figure()
        assert figure is not None
        figure.colorbar(lines, ax=ax, label=label or "")
    if (steps == steps[:1]).all():
        ax.plot(steps[0], np.median(numbers, axis=0), color="black", linewidth=1.6, linestyle="--", label="median")
        ax.legend(edgecolor="none")
    ax.autoscale_view()
    ax.set(xlabel="step", ylabel=name if isinstance(written, Mapping) else "")
    return ax


def _axes(ax: Axes | None, size: tuple[float, float] = (6.0, 4.0)) -> Axes:
    return Figure(figsize=size, layout="constrained").add_subplot() if ax is None else ax


def _numbers(x: Tensor) -> np.ndarray:
    x = x.detach().cpu()
    return (x.double() if x.is_floating_point() else x).numpy()


def _walls(box: Box | None, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if box is None:
        return np.full(2, -np.inf), np.full(2, np.inf)
    far = torch.full_like(x, torch.inf)
    return _numbers(box.project(-far)), _numbers(box.project(far))


def _draw_contours(
    ax: Axes, objective: Callable[[Tensor], Tensor], least: np.ndarray, greatest: np.ndarray, dtype: torch.dtype
) -> None:
    """Contours at the heights within this range, and beyond it, where further paths may go."""
    far = 0.5 * (greatest - least)
    columns, rows = (np.linspace(least[i] - far[i], greatest[i] + far[i], 120) for i in range(2))
    grid = torch.as_tensor(np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2))
    heights = _numbers(vmap(objective)(grid.to(dtype))).reshape(120, 120)
    within = heights[30:90, 30:90]
    within = within[np.isfinite(within)]
    if within.size and within.min() < within.max():
        levels = np.linspace(within.min(), within.max(), 16)[1:-1]
        ax.contour(columns, rows, heights, levels=levels, colors="#bbbbbb", linewidths=0.7)


def _draw_walls(ax: Axes, low: np.ndarray, high: np.ndarray, least: np.ndarray, greatest: np.ndarray) -> None:
    """Shade what is outside of the box, and draw the walls that are finite."""
    far = 1e3 * (greatest - least)
    inner_low, inner_high = np.maximum(low, least - far), np.minimum(high, greatest + far)
    ax.set_facecolor("#e9e9e9")
    ax.add_patch(Rectangle(tuple(inner_low), *(inner_high - inner_low), facecolor="white", linewidth=0, zorder=0.5))
    left, right = ([(wall[0], inner_low[1]), (wall[0], inner_high[1])] for wall in (low, high))
    bottom, top = ([(inner_low[0], wall[1]), (inner_high[0], wall[1])] for wall in (low, high))
    walls = [wall for wall in (left, right, bottom, top) if np.isfinite(wall).all()]
    ax.add_collection(LineCollection(walls, colors=WALL, linewidths=1.5, zorder=2))
