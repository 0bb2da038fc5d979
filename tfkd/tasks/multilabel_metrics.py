"""Several labels a text, measured: what `report.json` says of logits (N, C) and ones and zeros (N, C). NumPy alone.

N examples, C labels. A label is given where its probability is above 0.5, its logit above 0. Averages follow
scikit-learn's definitions; what would be 0/0 counts as 0 (its `zero_division=0`).
"""

import numpy as np

from tfkd.errors import UserError
from tfkd.tasks.measure import Figure, Measure, counts_above, finite, ratio, roc, roc_auc, thinned

CURVE_POINTS = 200


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """AP = sum over distinct scores, falling, of (recall gained) * precision; None without a positive example."""
    if not positive.any():
        return None
    true, false = counts_above(scores, positive)
    return float(np.sum(np.diff(true, prepend=0) / true[-1] * true / (true + false)))


class MultilabelMeasure(Measure):
    """Micro F1 first; truth: `labels` (N, C), ones and zeros."""

    title = "multi-label classification"
    headline = "f1_micro"
    figures = (
        Figure("f1_micro", "micro F1"),
        Figure("f1_macro", "macro F1"),
        Figure("subset_accuracy", "all labels right", "percent"),
        Figure("mean_average_precision", "mean average precision"),
        Figure("roc_auc", "ROC-AUC"),
        Figure("binary_cross_entropy", "cross-entropy"),
    )
    nearness = (
        Figure("agreement", "same labels as teacher", "percent"),
        Figure("kl", "KL from teacher in nats"),
    )

    @property
    def positive(self) -> np.ndarray:
        """(N, C) bool."""
        return np.asarray(self.truth["labels"]) > 0

    def logits(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs (N, C) as float64. Raises `UserError` where they do not fit the targets."""
        outputs = finite(outputs)
        if outputs.shape != self.positive.shape:
            raise UserError(f"logits have shape {outputs.shape}, targets {self.positive.shape}; they must be equal")
        return outputs

    def counts(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which labels of which examples are given rightly, given, and true: (N, C) bool each."""
        given, true = self.logits(outputs) > 0.0, self.positive
        return given & true, given, true

    def metrics(self, outputs):
        """`roc_auc` and `mean_average_precision` are means over the labels for which they are defined; None where for none."""
        right, given, true = self.counts(outputs)
        z, y = self.logits(outputs), self.positive
        per_label = [array.sum(axis=0) for array in (right, given, true)]
        whole = [int(array.sum()) for array in (right, given, true)]
        areas = [roc_auc(z[:, c], y[:, c]) for c in range(z.shape[1])]
        precisions = [average_precision(z[:, c], y[:, c]) for c in range(z.shape[1])]
        micro, macro = _precision_recall_f1(*whole), _precision_recall_f1(*per_label)
        found = {f"{name}_micro": float(value) for name, value in zip(("precision", "recall", "f1"), micro, strict=True)}
        found |= {f"{name}_macro": float(value.mean()) for name, value in zip(("precision", "recall", "f1"), macro, strict=True)}
        return found | {
            "subset_accuracy": float((given == true).all(axis=1).mean()),
            "hamming_loss": float((given != true).mean()),
            "roc_auc": _mean(areas),
            "mean_average_precision": _mean(precisions),
            "binary_cross_entropy": float(np.mean(np.logaddexp(0.0, np.where(y, -z, z)))),
        }

    def headline_on(self, outputs):
        right, given, true = (array.sum(axis=1) for array in self.counts(outputs))  # (N,) each
        both = given + true

        def f1(rows: np.ndarray) -> float:
            below = both[rows].sum()
            return float(2 * right[rows].sum() / below) if below else 0.0

        return f1

    def near(self, outputs, teacher):
        """`kl`: mean over examples and labels of KL(teacher || model) between yes and no."""
        z, v = self.logits(outputs), self.logits(teacher)
        same = (z > 0.0) == (v > 0.0)
        p = sigmoid(v)
        yes, no = np.logaddexp(0.0, -z) - np.logaddexp(0.0, -v), np.logaddexp(0.0, z) - np.logaddexp(0.0, v)
        divergence = float(np.mean(p * yes + (1.0 - p) * no))
        return {
            "agreement": float(same.all(axis=1).mean()),
            "label_agreement": float(same.mean()),
            "kl": max(0.0, divergence),
        }

    def per_label(self, outputs):
        right, given, true = self.counts(outputs)
        z = self.logits(outputs)
        scores = zip(*_precision_recall_f1(*(array.sum(axis=0) for array in (right, given, true))), strict=True)
        return [
            {
                "label": name,
                "precision": float(p),
                "recall": float(r),
                "f1": float(f),
                "average_precision": average_precision(z[:, c], true[:, c]),
                "roc_auc": roc_auc(z[:, c], true[:, c]),
                "support": int(true[:, c].sum()),
            }
            for c, (name, (p, r, f)) in enumerate(zip(self.labels, scores, strict=True))
        ]

    def curves(self, outputs: np.ndarray, points: int = CURVE_POINTS) -> dict[str, tuple[np.ndarray, np.ndarray] | None]:
        """Micro-averaged curves, over all (example, label) pairs at once; None where all pairs are of one kind.

        Returns:
            `roc`: false and true positive rates; `precision_recall`: recalls and precisions, recall rising.
        """
        scores, positive = self.logits(outputs).ravel(), self.positive.ravel()
        if positive.all() or not positive.any():
            return {"roc": None, "precision_recall": None}
        true, false = counts_above(scores, positive)
        found = {"roc": roc(scores, positive), "precision_recall": (true / true[-1], true / (true + false))}
        return {name: (x[keep], y[keep]) for name, (x, y) in found.items() for keep in [thinned(x, y, points)]}


def _precision_recall_f1(right, given, true):
    return ratio(right, given), ratio(right, true), ratio(2 * np.asarray(right), np.asarray(given) + true)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
