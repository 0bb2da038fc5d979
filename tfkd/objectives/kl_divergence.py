"""The response of the teacher, as Hinton distilled it."""

import keras

from tfkd.objectives.distribution_objective import DistributionObjective
from tfkd.objectives.divergences import kl


@keras.saving.register_keras_serializable(package="tfkd")
class KLDivergence(DistributionObjective):
    """T^2 * KL(teacher || student) = T^2 * sum_c p_c (log p_c - log q_c) of distributions softened by T.

    It is 0 where they agree, unlike a cross-entropy with soft labels, which has the same gradient.

    Arguments: as `DistributionObjective`.

    References:
        Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531, section 2.
    """

    default_name = "kl_divergence"

    def compare(self, student, teacher, labels):
        """Log-probabilities (B, ..., C) -> (B, ...)."""
        return kl(teacher, student)
