"""TensorFlow Lite: one text of one fixed length, built-in operators alone, so that any phone's runtime can run it."""

import pathlib
import re
import tempfile

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from .benchmark import measure
from .inference import Student
from .parity import FLOAT32, INT8, TIMED, Answers, Questions, Variant


def write_float32(student: Student, path: pathlib.Path) -> None:
    """Writes a file with int32 inputs (1, L) by name and the output `logits` (1, C), L = `student.fixed_length`."""
    _convert(student, path, [])


def write_int8_dynamic(student: Student, path: pathlib.Path) -> None:
    """The same with int8 weights, a quarter of the size; activations are float, and quantized on the fly in matrix products."""
    _convert(student, path, [tf.lite.Optimize.DEFAULT])


def _convert(student: Student, path: pathlib.Path, optimizations: list) -> None:
    module = tf.Module()
    module.variables_of_student = student.variables

    @tf.function(input_signature=[student.specs(1, student.fixed_length)])
    def serve(inputs):
        return {"logits": student.logits(inputs)}

    # Converting the function itself leaves the variables outside the file, silently, and answers NaN: through a SavedModel.
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"serving_default": serve})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
        converter.optimizations = optimizations
        try:
            path.write_bytes(converter.convert())
        except Exception as error:
            missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
            if missing:  # else in the midst of a page of MLIR
                raise ValueError(f"TensorFlow Lite has no operator for TensorFlow's {', '.join(missing)}") from error
            raise


def answer(path: pathlib.Path, questions: Questions) -> Answers:
    """Loads the file in LiteRT, one thread, and asks it everything, one text at a time."""
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    check_operators(path)
    runner = interpreter.get_signature_runner("serving_default")
    length = questions.fixed_length
    features = questions.features(length)
    requests = [{name: values[row : row + 1] for name, values in features.items()} for row in range(len(questions.texts))]

    def logits(request: dict[str, np.ndarray]) -> np.ndarray:
        return runner(**request)["logits"]

    answers = np.concatenate([logits(request) for request in requests])
    timed = requests[: min(TIMED, len(questions.targets))]
    return Answers(answers, length, measure(logits, timed), f"token ids, padded to {length}")


def check_operators(path: pathlib.Path) -> None:
    """Raises `ValueError` for an operator that a plain runtime does not have (TensorFlow's own, `Flex...`, and custom ones)."""
    codes = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0).operatorCodes
    foreign = sorted({code.customCode.decode() for code in codes if code.builtinCode == schema.BuiltinOperator.CUSTOM})
    if foreign:
        raise ValueError(f"needs operators that a plain runtime does not have: {', '.join(foreign)}")


VARIANTS = (
    Variant("float32", "student.float32.tflite", write_float32, FLOAT32),
    Variant("int8_dynamic", "student.int8_dynamic.tflite", write_int8_dynamic, INT8),
)
