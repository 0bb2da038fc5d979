"""The table of tasks: a contract that each keeps, and numbers by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit
from sklearn import metrics as reference

from tfkd.data.targets import Number
from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import OBJECTIVES
from tfkd.tasks.measures import MEASURES
from tfkd.tasks.multilabel import BinaryCrossEntropy, MicroF1
from tfkd.tasks.regression import Correlation, Regression, SquaredError
from tfkd.tasks.table import TASKS

POOLED = ["classification", "regression", "multilabel"]
RANDOM = np.random.default_rng(0)


def target_of(mean, deviation):
    target = Number()
    target.mean, target.deviation = mean, deviation
    return target


def model(task, pooling="first", labels=("a", "b", "c")):
    keras.utils.set_random_seed(0)
    labels = list(labels)[:1] if task.name == "regression" else list(labels)
    encoder = TransformerEncoder(50, 1, 16, 2, max_positions=16, segments=0)
    return TransformerWithHead(encoder, task.head(task.outputs(labels), pooling, dropout=0.1))


def inputs():
    token_ids = RANDOM.integers(1, 50, (4, 6)).astype("int32")
    return {"token_ids": token_ids, "padding_mask": np.array([[1] * 6, [1] * 3 + [0] * 3, [1] * 4 + [0] * 2, [1] * 6], "int32")}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_its_measure_and_its_response(name):
    task = TASKS[name]
    assert task.name == name and task.metric == MEASURES[name].headline
    assert task.response in OBJECTIVES
    assert MEASURES[name].figures[0].key == task.metric


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("name", POOLED)
def test_heads_losses_and_metrics_fit_together(name, pooling):
    task = TASKS[name]()
    student = model(task, pooling)
    logits = student(inputs())
    y = {"classification": np.array([0, 1, 2, 0]), "regression": np.array([0.5, 1, 2, 3], "float32")}
    y["multilabel"] = RANDOM.integers(0, 2, (4, 3)).astype("float32")
    values = task.loss().call(keras.ops.convert_to_tensor(y[name]), logits)
    assert values.shape == (4,) and keras.backend.standardize_dtype(values.dtype) == "float32"
    watched = {metric.name: metric for metric in task.training_metrics()}
    watched[task.monitor].update_state(y[name], logits, sample_weight=np.array([1.0, 1.0, 1.0, 0.0]))
    assert np.isfinite(float(watched[task.monitor].result()))
    again = type(student.head).from_config(student.head.get_config())
    assert again.get_config() == student.head.get_config() and student.head.classes == logits.shape[-1]


@pytest.mark.parametrize("name", POOLED)
def test_models_of_every_task_are_saved_and_loaded(name, tmp_path):
    task = TASKS[name](target_of(3.0, 2.0)) if name == "regression" else TASKS[name]()
    student, batch = model(task), inputs()
    student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras", compile=False)
    np.testing.assert_array_equal(again(batch), student(batch))


# Regression.


def test_a_regression_answers_in_the_units_of_the_data():
    task = Regression(target_of(1e5, 300.0))
    student = model(task)
    _, inner = student.head(np.zeros((1, 1, 16), "float32"), np.ones((1, 1)))
    scores = student.head.output_dense(inner["pooled"]).numpy()
    np.testing.assert_allclose(student.head(np.zeros((1, 1, 16), "float32"), np.ones((1, 1)))[0], 1e5 + 300.0 * scores, rtol=1e-6)
    assert (np.abs(student(inputs()).numpy() - 1e5) < 3000).all()  # before any training it is near the mean, not near 0
    assert student.head.deviation == 300.0


def test_a_regression_is_whole_in_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = model(Regression(target_of(70_000.0, 1000.0)))
        answers = student(inputs()).numpy()
    finally:
        keras.config.set_dtype_policy("float32")
    assert answers.dtype == np.float32 and np.isfinite(answers).all()  # float16 ends at 65,504
    assert len(np.unique(answers)) == 4


def test_squared_error_is_in_units_of_the_variance():
    y, z = np.array([1.0, 5.0]), np.array([[3.0], [5.5]])
    np.testing.assert_allclose(SquaredError(2.0).call(y, z), [1.0, 0.0625])
    task = Regression(target_of(0.0, 4.0))
    response = OBJECTIVES[task.response](**task.response_arguments)
    taught = response({"logits": np.array([[3.0], [2.0]])}, {"logits": np.array([[1.0], [6.0]])})
    np.testing.assert_allclose(taught, [4 / 16, 16 / 16])  # and so is the teacher's part


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1e5, 0.5)])
def test_watched_correlation_is_pearsons_over_all_batches(mean, deviation):
    y = (mean + deviation * RANDOM.normal(size=90)).astype("float32")
    z = (y + 0.5 * deviation * RANDOM.normal(size=90)).astype("float32")
    weight = np.repeat([1.0, 0.0], [80, 10]).astype("float32")
    metric = Correlation(mean, deviation)
    for part in np.array_split(np.arange(90), 4):
        metric.update_state(y[part], z[part, None], sample_weight=weight[part])
    assert float(metric.result()) == pytest.approx(np.corrcoef(y[:80].astype("float64"), z[:80])[0, 1], abs=2e-5)


def test_watched_correlation_of_a_constant_is_0_and_no_nan():
    metric = Correlation()
    metric.update_state(np.full(4, 2.0, "float32"), RANDOM.normal(size=(4, 1)).astype("float32"))
    assert float(metric.result()) == 0.0
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_numbers_are_not_smoothed():
    with pytest.raises(UserError, match="label_smoothing = 0.1: regression has no classes"):
        Regression().loss(0.1)


# Several labels.


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_by_hand(smoothing):
    y, z = np.array([[1.0, 0.0, 1.0]]), np.array([[2.0, -1.0, -30.0]])
    t, p = y * (1 - smoothing) + smoothing / 2, expit(z)
    by_hand = -(t * np.log(p) + (1 - t) * np.log1p(-p)).mean()
    np.testing.assert_allclose(BinaryCrossEntropy(smoothing).call(y, z), [by_hand], rtol=1e-5)


def test_binary_cross_entropy_of_huge_logits_is_finite():
    values = BinaryCrossEntropy().call(np.array([[1.0, 0.0]]), np.array([[-1e4, 1e4]]))
    np.testing.assert_allclose(values, [1e4])


def test_watched_micro_f1_is_scikit_learns():
    y = RANDOM.integers(0, 2, (50, 4))
    z = RANDOM.normal(size=(50, 4)).astype("float32")
    metric = MicroF1()
    for part in np.array_split(np.arange(50), 3):
        metric.update_state(y[part].astype("float32"), z[part], sample_weight=(part < 40).astype("float32"))
    expected = reference.f1_score(y[:40], z[:40] > 0, average="micro")
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0.0


@pytest.mark.parametrize(
    ("loss", "y", "gradient"),
    [
        (SquaredError(2.0), np.array([1.0, 5.0], "float32"), lambda y, z: 2.0 * (z - y[:, None]) / 4.0),
        (BinaryCrossEntropy(), np.array([[1.0], [0.0]], "float32"), lambda y, z: expit(z) - y),
        (BinaryCrossEntropy(), np.array([[1, 0, 1], [0, 0, 1]], "float32"), lambda y, z: (expit(z) - y) / 3.0),
    ],
    ids=["squared error", "one label", "three labels"],
)
def test_gradients_of_losses_by_hand(loss, y, gradient):
    z = RANDOM.normal(size=(2, y.shape[1] if y.ndim == 2 else 1)).astype("float32")
    variable = tf.Variable(z)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loss.call(y, variable))
    np.testing.assert_allclose(tape.gradient(total, variable), gradient(y, z), rtol=1e-5, atol=1e-6)
