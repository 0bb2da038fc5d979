"""Feed-forward activations by name."""

import math

import keras
from keras import ops


def gelu(x):
    """x * Phi(x) with the exact normal distribution function (Hendrycks and Gimpel 2016, eq. 1).

    Spelled with erf: TensorFlow's own exact GELU uses erfc, which tf2onnx cannot write.
    """
    return 0.5 * x * (1.0 + ops.erf(x / math.sqrt(2.0)))


def gelu_tanh(x):
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    return keras.activations.gelu(x, approximate=True)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": keras.activations.relu, "tanh": keras.activations.tanh}


def get(name: str):
    """The activation called `name`. Raises `ValueError` with the known names."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation = {name!r}: must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
