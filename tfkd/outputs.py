"""What a run writes beside its models: how text becomes inputs, examples to check exports on, predictions."""

import json
import pathlib

import numpy as np

from tfkd.config import Config
from tfkd.errors import UserError
from tfkd.run_dir import RunDir, whole, write_json, write_text

EXAMPLES_KEPT = 2000
"""Test examples written into the run for exports and the report, each with all its rows."""

ROWS_KEPT = 4 * EXAMPLES_KEPT
"""About as many rows of them at most: where contexts give a hundred windows each, files are asked some questions, not all day."""

CALIBRATION_KEPT = 500
"""Training texts written into the run for the ranges of int8 files."""


def write_inputs(run: RunDir, config: Config, tokenizer, store, train) -> None:
    """Writes what turns text into model inputs and outputs into names, some of the test examples, and some training texts.

    Arguments:
        store, train: `tfkd.data.store.Store` of the measured and of the training split.
    """
    target = store.target
    broken = [label for label in target.labels if label.splitlines() != [label]]
    if broken:
        raise UserError(f"label {broken[0]!r} holds a line break; labels.txt has one label a line")
    write_text(run.labels, "".join(f"{label}\n" for label in target.labels))
    tokenizer.write(run.vocabulary)
    reads = {"lowercase": tokenizer.lowercase, "max_length": config.data.max_length, "pairs": target.pairs}
    write_json(run.tokenizer, reads)
    told = ({"row": row, **_texts(store, row), "label": target.told(store, row)} for row in kept(store))
    _write_lines(run.examples, ({key: value for key, value in example.items() if value is not None} for example in told))
    _write_lines(run.calibration, (_texts(train, row) for row in spread(len(train), CALIBRATION_KEPT)))


def kept(store) -> list[int]:
    """The rows of at most 2,000 examples, evenly spread: of each all that it gives, so that it can be measured as a whole."""
    if store.example is None:
        return spread(len(store), EXAMPLES_KEPT)
    example = np.array(store.example)
    numbers = np.unique(example)  # one that gave no row is not among them
    most = max(1, min(EXAMPLES_KEPT, ROWS_KEPT * len(numbers) // max(1, len(example))))
    return np.flatnonzero(np.isin(example, numbers[spread(len(numbers), most)])).tolist()


def spread(rows: int, most: int) -> list[int]:
    """At most so many rows, evenly spread: a data set may be sorted by label."""
    return sorted({int(i * rows / most) for i in range(most)}) if rows else []


def _texts(store, row: int) -> dict[str, str]:
    pair = store.text_pair(row)
    return {"text": store.text(row)} | ({} if pair is None else {"text_pair": pair})


def _write_lines(path: pathlib.Path, values) -> None:
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def write_predictions(run: RunDir, truth: dict, outputs: dict) -> None:
    """Writes what is true of the test split, by name, and every role's logits."""
    with whole(run.predictions) as path, open(path, "wb") as file:
        np.savez_compressed(file, **truth, **outputs)


def model_files(run: RunDir) -> dict[str, pathlib.Path]:
    """The models that the run holds, by role."""
    files = {"teacher": run.teacher / "model.keras", "baseline": run.baseline, "student": run.student}
    return {role: path for role, path in files.items() if path.exists()}
