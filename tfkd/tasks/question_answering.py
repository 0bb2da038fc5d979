"""The answer to a question, where it stands in a text."""

import keras
from keras import ops

from tfkd.layers.token_head import SpanHead
from tfkd.tasks.question_answering_metrics import LONGEST_ANSWER
from tfkd.tasks.task import Task

NEVER = -1e9
"""A score below all others."""


@keras.saving.register_keras_serializable(package="tfkd")
class SpanCrossEntropy(keras.losses.Loss):
    """-(log p_start + log p_end) / 2, each softmaxed over the text's positions (Devlin et al. 2018, section 4.2).

    `call` takes first and last pieces y (B, 2) and logits (B, T, 2), padding masked, and answers (B,), float32.
    """

    def __init__(self, name: str = "span_cross_entropy", **kwargs):
        super().__init__(name=name, **kwargs)

    def call(self, y_true, y_pred):
        log_probabilities = ops.log_softmax(ops.cast(y_pred, "float32"), axis=1)  # (B, T, 2)
        chosen = ops.take_along_axis(log_probabilities, ops.expand_dims(ops.cast(y_true, "int32"), 1), axis=1)  # (B, 1, 2)
        return -ops.mean(chosen[:, 0], axis=-1)


@keras.saving.register_keras_serializable(package="tfkd")
class SpanF1(keras.metrics.Metric):
    """Mean over windows of 2 |A and B| / (|A| + |B|), A the pieces of the answer, B those of the best span.

    What the test split is measured by looks at whole questions, and at words.

    Arguments:
        nullable: whether there may be no answer. Then a window without has the span of [CLS] alone, and is one like any other.
            Else windows without the answer do not count, and [CLS] is no answer to the others.
    """

    def __init__(self, nullable: bool = True, name: str = "span_f1", **kwargs):
        super().__init__(name=name, **kwargs)
        self.nullable = nullable
        self.total = self.add_variable((), "zeros", name="total")
        self.weight = self.add_variable((), "zeros", name="weight")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """First and last pieces (B, 2), logits (B, T, 2), weights (B,)."""
        logits = ops.cast(y_pred, "float32")
        if not self.nullable:
            logits = ops.concatenate([ops.full_like(logits[:, :1], NEVER), logits[:, 1:]], axis=1)
        first, last = best_span(logits)
        true_first, true_last = ops.cast(y_true[:, 0], "int32"), ops.cast(y_true[:, 1], "int32")
        shared = ops.maximum(ops.minimum(last, true_last) - ops.maximum(first, true_first) + 1, 0)
        both = last - first + true_last - true_first + 2
        f1 = 2.0 * ops.cast(shared, "float32") / ops.cast(both, "float32")
        weight = ops.ones_like(f1) if sample_weight is None else ops.cast(sample_weight, "float32")
        if not self.nullable:
            weight = weight * ops.cast(true_last > 0, "float32")
        self.total.assign_add(ops.sum(f1 * weight))
        self.weight.assign_add(ops.sum(weight))

    def result(self):
        return ops.divide_no_nan(self.total, self.weight)

    def get_config(self):
        return {**super().get_config(), "nullable": self.nullable}


def best_span(logits, longest: int = LONGEST_ANSWER):
    """First and last position (B,) int32 of the span with the largest sum of scores, of logits (B, T, 2); the first of equals."""
    start, end = logits[..., 0], logits[..., 1]
    length = ops.shape(start)[1]
    beyond = ops.pad(end, [[0, 0], [0, longest]], constant_values=NEVER)
    sums = ops.stack([start + beyond[:, more : more + length] for more in range(longest)], axis=-1)  # (B, T, longest)
    best = ops.cast(ops.argmax(ops.reshape(sums, (-1, length * longest)), axis=-1), "int32")
    first = best // longest
    return first, first + best % longest


class QuestionAnswering(Task):
    """First and last piece of an answer in a text: mean cross-entropy of both; F1 of the words, as the SQuAD script counts."""

    name = "question_answering"
    target = "span"
    metric, monitor = "f1", "span_f1"
    per_position = True
    mixture = {"activation": "softmax", "axis": 1}

    def __init__(self, target=None):
        super().__init__(target)
        self.response_arguments = {"over": "positions"}
        self.nullable = True if target is None else target.nullable

    def outputs(self, labels):
        return 2

    def head(self, outputs, pooling="first", dropout=0.1):
        return SpanHead(outputs, dropout, name="head")

    def loss(self, label_smoothing=0.0):
        self.refuse_smoothing(label_smoothing)
        return SpanCrossEntropy()

    def training_metrics(self):
        return [SpanF1(self.nullable, name=self.monitor)]
