"""What a person sees while work goes on: a live bar on a terminal, a line now and then elsewhere."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress
from rich.table import Column

SECONDS_BETWEEN_LINES = 15.0
FEWEST_TO_ESTIMATE = 10


class Display:
    """Says things and shows progress, with an estimate of the time left.

    Arguments:
        console: where to.
        log: also told everything that is said, without markup.
    """

    def __init__(self, console: rich.console.Console, log: Callable[[str], None] | None = None):
        self.console, self.log = console, log

    def say(self, message) -> None:
        """Prints a line or any rich renderable, and logs it."""
        # Labels and paths may hold [brackets]: nothing that is said is markup.
        self.console.print(message, highlight=False, markup=False, soft_wrap=isinstance(message, str))
        if self.log is not None:
            plain = rich.console.Console(file=io.StringIO(), width=130)
            plain.print(message, highlight=False, markup=False)
            self.log(plain.file.getvalue().rstrip())

    @contextlib.contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Callable[..., None]]:
        """Yields `update(completed, text="", total=None)` for a piece of work of `total` parts (None: not known yet)."""
        if self.console.is_terminal:
            with _bar(self.console) as progress:
                task = progress.add_task(title, total=total, text="")

                def update(completed, text="", total=None):
                    progress.update(task, completed=completed, text=text, **({} if total is None else {"total": total}))

                yield update
        else:
            yield _Lines(self.say, title, total)


def _bar(console: rich.console.Console) -> rich.progress.Progress:
    def whole(width: int) -> Column:
        return Column(no_wrap=True, min_width=width)

    # On a narrow terminal the text at the end is cut, never the estimate.
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False, table_column=whole(9)),
        rich.progress.BarColumn(bar_width=16, table_column=whole(16)),
        rich.progress.TaskProgressColumn(table_column=whole(4)),
        rich.progress.TimeElapsedColumn(table_column=whole(7)),
        rich.progress.TimeRemainingColumn(table_column=whole(7)),
        rich.progress.TextColumn("left", table_column=whole(4)),
        rich.progress.TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        console=console,
        expand=True,
    )


class _Lines:
    """The bar of a log file: at most a line in fifteen seconds."""

    def __init__(self, say: Callable[[str], None], title: str, total: int | None):
        self.say, self.title, self.total = say, title, total
        self.last, self.done = time.monotonic(), 0

    def __call__(self, completed: int, text: str = "", total: int | None = None) -> None:
        self.total = total if total is not None else self.total
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES or not completed:
            return
        # By the speed since the last line: the first steps compile, and would promise days.
        left = (self.total - completed) * (now - self.last) / max(completed - self.done, 1) if self.total else 0.0
        estimate = f"{clock(left)} left" if completed >= FEWEST_TO_ESTIMATE else "starting"
        share = f" {completed / self.total:4.0%}, {estimate}" if self.total else f" {completed:,} done"
        self.say(f"{self.title}{share}  {text}".rstrip())
        self.last, self.done = now, completed


def clock(seconds: float) -> str:
    """`0:42`, `12:05`, `1:02:03`."""
    minutes, rest = divmod(max(int(round(seconds)), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
