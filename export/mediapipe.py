"""A TFLite file that MediaPipe Tasks' `TextClassifier` (Android, iOS, web, Python) classifies raw text with.

MediaPipe takes files of a single graph, which reads `ids`, `mask` and `segment_ids` and answers with probabilities: a file of its
own, of the longest length, beside those with a signature a length. Its tokenizer lower-cases ASCII letters, always, and
nothing else, and keeps accents; so it serves vocabularies in lower case alone, and a note says where it still differs.
"""

import pathlib

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tfkd.errors import UserError

from . import tflite, tflite_metadata
from .inference import Student
from .parity import FLOAT32, INT8, SMALLEST, Answers, Variant
from .questions import Questions
from .timing import measure

SIGNATURE = "classify"
NOTE = (
    "MediaPipe lower-cases ASCII letters alone and keeps accents: of a text with others (É, ü) it makes other pieces than "
    "training did, and may answer otherwise"
)


def refusal(student: Student) -> str | None:
    """Why MediaPipe could not classify with this student, or None."""
    if student.task != "classification":
        return f"MediaPipe classifies texts, and this student does {student.task}: use the tflite format"
    if student.pairs:
        return "MediaPipe reads one text, and this student two: use the tflite format"
    if not student.tokenizer.lowercase:
        return "MediaPipe lower-cases every text, and this vocabulary tells cases apart: train with data.lowercase: true"
    return None


def write_float32(student: Student, path: pathlib.Path) -> None:
    """Writes a file with one signature, `classify`: int32 inputs (1, L), L the longest length -> `scores` (1, C)."""
    _write(student, path)


def write_int8_dynamic(student: Student, path: pathlib.Path) -> None:
    """The same with int8 weights."""
    _write(student, path, tflite.dynamic)


def _write(student: Student, path: pathlib.Path, settle=None) -> None:
    if reason := refusal(student):
        raise UserError(reason)

    def serve(inputs):
        return {"scores": tf.nn.softmax(student.logits({name: inputs[name] for name in student.inputs}))}

    specs = {name: tf.TensorSpec((1, student.lengths[-1]), tf.int32, name) for name in tflite_metadata.INPUTS}
    model = tflite.convert(student, {SIGNATURE: tf.function(serve, input_signature=[specs])}, settle)
    about = tflite_metadata.describe(student, "probabilities", NOTE)
    path.write_bytes(tflite_metadata.attach(model, student.tokenizer, student.labels, about, scores=True))


def answer(path: pathlib.Path, questions: Questions) -> Answers:
    """Loads the file in LiteRT, one thread, and asks it everything as token ids, one text at a time."""
    tflite.check(path, questions.student)
    runner = Interpreter(model_path=str(path), num_threads=1).get_signature_runner(SIGNATURE)
    length = questions.student.lengths[-1]
    segments = {"segment_ids": np.zeros((1, length), "int32")}

    def scores(request: dict[str, np.ndarray]) -> np.ndarray:
        return runner(**request, **segments)["scores"]

    requests = questions.padded(length)
    said = np.concatenate([scores(request) for request in requests])
    timed = measure(scores, [requests[row] for row in questions.timed])
    logits = np.log(np.maximum(said, SMALLEST))
    request = f"token ids, padded to {length}"
    return Answers(logits, length, timed, request, signature=SIGNATURE, note=NOTE, normalized=True)


VARIANTS = (
    Variant("float32", "mediapipe.float32.tflite", write_float32, FLOAT32),
    Variant("int8_dynamic", "mediapipe.int8_dynamic.tflite", write_int8_dynamic, INT8),
)
