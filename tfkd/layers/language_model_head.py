"""The head that says which piece stands at a position."""

import keras
from keras import ops

from tfkd.layers.activation import ACTIVATIONS


@keras.saving.register_keras_serializable(package="tfkd")
class LanguageModelHead(keras.layers.Layer):
    """layer_norm(gelu(W h + b)) E^T + c, with the encoder's own token table E (Devlin et al. 2018, as its authors' code has it).

    Arguments:
        classes: V, pieces in the vocabulary.
        epsilon: of the layer normalization.
    """

    names = ()
    first_only = False

    def __init__(self, classes: int, epsilon: float = 1e-12, **kwargs):
        super().__init__(**kwargs)
        self.classes, self.epsilon = classes, epsilon
        self.layer_norm = keras.layers.LayerNormalization(epsilon=epsilon, dtype=self.dtype_policy, name="layer_norm")
        self.table = None

    def tie(self, embedding: keras.layers.Layer) -> None:
        """Scores pieces by the rows of a `TokenEmbedding`'s table, which stays that layer's own."""
        if embedding.vocabulary_size != self.classes:
            raise ValueError(f"{self.name} scores {self.classes} pieces, the encoder knows {embedding.vocabulary_size}")
        self.table = lambda: embedding.token_table  # in a function, so that Keras does not take it for a part of the head

    def build(self, input_shape):
        width = input_shape[-1]
        self.hidden_dense = keras.layers.Dense(
            width,
            activation=ACTIVATIONS["gelu"],
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            dtype=self.dtype_policy,
            name="hidden",
        )
        self.hidden_dense.build((None, None, width))
        self.layer_norm.build((None, None, width))
        self.bias = self.add_weight(name="bias", shape=(self.classes,), initializer="zeros")
        self.built = True

    def call(self, hidden, padding_mask, training=None):
        """(B, T, D), (B, T) -> logits (B, T, V), and nothing else."""
        hidden = self.layer_norm(self.hidden_dense(hidden))
        table = ops.cast(self.table(), self.compute_dtype)  # (V, D)
        return ops.matmul(hidden, ops.transpose(table)) + ops.cast(self.bias, self.compute_dtype), {}

    def get_config(self):
        return {**super().get_config(), "classes": self.classes, "epsilon": self.epsilon}
