"""Parameters and ensembles on several processes: the numbers of one, and nobody left behind."""

import multiprocessing
import time

import pytest
import torch

from tests import distributed_checks, processes

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


def test_two_processes_then_four_then_one(tmp_path):
    """All checks on two; a run saved by two, resumed and saved by four, resumed by one, is the uninterrupted one."""
    processes.check(distributed_checks.two, 2, tmp_path / "of_two")
    (tmp_path / "of_four").mkdir()
    (tmp_path / "of_two" / "one").rename(tmp_path / "of_four" / "one")
    processes.check(distributed_checks.four, 4, tmp_path / "of_four")
    (tmp_path / "of_one").mkdir()
    (tmp_path / "of_four" / "two").rename(tmp_path / "of_one" / "two")
    processes.check(distributed_checks.one, 1, tmp_path / "of_one")


def test_when_a_process_dies_the_other_ends(tmp_path):
    start = time.monotonic()
    codes, errors = processes.run(distributed_checks.dies, 2, tmp_path, limit=60.0)
    assert codes == [1, 3]
    assert "RuntimeError" in errors[0]
    assert time.monotonic() - start < 40
    assert not multiprocessing.active_children()
