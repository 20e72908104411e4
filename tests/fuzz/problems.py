"""Random problems for the solvers, whose answers SciPy, cvxpy or the conditions of optimality check.

``python -m tests.fuzz.problems --seed 1 --count 1000``. A problem is made again by its seed and number alone.
"""

import argparse
import random
import traceback
import warnings
from collections import Counter

import cvxpy
import numpy as np
import scipy.optimize
import torch

import boxopt as bx
from boxopt.core import tree
from tests.fuzz import convex
from tests.fuzz.agreement import Finding

DTYPE = torch.float64
R = bx.regularizers
INF = float("inf")


class Chance:
    """What is random in one problem."""

    def __init__(self, seed, number):
        self._choice = random.Random(f"{seed}-{number}")
        self._generator = torch.Generator().manual_seed(self._choice.getrandbits(40))

    def of(self, *values):
        return self._choice.choice(values)

    def normal(self, *shape):
        return torch.randn(shape, dtype=DTYPE, generator=self._generator)

    def uniform(self, *shape):
        return torch.rand(shape, dtype=DTYPE, generator=self._generator)


# --- bounds and starts ------------------------------------------------------------------------------------------------


def bounds(chance, n):
    """Of many kinds: none, one side, tight, equal, far away."""
    none = torch.full((n,), INF, dtype=DTYPE)
    low = chance.normal(n)
    match chance.of("none", "not negative", "box", "some", "equal", "tight", "far", "one", "whole numbers"):
        case "not negative":
            return torch.zeros(n, dtype=DTYPE), none
        case "box":
            return -chance.uniform(n), chance.uniform(n)
        case "some":
            some, others = chance.uniform(2, n) < 0.5
            return torch.where(some, -none, -chance.uniform(n)), torch.where(others, none, chance.uniform(n))
        case "equal":
            return low, low + torch.where(chance.uniform(n) < 0.5, 0.0, chance.uniform(n))
        case "tight":
            return low, low + 1e-8
        case "far":
            return low + 1e3, low + 1e3 + 100 * chance.uniform(n)
        case "one":
            return torch.where(torch.arange(n) == 0, 0.3, -none), none
        case "whole numbers":
            low = low.round()
            return low, low + (2 * chance.uniform(n)).round()
    return -none, none


def start(chance, lower, upper):
    """At 0, near the bounds, inside or outside of them, or far away."""
    n = len(lower)
    near = torch.where(lower.isfinite(), lower, torch.where(upper.isfinite(), upper, 0.0))
    apart = {"zero": 0 * near, "lower": near, "beside": near + chance.normal(n), "outside": near - 5 * chance.normal(n)}
    return chance.of(*apart.values(), 1e3 * chance.normal(n))


def matrix(chance, rows, columns):
    """Of full rank or not, of good condition or not, with columns of any size."""
    a = chance.normal(rows, columns)
    kinds = "normal", "normal", "low rank", "twins", "near twins", "scales", "whole numbers", "Hilbert's", "size"
    match chance.of(*kinds):
        case "low rank":
            rank = max(1, columns // 2)
            return chance.normal(rows, rank) @ chance.normal(rank, columns)
        case "twins":
            return torch.cat([a[:, 1:], a[:, -1:]], 1)
        case "near twins":
            return torch.cat([a[:, 1:], a[:, -1:] + 1e-7 * chance.normal(rows, 1)], 1)
        case "scales":
            return a * 10 ** (6 * chance.uniform(columns) - 3)
        case "whole numbers":
            return a.round()
        case "Hilbert's":
            return 1 / (1 + torch.arange(rows)[:, None] + torch.arange(columns)).to(DTYPE)
        case "size":
            return a * chance.of(1e-8, 1e8)
    return a


# --- families of problems ---------------------------------------------------------------------------------------------


def linear(chance):
    """`bvls`: each slope is 0, or holds its coordinate at a bound."""
    rows, columns = chance.of(1, 2, 3, 5, 9), chance.of(1, 2, 3, 5, 8)
    a, b = matrix(chance, rows, columns), chance.normal(rows) * chance.of(1e-3, 1.0, 1e3)
    lower, upper = bounds(chance, columns)
    dtype = chance.of(torch.float64, torch.float32)
    a, b, lower, upper = (x.to(dtype) for x in (a, b, lower, upper))
    x = bx.bvls(a, b, lower, upper)
    expect(bool(((x >= lower) & (x <= upper)).all()), f"outside: {x}")
    a, b, x, lower, upper = (value.double() for value in (a, b, x, lower, upper))
    unit = (b.norm() + (a.abs() @ x.abs()).norm()) * a.norm(dim=0)
    slope = a.mT @ (a @ x - b) / torch.where(unit > 0, unit, 1.0)
    wrong = torch.where(x > lower, slope, 0.0).clamp(min=0) + torch.where(x < upper, -slope, 0.0).clamp(min=0)
    expect(wrong.max() < 1000 * torch.finfo(dtype).eps, f"not stationary by {wrong.max():.1e}: {x}")


def fits(chance):
    """`least_squares`: it ends; SciPy finds nothing better from there; and no neighbour changes a fit."""
    n, m = chance.of(1, 2, 3, 4), chance.of(5, 12, 30)
    residual, convex = _residual(chance, n, m)
    lower, upper = bounds(chance, n)
    point = start(chance, lower, upper)
    loss = chance.of("linear", "linear", "huber", "soft_l1", "cauchy", "arctan")
    fit = bx.least_squares(residual, point, bx.Box(lower, upper), loss=loss, max_steps=1000)
    x = fit.params
    expect(bool(((x >= lower) & (x <= upper)).all()), f"outside: {x}")
    if not convex and fit.status in (bx.Status.LIMIT, bx.Status.NONFINITE, bx.Status.STALLED):
        return
    expect(bool(fit.converged), f"{bx.Status(int(fit.status)).name} at {x}, loss {fit.value}")
    if convex and loss in ("linear", "huber", "soft_l1"):
        room = torch.maximum(upper, torch.nextafter(lower, torch.full_like(lower, INF)))
        better = scipy.optimize.least_squares(
            lambda p: residual(torch.as_tensor(p)).numpy(),
            torch.clamp(x, lower, room).numpy(),
            jac=lambda p: torch.func.jacfwd(residual)(torch.as_tensor(p)).numpy(),
            bounds=(lower.numpy(), room.numpy()),
            loss=loss,
            x_scale="jac",
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-12,
        )
        expect(fit.value <= better.cost * (1 + 1e-5) + 1e-12, f"{fit.value} at {x}, SciPy {better.cost} at {better.x}")
    other = start(chance, lower, upper)
    both = bx.least_squares(
        residual, torch.stack([other, point]), bx.Box(lower[None], upper[None]), loss=loss, max_steps=1000, batch_dims=1
    )
    same = both.status[1] == fit.status and abs(both.value[1] - fit.value) <= 1e-5 * fit.value + 1e-12
    expect(bool(same) or not convex, f"alone {fit.value}, in a batch {both.value[1]}")


def _residual(chance, n, m):
    t, y, a = torch.linspace(0, 3, m, dtype=DTYPE), chance.normal(m), chance.normal(m, n)
    true = chance.uniform(n) + 0.3

    def decays(p):
        pairs = [p[k] * torch.exp(-p[k + 1] * t) for k in range(0, n - 1, 2)]
        return sum(pairs, p[-1] * (n % 2)) * torch.ones_like(t)

    a = {"plain": a, "scales": a * 10.0 ** (2 * torch.arange(n) - n)}[chance.of("plain", "scales")]
    of_decays = decays(true) + 0.05 * y
    return chance.of(
        (lambda p: a @ p - y, True),
        (lambda p: a @ (p - 1.0), True),
        (lambda p: decays(p) - of_decays, False),
        (lambda p: torch.cat([10 * (p[1:] - p[:-1] ** 2), 1 - p]), False),
        (lambda p: (p * p).repeat(2), False),
    )


def losses(chance):
    """`minimize`: what it claims is so; it never ends above its start; and convex losses are solved as by SciPy."""
    n = chance.of(1, 2, 3, 5, 8)
    name, loss = _loss(chance, n)
    lower, upper = bounds(chance, n)
    point = start(chance, lower, upper)
    make = chance.of(bx.lbfgsb, bx.spg, bx.projected_newton, bx.fista, bx.interior_point)
    result = bx.minimize(loss, point, make(bx.Box(lower, upper)), max_steps=2000)
    x, value = result.params, float(result.value)
    expect(bool(((x >= lower) & (x <= upper)).all()), f"outside: {x}")
    expect(abs(float(loss(x)) - value) <= 1e-9 * (1 + abs(value)), f"value {value}, loss there {loss(x)}")
    first = float(loss(torch.clamp(point, lower, upper)))
    above = 1e-12 if make is not bx.interior_point else 1e-4  # which stays inside, where the start may be at a bound
    expect(value <= first + above * abs(first), f"{value} is above the start's {first}")
    other = start(chance, lower, upper)
    box = bx.Box(lower[None], upper[None])
    both = bx.minimize(loss, torch.stack([other, point]), make(box), max_steps=2000, batch_dims=1)
    same = bool(both.converged[1]) and abs(float(both.value[1]) - value) <= 1e-6 * (1 + abs(value))
    one_valley = name != "Rosenbrock's"
    expect(same or not (result.converged and one_valley), f"alone {value}, beside another {both.value[1]}")
    gap = torch.clamp(x - torch.func.grad(loss)(x), lower, upper) - x
    if result.status == bx.Status.GRADIENT:
        expect(gap.abs().max() <= 1.01e-6, f"claims a solution, and misses it by {gap.abs().max()}")
    elif make is bx.lbfgsb and name != "log of a sum":  # which is as straight as a line far away
        other = scipy.optimize.minimize(
            lambda p: float(loss(torch.as_tensor(p))),
            torch.clamp(point, lower, upper).numpy(),
            jac=lambda p: torch.func.grad(loss)(torch.as_tensor(p)).numpy(),
            bounds=list(zip(lower.tolist(), upper.tolist(), strict=True)),
            method="L-BFGS-B",
            options={"maxfun": 4000, "maxiter": 2000, "ftol": 1e-15, "gtol": 1e-6},
        )
        expect(value <= other.fun + 1e-6 * (abs(other.fun) + 1e-3), f"{value}, SciPy {other.fun}")


def _loss(chance, n):
    c, a, b = chance.normal(n), chance.normal(3 * n, n), chance.normal(3 * n)
    ill = chance.normal(n, n) * 10 ** torch.linspace(-3, 1, n, dtype=DTYPE)
    few = chance.normal(max(1, n // 2), n)
    return chance.of(
        ("Rosenbrock's", lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2).sum() + ((1 - x) ** 2).sum()),
        ("squares", lambda x: ((a @ x - b) ** 2).sum() / 2),
        ("squares of a bad condition", lambda x: ((ill @ (x - c)) ** 2).sum() / 2),
        ("squares of low rank", lambda x: ((few @ (x - c)) ** 2).sum() / 2),
        ("fourth powers", lambda x: ((x - c) ** 4).sum()),
        ("log of a sum", lambda x: torch.logsumexp(a @ x + b, 0) + 1e-3 * (x * x).sum()),
        ("logistic", lambda x: torch.nn.functional.softplus(a @ x).mean() - c @ x / 10 + 1e-2 * (x * x).sum()),
        ("absolute values", lambda x: torch.sqrt(1e-6 + (x - c) ** 2).sum()),
    )


def programs(chance):
    """`augmented_lagrangian`: convex quadratic programs, as good as cvxpy's and as feasible."""
    n = chance.of(2, 3, 5)
    p, q, inside = chance.normal(n, n), chance.normal(n), chance.uniform(n)
    lower, upper = torch.zeros(n, dtype=DTYPE), chance.of(1.0, INF) * torch.ones(n, dtype=DTYPE)
    equal = chance.normal(chance.of(0, 1, n - 1), n)
    less = chance.normal(chance.of(1, 2, 4), n)
    room = chance.of(0.1, 1.0) * chance.uniform(len(less))  # or multipliers may be as large as they like
    right, top = equal @ inside, less @ inside + room
    loss = lambda x: ((p @ x) ** 2).sum() / 2 + q @ x + 0.05 * (x * x).sum()  # noqa: E731
    solver = bx.augmented_lagrangian(
        chance.of(bx.spg, bx.lbfgsb, bx.projected_newton)(bx.Box(lower, upper)),
        equality=(lambda x: equal @ x - right) if len(equal) else None,
        inequality=lambda x: less @ x - top,
    )
    point = chance.of(inside, torch.zeros(n, dtype=DTYPE), 5 * chance.normal(n))
    result = bx.minimize(loss, point, solver, max_steps=5000)
    found = result.state.multipliers
    if result.status == bx.Status.LIMIT and torch.cat([found.equality.reshape(-1), found.inequality]).abs().max() > 1e3:
        return  # constraints that nearly depend on each other: see docs/guarantees.md
    expect(bool(result.converged), f"{bx.Status(int(result.status)).name}, optimality {result.optimality:.1e}")
    x = cvxpy.Variable(n)
    within = [x >= 0, less.numpy() @ x <= top.numpy()]
    within += [x <= upper.numpy()] if upper.isfinite().all() else []
    within += [equal.numpy() @ x == right.numpy()] if len(equal) else []
    value = cvxpy.sum_squares(p.numpy() @ x) / 2 + q.numpy() @ x + 0.05 * cvxpy.sum_squares(x)
    best = cvxpy.Problem(cvxpy.Minimize(value), within).solve(solver="CLARABEL")
    expect(abs(float(result.value) - best) <= 1e-4 * (1 + abs(best)), f"{result.value}, cvxpy {best}")


def projections(chance):
    """A set's `project`, in any metric and in both dtypes: in the set, and what it took away is a normal there."""
    name = chance.of(*convex.NAMES)
    example = convex.example(chance, name, bounds, matrix)
    dtype = chance.of(torch.float64, torch.float32)
    x, step = (value.to(dtype) for value in (convex.candidate(chance, example), convex.metric(chance, example)))
    p = example.members.project(x, step).double()
    x, step = x.double(), step.double()
    if name == "PSD":
        x = (x + x.mT) / 2
    exact_to = max(example.exact_to, 1000 * torch.finfo(dtype).eps)
    size, length = p.norm() + x.norm(), (p / step.sqrt()).norm() + (x / step.sqrt()).norm()
    outside, off = example.facts.outside(p), example.facts.off_normal(p, (x - p) / step, step)
    expect(outside <= exact_to * size, f"{name}: outside by {outside / size:.1e} of its size: {p}")
    expect(off <= exact_to * length, f"{name}: off by {off / length:.1e} of its length: {p}")


def operations(chance):
    """What else sets offer, by what it is: least of a linear function, projection onto a cone, a stationary point."""
    name = chance.of(*convex.NAMES)
    example = convex.example(chance, name, bounds, matrix)
    members, one = example.members, torch.ones(example.shape, dtype=DTYPE)
    y, g = convex.candidate(chance, example), chance.normal(*example.shape) * chance.of(1e-6, 1.0, 1e3)
    if name == "PSD":
        y, g = (y + y.mT) / 2, (g + g.mT) / 2
    exact_to = max(example.exact_to, 1e-12)
    offered = [each for each in ("linear_minimizer", "tangent", "prox_barrier") if members.offers(each)]
    operation = chance.of(*offered, "nothing")
    if operation == "linear_minimizer":
        p = members.linear_minimizer(g)
        off = example.facts.off_normal(p, -g, one) if p.isfinite().all() else 0.0
        expect(off <= exact_to * (g.norm() + p.norm()), f"{name}: {p} is no minimizer of {g} by {off:.1e}")
    elif operation == "tangent":
        x = members.project(y)
        along = members.tangent(x, g)
        off = example.facts.off_normal(x, along - g, one)
        expect(off <= 1e-7 * (g.norm() + x.norm()), f"{name}: what is dropped is no normal at {x} by {off:.1e}")
        turn = ((along - g) * along).sum().abs()
        expect(turn <= 1e-7 * g.norm() ** 2, f"{name}: what is dropped has {turn:.1e} of what is left at {x}")
    elif operation == "prox_barrier" and not (name == "Box" and bool((members.lower >= members.upper).any())):
        tau = 10 ** (12 * chance.uniform() - 8)
        p = members.prox_barrier(y, tau)
        inside = members.violation(p) <= (1e-15 * members.total if name == "Simplex" else 0.0)
        expect(bool(inside), f"{name}: outside by {members.violation(p):.1e}: {p}")
        slope = members.barrier_gradient(p, relax=0.0)
        change = torch.func.jacfwd(lambda p: members.barrier_gradient(p, relax=0.0))(p).norm()
        rest = p - y + tau * slope
        rest = rest - rest.mean() if name == "Simplex" else rest
        size = p.norm() + y.norm() + example.facts.size()
        known = max(exact_to, 1e-9) * size * (1 + tau * change)
        expect(
            rest.norm() <= known, f"{name}: not stationary by {rest.norm() / known:.1e} of what is known, at {p}, {tau}"
        )


def constrained(chance):
    """`spg` and `fista` in any convex set: minus the gradient is a normal where they say that they have converged."""
    name = chance.of(*convex.NAMES)
    example = convex.example(chance, name, bounds, matrix)
    count = int(np.prod(example.shape))
    a, b = chance.normal(count + 2, count), chance.normal(count + 2)
    target = chance.of(0.1, 1.0, 30.0) * chance.normal(count)
    convexity = chance.of(0.01, 0.1)
    loss = chance.of(
        lambda x: (a @ x.reshape(-1) - b).square().sum() / 2,
        lambda x: (x.reshape(-1) - target).square().sum() / 2,
        lambda x: torch.nn.functional.softplus(a @ x.reshape(-1)).sum() + convexity * x.square().sum(),
        lambda x: (
            torch.sqrt(1 + (x.reshape(-1) - target).square()).sum() + x.square().sum() / 200
        ),  # curved far away too
    )
    make = chance.of(bx.spg, bx.fista)
    result = bx.minimize(loss, convex.candidate(chance, example), make(example.members), max_steps=3000)
    p, one = result.params, torch.ones(example.shape, dtype=DTYPE)
    outside = example.facts.outside(p)
    expect(outside <= max(1e-10, example.exact_to) * (1 + p.norm()), f"{name}: outside by {outside:.1e}: {p}")
    known = result.optimality <= 10 * (2e-16 * (1 + result.value.abs())).sqrt()  # as far as losses tell
    if not (known and result.status == bx.Status.STALLED):
        status = bx.Status(int(result.status)).name
        expect(bool(result.converged), f"{name}: {status}, optimality {result.optimality:.1e}")
    slope = -torch.func.grad(loss)(p)
    if name == "PSD":
        slope = (slope + slope.mT) / 2
    off = example.facts.off_normal(p, slope, one)
    expect(off <= 1e-4 * (1 + slope.norm()), f"{name}: off by {off:.1e}, of a slope of {slope.norm():.1e}, at {p}")


def regularized(chance):
    """`fista` with a regularizer in a box: as good as cvxpy's, or better."""
    n, strength, other = chance.of(1, 2, 3, 5, 8), chance.of(1e-3, 0.1, 1.0, 30.0), chance.of(0.0, 0.1, 1.0)
    a, b = chance.normal(n + 2, n) * chance.of(1.0, 1.0, 30.0), chance.normal(n + 2)
    lower, upper = bounds(chance, n)
    variation = lambda z: cvxpy.norm1(cvxpy.diff(z)) if n > 1 else 0.0  # noqa: E731
    name, regularizer, model = chance.of(
        ("L1", bx.L1(strength), lambda z: strength * cvxpy.norm1(z)),
        ("L2", bx.L2(strength), lambda z: strength / 2 * cvxpy.sum_squares(z)),
        (
            "ElasticNet",
            bx.ElasticNet(strength, other),
            lambda z: strength * cvxpy.norm1(z) + other / 2 * cvxpy.sum_squares(z),
        ),
        ("GroupLasso", R.GroupLasso(strength), lambda z: strength * cvxpy.norm2(z)),
        (
            "SparseGroupLasso",
            R.SparseGroupLasso(other, strength),
            lambda z: other * cvxpy.norm1(z) + strength * cvxpy.norm2(z),
        ),
        ("LInf", R.LInf(strength), lambda z: strength * cvxpy.norm_inf(z)),
        ("TotalVariation", R.TotalVariation(strength), lambda z: strength * variation(z)),
        ("FusedLasso", R.FusedLasso(other, strength), lambda z: other * cvxpy.norm1(z) + strength * variation(z)),
    )
    loss = lambda x: (a @ x - b).square().sum() / 2  # noqa: E731
    result = bx.minimize(loss, start(chance, lower, upper), bx.fista(bx.Box(lower, upper), regularizer), max_steps=5000)
    x, value = result.params, float(result.value)
    expect(bool(((x >= lower) & (x <= upper)).all()), f"outside: {x}")
    expect(bool(result.converged), f"{name}: {bx.Status(int(result.status)).name}, optimality {result.optimality:.1e}")
    z = cvxpy.Variable(n)
    low, high = lower.isfinite().numpy(), upper.isfinite().numpy()
    within = [z[low] >= lower.numpy()[low]] if low.any() else []
    within += [z[high] <= upper.numpy()[high]] if high.any() else []
    objective = cvxpy.sum_squares(a.numpy() @ z - b.numpy()) / 2 + model(z)
    cvxpy.Problem(cvxpy.Minimize(objective), within).solve(solver="CLARABEL")
    if z.value is None:
        return
    best = torch.clamp(torch.as_tensor(z.value), lower, upper)
    best = float(loss(best) + regularizer(best))
    expect(value <= best + 1e-6 * (1 + abs(best)), f"{name}: {value} at {x}, cvxpy {best}")


def sensitivities(chance):
    """Derivatives of projections, `bvls` and minimizers, forwards and backwards, are quotients of differences."""
    function, values, name = chance.of(_projection, _projection, _linear_fit, _minimizer, _minimizer)(chance)
    directions = [chance.normal(*value.shape) * (value.abs() + 0.1) for value in values]
    directions = [torch.where(value.isfinite(), way, 0.0) for value, way in zip(values, directions, strict=True)]

    def along(t):
        moved = [torch.where(v.isfinite(), v + t * w, v) for v, w in zip(values, directions, strict=True)]
        return function(*moved)

    here, quotients = along(0.0), []
    for h in (1e-5, 2e-5):
        quotients += [(along(h) - here) / h, (here - along(-h)) / h]
    middle = (quotients[0] + quotients[1]) / 2
    spread = max(float((quotient - middle).abs().max()) for quotient in quotients)
    unit = float(middle.abs().max()) + 1e-3 * float(here.abs().max()) + 1e-9
    if not spread <= 1e-3 * unit:
        return  # a kink is near
    forwards = torch.func.jvp(function, tuple(values), tuple(directions))[1]
    off = float((forwards - middle).abs().max())
    expect(off <= 3e-3 * unit, f"{name}: forwards off by {off / unit:.1e}: {forwards}, differences {middle}")
    weight = chance.normal(*here.shape)
    slopes = torch.func.vjp(function, *values)[1](weight)
    backwards = float(sum((slope * way).sum() for slope, way in zip(slopes, directions, strict=True)))
    forwards = float((weight * forwards).sum())
    expect(abs(backwards - forwards) <= 1e-6 * (abs(forwards) + unit), f"{name}: {backwards} backwards, {forwards}")


def _projection(chance):
    name = chance.of(*convex.NAMES)
    example = convex.example(chance, name, bounds, matrix)
    numbers, structure = tree.flatten(example.members)
    if name in ("TransportPolytope", "Box", "BoxHyperplane"):  # whose totals, or equal bounds, do not move alone
        return (
            lambda x, step: example.members.project(x, step.exp()),
            [convex.candidate(chance, example), convex.metric(chance, example).log()],
            name,
        )
    return (
        lambda x, step, *numbers: tree.unflatten(structure, list(numbers)).project(x, step.exp()),
        [convex.candidate(chance, example), convex.metric(chance, example).log(), *numbers],
        name,
    )


def _linear_fit(chance):
    """The fitted values, which are unique whatever the rank; both bounds move together."""
    rows, columns = chance.of(1, 2, 3, 5, 9), chance.of(1, 2, 3, 5, 8)
    lower, upper = bounds(chance, columns)
    a = matrix(chance, rows, columns)
    size = a.norm(dim=0).clamp(min=1e-300)
    if not torch.linalg.cond(a / size) < 1e5:  # a derivative loses twice as many digits as the solution
        a = chance.normal(rows, columns)
    values = [a, chance.normal(rows), torch.zeros(columns, dtype=DTYPE)]
    return lambda a, b, shift: a @ bx.bvls(a, b, lower + shift, upper + shift), values, "bvls"


def _minimizer(chance):
    """Of a convex loss with parameters of its own, in a box or in another set."""
    name = chance.of("Box", "Box", "Box", *convex.NAMES)
    example = convex.example(chance, name, bounds, matrix)
    count = int(np.prod(example.shape))
    a = chance.normal(count, count)
    hessian = a @ a.mT
    hessian = hessian / torch.linalg.matrix_norm(hessian, 2) + 0.2 * torch.eye(count, dtype=DTYPE)
    start = convex.candidate(chance, example)

    def loss(x, target, weight):
        away = x.reshape(-1) - target
        return away @ hessian @ away / 2 + weight * torch.sqrt(1 + away.square()).sum()

    def solver(x, *parameters):
        make = bx.lbfgsb if name == "Box" else bx.spg
        return bx.minimize(loss, x, make(example.members), args=parameters, tol=1e-11, max_steps=2000).params

    minimizer = bx.implicit_minimizer(
        solver, loss, example.members, linear_solver=chance.of("cg", "dense"), step_size=0.5
    )
    parameters = [chance.normal(count) * chance.of(0.1, 1.0, 10.0), 0.1 * chance.uniform()]
    return (lambda *parameters: minimizer(start, *parameters).params), parameters, f"minimizer in {name}"


FAMILIES = {
    "linear": (linear, 4),
    "fits": (fits, 2),
    "losses": (losses, 2),
    "programs": (programs, 1),
    "projections": (projections, 4),
    "operations": (operations, 2),
    "constrained": (constrained, 2),
    "regularized": (regularized, 1),
    "sensitivities": (sensitivities, 2),
}


def expect(condition, message):
    if not condition:
        raise Finding(message)


def attack(seed, number, names=tuple(FAMILIES)):
    """Run one problem; its family, and what was found or None."""
    family = random.Random(f"family-{seed}-{number}").choices(names, [FAMILIES[name][1] for name in names])[0]
    try:
        with np.errstate(all="ignore"):
            FAMILIES[family][0](Chance(seed, number))
    except Exception as error:
        return family, error
    return family, None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, help="one that was printed; problems are then the same")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--only", nargs="*", default=tuple(FAMILIES), choices=list(FAMILIES))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seed = random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed
    counts, findings = Counter(), 0
    for number in range(arguments.count):
        family, error = attack(seed, number, tuple(arguments.only))
        counts[family] += 1
        if error is not None:
            findings += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = "" if isinstance(error, Finding) else f" at {last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
            print(f"{family} {number}: {type(error).__name__}{place} {str(error)[:300]}", flush=True)
    print(f"seed {seed}: {dict(counts)}, {findings} findings")
    raise SystemExit(1 if findings else 0)


if __name__ == "__main__":
    main()
