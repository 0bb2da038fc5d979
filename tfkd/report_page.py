"""The report's page: puts what a run's files say into numbers and pictures, and fills `report_template.html`."""

import pathlib

import jinja2
import markupsafe
import numpy as np

from tfkd import report_inputs as inputs
from tfkd import report_plots as plots
from tfkd import report_words as words
from tfkd.run_dir import RunDir
from tfkd.tasks import classification_metrics as metrics

MOST_CLASSES_DRAWN = 20
MOST_CLASSES = 12  # in the short table, where there are more than are drawn
MOST_CONFUSIONS = 15
MOST_EXAMPLES = 8  # of each kind of disagreement
LONGEST_TEXT = 400  # characters
_BOOKKEEPING = ("role", "epoch", "step", "seconds", "learning_rate")  # and whatever is counted `_per_second`


def page(run: RunDir, report: dict, manifest: list[dict] | None) -> str:
    """The run as one HTML page that needs nothing else: styles inside, pictures as inline SVG, no scripts.

    Arguments:
        run: its `predictions.npz` is needed; `metrics.jsonl`, `examples.jsonl` and `config.yaml` are used where they are.
        report: what `report.summarize` answered.
        manifest: the exports; None where there are none.

    Raises:
        UserError: a file cannot be read, or does not belong to the report.
    """
    models = {entry["role"]: entry for entry in report["models"]}
    names = [inputs.printable(entry["label"]) for entry in models["student"]["per_class"]]
    labels, logits = inputs.predictions(run, list(models), report["examples"], len(names))
    config_text, config = inputs.config(run.config)
    history, unreadable = inputs.history(run.metrics)
    classes = _classes(models)
    values = {
        "name": run.path.resolve().name,
        "report": report,
        "models": models,
        "origin": _origin(config, report),
        "smaller": {key: words.ratio(models["teacher"][key], models["student"][key]) for key in ("parameters", "bytes")},
        "axis": _axis(report["models"]),
        "losses": _losses(history),
        "unreadable": unreadable,
        "confusions": _confusion_matrices(labels, logits, names) if len(names) <= MOST_CLASSES_DRAWN else {},
        "confused": _confused_pairs(labels, logits, names),
        "roc": _roc(labels, logits, names),
        "reliability": _reliability(labels, logits),
        "classes": classes,
        "worst": sorted(classes, key=_behind)[:MOST_CLASSES] if len(names) > MOST_CLASSES_DRAWN else [],
        "disagreements": _disagreements(inputs.examples(run.examples, len(labels)), labels, logits, names),
        "exports": [words.export(entry) for entry in manifest or []],
        "config": config_text,
    }
    strict = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), **strict)
    environment.filters["picture"] = markupsafe.Markup  # our own SVG, escaped where it was drawn
    template = environment.get_template("report_template.html")
    return inputs.printable(template.render(words=words, cut=plots.cut, **values))


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


def _axis(models: list[dict]) -> dict[str, dict[str, float]]:
    """Where each model's accuracy and interval lie between the lowest and the highest bound, in percent of the way."""
    low, high = min(entry["interval"][0] for entry in models), max(entry["interval"][1] for entry in models)
    reach = (high - low) or 1.0
    return {
        entry["role"]: {
            "left": 100 * (entry["interval"][0] - low) / reach,
            "width": 100 * (entry["interval"][1] - entry["interval"][0]) / reach,
            "dot": 100 * (entry["metrics"]["accuracy"] - low) / reach,
        }
        for entry in models
    }


def _losses(history: dict[str, list[dict]]) -> list[dict]:
    """One picture a loss term or metric; `val_x` is drawn into the picture of `x`. New terms show up on their own."""
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
    order = sorted(series, key=lambda key: ("accuracy" in key, key != "loss"))  # the total first, then terms, then metrics
    pictures = []
    for number, key in enumerate(order):
        picture = plots.picture(plots.curves, *series[key], name=f"loss-{number}", alt=f"{key} by epoch")
        pictures.append({"title": key.replace("_", " "), "picture": picture})
    return pictures


def _positions(lines: list[dict]) -> list[float]:
    """Each line's place in epochs, from 0; steps may be counted from the start of the run or of each epoch."""
    first, last = {}, {}
    for line in lines:
        first.setdefault(line["epoch"], line["step"])
        last[line["epoch"]] = line["step"]
    positions = []
    for line in lines:
        epoch = line["epoch"]
        before = last.get(epoch - 1, 0)
        before = before if first[epoch] > before else 0
        positions.append(epoch - 1 + (line["step"] - before) / max(1, last[epoch] - before))
    return positions


def _confusion_matrices(labels: np.ndarray, logits: dict[str, np.ndarray], names: list[str]) -> dict[str, str]:
    pictures = {}
    for role, array in logits.items():
        counts, alt = metrics.confusion(array, labels), f"confusion matrix of the {role}"
        pictures[role] = plots.picture(plots.heat, counts, names, role, name=f"confusion-{role}", alt=alt, height=4.0)
    return pictures


def _confused_pairs(labels: np.ndarray, logits: dict[str, np.ndarray], names: list[str]) -> list[dict]:
    """The student's most frequent confusions, and how often the others make them."""
    counts = {role: metrics.confusion(array, labels) for role, array in logits.items()}
    wrong = counts["student"] * (1 - np.eye(len(names), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [divmod(int(flat), len(names)) for flat in order if wrong.flat[flat]]
    return [
        {
            "true": names[true],
            "predicted": names[predicted],
            "support": int(counts["student"][true].sum()),
            "counts": {role: int(table[true, predicted]) for role, table in counts.items()},
        }
        for true, predicted in pairs
    ]


def _roc(labels: np.ndarray, logits: dict[str, np.ndarray], names: list[str]) -> list[str]:
    """Pictures of the ROC curves; none where all labels are the same."""
    curves = {role: metrics.roc_curves(array, labels) for role, array in logits.items()}
    if not curves["student"]:
        return []
    pictures = [
        plots.picture(plots.roc, curves, False, name="roc", alt="ROC curves"),
        plots.picture(plots.roc, curves, True, name="roc-corner", alt="ROC curves where false positives are few"),
    ]
    if 2 < len(names) <= MOST_CLASSES_DRAWN:
        height = max(2.7, 0.9 + 0.2 * len(names))
        pictures.append(plots.picture(plots.areas, curves, names, name="auc", alt="area under the curve by class", height=height))
    return pictures


def _reliability(labels: np.ndarray, logits: dict[str, np.ndarray]) -> dict[str, str]:
    pictures = {}
    for role, array in logits.items():
        bins, alt = metrics.calibration_bins(array, labels), f"accuracy against confidence of the {role}"
        size = {"width": 3.4, "height": 3.2}
        pictures[role] = plots.picture(plots.reliability, bins, role, name=f"reliability-{role}", alt=alt, **size)
    return pictures


def _classes(models: dict[str, dict]) -> list[dict]:
    """A row a class: support, and precision, recall and F1 by role."""
    rows = []
    for entries in zip(*(entry["per_class"] for entry in models.values()), strict=True):
        by_role = dict(zip(models, entries, strict=True))
        rows.append({"label": entries[0]["label"], "support": entries[0]["support"], "roles": by_role})
    return rows


def _behind(row: dict) -> float:
    """The student's F1 less the teacher's."""
    return row["roles"]["student"]["f1"] - row["roles"]["teacher"]["f1"]


def _disagreements(examples: dict[int, list[str]], labels: np.ndarray, logits: dict[str, np.ndarray], names: list[str]) -> dict:
    """Where teacher and student answer differently: how often, and the examples on which both are surest.

    Arguments:
        examples: row of the predictions -> its texts; rows without texts are counted and not shown.
    """
    probabilities = {role: metrics.probabilities(logits[role]) for role in ("teacher", "student")}
    answers = {role: array.argmax(axis=1) for role, array in probabilities.items()}
    differ = answers["teacher"] != answers["student"]
    right = {role: answer == labels for role, answer in answers.items()}
    kinds = {
        "The teacher is right, the student is not": differ & right["teacher"],
        "The student is right, the teacher is not": differ & right["student"],
        "Both are wrong, in different ways": differ & ~right["teacher"] & ~right["student"],
    }
    sureness = sum(array.max(axis=1) for array in probabilities.values())

    def shown(row: int) -> dict:
        texts = [plots.cut(text, LONGEST_TEXT) for text in examples[row]]
        said = {
            role: {"label": names[answers[role][row]], "probability": float(probabilities[role][row].max())} for role in answers
        }
        return {"texts": texts, "true": names[labels[row]], "said": said}

    groups = []
    for title, which in kinds.items():
        rows = sorted((int(row) for row in np.flatnonzero(which) if row in examples), key=lambda row: -sureness[row])
        groups.append({"title": title, "count": int(which.sum()), "shown": [shown(row) for row in rows[:MOST_EXAMPLES]]})
    return {"count": int(differ.sum()), "groups": groups, "texts": bool(examples)}
