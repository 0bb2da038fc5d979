"""Classification, measured: what `report.json` says of logits (N, C) and labels (N,). NumPy alone.

N examples, C classes. Everything that depends on counts follows from one confusion matrix; averages over classes
follow scikit-learn's definitions, so that its users meet the numbers they know.
"""

import math

import numpy as np

from tfkd.errors import UserError
from tfkd.tasks.bootstrap import bootstrap_interval, paired_difference
from tfkd.tasks.measure import Figure, Measure, class_nearness, finite, log_softmax, ratio, roc, roc_auc, thinned

CALIBRATION_BINS = 15
CURVE_POINTS = 200


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Accuracy, precision, recall, F1, ROC-AUC, cross-entropy and calibration error of one model.

    Macro averages run over the classes that occur among the labels or the predictions, and what would be 0/0 counts
    as 0 (scikit-learn's `zero_division=0`). Micro averages equal the accuracy, every example having one label.

    Arguments:
        logits: (N, C) scores before softmax, C >= 2.
        labels: (N,) whole numbers in [0, C).

    Returns:
        Floats by name. `roc_auc` is that of class 1 for two classes, else the mean over one class against the rest,
        for the classes that have examples of both kinds; None where there is no such class, as when all labels are
        the same. `cross_entropy` is in nats; all others lie in [0, 1].

    Raises:
        UserError: shapes or labels do not fit, or logits are not finite; it says how many rows.
    """
    logits, labels = _checked(logits, labels)
    log_probabilities = log_softmax(logits)
    counts = confusion(logits, labels)
    precision, recall, f1 = _scores(counts)
    occurs = (counts.sum(axis=0) + counts.sum(axis=1)) > 0
    accuracy = float(np.trace(counts) / len(labels))
    return {
        "accuracy": accuracy,
        "precision_macro": float(precision[occurs].mean()),
        "recall_macro": float(recall[occurs].mean()),
        "f1_macro": float(f1[occurs].mean()),
        "precision_micro": accuracy,
        "recall_micro": accuracy,
        "f1_micro": accuracy,
        "roc_auc": _roc_auc(np.exp(log_probabilities), labels),
        "cross_entropy": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "calibration_error": calibration_error(logits, labels),
    }


def per_class(logits: np.ndarray, labels: np.ndarray, label_names: list[str]) -> list[dict]:
    """Precision, recall and F1 of every class, in class order; 0/0 counts as 0.

    Returns:
        `{"label", "precision", "recall", "f1", "support"}` a class; `support` is its number of examples.
    """
    logits, labels = _checked(logits, labels)
    if len(label_names) != logits.shape[1]:
        raise UserError(f"{len(label_names)} label names do not name the {logits.shape[1]} classes of the logits")
    counts = confusion(logits, labels)
    columns = zip(label_names, *_scores(counts), counts.sum(axis=1), strict=True)
    return [
        {"label": str(name), "precision": float(p), "recall": float(r), "f1": float(f), "support": int(support)}
        for name, p, r, f, support in columns
    ]


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts of (true class, predicted class): (C, C) int64. Of equal logits the first class is predicted."""
    logits, labels = _checked(logits, labels)
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def roc_curves(logits: np.ndarray, labels: np.ndarray, points: int = CURVE_POINTS) -> list[dict]:
    """True against false positive rate, one class against the rest; of two classes, class 1 alone.

    Examples with equal probability enter together, so ties neither help nor hurt.

    Returns:
        `{"class", "auc", "false_positive_rate", "true_positive_rate"}` for every class with examples of both kinds;
        the rates rise from (0, 0) to (1, 1) in at most `points` points, evenly spaced along the curve.
    """
    logits, labels = _checked(logits, labels)
    probabilities = np.exp(log_softmax(logits))
    curves = []
    for index in _contested(labels, logits.shape[1]):
        false_rate, true_rate = roc(probabilities[:, index], labels == index)
        auc = float(np.trapezoid(true_rate, false_rate))
        keep = thinned(false_rate, true_rate, points)
        rates = {"false_positive_rate": false_rate[keep].tolist(), "true_positive_rate": true_rate[keep].tolist()}
        curves.append({"class": int(index), "auc": auc, **rates})
    return curves


def calibration_bins(logits: np.ndarray, labels: np.ndarray, bins: int = CALIBRATION_BINS) -> list[dict]:
    """Mean confidence and accuracy of the predictions whose probability falls in each of `bins` equal parts of (0, 1].

    Returns:
        `{"lower", "upper", "confidence", "accuracy", "count"}` for every bin (lower, upper] that is not empty.
    """
    logits, labels = _checked(logits, labels)
    confidence = np.exp(log_softmax(logits).max(axis=1))
    right = logits.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], confidence, side="left")
    count = np.bincount(place, minlength=bins)
    confidence_sum = np.bincount(place, weights=confidence, minlength=bins)
    right_sum = np.bincount(place, weights=right, minlength=bins)
    return [
        {
            "lower": float(edges[b]),
            "upper": float(edges[b + 1]),
            "confidence": float(confidence_sum[b] / count[b]),
            "accuracy": float(right_sum[b] / count[b]),
            "count": int(count[b]),
        }
        for b in np.flatnonzero(count)
    ]


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """ECE = sum over bins of count / N * |accuracy - confidence|, of the predicted class (Guo et al. 2017, eq. 3).

    References: "On Calibration of Modern Neural Networks", 2017, https://arxiv.org/abs/1706.04599
    """
    parts = calibration_bins(logits, labels, bins)
    return float(sum(part["count"] * abs(part["accuracy"] - part["confidence"]) for part in parts) / len(labels))


def compare(student_logits: np.ndarray, teacher_logits: np.ndarray) -> dict[str, float]:
    """Share of equal predictions, and mean KL(teacher || student) in nats.

    Arguments:
        student_logits: (N, C).
        teacher_logits: (N, C), of the same examples.
    """
    student, teacher = _finite(student_logits), _finite(teacher_logits)
    if student.shape != teacher.shape:
        raise UserError(f"student logits have shape {student.shape}, teacher logits {teacher.shape}; they must be equal")
    return class_nearness(student, teacher)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """softmax(logits) over classes: (N, C) float64."""
    return np.exp(log_softmax(_finite(logits)))


def _scores(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 (C,) of a confusion matrix."""
    right, predicted, true = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    return ratio(right, predicted), ratio(right, true), ratio(2 * right, predicted + true)


def _contested(labels: np.ndarray, classes: int) -> list[int]:
    """Classes to draw a ROC curve of: those that some examples have and some do not."""
    support = np.bincount(labels, minlength=classes)
    candidates = [1] if classes == 2 else range(classes)
    return [c for c in candidates if 0 < support[c] < len(labels)]


def _roc_auc(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    areas = [roc_auc(probabilities[:, index], labels == index) for index in _contested(labels, probabilities.shape[1])]
    return math.fsum(areas) / len(areas) if areas else None


def _finite(logits: np.ndarray) -> np.ndarray:
    """The logits as (N, C) float64; raises `UserError` where there are none, or some are NaN or infinite."""
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UserError(f"logits must be (examples, classes) with at least 2 classes, not of shape {logits.shape}")
    return finite(logits)


def _checked(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = _finite(logits), np.asarray(labels)
    if labels.shape != (len(logits),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"labels must be {len(logits)} whole numbers, one a row of logits, not {labels.dtype} {labels.shape}")
    labels = labels.astype(np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= logits.shape[1]))
    if len(outside):
        raise UserError(f"row {outside[0]}: label {labels[outside[0]]} is not one of the {logits.shape[1]} classes")
    return logits, labels


class ClassificationMeasure(Measure):
    """Accuracy first; truth: `labels` (N,), the classes."""

    headline = "accuracy"
    figures = (
        Figure("accuracy", "accuracy", "percent"),
        Figure("f1_macro", "macro F1"),
        Figure("roc_auc", "ROC-AUC"),
        Figure("calibration_error", "calibration error", brief="calibr. error"),
        Figure("cross_entropy", "cross-entropy"),
    )
    nearness = (Figure("agreement", "same answer as teacher", "percent"), Figure("kl", "KL from teacher in nats"))

    def metrics(self, outputs):
        return measure(outputs, self.truth["labels"])

    def right(self, outputs: np.ndarray) -> np.ndarray:
        """(N,) whether each answer is right."""
        return np.argmax(outputs, axis=1) == self.truth["labels"]

    def headline_on(self, outputs):
        right = self.right(outputs)
        return lambda rows: float(right[rows].mean())

    def near(self, outputs, teacher):
        return compare(outputs, teacher)

    def per_label(self, outputs):
        return per_class(outputs, self.truth["labels"], self.labels)

    def interval(self, outputs, **draw):
        return bootstrap_interval(self.right(outputs), **draw)

    def difference(self, student, baseline, **draw):
        return paired_difference(self.right(student), self.right(baseline), **draw)
