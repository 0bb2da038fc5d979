"""Where a teacher's knowledge comes from, behind one interface: `teacher(inputs, names) -> {name: tensor}`."""

import keras
from keras import ops

from tfkd.errors import UserError
from tfkd.models.inner import inner_tensors
from tfkd.models.with_head import TransformerWithHead


class LiveTeacher:
    """A model asked anew at every step, as it is at inference.

    A plain object on purpose: a Keras model that holds it does not track it, so that the teacher is neither trained nor
    saved with the student, and its own `trainable` flags stay as they were.

    Arguments:
        model: any Keras model; one of ours also gives its inner tensors.
    """

    def __init__(self, model: keras.Model):
        self.model = model

    def __call__(self, inputs, names=("logits",)) -> dict:
        """Float32 tensors without gradient. `inputs` as the model takes them."""
        tensors = inner_tensors(self.model, inputs, names, training=False)
        return {name: ops.stop_gradient(ops.cast(tensor, "float32")) for name, tensor in tensors.items()}


def align_labels(teacher: list[str], data: list[str], label_map: dict[str, str] | None = None) -> list[int]:
    """For each data label, the teacher's class that means it.

    Arguments:
        teacher: the teacher's label names in class order.
        data: the data's label names in class order.
        label_map: teacher name -> data name; names left out mean themselves.

    Returns:
        Indices such that `teacher_logits[:, indices]` is in the data's order.

    Raises:
        UserError: the two do not name the same labels, with both lists.
    """
    label_map = label_map or {}
    unknown = sorted(set(label_map) - set(teacher))
    if unknown:
        raise UserError(f"teacher.label_map: the teacher has no label {unknown[0]!r}; it has {', '.join(teacher)}")
    meanings = [label_map.get(name, name) for name in teacher]
    if sorted(meanings) != sorted(data):
        raise UserError(
            f"teacher and data disagree on labels: the teacher has [{', '.join(teacher)}], the data [{', '.join(data)}]; "
            "say which means which with teacher.label_map: {teacher label: data label}"
        )
    return [meanings.index(name) for name in data]


def reorder_classes(head: keras.layers.Layer, order: list[int]) -> None:
    """Puts a classification head's classes in another order: class i becomes what class `order[i]` was."""
    dense = head.output_dense
    dense.kernel.assign(ops.take(dense.kernel, order, axis=1))
    dense.bias.assign(ops.take(dense.bias, order, axis=0))


def build_teacher(
    encoder: keras.Model, head: keras.layers.Layer, teacher_labels: list[str] | None, labels: list[str], label_map=None
) -> TransformerWithHead:
    """A model of a checkpoint's encoder and fine-tuned head that answers in the order of the data's `labels`.

    Arguments:
        teacher_labels: the head's class names in order; where a checkpoint does not name them, they are `0`, `1`, ...

    Raises:
        UserError: the labels disagree (see `align_labels`).
    """
    names = teacher_labels or [str(index) for index in range(head.classes)]
    reorder_classes(head, align_labels(names, labels, label_map))
    return TransformerWithHead(encoder, head, name="teacher")
