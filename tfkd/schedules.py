"""Numbers that change while a training goes on: temperatures and the weights of losses."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfkd")
class Schedule:
    """From `start` at the first step to `end` at the last one; of one that changes by epoch, in the first and in the last.

    linear: start + (end - start) * t; cosine: end + (start - end) * (1 + cos(pi t)) / 2, with t the share of the training
    that is done, 0 to 1 (Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5, without restarts).

    Arguments:
        start, end: values.
        steps: of the whole training.
        shape: `linear` or `cosine`.
        every: steps for which a value holds: 1, or those of an epoch for a value that changes by epoch. Where `steps` are no
            more than that, there is one value, `start`.
    """

    def __init__(self, start: float, end: float, steps: int, shape: str = "linear", every: int = 1):
        if shape not in ("linear", "cosine"):
            raise ValueError(f"shape = {shape!r}: must be linear or cosine")
        if steps < 1 or every < 1:
            raise ValueError(f"steps = {steps}, every = {every}: must be at least 1")
        self.start, self.end, self.steps, self.shape, self.every = start, end, steps, shape, every

    def __call__(self, step):
        """The value at a step, counted from 0: a float32 scalar. After the last one it stays at `end`."""
        last = max((self.steps - 1) // self.every, 1)  # the last step, or the last epoch
        # In whole numbers: compilers make x / 41 of floats x * (1 / 41), and 41 * (1 / 41) is below 1. int64, which GPUs divide.
        passed = ops.minimum(ops.cast(step, "int64") // self.every, last)
        share = ops.cast(passed, "float32") / last
        if self.shape == "cosine":
            share = (1.0 - ops.cos(math.pi * share)) / 2.0
        return self.start + (self.end - self.start) * share

    def __repr__(self):
        return f"{self.start:g} to {self.end:g}"

    def get_config(self):
        return {"start": self.start, "end": self.end, "steps": self.steps, "shape": self.shape, "every": self.every}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def value_at(value: float | Schedule, step):
    """A number as it is, or what a schedule says at `step`."""
    return value(step) if isinstance(value, Schedule) else value


class ScheduledValue(keras.metrics.Mean):
    """What a schedule said at the last step: its average since the epoch began would be another curve."""

    def update_state(self, value):
        self.reset_state()
        return super().update_state(value)


def bounds(value: float | Schedule) -> tuple[float, float]:
    """The smallest and the largest number that a value takes."""
    ends = (value.start, value.end) if isinstance(value, Schedule) else (value, value)
    return min(ends), max(ends)
