"""One number for a text, or for a pair of texts."""

import keras
from keras import ops

from tfkd.layers.head import RegressionHead
from tfkd.tasks.task import Task, pooled_head_hidden


@keras.saving.register_keras_serializable(package="tfkd")
class SquaredError(keras.losses.Loss):
    """((y - z) / deviation)^2: the squared error in units of the targets' variance, so that 1 is what their mean would get.

    `call` takes numbers y (B,) and predictions z (B, 1) and answers (B,), float32.
    """

    def __init__(self, deviation: float = 1.0, name: str = "squared_error", **kwargs):
        super().__init__(name=name, **kwargs)
        self.deviation = deviation

    def call(self, y_true, y_pred):
        return ops.square((ops.cast(y_pred[:, 0], "float32") - ops.cast(y_true, "float32")) / self.deviation)

    def get_config(self):
        return {**super().get_config(), "deviation": self.deviation}


@keras.saving.register_keras_serializable(package="tfkd")
class Correlation(keras.metrics.Metric):
    """Pearson's r of numbers y (B,) and predictions z (B, 1) over all batches; 0 where it is not defined.

    Arguments:
        mean, deviation: roughly of the targets. Sums of squares in float32 lose what is far from 0.
    """

    def __init__(self, mean: float = 0.0, deviation: float = 1.0, name: str = "pearson", **kwargs):
        super().__init__(name=name, **kwargs)
        self.mean, self.deviation = mean, deviation
        names = ("weight", "y", "z", "yy", "zz", "yz")
        self.sums = {part: self.add_variable((), "zeros", name=part) for part in names}

    def update_state(self, y_true, y_pred, sample_weight=None):
        y = (ops.cast(y_true, "float32") - self.mean) / self.deviation
        z = (ops.cast(y_pred[:, 0], "float32") - self.mean) / self.deviation
        weight = ops.ones_like(y) if sample_weight is None else ops.cast(sample_weight, "float32")
        values = {"weight": ops.ones_like(y), "y": y, "z": z, "yy": y * y, "zz": z * z, "yz": y * z}
        for part, value in values.items():
            self.sums[part].assign_add(ops.sum(weight * value))

    def result(self):
        total = self.sums["weight"]
        mean = {part: ops.divide_no_nan(value, total) for part, value in self.sums.items()}
        spread = (mean["yy"] - mean["y"] ** 2) * (mean["zz"] - mean["z"] ** 2)
        return ops.divide_no_nan(mean["yz"] - mean["y"] * mean["z"], ops.sqrt(ops.maximum(spread, 0.0)))

    def get_config(self):
        return {**super().get_config(), "mean": self.mean, "deviation": self.deviation}


class Regression(Task):
    """One number: squared error; Spearman's rank correlation is the headline, Pearson's chooses the epoch.

    Ranks need all examples at once, sums do not. Heads answer in the data's units; losses and the teacher's part are in units
    of their variance, so that learning rates and weights mean the same for ratings up to 5 and for prices up to a million.
    """

    name = "regression"
    target = "number"
    metric, monitor = "spearman", "pearson"
    mixture = {"activation": "linear"}
    response = "logits_mse"

    def __init__(self, target=None):
        super().__init__(target)
        self.mean, self.deviation = (0.0, 1.0) if target is None else (target.mean, target.deviation)
        self.response_arguments = {"deviation": self.deviation}

    def head(self, outputs, pooling="first", dropout=0.1):
        options = {"classes": outputs, "pooling": pooling, "hidden": pooled_head_hidden(pooling), "dropout": dropout}
        return RegressionHead(self.mean, self.deviation, **options, name="head")

    def loss(self, label_smoothing=0.0):
        self.refuse_smoothing(label_smoothing)
        return SquaredError(self.deviation)

    def training_metrics(self):
        return [Correlation(self.mean, self.deviation, name=self.monitor)]
