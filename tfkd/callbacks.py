"""What happens around steps and epochs: a line of metrics, a checkpoint to go on from, the best weights kept, the end."""

import csv
import io
import json
import math
import os
import pathlib
import signal
import time
from collections.abc import Callable

import keras
import numpy as np

from tfkd import stopping, training_state
from tfkd.errors import UserError
from tfkd.run_dir import remove, write_text

SECONDS_BETWEEN_PICTURES = 0.1
STEPS_BETWEEN_LOOKS = 10
"""From one look at what a model says of bad numbers to the next: on a GPU a look waits for the step."""


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


class BadStepsLimit(keras.callbacks.Callback):
    """Tells of steps that were skipped because their numbers were not finite, and stops a training that has too many.

    Arguments:
        who: is trained, for the message.
        steps: of an epoch.
        most: how many may be skipped; where a whole epoch is, that is too many in any case.
        rows: `(epoch, step)`, both from 0 -> what a person needs to find the rows of that batch.
        tell: says a line.
    """

    def __init__(self, who: str, steps: int, most: int, rows: Callable[[int, int], str], tell: Callable[[str], None]):
        super().__init__()
        self.who, self.steps, self.most, self.rows, self.tell = who, steps, most, rows, tell
        self.known = self.before = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.known = self.before = int(self.model.bad_steps.count.numpy())

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % STEPS_BETWEEN_LOOKS == 0:
            self._look()

    def on_epoch_end(self, epoch, logs=None):
        self._look(whole_epoch=True)

    def _look(self, whole_epoch: bool = False) -> None:
        bad = self.model.bad_steps
        count = int(bad.count.numpy())
        if count == self.known:
            return
        self.known = count
        last = int(bad.last.numpy())
        epoch, step = divmod(last, self.steps)
        what = f"{' and '.join(bad.wrong())} at step {last + 1:,} (epoch {epoch + 1}), {self.rows(epoch, step)}"
        if count <= self.most and not (whole_epoch and count - self.before >= self.steps):
            self.tell(f"{self.who.capitalize()}: {count} of at most {self.most} bad steps skipped: {what}")
            return
        raise UserError(
            f"{self.who}: {count} steps without finite numbers, the last: {what}; look at these rows, lower learning_rate, or "
            "use strategy.precision: float32. The weights stayed as they were, and the last checkpoint stands"
        )


class ProgressBar(keras.callbacks.Callback):
    """Tells a display's `update(completed, text, details=...)` where the training is.

    Arguments:
        update: of `tfkd.progress.Display.bar`.
        steps: of an epoch.
        epochs: planned.
        speed: what it says is shown too.
    """

    def __init__(self, update, steps: int, epochs: int, speed: Callable[[], dict] | None = None):
        super().__init__()
        self.update, self.steps, self.epochs, self.epoch, self.validation = update, steps, epochs, 0, {}
        self.speed, self.shown = speed or dict, 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        if now - self.shown < SECONDS_BETWEEN_PICTURES and batch + 1 < self.steps:
            return  # on a GPU a number waits for its step
        self.shown = now
        losses = {name: float(value) for name, value in (logs or {}).items()} | self.validation
        self.update(
            self.epoch * self.steps + min(batch + 1, self.steps),
            f"epoch {self.epoch + 1}/{self.epochs}",
            details={"epoch": self.epoch + 1, "epochs": self.epochs, "losses": losses, "speed": self.speed()},
        )

    def on_epoch_end(self, epoch, logs=None):
        name = next((name for name in logs or {} if name.startswith("val_") and name != "val_loss"), None)
        if name is not None:
            self.validation = {name: float(logs[name])}


class Checkpoint(keras.callbacks.Callback):
    """Writes all that is needed to go on to the same bits, keeps the best epoch's weights, stops early, or when told to.

    A checkpoint is written after each epoch, every so many steps or minutes, and when a signal asks the program to end
    (`tfkd.stopping`). The one before stays, and is gone on from where the newest is damaged.

    Arguments:
        folder: `checkpoints/ROLE` of a run.
        steps: of an epoch.
        monitor: the validation metric, larger is better; None keeps the last epoch instead.
        patience: epochs without a better value before training stops; None never stops.
        every: steps from one checkpoint to the next; None: as the minutes have it.
        minutes: from one checkpoint to the next; None: as the steps have it.
        team: a `tfkd.multi_worker.Team` of several workers, who must all do the same at the same step.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        steps: int,
        monitor: str | None = "val_accuracy",
        patience: int | None = None,
        every: int | None = None,
        minutes: float | None = None,
        team=None,
    ):
        super().__init__()
        self.folder, self.steps, self.monitor, self.patience = pathlib.Path(folder), steps, monitor, patience
        self.every, self.minutes, self.team = every, minutes, team if team is not None and team.count > 1 else None
        self.state = {"epochs": 0, "step": 0, "seconds": 0.0, "best": None, "best_epoch": 0, "stopped": False}
        self.best = self.averages = self.written = None
        self.begin = self.last = time.monotonic()

    def resume(self, model: keras.Model) -> list[str] | None:
        """Restores `model`, its optimizer and random states included, from the newest sound checkpoint.

        Returns:
            Names of checkpoints that were damaged; None where there is none to go on from.
        """
        found = training_state.load(self.folder)
        if found is None:
            remove(self.folder)
            return None
        about, arrays, damaged = found
        self.state = {name: about[name] for name in self.state}
        model.optimizer.build(model.trainable_variables)
        training_state.assign(model, arrays)
        self.averages, self.best = arrays["averages"] if self.state["step"] else None, arrays.get("best")
        self.begin -= self.state["seconds"]
        self.written = self._position()
        return damaged

    def share(self, model: keras.Model) -> None:
        """Gives all workers what the chief went on from."""
        if self.team is None:
            return
        averages = None if self.averages is None else [(value.tolist(), str(value.dtype)) for value in self.averages]
        said = self.team.told([self.state, averages, self.best is not None])
        self.state, averages, best = said
        if not self._position():
            return  # all begin with the same seed
        self.averages = None if averages is None else [np.asarray(value, kind) for value, kind in averages]
        self.team.spread([*model.variables, *model.optimizer.variables])
        if best:
            ours = self.best if self.team.chief else [np.zeros_like(value) for value in model.student.get_weights()]
            self.best = [self.team.total(value) for value in ours]
        self.written = self._position()

    def on_epoch_begin(self, epoch, logs=None):
        if not self.state["step"]:
            return
        # In the middle of an epoch: Keras counts from its beginning, so the steps that were done are passed over.
        training_state.assign(self.model, {"averages": self.averages}, ("averages",))
        self.averages = None
        step, averages, left = self.model.train_function, self.model.get_metrics_result(), self.state["step"]

        def done_before(iterator):
            nonlocal left
            left -= self.model.steps_per_execution
            if left <= 0:
                self.model.train_function = step
            return averages

        self.model.train_function = done_before

    def on_train_batch_end(self, batch, logs=None):
        done = min(batch + 1, self.steps)
        if done <= self.state["step"]:
            return  # before the interruption
        self.state["step"] = done
        if done == self.steps:
            return  # the epoch's end is next
        leave, write = self._wanted(done)
        if leave:
            self._leave()
        elif write:
            self._write()

    def _wanted(self, done: int) -> tuple[bool, bool]:
        """Whether to end, and whether to write a checkpoint; workers meet on it now and then, and one is enough to end all."""
        by_steps = self.every is not None and self._position() % self.every == 0
        leave, write = stopping.requested() is not None, by_steps or self._late()
        if self.team is None:
            return leave, write
        if done % STEPS_BETWEEN_LOOKS:
            return False, by_steps
        leaving, late = self.team.total(np.asarray([leave, write and self.team.chief], "int64"))
        return leaving > 0, by_steps or late > 0

    def on_test_begin(self, logs=None):
        # Keras begins new averages for the validation: those of the epoch are in nobody's hands then.
        self.averages = training_state.gather(self.model)["averages"]

    def on_test_batch_end(self, batch, logs=None):
        if stopping.requested() is not None and self.team is None:
            self._leave()

    def on_epoch_end(self, epoch, logs=None):
        self.averages = None
        self.state |= {"epochs": epoch + 1, "step": 0}
        if self.monitor is not None:
            self._choose(epoch + 1, float(logs[self.monitor]))
        self._write()
        if self._wanted(0)[0]:
            self._leave()

    def _choose(self, epoch: int, value: float) -> None:
        if not math.isfinite(value):
            raise UserError(f"{self.folder.name}: {self.monitor} is {value} after epoch {epoch}; lower the learning rate")
        if self.best is None or value > self.state["best"]:
            self.state |= {"best": value, "best_epoch": epoch}
            self.best = self.model.student.get_weights()
        if self.patience is not None and epoch - self.state["best_epoch"] >= self.patience:
            self.state["stopped"] = True
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        if self.best is not None:
            self.model.student.set_weights(self.best)

    def _position(self) -> int:
        return self.state["epochs"] * self.steps + self.state["step"]

    def _late(self) -> bool:
        return self.minutes is not None and time.monotonic() - self.last >= 60.0 * self.minutes

    def _leave(self) -> None:
        if self.written != self._position():
            self._write()
        raise stopping.Stopped(stopping.requested() or signal.SIGTERM, saved=True)  # another worker may have been told

    def _write(self) -> None:
        arrays = training_state.gather(self.model)
        if self.averages is not None:
            arrays["averages"] = self.averages
        if self.best is not None:
            arrays["best"] = self.best
        self.state["seconds"] = round(time.monotonic() - self.begin, 3)
        training_state.save(self.folder, self._position(), self.state, arrays)
        self.written, self.last = self._position(), time.monotonic()


def reseed(model: keras.Model, seed: int) -> None:
    """Gives every dropout generator a state that follows from `seed` alone, whatever was drawn before."""
    for number, generator in enumerate(_random_states(model)):
        generator.assign([seed, number])


def _random_states(model: keras.Model) -> list:
    """The states of a model's dropout generators, which Keras does not save with the weights."""
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]
