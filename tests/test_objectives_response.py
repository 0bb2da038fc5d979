"""Objectives over answers: a number by hand for each, and what they refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.objectives import BinaryKL, DecoupledKD, JensenShannon, KLDivergence, LogitsMSE, ReverseKL
from tfkd.schedules import Schedule


def value(objective, student, teacher, **batch):
    """The values of an objective on logits, float64 in and out."""
    tensors = {name: tf.constant(array) for name, array in batch.items()}
    own, other = ({"logits": tf.constant(np.asarray(logits, "float32"))} for logits in (student, teacher))
    return objective(own | tensors, other).numpy().astype("float64")


def softmax(z, axis=-1):
    z = np.exp(np.asarray(z, "float64") - np.max(z, axis, keepdims=True))
    return z / z.sum(axis, keepdims=True)


def kl(p, q, axis=-1):
    return np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p / q, 1)), 0), axis)


def test_kl_divergence_by_hand():
    # softmax([4, 5, 6] / 3) against softmax([6, 5, 4] / 3), times 9, in double precision:
    p, q = np.exp(np.array([4.0, 5.0, 6.0]) / 3), np.exp(np.array([6.0, 5.0, 4.0]) / 3)
    p, q = p / p.sum(), q / q.sum()
    by_hand = 9 * np.sum(p * np.log(p / q))
    assert by_hand == pytest.approx(1.3092, abs=1e-4)
    assert value(KLDivergence(temperature=3.0), [[6.0, 5.0, 4.0]], [[4.0, 5.0, 6.0]])[0] == pytest.approx(by_hand, rel=1e-5)


def test_kl_and_reverse_kl_have_a_direction():
    # KL(p || q) with p = (0.9, 0.1), q = (0.5, 0.5): 0.9 ln 1.8 + 0.1 ln 0.2 = 0.368064; the other way round 0.510826.
    p, q = np.log([[0.9, 0.1]]), np.log([[0.5, 0.5]])
    assert value(KLDivergence(1.0), q, p)[0] == pytest.approx(0.368064, abs=1e-5)
    assert value(KLDivergence(1.0), p, q)[0] == pytest.approx(0.510826, abs=1e-5)
    assert value(ReverseKL(1.0), q, p)[0] == pytest.approx(0.510826, abs=1e-5)
    assert value(ReverseKL(1.0), p, q)[0] == pytest.approx(0.368064, abs=1e-5)


def test_softened_gradients_keep_their_size():
    # Hinton et al. 2015, eq. 4: at a high temperature the gradient nears (z - v) / C for zero-mean logits; T^2 is in it.
    teacher = {"logits": tf.constant([[-0.2, 0.4, -0.2]])}
    for objective in (KLDivergence(1000.0), ReverseKL(1000.0)):
        student = tf.Variable([[0.3, -0.1, -0.2]])
        with tf.GradientTape() as tape:
            values = objective({"logits": student + 0}, teacher)
        np.testing.assert_allclose(tape.gradient(values, student), (student - teacher["logits"]) / 3, atol=1e-3)


def test_jensen_shannon_by_hand():
    # m = 0.5 (0.9, 0.1) + 0.5 (0.5, 0.5) = (0.7, 0.3):
    # 0.5 (0.9 ln(9/7) + 0.1 ln(1/3)) + 0.5 (0.5 ln(5/7) + 0.5 ln(5/3)) = 0.101750
    p, q = np.log([[0.9, 0.1]]), np.log([[0.5, 0.5]])
    by_hand = 0.5 * (0.9 * np.log(9 / 7) + 0.1 * np.log(1 / 3)) + 0.5 * (0.5 * np.log(5 / 7) + 0.5 * np.log(5 / 3))
    assert value(JensenShannon(0.5, 1.0), q, p)[0] == pytest.approx(by_hand, abs=1e-6)
    # b = 0.25 of the teacher's: m = (0.6, 0.4)
    by_hand = 0.25 * (0.9 * np.log(1.5) + 0.1 * np.log(0.25)) + 0.75 * (0.5 * np.log(5 / 6) + 0.5 * np.log(1.25))
    assert value(JensenShannon(0.25, 1.0), q, p)[0] == pytest.approx(by_hand, abs=1e-6)


def test_jensen_shannon_is_bounded_and_has_both_kl_for_ends():
    assert value(JensenShannon(0.5, 1.0), [[50.0, -50.0]], [[-50.0, 50.0]])[0] == pytest.approx(np.log(2), rel=1e-5)
    student, teacher = [[0.3, -0.2, 0.4]], [[-0.5, 0.2, 0.1]]
    forward, reverse = value(KLDivergence(1.0), student, teacher), value(ReverseKL(1.0), student, teacher)
    np.testing.assert_allclose(value(JensenShannon(0.01, 1.0), student, teacher) / 0.01, forward, rtol=0.02)
    np.testing.assert_allclose(value(JensenShannon(0.99, 1.0), student, teacher) / 0.01, reverse, rtol=0.02)


def test_logits_mse_by_hand():
    # ((1 - 3)^2 + (2 - 2)^2 + (0 + 1)^2) / 3
    assert value(LogitsMSE(), [[1.0, 2.0, 0.0]], [[3.0, 2.0, -1.0]])[0] == pytest.approx(5 / 3, rel=1e-6)
    assert value(LogitsMSE(), [[1.5], [2.0]], [[1.0], [4.0]]).tolist() == [0.25, 4.0]
    # in units of a deviation of 2: a quarter of it
    assert value(LogitsMSE(deviation=2.0), [[1.5], [2.0]], [[1.0], [4.0]]).tolist() == [0.0625, 1.0]


def test_binary_kl_by_hand():
    # p = (0.8, 0.5), q = (0.5, 0.5): (0.8 ln 1.6 + 0.2 ln 0.4 + 0) / 2
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    by_hand = (0.8 * np.log(1.6) + 0.2 * np.log(0.4)) / 2
    student, teacher = logit(np.array([[0.5, 0.5]])), logit(np.array([[0.8, 0.5]]))
    assert value(BinaryKL(1.0), student, teacher)[0] == pytest.approx(by_hand, rel=1e-5)
    assert value(BinaryKL(1.0, classes="sum"), student, teacher)[0] == pytest.approx(2 * by_hand, rel=1e-5)
    p, q = 1 / (1 + np.exp(-teacher / 3)), 1 / (1 + np.exp(-student / 3))
    softened = 9 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    assert value(BinaryKL(3.0), student, teacher)[0] == pytest.approx(softened, rel=1e-4)


def test_decoupled_kd_by_hand():
    # p = (0.7, 0.2, 0.1), q = (0.5, 0.2, 0.3), label 0: b = (0.7, 0.3) and (0.5, 0.5), r = (2/3, 1/3) and (0.4, 0.6)
    p, q = np.log([[0.7, 0.2, 0.1]]), np.log([[0.5, 0.2, 0.3]])
    target = 0.7 * np.log(0.7 / 0.5) + 0.3 * np.log(0.3 / 0.5)
    others = 2 / 3 * np.log((2 / 3) / 0.4) + 1 / 3 * np.log((1 / 3) / 0.6)
    labels = np.array([0], "int32")
    for alpha, beta in ((1.0, 8.0), (1.0, 0.0), (0.0, 1.0)):
        by_hand = alpha * target + beta * others
        assert value(DecoupledKD(alpha, beta, 1.0), q, p, labels=labels)[0] == pytest.approx(by_hand, rel=1e-5)


def test_decoupled_kd_with_the_teachers_doubt_for_a_weight_is_the_kl_divergence():
    # Zhao et al. 2022, eq. 6: KL = TCKD + (1 - p_y) NCKD, at any temperature.
    random = np.random.default_rng(0)
    student, teacher, labels = random.normal(size=(6, 4)) * 3, random.normal(size=(6, 4)) * 3, np.arange(6, dtype="int32") % 4
    doubt = 1 - softmax(teacher / 2)[np.arange(6), labels]
    parts = [value(DecoupledKD(a, b, 2.0), student, teacher, labels=labels) for a, b in ((1.0, 0.0), (0.0, 1.0))]
    np.testing.assert_allclose(parts[0] + doubt * parts[1], value(KLDivergence(2.0), student, teacher), rtol=1e-4)


def test_decoupled_kd_of_a_label_that_is_no_class_is_0():
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 3, 4)), random.normal(size=(2, 3, 4))
    values = value(DecoupledKD(), student, teacher, labels=np.array([[0, -100, 3], [4, 1, -1]], "int32"))
    assert (values > 0).tolist() == [[True, False, True], [False, True, False]] and not values[values <= 0].any()


@pytest.mark.parametrize("kind", [KLDivergence, ReverseKL, JensenShannon, LogitsMSE, BinaryKL, DecoupledKD])
def test_positions_are_answered_one_by_one(kind):
    random = np.random.default_rng(1)
    student, teacher = random.normal(size=(2, 3, 4)), random.normal(size=(2, 3, 4))
    labels = random.integers(0, 4, (2, 3)).astype("int32")
    whole = value(kind(), student, teacher, labels=labels)
    rows = value(kind(), student.reshape(6, 4), teacher.reshape(6, 4), labels=labels.reshape(6))
    np.testing.assert_allclose(whole.reshape(6), rows, rtol=1e-6)


def test_distributions_over_positions_by_hand():
    # Where an answer starts and ends: softmax over the text's positions for each, and the mean of the two divergences.
    random = np.random.default_rng(2)
    student, teacher, lengths = random.normal(size=(2, 4, 2)), random.normal(size=(2, 4, 2)), [4, 3]
    mask = (np.arange(4) < np.array(lengths)[:, None]).astype("int32")
    values = value(KLDivergence(2.0, over="positions"), student, teacher, padding_mask=mask)
    for row, length in enumerate(lengths):
        p, q = softmax(teacher[row, :length] / 2, axis=0), softmax(student[row, :length] / 2, axis=0)
        assert values[row] == pytest.approx(4 * kl(p, q, axis=0).mean(), rel=1e-5)
    labels = np.array([[0, 2], [1, 1]], "int32")
    values = value(DecoupledKD(1.0, 0.0, 1.0, over="positions"), student, teacher, padding_mask=mask, labels=labels)
    for row, length in enumerate(lengths):
        p, q = softmax(teacher[row, :length], axis=0), softmax(student[row, :length], axis=0)
        p, q = (np.array([[x[y, s], 1 - x[y, s]] for s, y in enumerate(labels[row])]) for x in (p, q))
        assert values[row] == pytest.approx(kl(p, q).mean(), rel=1e-4)


@pytest.mark.parametrize("kind", [KLDivergence, ReverseKL, JensenShannon, BinaryKL, DecoupledKD])
def test_huge_logits_stay_finite(kind):
    student, teacher = {"logits": tf.Variable([[1e4, -1e4, 0.0]])}, {"logits": tf.constant([[-1e4, 1e4, 0.0]])}
    with tf.GradientTape() as tape:
        values = kind(temperature=1.0)({"logits": student["logits"] + 0, "labels": tf.constant([0])}, teacher)
    assert np.isfinite(values).all() and np.isfinite(tape.gradient(values, student["logits"])).all()
    if kind is KLDivergence:
        assert float(values[0]) == pytest.approx(2e4, rel=1e-5)


def test_a_scheduled_temperature_follows_the_step():
    student, teacher = [[0.3, -0.2, 0.4]], [[-0.5, 0.2, 0.1]]
    objective = KLDivergence(Schedule(8.0, 2.0, 101))
    assert objective.student_names == ("logits", "step")
    for step, temperature in ((0, 8.0), (50, 5.0), (100, 2.0)):
        found = value(objective, student, teacher, step=np.float32(step))
        np.testing.assert_allclose(found, value(KLDivergence(temperature), student, teacher), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (KLDivergence, {"temperature": 0.0}),
        (KLDivergence, {"temperature": float("nan")}),
        (ReverseKL, {"temperature": Schedule(4.0, 0.0, 10)}),
        (KLDivergence, {"over": "tokens"}),
        (JensenShannon, {"beta": 0.0}),
        (JensenShannon, {"beta": 1.0}),
        (BinaryKL, {"classes": "max"}),
        (LogitsMSE, {"deviation": 0.0}),
        (DecoupledKD, {"alpha": -1.0}),
        (DecoupledKD, {"beta": float("inf")}),
        (DecoupledKD, {"alpha, beta": (0.0, 0.0)}),
    ],
)
def test_a_senseless_argument_is_refused_by_name(kind, arguments):
    name, given = next(iter(arguments.items()))
    given = dict(zip(name.split(", "), given, strict=True)) if "," in name else arguments
    with pytest.raises(ValueError, match=f"^{kind.default_name}: {name} = "):
        kind(**given)


@pytest.mark.parametrize("kind", [KLDivergence, ReverseKL, JensenShannon, DecoupledKD])
def test_a_softmax_over_one_number_is_refused_with_the_way_out(kind):
    with pytest.raises(ValueError, match=f"{kind.default_name}: it is always 0 .* use logits_mse"):
        kind().build({"logits": (None, 1)}, {"logits": (None, 1)})
    for other in (LogitsMSE(), BinaryKL(), kind()):
        shape = (None, 1) if other.default_name in ("logits_mse", "binary_kl") else (None, None, 2)
        other.build({"logits": shape}, {"logits": shape})


def test_what_two_classes_leave_empty_is_refused():
    DecoupledKD().build({"logits": (None, 2)}, {"logits": (None, 2)})
    with pytest.raises(ValueError, match="fewer than 3 classes; these have 2: use kl_divergence"):
        DecoupledKD(alpha=0.0, beta=1.0).build({"logits": (None, 2)}, {"logits": (None, 2)})


def test_heads_of_other_sizes_are_refused_and_unknown_ones_let_through():
    for teacher in ((None, 4), (None, None, 3)):
        with pytest.raises(ValueError, match="student answers with logits .*None, 3.*, the teacher with .*None, "):
            KLDivergence().build({"logits": (None, 3)}, {"logits": teacher})
    KLDivergence().build({"logits": (None, 3)}, {"logits": None})
    with pytest.raises(ValueError, match="over = 'positions': must be classes"):
        KLDivergence(over="positions").build({"logits": (None, 3)}, {"logits": (None, 3)})


def test_several_labels_a_text_are_refused_by_decoupled_kd():
    with pytest.raises(ValueError, match="binary_kl"):
        value(DecoupledKD(), np.zeros((2, 3)), np.ones((2, 3)), labels=np.zeros((2, 3), "int32"))


def test_an_objective_within_a_model_keeps_its_name():
    assert KLDivergence(name="first").name == "first"
    assert isinstance(KLDivergence(), keras.layers.Layer)
