"""Schedules against optax's, live."""

import warnings

import pytest
import torch

import boxopt as bx

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jax
    import optax

SCHEDULES = {
    "constant_schedule": (0.3,),
    "linear_schedule": (1.0, 0.1, 10, 5),
    "cosine_decay_schedule": (1.0, 20, 0.1, 1.5),
    "exponential_decay": (1.0, 5, 0.5, 3, True, 0.05),
    "warmup_cosine_decay_schedule": (0.0, 1.0, 5, 25, 0.1, 1.2),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    ours, theirs = getattr(bx, name)(*SCHEDULES[name]), getattr(optax, name)(*SCHEDULES[name])
    with jax.enable_x64(True):
        for count in range(40):
            assert float(ours(torch.tensor(count))) == pytest.approx(float(theirs(count)), rel=1e-6, abs=1e-7)


def test_growth_stops_at_its_end():
    ours, theirs = bx.exponential_decay(1.0, 5, 2.0, end_value=9.0), optax.exponential_decay(1.0, 5, 2.0, end_value=9.0)
    for count in (0, 3, 15, 30):
        assert float(ours(torch.tensor(count))) == pytest.approx(float(theirs(count)), rel=1e-6)
