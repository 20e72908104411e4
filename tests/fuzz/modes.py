"""The modes that do not compile, and what must hold in each."""

import pickle
import tempfile
from pathlib import Path

import torch
import torch.utils._cxx_pytree as pytree
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

import boxopt as bx
from boxopt.core import sharded, tree
from tests.fuzz.agreement import Finding, Refused, Skipped, agree, deviation, finite, same, same_kind
from tests.fuzz.members import MEMBERS, member_runs, stack
from tests.fuzz.programs import BY_NAME
from tests.fuzz.reference import clearly


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
        if outputs and program.tame and finite(step):
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
        path = Path(folder) / ("run.pt" if len(str(program)) % 2 else "run.safetensors")
        bx.save(path, everything)
        loaded = bx.load(path, like=like)
    same(loaded, everything, "what was loaded")
    same(tx.update(last.gradients, loaded["state"], loaded["params"]), (last.updates, last.new_state), "after loading")


def packed(program, steps):
    """Packed parameters: the same numbers where no sums are, else up to rounding."""
    if "(lambda x" in program.params:
        raise Skipped("tied parameters would part")
    if any("packed" in e.exempt for e in entries(program)):
        raise Skipped("exempt")
    if "freeze_active" in program.transformation:
        raise Skipped("its state has other paths packed")
    plain = program.build(program.hypers)
    tx = bx.packed(plain)
    dtypes = {x.dtype for x in pytree.tree_leaves(steps[0].params) if x is not None}
    if len(dtypes) > 1 and any(".iterate." in f".{name}" for name in bx.state_to_dict(steps[0].new_state)):
        raise Skipped("a solver's vectors have their numbers in another order")
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


def entries(program):
    return [BY_NAME[name] for name in BY_NAME if f"entry({name!r}" in program.transformation]


def vmapped(program, steps, nested=False, shared=False):
    """A batch of members, each with hyperparameters of its own, equals a loop over them."""
    members = 4 if nested else MEMBERS
    if not pytree.tree_leaves(steps[0].params) or all(x is None for x in pytree.tree_leaves(steps[0].params)):
        raise Skipped("vmap needs a tensor")
    runs = member_runs(program, steps, members, shared)
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
        # A state may begin with a sum over float32 leaves, a snapshot say, which is as coarse in float64.
        agree(got, step.state, lambda *a: step.state, (step.params,), "vmapped init", 64)  # noqa: B023
    update = _on_leaves(lambda h, g, s, p: program.build(h).update(g, s, p), (runs[0][0], *first[0][:3]))
    run_update = lift(update, (0, 0, 0, dims))
    for number in range(1 if shared else len(steps)):
        each = [run[number] for _, run in runs]
        g, s, p = (fold(tree.leaves(stack([step[k] for step in each]))) for k in range(3))
        got = run_update(hypers, g, s, params if shared else p)
        if nested:
            got = [x.flatten(0, 1) for x in got]
        for i, step in enumerate(each):
            if not finite(step[:3]):
                continue  # it is the others that must be untouched
            alone = lambda *a, i=i: program.build(runs[i][0]).update(*a)  # noqa: E731
            mine = update.rebuilt([x[i] for x in got])
            agree(mine, (step.updates, step.new_state), alone, step[:3], f"member {i} of a vmapped update", 64)


class _on_leaves:
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


def _names(params):
    leaves = [x for x in pytree.tree_leaves(params) if x is not None]
    return {path or "w": x for path, x in zip(tree.paths(params), tree.leaves(params), strict=True)} if leaves else {}


def torch_optimizer(program, steps, fused=False):
    """The same bits as of the functional steps on a dict, resumed from a state dict half-way."""
    if "(lambda x" in program.params:
        raise Skipped("the same parameter twice")
    if any("packed" in e.exempt for e in entries(program)):
        raise Skipped("gradients of other shapes")
    flat = _names(steps[0].params)
    if not flat:
        raise Skipped("torch refuses an empty list")
    flat = {name: x.clone(memory_format=torch.contiguous_format) for name, x in flat.items()}
    if fused:  # as they are laid out: labels may go by the order
        flat = dict(sorted(flat.items(), key=lambda item: item[0].split(".")[::-1]))
    make = lambda: program.build(program.hypers)  # noqa: E731
    tx = clearly(make)
    clearly(tx.init, flat)
    params = dict(flat)
    state = tx.init(params)
    modules = {name: torch.nn.Parameter(x.clone()) for name, x in flat.items()}
    optimizer = bx.TorchOptimizer(list(modules.items()), make(), fused=fused)
    for number in range(len(steps)):  # with gradients as autograd lays them out: kernels add in another order otherwise
        gradients = {name: x.clone() for name, x in program.gradient(number, params).items()}
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
            agree(
                got,
                expected,
                lambda g, s, p: bx.apply_updates(p, tx.update(g, s, p)[0]),
                (gradients, state, params),
                "fused steps",
                256,
            )
            with torch.no_grad():
                return
        same(got, expected, "steps of the torch optimizer")
        params, state = expected, state_new


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
        if deviation(full(params), bx.apply_updates(step.params, step.updates), "parameters") != [0.0] * len(
            pytree.tree_leaves(params)
        ):
            break  # roundings have parted; later steps have other arguments


def _mesh():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))
