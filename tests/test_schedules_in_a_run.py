"""What a configuration says of schedules, followed into the values at steps, the log of metrics and the report's curves."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd import build, callbacks, compression, config, report_inputs, report_page
from tfkd.distiller import Distiller
from tfkd.layers.head import ClassificationHead
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import KLDivergence
from tfkd.report_plots import curves
from tfkd.schedules import Schedule, value_at
from tfkd.tasks.classification import Classification
from tfkd.teacher import LiveTeacher

TREE = {"data": {"builtin": "docstrings"}, "teacher": {"dimensions": {}, "train": {}}, "student": {"dimensions": {}}}


def model(seed):
    keras.utils.set_random_seed(seed)
    encoder = TransformerEncoder(20, 1, 8, 2, max_positions=6, segments=0, dropout=0.0)
    return TransformerWithHead(encoder, ClassificationHead(3))


def small(seed):
    """A model that compiles in no time."""
    keras.utils.set_random_seed(seed)
    numbers = keras.Input((4,), name="numbers")
    return keras.Model(numbers, keras.layers.Dense(3)(numbers))


def schedules(distill, steps, steps_per_epoch):
    """Name -> alpha, and every objective's weight and temperature, as a run makes them of its `distill` section."""
    given = config.parse(TREE | {"distill": distill}).distill
    student, teacher = model(1), LiveTeacher(model(2))
    made = build.make_objectives(given, Classification(), student, teacher, steps, steps_per_epoch)
    found = {"alpha": build.schedule(given.alpha, steps, steps_per_epoch)}
    for objective in made:
        found |= {f"{objective.name} weight": objective.weight}
        found |= {f"{objective.name} temperature": getattr(objective, "temperature", None)}
    return found


def by_step(value, steps):
    return [float(value_at(value, step)) for step in range(steps)]


def test_a_configuration_becomes_the_values_at_steps_by_its_shape_and_by_step_or_epoch():
    distill = {
        "alpha": {"start": 0.0, "end": 0.9, "by": "epoch"},
        "temperature": {"start": 8.0, "end": 2.0, "shape": "cosine", "by": "epoch"},
        "objectives": [
            {"name": "kl_divergence", "weight": {"start": 1.0, "end": 8.0}},
            {"name": "reverse_kl", "temperature": {"start": 3.0, "end": 1.0, "shape": "cosine"}, "weight": 0.5},
            {"name": "hidden_state_mse", "layers": "last", "weight": {"start": 2.0, "end": 0.0, "by": "epoch"}},
        ],
    }
    found = schedules(distill, 8, 2)
    assert by_step(found["alpha"], 8) == pytest.approx([0.0, 0.0, 0.3, 0.3, 0.6, 0.6, 0.9, 0.9])
    # (1 - cos 60 deg) / 2 and (1 - cos 120 deg) / 2 of the way
    assert by_step(found["kl_divergence temperature"], 8) == pytest.approx([8.0, 8.0, 6.5, 6.5, 3.5, 3.5, 2.0, 2.0])
    assert by_step(found["kl_divergence weight"], 8) == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8])
    assert by_step(found["reverse_kl temperature"], 8) == pytest.approx(2.0 + np.cos(np.pi * np.arange(8) / 7))
    assert found["reverse_kl weight"] == 0.5
    assert by_step(found["hidden_state_mse weight"], 8) == pytest.approx([2, 2, 4 / 3, 4 / 3, 2 / 3, 2 / 3, 0, 0])


def test_the_only_epoch_of_a_training_has_the_start_and_what_follows_it_goes_on_from_there():
    by_epoch, by_steps = {"start": 0.2, "end": 0.8, "by": "epoch"}, {"start": 0.2, "end": 0.8}
    assert by_step(schedules({"alpha": by_epoch}, 3, 3)["alpha"], 3) == pytest.approx([0.2] * 3)
    assert by_step(schedules({"alpha": by_steps}, 3, 3)["alpha"], 3) == pytest.approx([0.2, 0.5, 0.8])
    ends = [compression._end(config.Changing(**given), epochs) for given in (by_epoch, by_steps) for epochs in (1, 2)]
    assert ends == [0.2, 0.8, 0.8, 0.8] and compression._end(0.3, 1) == 0.3


STEPS, EPOCHS = 6, 2


def logged(path, jit_compile=False, steps_per_execution=1, accumulate=1):
    """The lines of a log, one a step or an execution, of a training whose three numbers change."""
    steps = STEPS * EPOCHS
    objective = KLDivergence(Schedule(4.0, 1.0, steps, every=STEPS), weight=Schedule(1.0, 3.0, steps, "cosine"))
    distiller = Distiller(small(1), small(2), [objective], alpha=Schedule(0.0, 0.55, steps), accumulate=accumulate)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.01), loss, jit_compile=jit_compile, steps_per_execution=steps_per_execution)
    data = tf.data.Dataset.from_tensors((np.eye(4, dtype="float32"), np.array([0, 1, 2, 0], "int32"))).repeat()
    log = callbacks.MetricsLog(path, "student", STEPS, every=1)
    distiller.fit(data, epochs=EPOCHS, steps_per_epoch=STEPS, validation_data=data.take(1), callbacks=[log], verbose=0)
    return [json.loads(line) for line in path.read_text().splitlines()]


WAYS = [{}, {"steps_per_execution": 3}, {"accumulate": 2}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)]


@pytest.mark.parametrize("how", WAYS, ids=["plain", "several steps at once", "in parts", "compiled"])
def test_the_log_holds_what_schedules_say_at_its_steps_and_the_page_draws_it(how, tmp_path, monkeypatch):
    lines = logged(tmp_path / "metrics.jsonl", **how)
    steps = np.array([line["step"] for line in lines])
    assert steps.tolist() == list(range(1, 13))[how.get("steps_per_execution", 1) - 1 :: how.get("steps_per_execution", 1)]
    expected = {
        "alpha": 0.05 * (steps - 1),
        "kl_divergence_temperature": np.where(steps <= STEPS, 4.0, 1.0),
        "kl_divergence_weight": 2.0 - np.cos(np.pi * (steps - 1) / 11),
    }
    for name, values in expected.items():
        np.testing.assert_allclose([line[name] for line in lines], values, rtol=1e-5, atol=1e-6, err_msg=name)
        assert not any(f"val_{name}" in line for line in lines)

    drawn = {}
    monkeypatch.setattr(report_page.plots, "picture", lambda draw, *series, alt, **_: drawn.update({alt: (draw, series)}))
    titles = [title for title, _ in report_page._losses(report_inputs.history(tmp_path / "metrics.jsonl")[0], set())]
    assert {"alpha", "kl divergence temperature", "kl divergence weight"} <= set(titles)
    for name, values in expected.items():
        draw, (training, validation) = drawn[f"{name} by epoch"]
        assert draw is curves and validation == {}
        np.testing.assert_allclose(training["student"], [steps / STEPS, values], rtol=1e-5, atol=1e-6)
