"""Where a teacher's knowledge comes from, behind one interface: `teacher(inputs, names) -> {name: tensor}`.

Every teacher also says `shapes(names)` before there is a batch, and `same_positions`: whether its tensors have the
student's positions, which they have where both read the same word pieces.
"""

import keras
from keras import ops

from tfkd.errors import UserError
from tfkd.models.inner import over_positions, view
from tfkd.models.with_head import TransformerWithHead


class LiveTeacher:
    """A model asked anew at every step, as it is at inference.

    A plain object on purpose: a Keras model that holds it does not track it, so that the teacher is neither trained nor
    saved with the student, and its own `trainable` flags stay as they were.

    Arguments:
        model: one of ours or any functional Keras model, with inner tensors; any other Keras model, or what
            `open_saved_model` gives, with logits alone.
        prefix: the model's inputs are those of the batch whose names begin so. A teacher with a tokenizer of its own reads
            `teacher.token_ids`; its positions are then not the student's.
        names: our name of an inner tensor -> the model's, such as `{"hidden.3": "bert_backbone/transformer_layer_3"}`.
        order: for each class of the data, the model's class that means it (see `align_labels`); default: the same.
        activation: what a Keras model's output has been through, `linear`, `softmax` or `sigmoid`; the last two are undone.
            Default: what the last layer of a functional model says, else `linear`.

    Raises:
        ValueError: the model has no tensor of a name in `names`, or one of other axes than our name says.
    """

    def __init__(
        self,
        model,
        prefix: str = "",
        names: dict[str, str] | None = None,
        order: list[int] | None = None,
        activation: str | None = None,
    ):
        self.model, self.prefix, self.order = model, prefix, order
        self.names, self.activation = dict(names or {}), activation
        self.view = view(model, names, activation)
        self.same_positions = not prefix

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def layers(self) -> int | None:
        """How many layers `hidden.i` counts; None where the model has no such names."""
        return self.view.layers

    @property
    def variables(self) -> list:
        """The variables that the model reads."""
        return list(self.model.variables)

    @property
    def asked(self) -> dict:
        """How the model is asked, as plain values: with its weights, all that decides what it says."""
        return {"prefix": self.prefix, "names": self.names, "order": self.order, "activation": self.activation}

    @property
    def max_length(self) -> int | None:
        """Longest text in word pieces that the model takes; None where it does not say."""
        return self.view.max_length

    def __call__(self, inputs, names=("logits",)) -> dict:
        """Float32 tensors without gradient."""
        tensors = self.view.inner(self._mine(inputs), tuple(names), training=False)
        if self.order is not None and "logits" in tensors:
            tensors["logits"] = ops.take(tensors["logits"], self.order, axis=-1)
        return {name: ops.stop_gradient(ops.cast(tensor, "float32")) for name, tensor in tensors.items()}

    def shapes(self, names) -> dict:
        """Name -> shape, None for what a batch decides."""
        shapes = dict(self.view.shapes(tuple(names)))
        if self.order is not None and shapes.get("logits") is not None:
            shapes["logits"] = (*shapes["logits"][:-1], len(self.order))
        return shapes

    def supplied(self, batch_names) -> list[str]:
        """Which of its inputs the model gets as zeros, for a batch of these names has none: the segments of single texts."""
        given = {name.removeprefix(self.prefix) for name in batch_names if name.startswith(self.prefix)}
        return [name for name in self.view.takes or [] if name == "segment_ids" and name not in given]

    def _mine(self, inputs):
        """The batch's inputs that are this teacher's, under the names without prefix."""
        if not self.prefix:
            return inputs
        mine = {name.removeprefix(self.prefix): value for name, value in inputs.items() if name.startswith(self.prefix)}
        if not mine:
            raise ValueError(f"{self.name} reads inputs called {self.prefix}...; the batch holds {', '.join(sorted(inputs))}")
        if "segment_ids" in inputs and "segment_ids" in self.supplied(inputs):
            raise ValueError(
                f"{self.name} tells two texts apart by segment_ids; the batch is of pairs, but has no {self.prefix}segment_ids"
            )
        return mine


class CachedTeacher:
    """A teacher whose answers come with the batch: the input pipeline read them from disk.

    Arguments:
        shapes: name -> shape of what the cache holds, None for what a batch decides.
        prefix: `logits` are `teacher.logits` among the batch's inputs.
        same_positions: whether they were made of the student's word pieces.
    """

    name, layers = "teacher cache", None

    def __init__(self, shapes: dict[str, tuple], prefix: str = "teacher.", same_positions: bool = True):
        self.held, self.prefix, self.same_positions = dict(shapes), prefix, same_positions

    def __call__(self, inputs, names=("logits",)) -> dict:
        """Float32 tensors without gradient."""
        self.shapes(names)
        missing = [self.prefix + name for name in names if self.prefix + name not in inputs]
        if missing:
            raise ValueError(f"the batch has no {missing[0]}; it holds {', '.join(sorted(inputs))}")
        return {name: ops.stop_gradient(ops.cast(inputs[self.prefix + name], "float32")) for name in names}

    def shapes(self, names) -> dict:
        """Name -> shape, None for what a batch decides."""
        missing = [name for name in names if name not in self.held]
        if missing:
            raise ValueError(f"the teacher cache has no {missing[0]}; it holds {', '.join(self.held)}")
        return {name: self.held[name] for name in names}


def check_positions(teacher, names, student: dict | None = None) -> None:
    """Refuses tensors over positions of a teacher that reads other word pieces than the student.

    Arguments:
        names: what objectives that compare position with position ask the teacher for.
        student: name -> shape of the student's tensors, which stands for the teacher's where that cannot say its own.

    Raises:
        UserError: with the reason.
    """
    if getattr(teacher, "same_positions", True):
        return
    shapes = {**(student or {}), **{name: shape for name, shape in teacher.shapes(names).items() if shape is not None}}
    over = [name for name in names if over_positions(name, shapes.get(name))]
    if over:
        raise UserError(
            f"{over[0]}: the teacher has a tokenizer of its own, so that its positions are not the student's; objectives over "
            "positions cannot compare them: use the logits or pooled vectors of whole texts"
        )


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


def foreign_teacher(
    model,
    labels: list[str] | None,
    label_map: dict[str, str] | None = None,
    prefix: str = "",
    names: dict[str, str] | None = None,
    per_position: bool = False,
    max_length: int = 0,
    activation: str | None = None,
    teacher_labels: list[str] | None = None,
    outputs: int | None = 1,
) -> LiveTeacher:
    """A teacher of a model that need not name its classes: they are `0`, `1`, ... then, and `label_map` says what each means.

    Arguments:
        model: of a `.keras` file, KerasHub or a SavedModel.
        labels: the data's label names in class order; None for a task without classes.
        prefix, names: as `LiveTeacher`.
        per_position: whether the task asks for logits at every position, (B, T, C), not (B, C).
        max_length: longest text that it will be asked about, in word pieces.
        activation: as `LiveTeacher`; where there are no classes, `linear`: the number is what the model says.
        teacher_labels: the model's label names in class order, where they are known.
        outputs: without classes, how many numbers the task asks for; None: any.

    Raises:
        UserError: the model has another number of classes or another shape or takes shorter texts, the labels disagree (see
            `align_labels`), or it has no tensor of a name in `names` with the axes that the name says.
    """
    try:
        teacher = LiveTeacher(model, prefix, names, activation=activation or ("linear" if labels is None else None))
        shape = teacher.shapes(("logits",))["logits"]
    except ValueError as error:
        raise UserError(f"teacher.inner: {error}") from None
    if teacher.max_length is not None and max_length > teacher.max_length:
        raise UserError(f"data.max_length = {max_length} is above the {teacher.max_length} word pieces that {teacher.name} takes")
    wanted = outputs if labels is None else len(labels)
    if shape is not None and len(shape) != 2 + per_position:
        what = "(B, T, C), a row of scores a word piece" if per_position else "(B, C), a row of scores a text"
        raise UserError(f"teacher {teacher.name} answers with a tensor of shape {_show(shape)}; the task asks for {what}")
    if wanted is not None and shape is not None and shape[-1] not in (None, wanted):
        data = f"the task asks for {wanted}" if labels is None else f"the data have {wanted} labels"
        raise UserError(f"teacher {teacher.name} answers with {shape[-1]} scores a row; {data}")
    if labels is not None:
        teacher.order = align_labels(teacher_labels or [str(index) for index in range(wanted)], labels, label_map)
    return teacher


def _show(shape):
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
