"""Which of a batch's teacher vectors is an example's own."""

import math

import keras
from keras import ops

from tfkd.objectives.pairwise_objective import PairwiseObjective
from tfkd.objectives.projection import PROJECTIONS, make_projection
from tfkd.objectives.text_mask import log_softmax_over
from tfkd.objectives.vectors import unit


@keras.saving.register_keras_serializable(package="tfkd")
class Contrastive(PairwiseObjective):
    """-log(exp(cos(s_i W, t_i) / t) / sum_j exp(cos(s_i W, t_j) / t)) for each example i, j over the batch: InfoNCE.

    From 0 to about 2 / t + log N. Not 0 where the student is the teacher, and least a little beyond it: it also pushes away
    from the teacher's other vectors. Two equal texts in a batch push each other away too.

    Arguments:
        vector, layers, weight: as `PairwiseObjective`.
        tau: t > 0, the temperature of the similarities; nothing to do with that of softened answers.
        projection: of the student's vectors: `auto`, `always` or `never`, as in `make_projection`.

    Raises:
        ValueError: at build, the widths differ and `projection` is `never`.

    References:
        van den Oord, Li and Vinyals 2018, arXiv:1807.03748, eq. 4, with the cosines of Chen et al. 2020, SimCLR,
        arXiv:2002.05709, between the two models as in Tian, Krishnan and Isola 2019, CRD, arXiv:1910.10699, whose 0.07 it is.
    """

    default_name = "contrastive"

    def __init__(
        self,
        vector: str = "pooled",
        layers=None,
        tau: float = 0.07,
        projection: str = "auto",
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(vector, layers, weight, **kwargs)
        self.require("tau", tau, 0.0 < tau < math.inf, "above 0")
        self.require("projection", projection, projection in PROJECTIONS, ", ".join(PROJECTIONS))
        self.tau, self.projection = tau, projection

    def build(self, student_shape, teacher_shape):
        pairs = self.pairs_of_names()
        widths = {(student_shape[own][-1], teacher_shape[other][-1]) for own, other in pairs}
        if len(widths) > 1:
            raise ValueError(f"{self.name}: the layers differ in width: {sorted(widths)}: give each its own objective")
        self.project = make_projection(self.name, self.projection, *widths.pop())
        self.built = True

    def project_student(self, vectors):
        return vectors if self.project is None else self.project(vectors)

    def compare(self, student, teacher, pairs):
        """(B, D) of both -> (B,)."""
        cosines = ops.matmul(unit(student.own), ops.transpose(unit(teacher.everyone)))  # (B, N)
        chosen = log_softmax_over(cosines / self.tau, pairs.valid)
        return -ops.sum(ops.where(pairs.same, chosen, 0.0), axis=1)

    def get_config(self):
        return {**super().get_config(), "tau": self.tau, "projection": self.projection}
