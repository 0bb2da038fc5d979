"""The sections of a page for several labels a text: labels, curves, how many are given, where teacher and student disagree."""

import numpy as np

from tfkd import report_plots as plots
from tfkd.report_inputs import View
from tfkd.report_sections import by_label, disagreements, furthest_behind, texts
from tfkd.report_words import cut
from tfkd.tasks.multilabel_metrics import sigmoid

MOST_LABELS = 20  # in the first table; more go into one that opens
MOST_COUNTS = 8  # labels of one example that are told apart
MOST_NAMES = 12  # labels of one example


def values(view: View) -> dict:
    """What `report_multilabel.html` is filled with."""
    given = {role: view.measure.logits(outputs) > 0.0 for role, outputs in view.outputs.items()}
    labels = sorted(by_label(view), key=lambda row: -row["support"])
    return {
        "label_rows": labels,
        "worst": furthest_behind(labels, MOST_LABELS) if len(labels) > MOST_LABELS else [],
        "curves": _curves(view),
        "counts": _counts(view.measure.positive, given),
        "disagreements": _disagreements(view, given),
    }


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
    """Where teacher and student give different labels, and the kept examples on which they differ most.

    They differ most where the teacher's probabilities and the student's are farthest apart, summed over the labels.
    """
    positive = view.measure.positive
    right = {role: (answer == positive).all(axis=1) for role, answer in given.items()}
    differ = (given["teacher"] != given["student"]).any(axis=1)
    teacher_says, student_says = (sigmoid(view.measure.logits(view.outputs[role])) for role in ("teacher", "student"))
    gap = np.abs(teacher_says - student_says).sum(axis=1)

    def shown(row: int) -> dict:
        return {
            "texts": texts(view.examples[row]),
            "true": _names(view.names, positive[row]),
            "said": {role: _said(view.names, given[role][row], positive[row]) for role in ("teacher", "student")},
        }

    return disagreements(view.examples, differ, right, gap, shown, ("has", "all labels right"))


def _names(names: list[str], which: np.ndarray) -> list[str]:
    chosen = [cut(names[index], 60) for index in np.flatnonzero(which)]
    return chosen if len(chosen) <= MOST_NAMES else [*chosen[:MOST_NAMES], f"and {len(chosen) - MOST_NAMES} more"]


def _said(names: list[str], given: np.ndarray, positive: np.ndarray) -> dict[str, list[str]]:
    """The labels a model gave, rightly and wrongly, and those it left out."""
    parts = {"right": given & positive, "wrong": given & ~positive, "missing": ~given & positive}
    return {part: _names(names, which) for part, which in parts.items()}
