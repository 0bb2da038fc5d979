"""From a student to files: each is written beside its final name, asked everything, and renamed or thrown away."""

import pathlib
import sys
import time
import traceback

from tfkd.run_dir import remove, whole

from .benchmark import latency
from .formats import FORMATS
from .inference import Student
from .parity import Questions, compare
from .quiet import quiet

FILES = {(name, variant.name): variant.file for name, module in FORMATS.items() for variant in module.VARIANTS}
"""Final name of every variant of every format, in the order of the manifest."""


class Refused(Exception):
    """A file answers otherwise than the student; the message says how."""


def make(student: Student, questions: Questions, format: str, variant: str, folder: pathlib.Path, log: pathlib.Path) -> dict:
    """Writes one file, loads it with its own runtime and compares. A file that fails is deleted, an older one of its name too.

    Arguments:
        format, variant: a key of `FILES`.
        folder: where the file goes.
        log: takes what converters and runtimes say, and tracebacks.

    Returns:
        The manifest's entry, without what `Manifest.add` reads off the file.
    """
    module = FORMATS[format]
    chosen = next(each for each in module.VARIANTS if each.name == variant)
    entry, begin = {"format": format, "variant": variant}, time.monotonic()
    try:
        with quiet(log), whole(folder / chosen.file) as beside:
            try:
                chosen.write(student, beside)
                answers = module.answer(beside, questions)
            except Exception:  # converters and runtimes raise anything
                traceback.print_exc(file=sys.stderr)
                raise
            entry |= compare(answers, questions, chosen.tolerance)
            entry |= {"latency_ms": latency(answers.milliseconds), "latency_request": answers.request}
            if entry["reason"]:
                raise Refused(entry["reason"])
    except Exception as error:
        remove(folder / chosen.file)
        entry["reason"] = _one_line(error)
    return entry | {"seconds": round(time.monotonic() - begin, 2), "passed": entry["reason"] is None}


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    message = lines[-1] if lines[0].endswith(":") else lines[0]  # TensorFlow begins with "in user code:"
    message = message if len(message) <= 300 else message[:297] + "..."
    return message if isinstance(error, Refused) else f"{type(error).__name__}: {message}"
