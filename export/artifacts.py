"""From a student to files: each is written beside its final name, asked everything, and renamed or thrown away."""

import dataclasses
import pathlib
import sys
import time
import traceback

from tfkd.errors import UserError
from tfkd.run_dir import remove, whole

from .formats import FORMATS, module
from .inference import Student
from .parity import Tolerance, compare, loss
from .questions import Questions
from .quiet import quiet
from .timing import latency

FILES = {(name, variant.name): variant.file for name in FORMATS for variant in module(name).VARIANTS}
"""Final name of every variant of every format, in the order of the manifest."""


class Refused(Exception):
    """A file answers otherwise than the student; the message says how."""


def make(
    student: Student,
    questions: Questions,
    format: str,
    variant: str,
    folder: pathlib.Path,
    log: pathlib.Path,
    tolerance: dict[str, dict[str, float]] | None = None,
) -> dict:
    """Writes one file, loads it with its own runtime and compares. A file that fails is deleted, an older one of its name too.

    Arguments:
        format, variant: a key of `FILES`.
        folder: where the file goes.
        log: takes what converters and runtimes say, and tracebacks.
        tolerance: what a configuration sets otherwise: `int8` or `tflite:int8` -> fields of `Tolerance` by name.

    Returns:
        The manifest's entry, without what `Manifest.add` reads off the file.
    """
    maker = module(format)
    chosen = next(each for each in maker.VARIANTS if each.name == variant)
    entry, begin = {"format": format, "variant": variant}, time.monotonic()
    try:
        with quiet(log), whole(folder / chosen.file) as beside:
            try:
                source = student if chosen.made_of is None else chosen.made_of(student)
                asked = questions if source is student else questions.of(source)
                chosen.write(source, beside)
                answers = maker.answer(beside, asked)
            except Exception:  # converters and runtimes raise anything
                traceback.print_exc(file=sys.stderr)
                raise
            allowed = held_to(chosen.tolerance, format, variant, tolerance or {})
            entry |= compare(answers, asked, allowed)
            if source is not student:
                entry |= {"compared_with": student.run.quantized.name}
                entry |= {} if entry["reason"] else loss(answers, questions, allowed)
            longest = max(answers, key=lambda each: each.length) if isinstance(answers, list) else answers
            entry |= {"latency_ms": latency(longest.milliseconds), "latency_request": longest.request, "note": longest.note}
            if entry["reason"]:
                raise Refused(entry["reason"])
    except Exception as error:
        remove(folder / chosen.file)
        entry["reason"] = _one_line(error)
    return entry | {"seconds": round(time.monotonic() - begin, 2), "passed": entry["reason"] is None}


def held_to(usual: Tolerance, format: str, variant: str, set_otherwise: dict[str, dict[str, float]]) -> Tolerance:
    """The tolerance of one file: the variant's own, then what is set for the variant, then for this format's."""
    for name in (variant, f"{format}:{variant}"):
        usual = dataclasses.replace(usual, **set_otherwise.get(name, {}))
    return usual


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    message = lines[-1] if lines[0].endswith(":") else lines[0]  # TensorFlow begins with "in user code:"
    message = message if len(message) <= 300 else message[:297] + "..."
    return message if isinstance(error, (Refused, UserError)) else f"{type(error).__name__}: {message}"
