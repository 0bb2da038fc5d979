"""Which pieces stood where some are hidden: how an encoder learns a language, or a field's, from plain text."""

import keras
from keras import ops

from tfkd.layers.language_model_head import LanguageModelHead
from tfkd.tasks.classification import SmoothedCrossEntropy
from tfkd.tasks.task import Task


class MaskedLanguageModel(Task):
    """Cross-entropy at the hidden positions (Devlin et al. 2018, section 3.1); how many are told right is the headline."""

    name = "masked_language_model"
    target = "masked"
    metric, monitor = "accuracy", "accuracy"
    per_position = True
    over_vocabulary = True

    def head(self, outputs, pooling="first", dropout=0.1):
        return LanguageModelHead(outputs, name="head")

    def loss(self, label_smoothing=0.0):
        return SmoothedCrossEntropy(label_smoothing)

    def training_metrics(self):
        return [keras.metrics.SparseCategoricalAccuracy(name=self.monitor)]

    @staticmethod
    def kept(logits, y):
        """Logits (B, T, V), pieces y (B, T) -> (B, T, 2) float32: the most likely piece, and log-probability of the right one."""
        log_probabilities = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
        right = ops.take_along_axis(log_probabilities, ops.expand_dims(ops.cast(y, "int32"), -1), axis=-1)
        likely = ops.cast(ops.argmax(logits, axis=-1), "float32")  # exact: vocabularies have far fewer than 2^24 pieces
        return ops.concatenate([ops.expand_dims(likely, -1), right], axis=-1)
