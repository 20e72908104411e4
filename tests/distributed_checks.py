"""What test_distributed.py checks on several processes; each function runs on all of them."""

import contextlib
import io
import os
import re
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.utils._pytree as pytree
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.func import vmap
from torch.nn.parallel import DistributedDataParallel

import boxopt as bx
from boxopt.core import sharded
from boxopt.solve.track import is_solver_state
from tests.registry import ENTRIES, Hyper
from tests.set_registry import SETS, Numbers

# What looks at all numbers, though it treats each by itself.
LOOKS_AT_ALL = ("multi_steps", "apply_if_finite", "zero_nans")


def two(rank, world, folder):
    mesh = init_device_mesh("cpu", (world,))
    failures = [failure for entry in ENTRIES if (failure := _failure(_entry, entry, mesh))]
    failures += [failure for entry in SETS if (failure := _failure(_set, entry, mesh))]
    for each in (
        bounds,
        norms,
        vectors,
        diagnostics,
        nan_is_seen,
        random_rounding,
        packing,
        captured,
        data_parallel,
        ensemble,
        misuse,
    ):
        failures += [failure] if (failure := _failure(each, None, mesh)) else []
    assert not failures, "\n".join(failures)
    _fully_sharded(mesh, 0, 3, None, folder / "one")
    _members(mesh, 0, 3, None, folder / "one")


def four(rank, world, folder):
    mesh = init_device_mesh("cpu", (world,))
    _fully_sharded(mesh, 3, 6, folder / "one", folder / "two")
    _members(mesh, 3, 6, folder / "one", folder / "two")
    hybrid(init_device_mesh("cpu", (2, 2)))


def one(rank, world, folder):
    mesh = init_device_mesh("cpu", (world,))
    params = _fully_sharded(mesh, 6, 9, folder / "two", None)
    close(full(params), _alone(0, 9), 1e-6)
    assert float(bx.violation(bx.sets.ByPath(EXACT), params)) == 0
    close(full(_members(mesh, 6, 9, folder / "two", None)), _members_alone(0, 9), 1e-6)
    page()
    single_rows(mesh)


def single_rows(mesh):
    """A whole leaf may be one row, and that row all that is cut."""
    x = normal(torch.empty(1, 6, dtype=torch.float64), 0)
    for constraint in (bx.sets.L2Ball(0.5, dim=None), bx.sets.Halfspace(1.0, -3.0, dim=None)):
        got = constraint.project(cut(x, mesh))
        close(full(got), constraint.project(x), 1e-12)
        assert float(constraint.violation(got)) == 0


def page():
    """docs/scale.md prints what it says."""
    text = (Path(__file__).parent.parent / "docs" / "scale.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "scale.md", "exec"), {})
    assert printed.getvalue().splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, flags=re.MULTILINE)


def dies(rank, world, folder):
    if rank == 1:
        os._exit(3)
    torch.distributed.all_reduce(torch.ones(1))


def _failure(check, entry, mesh):
    """What is wrong, as all processes see it; an error on one alone ends all by the time limit."""
    try:
        check(mesh) if entry is None else check(entry, mesh)
    except (AssertionError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} in line {place.lineno} of {place.filename}"
        return f"{check.__name__} {'' if entry is None else entry}: {kind}: {error}"
    return None


def full(tree):
    return pytree.tree_map(sharded.whole, tree)


def cut(tree, mesh, dim=0):
    def place(x):
        return distribute_tensor(x, mesh, [Shard(dim)] if x.ndim > dim else [Replicate()])

    return pytree.tree_map(place, tree)


def close(got, expected, rtol):
    leaves, others = pytree.tree_leaves(got), pytree.tree_leaves(expected)
    assert len(leaves) == len(others)
    for one, other in zip(leaves, others, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol, equal_nan=True, check_dtype=True)


def normal(tree, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda x: torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)  # noqa: E731
    return pytree.tree_map(draw, tree)


def example(rows=5, dtype=torch.float32):
    shapes = {"weight": torch.empty(rows, 2), "bias": torch.empty(4), "scale": torch.empty(())}
    if rows % 2:
        shapes["row"] = torch.empty(1, 3)  # of which one process has nothing
    return pytree.tree_map(lambda x: x.mul(0.5).clamp(-0.9, 0.7).to(dtype), normal(shapes, 0))


# --- every entry of the registries -------------------------------------------------------------------------------


def _steps(tx, params, put, steps=2):
    params = put(params)
    state = tx.init(params)
    communication = bx.count_communication()
    for step in range(steps):
        noise = put(normal(full(params), step))
        gradients = pytree.tree_map(lambda p, n: 2 * p + n, params, noise)
        with communication:
            updates, state = tx.update(gradients, state, params)
            params = bx.apply_updates(params, updates)
    return params, state, communication


def _entry(entry, mesh):
    """Parameters that are cut unevenly give the numbers of whole ones; states are whole or cut, never parts of sums."""
    tx = entry.build(Hyper())
    params = example(6 if "packed" in entry.names else 5)
    if is_solver_state(tx.init(params)):
        with pytest.raises(TypeError, match="one vector, which a DTensor's parts are not"):
            tx.init(cut(params, mesh))
        return
    expected, expected_state, _ = _steps(tx, params, lambda tree: tree)
    got, state, communication = _steps(tx, params, lambda tree: cut(tree, mesh))
    assert [x.placements for x in got.values()] == [x.placements for x in cut(params, mesh).values()]
    for leaf in pytree.tree_leaves(state):
        assert not isinstance(leaf, DTensor) or not any(p.is_partial() for p in leaf.placements)
    close(full(got), expected, 1e-6)
    close(full(bx.state_to_dict(state)), bx.state_to_dict(expected_state), 1e-5)
    if "stacked" not in entry.exempt and not any(name in LOOKS_AT_ALL for name in entry.names):
        assert communication.calls.total() == 0, communication.calls


def _set(entry, mesh):
    """Cut between vectors nothing is communicated; cut along them, the numbers are the same."""
    constraint = entry.build(Numbers())
    x = 2 * normal(torch.empty(entry.shape, dtype=torch.float64), 1)
    update, step = normal(x, 2), normal(x, 3).abs() + 0.1
    functions = {
        "project": lambda x, u, s: constraint.project(x),
        "metric": lambda x, u, s: constraint.project(x, s),
        "violation": lambda x, u, s: constraint.violation(x),
        "step": lambda x, u, s: constraint.step(x, u, s),
        "tangent": lambda x, u, s: constraint.tangent(x, u),
        "linear minimizer": lambda x, u, s: constraint.linear_minimizer(u),
    }
    for name, function in functions.items():
        try:
            expected = function(x, update, step)
        except NotImplementedError:
            continue
        for dim in (0, 1):
            arguments = cut((x, update, step), mesh, dim)
            with bx.count_communication() as communication:
                got = function(*arguments)
            try:
                torch.testing.assert_close(sharded.whole(got), expected, rtol=1e-9, atol=1e-9, equal_nan=True)
            except AssertionError as error:
                raise AssertionError(f"{name}, cut along {dim}: {error}") from None
            if name == "violation":
                assert not isinstance(got, DTensor)
            else:
                assert got.placements == (Shard(dim),), name
            if dim == 0 and name != "violation" and not isinstance(constraint, bx.sets.Intersection):
                assert communication.calls.total() == 0, (name, communication.calls)


# --- exchanges ---------------------------------------------------------------------------------------------------


def bounds(mesh):
    """Bounds that are plain tensors are cut as the parameters are."""
    params = {"weight": example()["weight"], "bias": example()["bias"]}
    lower = {"weight": torch.linspace(-0.5, 0.5, 10).reshape(5, 2), "bias": torch.tensor([-0.1, 0.0, 0.1, 0.2])}
    for box in (bx.Box(lower, 1.0), bx.Box({"weight": torch.tensor([-0.25, 0.25]), "bias": None}, 0.5)):
        tx = bx.chain(bx.adam(0.1), bx.project(box), bx.barrier(bx.Box(-2.0, 2.0), 1e-3))
        expected, *_ = _steps(tx, params, lambda tree: tree)
        got, _, communication = _steps(tx, params, lambda tree: cut(tree, mesh))
        close(full(got), expected, 0)
        assert communication.calls.total() == 0


def norms(mesh):
    """A norm over all leaves is one number from each process, a ball another, a row's simplex none."""
    params = cut(example(6), mesh)
    with bx.count_communication() as communication:
        tx = bx.clip_by_global_norm(0.1)
        tx.update(params, tx.init(params), params)
    assert dict(communication.calls) == {"all_reduce": 1}
    assert communication.bytes.total() == 4
    x = params["weight"]
    for constraint, calls, most in (
        (bx.sets.Simplex(), {}, 0),
        (bx.sets.L2Ball(1.0, dim=None), {"all_reduce": 1}, 8),
        (bx.sets.Simplex(dim=0), {"all_gather": 1}, x.to_local().nbytes),
    ):
        with bx.count_communication() as communication:
            constraint.project(x)
        assert dict(communication.calls) == calls, (constraint, communication.calls)
        assert communication.bytes.total() <= most, (constraint, communication.bytes)


def vectors(mesh):
    """Each row's own radius, and values of all rows, cut between the rows, along them, and unevenly."""
    x = normal(torch.empty(5, 4, dtype=torch.float64), 7)
    radius = torch.linspace(0.5, 2.5, 5, dtype=torch.float64)
    ball = bx.sets.L2Ball(radius)
    inside = bx.sets.L2Ball(0.9 * radius).project(x)
    for dim in (0, 1):
        there = cut(x, mesh, dim)
        close(full(ball.project(there)), ball.project(x), 1e-12)
        close(float(ball.violation(there)), float(ball.violation(x)), 1e-12)
        for value, at in ((ball.barrier, inside), (bx.regularizers.GroupLasso(radius), x), (ball.violation, x)):
            arguments = cut(at, mesh, dim)
            with bx.count_communication() as communication:
                got = sharded.whole(value(arguments))
            close(got, value(at), 1e-12)
            assert dim or communication.calls.total() == 1


def diagnostics(mesh):
    """What only one process can see, all are told."""
    params = {"a": torch.tensor([0.5, 0.5, 0.5, 1.25]), "b": torch.tensor([0.0])}
    for values in (params, {"a": params["a"].flip(0), "b": params["b"]}):
        there, box = cut(values, mesh), bx.Box(0.0, 1.0)
        with bx.count_communication() as communication:
            assert float(bx.violation(box, there)) == 0.25
        assert communication.calls.total() == 1
        assert not bool(bx.is_feasible(box, there))
        assert float(bx.optimality(box, there, pytree.tree_map(torch.zeros_like, there))) == 0.25
        close(full(bx.diagnostics.active(box, there)), bx.diagnostics.active(box, values), 0)
        assert float(bx.penalty(box, there)) == float(bx.penalty(box, values))
        gathered = full(bx.apply_updates(there, pytree.tree_map(torch.zeros_like, there), within=box))
        assert float(bx.violation(box, gathered)) == 0


def nan_is_seen(mesh):
    """gloo's maximum loses a NaN that is not the first process's."""
    for place in (0, 3):
        x = torch.zeros(4)
        x[place] = torch.nan
        assert bx.violation(bx.Box(0.0, 1.0), cut({"x": x}, mesh)).isnan()
        tx = bx.skip_nonfinite(bx.sgd(0.1))
        there = cut({"x": x}, mesh)
        updates, state = tx.update(there, tx.init(there), there)
        assert not bool(state.last_finite)
        assert full(updates)["x"].eq(0).all()


def random_rounding(mesh):
    """Random numbers do not depend on where they are drawn."""
    params = example(5, torch.bfloat16)
    for tx in (bx.stochastic_rounding(bx.adam(0.01), seed=3), bx.noisy_sgd(0.1, 0.3)):
        expected, *_ = _steps(tx, params, lambda tree: tree)
        got, *_ = _steps(tx, params, lambda tree: cut(tree, mesh))
        close(full(got), expected, 0)


def packing(mesh):
    """Packed parameters: no exchange for elementwise chains, one number for a norm, states in the files as unpacked."""
    params = example(6)
    box = bx.Box({"weight": torch.linspace(-0.5, 0.5, 12).reshape(6, 2), "bias": -0.25, "scale": None}, 0.75)
    rates = {"weight": 0.1, "bias": 0.2, "scale": 0.3}
    plain = bx.chain(bx.clip_by_global_norm(1.0), bx.scale_by_adam(), bx.scale(rates), bx.scale(-1.0), bx.project(box))
    tx = bx.packed(plain)
    expected, expected_state, _ = _steps(plain, params, lambda tree: tree)
    got, state, communication = _steps(tx, params, lambda tree: cut(tree, mesh))
    close(full(got), expected, 1e-6)
    assert communication.bytes.total() == 2 * 4  # in two steps
    there = {name.removeprefix("inner."): x for name, x in bx.state_to_dict(state).items()}
    close(full(there), bx.state_to_dict(expected_state), 1e-6)
    again = bx.state_from_dict(bx.state_to_dict(state), like=tx.init(cut(params, mesh)))
    close(full(bx.state_to_dict(again)), full(bx.state_to_dict(state)), 0)


def captured(mesh):
    """torch.compile takes a step of sharded parameters whole."""
    tx = bx.chain(bx.clip_by_global_norm(0.1), bx.adam(0.1), bx.project(bx.Box(-0.5, 0.5)))
    params = cut(example(6), mesh)

    def step(params, state):
        updates, state = tx.update(params, state, params)
        return bx.apply_updates(params, updates), state

    state = tx.init(params)
    close(full(torch.compile(step, fullgraph=True, backend="eager")(params, state)), full(step(params, state)), 1e-6)


def misuse(mesh):
    with pytest.raises(ValueError, match="not divided evenly"):
        bx.pack(cut(example(5), mesh))
    with pytest.raises(ValueError, match="not sharded"):
        bx.pack({"a": cut(torch.zeros(4), mesh), "b": torch.zeros(4)})
    with pytest.raises(ValueError, match="a mesh of one dimension"):
        bx.shard_members(torch.zeros(4), init_device_mesh("cpu", (1, mesh.size())))
    with pytest.raises(ValueError, match="without one"):
        bx.shard_members(torch.zeros(1, 3), mesh)
    with pytest.raises(ValueError, match="no argument is sharded"):
        bx.on_members(lambda x: x)(torch.zeros(4))
    with pytest.raises(ValueError, match="members in front"):
        bx.on_members(lambda x: x.sum(0))(bx.shard_members(torch.zeros(4, 3), mesh))
    with pytest.raises(ValueError, match="cut along their first dimension"):
        bx.on_members(lambda x: x)(cut(torch.zeros(4, 4), mesh, 1))


# --- training ----------------------------------------------------------------------------------------------------

EXACT = {"0.weight": bx.Box(-0.3, 0.3), "2.weight": bx.sets.L2Ball(0.5)}
SET = bx.sets.ByPath({**EXACT, "2.bias": bx.sets.Simplex(0.25)})


def _tx(packed=False):
    if packed:
        return bx.packed(bx.chain(bx.clip_by_global_norm(0.5), bx.adam(0.05), bx.project(bx.Box(-0.3, 0.3))))
    return bx.chain(bx.clip_by_global_norm(0.5), bx.adam(0.05), bx.project(SET))


def _model():
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
    with torch.no_grad():
        for param, value in zip(model.parameters(), normal(list(model.parameters()), 5), strict=True):
            param.copy_(0.2 * value)
    return model


def _train(model, tx, state, first, last, rank, world):
    """Steps in which each process sees its part of the examples, and gradients are averaged by the model's wrapper."""
    params = dict(model.named_parameters())
    state = tx.init(params) if state is None else state
    for step in range(first, last):
        x, y = normal([torch.empty(12, 6), torch.empty(12, 3)], 100 + step)
        (model(x[rank::world]) - y[rank::world]).square().mean().backward()
        with torch.no_grad():
            gradients = {name: param.grad for name, param in params.items()}
            updates, state = tx.update(gradients, state, params)
            for param, new in zip(params.values(), bx.apply_updates(params, updates).values(), strict=True):
                param.copy_(new)
        model.zero_grad()
    return {name: param.detach() for name, param in params.items()}, state


def _alone(first, last, packed=False):
    return _train(_model(), _tx(packed), None, first, last, 0, 1)[0]


def data_parallel(mesh):
    """DDP and FSDP2 with the step of one process."""
    rank, world = mesh.get_rank(), mesh.size()
    wrapped = DistributedDataParallel(_model())
    got, _ = _train(wrapped, bx.chain(bx.clip_by_global_norm(0.5), bx.adam(0.05)), None, 0, 3, rank, world)
    expected, _ = _train(_model(), bx.chain(bx.clip_by_global_norm(0.5), bx.adam(0.05)), None, 0, 3, 0, 1)
    close(list(got.values()), list(expected.values()), 1e-6)
    model = _model()
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    got, _ = _train(model, _tx(), None, 0, 3, rank, world)
    close(full(got), _alone(0, 3), 1e-6)
    assert float(bx.violation(bx.sets.ByPath(EXACT), got)) == 0


def _fully_sharded(mesh, first, last, source, target):
    model = _model()
    fully_shard(model, mesh=mesh)
    tx, params = _tx(), dict(model.named_parameters())
    state = tx.init(params)
    if source is not None:
        everything = {"params": params, "state": state}
        mapping = bx.state_to_dict(everything)
        dcp.load(mapping, checkpoint_id=source / "model")  # over the numbers of the model
        state = bx.state_from_dict(mapping, like=everything)["state"]
    params, state = _train(model, tx, state, first, last, mesh.get_rank(), mesh.size())
    if target is not None:
        dcp.save(bx.state_to_dict({"params": params, "state": state}), checkpoint_id=target / "model")
    return params


# --- ensembles ---------------------------------------------------------------------------------------------------

MEMBERS = 10


def _population():
    params = {"w": normal(torch.empty(MEMBERS, 3, 2), 7).clamp(-0.5, 0.5), "b": torch.zeros(MEMBERS, 2)}
    return params, torch.linspace(0.01, 0.1, MEMBERS)


def _member_init(params, rate):
    return bx.chain(bx.adam(rate), bx.project(bx.Box(-0.5, 0.5))).init(params)


def _member_step(params, state, rate, x):
    def loss(p):
        return (x @ p["w"] + p["b"]).sin().square().mean()

    tx = bx.chain(bx.adam(rate), bx.project(bx.Box(-0.5, 0.5)))
    updates, state = tx.update(torch.func.grad(loss)(params), state, params)
    params = bx.apply_updates(params, updates)
    return params, state, loss(params)


def _members_alone(first, last):
    params, rates = _population()
    state = vmap(_member_init)(params, rates)
    for step in range(first, last):
        x = normal(torch.empty(5, 3), 200 + step)
        params, state, _ = vmap(_member_step, in_dims=(0, 0, 0, None))(params, state, rates, x)
    return params


def _members(mesh, first, last, source, target):
    params, rates = bx.shard_members(_population(), mesh)
    state = bx.on_members(vmap(_member_init))(params, rates)
    if source is not None:
        everything = {"params": params, "state": state}
        mapping = bx.state_to_dict(everything)
        dcp.load(mapping, checkpoint_id=source / "members")
        params, state = bx.state_from_dict(mapping, like=everything).values()
    step_members = bx.on_members(vmap(_member_step, in_dims=(0, 0, 0, None)))
    for step in range(first, last):
        params, state, _ = step_members(params, state, rates, normal(torch.empty(5, 3), 200 + step))
    if target is not None:
        dcp.save(bx.state_to_dict({"params": params, "state": state}), checkpoint_id=target / "members")
    return params


def ensemble(mesh):
    """No exchange in a step; the best members by one gather of losses and one of members."""
    params, rates = _population()
    x = normal(torch.empty(5, 3), 200)
    state = vmap(_member_init)(params, rates)
    expected = vmap(_member_step, in_dims=(0, 0, 0, None))(params, state, rates, x)
    with bx.count_communication() as communication:
        there, rates = bx.shard_members((params, rates), mesh)
        state = bx.on_members(vmap(_member_init))(there, rates)
        got = bx.on_members(vmap(_member_step, in_dims=(0, 0, 0, None)))(there, state, rates, x)
    assert communication.calls.total() == 0
    close(full(got), expected, 1e-6)
    with bx.count_communication() as communication:
        best, which = bx.best_members(got[:2], got[2], 3)
    assert dict(communication.calls) == {"all_gather": 1, "all_reduce": 1}
    assert communication.bytes["all_reduce"] == 3 * (3 * 8 * 4 + 8)  # parameters, two moments, a counter
    again, number = bx.shard_members((there, torch.tensor(2.0)), mesh)  # as they are: spread, or for all
    assert again["w"] is there["w"]
    assert number.equal(torch.tensor(2.0))
    assert bx.on_members(lambda x: (x, "name"))(rates)[1] == "name"
    order = expected[2].argsort()[:3]
    assert which.equal(order)
    close(best, pytree.tree_map(lambda x: x[order], full(got[:2])), 0)
    for index in (-1, slice(1, 8, 3), [9, 0, 9]):
        close(bx.take_members(got[0], index), bx.take_members(full(got[0]), index), 0)


def hybrid(mesh):
    """Parameters that are cut over one dimension of a mesh and the same along the other."""
    params = example(6)

    def place(x):
        return distribute_tensor(x, mesh, [Replicate(), Shard(0) if x.ndim else Replicate()])

    tx = bx.chain(bx.clip_by_global_norm(0.5), bx.adamw(0.1), bx.project(bx.sets.L2Ball(1.0, dim=None)))
    for each in (tx, bx.packed(bx.chain(bx.clip_by_global_norm(0.5), bx.adam(0.1), bx.project(bx.Box(-0.5, 0.5))))):
        expected, *_ = _steps(each, params, lambda tree: tree)
        got, *_ = _steps(each, params, lambda tree: pytree.tree_map(place, tree))
        close(full(got), expected, 1e-6)
    box = bx.Box(-0.1, 0.1)
    assert float(bx.violation(box, pytree.tree_map(place, params))) == float(bx.violation(box, params))
