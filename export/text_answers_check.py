"""Whether answers to raw text are those that the logits of the same texts, asked as token ids, lead to.

Probabilities and the labels of classes are the gate's (`parity`); here is what other tasks make of logits, computed in another
way than the graph computes it. Where two answers are as good as equal, either is right.
"""

import numpy as np
import tensorflow as tf

from tfkd.data.words import Locator, pieces_of_words
from tfkd.tasks.question_answering_metrics import LONGEST_ANSWER

from .questions import Questions

CLOSE = 1e-3
"""Logits, or sums of two, that are nearer may change places: other kernels add in another order."""


def check(questions: Questions, logits: np.ndarray, said: dict[str, np.ndarray]) -> None:
    """Compares what raw texts were answered with.

    Arguments:
        logits: (N, C), or (N, T, C) for each position of texts padded to the longest input.
        said: outputs of `serving_default` by name.

    Raises:
        RuntimeError: an answer is another one; the message tells both.
    """
    checks = {"multilabel": _labels, "tagging": _tags, "question_answering": _answers}
    checks |= {"regression": _number, "sentence_embedding": _vector}
    if questions.student.task in checks:
        checks[questions.student.task](questions, logits.astype("float64"), said)


def _number(questions: Questions, logits: np.ndarray, said: dict) -> None:
    _near("value", said["value"], logits[:, 0])


def _vector(questions: Questions, logits: np.ndarray, said: dict) -> None:
    _near("embedding", said["embedding"], logits)


def _near(name: str, values: np.ndarray, expected: np.ndarray) -> None:
    difference = np.abs(values - expected).max() if values.shape == expected.shape else np.inf
    if not difference <= CLOSE * max(1.0, np.abs(expected).max()):  # NaN is not
        raise RuntimeError(f"serving_default answers with {name}s that are off those of the token ids by up to {difference:.3g}")


def _labels(questions: Questions, logits: np.ndarray, said: dict) -> None:
    names = np.array([label.encode() for label in questions.student.labels], object)
    wrong = (said["labels"] != np.where(logits > 0.0, names, b"")) & (np.abs(logits) > CLOSE)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        told = said["labels"][row, column].decode()
        raise RuntimeError(
            f"serving_default answers {told!r} where {names[column].decode()!r} has the logit {logits[row, column]:.3g}"
        )


def _tags(questions: Questions, logits: np.ndarray, said: dict) -> None:
    student, room = questions.student, questions.max_length - 2
    names = [label.encode() for label in student.labels]
    for row, text in enumerate(questions.texts):
        words = text.decode("utf-8", "ignore").encode().translate(None, b"\v\f").split()
        counts = pieces_of_words(student.tokenizer, [word.decode() for word in words])[1]
        begins = np.cumsum(counts) - counts
        seen = begins < room
        expected = [word for word, there in zip(words, seen, strict=True) if there]
        if [*said["words"][row]] != expected + [b""] * (said["words"].shape[1] - len(expected)):
            raise RuntimeError(f"serving_default splits {text[:80]!r} into other words")
        for place, word in enumerate(expected):
            scores = logits[row, 1 + begins[place]]
            right = {names[tag] for tag in np.flatnonzero(scores >= scores.max() - CLOSE)} if counts[place] else {b""}
            if said["tags"][row, place] not in right:
                told = said["tags"][row, place].decode()
                raise RuntimeError(f"serving_default tags {word[:80]!r} as {told!r}, not as {sorted(right)[0].decode()!r}")


def _answers(questions: Questions, logits: np.ndarray, said: dict) -> None:
    student, features = questions.student, questions.features(questions.max_length)
    contexts = [pair.decode("utf-8", "ignore") for pair in questions.pairs]
    located = Locator(student.tokenizer)(contexts)
    for row, (context, pieces) in enumerate(zip(contexts, located, strict=True)):
        inside = np.flatnonzero(features["segment_ids"][row] * features["padding_mask"][row])[:-1]  # without [SEP]
        start, end = logits[row, inside].T
        more = np.arange(len(inside)) - np.arange(len(inside))[:, np.newaxis]  # pieces behind the first
        sums = np.where((more >= 0) & (more < LONGEST_ANSWER), start[:, np.newaxis] + end, -np.inf)
        best = np.argwhere(sums >= sums.max(initial=-np.inf) - CLOSE)
        right = {_bare(student, context[pieces.starts[first] : pieces.ends[last]]) for first, last in best} or {b""}
        told = said["answer"][row]
        if _bare(student, told.decode("utf-8")) not in right:
            raise RuntimeError(f"serving_default answers {told[:80]!r}, not {sorted(right)[0][:80]!r}")


def _bare(student, text: str) -> bytes:
    """What the tokenizer sees of a text: marks and characters that it drops may or may not belong to a piece."""
    return student.tokenizer.cleaned(tf.constant([text.encode()])).numpy()[0]
