"""Functions of pytrees, on trees of every kind at once."""

from typing import NamedTuple

import numpy as np
import optree
import pytest
import torch
import torch.utils._pytree as pytree

import boxopt as bx
from boxopt.core import tree


class Layer(NamedTuple):
    weight: object
    bias: object


def register_pair():
    class Pair:
        def __init__(self, *, first, second, label="pair"):
            assert isinstance(first, torch.Tensor)  # which placeholders are not
            self.first, self.second, self.label = first, second, label

    return tree.register("second", "first", static=("label",))(Pair)


def test_a_registered_class_is_a_node():
    """For torch.func and for optree; its children are the fields in their order, and rebuilding asks nothing."""
    Pair = register_pair()
    pair = Pair(first=torch.tensor(1.0), second=torch.tensor(2.0), label="mine")
    for leaves, structure in (
        pytree.tree_flatten(pair),
        optree.tree_flatten(pair, namespace="torch"),
        tree.flatten(pair),
    ):
        assert leaves == [2.0, 1.0]
        rebuilt = structure.unflatten(["two", "one"])
        assert (type(rebuilt), rebuilt.first, rebuilt.second, rebuilt.label) == (Pair, "one", "two", "mine")
    assert torch.func.grad(lambda p: p.first * p.second**2)(pair).second == 4
    other = Pair(first=torch.tensor(1.0), second=torch.tensor(2.0))
    assert tree.flatten(pair)[1] != tree.flatten(other)[1]  # the static field is part of the structure
    assert bx.state_to_dict({"pair": pair}).keys() == {"pair.second", "pair.first"}


def test_bounds_and_steps_in_a_registered_class():
    Pair = register_pair()
    params = {"b": Pair(first=torch.zeros(2), second=torch.zeros(3)), "a": torch.zeros(1)}
    lower = {"b": Pair(first=torch.tensor(-1.0), second=torch.tensor(-2.0)), "a": None}
    tx = bx.chain(bx.sgd(9.0), bx.project(bx.Box(lower, {"b": 1.0, "a": 2.0})))
    ones = pytree.tree_map(torch.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params)
    assert updates["b"].first.tolist() == [-1, -1]
    assert updates["b"].second.tolist() == [-2, -2, -2]
    assert updates["a"].tolist() == [-9]
    updates, _ = tx.update(pytree.tree_map(torch.neg, ones), tx.init(params), params)
    assert [leaf.unique().tolist() for leaf in pytree.tree_leaves(updates)] == [[1], [1], [2]]


EXAMPLE = {"z": [1.0, None, (2.0,)], "a": Layer({"w": 3.0}, 4.0), "none": None, "empty": {}}


def test_leaves_paths_and_structure():
    assert tree.leaves(EXAMPLE) == [1.0, 2.0, 3.0, 4.0]
    assert tree.paths(EXAMPLE) == ["z.0", "z.2.0", "a.weight.w", "a.bias"]
    leaves, structure = tree.flatten(EXAMPLE)
    assert tree.unflatten(structure, iter(leaves)) == EXAMPLE
    assert tree.paths(7.0) == [""]
    single = torch.zeros(2)
    leaves, structure = tree.flatten(single)
    assert leaves == [single]
    assert tree.unflatten(structure, leaves) is single
    assert tree.map(lambda x: x + 1, EXAMPLE) == {
        "z": [2.0, None, (3.0,)],
        "a": Layer({"w": 4.0}, 5.0),
        "none": None,
        "empty": {},
    }
    assert tree.map_with_path(lambda path, x, y: (path, x, y), {"b": 1, "a": [2]}, {"b": 3, "a": [4]}) == {
        "b": ("b", 1, 3),
        "a": [("a.0", 2, 4)],
    }
    is_layer = lambda node: isinstance(node, Layer)  # noqa: E731
    assert tree.leaves_of(EXAMPLE, is_layer) == [1.0, 2.0, EXAMPLE["a"]]
    assert tree.paths(EXAMPLE, is_leaf=is_layer) == ["z.0", "z.2.0", "a"]
    assert [tree.is_leaf(x) for x in (None, 1, 2.0, torch.zeros(1), "text", (), [], {}, Layer(1, 2))] == [True] * 5 + [
        False
    ] * 4


def test_ranks_do_not_depend_on_the_order_of_keys():
    for values in ({"a": 1, "b": [2, 3], "c": 4}, {"c": 4, "b": [2, 3], "a": 1}, {"b": [2, 3], "a": 1, "c": 4}):
        assert tree.ranks(values) == {"a": 0, "b": [1, 2], "c": 3}
    assert tree.ranks(5.0) == 0
    Pair = register_pair()  # which only torch knows
    values = {"b": Pair(first=torch.zeros(1), second=torch.zeros(1)), "a": 3}
    assert sorted(tree.leaves(tree.ranks(values))) == [0, 1, 2]


def test_paths_of_owners():
    state = {"mu": {"w": {"x": 1, "y": 2}, "v": 3}, "count": 4, "w": 5, "tail": [{"v": {"z": 6}}]}
    assert tree.owned_paths(state, ["w", "v"]) == [
        ("w", "mu.*.x"),
        ("w", "mu.*.y"),
        ("v", "mu"),
        (None, "count"),
        ("w", ""),
        ("v", "tail.0.*.z"),
    ]


def test_patterns():
    for path, pattern, expected in (
        ("layer.bias", "*.bias", True),
        ("bias", "*.bias", True),
        ("bias", "bias", True),
        ("layer.bias", "bias", False),
        ("layer.Bias", "*.bias", False),
        ("layer.0.bias", "layer.?.bias", True),
        ("mybias", "*.bias", False),
    ):
        assert tree.matches(path, pattern) is expected


def test_prefixes():
    values = {"b": [torch.zeros(2), torch.zeros(1)], "a": torch.zeros(3), "none": None}
    assert tree.expand(2.0, values) == {"b": [2.0, 2.0], "a": 2.0, "none": None}
    assert tree.expand({"b": 1.0, "a": None, "none": None}, values) == {"b": [1.0, 1.0], "a": None, "none": None}
    assert tree.expand({"b": [1, "x"], "a": 2.0, "none": None}, values) == {"b": [1, "x"], "a": 2.0, "none": None}
    assert tree.map_prefix(lambda x: (x,), {"a": None, "b": 1}) == {"a": (None,), "b": (1,)}
    assert tree.prefix_items({"b": None, "a": [1, 2]}) == [("b", None), ("a.0", 1), ("a.1", 2)]
    summary = "expected a prefix of dict with leaf 'b.0', leaf 'b.1', leaf 'a', got list with leaf '0', leaf '1';"
    with pytest.raises(ValueError, match=summary):
        tree.expand([1.0, 2.0], values)
    for bad, message in (
        ({"b": 1.0, "c": 2.0, "none": None}, r"the parameters have no leaf 'c'$"),
        ({"b": 1.0, "none": None}, r"it lacks leaf 'a'; where there is no bound, write None$"),
        ({"b": [1.0, 2.0, 3.0], "a": 1.0, "none": None}, r"the parameters have no leaf 'b\.2'$"),
    ):
        with pytest.raises(ValueError, match=message):
            tree.expand(bad, values)


def test_two_prefixes_of_one_tree():
    deep = {"a": {"b": {"c": 1, "d": 2}, "e": 3}, "f": 4}
    for shallow in (10, {"a": 10, "f": 20}, {"a": {"b": 10, "e": 20}, "f": 30}, deep):
        levels = [shallow, shallow, shallow, shallow]
        for index, way in enumerate((("a", "b", "c"), ("a", "b", "d"), ("a", "e"), ("f",))):
            for key in way:
                levels[index] = levels[index][key] if isinstance(levels[index], dict) else levels[index]
        ones, paths = [1, 2, 3, 4], ["a.b.c", "a.b.d", "a.e", "f"]
        assert sorted(tree.prefix_pairs(deep, shallow)) == list(zip(paths, ones, levels, strict=True))
        assert sorted(tree.prefix_pairs(shallow, deep)) == list(zip(paths, levels, ones, strict=True))
        expected = [one - other for one, other in zip(ones, levels, strict=True)]
        assert tree.leaves(tree.combine(lambda x, y: x - y, deep, shallow)) == expected
        assert tree.leaves(tree.combine(lambda x, y: y - x, shallow, deep)) == expected
        assert tree.paths(tree.combine(lambda x, y: x - y, deep, shallow)) == paths


@pytest.mark.parametrize("top", [1.0, {"a": 1.0}, {"a": {"b": 1.0}}, {"a": {"b": {"c": 1.0}}}])
def test_a_lower_bound_above_the_upper_one_is_found_at_any_depth(top):
    for lower, upper in (({"a": {"b": {"c": 2.0}}}, top), (tree.map(lambda x: 2 * x, top), {"a": {"b": {"c": 1.0}}})):
        with pytest.raises(ValueError, match=r"lower > upper at leaf 'a\.b\.c'"):
            bx.Box(lower, upper)


def test_sums_of_leaves():
    assert tree.reduce(torch.add, {"b": torch.tensor(1.0), "a": [torch.tensor(2.0), None, torch.tensor(4.0)]}) == 7
    assert tree.reduce(torch.sub, [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0)]) == -5
    assert tree.reduce(torch.add, {}) == 0
    base = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.bfloat16)}
    direction = {"a": torch.tensor([1.0, 2.0], dtype=torch.float64), "b": torch.tensor([1.0, 2.0])}
    for factor in (3.0, torch.tensor([3.0, 3.0], dtype=torch.float64), {"a": 3.0, "b": torch.tensor([3.0, 3.0])}):
        total = tree.add_scaled(base, factor, direction)
        assert {name: x.dtype for name, x in total.items()} == {name: x.dtype for name, x in base.items()}
        assert {name: x.tolist() for name, x in total.items()} == {"a": [4, 7], "b": [4, 7]}


def test_numpy_values():
    assert tree.as_value(np.float32(0.5)) == 0.5
    assert type(tree.as_value(np.float32(0.5))) is float
    assert torch.equal(tree.as_value(np.arange(3)), torch.arange(3))
    assert tree.as_value("text") == "text"


def test_parameters_are_floating_point_tensors():
    good = {"a": torch.zeros(1), "b": [torch.zeros(2, dtype=torch.bfloat16)], "none": None}
    tree.check_parameters(good)
    assert tree.device_of({"none": None, "a": torch.zeros(1, device="meta")}).type == "meta"
    assert tree.device_of({}).type == "cpu"
    for bad, message in (
        ("text", r"leaf 'c\.0': parameters are floating-point tensors, got str 'text'$"),
        (3, r"leaf 'c\.0': .*, got int 3; torch.as_tensor makes one$"),
        (torch.arange(2), r"leaf 'c\.0': .*, got dtype torch.int64; leave it out"),
        (torch.zeros(1, dtype=torch.complex64), r"leaf 'c\.0': .*, got dtype torch.complex64"),
    ):
        with pytest.raises(TypeError, match=message):
            tree.check_parameters(good | {"c": [bad]})


def test_errors_name_their_leaf_once():
    def fail(x, y=None):
        if x == 2:
            raise kind("it is two")
        return x

    pairs = {"a": (2, 1), "b": [(1, 2)]}
    for kind in (ValueError, TypeError):
        with pytest.raises(kind, match=r"^leaf 'b\.1': it is two$"):
            tree.map(fail, {"a": 1, "b": [3, 2]}, {"a": 1, "b": [3, 2]})
        with pytest.raises(kind, match=r"^leaf 'b\.1': it is two$"):
            tree.map(lambda x: tree.map(fail, {"a": 1, "b": [3, 2]}), {"outer": 1})
        with pytest.raises(kind, match=r"^leaf 'b\.0': it is two$"):  # of leaves that are pairs
            tree.map(lambda one, two: fail(two[1]), pairs, pairs, is_leaf=lambda x: isinstance(x, tuple))
        with pytest.raises(kind, match=r"^the single leaf: it is two$"):
            tree.map(fail, 2)
