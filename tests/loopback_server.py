"""A stand-in for `tensorflow_model_server` in tests: its flags, its services, its answers, over `tf.saved_model.load`.

    python tests/loopback_server.py --port=8500 --rest_api_port=8501 --model_config_file=FILE ...

The services are the real `PredictionService` and `ModelService` of tensorflow-serving-api, and the process imports nothing of
this repository. As the real server, it loads the versions that the configuration file names, replays their warm-up requests and
refuses a version whose requests fail, serves the old version until the new one is ready, and follows the file while it runs.
It does not batch.
"""

import argparse
import base64
import concurrent.futures
import http.server
import json
import pathlib
import sys
import threading
import time

import grpc
import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the tokenizer's operators
from google.protobuf import json_format, text_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

LOADING, AVAILABLE, END = 20, 30, 50  # ModelVersionStatus.State
HTTP = {grpc.StatusCode.NOT_FOUND: 404, grpc.StatusCode.INVALID_ARGUMENT: 400}


class Refused(Exception):
    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code


class Models:
    """What is loaded, by model and version."""

    def __init__(self, config: str):
        self.config, self.text = pathlib.Path(config), None
        self.loaded: dict[tuple[str, int], object] = {}
        self.states: dict[tuple[str, int], tuple[int, str]] = {}

    def follow(self) -> None:
        """Loads and unloads what the configuration file asks for, if it changed."""
        text = self.config.read_text()
        if text == self.text:
            return
        self.text = text
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        wanted = {
            (entry.name, version): pathlib.Path(entry.base_path, str(version))
            for entry in config.model_config_list.config
            for version in entry.model_version_policy.specific.versions
        }
        for key, folder in wanted.items():
            if key not in self.loaded:
                self._load(key, folder)
        for key in list(self.loaded):
            others = {name for name, _ in wanted.keys() & self.loaded.keys()}
            if key not in wanted and (key[0] in others or key[0] not in {name for name, _ in wanted}):
                del self.loaded[key]
                self.states[key] = (END, "")

    def _load(self, key: tuple[str, int], folder: pathlib.Path) -> None:
        self.states[key] = (LOADING, "")
        try:
            model = tf.saved_model.load(str(folder))
            requests = folder / "assets.extra" / "tf_serving_warmup_requests"
            for record in tf.data.TFRecordDataset(str(requests)) if requests.exists() else ():
                request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
                answer(model, request.model_spec.signature_name, arrays(request))
            self.loaded[key], self.states[key] = model, (AVAILABLE, "")
        except Exception as error:
            self.states[key] = (END, str(error))

    def find(self, spec) -> tuple[int, object]:
        versions = [version for name, version in self.loaded if name == spec.name]
        version = spec.version.value if spec.HasField("version") else max(versions, default=0)
        if version not in versions:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {spec.name} {version or 'latest'}")
        return version, self.loaded[spec.name, version]


def arrays(request) -> dict[str, np.ndarray]:
    return {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}


def answer(model, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    function = model.signatures.get(signature or "serving_default")
    if function is None:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f'Serving signature key "{signature}" not found.')
    specs = function.structured_input_signature[1]
    if inputs.keys() != specs.keys():
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"input keys are {sorted(inputs)}, expected are {sorted(specs)}")
    try:
        tensors = {name: tf.constant(inputs[name], specs[name].dtype) for name in specs}
        return {name: tensor.numpy() for name, tensor in function(**tensors).items()}
    except (tf.errors.InvalidArgumentError, TypeError, ValueError) as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error


class Service(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: Models):
        self.models = models

    def Predict(self, request, context):
        return self._answered(context, self.predict, request)

    def GetModelMetadata(self, request, context):
        return self._answered(context, self.metadata, request)

    def GetModelStatus(self, request, context):
        return self._answered(context, self.status, request)

    def _answered(self, context, call, request):
        try:
            return call(request)
        except Refused as error:
            context.abort(error.code, str(error))

    def predict(self, request):
        version, model = self.models.find(request.model_spec)
        response = predict_pb2.PredictResponse()
        for name, values in answer(model, request.model_spec.signature_name, arrays(request)).items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(values))
        response.model_spec.name, response.model_spec.version.value = request.model_spec.name, version
        return response

    def metadata(self, request):
        version, model = self.models.find(request.model_spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=request.model_spec)
        found = get_model_metadata_pb2.SignatureDefMap()
        for name, function in model.signatures.items():
            definition = found.signature_def[name]
            sides = (definition.inputs, function.structured_input_signature[1]), (definition.outputs, function.structured_outputs)
            for side, specs in sides:
                for key, spec in specs.items():
                    side[key].dtype = spec.dtype.as_datatype_enum
                    side[key].tensor_shape.CopyFrom(spec.shape.as_proto())
        response.metadata["signature_def"].Pack(found)
        return response

    def status(self, request):
        response = get_model_status_pb2.GetModelStatusResponse()
        for (name, version), (state, message) in self.models.states.items():
            if name == request.model_spec.name:
                found = response.model_version_status.add(version=version, state=state)
                found.status.error_message = message
        if not response.model_version_status:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {request.model_spec.name}")
        return response


def rest(service: Service) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            """Quiet."""

        def do_GET(self):
            self._answer(lambda path: self._get(path))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(lambda path: self._predict(path.removesuffix(":predict"), body))

        def _get(self, path: str) -> dict:
            request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=self._spec(path.removesuffix("/metadata")))
            if not path.endswith("/metadata"):
                return json_format.MessageToDict(service.status(request), preserving_proto_field_name=True)
            found = get_model_metadata_pb2.SignatureDefMap()
            service.metadata(request).metadata["signature_def"].Unpack(found)
            return {"metadata": {"signature_def": json_format.MessageToDict(found, preserving_proto_field_name=True)}}

        def _spec(self, path: str) -> dict:
            name, _, version = path.removeprefix("/v1/models/").partition("/versions/")
            return {"name": name} | ({"version": {"value": int(version)}} if version else {})

        def _predict(self, path: str, body: dict) -> dict:
            request = predict_pb2.PredictRequest(model_spec=self._spec(path))
            _, model = service.models.find(request.model_spec)
            inputs = {name: np.array([_decoded(value) for value in values]) for name, values in body["inputs"].items()}
            outputs = answer(model, body.get("signature_name", ""), inputs)
            return {"outputs": {name: _listed(values) for name, values in outputs.items()}}

        def _answer(self, call):
            try:
                status, found = 200, call(self.path)
            except Refused as error:
                status, found = HTTP[error.code], {"error": str(error)}
            text = json.dumps(found, indent=1).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return Handler


def _decoded(value):
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return value.encode() if isinstance(value, str) else value


def _listed(values: np.ndarray) -> list:
    return [value.decode() for value in values] if values.dtype == object else values.tolist()


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("port", "rest_api_port", "model_config_file_poll_wait_seconds"):
        parser.add_argument(f"--{flag}", type=int, required=True)
    for flag in ("model_config_file", "batching_parameters_file", "monitoring_config_file", "enable_batching"):
        parser.add_argument(f"--{flag}", required=True)
    options = parser.parse_args()
    for name in ("tfkd", "export", "serving"):
        sys.modules[name] = None  # from here on importing them raises
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    models = Models(options.model_config_file)
    models.follow()
    service = Service(models)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    server.add_insecure_port(f"127.0.0.1:{options.port}")
    web = http.server.ThreadingHTTPServer(("127.0.0.1", options.rest_api_port), rest(service))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    server.start()
    while True:
        time.sleep(min(1, options.model_config_file_poll_wait_seconds))
        models.follow()


if __name__ == "__main__":
    main()
