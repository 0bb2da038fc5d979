"""One encoder block: attention, feed-forward, two residual sums, two layer normalizations."""

import keras

from tfkd.layers.attention import MASKED_SCORE, MultiHeadSelfAttention, take_first
from tfkd.layers.dropout import Dropout
from tfkd.layers.feed_forward import FeedForward


@keras.saving.register_keras_serializable(package="tfkd")
class TransformerBlock(keras.layers.Layer):
    """x + attention(x), then x + feed_forward(x), each normalized after the sum (`post`, as BERT) or before (`pre`, as GPT-2).

    Arguments:
        width: D.
        heads: H.
        feed_forward: inner width of the feed-forward layer.
        activation: `gelu`, `gelu_tanh` or `relu`.
        norm: `post` or `pre`.
        dropout: share of each sub-layer's output dropped in training.
        attention_dropout: share of attention probabilities dropped in training.
        epsilon: of the layer normalizations.
        masked_score, initializer_range: as in `MultiHeadSelfAttention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        activation: str = "gelu",
        norm: str = "post",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        epsilon: float = 1e-12,
        masked_score: float = MASKED_SCORE,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if norm not in ("post", "pre"):
            raise ValueError(f"norm = {norm!r}: must be post or pre")
        self.config = {
            "width": width,
            "heads": heads,
            "feed_forward": feed_forward,
            "activation": activation,
            "norm": norm,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "epsilon": epsilon,
            "masked_score": masked_score,
            "initializer_range": initializer_range,
        }
        self.width, self.pre_norm = width, norm == "pre"
        policy = self.dtype_policy
        self.attention = MultiHeadSelfAttention(
            width, heads, attention_dropout, masked_score, initializer_range, dtype=policy, name="attention"
        )
        self.attention_norm = keras.layers.LayerNormalization(epsilon=epsilon, dtype=policy, name="attention_norm")
        self.feed_forward = FeedForward(width, feed_forward, activation, initializer_range, dtype=policy, name="feed_forward")
        self.feed_forward_norm = keras.layers.LayerNormalization(epsilon=epsilon, dtype=policy, name="feed_forward_norm")
        self.dropout = Dropout(dropout, dtype=policy, name="dropout")

    def build(self, input_shape=None):
        for layer in (self.attention, self.attention_norm, self.feed_forward, self.feed_forward_norm):
            layer.build((None, None, self.width))
        self.built = True

    def call(self, hidden, padding_mask, training=None, first_only=False, names=(), firsts=None):
        """(B, T, D), (B, T) -> (B, T, D), or (B, 1, D) with `first_only`; and the attention's inner tensors by name.

        `padding_mask` and `firsts` may be more, as in `MultiHeadSelfAttention`.
        """
        first = take_first(hidden, firsts) if first_only else hidden
        source = self.attention_norm(hidden) if self.pre_norm else hidden
        how = {"training": training, "first_only": first_only, "names": names, "firsts": firsts}
        attended, inner = self.attention(source, padding_mask, **how)
        hidden = first + self.dropout(attended, training=training)
        if not self.pre_norm:
            hidden = self.attention_norm(hidden)
        fed = self.feed_forward(self.feed_forward_norm(hidden) if self.pre_norm else hidden)
        hidden = hidden + self.dropout(fed, training=training)
        return (hidden if self.pre_norm else self.feed_forward_norm(hidden)), inner

    def get_config(self):
        return {**super().get_config(), **self.config}
