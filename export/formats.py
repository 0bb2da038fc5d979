"""The closed table of formats and their variants, by name, and how a person chooses from it. Nothing heavy is imported here.

A new format is a module `export/NAME.py` with `VARIANTS` and `answer`, and a line here; a new variant is a line in both.
"""

import importlib
import types

FORMATS = {
    "saved_model": ("float32",),
    "tflite": ("float32", "float16", "int8_dynamic", "int8", "int8_qat", "int4_dynamic"),
    "mediapipe": ("float32", "int8_dynamic"),
    "onnx": ("float32", "float16", "int8_dynamic", "int8"),
    "huggingface": ("float32",),
}
"""Variants of every format, in the order of the manifest."""

ON_REQUEST = {"tflite:int8", "tflite:int8_qat", "tflite:int4_dynamic", "onnx:int8"}
"""What a format's bare name leaves out: they need calibration texts, a training or another library, and cost accuracy."""

MODULES = {"huggingface": "hugging_face"}
"""Module of a format whose module is not called as the format is."""

BESIDE = {"onnx": ("tokenizer.json",)}
"""Files that a format writes beside its variants, for all of them."""


def module(format: str) -> types.ModuleType:
    """The module that writes a format."""
    return importlib.import_module(f".{MODULES.get(format, format)}", __package__)


def choices() -> tuple[str, ...]:
    """All that `export.formats` may name: `tflite` for the variants it writes unasked, `tflite:int8` for one."""
    return tuple(FORMATS) + tuple(f"{format}:{variant}" for format, variants in FORMATS.items() for variant in variants)


def chosen(names: list[str]) -> list[tuple[str, str]]:
    """What `names` of `choices` ask for: (format, variant), each once, in the order of the table."""
    wanted = {
        (format, variant)
        for format, variants in FORMATS.items()
        for variant in variants
        for name in names
        if name == f"{format}:{variant}" or (name == format and f"{format}:{variant}" not in ON_REQUEST)
    }
    return [(format, variant) for format, variants in FORMATS.items() for variant in variants if (format, variant) in wanted]
