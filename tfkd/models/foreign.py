"""Between our batches and other people's models: inputs by name, outputs as logits."""

import keras
import tensorflow as tf
from keras import ops

MEANING = {
    "input_ids": "token_ids",  # Hugging Face
    "attention_mask": "padding_mask",
    "token_type_ids": "segment_ids",
    "input_word_ids": "token_ids",  # TensorFlow Hub
    "input_mask": "padding_mask",
    "input_type_ids": "segment_ids",
}
"""What other libraries call the inputs that a batch holds under KerasHub's names."""

OVER_POSITIONS = ("token_ids", "padding_mask", "segment_ids")
"""Our names of the inputs (B, T) that padding can make longer."""

ACTIVATIONS = ("linear", "softmax", "sigmoid")
"""What a model's output may have been through."""


def meaning(name: str) -> str:
    """Our name for an input."""
    return MEANING.get(name, name)


def choose_inputs(wanted: list[str], batch, model: str, renamed: dict[str, str] | None = None) -> dict:
    """The inputs a model takes, by its own names; what it does not take is left out.

    Segment ids that it takes and the batch lacks are zeros: a batch holds them wherever there are two texts, so this is
    a batch of single texts, and zeros are what a single text's are.

    Arguments:
        wanted: names of the model's inputs.
        batch: a dict of tensors; or tensors in the order of `wanted`.
        model: its name, for messages.
        renamed: the model's name of an input -> the batch's, where neither is the other's nor a well-known one.

    Raises:
        ValueError: the batch lacks an input, with what it has.
    """
    if not isinstance(batch, dict):
        given = list(batch) if isinstance(batch, (list, tuple)) else [batch]
        if len(given) != len(wanted):
            raise ValueError(f"{model} takes {len(wanted)} inputs, {', '.join(wanted)}; the batch has {len(given)}")
        return dict(zip(wanted, given, strict=True))
    chosen = {}
    for name in wanted:
        ours = (renamed or {}).get(name, name)
        key = ours if ours in batch else meaning(ours)
        if key in batch:
            chosen[name] = batch[key]
        elif key == "segment_ids" and "token_ids" in batch:
            chosen[name] = ops.zeros_like(batch["token_ids"])
        else:
            raise ValueError(f"{model} takes an input {name!r}; the batch holds {', '.join(sorted(batch)) or 'none'}")
    return chosen


def fixed_length(name: str, shape) -> int | None:
    """The one length of text that an input of this name and shape (B, T) takes; None for any."""
    shape = tuple(shape)
    return shape[1] if meaning(name) in OVER_POSITIONS and len(shape) == 2 else None


def pad_to(value, length: int | None, model: str):
    """(B, T) -> (B, length), zeros after the text, which is what padding is; None leaves it as it is.

    Raises:
        ValueError: the text is longer. Where T is not known before the batch, TensorFlow refuses it then.
    """
    value = ops.convert_to_tensor(value)
    if length is None or value.shape[1] == length:
        return value
    if value.shape[1] is not None and value.shape[1] > length:
        raise ValueError(f"{model} takes {length} word pieces; the batch has {value.shape[1]}")
    return tf.ensure_shape(tf.pad(value, [[0, 0], [0, length - tf.shape(value)[1]]]), (None, length))


def to_logits(outputs, activation: str):
    """What a model gave out, as logits: softmax (or sigmoid) of them is what it gave.

    Arguments:
        outputs: (..., C).
        activation: what they have been through, one of `ACTIVATIONS`. Logits up to a constant an example come back from a
            softmax, which no softened distribution can tell from the ones before it.

    Returns:
        (..., C) float32.
    """
    outputs = ops.cast(outputs, "float32")
    if activation == "linear":
        return outputs
    least = 1e-30 if activation == "softmax" else 1e-7  # 1 - 1e-7 is the last but one number below 1 in float32
    if activation == "softmax":
        return ops.log(ops.maximum(outputs, least))
    outputs = ops.clip(outputs, least, 1.0 - least)
    return ops.log(outputs) - ops.log1p(-outputs)


def activation_of(layer) -> str:
    """What the outputs of a layer have been through, as far as it says: one of `ACTIVATIONS`."""
    if isinstance(layer, keras.layers.Softmax):
        return "softmax" if layer.axis in (-1, None) else "linear"
    function = getattr(layer, "activation", None)
    return {keras.activations.softmax: "softmax", keras.activations.sigmoid: "sigmoid"}.get(function, "linear")
