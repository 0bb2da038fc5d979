"""The sections of a classifier's page: confusion, ROC curves, calibration, classes, where teacher and student disagree."""

import numpy as np

from tfkd import report_plots as plots
from tfkd.report_inputs import View
from tfkd.tasks import classification_metrics as metrics

MOST_CLASSES_DRAWN = 20
MOST_CLASSES = 12  # in the short table, where there are more than are drawn
MOST_CONFUSIONS = 15
MOST_EXAMPLES = 8  # of each kind of disagreement
LONGEST_TEXT = 400  # characters


def values(view: View) -> dict:
    """What `report_classification.html` is filled with."""
    labels, logits, names = view.measure.truth["labels"], view.outputs, view.names
    classes = _classes(view.models, names)
    return {
        "confusions": _confusion_matrices(labels, logits, names) if len(names) <= MOST_CLASSES_DRAWN else {},
        "confused": _confused_pairs(labels, logits, names),
        "roc": _roc(labels, logits, names),
        "reliability": _reliability(labels, logits),
        "classes": classes,
        "worst": sorted(classes, key=_behind)[:MOST_CLASSES] if len(names) > MOST_CLASSES_DRAWN else [],
        "disagreements": _disagreements(view.examples, labels, logits, names),
    }


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


def _classes(models: dict[str, dict], names: list[str]) -> list[dict]:
    """A row a class: support, and precision, recall and F1 by role."""
    rows = []
    for name, *entries in zip(names, *(entry["per_label"] for entry in models.values()), strict=True):
        by_role = dict(zip(models, entries, strict=True))
        rows.append({"label": name, "support": entries[0]["support"], "roles": by_role})
    return rows


def _behind(row: dict) -> float:
    """The student's F1 less the teacher's."""
    return row["roles"]["student"]["f1"] - row["roles"]["teacher"]["f1"]


def _disagreements(examples: dict[int, dict], labels: np.ndarray, logits: dict[str, np.ndarray], names: list[str]) -> dict:
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
        texts = [plots.cut(text, LONGEST_TEXT) for text in examples[row]["texts"]]
        said = {
            role: {"label": names[answers[role][row]], "probability": float(probabilities[role][row].max())} for role in answers
        }
        return {"texts": texts, "true": names[labels[row]], "said": said}

    groups = []
    for title, which in kinds.items():
        rows = sorted((int(row) for row in np.flatnonzero(which) if row in examples), key=lambda row: -sureness[row])
        groups.append({"title": title, "count": int(which.sum()), "shown": [shown(row) for row in rows[:MOST_EXAMPLES]]})
    return {"count": int(differ.sum()), "groups": groups, "texts": bool(examples)}
