"""The embedding layer of the teacher."""

import keras
from keras import ops

from tfkd.objectives.objective import Objective
from tfkd.objectives.projection import PROJECTIONS, make_projection


@keras.saving.register_keras_serializable(package="tfkd")
class EmbeddingMSE(Objective):
    """(1 / D) |e W - f|^2 at each position, e what the student's embedding layer gives and f the teacher's.

    Arguments:
        projection: `auto`, `always` or `never`, as in `make_projection`.
        weight: factor of this objective in the sum.

    Raises:
        ValueError: at build, the widths differ and `projection` is `never`.

    References:
        Jiao et al. 2019, TinyBERT, arXiv:1909.10351, eq. 9.
    """

    default_name = "embedding_mse"
    student_names = ("embeddings", "padding_mask")
    teacher_names = ("embeddings",)

    def __init__(self, projection: str = "auto", weight: float = 1.0, **kwargs):
        super().__init__(weight, **kwargs)
        self.require("projection", projection, projection in PROJECTIONS, ", ".join(PROJECTIONS))
        self.projection = projection

    def build(self, student_shape, teacher_shape):
        widths = student_shape["embeddings"][-1], teacher_shape["embeddings"][-1]
        self.project = make_projection(self.name, self.projection, *widths)
        self.built = True

    def values(self, student, teacher, mask):
        """(B, T, D) of both -> (B, T)."""
        own = student["embeddings"] if self.project is None else self.project(student["embeddings"])
        return ops.mean(ops.square(own - teacher["embeddings"]), axis=-1)

    def get_config(self):
        return {**super().get_config(), "projection": self.projection}
