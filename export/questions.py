"""What every file is asked: test examples and texts from the edges, with the Keras student's answers."""

import functools
import json
import zipfile
import zlib

import numpy as np
import tensorflow as tf

from tfkd.errors import UserError
from tfkd.run_dir import RunDir
from tfkd.tasks.measure import Measure
from tfkd.tasks.measures import MEASURES

from .inference import Student

FEWEST_EXAMPLES = 500
ROLES = ("teacher", "baseline", "student")
TIMED = 100
BATCH = 32

BROKEN = (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises of a damaged archive."""

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
        texts, pairs: UTF-8 bytes of the examples; `pairs` is None for a student that reads one text.
        truth: what is true of the examples, by name, as the task's measure reads it: `labels`, and what else there is.
        rows: (n,) their rows in the run's predictions.
    """

    def __init__(
        self, student: Student, texts: list[bytes], pairs: list[bytes] | None, truth: dict[str, np.ndarray], rows: np.ndarray
    ):
        self.student, self.max_length, self.examples, self.rows = student, student.max_length, len(texts), rows
        self.measure: Measure = MEASURES[student.task](truth, list(student.labels))
        self.texts = [*texts, *EDGES]
        self.pairs = None if pairs is None else [*pairs, *reversed(EDGES)]

    def of(self, student: Student) -> "Questions":
        """The same questions, answered by another model with the same tokenizer and labels."""
        pairs = None if self.pairs is None else self.pairs[: self.examples]
        return Questions(student, self.texts[: self.examples], pairs, self.measure.truth, self.rows)

    @property
    def timed(self) -> range:
        """The examples that latency is measured on: the first ones."""
        return range(min(TIMED, self.examples))

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


def load_questions(run: RunDir, student: Student, count: int) -> Questions:
    """Reads `count` of the run's test examples, at least 500, spread evenly over the file; all where there are fewer.

    Raises:
        UserError: no example, or a line that is none; the message names the line.
    """
    run.require(run.examples)
    examples, classes = [], student.task == "classification"
    with open(run.examples, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line)
                pair = row["text_pair"] if student.pairs else ""
                if classes and row["label"] not in student.labels:
                    raise ValueError(f"label {json.dumps(row['label'])[:60]} is not in {run.labels.name}")
                label = student.labels.index(row["label"]) if classes else None
                examples.append((row["text"].encode(), pair.encode(), int(row["row"]), label))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{run.examples}:{number}: not an example of this run ({error})") from None
    if not examples:
        raise UserError(f"{run.examples}: holds no example, so nothing can be proven")
    chosen = np.unique(np.linspace(0, len(examples) - 1, max(count, FEWEST_EXAMPLES)).round().astype(int))
    texts, pairs, rows, labels = zip(*(examples[index] for index in chosen), strict=True)
    rows = np.asarray(rows)
    truth = {"labels": np.asarray(labels)} if classes else _truth(run, student.task, rows)
    return Questions(student, list(texts), list(pairs) if student.pairs else None, truth, rows)


def _truth(run: RunDir, task: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What is true of some rows of the test split. Of classes the examples tell it themselves, by name."""
    run.require(run.predictions)
    try:
        with np.load(run.predictions, allow_pickle=False) as arrays:
            truth = {name: arrays[name] for name in arrays.files if name not in ROLES}
        return MEASURES[task].take(truth, rows)
    except (*BROKEN, IndexError) as error:
        raise UserError(f"{run.predictions}: does not tell what is true of {run.examples.name} ({error})") from None


def metric_of(run: RunDir, questions: Questions, role: str) -> dict[str, float] | None:
    """The headline of a role's predictions on the same examples; None where they are not there, or not one a row."""
    try:
        with np.load(run.predictions, allow_pickle=False) as arrays:
            outputs = arrays[role]
            total = len(arrays["labels"])
    except BROKEN:
        return None
    measure = questions.measure
    if len(outputs) != total or questions.rows.max() >= total or questions.examples != measure.examples:
        return None
    value = measure.headline_on(outputs[questions.rows])(np.arange(measure.examples))
    return None if value is None else {measure.headline: value}
