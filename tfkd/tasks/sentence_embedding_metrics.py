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
    def judged(self) -> np.ndarray:
        """(N,) the pairs' numbers; none where sentences are no pairs."""
        return np.zeros(0) if self.sides is None else np.asarray(self.truth["labels"], "float64")[self.sides[:, 0]]

    def cosines(self, outputs: np.ndarray) -> np.ndarray:
        """(N,) of each pair."""
        vectors = finite(outputs)
        one, other = vectors[self.sides[:, 0]], vectors[self.sides[:, 1]]
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        return (one * other).sum(axis=1) / np.maximum(lengths, 1e-12)

    def metrics(self, outputs):
        finite(outputs)
        judged = self.judged
        if not len(judged) or not np.isfinite(judged).all():
            return {"spearman": None, "pearson": None}
        cosines = self.cosines(outputs)
        return {"spearman": spearman(cosines, judged), "pearson": pearson(cosines, judged)}

    def headline_on(self, outputs):
        judged = self.judged
        if not len(judged) or not np.isfinite(judged).all():
            return lambda rows: None
        return rank_correlation(self.cosines(outputs), judged)

    def near(self, outputs, teacher):
        ours, theirs = finite(outputs), finite(teacher)
        found = {"cosine": None, "pearson": None}
        if ours.shape == theirs.shape:
            lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
            found["cosine"] = float(((ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-12)).mean())
        if self.sides is not None:
            found["pearson"] = pearson(self.cosines(outputs), self.cosines(teacher))
        return found
