"""Second-order quantities against whole Hessians, optax and JAX."""

import itertools
import warnings

import jax
import numpy as np
import optax
import pytest
import torch
from torch.func import grad, jacrev, vmap

import boxopt as bx

GENERATOR = torch.Generator().manual_seed(0)
INPUTS, TARGETS = (torch.randn(5, n, generator=GENERATOR, dtype=torch.float64) for n in (2, 3))
PARAMS = {
    "first": {"weight": torch.randn(2, 2, generator=GENERATOR, dtype=torch.float64), "bias": None},
    "second": torch.randn(2, 3, generator=GENERATOR, dtype=torch.float64),
}
VECTOR = torch.utils._pytree.tree_map(lambda x: None if x is None else torch.cos(3 * x), PARAMS)


def model(params, inputs):
    return torch.tanh(inputs @ params["first"]["weight"]) @ params["second"]


def loss(params, inputs, targets):
    return ((model(params, inputs) - targets) ** 2).mean() + (params["second"] ** 4).sum()


def flat(params):
    return torch.cat([x.reshape(-1) for x in torch.utils._pytree.tree_leaves(params) if x is not None])


def unflat(x):
    return {"first": {"weight": x[:4].reshape(2, 2), "bias": None}, "second": x[4:].reshape(2, 3)}


def hessian(function):
    return jacrev(jacrev(function))  # torch.func.hessian is forward over reverse, and warns on its first use


def matrix():
    return hessian(lambda x: loss(unflat(x), INPUTS, TARGETS))(flat(PARAMS))


def test_products_and_diagonals_are_those_of_the_whole_hessian():
    H = matrix()
    product = bx.hvp(loss, VECTOR, PARAMS, INPUTS, TARGETS)
    assert product["first"]["bias"] is None
    torch.testing.assert_close(flat(product), H @ flat(VECTOR))
    torch.testing.assert_close(flat(bx.hessian_diag(loss, PARAMS, INPUTS, TARGETS)), H.diagonal())
    torch.testing.assert_close(flat(bx.hessian_diag(loss, PARAMS, INPUTS, TARGETS, chunk_size=2)), H.diagonal())
    packed, unpack = bx.pack(PARAMS)
    direction = unpack.pack(VECTOR)
    product = bx.hvp(lambda packed: loss(unpack(packed), INPUTS, TARGETS), direction, packed)
    torch.testing.assert_close(flat(unpack(product)), H @ flat(VECTOR))


def test_optax():
    """Its functions are deprecated; they are what the names promise."""

    def peer(params, inputs, targets):
        hidden = jax.numpy.tanh(inputs @ params["first"])
        return ((hidden @ params["second"] - targets) ** 2).mean() + (params["second"] ** 4).sum()

    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        data = INPUTS.numpy(), TARGETS.numpy()
        params = {"first": PARAMS["first"]["weight"].numpy(), "second": PARAMS["second"].numpy()}
        for ours, theirs in (
            (
                bx.hvp(loss, VECTOR, PARAMS, INPUTS, TARGETS),
                optax.second_order.hvp(peer, flat(VECTOR).numpy(), params, *data),
            ),
            (bx.hessian_diag(loss, PARAMS, INPUTS, TARGETS), optax.second_order.hessian_diag(peer, params, *data)),
            (bx.fisher_diag(loss, PARAMS, INPUTS, TARGETS), optax.second_order.fisher_diag(peer, params, *data)),
        ):
            expected = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(theirs)])
            np.testing.assert_allclose(flat(ours), expected, rtol=1e-10, atol=1e-12)


def test_gauss_newton_is_the_jacobian_s():
    def cross_entropy(z):
        return torch.nn.functional.cross_entropy(z, torch.tensor([0, 2, 1, 1, 0]))

    J = jacrev(lambda x: model(unflat(x), INPUTS))(flat(PARAMS)).reshape(15, -1)
    z = model(PARAMS, INPUTS)
    curvature = hessian(cross_entropy)(z).reshape(15, 15)
    product = bx.gauss_newton_product(model, cross_entropy, VECTOR, PARAMS, INPUTS)
    torch.testing.assert_close(flat(product), J.T @ curvature @ J @ flat(VECTOR))


def test_hutchinson_over_all_signs_is_exact():
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=10)), dtype=torch.float64)
    probes = vmap(lambda s: {"first": {"weight": s[:4].reshape(2, 2)}, "second": s[4:].reshape(2, 3)})(signs)
    probes["first"]["bias"] = None
    H = matrix()
    torch.testing.assert_close(flat(bx.hutchinson_diag(loss, probes, PARAMS, INPUTS, TARGETS)), H.diagonal())
    torch.testing.assert_close(bx.hutchinson_trace(loss, probes, PARAMS, INPUTS, TARGETS), H.trace())


def test_random_signs():
    signs = bx.rademacher_like(PARAMS, 4000, seed=5)
    assert signs["first"]["bias"] is None
    assert signs["second"].dtype == torch.float64
    assert set(signs["second"].unique().tolist()) == {-1.0, 1.0}
    together = torch.cat([signs["first"]["weight"].reshape(4000, -1), signs["second"].reshape(4000, -1)], dim=1)
    correlation = together.T @ together / 4000
    assert (correlation - torch.eye(10)).abs().max() < 5 / 4000**0.5
    assert together.mean(0).abs().max() < 5 / 4000**0.5
    members = vmap(lambda seed: bx.rademacher_like(torch.zeros(3), 2, seed))(torch.arange(4))
    for member in range(4):
        assert torch.equal(members[member], bx.rademacher_like(torch.zeros(3), 2, member))


def test_under_vmap_grad_and_compile():
    def quartic(x, scale):
        return scale * (x**4).sum() + x.prod()

    points, scales = torch.randn(3, 4, generator=GENERATOR, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0])
    direction = torch.ones(4, dtype=torch.float64)

    def sharpness(x, scale):
        signs = bx.rademacher_like(x, 3)
        return (
            (bx.hvp(quartic, direction, x, scale) * direction).sum()
            + bx.hutchinson_trace(quartic, signs, x, scale)
            + bx.hessian_diag(quartic, x, scale).sum()
        )

    together = vmap(grad(sharpness))(points, scales)
    for member in range(3):
        torch.testing.assert_close(together[member], grad(sharpness)(points[member], scales[member]))
    assert torch.autograd.gradcheck(lambda x: sharpness(x, 2.0), points[0].clone().requires_grad_())
    compiled = torch.compile(vmap(sharpness), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(points, scales), vmap(sharpness)(points, scales))


def test_a_vector_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="it lacks leaf 'second'"):
        bx.hvp(loss, {"first": VECTOR["first"]}, PARAMS, INPUTS, TARGETS)


def test_leaves_without_entries_have_no_curvature():
    params = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(0, 3)}
    diagonal = bx.hessian_diag(lambda p: (p["a"] ** 3).sum() + p["b"].sum(), params)
    assert diagonal["a"].tolist() == [6, 12]
    assert diagonal["b"].shape == (0, 3)
