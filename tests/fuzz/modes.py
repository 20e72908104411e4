"""The modes in which a program runs, and what must hold in each."""

import math
import pickle
import random
import tempfile
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

import boxopt as bx
from boxopt.core import sharded, tree
from tests.fuzz.programs import BY_NAME, Program
from tests.registry import Hyper

MEMBERS = 3
WIDE = {torch.float64: torch.float64, torch.float32: torch.float32, torch.bfloat16: torch.float32, torch.float16: torch.float32}


class Refused(Exception):
    """The library says, in words of its own, that it does not do this."""


class Skipped(Exception):
    """The mode does not apply to the program."""


class Finding(AssertionError):
    """Modes that disagree, or a broken law."""


class Step(NamedTuple):
    """One step of the reference: eager, with numbers."""

    gradients: Any
    state: Any
    params: Any
    updates: Any
    new_state: Any


def clearly(function, *arguments):
    """The result, or `Refused` if the library refuses with an error of its own."""
    try:
        return function(*arguments)
    except (ValueError, TypeError, NotImplementedError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if "/boxopt/" in last.filename or "/tests/" in last.filename or isinstance(error, (tree.LeafError, tree.LeafTypeError)):
            raise Refused(str(error)) from error
        raise


def reference(program: Program) -> list[Step]:
    """The steps in eager mode, and the laws that one run shows."""
    params = clearly(program.start)
    if program.lands:
        _feasible(program, params, params, "start")
    tx = clearly(program.build, program.hypers)
    state = clearly(tx.init, params)
    structure, kinds = pytree.tree_structure(state), _kinds(state)
    steps = []
    for number in range(len(program.gradients)):
        gradients = program.gradient(number, params)
        arguments = (gradients, state, params)
        before, versions = pytree.tree_map(_clone, arguments), _versions(arguments)
        updates, new = clearly(tx.update, *arguments) if number == 0 else tx.update(*arguments)
        if _versions(arguments) != versions:
            raise Finding("an argument was mutated")
        same(arguments, before, "arguments after the update")
        same(tx.update(*arguments), (updates, new), "a second call")
        if pytree.tree_structure(updates) != pytree.tree_structure(params) or _kinds(updates) != _kinds(params):
            raise Finding(f"updates are of another kind than parameters: {_kinds(updates)}, {_kinds(params)}")
        if pytree.tree_structure(new) != structure or _kinds(new) != kinds:
            raise Finding(f"the state changes its kind:\n{structure}\n{kinds}\n{pytree.tree_structure(new)}\n{_kinds(new)}")
        steps.append(Step(gradients, state, params, updates, new))
        moved = bx.apply_updates(params, updates)
        if program.lands and _finite(gradients) and _finite(state):
            _feasible(program, moved, params, f"step {number}")
        params, state = moved, new
        if not _finite(params):
            break
    return steps


def _clone(x):
    return x.clone() if isinstance(x, torch.Tensor) else x


def _versions(values):
    return [x._version for x in pytree.tree_leaves(values) if isinstance(x, torch.Tensor)]


def _kinds(values):
    return [x if x is None else (x.dtype, tuple(x.shape)) for x in pytree.tree_leaves(values)]


def _finite(values):
    return all(bool(x.isfinite().all()) for x in pytree.tree_leaves(values) if isinstance(x, torch.Tensor))


def _feasible(program, params, before, place):
    constraint = program.set(program.hypers)
    leaves = [x for x in pytree.tree_leaves(params) if x is not None]
    if not leaves or not _finite(params):
        return
    wide = pytree.tree_map(lambda x: None if x is None else x.double(), params)
    outside = float(constraint.violation(wide))
    eps = max(torch.finfo(x.dtype).eps for x in leaves)
    largest = max([1.0] + [float(x.abs().max()) for x in (*leaves, *pytree.tree_leaves(before)) if x is not None and x.numel()])
    if not outside <= 2 * program.tolerance * eps * largest:
        raise Finding(f"{place} is outside of {program.lands} by {outside:.3e}: {params}")


# --- comparison --------------------------------------------------------------------------------------------------


def same(got, expected, what):
    """Equal to the bit, but for the sign of zero and of NaN."""
    deviation = _deviation(got, expected, what)
    if any(deviation):
        raise Finding(f"{what} differ by {max(deviation):.3e}:\n{got}\n{expected}")


def _deviation(got, expected, what):
    """For each leaf the largest difference, NaN equal to itself."""
    leaves, structure = pytree.tree_flatten(got)
    others, other_structure = pytree.tree_flatten(expected)
    if structure != other_structure:
        raise Finding(f"{what}: structures differ\n{structure}\n{other_structure}")
    return [_distance(one, other, what) for one, other in zip(leaves, others, strict=True)]


def _distance(one, other, what):
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    if one.dtype != other.dtype or one.shape != other.shape:
        raise Finding(f"{what}: {one.dtype} {tuple(one.shape)}, expected {other.dtype} {tuple(other.shape)}")
    if not one.numel() or torch.equal(one, other):
        return 0.0
    if not one.is_floating_point():
        return float((one.double() - other.double()).abs().max())
    one, other = one.detach().double(), other.detach().double()
    alike = (one == other) | (~one.isfinite() & ~other.isfinite())  # infinite or NaN: by the order of operations
    apart = torch.where(alike, 0.0, (one - other).abs())
    return float(apart.nan_to_num(math.inf, math.inf).max())


def agree(got, expected, function, arguments, what, ulps=16.0):
    """Equal up to some ulps of the largest number at hand, or as far as the result is known: see `_blur`."""
    deviation = _deviation(got, expected, what)
    if not any(deviation):
        return
    if not _finite(arguments) and not (_finite(got) and _finite(expected)):
        raise Skipped("infinite or NaN: by the order of operations")
    inputs = [x for x in pytree.tree_leaves(arguments) if isinstance(x, torch.Tensor) and x.is_floating_point()]
    scale = max([1e-30] + [float(x.abs().double().nan_to_num(0, 0, 0).max()) for x in inputs if x.numel()])
    leaves = pytree.tree_leaves(expected)

    def allowed(x):
        if x is None or not x.is_floating_point():
            return 0.0
        own = float(x.detach().abs().double().nan_to_num(0, 0, 0).max()) if x.numel() else 0.0
        # A sum over leaves is as coarse as the coarsest.
        eps = max(torch.finfo(y.dtype).eps for y in (x, *inputs) if ulps > 16 or y is x)
        return (1.0 if eps > 1e-6 else ulps) * eps * max(own, min(scale, 1e3 * own + 1))

    limits = [allowed(x) for x in leaves]
    if all(d <= limit for d, limit in zip(deviation, limits, strict=True)):
        return
    blur = _blur(function, arguments, expected, what)
    worst = [
        (d, limit, b, x) for d, limit, b, x in zip(deviation, limits, blur, leaves, strict=True) if not d <= limit + 50 * b
    ]
    if worst:
        d, limit, b, _ = worst[0]
        raise Finding(f"{what} differ by {d:.3e}, allowed {limit:.1e} and {b:.1e}:\n{got}\n{expected}")
    raise Skipped("ill-conditioned")


def _blur(function, arguments, expected, what):
    """How far the result moves if the arguments do by some ulps: what no mode can be expected to know better."""
    leaves, structure = pytree.tree_flatten(arguments)
    generator = torch.Generator().manual_seed(1)
    blur = None
    for _ in range(6):
        moved = [_jitter(x, generator) if isinstance(x, torch.Tensor) else x for x in leaves]
        deviation = _deviation(function(*structure.unflatten(moved)), expected, what)
        blur = deviation if blur is None else [max(pair) for pair in zip(blur, deviation, strict=True)]
    return blur


def _jitter(x, generator):
    if not x.is_floating_point():
        return x
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.finfo(x.dtype).eps
    return (x.double() * (1 + 2 * eps * noise)).to(x.dtype)


# --- modes -------------------------------------------------------------------------------------------------------


def tensors(program, steps):
    """Hyperparameters as tensors without dimensions give the numbers that numbers give."""
    h = pytree.tree_map(lambda x: torch.tensor(x, dtype=torch.float64), program.hypers)
    tx = program.build(h)
    plain = program.build(program.hypers)
    same_kind(tx.init(steps[0].params), steps[0].state)
    for step in steps:
        got = tx.update(step.gradients, step.state, step.params)
        agree(got, (step.updates, step.new_state), plain.update, step[:3], "results with tensors", 64)


def fake(program, steps):
    """With tensors that have no values, as in a compiler: results of the same kinds."""
    tx, step = program.build(program.hypers), steps[0]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        gradients, params = (
            pytree.tree_map(lambda x: None if x is None else mode.from_tensor(x.clone()), t)
            for t in (step.gradients, step.params)
        )
        got = tx.update(gradients, tx.init(params), params)
    same_kind(got, (step.updates, step.new_state))


def same_kind(state, expected):
    if pytree.tree_structure(state) != pytree.tree_structure(expected) or _kinds(state) != _kinds(expected):
        raise Finding(f"states are of other kinds: {state}, expected {expected}")


def tracked(program, steps):
    """Where a derivative may be asked for, and asked for, the numbers are the same; with none of them NaN."""
    tx = program.build(program.hypers)
    for step in steps:
        gradients, params = (pytree.tree_map(_leaf, x) for x in (step.gradients, step.params))
        got = tx.update(gradients, step.state, params)
        values = pytree.tree_map(_detached, got)
        agree(values, (step.updates, step.new_state), tx.update, step[:3], "results that torch tracks", 64)
        outputs = [x for x in pytree.tree_leaves(got[0]) if x is not None and x.requires_grad]
        inputs = [x for x in pytree.tree_leaves((gradients, params)) if x is not None]
        if outputs and program.tame and _finite(step):
            total = sum(x.double().sum() for x in outputs)
            derivatives = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
            narrow = any(x.dtype in (torch.bfloat16, torch.float16) for x in inputs)
            if not narrow and any(x.isnan().any() for x in derivatives):
                raise Finding(f"a derivative is NaN: {derivatives}")


def _leaf(x):
    return None if x is None else x.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def _detached(x):
    return x.detach() if isinstance(x, torch.Tensor) else x


def saved(program, steps):
    """Pickled, saved, loaded into a state of the same kind and continued: the same bits."""
    last = steps[-1]
    tx = pickle.loads(pickle.dumps(program.build(program.hypers)))
    everything = {"params": last.params, "state": last.state}
    like = {"params": steps[0].params, "state": tx.init(steps[0].params)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / random.choice(["run.pt", "run.safetensors"])
        bx.save(path, everything)
        loaded = bx.load(path, like=like)
    same(loaded, everything, "what was loaded")
    same(tx.update(last.gradients, loaded["state"], loaded["params"]), (last.updates, last.new_state), "after loading")


def packed(program, steps):
    """Packed parameters: the same numbers where no sums are, else up to rounding."""
    if "(lambda x" in program.params:
        raise Skipped("tied parameters would part")
    if any("packed" in e.exempt for e in _entries(program)):
        raise Skipped("exempt")
    if "freeze_active" in program.transformation:
        raise Skipped("its state has other paths packed")
    plain = program.build(program.hypers)
    tx = bx.packed(plain)
    for number, step in enumerate(steps):
        if number == 0:
            state = clearly(tx.init, step.params)
            before = state
        else:
            # The state that the reference has, laid out as the packed one.
            state = bx.state_from_dict(
                {("inner." + k if k else "inner"): v for k, v in bx.state_to_dict(step.state).items()}, like=before
            )
        updates, state = tx.update(step.gradients, state, step.params)
        there = {name.removeprefix("inner").removeprefix("."): x for name, x in bx.state_to_dict(state).items()}
        got = (updates, there)

        def flat(g, s, p):
            u, s = plain.update(g, s, p)
            return u, bx.state_to_dict(s)

        expected = (step.updates, bx.state_to_dict(step.new_state))
        agree(got, expected, flat, step[:3], "results of packed parameters", 64)


def _entries(program):
    return [BY_NAME[name] for name in BY_NAME if f"entry({name!r}" in program.transformation]


def batch(program, members):
    """The hyperparameters of an ensemble's members, and their parameters."""

    def vary(name, value, i):
        if name in ("lower", "upper"):
            return value * (1 + 0.25 * i)
        if name == "weight":
            return value * (1 - 0.125 * i)
        return value * (1 + 0.5 * i)

    each = [
        tuple(
            Hyper(*(torch.tensor(vary(n, v, i), dtype=torch.float64) for n, v in zip(Hyper._fields, h, strict=True)))
            for h in program.hypers
        )
        for i in range(members)
    ]
    return each


def stack(trees):
    return pytree.tree_map(lambda *xs: None if xs[0] is None else torch.stack(xs), *trees)


def take(values, index):
    return pytree.tree_map(lambda x: None if x is None else x[index], values)


def _member_runs(program, steps, members, shared):
    """For each member its hyperparameters and the steps of a loop over members."""
    runs = []
    for i, h in enumerate(batch(program, members)):
        tx = clearly(program.build, h)
        params = pytree.tree_map(lambda x: None if x is None else (x * (1 - 0.25 * i)).to(x.dtype), steps[0].params)
        if shared:
            params = pytree.tree_map(_clone, steps[0].params)
        state, run = clearly(tx.init, params), []
        for number in range(len(steps)):
            gradients = program.gradient(number, params, seed=i)
            updates, new = tx.update(gradients, state, params)
            run.append(Step(gradients, state, params, updates, new))
            params, state = bx.apply_updates(params, updates), new
        runs.append((h, run))
    return runs


def vmapped(program, steps, nested=False, shared=False):
    """A batch of members, each with hyperparameters of its own, equals a loop over them."""
    members = 4 if nested else MEMBERS
    if not pytree.tree_leaves(steps[0].params) or all(x is None for x in pytree.tree_leaves(steps[0].params)):
        raise Skipped("vmap needs a tensor")
    runs = _member_runs(program, steps, members, shared)
    h = stack([h for h, _ in runs])
    first = [run[0] for _, run in runs]
    lift = (lambda f, dims: vmap(vmap(f, dims), dims)) if nested else vmap
    fold = (lambda xs: [x.reshape(2, 2, *x.shape[1:]) for x in xs]) if nested else list
    params = fold(tree.leaves(first[0].params if shared else stack([s.params for s in first])))
    if shared:
        params = tree.leaves(first[0].params)
    hypers = fold(tree.leaves(h))
    dims = None if shared else 0

    init = _on_leaves(lambda h, p: program.build(h).init(p), (runs[0][0], first[0].params))
    states = lift(init, (0, dims))(hypers, params)
    if nested:
        states = [x.flatten(0, 1) for x in states]
    for i, step in enumerate(first):
        got = init.rebuilt([x[i] for x in states])
        agree(got, step.state, lambda *a: step.state, (step.params,), "vmapped init", 16)  # noqa: B023
    update = _on_leaves(lambda h, g, s, p: program.build(h).update(g, s, p), (runs[0][0], *first[0][:3]))
    run_update = lift(update, (0, 0, 0, dims))
    for number in range(1 if shared else len(steps)):
        each = [run[number] for _, run in runs]
        g, s, p = (fold(tree.leaves(stack([step[k] for step in each]))) for k in range(3))
        got = run_update(hypers, g, s, params if shared else p)
        if nested:
            got = [x.flatten(0, 1) for x in got]
        for i, step in enumerate(each):
            if not _finite(step[:3]):
                continue  # it is the others that must be untouched
            alone = lambda *a, i=i: program.build(runs[i][0]).update(*a)  # noqa: E731
            mine = update.rebuilt([x[i] for x in got])
            agree(mine, (step.updates, step.new_state), alone, step[:3], f"member {i} of a vmapped update", 64)


class _on_leaves:  # noqa: N801
    """A function of lists of tensors, since torch.func.vmap takes no None: those of trees are left out."""

    def __init__(self, function, examples):
        self.function = function
        self.structures = [tree.flatten(example)[1] for example in examples]
        self.structure = None

    def __call__(self, *lists):
        arguments = [tree.unflatten(s, list(x)) for s, x in zip(self.structures, lists, strict=True)]
        leaves, self.structure = tree.flatten(self.function(*arguments))
        return leaves

    def rebuilt(self, leaves):
        return tree.unflatten(self.structure, leaves)


def nested(program, steps):
    vmapped(program, steps[:1], nested=True)


def shared(program, steps):
    """Members that differ in hyperparameters and gradients alone, with the same parameters."""
    vmapped(program, steps, shared=True)


def compiled(program, steps, backend="aot_eager", ulps=64.0):
    """Compiled whole, and not again for the next step."""
    tx = program.build(program.hypers)
    run = torch.compile(tx.update, fullgraph=True, backend=backend)
    for number, step in enumerate(steps):
        with torch._dynamo.config.patch(error_on_recompile=number > 0 and not _layout_changes(steps, number)):
            got = run(*_fresh(step[:3]))
        agree(got, (step.updates, step.new_state), tx.update, step[:3], "compiled results", ulps)


def _layout_changes(steps, number):
    """Whether strides are others than in the first step, for which torch compiles anew."""
    def strides(step):
        return [(x.stride(), x.storage_offset()) for x in pytree.tree_leaves(step[:3]) if x is not None]

    return strides(steps[0]) != strides(steps[number])


def _fresh(values):
    """Copies that lie as the originals do."""
    return pytree.tree_map(lambda x: None if x is None else x.clone(memory_format=torch.preserve_format), values)


def inductor(program, steps):
    compiled(program, steps, "inductor", 256.0)


def compiled_vmap(program, steps):
    """The first step of an ensemble, made and run inside of what is compiled."""
    if "None" in program.params or not pytree.tree_leaves(steps[0].params):
        raise Skipped("vmap takes no None, nor nothing")
    runs = _member_runs(program, steps[:1], MEMBERS, False)
    update = vmap(lambda h, g, s, p: program.build(h).update(g, s, p))
    arguments = (stack([h for h, _ in runs]), *(stack([run[0][k] for _, run in runs]) for k in range(3)))
    got = torch.compile(update, fullgraph=True, backend="aot_eager")(*arguments)
    for i, (h, (step,)) in enumerate(runs):
        if _finite(step[:3]):
            alone = lambda *a, h=h: program.build(h).update(*a)  # noqa: E731
            agree(take(got, i), (step.updates, step.new_state), alone, step[:3], f"member {i}, compiled,", 64)


def donated(program, steps, backend="aot_eager"):
    """A compiled step that writes over its arguments, over the whole run."""
    if "(lambda x" in program.params:
        raise Skipped("shared memory is refused")
    tx = program.build(program.hypers)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return bx.apply_updates(params, updates), state, updates

    run = bx.compile(step, donate_argnums=(0, 1), backend=backend)
    for s in steps:
        arguments = pytree.tree_map(lambda x: None if x is None else x.clone(memory_format=torch.contiguous_format), (s.params, s.state, s.gradients))
        gradients = _fresh(arguments[2])
        params, state, updates = run(*arguments)
        same(arguments[2], gradients, "gradients, which were not donated,")
        expected = (bx.apply_updates(s.params, s.updates), s.new_state, s.updates)
        agree((params, state, updates), expected, lambda g, st, p: step(p, st, g), s[:3], "donated results", 64 if backend != "inductor" else 256)


def donated_inductor(program, steps):
    donated(program, steps, "inductor")


def _names(params):
    leaves = [x for x in pytree.tree_leaves(params) if x is not None]
    return {path or "w": x for path, x in zip(tree.paths(params), tree.leaves(params), strict=True)} if leaves else {}


def torch_optimizer(program, steps, fused=False):
    """The same bits as of the functional steps on a dict, resumed from a state dict half-way."""
    if "(lambda x" in program.params:
        raise Skipped("the same parameter twice")
    if any("packed" in e.exempt for e in _entries(program)):
        raise Skipped("gradients of other shapes")
    flat = _names(steps[0].params)
    if not flat:
        raise Skipped("torch refuses an empty list")
    flat = {name: x.clone(memory_format=torch.contiguous_format) for name, x in flat.items()}
    make = lambda: program.build(program.hypers)  # noqa: E731
    tx = clearly(make)
    clearly(tx.init, flat)
    params = dict(flat)
    state = tx.init(params)
    modules = {name: torch.nn.Parameter(x.clone()) for name, x in flat.items()}
    optimizer = bx.TorchOptimizer(list(modules.items()), make(), fused=fused)
    for number in range(len(steps)):
        gradients = program.gradient(number, params)
        try:
            updates, state_new = tx.update(gradients, state, params)
        except (ValueError, TypeError) as error:
            raise Refused(str(error)) from error
        expected = bx.apply_updates(params, updates)
        for name, parameter in modules.items():
            parameter.grad = gradients[name].clone()
        if number == 1:
            kept = optimizer.state_dict()
            modules = {name: torch.nn.Parameter(x.detach().clone()) for name, x in modules.items()}
            optimizer = bx.TorchOptimizer(list(modules.items()), make(), fused=fused)
            optimizer.load_state_dict(kept)
            for name, parameter in modules.items():
                parameter.grad = gradients[name].clone()
        optimizer.step()
        got = {name: x.detach() for name, x in modules.items()}
        if fused:
            agree(got, expected, lambda g, s, p: bx.apply_updates(p, tx.update(g, s, p)[0]), (gradients, state, params), "fused steps", 256)
            with torch.no_grad():
                return
        same(got, expected, "steps of the torch optimizer")
        params, state = expected, state_new


def fused(program, steps):
    torch_optimizer(program, steps[:1], fused=True)


def dtensor(program, steps):
    """Sharded on one process: the same numbers."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    if "freeze_active" in program.transformation and "packed" in program.transformation:
        raise Skipped("its state has other paths packed")
    mesh = _mesh()

    def cut(x):
        return None if x is None else distribute_tensor(x.contiguous(), mesh, [Shard(0)] if x.ndim else [Replicate()])

    put = lambda values: pytree.tree_map(cut, values)  # noqa: E731
    full = lambda values: pytree.tree_map(lambda x: None if x is None else sharded.whole(x), values)  # noqa: E731
    tx = program.build(program.hypers)
    params = put(steps[0].params)
    state = clearly(tx.init, params)
    for step in steps:
        updates, new = tx.update(put(step.gradients), state, params)
        for x in pytree.tree_leaves(new):
            if isinstance(x, DTensor) and any(p.is_partial() for p in x.placements):
                raise Finding("a state holds parts of a sum")
        expected = (step.updates, bx.state_to_dict(step.new_state))

        def flat(g, s, p):
            u, s = tx.update(g, s, p)
            return u, bx.state_to_dict(s)

        agree((full(updates), full(bx.state_to_dict(new))), expected, flat, step[:3], "sharded results", 256)
        params = bx.apply_updates(params, updates)
        state = new
        if _deviation(full(params), bx.apply_updates(step.params, step.updates), "parameters") != [0.0] * len(pytree.tree_leaves(params)):
            break  # roundings have parted; later steps have other arguments


def _mesh():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))


# How often each is run: those that compile take seconds.
MODES = {
    "tensors": (tensors, 1.0),
    "tracked": (tracked, 1.0),
    "fake": (fake, 0.3),
    "saved": (saved, 0.2),
    "packed": (packed, 0.6),
    "vmapped": (vmapped, 0.25),
    "nested": (nested, 0.1),
    "shared": (shared, 0.1),
    "torch_optimizer": (torch_optimizer, 0.2),
    "dtensor": (dtensor, 0.04),
    "compiled": (compiled, 0.01),
    "compiled_vmap": (compiled_vmap, 0.005),
    "donated": (donated, 0.005),
    "inductor": (inductor, 0.001),
    "donated_inductor": (donated_inductor, 0.001),
    "fused": (fused, 0.001),
}
COMPILES = ("compiled", "compiled_vmap", "donated", "inductor", "donated_inductor", "fused")


def check(program: Program, *modes: str) -> dict[str, str]:
    """Run a program in some modes, all but those that compile if none is named, and say how each went."""
    steps = reference(program)
    outcome = {}
    for mode in modes or [name for name in MODES if name not in COMPILES]:
        try:
            MODES[mode][0](program, steps)
            outcome[mode] = "ok"
        except (Refused, Skipped) as reason:
            outcome[mode] = type(reason).__name__.lower() + (" ill-conditioned" if "ill" in str(reason) else "")
        finally:
            if mode in COMPILES:
                torch._dynamo.reset()
    return outcome
