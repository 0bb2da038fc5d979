"""SavedModel for TF Serving: raw text in, the task's answer out; tokenizer and label names travel inside."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from . import plain, text_answers, text_answers_check
from .inference import Student
from .parity import FLOAT32, Answers, Variant
from .questions import BATCH, Questions

TEXT, EXAMPLES, IDS = "serving_default", "from_examples", "from_token_ids"

SCORES = {"classification": tf.nn.softmax, "multilabel": tf.sigmoid}
"""What makes probabilities of logits, for the tasks that have any."""


def write_float32(student: Student, path: pathlib.Path) -> None:
    """Writes the folder of a SavedModel that loads where there are only tensorflow and tensorflow_text. Its signatures:

    serving_default: `text` (B,) string (and `text_pair` (B,) string) -> what `text_answers` says of the task; of
        classification `label` (B,) string, `scores` (B, C) float32 probabilities, `truncated` (B,) bool.
    from_examples: `examples` (B,) string, serialized `tf.Example`s with a feature `text` (and `text_pair`) -> the same.
    from_token_ids: `token_ids`, `padding_mask` (and `segment_ids`) (B, T) int32 -> `logits`, which is whatever the head
        answers, and of classes and labels their probabilities, `scores`.

    B may be 0. A masked language model, which has no answer to a text, has the last one alone.
    """
    servable = tf.Module(name="student")
    servable.tokenizer, servable.weights = student.tokenizer, student.variables
    signatures = {IDS: tf.function(_from_token_ids(student), input_signature=[student.specs(None, None)])}
    if student.task in text_answers.ANSWERS:
        names = text_answers.text_names(student)
        answer_text = text_answers.ANSWERS[student.task](student)
        # One function for both kinds of texts, so that their answers cannot come apart.
        servable.from_text = tf.function(answer_text, input_signature=[tf.TensorSpec((None,), tf.string, name) for name in names])
        examples = [tf.TensorSpec((None,), tf.string, "examples")]
        signatures[TEXT] = servable.from_text
        signatures[EXAMPLES] = tf.function(_from_examples(names, servable.from_text), input_signature=examples)
    tf.saved_model.save(servable, str(path), signatures=signatures)


def _from_examples(names: tuple[str, ...], from_text):
    features = {name: tf.io.FixedLenFeature((), tf.string) for name in names}

    def serve(examples):
        return from_text(**tf.io.parse_example(examples, features))

    return serve


def _from_token_ids(student: Student):
    def serve(inputs):
        logits = student.logits(inputs)
        return {"logits": logits} | ({"scores": SCORES[student.task](logits)} if student.task in SCORES else {})

    return serve


def answer(path: pathlib.Path, questions: Questions) -> Answers:
    """Loads the model in a fresh process without tfkd and asks it everything: as raw text, as examples and as token ids.

    Raises:
        RuntimeError: the process failed, the message is its last error; or its signatures contradict each other.
    """
    got = _in_fresh_process(path, _asked(questions))
    student, logits = questions.student, got[IDS]["logits"]
    if logits.ndim > 2:
        logits = np.pad(logits, [(0, 0), (0, questions.max_length - logits.shape[1]), (0, 0)])
    _check_empty(got)
    said = {"logits": logits, "length": questions.max_length, "milliseconds": got["milliseconds"]}
    scores = {signature: got[signature]["scores"] for signature in (TEXT, IDS)} if student.task in SCORES else {}
    if TEXT not in got:
        return Answers(**said, request="token ids, own length", scores=scores)
    _check_examples(got)
    text_answers_check.check(questions, logits, got[TEXT])
    labels = [label.decode() for label in got[TEXT]["label"]] if student.task == "classification" else None
    return Answers(**said, request="raw text", scores=scores, labels=labels, truncated=got[TEXT]["truncated"])


def _asked(questions: Questions) -> dict:
    """What the process is to ask: batches for each signature, and single requests whose time is taken."""
    if questions.student.task not in text_answers.ANSWERS:
        return {
            "batches": {IDS: questions.batches(questions.max_length)},
            "timed": (IDS, questions.singles(questions.max_length)),
        }
    texts = {"text": questions.texts} | ({"text_pair": questions.pairs} if questions.pairs else {})
    cut = [slice(start, start + BATCH) for start in range(0, len(questions.texts), BATCH)]
    batches = [{name: values[rows] for name, values in texts.items()} for rows in cut]
    singles = [{name: [values[row]] for name, values in texts.items()} for row in questions.timed]
    return {"batches": {TEXT: batches, IDS: questions.batches(questions.max_length)}, "timed": (TEXT, singles)}


def _check_empty(got: dict) -> None:
    for signature, empty in got["empty"].items():
        for name, values in empty.items():
            if len(values) or values.ndim != got[signature][name].ndim:
                raise RuntimeError(f"{signature} answers an empty batch with {name} of shape {values.shape}")


def _check_examples(got: dict) -> None:
    """Both kinds of texts go through one function: they agree to the last bit, or are read wrong."""
    for name, values in got[TEXT].items():
        other = got[EXAMPLES].get(name)
        same_nan = values.dtype.kind == "f" and other is not None  # the gate says of NaN what it is
        if not np.array_equal(other, values, equal_nan=same_nan):
            raise RuntimeError(f"{EXAMPLES} and {TEXT} answer the same texts with other {name}")


def _in_fresh_process(path: pathlib.Path, asked: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        questions, answers = pathlib.Path(folder, "questions"), pathlib.Path(folder, "answers")
        plain.write(questions, asked)
        command = [sys.executable, "-m", f"{__package__}.saved_model_process", path.resolve(), questions, answers]
        checkout = pathlib.Path(__file__).parents[1]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
        sys.stderr.write(done.stderr)
        if done.returncode:
            errors = re.findall(r"^\S*(?:Error|Exception): .*", done.stderr, re.MULTILINE)
            raise RuntimeError(f"in a process of its own: {errors[-1] if errors else f'exit code {done.returncode}'}")
        return plain.read(answers)


VARIANTS = (Variant("float32", "saved_model", write_float32, FLOAT32),)
