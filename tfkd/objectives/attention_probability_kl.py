"""Where the teacher looks."""

import keras

from tfkd.objectives.attention_objective import AttentionObjective
from tfkd.objectives.relations import relation_kl


@keras.saving.register_keras_serializable(package="tfkd")
class AttentionProbabilityKL(AttentionObjective):
    """(1 / H) sum_h KL(P_hq || P'_hq) at each position q; the mean over pairs of layers.

    P are the teacher's attention probabilities over the positions of the text, P' the student's.

    Arguments: as `AttentionObjective`.

    References:
        Wang et al. 2020, MiniLM, arXiv:2002.10957, section 3.1; Sun et al. 2020, MobileBERT, arXiv:2004.02984,
        attention transfer among the training objectives.
    """

    default_name = "attention_probability_kl"

    def compare(self, student, teacher, mask):
        """[(B, H, T, T)] of both -> (B, T)."""
        return relation_kl(student[0], teacher[0], mask.positions_of(student[0][:, 0]), self.average_heads)
