"""One label for a text, or for a pair of texts."""

import keras
from keras import ops

ACTIVATIONS = {"gelu": lambda x: 0.5 * x * (1.0 + ops.erf(x / 2.0**0.5))}
"""Spelled with erf, as in `tfkd.layers.activation`, for the same reason: Keras's own uses erfc, which tf2onnx cannot write."""


@keras.saving.register_keras_serializable(package="tfkd")
class ClassificationHead(keras.layers.Layer):
    """Pools the text into one vector, transforms it where asked, and scores the classes.

    BERT's head is `pooling="first", hidden="tanh"` (its pooler), DistilBERT's `pooling="first", hidden="relu"`.

    Arguments:
        classes: C.
        pooling: `first` reads position 0; `mean` averages the text's positions.
        hidden: activation of a layer of the same width between pooling and scores, or None for no such layer.
        dropout: share of the pooled vector dropped in training.
    """

    names = ("pooled",)

    def __init__(self, classes: int, pooling: str = "first", hidden: str | None = "tanh", dropout: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        if pooling not in ("first", "mean"):
            raise ValueError(f"pooling = {pooling!r}: must be first or mean")
        self.classes, self.pooling, self.hidden, self.dropout_rate = classes, pooling, hidden, dropout
        start = keras.initializers.TruncatedNormal(stddev=0.02)
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy, name="dropout")
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
        if self.first_only:
            pooled = hidden[:, 0]
        else:
            mask = ops.cast(ops.expand_dims(padding_mask, -1), hidden.dtype)  # (B, T, 1)
            pooled = ops.sum(hidden * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1.0)
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
class SmoothedCrossEntropy(keras.losses.Loss):
    """-sum_c t_c log q_c, t = (1 - e) one_hot(y) + e / C: cross-entropy with label smoothing e (Szegedy et al. 2015, section 7).

    `call` takes whole-number labels (B, ...) and logits (B, ..., C) and answers (B, ...), float32.
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "cross_entropy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        log_probabilities = ops.log_softmax(ops.cast(y_pred, "float32"), axis=-1)
        classes = y_pred.shape[-1]
        target = ops.one_hot(y_true, classes, dtype="float32") * (1.0 - self.label_smoothing) + self.label_smoothing / classes
        return -ops.sum(target * log_probabilities, axis=-1)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


class Classification:
    """The task: which head, which loss, which metrics, which of them is the headline."""

    name = "classification"
    metric = "accuracy"

    def head(self, classes: int, pooling: str = "first", dropout: float = 0.1) -> ClassificationHead:
        """A new head, to be built with an encoder. A mean over the text is scored as it is; one position is transformed first."""
        return ClassificationHead(classes, pooling, hidden="tanh" if pooling == "first" else None, dropout=dropout, name="head")

    def loss(self, label_smoothing: float = 0.0) -> keras.losses.Loss:
        """The labels' loss."""
        return SmoothedCrossEntropy(label_smoothing)

    def training_metrics(self) -> list[keras.metrics.Metric]:
        """What is watched in training and chooses the best epoch; the first is the headline."""
        return [keras.metrics.SparseCategoricalAccuracy(name=self.metric)]
