"""Converters talk, in Python and from C++; it belongs into a file."""

import contextlib
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(log: pathlib.Path) -> Iterator[None]:
    """Appends to `log` whatever is written to the process's stdout and stderr inside, warnings too."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    saved = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
    try:
        with open(log, "a", encoding="utf-8", errors="replace", buffering=1) as file, warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = lambda *args, **_: file.write(warnings.formatwarning(*args[:4]))
            for descriptor, _ in saved:
                os.dup2(file.fileno(), descriptor)
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor, copy in saved:
            os.dup2(copy, descriptor)
            os.close(copy)
