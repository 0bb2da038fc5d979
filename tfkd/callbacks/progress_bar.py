"""Where a training is, for whoever watches."""

import time
from collections.abc import Callable

import keras

SECONDS_BETWEEN_PICTURES = 0.1


class ProgressBar(keras.callbacks.Callback):
    """Tells a display's `update(completed, text, details=...)` where the training is.

    Arguments:
        update: of `tfkd.progress.Display.bar`.
        steps: of an epoch.
        epochs: planned.
        begun: steps of all epochs that were done before; those of the first epoch are passed over, and not shown again.
        speed: what it says is shown too.
    """

    def __init__(self, update, steps: int, epochs: int, begun: int = 0, speed: Callable[[], dict] | None = None):
        super().__init__()
        self.update, self.steps, self.epochs, self.epoch, self.validation = update, steps, epochs, 0, {}
        self.begun, self.speed, self.shown = begun, speed or dict, 0.0

    def on_train_begin(self, logs=None):
        self.update(self.begun)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        now, done = time.monotonic(), self.epoch * self.steps + min(batch + 1, self.steps)
        if done <= self.begun:
            return
        if now - self.shown < SECONDS_BETWEEN_PICTURES and batch + 1 < self.steps:
            return  # on a GPU a number waits for its step
        self.shown = now
        losses = {name: float(value) for name, value in (logs or {}).items()} | self.validation
        self.update(
            done,
            f"epoch {self.epoch + 1}/{self.epochs}",
            details={"epoch": self.epoch + 1, "epochs": self.epochs, "losses": losses, "speed": self.speed()},
        )

    def on_epoch_end(self, epoch, logs=None):
        name = next((name for name in logs or {} if name.startswith("val_") and name != "val_loss"), None)
        if name is not None:
            self.validation = {name: float(logs[name])}
