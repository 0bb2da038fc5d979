"""A whole run with quantization-aware training behind it, and the int8 file that it is for."""

import json

import keras
import numpy as np
import pytest
import yaml

from tests.whole_run import go
from tfkd import config
from tfkd.errors import UserError

WORDS = ["this", "that", "very", "quite", "old", "new", "seems", "looks"]
TREE = {
    "teacher": {
        "dimensions": {"layers": 2, "width": 32, "heads": 2, "dropout": 0.0},
        "train": {"epochs": 4, "batch_size": 32, "learning_rate": 0.005},
    },
    "student": {"dimensions": {"layers": 1, "width": 32, "heads": 2, "dropout": 0.0}},
    "train": {"epochs": 4, "batch_size": 32, "learning_rate": 0.005},
    "distill": {"alpha": {"start": 0.9, "end": 0.3}, "temperature": {"start": 1.0, "end": 3.0}},
    "compression": {"qat": {"epochs": 1, "batch_size": 32, "learning_rate": 0.001}},
    "baseline": False,
    "evaluate": {"bootstrap": 100},
    "export": {"formats": []},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A configuration on lines whose label follows from one word."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, rows in (("train", 640), ("test", 80)):
        lines = []
        for row in range(rows):
            label, word = [("fruit", "apple"), ("plant", "grass"), ("place", "sea")][row % 3]
            texts = [*random.choice(WORDS, random.integers(2, 8)), word]
            lines.append(json.dumps({"text": " ".join(random.permutation(texts)), "label": label}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    data = {"files": files, "max_length": 16, "vocabulary_size": 80, "buckets": [16]}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"data": data, **TREE}))
    return path


@pytest.mark.slow
def test_a_run_with_qat_keeps_its_student_and_gets_an_int8_file_that_is_proven(path, tmp_path):
    run, said = go(path, tmp_path / "run")
    plain, _ = go(path, tmp_path / "plain", "compression.qat=null")
    assert "Student, int8: 19 steps" in said  # 589 of 640 rows, the others choose the epoch, 32 at a time
    exact = keras.models.load_model(run.student, compile=False)
    for ours, theirs in zip(
        exact.get_weights(), keras.models.load_model(plain.student, compile=False).get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)  # what comes behind it does not touch it
    rounded = keras.models.load_model(run.quantized, compile=False)
    moved = [np.abs(a - b).max() for a, b in zip(rounded.student.get_weights(), exact.get_weights(), strict=True)]
    assert max(moved) > 1e-4 and np.abs(np.array(rounded.high_change)).max() > 1e-4
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["epoch"] for line in lines if line.get("stage") == "int8"][-1] == 5
    assert not plain.quantized.exists() and len(run.calibration.read_text().splitlines()) == 500

    from export.__main__ import main

    assert main([str(run.path), "--format", "tflite:int8", "tflite:int8_qat"]) == 0
    entries = {entry["variant"]: entry for entry in json.loads(run.manifest.read_text())}
    assert entries["int8_qat"]["compared_with"] == "student-qat.keras"
    assert entries["int8_qat"]["metrics"]["accuracy"] >= entries["int8_qat"]["student_metrics"]["accuracy"] - 0.05

    before = run.quantized.stat().st_mtime_ns
    go(path, run.path, resume=True)
    assert run.quantized.stat().st_mtime_ns == before  # finished: not trained again


def test_heads_that_cannot_be_rounded_are_refused_before_anything_is_read(path):
    with pytest.raises(UserError, match="compression.qat goes with task: classification, .*; not with masked_language_model"):
        config.load(path, ["task=masked_language_model"])


def test_old_length_is_read_as_the_only_one_of_lengths(path):
    assert config.load(path, ["export.length=8"]).export.lengths == [8]
    assert config.load(path, ["export.length=null"]).export.lengths is None
    with pytest.raises(UserError, match="export.length and export.lengths are both given"):
        config.load(path, ["export.length=8", "export.lengths=[8, 16]"])
