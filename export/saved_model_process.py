"""Asks a SavedModel everything in a process of its own: `python -m export.saved_model_process FOLDER QUESTIONS ANSWERS`.

A server has neither tfkd nor this package, so nothing of them may be needed to load the model; that is why this file
imports neither, and makes any import of tfkd fail. QUESTIONS and ANSWERS are pickles of plain arrays, written and read by
`export.saved_model` alone.
"""

import pathlib
import pickle
import sys

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the tokenizer's operators

from .benchmark import measure


def main(folder: str, questions: str, answers: str) -> None:
    sys.modules["tfkd"] = None  # from here on `import tfkd` raises
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    asked = pickle.loads(pathlib.Path(questions).read_bytes())
    signatures = tf.saved_model.load(folder).signatures
    from_text, from_ids = signatures["serving_default"], signatures["from_token_ids"]

    def ask(signature, batch: dict) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in signature(**{k: tf.constant(v) for k, v in batch.items()}).items()}

    result = {
        "from_text": _join([ask(from_text, batch) for batch in asked["texts"]]),
        "from_ids": _join([ask(from_ids, batch) for batch in asked["ids"]]),
        "empty": ask(from_text, {name: tf.zeros((0,), tf.string) for name in asked["texts"][0]}),
        "milliseconds": measure(lambda batch: ask(from_text, batch), asked["timed"]),
    }
    if any(name.partition(".")[0] == "tfkd" and module is not None for name, module in sys.modules.items()):
        raise RuntimeError("the SavedModel was loaded with tfkd's help")
    pathlib.Path(answers).write_bytes(pickle.dumps(result))


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


if __name__ == "__main__":
    main(*sys.argv[1:])
