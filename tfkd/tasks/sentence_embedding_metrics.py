"""Sentence vectors, measured: outputs (R, D) of unit length, two rows a judged pair. NumPy alone."""

import numpy as np

from tfkd.tasks.measure import Figure, Measure, finite
from tfkd.tasks.regression_metrics import pearson, rank_correlation, spearman


class SentenceEmbeddingMeasure(Measure):
    """How the cosines of pairs rank beside people's judgements. Truth: `labels` (R,) and `example` (R,), the pair of each row."""

    headline = "spearman"
    figures = (Figure("spearman", "Spearman"), Figure("pearson", "Pearson"))
    nearness = (Figure("cosine", "cosine with teacher"), Figure("pearson", "Pearson of cosines with teacher's"))

    def __init__(self, truth, labels):
        super().__init__(truth, labels)
        rows = np.argsort(truth["example"], kind="stable")
        _, counts = np.unique(truth["example"], return_counts=True)
        self.sides = rows.reshape(-1, 2) if len(rows) and (counts == 2).all() else None  # (N, 2) rows of each pair

    @property
    def examples(self):
        return len(np.unique(self.truth["example"]))

    @property
    def judged(self) -> np.ndarray | None:
        """(N,) the pairs' numbers; None where sentences are no pairs, or some have none."""
        if self.sides is None:
            return None
        judged = np.asarray(self.truth["labels"], "float64")[self.sides[:, 0]]
        return judged if np.isfinite(judged).all() else None

    def cosines(self, outputs: np.ndarray, sides: np.ndarray | None = None) -> np.ndarray:
        """(N,) of each pair, or of other pairs of rows (N, 2)."""
        vectors, sides = finite(outputs), self.sides if sides is None else sides
        return _cosines(vectors[sides[:, 0]], vectors[sides[:, 1]])

    def metrics(self, outputs):
        finite(outputs)
        if self.judged is None:
            return {"spearman": None, "pearson": None}
        cosines = self.cosines(outputs)
        return {"spearman": spearman(cosines, self.judged), "pearson": pearson(cosines, self.judged)}

    def headline_on(self, outputs):
        if self.judged is None:
            return lambda rows: None
        return rank_correlation(self.cosines(outputs), self.judged)

    def near(self, outputs, teacher):
        ours, theirs = finite(outputs), finite(teacher)
        found = {"cosine": None, "pearson": None}
        if ours.shape == theirs.shape:
            found["cosine"] = float(_cosines(ours, theirs).mean())
        if self.sides is not None:
            found["pearson"] = pearson(self.cosines(outputs), self.cosines(teacher))
        return found


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N,) of vectors (N, D)."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / np.maximum(lengths, 1e-12)
