"""Devices, precision, compilation: decided once, and said."""

import keras
import tensorflow as tf

from tfkd.errors import UserError

STEPS_PER_COMPILED_SHAPE = 300
"""XLA on a CPU takes 4 to 7 s a shape and saves about a sixth of a small model's step: so many steps a shape pay it back."""


def make_strategy(kind: str = "auto", logical_cpus: int | None = None) -> tf.distribute.Strategy:
    """The strategy of a run; call it before anything is computed.

    Arguments:
        kind: `auto` mirrors over all GPUs where there are several; `mirrored` over all devices; `one` uses the first.
        logical_cpus: split the CPU into so many logical devices and mirror over them; GPUs are then left alone.

    Raises:
        UserError: logical CPUs were asked for after TensorFlow had already set up its devices.
    """
    if logical_cpus is not None and logical_cpus > 1:
        try:
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * logical_cpus)
        except RuntimeError:
            if len(tf.config.list_logical_devices("CPU")) != logical_cpus:
                raise UserError(
                    f"strategy.logical_cpus = {logical_cpus}: TensorFlow is already running; start a new process"
                ) from None
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(logical_cpus)])
    gpus = tf.config.list_logical_devices("GPU")
    if kind == "mirrored" or (kind == "auto" and len(gpus) > 1):
        return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus] or ["CPU:0"])
    return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0") if kind == "one" else tf.distribute.get_strategy()


def on_gpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether the replicas of a strategy are GPUs."""
    if strategy.num_replicas_in_sync > 1:
        return all("GPU" in device.upper() for device in strategy.extended.worker_devices)
    return bool(tf.config.list_logical_devices("GPU"))


def describe(strategy: tf.distribute.Strategy) -> str:
    """`1 CPU`, `4 GPUs, mirrored`."""
    replicas, noun = strategy.num_replicas_in_sync, "GPU" if on_gpu(strategy) else "CPU"
    return f"{replicas} {noun}s, mirrored" if replicas > 1 else f"1 {noun}"


def set_precision(policy: str) -> None:
    """Sets Keras's global dtype policy: `float32`, `mixed_float16` or `mixed_bfloat16`."""
    keras.mixed_precision.set_dtype_policy(policy)


def choose_xla(setting: bool | str, steps: int, shapes: int, strategy: tf.distribute.Strategy) -> tuple[bool, str]:
    """Whether to compile a training of `steps` steps over `shapes` different batch shapes, and the reason in a few words.

    Arguments:
        setting: True, False, or `auto`.
    """
    if strategy.num_replicas_in_sync > 1 and not on_gpu(strategy):
        reason = "XLA compiles for the first logical CPU alone"
        return False, f"off: {reason}" + (", so strategy.xla: true is not followed" if setting is True else "")
    if setting != "auto":
        return bool(setting), "as configured"
    if on_gpu(strategy):
        return True, "on: a GPU"
    needed = STEPS_PER_COMPILED_SHAPE * shapes
    return steps >= needed, f"{'on' if steps >= needed else 'off'}: {shapes} shapes pay back from {needed:,} steps"
