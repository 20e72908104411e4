"""Implicit differentiation: the derivative of a bounded solution, whatever found it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, NamedTuple, get_args

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.types import P
from boxopt.meta.closure import convert
from boxopt.meta.linear import LinearSolver, Product, System, in_front, pulled, pushed
from boxopt.sets.base import ConstraintSet
from boxopt.sets.box import Box

Tensors = list[Tensor]


class ImplicitSolution(NamedTuple, Generic[P]):
    """What the function of `implicit_minimizer` returns.

    Attributes:
        params: The solution, with the derivative of the minimizer.
        optimality: ‖P(x − ∇f(x)) − x‖∞, a scalar without derivative. The derivative is that of a minimizer; it is as
            good as this is small.
        complementarity: How far strict complementarity is from failing, a scalar without derivative: over the
            coordinates of a box, the least of the greater of the slack to the nearest bound and the size of ∂f.
            Where it is 0 a bound is touched but not pushed against: the solution has a kink there, and the derivative
            is that of one side, on which the coordinate is free. inf without a set, NaN for sets other than boxes.
    """

    params: P
    optimality: Tensor
    complementarity: Tensor


def implicit_minimizer(
    solver: Callable[..., P],
    objective: Callable[..., Tensor],
    constraint: ConstraintSet | Callable[..., ConstraintSet] | None = None,
    *,
    linear_solver: LinearSolver = "cg",
    step_size: float = 1.0,
    tolerance: float = 1e-10,
    max_steps: int = 100,
    sequential: bool = False,
) -> Callable[..., ImplicitSolution[P]]:
    r"""Give a solver's result the derivative of the minimizer, by the implicit function theorem.

    Where f(x, θ) has its least value in a box, the coordinates F between their bounds have ∂f/∂x = 0, and go on having
    it; the others A stay at their bounds. So

    $$ dx_A = db_A, \qquad dx_F = -H_{FF}^{-1}\, (d_\theta \nabla f_F + H_{FA}\, db_A) $$

    whatever computed x: the solver is not differentiated, and may be of any kind and length. On other sets it is the
    derivative of the fixed point $x = P(x - \eta \nabla f(x, \theta))$, through that of the projection.

    The result runs under ``grad``, ``vjp``, ``jvp`` and ``vmap``, nested to any order: the derivatives are computed by
    operations that have derivatives. They reach everything that the objective or the set depends on: ``args``, and what
    they close over. With respect to the start they are 0. Compile the solver rather than what surrounds the minimizer:
    ``torch.compile`` over ``vmap`` does not know operations with rules of their own.

    Args:
        solver: ``solver(params, *args) -> params``, from the start to the minimizer. Under ``grad`` it sees plain
            tensors, under ``vmap`` batched ones.
        objective: f, ``objective(params, *args) -> scalar``, twice differentiable.
        constraint: The set, or a function ``constraint(*args)`` that makes it; None where there is none.
        linear_solver: How the linear system is solved: ``"cg"``, conjugate gradients, at the cost of a product with
            the Hessian a step (for sets other than boxes on the normal equations); ``"dense"``, with the matrix, for
            few parameters or indefinite ones; ``"neumann"``, the series Σ (I − η H)ᵏ η, as if ``max_steps`` more steps
            of gradient descent were unrolled: biased, and stable far from the solution.
        step_size: η > 0 in the fixed point and the series, below 2 / (the largest curvature).
        tolerance: The relative residual at which conjugate gradients stop.
        max_steps: The most steps of conjugate gradients, or the number of terms of the series.
        sequential: Call the solver once for each member of a batch, rather than under ``vmap``: for solvers outside of
            torch.

    Returns:
        ``minimizer(params, *args) -> ImplicitSolution``.

    Raises:
        ValueError: An option is out of range.

    Example:
        How a bounded minimizer moves with its bound and with its target.

        >>> import torch, boxopt as bx
        >>> def f(x, target, upper): return ((x - target) ** 2).sum() + x[0] * x[1]
        >>> def solver(x, target, upper):
        ...     tx = bx.chain(bx.sgd(0.3), bx.project(bx.Box(0.0, upper)))
        ...     state = tx.init(x)
        ...     for _ in range(100):
        ...         updates, state = tx.update(torch.func.grad(f)(x, target, upper), state, x)
        ...         x = bx.apply_updates(x, updates)
        ...     return x
        >>> minimizer = bx.implicit_minimizer(solver, f, lambda target, upper: bx.Box(0.0, upper))
        >>> args = torch.tensor([1.0, 0.75]), torch.tensor(0.5)
        >>> minimizer(torch.zeros(2), *args).params
        tensor([0.5000, 0.5000])
        >>> torch.func.jacrev(lambda *args: minimizer(torch.zeros(2), *args).params, argnums=1)(*args)
        tensor([ 1.0000, -0.5000])

    Source:
        D. P. Bertsekas, Nonlinear Programming, 2016, section 4.3 (sensitivity); M. Blondel et al., "Efficient and
        modular implicit differentiation", NeurIPS 2022; Q. Bertrand et al., "Implicit differentiation for fast
        hyperparameter selection in non-smooth convex learning", JMLR 2022.
    """
    if linear_solver not in get_args(LinearSolver):
        raise ValueError(f"linear_solver is one of {', '.join(get_args(LinearSolver))}, got {linear_solver!r}")
    for name, number in (("step_size", step_size), ("tolerance", tolerance), ("max_steps", max_steps)):
        if not number > 0:
            raise ValueError(f"{name} is positive, got {number!r}")
    options = _Options(linear_solver, step_size, tolerance, max_steps, sequential)

    def minimizer(params: P, *args: Any) -> ImplicitSolution[P]:
        tree.check_parameters(params)
        leaves, structure = tree.flatten(params)
        constants, problem_with = convert(partial(_Problem, solver, objective, constraint, args, structure, step_size))
        problem = problem_with(constants)()
        boxed = problem.constraint is None or isinstance(problem.constraint, Box)
        rules = _rules(lambda others: problem_with(others)(), boxed, len(constants), len(leaves), options)
        x = list(_Minimizer.apply(rules, *constants, *leaves))
        quality = problem.quality([leaf.detach() for leaf in x])
        return ImplicitSolution(tree.unflatten(structure, x), *(number.detach() for number in quality))

    return minimizer


class _Options(NamedTuple):
    method: LinearSolver
    step_size: float
    tolerance: float
    max_steps: int
    sequential: bool


class _Problem:
    """A bounded problem, as functions of the leaves of x."""

    def __init__(
        self, solver: Any, objective: Any, constraint: Any, args: tuple[Any, ...], structure: Any, rate: float
    ) -> None:
        self.solver, self.objective, self.args, self.structure, self.rate = solver, objective, args, structure, rate
        self.constraint = constraint
        if constraint is not None and not isinstance(constraint, ConstraintSet):
            self.constraint = constraint(*args)

    def solved(self, start: Tensors) -> Tensors:
        return tree.leaves(self.solver(tree.unflatten(self.structure, start), *self.args))

    def gradient(self, x: Tensors) -> Tensors:
        def value(leaves: Tensors) -> Tensor:
            return self.objective(tree.unflatten(self.structure, leaves), *self.args)

        return torch.func.grad(value)(x)

    def curvature(self, x: Tensors, v: Tensors) -> Tensors:
        """The product of the Hessian with v."""
        pullback: Any = torch.func.vjp(self.gradient, x)[1]
        return pullback(v)[0]

    def projected(self, x: Tensors) -> Tensors:
        if self.constraint is None:
            return x
        return tree.leaves(self.constraint.project(tree.unflatten(self.structure, x)))

    def stepped(self, x: Tensors) -> Tensors:
        """A step of projected gradient descent."""
        return self.projected([y - self.rate * slope for y, slope in zip(x, self.gradient(x), strict=True)])

    def walls(self, x: Tensors) -> tuple[Tensors, Tensors]:
        """The bounds of a box."""
        low, high = ([torch.full_like(y, wall) for y in x] for wall in (-torch.inf, torch.inf))
        return self.projected(low), self.projected(high)

    def held(self, x: Tensors) -> tuple[Tensors, Tensors]:
        """Which coordinates are free, and x with the others where their bounds hold them, and moving with these.

        A coordinate is held where a step of projected gradient descent ends at a bound, or between equal ones.
        """
        x_now = [y.detach() for y in x]
        step = [y - self.rate * slope.detach() for y, slope in zip(x_now, self.gradient(x_now), strict=True)]
        fixed = [low.detach() == high.detach() for low, high in zip(*self.walls(x_now), strict=True)]
        step = [torch.where(at, -torch.inf, y) for at, y in zip(fixed, step, strict=True)]
        landed = self.projected(step)
        free = [y.detach() == z for y, z in zip(landed, step, strict=True)]
        return free, _where(free, x, landed)

    def quality(self, x: Tensors) -> tuple[Tensor, Tensor]:
        """How far x is from optimal, and from failing strict complementarity."""
        slopes = self.gradient(x)
        moved = self.projected([y - slope for y, slope in zip(x, slopes, strict=True)])
        optimality = _extreme(torch.amax, [(y - z).abs() for y, z in zip(x, moved, strict=True)], 0.0)
        if self.constraint is not None and not isinstance(self.constraint, Box):
            return optimality, optimality.new_full((), torch.nan)
        margins = []
        for y, slope, low, high in zip(x, slopes, *self.walls(x), strict=True):
            margin = torch.maximum(torch.minimum(y - low, high - y), slope.abs())
            margins.append(torch.where(low == high, torch.inf, margin))
        return optimality, _extreme(torch.amin, margins, torch.inf)


@dataclass(frozen=True, eq=False)
class _Rules:
    """A minimizer and its derivative, as functions of the tensors that the problem depends on.

    Attributes:
        find: ``(constants, start) -> x``.
        shift: ``(constants, x) -> s``, what makes x move: A dx = ds.
        system: A, which depends on the tensors of the problem and on x.
        constants: The number of tensors that the problem depends on.
        sequential: Whether ``find`` takes the members of a batch one by one.
    """

    find: Callable[[Tensors, Tensors], Tensors]
    shift: Callable[[Tensors, Tensors], Tensors]
    system: System
    constants: int
    sequential: bool

    def batched(self, dims: Sequence[int | None], width: int) -> _Rules:
        """The rules for a batch, which these of the tensors have, and all leaves of x."""
        in_dims = ([None if dim is None else 0 for dim in dims], 0)
        vmap: Any = partial(torch.func.vmap, in_dims=in_dims)
        find = partial(_one_by_one, self.find, in_dims[0]) if self.sequential else vmap(self.find)
        return replace(self, find=find, shift=vmap(self.shift), system=self.system.batched([*dims, *(0,) * width]))


def _rules(
    problem: Callable[[Tensors], _Problem], boxed: bool, constants: int, width: int, options: _Options
) -> _Rules:
    """The rules for the leaves of a problem that depends on so many tensors."""

    def find(constants: Tensors, start: Tensors) -> Tensors:
        return problem(constants).solved(start)

    def shift(constants: Tensors, x: Tensors) -> Tensors:
        return _shift_in_box(problem(constants), x) if boxed else problem(constants).stepped(x)

    def of(function: Callable[[_Problem, Tensors, Tensors], Tensors]) -> Product:
        return lambda both, v: function(problem(both[:constants]), both[constants:], v)

    product = of(_product_in_box if boxed else _product_of_fixed_point)
    system = System(
        product,
        product if boxed else of(_adjoint_of_fixed_point),
        constants + width,
        options.method,
        options.step_size if boxed else 1.0,
        options.max_steps,
        options.tolerance,
    )
    return _Rules(find, shift, system, constants, options.sequential)


def _shift_in_box(problem: _Problem, x: Tensors) -> Tensors:
    """What moves the solution in a box: its bounds, and the gradient."""
    free, held = problem.held(x)
    return _where(free, [-slope for slope in problem.gradient(held)], [y / problem.rate for y in held])


def _product_in_box(problem: _Problem, x: Tensors, v: Tensors) -> Tensors:
    """With the Hessian of the free coordinates; 1/η in the place of the others."""
    free, _ = problem.held(x)
    curved = problem.curvature(x, _where(free, v, [torch.zeros_like(y) for y in v]))
    return _where(free, curved, [y / problem.rate for y in v])


def _adjoint_of_fixed_point(problem: _Problem, x: Tensors, y: Tensors) -> Tensors:
    """With I − Jᵀ, where J is the derivative of a step of projected gradient descent."""
    pullback: Any = torch.func.vjp(problem.stepped, x)[1]
    return [cotangent - back for cotangent, back in zip(y, pullback(y)[0], strict=True)]


def _product_of_fixed_point(problem: _Problem, x: Tensors, v: Tensors) -> Tensors:
    """With I − J: the derivative of `_adjoint_of_fixed_point`, which is linear."""
    transposed: Any = torch.func.vjp(partial(_adjoint_of_fixed_point, problem, x), v)[1]
    return transposed(v)[0]


class _Minimizer(torch.autograd.Function):
    """A minimizer under autograd and the transforms of ``torch.func``."""

    @staticmethod
    def forward(rules: _Rules, *leaves: Tensor) -> tuple[Tensor, ...]:
        plain = [leaf.detach() for leaf in leaves]
        with torch.enable_grad():  # the solver may use autograd
            x = rules.find(plain[: rules.constants], plain[rules.constants :])
        return tuple(leaf.detach().clone() for leaf in x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        rules, *leaves = inputs
        ctx.rules = rules
        ctx.save_for_backward(*leaves[: rules.constants], *output)
        ctx.save_for_forward(*leaves[: rules.constants], *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        rules, saved = ctx.rules, list(ctx.saved_tensors)
        constants, x = saved[: rules.constants], saved[rules.constants :]
        forces = rules.system.transposed()(saved, list(cotangents))
        needed = ctx.needs_input_grad[1 : 1 + rules.constants]
        return (None, *pulled(lambda moved: rules.shift(moved, x), constants, forces, needed), *(None for _ in x))

    @staticmethod
    def jvp(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, _: None, *tangents: Tensor | None
    ) -> tuple[Tensor, ...]:
        rules, saved = ctx.rules, list(ctx.saved_tensors)
        constants, x = saved[: rules.constants], saved[rules.constants :]
        shifts = pushed(lambda moved: rules.shift(moved, x), constants, tangents[: rules.constants])
        if shifts is None:
            return tuple(torch.zeros_like(leaf) for leaf in x)
        return tuple(rules.system(saved, list(shifts)))

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[Any, ...], rules: _Rules, *leaves: Tensor
    ) -> tuple[Any, Any]:
        dims, count = in_dims[1:], rules.constants
        constants = [in_front(leaf, dim) for leaf, dim in zip(leaves[:count], dims[:count], strict=True)]
        start = [in_front(leaf, dim, info.batch_size) for leaf, dim in zip(leaves[count:], dims[count:], strict=True)]
        x = _Minimizer.apply(rules.batched(dims[:count], len(start)), *constants, *start)
        return x, (0,) * len(start)


def _one_by_one(find: Any, dims: list[int | None], constants: Tensors, start: Tensors) -> Tensors:
    """The solutions of a batch of problems, one after the other."""
    found = [
        find(
            [x if dim is None else x[number] for x, dim in zip(constants, dims, strict=True)],
            [x[number] for x in start],
        )
        for number in range(len(start[0]))
    ]
    return [torch.stack(column) for column in zip(*found, strict=True)]


def _where(conditions: Tensors, these: Tensors, those: Tensors) -> Tensors:
    return [torch.where(*leaves) for leaves in zip(conditions, these, those, strict=True)]


def _extreme(function: Callable[[Tensor], Tensor], leaves: Tensors, empty: float) -> Tensor:
    found = [function(leaf) for leaf in leaves if leaf.numel()]
    return function(torch.stack(found)) if found else torch.tensor(empty)
