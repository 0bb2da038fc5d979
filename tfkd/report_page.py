"""The report's page: puts what a run's files say into numbers and pictures, and fills `report_template.html`."""

import pathlib

import jinja2
import markupsafe
import numpy as np

from tfkd import (
    report_benchmark,
    report_classification,
    report_masked_language_model,
    report_multilabel,
    report_question_answering,
    report_regression,
    report_sentence_embedding,
    report_tagging,
)
from tfkd import report_inputs as inputs
from tfkd import report_plots as plots
from tfkd import report_words as words
from tfkd.run_dir import RunDir

_BOOKKEEPING = ("role", "epoch", "step", "seconds", "learning_rate", "gigaflops", "memory_gb", "gpu_memory_gb")
"""Of a line of metrics, what is no loss and no metric; and whatever is counted `_per_second`."""

SECTIONS = {
    "classification": report_classification,
    "regression": report_regression,
    "multilabel": report_multilabel,
    "tagging": report_tagging,
    "question_answering": report_question_answering,
    "masked_language_model": report_masked_language_model,
    "sentence_embedding": report_sentence_embedding,
}
"""Task -> the module whose `values(view)` fill the task's own sections, in `report_TASK.html`."""


def page(run: RunDir, report: dict, manifest: list[dict] | None) -> str:
    """The run as one HTML page that needs nothing else: styles inside, pictures as inline SVG, no scripts.

    Arguments:
        run: its `predictions.npz` is needed; `metrics.jsonl`, `examples.jsonl`, `config.yaml` and `export/benchmark.json` are
            used where they are.
        report: what `report.summarize` answered.
        manifest: the exports; None where there are none.

    Raises:
        UserError: a file cannot be read, or does not belong to the report.
    """
    view = inputs.view(run, report)
    config_text, config = inputs.config(run.config)
    history, unreadable = inputs.history(run.metrics)
    headline, models, task = words.headline(report), view.models, report["task"]
    losses = _losses(history, set(models["student"]["metrics"]))
    values = {
        "name": run.path.resolve().name,
        "report": report,
        "models": models,
        "task_title": view.measure.title or task.replace("_", " "),
        "headline": headline,
        "figures": [figure for figure in view.measure.figures if figure.key != headline.key],
        "nearness": view.measure.nearness,
        "origin": _origin(config, report),
        "smaller": {key: words.ratio(models["teacher"][key], models["student"][key]) for key in ("parameters", "bytes")},
        "axis": axis(report["models"], report["metric"]),
        "trained": [role for role in models if role in history],
        "concatenated": _concatenated(config),
        "losses": losses,
        "scheduled": [title for title, _ in losses if title == "alpha" or title.endswith((" weight", " temperature"))],
        "unreadable": unreadable,
        "exports": [words.export(entry, headline) for entry in manifest or []],
        "benchmark": report_benchmark.values(run, manifest, headline),
        "config": config_text,
        "texts": bool(view.examples),
    }
    template = environment().get_template(f"report_{task}.html")
    return inputs.printable(template.render(**values, **SECTIONS[task].values(view)))


def environment() -> jinja2.Environment:
    """What fills the templates: every value is escaped, and one that is missing is an error."""
    strict = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    made = jinja2.Environment(loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), **strict)
    made.filters["picture"] = markupsafe.Markup  # our own SVG, escaped where it was drawn
    made.globals["words"] = words
    return made


def _origin(config: dict, report: dict) -> dict[str, str]:
    """What was distilled from what: in the words of the configuration, but for a checkpoint, which has a name of its own."""
    teacher, student = config.get("teacher", {}), config.get("student", {})
    named = (report.get("teacher") or {}).get("checkpoint")
    layers = student.get("layers")
    copied = None
    if isinstance(layers, int):
        copied = f"{layers} of the teacher's layers"
    elif isinstance(layers, list):
        copied = f"the teacher's layer{'s' * (len(layers) != 1)} {', '.join(map(str, layers))}, counted from 0"
    return {
        "teacher": named or teacher.get("checkpoint") or _shape(teacher.get("dimensions")),
        "student": copied or _shape(student.get("dimensions")),
    }


def _shape(dimensions) -> str | None:
    if not isinstance(dimensions, dict) or not {"layers", "width"} <= dimensions.keys():
        return None
    layers = dimensions["layers"]
    return f"{layers} layer{'s' * (layers != 1)} of width {dimensions['width']}"


def _concatenated(config: dict) -> bool:
    """Whether texts were followed by others in some training of the student: its metrics there count the first ones' labels."""
    parts = [config, *config.get("stages", {}).values()]
    for name in ("train", "augment"):
        parts = [part[name] for part in parts if isinstance(part, dict) and name in part]
    return any(augment.get("concatenate") for augment in parts if isinstance(augment, dict))


def axis(models: list[dict], metric: str) -> dict[str, dict[str, float]]:
    """Where each model's headline and interval lie between the lowest and the highest bound, in percent of the way."""
    known = [entry for entry in models if entry["interval"] is not None]
    if not known:
        return {}
    low, high = min(entry["interval"][0] for entry in known), max(entry["interval"][1] for entry in known)
    reach = (high - low) or 1.0
    return {
        entry["role"]: {
            "left": 100 * (entry["interval"][0] - low) / reach,
            "width": 100 * (entry["interval"][1] - entry["interval"][0]) / reach,
            "dot": 100 * (entry["metrics"][metric] - low) / reach,
        }
        for entry in known
    }


def _losses(history: dict[str, list[dict]], metrics: set[str]) -> list[tuple[str, str]]:
    """A title and a picture a loss term or metric; `val_x` is drawn into the picture of `x`. New terms show up on their own."""
    series: dict[str, tuple[dict, dict]] = {}
    for role, lines in history.items():
        for line, epoch in zip(lines, _positions(lines), strict=True):
            for key, value in line.items():
                counted = key in _BOOKKEEPING or key.endswith("_per_second")
                if counted or isinstance(value, bool) or not isinstance(value, int | float | None):
                    continue
                parts = series.setdefault(key.removeprefix("val_"), ({}, {}))
                epochs, values = parts[key.startswith("val_")].setdefault(role, ([], []))
                epochs.append(epoch)
                values.append(value if value is not None and np.isfinite(value) else np.nan)
    order = sorted(series, key=lambda key: (key in metrics, key != "loss"))  # the total first, then terms, then metrics
    pictures = []
    for number, key in enumerate(order):
        picture = plots.picture(plots.curves, *series[key], name=f"loss-{number}", alt=f"{key} by epoch")
        pictures.append((key.replace("_", " "), picture))
    return pictures


def _positions(lines: list[dict]) -> list[float]:
    """Each line's place in epochs, from 0; steps may be counted from the start of the run, of a stage or of each epoch."""
    first, last, stage = {}, {}, {}
    for line in lines:
        first.setdefault(line["epoch"], line["step"])
        last[line["epoch"]] = line["step"]
        stage[line["epoch"]] = line.get("stage")
    positions = []
    for line in lines:
        epoch = line["epoch"]
        before = last.get(epoch - 1, 0) if stage.get(epoch - 1) == stage[epoch] else 0
        before = before if first[epoch] > before else 0
        positions.append(epoch - 1 + (line["step"] - before) / max(1, last[epoch] - before))
    return positions
