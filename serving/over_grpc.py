"""Asks a server over gRPC, through TF Serving's own services."""

import math
import struct

import grpc
from google.protobuf import json_format

from . import protos
from .errors import DeadlineExceeded, NotFound, ServingError, Unavailable

OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),  # the client itself tries again, alike over both protocols
    # A server that comes back is found at once: gRPC's own pause between connections grows up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
]
ERRORS = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
}
CONTENT = {"DT_FLOAT": "f", "DT_DOUBLE": "d", "DT_INT32": "i", "DT_INT64": "q", "DT_BOOL": "?"}
"""How `struct` reads a value of `tensor_content`."""

VALUES = {"DT_FLOAT": "float_val", "DT_DOUBLE": "double_val", "DT_INT32": "int_val", "DT_INT64": "int64_val"}
VALUES |= {"DT_BOOL": "bool_val", "DT_STRING": "string_val"}


class Grpc:
    """One channel to one server, for one model.

    Arguments:
        address: `host:port`.
        name, version: the model; the newest version that is loaded where `version` is None.
    """

    def __init__(self, address: str, name: str, version: int | None):
        self.api = protos.load()
        self.name, self.version = name, version
        self.channel = grpc.insecure_channel(address, options=OPTIONS)
        self.predictions = self.api.prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = self.api.model_service_pb2_grpc.ModelServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def predict(self, signature: str, inputs: dict[str, list], seconds: float) -> dict[str, list]:
        """Columns of inputs by name -> columns of outputs by name; strings come back as bytes."""
        request = self._addressed(self.api.predict_pb2.PredictRequest())
        request.model_spec.signature_name = signature
        for name, values in inputs.items():
            _fill(self.api, request.inputs[name], values)
        outputs = self._call(self.predictions.Predict, request, seconds).outputs
        return {name: _values(self.api, tensor) for name, tensor in outputs.items()}

    def status(self, seconds: float) -> dict[int, str]:
        """State of every version that the server knows of."""
        request = self._addressed(self.api.get_model_status_pb2.GetModelStatusRequest())
        answer = self._call(self.models.GetModelStatus, request, seconds)
        states = self.api.get_model_status_pb2.ModelVersionStatus.State
        return {version.version: states.Name(version.state) for version in answer.model_version_status}

    def signatures(self, seconds: float) -> dict:
        """Signatures by name, as REST's metadata spells them."""
        request = self._addressed(self.api.get_model_metadata_pb2.GetModelMetadataRequest())
        request.metadata_field.append("signature_def")
        answer = self._call(self.predictions.GetModelMetadata, request, seconds)
        found = self.api.get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(found)
        return json_format.MessageToDict(found, preserving_proto_field_name=True).get("signature_def", {})

    def _addressed(self, request):
        request.model_spec.name = self.name
        if self.version is not None:
            request.model_spec.version.value = self.version
        return request

    def _call(self, method, request, seconds: float):
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            code = error.code()
            raise ERRORS.get(code, ServingError)(f"{code.name}: {' '.join((error.details() or '').split())}") from None


def _fill(api, tensor, values: list) -> None:
    """Writes a column of strings, bytes, or whole numbers, or of rows of whole numbers, into a `TensorProto`."""
    rows = [value if isinstance(value, list | tuple) else [value] for value in values]
    tensor.tensor_shape.dim.add().size = len(rows)
    if values and isinstance(values[0], list | tuple):
        tensor.tensor_shape.dim.add().size = len(rows[0])
    flat = [value for row in rows for value in row]
    if all(isinstance(value, str | bytes) for value in flat):
        tensor.dtype = api.types_pb2.DT_STRING
        tensor.string_val.extend(value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass") for value in flat)
    else:
        tensor.dtype = api.types_pb2.DT_INT32
        tensor.int_val.extend(flat)


def _values(api, tensor) -> list:
    """A `TensorProto` as nested lists. A server writes values as fields or as bytes; equal last ones may be left out."""
    dtype = api.types_pb2.DataType.Name(tensor.dtype)
    shape = [dimension.size for dimension in tensor.tensor_shape.dim]
    if dtype not in VALUES:
        raise ServingError(f"the server answers with a tensor of {dtype}, which is not known here")
    if tensor.tensor_content and dtype in CONTENT:
        flat = [value for (value,) in struct.iter_unpack("=" + CONTENT[dtype], tensor.tensor_content)]
    else:
        flat = list(getattr(tensor, VALUES[dtype]))
    flat += flat[-1:] * (math.prod(shape) - len(flat))
    for size in reversed(shape[1:]):
        flat = [flat[start : start + size] for start in range(0, len(flat), size)]
    return flat if shape else flat[0]
