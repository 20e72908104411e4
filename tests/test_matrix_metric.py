"""Projections onto sets of matrices in metrics in which step sizes differ by factors of up to a million."""

import pytest
import torch
from torch.func import jvp, vmap

import boxopt as bx
from boxopt.sets import matrix_metric

S = bx.sets
RADIUS = 1.25
SETS = {"PSD": S.PSD(), "SpectralBall": S.SpectralBall(RADIUS), "NuclearBall": S.NuclearBall(RADIUS)}
SHAPES = [(2, 1, 1), (2, 1, 5), (2, 5, 1), (3, 6, 4), (2, 4, 6), (2, 12, 12)]
every_set = pytest.mark.parametrize("name", SETS)


def draw(shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def steps(shape, ratio, seed):
    """Step sizes between 1/ratio and 1, uniform in their logarithms, of which both occur if there is more than one."""
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    least, most = uniform.amin((-2, -1), keepdim=True), uniform.amax((-2, -1), keepdim=True)
    return ratio ** -((uniform - least) / (most - least).clamp_min(1e-3))


def places(shape):
    rows, columns = shape[-2:]
    low = draw((*shape[:-1], 1), 2) @ draw((*shape[:-2], 1, columns), 3)
    return {
        "outside": 3 * draw(shape, 1),
        "inside": 1e-3 * torch.eye(rows, columns, dtype=torch.float64).expand(shape),
        "zero": torch.zeros(shape, dtype=torch.float64),
        "low rank": low,
        "equal singular values": 2 * torch.eye(rows, columns, dtype=torch.float64).expand(shape),
        "all equal": torch.ones(shape, dtype=torch.float64),
        "far": 1e5 * draw(shape, 4),
    }


def suboptimality(name, y, x, step):
    """By how much D = (y − x)/step, divided by its length, is not normal to the set at x; 0 where x is nearest to y.

    Less what the rounding of x may make of it, which balls then draw inwards by a few roundings.
    """
    normal = (y - x) / step
    if name == "PSD":
        normal = (normal + normal.mT) / 2
    length = torch.linalg.matrix_norm(normal).clamp_min(1e-300)
    noise = 256 * torch.finfo(y.dtype).eps * torch.linalg.matrix_norm(torch.maximum(y.abs(), x.abs()) / step)
    normal = normal / length[..., None, None]
    along = (normal * x).sum((-2, -1))
    if name == "PSD":
        error = torch.maximum(torch.linalg.eigvalsh(normal)[..., -1], along.abs() / x.abs().amax((-2, -1)).clamp_min(1))
    else:
        values = torch.linalg.svdvals(normal)
        size = values.sum(-1) if name == "SpectralBall" else values[..., 0]
        error = torch.where(size > 0, 1 - along / RADIUS / torch.where(size > 0, size, 1.0), 0.0)
    return float((error - noise / length).amax())


@every_set
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e4, 1e6])
def test_the_conditions_of_optimality(name, shape, ratio):
    shape = (*shape[:-1], shape[-2]) if name == "PSD" else shape
    members, step = SETS[name], steps(shape, ratio, 5)
    for place, y in places(shape).items():
        x = members.project(y, step)
        assert members.violation(x) <= 1e-14 * max(1.0, float(x.abs().max())), place
        assert suboptimality(name, y, x, step) <= 1e-10, place
        if place in ("inside", "zero"):
            torch.testing.assert_close(x, y, rtol=1e-14, atol=1e-30)
        narrow = members.project(y.float(), step.float())
        exactly = members.project(y.float().double(), step.float().double())
        torch.testing.assert_close(narrow.double(), exactly, rtol=0.0, atol=4e-6 * float(exactly.abs().max()))
        assert members.violation(narrow.double()) <= 1e-6 * max(1.0, float(x.abs().max())) * (name == "PSD")


@every_set
def test_of_any_size(name):
    """The projection of c·y onto c times the set is c times that of y, also where squares leave the numbers' range."""
    members, y, step = SETS[name], draw((4, 4), 6), steps((4, 4), 1e3, 7)
    near = members.project(y, step)
    for size in (1e-200, 1e200):
        larger = members if name == "PSD" else type(members)(RADIUS * size)
        nearest = larger.project(size * y, step)
        torch.testing.assert_close(nearest / size, near, rtol=1e-12, atol=1e-12)


@every_set
def test_a_member_of_a_batch_is_as_it_is_alone(name):
    """Also where another needs many more steps."""
    y = torch.cat([places((2, 6, 6))[place] for place in ("low rank", "inside", "outside")])
    step = torch.cat([steps((1, 6, 6), ratio, 8) for ratio in (1e6, 1e4, 1e2, 1.0, 1e1, 1e5)])
    together = SETS[name].project(y, step)
    batched = vmap(SETS[name].project)(y, step)
    for index in range(len(y)):
        alone = SETS[name].project(y[index], step[index])
        torch.testing.assert_close(together[index], alone, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(batched[index], alone, rtol=1e-9, atol=1e-9)


@every_set
@pytest.mark.parametrize("ratio", [1e2, 1e4])
@pytest.mark.parametrize("shape", [(2, 5, 5), (1, 6, 4), (1, 4, 6), (1, 18, 18)], ids=str)
def test_derivatives_against_finite_differences(name, shape, ratio):
    shape = (*shape[:-1], shape[-2]) if name == "PSD" else shape
    members = SETS[name]
    y, step = 2 * draw(shape, 9), steps(shape, ratio, 10)
    along, relative = draw(shape, 11), draw(shape, 12)

    def moved(t):
        return members.project(y + t * along, step * (1 + t * relative))

    h = 1e-4
    differences = [(moved(k * h) - moved(-k * h)) / (2 * k * h) for k in (0.5, 1.0)]
    expected = (4 * differences[0] - differences[1]) / 3
    scale = float(expected.abs().max())
    start = torch.zeros((), dtype=torch.float64)
    forwards = jvp(moved, (start,), (torch.ones_like(start),))[1]
    assert (forwards - expected).abs().max() <= 1e-6 * scale
    weight = draw(shape, 13)
    slope = torch.func.grad(lambda t: (weight * moved(t)).sum())(start)
    assert (slope - (weight * forwards).sum()).abs() <= 1e-9 * scale * weight.abs().sum()


@every_set
@pytest.mark.parametrize(("ratio", "error"), [(1.0, 1e-9), (10.0, 1e-6), (1e3, 1e-1)])
def test_derivatives_of_large_matrices(monkeypatch, name, ratio, error):
    """Of these Newton's system is not a matrix, but solved by a few steps of an iteration."""
    shape = (2, 8, 8) if name == "PSD" else (2, 8, 6)
    y, step, along, weight = 2 * draw(shape, 14), steps(shape, ratio, 15), draw(shape, 16), draw(shape, 17)

    def slope():
        return jvp(lambda y: SETS[name].project(y, step), (y,), (along,))[1]

    exact = slope()
    monkeypatch.setattr(matrix_metric, "_DENSE", 0)
    close = slope()
    assert torch.linalg.vector_norm(close - exact) <= error * torch.linalg.vector_norm(exact)
    gradient = torch.func.grad(lambda y: (weight * SETS[name].project(y, step)).sum())(y)
    torch.testing.assert_close((gradient * along).sum(), (weight * close).sum(), rtol=1e-9, atol=1e-9)
    alone = vmap(lambda y, step, along: jvp(lambda y: SETS[name].project(y, step), (y,), (along,))[1])(y, step, along)
    torch.testing.assert_close(alone, close, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "errors"), [("PSD", (1e-4, 0.2)), ("SpectralBall", (1e-6, 1e-2)), ("NuclearBall", (1e-9, 1e-9))]
)
def test_how_far_off_derivatives_of_large_matrices_are(monkeypatch, name, errors):
    """In the median, as the module says."""
    shape = (24, 8, 8) if name == "PSD" else (24, 8, 6)
    y, along = 2 * draw(shape, 0), draw(shape, 60)
    for ratio, error in zip((1e2, 1e4), errors, strict=True):
        step = steps(shape, ratio, 30)
        derivatives = []
        for entries in (1024, 0):
            monkeypatch.setattr(matrix_metric, "_DENSE", entries)
            derivatives.append(jvp(lambda y: SETS[name].project(y, step), (y,), (along,))[1])  # noqa: B023
        exact, close = derivatives
        off = torch.linalg.matrix_norm(close - exact) / torch.linalg.matrix_norm(exact)
        assert off.median() <= error
        assert off.max() <= 1.0


@every_set
def test_few_decompositions(monkeypatch, name):
    counts = {"eigh": 0, "svd": 0}
    for kind in counts:
        decompose = getattr(matrix_metric, kind)

        def counted(*args, kind=kind, decompose=decompose):
            counts[kind] += 1
            return decompose(*args)

        monkeypatch.setattr(matrix_metric, kind, counted)
    for seed in range(3):
        counts.update(eigh=0, svd=0)
        SETS[name].project(2 * draw((4, 12, 12), seed), torch.exp(draw((4, 12, 12), seed + 20)))
        assert 0 < sum(counts.values()) <= 25
        assert min(counts.values()) == 0


def test_where_nobody_may_look(monkeypatch):
    """As in a recorded graph: a fixed number of steps, which is enough in an ordinary metric."""
    monkeypatch.setattr(matrix_metric, "may_stop", lambda *args, **kwargs: False)
    y, step = 2 * draw((3, 6, 5), 17), torch.exp(0.5 * draw((3, 6, 5), 18))
    for name in ("SpectralBall", "NuclearBall"):
        assert suboptimality(name, y, SETS[name].project(y, step), step) <= 1e-9


@every_set
def test_random_problems(name):
    """Also where a step that does not shorten the residual is not yet the last that would."""
    for seed in range(150):
        rows, columns = (2, 5, 9)[seed % 3], (2, 5, 9)[seed // 3 % 3]
        shape = (1, rows, rows if name == "PSD" else columns)
        y, step = 10 ** (seed % 5 / 2 - 1) * draw(shape, seed), torch.exp(2.5 * draw(shape, seed + 1000))
        assert suboptimality(name, y, SETS[name].project(y, step), step) <= 1e-9, seed
