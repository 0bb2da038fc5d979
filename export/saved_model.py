"""SavedModel for TF Serving: raw text in, label and scores out; tokenizer and label names travel inside."""

import os
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile

import tensorflow as tf

from .inference import Student
from .parity import BATCH, FLOAT32, TIMED, Answers, Questions, Variant


def write_float32(student: Student, path: pathlib.Path) -> None:
    """Writes the folder of a SavedModel that loads where there are only tensorflow and tensorflow_text. Its signatures:

    serving_default: `text` (B,) string (and `text_pair` (B,) string) -> `label` (B,) string, `scores` (B, C) float32
        probabilities, `truncated` (B,) bool, whether the text was longer than the model reads.
    from_token_ids: `token_ids`, `padding_mask` (and `segment_ids`) (B, T) int32 -> `logits` and `scores` (B, C) float32.
    """
    servable = tf.Module(name="student")
    servable.tokenizer, servable.weights = student.tokenizer, student.variables
    signatures = {
        "serving_default": tf.function(_from_text(student), input_signature=_text_specs(student)),
        "from_token_ids": tf.function(_from_token_ids(student), input_signature=[student.specs(None, None)]),
    }
    tf.saved_model.save(servable, str(path), signatures=signatures)


def _text_specs(student: Student) -> list[tf.TensorSpec]:
    return [tf.TensorSpec((None,), tf.string, name) for name in (("text", "text_pair") if student.pairs else ("text",))]


def _from_text(student: Student):
    names = tf.constant(student.labels)
    tokenizer, longest = student.tokenizer, student.max_length

    def serve(text, text_pair=None):
        features = tokenizer.padded(text, text_pair, max_length=longest)
        scores = tf.nn.softmax(student.logits({name: features[name] for name in student.inputs}))
        # One piece more than the model reads: the texts that fill it are the ones that were cut.
        lengths = tokenizer(text, text_pair, max_length=longest + 1)["token_ids"].row_lengths()
        return {"label": tf.gather(names, tf.argmax(scores, axis=-1)), "scores": scores, "truncated": lengths > longest}

    return serve


def _from_token_ids(student: Student):
    def serve(inputs):
        logits = student.logits(inputs)
        return {"logits": logits, "scores": tf.nn.softmax(logits)}

    return serve


def answer(path: pathlib.Path, questions: Questions) -> Answers:
    """Loads the model in a fresh process without tfkd and asks it everything, as raw text and as token ids.

    Raises:
        RuntimeError: the process failed; the message is its last error.
    """
    texts = {"text": questions.texts} | ({"text_pair": questions.pairs} if questions.pairs else {})
    count = len(questions.texts)
    starts = range(0, count, BATCH)
    asked = {
        "texts": [{name: values[start : start + BATCH] for name, values in texts.items()} for start in starts],
        "ids": questions.batches(questions.max_length),
        "timed": [{name: [values[row]] for name, values in texts.items()} for row in range(min(TIMED, len(questions.targets)))],
    }
    got = _in_fresh_process(path, asked)
    from_text, from_ids, empty = got["from_text"], got["from_ids"], got["empty"]
    if empty["label"].shape != (0,) or empty["scores"].shape != (0, len(questions.student.labels)):
        raise RuntimeError(f"answers an empty batch with scores of shape {empty['scores'].shape}")
    return Answers(
        logits=from_ids["logits"],
        length=questions.max_length,
        milliseconds=got["milliseconds"],
        request="raw text",
        scores={"serving_default": from_text["scores"], "from_token_ids": from_ids["scores"]},
        labels=[label.decode() for label in from_text["label"]],
        truncated=from_text["truncated"],
    )


def _in_fresh_process(path: pathlib.Path, asked: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        questions, answers = pathlib.Path(folder, "questions"), pathlib.Path(folder, "answers")
        questions.write_bytes(pickle.dumps(asked))
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
        return pickle.loads(answers.read_bytes())


VARIANTS = (Variant("float32", "saved_model", write_float32, FLOAT32),)
