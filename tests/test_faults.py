"""Things that go wrong in the middle: errors, interrupts, full disks, changed bits, NaN in one problem of many.

What each leaves behind stands in ``docs/guarantees.md``. Killed processes are in ``test_checkpoint.py`` and
``test_distributed.py``.
"""

import functools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile

import pytest
import torch
import torch.utils._pytree as pytree
from torch.func import vmap

import boxopt as bx
from boxopt.core.donation import is_consumed
from tests.registry import ENTRIES, Hyper

SPOILED = 77


@pytest.fixture
def interruptible():
    """Ctrl-C raises, also where the shell has started the tests in the background, with the signal ignored."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def rest(value):
    """All members but the two that are spoiled."""
    return torch.cat([value[:SPOILED], value[SPOILED + 2 :]])


# NaN storms.


def members_run(transformation, count, spoil):
    """Where so many members of an ensemble are after two steps; two of them have gradients that are not finite."""
    g = torch.Generator().manual_seed(0)
    params = {"w": torch.rand(count, 3, generator=g) - 0.5, "b": torch.rand(count, 2, generator=g) - 0.5}
    state = vmap(transformation.init)(params)
    for _ in range(2):
        gradients = pytree.tree_map(lambda x: torch.randn(x.shape, generator=g), params)
        if spoil:
            gradients["w"][SPOILED], gradients["b"][SPOILED + 1] = torch.nan, torch.inf
        updates, state = vmap(transformation.update)(gradients, state, params)
        params = bx.apply_updates(params, updates)
    return params


def has_state(entry):
    return pytree.tree_leaves(entry.build(Hyper()).init({"w": torch.zeros(3), "b": torch.zeros(2)}))


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if has_state(entry) and not entry.quick], ids=str)
def test_a_member_touches_no_other(entry):
    """To the bit. (Of the quick entries too, all 155 have been tried.)"""
    expected, found = (members_run(entry.build(Hyper()), 200, spoil) for spoil in (False, True))
    for name in expected:
        assert torch.equal(rest(found[name]), rest(expected[name]))


def test_two_of_ten_thousand_members_touch_no_other():
    tx = bx.chain(bx.tangent(BOX), bx.clip_by_global_norm(1.0), bx.adamw(0.1), bx.project(BOX), bx.barrier(BOX, 0.01))
    expected, found = (members_run(tx, 10_000, spoil) for spoil in (False, True))
    for name in expected:
        assert torch.equal(rest(found[name]), rest(expected[name]))
    assert not found["w"][SPOILED].isfinite().any()


def quartic(x, matrix, centre):
    return ((matrix @ x - centre) ** 2).sum() + 0.1 * (x**4).sum()


BOX = bx.Box(-0.5, 0.5)
SOLVERS = {
    "lbfgsb": lambda: bx.lbfgsb(BOX),
    "spg": lambda: bx.spg(BOX),
    "projected_newton": lambda: bx.projected_newton(BOX),
    "interior_point": lambda: bx.interior_point(BOX),
    "fista": lambda: bx.fista(BOX),
    "adam": lambda: bx.chain(bx.adam(0.05), bx.project(BOX)),
}


def problems(count):
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(count, 3, 3, generator=g, dtype=torch.float64)
    return torch.zeros(count, 3, dtype=torch.float64), matrix, torch.randn(count, 3, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_problem_touches_no_other(name):
    """To the bit, for every solver: what is NaN or infinite from the start, and what overflows on the way."""
    start, matrix, centre = problems(10_000 if name == "lbfgsb" else 300)
    spoiled = matrix.clone()
    spoiled[SPOILED : SPOILED + 2] *= torch.tensor([torch.nan, torch.inf], dtype=torch.float64)[:, None, None]
    spoiled[5] *= 1e200
    expected, found = (
        bx.minimize(quartic, start, SOLVERS[name](), args=(each, centre), batch_dims=1, max_steps=15)
        for each in (matrix, spoiled)
    )
    for one, other in zip(found[:5], expected[:5], strict=True):
        assert torch.equal(rest(one)[6:], rest(other)[6:])
    assert (found.status[SPOILED : SPOILED + 2] == bx.Status.NONFINITE).all()
    assert (found.params[SPOILED : SPOILED + 2] == 0).all()  # where they began


def test_a_fit_touches_no_other():
    start, matrix, centre = problems(10_000)
    spoiled = matrix.clone()
    spoiled[SPOILED], spoiled[SPOILED + 1] = torch.nan, torch.inf

    def residual(x, matrix, centre):
        return matrix @ x - centre + 0.1 * x**2

    expected, found = (
        bx.least_squares(residual, start, BOX, args=(each, centre), batch_dims=1, max_steps=6)
        for each in (matrix, spoiled)
    )
    assert torch.equal(rest(found.params), rest(expected.params))
    assert torch.equal(rest(found.steps), rest(expected.steps))
    assert (found.status[SPOILED : SPOILED + 2] == bx.Status.NONFINITE).all()


# Errors and interrupts in the middle.


class Trouble(Exception):
    pass


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("error", [Trouble, KeyboardInterrupt])
def test_an_objective_that_raises(name, error):
    """What it raises comes out as it is; arguments are as they were, and the next call knows nothing of it."""
    start, matrix, centre = problems(20)
    begin, left, solver = start.clone(), [6], SOLVERS[name]()

    def fun(x, matrix, centre):
        left[0] -= 1
        if left[0] == 0:
            raise error("in the middle")
        return quartic(x, matrix, centre)

    with pytest.raises(error, match="in the middle"):
        bx.minimize(fun, start, solver, args=(matrix, centre), batch_dims=1, max_steps=15)
    assert left == [0]
    assert torch.equal(start, begin)
    again = bx.minimize(fun, start, solver, args=(matrix, centre), batch_dims=1, max_steps=15)
    alone = bx.minimize(quartic, start, SOLVERS[name](), args=(matrix, centre), batch_dims=1, max_steps=15)
    assert torch.equal(again.params, alone.params)


def test_a_callback_that_raises():
    start, matrix, centre = problems(20)

    def callback(progress):
        raise Trouble(str(progress.steps))

    with pytest.raises(Trouble):
        bx.minimize(quartic, start, bx.lbfgsb(BOX), args=(matrix, centre), batch_dims=1, callback=callback)


FAULTS = {"left": 0, "what": None}


@torch.library.custom_op("boxopt_tests::fault", mutates_args=())
def fault(x: torch.Tensor) -> torch.Tensor:
    """The identity, which does something else when its time has come; a kernel that runs out of memory, say."""
    FAULTS["left"] -= 1
    if FAULTS["left"] == 0:
        FAULTS["what"]()
    return x.clone()


@fault.register_fake
def _(x):
    return torch.empty_like(x)


def out_of_memory():
    raise torch.OutOfMemoryError("not enough memory")


def with_fault(params, state, gradients):
    updates, state = ADAM.update(gradients, state, params)
    middle = fault(updates["w"])  # what comes before it is a kernel, and what comes after it another
    return bx.apply_updates(params, {"w": middle, "b": updates["b"] * middle.mean()}), state


ADAM = bx.chain(bx.adam(0.1), bx.project(bx.Box(-1.0, 1.0)))


@functools.cache
def faulty_step():
    torch._dynamo.reset()
    return bx.compile(with_fault, donate_argnums=(0, 1))


def faulty_run(what, at):
    """Eight calls of the step, ``what`` happening in one of them: before each, what it is given."""
    FAULTS.update(left=at, what=what)
    params = {"w": torch.linspace(-0.5, 0.5, 6).reshape(2, 3), "b": torch.tensor([0.2, -0.1])}
    results = params, ADAM.init(params)
    for _ in range(8):
        yield results
        results = faulty_step()(*results, GRADIENTS)
    yield results


GRADIENTS = {"w": torch.ones(2, 3), "b": torch.tensor([-1.0, 1.0])}


@pytest.mark.parametrize("at", [1, 2, 4])
def test_out_of_memory_in_a_donated_step(at):
    """It may be old or new or between: its use is refused. What was not donated is as it was, and the step goes on."""
    steps = faulty_run(out_of_memory, at)
    for _ in range(at):
        params, state = next(steps)
    with pytest.raises(torch.OutOfMemoryError, match="not enough memory"):
        next(steps)
    step = faulty_step()
    for spoiled in ((params, state, GRADIENTS), (params, ADAM.init(GRADIENTS), GRADIENTS)):
        with pytest.raises(bx.ConsumedError, match="failed while it ran"):
            step(*spoiled)
    with pytest.raises(bx.ConsumedError, match="failed while it ran"):
        bx.state_to_dict(params)
    assert torch.equal(GRADIENTS["w"], torch.ones(2, 3))
    *_, (params, _) = faulty_run(None, 100)
    assert params["w"].isfinite().all()


def test_an_error_while_a_step_is_compiled_leaves_its_arguments():
    def refuses(params, gradients):
        if params.shape[0] != 2:
            raise ValueError("two of them")
        return params - gradients

    torch._dynamo.reset()
    step, params = bx.compile(refuses, donate_argnums=0), torch.ones(3)
    with pytest.raises(Exception, match="two of them"):
        step(params, params.clone())
    assert torch.equal(params + 0, torch.ones(3))
    assert torch.equal(step(torch.ones(2), torch.ones(2)), torch.zeros(2))
    with pytest.raises(Exception, match="two of them"):
        step(params, params.clone())
    with pytest.raises(Exception, match="two of them"):  # and not that it was consumed
        step(params, params.clone())


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("at", [3, 4, 5])
def test_an_interrupt_in_a_donated_step_waits_for_its_end(at):
    """The arguments then hold the results, as if the step had returned; the run goes on from there to the bit."""
    *_, expected = faulty_run(None, 100)
    steps = faulty_run(lambda: os.kill(os.getpid(), signal.SIGINT), at)
    for _ in range(at):
        results = next(steps)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    for _ in range(8 - at):
        results = faulty_step()(*results, GRADIENTS)
    for one, other in zip(*map(pytree.tree_leaves, (results, expected)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_at_any_time_in_a_compiled_loop():
    """A hundred interrupts: each time parameters and state are of one step, and none of the results is lost."""

    def count(params, state):
        return pytree.tree_map(lambda x: x + 1, params), state + 1

    torch._dynamo.reset()
    step = bx.compile(count, donate_argnums=(0, 1))
    results = step({"a": torch.zeros(50_000), "b": torch.zeros(3)}, torch.zeros(()))
    results = step(*results)
    usual, draw, lost = signal.getsignal(signal.SIGINT), random.Random(0), 0
    for _ in range(100):
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012  (anywhere in the loop)
            while True:  # Python drops an interrupt that comes in a callback of C: then there is another
                sender = threading.Timer(draw.uniform(0, 0.002), os.kill, (os.getpid(), signal.SIGINT))
                sender.start()
                end = time.monotonic() + 1
                while time.monotonic() < end:
                    results = step(*results)
                sender.join()  # it has sent its one
        sender.join()
        params, state = results
        if is_consumed(state):  # it came between the step's return and the assignment
            lost += 1
            results = {"a": torch.zeros(50_000), "b": torch.zeros(3)}, torch.zeros(())
        else:
            assert all((leaf == state).all() for leaf in pytree.tree_leaves(params))
    assert lost <= 4
    assert signal.getsignal(signal.SIGINT) is usual


# Files.


@pytest.mark.skipif(os.name != "posix", reason="limits the size of a process's files")
def test_a_full_disk(tmp_path):
    """The limit on the size of a file stands for the disk: the error is the system's, and the old file is there."""
    code = f"""
import resource, signal, sys, torch, boxopt as bx
paths = [{str(tmp_path)!r} + name for name in ("/run.pt", "/run.safetensors")]
for path in paths:
    bx.save(path, {{"a": torch.ones(10)}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for path in paths:
    for size in (50_000, 1_000_000, 30_000):
        try:
            bx.save(path, {{"a": torch.zeros(size)}})
        except Exception as error:
            print(type(error).__name__)
        else:
            sys.exit("saved")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 6
    assert sorted(os.listdir(tmp_path)) == ["run.pt", "run.safetensors"]
    for name in os.listdir(tmp_path):
        assert bx.load(tmp_path / name, {"a": torch.zeros(10)})["a"].sum() == 10


STATE = {
    "a": torch.arange(50.0),
    "b": {"c": torch.zeros(3, dtype=torch.int64), "half": torch.ones(3).bfloat16(), "none": torch.zeros(0)},
    "n": 3,
}


@pytest.mark.parametrize("name", ["run.pt", "run.safetensors"])
def test_a_changed_bit_is_noticed(name, tmp_path):
    """Six hundred files with one bit of another value: each is refused, or holds the same numbers."""
    path, draw, refused = tmp_path / name, random.Random(0), 0
    bx.save(path, STATE)
    whole = path.read_bytes()
    for _ in range(600):
        bit, content = draw.randrange(8 * len(whole)), bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            found = bx.load(path, STATE)
        except ValueError:
            refused += 1
        else:
            for one, other in zip(*map(pytree.tree_leaves, (found, STATE)), strict=True):
                assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert refused > 300


def test_files_that_would_take_more_memory_than_they_are_long(tmp_path):
    """A compressed archive, and torch's format before 1.6, whose header says how much to allocate."""
    path, bomb = tmp_path / "run.pt", tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(1_000_000)}, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for record in archive.infolist():
            packed.writestr(record.filename, archive.read(record))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ValueError, match="compressed"):
        bx.load(bomb, {"a": torch.zeros(1_000_000)})
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="not a checkpoint"):
        bx.load(path, {"a": torch.zeros(3)})


def test_files_of_others(tmp_path):
    """A model's state dict is a checkpoint; an array, an archive of something else and a text are not."""
    import numpy as np
    from safetensors.torch import save_file

    model, like = torch.nn.Linear(3, 2), {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    torch.save(model.state_dict(), tmp_path / "model.pt")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        assert torch.equal(bx.load(tmp_path / name, like)["weight"], model.weight)
    np.savez(tmp_path / "array.npz", weight=np.zeros(3))
    (tmp_path / "text.pt").write_text("weight: 3")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("array.npz", "text.pt", "empty.safetensors"):
        with pytest.raises(ValueError, match="not a checkpoint"):
            bx.load(tmp_path / name, like)


def test_patterns_of_paths_cannot_blow_up():
    """A pattern that makes backtracking matchers take exponential time, against the paths that make them."""
    sets = bx.sets.ByPath({"*a" * 30 + "b": BOX, "*" * 200 + "c": BOX, "*": BOX})
    start = time.process_time()
    sets.project({"a" * 300: torch.zeros(2)})
    assert time.process_time() - start < 1.0


# Workers.


def _work(seed):
    params = torch.zeros(3)
    state = ADAM.init({"w": params})
    for _ in range(seed):
        updates, state = ADAM.update({"w": torch.ones(3)}, state, {"w": params})
        params = bx.apply_updates(params, updates["w"])
    return params.tolist()


@pytest.mark.filterwarnings(
    r"ignore:os.fork\(\) was called:RuntimeWarning"
)  # by JAX, where a peer's test has been here
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers(method):
    torch.set_num_threads(1)  # a forked process cannot use threads that torch has started
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(_work, [3, 5]) == [_work(3), _work(5)]
