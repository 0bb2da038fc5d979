"""ONNX: batch and length are free, weights in the file."""

import pathlib

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx

from .benchmark import measure
from .inference import Student
from .parity import FLOAT32, Answers, Questions, Variant

OPSET = 18
"""The newest that tf2onnx writes."""


def write_float32(student: Student, path: pathlib.Path) -> None:
    """Writes an ONNX model with int32 inputs (batch, length) by name and the output `logits` (batch, C)."""

    def serve(*tensors):
        return {"logits": student.logits(dict(zip(student.inputs, tensors, strict=True)))}

    specs = list(student.specs(None, None).values())
    model, _ = tf2onnx.convert.from_function(tf.function(serve), input_signature=specs, opset=OPSET)
    for tensor, names in [(i, ("batch", "length")) for i in model.graph.input] + [(o, ("batch",)) for o in model.graph.output]:
        for dimension, name in zip(tensor.type.tensor_type.shape.dim, names, strict=False):
            dimension.dim_param = name
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


def answer(path: pathlib.Path, questions: Questions) -> Answers:
    """Loads the file in ONNX Runtime, one thread, and asks it everything in batches of uneven lengths."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def logits(batch: dict[str, np.ndarray]) -> np.ndarray:
        return session.run(["logits"], batch)[0]

    length = questions.max_length
    answers = np.concatenate([logits(batch) for batch in questions.batches(length)])
    return Answers(answers, length, measure(logits, questions.singles(length)), "token ids, own length")


VARIANTS = (Variant("float32", "student.float32.onnx", write_float32, FLOAT32),)
