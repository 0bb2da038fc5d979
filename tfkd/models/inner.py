"""One way to ask any model for its inner tensors."""

import keras


def inner_tensors(model: keras.Model, inputs, names, training: bool = False) -> dict:
    """The tensors called `names` inside `model`, as a flat dict.

    Our models know all their names (`TransformerWithHead.inner`). Any other Keras model answers with its output, as
    `logits`.

    Raises:
        ValueError: the model does not have a tensor of that name.
    """
    if hasattr(model, "inner"):
        return model.inner(inputs, tuple(names), training=training)
    unknown = [name for name in names if name != "logits"]
    if unknown:
        raise ValueError(f"{model.name} is a {type(model).__name__}: it has logits, but no inner tensor {unknown[0]!r}")
    return {"logits": model(inputs, training=training)} if names else {}
