"""The main program's body, run in the test's own process."""

import io

import rich.console

from tfkd import config, train
from tfkd.progress import Display
from tfkd.run_dir import RunDir


def go(path, output, *overrides: str, resume: bool = False) -> tuple[RunDir, str]:
    """Trains as the YAML file at `path` says; returns the run and what it said."""
    console = rich.console.Console(file=io.StringIO(), width=140)
    run, loaded = RunDir(output), config.load(path, overrides)
    run.path.mkdir(parents=True, exist_ok=True)
    run.config.write_text(config.dump(loaded))
    assert train.train(loaded, run, Display(console), resume) == 0
    return run, console.file.getvalue()
