"""The base of objectives over hidden states."""

from tfkd.objectives.layer_objective import LayerObjective
from tfkd.objectives.projection import PROJECTIONS, make_projection


class FeatureObjective(LayerObjective):
    """Compares hidden states of pairs of layers, the student's projected to the teacher's width where they differ.

    All pairs share one projection, as in TinyBERT's code: the layers of a Transformer write into one residual stream.
    A subclass writes `difference(student, teacher)`: (B, T, D), of one width -> (B, T); or, with `first_only`,
    (B, D) -> (B,).

    Arguments:
        layers: pairs (student layer, teacher layer), from 0; `layer_pairs` makes them of `uniform`, `last` or `first`.
        projection: `auto`, `always` or `never`, as in `make_projection`.
        weight: factor of this objective in the sum.

    Raises:
        ValueError: at build, the widths differ and `projection` is `never`.
    """

    first_only = False

    def __init__(self, layers, projection: str = "auto", weight: float = 1.0, **kwargs):
        super().__init__(layers, weight, **kwargs)
        self.require("projection", projection, projection in PROJECTIONS, ", ".join(PROJECTIONS))
        self.projection = projection

    def build(self, student_shape, teacher_shape):
        widths = self.sizes(student_shape, teacher_shape, lambda shape: shape[-1], "widths")
        self.project = make_projection(self.name, self.projection, *widths)
        self.built = True

    def compare(self, student, teacher, mask):
        """[(B, T, D)] of both -> (B,) or (B, T)."""
        own, other = student[0], teacher[0]
        if self.first_only:
            own, other = own[:, 0], other[:, 0]
        return self.difference(own if self.project is None else self.project(own), other)

    def difference(self, student, teacher):
        raise TypeError(f"{type(self).__name__} must define difference(student, teacher)")

    def get_config(self):
        return {**super().get_config(), "projection": self.projection}
