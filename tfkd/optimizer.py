"""AdamW with linear warm-up and decay."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfkd")
class WarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from 0 to `peak` over `warmup_steps`, then falls linearly to 0 at `total_steps` (Devlin et al. 2018, A.2).

    Step n, from 0, is taken with the rate of n + 1, so that neither the first nor the last step is wasted.
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int):
        super().__init__()
        self.peak, self.warmup_steps, self.total_steps = peak, warmup_steps, total_steps

    def __call__(self, step):
        step = ops.cast(step, "float32") + 1.0
        top = max(self.warmup_steps, 1)
        fall = (self.total_steps + 1.0 - step) / max(self.total_steps + 1 - top, 1)
        return self.peak * ops.clip(ops.minimum(step / top, fall), 0.0, 1.0)

    def get_config(self):
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "total_steps": self.total_steps}


def adamw(
    variables, steps: int, learning_rate: float, warmup: float = 0.1, weight_decay: float = 0.01, clip_norm: float | None = 1.0
):
    """AdamW (Loshchilov and Hutter 2017) for `variables` over `steps` steps.

    Arguments:
        variables: what will be trained; of these, matrices are decayed, but biases and layer normalization are not.
        steps: planned steps.
        learning_rate: peak.
        warmup: share of the steps in which the rate rises.
        weight_decay: decoupled decay a step, times the rate.
        clip_norm: largest global gradient norm, or None.
    """
    schedule = WarmupLinearDecay(learning_rate, round(warmup * steps), steps)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=weight_decay, epsilon=1e-8, global_clipnorm=clip_norm)
    optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if len(variable.shape) < 2])
    return optimizer
