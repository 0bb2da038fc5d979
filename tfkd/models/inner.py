"""One way to ask any model for its inner tensors, and for their shapes before there is a batch."""

import keras

from tfkd.models.encoder import PACKING
from tfkd.models.foreign import ACTIVATIONS, to_logits
from tfkd.models.functional import FunctionalInner, graph_of

POSITIONS = ("embeddings", "hidden", "attention", "query", "key", "value")
"""First parts of the names of tensors that hold something for every position of the text."""

AXES = {"embeddings": "B, T, D", "hidden": "B, T, D", "attention": "B, H, T, T", "pooled": "B, D"}
AXES |= dict.fromkeys(("query", "key", "value"), "B, H, T, d")
"""First parts of our names -> the axes that a tensor must have under them, which objectives count on."""


def inner_tensors(model, inputs, names, training: bool = False, mapping: dict[str, str] | None = None) -> dict:
    """The tensors called `names` inside `model`, as a flat dict, in one pass.

    Arguments:
        model: one of ours, which know all their names; a functional Keras model or KerasHub task, by layer path; any other
            Keras model answers with its output, as `logits`.
        inputs: a batch's inputs; a functional model may take fewer, or under other names.
        mapping: our name -> the model's own, such as `{"hidden.3": "bert_backbone/transformer_layer_3"}`.

    Raises:
        ValueError: the model does not have a tensor of that name, with near ones.
    """
    return view(model, mapping).inner(inputs, tuple(names), training=training)


def inner_shapes(model, names, mapping: dict[str, str] | None = None) -> dict:
    """Name -> shape of what `inner_tensors` would give, None for B, T and whatever else a batch decides; no batch is needed.

    The shape of the logits of a model that cannot say before its first batch is None.

    Raises:
        ValueError: as `inner_tensors`.
    """
    return view(model, mapping).shapes(tuple(names))


def over_positions(name: str, shape: tuple | None) -> bool:
    """Whether a tensor holds something for every position of the text."""
    return name.partition(".")[0] in POSITIONS or (shape is not None and len(shape) > 2)


def view(model, mapping: dict[str, str] | None = None, activation: str | None = None):
    """What answers for a model: an object with `inner(inputs, names, training)` and `shapes(names)`; nothing is run yet.

    Its `takes` lists our names of the model's inputs, `layers` is how many layers `hidden.i` counts, `max_length` the longest
    text in word pieces; None where it cannot say. `activation` is what the logits of a Keras model have been through,
    `linear`, `softmax` or `sigmoid`; default: what its last layer says.

    Raises:
        ValueError: the model has no tensor of a name in `mapping`, or one of other axes than our name says.
    """
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"activation = {activation!r}: must be one of {', '.join(ACTIVATIONS)}")
    if not hasattr(model, "inner"):
        kind = _Opaque if graph_of(model) is None else FunctionalInner
        found = kind(model, mapping, activation)
    else:
        found = model if hasattr(model, "shapes") else _Ours(model)
        found = _Renamed(found, mapping) if mapping else found
    if mapping:
        _check_axes(model.name, found.shapes(tuple(mapping)), mapping)
    return found


def _check_axes(model: str, shapes: dict, mapping: dict[str, str]) -> None:
    for name, shape in shapes.items():
        axes = AXES.get(name.partition(".")[0])
        if axes is not None and shape is not None and len(shape) != axes.count(",") + 1:
            sizes = ", ".join("?" if size is None else str(size) for size in shape)
            raise ValueError(f"{model}: {mapping[name]!r} has the axes ({sizes}); what is called {name} must have ({axes})")


class _Ours:
    """A `TransformerEncoder`, or a `TransformerWithHead`."""

    def __init__(self, model):
        self.model, self.inner = model, model.inner
        self.encoder, self.head = getattr(model, "encoder", model), getattr(model, "head", None)

    @property
    def takes(self):
        return ["token_ids", "padding_mask", *(["segment_ids"] if self.encoder.config["segments"] else [])]

    @property
    def layers(self):
        return self.encoder.config["layers"]

    @property
    def max_length(self):
        return self.encoder.config["max_positions"]

    def shapes(self, names):
        config = self.encoder.config
        width, heads = config["width"], config["heads"]
        hidden, parts = (None, None, width), (None, heads, None, width // heads)
        shapes = {"embeddings": hidden, "hidden": hidden, "attention": (None, heads, None, None)}
        shapes |= dict.fromkeys(("query", "key", "value"), parts)
        own = {"logits", *self.head.names} if self.head is not None else set()
        self.encoder.check([name for name in names if name not in own])
        if own.intersection(names):
            mask = keras.KerasTensor((None, None), "int32")
            logits, found = self.head.compute_output_spec(keras.KerasTensor(hidden, self.head.compute_dtype), mask)
            shapes |= {name: tuple(spec.shape) for name, spec in {"logits": logits, **found}.items()}
        return {name: shapes[name if name in own else name.partition(".")[0]] for name in names}


class _Renamed:
    """A model that knows its tensors, asked by other names."""

    def __init__(self, found, mapping):
        self.found, self.mapping = found, dict(mapping)
        self.takes, self.layers, self.max_length = found.takes, found.layers, found.max_length

    def inner(self, inputs, names, training=None):
        asked = dict.fromkeys(self.mapping.get(name, name) for name in names)
        answer = self.found.inner(inputs, tuple(asked), training=training)
        return {name: answer[self.mapping.get(name, name)] for name in names}

    def shapes(self, names):
        shapes = self.found.shapes(tuple(dict.fromkeys(self.mapping.get(name, name) for name in names)))
        return {name: shapes[self.mapping.get(name, name)] for name in names}


class _Opaque:
    """A Keras model that runs code of its own: logits, and nothing else."""

    takes = layers = max_length = None

    def __init__(self, model, mapping, activation):
        self.model, self.activation = model, activation or "linear"
        self._check(mapping or ())

    def inner(self, inputs, names, training=None):
        self._check(names)
        if isinstance(inputs, dict):  # it takes a batch as it comes, and knows nothing of rows that texts share
            inputs = {name: value for name, value in inputs.items() if name not in PACKING}
        return {"logits": to_logits(self.model(inputs, training=training), self.activation)} if names else {}

    def shapes(self, names):
        self._check(names)
        return dict.fromkeys(names)

    def _check(self, names):
        unknown = [name for name in names if name != "logits"]
        if unknown:
            raise ValueError(
                f"{self.model.name} is a {type(self.model).__name__}, neither tfkd's nor functional: it has logits, but no "
                f"inner tensor {unknown[0]!r}"
            )
