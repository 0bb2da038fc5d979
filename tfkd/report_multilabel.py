"""The sections of a page for several labels a text: labels, curves, how many are given, where teacher and student disagree."""

import numpy as np

from tfkd import report_plots as plots
from tfkd.report_inputs import View
from tfkd.tasks.multilabel_metrics import sigmoid

MOST_LABELS = 20  # in the first table; more go into one that opens
MOST_COUNTS = 8  # labels of one example that are told apart
MOST_EXAMPLES = 8  # of each kind of disagreement
MOST_NAMES = 12  # labels of one example
LONGEST_TEXT = 400  # characters


def values(view: View) -> dict:
    """What `report_multilabel.html` is filled with."""
    given = {role: view.measure.logits(outputs) > 0.0 for role, outputs in view.outputs.items()}
    labels = _labels(view)
    worst = sorted(labels, key=_behind)[:MOST_LABELS] if len(labels) > MOST_LABELS else []
    return {
        "label_rows": labels,
        "worst": worst,
        "curves": _curves(view),
        "counts": _counts(view.measure.positive, given),
        "disagreements": _disagreements(view, given),
    }


def _labels(view: View) -> list[dict]:
    """A row a label, the most frequent first: support, and figures by role."""
    rows = []
    for name, *entries in zip(view.names, *(entry["per_label"] for entry in view.models.values()), strict=True):
        rows.append({"label": name, "support": entries[0]["support"], "roles": dict(zip(view.models, entries, strict=True))})
    return sorted(rows, key=lambda row: -row["support"])


def _behind(row: dict) -> float:
    """The student's F1 less the teacher's."""
    return row["roles"]["student"]["f1"] - row["roles"]["teacher"]["f1"]


def _curves(view: View) -> list[tuple[str, str]]:
    """Pictures with their titles; none where all labels are there, or none is."""
    found = {role: view.measure.curves(outputs) for role, outputs in view.outputs.items()}
    if found["student"]["roc"] is None:
        return []
    kinds = {"precision_recall": ("precision against recall", "recall", "precision")}
    kinds["roc"] = ("ROC curve", "false positive rate", "true positive rate")
    pictures = []
    for kind, (title, across, up) in kinds.items():
        drawn = {role: curves[kind] for role, curves in found.items()}
        pictures.append((title, plots.picture(curve, drawn, across, up, name=kind.replace("_", "-"), alt=title)))
    return pictures


def curve(axes, by_role: dict[str, tuple[np.ndarray, np.ndarray]], across: str, up: str) -> None:
    """Draws one curve a role in the unit square."""
    for role, (x, y) in by_role.items():
        axes.plot(x, y, **plots.line(role))
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=across, ylabel=up)
    axes.locator_params(nbins=5)


def _counts(positive: np.ndarray, given: dict[str, np.ndarray]) -> list[dict]:
    """How many examples have 0, 1, 2 ... labels, and how many each model gives so many to; the last row is "or more"."""
    numbers = {"true": positive.sum(axis=1)} | {role: answer.sum(axis=1) for role, answer in given.items()}
    top = min(MOST_COUNTS, max(int(number.max()) for number in numbers.values()))
    rows = []
    for labels in range(top + 1):
        last = labels == top
        counts = {who: int((number >= labels if last else number == labels).sum()) for who, number in numbers.items()}
        rows.append({"labels": f"{labels} or more" if last and top == MOST_COUNTS else str(labels), "counts": counts})
    return rows


def _disagreements(view: View, given: dict[str, np.ndarray]) -> dict:
    """Where teacher and student give different labels: how often, and the kept examples on which they differ most.

    They differ most where the teacher's probabilities and the student's are farthest apart, summed over the labels.
    """
    positive, teacher, student = view.measure.positive, given["teacher"], given["student"]
    right = {role: (answer == positive).all(axis=1) for role, answer in given.items()}
    differ = (teacher != student).any(axis=1)
    kinds = {
        "The teacher has all labels right, the student has not": differ & right["teacher"],
        "The student has all labels right, the teacher has not": differ & right["student"],
        "Both are wrong, in different ways": differ & ~right["teacher"] & ~right["student"],
    }
    teacher_says, student_says = (sigmoid(view.measure.logits(view.outputs[role])) for role in ("teacher", "student"))
    gap = np.abs(teacher_says - student_says).sum(axis=1)

    def shown(row: int) -> dict:
        return {
            "texts": [plots.cut(text, LONGEST_TEXT) for text in view.examples[row]["texts"]],
            "true": _names(view.names, positive[row]),
            "said": {role: _said(view.names, given[role][row], positive[row]) for role in ("teacher", "student")},
        }

    groups = []
    for title, which in kinds.items():
        rows = sorted((int(row) for row in np.flatnonzero(which) if row in view.examples), key=lambda row: -gap[row])
        groups.append({"title": title, "count": int(which.sum()), "shown": [shown(row) for row in rows[:MOST_EXAMPLES]]})
    return {"count": int(differ.sum()), "groups": groups, "texts": bool(view.examples)}


def _names(names: list[str], which: np.ndarray) -> list[str]:
    chosen = [plots.cut(names[index], 60) for index in np.flatnonzero(which)]
    return chosen if len(chosen) <= MOST_NAMES else [*chosen[:MOST_NAMES], f"and {len(chosen) - MOST_NAMES} more"]


def _said(names: list[str], given: np.ndarray, positive: np.ndarray) -> dict[str, list[str]]:
    """The labels a model gave, rightly and wrongly, and those it left out."""
    parts = {"right": given & positive, "wrong": given & ~positive, "missing": ~given & positive}
    return {part: _names(names, which) for part, which in parts.items()}
