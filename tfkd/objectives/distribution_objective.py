"""The base of objectives over the distributions that answers are."""

from keras import ops

from tfkd.objectives.response_objective import ResponseObjective
from tfkd.objectives.text_mask import EXCLUDED
from tfkd.schedules import Schedule


class DistributionObjective(ResponseObjective):
    """Compares softmax distributions.

    A subclass writes `compare(student, teacher, labels)`, log-probabilities (B, ..., C) -> (B, ...).

    Arguments:
        temperature: T > 0, a number or a `Schedule` over the steps.
        weight: factor of this objective in the sum.
        over: what a distribution is over. `classes`: the last axis of logits (B, C) or (B, T, C) -> values (B,) or (B, T).
            `positions`: logits (B, T, S) are S distributions over the text's positions, padding excluded, such as the start
            and the end of an answer -> values (B,), their mean; labels are positions (B, S).
    """

    least_classes = 2

    def __init__(self, temperature: float | Schedule = 4.0, weight: float | Schedule = 1.0, over: str = "classes", **kwargs):
        super().__init__(temperature, weight, **kwargs)
        self.require("over", over, over in ("classes", "positions"), "classes or positions")
        self.over = over

    def check_answers(self, shape):
        if self.over == "classes":
            return super().check_answers(shape)
        self.require("over", self.over, len(shape) == 3, f"classes, for the logits have {len(shape)} axes and not (B, T, S)")

    def values(self, student, teacher, mask):
        """`logits` of both -> (B,) or (B, T)."""
        values = super().values(student, teacher, mask)
        return ops.mean(values, axis=-1) if self.over == "positions" else values

    def prepare(self, logits, mask):
        if self.over == "classes":
            return logits
        kept = ops.expand_dims(mask.positions_of(logits), -1)  # (B, T, 1)
        return ops.transpose(ops.where(kept, logits, EXCLUDED), (0, 2, 1))

    def divergence(self, student, teacher, labels):
        return self.compare(ops.log_softmax(student, axis=-1), ops.log_softmax(teacher, axis=-1), labels)

    def compare(self, student, teacher, labels):
        raise TypeError(f"{type(self).__name__} must define compare(student, teacher, labels)")

    def get_config(self):
        return {**super().get_config(), "over": self.over}
