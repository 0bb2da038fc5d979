"""Measures teacher, baseline and student, and tells it: `report.json`, one HTML page, a table on the terminal.

`python -m tfkd.report RUN [RUN ...]` rewrites each run's `report.html` from the run's own files and prints the table;
with several runs, one table that compares them. No TensorFlow here.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tfkd import report_words as words
from tfkd.errors import UserError
from tfkd.report_words import ROLES
from tfkd.run_dir import RunDir, read_json, write_text
from tfkd.tasks import classification_metrics as metrics

_REPORT_KEYS = ("task", "dataset", "examples", "metric", "models", "retention", "agreement", "kl", "bootstrap", "seconds")
_MODEL_KEYS = ("role", "parameters", "bytes", "metrics", "interval", "per_class")


def summarize(
    *,
    task: str,
    dataset: dict,
    metric: str,
    label_names: list[str],
    labels: np.ndarray,
    logits: dict[str, np.ndarray],
    parameters: dict[str, int],
    bytes: dict[str, int],  # the name it has in report.json
    seconds: dict[str, float],
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict:
    """Measures every role on the same test examples and answers with what `report.json` holds.

    Arguments:
        task: name of the task.
        dataset: where the examples come from, as the report shall say it: `name`, `rows` by split, `provenance`, `notes`.
        metric: which of `classification_metrics.measure` is the headline, such as `accuracy`.
        label_names: C names in class order.
        labels: (N,) classes of the test examples.
        logits: role -> (N, C); `teacher` and `student`, and `baseline` where it was trained.
        parameters: role -> number of weights.
        bytes: role -> bytes on disk.
        seconds: stage of the run -> how long it took.
        bootstrap: resamples behind every 95 % interval.
        seed: of the resampling.

    Returns:
        Plain values that JSON can hold. `interval` is of the accuracy; `student_minus_baseline` is of the accuracy
        too, paired, and None without a baseline; `agreement` and `kl` say how near `baseline` and `student` are to
        the teacher. `artifacts` is empty: nothing is exported yet.

    Raises:
        UserError: logits or labels cannot be measured, or there is no such metric; it names the role.
    """
    missing = [role for role in ("teacher", "student") if role not in logits]
    if missing:
        raise UserError(f"the report needs logits of the {missing[0]}; there are {', '.join(sorted(logits)) or 'none'}")
    roles = [role for role in ROLES if role in logits]
    draw = {"resamples": bootstrap, "seed": seed}
    right, models = {}, []
    for role in roles:
        try:
            measured = metrics.measure(logits[role], labels)
            classes = metrics.per_class(logits[role], labels, label_names)
        except UserError as error:
            raise UserError(f"{role}: {error}") from None
        right[role] = np.argmax(logits[role], axis=1) == labels
        entry = {"role": role, "parameters": parameters.get(role), "bytes": bytes.get(role), "metrics": measured}
        models.append(entry | {"interval": metrics.bootstrap_interval(right[role], **draw), "per_class": classes})
    to_teacher = {role: metrics.compare(logits[role], logits["teacher"]) for role in roles if role != "teacher"}
    against = metrics.paired_difference(right["student"], right["baseline"], **draw) if "baseline" in right else None
    report = {
        "task": task,
        "dataset": dataset,
        "examples": len(labels),
        "metric": metric,
        "models": models,
        "retention": _retention(models, metric),
        "student_minus_baseline": against,
        "agreement": {role: near["agreement"] for role, near in to_teacher.items()},
        "kl": {role: near["kl"] for role, near in to_teacher.items()},
        "bootstrap": draw,
        "artifacts": [],
        "seconds": seconds,
    }
    return json.loads(json.dumps(report, allow_nan=False, default=_plain))


def _retention(models: list[dict], metric: str) -> float | None:
    """student / teacher; None where either is undefined or the teacher's is 0."""
    measured = {entry["role"]: entry["metrics"] for entry in models}
    if metric not in measured["student"]:
        raise UserError(f"metric = {metric}: the report knows {', '.join(measured['student'])}")
    student, teacher = measured["student"][metric], measured["teacher"][metric]
    return student / teacher if teacher and student is not None else None


def _plain(value):
    """A NumPy scalar or array, or a path, as JSON says it."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, pathlib.PurePath):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot stand in report.json")


def write_html(run: RunDir) -> None:
    """Writes `report.html`, one page that needs nothing else, from the other files of the run.

    Raises:
        UserError: `report.json` or `predictions.npz` is missing or cannot be read. What else is missing is left out.
    """
    from tfkd import report_page  # Matplotlib and Jinja take a second that only this step needs

    write_text(run.report_html, report_page.page(run, read_report(run), read_manifest(run)))


def read_report(run: RunDir) -> dict:
    """The run's `report.json`.

    Raises:
        UserError: there is none, or it is not what `summarize` answers.
    """
    run.require(run.report_json)
    report = read_json(run.report_json)
    absent = _absent(report, _REPORT_KEYS)
    if not absent:
        absent = next(filter(None, (_absent(entry, _MODEL_KEYS) for entry in report["models"])), None)
    if not absent:
        absent = next((role for role in ("teacher", "student") if words.model(report, role) is None), None)
    if absent:
        raise UserError(f"{run.report_json}: {absent} is missing; train it again, or go on with --resume")
    return report


def read_manifest(run: RunDir) -> list[dict] | None:
    """The run's `export/manifest.json`; None where nothing was exported.

    Raises:
        UserError: it is not a list of exports.
    """
    if not run.manifest.exists():
        return None
    manifest = read_json(run.manifest)
    entries = manifest if isinstance(manifest, list) else [None]
    absent = next(filter(None, (_absent(entry, ("format", "variant")) for entry in entries)), None)
    if absent:
        raise UserError(f"{run.manifest}: {absent} is missing; export the run again: python -m export {run}")
    return manifest


def _absent(value, keys: tuple[str, ...]) -> str | None:
    """The first of `keys` that `value` lacks."""
    if not isinstance(value, dict):
        return keys[0]
    return next((key for key in keys if key not in value), None)


_MODEL_COLUMNS = ["model", "weights", "size", "accuracy", "95 % interval", "macro\nF1", "ROC-\nAUC", "calibr.\nerror"]
_EXPORT_COLUMNS = ["format", "variant", "size", "largest\ndifference", "agreement", "accuracy", "p50 / p95 ms", "passed"]


def table(report: dict, manifest: list[dict] | None = None) -> RenderableType:
    """The run on a terminal: its models, what distillation was worth, and the exports where there are any."""
    models = _grid(f"{report['dataset'].get('name', report['task'])}: {words.measured_on(report)}", _MODEL_COLUMNS, 1)
    _add_models(models, report)
    parts = [models, Text(words.verdict(report)), Text(_short(report))]
    if manifest:
        parts += [Text(), _exports(manifest)]
    return Group(*parts)


def comparison(reports: dict[str, dict]) -> RenderableType:
    """Several runs in one table: run name -> its report."""
    grid = _grid(f"{len(reports)} runs", ["run", *_MODEL_COLUMNS], 2)
    for name, report in reports.items():
        _add_models(grid, report, name)
        grid.add_section()
    lines = [Text.assemble((f"{name}: ", "bold"), words.verdict(report)) for name, report in reports.items()]
    return Group(grid, *lines)


def _grid(title: str, columns: list[str], left: int) -> Table:
    """An empty table whose first `left` columns hold words and the others numbers."""
    grid = Table(
        title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for position, name in enumerate(columns):
        grid.add_column(name, justify="left" if position < left else "right", overflow="fold", vertical="bottom")
    return grid


def _add_models(grid: Table, report: dict, *first: str) -> None:
    for entry in report["models"]:
        measured = entry["metrics"]
        cells = [
            *first,
            entry["role"],
            words.amount(entry["parameters"]),
            words.size(entry["bytes"]),
            words.percent(measured["accuracy"], 2),
            words.interval(entry["interval"]),
            words.decimal(measured["f1_macro"]),
            words.decimal(measured["roc_auc"]),
            words.decimal(measured["calibration_error"]),
        ]
        grid.add_row(*map(Text, cells), style="bold" if entry["role"] == "student" else "")
        first = tuple("" for _ in first)  # a run is named once


def _short(report: dict) -> str:
    teacher, student = words.model(report, "teacher"), words.model(report, "student")
    smaller = words.ratio(teacher["parameters"], student["parameters"])
    parts = [f"Student: {words.percent(report['retention'])} of the teacher's {report['metric'].replace('_', ' ')}"]
    parts += [f"{smaller} fewer parameters"] if smaller else []
    parts += [f"same answer as the teacher on {words.percent(report['agreement']['student'])}"]
    return ", ".join(parts) + "."


def _exports(manifest: list[dict]) -> RenderableType:
    grid = _grid("exports", _EXPORT_COLUMNS, 2)
    rows = [words.export(entry) for entry in manifest]
    for row in rows:
        cells = [row[key] for key in ("format", "variant", "size", "difference", "agreement", "accuracy", "latency")]
        grid.add_row(*map(Text, cells), Text("yes", "green") if row["passed"] else Text("NO", "bold red"))
    reasons = [Text(f"{row['format']} {row['variant']}: {row['reason']}") for row in rows if row["reason"]]
    return Group(grid, *reasons)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tfkd.report", description="Rewrites report.html and prints the results.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a finished run, such as runs/NAME")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The program `python -m tfkd.report`."""
    paths = _parser().parse_args(arguments).runs
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        runs = {path: RunDir(path) for path in dict.fromkeys(paths)}
        reports = {path: read_report(run) for path, run in runs.items()}
        for run in runs.values():
            write_html(run)
        if len(runs) == 1:
            (run,) = runs.values()
            console.print(table(reports[paths[0]], read_manifest(run)))
        else:
            names = [run.path.resolve().name for run in runs.values()]
            names = names if len(set(names)) == len(names) else list(runs)
            console.print(comparison(dict(zip(names, reports.values(), strict=True))))
        for run in runs.values():
            console.print(Text(f"wrote {run.report_html}", "dim"), soft_wrap=True)
    except UserError as error:
        print(f"tfkd.report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"tfkd.report: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
