"""A training that was stopped anywhere goes on to the same bits; a step of bad numbers changes nothing."""

import csv
import io
import json
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from safetensors.numpy import load_file

from tfkd import callbacks, config, fitting, optimizer, stopping, training_state
from tfkd.data.pipeline import Batches
from tfkd.data.store import write_store
from tfkd.data.targets import Class
from tfkd.data.tokenizer import Tokenizer
from tfkd.distiller import Distiller
from tfkd.errors import UserError
from tfkd.layers.head import ClassificationHead
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import HiddenStateMSE
from tfkd.progress import Display
from tfkd.run_dir import RunDir
from tfkd.tasks.classification import Classification

ROOT = pathlib.Path(__file__).parent.parent
WORDS = [f"w{i}" for i in range(12)]
TARGET = Class(labels=["no", "yes"])
TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01}


def model(seed=0, width=8):
    keras.utils.set_random_seed(seed)
    encoder = TransformerEncoder(5 + len(WORDS), 1, width, 2, max_positions=8, segments=0, dropout=0.2)
    return TransformerWithHead(encoder, ClassificationHead(2, dropout=0.2))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(1, 6))) for _ in range(44)]
    examples = [{"text": text, "label": int("w3" in text)} for text in texts]
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    return write_store(tmp_path_factory.mktemp("rows") / "train", iter(examples), tokenizer, 8, TARGET)


def train(rows, folder, resume=False, stop_at=None, keep=None, objectives=None, **more):
    """Trains a small model with dropout for 12 steps in 2 epochs; `stop_at` acts as a SIGTERM after so many of them.

    With `objectives` it learns from a wider teacher too.
    """
    tree = {"data": {"builtin": "docstrings"}, "teacher": {"dimensions": {}, "train": {}}, "student": {"dimensions": {}}}
    loaded = config.parse(tree | {"train": TRAINING | {"keep": keep}, "checkpoint": {"steps": 4}, **more})
    student, said, seen = model(), [], []

    class Signal(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(batch)
            if len(seen) == stop_at:
                stopping._State.requested = signal.SIGTERM

    real = keras.callbacks.TensorBoard
    try:  # in the place of TensorBoard, which takes seconds to set up and stands before the checkpoint too
        keras.callbacks.TensorBoard = lambda *arguments, **named: Signal()
        console = rich.console.Console(file=io.StringIO(), width=120)
        batches = Batches(rows, 8, [4, 8], shuffle=True, seed=1)
        devices = tf.distribute.get_strategy()
        run, display = RunDir(folder), Display(console, said.append)
        run.path.mkdir(exist_ok=True)
        measured = Batches(rows, 16, [8])
        learned = {} if objectives is None else {"teacher": model(1, width=12), "objectives": objectives, "alpha": 0.5}
        task = Classification()
        fitting.fit("student", student, loaded, loaded.train, batches, measured, task, run, display, devices, resume, **learned)
    finally:
        keras.callbacks.TensorBoard = real
        stopping._State.requested = None
    return student.get_weights(), said


def lines(folder):
    """The log of metrics without what differs from one sitting to the next."""
    timed = ("seconds", "steps_per_second", "examples_per_second", "tokens_per_second", "gigaflops", "memory_gb")
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in found]


@pytest.fixture(scope="module")
def undisturbed(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(rows, folder)[0], lines(folder)


def assert_same_bits(expected, found):
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_training_stopped_in_an_epoch_goes_on_to_the_same_bits_and_log(rows, undisturbed, tmp_path):
    with pytest.raises(stopping.Stopped) as caught:
        train(rows, tmp_path, stop_at=3)
    assert caught.value.code == 143 and caught.value.saved
    # Stopped once more, six steps later and in the second epoch; then the newest checkpoint loses a bit.
    with pytest.raises(stopping.Stopped):
        train(rows, tmp_path, resume=True, stop_at=9)
    older, newest = sorted((tmp_path / "checkpoints" / "student").iterdir())
    assert (older.name, newest.name) == ("step-00000008", "step-00000009")
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    found, said = train(rows, tmp_path, resume=True)
    assert any("step-00000009 is damaged" in line for line in said)
    assert any("going on after epoch 1 and 2 steps" in line for line in said)
    assert_same_bits(undisturbed[0], found)
    assert lines(tmp_path) == undisturbed[1]


def test_the_last_epoch_is_kept_where_that_is_asked_for_and_watched_all_the_same(rows, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(Classification, "monitor", None)
    last, _ = train(rows, tmp_path / "unwatched")
    monkeypatch.setattr(Classification, "monitor", "loss")  # the best of it is the largest: that of the first epoch
    best, said = train(rows, tmp_path / "best", keep="best")
    assert any("at epoch 1 of 2" in line for line in said)
    found, said = train(rows, tmp_path / "last", keep="last")
    assert_same_bits(last, found)
    assert any((a != b).any() for a, b in zip(best, found, strict=True))
    assert not any("best validation" in line for line in said)
    assert lines(tmp_path / "last") == lines(tmp_path / "best")
    assert "val_loss" in lines(tmp_path / "last")[-1]


@pytest.mark.slow
def test_a_projection_goes_on_where_it_was_and_is_that_of_the_best_epoch(rows, tmp_path, monkeypatch):
    def learns(folder, **named):
        """The projection after a training, and the student."""
        objective = HiddenStateMSE([(0, 0)])
        student, _ = train(rows, tmp_path / folder, objectives=[objective], **named)
        return [objective.project.kernel.numpy(), *student]

    monkeypatch.setattr(Classification, "monitor", "loss")  # the best of it is the largest: that of the first epoch
    expected = learns("whole")
    with pytest.raises(stopping.Stopped):
        learns("again", stop_at=8)
    steps = sorted((tmp_path / "again" / "checkpoints" / "student").iterdir())
    assert [step.name for step in steps] == ["step-00000006", "step-00000008"]
    held = [list(load_file(step / "model.safetensors").values()) for step in steps]
    first, later = ([value for value in values if value.shape == (8, 12)] for values in held)
    np.testing.assert_array_equal(first, expected[:1])
    assert np.abs(later[0] - first[0]).max() > 0.0
    assert_same_bits(expected, learns("again", resume=True))


def test_a_checkpoint_that_is_cut_short_or_half_gone_is_no_checkpoint(tmp_path):
    for step in (1, 2, 3):
        training_state.save(tmp_path, step, {"step": step}, {"model": [np.full((2,), step, "float32")]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    (tmp_path / "step-00000003" / "model.safetensors").unlink()
    about, arrays, damaged = training_state.load(tmp_path)
    assert about["step"] == 2 and damaged == ["step-00000003"]
    np.testing.assert_array_equal(arrays["model"][0], [2, 2])
    state = tmp_path / "step-00000002" / "state.json"
    state.write_text(state.read_text().replace('"step": 2', '"step": 7'))
    assert training_state.load(tmp_path) is None


def test_a_dataset_starts_at_any_step_of_an_epoch(rows):
    batches = Batches(rows, 8, [4, 8], shuffle=True, seed=4)
    whole = [y.numpy() for _, y, _ in batches.dataset(repeat=True).take(2 * batches.steps + 2)]
    for epoch, step in ((0, 2), (1, batches.steps - 1), (1, batches.steps)):
        begin = epoch * batches.steps + step
        later = [y.numpy() for _, y, _ in batches.dataset(epoch, repeat=True, first_step=step).take(2)]
        for a, b in zip(whole[begin : begin + 2], later, strict=True):
            np.testing.assert_array_equal(a, b)


def batch(seed, bad=False):
    random = np.random.default_rng(seed)
    x = {"token_ids": random.integers(5, 17, (8, 8)).astype("int32"), "padding_mask": np.ones((8, 8), "int32")}
    weights = np.ones(8, "float32")
    weights[3] = np.inf if bad else 1.0
    return x, random.integers(0, 2, 8).astype("int32"), weights


def steps_on(batches, jit_compile):
    student = model()
    distiller = Distiller(student, None)
    chosen = optimizer.adamw(distiller.trainable_variables, 10, 0.01)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    distiller.compile(chosen, loss, weighted_metrics=[accuracy], jit_compile=jit_compile)
    training_state.reseed(student, 5)
    signature = tf.nest.map_structure(lambda value: tf.TensorSpec(value.shape, value.dtype), batches[0])
    data = tf.data.Dataset.from_generator(lambda: tf.nest.map_structure(np.copy, batches), output_signature=signature)
    history = distiller.fit(data.apply(tf.data.experimental.assert_cardinality(len(batches))), verbose=0, shuffle=False).history
    return distiller, history


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_of_bad_numbers_changes_no_weight_no_moment_and_no_average(jit_compile):
    one, before = steps_on([batch(0)], jit_compile)
    two, after = steps_on([batch(0), batch(1, bad=True)], jit_compile)
    assert_same_bits(one.student.get_weights(), two.student.get_weights())
    assert_same_bits([v.numpy() for v in one.optimizer.variables], [v.numpy() for v in two.optimizer.variables])
    assert after == before and np.isfinite(after["loss"][0])
    assert int(two.bad_steps.count.numpy()) == 1 and int(two.bad_steps.last.numpy()) == 1
    assert two.bad_steps.wrong() in (["label_loss is nan"], ["label_loss is inf"])


def test_an_overflow_that_the_loss_scale_can_cure_is_not_counted():
    """float16's way: gradients beyond its range halve the scale; what is wrong at scale 1 is wrong."""
    distiller = Distiller(model(), None)
    chosen = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
    chosen.build(distiller.trainable_variables)
    distiller.compile(chosen, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    overflow = tf.constant(np.inf)
    assert float(distiller._watched(overflow)) == 0.0
    chosen.dynamic_scale.assign(1.0)
    assert np.isinf(float(distiller._watched(overflow)))


class Number(int):
    """A variable as far as it is read here."""

    def numpy(self):
        return int(self)


class Bad:
    """What a model says after `count` bad steps, the last of them step `last`."""

    def __init__(self, count, last):
        self.bad_steps, self.count, self.last = self, Number(count), Number(last)

    def wrong(self):
        return ["kl_divergence is nan"]


def test_too_many_bad_steps_stop_a_training_with_step_term_and_rows():
    said = []
    limit = callbacks.BadStepsLimit("student", 10, 2, lambda epoch, step: f"rows {epoch} and {step}", said.append)
    limit.set_model(Bad(0, 0))
    limit.on_epoch_begin(1)
    limit.set_model(Bad(2, 13))
    limit.on_train_batch_end(9)
    assert said == ["Student: 2 of at most 2 bad steps skipped: kl_divergence is nan at step 14 (epoch 2), rows 1 and 3"]
    limit.set_model(Bad(3, 17))
    with pytest.raises(UserError, match=r"student: 3 steps .* kl_divergence is nan at step 18 \(epoch 2\), rows 1 and 7; look"):
        limit.on_train_batch_end(19)


def test_an_epoch_without_one_good_step_stops_whatever_the_limit():
    limit = callbacks.BadStepsLimit("student", 3, 100, lambda epoch, step: "rows", lambda line: None)
    limit.set_model(Bad(0, 0))
    limit.on_epoch_begin(0)
    limit.set_model(Bad(3, 2))
    with pytest.raises(UserError, match="3 steps without finite numbers"):
        limit.on_epoch_end(0)


def test_rows_of_a_batch_are_named_as_the_plan_has_them(rows):
    batches = Batches(rows, 8, [8], shuffle=True, seed=2)
    expected = ", ".join(map(str, sorted(batches.plan(1)[2][0])))
    assert batches.rows_of(1, 2) == f"rows {expected} of train, counted from 0"


def test_a_resumed_log_holds_no_line_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    other = [{"role": "teacher", "epoch": 1, "step": 40}]
    mine = [{"role": "student", "epoch": 1 + step // 10, "step": step} for step in (5, 10, 15, 20)]
    log = callbacks.MetricsLog(path, "student", 10)
    for epochs, step, kept in ((1, 5, 3), (1, 9, 3), (1, 10, 3), (2, 0, 4), (0, 0, 0)):
        path.write_text("".join(json.dumps(line) + "\n" for line in other + mine) + '{"role": "stu')  # killed in a line
        log.resume(epochs, step)
        assert [json.loads(line) for line in path.read_text().splitlines()] == other + mine[:kept], (epochs, step)


def test_the_table_has_a_column_a_name(tmp_path):
    callbacks.write_table(tmp_path / "metrics.csv", [{"role": "teacher", "loss": 0.5}, {"role": "student", "kl": 0.25}])
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"role": "teacher", "loss": "0.5", "kl": ""},
            {"role": "student", "loss": "", "kl": "0.25"},
        ]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_anywhere_a_run_ends_bit_for_bit_where_it_would_have_ended():
    command = [sys.executable, "benchmarks/kill.py", "--times", "25"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "25 kills" in done.stdout
