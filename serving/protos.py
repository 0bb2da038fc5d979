"""TF Serving's messages and services, without TensorFlow's import.

They are built on a few of TensorFlow's own message modules, which are pure Python; but Python reaches those through
`tensorflow/__init__.py`, which takes 5 seconds and brings Keras along. So a bare package stands in for `tensorflow` while they
are imported (0.3 s) and is taken away again: a later `import tensorflow` is the real one, and shares its messages with these.
"""

import functools
import importlib
import importlib.util
import sys
import threading
import types

from .errors import UserError

_MODULES = (
    "tensorflow_serving.apis.predict_pb2",
    "tensorflow_serving.apis.prediction_log_pb2",
    "tensorflow_serving.apis.get_model_metadata_pb2",
    "tensorflow_serving.apis.get_model_status_pb2",
    "tensorflow_serving.apis.prediction_service_pb2_grpc",
    "tensorflow_serving.apis.model_service_pb2_grpc",
    "tensorflow.core.example.example_pb2",
    "tensorflow.core.framework.types_pb2",
    "tensorflow.core.protobuf.saved_model_pb2",
)
_importing = threading.Lock()


@functools.cache
def load() -> types.SimpleNamespace:
    """The modules of `_MODULES` by the last part of their names.

    Raises:
        UserError: tensorflow-serving-api or tensorflow is not installed.
    """
    try:
        with _importing:
            stood_in = _stand_in()
            try:
                modules = {name.rpartition(".")[2]: importlib.import_module(name) for name in _MODULES}
            finally:
                if stood_in:
                    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]:
                        del sys.modules[name]
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install tfkd[serving]") from None
    return types.SimpleNamespace(**modules)


def _stand_in() -> bool:
    """Puts a package `tensorflow` in place that has its folder and nothing else; False where the real one is imported."""
    found = None if "tensorflow" in sys.modules else importlib.util.find_spec("tensorflow")
    if found is None:
        return False
    package = types.ModuleType("tensorflow")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["tensorflow"] = package
    return True
