"""One label for a text, or for a pair of texts."""

import keras
from keras import ops

from tfkd.layers.head import ClassificationHead
from tfkd.tasks.task import Task, pooled_head_hidden


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


class Classification(Task):
    """One of C classes: softmax cross-entropy, accuracy."""

    name = "classification"
    target = "class"
    metric = monitor = "accuracy"

    def head(self, outputs, pooling="first", dropout=0.1):
        return ClassificationHead(outputs, pooling, pooled_head_hidden(pooling), dropout, name="head")

    def loss(self, label_smoothing=0.0):
        return SmoothedCrossEntropy(label_smoothing)

    def training_metrics(self):
        return [keras.metrics.SparseCategoricalAccuracy(name=self.monitor)]
