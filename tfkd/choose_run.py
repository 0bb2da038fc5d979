"""Which folder a run goes to, and whether it may go on there. No TensorFlow here."""

import contextlib
import pathlib
import tempfile

from tfkd import config as configs
from tfkd import lock
from tfkd.cluster import Cluster
from tfkd.config import Config
from tfkd.errors import UserError
from tfkd.run_dir import PARTIAL, RunDir, read_json, write_json


def choose_run(config: Config, output: str | None, resume: bool) -> RunDir:
    """Where the run goes: `--output`, else `runs/NAME`, or `runs/NAME-2`, ... so that no earlier run is touched.

    Raises:
        UserError: `--output` is taken, or there is nothing to resume.
    """
    if output is not None:
        run = RunDir(output)
        taken = run.path.exists() and (not run.path.is_dir() or any(map(_counts, run.path.iterdir())))
        if taken and not resume:
            raise UserError(f"--output {output}: already there; go on with --resume, or choose another folder")
    else:
        paths = [pathlib.Path("runs") / (config.name if i == 1 else f"{config.name}-{i}") for i in range(1, 10_000)]
        free = next(i for i, path in enumerate(paths) if not path.exists())
        run = RunDir(paths[max(free - 1, 0)] if resume else paths[free])
    if resume and not run.config.exists():
        raise UserError(f"--resume: {run.path} holds no run to go on with")
    if resume:
        run.require()
    return run


def _counts(path: pathlib.Path) -> bool:
    """Whether a file makes a folder a run: what a process leaves that ends as it begins does not."""
    return path.name not in ("lock", "log.txt") and PARTIAL not in path.name


def choose_place(
    config: Config, output: str | None, resume: bool, cluster: Cluster, held: contextlib.ExitStack
) -> tuple[RunDir, bool]:
    """Where one of several machines writes: the chief as `choose_run`, the others into a folder that `held` removes.

    Returns:
        The run, and whether to go on with it. `--resume` begins a run where there is none: machines that train together may be
        given it each time. What the chief goes on from it tells the others.
    """
    if not cluster.chief:
        return RunDir(held.enter_context(tempfile.TemporaryDirectory(prefix="tfkd-worker-", ignore_cleanup_errors=True))), False
    resume = resume and (output is None or RunDir(output).config.exists())
    return choose_run(config, output, resume), resume


@contextlib.contextmanager
def occupied(run: RunDir):
    """Makes a run's folder and keeps other processes out of it.

    Raises:
        UserError: another process works there, or nothing can be written there.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run.path}: cannot be made: {error.strerror}; choose another folder with --output") from None
    with lock.only_one(run.lock, str(run)):
        yield


def check_same(config: Config, run: RunDir) -> None:
    """Raises `UserError` when a run is resumed with another configuration than it was begun with."""
    before = configs.load(run.config).model_dump()
    for section, value in config.model_dump().items():
        if before[section] != value and section != "checkpoint":  # how often one is written changes nothing
            changed = [k for k in value if before[section].get(k) != value[k]] if isinstance(value, dict) else []
            key = f"{section}.{changed[0]}" if changed else section
            raise UserError(f"--resume: {key} is not what {run.path} was begun with; start a new run, or take the change back")


def check_data(run: RunDir, key: str, resume: bool, stage: str | None = None) -> None:
    """Raises `UserError` when a run, or a stage with data of its own, is resumed on other data than it was begun with."""
    known = read_json(run.data_key) if run.data_key.exists() else {}
    name, whose = ("key", "the data") if stage is None else (f"stage {stage}", f"the data of stage {stage}")
    if resume and known.get(name, key) != key:
        raise UserError(f"--resume: {whose} are not those that {run.path} was begun with; start a new run")
    write_json(run.data_key, known | {name: key})
