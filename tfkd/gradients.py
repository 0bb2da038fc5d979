"""What a step does with gradients before its optimizer gets them."""

import tensorflow as tf
from keras import ops


def dense(gradient):
    """A gradient as one tensor, whatever the tape answered; None stays None.

    Of a table that is looked up, the tape has a slice for each lookup. Keras squares those before it sums the ones of a repeated
    token id, which is not Adam.
    """
    return tf.convert_to_tensor(gradient) if isinstance(gradient, tf.IndexedSlices) else gradient


def global_norm(gradients, denses):
    """sqrt(sum of all squares), float32, of gradients as the tape has them; `denses` are the same, each as one tensor.

    Of a table, sum_r |G_r|^2 = sum_i <g_i, G_row(i)>, for G_r is the sum of the slices g_i of row r: the rows of a
    batch are read, and not those of the whole vocabulary.
    """
    squares = [_sum_of_squares(gradient, whole) for gradient, whole in zip(gradients, denses, strict=True)]
    return ops.sqrt(ops.sum(ops.stack(squares))) if squares else ops.zeros(())


def _sum_of_squares(gradient, whole):
    if not isinstance(gradient, tf.IndexedSlices):
        return ops.sum(ops.square(ops.cast(whole, "float32")))
    slices, rows = (ops.cast(each, "float32") for each in (gradient.values, tf.gather(whole, gradient.indices)))
    found = ops.sum(slices * rows)
    return ops.where(found < 0.0, 0.0, found)  # by rounding, where slices cancel; a `maximum` might lose a nan
