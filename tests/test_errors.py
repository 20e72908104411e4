"""The table of errors, and messages that no other test looks for."""

import importlib.util
from pathlib import Path

import pytest
import torch

import boxopt as bx

spec = importlib.util.spec_from_file_location("errors_table", Path(__file__).parent.parent / "docs" / "errors.py")
assert spec is not None
assert spec.loader is not None
errors = importlib.util.module_from_spec(spec)
spec.loader.exec_module(errors)

X = torch.zeros(2, 3)
ADAM, BOX = bx.adam(0.1), bx.Box(0.0, 1.0)
RAISED = {
    "frank_wolfe needs a bounded set": lambda: bx.frank_wolfe(bx.sets.NonNegative()).init(torch.zeros(2)),
    "mirror has steps in a Simplex, got Box": lambda: bx.mirror(bx.Box(0.0, 1.0)),
    'the variant is "sps" or "sps': lambda: bx.polyak_sgd(1.0, variant="other"),
    'the mode is "hard", "smooth" or "refined"': lambda: bx.scale_by_lion(0.1, mode="other"),
    "an affine set has a matrix": lambda: bx.sets.Affine(torch.zeros(3, 2), torch.zeros(3)),
    "a polyhedron has a matrix": lambda: bx.sets.Polyhedron(X, torch.zeros(3)),
    "the matrix or the offset of a polyhedron is NaN": lambda: bx.sets.Polyhedron(X / 0, torch.zeros(2)),
    "is NaN": lambda: bx.sets.Hyperplane(torch.tensor([torch.nan]), 0.0),
    "has no projection": lambda: bx.sets.ConstraintSet().project(X),
    "has no exact update": lambda: bx.sets.ConstraintSet().land(X, X),
    "has no measure of violation": lambda: bx.sets.ConstraintSet().violation(X),
    "has no barrier": lambda: bx.sets.ConstraintSet().barrier(X),
    "is of square matrices, got a parameter of shape": lambda: bx.sets.PSD().check(X),
    "names a dimension of a parameter of shape (2, 3) twice": lambda: bx.sets.L2Ball(dim=(0, -2)).project(X),
    "and the right-hand side (..., m), got (2, 3)": lambda: bx.nnls(X, torch.zeros(3)),
    "both are float32 or float64": lambda: bx.nnls(X.half(), torch.zeros(2).half()),
    "a lower bound is above the upper one": lambda: bx.bvls(X, torch.zeros(2), 1.0, 0.0),
    "b1 of schedule_free is positive, got 0.0": lambda: bx.contrib.schedule_free_sgd(0.1, b1=0.0),
    "spg compares with the losses of at least one point": lambda: bx.spg(BOX, memory=0),
    "lbfgsb keeps at least one pair": lambda: bx.lbfgsb(BOX, memory=0),
    "projected_newton takes at least one conjugate-gradient step": lambda: bx.projected_newton(BOX, cg_steps=0),
    "interior_point takes at least one conjugate-gradient step": lambda: bx.interior_point(BOX, cg_steps=0),
    "interior_point is for a box, got Simplex": lambda: bx.interior_point(bx.sets.Simplex()),
    "fista takes a set, then a regularizer; got float for the set": lambda: bx.fista(0.1),
    "expected a set that offers linear_minimizer, got": lambda: bx.frank_wolfe(bx.sets.Hyperplane(torch.ones(2), 1.0)),
    "prox takes a regularizer, got Box; a set is for `project`": lambda: bx.prox(BOX),
    "sync_period is at least 1": lambda: bx.lookahead(ADAM, 0, 0.5),
    "k is at least 1": lambda: bx.apply_every(0),
    "block_size is at least 1": lambda: bx.contrib.shampoo(0.1, block_size=0).init(X),
    "needs an axis, got shape (1, 1, 1, 1, 2, 2)": lambda: bx.adaptive_grad_clip(0.1).update(
        torch.ones(1, 1, 1, 1, 2, 2), bx.EmptyState(), torch.ones(1, 1, 1, 1, 2, 2)
    ),
    "the coefficients are one of": lambda: bx.contrib.muon(0.1, ns_coeffs="other").init(X),
    "the coefficients have the shape": lambda: bx.contrib.muon(0.1, ns_coeffs=(1.0, 2.0)).init(X),
    "one of rtol and atol is positive": lambda: bx.contrib.reduce_on_plateau(rtol=0.0, atol=0.0),
    "penalty is made coordinate by coordinate": lambda: bx.penalize(bx.sets.Simplex(), 0.1, "exact"),
    "give one of these paths, or a filter": lambda: bx.tree_get((ADAM.init(X), ADAM.init(X)), "count"),
    "Intersection needs at least one set": lambda: bx.sets.Intersection(),
    "Sum needs at least one term": lambda: bx.regularizers.Sum(),
    "matrix is a tensor of shape [m, n]": lambda: bx.sets.Affine([[1.0]], 0.0),
    "the matrix has 2 columns, the vectors along dim=-1": lambda: bx.sets.Affine(torch.eye(2), torch.zeros(2)).check(X),
    "expected a matrix and its dimension numbers, got the shape (3,)": lambda: bx.contrib.scale_by_muon(
        weight_dimension_numbers=bx.contrib.MuonDimensionNumbers()
    ).update(X[0], bx.contrib.scale_by_muon().init(X[0]), X[0]),
    "the dimensions of rows and columns differ": lambda: bx.contrib.galore(
        0.1, 1, weight_dimension_numbers=bx.contrib.GaLoreDimensionNumbers(0, 0)
    ).init(X),
    "each dimension is one of rows or columns": lambda: bx.contrib.galore(
        0.1, 1, weight_dimension_numbers=bx.contrib.GaLoreDimensionNumbers(0, 1)
    ).init(torch.zeros(2, 3, 4)),
    "expected a ScheduleFreeState, got ": lambda: bx.contrib.schedule_free_eval_params(ADAM.init(X), X),
    "parameters without leaves do not say how many problems": lambda: bx.minimize(
        lambda p: X.sum(), {}, bx.lbfgsb(BOX), batch_dims=1
    ),
    "jac is True, a function, '2-point' or left out, got 'exact'": lambda: bx.scipy_minimize(
        lambda x: (x**2).sum(), [1.0], jac="exact"
    ),
    "a tensor can be overwritten by a tensor, got float": lambda: bx.chunked(lambda p: 1.0, 2, donate_argnums=0)(X),
    "the state has another structure than expected": lambda: bx.state_from_dict({}, ADAM.init(X)),
}


@pytest.mark.parametrize("message", RAISED)
def test_raised(message):
    with pytest.raises((ValueError, TypeError, KeyError, NotImplementedError)) as caught:
        RAISED[message]()
    assert message in str(caught.value)


def test_the_table_has_every_message_and_few_that_no_test_looks_for():
    found, texts = errors.messages(), list(errors.looked_for())
    assert len(found) > 200
    known = next(each for each in found if each.text.startswith("no leaf matches"))
    assert known == ("ValueError", "no leaf matches …; the leaves are …", "boxopt.sets.intersection")
    assert "test_torch_optimizer" in errors.tests_of(known, texts) or errors.tests_of(known, texts)
    invented = errors.Message("ValueError", "zxq" * 10 + "…", "boxopt")  # in no text of the tests as it stands here
    assert not errors.tests_of(invented, texts)
    missing = [each for each in found if not errors.tests_of(each, texts)]
    assert len(missing) <= 20, missing  # to be made fewer
    assert errors.table().count("\n") == len(found) + 1
