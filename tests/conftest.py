"""Settings for all tests: one thread a worker, a fixed seed, and few collections of garbage."""

import gc

import pytest
import torch

collect_ignore = ["mutation"]  # doctests would import it, and it needs what only `make mutants` installs


def pytest_addoption(parser):
    parser.addoption("--inductor", action="store_true", help="generate code for every entry of the registry")


@pytest.fixture(autouse=True)
def _settings():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pytest_collection_finish():
    """What has been imported by now stays: the collector need not walk over it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
