"""The hidden states of the teacher."""

import keras
from keras import ops

from tfkd.objectives.feature_objective import FeatureObjective


@keras.saving.register_keras_serializable(package="tfkd")
class HiddenStateMSE(FeatureObjective):
    """(1 / D) |h W - g|^2 at each position, h the student's hidden state and g the teacher's; the mean over pairs of layers.

    Arguments: as `FeatureObjective`.

    References:
        Jiao et al. 2019, TinyBERT, arXiv:1909.10351, eq. 8.
    """

    default_name = "hidden_state_mse"

    def difference(self, student, teacher):
        """(B, T, D) -> (B, T)."""
        return ops.mean(ops.square(student - teacher), axis=-1)
