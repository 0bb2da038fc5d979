"""The directions of the teacher's hidden states."""

import keras
from keras import ops

from tfkd.objectives.feature_objective import FeatureObjective
from tfkd.objectives.vectors import unit


@keras.saving.register_keras_serializable(package="tfkd")
class HiddenStateCosine(FeatureObjective):
    """1 - cos(h W, g) at each position, h the student's hidden state and g the teacher's; the mean over pairs of layers.

    Arguments: as `FeatureObjective`.

    References:
        Sanh et al. 2019, DistilBERT, arXiv:1910.01108, section 2 (its L_cos).
    """

    default_name = "hidden_state_cosine"

    def difference(self, student, teacher):
        """(B, T, D) -> (B, T), from 0 to 2."""
        # |a - b|^2 / 2 of unit vectors is 1 - a b, without the rounding that leaves 1 - a b below 0.
        return 0.5 * ops.sum(ops.square(unit(student) - unit(teacher)), axis=-1)
