"""The laws of sets, each over every entry of the registry."""

import pickle

import pytest
import torch
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

import boxopt as bx
from tests.set_registry import OTHER_EXPORTS, SETS, Numbers

every_set = pytest.mark.parametrize("entry", SETS, ids=str)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def draw(shape, seed=0, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def positive(shape, seed=0, spread=1.0):
    return torch.exp(draw(shape, seed + 100, spread))


def skip_exempt(entry, law):
    if law in entry.exempt:
        pytest.skip(entry.exempt[law])


def allowed(entry, dtype):
    return 0.0 if entry.exact else entry.tolerance * torch.finfo(dtype).eps


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def test_every_set_is_registered():
    assert {entry.name for entry in SETS} | OTHER_EXPORTS == set(bx.sets.__all__)


@every_set
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_projections_are_in_the_set(entry, dtype):
    members = entry.build(Numbers())
    for seed in range(20):
        x = draw(entry.shape, seed, 10.0 ** (seed % 5 - 2), dtype)
        result = members.project(x)
        assert result.dtype == dtype
        assert result.shape == x.shape
        assert float(members.violation(result.double())) <= allowed(entry, dtype) * float(x.abs().max().clamp_min(1))


@every_set
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_stay_in_the_set(entry, dtype):
    """Law 2: params + updates in floating point, after Adam, whose metric has a step size a coordinate."""
    members = entry.build(Numbers())
    eps = 1e-3 if dtype == torch.float16 else 1e-8  # below 1e-4 the squares of gradients are 0 in float16
    tx = bx.chain(bx.adam(0.1, eps=eps), bx.project(members))
    params = members.project(draw(entry.shape, 1, 1.0, dtype))
    state = tx.init(params)
    for step in range(25):
        scale = 10.0 ** (step % 4 - 3) if dtype == torch.float16 else 10.0 ** (step % 7 - 3)  # so that g² is finite
        updates, state = tx.update(draw(entry.shape, step, scale, dtype), state, params)
        params = bx.apply_updates(params, updates)
        largest = float(params.abs().max().clamp_min(1))
        assert float(members.violation(params.double())) <= 2 * allowed(entry, dtype) * largest


@every_set
def test_idempotent_and_quiet_inside(entry):
    members = entry.build(Numbers())
    for seed in range(5):
        once = members.project(draw(entry.shape, seed))
        torch.testing.assert_close(members.project(once), once, rtol=1e-9, atol=1e-9)


@every_set
@pytest.mark.parametrize("in_metric", [False, True])
def test_optimality_condition(entry, in_metric):
    """⟨(y − x)/η, z − x⟩ ≤ 0 for every z in the set, which characterizes the projection onto a convex set."""
    if not entry.convex:
        pytest.skip("characterizes projections onto convex sets")
    members = entry.build(Numbers())
    others = [members.project(draw(entry.shape, 1000 + other, 3.0)) for other in range(20)]
    for seed in range(6):
        y = draw(entry.shape, seed, 10.0 ** (seed % 3 - 1))
        step = positive(entry.shape, seed) if in_metric else torch.ones(entry.shape, dtype=y.dtype)
        x = members.project(y, step_size=step if in_metric else 1.0)
        for z in others:
            slope = ((y - x) / step * (z - x)).sum()
            tolerance = entry.metric if in_metric or entry.name == "Intersection" else 1e-9
            assert slope <= tolerance * (1 + ((y - x) ** 2 / step).sum())


@every_set
def test_firmly_nonexpansive(entry):
    if not entry.convex:
        pytest.skip("only convex sets are")
    members = entry.build(Numbers())
    step = positive(entry.shape, 3) if entry.metric <= 1e-6 else torch.ones(entry.shape, dtype=torch.float64)
    for seed in range(10):
        one, other = draw(entry.shape, seed), draw(entry.shape, seed + 50)
        gap = members.project(one, step) - members.project(other, step)
        assert (gap * gap / step).sum() <= (gap * (one - other) / step).sum() + 1e-6


@every_set
def test_pure_and_pickles(entry):
    members = entry.build(Numbers())
    x = draw(entry.shape, 2)
    before = x.clone()
    first = members.project(x)
    assert torch.equal(x, before)
    assert torch.equal(pickle.loads(pickle.dumps(members)).project(x), first)


@every_set
def test_a_member_that_is_not_finite_touches_no_other(entry):
    members = entry.build(Numbers())
    x, step = draw((3, *entry.shape), 4), positive((3, *entry.shape), 5)
    x[1].view(-1)[0] = torch.nan
    functions = [members.project, lambda x: members.project(x, step[0]), members.violation]
    inside = members.project(draw(entry.shape, 1))
    functions += [members.linear_minimizer] if members.offers("linear_minimizer") else []
    functions += [lambda x: members.tangent(inside, x)] if members.offers("tangent") else []
    for function in functions:
        expected = function(x[2])
        together, tracked = vmap(function)(x), vmap(function)(x.clone().requires_grad_())
        torch.testing.assert_close(together[2], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(tracked[2].detach(), expected, rtol=1e-9, atol=1e-9)
        if function in functions[:2]:  # a projection of NaN is NaN, unless it is a member
            for lost in (together[1], tracked[1].detach()):
                assert lost.isnan().any() or float(members.violation(lost)) <= 1e-9


@every_set
def test_steps_of_fake_tensors(entry):
    """What a donated step is traced with first, and how the structure of a state is found without memory."""
    x = draw(entry.shape, 4)
    tx = bx.chain(bx.adam(0.1), bx.project(entry.build(Numbers())))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        params = mode.from_tensor(x)
        updates, _ = tx.update(params, tx.init(params), params)
    assert updates.shape == x.shape
    assert updates.dtype == x.dtype


@every_set
def test_vmap_equals_loop(entry):
    x = draw((5, *entry.shape), 4)
    step = positive((5, *entry.shape), 5)
    h = Numbers(1.0 + torch.rand(5, dtype=torch.float64), 0.1 * torch.arange(1, 6, dtype=torch.float64))

    def project(x, step, h):
        members = entry.build(h)
        return members.project(x, step), members.violation(x), members.land(x, members.project(x))

    together = vmap(project)(x, step, h)
    for index in range(5):
        alone = project(x[index], step[index], Numbers(h.radius[index], h.offset[index]))
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[index], other, rtol=1e-9, atol=1e-9)
    fold = lambda t: t[:4].reshape(2, 2, *t.shape[1:])  # noqa: E731
    nested = vmap(vmap(project))(fold(x), fold(step), Numbers(fold(h.radius), fold(h.offset)))
    torch.testing.assert_close(nested[0], fold(together[0]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("entry", [e for e in SETS if e.name != "Intersection"], ids=str)
def test_vmap_over_some_arguments(entry):
    """The others are the same for all members, of which there may be one; a member's dimension may be any."""
    x, step, numbers = draw(entry.shape, 4), positive(entry.shape, 5), Numbers(torch.tensor(1.3), torch.tensor(0.1))
    several = Numbers(*(torch.stack([number, 1.1 * number]) for number in numbers))

    def project(x, step, numbers):
        return entry.build(Numbers(*(number.double() for number in numbers))).project(x, step)

    for dims, arguments in {
        (None, 0, None): (x, positive((1, *entry.shape), 7), numbers),
        (None, None, 0): (x, step, several),
        (-1, None, None): (draw((*entry.shape, 2), 6), step, numbers),
    }.items():
        together = vmap(project, dims)(*arguments)
        for index, found in enumerate(together):
            take = lambda a, dim, index=index: a if dim is None else pytree.tree_map(lambda t: t.select(dim, index), a)  # noqa: E731
            torch.testing.assert_close(found, project(*map(take, arguments, dims)), rtol=1e-9, atol=1e-9)


@every_set
@pytest.mark.parametrize("in_metric", [False, True])
def test_gradcheck_and_gradgradcheck(entry, in_metric):
    skip_exempt(entry, "derivative")
    if in_metric:
        skip_exempt(entry, "derivative in a metric")
    x = draw(entry.shape, 6, 1.5).requires_grad_()
    step = positive(entry.shape, 7, 0.5).requires_grad_()
    h = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in Numbers()]

    def project(x, step, *h):
        return entry.build(Numbers(*h)).project(x, step_size=step if in_metric else 1.0)

    assert torch.autograd.gradcheck(project, (x, step, *h), atol=1e-6, rtol=1e-4)
    assert torch.autograd.gradgradcheck(project, (x, step, *h), atol=1e-5, rtol=1e-3)


@every_set
@pytest.mark.parametrize("place", ["zero", "ties", "inside", "far"])
def test_derivatives_are_finite_everywhere(entry, place):
    point = {
        "zero": torch.zeros(entry.shape, dtype=torch.float64),
        "ties": torch.ones(entry.shape, dtype=torch.float64),
        "inside": 1e-3 * draw(entry.shape, 8),
        "far": draw(entry.shape, 9, 1e8),
    }[place].requires_grad_()
    for step in (1.0, positive(entry.shape, 3)):
        result = entry.build(Numbers()).project(point, step)
        assert torch.isfinite(result).all()
        (first,) = torch.autograd.grad((result * draw(entry.shape, 10)).sum(), point, create_graph=True)
        assert torch.isfinite(first).all()
        if first.requires_grad:
            second = torch.autograd.grad((first * first).sum(), point, allow_unused=True)[0]
            assert second is None or torch.isfinite(second).all()


@pytest.mark.parametrize("entry", [each for each in SETS if each.exact], ids=str)
def test_violation_has_derivative_0_where_it_is_0(entry):
    """On the boundary, where torch 2.14 gives ``clamp`` another derivative than the versions before."""
    members = entry.build(Numbers())
    for start in (torch.zeros(entry.shape, dtype=torch.float64), draw(entry.shape, 9, 3.0)):
        point = members.project(start).requires_grad_()
        violation = members.violation(point)
        assert violation == 0
        assert not torch.autograd.grad(violation, point)[0].any()


@every_set
@pytest.mark.parametrize("mode", ["plain", "vmap of grad"])
def test_compiles(entry, mode):
    x, step = draw(entry.shape, 11), positive(entry.shape, 12)
    h = Numbers(torch.tensor(1.25, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))

    def project(x, step, h):
        in_metric = mode == "plain" or "derivative in a metric" not in entry.exempt  # an iteration is long to trace
        return (entry.traced or entry.build)(h).project(x, step if in_metric else 1.0)

    def weighed(x, step, h):
        result = project(x, step, h)
        return (result * step).sum(), result

    function, arguments = project, (x, step, h)
    if mode == "vmap of grad":
        function = vmap(torch.func.grad(weighed, has_aux=True))
        arguments = pytree.tree_map(lambda t: torch.stack([t, 1.5 * t]), arguments)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), function(*arguments), rtol=1e-9, atol=1e-9)


@every_set
@pytest.mark.parametrize("special", ["infinite", "tiny", "offset", "zero step"])
def test_adversarial_values(entry, special):
    members = entry.build(Numbers())
    for dtype in (torch.float32, torch.float64):
        x, step = draw(entry.shape, 13, 1.0, dtype), 1.0
        if special == "infinite":
            if entry.name not in ("Box", "NonNegative", "Simplex", "L1Ball", "L2Ball", "LInfBall"):
                pytest.skip("infinite inputs have an answer for boxes, simplices and balls")
            x[..., 0], x[..., 1] = torch.inf, -torch.inf
        elif special == "tiny":
            x = x * 1e-30
        elif special == "offset":
            x = x + 1e6
        else:
            step = torch.zeros(entry.shape, dtype=dtype)
        result = members.project(x, step)
        assert torch.isfinite(result).all() or entry.name == "NonNegative"
        size = 1e6 if special == "offset" and not entry.exact else 1.0
        assert float(members.violation(result.double())) <= size * max(allowed(entry, dtype), 0.0)


@pytest.mark.parametrize("entry", [e for e in SETS if hasattr(e.build(Numbers()), "dim")], ids=str)
def test_dim_names_the_vectors(entry):
    members = entry.build(Numbers())
    if "dim" in entry.exempt:
        pytest.skip(entry.exempt["dim"])
    kind, fields = type(members), {k: v for k, v in vars(members).items() if k not in ("dim", "factor")}
    x = draw((3, 4, 5), 14)
    expected = members.project(x.movedim(0, -1)).movedim(-1, 0)
    torch.testing.assert_close(kind(**fields, dim=0).project(x), expected)
    flat = members.project(x.flatten()).reshape(x.shape)
    torch.testing.assert_close(kind(**fields, dim=None).project(x), flat)
    torch.testing.assert_close(kind(**fields, dim=(0, 1, 2)).project(x), flat)
    with pytest.raises(ValueError, match=r"leaf 'w'.*dim=7 does not exist"):
        kind(**fields, dim=7).check({"w": x})
    assert kind(**fields).project(torch.tensor(0.3)).shape == ()
    assert kind(**fields).project(torch.zeros(0, 4)).shape == (0, 4)


TAKES = {
    "tangent": bx.tangent,
    "linear_minimizer": bx.frank_wolfe,
    "prox_barrier": lambda members: bx.barrier(members, 0.1),
    "barrier_gradient": lambda members: bx.add_barrier(members, 0.1),
}


@pytest.mark.parametrize("operation", TAKES)
@every_set
def test_what_a_set_does_not_offer_is_refused_at_once(entry, operation):
    members = entry.build(Numbers())
    x = members.project(draw(entry.shape, 1))
    try:
        getattr(members, operation)(*(x, x)[: 2 if operation in ("tangent", "prox_barrier") else 1])
    except NotImplementedError:
        assert not members.offers(operation)
        assert not bx.sets.ByPath({"a": bx.Box(0.0, 1.0), "b": members}).offers(operation)
        with pytest.raises(TypeError, match=f"expected a set that offers {operation}, got {type(members).__name__}"):
            TAKES[operation](members)
    else:
        assert members.offers(operation)
        assert bx.sets.ByPath({"a": bx.Box(0.0, 1.0), "b": members}).offers(operation)


@every_set
def test_tangent_direction_leads_inside(entry):
    members = entry.build(Numbers())
    x = members.project(draw(entry.shape, 15, 3.0))
    gradient = draw(entry.shape, 16)
    if not members.offers("tangent"):
        pytest.skip("has no tangent")
    direction = -members.tangent(x, gradient)
    small = 1e-6
    assert float(members.violation(x + small * direction)) <= 1e-9
    assert ((-gradient - direction) * direction).sum() >= -1e-9  # what was dropped does not oppose what is left


def test_tangents_of_sparse_vectors_are_each_ones_own():
    x = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    tangent = bx.sets.Sparse(2).tangent(x, torch.ones(2, 3))
    assert tangent.tolist() == [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]


@every_set
def test_points_of_exact_sets_stay_to_the_bit(entry):
    if not entry.exact:
        pytest.skip("its points are known to rounding")
    members = entry.build(Numbers())
    x = members.project(draw(entry.shape, 21, 3.0))
    assert torch.equal(members.land(torch.zeros_like(x), x), x)


@every_set
def test_trees_are_leaf_by_leaf(entry):
    """But for an intersection, whose sweeps are balanced for all leaves at once."""
    members = entry.build(Numbers())
    x = {"a": draw(entry.shape, 22, 3.0), "b": [draw(entry.shape, 23)]}
    step = {"a": 0.5, "b": [torch.rand(entry.shape, dtype=torch.float64) + 0.5]}
    both = members.project(x, step)
    a, b = members.project(x["a"], 0.5), members.project(x["b"][0], step["b"][0])
    tolerance = 1e-6 if entry.name == "Intersection" else 0.0
    torch.testing.assert_close(both, {"a": a, "b": [b]}, rtol=0.0, atol=tolerance)
    torch.testing.assert_close(members.violation(both), torch.maximum(members.violation(a), members.violation(b)))


@every_set
def test_linear_minimizer_is_least(entry):
    members = entry.build(Numbers())
    gradient = draw(entry.shape, 17)
    if not members.offers("linear_minimizer"):
        pytest.skip("has no linear minimizer")
    least = members.linear_minimizer(gradient)
    if not torch.isfinite(least).all():
        pytest.skip("unbounded")
    assert float(members.violation(least)) <= max(allowed(entry, torch.float64), 1e-14)
    for seed in range(20):
        other = members.project(draw(entry.shape, seed, 10.0))
        assert (gradient * least).sum() <= (gradient * other).sum() + 1e-9
