"""`--format huggingface`: a student written as a Hugging Face folder, read back by us and by transformers."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from export import artifacts, hugging_face, inference, model_card, questions
from tfkd import config
from tfkd.checkpoints.checkpoint import open_checkpoint
from tfkd.data.tokenizer import Tokenizer
from tfkd.errors import UserError
from tfkd.layers.embedding_head import EmbeddingHead
from tfkd.layers.head import ClassificationHead, RegressionHead
from tfkd.layers.token_head import SpanHead, TokenHead
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.run_dir import RunDir
from tfkd.tasks.measures import MEASURES

PYTHON = os.environ.get("TFKD_REFERENCE_PYTHON", sys.executable)
SENTENCES = pathlib.Path(__file__).parent.joinpath("data", "sentences.txt").read_text(encoding="utf-8").splitlines()
CHARACTERS = sorted({character for line in SENTENCES for character in line.lower() if not character.isspace()})
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
LABELS = ("bad", "[so so]", "good é")
LENGTH = 24

STUDENTS = {
    "bert": ("BertForSequenceClassification", {}),
    "bert of pairs": ("BertForSequenceClassification", {"pairs": True, "activation": "gelu_tanh", "epsilon": 1e-5}),
    "bert with sinusoids": (
        "BertForSequenceClassification",
        {"position": "sinusoidal", "activation": "relu", "feed_forward": 24, "lowercase": False},
    ),
    "bert of pairs without segments": ("BertForSequenceClassification", {"pairs": True, "segments": 0}),
    "distilbert": ("DistilBertForSequenceClassification", {"hidden": "relu"}),
    "electra": ("ElectraForSequenceClassification", {"hidden": "gelu", "pairs": True}),
    "several labels": ("BertForSequenceClassification", {"task": "multilabel"}),
    "a number of pairs": ("BertForSequenceClassification", {"task": "regression", "pairs": True}),
    "tags": ("BertForTokenClassification", {"task": "tagging", "lowercase": False}),
    "answers": ("BertForQuestionAnswering", {"task": "question_answering", "pairs": True}),
    "vectors": ("BertModel", {"task": "sentence_embedding"}),
    "vectors of the first position behind a layer": (
        "BertModel",
        {"task": "sentence_embedding", "vector": {"classes": 5, "pooling": "first", "bias": True, "activation": "tanh"}},
    ),
    "short vectors": ("BertModel", {"task": "sentence_embedding", "vector": {"classes": 6}}),
}


def make_head(task, pooling, hidden, vector):
    if task == "tagging":
        return TokenHead(len(LABELS), dropout=0.25)
    if task == "question_answering":
        return SpanHead(dropout=0.25)
    if task == "sentence_embedding":
        return EmbeddingHead(**vector)
    if task == "regression":
        return RegressionHead(2.5, 1.4, pooling=pooling, hidden=hidden, dropout=0.25)
    return ClassificationHead(len(LABELS), pooling, hidden, dropout=0.25)


def make_student(
    hidden="tanh", pooling="first", pairs=False, lowercase=True, task="classification", run=None, vector=None, **encoder
):
    """A student with weights large enough for its answers to differ, and four rows that no piece has."""
    keras.utils.set_random_seed(5)
    dimensions = {"layers": 2, "width": 16, "heads": 4, "max_positions": 30, "segments": 2 if pairs else 0, **encoder}
    model = TransformerWithHead(TransformerEncoder(len(PIECES) + 4, **dimensions), make_head(task, pooling, hidden, vector or {}))
    generator = np.random.default_rng(5)
    model.set_weights([w + generator.normal(0, 0.3, w.shape).astype("float32") for w in model.get_weights()])
    labels = () if task in ("regression", "question_answering", "sentence_embedding") else LABELS
    return inference.Student(model, Tokenizer(PIECES, lowercase), labels, pairs, LENGTH, (LENGTH,), task, run=run)


class Unmeasured:
    """Stands for a task's measure where only the differences of the numbers count."""

    truth, examples = {}, 12

    def near(self, ours, theirs):
        return {}

    def summary(self, answers):
        return {}


def questions_for(student):
    texts = [line.encode() for line in SENTENCES[:12]]
    pairs = [line.encode() for line in SENTENCES[::-1][:12]] if student.pairs else None
    with pytest.MonkeyPatch.context() as patch:
        if student.task != "classification":  # whole runs of every task are in test_whole_tasks.py
            patch.setitem(MEASURES, student.task, lambda truth, labels: Unmeasured())
        return questions.Questions(student, texts, pairs, {"labels": np.arange(12, dtype="int32") % 3}, np.arange(12))


def made(student, folder):
    """The manifest's entry for `folder/huggingface`, made by the program's own means."""
    return artifacts.make(student, questions_for(student), "huggingface", "float32", folder, folder / "log.txt")


QUICK = ("bert of pairs", "bert with sinusoids", "distilbert", "a number of pairs", "tags", "answers", "short vectors")
ALL = [pytest.param(*STUDENTS[name], id=name, marks=() if name in QUICK else pytest.mark.slow) for name in STUDENTS]


@pytest.mark.parametrize("name, make", ALL)
def test_student_can_be_a_teacher_here(name, make, tmp_path):
    student = make_student(**make)
    entry = made(student, tmp_path)
    assert (entry["passed"], entry["reason"]) == (True, None)
    found = open_checkpoint(str(tmp_path / "huggingface"), vectors=student.task == "sentence_embedding")
    assert (found.task, found.lowercase) == (student.task, student.tokenizer.lowercase)
    assert tuple(found.labels or ()) == (("LABEL_0",) if student.task == "regression" else student.labels)
    assert (found.pieces, found.max_length) == (PIECES, 30)
    assert json.loads((tmp_path / "huggingface" / "config.json").read_text())["architectures"] == [name]
    inputs = {name: np.asarray(values) for name, values in student.encode(*sides(student), LENGTH).items()}
    expected = student.model(inputs, training=False).numpy()
    np.testing.assert_allclose(TransformerWithHead(found.encoder, found.head)(inputs), expected, rtol=0, atol=1e-5)
    assert expected.std(axis=0).min() > 0.003  # not the same answer to everything


def sides(student):
    texts = [line.encode() for line in SENTENCES[:16]]
    return texts, texts[::-1] if student.pairs else None


def test_folder_holds_what_transformers_looks_for(tmp_path):
    student = make_student()
    folder = tmp_path / "huggingface"
    hugging_face.write_float32(student, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "config.json", "model.safetensors", "special_tokens_map.json"),
        *("tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    ]
    read = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", "tokenizer_config.json")}
    assert read["config.json"]["id2label"] == {"0": "bad", "1": "[so so]", "2": "good é"}
    assert read["config.json"]["label2id"]["good é"] == 2
    assert read["config.json"]["vocab_size"] == len(PIECES)
    assert (read["config.json"]["classifier_dropout"], read["config.json"]["hidden_act"]) == (0.25, "gelu")
    assert (read["tokenizer_config.json"]["model_max_length"], read["tokenizer_config.json"]["do_lower_case"]) == (LENGTH, True)
    tensors = load_file(folder / "model.safetensors")
    # Kernels lie transposed there; the first half of a fused one is the query's.
    kernel = student.model.encoder.blocks[1].attention.kernel.numpy()
    np.testing.assert_array_equal(tensors["bert.encoder.layer.1.attention.self.key.weight"], kernel[:, 16:32].T)
    assert tensors["bert.embeddings.word_embeddings.weight"].shape == (len(PIECES), 16)
    assert not tensors["bert.embeddings.token_type_embeddings.weight"].any()


def test_vocabulary_without_a_mask_says_so(tmp_path):
    student = make_student()
    pieces = [piece for piece in PIECES if piece != "[MASK]"]
    hugging_face.write_float32(dataclasses.replace(student, tokenizer=Tokenizer(pieces)), tmp_path / "huggingface")
    names = ("tokenizer_config.json", "special_tokens_map.json")
    settings, special = (json.loads((tmp_path / "huggingface" / name).read_text()) for name in names)
    # Left out, transformers gives [MASK] the id after the last one, which has no embedding.
    assert settings["mask_token"] is None and settings["pad_token"] == "[PAD]" and "mask_token" not in special


@pytest.mark.parametrize(
    "make, why",
    (
        ({"norm": "pre"}, "norm: pre"),
        ({"pooling": "mean"}, "pooling: mean"),
        ({"hidden": None}, "this student's head None"),
        ({"hidden": "relu", "segments": 2}, "DistilBERT's, which has no segments"),
        ({"hidden": "relu", "epsilon": 1e-5}, "an epsilon of 1e-12"),
        ({"task": "masked_language_model"}, "it has none for task: masked_language_model"),
        ({"task": "tagging", "norm": "pre"}, "norm: pre"),
        ({"task": "regression", "pooling": "mean"}, "pooling: mean"),
    ),
)
def test_what_no_class_computes_is_refused_with_the_reason(make, why, tmp_path):
    student = make_student(**make)
    asked = questions_for(student)
    entry = artifacts.make(student, asked, "huggingface", "float32", tmp_path, tmp_path / "log.txt")
    assert not entry["passed"] and not (tmp_path / "huggingface").exists()
    assert entry["reason"].startswith("transformers has no class for this student: ") and why in entry["reason"]


def edit_json(name, change):
    def edit(folder):
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        change(values)
        (folder / name).write_text(json.dumps(values), encoding="utf-8")

    return edit


def swap_labels(values):
    values["id2label"] = {"0": values["id2label"]["1"], "1": values["id2label"]["0"], "2": values["id2label"]["2"]}


def swap_pieces(folder):
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (folder / "vocab.txt").write_text("\n".join([*lines[:5], *lines[5:][::-1]]) + "\n", encoding="utf-8")


def change_weights(change):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        name = "bert.encoder.layer.0.output.dense.weight"
        save_file(tensors | {name: np.ascontiguousarray(change(tensors[name]))}, folder / "model.safetensors")

    return edit


def truncate(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


FAULTS = {
    "label order": (edit_json("config.json", swap_labels), "label names"),
    "vocabulary": (swap_pieces, "word pieces"),
    "casing": (
        edit_json("tokenizer_config.json", lambda values: values.update(do_lower_case=False)),
        "lower-casing",
    ),
    "tokenizer.json": (
        edit_json("tokenizer.json", lambda values: values["post_processor"].update(single=[])),
        "other token ids",
    ),
    "flipped weights": (change_weights(np.negative), "logits differ"),
    "nan": (change_weights(lambda weight: np.full_like(weight, np.nan)), "NaN"),
    "truncated": (truncate, "not a whole safetensors file"),
    "missing tensor": (edit_json("config.json", lambda values: values.update(num_hidden_layers=3)), "no tensor"),
}


@pytest.mark.parametrize("edit, reason", FAULTS.values(), ids=FAULTS)
def test_wrong_folder_is_refused_and_leaves_nothing_under_its_name(edit, reason, tmp_path, monkeypatch):
    def write(student, path):
        hugging_face.write_float32(student, path)
        edit(path)

    monkeypatch.setattr(hugging_face, "VARIANTS", (dataclasses.replace(hugging_face.VARIANTS[0], write=write),))
    entry = made(make_student(), tmp_path)
    assert not entry["passed"] and "\n" not in entry["reason"]
    assert reason in entry["reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


# -------------------------------------------------------------------- the model card


def write_run(folder, teacher):
    """Configuration and report of a run, as far as a card reads them."""
    run = RunDir(folder)
    tree = {"name": "short-texts", "data": {"builtin": "docstrings"}, "student": {"dimensions": {}}, "teacher": teacher}
    run.config.write_text(config.dump(config.parse(tree)))
    roles = (("teacher", 4000, 0.9), ("baseline", 100, 0.7), ("student", 100, 0.8125))
    models = [
        {"role": role, "parameters": n, "metrics": {"accuracy": value}, "interval": [0.5, 0.95]} for role, n, value in roles
    ]
    dataset = {"name": "glue/sst2", "measured_on": "test"}
    report = {"task": "classification", "dataset": dataset, "metric": "accuracy", "examples": 1821, "models": models}
    run.report_json.write_text(json.dumps(report))
    return run


@pytest.mark.parametrize(
    "checkpoint, named",
    (("hf://owner/large-bert", "owner/large-bert"), ("/home/somebody/large-bert", "large-bert"), ("${LARGE}", "LARGE")),
)
def test_card_says_what_it_is_where_from_and_how_good(checkpoint, named, tmp_path):
    run = write_run(tmp_path, {"checkpoint": checkpoint, "finetune": {}})
    page = model_card.text(make_student(run=run))
    assert page.startswith("---\nlibrary_name: transformers\npipeline_tag: text-classification\n")
    assert ("base_model: owner/large-bert\n" in page) == checkpoint.startswith("hf://")
    for words in ("# short-texts", f"from `{named}`, fine-tuned on the same data", "`bad`, `[so so]`, `good é`"):
        assert words in page
    assert "accuracy on the test split of glue/sst2, 1,821 examples" in page
    assert "| **this model** | 0.8125 (0.5000 to 0.9500) | 100 |" in page
    assert "/home/somebody" not in page and "2 layers of width 16 with 4 heads" in page


def test_card_without_a_run_leaves_out_what_it_does_not_know():
    page = model_card.text(make_student())
    assert "Figures" not in page and "base_model" not in page and "AutoTokenizer.from_pretrained(FOLDER)" in page


def test_card_of_many_labels_names_some():
    student = dataclasses.replace(make_student(), labels=tuple(f"label `{index}`" for index in range(150)))
    page = model_card.text(student)
    assert "`label '29'` and 120 more" in page and "label '30'" not in page


def test_damaged_report_is_one_line(tmp_path):
    run = write_run(tmp_path, {"dimensions": {}, "train": {}})
    run.report_json.write_text("{}")
    with pytest.raises(UserError, match="report.json: not a report of this version"):
        model_card.text(make_student(run=run))


# -------------------------------------------------------------------- transformers

LOAD = """
import json, sys
import numpy as np, torch, transformers
folder, auto, inputs, output = sys.argv[1:]
first, second = json.load(open(inputs, encoding="utf-8"))
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
batch = tokenizer(first, second, padding="longest", truncation=True, return_tensors="pt")
if auto == "SentenceTransformer":
    from sentence_transformers import SentenceTransformer
    whole = SentenceTransformer(folder, device="cpu")
    model, answers, labels = whole[0].auto_model, whole.encode(first), []
    longest = whole.max_seq_length
else:
    model, longest = getattr(transformers, auto).from_pretrained(folder).eval(), tokenizer.model_max_length
    with torch.no_grad():
        said = model(**batch)
    answers = torch.stack([said.start_logits, said.end_logits], -1) if "start_logits" in said else said.logits
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
np.savez(output, token_ids=batch["input_ids"], answers=answers, labels=labels, name=type(model).__name__, longest=longest)
"""
AUTO = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "Model": "SentenceTransformer",
}


def reference(program, *arguments):
    """Runs a program where `transformers` is installed, and gives what it printed; skips where it is nowhere."""
    if subprocess.run([PYTHON, "-c", "import torch, transformers, sentence_transformers"], capture_output=True).returncode:
        pytest.skip("torch, transformers and sentence-transformers are not installed for TFKD_REFERENCE_PYTHON")
    command = [PYTHON, "-W", "ignore", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name, make", STUDENTS.values(), ids=STUDENTS)
def test_transformers_gives_the_same_answers_to_the_same_texts(name, make, tmp_path):
    student = make_student(**make)
    assert made(student, tmp_path)["passed"]
    first, second = SENTENCES, SENTENCES[::-1] if student.pairs else None
    (tmp_path / "texts.json").write_text(json.dumps([first, second]), encoding="utf-8")
    auto = next(auto for ending, auto in AUTO.items() if name.endswith(ending))
    reference(LOAD, tmp_path / "huggingface", auto, tmp_path / "texts.json", tmp_path / "answers.npz")
    theirs = np.load(tmp_path / "answers.npz")
    assert (str(theirs["name"]), int(theirs["longest"])) == (name, LENGTH)
    named = {"regression": ("LABEL_0",), "question_answering": ("LABEL_0", "LABEL_1")}.get(student.task, student.labels)
    assert tuple(theirs["labels"]) == named
    ours = student.tokenizer.padded(tf.constant(first), None if second is None else tf.constant(second), max_length=LENGTH)
    np.testing.assert_array_equal(ours["token_ids"], theirs["token_ids"])
    answers = student.model({name: ours[name] for name in student.inputs}).numpy()
    mask = np.asarray(ours["padding_mask"], bool) if answers.ndim == 3 else slice(None)  # of padding nobody asks
    assert answers[mask].std(axis=0).min() > 0.003
    np.testing.assert_allclose(theirs["answers"][mask], answers[mask], rtol=0, atol=1e-4)


TASKS = [
    each for each in STUDENTS if each in ("bert of pairs", "several labels", "a number of pairs", "tags", "answers", "vectors")
]


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_program_on_the_card_runs_as_it_stands(name, tmp_path):
    student = make_student(**STUDENTS[name][1])
    assert made(student, tmp_path)["passed"]
    page = (tmp_path / "huggingface" / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    said = reference("import sys\nFOLDER = sys.argv[1]\n" + program, tmp_path / "huggingface").strip()
    if student.task == "classification":
        assert said in LABELS
    elif student.task == "multilabel":
        assert set(json.loads(said.replace("'", '"'))) <= set(LABELS)
    elif student.task == "tagging":
        tags = json.loads(said.replace("'", '"'))
        assert len(tags) == 2 and set(tags) <= set(LABELS)
    elif student.task == "question_answering":
        assert said and said in "the text that holds the answer"
    else:
        assert np.isfinite(float(said)) and (student.task != "sentence_embedding" or -1.0 < float(said) < 1.0)
