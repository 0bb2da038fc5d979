"""An encoder with a task's head on it."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfkd")
class TransformerWithHead(keras.Model):
    """Encoder, then head. Called, it answers with logits; `inner` with any of the encoder's tensors, `pooled` and `logits`.

    Arguments:
        encoder: a model with `encode(inputs, names, training, first_only)`, `inner`, `check` and `config`, such as
            `TransformerEncoder`.
        head: a layer `call(hidden, padding_mask, training) -> (logits, {name: tensor})` with the attributes
            `first_only` (reads position 0 alone) and `names` (what its dict can hold); where it has `tie`, that is told the
            encoder's embedding layer.
    """

    # ---------------------------------------------------------------- layers

    def __init__(self, encoder: keras.Model, head: keras.layers.Layer, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.head = head
        self.build()

    def build(self, input_shape=None):
        if self.built:
            return
        if hasattr(self.head, "tie"):
            self.head.tie(self.encoder.embedding)
        if not self.head.built:
            self.head.build((None, None, self.encoder.config["width"]))
        self.built = True

    # ---------------------------------------------------------------- graph

    def call(self, inputs, training=None):
        """A batch's inputs -> logits, float32."""
        return self.inner(inputs, ("logits",), training=training)["logits"]

    def inner(self, inputs, names, training=None):
        """The tensors called `names`, `logits`, the head's or the encoder's, as a flat dict. Nothing else is computed."""
        own = {"logits", *self.head.names}
        if not own.intersection(names):
            return self.encoder.inner(inputs, names, training=training)
        from_encoder = tuple(name for name in names if name not in own)
        self.encoder.check(from_encoder)
        hidden, inner = self.encoder.encode(inputs, from_encoder, training=training, first_only=self.head.first_only)
        logits, found = self.head(hidden, inputs["padding_mask"], training=training)
        inner |= found | {"logits": ops.cast(logits, "float32")}
        return {name: inner[name] for name in names}

    # ---------------------------------------------------------------- config

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {**super().get_config(), "encoder": serialize(self.encoder), "head": serialize(self.head)}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for part in ("encoder", "head"):
            config[part] = keras.saving.deserialize_keras_object(config[part])
        return cls(**config)
