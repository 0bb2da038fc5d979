"""What the teacher holds at the first position, layer by layer."""

import keras
from keras import ops

from tfkd.objectives.feature_objective import FeatureObjective
from tfkd.objectives.vectors import unit


@keras.saving.register_keras_serializable(package="tfkd")
class PKD(FeatureObjective):
    """|h W / |h W| - g / |g||^2 at position 0, h the student's hidden state and g the teacher's; the mean over pairs of layers.

    Arguments: as `FeatureObjective`.

    References:
        Sun, Cheng, Gan and Liu 2019, Patient Knowledge Distillation for BERT Model Compression, arXiv:1908.09355, its L_PT
        (there a sum over layers).
    """

    default_name = "pkd"
    first_only = True

    def difference(self, student, teacher):
        """(B, D) -> (B,), from 0 to 4."""
        return ops.sum(ops.square(unit(student) - unit(teacher)), axis=-1)
