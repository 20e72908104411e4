"""Random programs, by hypothesis, which makes those that fail small."""

from typing import NamedTuple

from hypothesis import strategies as st

from boxopt.core.combine import _kinds
from boxopt.wrap.freeze_active import _by_itself
from tests.fuzz.programs import BY_NAME, SCHEDULES, Program
from tests.registry import Hyper

RATES = [0.1, 0.0, 1e-8, 1e-3, 0.5, 1.0, 10.0]
STRENGTHS = [0.01, 1e-12, 1e-4, 0.3, 2.0, 1e-300, 1e30, 0.0]
WEIGHTS = [0.3, 0.0, 0.05, 0.5, 0.9, 0.999]
BOUNDS = [
    (-1.0, 0.75), (0.0, 1.0), (0.0, 0.0), (-1e-3, 1e-3), (1e-6, 1.0), (-100.0, 100.0), (1.0, 1.0078125),
    (0.25, 0.25), (-1e30, 1e30), (1e-40, 1.0), (-0.0, 0.5), (-5.0, -0.1),
]  # fmt: skip
RADII = ["1.0", "0.5", "2.0", "1e-3", "0.0", "1e3", "h[0].weight", "h[0].upper", "torch.tensor(0.7)"]
SHAPES = [(), (1,), (3,), (2, 3), (0,), (4, 1), (3, 3), (2, 2, 3), (0, 3), (1, 40), (40, 1), (1, 1), (2, 0, 3), (5, 4)]
LAYOUTS = ["plain", "plain", "transposed", "strided", "offset", "expanded"]
TYPES = ["f64", "f32", "f32", "bf16", "f16"]
MASKS = ["even_mask", "'*a*'", "'*'", "'*z'", "True", "all_of"]

_kind_of = {name: _kinds(e.build(Hyper())) for name, e in BY_NAME.items()}
GRADIENT = sorted(name for name, kinds in _kind_of.items() if kinds <= {"gradient"})
STEP = sorted(name for name, kinds in _kind_of.items() if "step" in kinds and "last" not in kinds)
LAST = sorted(name for name, kinds in _kind_of.items() if "last" in kinds)
BY_ITSELF = [name for name in GRADIENT if _by_itself(BY_NAME[name].build(Hyper()))]  # what freeze_active takes
INJECTED = [
    "bx.inject_hyperparams(bx.adam)({lr}, b1={h}.weight)",
    "bx.inject_hyperparams(bx.sgd)({lr})",
    "bx.inject_hyperparams(bx.adamw)({lr}, weight_decay={h}.weight)",
    "bx.inject_hyperparams(bx.rmsprop)(learning_rate={lr})",
    "bx.inject_hyperparams(bx.lion)({lr}, b2={h}.weight)",
]


class Made(NamedTuple):
    """An expression for a transformation, the set that it ends in, and that set's tolerance."""

    text: str
    lands: str = ""
    tolerance: float = 0.0


class Shape(NamedTuple):
    path: str
    shape: tuple


def pick(draw, items):
    return items[draw(st.integers(0, len(items) - 1))]


@st.composite
def trees(draw):
    """An expression for parameters, and the paths and shapes of their leaves."""
    kind = pick(draw, ["dict", "tensor", "nested", "list", "layer", "none", "tied", "empty", "dict", "many"])
    count = {"tensor": 1, "tied": 1, "empty": 0}.get(kind) or (0 if kind == "empty" else draw(st.integers(1, 3)))
    one_dtype = pick(draw, TYPES) if draw(st.booleans()) else None
    leaves, shapes = [], []
    for seed in range(count if kind != "many" else draw(st.integers(8, 12))):
        shape, layout = pick(draw, SHAPES), pick(draw, LAYOUTS)
        dtype, scale = one_dtype or pick(draw, TYPES), pick(draw, [0.5, 0.0, 1e-3, 30.0])
        extra = f", {layout!r}" if layout != "plain" else ""
        leaves.append(f"leaf({shape}, {dtype!r}, {seed}, {scale}{extra})")
        shapes.append(shape)
    names = "abc"
    if kind == "tensor":
        return leaves[0], [Shape("", shapes[0])]
    if kind == "empty":
        return pick(draw, ["{}", "[]", "{'a': []}", "{'a': None}"]), []
    if kind == "tied":
        return f"(lambda x: {{'a': x, 'b': x}})({leaves[0]})", [Shape("a", shapes[0]), Shape("b", shapes[0])]
    if kind in ("list", "many"):
        return f"[{', '.join(leaves)}]", [Shape(str(i), s) for i, s in enumerate(shapes)]
    if kind == "layer":
        rest = "None, " * (5 - count)
        fields = Hyper._fields
        return f"Layer({', '.join(leaves)}, {rest})", [Shape(fields[i], s) for i, s in enumerate(shapes)]
    if kind == "nested":
        inner = ", ".join(f"{n!r}: ({x},)" for n, x in zip(names, leaves, strict=False))
        return f"{{'b': [{{{inner}}}], 'a': ()}}", [Shape(f"b.0.{n}.0", s) for n, s in zip(names, shapes, strict=False)]
    items = ", ".join(f"{n!r}: {x}" for n, x in zip(reversed(names[:count]), leaves, strict=True))
    if kind == "none":
        items += ", 'z': None"
    return f"{{{items}}}", [Shape(n, s) for n, s in zip(reversed(names[:count]), shapes, strict=True)]


EXACT = ("bx.Box", "S.NonNegative", "S.LInfBall", "S.L2Ball", "S.L1Ball", "S.Halfspace", "S.Monotone", "S.Sparse")


@st.composite
def boxes(draw):
    kind = draw(st.integers(0, 7))
    if kind == 0:
        return "bx.Box(h[0].lower, h[0].upper)"
    if kind == 1:
        return pick(draw, ["bx.Box(h[0].lower, None)", "bx.Box(None, h[0].upper)", "bx.Box()", "S.NonNegative()"])
    if kind == 2:
        return "bx.Box(number(h[0].lower), number(h[0].upper))" if draw(st.booleans()) else "bx.Box(-float('inf'), 0.5)"
    lower, upper = pick(draw, BOUNDS)
    return f"bx.Box({lower!r}, {upper!r})"


def _for_shape(draw, shape, alone=True):
    """A set for a leaf of this shape, and its tolerance."""
    radius = pick(draw, RADII)
    if len(shape) == 0 or 0 in shape:
        return draw(boxes()), 0.0
    dim = pick(draw, ["-1", "None", "0"])
    n = {"-1": shape[-1], "0": shape[0], "None": 1}[dim]
    if dim == "None":
        for s in shape:
            n *= s
    tail = "" if dim == "-1" else f", dim={dim}"
    kind = draw(st.integers(0, 19))
    if kind == 0 or (kind in (11, 17) and not alone):
        return draw(boxes()), 0.0
    if kind <= 4:
        name = ["L2Ball", "L1Ball", "LInfBall", "L2Ball"][kind - 1]
        return f"S.{name}({radius}{tail})", 0.0
    if kind == 5:
        return f"S.Simplex({pick(draw, ['1.0', '0.5', '1e3', 'h[0].weight', '0.0'])}{tail})", 64.0
    if kind == 6:
        return f"S.L2Sphere({pick(draw, ['1.0', '0.5', '1e3'])}{tail})", 64.0
    if kind == 7:
        return f"S.Halfspace({pick(draw, ['1.0', '-2.0'])}, {pick(draw, ['0.5', '0.0', '-3.0'])}{tail})", 0.0
    if kind == 8:
        return f"S.Hyperplane({pick(draw, ['1.0', '-2.0', '1e-3'])}, {pick(draw, ['0.5', '0.0'])}{tail})", 1e3
    if kind == 9:
        return f"S.Monotone({pick(draw, ['', 'True, '])}dim={dim})", 0.0
    if kind == 10:
        return f"S.Sparse({draw(st.integers(1, n))}{tail})", 0.0
    if kind == 11:
        return f"S.BoxHyperplane(-0.5, 0.75, 1.0, {0.25 * n}{tail})", 64.0
    if kind == 12 and n >= 2:
        return f"S.SecondOrderCone(dim={dim})", 0.0
    if kind == 13 and n <= 12:
        return f"S.Affine(leaf(({draw(st.integers(1, n))}, {n}), 'f64', 5), 0.25{tail})", 1e5
    if kind == 14 and n <= 12:
        return f"S.Polyhedron(leaf((4, {n}), 'f64', 5), 0.5{tail})", 0.0
    if len(shape) >= 2 and kind == 15:
        if shape[-1] == shape[-2]:
            return "S.PSD()", 64.0
        return f"S.SpectralBall({radius})", 0.0
    if len(shape) >= 2 and kind == 16:
        return f"S.NuclearBall({radius})", 0.0
    if len(shape) >= 2 and kind == 17:
        return f"S.TransportPolytope({1.0 / shape[-2]!r}, {1.0 / shape[-1]!r})", 64.0
    if kind == 19:
        tensor = f"constant({shape}, 'f64', 7, 0.1)"
        return f"bx.Box({tensor} - 0.5, {tensor} + 0.25)", 0.0
    if kind == 18:
        return f"S.Intersection(S.L2Ball(1.0{tail}), bx.Box(-0.4, 0.5))", 1e6
    return f"S.L2Ball({radius}{tail})", 0.0


@st.composite
def sets(draw, leaves):
    """An expression for a set that fits the leaves, mostly, and its tolerance."""
    if not leaves or draw(st.integers(0, 2)) == 0:
        if draw(st.booleans()):
            return draw(boxes()), 0.0
        lower = _by_leaf(draw, leaves, ["-1.0", "None", "-0.5", "h[0].lower"])
        return f"bx.Box({lower}, {_by_leaf(draw, leaves, ['0.5', 'None', '2.0', '1e-3'])})", 0.0
    if draw(st.integers(0, 3)) == 0:
        return _for_shape(
            draw, pick(draw, leaves).shape, len(leaves) == 1
        )  # for all leaves: refused where it does not fit
    found = {}
    for leaf in leaves:
        if leaf.path and draw(st.integers(0, 3)):
            found[leaf.path] = _for_shape(draw, leaf.shape)
    if not found:
        return _for_shape(draw, leaves[0].shape, len(leaves) == 1)
    if draw(st.integers(0, 4)) == 0:  # for the leaves that no other pattern has taken
        found["*"] = draw(boxes()), 0.0
    inner = ", ".join(f"{path!r}: {text}" for path, (text, _) in found.items())
    return f"S.ByPath({{{inner}}})", max(tolerance for _, tolerance in found.values())


def _by_leaf(draw, leaves, values):
    """A dict with one of the values for each leaf, where the parameters are one; else one value."""
    if leaves and all(leaf.path in ("a", "b", "c") for leaf in leaves):
        return f"{{{', '.join(f'{leaf.path!r}: {pick(draw, values)}' for leaf in leaves)}}}"
    return pick(draw, values)


def _mask(draw, leaves):
    return pick(draw, MASKS) if draw(st.integers(0, 3)) else _by_leaf(draw, leaves, ["True", "False"])


# They take gradients of other shapes, with an entry for each example.
UNPACKED = [name for name, e in BY_NAME.items() if "packed" in e.exempt]


def _packed(text):
    return text if any(f"entry({name!r}" in text for name in UNPACKED) else f"bx.packed({text})"


def _rate(draw):
    if draw(st.integers(0, 3)) == 0:
        return f"schedule({pick(draw, sorted(SCHEDULES))!r}, h[0])"
    return pick(draw, ["h[0].lr", "0.1", "h[1].lr"])


def _gradient(draw, leaves, depth):
    """What may redirect the updates, and ends in no set."""
    h = pick(draw, ["h[0]", "h[1]"])
    kind = draw(st.integers(0, 15)) if depth > 0 else 0
    inner = lambda: _gradient(draw, leaves, depth - 1)  # noqa: E731
    if kind <= 3:
        return f"entry({pick(draw, GRADIENT)!r}, {h})"
    if kind == 4:
        return pick(draw, INJECTED).format(h=h, lr=_rate(draw))
    if kind == 5:
        return f"bx.masked({inner()}, {_mask(draw, leaves)})"
    if kind == 6:
        return f"bx.multi_steps({inner()}, {pick(draw, ['2', '1', 'every_two_then_one', '2, use_grad_mean=False'])})"
    if kind == 7:
        return pick(draw, ["bx.skip_nonfinite({})", "bx.apply_if_finite({}, 1)"]).format(inner())
    if kind == 8:
        wrap = pick(draw, ["bx.conditionally_transform", "bx.conditionally_mask"])
        return f"{wrap}({inner()}, {pick(draw, ['odd_steps', 'third_steps'])})"
    if kind == 9:
        labels = pick(draw, ["bias_labels", _by_leaf(draw, leaves, ["'even'", "'odd'"])])
        return f"bx.partition({{'even': {inner()}, 'odd': {inner()}}}, {labels})"
    if kind == 10:
        constraint = draw(sets(leaves))[0]
        adds = [
            "bx.tangent({})",
            "bx.add_penalty({}, 0.3)",
            "bx.add_barrier({}, 0.1, 0.1)",
            "bx.add_penalty({}, h[0].weight, 'exact')",
        ]
        return pick(draw, adds).format(constraint)
    if kind == 11:
        return _packed(inner())
    if kind == 12:
        wraps = [
            "C.mechanize({})",
            "C.schedule_free({}, 0.1)",
            "bx.multi_steps({}, 2, should_skip_update_fn=few_and_finite)",
            "bx.named_chain(('one', {}), ('two', bx.scale(-0.5)))",
            "bx.on_leaves({})",
        ]
        return pick(draw, wraps).format(inner())
    if kind == 13:
        rates = _by_leaf(draw, leaves, ["0.1", "h[0].lr", "1e-3", "2.0"])
        return pick(draw, ["bx.scale_by_learning_rate({})", "bx.scale({})", "bx.add_decayed_weights({})"]).format(rates)
    return f"bx.chain({', '.join(inner() for _ in range(draw(st.integers(1, 3))))})"


def _step(draw, leaves, depth):
    """What ends in a step, mostly into a set."""
    h = pick(draw, ["h[0]", "h[1]"])
    kind = draw(st.integers(0, 15)) if depth > 0 else draw(st.integers(0, 2))
    inner = lambda: _step(draw, leaves, depth - 1)  # noqa: E731
    before = lambda: _gradient(draw, leaves, depth - 1)  # noqa: E731
    if kind == 0:
        name = pick(draw, STEP)
        kept = BY_NAME[name].lands in ("closed", "strictly")
        return Made(f"entry({name!r}, {h})", f"bx.Box({h}.lower, {h}.upper)" if kept else "")
    if kind == 1:
        constraint, tolerance = draw(sets(leaves))
        return Made(f"bx.project({constraint})", constraint, tolerance)
    if kind == 2:
        constraint, tolerance = draw(sets(leaves))
        mu = f"schedule({pick(draw, sorted(SCHEDULES))!r}, {h})" if draw(st.integers(0, 3)) == 0 else f"{h}.mu"
        kept = Made(f"bx.barrier({constraint}, {mu})", constraint, tolerance)
        others = [
            kept,
            Made(f"bx.penalize({constraint}, {h}.weight)"),
            Made(f"bx.penalize({constraint}, 0.5, 'huber')"),
            Made(f"bx.frank_wolfe({constraint})"),
            Made("bx.prox(R.L1(0.1))"),
            Made(f"bx.prox(R.Sum(R.GroupLasso({h}.weight), R.TotalVariation(0.1), sweeps=2))"),
            Made(f"bx.project({constraint}, straight_through=True)"),
            Made(f"bx.prox(bx.ElasticNet(0.0, {h}.weight))"),
        ]
        return pick(draw, others)
    if kind <= 6:
        last = inner()
        return last._replace(text=f"bx.chain({before()}, {last.text})")
    if kind == 7:
        first, last = inner(), inner()
        return last._replace(text=f"bx.chain({first.text}, {last.text})")
    if kind == 8:
        made, k = inner(), pick(draw, ["2", "1", "3"])
        return made._replace(text=f"bx.multi_steps({made.text}, {k})")
    if kind == 9:
        made = inner()
        wrap = pick(
            draw, ["bx.skip_nonfinite({})", "bx.apply_if_finite({}, 2)", "bx.conditionally_mask({}, odd_steps)"]
        )
        return made._replace(text=wrap.format(made.text))
    if kind == 10:
        made = inner()
        simple = made.lands.startswith(("bx.Box", "S.NonNegative"))
        text = (
            f"bx.lookahead({made.text}, {pick(draw, ['2', '1'])}, {pick(draw, ['0.5', '1.0', '0.0', f'{h}.weight'])})"
        )
        return Made(text, made.lands if simple else "")
    if kind == 11:
        return Made(f"bx.masked({inner().text}, {_mask(draw, leaves)})")
    if kind == 12:
        first, second = inner(), inner()
        return Made(f"bx.partition({{'even': {first.text}, 'odd': {second.text}}}, bias_labels)")
    if kind == 13:
        constraint, tolerance = draw(sets(leaves))
        extra = pick(draw, ["", ", deterministic=False"])
        return Made(f"bx.projected({before()}, {constraint}{extra})", constraint, tolerance)
    if kind == 14:
        made = inner()
        return made._replace(text=_packed(made.text))
    box = draw(boxes())
    inside = ", ".join(f"entry({pick(draw, BY_ITSELF)!r}, {h})" for _ in range(draw(st.integers(1, 2))))
    return Made(f"bx.chain(bx.freeze_active(bx.chain({inside}), {box}), bx.project({box}))", box)


def _last(draw, leaves, depth):
    """What counts on its updates being applied as they are."""
    kind = draw(st.integers(0, 3))
    made = _step(draw, leaves, depth - 1)
    if kind == 0:
        return made._replace(text=f"bx.chain({made.text}, bx.ema_params({pick(draw, ['0.9', 'None', '0.5, False'])}))")
    simple = made.lands.startswith(("bx.Box", "S.NonNegative"))
    if kind == 1:
        return Made(f"bx.master_weights({made.text}, {made.lands if simple else None})", made.lands if simple else "")
    if kind == 2:
        text = f"bx.stochastic_rounding({made.text}, {made.lands if simple else None}, seed=3)"
        return Made(text, made.lands if simple else "")
    return Made(f"entry({pick(draw, LAST)!r}, h[0])", "bx.Box(h[0].lower, h[0].upper)")


@st.composite
def hypers(draw):
    lower, upper = pick(draw, BOUNDS)
    return Hyper(pick(draw, RATES), pick(draw, STRENGTHS), pick(draw, WEIGHTS), lower, upper)


@st.composite
def programs(draw, depth=5):
    params, leaves = draw(trees())
    kind = draw(st.integers(0, 9))
    deep = draw(st.integers(0, depth))
    if kind <= 2:
        made = Made(_gradient(draw, leaves, deep))
    elif kind <= 8:
        made = _step(draw, leaves, deep)
    else:
        made = _last(draw, leaves, deep)
    count = draw(st.integers(1, 4))
    kinds = ["slope", "noise", "zero", "same", "sparse", "slope", "turned", "nan", "inf", "storm"]
    scales = [1.0, 1.0, 1e-3, 30.0, 1e-8]
    if "Intersection" not in made.text:  # from far away it is near to its point only: see there
        scales.append(1e6)
    if "Transport" in made.text:  # what is not finite is taken to some point of the polytope, another where tracked
        kinds = [kind for kind in kinds if kind not in ("nan", "inf", "storm")]
        params = params.replace("'f16'", "'bf16'")  # beyond whose numbers an update soon is
    gradients = tuple((pick(draw, kinds), pick(draw, scales)) for _ in range(count))
    return Program(made.text, params, (draw(hypers()), draw(hypers())), gradients, made.lands, made.tolerance)
