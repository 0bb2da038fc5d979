import io
import json

import numpy as np
import rich.console
import tensorflow as tf

from tfkd import callbacks, progress, speed, strategy
from tfkd.data.pipeline import Batches


def test_xla_pays_back_only_over_many_steps():
    one = tf.distribute.get_strategy()
    per_shape = strategy.STEPS_PER_COMPILED_SHAPE
    assert strategy.choose_xla("auto", 4 * per_shape - 1, 4, one)[0] is False
    assert strategy.choose_xla("auto", 4 * per_shape, 4, one)[0] is True
    assert strategy.choose_xla(True, 1, 4, one)[0] is True
    assert strategy.choose_xla(False, 10**6, 1, one)[0] is False


def test_steps_too_small_to_gain_by_xla_are_not_compiled_however_many():
    one, least = tf.distribute.get_strategy(), strategy.LEAST_COMPILED_GIGAFLOPS
    use, reason = strategy.choose_xla("auto", 10**6, 1, one, 0.9 * least)
    assert use is False and reason == f"off: steps of {0.9 * least:.1f} GFLOP are too small to gain by it"
    assert strategy.choose_xla("auto", 10**6, 1, one, least)[0] is True
    assert strategy.choose_xla("auto", 1, 1, one, least)[0] is False
    assert strategy.choose_xla(True, 1, 1, one, 0.0)[0] is True


def test_what_saves_memory_is_not_compiled_on_a_cpu_unless_told_to(monkeypatch):
    one = tf.distribute.get_strategy()
    use, reason = strategy.choose_xla("auto", 10**6, 1, one, saves_memory=True)
    assert use is False and "train.accumulate and train.checkpoint_gradients" in reason
    assert strategy.choose_xla(True, 1, 1, one, saves_memory=True)[0] is True

    monkeypatch.setattr(strategy, "on_gpu", lambda devices: True)
    assert strategy.choose_xla("auto", 1, 1, one, saves_memory=True)[0] is True


def test_xla_on_logical_cpus_falls_back_with_the_reason():
    class Two:
        num_replicas_in_sync = 2

        class extended:
            worker_devices = ("/job:localhost/device:CPU:0", "/job:localhost/device:CPU:1")

    use, reason = strategy.choose_xla(True, 10**6, 1, Two())
    assert use is False
    assert "first logical CPU alone" in reason and "not followed" in reason


def test_one_device_is_the_default():
    chosen = strategy.make_strategy("auto", None)
    assert chosen.num_replicas_in_sync == 1
    assert strategy.describe(chosen) == "1 CPU"


def display(lines):
    return progress.Display(rich.console.Console(file=io.StringIO(), width=80), lines.append)


def test_away_from_a_terminal_progress_is_lines_with_an_estimate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = []
    with display(lines).bar("train", 100) as update:
        for step in range(1, 61):
            now[0] += 1.0
            update(step, f"loss {step}")
    # A line in fifteen seconds: after steps 15, 30, 45 and 60; at step 15 of 100, 85 seconds are left.
    assert len(lines) == 4
    assert lines[0] == "train  15%, 1:25 left  loss 15"


def test_a_count_without_a_total_is_still_said(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = []
    with display(lines).bar("tokenize", None) as update:
        now[0] = 20.0
        update(12_345)
    assert lines == ["tokenize 12,345 done"]


def test_clock_by_hand():
    assert [progress.clock(s) for s in (0, 42.4, 725, 3723)] == ["0:00", "0:42", "12:05", "1:02:03"]


def test_brackets_in_labels_and_paths_are_said_as_they_are():
    lines = []
    display(lines).say("Note: [joy] and [/joy] & 2")
    assert lines == ["Note: [joy] and [/joy] & 2"]


def test_the_estimate_does_not_believe_the_first_compiled_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = []
    with display(lines).bar("train", 1000) as update:
        now[0] = 60.0
        update(2)
        now[0] = 80.0
        update(202)  # ten a second since: 798 more take 80 seconds
    assert lines == ["train   0%, starting", "train  20%, 1:20 left"]


def test_a_shape_compiled_on_the_way_does_not_turn_an_hour_into_a_day(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = progress.Pace()
    for step in range(1, 101):
        now[0] += 45.0 if step in (1, 40, 100) else 1.0
        pace.note(step)
    assert pace.left(1100) == 1000.0 and pace.left(None) is None
    pace.note(90)  # back to a checkpoint
    assert pace.left(1100) == 1010.0


def test_what_was_done_before_a_resume_does_not_count_as_fast(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with display(lines).bar("train", 1000) as update:
        bar = callbacks.ProgressBar(update, steps=500, epochs=2, begun=720)
        bar.on_train_begin()
        bar.on_epoch_begin(1)
        for batch in range(220):  # of this epoch, passed over
            now[0] += 1.0
            bar.on_train_batch_end(batch)
        assert not lines
        now[0] += 40.0
        bar.on_train_batch_end(220)
        assert lines == ["train  72%, starting  epoch 2/2"]
        for batch in range(221, 240):
            now[0] += 2.0
            bar.on_train_batch_end(batch)
    assert lines[-1] == "train  74%, 8:46 left  epoch 2/2"  # 263 of 2 seconds after step 737


def test_a_pace_that_changes_is_followed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = progress.Pace()
    for step in range(1, 2 * progress.REMEMBERED + 1):
        now[0] += 1.0 if step <= progress.REMEMBERED else 5.0
        pace.note(step)
    assert pace.left(pace.done + 100) == 500.0


DETAILS = {
    "epoch": 2,
    "epochs": 3,
    "losses": {"loss": 0.5, "kl_divergence": 0.25, "label_loss": float("nan")},
    "speed": {"examples_per_second": 1234.4, "tokens_per_second": 34000.0, "gigaflops": 52.0, "memory_gb": 1.24},
}


def test_json_is_an_object_a_line_with_losses_by_term_and_the_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = rich.console.Console(file=io.StringIO(), width=80)
    shown = progress.Display(console, mode="json")
    shown.say("Note: [joy]")
    with shown.bar("student", 100) as update:
        update(0)
        now[0] = 20.0
        update(40, "epoch 2/3", details=DETAILS)
    said, step = map(json.loads, console.file.getvalue().splitlines())
    assert said == {"event": "said", "text": "Note: [joy]"}
    assert (step["event"], step["stage"], step["done"], step["total"], step["seconds_left"]) == (
        "progress",
        "student",
        40,
        100,
        30.0,
    )
    assert step["losses"] == {"loss": 0.5, "kl_divergence": 0.25}  # JSON has no NaN
    assert step["epoch"] == 2 and step["speed"]["tokens_per_second"] == 34000.0


def test_quiet_is_silent_and_the_log_is_not():
    lines, console = [], rich.console.Console(file=io.StringIO(), width=80)
    shown = progress.Display(console, lines.append, mode="quiet")
    shown.say("Plan")
    with shown.bar("student", 100) as update:
        update(40, "epoch 2/3", details=DETAILS)
    assert console.file.getvalue() == "" and lines == ["Plan"]


def test_a_terminal_shows_the_time_left_and_losses_speed_and_memory_below_the_bar(monkeypatch):
    console, now = rich.console.Console(file=io.StringIO(), width=120, force_terminal=True), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Display(console).bar("student", 100) as update:
        update(0)
        now[0] = 20.0
        update(40, "epoch 2/3", details=DETAILS)
    picture = console.file.getvalue()
    for words in (
        "student",
        "0:30",
        "40%",
        "epoch 2/3",
        "kl divergence 0.2500",
        "1,234 examples/s",
        "34,000 tokens/s",
        "52 GFLOP/s",
        "1.2 GB",
    ):
        assert words in picture


def test_flop_of_a_forward_pass_by_hand():
    # 2 layers, T = 3, D = 4, F = 8: four D x D and two D x F products, scores and values, two FLOP a multiply-add.
    by_hand = 2 * (3 * 4 * (4 * 4) * 2 + 3 * 2 * (4 * 8) * 2 + 2 * (3 * 3 * 4) * 2)
    assert speed.forward_flops({"layers": 2, "width": 4, "feed_forward": 8}, 3) == by_hand


def test_work_of_the_mean_step_counts_filler_rows_and_packed_ones_as_they_are_computed():
    class Planned(Batches):
        def __init__(self):
            pass

        def plan(self, epoch=0):
            return [(np.array([0, 1]), 10), (np.array([2, -1]), 30)]

    assert speed.Speed(Planned(), flops=lambda length: 1e9 * length).gigaflops() == (2 * 10 + 2 * 30) / 2
    assert speed.Speed(Planned()).gigaflops() is None

    class Packed(Planned):
        def computed(self, batch):
            return 1, 20

    assert speed.Speed(Packed(), flops=lambda length: 1e9 * length).gigaflops() == 20
