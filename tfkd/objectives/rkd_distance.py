"""How far apart the teacher sees the examples of a batch."""

import keras
from keras import ops

from tfkd.objectives.divergences import huber
from tfkd.objectives.gather import gather
from tfkd.objectives.pairwise_objective import PairwiseObjective, mean_over
from tfkd.objectives.vectors import distances


@keras.saving.register_keras_serializable(package="tfkd")
class RKDDistance(PairwiseObjective):
    """The mean over j != i of huber(|s_i - s_j| / m - |t_i - t_j| / m') for each example i, m and m' the batch's mean distances.

    huber(x) is x^2 / 2 where |x| <= 1 and |x| - 1/2 beyond. Widths and scales may differ.

    Arguments: as `PairwiseObjective`.

    References:
        Park, Kim, Lu and Cho 2019, Relational Knowledge Distillation, arXiv:1904.05068, section 3.2.1 (there a sum over pairs).
    """

    default_name = "rkd_distance"

    def compare(self, student, teacher, pairs):
        """(B, D) of both -> (B,)."""
        own, other = (_relative(distances(*vectors), pairs.others) for vectors in (student, teacher))
        return mean_over(huber(own - other), pairs.others)


def _relative(lengths, others):
    """Distances (B, N) over their mean among all replicas' pairs of two examples."""
    others = ops.cast(others, lengths.dtype)
    total, count = ops.sum(gather(ops.sum(lengths * others, axis=1))), ops.sum(gather(ops.sum(others, axis=1)))
    # Where all coincide, so that the mean is 0, so are the distances.
    return lengths * count / ops.where(total > 0.0, total, 1.0)
