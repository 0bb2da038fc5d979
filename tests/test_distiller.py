import json
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.distiller import Distiller
from tfkd.global_mean import global_mean
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import HiddenStateMSE, KLDivergence, Objective
from tfkd.schedules import Schedule
from tfkd.tasks.classification import ClassificationHead, SmoothedCrossEntropy

ROOT = pathlib.Path(__file__).parent.parent
V, C = 50, 3


def model(seed, layers=1, width=16, dropout=0.0):
    keras.utils.set_random_seed(seed)
    encoder = TransformerEncoder(V, layers, width, 2, max_positions=12, segments=0, dropout=dropout, initializer_range=0.3)
    return TransformerWithHead(encoder, ClassificationHead(C, dropout=dropout))


def batch(rows=8, length=9, seed=0):
    random = np.random.default_rng(seed)
    lengths = random.integers(2, length + 1, rows)
    mask = (np.arange(length) < lengths[:, None]).astype("int32")
    x = {"token_ids": random.integers(0, V, (rows, length)).astype("int32") * mask, "padding_mask": mask}
    return x, random.integers(0, C, rows).astype("int32")


def log_softmax(z):
    z = z.astype("float64")
    return z - z.max(-1, keepdims=True) - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))


def sparse_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def one_step(distiller, x, y, weights=None, optimizer=None, loss=None):
    distiller.compile(optimizer or keras.optimizers.SGD(0.1), loss=loss or sparse_loss())
    data = (x, y) if weights is None else (x, y, weights)
    return distiller.fit(tf.data.Dataset.from_tensors(data), verbose=0, shuffle=False).history


def test_loss_is_alpha_labels_plus_rest_kl_with_sample_weights():
    student, teacher = model(1), model(2, layers=2)
    for one in (student, teacher):  # a start whose answers differ by more than rounding
        one.head.output_dense.kernel.assign(one.head.output_dense.kernel * 50)
    x, y = batch()
    weights = np.array([1, 0, 2, 1, 0.5, 1, 0, 3], "float32")
    log_q, log_p = log_softmax(student(x).numpy()), log_softmax(teacher(x).numpy())
    soft_q, soft_p = log_softmax(student(x).numpy() / 2), log_softmax(teacher(x).numpy() / 2)
    labels = -log_q[np.arange(8), y]
    kl = 4 * (np.exp(soft_p) * (soft_p - soft_q)).sum(-1)
    by_hand = 0.3 * np.average(labels, weights=weights) + 0.7 * np.average(kl, weights=weights)
    assert log_p.shape == log_q.shape
    history = one_step(Distiller(student, teacher, [KLDivergence(2.0)], alpha=0.3), x, y, weights)
    assert history["loss"][0] == pytest.approx(by_hand, rel=1e-5)
    assert history["label_loss"][0] == pytest.approx(np.average(labels, weights=weights), rel=1e-5)
    assert history["kl_divergence"][0] == pytest.approx(np.average(kl, weights=weights), rel=1e-5)


def test_defaults_are_temperature_4_and_alpha_one_half():
    distiller = Distiller(model(1), model(2))
    assert distiller.alpha == 0.5
    assert [type(o).__name__ for o in distiller.objectives] == ["KLDivergence"]
    assert distiller.objectives[0].temperature == 4.0


def test_alpha_0_learns_the_teacher_and_alpha_1_the_labels():
    x, y = batch()
    teacher = model(2)
    start = model(1).get_weights()
    results = {}
    for alpha in (0.0, 1.0):
        student = model(1)
        one_step(Distiller(student, teacher, alpha=alpha), x, (y + 1) % C if alpha == 0.0 else y)
        results[alpha] = student.get_weights()
    other = model(1)
    one_step(Distiller(other, teacher, alpha=0.0), x, y)  # other labels, the same step
    for a, b in zip(results[0.0], other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    alone = model(1)
    one_step(Distiller(alone, None), x, y)
    for a, b in zip(results[1.0], alone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(start, results[0.0], strict=True))


def test_teacher_never_moves_and_is_not_tracked():
    student, teacher = model(1), model(2)
    before = [np.array(w) for w in teacher.get_weights()]
    distiller = Distiller(student, teacher)
    one_step(distiller, *batch(), optimizer=keras.optimizers.AdamW(0.1, weight_decay=0.1))
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert teacher.trainable
    tracked = {id(variable) for variable in distiller.variables}
    assert not tracked & {id(variable) for variable in teacher.variables}
    assert len(distiller.trainable_variables) == len(student.trainable_variables)


def test_teacher_is_not_in_the_students_file(tmp_path):
    student, teacher = model(1), model(2, layers=3, width=32)
    one_step(Distiller(student, teacher), *batch())
    student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras")
    x, _ = batch(seed=5)
    np.testing.assert_array_equal(again(x), student(x))
    assert len(again.trainable_variables) == len(model(1).trainable_variables)


def test_evaluate_never_asks_the_teacher():
    def teacher(inputs, names):
        raise AssertionError("asked")

    distiller = Distiller(model(1), teacher)
    distiller.compile("sgd", loss=sparse_loss(), weighted_metrics=["accuracy"])
    x, y = batch()
    results = distiller.evaluate(x, y, sample_weight=np.ones(8, "float32"), verbose=0, return_dict=True)
    labels = -log_softmax(distiller.student(x).numpy())[np.arange(8), y]
    assert set(results) == {"loss", "accuracy"}
    assert results["loss"] == pytest.approx(labels.mean(), rel=1e-5)
    with pytest.raises(Exception, match="asked"):
        distiller.fit(x, y, verbose=0)


def test_only_training_is_compiled_and_measures_the_same(monkeypatch):
    asked, function = [], tf.function

    def noted(*args, **kwargs):
        asked.append(bool(kwargs.get("jit_compile")))
        return function(*args, **kwargs)

    monkeypatch.setattr(tf, "function", noted)
    x, y = batch()
    student = model(1)
    distiller = Distiller(student, model(0))
    distiller.compile("sgd", sparse_loss(), jit_compile=True)
    found = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert asked and not any(asked) and distiller.jit_compile
    chances = log_softmax(student(x).numpy())
    assert found["loss"] == pytest.approx(-chances[np.arange(len(y)), y].mean(), rel=1e-5)
    distiller.fit(x, y, epochs=1, verbose=0)
    assert any(asked)


def test_the_teacher_is_asked_once_a_step_without_dropout():
    class Counting:
        traced = []

        def __call__(self, inputs, names):
            self.traced.append(names)
            return {"logits": tf.zeros((8, C))}

    one_step(Distiller(model(1), Counting()), *batch())
    assert Counting.traced == [("logits",)]
    teacher = model(2, dropout=0.5)
    x, _ = batch()
    from tfkd.teacher import LiveTeacher

    np.testing.assert_array_equal(LiveTeacher(teacher)(x)["logits"], LiveTeacher(teacher)(x)["logits"])


def test_repeated_token_ids_are_adam_as_adam_is():
    """Five steps on an embedding against Adam written out in NumPy (Kingma and Ba 2014, algorithm 1)."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32")
    student = keras.Sequential([inputs, keras.layers.Embedding(7, C), keras.layers.GlobalAveragePooling1D()])
    table = np.array(student.get_weights()[0], "float64")
    ids = np.array([[1, 1, 1, 2, 3, 3], [1, 2, 2, 2, 5, 0]], "int32")
    y = np.array([0, 2], "int32")
    distiller = Distiller(student)
    distiller.compile(keras.optimizers.Adam(1e-2, epsilon=1e-8), loss=sparse_loss())
    distiller.fit(tf.data.Dataset.from_tensors((ids, y)).repeat(5), verbose=0, shuffle=False)
    m, v = np.zeros_like(table), np.zeros_like(table)
    for t in range(1, 6):
        logits = table[ids].mean(1)
        outer = (np.exp(log_softmax(logits)) - np.eye(C)[y]) / len(y)
        gradient = np.zeros_like(table)
        for row in range(2):
            for token in ids[row]:
                gradient[token] += outer[row] / ids.shape[1]
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        table -= 1e-2 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(student.get_weights()[0], table, atol=2e-6)


def test_mixed_float16_scales_the_loss_and_survives_an_overflow():
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        student, teacher = model(1), model(2)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    distiller = Distiller(student, teacher)
    distiller.compile(keras.optimizers.SGD(0.1), loss=sparse_loss())
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    x, y = batch()
    distiller.optimizer.build(distiller.trainable_variables)
    distiller.optimizer.dynamic_scale.assign(2.0**30)  # overflows: the step must be skipped, the scale halved
    before = student.get_weights()
    distiller.fit(tf.data.Dataset.from_tensors((x, y)), verbose=0, shuffle=False)
    for a, b in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(distiller.optimizer.dynamic_scale) == 2.0**29
    distiller.optimizer.dynamic_scale.assign(1024.0)
    history = distiller.fit(tf.data.Dataset.from_tensors((x, y)), verbose=0, shuffle=False).history
    assert np.isfinite(history["loss"][0])
    assert any((a != b).any() for a, b in zip(before, student.get_weights(), strict=True))


def test_regularizers_of_the_student_are_in_the_loss():
    inputs = keras.Input((4,))
    student = keras.Model(inputs, keras.layers.Dense(C, kernel_regularizer=keras.regularizers.L2(0.1))(inputs))
    x, y = np.ones((2, 4), "float32"), np.zeros(2, "int32")
    kernel = student.get_weights()[0].astype("float64")
    labels = -log_softmax(student(x).numpy())[:, 0].mean()
    assert one_step(Distiller(student), x, y)["loss"][0] == pytest.approx(labels + 0.1 * (kernel**2).sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"alpha": 1.5}, "alpha = 1.5"), ({"teacher": None, "objectives": [KLDivergence()]}, "need a teacher")],
)
def test_a_senseless_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Distiller(**{"student": model(1), "teacher": model(2)} | arguments)


def test_alpha_weight_and_temperature_follow_their_schedules_step_by_step():
    """Learning rate 0: the models stay, so that every step's loss can be computed by hand."""
    student, teacher = model(1), model(2)
    for one in (student, teacher):
        one.head.output_dense.kernel.assign(one.head.output_dense.kernel * 50)
    x, y = batch()
    steps = 3
    objective = KLDivergence(Schedule(4.0, 1.0, steps), weight=Schedule(1.0, 3.0, steps))
    distiller = Distiller(student, teacher, [objective], alpha=Schedule(0.0, 1.0, steps, "cosine"))
    distiller.compile(keras.optimizers.SGD(0.0), loss=sparse_loss())
    labels = -log_softmax(student(x).numpy())[np.arange(8), y].mean()
    for temperature, weight, alpha in zip([4.0, 2.5, 1.0], [1.0, 2.0, 3.0], [0.0, 0.5, 1.0], strict=True):
        log_q, log_p = (log_softmax(one(x).numpy() / temperature) for one in (student, teacher))
        kl = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
        logs = distiller.fit(tf.data.Dataset.from_tensors((x, y)), verbose=0, shuffle=False).history
        assert logs["loss"][0] == pytest.approx(alpha * labels + (1 - alpha) * weight * kl, rel=1e-5)
        assert logs["alpha"][0] == pytest.approx(alpha, abs=1e-6)
        assert logs["kl_divergence_temperature"][0] == pytest.approx(temperature)
        assert logs["kl_divergence_weight"][0] == pytest.approx(weight)


def test_an_alpha_that_leaves_0_to_1_is_refused():
    with pytest.raises(ValueError, match="from 0 to 1"):
        Distiller(model(1), model(2), alpha=Schedule(0.5, 1.5, 3))


class AsksForAll(Objective):
    """1 for every position with an odd label, whatever the models say."""

    default_name = "asks_for_all"
    student_names = ("hidden.0", "padding_mask", "example_weight", "labels", "step")
    teacher_names = ("hidden.0",)

    def values(self, student, teacher, mask):
        odd = tf.cast(student["labels"] % 2, "float32")
        return 1e-12 * student["hidden.0"][:, :, 0] + odd[:, None] + 0.0 * student["step"]


def test_an_objective_over_positions_counts_text_of_real_examples_alone():
    x, y = batch()
    weights = np.array([1, 1, 0, 1, 1, 0, 1, 1], "float32")
    logs = one_step(Distiller(model(1), model(2), [AsksForAll()], alpha=0.0), x, y, weights)
    counted = x["padding_mask"] * weights[:, None]
    assert logs["loss"][0] == pytest.approx((counted * (y % 2)[:, None]).sum() / counted.sum(), rel=1e-5)


def test_a_projection_takes_the_optimizers_step():
    """W - r d/dW of the mean over text of |h W - g|^2 / D, by hand; the student has no part in it that could move h."""
    student, teacher, (x, y) = model(1), model(2, width=24), batch()
    objective = HiddenStateMSE([(0, 0)])
    distiller = Distiller(student, teacher, [objective], alpha=0.0)
    kernel = objective.project.kernel.numpy().astype("float64")
    real = x["padding_mask"] > 0
    h, g = (one.encoder(x).numpy()[real].astype("float64") for one in (student, teacher))  # (N, 16), (N, 24)
    gradient = 2 * h.T @ (h @ kernel - g) / g.size
    one_step(distiller, x, y)
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(objective.project.kernel, kernel - 0.1 * gradient, atol=1e-6)


def test_a_value_of_weight_0_never_matters():
    values, weights = tf.constant([1.0, np.nan, np.inf, 3.0]), tf.constant([1.0, 0.0, 0.0, 3.0])
    assert float(global_mean(values, weights)) == pytest.approx(10 / 4)


def test_evaluate_leaves_out_what_has_weight_0_whatever_it_is():
    """As a student of others may answer to a filler row, whose mean over no position is 0 / 0."""
    x = np.array([[1.0, 2.0], [np.nan, 0.0], [0.5, -1.0]], "float32")
    student = keras.Sequential([keras.Input((2,)), keras.layers.Identity()])
    distiller = Distiller(student)
    distiller.compile("sgd", loss=sparse_loss())
    found = distiller.evaluate(x, np.zeros(3, "int32"), sample_weight=np.array([1.0, 0.0, 3.0], "float32"), verbose=0)
    assert found == pytest.approx(-(log_softmax(x[0])[0] + 3 * log_softmax(x[2])[0]) / 4, rel=1e-5)


def test_label_smoothing_by_hand():
    logits = np.array([[2.0, 0.0, -1.0]])
    target = np.array([0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3])
    value = SmoothedCrossEntropy(0.1).call(np.array([1]), tf.constant(logits, "float32"))
    assert float(value[0]) == pytest.approx(-(target * log_softmax(logits)[0]).sum(), rel=1e-5)


REPLICAS = """
import json, sys
import keras, numpy as np, tensorflow as tf
from tfkd import strategy
replicas, folder = int(sys.argv[1]), sys.argv[2]
devices = strategy.make_strategy(logical_cpus=replicas if replicas > 1 else None)
assert devices.num_replicas_in_sync == replicas
sys.path.insert(0, folder)
from test_distiller import batch, model, sparse_loss
from tfkd.distiller import Distiller
from tfkd.objectives import KLDivergence
from tfkd.optimizer import adamw
from tfkd.schedules import Schedule
with devices.scope():
    teacher, student = model(2, layers=2), model(1)
    # Of answers that are nearly alike, five digits of the divergence would be rounding.
    teacher.head.output_dense.kernel.assign(teacher.head.output_dense.kernel * 500)
    distiller = Distiller(student, teacher, [KLDivergence(2.0)], alpha=Schedule(0.2, 0.6, 12))
    optimizer = adamw(distiller.trainable_variables, 12, 1e-2, clip_norm=float(sys.argv[3]))
    distiller.compile(optimizer, loss=sparse_loss(), weighted_metrics=["accuracy"])
# Seeds whose classes are far apart: of two that are nearly equal, rounding decides.
data = [batch(8, 9, seed) for seed in range(10, 14)]
# Uneven on purpose: the second half of a batch weighs little, and in the last batch nothing at all.
weights = [np.linspace(2, 0.1, 8).astype("float32")] * 3 + [np.array([1, 1, 1, 0, 0, 0, 0, 0], "float32")]
data = [(x, y, w) for (x, y), w in zip(data, weights)]
# Not from_generator: TensorFlow takes its arrays without a copy and may write into them, and these are read three times.
tensors = tf.nest.map_structure(lambda *parts: np.stack(parts), *(data * 3))
dataset = tf.data.Dataset.from_tensor_slices(tensors)
history = distiller.fit(dataset, verbose=0, shuffle=False, validation_data=dataset).history
print(json.dumps({"history": history, "weights": [w.tolist() for w in student.get_weights()]}))
"""


@pytest.mark.parametrize("clip_norm", [10.0, 0.1], ids=["unclipped", "clipped"])
def test_two_replicas_give_the_loss_and_the_weights_of_one(clip_norm):
    results = []
    for replicas in (1, 2):
        command = [sys.executable, "-c", REPLICAS, str(replicas), str(ROOT / "tests"), str(clip_norm)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=560)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads(done.stdout.splitlines()[-1]))
    one, two = results
    assert set(one["history"]) == {"loss", "label_loss", "kl_divergence", "accuracy", "alpha", "val_loss", "val_accuracy"}
    assert one["history"]["alpha"] == pytest.approx([0.6])  # at the last step, not on average
    for name, values in one["history"].items():
        np.testing.assert_allclose(two["history"][name], values, rtol=1e-5, err_msg=name)
    for a, b in zip(one["weights"], two["weights"], strict=True):
        # A key's bias shifts all scores alike, so that its gradient is rounding noise, which Adam makes steps of: 2e-5.
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=2e-5)


def test_the_ten_lines_of_the_readme_run(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    assert "Distiller(" in code
    x, y = batch(64)
    names = {"student": model(1), "teacher": model(2), "dataset": tf.data.Dataset.from_tensor_slices((x, y)).batch(16)}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    assert "kl_divergence" in names["history"].history
