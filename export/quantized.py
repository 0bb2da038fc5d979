"""The student after quantization-aware training, as exporters see it: its operations with the ranges they were trained with."""

import dataclasses
import functools

import tensorflow as tf

from tfkd.errors import UserError
from tfkd.models.quantized import QuantizedTransformer

from .inference import Student, read_model


class QuantizedStudent(Student):
    """A student whose `model`, a `QuantizedTransformer`, rounds as an int8 file of it does: that file's reference.

    What is written is the same computation with its range at every operation, which converters take for its quantization.
    """

    @functools.cached_property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of every intermediate result, by name."""
        return {name: (float(low), float(high)) for name, (low, high) in self.model.ranges.items()}

    @property
    def variables(self) -> list[tf.Variable]:
        """The weights of the computation."""
        return [variable.value for variable in self.model.weights]

    def logits(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Inputs (B, T) by name -> what the head answers."""
        ranges = self.ranges

        def mark(name, values, fixed=None):
            low, high = ranges[name] if fixed is None else fixed
            return tf.quantization.fake_quant_with_min_max_args(values, low, high)

        return self.model.forward(inputs, mark)


def after_training(student: Student) -> QuantizedStudent:
    """The student that `compression.qat` trained.

    Raises:
        UserError: the run holds none, or not one of this student.
    """
    path = student.run.quantized
    if not path.exists():
        raise UserError(f"{path}: no such file; tflite:int8_qat is made of it: train with compression: {{qat: {{}}}}")
    model = read_model(path)
    if not isinstance(model, QuantizedTransformer) or model.encoder.config != student.model.encoder.config:
        raise UserError(f"{path}: not what quantization-aware training made of {student.run.student.name}")
    given = {field.name: getattr(student, field.name) for field in dataclasses.fields(student)}
    made = QuantizedStudent(**given | {"model": model})
    made.ranges  # noqa: B018  read here: inside a graph they are no numbers
    return made
