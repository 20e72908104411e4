"""A short fixed-seed run of the fuzzer, and that it finds what it should: ``make fuzz MINUTES=5`` is the long one."""

import pytest
import torch

import boxopt as bx
from tests.fuzz import agreement, convex, problems, relations
from tests.fuzz.__main__ import Hunt
from tests.fuzz.agreement import Finding
from tests.fuzz.check import check
from tests.fuzz.programs import NAMES, Program


@pytest.fixture(autouse=True)
def _no_process_group_left():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_sixty_programs():
    hunt = Hunt(seed=1, share=0.0)
    hunt.batch(60)
    assert not hunt.findings
    assert hunt.counts["programs"] == 60
    assert hunt.counts["eager: ok"] > 40


@pytest.mark.parametrize("family", problems.FAMILIES)
def test_six_problems(family):
    assert [problems.attack(1, number, (family,)) for number in range(6)] == [(family, None)] * 6


def test_a_solver_that_lands_beside_the_solution_is_found(monkeypatch):
    solved = bx.bvls
    monkeypatch.setattr(bx, "bvls", lambda a, b, low, high: torch.clamp(solved(a, b, low, high) + 0.1, low, high))
    errors = [problems.attack(1, number, ("linear",))[1] for number in range(10)]
    assert any(isinstance(error, Finding) for error in errors)


@pytest.mark.parametrize("name", convex.NAMES)
def test_a_projection_that_lands_beside_the_nearest_point_is_found(name, monkeypatch):
    monkeypatch.setattr(convex, "NAMES", (name,))
    members = type(convex.example(problems.Chance(1, 1), name, problems.bounds, problems.matrix).members)
    project = members.project
    monkeypatch.setattr(members, "project", lambda self, x, step=1.0: project(self, x + x.abs().max() / 3, step))
    errors = [problems.attack(1, number, ("projections",))[1] for number in range(20)]
    assert any(isinstance(error, Finding) for error in errors)


def test_compiled_modes():
    program = Program("bx.chain(entry('adam', h[0]), bx.project(S.Simplex()))", "{'a': leaf((2, 3), 'f32', 1)}")
    names = ["compiled_vmap", "donated"]
    assert check(program, *names) == dict.fromkeys(names, "ok")


class _Counter:
    def __init__(self):
        self.count = 0


def _mutating(updates, state, params):
    updates.mul_(2)
    return updates, state


def _counting(updates, state, params, counter=_Counter()):  # noqa: B008
    counter.count += 1
    return updates * counter.count, state


def _with_number(updates, state, params):
    return updates * float(params.abs().max()), state


def _leaving(updates, state, params):
    return updates + 10, state


class _Lopsided(torch.autograd.Function):
    """Twice its argument, with another derivative forwards than backwards."""

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient

    @staticmethod
    def jvp(ctx, tangent):
        return 2.001 * tangent


def _lopsided(updates, state, params):
    return _Lopsided.apply(updates), state


BROKEN = [
    (_mutating, "saved", "mutated|do not match|differ"),
    (_counting, "saved", "a second call"),
    (_with_number, "vmapped", "vmap"),
    (_with_number, "fake", "item|local_scalar"),
    (_leaving, "saved", "is outside of"),
    (_lopsided, "directions", "derivatives differ"),
]


@pytest.mark.parametrize(("update", "mode", "message"), BROKEN)
def test_what_is_broken_is_found(monkeypatch, update, mode, message):
    broken = bx.GradientTransformation(bx.identity().init, update)
    monkeypatch.setitem(NAMES, "broken", broken)
    lands = "bx.Box(-1.0, 1.0)" if update is _leaving else ""
    program = Program("broken", "leaf((3,), 'f64', 1)", lands=lands)
    with pytest.raises(Exception, match=message):
        check(program, mode)


def test_a_wrapper_that_does_something_is_found(monkeypatch):
    monkeypatch.setattr(relations, "NEUTRAL", ["bx.chain({}, bx.scale(1.0000001))"])
    with pytest.raises(Finding, match="updates of"):
        check(Program("entry('sgd', h[0])", "leaf((3,), 'f64', 1)"), "wrapped")


def test_an_error_in_update_is_no_refusal(monkeypatch):
    def update(updates, state, params):
        raise ValueError("no")

    monkeypatch.setitem(NAMES, "broken", bx.GradientTransformation(bx.identity().init, update))
    with pytest.raises(ValueError, match="no"):
        check(Program("broken", "leaf((3,), 'f64', 1)"), "saved")


def test_roundings_pass_and_errors_do_not():
    x = torch.rand(5, dtype=torch.float64)
    agreement.agree(x * (1 + 1e-15), x, lambda y: y, (x,), "x")
    with pytest.raises(Finding, match="x differ by"):
        agreement.agree(x * (1 + 1e-9), x, lambda y: y, (x,), "x")
    steep = lambda y: torch.sin(1e12 * y)  # noqa: E731  known to 1e-4
    with pytest.raises(agreement.Skipped, match="ill-conditioned"):
        agreement.agree(steep(x) + 1e-6, steep(x), steep, (x,), "x")
