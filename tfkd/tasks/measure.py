"""What every task is to a report: its figures, how sure they are, how near a model is to its teacher. NumPy alone."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfkd.errors import UserError
from tfkd.tasks.bootstrap import resampled_interval


class Figure(NamedTuple):
    """How a table says one of a measure's numbers.

    Arguments:
        key: its name in `report.json`.
        title: what it is called, short.
        style: `percent` of something, `decimal` between -1 and 1 or so, or `number` in units of the data.
        brief: the title where room is scarce; default: the title, a word a line.
    """

    key: str
    title: str
    style: str = "decimal"
    brief: str | None = None


class Measure:
    """Measures the outputs of any number of models on the same examples.

    A new task writes a subclass, in `NAME_metrics.py`, with a line in `tfkd.tasks.measures`:

        title      what the task is called; default: its name.
        headline   the figure by which models are compared: one of `figures`.
        figures    what tables show, the headline first; a terminal has room for the first four. Others of `metrics` are in
                   `report.json` alone.
        nearness   what tables show of `near`.

    Arguments:
        truth: what `Target.truth` answers: `labels`, and what else there is.
        labels: names of the outputs in order.
    """

    title: str | None = None
    headline: str
    figures: tuple[Figure, ...]
    nearness: tuple[Figure, ...]

    def __init__(self, truth: dict[str, np.ndarray], labels: list[str]):
        self.truth, self.labels = truth, list(labels)

    @property
    def examples(self) -> int:
        """How many there are of what is drawn for an interval."""
        return len(self.truth["labels"])

    @staticmethod
    def take(truth: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        """The truth of some rows alone, in their order: what exports are checked on. Here every array is (R, ...)."""
        return {name: array[rows] for name, array in truth.items()}

    @staticmethod
    def same_pieces(truth: dict[str, np.ndarray], read: Callable[[], list[np.ndarray]]) -> np.ndarray:
        """(R,) whether each row's text, tokenized again by `read`, falls into what the outputs are of. Here it always does."""
        return np.ones(len(truth["labels"]), bool)

    def metrics(self, outputs: np.ndarray) -> dict[str, float | None]:
        """Figures by name, the headline among them; None where one is not defined.

        Arguments:
            outputs: logits (R, ...) a row, or (P, ...) a position, the rows one behind the other.

        Raises:
            UserError: the shape does not fit, or some are NaN or infinite.
        """
        raise TypeError(f"{type(self).__name__} must define metrics(outputs)")

    def headline_on(self, outputs: np.ndarray) -> Callable[[np.ndarray], float | None]:
        """The headline as a function of examples: row numbers (n,), which may repeat -> its value on them. Called thousands of
        times: what does not depend on the draw is computed before."""
        raise TypeError(f"{type(self).__name__} must define headline_on(outputs)")

    def summary(self, outputs: np.ndarray) -> dict[str, float] | None:
        """What manifests tell of a file: the headline by name, first, and what belongs to it; None where it is not defined."""
        value = self.headline_on(outputs)(np.arange(self.examples))
        return None if value is None else {self.headline: value}

    def near(self, outputs: np.ndarray, teacher: np.ndarray) -> dict[str, float | None]:
        """How near a model's outputs are to the teacher's, by name."""
        raise TypeError(f"{type(self).__name__} must define near(outputs, teacher)")

    def per_label(self, outputs: np.ndarray) -> list[dict]:
        """A dict a label with its `label`, `support` and figures; none where outputs are no labels."""
        return []

    def interval(self, outputs: np.ndarray, **draw) -> tuple[float, float] | None:
        """The 95 % bootstrap interval of the headline; None where it is not defined.

        Arguments:
            draw: `resamples` and `seed`.
        """
        return resampled_interval(self.headline_on(outputs), self.examples, **draw)

    def difference(self, student: np.ndarray, baseline: np.ndarray, **draw) -> dict | None:
        """Student's minus baseline's headline with its interval, both on the same draws; None where it is not defined.

        Returns:
            `{"difference", "interval": [low, high]}`.
        """
        ours, theirs = self.headline_on(student), self.headline_on(baseline)

        def gap(rows: np.ndarray) -> float | None:
            one, other = ours(rows), theirs(rows)
            return None if one is None or other is None else one - other

        interval, all_of_them = resampled_interval(gap, self.examples, **draw), gap(np.arange(self.examples))
        return None if interval is None or all_of_them is None else {"difference": all_of_them, "interval": list(interval)}


def finite(outputs: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Outputs (N, C) as float64.

    Arguments:
        columns: C; None: any number.

    Raises:
        UserError: there are none, they are of another shape, or some are NaN or infinite.
    """
    outputs = np.asarray(outputs, dtype=np.float64)
    if outputs.ndim != 2 or (columns is not None and outputs.shape[1] != columns):
        raise UserError(f"outputs must be (examples, {columns or 'labels'}), not of shape {outputs.shape}")
    if not len(outputs):
        raise UserError("there are no examples to measure; the test split is empty")
    bad = int((~np.isfinite(outputs)).any(axis=1).sum())
    if bad:
        rows = f"{bad} of {len(outputs)} rows of logits are"
        raise UserError(f"{rows} NaN or infinite: the model diverged; lower its learning rate or use float32")
    return outputs


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """log softmax over the classes of logits (N, C)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def class_nearness(student: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
    """How near logits (N, C) are to the teacher's: the share of equal predictions, and mean KL(teacher || student) =
    sum over classes of t (log t - log s), in nats, at temperature 1."""
    log_student, log_teacher = log_softmax(student), log_softmax(teacher)
    divergence = (np.exp(log_teacher) * (log_teacher - log_student)).sum(axis=1)
    agreement = float((student.argmax(axis=1) == teacher.argmax(axis=1)).mean())
    return {"agreement": agreement, "kl": max(0.0, float(divergence.mean()))}


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, elementwise; what would be 0/0 counts as 0 (scikit-learn's `zero_division=0`)."""
    above = np.asarray(above, dtype=np.float64)
    return np.divide(above, below, out=np.zeros_like(above), where=np.asarray(below) > 0)


def roc(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate at every distinct score, falling, with (0, 0) in front. Both kinds must be there."""
    true, false = counts_above(scores, positive)
    return np.append(0, false) / false[-1], np.append(0, true) / true[-1]


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve; None where all examples are of one kind."""
    if positive.all() or not positive.any():
        return None
    false_rate, true_rate = roc(scores, positive)
    return float(np.trapezoid(true_rate, false_rate))


def counts_above(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many positive and how many other examples lie at or above each distinct score, falling; ties enter together."""
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order]
    last_of_ties = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    return np.cumsum(positive)[last_of_ties], np.cumsum(~positive)[last_of_ties]


def thinned(x: np.ndarray, y: np.ndarray, points: int) -> np.ndarray:
    """Which points to keep of a curve that rises or falls, at most `points`, evenly spaced along it."""
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    return np.unique(np.searchsorted(along, np.linspace(0.0, along[-1], points)).clip(max=len(along) - 1))


def taken(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What some rows hold of values that lie one behind the other: the values' places, and the offsets (n + 1,) of the rows."""
    lengths = np.diff(offsets)[rows]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return np.repeat(offsets[:-1][rows] - ends[:-1], lengths) + np.arange(ends[-1]), ends
