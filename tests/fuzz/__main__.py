"""Fuzzing for some minutes, with fresh seeds: ``python -m tests.fuzz --minutes 5``."""

import argparse
import os
import random
import time
import traceback
import warnings
from collections import Counter
from dataclasses import replace

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.generate import programs
from tests.fuzz.modes import COMPILES, MODES, Refused, check

SHRINK = 8.0  # seconds


class Enough(BaseException):
    """No more time for making a finding smaller."""


def fingerprint(mode, error):
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/boxopt/" in f.filename]
    place = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{mode} {type(error).__name__} {place or str(error)[:40]}"


class Hunt:
    """Programs, counted; and what was found."""

    def __init__(self, seed, share=1.0, only=()):
        self.random = random.Random(seed)
        self.counts = Counter()
        self.findings = {}
        self.known = []
        self.share = share
        self.only = only

    def batch(self, size):
        """Some programs; one finding at most."""
        smallest, since = None, None

        @hypothesis.seed(self.random.getrandbits(64))
        @settings(max_examples=size, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
                  suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
        @given(programs())
        def attack(program):
            nonlocal smallest, since
            if since is not None and time.monotonic() - since > SHRINK:
                raise Enough
            seeded = random.Random(repr(program))
            if since is None:
                modes = [m for m, (_, share) in MODES.items() if seeded.random() < share * (self.share if m in COMPILES else 1)]
                if self.only:
                    modes = [m for m in modes if m in self.only] or [seeded.choice(self.only)]
            else:
                modes = [smallest[1]]
            failed = self._run(program, modes, count=since is None)
            if failed:
                mode, error, print_ = failed
                if since is None:
                    since = time.monotonic()
                if smallest is None or (print_ == smallest[2] and len(repr(program)) <= len(repr(smallest[0]))):
                    smallest = (program, mode, print_, error)
                if print_ == smallest[2]:
                    raise error

        try:
            attack()
        except Enough:
            pass
        except Exception:
            if smallest is None:
                raise
        if smallest is not None:
            program, mode, print_, error = smallest
            self.findings.setdefault((print_, program.blocks), smallest)
            self.known.append((mode, error_kind(error), program.blocks))
            report(program, mode, print_, error)

    def _run(self, program, modes, count):
        """The first failure that is not known."""
        if count:
            self.counts["programs"] += 1
        for mode in ["eager", *modes]:
            try:
                outcome = check(program) if False else run_one(program, mode)
                if count:
                    self.counts[f"{mode}: {outcome}"] += 1
                if mode == "eager" and outcome == "refused":
                    return None
            except Exception as error:
                if any(m == mode and k == error_kind(error) and b <= program.blocks for m, k, b in self.known):
                    if count:
                        self.counts[f"{mode}: known"] += 1
                    if mode == "eager":
                        return None
                    continue
                return mode, error, fingerprint(mode, error)
        return None


def error_kind(error):
    return type(error).__name__ + str(error)[:25]


_last = (None, None)


def run_one(program, mode):
    global _last
    from tests.fuzz import modes as m

    if mode == "eager":
        try:
            _last = (program, m.reference(program))
            return "ok"
        except Refused:
            return "refused"
    if _last[0] is not program:
        try:
            _last = (program, m.reference(program))
        except Refused:
            return "refused"
    try:
        MODES[mode][0](program, _last[1])
        return "ok"
    except (Refused, m.Skipped) as reason:
        return f"{type(reason).__name__.lower()}{' (ill-conditioned)' if 'ill-' in str(reason) else ''}"
    finally:
        if mode in COMPILES:
            torch._dynamo.reset()


def report(program, mode, print_, error):
    text = "\n".join(str(error).splitlines()[:12])[:1500]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/boxopt/" in f.filename or "/fuzz/" in f.filename]
    where = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in reversed(frames[-6:]))
    print(f"\n=== {print_}\n{where}\n{text}\n--- as a test:\ndef test_found():\n    check({short(program)}, {mode!r})\n", flush=True)


def short(program):
    from tests.fuzz.programs import Program

    default = Program("", "")
    given_ = {f: getattr(program, f) for f in program.__dataclass_fields__ if getattr(program, f) != getattr(default, f)}
    return "Program(" + ", ".join(f"{k}={v!r}" for k, v in given_.items()) + ")"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--share", type=float, default=1.0, help="multiplies how often programs are compiled")
    parser.add_argument("--only", nargs="*", default=(), help="modes")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    hunt, start = Hunt(seed, arguments.share, arguments.only), time.monotonic()
    while time.monotonic() - start < 60 * arguments.minutes:
        hunt.batch(100)
    minutes = (time.monotonic() - start) / 60
    print(f"seed {seed}: {hunt.counts['programs']} programs in {minutes:.1f} min, {len(hunt.findings)} findings")
    for name, count in sorted(hunt.counts.items()):
        print(f"  {name:40s} {count}")
    raise SystemExit(1 if hunt.findings else 0)


if __name__ == "__main__":
    main()
