"""Arrays and plain values on their way to a process of ours and back, as JSON: data, and nothing that runs."""

import base64
import json
import pathlib

import numpy as np


def write(path: pathlib.Path, value) -> None:
    """Writes dicts by text, lists, tuples (which come back as lists), texts, bytes, numbers and arrays of numbers or bytes."""
    path.write_text(json.dumps(value, default=_encoded))


def read(path: pathlib.Path):
    """Reads what `write` wrote."""
    return json.loads(path.read_text(), object_hook=_decoded)


def _encoded(value):
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} is no plain value")
    about = {"shape": value.shape, "dtype": value.dtype.str}
    if value.dtype == object:  # TensorFlow's texts
        return about | {"values": value.ravel().tolist()}
    return about | {"values": np.ascontiguousarray(value).tobytes()}


def _decoded(fields: dict):
    if fields.keys() == {"base64"}:
        return base64.b64decode(fields["base64"])
    if fields.keys() != {"shape", "dtype", "values"}:
        return fields
    if fields["dtype"] == "|O":
        array = np.empty(len(fields["values"]), object)
        array[:] = fields["values"]
    else:
        array = np.frombuffer(fields["values"], fields["dtype"]).copy()
    return array.reshape(fields["shape"])
