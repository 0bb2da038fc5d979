"""Which machines train together, and which of them this is: from `TF_CONFIG` or the command line. No TensorFlow here."""

import dataclasses
import json
import os
import re
import sys
import time

from tfkd.errors import UserError

ADDRESS = re.compile(r"[^\s:/,]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")
LOST = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError")
"""What TensorFlow raises in those that are left when a worker is gone, and in one that meets others of an earlier sitting."""
REJOINED = "TFKD_REJOINED"
"""Environment: how often this process has begun anew after a loss."""
MOST_REJOINED = 100
SECONDS_BEFORE_REJOINING = 2.0


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Machines that train together.

    Attributes:
        addresses: `host:port` of each; the first is the chief, which alone writes.
        index: which of them this process is.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def chief(self) -> bool:
        return self.index == 0

    @property
    def others(self) -> tuple[str, ...]:
        """Addresses."""
        return tuple(address for number, address in enumerate(self.addresses) if number != self.index)

    def __str__(self) -> str:
        return f"worker {self.index} of {len(self.addresses)}"


def find_cluster(kind: str, addresses: str | None = None, worker: int | None = None) -> Cluster | None:
    """The cluster of this process, or None where it trains alone; what the command line says is put into `TF_CONFIG`.

    Arguments:
        kind: `strategy.kind`; `auto` follows a `TF_CONFIG` of several workers.
        addresses: `--cluster`, as in `10.0.0.1:2222,10.0.0.2:2222`.
        worker: `--worker`, from 0.

    Raises:
        UserError: it is asked for and not described, or described wrongly.
    """
    if worker is not None and addresses is None:
        raise UserError(f"--worker {worker}: give --cluster host:port,host:port too")
    if addresses is not None:
        if kind not in ("auto", "multi_worker"):
            raise UserError(f"--cluster: contradicts strategy.kind: {kind}; use multi_worker")
        return _from_arguments(addresses, worker)
    text = os.environ.get("TF_CONFIG")
    if kind == "multi_worker":
        if not text:
            raise UserError(
                "strategy.kind: multi_worker: which machines? Set TF_CONFIG on each, or give --cluster host:port,host:port and "
                "--worker with its number, from 0"
            )
        return _from_environment(text)
    found = _from_environment(text) if text and kind == "auto" else None
    return found if found is not None and len(found.addresses) > 1 else None


def _from_arguments(addresses: str, worker: int | None) -> Cluster:
    if worker is None:
        raise UserError("--cluster: say with --worker which of them this is, from 0")
    known = tuple(address.strip() for address in addresses.split(","))
    _check(known, "--cluster")
    if not 0 <= worker < len(known):
        raise UserError(f"--worker {worker}: --cluster names {len(known)}, counted from 0")
    task = {"type": "worker", "index": worker}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": known}, "task": task})
    return Cluster(known, worker)


def _from_environment(text: str) -> Cluster:
    """As TensorFlow reads it: jobs `chief` and `worker`, in this order."""
    try:
        tree = json.loads(text)
        jobs, task = tree["cluster"], tree["task"]
        others = set(jobs) - {"chief", "worker"}
        if others:
            raise UserError(f"TF_CONFIG: job {sorted(others)[0]}: only chief and worker train with multi_worker")
        index, before = int(task["index"]), len(jobs.get("chief", [])) if task["type"] == "worker" else 0
        known = tuple(map(str, [*jobs.get("chief", []), *jobs.get("worker", [])]))
        found = Cluster(known, before + index)
        if task["type"] not in jobs or not 0 <= index < len(jobs[task["type"]]):
            raise UserError(f"TF_CONFIG: task {task['type']} {index} is not in its cluster")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            'TF_CONFIG: not as in {"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}'
        ) from None
    _check(known, "TF_CONFIG")
    return found


def _check(addresses: tuple[str, ...], where: str) -> None:
    for address in addresses:
        if not ADDRESS.fullmatch(address) or not 0 < int(address.rpartition(":")[2]) < 65_536:
            raise UserError(f"{where}: {address!r} is not host:port")
    if len(set(addresses)) < len(addresses):
        raise UserError(f"{where}: an address stands twice")


def lost_a_worker(error: BaseException) -> bool:
    """Whether an error says that another worker is gone."""
    return type(error).__name__ in LOST


def may_rejoin() -> bool:
    """Whether this process has not yet begun anew too often."""
    return int(os.environ.get(REJOINED, "0")) < MOST_REJOINED


def rejoin(arguments: list[str], person) -> None:
    """Becomes a fresh process of the same command, which waits for the others and goes on from the last checkpoint.

    TensorFlow cannot form a cluster twice in one process. The process's number stays, so that whoever waits for it still does.

    Arguments:
        arguments: of the command.
        person: the stream that a person reads as standard error.
    """
    os.environ[REJOINED] = str(int(os.environ.get(REJOINED, "0")) + 1)
    time.sleep(SECONDS_BEFORE_REJOINING)
    sys.stdout.flush()
    person.flush()
    os.dup2(person.fileno(), 2)  # libraries had been sent to the log, and the descriptor behind `person` does not survive
    again = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
    os.execv(sys.executable, [sys.executable, "-m", "tfkd.train", *again])
