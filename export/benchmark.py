"""The program `python -m export.benchmark RUN`: size, speed, memory and metric of every artifact of a run, the teacher beside."""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

from tfkd import config as configuration
from tfkd.errors import UserError
from tfkd.run_dir import RunDir, read_json, sha256, size, write_json

from . import plain
from .benchmark_process import RUNNERS

BATCH, BATCHES = 32, 8
SIGNATURES = {"saved_model": "from_token_ids"}
"""What is asked of a file whose manifest does not name its signatures."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export.benchmark",
        description="Times every artifact of RUN in processes of its own, fed with token ids of the run's test examples, and "
        "writes RUN/export/benchmark.json, a picture beside it, and both into RUN/report.html. The machine should have nothing "
        "else to do.",
        epilog="exit codes: 0 done, 1 an artifact could not be timed, 2 a mistake in what was given",
    )
    parser.add_argument("run", metavar="RUN", help="folder of an exported run, such as runs/NAME")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed, in turn; medians are told (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Times a run's artifacts and returns the exit code."""
    options = parse(arguments)
    try:
        if options.rounds < 1:
            raise UserError(f"--rounds {options.rounds}: must be at least 1")
        run = RunDir(options.run)
        run.require(run.config, run.student, run.vocabulary, run.labels, run.tokenizer, run.examples, run.manifest)
        result = benchmark(run, configuration.load(run.config), options.rounds)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 1 if any(row["reason"] for row in result["rows"]) else 0


def benchmark(run: RunDir, config: configuration.Config, rounds: int) -> dict:
    """Times every artifact, shows the table, writes `benchmark.json` and the picture. Returns what the file holds."""
    from .quiet import quiet
    from .screen import Screen

    log = run.exports / "log.txt"
    with Screen(log) as screen:
        with screen.working("loading the student"), quiet(log):
            from . import benchmark_plot, inference
            from .questions import load_questions

            student = inference.load(run, task=config.task)
            asked = max((entry["examples"] or 0 for entry in read_json(run.manifest)), default=0)
            questions = load_questions(run, student, asked)  # those that the files' metrics are of
            rows = subjects(run, questions)
        if not rows:
            raise UserError(f"{run.manifest}: holds no file that passed; export the run again: python -m export {run}")
        threads = sorted({1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()})
        turns = [(row, count) for _ in range(rounds) for row in rows for count in threads]
        for turn, (row, count) in enumerate(turns, start=1):
            what = f"benchmark {turn} of {len(turns)}: {row['format']} {row['variant']}, {count} threads"
            with screen.working(what), quiet(log):
                time_once(row, count, questions, log)
        result = {
            "metric": questions.measure.headline,
            "examples": questions.examples,
            "rounds": rounds,
            "threads": threads,
            "machine": f"{platform.machine()}, {threads[-1]} cores",
            "student_sha256": sha256(run.student),
            "rows": [settled(row) for row in rows],
        }
        write_json(run.exports / "benchmark.json", result)
        benchmark_plot.draw(result, run.exports / "benchmark")
        screen.benchmark(result)
        if run.report_json.exists():
            screen.reported(run.report_html, report(run))
    return result


def report(run: RunDir) -> str | None:
    """Has `tfkd.report` write the run's page anew, with the benchmark in it. Returns None, or why it could not."""
    return _run("tfkd.report", os.path.abspath(run.path))[1]


def _run(module: str, *arguments: str | os.PathLike) -> tuple[str, str | None]:
    """Runs a program of the checkout in a process of its own. Returns what it said to stderr, and why it failed or None."""
    command = [sys.executable, "-m", module, *arguments]
    checkout = pathlib.Path(__file__).parents[1]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, errors="replace", check=False)
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return done.stderr, last[:300] if done.returncode else None


def subjects(run: RunDir, questions) -> list[dict]:
    """What is timed: a row for each signature of each file that passed, and the teacher where the run holds it."""
    rows = []
    for entry in read_json(run.manifest):
        if not entry["passed"] or entry["format"] not in RUNNERS:
            continue
        about = {"format": entry["format"], "variant": entry["variant"], "path": str(run.exports / entry["path"])}
        about |= {"bytes": entry["bytes"], "sha256": entry["sha256"], "note": entry["latency_request"]}
        alone = {"signature": SIGNATURES.get(entry["format"]), "length": None, "metrics": entry["metrics"]}
        for each in entry.get("signatures") or [alone]:
            rows.append({**about, **{name: each[name] for name in alone}})
    rows += teacher(run, questions)
    return [{**row, "timed": {}, "reason": None} for row in rows]


def teacher(run: RunDir, questions) -> list[dict]:
    """The teacher's row, or none: one that was used as it came is not in the run."""
    from .questions import metric_of

    path = run.teacher / "model.keras"
    if not path.exists():
        return []
    about = {"format": "keras", "variant": "teacher", "path": str(path), "bytes": size(path), "signature": None, "length": None}
    about |= {"sha256": sha256(path), "note": "token ids, own length"}
    return [{**about, "metrics": metric_of(run, questions, "teacher")}]


def time_once(row: dict, threads: int, questions, log: pathlib.Path) -> None:
    """Times one row in a process of its own, and notes what came out or why nothing did."""
    if row["reason"]:
        return
    singles, batches = requests(row, questions)
    task = {name: row[name] for name in ("format", "path", "signature")}
    task |= {"threads": threads, "singles": singles, "batches": batches}
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = pathlib.Path(folder, "task"), pathlib.Path(folder, "answer")
        plain.write(asked, task | {"path": os.path.abspath(row["path"])})
        said, row["reason"] = _run(f"{__package__}.benchmark_process", asked, answer)
        with open(log, "a", encoding="utf-8") as file:
            file.write(said)
        if row["reason"] is None:
            row["timed"].setdefault(threads, []).append(json.loads(answer.read_text()))


def requests(row: dict, questions) -> tuple[list[dict], list[dict]]:
    """The first test examples, one a request and 32 a request, as the artifact reads them."""
    if row["length"]:
        features = questions.features(row["length"])
        if row["format"] == "mediapipe":
            features = {"segment_ids": features["token_ids"] * 0, **features}
        cuts = [*(slice(at, at + 1) for at in questions.timed), *groups(questions)]
        taken = [{name: values[cut] for name, values in features.items()} for cut in cuts]
    else:
        taken = questions.singles(questions.max_length)
        taken += [questions.cut(cut, questions.max_length) for cut in groups(questions)]
    return taken[: len(questions.timed)], taken[len(questions.timed) :]


def groups(questions) -> list[slice]:
    """Up to 8 groups of 32 texts of the examples; of fewer, one group of all."""
    count = min(BATCHES, max(1, questions.count // BATCH))
    return [slice(at * BATCH, min((at + 1) * BATCH, questions.count)) for at in range(count)]


def settled(row: dict) -> dict:
    """A row as it is written: the median of its rounds by number of threads."""
    told = {name: value for name, value in row.items() if name not in ("timed", "path")}
    return told | {"threads": {str(count): median(rounds) for count, rounds in row["timed"].items()} if not row["reason"] else {}}


def median(rounds: list[dict]) -> dict:
    """The medians of numbers under the same keys."""
    first = rounds[0]
    if isinstance(first, dict):
        return {key: median([each[key] for each in rounds]) for key in first}
    return statistics.median(rounds)


if __name__ == "__main__":
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "1"}
    sys.exit(main())
