"""Where a student comes from: dimensions, or layers of its teacher."""

import keras
import numpy as np

from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead


def uniform_layers(teacher_layers: int, student_layers: int) -> list[int]:
    """Which teacher layers (from 0) a student of `student_layers` copies: evenly spread, the first and the last among them."""
    if student_layers > teacher_layers:
        raise UserError(f"student.layers = {student_layers} asks for more than the teacher's {teacher_layers} layers")
    return [int(i) for i in np.linspace(0, teacher_layers - 1, student_layers).round()]


def choose_layers(teacher: TransformerWithHead, layers: int | list[int]) -> list[int]:
    """The teacher's layers to copy, from 0: as many, spread by `uniform_layers`, or those given.

    Raises:
        UserError: the teacher has no such layer, or is not one of our encoders.
    """
    if not isinstance(teacher, TransformerWithHead):
        raise UserError(f"student.layers needs a teacher made of encoder layers; {teacher.name} is a {type(teacher).__name__}")
    available = len(teacher.encoder.blocks)
    if isinstance(layers, int):
        return uniform_layers(available, layers)
    if layers[-1] >= available:
        raise UserError(f"student.layers = {layers}: the teacher's {available} layers are numbered 0 to {available - 1}")
    return list(layers)


def from_layers(teacher: TransformerWithHead, layers: int | list[int]) -> TransformerWithHead:
    """A student of some of the teacher's layers, with its embeddings and its head, weights copied (Sanh et al. 2019, section 3).

    Arguments:
        teacher: the model to copy from.
        layers: how many, or which, as in `choose_layers`.
    """
    chosen = choose_layers(teacher, layers)
    encoder = TransformerEncoder(**teacher.encoder.config | {"layers": len(chosen)}, name="encoder")
    head = {key: value for key, value in teacher.head.get_config().items() if key != "dtype"}  # its precision is its own
    student = TransformerWithHead(encoder, type(teacher.head).from_config(head), name="student")
    copy_weights(encoder.embedding, teacher.encoder.embedding)
    for block, index in zip(encoder.blocks, chosen, strict=True):
        copy_weights(block, teacher.encoder.blocks[index])
    if encoder.final_norm is not None:
        copy_weights(encoder.final_norm, teacher.encoder.final_norm)
    copy_weights(student.head, teacher.head)
    return student


def copy_weights(into: keras.layers.Layer, source: keras.layers.Layer) -> None:
    """Copies trainable weights from a layer of the same make; random states stay each layer's own."""
    for target, value in zip(into.trainable_variables, source.trainable_variables, strict=True):
        target.assign(value)
