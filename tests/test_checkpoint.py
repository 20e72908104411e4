"""States as dicts and as files: every entry's comes back bit for bit, and nothing is lost on the way."""

from typing import NamedTuple

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.utils._pytree as pytree
from torch.func import vmap

import boxopt as bx
from tests.registry import ENTRIES, Hyper
from tests.test_laws import assert_trees_equal, every_entry, example_params, run


def resumes(entry, params, back):
    """Whether three steps, ``back`` of the parameters and the state, and three more are six steps."""
    whole, _, final = run(entry.build(Hyper()), params, 6)
    half, _, state = run(entry.build(Hyper()), params, 3)
    fresh = entry.build(Hyper())
    half, state = back((half, state), (params, fresh.init(params)))
    resumed, _, resumed_state = run(fresh, half, 3, state, start=3)
    assert_trees_equal((resumed, resumed_state), (whole, final))


@every_entry
@pytest.mark.parametrize("name", ["run.pt", "run.safetensors"])
def test_resumes_from_a_file(entry, name, tmp_path):
    def back(tree, like):
        bx.save(tmp_path / name, tree)
        return bx.load(tmp_path / name, like)

    resumes(entry, example_params(), back)
