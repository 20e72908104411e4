"""Law 8: each kind of bad input, and the message, which names the leaf, what came and what was expected."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

import boxopt as bx

PARAMS = {"layer": {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}}


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        (1.0, 0.0, r"lower > upper: lower is 1\.0, upper is 0\.0"),
        ({"layer": {"weight": 2.0, "bias": 0.0}}, 1.0, r"lower > upper at leaf 'layer\.weight'"),
        ({"layer": 2.0}, {"layer": {"weight": 3.0, "bias": 1.0}}, r"lower > upper at leaf 'layer\.bias'"),
        (torch.tensor([0.0, 2.0]), 1.0, r"lower > upper: lower is tensor\(\[0\., 2\.\]\), upper is 1\.0"),
        (math.nan, 1.0, r"the lower bound is NaN: nan"),
        (None, {"w": torch.tensor([1.0, math.nan])}, r"the upper bound of leaf 'w' is NaN"),
        ({"v": None, "w": math.nan}, None, r"the lower bound of leaf 'w' is NaN"),
        (math.inf, None, r"the lower bound is inf, which leaves nothing"),
        (None, -math.inf, r"the upper bound is -inf, which leaves nothing"),
        (
            torch.zeros(3),
            torch.ones(2),
            r"bounds do not broadcast together: lower has shape \(3,\), upper has shape \(2,\)",
        ),
    ],
)
def test_bounds_that_make_no_box(lower, upper, message):
    with pytest.raises(ValueError, match=message):
        bx.Box(lower, upper)


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ("1", "the lower bound is a number, a tensor or None, got str '1'"),
        (True, "the lower bound is a number, a tensor or None, got bool True"),
        ({"w": 1j}, "the lower bound of leaf 'w' is a number, a tensor or None, got complex 1j"),
        (torch.tensor(1j), "the lower bound is a tensor of real numbers, got dtype torch.complex64"),
    ],
)
def test_bounds_that_are_no_numbers(bound, message):
    with pytest.raises(TypeError, match=message):
        bx.Box(lower=bound)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (
            bx.Box(lower={"layer": {"wieght": 0.0}}),
            r"not a pytree prefix .* the parameters have no leaf 'layer\.wieght'",
        ),
        (
            bx.Box(upper={"layer": {"weight": torch.ones(3, 2), "bias": 1.0}}),
            r"leaf 'layer\.weight': the upper bound has shape \(3, 2\), which does not broadcast to \(2, 3\)",
        ),
        (
            bx.Box(upper={"layer": {"weight": 1.0, "bias": torch.ones(4, 3)}}),
            r"leaf 'layer\.bias': the upper bound has shape \(4, 3\)",
        ),
        (
            bx.Box(lower={"layer": {"weight": torch.zeros(2), "bias": None}}),
            r"leaf 'layer\.weight': the lower bound has shape \(2,\), which does not broadcast to \(2, 3\)",
        ),
    ],
)
@pytest.mark.parametrize(
    "build",
    [
        bx.project,
        bx.tangent,
        lambda box: bx.barrier(box, 1.0),
        lambda box: bx.penalize(box, 1.0),
        lambda box: bx.chain(bx.adam(0.1), bx.add_penalty(box, 1.0)),
    ],
    ids=["project", "tangent", "barrier", "penalize", "chain"],
)
def test_boxes_that_do_not_fit(box, message, build):
    with pytest.raises(ValueError, match=message):
        build(box).init(PARAMS)


def test_a_box_between_two_numbers_of_the_dtype():
    box = bx.Box(1.001, 1.002)
    box.check({"w": torch.zeros(1)})
    with pytest.raises(
        ValueError, match=r"leaf 'w': no number of dtype torch.bfloat16 lies between the bounds 1.001 and 1.002"
    ):
        bx.project(box).init({"w": torch.zeros(1, dtype=torch.bfloat16)})


def test_updates_of_another_structure_or_shape():
    tx = bx.chain(bx.adam(0.1), bx.project(bx.Box(0.0, 1.0)))
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"lacks leaf 'layer\.bias'"):
        tx.update({"layer": {"weight": torch.zeros(2, 3)}}, state, PARAMS)
    with pytest.raises(ValueError, match=r"leaf 'layer\.bias': the update has shape \(1, 3\), the parameter \(3,\)"):
        bx.apply_updates(PARAMS, {"layer": {"weight": torch.zeros(2, 3), "bias": torch.zeros(1, 3)}})
    with pytest.raises(ValueError, match=r"unexpected leaf 'layer\.extra'"):
        bx.apply_updates(
            PARAMS, {"layer": {"weight": torch.zeros(2, 3), "bias": torch.zeros(3), "extra": torch.zeros(1)}}
        )


@pytest.mark.parametrize(
    "build",
    [
        lambda v: bx.barrier(bx.Box(0.0), v),
        lambda v: bx.add_barrier(bx.Box(0.0), v),
        lambda v: bx.penalize(bx.Box(0.0), v),
        lambda v: bx.add_penalty(bx.Box(0.0), v),
        lambda v: bx.add_barrier(bx.Box(0.0), 1.0, v),
        bx.L1,
        bx.L2,
    ],
)
def test_negative_strengths(build):
    for value in (-1.0, math.nan, torch.tensor([1.0, -1.0])):
        with pytest.raises(ValueError, match=r"is not negative, got"):
            build(value)
    with pytest.raises(TypeError, match="is a number, a tensor or a schedule, got str"):
        build("1")


def test_negative_strengths_are_named():
    box = bx.Box(0.0, 1.0)
    for build, name in (
        (lambda: bx.barrier(box, -1.0), "mu"),
        (lambda: bx.add_barrier(box, {"a": 1.0, "w": -1.0}), "mu of leaf 'w'"),
        (lambda: bx.add_barrier(box, 1.0, -1.0), "relax"),
        (lambda: bx.penalize(box, -1.0), "weight"),
        (lambda: bx.penalize(box, 1.0, "huber", -1.0), "delta"),
        (lambda: bx.add_penalty(box, 1.0, "huber", -1.0), "delta"),
        (lambda: bx.penalty(box, torch.zeros(1), "huber", -1.0), "delta"),
        (lambda: bx.frank_wolfe(box, -1.0), "step_size"),
        (lambda: bx.frank_wolfe(box, lipschitz=-1.0), "lipschitz"),
    ):
        with pytest.raises(ValueError, match=f"^{name} is not negative, got -1.0$"):
            build()


def test_kinds_and_steps():
    with pytest.raises(ValueError, match=r"kind is one of 'quadratic', 'exact', 'huber', got 'cubic'"):
        bx.penalize(bx.Box(0.0), 1.0, "cubic")
    with pytest.raises(ValueError, match="decay_steps is positive, got 0"):
        bx.cosine_decay_schedule(1.0, 0)


def test_silent_and_defined_where_values_cannot_be_read():
    """Under vmap: where lower > upper the upper bound wins, and a NaN bound is no bound; never NaN, never an error."""
    low = torch.tensor([0.0, 2.0, math.nan, 0.0])
    high = torch.tensor([1.0, 1.0, 1.0, math.nan])

    def step(low, high, x):
        tx = bx.chain(bx.project(bx.Box(low, high)))
        return bx.apply_updates(x, tx.update(torch.zeros(3), tx.init(x), x)[0])

    x = torch.tensor([-5.0, 0.5, 5.0]).expand(4, 3)
    expected = [[0.0, 0.5, 1.0], [1.0, 1.0, 1.0], [-5.0, 0.5, 1.0], [0.0, 0.5, 5.0]]
    torch.testing.assert_close(vmap(step)(low, high, x), torch.tensor(expected))
    compiled = torch.compile(vmap(step), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(low, high, x), torch.tensor(expected))

    def barrier(low, high, x):
        return bx.Box(low, high).prox_barrier(x, 1e-3)

    assert torch.isfinite(vmap(barrier)(low[:2], high[:2], x[:2])).all()


def test_a_bound_that_is_nan_beside_one_that_is_a_number():
    x, nan = torch.tensor([-5.0, 0.5, 5.0]), torch.tensor([1.0, math.nan])
    below = vmap(lambda high: bx.Box(-1.0, high).project(x))(nan)
    torch.testing.assert_close(below, torch.tensor([[-1.0, 0.5, 1.0], [-1.0, 0.5, 5.0]]))
    above = vmap(lambda low: bx.Box(low, 3.0).project(x))(nan)
    torch.testing.assert_close(above, torch.tensor([[1.0, 1.0, 3.0], [-5.0, 0.5, 3.0]]))


@given(
    lower=st.floats(allow_nan=True, allow_infinity=True),
    upper=st.floats(allow_nan=True, allow_infinity=True),
    as_tensor=st.booleans(),
)
@settings(deadline=None, max_examples=300, derandomize=True)
def test_a_box_is_made_exactly_when_it_makes_sense(lower, upper, as_tensor):
    sensible = lower <= upper and lower != math.inf and upper != -math.inf
    make = (lambda v: torch.tensor(v, dtype=torch.float64)) if as_tensor else float
    if sensible:
        bx.Box({"w": make(lower)}, {"w": make(upper)}).project({"w": torch.zeros(2)})
    else:
        with pytest.raises(ValueError, match=r"bound|lower"):
            bx.Box({"w": make(lower)}, {"w": make(upper)})


@pytest.mark.parametrize(
    "build",
    [
        bx.project,
        bx.tangent,
        bx.record,
        bx.lbfgsb,
        bx.levenberg_marquardt,
        lambda box: bx.projected(bx.adam(0.1), box),
        lambda box: bx.barrier(box, 1.0),
        lambda box: bx.add_barrier(box, 1.0),
        lambda box: bx.penalize(box, 1.0),
        lambda box: bx.add_penalty(box, 1.0),
        lambda box: bx.least_squares(lambda x: x, torch.zeros(2), box),
    ],
)
def test_bounds_without_a_set(build):
    with pytest.raises(
        TypeError, match=r"expected a constraint set, such as bx.Box\(0.0, 1.0\), got tuple \(0.0, 1.0\)"
    ):
        build((0.0, 1.0))


def test_a_set_is_neither_a_solver_nor_a_transformation():
    box = bx.Box(0.0, 1.0)
    with pytest.raises(TypeError, match=r"expected a solver, such as bx.lbfgsb\(.*, got Box Box\("):
        bx.minimize(lambda x: x.sum(), torch.zeros(2), box)
    with pytest.raises(TypeError, match=r"not a GradientTransformation: Box.*; a set becomes one by bx.project"):
        bx.chain(bx.adam(0.1), box)
    with pytest.raises(TypeError, match=r"not a GradientTransformation: <function adam.*; call it: adam\(...\)"):
        bx.chain(bx.adam, bx.project(box))
    with pytest.raises(TypeError, match=r"within is a constraint set, .*, got dict"):
        bx.TorchOptimizer([torch.nn.Parameter(torch.zeros(2))], bx.adam, lr=0.1, within={"*": box})


def test_parameters_that_are_numbers_or_arrays():
    for params, kind in (({"a": 1.0}, "float"), (np.ones(2), "ndarray")):
        with pytest.raises(TypeError, match=f"got {kind}.*; torch.as_tensor makes one"):
            bx.adam(0.1).init(params)


def test_a_torch_optimizer_of_torchs_optimizer():
    weight = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(TypeError, match=r"the function makes a transformation, as bx.adam does; got SGD"):
        bx.TorchOptimizer([weight], lambda lr: torch.optim.SGD([weight], lr), lr=0.1)


def test_bounds_of_some_leaves_or_as_a_list():
    params = {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"it lacks leaf 'b'; where there is no bound, write None"):
        bx.project(bx.Box(lower={"a": 0.0, "c": None})).init(params)
    with pytest.raises(ValueError, match=r"no leaf '0', leaf '1'; for the numbers of one leaf give a tensor"):
        bx.project(bx.Box(lower=[0.0, 0.1])).init(torch.zeros(2))


@pytest.mark.parametrize(
    "build",
    [
        bx.scale,
        bx.scale_by_learning_rate,
        bx.add_decayed_weights,
        lambda mu: bx.barrier(bx.Box(0.0), mu),
        lambda mu: bx.add_barrier(bx.Box(0.0), mu),
        lambda weight: bx.penalize(bx.Box(0.0), weight),
        lambda weight: bx.add_penalty(bx.Box(0.0), weight),
        lambda rate: bx.frank_wolfe(bx.Box(0.0, 1.0), rate),
    ],
)
def test_rates_of_other_leaves_are_refused_by_init(build):
    """They were by the first update."""
    tx = build({"w": 0.1, "bias": 0.2})
    with pytest.raises(ValueError, match=r"not a pytree prefix .* the parameters have no leaf 'bias'"):
        tx.init({"w": torch.zeros(2), "b": torch.zeros(2)})


@pytest.mark.parametrize(
    "members",
    [bx.sets.PSD(), bx.sets.SpectralBall(), bx.sets.NuclearBall(), bx.sets.Stiefel(), bx.sets.TransportPolytope()],
)
def test_matrices_without_entries(members):
    """As vectors without entries; a batch of no matrices has nothing to project."""
    for shape in ((2, 0, 0), (0, 0)):
        with pytest.raises(ValueError, match="needs matrices with entries, got shape"):
            bx.project(members).init({"w": torch.zeros(shape)})
    none = torch.zeros(0, 3, 3)
    assert bx.project(members).update(none, bx.project(members).init(none), none)[0].shape == none.shape


NEEDED = {
    "constraint": bx.sets.Simplex(),
    "transformation": bx.sgd(0.1),
    "base_optimizer": bx.sgd(0.1),
    "fast_optimizer": bx.sgd(0.1),
    "equality": torch.sum,
    "init_step": ("distance", 0.1),
    "seed": 0,
    "rank": 1,
    "max_linesearch_steps": 5,
    "sync_period": 2,
}
SCALARS = [
    pytest.param(make, name, id=f"{make.__name__}-{name}")
    for make in (vars(bx) | vars(bx.contrib)).values()
    if inspect.isfunction(make)
    and str(inspect.signature(make).return_annotation) in ("GradientTransformation", "Schedule")
    for name, parameter in inspect.signature(make).parameters.items()
    if str(parameter.annotation).startswith("Scalar")
]


@pytest.mark.parametrize(("make", "name"), sorted(SCALARS, key=lambda each: each.id))
def test_hyperparameters_that_are_no_numbers(make, name):
    """They are refused when it is made, by their names, rather than by what meets them in the first update."""
    empty = inspect.Parameter.empty
    arguments = {
        each.name: NEEDED.get(each.name, 0.5)
        for each in inspect.signature(make).parameters.values()
        if each.default is empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    if name == "penalty":  # of constraints, one of which there has to be
        arguments["equality"] = torch.sum
    for wrong in ("0.5", {"a": "0.5"}, True):
        with pytest.raises(TypeError, match=rf"^{name}( of leaf 'a')? is a number.*, got (str|dict|bool) "):
            make(**arguments | {name: wrong})


def test_hyperparameters_of_numpy_and_of_trees():
    params = {"a": torch.ones(1), "b": None}
    for rate in (np.float32(0.5), np.float64(0.5), {"a": 0.5, "b": None}, {"a": torch.tensor(0.5), "b": None}):
        tx = bx.adam(rate, b1=np.float32(0.5))
        assert float(tx.update(params, tx.init(params), params)[0]["a"]) == pytest.approx(-0.5)
    with pytest.raises(TypeError, match="learning_rate of leaf 'a' is a number, a tensor or a schedule, got str 'x'"):
        bx.sgd({"a": "x"})
