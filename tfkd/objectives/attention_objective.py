"""The base of objectives over attention."""

from tfkd.objectives.layer_objective import LayerObjective


class AttentionObjective(LayerObjective):
    """Compares attention head by head, or averaged over the heads.

    Arguments:
        layers: pairs (student layer, teacher layer), from 0; `layer_pairs` makes them of `uniform`, `last` or `first`.
        average_heads: compare averages over the heads, whose numbers may then differ. It asks for much less: an average says
            little about what single heads look at. `minilm_v2` needs no such average.
        weight: factor of this objective in the sum.

    Raises:
        ValueError: at build, the numbers of heads differ and `average_heads` is off.
    """

    stems = ("attention",)

    def __init__(self, layers, average_heads: bool = False, weight: float = 1.0, **kwargs):
        super().__init__(layers, weight, **kwargs)
        self.require("average_heads", average_heads, isinstance(average_heads, bool), "true or false")
        self.average_heads = average_heads

    def build(self, student_shape, teacher_shape):
        own, other = self.sizes(student_shape, teacher_shape, lambda shape: shape[1], "heads")
        if own != other and not self.average_heads:
            raise ValueError(
                f"{self.name}: the student has {own} attention heads, the teacher {other}: give the student as many, set "
                "average_heads: true, or use minilm_v2"
            )
        self.built = True

    def get_config(self):
        return {**super().get_config(), "average_heads": self.average_heads}
