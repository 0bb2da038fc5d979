"""The base of objectives over layers."""

from tfkd.objectives.layer_map import check_pairs
from tfkd.objectives.objective import Objective


class LayerObjective(Objective):
    """Compares inner tensors of pairs of layers, and averages over the pairs.

    A subclass sets `stems`, what it asks each layer for, and writes `compare(student, teacher, mask)`: two lists of those
    tensors, in that order -> (B,) or (B, T).

    Arguments:
        layers: pairs (student layer, teacher layer), from 0; `layer_pairs` makes them of `uniform`, `last` or `first`.
        weight: factor of this objective in the sum.
    """

    stems: tuple[str, ...] = ("hidden",)
    default_layers = "uniform"

    def __init__(self, layers, weight: float = 1.0, **kwargs):
        super().__init__(weight, **kwargs)
        self.layers = tuple(check_pairs(layers, f"{self.name}: layers"))
        student, teacher = zip(*self.layers, strict=True)
        self.student_names = (*layer_names(self.stems, student), "padding_mask")
        self.teacher_names = layer_names(self.stems, teacher)

    def values(self, student, teacher, mask):
        """The tensors of all layers -> the mean over the pairs, (B,) or (B, T)."""
        total = 0.0
        for i, j in self.layers:
            own, other = [student[f"{stem}.{i}"] for stem in self.stems], [teacher[f"{stem}.{j}"] for stem in self.stems]
            total += self.compare(own, other, mask)
        return total / len(self.layers)

    def compare(self, student, teacher, mask):
        raise TypeError(f"{type(self).__name__} must define compare(student, teacher, mask)")

    def sizes(self, student_shape, teacher_shape, measure, what: str) -> tuple[int, int]:
        """`measure(shape)` of the student's layers and of the teacher's, for the first stem.

        Raises:
            ValueError: the layers of one model differ in it.
        """
        found = []
        for side, (who, shapes) in enumerate([("student", student_shape), ("teacher", teacher_shape)]):
            sizes = sorted({measure(shapes[f"{self.stems[0]}.{pair[side]}"]) for pair in self.layers})
            if len(sizes) > 1:
                raise ValueError(f"{self.name}: the {who}'s layers have {sizes} {what}: give each its own objective")
            found.append(sizes[0])
        return found[0], found[1]

    def get_config(self):
        return {**super().get_config(), "layers": [list(pair) for pair in self.layers]}


def layer_names(stems, layers) -> tuple[str, ...]:
    """`hidden.0`, `hidden.2` ..., each once."""
    return tuple(dict.fromkeys(f"{stem}.{layer}" for stem in stems for layer in layers))
