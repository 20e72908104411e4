"""The modes that compile, which take seconds."""

import torch
import torch.utils._cxx_pytree as pytree
from torch.func import vmap

import boxopt as bx
from boxopt.core import exact
from tests.fuzz.agreement import Skipped, agree, finite, same
from tests.fuzz.members import MEMBERS, member_runs, stack, take
from tests.fuzz.modes import entries, torch_optimizer


def compiled(program, steps, backend="aot_eager", ulps=64.0):
    """Compiled whole, and not again for the next step."""
    _refuse_coarse_searches(program, steps, backend)
    tx = program.build(program.hypers)
    run = torch.compile(tx.update, fullgraph=True, backend=backend)
    for number, step in enumerate(steps):
        with torch._dynamo.config.patch(error_on_recompile=number > 0 and not _compiles_anew(steps, number)):
            got = run(*_fresh(step[:3]))
        agree(got, (step.updates, step.new_state), tx.update, step[:3], "compiled results", ulps)


def _refuse_coarse_searches(program, steps, backend):
    """Generated code does not round to 16 bits between operations, and a search on such a loss decides otherwise."""
    if backend != "inductor":
        return
    names = [name for entry in entries(program) for name in entry.names]
    modules = [getattr(getattr(bx, name, None), "__module__", "") for name in names]
    searches = any("linesearch" in name for name in names) or any(m.startswith("boxopt.solve") for m in modules)
    leaves = [x for x in pytree.tree_leaves(steps[0].params) if x is not None]
    if searches and any(exact.is_narrow(x.dtype) for x in leaves):
        raise Skipped("a search on a loss in 16 bits")


def _compiles_anew(steps, number):
    """Whether torch compiles anew by itself: where strides change, or a float64 without dimensions becomes NaN."""

    def strides(step):
        return [(x.stride(), x.storage_offset()) for x in pytree.tree_leaves(step[:3]) if x is not None]

    def is_nan(step):
        leaves = [x for x in pytree.tree_leaves(step[:3]) if x is not None]
        return [bool(x.isnan()) for x in leaves if x.dtype == torch.float64 and not x.ndim]

    return strides(steps[0]) != strides(steps[number]) or is_nan(steps[0]) != is_nan(steps[number])


def _fresh(values):
    """Copies that lie as the originals do."""
    return pytree.tree_map(lambda x: None if x is None else x.clone(memory_format=torch.preserve_format), values)


def inductor(program, steps):
    compiled(program, steps, "inductor", 256.0)


def compiled_vmap(program, steps):
    """The first step of an ensemble, made and run inside of what is compiled."""
    if "None" in program.params or not pytree.tree_leaves(steps[0].params):
        raise Skipped("vmap takes no None, nor nothing")
    runs = member_runs(program, steps[:1], MEMBERS, False)
    update = vmap(lambda h, g, s, p: program.build(h).update(g, s, p))
    arguments = (stack([h for h, _ in runs]), *(stack([run[0][k] for _, run in runs]) for k in range(3)))
    got = torch.compile(update, fullgraph=True, backend="aot_eager")(*arguments)
    for i, (h, (step,)) in enumerate(runs):
        if finite(step[:3]):
            alone = lambda *a, h=h: program.build(h).update(*a)  # noqa: E731
            agree(take(got, i), (step.updates, step.new_state), alone, step[:3], f"member {i}, compiled,", 64)


def donated(program, steps, backend="aot_eager"):
    """A compiled step that writes over its arguments, over the whole run."""
    if "(lambda x" in program.params:
        raise Skipped("shared memory is refused")
    _refuse_coarse_searches(program, steps, backend)
    tx = program.build(program.hypers)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return bx.apply_updates(params, updates), state, updates

    run = bx.compile(step, donate_argnums=(0, 1), backend=backend)
    for s in steps:
        arguments = pytree.tree_map(
            lambda x: None if x is None else x.clone(memory_format=torch.contiguous_format),
            (s.params, s.state, s.gradients),
        )
        gradients = _fresh(arguments[2])
        params, state, updates = run(*arguments)
        same(arguments[2], gradients, "gradients, which were not donated,")
        expected = (bx.apply_updates(s.params, s.updates), s.new_state, s.updates)
        agree(
            (params, state, updates),
            expected,
            lambda g, st, p: step(p, st, g),
            s[:3],
            "donated results",
            64 if backend != "inductor" else 256,
        )


def donated_inductor(program, steps):
    donated(program, steps, "inductor")


def fused(program, steps):
    _refuse_coarse_searches(program, steps, "inductor")
    torch_optimizer(program, steps[:1], fused=True)
