"""Where the teacher looks, and how what it finds there is related."""

import keras

from tfkd.objectives.attention_objective import AttentionObjective
from tfkd.objectives.relations import dot_products, relation_kl


@keras.saving.register_keras_serializable(package="tfkd")
class MiniLMv1(AttentionObjective):
    """(1 / H) sum_h [KL(P_hq || P'_hq) + KL(R_hq || R'_hq)] at each position q, R = softmax(V V^T / sqrt(d)).

    P are attention probabilities and R value relations, the teacher's, primes the student's. The two may differ in width but
    not in heads. Meant for the last layer of both alone, `layers: [[-1, -1]]` in a configuration.

    Arguments: as `AttentionObjective`.

    References:
        Wang et al. 2020, MiniLM, arXiv:2002.10957, sections 3.1 and 3.2.
    """

    default_name = "minilm_v1"
    stems = ("attention", "value")
    default_layers = ((-1, -1),)

    def compare(self, student, teacher, mask):
        """[(B, H, T, T), (B, H, T, d)] of both -> (B, T)."""
        kept = mask.positions_of(student[0][:, 0])
        attention = relation_kl(student[0], teacher[0], kept, self.average_heads)
        return attention + relation_kl(dot_products(student[1]), dot_products(teacher[1]), kept, self.average_heads)
