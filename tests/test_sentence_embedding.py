"""Sentence vectors: pairs come apart, vectors have unit length, cosines are ranked beside judgements."""

import io
import json
import pathlib

import keras
import numpy as np
import pytest
import rich.console
import yaml
from scipy import stats

from tests.whole_run import go
from tfkd import build, config, train
from tfkd.data.sentences import Sentences
from tfkd.data.store import write_store
from tfkd.data.tokenizer import Tokenizer
from tfkd.errors import UserError
from tfkd.layers.embedding_head import EmbeddingHead
from tfkd.progress import Display
from tfkd.run_dir import RunDir, read_json
from tfkd.tasks.sentence_embedding import SentenceEmbedding
from tfkd.tasks.sentence_embedding_metrics import SentenceEmbeddingMeasure

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "sat", "ran"]


def store(tmp_path, examples, **columns):
    return write_store(tmp_path / "rows", examples, Tokenizer(PIECES), 8, Sentences(**columns))


def test_a_pair_gives_a_row_a_sentence_and_each_knows_its_pair(tmp_path):
    pairs = [{"text": "cat sat", "text_pair": "dog", "label": 4.5}, {"text": "ran", "text_pair": "ran cat", "label": 0.0}]
    rows = store(tmp_path, pairs, text_pair="text_pair", label="label")
    assert [rows.text(row) for row in range(4)] == ["cat sat", "dog", "ran", "ran cat"]
    truth = rows.target.truth(rows)
    assert truth["example"].tolist() == [0, 0, 1, 1] and truth["labels"].tolist() == [4.5, 4.5, 0.0, 0.0]
    x, y, weight = rows.target.batch(rows, np.array([3, -1]), 6, None)
    assert set(x) == {"token_ids", "padding_mask"}  # read alone: no segments
    assert weight.tolist() == [1.0, 0.0] and y.tolist() == [0, 0]


def test_plain_sentences_need_no_pair_and_no_label(tmp_path):
    rows = store(tmp_path, [{"text": "cat"}, {"text": "dog ran"}])
    measure = SentenceEmbeddingMeasure(rows.target.truth(rows), [])
    assert measure.metrics(np.ones((2, 3))) == {"spearman": None, "pearson": None}
    assert measure.headline_on(np.ones((2, 3)))(np.array([0])) is None
    assert measure.near(np.eye(2), np.eye(2))["cosine"] == pytest.approx(1.0)


def test_vectors_are_means_of_the_text_alone_at_unit_length():
    hidden = np.random.default_rng(0).normal(size=(2, 4, 6)).astype("float32")
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], "int32")
    vectors, inner = EmbeddingHead()(hidden, mask)
    means = np.stack([hidden[0, :3].mean(0), hidden[1, 0]])
    np.testing.assert_allclose(inner["pooled"], means, rtol=1e-5)
    np.testing.assert_allclose(vectors, means / np.linalg.norm(means, axis=1, keepdims=True), rtol=1e-5)
    narrow = EmbeddingHead(3)
    assert narrow(hidden, mask)[0].shape == (2, 3) and tuple(narrow.output_dense.kernel.shape) == (6, 3)
    assert not EmbeddingHead(6)(hidden, mask)[0].numpy().shape[1] - 6


def test_correlations_are_those_of_scipy():
    random = np.random.default_rng(1)
    vectors, judged = random.normal(size=(40, 5)), random.integers(0, 6, 20).astype("float64")
    truth = {"labels": np.repeat(judged, 2), "example": np.repeat(np.arange(20), 2)}
    measure = SentenceEmbeddingMeasure(truth, [])
    one, other = vectors[::2], vectors[1::2]
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    found = measure.metrics(vectors)
    assert found["spearman"] == pytest.approx(stats.spearmanr(cosines, judged)[0])
    assert found["pearson"] == pytest.approx(stats.pearsonr(cosines, judged)[0])
    rows = random.integers(0, 20, 20)
    assert measure.headline_on(vectors)(rows) == pytest.approx(stats.spearmanr(cosines[rows], judged[rows])[0])


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *["cat", "dog", "sat", "ran", "tree", "house", "red", "old"]]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A small Hugging Face BERT without a head, with random weights."""
    from safetensors.numpy import save_file

    folder, random = tmp_path_factory.mktemp("bert"), np.random.default_rng(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    about = {"model_type": "bert", "vocab_size": len(WORDS), "max_position_embeddings": 40, "type_vocab_size": 2}
    shapes = {"word_embeddings": (len(WORDS), 16), "position_embeddings": (40, 16), "token_type_embeddings": (2, 16)}
    tensors = {f"embeddings.{name}.weight": random.normal(0, 0.2, shape) for name, shape in shapes.items()}
    norms = ["embeddings.LayerNorm"]
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        parts = {part: (16, 16) for part in ("self.query", "self.key", "self.value", "output.dense")}
        dense = {f"{layer}.attention.{part}": shape for part, shape in parts.items()}
        dense |= {f"{layer}.intermediate.dense": (32, 16), f"{layer}.output.dense": (16, 32)}
        for name, shape in dense.items():
            tensors |= {f"{name}.weight": random.normal(0, 0.2, shape), f"{name}.bias": random.normal(0, 0.2, shape[0])}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name in norms:
        tensors |= {f"{name}.weight": np.ones(16), f"{name}.bias": np.zeros(16)}
    save_file({name: value.astype("float32") for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(about | size | {"hidden_act": "gelu", "layer_norm_eps": 1e-12}))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    words = WORDS[5:]
    for name, rows in (("train", 96), ("test", 40)):
        with open(folder / f"{name}.jsonl", "w") as file:
            for _ in range(rows):
                one = list(random.choice(words, 5))
                other = one[: random.integers(0, 6)] + list(random.choice(words, 3))
                score = len(set(one) & set(other))
                file.write(json.dumps({"a": " ".join(one), "b": " ".join(other), "score": score}) + "\n")
    return {
        "task": "sentence_embedding",
        "data": {
            "files": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
            "columns": {"text": "a", "text_pair": "b", "label": "score"},
            "max_length": 16,
        },
        "teacher": {"checkpoint": "somewhere"},
        "student": {"layers": 1},
        "distill": {"alpha": 0.0},
        "baseline": False,
        "train": {"epochs": 2, "batch_size": 32, "learning_rate": 1e-3},
        "evaluate": {"bootstrap": 100},
        "export": {"formats": []},
    }


def test_a_config_with_labels_to_learn_from_is_refused(tree):
    for change, message in (
        ({"distill": {"alpha": 0.5}}, "set distill.alpha to 0"),
        ({"baseline": True}, "set baseline to false"),
        ({"teacher": {"checkpoint": "x", "finetune": {}}}, "leave teacher.finetune"),
    ):
        with pytest.raises(UserError, match=message):
            config.parse(tree | change)


@pytest.mark.parametrize(("given", "pooling"), [({}, "mean"), ({"pooling": "first"}, "first"), ({"pooling": "mean"}, "mean")])
def test_a_students_vectors_are_means_unless_the_first_position_is_asked_for(tree, given, pooling):
    loaded = config.parse(tree | {"student": {"dimensions": {"layers": 1, "width": 8, **given}}})
    model = build.from_dimensions(loaded.student.dimensions, loaded, 6, len(WORDS), SentenceEmbedding(), "student")
    assert (model.head.pooling, model.head.classes) == (pooling, 6)


def test_the_teachers_own_vectors_are_distilled_without_labels(tree, tmp_path, bert_folder):
    text = yaml.safe_dump(tree | {"teacher": {"checkpoint": str(bert_folder)}})
    (tmp_path / "vectors.yaml").write_text(text)
    run, loaded = RunDir(tmp_path / "run"), config.load(tmp_path / "vectors.yaml")
    run.path.mkdir()
    run.config.write_text(config.dump(loaded))
    console = rich.console.Console(file=io.StringIO(), width=120)
    assert train.train(loaded, run, Display(console), False) == 0
    report = read_json(run.report_json)
    assert report["metric"] == "spearman"
    roles = {model["role"]: model for model in report["models"]}
    assert set(roles) == {"teacher", "student"}
    assert -1.0 <= roles["student"]["metrics"]["spearman"] <= 1.0
    lines = [json.loads(line) for line in pathlib.Path(run.metrics).read_text().splitlines()]
    assert lines[-1]["logits_mse"] < lines[0]["logits_mse"]
    assert run.report_html.exists()


@pytest.mark.slow
def test_vectors_are_learned_from_plain_texts_and_every_file_is_measured_on_the_judged_pairs(tree, tmp_path, bert_folder):
    """Nobody judged what the last stage trains on: train's pairs and the plain texts are sentences alike."""
    (tmp_path / "plain.txt").write_text("".join(f"{one} {other} sat ran {one}\n" for one in WORDS[5:] for other in WORDS[5:]))
    plain = {"files": {"train": str(tmp_path / "plain.txt")}, "columns": {"label": None}, "max_length": 16}
    stage = {"distill": {"alpha": 0.0}, "train": {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3}}
    changes = {
        "teacher": {"checkpoint": str(bert_folder)},
        "stages": [stage | {"name": "pairs"}, stage | {"name": "plain", "data": plain}],
        "export": {"formats": ["saved_model", "tflite", "onnx", "huggingface"]},
    }
    staged = {key: value for key, value in tree.items() if key not in ("distill", "train")} | changes
    (tmp_path / "vectors.yaml").write_text(yaml.safe_dump(staged))
    run, _ = go(tmp_path / "vectors.yaml", tmp_path / "run")
    report = read_json(run.report_json)
    student = next(model for model in report["models"] if model["role"] == "student")["metrics"]
    entries = read_json(run.manifest)
    assert {entry["format"] for entry in entries} == {"saved_model", "tflite", "onnx", "huggingface"}
    for entry in entries:
        assert entry["passed"] and entry["examples"] == report["examples"] == 40, entry
        assert entry["metrics"]["spearman"] == pytest.approx(student["spearman"], abs=0.01), entry


def test_without_judgements_the_vectors_are_distilled_and_nothing_is_claimed(tree, tmp_path, bert_folder):
    """`columns.label: null`: the report has no figure of either model, and says so."""
    columns = {"text": "a", "text_pair": "b", "label": None}
    changed = tree | {"teacher": {"checkpoint": str(bert_folder)}, "data": tree["data"] | {"columns": columns}}
    (tmp_path / "vectors.yaml").write_text(yaml.safe_dump(changed))
    run, _ = go(tmp_path / "vectors.yaml", tmp_path / "run")
    report = read_json(run.report_json)
    assert {model["metrics"]["spearman"] for model in report["models"]} == {None}
    assert run.report_html.exists()
