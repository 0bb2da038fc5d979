"""The end of a training of bad numbers."""

from collections.abc import Callable

import keras

from tfkd.errors import UserError

STEPS_BETWEEN_LOOKS = 10
"""From one look at what a model says of bad numbers to the next: on a GPU a look waits for the step."""


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
