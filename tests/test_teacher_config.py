"""Teachers as a configuration names them: files of any make, several as one, word pieces of their own, runs of tfkd."""

import io
import json
import os
import pathlib
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
import yaml
from keras import layers

from tfkd import build, build_teacher, config, open_teacher
from tfkd.checkpoints.checkpoint import open_checkpoint
from tfkd.config import Training
from tfkd.data.teacher_tensors import not_finite, tensors
from tfkd.data.tokenizer import SPECIAL, Tokenizer
from tfkd.distiller import Distiller
from tfkd.ensemble import TeacherEnsemble
from tfkd.errors import UserError
from tfkd.layers.head import ClassificationHead
from tfkd.layers.language_model_head import LanguageModelHead
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import RESPONSE, KLDivergence
from tfkd.objectives.distribution_objective import DistributionObjective
from tfkd.plan import show_plan
from tfkd.progress import Display
from tfkd.run_dir import RunDir, read_json
from tfkd.tasks.table import TASKS
from tfkd.teacher import LiveTeacher

ROOT = pathlib.Path(__file__).parent.parent
LABELS = ["no", "yes"]
WORDS = ["apple", "grass", "sky", "brick", "leaf", "sea", "this", "that", "very", "quite", "old", "new"]
WHOLE = [*SPECIAL, *WORDS]
LETTERS = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
"""A vocabulary under which every text has other pieces, and more of them."""
T, D = 24, 8
SMALL = {"data": {"builtin": "docstrings"}, "student": {"dimensions": {"layers": 1}}}
STUDENT = {"dimensions": {"layers": 1, "width": 8, "heads": 2}}


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Section `data` of 40 labelled lines, and of 12 to measure on."""
    folder, random = tmp_path_factory.mktemp("lines"), np.random.default_rng(0)
    for split, rows in (("train", 40), ("test", 12)):
        texts = [" ".join(random.choice(WORDS, random.integers(1, 4))) for _ in range(rows)]
        lines = [json.dumps({"text": text, "label": LABELS["apple" in text.split()]}) + "\n" for text in texts]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    return {"files": files, "max_length": T, "vocabulary_size": 64}


def ours(pieces, seed=0, head=None, layers=1):
    """A model of ours whose answers tell one text from another."""
    keras.utils.set_random_seed(seed)
    encoder = TransformerEncoder(len(pieces), layers, D, 2, max_positions=T, segments=0, initializer_range=0.6)
    model = TransformerWithHead(encoder, head or ClassificationHead(2))
    if head is None:
        model.head.output_dense.kernel.assign(model.head.output_dense.kernel * 50)
    return model


def write_vocabulary(folder, pieces):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in pieces))
    (folder / "tokenizer_config.json").write_text(json.dumps({"lowercase": True}))


def write_run(folder, pieces, model, task="classification", labels=LABELS):
    """As much of a run as says what its teacher is."""
    write_vocabulary(folder, pieces)
    (folder / "labels.txt").write_text("".join(label + "\n" for label in labels))
    (folder / "config.yaml").write_text(yaml.safe_dump({"task": task}))
    (folder / "teacher").mkdir()
    model.save(folder / "teacher" / "model.keras")
    return str(folder)


def functional(seed=0):
    """Word vectors, mixed once, scored by a softmax; its vocabulary is `WHOLE`."""
    keras.utils.set_random_seed(seed)
    ids = keras.Input((None,), dtype="int32", name="input_ids")
    vectors = layers.Embedding(len(WHOLE), D, embeddings_initializer="normal", name="vectors")(ids)
    mixed = layers.Dense(D, activation="tanh", name="mixed")(vectors)
    return keras.Model(ids, layers.Dense(2, activation="softmax", name="scores")(mixed[:, 1]), name="plain")


def save_table(path, scale=1.0):
    """A SavedModel that scores the first word of a text by a table; returns the table."""
    servable = tf.Module()
    servable.table = tf.Variable(scale * np.random.default_rng(1).normal(size=(len(WHOLE), 2)).astype("float32"))
    specs = [tf.TensorSpec((None, None), tf.int32, name="token_ids")]
    answer = tf.function(lambda token_ids: {"scores": tf.gather(servable.table, token_ids[:, 1])}, input_signature=specs)
    tf.saved_model.save(servable, str(path), signatures={"first_word": answer})
    return servable.table.numpy()


def made(data, teacher, student=None, task="classification", distill=None):
    """Everything that a run makes before it trains, as `tfkd.train` makes it."""
    tree = {"data": data, "teacher": teacher, "student": student or STUDENT, "task": task, "distill": distill or {}}
    loaded, kind = config.parse(tree), TASKS[task]
    console = rich.console.Console(file=io.StringIO(), width=140)
    run = types.SimpleNamespace(config=loaded, display=Display(console), said=console.file.getvalue)
    run.source = build.open_source(loaded.data, kind.target, run.display)
    run.task = kind(run.source.target)
    run.members = open_teacher.open_members(loaded, kind)
    run.tokenizer = open_teacher.choose_tokenizer(loaded, run.members, run.source)
    others = open_teacher.share_tokenizer(run.members, run.tokenizer)
    run.teacher = build.make_teacher(loaded, run.members, run.source.labels, run.task)
    run.student = build.make_student(loaded, run.teacher, run.source.labels, run.tokenizer.vocabulary_size, run.task)
    run.objectives = build.make_objectives(loaded.distill, run.task, run.student, run.teacher)
    run.data = build.prepare(run.source, run.tokenizer, loaded.data, 0, run.display, others)
    return run


def plan(run):
    show_plan(run.display, run.config, RunDir("run"), run.data, "CPU", run.members, run.teacher, run.student, [run.objectives])
    return " ".join(run.said().split())


def answers(run, prefix=""):
    """The logits that the teacher gives for train, in the order of its rows."""
    from tfkd.evaluate import predict

    return predict(build_teacher.measured(run.teacher), run.data.batches("train", 8, taught=True))


def texts(run):
    store = run.data.stores["train"]
    return [store.text(row) for row in range(len(store))]


def train(run, knowledge, batches):
    """A few steps; returns the student's weights."""
    distiller = Distiller(run.student, knowledge, run.objectives, alpha=0.0)
    distiller.compile(keras.optimizers.Adam(0.01), loss=run.task.loss(), jit_compile=False)
    distiller.fit(batches.dataset(), verbose=0, shuffle=False)
    return run.student.get_weights()


# ---------------------------------------------------------------- what a configuration may say


TWO = [{"checkpoint": "a"}, {"checkpoint": "b"}]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            {"checkpoint": "a", "keras_file": "b"},
            "give exactly one of teacher.checkpoint, .*teacher.members, not checkpoint, keras",
        ),
        ({}, "give exactly one of teacher.checkpoint, .*, not none"),
        ({"members": TWO, "checkpoint": "a"}, "not checkpoint, members"),
        ({"members": TWO, "trust": True}, "teacher.trust goes with teacher.keras_file or teacher.saved_model"),
        ({"members": TWO[:1]}, "teacher.members = .*should have at least 2 items"),
        ({"members": [{}, *TWO]}, "teacher.members.0: give exactly one of teacher.checkpoint"),
        ({"members": [{"checkpoint": "a", "weight": 0.0}, *TWO]}, "teacher.members.0.weight = 0.0: should be greater than 0"),
        ({"members": [{"checkpoint": "a", "cache": True}, *TWO]}, "teacher.members.0.cache = true: unknown key"),
        ({"checkpoint": "a", "combine": "random"}, "teacher.combine: random goes with teacher.members"),
        (
            {"members": TWO, "combine": "random", "cache": True},
            "keeps one answer to every row, and teacher.combine: random draws",
        ),
        ({"saved_model": "a", "inner": {"hidden.0": "b"}}, "teacher.inner goes with teacher.keras_file"),
        ({"keras_file": "a", "signature": "b"}, "teacher.signature: b goes with teacher.saved_model"),
        ({"keras_file": "a", "finetune": {}}, "teacher.finetune goes with teacher.checkpoint"),
        ({"checkpoint": "a", "vocabulary": "b"}, "teacher.vocabulary: b goes with teacher.keras_file or teacher.saved_model"),
        ({"saved_model": "a", "activation": "tanh"}, "teacher.activation = \"tanh\": must be 'linear', 'softmax' or 'sigmoid'"),
        ({"dimensions": {}}, "teacher.dimensions needs teacher.train"),
    ],
)
def test_a_teacher_that_contradicts_itself_is_one_line(teacher, message):
    with pytest.raises(UserError, match=message) as caught:
        config.parse({**SMALL, "teacher": teacher})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"student": {"layers": 1}, "teacher": {"saved_model": "a"}},
            "student.layers copies layers, and teacher.saved_model shows",
        ),
        (
            {"student": {"layers": 1, "vocabulary": "learned"}, "teacher": {"checkpoint": "a"}},
            "leave student.vocabulary: learned",
        ),
        (
            {"student": {"layers": 9}, "teacher": {"members": [{"dimensions": {}, "train": {}}, *TWO]}},
            "more than the teacher's 2",
        ),
        ({"task": "regression", "train": {"label_smoothing": 0.1}}, "^.*: train.label_smoothing = 0.1: task: regression has no"),
        (
            {"task": "regression", "teacher": {"members": [*TWO, {"checkpoint": "c", "finetune": {"label_smoothing": 0.2}}]}},
            "teacher.members.2.finetune.label_smoothing = 0.2: task: regression has no classes",
        ),
        (
            {"task": "multilabel", "teacher": {"checkpoint": "a", "cache": True, "cache_top_k": 5}},
            "teacher.cache_top_k = 5 goes with a softmax over classes, task: classification, .*; not with multilabel",
        ),
        (
            {
                "teacher": {"checkpoint": "a", "cache": True, "cache_top_k": 5},
                "stages": [{"name": "one", "distill": {"objectives": ["kl_divergence", "logits_mse"]}}],
            },
            "teacher.cache_top_k = 5: logits_mse reads every logit as it is",
        ),
        (
            {"task": "question_answering", "stages": [{"name": "one", "train": {"label_smoothing": 0.1}}]},
            "stage one: train.label_smoothing = 0.1",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        config.parse({**SMALL, "teacher": {"checkpoint": "a"}, **changes})


def test_the_tasks_that_refuse_smoothing_are_those_the_configuration_refuses():
    refusing = set()
    for name, task in TASKS.items():
        try:
            task().loss(label_smoothing=0.1)
        except UserError:
            refusing.add(name)
    assert refusing == set(config.WITHOUT_CLASSES)


def test_the_teachers_on_the_first_page_are_valid():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    text = page[page.index("## Teachers") :].partition("```yaml\n")[2].partition("```")[0]
    loaded = config.parse({"data": {"builtin": "docstrings"}, **yaml.safe_load(text)})
    assert [model.training is not None for model in loaded.teacher.models] == [True, False, False]
    assert loaded.student.vocabulary == "learned"


# ---------------------------------------------------------------- files


@pytest.mark.slow
def test_a_keras_file_teaches_its_layers_by_the_names_it_is_given(data, tmp_path):
    model = functional()
    write_vocabulary(tmp_path, WHOLE)
    model.save(tmp_path / "plain.keras")
    given = {"keras_file": str(tmp_path / "plain.keras"), "inner": {"hidden.0": "mixed"}, "label_map": {"0": "yes", "1": "no"}}
    run = made(data, given, distill={"objectives": ["kl_divergence", {"name": "hidden_state_mse", "layers": "uniform"}]})
    assert run.tokenizer.pieces == WHOLE and run.objectives[1].layers == ((0, 0),)
    ids = Tokenizer(WHOLE).padded(texts(run), max_length=T)["token_ids"]
    np.testing.assert_allclose(softmax(answers(run)), model(ids).numpy()[:, ::-1], rtol=1e-4)  # classes in the data's order
    shown = plan(run)
    assert "plain.keras, as it is, 1 layer known by name" in shown and "hidden state mse of layers 0 < 0" in shown
    train(run, run.teacher, run.data.batches("train", 8, shuffle=True, taught=True))
    with pytest.raises(UserError, match=r"the teacher has \[0, 1\], the data \[no, yes\]"):
        made(data, {"keras_file": given["keras_file"]})
    with pytest.raises(UserError, match="hidden_state_mse: plain does not number its layers: say with teacher.inner"):
        made(data, {**given, "inner": None}, distill={"objectives": ["hidden_state_mse"]})
    with pytest.raises(UserError, match="teacher.inner: plain: no inner tensor 'mixxed'.*near it: mixed"):
        made(data, {**given, "inner": {"hidden.0": "mixxed"}})


def test_a_tensor_of_whole_texts_is_no_hidden_state(data, tmp_path):
    write_vocabulary(tmp_path, WHOLE)
    functional().save(tmp_path / "plain.keras")
    given = {"keras_file": str(tmp_path / "plain.keras"), "inner": {"hidden.0": "scores"}, "label_map": {"0": "yes", "1": "no"}}
    message = r"^teacher.inner: plain: 'scores' has the axes \(\?, 2\); what is called hidden.0 must have \(B, T, D\)$"
    with pytest.raises(UserError, match=message):
        made(data, given, distill={"objectives": ["hidden_state_mse"]})


def test_a_saved_model_teaches_its_output_with_the_vocabulary_it_is_given(data, tmp_path):
    table = save_table(tmp_path / "model")
    given = {"saved_model": str(tmp_path / "model"), "label_map": {"0": "yes", "1": "no"}}
    with pytest.raises(UserError, match="no vocab.txt beside it: say with teacher.vocabulary"):
        made(data, given)
    (tmp_path / "pieces.txt").write_text("".join(piece + "\n" for piece in WHOLE))
    run = made(data, {**given, "vocabulary": str(tmp_path / "pieces.txt")})
    expected = [table[WHOLE.index(text.split()[0])][::-1] for text in texts(run)]
    np.testing.assert_allclose(answers(run), expected, rtol=1e-5)
    shown = plan(run)
    assert "model, as it is, asked for its answers alone, 0.00 M parameters" in shown
    assert build_teacher.origin(run.members) == {"checkpoint": "model", "revision": None}
    with pytest.raises(UserError, match="hidden_state_mse: .* does not number its layers"):
        made(data, run.config.teacher.model_dump(exclude_none=True), distill={"objectives": ["hidden_state_mse"]})


def test_a_model_of_ours_brings_the_names_of_its_classes_and_its_head_to_a_student_of_its_layers(data, tmp_path):
    model = ours(WHOLE, layers=2)
    folder = write_run(tmp_path / "run", WHOLE, model, labels=["yes", "no"])
    run = made(data, {"keras_file": f"{folder}/teacher/model.keras"}, student={"layers": 2})
    x = Tokenizer(WHOLE).padded(texts(run), max_length=T)
    np.testing.assert_allclose(answers(run), model(x).numpy()[:, ::-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run.student(x).numpy(), model(x).numpy()[:, ::-1], rtol=1e-4, atol=1e-5)


def test_a_vocabulary_of_another_size_than_the_model_is_refused(data, tmp_path):
    folder = write_run(tmp_path / "run", WHOLE, ours(WHOLE))
    (tmp_path / "other.txt").write_text("".join(piece + "\n" for piece in LETTERS))
    given = {"keras_file": f"{folder}/teacher/model.keras", "vocabulary": str(tmp_path / "other.txt")}
    with pytest.raises(UserError, match=f"other.txt: {len(LETTERS)} pieces, but .* knows {len(WHOLE)}"):
        made(data, given)


# ---------------------------------------------------------------- several


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Two runs and the models in them; the second one's labels are in another order."""
    folder, models = tmp_path_factory.mktemp("members"), [ours(WHOLE, seed) for seed in (1, 2)]
    for name, model, labels in zip("ab", models, (LABELS, LABELS[::-1]), strict=True):
        write_run(folder / name, WHOLE, model, labels=labels)
    return [{"checkpoint": str(folder / "a"), "weight": 3.0}, {"checkpoint": str(folder / "b")}], models


def test_several_teachers_are_averaged_by_weight_in_probability_space(data, members):
    given, models = members
    run = made(data, {"members": given})
    x = Tokenizer(WHOLE).padded(texts(run), max_length=T)
    first, second = softmax(models[0](x).numpy()), softmax(models[1](x).numpy())[:, ::-1]
    np.testing.assert_allclose(softmax(answers(run)), 0.75 * first + 0.25 * second, rtol=1e-4, atol=1e-6)
    shown = plan(run)
    assert "the weighted average of 2" in shown and "3 x a, as it is, 1 layer of width 8" in shown and "1 x b, as it is" in shown
    assert build_teacher.origin(run.members)["checkpoint"] == "a and b"
    copied = made(data, {"members": given}, student={"layers": 1})
    np.testing.assert_allclose(copied.student(x), models[0](x), rtol=1e-4, atol=1e-5)  # the first one's layers


def test_a_random_ensemble_is_measured_as_the_average_and_its_draws_are_kept_with_the_training(data, members):
    given, _ = members
    run, average = made(data, {"members": given, "combine": "random"}), made(data, {"members": given})
    np.testing.assert_array_equal(answers(run), answers(average))
    assert "at each step one, drawn by weight, of 2" in plan(run)
    distiller = Distiller(run.student, run.teacher, run.objectives)
    states = [variable for variable in distiller.variables if variable is run.teacher.seed_generator.state]
    assert len(states) == 1
    assert not [variable for variable in distiller.trainable_variables if variable is states[0]]


@pytest.mark.parametrize(
    ("task", "activation", "axis"),
    [
        ("multilabel", "sigmoid", -1),
        ("regression", "linear", -1),
        ("question_answering", "softmax", 1),
        ("tagging", "softmax", -1),
    ],
)
def test_what_is_averaged_follows_from_the_task(task, activation, axis):
    ensemble = TeacherEnsemble([functional(), functional(1)], **TASKS[task].mixture)
    assert (ensemble.mixing["activation"], ensemble.mixing["axis"]) == (activation, axis)


def test_teachers_that_do_not_fit_are_named(data, tmp_path, members):
    given, _ = members
    three = write_run(tmp_path / "three", WHOLE, ours(WHOLE, head=ClassificationHead(3)), labels=["a", "b", "c"])
    with pytest.raises(UserError, match=r"teacher.members.2: teacher and data disagree on labels: the teacher has \[a, b, c\]"):
        made(data, {"members": [*given, {"checkpoint": three}]})


def test_teachers_of_different_depth_teach_the_layers_that_all_of_them_have(data, tmp_path):
    models = [ours(WHOLE, seed, layers=layers) for seed, layers in ((1, 2), (2, 3))]
    members = [{"checkpoint": write_run(tmp_path / name, WHOLE, model)} for name, model in zip("ab", models, strict=True)]
    student, pairs = {"dimensions": {"layers": 2, "width": 4, "heads": 2}}, [[0, 1], [1, 0]]
    chosen = {"objectives": [{"name": "hidden_state_mse", "layers": pairs}]}
    run = made(data, {"members": members}, student, distill=chosen)
    x = Tokenizer(WHOLE).padded(["apple sky", "old"], max_length=T)
    by_hand = (models[0].inner(x, ["hidden.1"])["hidden.1"] + models[1].inner(x, ["hidden.1"])["hidden.1"]) / 2
    np.testing.assert_allclose(run.teacher(x, run.objectives[0].teacher_names)["hidden.1"], by_hand, rtol=1e-4, atol=1e-5)
    assert "hidden state mse of layers 0 < 1, 1 < 0" in plan(run)

    def refused(teacher, message, choice):
        distill = config.Distill(objectives=[config.Objective(name="hidden_state_mse", layers=choice)])
        with pytest.raises(UserError, match=message):
            build.make_objectives(distill, run.task, run.student, teacher)

    for choice in ("uniform", None, [[0, -1]], [[0, 2]]):
        refused(run.teacher, "differ in their number of layers, 2, 3: .* pairs .* with teacher layers 0 to 1, or", choice)
    keras.utils.set_random_seed(3)
    wide = TransformerEncoder(len(WHOLE), 4, 2 * D, 2, max_positions=T, segments=0)
    wide = TransformerWithHead(wide, ClassificationHead(2), name="wide")
    message = r"teachers disagree on hidden.1: teacher 0 .* 8\), teacher 1 \(wide\) has .* 16\); leave it out, or map"
    refused(TeacherEnsemble([models[0], wide]), message, pairs)
    refused(TeacherEnsemble([models[0], functional()]), "hidden_state_mse: plain does not number its layers", pairs)


def test_fine_tuned_members_have_a_start_and_a_key_of_their_own(data, members):
    given = [{"checkpoint": members[0][0]["checkpoint"], "head": "new", "finetune": {"epochs": 1}}] * 2
    keys = []
    for _ in range(2):
        run = made(data, {"members": given})
        assert [member.folder(RunDir("run")).name for member in run.members] == ["1", "2"]
        keys.append([build_teacher.teacher_key(m, m.training, run.data.key, [T], m.seed(run.config)) for m in run.members])
    assert keys[0] == keys[1] and keys[0][0] != keys[0][1]


# ---------------------------------------------------------------- word pieces of their own


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A run whose teacher reads letters, and the model."""
    folder, model = tmp_path_factory.mktemp("letters"), ours(LETTERS, seed=3)
    return {"checkpoint": write_run(folder / "run", LETTERS, model)}, model


def test_a_teacher_reads_the_same_text_with_word_pieces_of_its_own(data, letters):
    given, model = letters
    run = made(data, given, student={**STUDENT, "vocabulary": "learned"})
    assert run.members[0].prefix == "teacher." and not run.teacher.same_positions and run.tokenizer.pieces != LETTERS
    batches, tokenizer = run.data.batches("train", 8, shuffle=True, taught=True), Tokenizer(LETTERS)
    store, seen = run.data.stores["train"], set()
    for (rows, length), (x, _, weight) in zip(batches.plan(), batches.dataset(), strict=True):
        assert x["token_ids"].shape == (8, length)
        expected = tokenizer.padded([store.text(max(row, 0)) for row in rows], max_length=T)
        real, width = rows >= 0, min(x["teacher.token_ids"].shape[1], expected["token_ids"].shape[1])
        for name in ("token_ids", "padding_mask"):
            found = x[f"teacher.{name}"].numpy()[real]
            np.testing.assert_array_equal(found[:, :width], expected[name].numpy()[real][:, :width])
            assert not found[:, width:].any() and not expected[name].numpy()[real][:, width:].any()
        seen.add((length, x["teacher.token_ids"].shape[1]))
        assert (weight.numpy() > 0).tolist() == real.tolist()
    assert len(seen) == len({length for length, _ in seen})  # no more shapes than without
    by_hand = model(tokenizer.padded(texts(run), max_length=T))
    np.testing.assert_allclose(answers(run), by_hand, rtol=1e-4, atol=1e-5)
    assert f"reads with {len(LETTERS)} word pieces of its own" in plan(run)


def test_objectives_over_positions_are_refused_for_word_pieces_of_its_own(data, letters):
    student = {**STUDENT, "vocabulary": "learned"}
    for name in ("hidden_state_mse", "attention_score_mse", "embedding_mse"):
        with pytest.raises(
            UserError, match="the teacher has a tokenizer of its own, so that its positions are not the student's"
        ):
            made(data, letters[0], student=student, distill={"objectives": [name]})
    made(
        data, letters[0], student=student, distill={"objectives": ["kl_divergence", {"name": "rkd_distance", "vector": "pooled"}]}
    )


@pytest.mark.slow
def test_a_cached_teacher_with_word_pieces_of_its_own_gives_the_student_of_a_live_one(data, letters, tmp_path, monkeypatch):
    monkeypatch.setenv("TFKD_CACHE", str(tmp_path))
    ends = []
    for cache in (False, True):
        keras.utils.set_random_seed(0)
        run = made(data, {**letters[0], "cache": cache}, student={**STUDENT, "vocabulary": "learned"})
        told = run.config, run.teacher, run.members, run.objectives, run.data, Training(batch_size=8), run.display
        knowledge, batches = build_teacher.make_knowledge(*told)
        inputs = batches.dataset().element_spec[0]
        assert ("teacher.logits" in inputs) == cache and ("teacher.token_ids" in inputs) != cache
        ends.append(train(run, knowledge, batches))
    for live, cached in zip(*ends, strict=True):
        np.testing.assert_allclose(cached, live, rtol=1e-2, atol=2e-4)


@pytest.mark.slow
def test_teachers_with_three_vocabularies_answer_as_one(data, members, letters, tmp_path):
    save_table(tmp_path / "model")
    write_vocabulary(tmp_path, WHOLE)
    saved = {"saved_model": str(tmp_path / "model"), "label_map": {"0": "no", "1": "yes"}}
    run = made(data, {"members": [members[0][0], letters[0], saved]}, student={**STUDENT, "vocabulary": "learned"})
    assert [member.prefix for member in run.members] == ["teacher.", "teacher2.", "teacher."]
    assert softmax(answers(run)).shape == (len(texts(run)), 2)
    train(run, run.teacher, run.data.batches("train", 8, shuffle=True, taught=True))


# ---------------------------------------------------------------- answers on disk


@pytest.mark.slow
def test_a_cache_is_another_one_where_anything_that_decides_an_answer_is(data, members, tmp_path, monkeypatch):
    monkeypatch.setenv("TFKD_CACHE", str(tmp_path))
    (first, second), _ = members
    folders = tmp_path / "outputs"

    def write(teacher):
        run = made(data, {**teacher, "cache": True})
        build_teacher.make_knowledge(
            run.config, run.teacher, run.members, run.objectives, run.data, Training(batch_size=8), run.display
        )
        return len(list(folders.iterdir()))

    alone = {"keras_file": first["checkpoint"] + "/teacher/model.keras"}
    assert [write({"members": [first, second]}) for _ in range(2)] == [1, 1]
    assert write({"members": [first | {"weight": 1.0}, second]}) == 2
    assert write(alone) == 3
    save_table(tmp_path / "model")
    write_vocabulary(tmp_path, WHOLE)
    saved = {"saved_model": str(tmp_path / "model"), "label_map": {"0": "no", "1": "yes"}}
    assert [write(saved) for _ in range(2)] == [4, 4]
    assert write({**saved, "label_map": {"0": "yes", "1": "no"}}) == 5
    save_table(tmp_path / "model", scale=2.0)
    assert write(saved) == 6


def test_top_k_goes_with_every_task_and_objective_of_a_softmax_over_classes_and_no_other():
    known = {"activation": "softmax"}, {"activation": "softmax", "axis": -1}
    assert set(config.OVER_CLASSES) == {task.name for task in TASKS.values() if task.mixture in known}
    answers = {kind.default_name for kind in RESPONSE}
    softmaxes = {kind.default_name for kind in RESPONSE if issubclass(kind, DistributionObjective)}
    assert softmaxes < answers and set(config._EVERY_LOGIT) == answers - softmaxes
    for name in TASKS:
        teacher = {"checkpoint": "a", "cache": True, "cache_top_k": 5}
        alone = {"distill": {"alpha": 0.0}, "baseline": False} if name == "sentence_embedding" else {}
        tree = {**SMALL, "task": name, "teacher": teacher, **alone}
        if name in config.OVER_CLASSES:
            config.parse(tree)
        else:
            with pytest.raises(UserError, match=f"teacher.cache_top_k = 5 goes with .*; not with {name}$"):
                config.parse(tree)


def knowledge_of(run):
    """What the student is told, and the logits of all rows of train in their order."""
    told = run.config, run.teacher, run.members, run.objectives, run.data, Training(batch_size=8), run.display
    _, batches = build_teacher.make_knowledge(*told)
    return batches, batches.teacher.gather(np.arange(len(batches.store)), T)["teacher.logits"]


def test_a_run_learns_from_the_largest_logits(tmp_path, monkeypatch):
    monkeypatch.setenv("TFKD_CACHE", str(tmp_path / "cache"))
    labels, random = list("abcdef"), np.random.default_rng(0)
    for split, rows in (("train", 24), ("test", 8)):
        lines = [json.dumps({"text": " ".join(random.choice(WORDS, 3)), "label": labels[row % 6]}) for row in range(rows)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    keras.utils.set_random_seed(1)
    model = ours(WHOLE, seed=1, head=ClassificationHead(6))
    model.head.output_dense.kernel.assign(model.head.output_dense.kernel * 500)
    teacher = {"checkpoint": write_run(tmp_path / "run", WHOLE, model, labels=labels), "cache": True, "cache_top_k": 2}
    lines = {"files": {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}, "max_length": T}
    run = made(lines, teacher)
    _, read = knowledge_of(run)
    whole = answers(run).astype("float64")
    assert whole.std() > 1.0
    order = np.argsort(-whole, axis=-1)
    expected = np.log(np.exp(np.take_along_axis(whole, order[:, 2:], -1)).mean(-1, keepdims=True)).repeat(6, axis=1)
    np.put_along_axis(expected, order[:, :2], np.take_along_axis(whole, order[:, :2], -1), -1)
    np.testing.assert_allclose(read, expected, rtol=2**-9, atol=2**-12)
    said = plan(run)
    assert "read from disk: 0.0 MB of its logits the 2 largest, the others as if all alike; at temperature 4 those weigh" in said
    kept = f"Teacher's outputs: logits of {len(read)} rows"
    assert f"{kept} are to take 0.0 MB in" in said and f"{kept}, read from 0.0 MB on disk" in said


@pytest.mark.parametrize("kind", ["saved_model", "keras_file"])
def test_a_file_that_is_replaced_while_a_run_goes_on_is_never_taken_for_the_one_that_answered(data, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("TFKD_CACHE", str(tmp_path / "cache"))
    write_vocabulary(tmp_path, WHOLE)
    path = tmp_path / ("model" if kind == "saved_model" else "model.keras")

    def save(number):
        if kind == "saved_model":
            save_table(path, scale=number)
        else:
            ours(WHOLE, seed=number).save(path)

    def opened():
        return made(data, {kind: str(path), "label_map": {"0": "no", "1": "yes"}, "cache": True})

    save(1)
    first = opened()
    save(2)  # hours later, say: before the student begins
    second = opened()
    for run in (first, second):
        np.testing.assert_allclose(knowledge_of(run)[1], answers(run), rtol=2**-10, atol=1e-6)
    assert np.abs(answers(first) - answers(second)).max() > 0.1
    assert len(list((tmp_path / "cache" / "outputs").iterdir())) == 2


def test_a_saved_model_that_changes_while_it_is_read_is_one_line(data, tmp_path, monkeypatch):
    write_vocabulary(tmp_path, WHOLE)
    save_table(tmp_path / "model")
    read = open_teacher.open_saved_model

    def slow(path, *rest):
        loaded = read(path, *rest)
        (pathlib.Path(path) / "assets").mkdir(exist_ok=True)
        (pathlib.Path(path) / "assets" / "more").write_text("")
        return loaded

    monkeypatch.setattr(open_teacher, "open_saved_model", slow)
    teacher = {"saved_model": str(tmp_path / "model"), "label_map": {"0": "no", "1": "yes"}}
    with pytest.raises(UserError, match="model: it changed while it was read; begin again when nobody writes there"):
        made(data, {**teacher, "cache": True})
    made(data, teacher)  # nothing is named by it


def test_a_single_number_is_kept_as_it_is_and_a_class_score_in_half_the_bytes(tmp_path):
    prices = np.array([[123456.789], [-0.1]], "float32")
    one, several = tensors({"logits": (None, 1), "pooled": (None, 1)}, None)
    assert (one.dtype, several.dtype, one.bytes(7), several.bytes(7)) == ("float32", "float16", 4, 2)
    kept = [one.pack([part[row].numpy() for part in one.encode(tf.constant(prices))], 1)[0] for row in range(2)]
    read = np.zeros((2, 1), "float32")
    for row, values in enumerate(kept):
        one.unpack(np.frombuffer(values.tobytes(), "uint8"), read[row], 1)
    np.testing.assert_array_equal(read, prices)
    assert not_finite(np.array([np.inf], "float32")) and not not_finite(kept[0])


# ---------------------------------------------------------------- runs of tfkd as checkpoints


def test_a_run_gives_its_teachers_encoder_and_its_head_to_the_same_task_alone(data, tmp_path):
    language = ours(WHOLE, seed=4, head=LanguageModelHead(len(WHOLE)))
    folder = write_run(tmp_path / "words", WHOLE, language, "masked_language_model", labels=[])
    run = made(data, {"checkpoint": folder, "finetune": {}})
    model = run.teacher.model
    assert type(model.head) is ClassificationHead and model.head.classes == 2
    x = Tokenizer(WHOLE).padded(["apple sky", "old"], max_length=T)
    np.testing.assert_allclose(model.inner(x, ["hidden.0"])["hidden.0"], language.inner(x, ["hidden.0"])["hidden.0"], atol=1e-6)
    with pytest.raises(UserError, match="words brings a masked_language_model head; task: classification needs one of its own"):
        made(data, {"checkpoint": folder})
    file = open_checkpoint(f"{folder}/teacher/model.keras")
    again = TransformerWithHead(file.encoder, file.head)
    np.testing.assert_allclose(again(x), language(x), rtol=1e-4, atol=1e-5)
    assert file.task == "masked_language_model" and file.max_length == T


def test_a_run_without_a_teacher_and_a_file_without_its_run_are_refused(tmp_path):
    folder = pathlib.Path(write_run(tmp_path / "run", WHOLE, ours(WHOLE)))
    (folder / "teacher" / "model.keras").rename(tmp_path / "alone.keras")
    with pytest.raises(UserError, match="no one teacher was trained in this run; name one of its files"):
        open_checkpoint(str(folder))
    with pytest.raises(UserError, match="alone.keras: no vocab.txt and tokenizer_config.json with it"):
        open_checkpoint(str(tmp_path / "alone.keras"))
    functional().save(folder / "plain.keras")
    with pytest.raises(UserError, match="plain.keras: a Functional, not an encoder of tfkd's; give it as teacher.keras_file"):
        open_checkpoint(str(folder / "plain.keras"))


# ---------------------------------------------------------------- students of any make


def test_a_functional_student_learns_from_batches_that_hold_more_than_it_takes():
    student, teacher = functional(5), functional(6)
    random = np.random.default_rng(0)
    x = {"token_ids": random.integers(1, len(WHOLE), (8, 5)).astype("int32"), "padding_mask": np.ones((8, 5), "int32")}
    distiller = Distiller(student, LiveTeacher(teacher), [KLDivergence(1.0)], alpha=0.5)
    distiller.compile(keras.optimizers.Adam(0.05), loss=TASKS["classification"]().loss(), weighted_metrics=["accuracy"])
    batches = tf.data.Dataset.from_tensors((x, np.zeros(8, "int32"))).repeat(3)
    first = distiller.evaluate(batches, verbose=0, return_dict=True)
    distiller.fit(batches, epochs=5, verbose=0, shuffle=False)
    assert distiller.evaluate(batches, verbose=0, return_dict=True)["loss"] < first["loss"]
    probabilities = student(x["token_ids"])
    np.testing.assert_allclose(softmax(distiller(x).numpy()), probabilities, rtol=1e-4)


# ---------------------------------------------------------------- the whole program


def go(folder, tree, *more):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "tfkd.train", str(path), "--output", str(folder / "run"), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return RunDir(folder / "run"), done.stdout


def measured_again(run, folder):
    command = [sys.executable, "-m", "tfkd.evaluate", str(run)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = run.path.glob("evaluation-*.json")
    both = read_json(run.report_json), read_json(path)
    return [{model["role"]: model["metrics"]["accuracy"] for model in report["models"]} for report in both]


SHORT = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01}
REST = {"train": SHORT, "baseline": False, "evaluate": {"bootstrap": 100}, "export": {"formats": []}}


@pytest.mark.slow
def test_a_run_with_two_teachers_trains_one_measures_their_average_and_says_so_again(data, letters, tmp_path):
    teachers = [letters[0], {"dimensions": {"layers": 1, "width": 16, "heads": 2}, "train": SHORT, "weight": 2.0}]
    tree = {"data": data, "teacher": {"members": teachers}, "student": {**STUDENT, "vocabulary": "learned"}, **REST}
    run, said = go(tmp_path, {**tree, "train": {**SHORT, "pack": True}})  # which the first teacher does not see
    assert "texts packed into" in said
    assert "the weighted average of 2" in said and "word pieces of its own" in said
    assert (run.teacher / "2" / "model.keras").exists() and not (run.teacher / "1").exists()
    assert read_json(run.report_json)["teacher"]["checkpoint"] == "run and a teacher trained from scratch"
    reported, again = measured_again(run, tmp_path)
    assert again == pytest.approx(reported)


@pytest.mark.slow
def test_a_run_with_a_saved_model_and_cached_answers(data, tmp_path):
    save_table(tmp_path / "model")
    write_vocabulary(tmp_path, WHOLE)
    given = {"saved_model": str(tmp_path / "model"), "label_map": {"0": "no", "1": "yes"}, "cache": True}
    run, said = go(tmp_path, {"data": data, "teacher": given, "student": STUDENT, **REST})
    assert "model, as it is" in said and "Teacher's outputs: logits" in said
    assert RunDir(run.path).vocabulary.read_text().split() == WHOLE
    reported, again = measured_again(run, tmp_path)
    assert again == pytest.approx(reported) and set(reported) == {"teacher", "student"}
