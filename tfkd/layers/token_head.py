"""Heads that score every position of a text."""

import keras
from keras import ops

from tfkd.layers.attention import MASKED_SCORE
from tfkd.layers.dropout import Dropout


@keras.saving.register_keras_serializable(package="tfkd")
class TokenHead(keras.layers.Layer):
    """Dropout and scores for each position: BERT's head for tagging (Devlin et al. 2018, section 5.3).

    Arguments:
        classes: C, how many numbers it answers with for a position.
        dropout: share of each position's vector dropped in training.
    """

    names = ()
    first_only = False

    def __init__(self, classes: int, dropout: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        self.classes, self.dropout_rate = classes, dropout
        start = keras.initializers.TruncatedNormal(stddev=0.02)
        self.dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.output_dense = keras.layers.Dense(classes, kernel_initializer=start, dtype=self.dtype_policy, name="output")

    def build(self, input_shape):
        self.output_dense.build((None, None, input_shape[-1]))
        self.built = True

    def call(self, hidden, padding_mask, training=None):
        """(B, T, D), (B, T) -> logits (B, T, C), and nothing else."""
        return self.output_dense(self.dropout(hidden, training=training)), {}

    def get_config(self):
        return {**super().get_config(), "classes": self.classes, "dropout": self.dropout_rate}


@keras.saving.register_keras_serializable(package="tfkd")
class SpanHead(TokenHead):
    """Scores of each position as the start and as the end of an answer; two distributions over the text's positions.

    Padding is masked here, so that whatever takes a softmax over the positions need not know of it. The question is not: its
    positions are part of the text, as in Devlin's own code, and left out when an answer is chosen.

    Arguments:
        classes: 2, the start and the end.
        dropout: as of `TokenHead`.
        masked_score: replaces the scores of padding: s * m + (1 - m) * c.
    """

    def __init__(self, classes: int = 2, dropout: float = 0.1, masked_score: float = MASKED_SCORE, **kwargs):
        super().__init__(classes, dropout, **kwargs)
        self.masked_score = masked_score

    def call(self, hidden, padding_mask, training=None):
        """(B, T, D), (B, T) -> logits (B, T, 2), float32 whatever the policy, and nothing else."""
        logits, inner = super().call(hidden, padding_mask, training=training)
        mask = ops.cast(ops.expand_dims(padding_mask, -1), "float32")  # (B, T, 1)
        return ops.cast(logits, "float32") * mask + (1.0 - mask) * self.masked_score, inner

    def get_config(self):
        return {**super().get_config(), "masked_score": self.masked_score}
