"""What a training needs to go on, written now and then; its best epoch's weights, and its early end."""

import math
import os
import pathlib
import signal
import time

import keras
import numpy as np

from tfkd import stopping, training_state
from tfkd.errors import UserError
from tfkd.run_dir import remove

STEPS_BETWEEN_MEETINGS = 10
"""From one meeting of the workers on whether to end or to write to the next."""


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
            ours = self.best if self.team.chief else [np.zeros_like(variable.numpy()) for variable in _kept(model)]
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
        if done % STEPS_BETWEEN_MEETINGS:
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
            self.best = [np.asarray(variable.numpy()) for variable in _kept(self.model)]
        if self.patience is not None and epoch - self.state["best_epoch"] >= self.patience:
            self.state["stopped"] = True
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        if self.best is not None:
            # Not strict: of a checkpoint written before projections were kept, the student's come first.
            for variable, value in zip(_kept(self.model), self.best, strict=False):
                variable.assign(value)

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


def _kept(model: keras.Model) -> list:
    """What is kept of the best epoch: the student, and the projections of objectives that go with it into a next stage."""
    return [*model.student.weights, *(variable for objective in model.objectives for variable in objective.weights)]
