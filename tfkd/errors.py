"""The one exception that a person is meant to read."""


class UserError(ValueError):
    """A mistake in what the user gave: a config value, a data file, a checkpoint, a run directory.

    Its message is one line that names the field or the file and row, the bad value and the fix. Programs print
    it without a traceback and exit with code 2; library users catch it as a `ValueError`.
    """
