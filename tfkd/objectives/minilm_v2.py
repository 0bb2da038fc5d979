"""How the teacher's queries are related, and its keys, and its values."""

import math

import keras
from keras import ops

from tfkd.objectives.layer_objective import LayerObjective
from tfkd.objectives.relations import dot_products, relation_kl

RELATIONS = ("query", "key", "value")
SMALLEST_HEAD = 16
"""Width of a relation head of the teacher's by default: 48 heads of BERT-base's 768, 64 of BERT-large's 1024, as published."""


@keras.saving.register_keras_serializable(package="tfkd")
class MiniLMv2(LayerObjective):
    """sum_{X in Q, K, V} (1 / A) sum_a KL(R_aq || R'_aq) at each position q, R_a = softmax(X_a X_a^T / sqrt(d)).

    All heads of X side by side, H d wide, are cut anew into A relation heads, the teacher's and the student's alike, so that
    neither their attention heads nor their widths need to agree. Meant for one layer, `layers: [[-1, -1]]` in a
    configuration; for deep teachers the authors take one a few layers below the last.

    Arguments:
        layers: pairs (student layer, teacher layer), from 0.
        relation_heads: A; must divide both widths. None takes the largest such number that leaves the teacher's heads at
            least 16 wide.
        relations: which of `query`, `key` and `value`.
        weight: factor of this objective in the sum.

    Raises:
        ValueError: at build, A does not divide the widths.

    References:
        Wang et al. 2021, MiniLMv2, arXiv:2012.15828, section 3.
    """

    default_name = "minilm_v2"
    default_layers = ((-1, -1),)

    def __init__(self, layers, relation_heads: int | None = None, relations=RELATIONS, weight: float = 1.0, **kwargs):
        self.stems = tuple(relations) if not isinstance(relations, str) else (relations,)
        super().__init__(layers, weight, **kwargs)
        known = 0 < len(set(self.stems)) == len(self.stems) and set(self.stems) <= set(RELATIONS)
        self.require("relations", relations, known, "some of query, key and value, each once")
        whole = isinstance(relation_heads, int) and not isinstance(relation_heads, bool) and relation_heads >= 1
        self.require("relation_heads", relation_heads, relation_heads is None or whole, "a whole number from 1, or none")
        self.relation_heads = relation_heads

    def build(self, student_shape, teacher_shape):
        own, other = self.sizes(student_shape, teacher_shape, lambda shape: shape[1] * shape[3], "widths")
        common = [heads for heads in range(1, math.gcd(own, other) + 1) if own % heads == 0 == other % heads]
        self.heads = self.relation_heads or max(heads for heads in common if heads == 1 or other // heads >= SMALLEST_HEAD)
        if self.heads not in common:
            raise ValueError(
                f"{self.name}: relation_heads = {self.heads} does not divide the student's width {own} and the teacher's "
                f"{other}: use one of {', '.join(map(str, common))}"
            )
        self.built = True

    def compare(self, student, teacher, mask):
        """[(B, H, T, d)] of each relation, of both -> (B, T)."""
        total = 0.0
        for own, other in zip(student, teacher, strict=True):
            kept = mask.positions_of(own[:, 0])
            total += relation_kl(dot_products(self._cut(own)), dot_products(self._cut(other)), kept)
        return total

    def _cut(self, vectors):
        """(B, H, T, d) -> (B, A, T, H d / A)."""
        batch, length = ops.shape(vectors)[0], ops.shape(vectors)[2]
        width = vectors.shape[1] * vectors.shape[3]
        joined = ops.reshape(ops.transpose(vectors, (0, 2, 1, 3)), (batch, length, self.heads, width // self.heads))
        return ops.transpose(joined, (0, 2, 1, 3))

    def get_config(self):
        return {**super().get_config(), "relation_heads": self.relation_heads, "relations": list(self.stems)}
