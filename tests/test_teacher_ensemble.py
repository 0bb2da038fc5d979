import functools
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfkd.distiller import Distiller
from tfkd.ensemble import TeacherEnsemble
from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import KLDivergence, LogitsMSE
from tfkd.tasks.classification import ClassificationHead
from tfkd.teacher import CachedTeacher, LiveTeacher, check_positions

V, C, B, T = 30, 3, 4, 6


@functools.cache
def model(seed, layers=1, width=8, classes=C):
    keras.utils.set_random_seed(seed)
    encoder = TransformerEncoder(V, layers, width, 2, max_positions=T, segments=0, initializer_range=0.5)
    one = TransformerWithHead(encoder, ClassificationHead(classes), name=f"model_{seed}")
    one.head.output_dense.kernel.assign(one.head.output_dense.kernel * 50)  # answers that tell one text from another
    return one


class Unsaid(keras.Model):
    """Code of its own, so that nobody knows the shape of its answer (B, T, 2) before it is given."""

    def call(self, inputs):
        return tf.one_hot(inputs["token_ids"] % 2, 2)


def small(seed):
    """A model that compiles in no time."""
    keras.utils.set_random_seed(seed)
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    return keras.Model(ids, layers.Dense(C)(layers.Embedding(V, 5, embeddings_initializer="normal")(ids)[:, 0]))


def batch():
    random = np.random.default_rng(0)
    mask = (np.arange(T) < np.array([6, 4, 2, 5])[:, None]).astype("int32")
    return {"token_ids": random.integers(1, V, (B, T)).astype("int32") * mask, "padding_mask": mask}


class Fixed:
    """A teacher that gives out one number everywhere, and counts how often it is asked."""

    same_positions, layers = True, 1

    def __init__(self, value, shape=(None, C)):
        self.value, self.shape, self.name, self.asked = value, shape, f"fixed_{value}", tf.Variable(0)

    def __call__(self, inputs, names):
        self.asked.assign_add(1)
        rows = tf.shape(inputs["token_ids"])[0] if inputs else B
        return {name: tf.fill((rows, C), float(self.value)) for name in names}

    def shapes(self, names):
        return dict.fromkeys(names, self.shape)


def constant(logits):
    teacher = Fixed(0)
    teacher.__class__ = type("Constant", (Fixed,), {"__call__": lambda self, inputs, names: {n: logits for n in names}})
    return teacher


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


Z = np.random.default_rng(1).normal(0, 3, (3, B, T, 2)).astype("float32")


# ---------------------------------------------------------------- average


def test_average_is_in_probability_space():
    ensemble = TeacherEnsemble([constant(Z[0]), constant(Z[1]), constant(Z[2])], weights=[1, 2, 5])
    logits = ensemble(batch())["logits"].numpy().astype("float64")
    by_hand = sum(w * softmax(z.astype("float64")) for w, z in zip((0.125, 0.25, 0.625), Z, strict=True))
    np.testing.assert_allclose(softmax(logits), by_hand, rtol=1e-5)
    np.testing.assert_allclose(np.exp(logits), by_hand, rtol=1e-5)  # log-probabilities, as promised


def test_a_softened_divergence_sees_the_average_to_the_power_of_1_over_T():
    logits = TeacherEnsemble([constant(Z[0]), constant(Z[1])])(batch())["logits"].numpy().astype("float64")
    average = 0.5 * softmax(Z[0].astype("float64")) + 0.5 * softmax(Z[1].astype("float64"))
    powered = average ** (1 / 4) / (average ** (1 / 4)).sum(-1, keepdims=True)
    np.testing.assert_allclose(softmax(logits / 4), powered, rtol=1e-5)
    softened = 0.5 * softmax(Z[0] / 4) + 0.5 * softmax(Z[1] / 4)
    assert np.abs(powered - softened).max() > 0.01  # it is not the average of the softened


def test_other_outputs_are_averaged_as_what_they_are():
    pair = [constant(Z[0]), constant(Z[1])]
    sigmoid = TeacherEnsemble(pair, [1, 3], activation="sigmoid")(batch())["logits"].numpy().astype("float64")
    expected = 0.25 / (1 + np.exp(-Z[0].astype("float64"))) + 0.75 / (1 + np.exp(-Z[1].astype("float64")))
    np.testing.assert_allclose(1 / (1 + np.exp(-sigmoid)), expected, rtol=1e-5)
    values = TeacherEnsemble(pair, [1, 3], activation="linear")(batch())["logits"]
    np.testing.assert_allclose(values, 0.25 * Z[0] + 0.75 * Z[1], rtol=1e-5, atol=1e-6)
    spans = TeacherEnsemble(pair, axis=1)({})["logits"].numpy().astype("float64")
    np.testing.assert_allclose(softmax(spans, 1), 0.5 * softmax(Z[0], 1) + 0.5 * softmax(Z[1], 1), rtol=1e-5)


def open_ended(table):
    """A foreign model (B, T) -> (B, T, 2) that scores padding by the piece that stands there, as any position."""
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    model = keras.Model(ids, layers.Embedding(V, 2)(ids))
    model.set_weights([table])
    return model


def test_padding_has_no_part_in_a_mixture_over_positions():
    """By hand over the text alone; other pieces at padding, whose scores are larger, change not one bit of the text's."""
    tables = np.random.default_rng(2).normal(0, 3, (2, V, 2)).astype("float32")
    tables[:, -1] = [[60.0, 50.0], [-40.0, 70.0]]
    ensemble = TeacherEnsemble([open_ended(table) for table in tables], weights=[1, 3], axis=1)
    x = batch()
    x["token_ids"] = np.minimum(x["token_ids"], V - 2)
    text = x["padding_mask"] > 0
    found = ensemble(x)["logits"].numpy()
    junk = ensemble(x | {"token_ids": np.where(text, x["token_ids"], V - 1)})["logits"].numpy()
    np.testing.assert_array_equal(found, junk)
    for row in range(B):
        scores = tables[:, x["token_ids"][row, text[row]]].astype("float64")  # (2, length, 2)
        by_hand = 0.25 * softmax(scores[0], 0) + 0.75 * softmax(scores[1], 0)
        np.testing.assert_allclose(np.exp(found[row, text[row]].astype("float64")), by_hand, rtol=1e-5)
    assert (np.exp(found[~text]) == 0.0).all()
    empty = ensemble(x | {"padding_mask": np.zeros((B, T), "int32")})["logits"].numpy()
    assert np.isfinite(empty).all()


def test_a_mixture_over_positions_reads_the_padding_of_its_own_word_pieces():
    tables = np.random.default_rng(2).normal(0, 3, (2, V, 2)).astype("float32")
    alike = TeacherEnsemble([LiveTeacher(open_ended(table), prefix="teacher.") for table in tables], axis=1)
    plain, x = TeacherEnsemble([open_ended(table) for table in tables], axis=1), batch()
    theirs = {f"teacher.{name}": value for name, value in x.items()}
    student = {name: np.ones_like(value[:, :4]) for name, value in x.items()}
    np.testing.assert_array_equal(alike(student | theirs)["logits"], plain(x)["logits"])
    with pytest.raises(ValueError, match="logits: the teachers cut texts into different word pieces"):
        TeacherEnsemble([Unsaid(), LiveTeacher(Unsaid(), prefix="teacher.")], axis=1)(x | theirs)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_certain_teachers_stay_finite(activation):
    sure = np.array([[200.0, -200.0, 0.0]], "float32")
    for other in (sure, -sure):
        logits = TeacherEnsemble([constant(sure), constant(other)], activation=activation)(batch())["logits"].numpy()
        assert np.isfinite(logits).all()
        if other is sure and activation == "sigmoid":
            np.testing.assert_allclose(logits, sure, rtol=1e-5)


def test_teachers_of_any_architecture_are_averaged():
    teachers = [model(1), model(2, width=16), small(3)]
    x = batch()
    logits = TeacherEnsemble(teachers)(x)["logits"].numpy()
    by_hand = np.mean([softmax(LiveTeacher(one)(x)["logits"].numpy()) for one in teachers], axis=0)
    np.testing.assert_allclose(softmax(logits), by_hand, rtol=1e-5)


def test_inner_tensors_are_averaged_where_they_agree_and_refused_with_both_names_where_not():
    one, two, wide, x = model(1, layers=2), model(2, layers=3), model(2, width=16), batch()
    ensemble = TeacherEnsemble([one, LiveTeacher(two, names={"hidden.1": "hidden.2"})], weights=[3, 1])
    found = ensemble(x, ("hidden.1", "pooled", "attention.0", "logits"))
    assert list(found) == ["hidden.1", "pooled", "attention.0", "logits"]
    by_hand = 0.75 * one.inner(x, ["hidden.1"])["hidden.1"] + 0.25 * two.inner(x, ["hidden.2"])["hidden.2"]
    np.testing.assert_allclose(found["hidden.1"], by_hand, rtol=1e-5, atol=1e-6)
    assert ensemble.shapes(["hidden.1"]) == {"hidden.1": (None, None, 8)}
    message = r"disagree on hidden.0: teacher 0 \(model_1\) has \(None, None, 8\), teacher 1 \(model_2\) has \(None, None, 16\)"
    for combine in ("average", "random"):
        with pytest.raises(ValueError, match=message):
            TeacherEnsemble([one, wide], combine=combine)(x, ("logits", "hidden.0"))
    with pytest.raises(ValueError, match=r"disagree on logits: .* has \(None, 3\), .* has \(None, 4\)"):
        TeacherEnsemble([one, model(4, classes=4)])(x)


def test_answers_of_unlike_sizes_are_refused_even_where_no_teacher_said_its_own():
    """One number would be added to each of three, without a word."""
    three, one = constant(np.zeros((B, 3), "float32")), constant(np.ones((B, 1), "float32"))
    three.shape = one.shape = None
    with pytest.raises(ValueError, match=r"disagree on logits: teacher 0 \(fixed_0\) has \(None, 3\), .* has \(None, 1\)"):
        TeacherEnsemble([three, one], activation="linear")(batch())


# ---------------------------------------------------------------- one at random


def draws(ensemble, count, compiled=None):
    ask = ensemble if compiled is None else tf.function(lambda: ensemble({}, ("logits",)), jit_compile=compiled)
    answers = [(ask({}, ("logits",)) if compiled is None else ask())["logits"].numpy() for _ in range(count)]
    assert all((answer == answer.flat[0]).all() for answer in answers)
    return [int(answer.flat[0]) for answer in answers]


@pytest.mark.parametrize("compiled", [None, False])
def test_one_teacher_is_asked_a_step_and_for_everything(compiled):
    teachers = [Fixed(0), Fixed(1), Fixed(2)]
    drawn = draws(TeacherEnsemble(teachers, combine="random", seed=3), 30, compiled)
    assert [int(teacher.asked) for teacher in teachers] == [drawn.count(value) for value in range(3)]
    assert set(drawn) == {0, 1, 2}


def test_logits_and_inner_tensors_come_from_the_same_teacher():
    one, two, x = model(1), model(2), batch()
    ensemble, names = TeacherEnsemble([one, two], combine="random"), ("logits", "hidden.0", "pooled")
    for _ in range(3):
        found = ensemble(x, names)
        whole = [all(np.array_equal(found[name], LiveTeacher(m)(x, names)[name]) for name in names) for m in (one, two)]
        assert sorted(whole) == [False, True]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_parts_of_a_step_are_of_one_teacher_and_the_draws_those_of_whole_batches(compiled):
    """The loss of a step on two teachers would lie between those of one; the learning rate is 0, so that they stay."""
    student, losses = small(3), []
    y = np.zeros(B, "int32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for parts in (1, 2):
        ensemble = TeacherEnsemble([Fixed(0), Fixed(1)], combine="random", seed=4)
        distiller = Distiller(student, ensemble, [LogitsMSE()], alpha=0.0, accumulate=parts)
        distiller.compile(keras.optimizers.SGD(0.0), loss, jit_compile=compiled)
        data = tf.data.Dataset.from_tensors((batch(), y))
        losses.append(distiller.fit(data, epochs=8, verbose=0, shuffle=False).history["loss"])
    possible = [np.mean((student(batch()["token_ids"]).numpy() - value) ** 2) for value in (0.0, 1.0)]
    drawn = [int(np.argmin(np.abs(np.array(possible) - loss))) for loss in losses[0]]
    assert set(drawn) == {0, 1}
    for found in losses:
        np.testing.assert_allclose(found, [possible[number] for number in drawn], rtol=1e-5)


def test_weights_are_the_chances():
    drawn = draws(TeacherEnsemble([Fixed(0), Fixed(1), Fixed(2)], [6, 3, 1], "random"), 1500, compiled=False)
    shares = np.array([drawn.count(value) for value in range(3)]) / 1500
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=4 * 0.5 / 1500**0.5)


def test_draws_follow_the_seed_and_go_on_from_a_restored_state():
    def fresh(seed):
        return TeacherEnsemble([Fixed(0), Fixed(1)], combine="random", seed=seed)

    whole = draws(fresh(5), 40)
    assert draws(fresh(5), 40, compiled=False) == whole
    assert draws(fresh(6), 40) != whole
    begun = fresh(5)
    assert draws(begun, 15) == whole[:15]
    resumed = fresh(99)
    resumed.seed_generator.state.assign(begun.seed_generator.state)
    assert draws(resumed, 25) == whole[15:]


def test_random_works_compiled():
    one, two = small(1), small(2)
    ensemble, x = TeacherEnsemble([one, two], combine="random", seed=1), {k: tf.constant(v) for k, v in batch().items()}
    ask = tf.function(lambda: ensemble(x)["logits"], jit_compile=True)
    answers = [ask().numpy() for _ in range(8)]
    expected = [LiveTeacher(teacher)(x)["logits"] for teacher in (one, two)]
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    ways = [sum((i + 1) * np.allclose(answer, expected[i], atol=1e-5) for i in range(2)) for answer in answers]
    assert set(ways) == {1, 2}


@pytest.mark.parametrize("combine", ["average", "random"])
def test_a_student_learns_from_several_and_none_of_them_moves(combine):
    teachers = [small(1), small(2)]
    before = [weight for teacher in teachers for weight in teacher.get_weights()]
    distiller = Distiller(small(3), TeacherEnsemble(teachers, combine=combine), [KLDivergence(1.0)], alpha=0.0)
    distiller.compile(keras.optimizers.Adam(0.01), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensors((batch(), np.zeros(B, "int32"))).repeat(10)
    history = distiller.fit(data, epochs=3, verbose=0, shuffle=False).history
    assert history["loss"][-1] < history["loss"][0]
    for old, new in zip(before, [weight for teacher in teachers for weight in teacher.get_weights()], strict=True):
        np.testing.assert_array_equal(old, new)
    tracked = {id(variable) for variable in distiller.variables}
    assert not tracked & {id(variable) for teacher in teachers for variable in teacher.variables}


REPLICAS = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from tfkd.ensemble import TeacherEnsemble

class Fixed:
    same_positions, name = True, "fixed"
    def __init__(self, value): self.value = value
    def __call__(self, inputs, names): return {name: tf.fill((2, 3), self.value) for name in names}
    def shapes(self, names): return dict.fromkeys(names, (None, 3))

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    ensemble = TeacherEnsemble([Fixed(0.0), Fixed(1.0)], combine="random", seed=5)

@tf.function
def step():
    return strategy.run(lambda: ensemble({}, ("logits",))["logits"])

for _ in range(24):
    print(*(int(value.numpy().flat[0]) for value in strategy.experimental_local_results(step())))
"""


@pytest.mark.slow
def test_replicas_draw_the_same_teacher_and_the_one_that_a_single_device_would():
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS], capture_output=True, text=True, timeout=300, cwd=pathlib.Path(__file__).parent.parent
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pairs = [line.split() for line in done.stdout.splitlines()]
    assert len(pairs) == 24 and all(left == right for left, right in pairs)
    single = draws(TeacherEnsemble([Fixed(0), Fixed(1)], combine="random", seed=5), 24)
    assert [int(left) for left, _ in pairs] == single


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": [1]}, r"weights = \[1\]: give 2 numbers above 0"),
        ({"weights": [1, 0]}, "above 0"),
        ({"weights": [1, -1]}, "above 0"),
        ({"weights": [1, float("nan")]}, "above 0"),
        ({"weights": [1, float("inf")]}, "above 0"),
        ({"combine": "vote"}, "combine = 'vote': must be average or random"),
        ({"activation": "tanh"}, "activation = 'tanh': must be one of softmax, sigmoid, linear"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TeacherEnsemble([Fixed(0), Fixed(1)], **arguments)


def test_an_ensemble_of_nobody_is_refused():
    with pytest.raises(ValueError, match="give at least one"):
        TeacherEnsemble([])


def test_positions_of_different_tokenizers_are_never_averaged_and_whole_texts_are():
    plain, other = LiveTeacher(model(1)), LiveTeacher(model(2), prefix="teacher.")
    ensemble = TeacherEnsemble([plain, other])
    assert not ensemble.same_positions
    x = batch()
    both = x | {f"teacher.{name}": value[:, :4] for name, value in x.items()}
    logits = ensemble(both, ("logits", "pooled"))["logits"].numpy()
    short = {name: value[:, :4] for name, value in x.items()}
    np.testing.assert_allclose(softmax(logits), (softmax(model(1)(x).numpy()) + softmax(model(2)(short).numpy())) / 2, rtol=1e-4)
    with pytest.raises(ValueError, match="hidden.0: the teachers cut texts into different word pieces"):
        ensemble(both, ("logits", "hidden.0"))
    alike = TeacherEnsemble([other, LiveTeacher(model(1), prefix="teacher.")])
    with pytest.raises(UserError, match="hidden.0: the teacher has a tokenizer of its own"):
        check_positions(alike, ("logits", "hidden.0"))
    assert alike(both, ("hidden.0",))["hidden.0"].shape == (B, 4, 8)  # they agree with one another, if not with the student


def test_layers_are_counted_where_the_teachers_agree():
    assert TeacherEnsemble([model(1), model(2)]).layers == 1
    assert TeacherEnsemble([model(1), model(2, layers=3)]).layers is None
    assert CachedTeacher({"logits": (None, C)}).layers is None
