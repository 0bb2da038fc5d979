"""`python -m export`: what is written, what is proven, and that nothing wrong is left behind."""

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
import shutil
import subprocess
import sys
import typing

import keras
import numpy as np
import onnx as onnx_library
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from export import artifacts, formats, inference, manifest, onnx, parity, saved_model, tflite
from export.__main__ import main
from tests.fresh_python import fresh
from tests.tiny_run import LABELS, LENGTH, PIECES, batch_of, build_run
from tfkd import config
from tfkd.data.tokenizer import Tokenizer
from tfkd.run_dir import RunDir

CHECKOUT = pathlib.Path(__file__).parents[1]
DEFAULT = formats.chosen(["saved_model", "tflite", "onnx"])


def read_manifest(run: RunDir) -> dict:
    return {(entry["format"], entry["variant"]): entry for entry in json.loads(run.manifest.read_text())}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("runs") / "trained")


@pytest.fixture()
def run(trained, tmp_path):
    """A finished run of the test's own."""
    return RunDir(shutil.copytree(trained.path, tmp_path / "run"))


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A run that went through the whole program, its exit code, and what it said."""
    run = RunDir(shutil.copytree(trained.path, tmp_path_factory.mktemp("runs") / "exported"))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main([str(run)])
    return run, code, said.getvalue()


@pytest.fixture()
def exported_copy(exported, tmp_path):
    """An exported run of the test's own."""
    return RunDir(shutil.copytree(exported[0].path, tmp_path / "run"))


# -------------------------------------------------------------------- command line


def test_help_comes_at_once_and_without_tensorflow():
    code = (
        "import runpy, sys, time\n"
        "sys.argv = ['export', '--help']\n"
        "try: runpy.run_module('export', run_name='__main__')\n"
        "except SystemExit as done: print(done.code, time.process_time(), 'tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    seconds = []
    for _ in range(3):
        *text, last = fresh(code).stdout.splitlines()
        status, taken, *imported = last.split()
        assert ", ".join(formats.FORMATS) in " ".join(" ".join(text).split())
        assert (status, imported) == ("0", ["False", "False"])
        seconds.append(float(taken))
    # Beside the two libraries that the configuration is read with, 4 times; TensorFlow is 60 times. In seconds no bound would
    # hold on every machine.
    libraries = "import time, pydantic, yaml; print(time.process_time())"
    assert min(seconds) < 8 * min(float(fresh(libraries).stdout) for _ in range(3))


@pytest.mark.parametrize("arguments", (["--format", "gguf", "RUN"], [], ["RUN", "--format"]))
def test_wrong_arguments_end_with_2_before_tensorflow(arguments):
    code = (
        "import sys\n"
        "from export.__main__ import main\n"
        f"try: main({arguments})\n"
        "except SystemExit as done: sys.exit(10 * ('tensorflow' in sys.modules) + done.code)"
    )
    done = fresh(code, check=False)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_missing_run_is_one_line_and_2(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nothing'}: no such run directory\n"


@pytest.mark.parametrize(
    "name", ("student.keras", "vocab.txt", "labels.txt", "tokenizer_config.json", "config.yaml", "examples.jsonl")
)
def test_unfinished_run_names_the_missing_file(run, name, capsys):
    (run.path / name).unlink()
    assert main([str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line


def test_command_line_and_configuration_know_the_formats_of_the_table():
    (literal,) = typing.get_args(config.Export.model_fields["formats"].annotation)
    assert typing.get_args(literal) == formats.choices()
    assert config.EXPORT_VARIANTS == formats.FORMATS
    held_to, tolerance = typing.get_args(config.Export.model_fields["tolerance"].annotation)
    variants = {name for names in formats.FORMATS.values() for name in names}
    assert set(typing.get_args(held_to)) == variants | (set(formats.choices()) - set(formats.FORMATS))
    assert set(tolerance.model_fields) == {field.name for field in dataclasses.fields(parity.Tolerance)}


# -------------------------------------------------------------------- files that pass


def test_every_format_passes_and_the_program_says_so(exported):
    run, code, said = exported
    assert code == 0
    assert all(entry["passed"] for entry in read_manifest(run).values())
    for word in ("saved_model", "int8_dynamic", "student.float32.onnx", "agreement", "p50/p95"):
        assert word in said
    present = {path.name for path in run.exports.iterdir()}
    assert present == {artifacts.FILES[each] for each in DEFAULT} | {"tokenizer.json", "manifest.json", "log.txt"}


def test_manifest_describes_the_files(exported):
    run, *_ = exported
    manifest = read_manifest(run)
    assert list(manifest) == DEFAULT
    for entry in manifest.values():
        path = run.exports / entry["path"]
        if path.is_file():
            assert entry["bytes"] == len(path.read_bytes())
            assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry["student_sha256"] == hashlib.sha256(run.student.read_bytes()).hexdigest()
        assert 0 < entry["latency_ms"]["p50"] <= entry["latency_ms"]["p95"]
        assert (entry["examples"], entry["reason"]) == (40, None)
        assert entry["mean_abs_difference"] <= entry["max_abs_difference"]
    assert all(entry["max_abs_difference"] < 1e-5 for (_, variant), entry in manifest.items() if variant == "float32")
    assert manifest["tflite", "int8_dynamic"]["bytes"] < manifest["tflite", "float32"]["bytes"]


def logits_of(run: RunDir, batch: dict[str, np.ndarray]) -> np.ndarray:
    """What the Keras student answers; on the CPU, because a GPU rounds matrix products to TF32."""
    with tf.device("CPU"):
        return keras.models.load_model(run.student)(batch).numpy()


def test_accuracy_in_the_manifest_is_the_students_own(exported):
    run, *_ = exported
    rows = [json.loads(line) for line in run.examples.read_text().splitlines()]
    answers = logits_of(run, batch_of(*(row["text"] for row in rows))).argmax(axis=1)
    accuracy = np.mean([LABELS[answer] == row["label"] for answer, row in zip(answers, rows, strict=True)])
    entry = read_manifest(run)["onnx", "float32"]
    assert entry["metrics"] == entry["student_metrics"] == {"accuracy": pytest.approx(accuracy)}
    assert len(set(answers)) == 3  # an untrained student that always gives one answer would prove little


def test_onnx_answers_any_batch_and_length(exported):
    run, *_ = exported
    session = onnxruntime.InferenceSession(str(run.exports / "student.float32.onnx"), providers=["CPUExecutionProvider"])
    assert {i.name: (i.shape, i.type) for i in session.get_inputs()} == {
        name: (["batch", "length"], "tensor(int32)") for name in ("token_ids", "padding_mask")
    }
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 3])]
    for texts in (["red cat"], ["old dog sings", "", "never never never"]):
        batch = batch_of(*texts)
        np.testing.assert_allclose(session.run(None, batch)[0], logits_of(run, batch), atol=1e-5)
    model = onnx_library.load(run.exports / "student.float32.onnx")
    assert [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")] == [20]


def test_saved_model_answers_raw_text(exported):
    run, *_ = exported
    signatures = tf.saved_model.load(str(run.exports / "saved_model")).signatures
    serve = signatures["serving_default"]
    texts = ["red cat", "", b"caf\xe9 \xff", "dog " * 5000, "red " * 10, "red " * 11]
    got = {name: tensor.numpy() for name, tensor in serve(text=tf.constant(texts)).items()}
    logits = logits_of(run, batch_of("red cat", ""))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got["scores"][:2], scores, atol=1e-5)
    assert [label.decode() for label in got["label"]] == [LABELS[np.argmax(scores)] for scores in got["scores"]]
    # [CLS] and [SEP] leave room for ten pieces of twelve; what is not UTF-8 is dropped.
    assert got["truncated"].tolist() == [False, False, False, True, False, True]
    from_ids = signatures["from_token_ids"](**{name: tf.constant(values[:1]) for name, values in batch_of("red cat", "").items()})
    np.testing.assert_allclose(from_ids["logits"], logits[:1], atol=1e-5)
    np.testing.assert_allclose(from_ids["scores"], scores[:1], atol=1e-5)
    empty = serve(text=tf.constant([], tf.string))
    assert [tuple(empty[name].shape) for name in ("label", "scores", "truncated")] == [(0,), (0, 3), (0,)]


@pytest.mark.slow
def test_saved_model_loads_where_nothing_of_ours_can_be_imported(exported, tmp_path):
    run, *_ = exported
    code = f"""
import sys
import tensorflow as tf, tensorflow_text
serve = tf.saved_model.load({str(run.exports / "saved_model")!r}).signatures["serving_default"]
print(serve(text=tf.constant(["red cat"]))["label"].numpy()[0].decode())
assert not [name for name in sys.modules if name.partition(".")[0] in ("tfkd", "export")]
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    answer = np.argmax(logits_of(run, batch_of("red cat")))
    assert done.stdout.strip() == LABELS[answer]


def test_segments_mean_pooling_pre_norm_and_a_shorter_fixed_length_pass(tmp_path):
    run = build_run(tmp_path / "pairs", pairs=True, norm="pre", position="sinusoidal", pooling="mean", activation="gelu_tanh")
    run.config.write_text(run.config.read_text().replace("lengths: null", "lengths: [8]"))
    assert main([str(run), "--format", "tflite", "onnx"]) == 0
    runner = Interpreter(model_path=str(run.exports / "student.float32.tflite")).get_signature_runner("length_8")
    assert {name: tuple(detail["shape"]) for name, detail in runner.get_input_details().items()} == {
        name: (1, 8) for name in ("token_ids", "padding_mask", "segment_ids")
    }
    session = onnxruntime.InferenceSession(str(run.exports / "student.float32.onnx"), providers=["CPUExecutionProvider"])
    assert {i.name for i in session.get_inputs()} == {"token_ids", "padding_mask", "segment_ids"}


@pytest.mark.slow
def test_saved_model_takes_pairs(tmp_path):
    run = build_run(tmp_path / "pairs", pairs=True)
    assert main([str(run), "--format", "saved_model"]) == 0
    serve = tf.saved_model.load(str(run.exports / "saved_model")).signatures["serving_default"]
    both = serve(text=tf.constant(["red cat"]), text_pair=tf.constant(["big dog"]))["scores"].numpy()
    swapped = serve(text=tf.constant(["big dog"]), text_pair=tf.constant(["red cat"]))["scores"].numpy()
    assert np.abs(both - swapped).max() > 1e-3


def test_student_of_half_precision_is_exported_in_float32(tmp_path):
    half = keras.models.load_model(build_run(tmp_path / "half", policy="mixed_float16").student)
    full = keras.models.load_model(build_run(tmp_path / "full").student)
    batch = batch_of("old bird sleeps", "never")
    np.testing.assert_array_equal(inference.float32(half)(batch), full(batch))
    assert np.abs(np.asarray(half(batch)) - full(batch)).max() > 0
    assert inference.float32(full) is full


# -------------------------------------------------------------------- files that do not pass


def tampered(student: inference.Student, change) -> inference.Student:
    """The same student with `change` applied to its second matrix of weights."""
    twin = keras.models.clone_model(student.model)
    weights = student.model.get_weights()
    index = [i for i, weight in enumerate(weights) if weight.ndim == 2][2]
    weights[index] = change(weights[index])
    twin.set_weights(weights)
    return dataclasses.replace(student, model=twin)


def one_nan(weight):
    weight[0, 0] = np.nan
    return weight


class WithPython(inference.Student):
    """Its graph calls back into this process."""

    def logits(self, inputs):
        logits = super().logits(inputs)
        return tf.ensure_shape(tf.numpy_function(lambda array: array, [logits], tf.float32), logits.shape)


class Swapped(inference.Student):
    """Takes the token ids for the mask, and the mask for the token ids."""

    def logits(self, inputs):
        return super().logits({**inputs, "token_ids": inputs["padding_mask"], "padding_mask": inputs["token_ids"]})


def truncate(path: pathlib.Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def raises(student, path):
    raise MemoryError("the converter\nwrote two lines")


def disguised(student: inference.Student, other: type) -> inference.Student:
    return other(**{field.name: getattr(student, field.name) for field in dataclasses.fields(student)})


FAULTS = {
    "flipped weights": (lambda write: lambda s, p: write(tampered(s, np.negative), p), "differ"),
    "nan weights": (lambda write: lambda s, p: write(tampered(s, one_nan), p), "NaN"),
    "truncated file": (lambda write: lambda s, p: (write(s, p), truncate(p)), ""),
    "raising writer": (lambda write: raises, "MemoryError: the converter"),
    "no file": (lambda write: lambda s, p: None, ""),
}


def only(monkeypatch, module, write):
    """Leaves a format its float32 variant alone, written by `write`."""
    variant = dataclasses.replace(module.VARIANTS[0], write=write(module.VARIANTS[0].write))
    monkeypatch.setattr(module, "VARIANTS", (variant,))
    name = next(name for name in formats.FORMATS if formats.module(name) is module)
    monkeypatch.setattr(artifacts, "FILES", {(name, "float32"): variant.file})
    return f"{name}:float32", variant.file


@pytest.mark.parametrize(
    ("module", "fault"),
    [(tflite, "nan weights"), (tflite, "raising writer"), (tflite, "no file")]
    + [(onnx, fault) for fault in ("flipped weights", "truncated file")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_wrong_file_is_refused_and_leaves_nothing_under_its_name(run, module, fault, monkeypatch, capsys):
    write, reason = FAULTS[fault]
    name, file = only(monkeypatch, module, write)
    run.exports.mkdir()
    (run.exports / file).write_bytes(b"an older export")
    assert main([str(run), "--format", name]) == 1
    assert {path.name for path in run.exports.iterdir()} - {"tokenizer.json"} == {"manifest.json", "log.txt"}
    (entry,) = json.loads(run.manifest.read_text())
    assert (entry["passed"], entry["path"], entry["sha256"]) == (False, None, None)
    assert entry["reason"] and reason in entry["reason"] and "\n" not in entry["reason"]
    assert entry["reason"][:40] in capsys.readouterr().out


def test_operator_outside_tflites_own_is_refused(run, monkeypatch):
    def with_flex(student, path):
        module = tf.Module()
        module.v = student.variables

        @tf.function(input_signature=[student.specs(1, LENGTH)])
        def serve(inputs):
            return {"logits": tf.math.erf(student.logits(inputs))}

        tf.saved_model.save(module, str(path) + ".folder", signatures={"serving_default": serve})
        converter = tf.lite.TFLiteConverter.from_saved_model(str(path) + ".folder")
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
        path.write_bytes(converter.convert())

    name, _ = only(monkeypatch, tflite, lambda write: with_flex)
    assert main([str(run), "--format", name]) == 1
    (entry,) = json.loads(run.manifest.read_text())
    assert "FlexErf" in entry["reason"]


def test_operator_that_tflite_lacks_is_named(run, monkeypatch):
    class WithErf(inference.Student):
        def logits(self, inputs):
            return tf.math.erf(super().logits(inputs))

    name, _ = only(monkeypatch, tflite, lambda write: lambda s, p: write(disguised(s, WithErf), p))
    assert main([str(run), "--format", name]) == 1
    (entry,) = json.loads(run.manifest.read_text())
    assert entry["reason"] == "ValueError: TensorFlow Lite has no operator for TensorFlow's Erf"


def test_student_that_answers_nan_is_not_exported(run, monkeypatch):
    student = keras.models.load_model(run.student)
    student.set_weights([np.full_like(weight, np.nan) for weight in student.get_weights()])
    student.save(run.student)
    name, _ = only(monkeypatch, tflite, lambda write: write)
    assert main([str(run), "--format", name]) == 1
    (entry,) = json.loads(run.manifest.read_text())
    assert "the Keras student itself answers NaN" in entry["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    ("labels", "vocabulary", "flipped weights", "nan", "swapped inputs", "truncated graph", "truncated weights", "python inside"),
)
def test_wrong_saved_model_is_refused(run, fault, monkeypatch):
    def write(real):
        return {
            "labels": lambda s, p: real(dataclasses.replace(s, labels=s.labels[::-1]), p),
            "vocabulary": lambda s, p: real(dataclasses.replace(s, tokenizer=Tokenizer([*PIECES[:5], *PIECES[:4:-1]])), p),
            "flipped weights": lambda s, p: real(tampered(s, np.negative), p),
            "nan": lambda s, p: real(tampered(s, one_nan), p),
            "swapped inputs": lambda s, p: real(disguised(s, Swapped), p),
            "truncated graph": lambda s, p: (real(s, p), truncate(p / "saved_model.pb")),
            "truncated weights": lambda s, p: (real(s, p), truncate(next((p / "variables").glob("*.data*")))),
            "python inside": lambda s, p: real(disguised(s, WithPython), p),
        }[fault]

    name, file = only(monkeypatch, saved_model, write)
    assert main([str(run), "--format", name]) == 1
    assert not (run.exports / file).exists()
    (entry,) = json.loads(run.manifest.read_text())
    words = {"labels": "where class", "vocabulary": "scores are off", "nan": "NaN", "swapped inputs": "differ"}
    assert (words | {"flipped weights": "differ"}).get(fault, "Error") in entry["reason"]


# -------------------------------------------------------------------- what earlier exports left


def test_what_is_still_proven_is_kept_and_what_changed_since_is_deleted(exported_copy):
    run, before = exported_copy, read_manifest(exported_copy)
    (run.exports / "student.float32.onnx").unlink()
    for changed in (run.exports / "student.int8_dynamic.tflite", run.exports / "saved_model" / "fingerprint.pb"):
        changed.write_bytes(changed.read_bytes() + b"\0")
    book = manifest.Manifest(run, artifacts.FILES)
    assert book.removed == ["saved_model", "student.int8_dynamic.tflite"]
    assert not (run.exports / "saved_model").exists() and (run.exports / "student.float32.tflite").exists()
    book.add({"format": "onnx", "variant": "float32", "passed": False, "reason": "none"})
    after = read_manifest(run)
    assert list(after) == [key for key in DEFAULT if key not in (("saved_model", "float32"), ("tflite", "int8_dynamic"))]
    assert after["tflite", "float32"] == before["tflite", "float32"]
    assert list(manifest.Manifest(run, artifacts.FILES).entries) == list(after)  # a failure is remembered too


def test_exporting_one_format_again_keeps_the_others(exported_copy):
    before = read_manifest(exported_copy)
    assert main([str(exported_copy), "--format", "tflite"]) == 0
    after = read_manifest(exported_copy)
    assert list(after) == list(before)
    for key in (("saved_model", "float32"), ("onnx", "float32")):
        assert after[key] == before[key]
    assert after["tflite", "float32"]["seconds"] != before["tflite", "float32"]["seconds"]


def test_nothing_of_an_older_student_stays(exported_copy, capsys):
    run = exported_copy
    student = keras.models.load_model(run.student)
    student.set_weights([weight * 1.5 for weight in student.get_weights()])
    student.save(run.student)
    run.config.write_text(run.config.read_text().replace("formats:\n  - saved_model\n  - tflite\n  - onnx\n", "formats: []\n"))
    assert main([str(run)]) == 0
    assert {path.name for path in run.exports.iterdir()} == {"manifest.json", "log.txt"}
    assert json.loads(run.manifest.read_text()) == []
    said = capsys.readouterr().out
    assert "removed student.float32.tflite" in said and "nothing to export" in said


@pytest.mark.parametrize(
    "text", ("not JSON", '{"format": "onnx"}', "[3, null]", '[{"format": "onnx", "variant": "float32", "passed": true}]')
)
def test_damaged_manifest_vouches_for_nothing(exported_copy, text):
    exported_copy.manifest.write_text(text)
    book = manifest.Manifest(exported_copy, artifacts.FILES)
    assert (book.entries, len(book.removed)) == ({}, len(DEFAULT))


# -------------------------------------------------------------------- runs that contradict themselves


def refused(run: RunDir, capsys) -> str:
    """The one line that the program has for a run that it does not export."""
    assert main([str(run), "--format", "tflite"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "content", "words"),
    (
        ("labels.txt", "one\ntwo\n", "2 labels for the 3 classes"),
        ("labels.txt", "one\ntwo\ndr\xe9i\n", "byte 10 is not UTF-8"),
        (
            "tokenizer_config.json",
            '{"lowercase": true, "max_length": 99, "pairs": false}',
            "max_length = 99 is above the 16 positions",
        ),
        ("tokenizer_config.json", '{"lowercase": true}', "must hold lowercase, max_length and pairs"),
        ("tokenizer_config.json", "[]", "must hold lowercase, max_length and pairs"),
        ("vocab.txt", "".join(f"{piece}\n" for piece in [*PIECES, "extra"]), "pieces for the"),
        ("student.keras", "not a zip file", "cannot be read as a Keras model"),
        ("examples.jsonl", "", "holds no example"),
        (
            "examples.jsonl",
            '{"row": 0, "text": "red", "label": "none of them"}\n',
            "examples.jsonl:1: not an example of this run",
        ),
        ("examples.jsonl", '{"row": 0, "text": 3, "label": "animals"}\n', "examples.jsonl:1: not an example of this run"),
        ("examples.jsonl", "{\n", "examples.jsonl:1: not an example of this run"),
    ),
)
def test_files_that_do_not_belong_together_are_one_line_and_2(run, name, content, words, capsys):
    (run.path / name).write_bytes(content.encode("latin-1"))
    assert words in refused(run, capsys)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (2, "export.lengths holds 2: must be from 3 to data.max_length = 16"),
        (13, "export.lengths holds 13: must be from 3 to 12, the student's longest input"),
    ],
)
def test_fixed_length_that_is_none_is_one_line_and_2(run, length, words, capsys):
    text = run.config.read_text().replace("lengths: null", f"lengths: [{length}]").replace("max_length: 12", "max_length: 16")
    run.config.write_text(text)
    line = refused(run, capsys)
    assert line.startswith("error: ") and line.endswith(words)


def test_folder_that_cannot_be_written_is_one_line_and_2(run, capsys):
    run.exports.write_text("a file in the way")
    assert str(run.exports) in refused(run, capsys)


@pytest.mark.slow
def test_student_of_real_size_passes_everywhere_in_time(tmp_path):
    run = build_run(tmp_path / "real", layers=4, width=256, heads=4, examples=300, steps=60)
    done = subprocess.run([sys.executable, "-m", "export", run.path], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert sum(entry["seconds"] for entry in read_manifest(run).values()) < 120
