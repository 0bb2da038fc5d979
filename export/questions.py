"""What every file is asked: test examples and texts from the edges, with the Keras student's answers."""

import functools
import sys

import numpy as np
import tensorflow as tf

from tfkd.errors import UserError
from tfkd.run_dir import RunDir
from tfkd.tasks.measure import Measure
from tfkd.tasks.measures import MEASURES

from .examples import BROKEN, read_lines, read_truth, whole_examples
from .inference import Student

FEWEST_EXAMPLES = 500
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


class Questions:
    """Test examples and edge texts, as texts and as token ids, with the Keras student's logits.

    Arguments:
        texts, pairs: UTF-8 bytes of the examples' rows; `pairs` is None for a student that reads one text.
        truth: what is true of the rows, by name, as the task's measure reads it: `labels`, and what else there is.
        rows: (n,) which they are in the run's predictions.
        left_out: which examples of the run are not asked, and why, in words; None where nothing stood against any.

    Attributes:
        count: n. The edge texts stand behind these rows.
    """

    def __init__(
        self,
        student: Student,
        texts: list[bytes],
        pairs: list[bytes] | None,
        truth: dict[str, np.ndarray],
        rows: np.ndarray,
        left_out: str | None = None,
    ):
        self.student, self.max_length, self.count, self.rows = student, student.max_length, len(texts), rows
        self.left_out = left_out
        self.measure: Measure = MEASURES[student.task](truth, list(student.labels))
        self.texts = [*texts, *EDGES]
        self.pairs = None if pairs is None else [*pairs, *reversed(EDGES)]

    def of(self, student: Student) -> "Questions":
        """The same questions, answered by another model with the same tokenizer and labels."""
        pairs = None if self.pairs is None else self.pairs[: self.count]
        return Questions(student, self.texts[: self.count], pairs, self.measure.truth, self.rows, self.left_out)

    @property
    def examples(self) -> int:
        """How many examples there are: as many as rows, or fewer where some give several."""
        return self.measure.examples

    @property
    def timed(self) -> range:
        """The rows of examples that latency is measured on: the first ones."""
        return range(min(TIMED, self.count))

    @functools.cache  # noqa: B019  lives as long as the program
    def features(self, length: int) -> dict[str, np.ndarray]:
        """int32 inputs (N, length) by name."""
        return {name: np.asarray(tensor) for name, tensor in self.student.encode(self.texts, self.pairs, length).items()}

    def batches(self, length: int) -> list[dict[str, np.ndarray]]:
        """All questions in order: one alone, then 32 at a time, each batch as long as its longest text."""
        count = len(self.texts)
        bounds = [0, *range(1, count, BATCH), count]
        return [self.cut(slice(begin, end), length) for begin, end in zip(bounds, bounds[1:], strict=False)]

    def singles(self, length: int) -> list[dict[str, np.ndarray]]:
        """The timed examples, each alone and as long as its text."""
        return [self.cut(slice(row, row + 1), length) for row in self.timed]

    def padded(self, length: int) -> list[dict[str, np.ndarray]]:
        """All questions in order, each alone and padded to `length`."""
        features = self.features(length)
        return [{name: values[row : row + 1] for name, values in features.items()} for row in range(len(self.texts))]

    @functools.cache  # noqa: B019
    def reference(self, length: int) -> np.ndarray:
        """What the Keras student answers to texts cut at `length`: (N, C) or (N, length, C), 0 at padding. Texts of like
        length go together: it is quicker, and the padding differs from what the files see."""
        order = np.argsort(self.features(length)["padding_mask"].sum(axis=1), kind="stable")
        answers = None
        with tf.device("CPU"):  # in full float32: a GPU rounds matrix products to TF32
            for begin in range(0, len(order), BATCH):
                rows = order[begin : begin + BATCH]
                batch = np.asarray(self.student.model(self.cut(rows, length), training=False), "float32")
                if answers is None:
                    shape = batch.shape[1:] if batch.ndim == 2 else (length, *batch.shape[2:])
                    answers = np.zeros((len(order), *shape), "float32")
                answers[rows, : batch.shape[1]] = batch
        return answers

    def truncated(self) -> np.ndarray:
        """(N,) whether a text has more pieces than the student reads."""
        whole = self.student.encode(self.texts, self.pairs, 2 * self.max_length)["padding_mask"]
        return np.asarray(whole).sum(axis=1) > self.max_length

    def cut(self, rows, length: int) -> dict[str, np.ndarray]:
        """Some questions as a batch, as long as its longest text."""
        features = self.features(length)
        longest = int(features["padding_mask"][rows].sum(axis=1).max())
        return {name: values[rows, :longest] for name, values in features.items()}


def widened(logits: np.ndarray, length: int) -> np.ndarray:
    """(B, T, C) -> (B, length, C), 0 beyond T; (B, C) stays."""
    return logits if logits.ndim == 2 else np.pad(logits, ((0, 0), (0, length - logits.shape[1]), (0, 0)))


def load_questions(run: RunDir, student: Student, count: int) -> Questions:
    """Reads `count` of the run's test examples, at least 500, spread evenly over the file; all where there are fewer.

    An example that gave several rows comes with all of them, or it is left out: `whole_examples` says when.

    Raises:
        UserError: no example, or a line that is none; the message names the line.
    """
    lines, classes = read_lines(run, student), student.task == "classification"
    rows = np.array([line.row for line in lines])
    try:
        # Of classes the examples tell themselves, by name, what is true.
        truth = {"labels": np.array([line.label for line in lines])} if classes else read_truth(run)
        examples, left_out = whole_examples(student, lines, truth)
        if not examples:
            raise UserError(f"{run.examples}: {left_out}; none is left to prove files by, train the run again")
        chosen = np.unique(np.linspace(0, len(examples) - 1, max(count, FEWEST_EXAMPLES)).round().astype(int))
        places = np.concatenate([examples[index] for index in chosen])
        truth = MEASURES[student.task].take(truth, places if classes else rows[places])
    except UserError:  # a ValueError too
        raise
    except (*BROKEN, IndexError) as error:
        raise UserError(f"{run.predictions}: does not tell what is true of {run.examples.name} ({error})") from None
    if left_out is not None:
        print(f"{run.examples}: {left_out}", file=sys.stderr)
    texts, pairs = [lines[place].text for place in places], [lines[place].pair for place in places]
    return Questions(student, texts, pairs if student.pairs else None, truth, rows[places], left_out)


def metric_of(run: RunDir, questions: Questions, role: str) -> dict[str, float] | None:
    """The headline of a role's predictions on the same examples; None where they are not there, or not one a row."""
    try:
        with np.load(run.predictions, allow_pickle=False) as arrays:
            outputs = arrays[role]
            total = len(arrays["labels"])
    except BROKEN:
        return None
    if "offsets" in questions.measure.truth or len(outputs) != total or questions.rows.max() >= total:
        return None
    return questions.measure.summary(outputs[questions.rows])
