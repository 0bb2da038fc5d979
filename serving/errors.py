"""What can go wrong, for people and for programs that ask a server."""


class UserError(ValueError):
    """A mistake in what was given: a run, a name, a folder. Its message is one line that names it and the fix."""


class ServingError(Exception):
    """The server did not answer, or answered with an error; the message is one line.

    Its subclasses are what a program may want to tell apart; every other error of a server is this class itself.
    """


class Unavailable(ServingError):
    """No server there, or one that is starting, stopping or overloaded: worth another try."""


class DeadlineExceeded(ServingError):
    """No answer within the deadline."""


class NotFound(ServingError):
    """The server has no such model, or no such version of it."""
