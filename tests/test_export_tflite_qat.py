"""The int8 file of a student that was trained for it: whole numbers, the learned ranges, and the right model beside it."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from export import artifacts, inference, manifest, quantized, tflite
from export.__main__ import main
from export.questions import load_questions
from tests.test_quantization import STUDENTS
from tests.tiny_run import LENGTH, PIECES, batch_of, build_run
from tfkd.compression import copy_of
from tfkd.data.tokenizer import Tokenizer
from tfkd.models.quantized import QuantizedTransformer
from tfkd.run_dir import RunDir

pytestmark = pytest.mark.slow  # every file is converted, and asked all questions beside a model that rounds at each step


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a student sure of its answers, its observed twin, and the manifest's entry of the twin's file."""
    run = build_run(tmp_path_factory.mktemp("runs") / "tiny", width=32, examples=60, steps=150)
    student = inference.load(run, [8, LENGTH])
    twin = QuantizedTransformer(copy_of(student.model))
    twin.observe([{name: values[row : row + 20] for name, values in student.calibration(LENGTH).items()} for row in (0, 20, 40)])
    twin.save(run.quantized)
    run.exports.mkdir()
    questions, log = load_questions(run, student, 500), run.path / "log.txt"
    book = manifest.Manifest(run, artifacts.FILES)
    entry = book.add(artifacts.make(student, questions, "tflite", "int8_qat", run.exports, log))
    return run, student, questions, twin, entry


def model_of(path) -> schema.ModelT:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def test_it_passes_beside_the_model_it_is_made_of_and_its_loss_is_counted_from_the_student(made):
    run, student, questions, twin, entry = made
    assert (entry["passed"], entry["reason"], entry["compared_with"]) == (True, None, "student-qat.keras")
    assert [each["signature"] for each in entry["signatures"]] == ["length_8", "length_12"]
    batch = batch_of(*(text.decode() for text in questions.texts[: questions.examples]), length=LENGTH)
    labels = questions.measure.truth["labels"]
    exact, rounded = (np.asarray(model(batch)).argmax(axis=1) for model in (student.model, twin))
    assert entry["student_metrics"]["accuracy"] == pytest.approx(np.mean(exact == labels))
    assert entry["metrics"]["accuracy"] == pytest.approx(np.mean(rounded == labels), abs=0.04)
    assert np.mean(exact == labels) > 0.8  # a student that knows nothing has nothing to lose


def test_every_operator_computes_in_whole_numbers_with_the_ranges_of_training(made):
    run, _, _, twin, entry = made
    path = run.exports / entry["path"]
    tflite.check_integer(path)
    graph = model_of(path).subgraphs[0]
    found = {
        (round(float(q.scale[0]) / step, 4), int(q.zeroPoint[0]))
        for step in [float(twin.ranges["block_0_attention_sum"][1] - twin.ranges["block_0_attention_sum"][0]) / 255]
        for q in (tensor.quantization for tensor in graph.tensors)
        if q is not None and q.scale is not None and len(q.scale) == 1
    }
    low, high = (float(end) for end in twin.ranges["block_0_attention_sum"])
    assert (1.0, round(-low / ((high - low) / 255)) - 128) in found
    tables = [tensor for tensor in graph.tensors if tuple(tensor.shape) == (64, 32) and tensor.type == schema.TensorType.INT8]
    assert tables  # the token vectors, a byte a number


def test_floating_operators_are_refused(made, tmp_path):
    _, student, _, _, _ = made
    tflite.write_float32(student, tmp_path / "float.tflite")
    with pytest.raises(ValueError, match="computes in float: .*FULLY_CONNECTED"):
        tflite.check_integer(tmp_path / "float.tflite")


@pytest.mark.parametrize("make", STUDENTS)
def test_every_kind_of_student_becomes_whole_numbers_that_answer_as_in_training(make, tmp_path):
    model, pairs = STUDENTS[make](), "segments" in make or make == "spans"
    batch = batch_of("red cat sings", "old", "never very small blue bird sleeps", length=LENGTH)
    if pairs:
        batch["segment_ids"] = np.tril(np.ones_like(batch["token_ids"]), -1) * batch["padding_mask"]
    twin = QuantizedTransformer(model)
    twin.observe([batch])
    student = quantized.QuantizedStudent(twin, Tokenizer(PIECES), ("a",), pairs, LENGTH, (LENGTH,))
    assert student.ranges
    tflite.write_int8_qat(student, tmp_path / "file.tflite")
    ask = Interpreter(model_path=str(tmp_path / "file.tflite")).get_signature_runner(f"length_{LENGTH}")
    said = np.concatenate([ask(**{k: v[row : row + 1] for k, v in batch.items()})["logits"] for row in range(3)])
    expected = np.asarray(twin(batch))
    text = batch["padding_mask"].astype(bool) if expected.ndim > 2 else ...
    assert np.abs(said - expected)[text].max() < 0.1 * max(1.0, np.abs(expected[text]).max())


def with_twin(made, tmp_path, twin):
    """A copy of the run with another quantized student, loaded."""
    run = RunDir(shutil.copytree(made[0].path, tmp_path / "run"))
    twin.save(run.quantized)
    return run, dataclasses.replace(made[1], run=run)


def test_ranges_that_cut_everything_off_are_caught(made, tmp_path, monkeypatch):
    _, student, questions, _, _ = made

    def narrow(real):
        source = quantized.after_training(real)
        source.ranges.update({name: (low / 20, high / 20) for name, (low, high) in source.ranges.items()})
        return source

    variants = tuple(
        dataclasses.replace(variant, made_of=narrow) if variant.name == "int8_qat" else variant for variant in tflite.VARIANTS
    )
    monkeypatch.setattr(tflite, "VARIANTS", variants)
    entry = artifacts.make(student, questions, "tflite", "int8_qat", tmp_path, tmp_path / "log.txt")
    assert not entry["passed"] and "another class" in entry["reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_a_training_that_lost_the_students_knowledge_is_caught_though_its_file_is_faithful(made, tmp_path):
    _, _, questions, twin, _ = made
    other = QuantizedTransformer.from_config(twin.get_config())
    other.set_weights(twin.get_weights())
    dense = other.head.output_dense
    dense.kernel.assign(np.roll(np.array(dense.kernel), 1, axis=1))
    dense.bias.assign(np.roll(np.array(dense.bias), 1))
    run, student = with_twin(made, tmp_path, other)
    entry = artifacts.make(student, questions, "tflite", "int8_qat", run.exports, tmp_path / "log.txt")
    assert not entry["passed"] and entry["reason"].startswith("against student.keras: accuracy falls by")
    assert entry["agreement"] > 0.95


def test_run_without_it_or_with_that_of_another_student_is_told_in_one_line(made, tmp_path, capsys):
    run = RunDir(shutil.copytree(made[0].path, tmp_path / "run"))
    run.quantized.unlink()
    assert main([str(run), "--format", "tflite:int8_qat"]) == 1
    (entry,) = json.loads(run.manifest.read_text())
    fix = "no such file; tflite:int8_qat is made of it: train with compression: {qat: {}}"
    assert entry["reason"] == f"{run.quantized}: {fix}"
    keras.models.load_model(run.student).save(run.quantized)
    assert main([str(run), "--format", "tflite:int8_qat"]) == 1
    (entry,) = json.loads(run.manifest.read_text())
    assert entry["reason"] == f"{run.quantized}: not what quantization-aware training made of student.keras"
    run.quantized.write_text("no archive")
    assert main([str(run), "--format", "tflite:int8_qat"]) == 1
    assert "cannot be read as a Keras model" in json.loads(run.manifest.read_text())[0]["reason"]


def test_file_of_an_older_training_is_deleted(made, tmp_path):
    _, _, _, twin, entry = made
    run = RunDir(shutil.copytree(made[0].path, tmp_path / "run"))
    assert manifest.Manifest(run, artifacts.FILES).removed == []
    other = QuantizedTransformer.from_config(twin.get_config())
    other.save(run.quantized)
    assert manifest.Manifest(run, artifacts.FILES).removed == [entry["path"]]
    assert not (run.exports / entry["path"]).exists()
