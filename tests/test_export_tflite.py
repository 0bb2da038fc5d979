"""TFLite files: their signatures, what travels inside, and that no wrong one gets its name."""

import dataclasses
import io
import json
import pathlib
import sys
import zipfile

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from export import artifacts, formats, inference, mediapipe, tflite, tflite_metadata
from export.questions import load_questions
from tests.tiny_run import LABELS, LENGTH, PIECES, batch_of, build_run
from tfkd.errors import UserError

LENGTHS = [6, LENGTH]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A student, the questions, and one file of each kind, converted once."""
    run = build_run(tmp_path_factory.mktemp("runs") / "tiny", layers=2)
    student = inference.load(run, LENGTHS)
    folder = tmp_path_factory.mktemp("files")
    tflite.write_float32(student, folder / "student.tflite")
    mediapipe.write_float32(student, folder / "mediapipe.tflite")
    return run, student, load_questions(run, student, 500), folder


def runner(path: pathlib.Path, signature: str):
    return Interpreter(model_path=str(path)).get_signature_runner(signature)


# -------------------------------------------------------------------- signatures


def test_every_length_is_a_signature_that_answers_as_the_keras_student(made):
    _, student, _, folder = made
    interpreter = Interpreter(model_path=str(folder / "student.tflite"))
    both = {"inputs": ["padding_mask", "token_ids"], "outputs": ["logits"]}
    assert interpreter.get_signature_list() == {"length_6": both, "length_12": both}
    for length in LENGTHS:
        ask = interpreter.get_signature_runner(f"length_{length}")
        details = ask.get_input_details().values()
        assert [(tuple(each["shape"]), each["dtype"]) for each in details] == [((1, length), np.int32)] * 2
        for text in ("small bird sings", ""):
            batch = batch_of(text, length=length)
            np.testing.assert_allclose(ask(**batch)["logits"], student.model(batch, training=False), atol=2e-5)


def test_signatures_share_their_weights(made):
    _, _, _, folder = made
    model = schema.ModelT.InitFromPackedBuf((folder / "student.tflite").read_bytes(), 0)
    assert len(model.subgraphs) == 2
    # 64 x 16 numbers of four bytes: the token vectors, and two kernels of the feed-forward layer in each of two blocks.
    assert len(PIECES) == 64
    assert sum(buffer.data is not None and len(buffer.data) == 64 * 16 * 4 for buffer in model.buffers) == 1 + 2 * 2


def test_mediapipe_file_has_one_graph_three_inputs_and_probabilities(made):
    _, student, _, folder = made
    interpreter = Interpreter(model_path=str(folder / "mediapipe.tflite"))
    assert interpreter.get_signature_list() == {
        "classify": {"inputs": ["padding_mask", "segment_ids", "token_ids"], "outputs": ["scores"]}
    }
    batch = batch_of("old dog sings", length=LENGTH)
    logits = np.asarray(student.model(batch, training=False))
    scores = interpreter.get_signature_runner("classify")(**batch, segment_ids=np.zeros((1, LENGTH), "int32"))["scores"]
    np.testing.assert_allclose(scores, np.exp(logits) / np.exp(logits).sum(), atol=1e-5)


# -------------------------------------------------------------------- metadata


@pytest.mark.parametrize("name", ("student.tflite", "mediapipe.tflite"))
def test_vocabulary_and_labels_come_out_with_any_unzip(made, name):
    _, _, _, folder = made
    with zipfile.ZipFile(folder / name) as archive:
        assert archive.testzip() is None
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert archive.read("vocab.txt").decode().splitlines() == PIECES
        assert archive.read("labels.txt").decode().splitlines() == LABELS


def metadata_of(path: pathlib.Path):
    """The file's `ModelMetadata`, read with the class that MediaPipe generates from the schema."""
    generated = pytest.importorskip("mediapipe.tasks.metadata.metadata_schema_py_generated", exc_type=ImportError)
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (entry,) = [each for each in model.metadata if each.name == b"TFLITE_METADATA"]
    packed = bytes(model.buffers[entry.buffer].data)
    assert packed[4:8] == b"M001"
    return generated, model, generated.ModelMetadataT.InitFromPackedBuf(packed, 0)


def test_metadata_say_what_mediapipe_looks_for(made):
    _, _, _, folder = made
    generated, model, about = metadata_of(folder / "mediapipe.tflite")
    (graph,) = about.subgraphMetadata
    shown = [each.name.decode() for each in graph.inputTensorMetadata]
    names = {"token_ids": "ids", "padding_mask": "mask", "segment_ids": "segment_ids"}
    tensors = {each.tensorIndex: each.name.decode() for each in model.signatureDefs[0].inputs}
    assert shown == [names[tensors[index]] for index in model.subgraphs[0].inputs]
    (unit,) = graph.inputProcessUnits
    assert unit.optionsType == generated.ProcessUnitOptions.BertTokenizerOptions
    assert [file.name for file in unit.options.vocabFile] == [b"vocab.txt"]
    (output,) = graph.outputTensorMetadata
    (labels,) = output.associatedFiles
    assert (labels.name, labels.type) == (b"labels.txt", generated.AssociatedFileType.TENSOR_AXIS_LABELS)
    assert about.minParserVersion == b"1.3.0"


def test_metadata_describe_every_signature_for_people(made):
    _, _, _, folder = made
    _, model, about = metadata_of(folder / "student.tflite")
    assert [graph.name for graph in about.subgraphMetadata] == [b"length_12", b"length_6"]
    assert [len(graph.inputTensorMetadata) for graph in about.subgraphMetadata] == [2, 2]
    told = json.loads(about.description)
    assert (told["task"], told["lowercase"], told["pairs"]) == ("classification", True, False)


def test_same_graph_gives_the_same_bytes_again(made):
    _, student, _, folder = made
    first, second = (again(folder / "student.tflite", student.tokenizer, student.labels) for _ in range(2))
    assert first == second
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


# -------------------------------------------------------------------- files that must not leave


def parsed(path: pathlib.Path) -> schema.ModelT:
    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def packed(model: schema.ModelT, path: pathlib.Path) -> bytes:
    """A changed model with the zip of the file at `path` behind it."""
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    file = io.BytesIO(bytes(builder.Output()))
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(file, "a") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return file.getvalue()


def floats(model: schema.ModelT) -> np.ndarray:
    """The output kernel of the first block's feed-forward layer, a view that changes the model."""
    (buffer,) = [each for each in model.buffers if each.data is not None and len(each.data) == 64 * 16 * 4][:1]
    buffer.data = buffer.data.copy()
    return buffer.data.view("float32")


def flipped(path, student):
    model = parsed(path)
    floats(model)[:] *= -1
    return packed(model, path)


def one_nan(path, student):
    model = parsed(path)
    floats(model)[0] = np.nan
    return packed(model, path)


def swapped(path, student):
    """Says of every signature that its ids are the mask, and its mask the ids."""
    model = parsed(path)
    for signature in model.signatureDefs:
        ids, mask = (next(each for each in signature.inputs if each.name == name) for name in (b"token_ids", b"padding_mask"))
        ids.tensorIndex, mask.tensorIndex = mask.tensorIndex, ids.tensorIndex
    return packed(model, path)


def one_signature_of_another_student(path, student):
    """The shorter graph's logits come out with their sign turned: its last operator's bias is subtracted."""
    model = parsed(path)
    graph = model.subgraphs[model.signatureDefs[-1].subgraphIndex]
    last = graph.operators[-1]
    bias = graph.tensors[last.inputs[2]]
    other = schema.BufferT()
    other.data = (model.buffers[bias.buffer].data.view("float32") + np.float32(0.5)).view("uint8")
    model.buffers.append(other)
    bias.buffer = len(model.buffers) - 1
    return packed(model, path)


def reads_variables(path, student):
    model = parsed(path)
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = schema.BuiltinOperator.READ_VARIABLE, 127, 1
    model.operatorCodes.append(code)
    return packed(model, path)


def again(path, tokenizer, labels):
    """The same graph with other files inside."""
    model = parsed(path)
    model.metadata = [each for each in model.metadata if each.name != b"TFLITE_METADATA"]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return tflite_metadata.attach(bytes(builder.Output()), tokenizer, labels, "changed")


def other_vocabulary(path, student):
    pieces = student.tokenizer.pieces
    pieces[9], pieces[10] = pieces[10], pieces[9]
    return again(path, type(student.tokenizer)(pieces), student.labels)


FAULTS = {
    "flipped weights": (flipped, "differ"),
    "NaN": (one_nan, "NaN or infinity"),
    "swapped inputs": (swapped, "differ"),
    "one wrong signature": (one_signature_of_another_student, "length_6: logits differ"),
    "half a file": (lambda path, student: path.read_bytes()[: path.stat().st_size // 2], ""),
    "last bytes lost": (lambda path, student: path.read_bytes()[:-30], "not a zip file"),
    "no bytes": (lambda path, student: b"", ""),
    "wrong vocabulary": (other_vocabulary, "carries another vocab.txt: 'bird' in line 10 instead of 'dog'"),
    "wrong label order": (
        lambda path, student: again(path, student.tokenizer, student.labels[::-1]),
        "carries another labels.txt: '[verbs] of é' in line 1 instead of 'colours'",
    ),
    "a label too few": (
        lambda path, student: again(path, student.tokenizer, student.labels[:2]),
        "carries another labels.txt: 2 lines instead of 3",
    ),
    "unfrozen variable": (reads_variables, "its weights are not frozen: it reads them with READ_VARIABLE"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_file_is_refused_and_leaves_nothing_under_its_name(made, fault, tmp_path, monkeypatch):
    _, student, questions, folder = made
    tamper, reason = FAULTS[fault]
    content = tamper(folder / "student.tflite", student)
    variant = dataclasses.replace(tflite.VARIANTS[0], write=lambda student, path: path.write_bytes(content))
    monkeypatch.setattr(tflite, "VARIANTS", (variant,))
    (tmp_path / variant.file).write_bytes(b"an older export")
    entry = artifacts.make(student, questions, "tflite", "float32", tmp_path, tmp_path / "log.txt")
    assert not entry["passed"] and reason in entry["reason"] and "\n" not in entry["reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_the_same_file_untouched_passes(made, tmp_path, monkeypatch):
    _, student, questions, folder = made
    content = packed(parsed(folder / "student.tflite"), folder / "student.tflite")
    variant = dataclasses.replace(tflite.VARIANTS[0], write=lambda student, path: path.write_bytes(content))
    monkeypatch.setattr(tflite, "VARIANTS", (variant,))
    entry = artifacts.make(student, questions, "tflite", "float32", tmp_path, tmp_path / "log.txt")
    assert (entry["passed"], entry["reason"]) == (True, None)
    assert [each["signature"] for each in entry["signatures"]] == ["length_6", "length_12"]


@pytest.mark.parametrize(("fault", "reason"), (("wrong label order", "another labels.txt"), ("flipped weights", "differ")))
def test_wrong_mediapipe_file_is_refused(made, fault, reason, tmp_path, monkeypatch):
    _, student, questions, folder = made
    content = FAULTS[fault][0](folder / "mediapipe.tflite", student)
    variant = dataclasses.replace(mediapipe.VARIANTS[0], write=lambda student, path: path.write_bytes(content))
    monkeypatch.setattr(mediapipe, "VARIANTS", (variant,))
    entry = artifacts.make(student, questions, "mediapipe", "float32", tmp_path, tmp_path / "log.txt")
    assert not entry["passed"] and reason in entry["reason"]


@pytest.mark.parametrize(
    ("change", "words"),
    (
        (lambda s: dataclasses.replace(s, task="regression"), "this student does regression"),
        (lambda s: dataclasses.replace(s, pairs=True), "MediaPipe reads one text"),
        (lambda s: dataclasses.replace(s, tokenizer=type(s.tokenizer)(PIECES, lowercase=False)), "tells cases apart"),
    ),
)
def test_student_that_mediapipe_would_misread_gets_no_mediapipe_file(made, change, words, tmp_path):
    _, student, questions, _ = made
    entry = artifacts.make(change(student), questions, "mediapipe", "float32", tmp_path, tmp_path / "log.txt")
    assert not entry["passed"] and words in entry["reason"] and "Error" not in entry["reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


# -------------------------------------------------------------------- calibration, choice of variants


@pytest.mark.parametrize(
    ("content", "words"),
    (
        (None, "calibration.jsonl: no such file; full int8 is calibrated on training texts"),
        ("", "calibration.jsonl: holds no text to calibrate on"),
        ('{"text": "red"}\n{"words": "red"}\n', "calibration.jsonl:2: not a training text of this run ('text')"),
        ('{"text": 3}\n', "calibration.jsonl:1: not a training text of this run"),
        ("{\n", "calibration.jsonl:1: not a training text of this run"),
    ),
)
def test_full_int8_without_training_texts_is_one_line(made, content, words, tmp_path):
    _, student, _, _ = made
    path = tmp_path / "calibration.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace(")", r"\)")) as error:
        dataclasses.replace(student, calibration_texts=path).calibration(6)
    assert "\n" not in str(error.value)


def test_calibration_texts_are_tokenized_as_every_text_is(made):
    _, student, _, _ = made
    texts = [json.loads(line)["text"] for line in student.calibration_texts.read_text().splitlines()]
    features = student.calibration(LENGTH)
    by_hand = batch_of(*texts, length=LENGTH)
    assert len(texts) == 80
    for name in ("token_ids", "padding_mask"):
        np.testing.assert_array_equal(features[name], by_hand[name])


def test_names_of_variants_are_those_of_the_modules():
    for format, variants in formats.FORMATS.items():
        assert tuple(each.name for each in formats.module(format).VARIANTS) == variants
    assert len({each.file for name in formats.FORMATS for each in formats.module(name).VARIANTS}) == len(artifacts.FILES)


def test_bare_name_stands_for_what_needs_nothing_else():
    three = [("tflite", "float32"), ("tflite", "float16"), ("tflite", "int8_dynamic")]
    assert formats.chosen(["tflite"]) == three
    assert formats.chosen(["tflite:int8", "tflite"]) == [*three, ("tflite", "int8")]
    assert formats.chosen(["tflite:int8", "tflite:int8"]) == [("tflite", "int8")]
    assert formats.chosen([]) == []
    assert set(formats.ON_REQUEST) <= set(formats.choices())


# -------------------------------------------------------------------- slow: every variant, by its converter


@pytest.mark.slow
def test_every_variant_passes_and_the_integer_one_is_integer(tmp_path):
    pytest.importorskip("ai_edge_quantizer", exc_type=ImportError)
    run = build_run(tmp_path / "run", layers=2, width=64, examples=300, steps=150)
    student = inference.load(run, LENGTHS)
    questions, entries = load_questions(run, student, 500), {}
    for variant in set(formats.FORMATS["tflite"]) - {"int8_qat"}:  # which takes a training: test_export_tflite_qat.py
        entries[variant] = artifacts.make(student, questions, "tflite", variant, tmp_path, tmp_path / "log.txt")
        assert entries[variant]["passed"], entries[variant]["reason"]
    sizes = {variant: (tmp_path / f"student.{variant}.tflite").stat().st_size for variant in entries}
    assert sizes["int4_dynamic"] < sizes["int8_dynamic"] < sizes["float16"] < sizes["float32"]
    differences = [entries[variant]["mean_abs_difference"] for variant in ("float32", "float16", "int8_dynamic", "int4_dynamic")]
    assert differences == sorted(differences) and differences[1] > 100 * differences[0]
    model = parsed(tmp_path / "student.int8.tflite")
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    for graph in model.subgraphs:
        for operator in graph.operators:
            kind = names[model.operatorCodes[operator.opcodeIndex].builtinCode]
            read = {graph.tensors[index].type for index in operator.inputs if index >= 0}
            if kind not in ("CAST", "QUANTIZE", "DEQUANTIZE"):
                assert schema.TensorType.FLOAT32 not in read, kind


@pytest.mark.slow
def test_functions_converted_with_their_variables_outside_are_refused(made, tmp_path, monkeypatch):
    _, student, questions, _ = made

    def careless(student, path):
        (function,) = tflite.functions(dataclasses.replace(student, lengths=(LENGTH,))).values()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
        tflite.write(student, path, converter.convert())

    monkeypatch.setattr(tflite, "VARIANTS", (dataclasses.replace(tflite.VARIANTS[0], write=careless),))
    entry = artifacts.make(student, questions, "tflite", "float32", tmp_path, tmp_path / "log.txt")
    assert not entry["passed"] and not (tmp_path / "student.float32.tflite").exists()


@pytest.mark.slow
def test_missing_quantizer_is_one_line(made, tmp_path, monkeypatch):
    _, student, questions, _ = made
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    entry = artifacts.make(student, questions, "tflite", "int4_dynamic", tmp_path, tmp_path / "log.txt")
    assert entry["reason"] == "tflite:int4_dynamic needs the package ai-edge-quantizer: pip install tfkd[int4]"
