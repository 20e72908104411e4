"""What the README says of peers, live; beside each, that boxopt does better."""

import warnings

import pytest
import torch

import boxopt as bx

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jax
    import jax.numpy as jnp
    import optax


def test_optax_ignores_a_misspelt_argument():
    tx = optax.chain(optax.sgd(1.0))
    tx.update(jnp.ones(1), tx.init(jnp.ones(1)), jnp.ones(1), vlaue=1.0)
    ours = bx.chain(bx.sgd(1.0))
    with pytest.raises(TypeError, match="vlaue"):
        ours.update(torch.ones(1), ours.init(torch.ones(1)), torch.ones(1), vlaue=1.0)


def test_optax_carries_a_projected_step_out_again():
    tx = optax.chain(optax.keep_params_nonnegative(), optax.scale(3.0))
    params = jnp.ones(1)
    updates, _ = tx.update(-5 * jnp.ones(1), tx.init(params), params)
    assert float(optax.apply_updates(params, updates)[0]) < 0
    with pytest.raises(ValueError, match="finished step"):
        bx.chain(bx.project(bx.sets.NonNegative()), bx.scale(3.0))


def test_derivative_through_adam_at_a_zero_gradient():
    def theirs(gradient):
        tx = optax.adam(0.1)
        return tx.update(gradient, tx.init(gradient), gradient)[0].sum()

    def ours(gradient):
        tx = bx.adam(0.1)
        return tx.update(gradient, tx.init(gradient), gradient)[0].sum()

    assert jnp.isnan(jax.grad(theirs)(jnp.zeros(1))).all()
    assert torch.isfinite(torch.func.grad(ours)(torch.zeros(1))).all()


def test_euclidean_clamping_before_the_step_violates():
    """The usual wrong code: clamp, then step."""
    params = torch.tensor([0.95])
    stepped = params.clamp(0.0, 1.0) - 0.1 * torch.tensor([-1.0])
    assert stepped > 1
    tx = bx.chain(bx.sgd(0.1), bx.project(bx.Box(0.0, 1.0)))
    updates, _ = tx.update(torch.tensor([-1.0]), tx.init(params), params)
    assert bx.apply_updates(params, updates) <= 1
