"""What a person sees while work goes on: a live picture on a terminal, a line now and then elsewhere, or JSON for programs."""

import collections
import contextlib
import io
import itertools
import json
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress
from rich.table import Column
from rich.text import Text

SECONDS_BETWEEN_LINES = 15.0
FEWEST_TO_ESTIMATE = 10
REMEMBERED = 256
STANDSTILL = 10.0


class Display:
    """Says things and shows progress, with an estimate of the time left.

    Arguments:
        console: where to.
        log: also told everything that is said, without markup.
        mode: `person`; `json`: an object a line, `{"event": "said", "text"}` or `{"event": "progress", "stage", "done", "total",
            "seconds_left", ...}`; `quiet`: nothing but the log.
    """

    def __init__(self, console: rich.console.Console, log: Callable[[str], None] | None = None, mode: str = "person"):
        self.console, self.log, self.mode = console, log, mode

    def say(self, message) -> None:
        """Prints a line or any rich renderable, and logs it."""
        if self.mode == "person":
            # Labels and paths may hold [brackets]: nothing that is said is markup.
            self.console.print(message, highlight=False, markup=False, soft_wrap=isinstance(message, str))
        if self.log is None and self.mode != "json":
            return
        plain = rich.console.Console(file=io.StringIO(), width=130)
        plain.print(message, highlight=False, markup=False, soft_wrap=isinstance(message, str))
        text = plain.file.getvalue().rstrip()
        if self.log is not None:
            self.log(text)
        if self.mode == "json":
            self.tell({"event": "said", "text": text})

    def tell(self, event: dict) -> None:
        """Prints an object on a line of its own."""
        self.console.file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self.console.file.flush()

    @contextlib.contextmanager
    def bar(self, title: str, total: int | None) -> Iterator[Callable[..., None]]:
        """Yields `update(completed, text="", total=None, details=None)` for a piece of work of `total` parts.

        `total` is None where it is not known yet. A work that goes on says first how much of it was done before.
        `details` is of a training: `{"epoch", "epochs", "losses": {name: value}, "speed": {name: value}}`.
        """
        if self.mode == "quiet":
            yield lambda completed, text="", total=None, details=None: None
        elif self.mode == "json":
            yield _Lines(self._progress, title, total)
        elif self.console.is_terminal:
            with _Bar(console=self.console) as progress:
                task = progress.add_task(title, total=total, text="", details=None, left=None)
                pace, whole = Pace(), total

                def update(completed, text="", total=None, details=None):
                    nonlocal whole
                    whole = whole if total is None else total
                    pace.note(completed)
                    left = pace.left(whole)
                    progress.update(task, completed=completed, total=whole, text=text, details=details, left=left)

                yield update
        else:
            yield _Lines(self._line, title, total)

    def _line(self, title, completed, total, left, text, details) -> None:
        estimate = f"{clock(left)} left" if left is not None else "starting"
        share = f" {completed / total:4.0%}, {estimate}" if total else f" {completed:,} done"
        parts = [text, *(_lines_of(details) if details else [])]
        self.say(f"{title}{share}  {'  '.join(part for part in parts if part)}".rstrip())

    def _progress(self, title, completed, total, left, text, details) -> None:
        event = {"event": "progress", "stage": title, "done": completed, "total": total}
        event |= {"seconds_left": None if left is None else round(left, 1)} | ({"text": text} if text else {})
        self.tell(event | ({} if details is None else {**details, "losses": _numbers(details["losses"])}))


class _Bar(rich.progress.Progress):
    """A bar, and for a training two lines below it: the losses, and how fast it goes."""

    def __init__(self, console: rich.console.Console):
        def whole(width: int) -> Column:
            return Column(no_wrap=True, min_width=width)

        # On a narrow terminal the text at the end is cut, never the estimate.
        super().__init__(
            rich.progress.TextColumn("{task.description}", markup=False, table_column=whole(9)),
            rich.progress.BarColumn(bar_width=16, table_column=whole(16)),
            rich.progress.TaskProgressColumn(table_column=whole(4)),
            rich.progress.TimeElapsedColumn(table_column=whole(7)),
            _TimeLeft(table_column=whole(7)),
            rich.progress.TextColumn("left", table_column=whole(4)),
            rich.progress.TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
            console=console,
            expand=True,
        )

    def get_renderables(self):
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields.get("details") and not task.finished:
                for line in _lines_of(task.fields["details"]):
                    yield Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis")


class _TimeLeft(rich.progress.ProgressColumn):
    """Our own estimate, beside the bar."""

    def render(self, task: rich.progress.Task) -> Text:
        left = 0.0 if task.finished else task.fields["left"]
        return Text("-:--" if left is None else clock(left), style="progress.remaining")


class Pace:
    """How long the rest of a work will take, by how long its parts took lately.

    A step of a new shape is compiled first and takes a hundred times as long as the others: by the speed of that minute a
    training of an hour would last for days. So the mean leaves out what took more than `STANDSTILL` times the median.
    Nor does it count what was done before the first note.
    """

    def __init__(self):
        self.durations = collections.deque(maxlen=REMEMBERED)
        """(seconds a part, parts), of the latest updates."""
        self.time, self.done, self.begun = time.monotonic(), 0, None

    def note(self, completed: int) -> None:
        """So many parts are done now."""
        if self.begun is None:
            self.begun = self.done = completed
        now, parts = time.monotonic(), completed - self.done
        if parts > 0:
            self.durations.append(((now - self.time) / parts, parts))
        self.time, self.done = now, completed

    def left(self, total: int | None) -> float | None:
        """Seconds; None where the end is not known, or too little has been seen."""
        if not total or not self.durations or self.done - self.begun < FEWEST_TO_ESTIMATE:
            return None
        most = STANDSTILL * self._median()
        usual = [(seconds, parts) for seconds, parts in self.durations if seconds <= most]
        mean = sum(seconds * parts for seconds, parts in usual) / sum(parts for _, parts in usual)
        return (total - self.done) * mean

    def _median(self) -> float:
        """Of the parts, not of the updates."""
        half = sum(parts for _, parts in self.durations) / 2
        ordered = sorted(self.durations)
        reached = itertools.accumulate(parts for _, parts in ordered)
        return next(seconds for (seconds, _), parts in zip(ordered, reached, strict=True) if parts >= half)


class _Lines:
    """The bar of a log file: at most a line in fifteen seconds."""

    def __init__(self, say: Callable[..., None], title: str, total: int | None):
        self.say, self.title, self.total = say, title, total
        self.last, self.pace = time.monotonic(), Pace()

    def __call__(self, completed: int, text: str = "", total: int | None = None, details: dict | None = None) -> None:
        self.total = total if total is not None else self.total
        self.pace.note(completed)
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES or not completed:
            return
        self.say(self.title, completed, self.total, self.pace.left(self.total), text, details)
        self.last = now


def _lines_of(details: dict) -> list[str]:
    """A training's losses by term, and how fast it goes and what it takes, in words."""
    losses = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in details["losses"].items())
    words = {
        "examples_per_second": "{:,.0f} examples/s",
        "tokens_per_second": "{:,.0f} tokens/s",
        "gigaflops": "{:,.0f} GFLOP/s",
        "memory_gb": "{:.1f} GB",
        "gpu_memory_gb": "{:.1f} GB on the GPU",
    }
    speed = "  ".join(words[name].format(value) for name, value in details["speed"].items() if name in words)
    return [line for line in (losses, speed) if line]


def _numbers(values: dict) -> dict:
    return {name: value for name, value in values.items() if value - value == 0.0}  # JSON has no NaN


def clock(seconds: float) -> str:
    """`0:42`, `12:05`, `1:02:03`."""
    minutes, rest = divmod(max(int(round(seconds)), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
