"""The head that answers with a vector of a text."""

import keras
from keras import ops

from tfkd.layers.pooling import check_pooling, pool


@keras.saving.register_keras_serializable(package="tfkd")
class EmbeddingHead(keras.layers.Layer):
    """v / |v| with v the mean over the text's positions, or f(W mean + b) where there is a layer behind it.

    Mean pooling and unit length as in Sentence-BERT (Reimers and Gurevych 2019, arXiv:1908.10084, section 3): the dot product
    of two answers is their cosine.

    Arguments:
        classes: numbers in a vector; None: the encoder's width.
        pooling: `mean`, or `first` for the vector of position 0.
        bias: whether the layer has one.
        activation: f, `tanh` or `linear`. None is `linear` too, and no layer at all where neither width nor bias asks for one.
    """

    names = ("pooled",)

    def __init__(
        self,
        classes: int | None = None,
        pooling: str = "mean",
        bias: bool = False,
        activation: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_pooling(pooling)
        if activation not in (None, "linear", "tanh"):
            raise ValueError(f"activation = {activation!r}: must be linear, tanh or None")
        self.classes, self.pooling, self.bias, self.activation = classes, pooling, bias, activation

    @property
    def first_only(self) -> bool:
        """Whether position 0 is all that is read."""
        return self.pooling == "first"

    def build(self, input_shape):
        width = input_shape[-1]
        self.classes = self.classes or width
        self.output_dense = None
        if self.classes != width or self.bias or self.activation is not None:
            options = {"activation": self.activation, "use_bias": self.bias, "dtype": self.dtype_policy}
            self.output_dense = keras.layers.Dense(self.classes, **options, name="output")
            self.output_dense.build((None, width))
        self.built = True

    def call(self, hidden, padding_mask, training=None):
        """(B, T, D), (B, T) -> unit vectors (B, C), float32 whatever the policy, and `pooled` (B, D) before the layer."""
        pooled = pool(hidden, padding_mask, self.pooling)
        vector = ops.cast(pooled if self.output_dense is None else self.output_dense(pooled), "float32")
        length = ops.sqrt(ops.maximum(ops.sum(ops.square(vector), axis=-1, keepdims=True), 1e-24))
        return vector / length, {"pooled": pooled}

    def get_config(self):
        own = {"classes": self.classes, "pooling": self.pooling, "bias": self.bias, "activation": self.activation}
        return {**super().get_config(), **own}
