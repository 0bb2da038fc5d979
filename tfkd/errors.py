"""The one exception that a person is meant to read, and how it quotes values and other errors."""

import json

LONGEST = 1000
"""Characters of a message: what it quotes may be a whole file."""


def first_line(error: BaseException | str, most: int = 200) -> str:
    """What a library says of an error, as far as a message of ours quotes it; the error's type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()[:most]


def show(value) -> str:
    """A value as JSON, at most 80 characters of it."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except TypeError:  # keys that JSON has not
        text = repr(value)
    except ValueError:
        text = "(a number with thousands of digits)"
    return text if len(text) <= 80 else text[:77] + "..."


class UserError(ValueError):
    """A mistake in what the user gave: a config value, a data file, a checkpoint, a run directory.

    Its message is one line that names the field or the file and row, the bad value and the fix. Programs print
    it without a traceback and exit with code 2; library users catch it as a `ValueError`. Whatever it quotes, line breaks,
    controls and characters that nobody sees are written as escapes.
    """

    def __init__(self, message: str):
        message = message if len(message) <= LONGEST else message[: LONGEST - 3] + "..."
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


def of_system(error: OSError) -> str:
    """What the system says of a file or a disk: the path, where it names one, and why."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
