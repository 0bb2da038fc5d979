"""Heads that read one vector of a text: pooled, transformed where asked, scored."""

import keras
from keras import ops

from tfkd.layers.activation import ACTIVATIONS
from tfkd.layers.dropout import Dropout
from tfkd.layers.pooling import check_pooling, pool


@keras.saving.register_keras_serializable(package="tfkd")
class ClassificationHead(keras.layers.Layer):
    """Pools the text into one vector, transforms it where asked, and scores the classes.

    BERT's head is `pooling="first", hidden="tanh"` (its pooler), DistilBERT's `pooling="first", hidden="relu"`.

    Arguments:
        classes: C, how many numbers it answers with.
        pooling: `first` reads position 0; `mean` averages the text's positions.
        hidden: activation of a layer of the same width between pooling and scores, or None for no such layer.
        dropout: share of the pooled vector dropped in training.
    """

    names = ("pooled",)

    def __init__(self, classes: int, pooling: str = "first", hidden: str | None = "tanh", dropout: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        check_pooling(pooling)
        self.classes, self.pooling, self.hidden, self.dropout_rate = classes, pooling, hidden, dropout
        start = keras.initializers.TruncatedNormal(stddev=0.02)
        self.dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.output_dense = keras.layers.Dense(classes, kernel_initializer=start, dtype=self.dtype_policy, name="output")

    @property
    def first_only(self) -> bool:
        """Whether position 0 is all that is read."""
        return self.pooling == "first"

    def build(self, input_shape):
        width = input_shape[-1]
        self.hidden_dense = None
        if self.hidden is not None:
            start = keras.initializers.TruncatedNormal(stddev=0.02)
            self.hidden_dense = keras.layers.Dense(
                width,
                activation=ACTIVATIONS.get(self.hidden, self.hidden),
                kernel_initializer=start,
                dtype=self.dtype_policy,
                name="hidden",
            )
            self.hidden_dense.build((None, width))
        self.output_dense.build((None, width))
        self.built = True

    def call(self, hidden, padding_mask, training=None):
        """(B, T, D), (B, T) -> logits (B, C) and `pooled` (B, D)."""
        pooled = pool(hidden, padding_mask, self.pooling)
        if self.hidden_dense is not None:
            pooled = self.hidden_dense(pooled)
        return self.output_dense(self.dropout(pooled, training=training)), {"pooled": pooled}

    def get_config(self):
        return {
            **super().get_config(),
            "classes": self.classes,
            "pooling": self.pooling,
            "hidden": self.hidden,
            "dropout": self.dropout_rate,
        }


@keras.saving.register_keras_serializable(package="tfkd")
class RegressionHead(ClassificationHead):
    """mean + deviation * score: what is learned is of the order of 1, what is answered is in the data's own units.

    Arguments:
        mean, deviation: of the targets it is trained on.
        classes, pooling, hidden, dropout: as of `ClassificationHead`.
    """

    def __init__(self, mean: float = 0.0, deviation: float = 1.0, classes: int = 1, **kwargs):
        super().__init__(classes, **kwargs)
        if not deviation > 0.0:
            raise ValueError(f"deviation = {deviation}: must be above 0")
        self.mean, self.deviation = mean, deviation

    def call(self, hidden, padding_mask, training=None):
        """(B, T, D), (B, T) -> predictions (B, 1), float32 because half precision has three digits, and `pooled` (B, D)."""
        scores, inner = super().call(hidden, padding_mask, training=training)
        return self.mean + self.deviation * ops.cast(scores, "float32"), inner

    def get_config(self):
        return {**super().get_config(), "mean": self.mean, "deviation": self.deviation}
