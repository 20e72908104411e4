"""Steps that are saved, as a program of torch.export or compiled ahead of time; and how they are written for it."""

import optree
import pytest
import torch

import boxopt as bx

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")

BOX = bx.Box(-1.0, 0.75)
QUICK = {"aot_inductor.compile_wrapper_opt_level": "O0"}  # of the wrapper around the kernels
PROGRAMS = {
    "box": (bx.chain(bx.adam(0.1), bx.project(BOX)), False),
    "box, packed": (bx.chain(bx.adam(0.1), bx.project(BOX)), True),
    "simplex": (bx.projected(bx.adam(0.1), bx.sets.Simplex()), False),
}


def example(name):
    """A step, and its arguments."""
    tx, packed = PROGRAMS[name]
    params = {"w": torch.full((5, 3), 1 / 3), "b": torch.tensor([0.75, 0.25, 0.0])}
    gradients = {"w": torch.randn(5, 3), "b": torch.tensor([-1.0, 1.0, 1.0])}
    if packed:
        params, unpack = bx.pack(params)
        gradients = unpack.pack(gradients)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return bx.apply_updates(params, updates), state

    return step, (params, tx.init(params), gradients)


class Flat(torch.nn.Module):
    """A step as a module from a list of tensors to a list of tensors."""

    def __init__(self, step, structure):
        super().__init__()
        self.step, self.structure = step, structure

    def forward(self, leaves):
        return optree.tree_leaves(self.step(*self.structure.unflatten(leaves)), namespace="torch")


def exported(name):
    step, arguments = example(name)
    leaves, structure = optree.tree_flatten(arguments, namespace="torch")
    flat = Flat(step, structure)
    return torch.export.export(flat, (leaves,)), leaves, flat(leaves)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_flat_step_is_exported_saved_and_loaded(name, tmp_path):
    program, leaves, expected = exported(name)
    torch.export.save(program, tmp_path / "step.pt2")
    found = torch.export.load(tmp_path / "step.pt2").module()(leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_a_flat_step_is_compiled_ahead_of_time(tmp_path):
    program, leaves, expected = exported("box, packed")
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "step.pt2"), inductor_configs=QUICK
    )
    found = torch._inductor.aoti_load_package(path)(leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert bx.violation(BOX, found[0]) == 0


def test_what_torch_does_not_save(tmp_path):
    """If this fails, torch can do more than docs/integrations.md says."""

    class Nested(torch.nn.Module):
        def forward(self, *arguments):
            return step(*arguments)

    step, arguments = example("box")
    program = torch.export.export(Nested(), arguments)
    assert torch.equal(program.module()(*arguments)[0]["b"], step(*arguments)[0]["b"])
    with pytest.raises(NotImplementedError, match="serialize TreeSpec of namedtuple"):
        torch.export.save(program, tmp_path / "step.pt2")
    step, arguments = example("box, packed")
    with pytest.raises(ValueError, match="Layout"):
        torch.export.export(Nested(), arguments)
