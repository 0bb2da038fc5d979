"""The angles that the teacher sees between the examples of a batch."""

import keras
from keras import ops

from tfkd.objectives.divergences import huber
from tfkd.objectives.pairwise_objective import PairwiseObjective
from tfkd.objectives.vectors import differences, unit


@keras.saving.register_keras_serializable(package="tfkd")
class RKDAngle(PairwiseObjective):
    """The mean over j != k, both not i, of huber(cos s_j s_i s_k - cos t_j t_i t_k) for each example i, the vertex of the angles.

    cos s_j s_i s_k is the cosine of the angle at s_i between s_j - s_i and s_k - s_i. A batch of N examples takes N^2 cosines
    an example: N^3 numbers in all.

    Arguments: as `PairwiseObjective`.

    References:
        Park, Kim, Lu and Cho 2019, Relational Knowledge Distillation, arXiv:1904.05068, section 3.2.2 (there a sum over triples).
    """

    default_name = "rkd_angle"

    def compare(self, student, teacher, pairs):
        """(B, D) of both -> (B,)."""
        own, other = _cosines(student), _cosines(teacher)  # (B, N, N)
        count = ops.shape(own)[1]
        two = ops.not_equal(ops.expand_dims(ops.arange(count), 0), ops.expand_dims(ops.arange(count), 1))
        kept = ops.logical_and(ops.expand_dims(pairs.others, 1), ops.expand_dims(pairs.others, 2))
        kept = ops.cast(ops.logical_and(kept, two), own.dtype)
        return ops.sum(huber(own - other) * kept, axis=(1, 2)) / ops.maximum(ops.sum(kept, axis=(1, 2)), 1.0)


def _cosines(vectors):
    directions = unit(differences(*vectors))  # (B, N, D)
    return ops.matmul(directions, ops.transpose(directions, (0, 2, 1)))
