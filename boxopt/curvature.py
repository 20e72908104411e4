"""Second-order quantities of a loss: products with its Hessian, diagonals, and estimates of them from random signs.

Everything takes and returns trees of the parameters' structure, and runs under ``vmap``, ``grad`` and ``compile``. The
loss is any function ``loss(params, *args) -> scalar``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.random import make_key, split, uniform
from boxopt.core.types import P


def hvp(loss: Callable[..., Tensor], v: P, params: P, *args: Any) -> P:
    r"""The product of the Hessian of a loss with a vector: $\nabla^2 f(x)\,v$, at the cost of about two gradients.

    Args:
        loss: f.
        v: A tree like the parameters.
        params: x.
        *args: Further arguments of the loss.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.hvp(lambda x: (x**3).sum(), torch.tensor([1.0, 0.5]), torch.tensor([1.0, 2.0]))
        tensor([6., 6.])

    Source:
        B. A. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6, 1994;
        `optax.second_order.hvp`, which takes a flat vector.
    """
    function, leaves, structure = _of_leaves(loss, params, args)
    return tree.unflatten(structure, _product(function, leaves, _matching(v, params)))


def hessian_diag(loss: Callable[..., Tensor], params: P, *args: Any, chunk_size: int | None = None) -> P:
    """The diagonal of the Hessian, exactly: one product with it for each number of the parameters.

    Args:
        loss: The loss.
        params: Where.
        *args: Further arguments of the loss.
        chunk_size: How many products to compute at a time; all those of a leaf if left out.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.hessian_diag(lambda x: (x**3).sum() + x.prod(), torch.tensor([1.0, 2.0]))
        tensor([ 6., 12.])

    Source:
        `optax.second_order.hessian_diag`, which returns a flat vector. `hutchinson_diag` estimates long ones.
    """
    function, leaves, structure = _of_leaves(loss, params, args)

    def diagonal(index: int) -> Tensor:
        leaf = leaves[index]
        if not leaf.numel():
            return torch.zeros_like(leaf)

        def entry(direction: Tensor) -> Tensor:
            vector = [direction if i == index else torch.zeros_like(x) for i, x in enumerate(leaves)]
            return (_product(function, leaves, vector)[index] * direction).sum()

        basis = torch.eye(leaf.numel(), dtype=leaf.dtype, device=leaf.device).reshape(-1, *leaf.shape)
        return torch.func.vmap(entry, chunk_size=chunk_size)(basis).reshape(leaf.shape)

    return tree.unflatten(structure, [diagonal(index) for index in range(len(leaves))])


def fisher_diag(negative_log_likelihood: Callable[..., Tensor], params: P, *args: Any) -> P:
    """The diagonal of the observed Fisher information: the squared gradient of a negative log-likelihood.

    Args:
        negative_log_likelihood: The loss of one observation; ``vmap`` over the observations and take the mean.
        params: Where.
        *args: Further arguments of the loss.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.fisher_diag(lambda x: (x**2).sum(), torch.tensor([1.0, 2.0]))
        tensor([ 4., 16.])

    Source:
        `optax.second_order.fisher_diag`, which returns a flat vector.
    """
    function, leaves, structure = _of_leaves(negative_log_likelihood, params, args)
    return tree.unflatten(structure, [slope.square() for slope in torch.func.grad(function)(leaves)])


def gauss_newton_product(outputs: Callable[..., Any], loss: Callable[[Any], Tensor], v: P, params: P, *args: Any) -> P:
    r"""The product of the generalized Gauss–Newton matrix with a vector.

    $$ J^\top\, \nabla^2 \ell(z)\, J\, v, \qquad z = h(x), \quad J = \partial h/\partial x $$

    It is the Hessian of ℓ(h(x)) without the curvature of h, and positive semidefinite if ℓ is convex.

    Args:
        outputs: h, ``outputs(params, *args)``: a model's outputs, a tensor or a tree of them.
        loss: ℓ, from the outputs to a scalar.
        v: A tree like the parameters.
        params: x.
        *args: Further arguments of h.

    Example:
        >>> import torch, boxopt as bx
        >>> squares = lambda z: (z**2).sum() / 2
        >>> bx.gauss_newton_product(lambda x: x**2, squares, torch.ones(2), torch.tensor([1.0, 2.0]))
        tensor([ 4., 16.])

    Source:
        N. N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", Neural
        Computation 14, 2002.
    """
    function, leaves, structure = _of_leaves(outputs, params, args)
    vector = _matching(v, params)
    z, pull, *_ = torch.func.vjp(function, leaves)
    moved = torch.func.grad(lambda w: _dot(pull(w)[0], vector))(tree.map(torch.zeros_like, z))  # J v
    curved = torch.func.grad(lambda z: _dot(torch.func.grad(loss)(z), moved))(z)
    return tree.unflatten(structure, pull(curved)[0])


def rademacher_like(params: P, number: int, seed: int | Tensor = 0) -> P:
    """Random signs: probes for Hutchinson's estimates, a pure function of the seed.

    Args:
        params: A tree of tensors.
        number: How many trees.
        seed: An integer, an integer tensor (one a member under ``vmap``), or a key.

    Returns:
        A tree of tensors of −1 and 1, each with a new leading dimension of this size.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.rademacher_like({"w": torch.zeros(3)}, 2)["w"].shape
        torch.Size([2, 3])
    """
    leaves, structure = tree.flatten(params)
    keys = split(make_key(seed, tree.device_of(params)), max(len(leaves), 1))

    def signs(leaf: Tensor, key: Tensor) -> Tensor:
        draw = uniform(key.to(leaf.device), (number, *leaf.shape))
        return torch.where(draw < 0.5, -1.0, 1.0).to(leaf.dtype)

    return tree.unflatten(structure, [signs(leaf, keys[index]) for index, leaf in enumerate(leaves)])


def hutchinson_diag(loss: Callable[..., Tensor], probes: P, params: P, *args: Any) -> P:
    r"""An estimate of the diagonal of the Hessian: the mean of $z \odot (\nabla^2 f(x)\, z)$ over random signs z.

    It is unbiased, and exact where the Hessian is diagonal.

    Args:
        loss: f.
        probes: A tree like the parameters with a leading dimension: see `rademacher_like`.
        params: x.
        *args: Further arguments of the loss.

    Example:
        >>> import torch, boxopt as bx
        >>> params = torch.tensor([1.0, 2.0])
        >>> bx.hutchinson_diag(lambda x: (x**3).sum(), bx.rademacher_like(params, 1), params)
        tensor([ 6., 12.])

    Source:
        C. Bekas, E. Kokiopoulou and Y. Saad, "An estimator for the diagonal of a matrix", Applied Numerical
        Mathematics 57, 2007.
    """
    _, leaves, structure = _of_leaves(loss, params, args)
    return tree.unflatten(structure, [product.mean(0) for product in _probed(loss, probes, params, leaves, args)])


def hutchinson_trace(loss: Callable[..., Tensor], probes: P, params: P, *args: Any) -> Tensor:
    r"""An estimate of the trace of the Hessian: the mean of $z^\top \nabla^2 f(x)\, z$ over random signs z.

    Args:
        loss: f.
        probes: A tree like the parameters with a leading dimension: see `rademacher_like`.
        params: x.
        *args: Further arguments of the loss.

    Example:
        >>> import torch, boxopt as bx
        >>> params = torch.tensor([1.0, 2.0])
        >>> bx.hutchinson_trace(lambda x: (x**3).sum(), bx.rademacher_like(params, 1), params)
        tensor(18.)

    Source:
        M. F. Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines",
        Communications in Statistics 18, 1989.
    """
    products = _probed(loss, probes, params, tree.leaves(params), args)
    return tree.reduce(torch.add, [product.mean(0).sum() for product in products])


def _probed(loss: Any, probes: Any, params: Any, leaves: list[Tensor], args: tuple[Any, ...]) -> list[Tensor]:
    """The products z ⊙ Hz for each probe z, leaf by leaf."""
    function, _, _ = _of_leaves(loss, params, args)

    def one(probe: list[Tensor]) -> list[Tensor]:
        return [z * product for z, product in zip(probe, _product(function, leaves, probe), strict=True)]

    return torch.func.vmap(one)(_matching(probes, params)) if leaves else []


def _product(function: Callable[[list[Tensor]], Tensor], leaves: list[Tensor], vector: list[Tensor]) -> list[Tensor]:
    """The gradient of ⟨∇f, v⟩: reverse over reverse, which every operation supports; forward mode knows fewer."""
    return torch.func.grad(lambda leaves: _dot(torch.func.grad(function)(leaves), vector))(leaves)


def _dot(first: Any, second: Any) -> Tensor:
    return tree.reduce(torch.add, tree.map(lambda x, y: (x * y).sum(), first, second))


def _of_leaves(
    function: Callable[..., Any], params: Any, args: tuple[Any, ...]
) -> tuple[Callable[[list[Tensor]], Any], list[Tensor], Any]:
    """A function of the parameters as one of their leaves: torch.func knows no missing ones."""
    leaves, structure = tree.flatten(params)

    def of_leaves(leaves: list[Tensor]) -> Any:
        return function(tree.unflatten(structure, leaves), *args)

    return of_leaves, leaves, structure


def _matching(v: Any, params: Any) -> list[Tensor]:
    """The leaves of a tree of the parameters' structure, in their dtypes."""
    return tree.leaves(tree.map(lambda x, along: along.to(x.dtype), params, v))
