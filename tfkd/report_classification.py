"""The sections of a classifier's page: confusion, ROC curves, calibration, classes, where teacher and student disagree."""

import numpy as np

from tfkd import report_plots as plots
from tfkd.report_inputs import View
from tfkd.report_sections import by_label, disagreements, furthest_behind, texts
from tfkd.tasks import classification_metrics as metrics

MOST_CLASSES_DRAWN = 20
MOST_CLASSES = 12  # in the short table, where there are more than are drawn
MOST_CONFUSIONS = 15


def values(view: View) -> dict:
    """What `report_classification.html` is filled with."""
    labels, logits, names = view.measure.truth["labels"], view.outputs, view.names
    classes, few = by_label(view), len(names) <= MOST_CLASSES_DRAWN
    return {
        "confusions": _confusion_matrices(labels, logits, names) if few else {},
        "confused": [] if few else _confused_pairs(labels, logits, names),
        "roc": _roc(labels, logits, names),
        "reliability": _reliability(labels, logits),
        "classes": classes,
        "worst": [] if few else furthest_behind(classes, MOST_CLASSES),
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


def _roc(labels: np.ndarray, logits: dict[str, np.ndarray], names: list[str]) -> list[tuple[str, str]]:
    """Pictures of the ROC curves with their titles; none where all labels are the same."""
    curves = {role: metrics.roc_curves(array, labels) for role, array in logits.items()}
    if not curves["student"]:
        return []
    pictures = [
        ("all thresholds", plots.picture(plots.roc, curves, False, name="roc", alt="ROC curves")),
        (
            "few false positives",
            plots.picture(plots.roc, curves, True, name="roc-corner", alt="ROC curves where false positives are few"),
        ),
    ]
    if 2 < len(names) <= MOST_CLASSES_DRAWN:
        height = max(2.7, 0.9 + 0.2 * len(names))
        areas = plots.picture(plots.areas, curves, names, name="auc", alt="area under the curve by class", height=height)
        pictures.append(("by class", areas))
    return pictures


def _reliability(labels: np.ndarray, logits: dict[str, np.ndarray]) -> dict[str, str]:
    pictures = {}
    for role, array in logits.items():
        bins, alt = metrics.calibration_bins(array, labels), f"accuracy against confidence of the {role}"
        size = {"width": 3.4, "height": 3.2}
        pictures[role] = plots.picture(plots.reliability, bins, role, name=f"reliability-{role}", alt=alt, **size)
    return pictures


def _disagreements(examples: dict[int, dict], labels: np.ndarray, logits: dict[str, np.ndarray], names: list[str]) -> dict:
    """Where teacher and student answer differently, and the examples on which both are surest."""
    probabilities = {role: metrics.probabilities(logits[role]) for role in ("teacher", "student")}
    answers = {role: array.argmax(axis=1) for role, array in probabilities.items()}
    right = {role: answer == labels for role, answer in answers.items()}
    sureness = sum(array.max(axis=1) for array in probabilities.values())

    def shown(row: int) -> dict:
        said = {
            role: {"label": names[answers[role][row]], "probability": float(probabilities[role][row].max())} for role in answers
        }
        return {"texts": texts(examples[row]), "true": names[labels[row]], "said": said}

    return disagreements(examples, answers["teacher"] != answers["student"], right, sureness, shown)
