"""The gate: what a written file answers, beside what the Keras student answers."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfkd.errors import UserError
from tfkd.run_dir import RunDir

from .inference import Student

FEWEST_EXAMPLES = 256
TIMED = 100
BATCH = 32

EDGES = (
    b"",
    b"word",
    b"word " * 5000,
    "\N{FOX FACE} Ünïcödé \N{SNOWMAN} 漢字 \u202eright to left\u202c e\u0301 \N{ZERO WIDTH JOINER} \U0001f1ea\U0001f1fa".encode(),
    b"caf\xe9 \xff\xfe is not UTF-8",
)
"""Texts that every file must also answer; they count for differences, not for agreement and metric."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a file may be from the Keras student.

    Arguments:
        difference: largest |file - student| over all logits, in units of max(1, largest |student|); None: not limited.
        disagreement: share of examples that may get another class.
        drop: how much of the metric may be lost.
    """

    difference: float | None
    disagreement: float
    drop: float


FLOAT32 = Tolerance(difference=1e-4, disagreement=0.0, drop=0.0)
"""Other kernels add in another order: about 1e-6 is seen. 1e-4 is far above that and far below what any real defect does."""

INT8 = Tolerance(difference=None, disagreement=0.02, drop=0.01)
"""Rounded weights move every logit; what counts is the answer."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One file of a format.

    Arguments:
        name: as in the manifest.
        file: its final name under `export/`.
        write: writes the student to a path.
        tolerance: what the written file is held to.
    """

    name: str
    file: str
    write: Callable[[Student, pathlib.Path], None]
    tolerance: Tolerance


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a file said to all questions.

    Arguments:
        logits: (N, C).
        length: what texts were cut at.
        milliseconds: of single requests, (n,).
        request: what such a request was, in words.
        scores: probabilities (N, C) by the signature that gave them; `serving_default` answers raw text.
        labels: N label strings answered to raw text; None where the format takes no text.
        truncated: (N,) whether a raw text was cut.
    """

    logits: np.ndarray
    length: int
    milliseconds: np.ndarray
    request: str
    scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    labels: list[str] | None = None
    truncated: np.ndarray | None = None


class Questions:
    """Test examples and edge texts, as texts and as token ids, with the Keras student's logits.

    Arguments:
        texts, pairs: UTF-8 bytes of the examples; `pairs` is None for a student that reads one text.
        targets: (n,) classes of the examples.
    """

    def __init__(self, student: Student, texts: list[bytes], pairs: list[bytes] | None, targets: np.ndarray):
        self.student, self.targets = student, targets
        self.max_length, self.fixed_length = student.max_length, student.fixed_length
        self.texts = [*texts, *EDGES]
        self.pairs = None if pairs is None else [*pairs, *reversed(EDGES)]

    @functools.cache  # noqa: B019  lives as long as the program
    def features(self, length: int) -> dict[str, np.ndarray]:
        """int32 inputs (N, length) by name."""
        return {name: np.asarray(tensor) for name, tensor in self.student.encode(self.texts, self.pairs, length).items()}

    def batches(self, length: int) -> list[dict[str, np.ndarray]]:
        """All questions in order: one alone, then 32 at a time, each batch as long as its longest text."""
        count = len(self.texts)
        bounds = [0, *range(1, count, BATCH), count]
        return [self._cut(slice(begin, end), length) for begin, end in zip(bounds, bounds[1:], strict=False)]

    def singles(self, length: int) -> list[dict[str, np.ndarray]]:
        """The first examples, each alone and as long as its text: what latency is measured on."""
        return [self._cut(slice(row, row + 1), length) for row in range(min(TIMED, len(self.targets)))]

    @functools.cache  # noqa: B019
    def reference(self, length: int) -> np.ndarray:
        """Logits (N, C) of the Keras student on texts cut at `length`. Texts of like length go together: it is quicker,
        and the padding differs from what the files see."""
        order = np.argsort(self.features(length)["padding_mask"].sum(axis=1), kind="stable")
        logits = np.empty((len(order), len(self.student.labels)), "float32")
        with tf.device("CPU"):  # in full float32: a GPU rounds matrix products to TF32
            for begin in range(0, len(order), BATCH):
                rows = order[begin : begin + BATCH]
                logits[rows] = self.student.logits(self._cut(rows, length)).numpy()
        return logits

    def truncated(self) -> np.ndarray:
        """(N,) whether a text has more pieces than the student reads."""
        whole = self.student.encode(self.texts, self.pairs, 2 * self.max_length)["padding_mask"]
        return np.asarray(whole).sum(axis=1) > self.max_length

    def _cut(self, rows, length: int) -> dict[str, np.ndarray]:
        features = self.features(length)
        longest = int(features["padding_mask"][rows].sum(axis=1).max())
        return {name: values[rows, :longest] for name, values in features.items()}


def load_questions(run: RunDir, student: Student, count: int) -> Questions:
    """Reads `count` of the run's test examples, at least 256, spread evenly over the file; all where there are fewer.

    Raises:
        UserError: no example, or a line that is none; the message names the line.
    """
    run.require(run.examples)
    rows = []
    with open(run.examples, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line)
                pair = row["text_pair"] if student.pairs else ""
                rows.append((row["text"].encode(), pair.encode(), student.labels.index(row["label"])))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{run.examples}:{number}: not an example of this run ({error})") from None
    if not rows:
        raise UserError(f"{run.examples}: holds no example, so nothing can be proven")
    chosen = np.unique(np.linspace(0, len(rows) - 1, max(count, FEWEST_EXAMPLES)).round().astype(int))
    texts, pairs, targets = zip(*(rows[index] for index in chosen), strict=True)
    return Questions(student, list(texts), list(pairs) if student.pairs else None, np.asarray(targets))


def compare(answers: Answers, questions: Questions, tolerance: Tolerance) -> dict:
    """What the manifest says of a file; `reason` is why it must not be shipped, or None."""
    reference, labels = questions.reference(answers.length), questions.student.labels
    result = {"examples": len(questions.targets), "reason": None}
    if answers.logits.shape != reference.shape:
        return {**result, "reason": f"answers with logits of shape {answers.logits.shape} instead of {reference.shape}"}
    for who, logits in (("the Keras student itself", reference), ("the file", answers.logits)):
        if broken := int((~np.isfinite(logits)).any(axis=1).sum()):
            return {**result, "reason": f"{who} answers NaN or infinity to {broken} of {len(logits)} texts"}
    result |= _measure(answers.logits, reference, questions.targets)
    scale = max(1.0, float(np.abs(reference).max()))
    limit = (tolerance.difference or 0.0) * scale
    reason = (
        (_too_different(result, limit) if tolerance.difference is not None else None)
        or _too_many_others(answers.logits, reference, questions.targets, tolerance, limit)
        or _wrong_scores(answers, FLOAT32.difference * scale)
        or _wrong_labels(answers, labels)
        or _wrong_truncation(answers, questions)
    )
    return {**result, "reason": reason}


def _measure(logits: np.ndarray, reference: np.ndarray, targets: np.ndarray) -> dict:
    difference = np.abs(logits.astype("float64") - reference)
    ours, theirs = logits[: len(targets)].argmax(axis=1), reference[: len(targets)].argmax(axis=1)
    return {
        "max_abs_difference": float(difference.max()),
        "mean_abs_difference": float(difference.mean()),
        "agreement": float((ours == theirs).mean()),
        "metrics": {"accuracy": float((ours == targets).mean())},
        "student_metrics": {"accuracy": float((theirs == targets).mean())},
    }


def _too_different(result: dict, limit: float) -> str | None:
    largest = result["max_abs_difference"]
    return f"logits differ by up to {largest:.3g}, allowed are {limit:.3g}" if largest > limit else None


def _too_many_others(logits, reference, targets, tolerance: Tolerance, limit: float) -> str | None:
    """Other classes than the student's, and what they cost.

    One example is always allowed where any is: of 30 examples a single one is already 3 %. A loss of the metric counts
    only if chance does not explain it: with `lost` and `gained` examples that one of the two got right alone, the
    standard error of their difference is sqrt(lost + gained), and two of it are allowed (McNemar 1947).
    """
    count = len(targets)
    ours, theirs = logits[:count].argmax(axis=1), reference[:count].argmax(axis=1)
    # Two classes closer than twice the allowed difference may change places within it.
    margin = reference[:count].max(axis=1) - reference[np.arange(count), ours]
    other = (ours != theirs) & (margin > 2.0 * limit)
    if other.sum() > _share(tolerance.disagreement, count):
        return f"another class for {other.sum()} of {count} examples, allowed are {_share(tolerance.disagreement, count)}"
    lost, gained = int((other & (theirs == targets)).sum()), int((other & (ours == targets)).sum())
    if lost - gained > max(_share(tolerance.drop, count), 2.0 * (lost + gained) ** 0.5):
        fall = f"{(lost - gained) / count:.1%}, allowed are {tolerance.drop:.1%}"
        return f"accuracy falls by {fall}: {lost} examples lost, {gained} gained"
    return None


def _share(share: float, count: int) -> int:
    return max(1, int(share * count)) if share else 0


def _wrong_scores(answers: Answers, limit: float) -> str | None:
    """Probabilities beside the softmax of the file's own logits. A probability moves by less than its logits do."""
    shifted = np.exp(answers.logits.astype("float64") - answers.logits.max(axis=1, keepdims=True))
    expected = shifted / shifted.sum(axis=1, keepdims=True)
    for signature, scores in answers.scores.items():
        if scores.shape != expected.shape:
            return f"{signature} answers with scores of shape {scores.shape} instead of {expected.shape}"
        difference = float(np.abs(scores - expected).max())
        if not difference <= limit:  # NaN is not
            return f"{signature}'s scores are off the softmax of the logits by up to {difference:.3g}, allowed are {limit:.3g}"
    return None


def _wrong_labels(answers: Answers, labels: tuple[str, ...]) -> str | None:
    if answers.labels is None:
        return None
    scores = answers.scores["serving_default"]
    for row, label in enumerate(answers.labels):
        best = [labels[index] for index in np.flatnonzero(scores[row] == scores[row].max())]
        if label not in best:
            return f"serving_default answers {label!r} where class {labels.index(best[0])} is {best[0]!r} (labels.txt)"
    return None


def _wrong_truncation(answers: Answers, questions: Questions) -> str | None:
    if answers.truncated is None:
        return None
    wanted = questions.truncated()
    wrong = np.flatnonzero(answers.truncated != wanted)
    return f"serving_default's truncated is wrong for {len(wrong)} of {len(wanted)} texts" if len(wrong) else None
