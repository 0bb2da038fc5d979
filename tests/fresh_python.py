"""Code in an interpreter of its own, which has imported nothing yet."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def fresh(code: str, *flags: str, check: bool = True) -> subprocess.CompletedProcess:
    """Runs `code` in the checkout under `python FLAGS`; what it says is text."""
    return subprocess.run([sys.executable, *flags, "-c", code], cwd=ROOT, capture_output=True, text=True, check=check)
