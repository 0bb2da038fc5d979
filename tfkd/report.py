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
from tfkd.errors import UserError, of_system
from tfkd.report_words import ROLES
from tfkd.run_dir import RunDir, read_json, write_text
from tfkd.tasks.measures import MEASURES

_REPORT_KEYS = ("task", "dataset", "labels", "examples", "metric", "models", "retention", "near_teacher", "bootstrap", "seconds")
_MODEL_KEYS = ("role", "parameters", "bytes", "metrics", "interval", "per_label")


def summarize(
    *,
    task: str,
    dataset: dict,
    labels: list[str],
    truth: dict[str, np.ndarray],
    outputs: dict[str, np.ndarray],
    parameters: dict[str, int],
    bytes: dict[str, int],  # the name it has in report.json
    seconds: dict[str, float],
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict:
    """Measures every role on the same test examples and answers with what `report.json` holds.

    Arguments:
        task: name of the task, a key of `tfkd.tasks.measures`.
        dataset: where the examples come from, as the report shall say it: `name`, `rows` by split, `provenance`, `notes`.
        labels: names of the models' outputs in order.
        truth: what the outputs are measured against, as the data's target tells it: `labels`, and what else there is.
        outputs: role -> logits; `teacher` and `student`, and `baseline` where it was trained.
        parameters: role -> number of weights.
        bytes: role -> bytes on disk.
        seconds: stage of the run -> how long it took.
        bootstrap: resamples behind every 95 % interval.
        seed: of the resampling.

    Returns:
        Plain values that JSON can hold. `metric` is the task's headline; `interval` is of it; `student_minus_baseline` too,
        paired, and None without a baseline; `near_teacher` says how near `baseline` and `student` are to the teacher. What
        is not defined is None. `artifacts` is empty: nothing is exported yet.

    Raises:
        UserError: outputs or truth cannot be measured; it names the role.
    """
    missing = [role for role in ("teacher", "student") if role not in outputs]
    if missing:
        raise UserError(f"the report needs logits of the {missing[0]}; there are {', '.join(sorted(outputs)) or 'none'}")
    roles = [role for role in ROLES if role in outputs]
    draw = {"resamples": bootstrap, "seed": seed}
    measure, models = MEASURES[task](truth, labels), []
    for role in roles:
        try:
            measured, of_labels = measure.metrics(outputs[role]), measure.per_label(outputs[role])
        except UserError as error:
            raise UserError(f"{role}: {error}") from None
        entry = {"role": role, "parameters": parameters.get(role), "bytes": bytes.get(role), "metrics": measured}
        models.append(entry | {"interval": measure.interval(outputs[role], **draw), "per_label": of_labels})
    against = measure.difference(outputs["student"], outputs["baseline"], **draw) if "baseline" in roles else None
    report = {
        "task": task,
        "dataset": dataset,
        "labels": labels,
        "examples": measure.examples,
        "metric": measure.headline,
        "models": models,
        "retention": _retention(models, measure.headline),
        "student_minus_baseline": against,
        "near_teacher": {role: measure.near(outputs[role], outputs["teacher"]) for role in roles if role != "teacher"},
        "bootstrap": draw,
        "artifacts": [],
        "seconds": seconds,
    }
    return json.loads(json.dumps(report, allow_nan=False, default=_plain))


def _retention(models: list[dict], metric: str) -> float | None:
    """student / teacher; None where either is undefined or the teacher's is not above 0."""
    measured = {entry["role"]: entry["metrics"] for entry in models}
    student, teacher = measured["student"][metric], measured["teacher"][metric]
    return student / teacher if student is not None and teacher is not None and teacher > 0.0 else None


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


def write_comparison(path: pathlib.Path, runs: dict[str, RunDir]) -> None:
    """Writes one page on several runs, by the names that it gives them.

    Raises:
        UserError: a run's files are missing or cannot be read.
    """
    from tfkd import report_comparison

    parts = {name: (run, read_report(run), read_manifest(run)) for name, run in runs.items()}
    write_text(path, report_comparison.page(parts))


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
    if report["task"] not in MEASURES:
        raise UserError(f"{run.report_json}: task = {report['task']}: must be one of {', '.join(MEASURES)}")
    figures = tuple(figure.key for figure in MEASURES[report["task"]].figures)
    absent = next(filter(None, (_absent(entry["metrics"], figures) for entry in report["models"])), None)
    if absent or report["metric"] not in figures:
        raise UserError(f"{run.report_json}: {absent or report['metric']} is no figure of every model; train it again")
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


def table(report: dict, manifest: list[dict] | None = None) -> RenderableType:
    """The run on a terminal: its models, what distillation was worth, and the exports where there are any."""
    title = f"{report['dataset'].get('name', report['task'])}: {words.measured_on(report)}"
    models = _grid(title, _model_columns(report["task"]), 1)
    _add_models(models, report)
    parts = [models, Text(words.verdict(report)), Text(_short(report))]
    if manifest:
        parts += [Text(), _exports(manifest, words.headline(report))]
    return Group(*parts)


def comparison(reports: dict[str, dict]) -> RenderableType:
    """Several runs side by side, a table for each task: run name -> its report."""
    parts = []
    for task in dict.fromkeys(report["task"] for report in reports.values()):
        same = {name: report for name, report in reports.items() if report["task"] == task}
        title = f"{len(same)} run{'s' * (len(same) != 1)}" + (f", {task}" if len(same) < len(reports) else "")
        grid = _grid(title, ["run", *_model_columns(task)], 2)
        for name, report in same.items():
            _add_models(grid, report, name)
            grid.add_section()
        parts.append(grid)
    lines = [Text.assemble((f"{name}: ", "bold"), words.verdict(report)) for name, report in reports.items()]
    return Group(*parts, *lines)


def _figures(task: str) -> tuple:
    """What a terminal has room for, the headline first."""
    return MEASURES[task].figures[:4]


def _model_columns(task: str) -> list[str]:
    first, *others = ((figure.brief or figure.title).replace(" ", "\n") for figure in _figures(task))
    return ["model", "weights", "size", first, "95 % interval", *others]


def _grid(title: str, columns: list[str], left: int) -> Table:
    """An empty table whose first `left` columns hold words and the others numbers."""
    grid = Table(
        title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for position, name in enumerate(columns):
        grid.add_column(name, justify="left" if position < left else "right", overflow="fold", vertical="bottom")
    return grid


def _add_models(grid: Table, report: dict, *first: str) -> None:
    headline, *others = _figures(report["task"])
    for entry in report["models"]:
        measured = entry["metrics"]
        cells = [
            *first,
            entry["role"],
            words.amount(entry["parameters"]),
            words.size(entry["bytes"]),
            words.figure(measured[headline.key], headline.style, 1),
            words.interval(entry["interval"], headline.style),
            *(words.figure(measured[figure.key], figure.style) for figure in others),
        ]
        grid.add_row(*map(Text, cells), style="bold" if entry["role"] == "student" else "")
        first = tuple("" for _ in first)  # a run is named once


def _short(report: dict) -> str:
    teacher, student = words.model(report, "teacher"), words.model(report, "student")
    smaller = words.ratio(teacher["parameters"], student["parameters"])
    near = MEASURES[report["task"]].nearness[0]
    parts = [f"Student: {words.percent(report['retention'])} of the teacher's {words.headline(report).title}"]
    parts += [f"{smaller} fewer parameters"] if smaller else []
    parts += [f"{near.title}: {words.figure(report['near_teacher']['student'][near.key], near.style)}"]
    return ", ".join(parts) + "."


def _exports(manifest: list[dict], headline) -> RenderableType:
    columns = ["format", "variant", "size", "largest\ndifference", "agreement", headline.title, "p50 / p95 ms", "passed"]
    grid = _grid("exports", columns, 2)
    rows = [words.export(entry, headline) for entry in manifest]
    for row in rows:
        cells = [row[key] for key in ("format", "variant", "size", "difference", "agreement", "metric", "latency")]
        grid.add_row(*map(Text, cells), Text("yes", "green") if row["passed"] else Text("NO", "bold red"))
    reasons = [Text(f"{row['format']} {row['variant']}: {row['reason']}") for row in rows if row["reason"]]
    return Group(grid, *reasons)


def _parser() -> argparse.ArgumentParser:
    described = "Rewrites report.html and prints the results; of several runs, comparison.html beside the first one too."
    parser = argparse.ArgumentParser(prog="python -m tfkd.report", description=described)
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
            together = next(iter(runs.values())).path.parent / "comparison.html"
            write_comparison(together, dict(zip(names, runs.values(), strict=True)))
            console.print(Text(f"wrote {together}", "dim"), soft_wrap=True)
        for run in runs.values():
            console.print(Text(f"wrote {run.report_html}", "dim"), soft_wrap=True)
    except UserError as error:
        print(f"tfkd.report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"tfkd.report: {of_system(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
