"""TensorFlow Lite: one text of one fixed length a request, built-in operators alone, so that any phone's runtime can run it.

Every length is a signature of its own, `length_32` and so on, and all of one file share their weights: a request takes the
shortest that holds its text. Full int8 is a format for size and for accelerators, not for speed on a CPU: there it takes 2.8
times as long as float32, where float16 takes 1.0, dynamic int8 0.47 and int4 0.50 (2 layers of width 128, length 64, one thread).
Its ranges come of training texts (`int8`), or were learned with the weights in a training that rounds (`int8_qat`): what that
costs and brings is in configs/README.md.
"""

import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tfkd.errors import UserError

from . import quantized, tflite_metadata
from .inference import Student
from .parity import FLOAT16, FLOAT32, INT4, INT8, INT8_FULL, Answers, Variant
from .questions import Questions
from .timing import measure

MASKED_SCORE = -20.0
"""What padded keys score in full int8: -1e4 would stretch 256 values over all that is between. e^-20 is 2e-9."""

VARIABLES = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")
"""Operators that read weights from outside the file."""


def write_float32(student: Student, path: pathlib.Path) -> None:
    """Writes a file whose signatures `length_L` take int32 inputs (1, L) by name and answer with `logits` (1, ...)."""
    write(student, path, convert(student, functions(student)))


def write_float16(student: Student, path: pathlib.Path) -> None:
    """The same with float16 weights, half of the size; what runs on a CPU unpacks them."""

    def settle(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]

    write(student, path, convert(student, functions(student), settle))


def write_int8_dynamic(student: Student, path: pathlib.Path) -> None:
    """The same with int8 weights, a quarter of the size; activations are float, and quantized on the fly in matrix products."""
    write(student, path, convert(student, functions(student), dynamic))


def write_int8(student: Student, path: pathlib.Path) -> None:
    """The same with int8 weights and activations, the ranges of which are measured on training texts."""
    student = dataclasses.replace(student, masked_score=MASKED_SCORE)

    def examples() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for length in student.lengths:
            features = student.calibration(length)
            for row in range(len(features["token_ids"])):
                yield signature(length), {name: values[row : row + 1] for name, values in features.items()}

    def settle(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = examples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

    write(student, path, convert(student, functions(student), settle))


def write_int8_qat(student: Student, path: pathlib.Path) -> None:
    """The same of a student that was trained with this rounding, and with the ranges that it has learned."""
    write(student, path, convert(student, functions(student), dynamic))
    check_integer(path)


def write_int4_dynamic(student: Student, path: pathlib.Path) -> None:
    """The same with int4 weights in matrix products, a scale a channel, and an int8 embedding table, a scale a row.

    Raises:
        UserError: `ai-edge-quantizer` is not installed.
    """
    try:
        from ai_edge_quantizer import quantizer, recipe
    except ImportError:
        raise UserError("tflite:int4_dynamic needs the package ai-edge-quantizer: pip install tfkd[int4]") from None
    student = dataclasses.replace(student, int8_table=True)  # the quantizer leaves the table in float32
    maker = quantizer.Quantizer(convert(student, functions(student)), recipe.dynamic_wi4_afp32())
    write(student, path, bytes(maker.quantize().quantized_model))


def dynamic(converter: tf.lite.TFLiteConverter) -> None:
    """Sets a converter to int8 weights."""
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def signature(length: int) -> str:
    """Name of the signature for texts of up to `length` pieces."""
    return f"length_{length}"


def functions(student: Student) -> dict[str, tf.types.experimental.PolymorphicFunction]:
    """The signatures of a file by name, the longest first."""

    def serve(inputs):
        return {"logits": student.logits(inputs)}

    return {
        signature(length): tf.function(serve, input_signature=[student.specs(1, length)]) for length in reversed(student.lengths)
    }


def convert(student: Student, signatures: dict, settle: Callable[[tf.lite.TFLiteConverter], None] | None = None) -> bytes:
    """A TFLite file of some signatures, without metadata.

    Arguments:
        signatures: name -> function of the student's inputs; the first becomes the file's main graph.
        settle: sets the converter.

    Raises:
        ValueError: TFLite has no operator for something; the message names it.
    """
    module = tf.Module()
    module.variables_of_student = student.variables
    # Converting the functions themselves leaves the variables outside the file, silently, and answers NaN: through a SavedModel.
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
        if settle is not None:
            settle(converter)
        try:
            return converter.convert()
        except Exception as error:
            missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
            if missing:  # else in the midst of a page of MLIR
                raise ValueError(f"TensorFlow Lite has no operator for TensorFlow's {', '.join(missing)}") from error
            raise


def write(student: Student, path: pathlib.Path, model: bytes) -> None:
    """Writes a converted model with vocabulary, labels and a description inside."""
    path.write_bytes(tflite_metadata.attach(model, student.tokenizer, student.labels, tflite_metadata.describe(student)))


def answer(path: pathlib.Path, questions: Questions) -> list[Answers]:
    """Loads the file in LiteRT, one thread, and asks every signature everything, one text at a time."""
    check(path, questions.student)
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    answers = []
    for length in questions.student.lengths:
        runner = interpreter.get_signature_runner(signature(length))
        requests = questions.padded(length)

        def logits(request: dict[str, np.ndarray], runner=runner) -> np.ndarray:
            return runner(**request)["logits"]

        said = np.concatenate([logits(request) for request in requests])
        timed = measure(logits, [requests[row] for row in questions.timed])
        answers.append(Answers(said, length, timed, f"token ids, padded to {length}", signature=signature(length)))
    return answers


def check(path: pathlib.Path, student: Student) -> None:
    """Raises `ValueError` where a file needs what a plain runtime does not have, or holds another vocabulary or other labels."""
    check_operators(path)
    tflite_metadata.check(path, student.tokenizer, student.labels)


def check_operators(path: pathlib.Path) -> None:
    """Raises `ValueError` for an operator that a plain runtime does not have (TensorFlow's own, `Flex...`, and custom ones),
    and for weights that were left outside the file."""
    codes = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0).operatorCodes
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    used = {names.get(code.builtinCode) for code in codes}
    foreign = sorted({code.customCode.decode() for code in codes if names.get(code.builtinCode) == "CUSTOM"})
    if foreign:
        raise ValueError(f"needs operators that a plain runtime does not have: {', '.join(foreign)}")
    if outside := used.intersection(VARIABLES):
        raise ValueError(f"its weights are not frozen: it reads them with {', '.join(sorted(outside))}")


def check_integer(path: pathlib.Path) -> None:
    """Raises `ValueError` for an operator that computes in float, but for those at the end that give the answer in float."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    kinds = {
        names[model.operatorCodes[operator.opcodeIndex].builtinCode]
        for graph in model.subgraphs
        for operator in graph.operators
        if any(graph.tensors[index].type == schema.TensorType.FLOAT32 for index in operator.inputs if index >= 0)
    }
    if floating := kinds - {"QUANTIZE"}:
        raise ValueError(f"computes in float: {', '.join(sorted(floating))}")


VARIANTS = (
    Variant("float32", "student.float32.tflite", write_float32, FLOAT32),
    Variant("float16", "student.float16.tflite", write_float16, FLOAT16),
    Variant("int8_dynamic", "student.int8_dynamic.tflite", write_int8_dynamic, INT8),
    Variant("int8", "student.int8.tflite", write_int8, INT8_FULL),
    Variant("int8_qat", "student.int8_qat.tflite", write_int8_qat, INT8_FULL, made_of=quantized.after_training),
    Variant("int4_dynamic", "student.int4_dynamic.tflite", write_int4_dynamic, INT4),
)
