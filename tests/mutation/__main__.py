"""Mutation testing of some of the library: ``python -m tests.mutation box --sample 100``.

One process imports everything and collects the tests. In a fork of it they are run once, to see how long each takes and
which lines it runs. Then each mutant is a fork in which the function that differs gets its new code, wherever it is
referred to: nothing is imported again, and no file is written. A mutant gets the tests that run its lines, quick ones
of each test function first, until one fails.
"""

import argparse
import gc
import os
import pickle
import random
import resource
import signal
import sys
import time
import traceback
import types
from collections import Counter, defaultdict
from functools import _lru_cache_wrapper
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from _pytest.runner import runtestprotocol

from tests.mutation.mutants import Mutant, mutants_of, unchanged
from tests.mutation.selection import AREAS, arguments

SLOW = 1.0  # a test that takes longer, in seconds of processors, is not used
PATIENCE = 10.0  # how many times as long as usual the tests of a mutant may take
BATCH = 100  # so many are measured in one process
MEMORY = 32 << 30  # addresses, in bytes
KILLED, SURVIVED, TIMEOUT, UNTESTED = "killed", "survived", "timed out", "no test"


class Timing(NamedTuple):
    """What one test does: seconds of processors, and the lines of each file that it runs."""

    seconds: float
    lines: dict[str, set[int]]


class Runner:
    """A plugin of pytest that runs mutants instead of tests."""

    def __init__(self, area, options):
        self.area, self.options, self.results = area, options, []
        self.files = AREAS[area].files
        self.mutants = [mutant for path in self.files for mutant in mutants_of(path)]

    def pytest_runtestloop(self, session):
        timings = self._timings(session.items)
        print(f"{self.area}: {len(timings)} of {len(session.items)} tests are used", flush=True)
        shuffled = random.Random(self.options.seed).sample(self.mutants, len(self.mutants))
        chosen = shuffled[self.options.first :][: self.options.sample]
        if self.options.only:
            chosen = [mutant for mutant in self.mutants if mutant.name in self.options.only]
        for control in unchanged(chosen):
            outcome = self._outcome(control, session.items, timings)
            assert outcome in (SURVIVED, UNTESTED), f"what has not been changed is {outcome}: {control}"
        for mutant in chosen:
            outcome = self._outcome(mutant, session.items, timings)
            self.results.append((mutant, outcome))
            if outcome in (SURVIVED, UNTESTED) or self.options.verbose:
                print(f"{outcome}: {mutant}", flush=True)
        counts = Counter(outcome for _, outcome in self.results)
        said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        print(f"{self.area}: {len(chosen)} of {len(self.mutants)} mutants: {said}", flush=True)
        return True

    def _timings(self, items):
        """What `_measured` says of the tests by their places; remembered by their names if there is a file for that."""
        path = self.options.timings and f"{self.options.timings}.{self.area.replace(' ', '_')}"
        known = {}
        if path and os.path.exists(path):
            with open(path, "rb") as file:
                known = pickle.load(file)
        unknown = [item for item in items if item.nodeid not in known]
        for first in range(0, len(unknown), BATCH):
            batch = unknown[first : first + BATCH]
            measured = _in_a_fork(lambda batch=batch: _measured(batch, self.files))
            known |= {item.nodeid: measured.get(place) for place, item in enumerate(batch)}
            if path:
                with open(path, "wb") as file:
                    pickle.dump(known, file)
        return {place: known[item.nodeid] for place, item in enumerate(items) if known[item.nodeid] is not None}

    def _outcome(self, mutant, items, timings):
        path, (first, last) = os.path.abspath(mutant.path), mutant.lines
        found = defaultdict(list)
        for place, timing in timings.items():
            if not mutant.function or timing.lines.get(path, set()) & set(range(first, last + 1)):
                found[items[place].originalname].append((timing.seconds, place))
        # The second test of a function counts as if it took twice as long, the third thrice: quick ones of each first.
        numbered = (one for group in found.values() for one in enumerate(sorted(group), 1))
        ranked = sorted((number * one, one, place) for number, (one, place) in numbered)
        places, seconds = [], 0.0
        for _, one, place in ranked:
            if places and seconds + one > self.options.seconds:
                break
            places.append(place)
            seconds += one
        if not places:
            return UNTESTED
        return _in_a_fork(lambda: _tried(mutant, [items[place] for place in places]), limit=5 + PATIENCE * seconds)


def _in_a_fork(function, limit=None, quiet=True):
    """What a function returns in a copy of this process; or that it ran for longer, in seconds of processors."""
    sys.stdout.flush()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        if quiet:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        if limit is not None:
            signal.setitimer(signal.ITIMER_PROF, limit)  # the signals end the process
            signal.setitimer(signal.ITIMER_REAL, 60 + 10 * limit)  # also one that waits for ever
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            answer = function()
        except BaseException as error:
            answer = RuntimeError("".join(traceback.format_exception(error)))
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return TIMEOUT if os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM) else KILLED
    answer = pickle.loads(answer)
    if isinstance(answer, RuntimeError):
        raise answer
    return answer


def _passes(item):
    reports = runtestprotocol(item, nextitem=None, log=False)
    return all(report.outcome != "failed" for report in reports), any(report.skipped for report in reports)


def _measured(items, files):
    """The timings of the tests that pass in time, by their places."""

    class Slow(BaseException):
        pass

    def stop(*_):
        raise Slow

    paths = {os.path.abspath(path) for path in files}
    signal.signal(signal.SIGPROF, stop)
    timings = {}
    for place, item in enumerate(items):
        lines = defaultdict(set)

        def line(frame, event, _, lines=lines):
            lines[frame.f_code.co_filename].add(frame.f_lineno)
            return line

        def call(frame, *_, line=line, lines=lines):
            return line if frame.f_code.co_filename in paths else None

        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SLOW)
        sys.settrace(call)
        try:
            passes, skipped = _passes(item)
        except Slow:
            continue
        finally:
            sys.settrace(None)
            signal.setitimer(signal.ITIMER_PROF, 0)
        if passes and not skipped:
            timings[place] = Timing(time.process_time() - start, dict(lines))
    return timings


def _tried(mutant: Mutant, items):
    """Whether one of the tests fails."""
    if not _put_in(mutant):
        return KILLED
    torch._dynamo.reset()
    gc.disable()  # Python 3.11 raises where it collects while pytest parses what has failed
    return SURVIVED if all(_passes(item)[0] for item in items) else KILLED


class _Unregistered:
    """An operator's function: to register it again would destroy the operator that is in use."""

    def __init__(self, name, function, **_):
        self.function = function

    def register_fake(self, function):
        pass

    register_vmap = register_fake


def _put_in(mutant: Mutant):
    """Change what has been imported: the code and the defaults of a function, or a number of the module.

    Returns whether that can be imported at all.
    """
    path = os.path.abspath(mutant.path)
    module = next(m for m in sys.modules.values() if getattr(m, "__file__", None) == path)
    scratch = vars(types.ModuleType(module.__name__))
    try:
        with mock.patch("torch.library.custom_op", _Unregistered):
            exec(compile(mutant.source, path, "exec", dont_inherit=True), scratch)
    except Exception:
        return False
    gc.unfreeze()  # what the tests' settings have frozen is not in the list
    objects = gc.get_objects()
    for cache in [x for x in objects if type(x) is _lru_cache_wrapper and str(x.__module__).startswith("boxopt")]:
        cache.cache_clear()
    if not mutant.function:
        for name, value in scratch.items():
            if isinstance(value, int | float | tuple) and not name.startswith("__"):
                for other in [m for key, m in sys.modules.items() if key.startswith("boxopt")]:
                    if name in vars(other) and vars(other)[name] == vars(module)[name]:
                        setattr(other, name, value)
    functions = [x for x in objects if type(x) is types.FunctionType and x.__code__.co_filename == path]
    new = {x.__qualname__: x for x in functions if x.__globals__ is scratch}
    old = [x for x in functions if x.__globals__ is not scratch and x.__qualname__ == mutant.function]
    assert old or not mutant.function, f"{mutant} is not in use"
    for function in old:
        function.__code__ = new[mutant.function].__code__
        function.__defaults__, function.__kwdefaults__ = (
            new[mutant.function].__defaults__,
            new[mutant.function].__kwdefaults__,
        )
    return True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("areas", nargs="*", default=list(AREAS), help=f"of {', '.join(AREAS)}")
    parser.add_argument("--sample", type=int, default=100, help="how many mutants of an area, drawn at random")
    parser.add_argument("--first", type=int, default=0, help="which of the seed's mutants is the first")
    parser.add_argument("--timings", help="where the measured tests are kept for the next call with the same library")
    parser.add_argument("--seed", type=int, help="one that was printed; the mutants are then the same")
    parser.add_argument("--seconds", type=float, default=10.0, help="of tests, at most, that a mutant is given")
    parser.add_argument("--only", nargs="*", default=(), help="these mutants, by their names, in the place of a sample")
    parser.add_argument("--keyword", help="only tests that this expression of pytest's -k selects")
    parser.add_argument("--verbose", action="store_true", help="print also what is killed")
    options = parser.parse_args()
    options.seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    print(f"seed {options.seed}")
    results = []
    for area in options.areas:
        results += _in_a_fork(lambda area=area: _run(area, options), quiet=False)
    noticed = sum(outcome in (KILLED, TIMEOUT) for _, outcome in results)
    print(f"{noticed} of {len(results)} mutants were noticed: {100 * noticed / len(results):.1f} %")


def _run(area, options):
    runner = Runner(area, options)
    code = pytest.main(
        ["-p", "no:cacheprovider", "-p", "no:terminal", "-s", *arguments(area, options.keyword)], plugins=[runner]
    )
    assert runner.results, f"pytest ended with {code}"
    return [(mutant.name, outcome) for mutant, outcome in runner.results]


if __name__ == "__main__":
    main()
