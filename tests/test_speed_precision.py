"""Precision of the teacher and of the student, each its own; how a configuration asks for it and for less memory."""

import io

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf

from tfkd import build_teacher, config, fitting, open_teacher, strategy, student
from tfkd.data.targets import TARGETS
from tfkd.distiller import Distiller
from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import PAIRWISE
from tfkd.tasks.classification import ClassificationHead
from tfkd.tasks.table import TASKS
from tfkd.teacher import LiveTeacher

V, C, T = 40, 2, 6
TREE = {
    "data": {"builtin": "docstrings", "labels": ["no", "yes"]},
    "teacher": {"dimensions": {"layers": 2, "width": 16}, "train": {}},
    "student": {"dimensions": {"layers": 1}},
}


def model(seed, layers=2):
    keras.utils.set_random_seed(seed)
    encoder = TransformerEncoder(V, layers, 16, 2, max_positions=T, segments=0, dropout=0.0, initializer_range=0.3)
    return TransformerWithHead(encoder, ClassificationHead(C))


def batch(rows=8):
    random = np.random.default_rng(0)
    mask = (np.arange(T) < random.integers(1, T + 1, rows)[:, None]).astype("int32")
    ids = random.integers(0, V, (rows, T)).astype("int32") * mask
    return {"token_ids": ids, "padding_mask": mask}, random.integers(0, C, rows).astype("int32")


def rounded(values):
    """float32 numbers that bfloat16 holds."""
    return np.asarray(tf.cast(tf.cast(values, "bfloat16"), "float32"))


def test_a_bfloat16_teacher_computes_so_and_teaches_a_float32_student():
    exact, teacher, learner = model(2), model(2), model(1, layers=1)
    strategy.compute_in(teacher, "mixed_bfloat16")
    x, y = batch()
    names = ("logits", "hidden.0", "attention.1")
    told, wanted = LiveTeacher(teacher)(x, names), LiveTeacher(exact)(x, names)
    for name in names:
        assert told[name].dtype == "float32"
        assert 0.0 < np.abs(told[name] - wanted[name]).max() < 0.1 * np.abs(wanted[name]).max(), name
        np.testing.assert_array_equal(told[name], rounded(told[name]))
    for mine, before in zip(teacher.get_weights(), exact.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, before)
    distiller = Distiller(learner, teacher)
    distiller.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert not isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    start = learner.get_weights()
    distiller.fit(tf.data.Dataset.from_tensors((x, y)), shuffle=False, verbose=0)
    assert learner.encoder.blocks[0].attention.compute_dtype == "float32"
    assert all(weight.dtype == "float32" for weight in learner.get_weights())
    assert any((a != b).any() for a, b in zip(start, learner.get_weights(), strict=True))


def test_layers_of_a_bfloat16_teacher_make_a_float32_student():
    teacher = model(2)
    strategy.compute_in(teacher, "mixed_bfloat16")
    made = student.from_layers(teacher, 1)
    assert {layer.compute_dtype for layer in made._flatten_layers()} == {"float32"}


@pytest.mark.parametrize(("given", "computed"), [(None, "float32"), ("mixed_bfloat16", "bfloat16")])
def test_the_configuration_says_what_the_teacher_computes_in(given, computed):
    parsed = config.parse(TREE | {"teacher": TREE["teacher"] | {"precision": given}})
    task = TASKS["classification"](TARGETS["classes"](labels=["no", "yes"]))
    member = open_teacher.Member(parsed.teacher, tokenizer=type("Tokenizer", (), {"vocabulary_size": V}))
    teacher = build_teacher.make_teacher(parsed, [member], ["no", "yes"], task, lambda *_: model(2))
    assert {layer.compute_dtype for layer in teacher.model._flatten_layers()} == {computed}


def test_a_saved_model_computes_as_it_was_saved():
    with pytest.raises(UserError, match="teacher.precision: mixed_bfloat16 goes with teacher.checkpoint or teacher.keras_file"):
        config.parse(TREE | {"teacher": {"saved_model": "x", "precision": "mixed_bfloat16"}})


# ---------------------------------------------------------------- batches in parts


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": {"accumulate": 5}}, "accumulate = 5 does not divide batch_size = 32"),
        ({"train": {"accumulate": 2}, "distill": {"objectives": ["rkd_angle"]}}, "train.accumulate = 2: rkd_angle compares all"),
        (
            {"stages": [{"name": "a", "train": {"accumulate": 4}, "distill": {"objectives": ["contrastive"]}}, {"name": "b"}]},
            "stage a: train.accumulate = 4: contrastive compares all examples",
        ),
    ],
)
def test_parts_that_cannot_be_are_refused_before_anything_runs(tree, message):
    with pytest.raises(UserError, match=message):
        config.parse(TREE | tree)


def test_the_configuration_knows_which_objectives_compare_examples():
    assert set(config._TOGETHER) == {objective.default_name for objective in PAIRWISE}


def test_parts_must_divide_what_each_replica_gets():
    training = config.Training(batch_size=32, accumulate=8)
    fitting._check_parts(training, 4)
    with pytest.raises(UserError, match="make that a multiple of 64"):
        fitting._check_parts(training, 8)


def test_a_training_takes_what_its_section_says(monkeypatch, tmp_path):
    """`fit` up to its first step: what it would train is what the section asks for."""
    seen = {}

    class Stop(Exception):
        pass

    def stop(self, *arguments, **options):
        seen["accumulate"] = self.accumulate
        raise Stop

    monkeypatch.setattr(Distiller, "compile", stop)
    learner, training = model(1), config.Training(accumulate=4, checkpoint_gradients=True)
    train = type("Train", (), {"steps": 3, "batch_size": 32, "shapes": lambda: 1, "sizes": [(32, T)]})
    task = TASKS["classification"](TARGETS["classes"](labels=["no", "yes"]))
    screen = rich.console.Console(file=io.StringIO())
    with pytest.raises(Stop):
        fitting.fit(
            "student",
            learner,
            config.parse(TREE),
            training,
            train,
            None,
            task,
            tmp_path,
            screen,
            tf.distribute.get_strategy(),
            False,
        )
    assert seen["accumulate"] == 4 and learner.encoder.checkpoint_gradients
