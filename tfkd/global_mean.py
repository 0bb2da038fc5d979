"""Weighted means over a whole batch, whichever replica holds what part of it."""

import tensorflow as tf
from keras import ops


def global_mean(values, weights, total=None):
    """This replica's part of the weighted mean over all replicas' values; the parts, and their gradients, add up to it.

    Dividing by the replica's own weight instead would count an example more where its replica holds few, and a
    hand-written mean without any such care doubles the gradient on two replicas. A value of weight 0 never matters.
    `total` is the sum of the weights where these are not all there are.
    """
    weighted = ops.where(weights > 0.0, values, 0.0) * weights
    return ops.divide_no_nan(ops.sum(weighted), global_sum(ops.sum(weights)) if total is None else total)


def global_sum(value):
    """The sum of a number over all replicas, float32."""
    value = ops.cast(value, "float32")
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def weights_of(values, x, sample_weight):
    """Weights of `values` (B,) or (B, T), float32: the sample weights, and for positions the padding mask of `x` too."""
    weights = ops.ones(ops.shape(values)[:1]) if sample_weight is None else ops.cast(sample_weight, "float32")
    if len(values.shape) == 1:
        return weights_of_examples(weights, x)
    if len(weights.shape) == 1:
        weights = ops.expand_dims(weights, -1)
    return weights * ops.cast(x["padding_mask"], "float32")


def weights_of_examples(weights, x):
    """Weights (B,) of examples out of those of examples or of positions (B, T): the largest of a text's, padding left out."""
    weights = ops.cast(weights, "float32")
    if len(weights.shape) == 1:
        return weights
    if isinstance(x, dict) and "padding_mask" in x:
        weights = weights * ops.cast(x["padding_mask"], "float32")
    return ops.max(weights, axis=-1)
