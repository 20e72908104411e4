"""The ends of the floating-point numbers: bounds an ulp apart, subnormal, largest, infinite; NaN; numbers flushed to 0.

What each answer is stands in ``docs/guarantees.md``.
"""

import itertools
import subprocess
import sys

import pytest
import torch
from torch.func import grad, vmap

import boxopt as bx
from boxopt.core import decompose
from tests.set_registry import SETS, Numbers

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def special(dtype):
    """Zeros, the least and largest numbers, neighbours of 1 and of the least normal one, infinity; of both signs."""
    info = torch.finfo(dtype)
    least, tiny, eps, most = info.smallest_normal * info.eps, info.smallest_normal, info.eps, info.max
    sizes = [0, least, 2 * least, tiny - least, tiny, tiny + least, eps, 1 - eps / 2, 1, 1 + eps, 1 + 2 * eps, 3]
    sizes = torch.tensor([*sizes, most / 2, most * (1 - eps), most, torch.inf], dtype=torch.float64).to(dtype)
    return torch.cat([sizes, -sizes])


def grid(dtype):
    """Every box between two such numbers, with every finite point of it and every update: 180,000 cases."""
    numbers = special(dtype)
    low, high, params, updates = (x.reshape(-1) for x in torch.meshgrid(*[numbers] * 4, indexing="ij"))
    keep = (low <= params) & (params <= high) & params.isfinite()
    return low[keep], high[keep], params[keep], updates[keep]


def strengths(dtype):
    return [0.0, 1e-300, 1e-3, 1.0, 1e300] if dtype == torch.float64 else [0.0, 1e-40, 1e-3, 1e38, 1e300]


@each_dtype
def test_every_box_every_point_every_update(dtype):
    low, high, params, updates = grid(dtype)
    box = bx.Box(low, high)
    for mu in (None, *strengths(dtype)):
        tx = bx.project(box) if mu is None else bx.barrier(box, mu)
        step, _ = tx.update(updates, tx.init(params), params)
        reached = bx.apply_updates(params, step)
        assert ((low <= reached) & (reached <= high)).all(), mu
        exactly = bx.apply_updates(params, step, within=box)
        assert ((low <= exactly) & (exactly <= high)).all(), mu
        if mu is not None:
            strict = (low < params) & (params < high)
            assert ((low < reached) & (reached < high))[strict].all(), mu


def test_compiled_alike():
    cases = grid(torch.float32)

    @torch.compile(fullgraph=True)
    def step(low, high, params, updates):
        box = bx.Box(low, high)
        return bx.project(box).update(updates, bx.EmptyState(), params)[0]

    low, high, params, _ = cases
    reached = params + step(*cases)
    assert ((low <= reached) & (reached <= high)).all()


# Strictly inside wherever a number that is not subnormal is.
FLUSHED = """
import sys, torch
sys.path.insert(0, {root!r})
import boxopt as bx
from tests.test_edges import grid, strengths
assert torch.set_flush_denormal(True)
for dtype in (torch.float32, torch.bfloat16, torch.float64):
    low, high, params, updates = grid(dtype)
    box = bx.Box(low, high)
    for mu in (None, *strengths(dtype)[::2]):
        tx = bx.project(box) if mu is None else bx.barrier(box, mu)
        step, _ = tx.update(updates, tx.init(params), params)
        reached = bx.apply_updates(params, step)
        assert ((low <= reached) & (reached <= high)).all(), (dtype, mu)
        if mu is not None:
            tiny = torch.finfo(dtype).smallest_normal
            strict = (low < params) & (params < high)
            strict &= (low >= tiny) | (high <= -tiny) | (low < tiny) & (high > tiny) | (low < -tiny) & (high > -tiny)
            assert ((low < reached) & (reached < high))[strict].all(), (dtype, mu)
"""


def test_with_subnormal_numbers_flushed_to_zero(request):
    """A process of its own, since the flag is the thread's."""
    code = FLUSHED.format(root=str(request.config.rootpath))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("width", [1e-10, 1e-36, 1e-40, 1e-140])
def test_the_barrier_has_no_scale(width):
    """The step in a box of any width is that in the unit box, scaled: also where squares are subnormal in float32."""
    y, tau = torch.linspace(-1, 2, 31, dtype=torch.float64), 0.01
    unit = bx.Box(0.0, 1.0).prox_barrier(y, tau)
    scaled = bx.Box(0.0, width).prox_barrier(y * width, tau * width * width)
    torch.testing.assert_close(scaled / width, unit, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("bounds", [(0.0, 1e-38), (0.0, 1.0), (0.0, None), (1.0, 1.0 + 2e-6)], ids=str)
def test_the_barriers_derivative_is_finite(dtype, bounds):
    box = bx.Box(*bounds)
    for mu, y in itertools.product((0.0, 1e-30, 1.0, 1e30), (-1e30, -1.0, 0.0, 1e-38, 0.5, 1e30)):
        point, strength = torch.tensor(y, dtype=dtype), torch.tensor(mu, dtype=dtype)
        for argument in (0, 1):
            slope = grad(lambda y, tau: box.prox_barrier(y, tau), argnums=argument)(point, strength)
            assert slope.isfinite() or (argument == 1 and mu == 0), (mu, y, argument, slope)


def test_parameters_that_are_not_finite():
    """NaN stays NaN, in its place; an infinite parameter has no update that leaves it where it is."""
    params = torch.tensor([0.5, torch.nan, torch.inf, 0.5, 0.5])
    updates = torch.tensor([0.1, 0.1, 0.0, torch.nan, -torch.inf])
    tx = bx.project(bx.Box(0.0, None))
    reached = bx.apply_updates(params, tx.update(updates, tx.init(params), params)[0])
    assert reached.isnan().tolist() == [False, True, True, True, False]
    assert reached[0] == 0.6
    assert reached[4] == 0.0
    assert bx.apply_updates(params, torch.zeros(5), within=bx.Box(0.0, 2.0))[2] == 2.0


def test_minus_zero_is_zero():
    box = bx.Box(0.0, 1.0)
    assert box.project(torch.tensor([-0.0])) == 0
    assert bx.violation(box, torch.tensor([-0.0])) == 0
    tx = bx.barrier(box, 0.0)
    params = torch.tensor([-0.0])
    assert bx.apply_updates(params, tx.update(params, tx.init(params), params)[0]) > 0


# Sets of vectors and matrices.

FINITE_ONLY = {"Intersection": "one number for the whole tree balances its sweeps, so that members see each other"}


def draw(shape, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)


def attempts(members, step):
    yield lambda y: members.project(y)
    yield lambda y: members.project(y, step)
    yield lambda y: members.step(torch.zeros_like(y), y, step)
    yield lambda y: vmap(lambda one: members.project(one[None])[0])(y)
    if members.offers("prox_barrier"):
        yield lambda y: members.prox_barrier(y, 0.1)
        yield lambda y: members.prox_barrier(y, 0.1 * step)


@pytest.mark.parametrize("entry", [e for e in SETS if e.name not in FINITE_ONLY], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_member_that_is_not_finite_touches_no_other(entry, dtype):
    """To the bit: neither an exception of LAPACK's, nor more rounds of an iteration than the others need."""
    members, count, bad = entry.build(Numbers()), 40, 17
    shape = (count, *entry.shape[1:])
    step = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=dtype) + 0.1
    others = torch.arange(count) != bad
    y = draw(shape, dtype)
    for function in attempts(members, step):
        expected = function(y)
        for value in (torch.nan, torch.inf, -torch.inf):
            spoiled = y.clone()
            spoiled[bad].view(-1)[1] = value
            assert torch.equal(function(spoiled)[others], expected[others])


@pytest.mark.parametrize("name", ["PSD", "SpectralBall", "NuclearBall", "Stiefel"])
def test_a_large_matrix_does_not_end_the_iteration_of_a_small_one(name):
    members = getattr(bx.sets, name)()
    y, step = draw((2, 4, 4), torch.float64), draw((2, 4, 4), torch.float64, 1).abs() + 0.1
    step = (step + step.mT) / 2
    alone = members.project(y[:1], step[:1])
    y[1] *= 1e12
    torch.testing.assert_close(members.project(y, step)[:1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["eigh", "svd", "eigvalsh", "svdvals"])
def test_an_iteration_that_does_not_end_is_tried_again(name, monkeypatch):
    """LAPACK's do not, now and then, on matrices of low rank."""
    plain = getattr(torch.linalg, name)

    def ends_in_float64(x, **options):
        if x.dtype == torch.float32:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return plain(x, **options)

    x = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    expected = getattr(decompose, name)(torch.stack([x, 2 * x]))
    monkeypatch.setattr(torch.linalg, name, ends_in_float64)
    for made in (
        getattr(decompose, name)(torch.stack([x, 2 * x])),
        vmap(getattr(decompose, name))(torch.stack([x, 2 * x])),
    ):
        torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("function", [decompose.eigh, decompose.svd, decompose.eigvalsh, decompose.svdvals])
def test_decompositions(function):
    x = draw((3, 4, 4), torch.float64)
    x = x + x.mT
    plain = {"eigh": torch.linalg.eigh, "svd": torch.linalg.svd, "eigvalsh": torch.linalg.eigvalsh}
    expected = plain.get(function.__name__, torch.linalg.svdvals)(x)
    x[1, 2, 2] = torch.nan
    for one, other in zip(torch.utils._pytree.tree_leaves(function(x)), [expected] * 4, strict=False):
        assert one[1].isnan().all()
        assert one[::2].isfinite().all()
        if isinstance(other, torch.Tensor):
            assert torch.equal(one[::2], other[::2])


@pytest.mark.parametrize("entry", SETS, ids=str)
def test_candidates_of_any_size(entry):
    """From 1e-140 to 1e140 in float64, of every size in float32: finite, and in the set to rounding."""
    members = entry.build(Numbers())
    for dtype, sizes in ((torch.float64, (1e-140, 1e-20, 1e20, 1e140)), (torch.float32, (1e-44, 1e-20, 1e20, 1e37))):
        eps = torch.finfo(dtype).eps
        step = torch.rand(entry.shape, generator=torch.Generator().manual_seed(1), dtype=dtype) + 0.1
        for size, metric, tracked in itertools.product(sizes, (1.0, step), (False, True)):
            y = (draw(entry.shape, torch.float64) * (size / 10)).to(dtype)
            reached = members.project(y.clone().requires_grad_(tracked), metric).detach()
            assert reached.isfinite().all(), (dtype, size)
            scale = max(reached.double().abs().max().item(), torch.finfo(dtype).tiny)
            if entry.name == "BoxHyperplane":  # the equation holds to the rounding of the candidate
                scale += y.double().abs().max().item()
            if entry.name == "Intersection":
                continue
            assert bx.violation(members, reached.double()) <= 1e3 * eps * scale, (dtype, size)


def test_a_candidate_far_from_a_box_and_hyperplane():
    """The multiplier is found by bisection over as many sizes as the candidate has."""
    members = bx.sets.BoxHyperplane(0.0, 1.0, 1.0, 2.5)
    for size in (1e6, 1e10, 1e12):
        y = draw((20, 6), torch.float64) * size
        assert bx.violation(members, members.project(y)) <= 1e-15 * size


@pytest.mark.parametrize("name", ["L1Ball", "L2Ball", "LInfBall", "L2Sphere", "Simplex", "SpectralBall", "NuclearBall"])
@each_dtype
def test_sets_of_one_point_and_sets_without_an_end(name, dtype):
    """Radius 0 is the set {0}, also for the barrier; a radius beyond the dtype is no bound, as a tensor's would be."""
    make, y = getattr(bx.sets, name), draw((2, 3, 3), dtype)
    for step in (1.0, draw((2, 3, 3), dtype, 1).abs() + 0.1):
        assert (make(0.0).project(y, step) == 0).all()
    if hasattr(make, "prox_barrier") and name not in ("L1Ball", "SpectralBall", "NuclearBall", "L2Sphere"):
        assert (make(0.0).prox_barrier(y, 0.1).abs() <= 2 * torch.finfo(dtype).tiny).all()
    if name.endswith("Ball"):
        assert torch.equal(make(1e300).project(y), y)


def test_a_simplex_of_one_entry():
    simplex = bx.sets.Simplex(2.5)
    y = torch.tensor([[3.0], [-1e30], [torch.inf]])
    assert (simplex.project(y) == 2.5).all()
    assert (simplex.project(y, torch.ones(3, 1)) == 2.5).all()
    assert (simplex.prox_barrier(y[:2], 0.1) == 2.5).all()


def test_singular_affine_sets():
    rows = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="depend on each other"):
        bx.sets.Affine(rows, torch.tensor([1.0, 2.0]))  # parallel, and nowhere both true
    with pytest.raises(ValueError, match="depend on each other"):
        bx.sets.Affine(torch.zeros(1, 2), torch.zeros(1))
    # A normal of 0 is no equation: where it can be, the projection is the identity; where it cannot, too.
    y = torch.tensor([1.0, 2.0])
    assert torch.equal(bx.sets.Hyperplane(torch.zeros(2), 0.0).project(y), y)
    assert torch.equal(bx.sets.Halfspace(torch.zeros(2), -1.0).project(y), y)


EMPTY = {
    "two boxes": bx.sets.Intersection(bx.Box(None, 0.0), bx.Box(1.0, None)),
    "ball and halfspace": bx.sets.Intersection(bx.sets.L2Ball(1.0), bx.sets.Halfspace(torch.tensor([1.0, 0.0]), -2.0)),
    "two hyperplanes": bx.sets.Intersection(
        bx.sets.Hyperplane(torch.tensor([1.0, 1.0]), 0.0), bx.sets.Hyperplane(torch.tensor([1.0, 1.0]), 1.0)
    ),
    "box and hyperplane": bx.sets.BoxHyperplane(0.0, 1.0, 1.0, 5.0),
    "polyhedron": bx.sets.Polyhedron(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0.0, -1.0])),
    "transport": bx.sets.TransportPolytope(1.0, 5.0),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_sets_are_reported_by_their_violation(name):
    """The work is the same, what comes out is finite, and `violation` says that it is not in the set."""
    y = torch.tensor([[0.5, -2.0], [0.1, 0.2]])
    reached = EMPTY[name].project(y)
    assert reached.isfinite().all()
    assert bx.violation(EMPTY[name], reached) > 0.2
    assert not bx.is_feasible(EMPTY[name], reached)


def test_data_that_are_not_finite_have_no_solution():
    """Least squares over a box: NaN, and not the corner at which the search begins."""
    matrix, right = torch.eye(2).repeat(2, 1, 1), torch.ones(2, 2)
    matrix[1, 0, 0] = torch.nan
    for found in (bx.nnls(matrix, right), bx.bvls(matrix, right, -0.5, 0.5)):
        assert found[0].isfinite().all()
        assert found[1].isnan().all()


def test_bounds_of_integers_are_those_numbers():
    box = bx.Box(torch.tensor([-1, 0]), torch.tensor([2**24 + 1, 1]))
    x = torch.tensor([1e9, -3.0])
    assert box.project(x).tolist() == [2.0**24, 0.0]  # inwards: float32 has no 2²⁴ + 1
    assert float(box.violation(x)) == 1e9 - 2**24


def test_parameters_without_memory():
    """On the device "meta" there are shapes alone: what a state takes is known before there is memory for it."""
    tx = bx.chain(bx.adam(0.1), bx.project(bx.Box(0.0, 1.0)), bx.barrier(bx.Box(0.0, 1.0), 0.1))
    params = {"a": torch.zeros(3, device="meta"), "b": [torch.zeros(2, 2, dtype=torch.bfloat16, device="meta")] * 12}
    updates, state = tx.update(params, tx.init(params), params)
    assert [leaf.shape for leaf in updates["b"]] == [(2, 2)] * 12
    assert updates["b"][0].dtype == torch.bfloat16
    assert all(leaf.device.type == "meta" for leaf in torch.utils._pytree.tree_leaves((updates, state)) if leaf.ndim)
