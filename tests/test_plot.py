"""Pictures show what they are given, on the axes that they are given."""

import numpy as np
import pytest
import torch

import boxopt as bx

plot = pytest.importorskip("boxopt.plot", reason="matplotlib is not installed")
from matplotlib.collections import LineCollection  # noqa: E402
from matplotlib.contour import ContourSet  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

BOX = bx.Box(torch.tensor([0.0, -torch.inf]), torch.tensor([1.0, 0.6]))


def loss(x):
    return (x[0] - 1.5) ** 2 + 3 * (x[1] - 0.9) ** 2


@pytest.fixture(scope="module")
def written():
    tx, x = bx.chain(bx.record(BOX, 16, params=True), bx.sgd(0.1), bx.project(BOX)), torch.tensor([0.1, 0.2])
    state = tx.init(x)
    for _ in range(20):
        gradients, value = torch.func.grad_and_value(loss)(x)
        updates, state = tx.update(gradients, state, x, value=value)
        x = bx.apply_updates(x, updates)
    return bx.history(state)


def test_a_trajectory_over_walls_and_contours(written):
    ax = plot.trajectory(written, BOX, loss, label="project")
    np.testing.assert_allclose(ax.lines[0].get_xydata(), written["params"].numpy())
    (contours,) = [c for c in ax.collections if isinstance(c, ContourSet)]
    drawn = np.concatenate([path.vertices for path in contours.get_paths()])
    assert drawn[:, 0].min() < ax.get_xlim()[0] < ax.get_xlim()[1] < drawn[:, 0].max()  # further paths may go there
    (walls,) = [c for c in ax.collections if len(c.get_segments() if hasattr(c, "get_segments") else []) == 3]
    assert (0.0, 0.6) in {tuple(np.round(segment[0], 6)) for segment in walls.get_segments()}
    assert ax.get_xlim()[0] < 0 < 1 < ax.get_xlim()[1]
    before = ax.get_xlim()
    assert plot.trajectory(torch.tensor([[0.5, 0.5], [3.0, 0.5]]), BOX, ax=ax) is ax
    assert ax.get_xlim()[0] <= before[0]
    assert ax.get_xlim()[1] > 3


def test_the_active_set_is_that_of_the_parameters(written):
    ax = plot.active_set(written, BOX)
    expected = torch.stack([bx.active(BOX, x) for x in written["params"]]).T
    np.testing.assert_array_equal(ax.images[0].get_array(), expected.numpy())
    assert expected.any()
    sides = {"step": written["step"], "sides": expected.T.float()}
    np.testing.assert_array_equal(plot.active_set(sides).images[0].get_array(), expected.numpy())


def test_convergence_draws_what_is_positive(written):
    lines = {line.get_label(): line.get_ydata() for line in plot.convergence(written, least=0.0).lines}
    np.testing.assert_allclose(lines["loss − least"], written["value"].double().numpy())
    assert "violation" not in lines


def test_weights_and_ensembles():
    ax = plot.weights({"w": torch.tensor([-1.0, 0.0, 0.2, 1.0]), "b": torch.zeros(4)}, bx.Box(-1.0, None))
    assert [line.get_xdata()[0] for line in ax.lines] == [-1.0]
    assert sum(patch.get_height() for patch in ax.patches) == 8
    params = {"w": torch.tensor([-1.0, 0.0, 0.2, 1.0]), "b": torch.zeros(4)}
    ax = plot.weights(params, bx.sets.ByPath({"w": bx.Box(-1.0, 1.0)}))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "lower bound (12 % there)",
        "upper bound (12 % there)",
    ]
    figure = Figure()
    ax = plot.ensemble(torch.rand(5, 7), torch.logspace(-3, -1, 5), log=True, label="rate", ax=figure.add_subplot())
    assert len(ax.collections[0].get_segments()) == 5
    assert figure.axes[1].get_ylabel() == "rate"
    assert len(ax.lines) == 1  # the median
    uneven = {
        "step": torch.tensor([[0, 1, 2], [0, 1, -1]]),
        "value": torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.5, torch.nan]]),
    }
    ax = plot.ensemble(uneven)
    assert [len(segment) for segment in ax.collections[0].get_segments()] == [3, 2]
    assert not ax.lines


def test_without_walls_there_are_none(written):
    ax = plot.trajectory(written["params"])
    assert len(ax.lines) == 1
    assert not any(len(drawn.get_segments()) for drawn in ax.collections if isinstance(drawn, LineCollection))
    params = torch.tensor([-1.0, 0.0, 0.2])
    assert not plot.weights(params).lines
    ax = plot.weights(params, bx.Box(None, None))  # no bound that could be drawn
    assert not ax.lines
    assert ax.get_legend() is None


def test_a_constant_has_no_contours(written):
    ax = plot.trajectory(written["params"], BOX, lambda x: 0 * x.sum())
    assert not any(isinstance(drawn, ContourSet) and len(drawn.levels) for drawn in ax.collections)


def test_what_cannot_be_drawn(written):
    with pytest.raises(ValueError, match=r"expected points \[steps, 2\], got \[4, 3\]"):
        plot.trajectory(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"record\(box, params=True\)"):
        plot.trajectory({"step": torch.zeros(1)})
    with pytest.raises(ValueError, match="needs a record with sides"):
        plot.active_set({"step": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"\[members, steps\], got \[4\]"):
        plot.ensemble(torch.zeros(4))


def test_no_picture_is_shown_or_kept(written):
    import matplotlib.pyplot as plt

    plot.convergence(written)
    assert plt.get_fignums() == []
