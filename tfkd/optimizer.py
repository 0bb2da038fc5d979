"""AdamW with linear warm-up and decay."""

import keras
import tensorflow as tf
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


@keras.saving.register_keras_serializable(package="tfkd")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW, clipped by the norm of the whole batch, whose step can be taken or left in the graph at no cost.

    Keras clips the gradients of each replica and adds them up afterwards, so that two replicas train another student than one
    as soon as anything is clipped. Here they are added up first.

    A condition around the step, which does for any optimizer, makes XLA copy the weights and both moments: 6 to 10 % of a
    step of a 2-layer student of width 128 or a 4-layer one of width 312. Here what is added to them is 0 instead.
    """

    _sound = None
    _known_norm = None

    def apply_gradients(self, grads_and_vars, norm=None):
        """As Keras's; `norm` is the gradients' global norm, where the caller has it already."""
        self._known_norm = norm if self.loss_scale_factor is None else None  # which Keras divides by first
        try:
            return super().apply_gradients(grads_and_vars)
        finally:
            self._known_norm = None

    def apply_where(self, sound, gradients_and_variables, norm=None) -> None:
        """`apply_gradients` where `sound`, a boolean tensor, is true; else nothing changes, to the bit."""
        self._sound = sound
        try:
            self.apply_gradients(gradients_and_variables, norm)
        finally:
            self._sound = None
        self._iterations.assign_sub(ops.cast(ops.logical_not(sound), self._iterations.dtype))

    def _clip_gradients(self, grads):
        replicas = tf.distribute.get_replica_context()
        if replicas and replicas.num_replicas_in_sync > 1:
            grads = replicas.all_reduce(tf.distribute.ReduceOp.SUM, grads)
        if self._known_norm is None or not self.global_clipnorm:
            return super()._clip_gradients(grads)
        scale = self.global_clipnorm * ops.minimum(1.0 / self._known_norm, 1.0 / self.global_clipnorm)
        return [gradient * scale for gradient in grads]

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars  # already, before they were clipped

    def assign_add(self, variable, value):
        super().assign_add(variable, self._taken(value))

    def assign_sub(self, variable, value):
        super().assign_sub(variable, self._taken(value))

    def _get_current_learning_rate(self):
        return self._taken(super()._get_current_learning_rate())  # weights decay by it

    def _taken(self, value):
        return value if self._sound is None else ops.where(self._sound, value, ops.zeros_like(value))


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
    optimizer = AdamW(schedule, weight_decay=weight_decay, epsilon=1e-8, global_clipnorm=clip_norm)
    optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if len(variable.shape) < 2])
    return optimizer
