"""The response of the teacher as it stands, before any softmax."""

import math

import keras
from keras import ops

from tfkd.objectives.response_objective import ResponseObjective


@keras.saving.register_keras_serializable(package="tfkd")
class LogitsMSE(ResponseObjective):
    """(1 / C) sum_c ((z_c - v_c) / s)^2 of the student's logits z and the teacher's v.

    The one response objective of a regression, where C = 1. A temperature would cancel: T^2 (z / T - v / T)^2.

    Arguments:
        weight: factor of this objective in the sum.
        deviation: s > 0, the unit: the targets' standard deviation where logits are in the data's units, so that the loss
            means the same for ratings and for prices. Known by the task.

    References:
        Ba and Caruana 2013, Do Deep Nets Really Need to be Deep?, arXiv:1312.6184, eq. 1 (there a sum, here a mean over C).
    """

    default_name = "logits_mse"

    def __init__(self, weight: float = 1.0, deviation: float = 1.0, **kwargs):
        super().__init__(temperature=1.0, weight=weight, **kwargs)
        self.require("deviation", deviation, 0.0 < deviation < math.inf, "above 0")
        self.deviation = float(deviation)

    def divergence(self, student, teacher, labels):
        """Logits (B, ..., C) -> (B, ...)."""
        return ops.mean(ops.square((student - teacher) / self.deviation), axis=-1)

    def get_config(self):
        config = {**super().get_config(), "deviation": self.deviation}
        return {name: value for name, value in config.items() if name != "temperature"}
