"""Several processes on one machine, for tests: started, given a time limit, and none left behind."""

import multiprocessing
import os
import threading
import time
import traceback
import warnings
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

_GRACE = 20.0  # seconds for the others to notice that one has died


def run(work, world, folder, limit=240.0):
    """Run ``work(rank, world, folder)`` on so many processes joined by gloo.

    Returns:
        Their exit codes, and the traceback of each that failed. Those still running at the limit, or some time after
        another has failed, are killed: their code is negative.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments = [(work, rank, world, str(folder), limit, os.getpid()) for rank in range(world)]
    processes = [context.Process(target=_child, args=each, daemon=True) for each in arguments]
    try:
        for process in processes:
            process.start()
        _join(processes, time.monotonic() + limit)
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    errors = {rank: path.read_text() for rank in range(world) if (path := folder / f"error{rank}").exists()}
    return [process.exitcode for process in processes], errors


def check(work, world, folder, limit=240.0):
    """`run`, and an assertion that all went well."""
    codes, errors = run(work, world, folder, limit)
    assert codes == [0] * world, f"exit codes {codes}\n" + "\n".join(f"--- {r}\n{text}" for r, text in errors.items())


def _join(processes, deadline):
    failed = False
    running = list(processes)
    while running and (left := deadline - time.monotonic()) > 0:
        wait([process.sentinel for process in running], timeout=left)
        running = [process for process in running if process.exitcode is None]
        if not failed and any(process.exitcode not in (None, 0) for process in processes):
            failed, deadline = True, min(deadline, time.monotonic() + _GRACE)


def _child(work, rank, world, folder, limit, parent):
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    warnings.filterwarnings("error", message="Found a non-scalar tensor")
    try:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=limit / 2),
        )
        work(rank, world, Path(folder))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error{rank}").write_text(traceback.format_exc())
        os._exit(1)  # at once: an orderly end may wait for the others
    os._exit(0)  # gloo's threads do not always survive an orderly end: "terminate called without an active exception"


def _end_with(parent):
    """A process whose parent was killed ends too."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
