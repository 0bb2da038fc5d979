"""Requests that a server answers to itself before it serves a version: the first ones are a hundred times slower."""

import io
import pathlib

from google.protobuf.message import DecodeError

from . import protos
from .errors import UserError

FILE = "assets.extra/tf_serving_warmup_requests"
"""Where TF Serving looks, inside a version's folder; TFRecords of `PredictionLog`, 1,000 at most."""

SIZES = (1, 8, 32)
"""Texts in one request, each asked of every signature; the largest is `max_batch_size` of batching.config."""

TOKENS = 4
"""Length of requests with token ids: no model reads less."""


def write(model: pathlib.Path, name: str, texts: list[dict[str, str]]) -> int:
    """Writes the warm-up requests of a SavedModel into its folder. Returns how many there are.

    A request that fails keeps the server from loading the version, so only what the signatures surely answer is asked: texts,
    the longest first, serialized `tf.Example`s of them, and token ids that every vocabulary has.

    Arguments:
        model: the SavedModel's folder.
        name: what the model is called on the server.
        texts: `{"text", "text_pair"?}` of real requests.
    """
    from tensorboard.summary.writer.record_writer import RecordWriter

    api = protos.load()
    try:
        saved = api.saved_model_pb2.SavedModel.FromString((model / "saved_model.pb").read_bytes())
        (graph,) = (graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags)
    except (DecodeError, ValueError):
        raise UserError("saved_model.pb: not a SavedModel with one graph to serve; run python -m export again") from None
    texts = sorted(texts, key=lambda row: -len(row["text"]))
    buffer, count = io.BytesIO(), 0
    writer = RecordWriter(buffer)
    for signature, definition in sorted(graph.signature_def.items()):
        for size in SIZES:
            inputs = {key: _tensor(api, key, info, _spread(texts, size)) for key, info in definition.inputs.items()}
            if inputs and None not in inputs.values():
                record = api.prediction_log_pb2.PredictionLog()
                request = record.predict_log.request
                request.model_spec.name, request.model_spec.signature_name = name, signature
                for key, tensor in inputs.items():
                    request.inputs[key].CopyFrom(tensor)
                writer.write(record.SerializeToString())
                count += 1
    (model / FILE).parent.mkdir(exist_ok=True)
    (model / FILE).write_bytes(buffer.getvalue())
    return count


def _spread(texts: list[dict[str, str]], size: int) -> list[dict[str, str]]:
    """`size` of the texts, from the first to the last one, some of them twice where there are fewer."""
    return [texts[index * len(texts) // size] for index in range(size)]


def _tensor(api, name: str, info, rows: list[dict[str, str]]):
    """A `TensorProto` for one input of a signature, a row for each text; None for an input that is not known here."""
    tensor = api.predict_pb2.PredictRequest().inputs[name]
    tensor.dtype = info.dtype
    tensor.tensor_shape.dim.add().size = len(rows)
    if info.dtype == api.types_pb2.DT_STRING and name == "examples":
        tensor.string_val.extend(_example(api, row) for row in rows)
    elif info.dtype == api.types_pb2.DT_STRING and name in ("text", "text_pair"):
        tensor.string_val.extend(row.get(name, row["text"]).encode("utf-8", "replace") for row in rows)
    elif info.dtype == api.types_pb2.DT_INT32 and len(info.tensor_shape.dim) == 2:
        tensor.tensor_shape.dim.add().size = TOKENS
        tensor.int_val.extend([1] * len(rows) * TOKENS)
    else:
        return None
    return tensor


def _example(api, row: dict[str, str]) -> bytes:
    example = api.example_pb2.Example()
    for name in ("text", "text_pair"):
        example.features.feature[name].bytes_list.value.append(row.get(name, row["text"]).encode("utf-8", "replace"))
    return example.SerializeToString()
