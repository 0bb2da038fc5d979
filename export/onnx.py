"""ONNX: batch and length are free, weights in the file, `tokenizer.json` beside it.

`onnx_graph` writes the encoders and heads it knows; whatever else a student is made of goes through tf2onnx. A request to MiniLM
(6 layers of width 384, length 64, ONNX Runtime 1.32, one thread of a CPU with VNNI) takes 0.39 of float32's time in int8_dynamic
and in int8, 1.1 in float16: that is for GPUs and for size, on a CPU it is computed in float32 after all.
"""

import json
import pathlib
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import tensorflow as tf

from tfkd.errors import UserError

from . import onnx_graph, tokenizer_json
from .inference import Student
from .parity import FLOAT16, FLOAT32, INT8, INT8_FULL, Answers, Variant
from .questions import Questions, widened
from .timing import measure

TF2ONNX_OPSET = 18
"""The newest that tf2onnx writes."""

CALIBRATED_ON = 200
"""Training texts. A range is known after some tens; each costs the time of a request."""

QUANTIZED = ["Gemm", "MatMul", "Gather"]
"""Dense layers and tables. Softmax, normalization, GELU and the sums between stay in float."""


def write_float32(student: Student, path: pathlib.Path) -> None:
    """Writes a model with int32 inputs (batch, length) by name and the output `logits` (batch, C) or (batch, length, C)."""
    _save(student, path, _model(student))


def write_float16(student: Student, path: pathlib.Path) -> None:
    """The same with weights, and all that is computed from them, in float16; the answer is float32.

    Raises:
        UserError: a student that `onnx_graph` cannot write.
    """
    if why := onnx_graph.refusal(student.model):
        raise UserError(f"onnx:float16 cannot be written for this student: {why}; onnx:float32 can")
    _save(student, path, onnx_graph.Writer(student.model, student.inputs, "float16").model())


def write_int8_dynamic(student: Student, path: pathlib.Path) -> None:
    """The same with int8 weights, a scale a channel, a quarter of the size; activations are quantized on the fly."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = _model(student)
    quantize_dynamic(model, path, weight_type=QuantType.QInt8, **_quantization(model))
    _save(student, path, onnx.load(path))


def write_int8(student: Student, path: pathlib.Path) -> None:
    """The same with int8 activations too, whose ranges are measured on training texts: pairs of QuantizeLinear and
    DequantizeLinear around the dense layers, which is what accelerators read.

    What a dense layer answers with is left as it is: quantized too, MiniLM agreed with itself on 0.956 of SST-2, not on 0.981.

    Raises:
        UserError: there are no training texts.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    texts = _texts(student)
    model = _model(student)
    options = {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": QUANTIZED}
    types = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8, "quant_format": QuantFormat.QDQ}
    settings = _quantization(model) | types | {"op_types_to_quantize": QUANTIZED, "extra_options": options}
    quantize_static(model, path, _reader(texts), **settings)
    _save(student, path, onnx.load(path))


def _model(student: Student) -> onnx.ModelProto:
    """The student in float32."""
    if onnx_graph.refusal(student.model) is None:
        return onnx_graph.Writer(student.model, student.inputs).model()
    return through_tf2onnx(student)


def through_tf2onnx(student: Student) -> onnx.ModelProto:
    """What tf2onnx makes of the student."""
    import tf2onnx

    graph = student.graph  # made here: its variables cannot be made while it is traced

    def serve(*tensors):
        return {"logits": graph(dict(zip(student.inputs, tensors, strict=True)))}

    specs = list(student.specs(None, None).values())
    model, _ = tf2onnx.convert.from_function(tf.function(serve), input_signature=specs, opset=TF2ONNX_OPSET)
    for tensor in (*model.graph.input, *model.graph.output):
        shape = tensor.type.tensor_type.shape.dim  # inputs (B, T), logits (B, C) or (B, T, C)
        named = len(shape) - (tensor.name == "logits")
        for dimension, name in zip(shape, ("batch", "length")[:named], strict=False):
            dimension.dim_param = name
    return model


def _quantization(model: onnx.ModelProto) -> dict:
    """What both ways of quantization have in common.

    Weights keep 7 of 8 bits: processors without VNNI add two products in 16 bits, where those of 8 do not fit, and would answer
    otherwise than the one the file was proven on. Weights that are not matrices have no scale a channel and are left alone.
    """
    rank = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    left = [n.name for n in model.graph.node if n.op_type == "MatMul" and any(rank.get(name, 2) != 2 for name in n.input)]
    return {"per_channel": True, "reduce_range": True, "nodes_to_exclude": left}


def _texts(student: Student) -> list[dict[str, np.ndarray]]:
    """Training texts, each (1, its own length): padding would widen the ranges."""
    features = student.calibration(student.max_length)
    lengths = features["padding_mask"].sum(axis=1)[:CALIBRATED_ON]
    return [{name: v[row : row + 1, :length] for name, v in features.items()} for row, length in enumerate(lengths)]


def _reader(texts: list[dict[str, np.ndarray]]):
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self, rows: Iterator[dict[str, np.ndarray]]):
            self.rows = rows

        def get_next(self):
            return next(self.rows, None)

    return Reader(iter(texts))


def _save(student: Student, path: pathlib.Path, model: onnx.ModelProto) -> None:
    """Writes a model that says what it is, checks it, and writes its tokenizer."""
    onnx.helper.set_model_props(model, _facts(student))
    model.producer_name = "tfkd"
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    tokenizer_json.write(student, path.with_name(tokenizer_json.FILE))


def _facts(student: Student) -> dict[str, str]:
    """What a file says of itself, in JSON."""
    facts = {"task": student.task, "labels": list(student.labels), "max_length": student.max_length}
    return {name: json.dumps(fact, ensure_ascii=False) for name, fact in facts.items()}


def answer(path: pathlib.Path, questions: Questions) -> Answers:
    """Loads the file in ONNX Runtime, one thread, and asks it everything in batches of uneven lengths; proves its tokenizer.

    Raises:
        ValueError: what the file says of itself is not so, or `tokenizer.json` gives other token ids, and is deleted.
    """
    tokenizer_json.check(path.with_name(tokenizer_json.FILE), questions)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    if wrong := [name for name, fact in _facts(questions.student).items() if said.get(name) != fact]:
        raise ValueError(f"the file's {wrong[0]} is {said.get(wrong[0])}, not the student's")

    def logits(batch: dict[str, np.ndarray]) -> np.ndarray:
        return session.run(["logits"], batch)[0]

    length = questions.max_length
    answers = np.concatenate([widened(logits(batch), length) for batch in questions.batches(length)])
    return Answers(answers, length, measure(logits, questions.singles(length)), "token ids, own length")


VARIANTS = (
    Variant("float32", "student.float32.onnx", write_float32, FLOAT32),
    Variant("float16", "student.float16.onnx", write_float16, FLOAT16),
    Variant("int8_dynamic", "student.int8_dynamic.onnx", write_int8_dynamic, INT8),
    Variant("int8", "student.int8.onnx", write_int8, INT8_FULL),
)
