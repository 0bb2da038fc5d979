"""The response of the teacher, as Hinton distilled it."""

import keras
from keras import ops

from tfkd.objectives.objective import ResponseObjective


@keras.saving.register_keras_serializable(package="tfkd")
class KLDivergence(ResponseObjective):
    """T^2 * KL(teacher || student) = T^2 * sum_c p_c (log p_c - log q_c) of distributions softened by T.

    It is 0 where they agree, unlike a cross-entropy with soft labels, which has the same gradient.

    References:
        Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531, section 2.
    """

    default_name = "kl_divergence"

    def divergence(self, student, teacher):
        """Log-probabilities (B, ..., C) -> (B, ...)."""
        return ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
