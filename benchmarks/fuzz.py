"""Broken configurations, data files and runs by the thousand: `python benchmarks/fuzz.py [--cases 2000] [--only files]`.

The slow tests try the same ones every time; this tries others each time. Each must be usable, or give one line for the person.
What is neither is printed once for each place in the code, with the smallest case that was found. Ends with code 1 where there
was any. `--messages 20` also prints some of the lines that people would read, the most frequent first.
"""

import argparse
import collections
import os
import pathlib
import random
import re
import sys
import time
import traceback

from hypothesis import HealthCheck, Phase, given, seed, settings

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

KINDS = {"configs": 1.0, "files": 0.5, "runs": 0.1}
"""What is broken, and how many cases of it for each of `--cases`: a configuration is read in no time."""


def fuzz(kind: str, count: int, start: int) -> tuple[dict, collections.Counter, dict]:
    """Tries `count` cases.

    Returns:
        Failures by (exception, file, line): the smallest case and its traceback; how often each sort of message came; and one
        of each sort.
    """
    module = __import__(f"tests.fuzz_{kind}", fromlist=["cases"])
    failures, times, samples = {}, collections.Counter(), {}

    @seed(start)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(module.cases())
    def attempt(case):
        try:
            message = module.check(case) or "(usable)"
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if frame.filename.startswith(f"{ROOT}{os.sep}") and ".venv" not in frame.filename]
            place = (type(error).__name__, ours[-1].filename, ours[-1].lineno)
            if place not in failures or len(repr(case)) < len(failures[place][0]):
                failures[place] = repr(case), traceback.format_exc()
            return
        sort = re.sub(r"""\d+|"[^"]*"|'[^']*'""", "*", message)[:60]
        times[sort] += 1
        samples.setdefault(sort, message)

    attempt()
    return failures, times, samples


def main() -> int:
    parser = argparse.ArgumentParser(description="Tries broken configurations, data files and runs.")
    parser.add_argument("--cases", type=int, default=2000, help="configurations; files are half as many, runs a tenth")
    parser.add_argument("--seed", type=int, help="default: another one each time; it is printed")
    parser.add_argument("--only", choices=KINDS, help="default: all of them")
    parser.add_argument("--messages", type=int, default=0, help="how many of the messages to print")
    options = parser.parse_args()
    start, failed = random.randrange(2**31) if options.seed is None else options.seed, False
    for kind, share in KINDS.items():
        if options.only in (None, kind):
            begin, count = time.monotonic(), max(1, round(share * options.cases))
            failures, times, samples = fuzz(kind, count, start)
            failed |= bool(failures)
            seconds, usable = time.monotonic() - begin, times["(usable)"]
            print(
                f"{kind}: {count:,} cases in {seconds:.0f} s, seed {start}: {usable:,} usable, {len(failures)} failures",
                flush=True,
            )
            for (name, file, line), (case, story) in failures.items():
                print(f"\n{name} in {file}:{line}\n{case[:2000]}\n{story}", flush=True)
            for sort, count in times.most_common(options.messages):
                print(f"{count:6,}  {samples[sort]}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
