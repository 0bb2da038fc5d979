"""The one exception that a person is meant to read."""

LONGEST = 1000
"""Characters of a message: what it quotes may be a whole file."""


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
