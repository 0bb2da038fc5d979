"""What every objective is: values per example or per position, and how they become one number."""

import keras
from keras import ops


class Objective(keras.layers.Layer):
    """Compares what the student and the teacher hold under some names.

    A subclass sets `default_name`, which logs and the table of objectives know it by, `student_names` and
    `teacher_names`, the inner tensors it asks for, and writes
    `call(student, teacher)`: two dicts of those tensors -> float32 values, (B,) for one a text or (B, T) for one a
    position. It never reduces: masks, sample weights and replicas are handled once, where the values are averaged.

    Arguments:
        weight: factor of this objective in the sum.
    """

    default_name: str
    student_names: tuple[str, ...] = ("logits",)
    teacher_names: tuple[str, ...] = ("logits",)

    def __init__(self, weight: float = 1.0, **kwargs):
        # Divergences of half-precision numbers are noise: objectives compute in float32 whatever the models do.
        super().__init__(**{"dtype": "float32", "name": self.default_name, **kwargs})
        if not weight >= 0.0:
            raise ValueError(f"{self.name}: weight = {weight}: must be at least 0")
        self.weight = weight

    def call(self, student, teacher):
        raise TypeError(f"{type(self).__name__} must define call(student, teacher)")

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}


class ResponseObjective(Objective):
    """Compares output distributions softened by a temperature; the one place of T^2.

    A subclass writes `divergence(student, teacher)`, log-probabilities (B, ..., C) -> (B, ...). Softened gradients
    shrink with 1 / T^2; the factor T^2 keeps the balance with the labels as T changes (Hinton et al. 2015, section 2).

    Arguments:
        temperature: T > 0.
        weight: factor of this objective in the sum.
    """

    def __init__(self, temperature: float = 4.0, weight: float = 1.0, **kwargs):
        super().__init__(weight, **kwargs)
        if not temperature > 0.0:
            raise ValueError(f"{self.name}: temperature = {temperature}: must be above 0")
        self.temperature = temperature

    def call(self, student, teacher):
        """`logits` (B, ..., C) of both -> (B, ...)."""
        soft_student = ops.log_softmax(student["logits"] / self.temperature, axis=-1)
        soft_teacher = ops.log_softmax(teacher["logits"] / self.temperature, axis=-1)
        return self.divergence(student=soft_student, teacher=soft_teacher) * self.temperature**2

    def divergence(self, student, teacher):
        raise TypeError(f"{type(self).__name__} must define divergence(student, teacher)")

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}
