"""The base of objectives over what the models answer."""

import math

from tfkd.objectives.objective import Objective
from tfkd.schedules import Schedule, bounds, value_at


class ResponseObjective(Objective):
    """Compares answers softened by a temperature; the one place of T^2.

    A subclass writes `divergence(student, teacher, labels)`, logits over T (B, ..., C) -> (B, ...). Softened gradients
    shrink with 1 / T^2; the factor T^2 keeps the balance with the labels as T changes (Hinton et al. 2015, section 2).

    Arguments:
        temperature: T > 0, a number or a `Schedule` over the steps.
        weight: factor of this objective in the sum.

    Raises:
        ValueError: at build, or at the first batch where a model can say only then: the two do not answer with equally many
            classes, or with too few for this objective.
    """

    least_classes = 1

    def __init__(self, temperature: float | Schedule = 4.0, weight: float | Schedule = 1.0, **kwargs):
        super().__init__(weight, **kwargs)
        self.require("temperature", temperature, all(0.0 < end < math.inf for end in bounds(temperature)), "above 0")
        self.temperature = temperature
        if isinstance(temperature, Schedule):
            self.student_names = (*self.student_names, "step")

    def build(self, student_shape, teacher_shape):
        own, other = student_shape["logits"], teacher_shape["logits"]
        if own is not None and other is not None:  # None: a model that can say only once it has answered
            self._check_sizes(own, other)
            self.check_answers(own)
        self.built = True

    def _check_sizes(self, own, other):
        """Answers of unlike sizes are refused, for an arithmetic that repeats the smaller one would go on with them."""
        if len(own) != len(other) or (None not in (own[-1], other[-1]) and own[-1] != other[-1]):
            raise ValueError(
                f"{self.name}: the student answers with logits {tuple(own)}, the teacher with {tuple(other)}: they need "
                "heads of the same size"
            )

    def check_answers(self, shape):
        """Raises `ValueError` for logits of a shape that means nothing here."""
        if shape[-1] is not None and shape[-1] < self.least_classes:
            raise ValueError(
                f"{self.name}: it is always 0 with fewer than {self.least_classes} classes; these have {shape[-1]}: use "
                + ("logits_mse, as for any regression" if shape[-1] == 1 else "kl_divergence")
            )

    def values(self, student, teacher, mask):
        """`logits` of both -> (B,) or (B, T)."""
        self._check_sizes(student["logits"].shape, teacher["logits"].shape)
        temperature = value_at(self.temperature, student.get("step"))
        own, other = (self.prepare(tensors["logits"], mask) / temperature for tensors in (student, teacher))
        return self.divergence(own, other, student.get("labels")) * temperature**2

    def prepare(self, logits, mask):
        """The logits with their classes last."""
        return logits

    def divergence(self, student, teacher, labels):
        raise TypeError(f"{type(self).__name__} must define divergence(student, teacher, labels)")

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}
