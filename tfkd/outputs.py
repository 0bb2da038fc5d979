"""What a run writes beside its models: how text becomes inputs, examples to check exports on, predictions."""

import json
import pathlib

import numpy as np

from tfkd.config import Config
from tfkd.errors import UserError
from tfkd.run_dir import RunDir, whole, write_json, write_text

EXAMPLES_KEPT = 2000
"""Test examples written into the run for exports and the report."""


def write_inputs(run: RunDir, config: Config, tokenizer, store) -> None:
    """Writes what turns text into model inputs and outputs into names, and some of the test examples."""
    target = store.target
    broken = [label for label in target.labels if label.splitlines() != [label]]
    if broken:
        raise UserError(f"label {broken[0]!r} holds a line break; labels.txt has one label a line")
    write_text(run.labels, "".join(f"{label}\n" for label in target.labels))
    tokenizer.write(run.vocabulary)
    reads = {"lowercase": tokenizer.lowercase, "max_length": config.data.max_length, "pairs": target.pairs}
    write_json(run.tokenizer, reads)
    lines = []
    # Evenly spread over the split: a data set may be sorted by label.
    for row in sorted({int(i * len(store) / EXAMPLES_KEPT) for i in range(EXAMPLES_KEPT)}):
        example = {"row": row, "text": store.text(row), "text_pair": store.text_pair(row), "label": target.told(store, row)}
        lines.append(json.dumps({k: v for k, v in example.items() if v is not None}, ensure_ascii=False))
    write_text(run.examples, "".join(f"{line}\n" for line in lines))


def write_predictions(run: RunDir, truth: dict, outputs: dict) -> None:
    """Writes what is true of the test split, by name, and every role's logits."""
    with whole(run.predictions) as path, open(path, "wb") as file:
        np.savez_compressed(file, **truth, **outputs)


def model_files(run: RunDir) -> dict[str, pathlib.Path]:
    """The models that the run holds, by role."""
    files = {"teacher": run.teacher / "model.keras", "baseline": run.baseline, "student": run.student}
    return {role: path for role, path in files.items() if path.exists()}
