"""Token ids to vectors."""

import keras
import numpy as np
from keras import ops

from tfkd.layers.dropout import Dropout


@keras.saving.register_keras_serializable(package="tfkd")
class TokenEmbedding(keras.layers.Layer):
    """Sums token, segment and position vectors, normalizes and drops out (Devlin et al. 2018, figure 2).

    Arguments:
        vocabulary_size: number of token ids, V.
        width: size of a vector, D.
        max_positions: longest text the layer can take.
        segments: number of segment ids; 0 for none (as DistilBERT).
        position: `learned`, or `sinusoidal` (Vaswani et al. 2017, section 3.5).
        normalize: whether layer normalization follows the sum (post-norm encoders do it).
        epsilon: of the layer normalization.
        dropout: share of values dropped in training.
        token_dropout: share of whole token vectors dropped in training (word dropout, Iyyer et al. 2015, section 2.2).
        initializer_range: standard deviation of the tables' truncated normal start.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int,
        max_positions: int,
        segments: int = 0,
        position: str = "learned",
        normalize: bool = True,
        epsilon: float = 1e-12,
        dropout: float = 0.1,
        token_dropout: float = 0.0,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if position not in ("learned", "sinusoidal"):
            raise ValueError(f"position = {position!r}: must be learned or sinusoidal")
        self.vocabulary_size, self.width, self.max_positions = vocabulary_size, width, max_positions
        self.segments, self.position, self.normalize = segments, position, normalize
        self.epsilon, self.dropout_rate, self.initializer_range = epsilon, dropout, initializer_range
        self.token_dropout_rate = token_dropout
        self.layer_norm = (
            keras.layers.LayerNormalization(epsilon=epsilon, dtype=self.dtype_policy, name="layer_norm") if normalize else None
        )
        whole = (None, None, 1)  # one draw a token
        self.token_dropout = Dropout(token_dropout, noise_shape=whole, dtype=self.dtype_policy, name="token_dropout")
        self.dropout = Dropout(dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape=None):
        def table(name, rows):
            start = keras.initializers.TruncatedNormal(stddev=self.initializer_range)
            return self.add_weight(name=name, shape=(rows, self.width), initializer=start)

        self.token_table = table("token_table", self.vocabulary_size)
        self.segment_table = table("segment_table", self.segments) if self.segments else None
        self.position_table = table("position_table", self.max_positions) if self.position == "learned" else None
        if self.position == "sinusoidal":
            self.waves = sinusoids(self.max_positions, self.width)
        if self.layer_norm is not None:
            self.layer_norm.build((None, None, self.width))
        self.built = True

    def call(self, token_ids, segment_ids=None, training=None, positions=None):
        """(B, T) int ids, (B, T) int segments or None for all 0, (B, T) int positions or None for 0 to T - 1 -> (B, T, D)."""
        hidden = ops.take(self.token_table, token_ids, axis=0)  # (B, T, D)
        hidden = self.token_dropout(hidden, training=training)
        table = self.position_table if self.position == "learned" else ops.convert_to_tensor(self.waves)
        table = table[: ops.shape(token_ids)[1]] if positions is None else _rows(table, positions)
        hidden = hidden + ops.cast(table, self.compute_dtype)
        if self.segments:
            if segment_ids is None:
                hidden = hidden + self.segment_table[0]
            else:
                hidden = hidden + ops.take(self.segment_table, segment_ids, axis=0)
        if self.layer_norm is not None:
            hidden = self.layer_norm(hidden)
        return self.dropout(hidden, training=training)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "width": self.width,
            "max_positions": self.max_positions,
            "segments": self.segments,
            "position": self.position,
            "normalize": self.normalize,
            "epsilon": self.epsilon,
            "dropout": self.dropout_rate,
            "token_dropout": self.token_dropout_rate,
            "initializer_range": self.initializer_range,
        }


def sinusoids(positions: int, width: int) -> np.ndarray:
    """(positions, width): sin(p / 10000^(2i/D)) at even columns 2i, cos at odd ones (Vaswani et al. 2017)."""
    angles = np.arange(positions)[:, None] / 10000.0 ** (np.arange(0, width, 2)[None, :] / width)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(positions, width).astype("float32")


def _rows(table, positions):
    """(P, D), (B, T) -> (B, T, D), as `ops.take` does; its gradient is a product, in place of B * T additions one by one."""

    @ops.custom_gradient
    def chosen(table):
        def gradient(*arguments, upstream=None):
            upstream = arguments[0] if upstream is None else upstream
            which = ops.one_hot(ops.reshape(positions, (-1,)), table.shape[0], dtype=upstream.dtype)
            return ops.matmul(ops.transpose(which), ops.reshape(upstream, (-1, table.shape[1])))

        return ops.take(table, positions, axis=0), gradient

    return chosen(table[:])  # a tensor: what reads a variable would have to give its gradient by name
