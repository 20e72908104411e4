"""Checked by pyright, and run by the test below it: a user's tree type comes out of ``update`` as it went in."""

from typing import NamedTuple, assert_type

import torch
from torch import Tensor

import boxopt as bx


class Weights(NamedTuple):
    kernel: Tensor
    bias: Tensor


def dictionaries_stay_dictionaries(params: dict[str, Tensor], gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    box = bx.Box(0.0, 1.0)
    tx = bx.chain(bx.adam(1e-2), bx.project(box), bx.masked(bx.barrier(box, 1e-4), "*.weight"))
    updates, state = tx.update(gradients, tx.init(params), params)
    assert_type(updates, dict[str, Tensor])
    assert_type(bx.apply_updates(params, updates), dict[str, Tensor])
    assert_type(bx.apply_updates(params, updates, within=box), dict[str, Tensor])
    assert_type(box.project(params), dict[str, Tensor])
    assert_type(bx.active(box, params), dict[str, Tensor])
    assert_type(bx.violation(box, params), Tensor)
    updates, state = tx.update(gradients, state, params, value=1.0) if not params else (updates, state)
    return updates


def named_tuples_stay_named_tuples(params: Weights) -> Weights:
    tx = bx.partition({"kernel": bx.sgd(0.1), "*": bx.lion(0.1)})
    updates, _ = tx.update(params, tx.init(params), params)
    assert_type(updates, Weights)
    return updates


def users_may_write_plain_functions() -> bx.GradientTransformation:
    def init(params: dict[str, Tensor]) -> tuple[()]:
        return ()

    def update(
        updates: dict[str, Tensor], state: tuple[()], params: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], tuple[()]]:
        return updates, state

    return bx.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]  (for one kind of tree only)


def test_runs() -> None:
    params = {"layer.weight": torch.full((2,), 0.5), "bias": torch.full((1,), 0.5)}
    assert dictionaries_stay_dictionaries(params, params).keys() == params.keys()
    assert isinstance(named_tuples_stay_named_tuples(Weights(torch.ones(1), torch.ones(1))), Weights)
    assert users_may_write_plain_functions().init({}) == ()
