"""Directions and distances whose gradients stay finite at 0."""

from keras import ops


def unit(x):
    """x / |x| along the last axis; 0 stays 0."""
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(ops.where(square > 0.0, square, 1.0))


def differences(x, y):
    """y_j - x_i of vectors (B, D) and (N, D) -> (B, N, D). Not by |x|^2 + |y|^2 - 2 x y, which cancels for near ones."""
    return ops.expand_dims(y, 0) - ops.expand_dims(x, 1)


def distances(x, y):
    """|y_j - x_i| of vectors (B, D) and (N, D) -> (B, N); its gradient where two coincide is 0."""
    square = ops.sum(ops.square(differences(x, y)), axis=-1)
    apart = square > 0.0
    return ops.where(apart, ops.sqrt(ops.where(apart, square, 1.0)), 0.0)
