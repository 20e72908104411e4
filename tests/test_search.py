"""An operator made of a search: a loop over members under `vmap`, however they are batched, and one node elsewhere."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

from boxopt.core.search import a_number_each, may_stop, search


def level(x: torch.Tensor, weight: torch.Tensor, steps: int) -> torch.Tensor:
    """Of each vector the weighted mean, by a number of steps that depends on them all."""
    assert x.ndim >= weight.ndim
    total = torch.zeros_like(x[..., :1])
    for _ in range(steps):
        total = total + (x * weight).mean(-1, keepdim=True)
    return total / steps


def moved(x: torch.Tensor, by: torch.Tensor | None) -> torch.Tensor:
    """The tensor plus another."""
    return x.clone() if by is None else x + by


def test_a_number_for_each_vector():
    operator = search("of_a_test_level", a_number_each)(level)
    x, weight = torch.randn(2, 3, 4), torch.rand(4)
    for members in (1, 3):
        xs, weights = torch.randn(members, 2, 3, 4), torch.rand(members, 4)
        for dims, given in {(0, 0): (xs, weights), (0, None): (xs, weight), (None, 0): (x, weights)}.items():
            together = vmap(lambda x, w: operator(x, w, 2), dims)(*given)
            assert together.shape == (members, 2, 3, 1)
            for index in range(members):
                one = level(*(a if dim is None else a[index] for a, dim in zip(given, dims, strict=True)), 2)
                torch.testing.assert_close(together[index], one)
        last = vmap(lambda x: operator(x, weight, 2), -1)(xs.movedim(0, -1))
        torch.testing.assert_close(last, level(xs, weight, 2))
        nested = vmap(vmap(lambda x, w: operator(x, w, 2), (0, None)), (None, 0))(x, weights)
        torch.testing.assert_close(nested, torch.stack([level(x, w, 2) for w in weights]))


def test_results_have_the_shape_of_the_first_unless_said():
    operator = search("of_a_test_moved")(moved)
    shapes = [(), (4,), (3, 4), (1, 4)]
    for first, second in itertools.product([(3, 4), (2, 3, 4)], shapes):
        x, by = torch.randn(5, *first), torch.randn(5, *second)
        torch.testing.assert_close(vmap(operator)(x, by), torch.stack([a + b for a, b in zip(x, by, strict=True)]))
        torch.testing.assert_close(vmap(operator, (None, 0))(x[0], by), torch.stack([x[0] + b for b in by]))
    assert torch.equal(vmap(lambda x: operator(x, None))(x), x)


def test_nothing_is_computed_of_fake_tensors():
    operator = search("of_a_test_fake", a_number_each)(level)
    with FakeTensorMode():
        x = torch.zeros(2, 3, dtype=torch.bfloat16, device="cuda" if torch.cuda.is_available() else "cpu")
        result = operator(x, torch.zeros(3), 2)
        assert (result.shape, result.dtype, result.device) == ((2, 1), x.dtype, x.device)
        assert not may_stop(x)
    assert may_stop(torch.zeros(1))
    assert not may_stop(torch.zeros(1, device="meta"))


def test_no_derivative_passes():
    operator = search("of_a_test_derivative")(moved)
    with pytest.raises(RuntimeError):
        operator(torch.zeros(2, requires_grad=True), None).sum().backward()
