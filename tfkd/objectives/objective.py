"""What every objective is: values per example or per position, and how they become one number."""

import math

import keras

from tfkd.objectives.text_mask import TextMask
from tfkd.schedules import Schedule, bounds

FROM_BATCH = ("padding_mask", "example_weight", "labels", "step")
"""What an objective may ask for, in its `student_names`, that no model holds: the batch and the optimizer do.

    padding_mask    (B, T)  int32, 1 where there is text
    example_weight  (B,)    float32, 0 for the rows that fill up an uneven last batch
    labels          (B,) or (B, T)  as the data give them
    step            ()      float32, the optimizer's steps so far
"""


class Objective(keras.layers.Layer):
    """Compares what the student and the teacher hold under some names.

    A subclass sets `default_name`, which logs and the table of objectives know it by, `student_names` and
    `teacher_names`, the inner tensors it asks for, and writes
    `values(student, teacher, mask)`: two dicts of those tensors -> float32 values, (B,) for one a text or (B, T) for one a
    position. It never reduces: sample weights and replicas are handled once, where the values are averaged. Padding is
    handled once, here: `values` is given tensors that hold 0 there, and what it answers there becomes 0.

    Names of `FROM_BATCH` do not come from a model, but stand among the student's.

    Arguments:
        weight: factor of this objective in the sum, a number or a `Schedule`; whoever sums applies it.

    Attributes:
        optional_names: names from the batch that are used where the batch has them, beside those asked for.
        default_layers: what `layer_pairs` is to be asked for where nobody says which layers; None for no layers.
    """

    default_name: str
    student_names: tuple[str, ...] = ("logits",)
    teacher_names: tuple[str, ...] = ("logits",)
    optional_names: tuple[str, ...] = ("padding_mask", "example_weight")
    default_layers: str | tuple | None = None

    def __init__(self, weight: float | Schedule = 1.0, **kwargs):
        # Divergences of half-precision numbers are noise: objectives compute in float32 whatever the models do.
        super().__init__(**{"dtype": "float32", "name": self.default_name, **kwargs})
        self.require("weight", weight, all(0.0 <= end < math.inf for end in bounds(weight)), "at least 0")
        self.weight = weight

    @property
    def needs_labels(self) -> bool:
        """Whether it reads the batch's labels."""
        return "labels" in self.student_names

    def build(self, student_shape, teacher_shape):
        """Told the shapes of the tensors by name, None for B and T: what is learned here is made here."""
        self.built = True

    def call(self, student, teacher):
        """Inner tensors by name of both -> values (B,) or (B, T), exactly 0 for padding and filler rows."""
        mask = TextMask(student)
        told = {name: student[name] for name in ("labels", "step") if name in student}
        own, other = ({name: one[name] for name in one if name not in FROM_BATCH} for one in (student, teacher))
        return mask.blank_values(self.values(mask.blank(own) | told, mask.blank(other), mask))

    def values(self, student, teacher, mask):
        raise TypeError(f"{type(self).__name__} must define values(student, teacher, mask)")

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}

    @classmethod
    def from_config(cls, config):
        made = {k: keras.saving.deserialize_keras_object(config[k]) for k in ("weight", "temperature") if k in config}
        return super().from_config({**config, **made})

    def require(self, name: str, value, holds: bool, what: str) -> None:
        """Raises `ValueError` naming this objective, the argument and its value unless it `holds`."""
        if not holds:
            raise ValueError(f"{self.name}: {name} = {value!r}: must be {what}")
