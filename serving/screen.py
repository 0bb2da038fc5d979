"""What a person sees of a deployment."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .base import ModelBase
from .server_files import IMAGE, POLL_SECONDS

COLUMNS = ("model", "serves", "kept", "of run", "size", "measured", "deployed")


def show(base: ModelBase, name: str, done: str) -> None:
    """Says what was done, lists all models of the base, and how to start a server and ask it.

    Arguments:
        name: the model that was deployed or rolled back.
        done: the sentence about it.
    """
    console = Console(width=None if sys.stdout.isatty() else 120)

    def line(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    line(done)
    grid = Table(title=f"{base.path}, for {IMAGE}", title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in COLUMNS:
        grid.add_column(column, overflow="fold")
    for model, version in base.served().items():
        grid.add_row(*map(Text, _row(base, model, version)))
    console.print(grid)
    compose = base.path / "docker-compose.yml"
    line(f"start   docker compose -f {compose} up -d    (a running server follows within {POLL_SECONDS} s)")
    line(f'ask     python -m serving.client --name {name} "some text"')


def _row(base: ModelBase, name: str, version: int) -> tuple[str, ...]:
    kept = ", ".join(map(str, base.versions(name)))
    entry = next((entry for entry in base.history(name) if entry["version"] == version), None)
    if entry is None:  # put there by a person
        return name, str(version or "latest"), kept, "-", "-", "-", "-"
    metrics = ", ".join(f"{metric} {value:.3f}" for metric, value in (entry["metrics"] or {}).items())
    return name, str(version), kept, entry["run"], _size(entry["bytes"]), metrics or "-", entry["deployed"]


def _size(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.1f} MB"
