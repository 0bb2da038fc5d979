"""The closed table of formats and their variants, by name, and how a person chooses from it. Nothing heavy is imported here.

A new format is a module `export/NAME.py` with `VARIANTS` and `answer`, and a line in `tfkd.config.EXPORT_VARIANTS`; a new
variant is a line in both.
"""

import importlib
import types

from tfkd.config import EXPORT_FILES, EXPORT_VARIANTS

FORMATS = EXPORT_VARIANTS
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
    return (*FORMATS, *EXPORT_FILES)


def chosen(names: list[str]) -> list[tuple[str, str]]:
    """What `names` of `choices` ask for: (format, variant), each once, in the order of the table."""
    return [
        (format, variant)
        for format, variants in FORMATS.items()
        for variant in variants
        if f"{format}:{variant}" in names or (format in names and f"{format}:{variant}" not in ON_REQUEST)
    ]
