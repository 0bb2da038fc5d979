"""The position-wise half of a Transformer block."""

import keras

from tfkd.layers import activation as activations


@keras.saving.register_keras_serializable(package="tfkd")
class FeedForward(keras.layers.Layer):
    """W2 f(W1 x + b1) + b2, the same at every position (Vaswani et al. 2017, eq. 2).

    Arguments:
        width: D, input and output.
        inner: size of f's argument.
        activation: `gelu`, `gelu_tanh` or `relu`.
        initializer_range: standard deviation of the kernels' truncated normal start.
    """

    def __init__(self, width: int, inner: int, activation: str = "gelu", initializer_range: float = 0.02, **kwargs):
        super().__init__(**kwargs)
        self.width, self.inner, self.activation, self.initializer_range = width, inner, activation, initializer_range
        self.function = activations.get(activation)

        def dense(units, name):
            start = keras.initializers.TruncatedNormal(stddev=initializer_range)
            return keras.layers.Dense(units, kernel_initializer=start, dtype=self.dtype_policy, name=name)

        self.expand = dense(inner, "expand")
        self.contract = dense(width, "contract")

    def build(self, input_shape=None):
        self.expand.build((None, None, self.width))
        self.contract.build((None, None, self.inner))
        self.built = True

    def call(self, hidden):
        """(B, T, D) -> (B, T, D)."""
        return self.contract(self.function(self.expand(hidden)))

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "inner": self.inner,
            "activation": self.activation,
            "initializer_range": self.initializer_range,
        }
