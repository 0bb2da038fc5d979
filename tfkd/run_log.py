"""The run's own log file: what was said, what the libraries say, and the whole story of a failure."""

import logging
import os
import sys
import traceback

from tfkd.run_dir import RunDir


class _File(logging.FileHandler):
    """A log file on a disk that may be full."""

    def handleError(self, record):
        """Passes over a line that there is no room for: what the run cannot do without says so itself, in one line."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def open_log(run: RunDir) -> logging.Logger:
    """The run's log file, which also takes what the libraries log."""
    handler = _File(run.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    logger = logging.getLogger("tfkd")
    logger.setLevel(logging.INFO)
    return logger


def quiet_libraries(run: RunDir) -> None:
    """Sends what compiled libraries write on standard error to the run's log; Python's own messages still reach the person."""
    person = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)
    with open(run.log, "ab") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    sys.stderr = person


def log_traceback(run: RunDir | None) -> str:
    """Writes the traceback of the exception being handled into the run's log; says where, or nothing where that fails too."""
    try:
        with open(run.log, "a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
    except (AttributeError, OSError):  # no run yet, or no disk
        return ""
    return f" (whole story: {run.log})"
