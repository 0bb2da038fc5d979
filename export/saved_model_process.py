"""Asks a SavedModel everything in a process of its own: `python -m export.saved_model_process FOLDER QUESTIONS ANSWERS`.

A server has neither tfkd nor this package, so nothing of them may be needed to load the model; that is why this file
imports neither, and makes any import of tfkd fail. QUESTIONS and ANSWERS are files of `export.plain`.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the tokenizer's operators

from . import plain
from .timing import measure


def main(folder: str, questions: str, answers: str) -> None:
    sys.modules["tfkd"] = None  # from here on `import tfkd` raises
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    asked = plain.read(pathlib.Path(questions))
    signatures = tf.saved_model.load(folder).signatures
    batches = asked["batches"]
    if "serving_default" in batches:  # what is asked as text is asked as examples too
        batches["from_examples"] = [{"examples": _examples(batch)} for batch in batches["serving_default"]]

    def ask(signature: str, batch: dict) -> dict[str, np.ndarray]:
        answer = signatures[signature](**{name: tf.constant(values) for name, values in batch.items()})
        return {name: tensor.numpy() for name, tensor in answer.items()}

    result = {signature: _join([ask(signature, batch) for batch in each]) for signature, each in batches.items()}
    result["empty"] = {signature: ask(signature, _empty(each[0])) for signature, each in batches.items()}
    signature, singles = asked["timed"]
    result["milliseconds"] = measure(lambda batch: ask(signature, batch), singles)
    if any(name.partition(".")[0] == "tfkd" and module is not None for name, module in sys.modules.items()):
        raise RuntimeError("the SavedModel was loaded with tfkd's help")
    plain.write(pathlib.Path(answers), result)


def _examples(batch: dict[str, list[bytes]]) -> list[bytes]:
    """Texts by name -> a serialized `tf.Example` a row."""
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    features = [
        {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text])) for name, text in row.items()} for row in rows
    ]
    return [tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString() for feature in features]


def _empty(batch: dict) -> dict[str, tf.Tensor]:
    """The same inputs without a row."""
    return {name: tf.constant(values)[:0] for name, values in batch.items()}


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Batches one behind the other; where positions or words are in the second axis, filled up to the longest batch."""
    return {name: np.concatenate(_alike([part[name] for part in parts])) for name in parts[0]}


def _alike(arrays: list[np.ndarray]) -> list[np.ndarray]:
    if arrays[0].ndim == 1:
        return arrays
    widest, fill = max(array.shape[1] for array in arrays), b"" if arrays[0].dtype == object else 0
    return [
        np.pad(array, [(0, 0), (0, widest - array.shape[1]), *[(0, 0)] * (array.ndim - 2)], constant_values=fill)
        for array in arrays
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
