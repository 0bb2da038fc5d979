"""`python -m export`: what is written, what is proven, and that nothing wrong is left behind."""

import dataclasses
import hashlib
import json
import pathlib
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
from export import artifacts, formats, inference, onnx, parity, saved_model, tflite
from export.__main__ import main
from export.quiet import quiet

from tfkd import config
from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.run_dir import RunDir
from tfkd.tasks.classification import ClassificationHead

CHECKOUT = pathlib.Path(__file__).parents[1]
WORDS = "red green blue cat dog bird runs sleeps sings big small old new and not never very".split()
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "aeioustrnldmcpgh")]
LABELS = ["colours", "animals", "[verbs] of é"]
LENGTH = 12


def build_run(path: pathlib.Path, pairs: bool = False, examples: int = 40, policy: str = "float32", **dimensions) -> RunDir:
    """A finished run with an untrained student, whose weights are large enough for its answers to differ."""
    keras.utils.set_random_seed(7)
    run = RunDir(path)
    path.mkdir(parents=True)
    dimensions = {"layers": 1, "width": 16, "heads": 2, **dimensions}
    pooling = dimensions.pop("pooling", "first")
    encoder = TransformerEncoder(len(PIECES), max_positions=16, segments=2 if pairs else 0, dtype=policy, **dimensions)
    student = TransformerWithHead(encoder, ClassificationHead(len(LABELS), pooling, dtype=policy), dtype=policy)
    generator = np.random.default_rng(7)
    student.set_weights([w + generator.normal(0, 0.4, w.shape).astype(w.dtype) for w in student.get_weights()])
    student.save(run.student)
    run.vocabulary.write_text("".join(piece + "\n" for piece in PIECES), encoding="utf-8")
    run.labels.write_text("".join(label + "\n" for label in LABELS), encoding="utf-8")
    run.tokenizer.write_text(json.dumps({"lowercase": True, "max_length": LENGTH, "pairs": pairs}))
    texts = [" ".join(generator.choice(WORDS, generator.integers(0, 16))) for _ in range(2 * examples)]
    rows = [{"row": row, "text": texts[row], "label": LABELS[row % 3]} for row in range(examples)]
    for row in rows if pairs else ():
        row["text_pair"] = texts[examples + row["row"]]
    run.examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {"data": {"builtin": "docstrings", "max_length": LENGTH}, "student": {"dimensions": {}}}
    run.config.write_text(config.dump(config.parse({**tree, "teacher": {"dimensions": {}, "train": {}}})))
    return run


def read_manifest(run: RunDir) -> dict:
    return {(entry["format"], entry["variant"]): entry for entry in json.loads(run.manifest.read_text())}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run that went through the whole program, and what the program said."""
    run = build_run(tmp_path_factory.mktemp("runs") / "tiny")
    done = subprocess.run([sys.executable, "-m", "export", run.path], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return run, done


@pytest.fixture()
def run(tmp_path):
    return build_run(tmp_path / "run")


# -------------------------------------------------------------------- command line


def test_help_comes_at_once_and_without_tensorflow():
    code = (
        "import runpy, sys, time\n"
        "sys.argv = ['export', '--help']\n"
        "try: runpy.run_module('export', run_name='__main__')\n"
        "except SystemExit as done: print(done.code, time.process_time(), 'tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    *text, last = done.stdout.splitlines()
    status, seconds, *imported = last.split()
    assert "saved_model, tflite, onnx" in " ".join(" ".join(text).split())
    assert (status, imported) == ("0", ["False", "False"])
    assert float(seconds) < 0.5


@pytest.mark.parametrize("arguments", (["--format", "gguf", "RUN"], [], ["RUN", "--format"]))
def test_wrong_arguments_end_with_2_before_tensorflow(arguments):
    code = f"import sys; from export.__main__ import main\ntry: main({arguments})\nexcept SystemExit as e: sys.exit(10 * ('tensorflow' in sys.modules) + e.code)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_missing_run_is_one_line_and_2(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nothing'}: no such run directory\n"


@pytest.mark.parametrize("name", ("student.keras", "vocab.txt", "labels.txt", "tokenizer_config.json", "config.yaml", "examples.jsonl"))
def test_unfinished_run_names_the_missing_file(run, name, capsys):
    (run.path / name).unlink()
    assert main([str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line


def test_command_line_and_configuration_know_the_formats_of_the_table():
    (literal,) = typing.get_args(config.Export.model_fields["formats"].annotation)
    assert typing.get_args(literal) == tuple(formats.FORMATS)


# -------------------------------------------------------------------- files that pass


def test_every_format_passes_and_the_program_says_so(exported):
    run, done = exported
    assert (done.returncode, done.stderr) == (0, "")
    assert all(entry["passed"] for entry in read_manifest(run).values())
    for word in ("saved_model", "int8_dynamic", "student.onnx", "agreement", "p50 / p95"):
        assert word in done.stdout
    present = {path.name for path in run.exports.iterdir()}
    assert present == {"saved_model", "student.float32.tflite", "student.int8_dynamic.tflite", "student.onnx", "manifest.json", "log.txt"}


def test_manifest_describes_the_files(exported):
    run, _ = exported
    manifest = read_manifest(run)
    assert list(manifest) == list(artifacts.FILES)
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


def tokens(text: str) -> list[int]:
    """WordPiece by hand, for texts of whole words."""
    return [2, *(PIECES.index(word) for word in text.split())][: LENGTH - 1] + [3]


def batch_of(*texts: str, length: int | None = None) -> dict[str, np.ndarray]:
    rows = [tokens(text) for text in texts]
    length = length or max(map(len, rows))
    padded = [(row + [0] * (length - len(row)), [1] * len(row) + [0] * (length - len(row))) for row in rows]
    ids, mask = zip(*padded, strict=True)
    return {"token_ids": np.asarray(ids, "int32"), "padding_mask": np.asarray(mask, "int32")}


def test_accuracy_in_the_manifest_is_the_students_own(exported):
    run, _ = exported
    student = keras.models.load_model(run.student)
    rows = [json.loads(line) for line in run.examples.read_text().splitlines()]
    answers = np.asarray(student(batch_of(*(row["text"] for row in rows)))).argmax(axis=1)
    accuracy = np.mean([LABELS[answer] == row["label"] for answer, row in zip(answers, rows, strict=True)])
    entry = read_manifest(run)["onnx", "float32"]
    assert entry["metrics"] == entry["student_metrics"] == {"accuracy": pytest.approx(accuracy)}
    assert len(set(answers)) == 3  # an untrained student that always gives one answer would prove little


def test_onnx_answers_any_batch_and_length(exported):
    run, _ = exported
    session = onnxruntime.InferenceSession(str(run.exports / "student.onnx"), providers=["CPUExecutionProvider"])
    assert {i.name: (i.shape, i.type) for i in session.get_inputs()} == {
        name: (["batch", "length"], "tensor(int32)") for name in ("token_ids", "padding_mask")
    }
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 3])]
    student = keras.models.load_model(run.student)
    for texts in (["red cat"], ["old dog sings", "", "never never never"]):
        batch = batch_of(*texts)
        np.testing.assert_allclose(session.run(None, batch)[0], student(batch), atol=1e-5)
    model = onnx_library.load(run.exports / "student.onnx")
    assert [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")] == [18]


def test_tflite_has_one_signature_of_one_fixed_length(exported):
    run, _ = exported
    student = keras.models.load_model(run.student)
    for name, tolerance in (("student.float32.tflite", 1e-5), ("student.int8_dynamic.tflite", 0.3)):
        interpreter = Interpreter(model_path=str(run.exports / name))
        assert interpreter.get_signature_list() == {
            "serving_default": {"inputs": ["padding_mask", "token_ids"], "outputs": ["logits"]}
        }
        runner = interpreter.get_signature_runner("serving_default")
        details = runner.get_input_details().values()
        assert [(tuple(d["shape"]), d["dtype"]) for d in details] == [((1, LENGTH), np.int32)] * 2
        batch = batch_of("small bird sings", length=LENGTH)
        np.testing.assert_allclose(runner(**batch)["logits"], student(batch), atol=tolerance)


def test_saved_model_answers_raw_text_where_there_is_no_tfkd(exported, tmp_path):
    run, _ = exported
    code = f"""
import json, sys
import tensorflow as tf, tensorflow_text
signatures = tf.saved_model.load({str(run.exports / "saved_model")!r}).signatures
serve = signatures["serving_default"]
texts = ["red cat", "", b"caf\\xe9 \\xff", "dog " * 5000, "red " * 10, "red " * 11]
got = serve(text=tf.constant(texts))
empty = serve(text=tf.constant([], tf.string))
ids = signatures["from_token_ids"](token_ids=tf.constant([[2, 5, 8, 3]]), padding_mask=tf.constant([[1, 1, 1, 1]]))
assert "tfkd" not in sys.modules and "export" not in sys.modules
print(json.dumps({{"label": [label.decode() for label in got["label"].numpy()], "scores": got["scores"].numpy().tolist(),
    "truncated": got["truncated"].numpy().tolist(), "empty": [list(empty["label"].shape), list(empty["scores"].shape)],
    "logits": ids["logits"].numpy().tolist(), "ids_scores": ids["scores"].numpy().tolist()}}))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    got = json.loads(done.stdout)
    student = keras.models.load_model(run.student)
    logits = np.asarray(student(batch_of("red cat", "")))
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got["scores"][:2], expected, atol=1e-5)
    np.testing.assert_allclose(got["ids_scores"][0], expected[0], atol=1e-5)
    np.testing.assert_allclose(got["logits"][0], logits[0], atol=1e-5)
    assert got["label"] == [LABELS[np.argmax(scores)] for scores in got["scores"]]
    # [CLS] and [SEP] leave room for ten pieces of twelve; what is not UTF-8 is dropped.
    assert got["truncated"] == [False, False, False, True, False, True]
    assert got["empty"] == [[0], [0, 3]]


def test_segments_mean_pooling_and_pre_norm_pass(tmp_path):
    run = build_run(tmp_path / "pairs", pairs=True, norm="pre", position="sinusoidal", pooling="mean", activation="gelu_tanh")
    assert main([str(run), "--format", "tflite", "onnx"]) == 0
    session = onnxruntime.InferenceSession(str(run.exports / "student.onnx"), providers=["CPUExecutionProvider"])
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
