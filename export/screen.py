"""What a person sees of an export."""

import contextlib
import io
import os
import pathlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = ("format", "variant", "size", "difference", "agreement", "metric", "p50/p95 ms", "passed")  # 80 wide in all


class Screen:
    """Says what is being made and how it came out, on a copy of stdout that `quiet` does not redirect.

    Arguments:
        log: named where something went wrong.
    """

    def __init__(self, log: pathlib.Path):
        self.log = log
        try:
            self.stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding=sys.stdout.encoding)
        except io.UnsupportedOperation:  # captured: not a file of the system, so not redirected either
            self.stream = sys.stdout
        self.console = Console(file=self.stream, width=None if self.stream.isatty() else 120)

    def __enter__(self) -> "Screen":
        sys.stdout.flush()
        return self

    def __exit__(self, *exception) -> None:
        self.stream.flush()
        if self.stream is not sys.stdout:
            self.stream.close()

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        """A spinner, on a terminal."""
        with self.console.status(Text(f"export: {what}")):
            yield

    def removed(self, names: list[str]) -> None:
        for name in names:
            self._line(Text(f"removed {name}: of another student, or changed since it was proven", "yellow"))

    def left_out(self, examples: str | None) -> None:
        if examples is not None:
            self._line(Text(f"examples.jsonl: {examples}", "yellow"))

    def done(self, entry: dict) -> None:
        title = f"{entry['format']} {entry['variant']}"
        if entry["passed"]:
            self._line(Text(f"{title}: passed, {entry['path']}, {size(entry['bytes'])}, {entry['seconds']:.1f} s"))
            if entry["note"]:
                self._line(Text(f"  {entry['note']}", "yellow"))
        else:
            self._line(Text(f"{title}: FAILED, not kept: {entry['reason']} (see {self.log})", "bold red"))

    def table(self, entries: list[dict]) -> None:
        if not entries:
            self._line(Text("nothing to export: export.formats is empty"))
            return
        metric = next((name for entry in entries for name in entry["metrics"] or ()), "metric")
        grid = _grid(_title(entries), [metric if name == "metric" else name for name in COLUMNS], 2)
        for entry in entries:
            outcome = Text("yes", "green") if entry["passed"] else Text("NO", "bold red")
            grid.add_row(entry["format"], entry["variant"], *_numbers(entry), outcome)
        self.console.print(grid)

    def demo(self, folder: pathlib.Path | None) -> None:
        if folder is None:
            self._line(Text("no demo: no mediapipe file passed", "bold red"))
            return
        self._line(Text(f"wrote {folder}; look at it: python -m http.server --bind 127.0.0.1 --directory {folder}"))

    def benchmark(self, result: dict) -> None:
        """What `benchmark.json` holds: a row an artifact and number of threads, times as p50/p95."""
        about = f"{result['examples']} test examples, {result['rounds']} rounds, each in a process of its own"
        columns = ["artifact", "size", result["metric"], "threads", "1 text, ms", "32 texts, ms", "texts/s", "peak memory"]
        grid = _grid(f"benchmark: {about}", columns, 1)
        for row in result["rows"]:
            title = " ".join(str(part) for part in (row["format"], row["variant"], row["length"]) if part)
            cells = [title, size(row["bytes"]), _metric(row["metrics"])]
            for count in result["threads"]:
                grid.add_row(*cells, str(count), *_timed(row["threads"].get(str(count))))
                cells = ["", "", ""]
        self.console.print(grid)
        for row in result["rows"]:
            if row["reason"]:
                self._line(Text(f"{row['format']} {row['variant']}: FAILED: {row['reason']} (see {self.log})", "bold red"))

    def reported(self, page: pathlib.Path, reason: str | None) -> None:
        """Whether the run's page was written anew."""
        self._line(Text(f"wrote {page}") if reason is None else Text(f"{page} is as it was: {reason}", "yellow"))

    def _line(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)


def _grid(title: str, columns: list[str], left: int) -> Table:
    """An empty table; its first `left` columns hold words, the others numbers."""
    grid = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for position, name in enumerate(columns):
        grid.add_column(name, justify="left" if position < left else "right")
    return grid


def _timed(times: dict | None) -> list[str]:
    if times is None:
        return ["-", "-", "-", "-"]
    one, many = (f"{times[key]['p50']:.2f}/{times[key]['p95']:.2f}" for key in ("batch_1", "batch_32"))
    return [one, many, f"{times['texts_per_second']:,.0f}", size(times["peak_bytes"])]


def _metric(metrics: dict | None) -> str:
    """The one figure of `{name: value}`: shares of right answers as percent."""
    for name, value in (metrics or {}).items():
        return f"{value:.1%}" if name.endswith("accuracy") else f"{value:.3f}"
    return "-"


def _title(entries: list[dict]) -> str:
    examples = max(entry["examples"] or 0 for entry in entries)  # a file that could not be asked has none
    return f"compared with the Keras student on {examples} test examples and edge texts"


def _numbers(entry: dict) -> list[str]:
    """Size, largest difference, agreement, metric and latency; a dash for what was not reached."""
    latency = entry["latency_ms"]
    return [
        size(entry["bytes"]) if entry["bytes"] is not None else "-",
        f"{entry['max_abs_difference']:.2g}" if entry["max_abs_difference"] is not None else "-",
        f"{entry['agreement']:.1%}" if entry["agreement"] is not None else "-",
        _metric(entry["metrics"]),
        f"{latency['p50']:.2f}/{latency['p95']:.2f}" if latency else "-",
    ]


def size(count: int) -> str:
    """Bytes for people: `812 kB`, `4.4 MB`."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"
