"""Rounding as integer arithmetic will round, in float, so that a model can learn to live with it."""

from keras import ops

LEVELS = 255
"""Steps between the smallest and the largest of 256 values."""


def round_through(values):
    """round(x), half to even, with the gradient of x: the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432)."""
    return values + ops.stop_gradient(ops.round(values) - values)


def fake_quantize(values, low, high):
    """s (clip(round(x / s) + z, 0, 255) - z), with s = (high - low) / 255 and z = round(-low / s) (Jacob et al. 2018, section 3).

    Gradients go straight through every rounding: x has that of the identity inside the range and 0 outside; of the range, what
    is cut off pulls at its nearer end and what is rounded at s, by round(x / s) - x / s (Esser et al. 2020, equation 3).

    Arguments:
        values: any shape.
        low, high: of the 256 values, low <= 0 <= high, so that 0 is one of them; not both 0.
    """
    scale = (high - low) / LEVELS
    zero = round_through(-low / scale)
    return (ops.clip(round_through(values / scale) + zero, 0.0, float(LEVELS)) - zero) * scale


def fake_quantize_kernel(kernel):
    """s round(w / s), with s = max|w| / 127 for each column (D, C): int8 with a scale a channel; gradient of the identity."""
    scale = ops.max(ops.abs(kernel), axis=0, keepdims=True) / 127.0
    scale = ops.where(scale > 0.0, scale, 1.0)
    return kernel + ops.stop_gradient(ops.round(kernel / scale) * scale - kernel)
