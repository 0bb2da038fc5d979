"""Divergences that several objectives share."""

from keras import ops


def kl(first, second):
    """KL(p || q) = sum_c p_c (log p_c - log q_c) of log-probabilities `first` = log p and `second` = log q, (..., C) -> (...)."""
    return ops.sum(ops.exp(first) * (first - second), axis=-1)


def huber(error):
    """x^2 / 2 where |x| <= 1, |x| - 1/2 beyond, elementwise."""
    size = ops.absolute(error)
    return ops.where(size <= 1.0, 0.5 * ops.square(error), size - 0.5)
