"""Relations between positions: scaled dot-products, and how two sets of them differ."""

import math

from keras import ops

from tfkd.objectives.divergences import kl
from tfkd.objectives.text_mask import log_softmax_over


def dot_products(vectors):
    """x x^T / sqrt(d) of every head: (B, H, T, d) -> (B, H, T, T)."""
    return ops.matmul(vectors, ops.transpose(vectors, (0, 1, 3, 2))) / math.sqrt(vectors.shape[-1])


def relation_kl(student, teacher, kept, average_heads: bool = False):
    """(1 / H) sum_h KL(softmax teacher_h || softmax student_h) at each position, over the positions `kept` alone.

    Arguments:
        student, teacher: scores before softmax (B, H, T, T).
        kept: (B, T) bool.
        average_heads: compare the mean distribution over the heads of each; the two may then have different numbers of them.

    Returns:
        (B, T).
    """
    keys = ops.expand_dims(kept, (1, 2))  # (B, 1, 1, T)
    own, other = log_softmax_over(student, keys), log_softmax_over(teacher, keys)
    if average_heads:
        own, other = _mean_distribution(own), _mean_distribution(other)
    return ops.mean(kl(other, own), axis=1)


def _mean_distribution(log_probabilities):
    """log of the mean over heads: (B, H, T, T) -> (B, 1, T, T)."""
    return ops.logsumexp(log_probabilities, axis=1, keepdims=True) - math.log(log_probabilities.shape[1])
