"""The response of a teacher that says yes or no to each class on its own."""

import keras
from keras import ops

from tfkd.objectives.response_objective import ResponseObjective


@keras.saving.register_keras_serializable(package="tfkd")
class BinaryKL(ResponseObjective):
    """T^2 * (1 / C) sum_c [p_c log(p_c / q_c) + (1 - p_c) log((1 - p_c) / (1 - q_c))], p = sigmoid(v / T), q = sigmoid(z / T).

    For labels that do not exclude one another: a softmax over them would make them compete. The mean over classes keeps
    the balance with a binary cross-entropy, which Keras averages over classes too.

    Arguments:
        temperature: T > 0.
        weight: factor of this objective in the sum.
        classes: `mean` or `sum` over the classes.

    References:
        Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2, for each class's own distribution over yes and no.
    """

    default_name = "binary_kl"

    def __init__(self, temperature: float = 4.0, weight: float = 1.0, classes: str = "mean", **kwargs):
        super().__init__(temperature, weight, **kwargs)
        self.require("classes", classes, classes in ("mean", "sum"), "mean or sum")
        self.classes = classes

    def divergence(self, student, teacher, labels):
        """Logits over T (B, ..., C) -> (B, ...)."""
        p = ops.sigmoid(teacher)
        yes = p * (ops.log_sigmoid(teacher) - ops.log_sigmoid(student))
        no = (1.0 - p) * (ops.log_sigmoid(-teacher) - ops.log_sigmoid(-student))
        return (ops.mean if self.classes == "mean" else ops.sum)(yes + no, axis=-1)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes}
