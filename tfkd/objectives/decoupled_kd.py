"""The response of the teacher, its doubt and its ranking of the other classes weighted apart."""

import math

import keras
from keras import ops

from tfkd.objectives.distribution_objective import DistributionObjective
from tfkd.objectives.divergences import kl
from tfkd.objectives.text_mask import EXCLUDED, log_softmax_over


@keras.saving.register_keras_serializable(package="tfkd")
class DecoupledKD(DistributionObjective):
    """T^2 * (a KL(b || b') + b KL(r || r')): how sure of the label (TCKD), and which of the other classes (NCKD).

    b = (p_y, 1 - p_y) of the teacher, r its distribution over the classes but y; primes are the student's; all softened by
    T. The KL divergence is a = 1, b = 1 - p_y: a teacher that is sure then teaches little about the other classes.

    Reads the batch's `labels`: whole numbers of the logits' shape without the last axis. A label that is no class, such as
    the -100 of positions that do not count, gives 0.

    Arguments:
        alpha: a >= 0, weight of TCKD.
        beta: b >= 0, weight of NCKD. 8 suited CIFAR-100; the surer the teacher, the smaller (section 4.2 of the paper).
        temperature, weight, over: as `DistributionObjective`.

    References:
        Zhao, Cui, Song, Qiu and Liang 2022, Decoupled Knowledge Distillation, arXiv:2203.08679, eq. 7.
    """

    default_name = "decoupled_kd"
    student_names = ("logits", "labels")

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        weight: float = 1.0,
        over: str = "classes",
        **kwargs,
    ):
        super().__init__(temperature, weight, over, **kwargs)
        for name, value in (("alpha", alpha), ("beta", beta)):
            self.require(name, value, 0.0 <= value < math.inf, "at least 0")
        self.require("alpha, beta", (alpha, beta), alpha + beta > 0.0, "above 0, at least one of them")
        self.alpha, self.beta = alpha, beta
        self.least_classes = 2 if alpha > 0.0 else 3  # with two classes there is but one other

    def compare(self, student, teacher, labels):
        """Log-probabilities (B, ..., C) and labels (B, ...) -> (B, ...)."""
        if len(labels.shape) != len(student.shape) - 1:
            raise ValueError(
                f"{self.name}: labels of shape {tuple(labels.shape)} beside logits of {len(student.shape)} axes: it needs one "
                "label an answer; use binary_kl for several, logits_mse for a regression"
            )
        classes = ops.arange(ops.shape(student)[-1], dtype="int32")
        labels = ops.expand_dims(ops.cast(labels, "int32"), -1)
        is_label = ops.equal(labels, classes)  # (B, ..., C)
        sure, others = [], []
        for log_probabilities in (teacher, student):
            yes = ops.sum(ops.where(is_label, log_probabilities, 0.0), axis=-1)
            no = ops.logsumexp(ops.where(is_label, EXCLUDED, log_probabilities), axis=-1)
            sure.append(ops.stack([yes, no], axis=-1))
            others.append(log_softmax_over(log_probabilities, ops.logical_not(is_label)))
        values = self.alpha * kl(*sure) + self.beta * kl(*others)
        return ops.where(ops.any(is_label, axis=-1), values, 0.0)

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta}
