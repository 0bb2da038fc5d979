"""Being asked to stop: the step at hand is finished, a checkpoint is written, and the program leaves with the signal's code."""

import contextlib
import signal
from collections.abc import Callable, Iterator


class Stopped(BaseException):
    """A signal asked the program to end; not an `Exception`, so that nothing in between takes it for a failure.

    Arguments:
        number: of the signal.
        saved: whether a checkpoint of the very last step was written.
    """

    def __init__(self, number: int, saved: bool = False):
        super().__init__(signal.Signals(number).name)
        self.number, self.saved = number, saved

    @property
    def code(self) -> int:
        """The exit code that says so: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


class _State:
    requested: int | None = None
    """The signal that came while a training was to finish its step."""
    waiting = False
    """Whether a training looks at `requested` between its steps."""


def install(tell: Callable[[str], None]) -> None:
    """Takes over SIGTERM and Ctrl-C; `tell` says to a person that they were heard. Call it in the main thread."""

    def heard(number, frame):
        if not _State.waiting or _State.requested is not None:  # nothing to finish, or asked twice
            raise Stopped(number)
        _State.requested = number
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        tell(f"stopping after this step, with a checkpoint{again}")

    _State.requested, _State.waiting = None, False
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, heard)


def restore() -> None:
    """Gives both signals back to Python."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def finishing_steps() -> Iterator[None]:
    """While it lasts a signal is kept for `requested`, which whoever trains asks between two steps."""
    _State.waiting = True
    try:
        yield
    finally:
        _State.waiting = False
    if _State.requested is not None:
        raise Stopped(_State.requested, saved=True)  # it came when there was no step left to finish


def requested() -> int | None:
    """The signal that asks to stop, if one came."""
    return _State.requested
