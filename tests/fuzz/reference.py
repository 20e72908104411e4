"""A program in eager mode, with numbers: what all other modes are compared with, and the laws that one run shows."""

import traceback
from typing import Any, NamedTuple

import torch
import torch.utils._cxx_pytree as pytree

import boxopt as bx
from boxopt.core import tree
from tests.fuzz.agreement import Finding, Refused, clone, finite, kinds, same, versions
from tests.fuzz.programs import Program


class Step(NamedTuple):
    """One step of the reference: eager, with numbers."""

    gradients: Any
    state: Any
    params: Any
    updates: Any
    new_state: Any


def clearly(function, *arguments):
    """The result, or `Refused` if the library refuses with an error of its own."""
    try:
        return function(*arguments)
    except (ValueError, TypeError, NotImplementedError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if (
            "/boxopt/" in last.filename
            or "/tests/" in last.filename
            or isinstance(error, (tree.LeafError, tree.LeafTypeError))
        ):
            raise Refused(str(error)) from error
        raise


def reference(program: Program) -> list[Step]:
    """The steps in eager mode, and the laws that one run shows. What does not fit is refused before the first."""
    params = clearly(program.start)
    if program.lands:
        _feasible(program, params, params, "start")
    tx = clearly(program.build, program.hypers)
    state = clearly(tx.init, params)
    structure, initial = pytree.tree_structure(state), kinds(state)
    steps = []
    for number in range(len(program.gradients)):
        gradients = program.gradient(number, params)
        arguments = (gradients, state, params)
        before, unchanged = pytree.tree_map(clone, arguments), versions(arguments)
        updates, new = tx.update(*arguments)
        if versions(arguments) != unchanged:
            raise Finding("an argument was mutated")
        same(arguments, before, "arguments after the update")
        same(tx.update(*arguments), (updates, new), "a second call")
        if pytree.tree_structure(updates) != pytree.tree_structure(params) or kinds(updates) != kinds(params):
            raise Finding(f"updates are of another kind than parameters: {kinds(updates)}, {kinds(params)}")
        if pytree.tree_structure(new) != structure or kinds(new) != initial:
            raise Finding(
                f"the state changes its kind:\n{structure}\n{initial}\n{pytree.tree_structure(new)}\n{kinds(new)}"
            )
        steps.append(Step(gradients, state, params, updates, new))
        moved = bx.apply_updates(params, updates)
        # From more than 1e16 away, as barriers in a box that is a point lead, an equation may not hold: see guarantees.
        near = "BoxHyperplane" not in program.lands or "barrier" not in program.transformation
        if program.lands and near and finite(gradients) and finite(state):
            _feasible(program, moved, (params, gradients), f"step {number}")
            _feasible(program, *_from_far(program, params, updates), f"step {number} from far outside")
        params, state = moved, new
        if not finite(params):
            break
    return steps


def _from_far(program, params, updates):
    """Where the updates lead from far outside, with ``within=``, and where from."""
    far = pytree.tree_map(lambda x: None if x is None else 40 * x + 10, params)
    return bx.apply_updates(far, updates, within=program.set(program.hypers)), far


def _feasible(program, params, before, place):
    constraint = program.set(program.hypers)
    leaves = [x for x in pytree.tree_leaves(params) if x is not None]
    if not leaves or not finite(params) or not finite(before):
        return
    wide = pytree.tree_map(lambda x: None if x is None else x.double(), params)
    outside = float(constraint.violation(wide))
    eps = max(torch.finfo(x.dtype).eps for x in leaves)
    largest = max(
        [1.0] + [float(x.abs().max()) for x in (*leaves, *pytree.tree_leaves(before)) if x is not None and x.numel()]
    )
    if not outside <= 2 * program.tolerance * eps * largest:
        raise Finding(f"{place} is outside of {program.lands} by {outside:.3e}: {params}")
