"""What happens around an epoch: a line of metrics, a checkpoint to go on from, the best weights kept."""

import json
import math
import os
import pathlib
import time

import keras

from tfkd.errors import UserError
from tfkd.run_dir import read_json, remove, whole, write_json


class MetricsLog(keras.callbacks.Callback):
    """Appends `{"role", "epoch", "step", "seconds", ...}` to a JSON-lines file, a line every `every` steps and one an epoch.

    Arguments:
        path: the file, shared by the roles of a run.
        role: `teacher`, `baseline` or `student`.
        steps: of an epoch.
        every: steps between lines.
        stage: of the student's training, where there are several; named in every line.
        epochs_before: of earlier stages. Epochs are counted through all of them, steps within one.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        role: str,
        steps: int,
        every: int = 50,
        stage: str | None = None,
        epochs_before: int = 0,
    ):
        super().__init__()
        self.path, self.steps, self.every = pathlib.Path(path), steps, every
        self.who = {"role": role} if stage is None else {"role": role, "stage": stage}
        self.epochs_before, self.epoch, self.begin = epochs_before, 0, time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.epoch_begin = epoch, time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % self.every == 0 and batch + 1 < self.steps:
            self._write(batch + 1, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._write(self.steps, logs)

    def _write(self, batch, logs):
        line = {
            **self.who,
            "epoch": self.epochs_before + self.epoch + 1,
            "step": self.epoch * self.steps + batch,
            "seconds": round(time.monotonic() - self.begin, 3),
            "learning_rate": float(self.model.optimizer.learning_rate),
            "steps_per_second": round(batch / (time.monotonic() - self.epoch_begin), 3),
        }
        # JSON has no NaN: a value that is not a number is left out, and the gap shows.
        line |= {name: float(value) for name, value in (logs or {}).items() if math.isfinite(float(value))}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class ProgressBar(keras.callbacks.Callback):
    """Tells a display's `update(completed, text)` where the training is.

    Arguments:
        update: of `tfkd.progress.Display.bar`.
        steps: of an epoch.
        epochs: planned.
    """

    def __init__(self, update, steps: int, epochs: int):
        super().__init__()
        self.update, self.steps, self.epochs, self.epoch, self.validation = update, steps, epochs, 0, ""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        shown = "  ".join(f"{name} {float(value):.4f}" for name, value in (logs or {}).items())
        self.update(self.epoch * self.steps + batch + 1, f"epoch {self.epoch + 1}/{self.epochs}  {shown}{self.validation}")

    def on_epoch_end(self, epoch, logs=None):
        name = next((name for name in logs or {} if name.startswith("val_") and name != "val_loss"), None)
        if name is not None:
            self.validation = f"  validation {logs[name]:.4f}"


class Checkpoint(keras.callbacks.Callback):
    """Writes after each epoch all that is needed to go on, keeps the best epoch's weights, and stops early.

    Arguments:
        folder: `checkpoints/ROLE` of a run.
        monitor: the validation metric, larger is better; None keeps the last epoch instead.
        patience: epochs without a better value before training stops; None never stops.
    """

    def __init__(self, folder: str | os.PathLike, monitor: str | None = "val_accuracy", patience: int | None = None):
        super().__init__()
        self.folder, self.monitor, self.patience = pathlib.Path(folder), monitor, patience
        self.state = {"epochs": 0, "best": None, "best_epoch": 0, "stopped": False}
        self.best = None

    def resume(self, model: keras.Model) -> int:
        """Restores `model`, its optimizer included, from the newest whole checkpoint; returns the epochs already done."""
        found = self._saved()
        if not found:
            return 0
        self.state = read_json(found[-1] / "state.json")
        model.optimizer.build(model.trainable_variables)
        model.load_weights(found[-1] / "training.weights.h5")
        student = model.student
        if self.monitor is not None:
            last = student.get_weights()
            student.load_weights(found[-1] / "best.weights.h5")
            self.best = student.get_weights()
            student.set_weights(last)
        for generator, value in zip(_random_states(model), self.state["random"], strict=True):
            generator.assign(value)
        return self.state["epochs"]

    def on_epoch_end(self, epoch, logs=None):
        if not math.isfinite(float(logs["loss"])):
            raise UserError(f"{self.folder.name}: the loss is no number after epoch {epoch + 1}; lower the learning rate")
        self.state["epochs"] = epoch + 1
        if self.monitor is not None:
            self._choose(epoch + 1, float(logs[self.monitor]))
        self._write()

    def _choose(self, epoch: int, value: float) -> None:
        if self.best is None or value > self.state["best"]:
            self.state |= {"best": value, "best_epoch": epoch}
            self.best = self.model.student.get_weights()
        if self.patience is not None and epoch - self.state["best_epoch"] >= self.patience:
            self.state["stopped"] = True
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        if self.best is not None:
            self.model.student.set_weights(self.best)

    def _write(self):
        older = self._saved()
        with whole(self.folder / f"epoch-{self.state['epochs']:04}") as folder:
            folder.mkdir()
            self.model.save_weights(folder / "training.weights.h5")
            student = self.model.student
            if self.best is not None:
                last = student.get_weights()
                student.set_weights(self.best)
                student.save_weights(folder / "best.weights.h5")
                student.set_weights(last)
            self.state["random"] = [generator.numpy().tolist() for generator in _random_states(self.model)]
            write_json(folder / "state.json", self.state)
        for path in older:
            remove(path)

    def _saved(self) -> list[pathlib.Path]:
        return sorted(path for path in self.folder.glob("epoch-????") if path.is_dir())


def reseed(model: keras.Model, seed: int) -> None:
    """Gives every dropout generator a state that follows from `seed` alone, whatever was drawn before."""
    for number, generator in enumerate(_random_states(model)):
        generator.assign([seed, number])


def _random_states(model: keras.Model) -> list:
    """The states of a model's dropout generators, which Keras does not save with the weights."""
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]
