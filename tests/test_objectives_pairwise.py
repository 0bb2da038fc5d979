"""Objectives over relations between examples: a number by hand for each, filler rows, and replicas."""

import itertools
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.objectives import Contrastive, RKDAngle, RKDDistance, SimilarityPreserving

ROOT = pathlib.Path(__file__).parent.parent
ALL = [RKDDistance, RKDAngle, SimilarityPreserving, Contrastive]


def value(objective, student, teacher, weight=None):
    batch = {} if weight is None else {"example_weight": tf.constant(weight, "float32")}
    own, other = ({"pooled": tf.constant(np.asarray(vectors), "float32")} for vectors in (student, teacher))
    return objective(own | batch, other).numpy().astype("float64")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def huber(x):
    return np.where(np.abs(x) <= 1, x**2 / 2, np.abs(x) - 0.5)


def cosine(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def by_hand(kind, student, teacher, tau=0.07):
    """Each example's value, by loops."""
    rows, found = range(len(student)), []
    if kind is RKDDistance:
        sides = [np.array([[np.linalg.norm(x - y) for y in side] for x in side]) for side in (student, teacher)]
        means = [np.mean([d[i, j] for i, j in itertools.permutations(rows, 2)]) for d in sides]
        error = huber(sides[0] / means[0] - sides[1] / means[1])
        return np.array([np.mean([error[i, j] for j in rows if j != i]) for i in rows])
    if kind is RKDAngle:
        for i in rows:
            others = list(itertools.permutations([row for row in rows if row != i], 2))
            errors = [cosine(s[j] - s[i], s[k] - s[i]) for s in (student, teacher) for j, k in others]
            found.append(np.mean(huber(np.subtract(*np.split(np.array(errors), 2)))))
        return np.array(found)
    if kind is SimilarityPreserving:
        own, other = (side @ side.T for side in (student, teacher))
        own, other = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in (own, other))
        return ((own - other) ** 2).sum(1) / len(student)
    for i in rows:
        logits = np.array([cosine(student[i], teacher[j]) for j in rows]) / tau
        found.append(np.log(np.exp(logits - logits[i]).sum()))
    return np.array(found)


def test_rkd_distance_of_three_points():
    # On a line at 0, 1, 3: distances 1, 3, 2, mean 2; the teacher's at 0, 2, 4: 2, 4, 2, mean 8/3.
    # Relative: 0.5, 1.5, 1 against 0.75, 1.5, 0.75: errors -0.25, 0, 0.25, huber 0.03125, 0, 0.03125
    values = value(RKDDistance(), [[0.0], [1.0], [3.0]], [[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    np.testing.assert_allclose(values, [0.03125 / 2, 0.03125, 0.03125 / 2], rtol=1e-5)


def test_rkd_angle_of_three_points():
    # A right angle at the first point against a straight line through it: cosines 0 and -1, huber 0.5. At the others 45
    # degrees against 0: huber(cos 45 - 1) = (1 - 0.70711)^2 / 2
    values = value(RKDAngle(), [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.0], [1.0], [-1.0]])
    np.testing.assert_allclose(values, [0.5, (1 - 0.5**0.5) ** 2 / 2, (1 - 0.5**0.5) ** 2 / 2], rtol=1e-5)


def test_similarity_preserving_of_two_points():
    # Products ((1, 0), (0, 1)) against ((1, 1), (1, 1)), rows over sqrt(2): ((1 - 0.70711)^2 + 0.5) / 2 = 0.292893
    values = value(SimilarityPreserving(), [[1.0, 0.0], [0.0, 1.0]], [[1.0], [1.0]])
    np.testing.assert_allclose(values, [0.292893, 0.292893], rtol=1e-5)


def test_contrastive_of_two_points():
    # Each student's vector is its own teacher's and at a right angle to the other's: log(1 + exp(-1 / 0.5)); the wrong way
    # round log(1 + exp(2))
    one = [[2.0, 0.0], [0.0, 5.0]]
    np.testing.assert_allclose(value(Contrastive(tau=0.5), one, one), np.log1p(np.exp(-2.0)), rtol=1e-5)
    np.testing.assert_allclose(value(Contrastive(tau=0.5), one, one[::-1]), np.log1p(np.exp(2.0)), rtol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_any_batch_by_loops(kind):
    student, teacher = normal(0, 6, 4), normal(1, 6, 4 if kind is Contrastive else 7)
    np.testing.assert_allclose(value(kind(), student, teacher), by_hand(kind, student, teacher), rtol=1e-4)


@pytest.mark.parametrize("kind", ALL)
def test_filler_rows_are_in_no_pair(kind):
    student, teacher, weight = normal(0, 7, 4), normal(1, 7, 4), np.array([1, 0, 2.5, 1, 0, 0.1, 1])
    kept = weight > 0
    values = value(kind(), student, teacher, weight)
    np.testing.assert_allclose(values[kept], by_hand(kind, student[kept], teacher[kept]), rtol=1e-4)
    assert not values[~kept].any()
    student[~kept], teacher[~kept] = np.nan, np.inf
    np.testing.assert_array_equal(value(kind(), student, teacher, weight), values)


@pytest.mark.parametrize("kind", ALL)
def test_too_few_rows_to_relate_give_0(kind):
    for rows in (1, 2) if kind is RKDAngle else (1,):
        np.testing.assert_allclose(value(kind(), normal(0, rows, 4), normal(1, rows, 4)), 0.0, atol=1e-6)


@pytest.mark.parametrize("kind", ALL)
def test_equal_examples_have_a_finite_gradient(kind):
    for rows in ([0, 0, 1, 2], [0, 0, 0, 0]):
        student, teacher = tf.Variable(normal(0, 3, 4)[rows].astype("float32")), tf.constant(normal(1, 4, 4), "float32")
        with tf.GradientTape() as tape:
            values = kind()({"pooled": student + 0, "example_weight": tf.ones(4)}, {"pooled": teacher})
        gradient = tape.gradient(values, student).numpy()
        assert np.isfinite(values).all() and np.isfinite(gradient).all() and np.abs(gradient).max() < 1e3


@pytest.mark.parametrize("kind", [RKDDistance, RKDAngle])
def test_neither_scale_nor_place_nor_rotation_matters_to_rkd(kind):
    teacher = normal(1, 5, 3)
    turn = np.linalg.qr(normal(2, 3, 3))[0]
    np.testing.assert_allclose(value(kind(), 7 * teacher @ turn + 2, teacher), 0.0, atol=1e-6)


def test_contrastive_is_least_for_the_right_teacher():
    teacher = normal(0, 4, 8)
    values = {rows: value(Contrastive(), teacher[list(rows)], teacher).sum() for rows in itertools.permutations(range(4))}
    assert min(values, key=values.get) == (0, 1, 2, 3)


def test_a_mean_is_over_the_text_and_averaged_over_pairs_of_layers():
    mask = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], "int32")
    hidden = {f"hidden.{i}": normal(i, 4, 3, 5) for i in range(4)}
    objective = RKDDistance("mean", [[0, 2], [1, 3]])
    assert objective.student_names == ("hidden.0", "hidden.1", "padding_mask", "example_weight")
    student, teacher = ({n: tf.constant(hidden[n], "float32") for n in hidden if n[-1] in side} for side in ("01", "23"))
    values = objective(student | {"padding_mask": tf.constant(mask)}, teacher).numpy()
    means = {n: np.stack([h[r, :length].mean(0) for r, length in enumerate([3, 1, 2])]) for n, h in hidden.items()}
    expected = [by_hand(RKDDistance, means[f"hidden.{i}"], means[f"hidden.{i + 2}"]) for i in range(2)]
    np.testing.assert_allclose(values, [*np.mean(expected, axis=0), 0.0], rtol=1e-4)


def test_contrastive_projects_a_narrower_student():
    objective = Contrastive(tau=0.5)
    objective.build({"pooled": (None, 2)}, {"pooled": (None, 3)})
    (kernel,) = objective.trainable_variables
    kernel.assign(normal(3, 2, 3))
    student, teacher = normal(0, 4, 2), normal(1, 4, 3)
    expected = by_hand(Contrastive, student @ normal(3, 2, 3), teacher, 0.5)
    np.testing.assert_allclose(value(objective, student, teacher), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="contrastive: the student is 2 wide, the teacher 3: projection = 'never'"):
        Contrastive(projection="never").build({"pooled": (None, 2)}, {"pooled": (None, 3)})


@pytest.mark.parametrize("kind", ALL)
def test_vectors_are_pooled_or_means_of_layers(kind):
    assert kind().student_names == ("pooled", "example_weight") and kind().teacher_names == ("pooled",)
    for arguments, message in (
        ({"vector": "first"}, "vector = 'first': must be pooled or mean"),
        ({"vector": "mean"}, "layers = None"),
        ({"layers": [[0, 0]]}, "layers = .*: must be left out unless vector = 'mean'"),
    ):
        with pytest.raises(ValueError, match=f"^{kind.default_name}: {message}"):
            kind(**arguments)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_a_senseless_tau_is_refused(tau):
    with pytest.raises(ValueError, match="^contrastive: tau = "):
        Contrastive(tau=tau)


# Both ways in one process: on one replica outside of any strategy, then on two, each with half of the rows.
REPLICAS = """
import json
import keras, numpy as np, tensorflow as tf
from tfkd import strategy
from tfkd.objectives import Contrastive, RKDAngle, RKDDistance, SimilarityPreserving
from tfkd.objectives.gather import gather, own_rows

two = strategy.make_strategy(logical_cpus=2)
random = np.random.default_rng(0)
inputs, pooled = random.normal(size=(8, 5)), random.normal(size=(8, 3))
hidden, kernel, projection = random.normal(size=(8, 4, 3)), random.normal(size=(5, 3)), random.normal(size=(3, 3))
mask = np.arange(4) < np.array([4, 1, 2, 3, 4, 2, 1, 0])[:, None]
weight = np.array([1, 0, 1, 2, 1, 1, 1, 0])
data = dict(inputs=inputs, pooled=pooled, hidden=hidden, mask=mask, weight=weight)
data = {name: array.astype("int32" if name == "mask" else "float32") for name, array in data.items()}

def step(objectives, kernel, data):
    found = {}
    for label, objective in objectives.items():
        variables = [kernel, *objective.trainable_variables]
        with tf.GradientTape() as tape:
            student = {"pooled": data["inputs"] @ kernel, "example_weight": data["weight"], "padding_mask": data["mask"]}
            student["hidden.0"] = data["hidden"] + student["pooled"][:, None]
            teacher = {"pooled": data["pooled"], "hidden.1": data["hidden"]}
            values = objective({n: student[n] for n in {*objective.student_names, *objective.optional_names}}, teacher)
            loss = tf.reduce_sum(values * data["weight"]) / weight.sum()
        found[label] = (values, tape.gradient(loss, variables))
    found["gather"] = (gather(data["pooled"]), [tf.cast(own_rows(data["weight"]), "float32")])
    return found

def make():
    layers = [[0, 1]]
    objectives = [Contrastive(projection="always"), RKDAngle(), RKDDistance("mean", layers), SimilarityPreserving("mean", layers)]
    objectives[0].build({"pooled": (None, 3)}, {"pooled": (None, 3)})
    objectives[0].set_weights([projection])
    return {objective.name: objective for objective in objectives}, tf.Variable(kernel, dtype="float32")

objectives, variable = make()
one = tf.function(lambda d: step(objectives, variable, d))(data)
with two.scope():
    objectives, variable = make()

def half(name):
    def of(context):
        return tf.constant(data[name][4 * context.replica_id_in_sync_group :][:4])
    return two.experimental_distribute_values_from_function(of)

parts = two.run(tf.function(lambda d: step(objectives, variable, d)), args=({name: half(name) for name in data},))
for label, (values, gradients) in one.items():
    halves = two.experimental_local_results(parts[label][0])
    together = halves[0] if label == "gather" else np.concatenate(halves)
    if label != "gather":
        assert np.abs(values).max() > 1e-3, label
    np.testing.assert_allclose(together, values, rtol=1e-5, atol=1e-6, err_msg=label)
    for index, gradient in enumerate(gradients):
        local = [np.array(part) for part in two.experimental_local_results(parts[label][1][index])]
        summed = np.concatenate(local) if label == "gather" else sum(local)
        np.testing.assert_allclose(summed, gradient, rtol=1e-4, atol=1e-6, err_msg=label)
        assert label == "gather" or np.abs(gradient).max() > 1e-3, label
print(json.dumps(sorted(one)))
"""


@pytest.mark.slow
def test_two_replicas_give_the_values_and_gradients_of_one():
    done = subprocess.run([sys.executable, "-c", REPLICAS], cwd=ROOT, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(done.stdout.splitlines()[-1])) == 5


def test_without_a_strategy_nothing_is_gathered():
    from tfkd.objectives.gather import gather, own_rows

    rows = tf.constant(normal(0, 3, 2))
    assert gather(rows) is rows and own_rows(rows).numpy().tolist() == [0, 1, 2]
    assert keras.backend.backend() == "tensorflow"
