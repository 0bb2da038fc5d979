"""The closed table of formats. A new one is a file with `VARIANTS` and `answer`, and a line here."""

from . import onnx, saved_model, tflite

FORMATS = {"saved_model": saved_model, "tflite": tflite, "onnx": onnx}
