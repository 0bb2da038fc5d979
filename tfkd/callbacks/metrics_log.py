"""Lines of metrics, for programs and for spreadsheets."""

import csv
import io
import json
import math
import os
import pathlib
import time
from collections.abc import Callable

import keras

from tfkd.run_dir import write_text


class MetricsLog(keras.callbacks.Callback):
    """Appends `{"role", "epoch", "step", "seconds", ...}` to a JSON-lines file, a line every `every` steps and one an epoch.

    Arguments:
        path: the file, shared by the roles of a run.
        role: `teacher`, `baseline` or `student`.
        steps: of an epoch.
        every: steps between lines.
        stage: of the student's training, where there are several; named in every line.
        epochs_before: of earlier stages. Epochs are counted through all of them, steps within one.
        table: a CSV file to write the same to after each epoch.
        speed: says how fast it goes, such as `{"examples_per_second": 412.3}`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        role: str,
        steps: int,
        every: int = 50,
        stage: str | None = None,
        epochs_before: int = 0,
        table: str | os.PathLike | None = None,
        speed: Callable[[], dict] | None = None,
    ):
        super().__init__()
        self.path, self.table, self.steps, self.every = pathlib.Path(path), table, steps, every
        self.who = {"role": role} if stage is None else {"role": role, "stage": stage}
        self.speed = speed or dict
        self.epochs_before, self.epoch, self.begin, self.skipped = epochs_before, 0, time.monotonic(), 0

    def resume(self, epochs: int, step: int, seconds: float = 0.0) -> None:
        """Takes back what was written after `step` steps of the epoch that follows `epochs` whole ones."""
        self.skipped, self.begin = step, time.monotonic() - seconds
        if self.path.exists():
            lines = [line for line in self._lines() if self._stays(line, epochs * self.steps, step)]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def _stays(self, line: dict, finished: int, step: int) -> bool:
        if {name: line.get(name) for name in ("role", "stage") if name in line} != self.who:
            return True
        ends_an_epoch = line["step"] % self.steps == 0
        return line["step"] <= finished or (line["step"] <= finished + step and not ends_an_epoch)

    def _lines(self) -> list[dict]:
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # a process was killed in the middle of it
                continue
        return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.epoch_begin, self.first, self.skipped = epoch, time.monotonic(), self.skipped, 0

    def on_train_batch_end(self, batch, logs=None):
        if batch >= self.first and (batch + 1) % self.every == 0 and batch + 1 < self.steps:
            self._write(batch + 1, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._write(self.steps, logs)
        if self.table is not None:
            write_table(self.table, self._lines())

    def _write(self, batch, logs):
        line = {
            **self.who,
            "epoch": self.epochs_before + self.epoch + 1,
            "step": self.epoch * self.steps + batch,
            "seconds": round(time.monotonic() - self.begin, 3),
            "learning_rate": float(self.model.optimizer.learning_rate),
            "steps_per_second": round((batch - self.first) / (time.monotonic() - self.epoch_begin), 3),
            **self.speed(),
        }
        # JSON has no NaN: a value that is not a number is left out, and the gap shows.
        line |= {name: float(value) for name, value in (logs or {}).items() if math.isfinite(float(value))}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def write_table(path: str | os.PathLike, lines: list[dict]) -> None:
    """Writes lines of metrics as CSV: a column a name, in the order in which they first came."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    write_text(path, text.getvalue())
