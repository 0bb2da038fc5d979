"""The response of the teacher, where the student is asked to be sure only of what the teacher is."""

import keras

from tfkd.objectives.distribution_objective import DistributionObjective
from tfkd.objectives.divergences import kl


@keras.saving.register_keras_serializable(package="tfkd")
class ReverseKL(DistributionObjective):
    """T^2 * KL(student || teacher) = T^2 * sum_c q_c (log q_c - log p_c) of distributions softened by T.

    It punishes probability where the teacher has little, so that a small student picks one of the teacher's modes
    instead of covering all.

    Arguments: as `DistributionObjective`.

    References:
        Gu, Dong, Wei and Huang 2023, MiniLLM: Knowledge Distillation of Large Language Models, arXiv:2306.08543, section 2.
    """

    default_name = "reverse_kl"

    def compare(self, student, teacher, labels):
        """Log-probabilities (B, ..., C) -> (B, ...)."""
        return kl(student, teacher)
