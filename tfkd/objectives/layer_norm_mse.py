"""The hidden states of the teacher, their scale and shift left aside."""

import keras
from keras import ops

from tfkd.objectives.feature_objective import FeatureObjective

EPSILON = 1e-6


@keras.saving.register_keras_serializable(package="tfkd")
class LayerNormMSE(FeatureObjective):
    """(1 / D) |n(h W) - n(g)|^2 at each position, n(x) = (x - mean x) / sqrt(var x + 1e-6); the mean over pairs of layers.

    MobileBERT's feature map transfer, of which its authors take the normalized discrepancy and that of the statistics apart;
    this is the first. Large activations in few dimensions, as BERT has them, weigh less than in `hidden_state_mse`.

    Arguments: as `FeatureObjective`.

    References:
        Sun et al. 2020, MobileBERT, arXiv:2004.02984, feature map transfer among the training objectives.
    """

    default_name = "layer_norm_mse"

    def difference(self, student, teacher):
        """(B, T, D) -> (B, T)."""
        return ops.mean(ops.square(_normalized(student) - _normalized(teacher)), axis=-1)


def _normalized(x):
    centered = x - ops.mean(x, axis=-1, keepdims=True)
    return centered * ops.rsqrt(ops.mean(ops.square(centered), axis=-1, keepdims=True) + EPSILON)
