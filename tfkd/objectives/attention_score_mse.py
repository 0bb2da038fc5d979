"""The attention scores of the teacher, before softmax."""

import keras
from keras import ops

from tfkd.objectives.attention_objective import AttentionObjective


@keras.saving.register_keras_serializable(package="tfkd")
class AttentionScoreMSE(AttentionObjective):
    """(1 / H K) sum_{h, k} (A_hqk - A'_hqk)^2 at each position q; the mean over pairs of layers.

    k are the K positions of the text. A are scores before softmax, Q K^T / sqrt(d): the authors found them to train better
    than probabilities.

    Arguments: as `AttentionObjective`.

    References:
        Jiao et al. 2019, TinyBERT, arXiv:1909.10351, eq. 7.
    """

    default_name = "attention_score_mse"

    def compare(self, student, teacher, mask):
        """[(B, H, T, T)] of both -> (B, T)."""
        own, other = student[0], teacher[0]  # 0 for the keys of padding, in both
        kept = ops.cast(mask.positions_of(own[:, 0]), own.dtype)
        if self.average_heads:
            own, other = ops.mean(own, axis=1, keepdims=True), ops.mean(other, axis=1, keepdims=True)
        squares = ops.sum(ops.mean(ops.square(own - other), axis=1), axis=-1)  # (B, T)
        return squares / ops.maximum(ops.sum(kept, axis=1, keepdims=True), 1.0)
