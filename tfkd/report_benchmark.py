"""The page's section on the exports' speed, from what `python -m export.benchmark` wrote. No TensorFlow, nothing of `export`."""

import json

from tfkd import report_plots as plots
from tfkd import report_words as words
from tfkd.run_dir import RunDir
from tfkd.tasks.measure import Figure

ALT = "Every artifact's headline metric against its size on disk and against the time of one text; the teacher is a star"


def values(run: RunDir, manifest: list[dict] | None, headline: Figure) -> dict | None:
    """`export/benchmark.json` in words, and the picture beside it; None where there is none of the student that was exported.

    Arguments:
        manifest: the run's exports, which name the student.
    """
    try:
        result = json.loads((run.exports / "benchmark.json").read_text(encoding="utf-8"))
        students = {entry["student_sha256"] for entry in manifest or () if entry.get("student_sha256")}
        if students != {result["student_sha256"]}:
            return None
        told = {
            "threads": [f"{count} thread{'s' * (count != 1)}" for count in result["threads"]],
            "rows": [_row(row, result["threads"], headline) for row in result["rows"]],
            "examples": result["examples"],
            "rounds": result["rounds"],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # written anew by the next benchmark
        return None
    return told | {"picture": _picture(run)}


def _row(row: dict, threads: list[int], headline: Figure) -> dict:
    timed = [row["threads"].get(str(count)) for count in threads]
    length = row.get("length")
    return {
        "name": row["variant"] if row["format"] == "keras" else f"{row['format']} {row['variant']}",
        "length": f"{length:,}" if length else "its own",
        "size": words.size(row["bytes"]),
        "metric": words.figure((row["metrics"] or {}).get(headline.key), headline.style),
        "times": [_times(each) for each in timed],
        "memory": words.size(max((each["peak_bytes"] for each in timed if each), default=None)),
        "reason": str(row.get("reason") or ""),
    }


def _times(timed: dict | None) -> list[str]:
    """p50 / p95 of one text and of a batch, and texts per second."""
    if timed is None:
        return [words.MISSING] * 3
    pairs = [f"{words.number(timed[key]['p50'])} / {words.number(timed[key]['p95'])}" for key in ("batch_1", "batch_32")]
    return [*pairs, f"{timed['texts_per_second']:,.0f}"]


def _picture(run: RunDir) -> str | None:
    try:
        text = (run.exports / "benchmark.svg").read_text(encoding="utf-8")
        return plots.inlined(text, "benchmark", ALT)
    except (OSError, ValueError, KeyError, SyntaxError):  # ElementTree's ParseError is a SyntaxError
        return None
