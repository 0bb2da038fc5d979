"""Any number of labels for a text, or for a pair of texts."""

import keras
from keras import ops

from tfkd.layers.head import ClassificationHead
from tfkd.tasks.task import Task, pooled_head_hidden


@keras.saving.register_keras_serializable(package="tfkd")
class BinaryCrossEntropy(keras.losses.Loss):
    """-(1 / C) sum_c [t_c log p_c + (1 - t_c) log(1 - p_c)], p = sigmoid(z), t = (1 - e) y + e / 2.

    `call` takes ones and zeros y (B, C) and logits z (B, C) and answers (B,), float32.
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "binary_cross_entropy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        logits = ops.cast(y_pred, "float32")
        target = ops.cast(y_true, "float32") * (1.0 - self.label_smoothing) + self.label_smoothing / 2.0
        return -ops.mean(target * ops.log_sigmoid(logits) + (1.0 - target) * ops.log_sigmoid(-logits), axis=-1)

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


@keras.saving.register_keras_serializable(package="tfkd")
class MicroF1(keras.metrics.Metric):
    """2 tp / (2 tp + fp + fn) over all labels of all batches, a label being given where its logit is above 0; 0 for 0/0."""

    def __init__(self, name: str = "f1_micro", **kwargs):
        super().__init__(name=name, **kwargs)
        self.right = self.add_variable((), "zeros", name="right")
        self.all = self.add_variable((), "zeros", name="all")

    def update_state(self, y_true, y_pred, sample_weight=None):
        true, given = ops.cast(y_true, "float32"), ops.cast(y_pred > 0.0, "float32")
        weight = 1.0 if sample_weight is None else ops.expand_dims(ops.cast(sample_weight, "float32"), -1)
        self.right.assign_add(ops.sum(2.0 * true * given * weight))
        self.all.assign_add(ops.sum((true + given) * weight))

    def result(self):
        return ops.divide_no_nan(self.right, self.all)


class Multilabel(Task):
    """Each of C labels is there or not, whatever the others: a sigmoid each, binary cross-entropy; given from 0.5 up."""

    name = "multilabel"
    target = "classes"
    metric = monitor = "f1_micro"
    mixture = {"activation": "sigmoid"}
    response = "binary_kl"

    def head(self, outputs, pooling="first", dropout=0.1):
        return ClassificationHead(outputs, pooling, pooled_head_hidden(pooling), dropout, name="head")

    def loss(self, label_smoothing=0.0):
        return BinaryCrossEntropy(label_smoothing)

    def training_metrics(self):
        return [MicroF1(name=self.monitor)]
