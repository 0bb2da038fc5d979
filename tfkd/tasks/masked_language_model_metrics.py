"""Masked-language modelling, measured: of outputs (P, 2), each position's most likely piece and the right one's log-probability.

All logits would be too many: 30,000 numbers a position. NumPy alone.
"""

import math

import numpy as np

from tfkd.tasks.measure import Figure, Measure, finite, taken

MOST_PERPLEXITY = 700.0
"""Nats beyond which a perplexity is no number any more."""


class MaskedLanguageModelMeasure(Measure):
    """Accuracy and perplexity at the hidden positions. Truth: `labels` (P,), `asked` (P,) and `offsets` (R + 1,)."""

    headline = "accuracy"
    figures = (
        Figure("accuracy", "accuracy", "percent"),
        Figure("perplexity", "perplexity", "number"),
        Figure("cross_entropy", "cross-entropy", "number"),
    )
    nearness = (Figure("agreement", "same piece as teacher", "percent"),)

    @property
    def examples(self):
        return len(self.truth["offsets"]) - 1

    @staticmethod
    def take(truth, rows):
        places, offsets = taken(truth["offsets"], rows)
        return {"labels": truth["labels"][places], "asked": truth["asked"][places], "offsets": offsets}

    def metrics(self, outputs):
        likely, log_probability = self.asked(outputs)
        return scores(likely == self.truth["labels"][self.truth["asked"]], log_probability)

    def headline_on(self, outputs):
        likely, _ = finite(outputs, 2).T
        asked = self.truth["asked"]
        right = self._by_row(asked & (likely == self.truth["labels"]))
        there = self._by_row(asked)

        def accuracy(rows):
            count = there[rows].sum()
            return float(right[rows].sum() / count) if count else None

        return accuracy

    def near(self, outputs, teacher):
        likely, theirs = self.asked(outputs)[0], self.asked(teacher)[0]
        return {"agreement": float((likely == theirs).mean()) if len(likely) else None}

    def asked(self, outputs) -> tuple[np.ndarray, np.ndarray]:
        """(A,) the most likely piece and (A,) the right one's log-probability, at the positions that are asked for."""
        likely, log_probability = finite(outputs, 2)[self.truth["asked"]].T
        return likely, log_probability

    def _by_row(self, which: np.ndarray) -> np.ndarray:
        """How many positions of each row."""
        before = np.concatenate([[0], np.cumsum(which)])
        return np.diff(before[self.truth["offsets"]])


def scores(right: np.ndarray, log_probability: np.ndarray) -> dict[str, float | None]:
    """Figures of some positions: (N,) whether the most likely piece is right, (N,) the right one's log-probability in nats."""
    if not len(right):
        return {"accuracy": None, "perplexity": None, "cross_entropy": None}
    loss = -float(log_probability.mean())
    perplexity = math.exp(loss) if loss < MOST_PERPLEXITY else None
    return {"accuracy": float(right.mean()), "perplexity": perplexity, "cross_entropy": loss}
