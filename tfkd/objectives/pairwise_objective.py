"""The base of objectives over relations between examples."""

from typing import Any, NamedTuple

from keras import ops

from tfkd.objectives.gather import gather, own_rows
from tfkd.objectives.layer_map import check_pairs
from tfkd.objectives.layer_objective import layer_names
from tfkd.objectives.objective import Objective


class Vectors(NamedTuple):
    """One vector an example, 0 for rows that do not count: of this replica (B, D), and of all replicas (N, D)."""

    own: Any
    everyone: Any


class Pairs(NamedTuple):
    """Which pairs of an own row and any row count: (B, N) bool each.

    `valid`: both count; `same`: both are one example, which counts; `others`: both count and are two.
    """

    valid: Any
    same: Any
    others: Any


class PairwiseObjective(Objective):
    """Compares how the examples of a batch are related, for the student and for the teacher.

    The batch is that of all replicas: their number changes neither values nor gradients. Rows that fill up a batch
    (`example_weight` 0) are in no pair; other weights do not weigh the pairs.

    A subclass writes `compare(student, teacher, pairs)`: `Vectors` of both and `Pairs` -> (B,), what each own row has to do
    with all rows; and `project_student`, if it compares the vectors themselves and not relations between them.

    Arguments:
        vector: what stands for an example. `pooled`, the tensor of that name; `mean`, the mean of a layer's hidden states
            over the text's positions.
        layers: with `mean`, the pairs (student layer, teacher layer), from 0, whose values are averaged.
        weight: factor of this objective in the sum.
    """

    default_layers = ((-1, -1),)

    def __init__(self, vector: str = "pooled", layers=None, weight: float = 1.0, **kwargs):
        super().__init__(weight, **kwargs)
        self.require("vector", vector, vector in ("pooled", "mean"), "pooled or mean")
        self.vector = vector
        if vector == "pooled":
            self.require("layers", layers, layers is None, "left out unless vector = 'mean'")
            self.layers, names = None, (("pooled",), ("pooled",))
        else:
            self.layers = tuple(check_pairs(layers, f"{self.name}: layers"))
            names = [layer_names(("hidden",), side) for side in zip(*self.layers, strict=True)]
        self.student_names = (*names[0], *(["padding_mask"] if vector == "mean" else []), "example_weight")
        self.teacher_names = names[1]

    def values(self, student, teacher, mask):
        """(B, D) or (B, T, D) of both -> the mean over the pairs of layers, (B,)."""
        tensors = [(student[own], teacher[other]) for own, other in self.pairs_of_names()]
        pairs = _pairs(mask.rows_of(tensors[0][0]))
        total = 0.0
        for own, other in tensors:
            own, other = self._vectors(own, mask), self._vectors(other, mask)
            own = self.project_student(own)
            total += self.compare(Vectors(own, gather(own)), Vectors(other, gather(other)), pairs)
        return total / len(tensors)

    def pairs_of_names(self):
        """Pairs of the names of a student's and a teacher's tensor."""
        if self.layers is None:
            return [("pooled", "pooled")]
        return [(f"hidden.{i}", f"hidden.{j}") for i, j in self.layers]

    def project_student(self, vectors):
        """The student's vectors as they are compared: (B, D) -> (B, D')."""
        return vectors

    def compare(self, student, teacher, pairs):
        raise TypeError(f"{type(self).__name__} must define compare(student, teacher, pairs)")

    def _vectors(self, tensor, mask):
        """(B, D) as it is; (B, T, D), 0 at padding -> its mean over the text, (B, D)."""
        if self.vector == "pooled":
            return tensor
        count = ops.sum(ops.cast(mask.positions_of(tensor), tensor.dtype), axis=1, keepdims=True)  # (B, 1)
        return ops.sum(tensor, axis=1) / ops.maximum(count, 1.0)

    def get_config(self):
        layers = None if self.layers is None else [list(pair) for pair in self.layers]
        return {**super().get_config(), "vector": self.vector, "layers": layers}


def mean_over(values, kept):
    """The mean of values (B, N) over the columns `kept`, 0 where there is none: (B,)."""
    kept = ops.cast(kept, values.dtype)
    return ops.sum(values * kept, axis=1) / ops.maximum(ops.sum(kept, axis=1), 1.0)


def _pairs(rows):
    everyone = gather(ops.cast(rows, "float32")) > 0.0
    valid = ops.logical_and(ops.expand_dims(rows, 1), ops.expand_dims(everyone, 0))
    same = ops.equal(ops.expand_dims(own_rows(rows), 1), ops.expand_dims(ops.arange(ops.shape(everyone)[0], dtype="int32"), 0))
    return Pairs(valid, ops.logical_and(valid, same), ops.logical_and(valid, ops.logical_not(same)))
