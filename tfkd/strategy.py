"""Devices, precision, compilation: decided once, and said."""

import signal
from collections.abc import Iterable

import keras
import tensorflow as tf

from tfkd.errors import UserError
from tfkd.multi_worker import Team

STEPS_PER_COMPILED_SHAPE = 300
"""XLA on a CPU takes 4 to 7 s a shape and saves about a sixth of a small model's step: so many steps a shape pay it back."""
LEAST_COMPILED_GIGAFLOPS = 3.0
"""Of a step on a CPU. Two layers of width 192 at batch 64 (5.4) take 58 ms with XLA and 81 without, one of width 32 (0.1) takes
27 and 20."""


def make_strategy(kind: str = "auto", logical_cpus: int | None = None) -> tf.distribute.Strategy:
    """The strategy of a run; call it before anything is computed.

    Arguments:
        kind: `auto` mirrors over all GPUs where there are several; `mirrored` over all devices; `one` uses the first;
            `multi_worker` mirrors over all devices of all machines that `TF_CONFIG` names, and waits for them.
        logical_cpus: split the CPU into so many logical devices and mirror over them; GPUs are then left alone.

    Raises:
        UserError: logical CPUs were asked for after TensorFlow had already set up its devices, or over several machines.
    """
    if logical_cpus is not None and logical_cpus > 1:
        if kind == "multi_worker":
            raise UserError(f"strategy.logical_cpus = {logical_cpus}: not over several machines; leave it out")
        try:
            cpu = tf.config.list_physical_devices("CPU")[0]
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * logical_cpus)
        except RuntimeError:
            if len(tf.config.list_logical_devices("CPU")) != logical_cpus:
                raise UserError(
                    f"strategy.logical_cpus = {logical_cpus}: TensorFlow is already running; start a new process"
                ) from None
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(logical_cpus)])
    if kind == "multi_worker":
        return _join()
    gpus = tf.config.list_logical_devices("GPU")
    if kind == "mirrored" or (kind == "auto" and len(gpus) > 1):
        return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus] or ["CPU:0"])
    return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0") if kind == "one" else tf.distribute.get_strategy()


def _join() -> tf.distribute.Strategy:
    """Waits for the other machines; a signal meanwhile ends the process at once, there is nothing to lose yet."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def on_gpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether the replicas of a strategy are GPUs."""
    if strategy.num_replicas_in_sync > 1:
        return all("GPU" in device.upper() for device in strategy.extended.worker_devices)
    return bool(tf.config.list_logical_devices("GPU"))


def describe(strategy: tf.distribute.Strategy, batch_sizes: Iterable[int] = ()) -> str:
    """`1 CPU`, `4 GPUs, mirrored: 8 of each batch of 32`, `8 GPUs of 2 machines, mirrored: ...`.

    Arguments:
        batch_sizes: of the trainings, over all replicas.
    """
    replicas, noun = strategy.num_replicas_in_sync, "GPU" if on_gpu(strategy) else "CPU"
    machines = Team(strategy).count
    if replicas == 1:
        return f"1 {noun}"
    where = f" of {machines} machines" if machines > 1 else ""
    parts = ", ".join(f"{-(-size // replicas)} of each batch of {size}" for size in sorted(set(batch_sizes)))
    return f"{replicas} {noun}s{where}, mirrored" + (f": {parts}" if parts else "")


def set_precision(policy: str) -> None:
    """Sets Keras's global dtype policy: `float32`, `mixed_float16` or `mixed_bfloat16`."""
    keras.mixed_precision.set_dtype_policy(policy)


def compute_in(model: keras.Model, policy: str) -> None:
    """Has every layer of a model compute in a precision of its own; its weights stay as they are, in float32."""
    for layer in model._flatten_layers():  # Keras has no public way to a model's layers, those inside others included
        layer.dtype_policy = policy


def set_deterministic() -> None:
    """Has every operation give the same bits each time, on GPUs too; for the whole process, and before anything is computed."""
    tf.config.experimental.enable_op_determinism()


def choose_xla(
    setting: bool | str,
    steps: int,
    shapes: int,
    strategy: tf.distribute.Strategy,
    gigaflops: float | None = None,
    saves_memory: bool = False,
) -> tuple[bool, str]:
    """Whether to compile a training of `steps` steps over `shapes` different batch shapes, and the reason in a few words.

    Arguments:
        setting: True, False, or `auto`.
        gigaflops: 1e9 FLOP that the mean step has, where the models say.
        saves_memory: a step comes in parts, or computes its blocks twice. Compiled for a CPU that was measured to take 5 and 1.5
            times as long, and 1.04 and 1.2 times not compiled, where it needs less memory too (benchmarks/README.md).
    """
    if strategy.num_replicas_in_sync > 1 and not on_gpu(strategy):
        several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        reason = "the machines' CPUs cannot meet inside of it" if several else "XLA compiles for the first logical CPU alone"
        return False, f"off: {reason}" + (", so strategy.xla: true is not followed" if setting is True else "")
    if setting == "auto" and Team(strategy).count > 1:
        return False, "off: several machines; strategy.xla: true compiles what each GPU does"
    if setting != "auto":
        return bool(setting), "as configured"
    if on_gpu(strategy):
        return True, "on: a GPU"
    if saves_memory:
        return False, "off: compiled for a CPU, train.accumulate and train.checkpoint_gradients are slow"
    if gigaflops is not None and gigaflops < LEAST_COMPILED_GIGAFLOPS:
        return False, f"off: steps of {gigaflops:.1f} GFLOP are too small to gain by it"
    needed = STEPS_PER_COMPILED_SHAPE * shapes
    return steps >= needed, f"{'on' if steps >= needed else 'off'}: {shapes} shapes pay back from {needed:,} steps"
