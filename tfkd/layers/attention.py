"""Multi-head self-attention with one fused projection."""

import math

import keras
from keras import ops

from tfkd.layers.dropout import Dropout

MASKED_SCORE = -1e4
"""What a masked score becomes. exp(-1e4) is exactly 0 in float32 beside any real score, so padding cannot leak even a
last bit, and it is inside float16's range (65504), which -1e9 is not."""


@keras.saving.register_keras_serializable(package="tfkd")
class MultiHeadSelfAttention(keras.layers.Layer):
    """softmax(Q K^T / sqrt(d)) V over H heads of size d = D / H (Vaswani et al. 2017, eq. 1), projected back to D.

    Query, key and value come out of one matrix product. Where only the first position of the result is wanted, its
    query alone is computed: exact, and the cost of the layer falls by nearly half.

    Arguments:
        width: D, input and output.
        heads: H; must divide D.
        dropout: share of attention probabilities dropped in training.
        masked_score: replaces the scores of padded keys: s * m + (1 - m) * c.
        initializer_range: standard deviation of the kernels' truncated normal start.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.1,
        masked_score: float = MASKED_SCORE,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if width % heads:
            raise ValueError(f"heads = {heads} does not divide width = {width}")
        self.width, self.heads, self.size = width, heads, width // heads
        self.dropout_rate, self.masked_score, self.initializer_range = dropout, masked_score, initializer_range
        self.dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape=None):
        start = keras.initializers.TruncatedNormal(stddev=self.initializer_range)
        self.kernel = self.add_weight(name="query_key_value_kernel", shape=(self.width, 3 * self.width), initializer=start)
        self.bias = self.add_weight(name="query_key_value_bias", shape=(3 * self.width,), initializer="zeros")
        self.output_kernel = self.add_weight(name="output_kernel", shape=(self.width, self.width), initializer=start.clone())
        self.output_bias = self.add_weight(name="output_bias", shape=(self.width,), initializer="zeros")
        self.built = True

    def call(self, hidden, padding_mask, training=None, first_only=False, names=(), firsts=None):
        """Attends.

        Arguments:
            hidden: (B, T, D).
            padding_mask: (B, T), 1 for text and 0 for padding; or (B, Q, T), 1 where a position may look at another.
            first_only: answer for position 0 alone; Q below is then 1 instead of T.
            names: which of `query`, `key`, `value` (B, H, T, d) and `attention` (B, H, Q, T), the masked scores
                before softmax, to give out beside the result.
            firsts: (Q,) positions that `first_only` means in place of 0.

        Returns:
            The result, (B, Q, D), and a dict of what was named.
        """
        query, key, value = self._project(hidden, first_only, firsts)
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) * (1.0 / math.sqrt(self.size))  # (B, H, Q, T)
        looks = padding_mask if len(padding_mask.shape) == 3 else ops.expand_dims(padding_mask, 1)
        mask = ops.cast(ops.expand_dims(looks, 1), scores.dtype)  # (B, 1, 1 or Q, T)
        scores = scores * mask + (1.0 - mask) * self.masked_score
        # In half precision the sum of many small exponentials loses too much: softmax stays in float32.
        probabilities = ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=-1), self.compute_dtype)
        context = ops.matmul(self.dropout(probabilities, training=training), value)  # (B, H, Q, d)
        batch, positions = ops.shape(context)[0], ops.shape(context)[2]
        context = ops.reshape(ops.transpose(context, (0, 2, 1, 3)), (batch, positions, self.width))
        output = ops.matmul(context, self.output_kernel) + self.output_bias
        inner = {"query": query, "key": key, "value": value, "attention": scores}
        return output, {name: inner[name] for name in names}

    def _project(self, hidden, first_only, firsts):
        """(B, T, D) -> query (B, H, Q, d), key and value (B, H, T, d)."""
        if not first_only:
            fused = self._heads(ops.matmul(hidden, self.kernel) + self.bias, 3)
            return fused[0], fused[1], fused[2]
        width = self.width
        query = self._heads(ops.matmul(take_first(hidden, firsts), self.kernel[:, :width]) + self.bias[:width], 1)
        fused = self._heads(ops.matmul(hidden, self.kernel[:, width:]) + self.bias[width:], 2)
        return query[0], fused[0], fused[1]

    def _heads(self, fused, parts):
        """(B, T, parts * D) -> (parts, B, H, T, d)."""
        batch, length = ops.shape(fused)[0], ops.shape(fused)[1]
        return ops.transpose(ops.reshape(fused, (batch, length, parts, self.heads, self.size)), (2, 0, 3, 1, 4))

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "heads": self.heads,
            "dropout": self.dropout_rate,
            "masked_score": self.masked_score,
            "initializer_range": self.initializer_range,
        }


def take_first(hidden, firsts=None):
    """(B, T, D) -> position 0, (B, 1, D), or those of `firsts`, (B, Q, D)."""
    return hidden[:, :1] if firsts is None else ops.take(hidden, firsts, axis=1)
