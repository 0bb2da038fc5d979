"""One process at a time in a folder: a lock that the system lets go of however its holder ends. No TensorFlow here."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator

from tfkd.errors import UserError
from tfkd.run_dir import running

_HELD: set[int] = set()


def held() -> tuple[int, ...]:
    """The descriptors of the locks of `only_one` that this process holds: a child that is handed them holds them too."""
    return tuple(_HELD)


@contextlib.contextmanager
def only_one(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Holds the lock file `path`, or refuses at once.

    The system frees the lock when its holder is gone, by whatever end: a file that a dead process left is no lock.

    Arguments:
        path: the file; it says who holds it, and is removed in the end.
        what: is locked, for the message.

    Raises:
        UserError: another process holds it, or the folder cannot be written to.
    """
    path = pathlib.Path(path)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be written to: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise UserError(f"{what} is in use by {holder}; wait for it, or stop it") from None
        except OSError as error:  # a file system without locks: going on unlocked is better than not at all
            if _alive(descriptor):
                holder = _holder(descriptor)
                os.close(descriptor)
                raise UserError(f"{what} is in use by {holder}; wait for it, or stop it ({error.strerror})") from None
        # Whoever held it may have removed it between the two calls above: then this is a lock on nothing.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)
    _HELD.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        _HELD.discard(descriptor)
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def one_after_another(path: str | os.PathLike) -> Iterator[None]:
    """Holds the lock file `path`, waiting for it where another process has it; the file stays."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(descriptor: int) -> dict:
    try:
        found = json.loads(os.pread(descriptor, 1000, 0))
    except ValueError:  # it is just being written
        return {}
    return found if isinstance(found, dict) else {}


def _holder(descriptor: int) -> str:
    about = _read(descriptor)
    if not about:
        return "another process"
    if _alive(descriptor):
        return f"process {about.get('pid')} on {about.get('host')}"
    return f"what process {about.get('pid')} on {about.get('host')} left running"


def _alive(descriptor: int) -> bool:
    """Whether the process that a lock file names runs; one on another host is taken to."""
    about = _read(descriptor)
    if not isinstance(about.get("pid"), int):
        return False
    if about.get("host") != socket.gethostname():
        return True
    return running(about["pid"])
