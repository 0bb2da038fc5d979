"""Which examples of a batch the teacher finds alike."""

import keras
from keras import ops

from tfkd.objectives.pairwise_objective import PairwiseObjective, mean_over
from tfkd.objectives.vectors import unit


@keras.saving.register_keras_serializable(package="tfkd")
class SimilarityPreserving(PairwiseObjective):
    """(1 / N) |G_i / |G_i| - G'_i / |G'_i||^2 for each example i, G_ij = s_i s_j and G'_ij = t_i t_j over the N of the batch.

    Arguments: as `PairwiseObjective`.

    References:
        Tung and Mori 2019, Similarity-Preserving Knowledge Distillation, arXiv:1907.09682, its L_SP (there of activation maps).
    """

    default_name = "similarity_preserving"

    def compare(self, student, teacher, pairs):
        """(B, D) of both -> (B,)."""
        # Rows that do not count are 0 vectors: their products are 0 and lengthen nothing.
        own, other = (unit(ops.matmul(vectors.own, ops.transpose(vectors.everyone))) for vectors in (student, teacher))
        return mean_over(ops.square(own - other), pairs.valid)
