"""The response of the teacher, between both directions of the KL divergence."""

import math

import keras
from keras import ops

from tfkd.objectives.distribution_objective import DistributionObjective
from tfkd.objectives.divergences import kl


@keras.saving.register_keras_serializable(package="tfkd")
class JensenShannon(DistributionObjective):
    """T^2 * (b KL(p || m) + (1 - b) KL(q || m)), m = b p + (1 - b) q; p the teacher's, q the student's, both softened by T.

    b = 1/2 is the Jensen-Shannon divergence, at most log 2. Divided by b it nears KL(p || q) as b -> 0, divided by 1 - b
    KL(q || p) as b -> 1.

    Arguments:
        beta: b, between 0 and 1.
        temperature, weight, over: as `DistributionObjective`.

    References:
        Agarwal et al. 2023, On-Policy Distillation of Language Models (GKD), arXiv:2306.13649, section 2.
    """

    default_name = "jensen_shannon"

    def __init__(self, beta: float = 0.5, temperature: float = 4.0, weight: float = 1.0, over: str = "classes", **kwargs):
        super().__init__(temperature, weight, over, **kwargs)
        self.require("beta", beta, 0.0 < beta < 1.0, "between 0 and 1; use kl_divergence or reverse_kl for the ends")
        self.beta = beta

    def compare(self, student, teacher, labels):
        """Log-probabilities (B, ..., C) -> (B, ...)."""
        mixture = ops.logaddexp(teacher + math.log(self.beta), student + math.log1p(-self.beta))
        return self.beta * kl(teacher, mixture) + (1.0 - self.beta) * kl(student, mixture)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}
