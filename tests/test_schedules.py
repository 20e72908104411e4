"""Every schedule against optax's, count by count, in float64."""

import jax
import numpy as np
import optax
import pytest
import torch
from torch.func import vmap

import boxopt as bx

CYCLE = {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 3, "decay_steps": 12, "end_value": 0.05}

CASES = [
    ("constant_schedule", (0.3,)),
    ("polynomial_schedule", (1.0, 0.1, 2.0, 10, 5)),
    ("polynomial_schedule", (0.1, 1.0, 0.5, 10)),
    ("polynomial_schedule", (1.0, 0.1, 3, 10, -2)),
    ("linear_schedule", (1.0, 0.1, 10, 5)),
    ("linear_schedule", (1.0, 0.1, 10, -5)),
    ("exponential_decay", (1.0, 5, 0.5, -3)),
    ("cosine_decay_schedule", (1.0, 20, 0.1, 1.5)),
    ("exponential_decay", (1.0, 5, 0.5, 3, True, 0.05)),
    ("exponential_decay", (1.0, 5, 2.0, 0, False, 9.0)),
    ("piecewise_constant_schedule", (1.0, {20: 0.1, 10: 0.5, 25: 2.0})),
    ("piecewise_constant_schedule", (1.0,)),
    ("piecewise_interpolate_schedule", ("linear", 1.0, {20: 0.1, 10: 0.5, 25: 2.0})),
    ("piecewise_interpolate_schedule", ("cosine", 1.0, {20: 0.1, 10: 0.5, 25: 2.0})),
    ("piecewise_interpolate_schedule", ("linear", 1.0, {0: 0.5, 10: 0.5})),
    ("linear_onecycle_schedule", (30, 2.0)),
    ("linear_onecycle_schedule", (31, 2.0, 0.2, 0.7, 10.0, 100.0)),
    ("cosine_onecycle_schedule", (30, 2.0)),
    ("cosine_onecycle_schedule", (31, 2.0, 0.2, 10.0, 100.0)),
    ("warmup_constant_schedule", (0.1, 1.0, 7)),
    ("warmup_cosine_decay_schedule", (0.0, 1.0, 5, 25, 0.1, 1.2)),
    ("warmup_exponential_decay_schedule", (0.0, 1.0, 5, 4, 0.7, 2, True, 0.2)),
    ("sgdr_schedule", ([CYCLE, {**CYCLE, "peak_value": 0.5, "decay_steps": 9}, CYCLE],)),
]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_optax(name, arguments):
    counts = np.arange(45)
    with jax.enable_x64(True):
        theirs = getattr(optax, name)(*arguments)
        expected = np.array([float(theirs(jax.numpy.asarray(float(count)))) for count in counts])
    ours = getattr(bx, name)(*arguments)(torch.from_numpy(counts))
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15)


def test_join_schedules_is_optax_s():
    def parts(module):
        return [
            module.linear_schedule(0.0, 1.0, 5),
            module.constant_schedule(0.7),
            module.exponential_decay(1.0, 3, 0.5),
        ]

    counts = np.arange(30)
    with jax.enable_x64(True):
        theirs = optax.join_schedules(parts(optax), [6, 11])
        expected = [float(theirs(jax.numpy.asarray(float(count)))) for count in counts]
    ours = bx.join_schedules(parts(bx), [6, 11])(torch.from_numpy(counts))
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_every_number_may_differ_between_members():
    """Lengths and boundaries too, which optax takes as Python numbers."""
    steps, peaks = torch.tensor([10, 20, 31]), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for build in (
        bx.cosine_onecycle_schedule,
        bx.linear_onecycle_schedule,
        lambda steps, peak: bx.warmup_exponential_decay_schedule(0.0, peak, steps, steps, 0.5),
        lambda steps, peak: bx.polynomial_schedule(peak, 0.0, peak, steps, steps),
    ):
        together = vmap(lambda steps, peak, build=build: build(steps, peak)(torch.arange(40)))(steps, peaks)
        for member, (step, peak) in enumerate(zip(steps.tolist(), peaks.tolist(), strict=True)):
            torch.testing.assert_close(together[member], build(step, peak)(torch.arange(40)), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: bx.polynomial_schedule(1.0, 0.0, 2, 0), "transition_steps is positive, got 0"),
        (lambda: bx.cosine_onecycle_schedule(-1, 1.0), "transition_steps is positive, got -1"),
        (lambda: bx.piecewise_constant_schedule(1.0, {3: -1.0}), "the factor at 3 is not negative, got -1.0"),
        (lambda: bx.piecewise_interpolate_schedule("cubic", 1.0), "'linear' or 'cosine', got 'cubic'"),
        (lambda: bx.join_schedules([bx.constant_schedule(1.0)], [3]), "1 schedules need 0 boundaries, got 1"),
        (lambda: bx.sgdr_schedule([]), "at least one cycle"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()
