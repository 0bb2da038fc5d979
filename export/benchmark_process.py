"""Times one artifact in a process of its own: `python -m export.benchmark_process TASK ANSWER`, two files.

Nothing but the artifact's own runtime is loaded, so that the memory seen is what a user of the file pays. TASK, a file of
`export.plain`, is `{"format", "path", "signature", "threads", "singles", "batches"}`; ANSWER is JSON.
"""

import json
import os
import pathlib
import re
import resource
import sys
from collections.abc import Callable

import numpy as np

from . import plain
from .timing import latency, measure

Call = Callable[[dict[str, np.ndarray]], object]
"""Answers a batch of inputs (B, T) by name."""

WARMUP = 5


def tflite(path: str, threads: int, signature: str) -> Call:
    """A file answers one text a request: of a batch, one after another."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=path, num_threads=threads).get_signature_runner(signature)
    wanted = list(runner.get_input_details())

    def call(batch):
        for row in range(len(batch["token_ids"])):
            runner(**{name: batch[name][row : row + 1] for name in wanted})

    return call


def onnx(path: str, threads: int, signature: str | None) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, batch)


def saved_model(path: str, threads: int, signature: str) -> Call:
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers the tokenizer's operators

    _limit(tf, threads)
    function = tf.saved_model.load(path).signatures[signature]
    return lambda batch: function(**{name: tf.constant(values) for name, values in batch.items()})


def keras_model(path: str, threads: int, signature: str | None) -> Call:
    """The teacher, as TensorFlow runs it."""
    import tensorflow as tf

    from .inference import float32, read_model

    _limit(tf, threads)
    model = float32(read_model(pathlib.Path(path)))
    function = tf.function(lambda batch: model(batch, training=False), reduce_retracing=True)
    return lambda batch: function({name: tf.constant(values) for name, values in batch.items()})


RUNNERS = {"tflite": tflite, "mediapipe": tflite, "onnx": onnx, "saved_model": saved_model, "keras": keras_model}
"""Format -> what opens it with so many threads. What is not here is not timed."""


def time_artifact(format: str, path: str, signature: str | None, threads: int, singles: list[dict], batches: list[dict]) -> dict:
    """Opens a file and times it.

    Arguments:
        singles, batches: requests of one text, and of several, always as many.

    Returns:
        `batch_1` and `batch_32`, milliseconds `{"p50", "p95"}` a request; `texts_per_second`; `peak_bytes` of the process, and
        `runtime_bytes`, what it took before the file was opened.
    """
    before = _peak()
    call = RUNNERS[format](path, threads, signature)
    one, many = measure(call, singles, WARMUP), measure(call, batches, min(WARMUP, len(batches)))
    texts = len(batches[0]["token_ids"])
    return {
        "batch_1": latency(one),
        "batch_32": latency(many),
        "texts_per_second": round(texts / (float(np.median(many)) / 1e3), 1),
        "peak_bytes": _peak(),
        "runtime_bytes": before,
    }


def _limit(tf, threads: int) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _peak() -> int:
    """Most memory that this process ever held, in bytes."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # Linux's getrusage counts what the parent held before it became this program
        return int(re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    task = plain.read(pathlib.Path(sys.argv[1]))
    pathlib.Path(sys.argv[2]).write_text(json.dumps(time_artifact(**task)))
