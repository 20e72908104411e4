"""States as dicts and as files: every entry's comes back bit for bit, and nothing is lost on the way."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.utils._pytree as pytree
from safetensors.torch import load_file, save_file
from torch.func import vmap

import boxopt as bx
from boxopt.run import replace
from tests.registry import ENTRIES, Hyper
from tests.test_laws import (
    TREES,
    assert_trees_equal,
    ensemble_hyper,
    every_entry,
    example_params,
    run,
    skip_exempt,
)

FORMATS = ["run.pt", "run.safetensors"]
every_format = pytest.mark.parametrize("name", FORMATS)


def saved_and_loaded(path, state, like):
    bx.save(path, state)
    return bx.load(path, like)


def assert_dicts_equal(one, other):
    assert one.keys() == other.keys()
    for path, x in one.items():
        assert torch.equal(x.nan_to_num(), other[path].nan_to_num()), path
        assert x.dtype == other[path].dtype


# --- resumed runs --------------------------------------------------------------------------------------------------


@every_entry
@every_format
def test_resumes_from_a_file(entry, name, tmp_path):
    params = example_params()
    whole, _, final = run(entry.build(Hyper()), params, 6)
    half, _, state = run(entry.build(Hyper()), params, 3)
    fresh = entry.build(Hyper())
    half, state = saved_and_loaded(tmp_path / name, (half, state), (params, fresh.init(params)))
    resumed, _, resumed_state = run(fresh, half, 3, state, start=3)
    assert_trees_equal((resumed, resumed_state), (whole, final))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_every_entry_resumes_from_one_distributed_checkpoint(tmp_path):
    """Each entry's parameters and state after three steps, saved together by torch's own engine."""
    params = example_params()
    names = [f"{number} {entry}" for number, entry in enumerate(ENTRIES)]
    halves = [run(entry.build(Hyper()), params, 3) for entry in ENTRIES]
    dcp.save(
        {name: bx.state_to_dict((half, state)) for name, (half, _, state) in zip(names, halves, strict=True)},
        checkpoint_id=tmp_path / "run",
    )
    likes = {name: (params, entry.build(Hyper()).init(params)) for name, entry in zip(names, ENTRIES, strict=True)}
    mappings = {name: pytree.tree_map(torch.zeros_like, bx.state_to_dict(like)) for name, like in likes.items()}
    dcp.load(mappings, checkpoint_id=tmp_path / "run")
    for name, entry, (half, _, state) in zip(names, ENTRIES, halves, strict=True):
        loaded, loaded_state = bx.state_from_dict(mappings[name], likes[name])
        assert_trees_equal(
            run(entry.build(Hyper()), loaded, 2, loaded_state, 3), run(entry.build(Hyper()), half, 2, state, 3)
        )


@every_entry
def test_packed_and_vmapped_states_come_back(entry):
    skip_exempt(entry, "packed")
    packed, _ = bx.pack(example_params())
    tx = entry.build(Hyper())
    params, _, state = run(tx, packed, 2)
    mapping = bx.state_to_dict((params, state))
    assert_trees_equal(bx.state_from_dict(mapping, (packed, tx.init(packed))), (params, state))

    def two_steps(params, h):
        tx = entry.build(h)
        return run(tx, params, 2)[2]

    members = example_params(members=3)
    state = vmap(two_steps, randomness="same")(members, ensemble_hyper(3))
    like = vmap(lambda params, h: entry.build(h).init(params))(members, ensemble_hyper(3))
    assert_trees_equal(bx.state_from_dict(bx.state_to_dict(state), like), state)


@pytest.mark.parametrize(
    "build",
    [
        lambda: bx.chain(bx.adam(0.1), bx.project(bx.Box(-1.0, 1.0))),
        lambda: bx.masked(bx.adam(0.1), {"layer": {"weight": True, "bias": False}, "scale": True}),
        lambda: bx.contrib.schedule_free_adamw(0.1, 5),
    ],
    ids=["adam", "masked", "schedule-free"],
)
def test_a_run_continues_packed_or_not(build):
    params = example_params()
    packed, _ = bx.pack(params)
    _, _, leafwise = run(build(), params, 3)
    _, _, together = run(build(), packed, 3)
    mapping = bx.state_to_dict(leafwise)
    assert_dicts_equal(bx.state_to_dict(together), mapping)
    assert_trees_equal(bx.state_from_dict(mapping, build().init(packed)), together)
    assert_trees_equal(bx.state_from_dict(bx.state_to_dict(together), build().init(params)), leafwise)


def test_packed_masters_have_the_names_of_their_leaves():
    """Only leaves of 16 bits have masters; the buffer of the others is empty."""
    params = {"a": torch.tensor([0.5, 0.25], dtype=torch.bfloat16), "b": torch.tensor([0.5]), "c": torch.ones(1).half()}
    plain = bx.master_weights(bx.sgd(0.1, momentum=0.9))
    together = bx.packed(plain)
    _, expected = plain.update(params, plain.init(params), params)
    _, state = together.update(params, together.init(params), params)
    mapping = bx.state_to_dict(state.inner)
    assert_trees_equal(mapping, bx.state_to_dict(expected))
    assert_trees_equal(bx.state_from_dict(mapping, together.init(params).inner), state.inner)


# --- any tree ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TREES)
@every_format
def test_any_tree(kind, name, tmp_path):
    params = TREES[kind]()
    state = bx.adam(0.1).init(params)
    both = {"params": params, "state": state}
    like = pytree.tree_map(lambda x: x if x is None else torch.zeros_like(x), both)
    assert_trees_equal(saved_and_loaded(tmp_path / name, both, like), both)
    packed = {"params": bx.pack(params)[0]}
    assert bx.state_to_dict(packed).keys() == bx.state_to_dict({"params": params}).keys()
    assert_trees_equal(saved_and_loaded(tmp_path / name, packed, packed), packed)


@every_format
def test_batched_packed_trees(name, tmp_path):
    packed, _ = bx.pack(example_params(members=4), batch_dims=1)
    assert_trees_equal(saved_and_loaded(tmp_path / name, packed, packed), packed)


@every_format
def test_sets_numbers_and_keys(name, tmp_path):
    """Sets appear by the names of their attributes, random states by their keys, and numbers keep their kind."""
    tree = {
        "box": bx.Box(torch.tensor(-1.0), {"w": torch.ones(2), "b": None}),
        "ball": bx.sets.L2Ball(torch.tensor(2.0)),
        "noise": bx.add_noise(0.1, 0.5, 42).init(torch.zeros(2)),
        "epoch": 3,
        "best": 0.1,
        "done": False,
        7: torch.tensor(True),
    }
    mapping = bx.state_to_dict(tree)
    assert {"box.lower", "box.upper.w", "ball.radius", "epoch", "7"} <= mapping.keys()
    like = dict(reversed(list(tree.items()))) | {"epoch": 0, "best": 0.0, "done": True}  # the order is another
    loaded = saved_and_loaded(tmp_path / name, tree, like)
    assert list(loaded) == list(like)
    assert_dicts_equal(bx.state_to_dict(loaded), mapping)
    assert (loaded["epoch"], loaded["best"], loaded["done"]) == (3, 0.1, False)
    assert [type(loaded[key]) for key in ("epoch", "best", "done")] == [int, float, bool]
    assert loaded["box"].upper["b"] is None


def test_dots_in_keys():
    """As in the names of a module's parameters; a collision is refused on either way."""
    params = {"0.weight": torch.ones(2), "0": {"bias": torch.zeros(2)}}
    assert list(bx.state_to_dict(params)) == ["0.weight", "0.bias"]
    assert_trees_equal(bx.state_from_dict(bx.state_to_dict(params), params), params)
    clash = {"0.weight": torch.ones(2), "0": {"weight": torch.zeros(2)}}
    for tree in (clash, bx.pack(clash)[0], {0: torch.ones(1), "0": torch.ones(1)}):
        with pytest.raises(ValueError, match=r"two leaves would both be called '0"):
            bx.state_to_dict(tree)
        with pytest.raises(ValueError, match=r"two leaves would both be called '0"):
            bx.state_from_dict({"0.weight": torch.ones(2), "0": torch.ones(1)}, tree)


# --- the tensors ---------------------------------------------------------------------------------------------------


def test_tensors_are_detached_contiguous_and_apart(tmp_path):
    shared = torch.arange(6.0, requires_grad=True)
    state = {
        "whole": shared,
        "again": shared,
        "part": shared[2:4],
        "columns": torch.arange(6.0).reshape(2, 3).T,
        "expanded": torch.zeros(()).expand(4),
        "own": torch.ones(2),
    }
    mapping = bx.state_to_dict(state)
    assert all(x.is_contiguous() and not x.requires_grad for x in mapping.values())
    assert mapping["own"].data_ptr() == state["own"].data_ptr()
    save_file(mapping, tmp_path / "shared.safetensors")  # which refuses tensors that share memory
    assert_dicts_equal(load_file(tmp_path / "shared.safetensors"), mapping)


@every_format
def test_one_number_of_any_stride(name, tmp_path):
    """Torch calls it contiguous, and yet does not view it as bytes."""
    state = {"strided": torch.ones(1, 2)[:, 0], "expanded": torch.tensor(2.0).expand(1)}
    assert_trees_equal(saved_and_loaded(tmp_path / name, state, state), state)


def test_strides_come_back():
    """Sums add numbers in the order in which they lie in memory."""
    image = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = bx.adam(0.1).init({"kernel": image})
    loaded = bx.state_from_dict(bx.state_to_dict(state), state)
    assert bx.tree_get(loaded, "mu")["kernel"].stride() == image.stride()
    assert_trees_equal(loaded, state)


def test_a_state_on_the_meta_device_describes_one():
    tx, params = bx.adam(0.1), {"w": torch.ones(3)}
    _, _, state = run(tx, params, 2)
    like = pytree.tree_map(lambda x: x.to("meta"), state)
    assert_trees_equal(bx.state_from_dict(bx.state_to_dict(state), like), state)


def test_one_member_is_saved_without_the_others(tmp_path):
    members = torch.zeros(1000, 1000)
    bx.save(tmp_path / "one.pt", {"w": members[3]})
    assert (tmp_path / "one.pt").stat().st_size < 10_000
    packed = bx.pack({"a": torch.rand(100), "b": torch.rand(100)})[0]
    assert_trees_equal(saved_and_loaded(tmp_path / "packed.pt", packed, packed), packed)


def test_arguments_stay_as_they_are():
    params = example_params()
    tx = bx.adam(0.1)
    _, _, state = run(tx, params, 2)
    like = tx.init(params)
    before = pytree.tree_map(torch.clone, (state, like))
    loaded = bx.state_from_dict(bx.state_to_dict(state), like)
    run(tx, params, 2, loaded)
    assert_trees_equal((state, like), before)


def test_donated_tensors_are_refused():
    step = bx.compile(lambda state: pytree.tree_map(lambda x: x + 1, state), donate_argnums=0, backend="eager")
    state = {"w": torch.zeros(2)}
    step(state)
    with pytest.raises(bx.ConsumedError, match="leaf 'w'"):
        bx.state_to_dict(state)


# --- what does not fit ---------------------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": torch.zeros(2), "b": torch.zeros(1)}, r"it has an unexpected leaf 'c\.0'; |it lacks leaf 'b'"),
        ({"a": torch.zeros(2), "c": []}, r"it has an unexpected leaf 'c\.0'"),
        (
            {"a": torch.zeros(3), "c": [torch.zeros(1)]},
            r"leaf 'a': expected torch\.float32 of shape \(3,\), got .*\(2,\)",
        ),
        (
            {"a": torch.zeros(2), "c": [torch.zeros(1, dtype=torch.float64)]},
            r"leaf 'c\.0': expected torch\.float64 of shape \(1,\), got torch\.float32",
        ),
        ({"a": torch.zeros(2), "c": [1.0]}, r"leaf 'c\.0': expected torch\.float64 of shape \(\)"),
    ],
    ids=["missing", "unexpected", "shape", "dtype", "number"],
)
def test_another_state_is_refused(like, message, name, tmp_path):
    state = {"a": torch.ones(2), "c": [torch.ones(1)]}
    bx.save(tmp_path / name, state)
    with pytest.raises(ValueError, match=message) as caught:
        bx.load(tmp_path / name, like)
    assert str(tmp_path / name) in str(caught.value)
    assert_trees_equal(bx.load(tmp_path / name, state), state)


def test_packed_leaves_are_compared_one_by_one():
    """Buffers of the same length with other leaves in them are another state."""
    saved, _ = bx.pack({"w": torch.zeros(2, 3), "b": torch.zeros(4)})
    other, _ = bx.pack({"w": torch.zeros(2, 2), "b": torch.zeros(6)})
    with pytest.raises(ValueError, match=r"leaf 'w': expected torch.float32 of shape \(2, 2\)"):
        bx.state_from_dict(bx.state_to_dict(saved), other)
    with pytest.raises(ValueError, match="it lacks leaf 'v'"):
        bx.state_from_dict(bx.state_to_dict(saved), bx.pack({"w": torch.zeros(2, 3), "v": torch.zeros(4)})[0])


def test_values_that_are_no_tensors():
    with pytest.raises(TypeError, match="leaf 'a': expected a tensor, got float"):
        bx.state_from_dict({"a": 1.0}, {"a": torch.zeros(())})
    with pytest.raises(TypeError, match=r"leaf 'a\.name': only tensors and numbers can be saved, got str"):
        bx.state_to_dict({"a": {"name": "adam"}})


class Sharded(torch.Tensor):
    """A tensor of a class of its own, as DTensor is one."""


@every_format
def test_tensors_of_other_classes(name, tmp_path):
    plain, sharded = {"a": torch.ones(2)}, {"a": torch.ones(2).as_subclass(Sharded)}
    mapping = bx.state_to_dict(sharded)
    assert type(mapping["a"]) is Sharded
    assert type(bx.state_from_dict(mapping, sharded)["a"]) is Sharded
    with pytest.raises(TypeError, match=r"leaf 'a': a file holds plain tensors, not a Sharded"):
        bx.save(tmp_path / name, sharded)
    bx.save(tmp_path / name, plain)
    with pytest.raises(ValueError, match="leaf 'a': expected a Sharded, got a Tensor"):
        bx.load(tmp_path / name, sharded)
    with pytest.raises(TypeError, match="leaf 'a': expected a Tensor, got a Sharded"):
        bx.state_from_dict(mapping, plain)
    parameter = {"a": torch.nn.Parameter(torch.zeros(2))}
    assert_trees_equal(bx.load(tmp_path / name, parameter), plain)
    assert_dicts_equal(bx.state_to_dict(bx.state_from_dict(bx.state_to_dict(parameter), plain)), {"a": torch.zeros(2)})


@every_format
def test_files_cut_short_or_of_another_kind(name, tmp_path):
    state = run(bx.adam(0.1), example_params(), 2)[2]
    whole, cut = tmp_path / name, tmp_path / f"cut {name}"
    bx.save(whole, state)
    content = whole.read_bytes()
    for length in range(0, len(content), len(content) // 40):
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is cut short, damaged, or not a checkpoint") as caught:
            bx.load(cut, state)
        assert str(cut) in str(caught.value)
    with pytest.raises(FileNotFoundError):
        bx.load(tmp_path / f"no {name}", state)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_nothing_is_unpickled_but_tensors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (Harmful(), {"a": Harmful()}):
        torch.save(content, "harmful.pt")
        with pytest.raises(ValueError, match="not a checkpoint"):
            bx.load("harmful.pt", {"a": torch.zeros(1)})
        Path("plain.pt").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match="not a checkpoint"):
            bx.load("plain.pt", {"a": torch.zeros(1)})
    assert not Path("harm").exists()
    torch.save([torch.zeros(1)], "list.pt")
    with pytest.raises(ValueError, match="expected a dict of tensors, got a list"):
        bx.load("list.pt", {"a": torch.zeros(1)})
    bx.save("good.pt", {"a": torch.ones(1)})
    assert_dicts_equal(torch.load("good.pt", weights_only=True), {"a": torch.ones(1)})


# --- saving --------------------------------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(name, place, tmp_path, monkeypatch):
    bx.save(tmp_path / name, {"a": torch.zeros(2)})

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, place, full)
        with pytest.raises(OSError, match="No space"):
            bx.save(tmp_path / name, {"a": torch.ones(2)})
    with pytest.raises(TypeError, match="leaf 'a'"):
        bx.save(tmp_path / name, {"a": "text"})
    assert os.listdir(tmp_path) == [name]
    assert_trees_equal(bx.load(tmp_path / name, {"a": torch.ones(2)}), {"a": torch.zeros(2)})


def test_the_file_is_on_the_disk_before_its_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    calls = []

    def note(function, describe):
        def noted(*args):
            calls.append(describe(*args))
            return function(*args)

        return noted

    monkeypatch.setattr(os, "fsync", note(os.fsync, lambda handle: Path(f"/proc/self/fd/{handle}").readlink()))
    monkeypatch.setattr(os, "replace", note(os.replace, lambda old, new: new))
    bx.save(tmp_path / "run.pt", {"a": torch.zeros(2)})
    assert calls == [tmp_path / ".run.pt.new" / "run.pt", tmp_path / "run.pt", tmp_path]


def test_links_and_odd_names(tmp_path):
    state = {"a": torch.ones(2)}
    (tmp_path / "latest.pt").symlink_to("run [1]*.pt")
    bx.save(tmp_path / "latest.pt", state)
    assert (tmp_path / "latest.pt").is_symlink()
    assert_trees_equal(bx.load(tmp_path / "run [1]*.pt", state), state)


def test_several_may_save_at_once(tmp_path):
    def save(number):
        for _ in range(5):
            bx.save(tmp_path / "run.pt", {"a": torch.full((2000,), float(number))})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, range(4)))
    values = bx.load(tmp_path / "run.pt", {"a": torch.zeros(2000)})["a"]
    assert (values == values[0]).all()
    assert os.listdir(tmp_path) == ["run.pt"]


def test_the_folder_of_another_may_go_while_it_is_made(tmp_path, monkeypatch):
    """It is there when ours is to be made, and gone when it is looked at; ``mkdir(exist_ok=True)`` then raises."""
    make, calls = os.mkdir, []

    def late(*args):
        calls.append(args)
        if len(calls) == 1:
            raise FileExistsError(17, "File exists")
        make(*args)

    monkeypatch.setattr(os, "mkdir", late)
    bx.save(tmp_path / "run.pt", {"a": torch.ones(2)})
    assert len(calls) == 2
    assert os.listdir(tmp_path) == ["run.pt"]


KILLED = """
import os, random, signal, sys, time
import torch
import boxopt as bx
from boxopt.run import replace

folder, size, random = sys.argv[1], 50_000, random.Random(0)
paths = [os.path.join(folder, name) for name in ("run.pt", "run.safetensors")]
like = {"a": torch.zeros(size), "count": 0}
start = time.perf_counter()
for path in paths * 4:
    bx.save(path, like)
usual, interrupted = (time.perf_counter() - start) / 8, 0
for path in paths * 25:
    done, tell = os.pipe()
    child = os.fork()
    if child == 0:
        for count in range(1, 1_000_000):
            bx.save(path, {"a": torch.full((size,), float(count)), "count": count})
            os.write(tell, b".")
    os.close(tell)
    os.read(done, 1)  # the first one is there: what follows is not the time that a fork takes
    time.sleep(random.uniform(0, 3) * usual)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    finished = 1
    while os.read(done, 1):
        finished += 1
    os.close(done)
    interrupted += os.path.exists(os.path.join(folder, f".{os.path.basename(path)}.new"))
    state = bx.load(path, like)
    assert state["count"] in (finished, finished + 1), (state["count"], finished)
    assert (state["a"] == state["count"]).all()
for path in paths:
    bx.save(path, like)
assert sorted(os.listdir(folder)) == ["run.pt", "run.safetensors"]
print(interrupted)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_nothing_is_lost_to_kill_minus_nine(tmp_path):
    """Fifty processes that do nothing but save are killed at random; the file is the last one, or the one begun."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10  # of fifty were in the middle of saving


def test_where_folders_have_no_locks(tmp_path, monkeypatch):
    """As on Windows: it saves, one process at a time."""
    monkeypatch.setattr(replace, "_POSIX", False)
    state = bx.adam(0.1).init(torch.zeros(3))
    for _ in range(2):
        bx.save(tmp_path / "run.pt", state)
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]
    assert_trees_equal(bx.load(tmp_path / "run.pt", state), state)
