"""Fuzzing for some minutes, with fresh seeds: ``python -m tests.fuzz --minutes 5``."""

import argparse
import gc
import os
import random
import time
import traceback
import warnings
from collections import Counter
from typing import NamedTuple

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.agreement import Refused, Skipped
from tests.fuzz.check import COMPILES, MODES
from tests.fuzz.generate import programs
from tests.fuzz.programs import Program
from tests.fuzz.reference import reference

SHRINK = 8.0  # seconds for making a finding smaller
BATCH = 100


class _Enough(BaseException):
    """The time, or that for making a finding smaller, is over. Hypothesis lets no other exception through."""


class Found(NamedTuple):
    """A program that fails."""

    program: Program
    mode: str
    error: Exception

    @property
    def kind(self):
        """What else is the same finding: the error and the place in the library, if it is one of the library's."""
        places = [f for f in traceback.extract_tb(self.error.__traceback__) if "/boxopt/" in f.filename]
        place = f"{os.path.basename(places[-1].filename)}:{places[-1].lineno}" if places else str(self.error)[:40]
        return f"{self.mode} {type(self.error).__name__} {place}"

    def explains(self, other):
        """Whether another program that fails alike is made of at least the same things."""
        alike = other.mode == self.mode and str(other.error)[:25] == str(self.error)[:25]
        return alike and self.program.blocks <= other.program.blocks

    def __str__(self):
        text = "\n".join(str(self.error).splitlines()[:12])[:1500]
        frames = traceback.extract_tb(self.error.__traceback__)
        own = [f for f in frames if "/boxopt/" in f.filename or "/fuzz/" in f.filename]
        where = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in reversed(own[-8:]))
        test = f"def test_found():\n    check({self.program}, {self.mode!r})"
        return f"=== {self.kind}\n{where}\n{text}\n--- as a test:\n{test}\n"


class Hunt:
    """Programs, run and counted; and what was found.

    Args:
        seed: For all that is random.
        share: By what to multiply how often the modes that compile are run.
        others: By what to multiply how often the others are.
        only: The modes to run, one of them at least with each program; all, each as often as `MODES` says, if empty.
    """

    def __init__(self, seed, share=1.0, only=(), others=1.0):
        self.random = random.Random(seed)
        self.share = share
        self.others = others
        self.only = only
        self.counts = Counter()
        self.findings = []
        self.seen = set()

    def batch(self, size=BATCH, until=float("inf")):
        """Some programs, up to the first finding, which is made small, printed and from then on known."""
        smallest, deadline = None, until

        @hypothesis.seed(self.random.getrandbits(64))
        @settings(
            max_examples=size,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(programs())
        def attack(program):
            nonlocal smallest, deadline
            if time.monotonic() > deadline:
                raise _Enough
            if smallest is None:
                found = self._run(program, self._modes(program), self.counts)
            else:
                found = self._run(program, [smallest.mode], Counter())
            if found is None:
                return
            if smallest is None:
                deadline = time.monotonic() + SHRINK
            elif found.kind != smallest.kind:
                return
            if smallest is None or len(repr(program)) <= len(repr(smallest.program)):
                smallest = found
            raise found.error

        try:
            attack()
        except _Enough:
            pass
        except Exception:
            if smallest is None:
                raise
        if smallest is not None:
            self.findings.append(smallest)
            print(smallest, flush=True)

    def _modes(self, program):
        """Those to run a program in; the same each time."""
        chance = random.Random(repr(program))
        if self.only:
            return [chance.choice(self.only)]
        shares = {name: share * (self.share if name in COMPILES else self.others) for name, (_, share) in MODES.items()}
        return [name for name, share in shares.items() if chance.random() < share]

    def _run(self, program, modes, counts):
        """The first failure that is not known."""
        counts["programs"] += 1
        if counts is self.counts:
            self.seen.add(hash(program))
        steps = None
        for mode in ["eager", *modes]:
            try:
                if mode == "eager":
                    steps = reference(program)
                else:
                    MODES[mode][0](program, steps)
                counts[f"{mode}: ok"] += 1
            except (Refused, Skipped) as reason:
                counts[f"{mode}: {type(reason).__name__.lower()}"] += 1
            except Exception as error:
                found = Found(program, mode, error)
                if not any(known.explains(found) for known in self.findings):
                    return found
                counts[f"{mode}: known"] += 1
            finally:
                if mode in COMPILES:
                    torch._dynamo.reset()
                    gc.collect()  # some 30 MB a program
            if steps is None:
                return None
        return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, help="one that was printed; programs are then the same")
    parser.add_argument("--share", type=float, default=1.0, help="multiplies how often programs are compiled")
    parser.add_argument("--others", type=float, default=1.0, help="multiplies how often they are run in other modes")
    parser.add_argument("--only", nargs="*", default=(), choices=list(MODES), help="modes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seed = random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed
    hunt, start = Hunt(seed, arguments.share, arguments.only, arguments.others), time.monotonic()
    end = start + 60 * arguments.minutes
    gc.freeze()
    gc.disable()  # collecting as programs go takes a fifth of the time
    try:
        while time.monotonic() < end:
            hunt.batch(until=end)
            gc.collect()
    except KeyboardInterrupt:
        pass
    minutes = (time.monotonic() - start) / 60
    run = f"{hunt.counts['programs']} programs, {len(hunt.seen)} different"
    print(f"seed {seed}: {run}, {minutes:.1f} min, {len(hunt.findings)} findings")
    for name, count in sorted(hunt.counts.items()):
        print(f"  {name:32s} {count}")
    raise SystemExit(1 if hunt.findings else 0)


if __name__ == "__main__":
    main()
