"""Writes one shape's files for `benchmarks/export.py`, in a process of its own: `python benchmarks/export_files.py TASK ANSWER`.

TASK and ANSWER are JSON. The student is written by tfkd, and an equivalent KerasHub classifier with the same weights by Keras's
own `model.export`; `huggingface` is the folder that PyTorch starts from; `matmul` are dense layers without anything between.
"""

import json
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path[0] = str(ROOT)  # this folder's export.py is not the package
os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from export import hugging_face, onnx, tflite  # noqa: E402
from export.inference import Student  # noqa: E402
from tfkd.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from tfkd.data.tokenizer import Tokenizer  # noqa: E402
from tfkd.layers.head import ClassificationHead  # noqa: E402
from tfkd.models.encoder import TransformerEncoder  # noqa: E402
from tfkd.models.with_head import TransformerWithHead  # noqa: E402

PIECES = 30_522
LAYERS = 8  # of `matmul`


def student_of(shape: dict, activation: str) -> Student:
    """A classifier of two labels with BERT's head: the checkpoint's weights, or random ones, and equal for every activation."""
    keras.utils.set_random_seed(5)
    if shape["checkpoint"]:
        checkpoint = open_checkpoint(shape["checkpoint"])
        source, pieces = checkpoint.encoder, checkpoint.pieces
    else:
        sizes = {name: shape[name] for name in ("layers", "width", "heads", "feed_forward")}
        source = TransformerEncoder(PIECES, **sizes, max_positions=512, segments=2, epsilon=1e-12)
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(5, PIECES))]
    encoder = TransformerEncoder(**{**source.config, "activation": activation})
    encoder.set_weights(source.get_weights())
    model = TransformerWithHead(encoder, ClassificationHead(2, "first", "tanh"))
    model({"token_ids": np.zeros((1, 4), "int32"), "padding_mask": np.ones((1, 4), "int32")})
    return Student(model, Tokenizer(pieces), ("no", "yes"), False, shape["length"], (shape["length"],))


def keras_hub_of(student: Student, folder: pathlib.Path) -> keras.Model:
    """KerasHub's classifier with the weights of a student, read from its Hugging Face folder."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone.from_preset(str(folder))
    pooler = student.model.head.hidden_dense
    backbone.get_layer("pooled_dense").set_weights([np.asarray(pooler.kernel), np.asarray(pooler.bias)])
    model = keras_hub.models.BertTextClassifier(backbone, num_classes=2, preprocessor=None)
    scores = student.model.head.output_dense
    model.output_dense.set_weights([np.asarray(scores.kernel), np.asarray(scores.bias)])
    return model


def specs_of(model: keras.Model, batch: int | None, length: int | None) -> dict[str, keras.InputSpec]:
    return {name: keras.InputSpec(shape=(batch, length), dtype="int32", name=name) for name in sorted(model.input)}


def write_matmul(folder: pathlib.Path, shape: dict) -> None:
    """Files whose input (L, D) goes through dense layers to width F and back to D, again and again."""
    from onnx import TensorProto, helper, numpy_helper, save

    width, inner, length = shape["width"], shape["feed_forward"], shape["length"]
    random = np.random.default_rng(0)
    sizes = [(width, inner), (inner, width)] * (LAYERS // 2)
    kernels = [random.normal(0, size[0] ** -0.5, size).astype("float32") for size in sizes]
    module = tf.Module()
    module.kernels = [tf.Variable(kernel) for kernel in kernels]

    @tf.function(input_signature=[tf.TensorSpec((length, width), tf.float32, "x")])
    def serve(x):
        for kernel in module.kernels:
            x = tf.matmul(x, kernel)
        return {"y": x}

    module.serve = serve
    tf.saved_model.save(module, str(folder / "matmul"), signatures=serve)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "matmul"))
    (folder / "matmul.tflite").write_bytes(converter.convert())
    weights = [numpy_helper.from_array(kernel, f"w{index}") for index, kernel in enumerate(kernels)]
    names = ["x", *(f"h{index}" for index in range(1, LAYERS)), "y"]
    nodes = [helper.make_node("MatMul", [names[index], f"w{index}"], [names[index + 1]]) for index in range(LAYERS)]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, (length, width))] for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "matmul", *ends, weights), opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    save(model, folder / "matmul.onnx")


def main(task: dict) -> dict:
    """Writes what is not there yet; answers file -> seconds of wall clock and of processors."""
    folder, shape, seconds = pathlib.Path(task["folder"]), task["shape"], {}

    def timed(name: str, write) -> None:
        begin, processors = time.perf_counter(), time.process_time()
        write(folder / name)
        seconds[name] = {"wall": time.perf_counter() - begin, "processors": time.process_time() - processors}

    exact = student_of(shape, "gelu")
    near = student_of(shape, "gelu_tanh")  # KerasHub's BERT knows no other
    timed("tfkd.tflite", lambda path: tflite.write_float32(near, path))
    timed("tfkd.onnx", lambda path: onnx.write_float32(exact, path))
    timed("huggingface", lambda path: hugging_face.write_float32(exact, path))
    model = keras_hub_of(near, folder / "huggingface")
    length, random = shape["length"], np.random.default_rng(1)
    ids = random.integers(5, PIECES, (1, length)).astype("int32")
    np.savez(folder / "inputs.npz", ids=ids, x=random.normal(size=(length, shape["width"])).astype("float32"))
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    wanted = {"exact": np.asarray(exact.model(inputs)), "near": np.asarray(near.model(inputs))}
    theirs = np.asarray(model({**inputs, "segment_ids": np.zeros_like(ids)}))
    if not np.allclose(theirs, wanted["near"], atol=1e-4):
        raise SystemExit(f"KerasHub's model answers {theirs}, not {wanted['near']}")
    timed("keras.tflite", lambda path: model.export(path, "litert", verbose=False, input_signature=specs_of(model, 1, length)))
    timed("keras.onnx", lambda path: model.export(path, "onnx", verbose=False, input_signature=[specs_of(model, None, None)]))
    write_matmul(folder, shape)
    weights = {"parameters": near.model.count_params()}
    return {"seconds": seconds, "logits": {name: values.tolist() for name, values in wanted.items()}, **weights}


if __name__ == "__main__":
    asked, answer = map(pathlib.Path, sys.argv[1:])
    answer.write_text(json.dumps(main(json.loads(asked.read_text()))))
