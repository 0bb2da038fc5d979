"""Several machines: who they are, what each of them reads, writes and answers; and on loopback, that they are as one."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import yaml

from tfkd import cluster, config, strategy
from tfkd.data import pipeline
from tfkd.errors import UserError
from tfkd.evaluate import predict
from tfkd.multi_worker import Team, feed
from tfkd.run_dir import RunDir

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from test_teacher_cache import BUCKETS, Table, again, examples, files, make_store, model  # noqa: E402
from test_train import write_colours  # noqa: E402

TWO = "one:2222,two:2222"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv(cluster.REJOINED, raising=False)


# ---------------------------------------------------------------- who they are


def test_the_command_line_says_to_tensorflow_who_they_are(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "")
    found = cluster.find_cluster("auto", TWO, 1)
    assert (found.addresses, found.index, found.chief, found.others) == (("one:2222", "two:2222"), 1, False, ("one:2222",))
    known = {"cluster": {"worker": ["one:2222", "two:2222"]}, "task": {"type": "worker", "index": 1}}
    assert json.loads(os.environ["TF_CONFIG"]) == known
    assert cluster.find_cluster("multi_worker") == found  # and the same is read back


def test_a_chief_comes_before_the_workers(monkeypatch):
    jobs = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    for kind, index, place in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}}))
        found = cluster.find_cluster("auto")
        assert (found.addresses, found.index) == (("a:1", "b:1", "c:1"), place)


def test_one_worker_or_another_strategy_trains_alone(monkeypatch):
    alone = {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(alone))
    assert cluster.find_cluster("auto") is None
    alone["cluster"]["worker"].append("b:1")
    monkeypatch.setenv("TF_CONFIG", json.dumps(alone))
    assert cluster.find_cluster("one") is None and cluster.find_cluster("mirrored") is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("multi_worker",), "TF_CONFIG"),
        (("auto", None, 0), "--cluster"),
        (("auto", TWO), "--worker"),
        (("auto", TWO, 2), "names 2"),
        (("auto", TWO, -1), "names 2"),
        (("auto", "one,two:2", 0), "'one' is not host:port"),
        (("auto", "one:70000,two:2", 0), "70000"),
        (("auto", "one:2,one:2", 0), "twice"),
        (("one", TWO, 0), "strategy.kind: one"),
    ],
)
def test_a_cluster_told_wrongly_is_one_line(arguments, words):
    with pytest.raises(UserError) as caught:
        cluster.find_cluster(*arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"cluster": {"worker": ["a:1", "b:1"]}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": "x"}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": 3}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_a_broken_tf_config_is_one_line(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG: ") as caught:
        cluster.find_cluster("multi_worker")
    assert "\n" not in str(caught.value)


def test_only_the_loss_of_a_worker_begins_anew_and_not_for_ever(monkeypatch):
    assert cluster.lost_a_worker(tf.errors.UnavailableError(None, None, "")) and not cluster.lost_a_worker(UserError(""))
    assert not cluster.lost_a_worker(tf.errors.InvalidArgumentError(None, None, ""))
    assert cluster.may_rejoin()
    monkeypatch.setenv(cluster.REJOINED, str(cluster.MOST_REJOINED))
    assert not cluster.may_rejoin()


def test_several_machines_and_logical_cpus_contradict_each_other():
    tree = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    tree["strategy"] = {"kind": "multi_worker", "logical_cpus": 2}
    with pytest.raises(UserError, match=r"multi_worker contradicts strategy.logical_cpus = 2"):
        config.parse(tree)


# ---------------------------------------------------------------- who does what


def test_a_team_of_one_is_what_it_is_given():
    team = Team(tf.distribute.get_strategy())
    assert (team.count, team.index, team.chief) == (1, 0, True)
    assert team.told({"a": [1, None]}) == {"a": [1, None]} and team.total(3) == 3


def test_parts_of_batches_are_the_batches(tmp_path):
    store = make_store(tmp_path / "store", examples(50))
    batches = pipeline.Batches(store, 15, BUCKETS, shuffle=True, seed=3)
    whole = list(batches.dataset(first_epoch=1).as_numpy_iterator())
    halves = list(batches.dataset(first_epoch=1, parts=2, mine=(0, 1)).as_numpy_iterator())
    second = list(batches.dataset(first_epoch=1, parts=2, mine=(1,)).as_numpy_iterator())
    assert (len(whole), len(halves), len(second)) == (4, 8, 4)
    for number, (x, y, weight) in enumerate(whole):
        a, b = halves[2 * number : 2 * number + 2]
        for name in x:
            joined = np.concatenate([a[0][name], b[0][name]])
            assert joined.shape[0] == 16  # 15 does not divide by 2: a row of filler
            np.testing.assert_array_equal(joined[:15], x[name])
            np.testing.assert_array_equal(second[number][0][name], b[0][name])
        np.testing.assert_array_equal(np.concatenate([a[2], b[2]]), [*weight, 0.0])
        np.testing.assert_array_equal(np.concatenate([a[1], b[1]])[:15], y)


def test_one_replica_is_fed_whole_batches():
    seen = []
    assert feed(tf.distribute.get_strategy(), lambda **told: seen.append(told) or "batches") == "batches"
    assert seen == [{}]


def test_the_plan_shows_what_a_replica_gets():
    class Four:
        num_replicas_in_sync = 4

        class extended:
            worker_devices = tuple(f"/job:localhost/device:CPU:{i}" for i in range(4))

    assert strategy.describe(Four(), [64, 30, 64]) == "4 CPUs, mirrored: 8 of each batch of 30, 16 of each batch of 64"
    assert strategy.describe(tf.distribute.get_strategy(), [64]) == "1 CPU"


class Part:
    """A worker of several that never meets the others."""

    def __init__(self, index, count=3, meet=lambda: None):
        self.index, self.count, self.chief, self.told = index, count, index == 0, meet

    def total(self, value):
        return value


@pytest.mark.parametrize("rows", [50, 5])
def test_answers_of_all_workers_add_up_to_those_of_one(tmp_path, rows):
    store = make_store(tmp_path / "store", examples(rows))
    batches = pipeline.Batches(store, 8, BUCKETS)
    student = model(seed=7, layers=1)
    alone = predict(student, batches)
    parts = [predict(student, batches, team=Part(index)) for index in range(3)]
    np.testing.assert_array_equal(sum(parts), alone)
    busy = sum(bool(part.any()) for part in parts)
    assert busy == min(batches.steps, 3)


def test_each_worker_asks_the_teacher_about_its_part_of_the_rows(tmp_path):
    store = make_store(tmp_path / "store", examples(600))
    whole = again(tmp_path / "whole", Table(), store)
    chunks = len(list(whole.path.glob("chunk-*.bin")))

    class Met(Exception):
        pass

    def meet():
        raise Met

    for index in range(3):
        with pytest.raises(Met):
            again(tmp_path / "shared", Table(), store, team=Part(index, meet=meet))
        written = len(list((tmp_path / "shared").glob("chunk-*.bin")))
        assert written == sum(len(range(i, chunks, 3)) for i in range(index + 1))
    teacher = Table()
    again(tmp_path / "shared", teacher, store, team=Part(0))
    assert teacher.times == 0 and files(tmp_path / "shared") == files(whole.path)
    alone = Table()  # on a disk of its own a worker asks about everything
    again(tmp_path / "own", alone, store, team=Part(1))
    assert files(tmp_path / "own") == files(whole.path)


# ---------------------------------------------------------------- on loopback

FIT = """
import json, pathlib, sys
import keras, numpy as np, tensorflow as tf
from tfkd import strategy
from tfkd.multi_worker import Team, feed
kind, folder = sys.argv[1], pathlib.Path(sys.argv[2])
devices = strategy.make_strategy(kind, 2 if kind == "mirrored" else None)
team = Team(devices)
assert devices.num_replicas_in_sync == (1 if kind == "one" else 2)
assert team.told([team.index]) == [0]
assert team.total(np.arange(3) + team.index).tolist() == ([1, 3, 5] if team.count > 1 else [0, 1, 2])
from test_distiller import batch, model, sparse_loss
from tfkd.distiller import Distiller
from tfkd.objectives import Contrastive, KLDivergence, RKDDistance
with devices.scope():
    teacher, student = model(2, layers=2), model(1)
    distiller = Distiller(student, teacher, [KLDivergence(2.0), Contrastive(), RKDDistance()], alpha=0.4)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)  # Adam makes whole steps of rounding noise
    distiller.compile(optimizer, loss=sparse_loss(), weighted_metrics=["accuracy"], jit_compile=False)
if team.index:  # what the chief goes on from, all go on from
    student.set_weights([value + 1 for value in student.get_weights()])
team.spread(student.variables)
data = [batch(8, 9, seed) for seed in range(10, 14)]
# Uneven on purpose: the second half of a batch weighs little, and in the last batch nothing at all.
weights = [np.linspace(2, 0.1, 8).astype("float32")] * 3 + [np.array([1, 1, 1, 0, 0, 0, 0, 0], "float32")]
data = [(x, y, w) for (x, y), w in zip(data, weights)]
def batches(parts=1, mine=(0,)):
    size = 8 // parts
    cut = [tf.nest.map_structure(lambda values: values[i * size : (i + 1) * size], one) for one in data for i in mine]
    return tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(lambda *parts: np.stack(parts), *cut))
train = feed(devices, lambda **told: batches(**told).repeat())
history = distiller.fit(train, steps_per_epoch=4, epochs=2, verbose=0, shuffle=False,
                        validation_data=feed(devices, batches), validation_steps=4).history
(folder / f"{kind}-{team.index}.json").write_text(json.dumps(history))
np.savez(folder / f"{kind}-{team.index}.npz", *student.get_weights())
"""


def ports(count):
    """Addresses that were free a moment ago."""
    with contextlib.ExitStack() as open_:
        sockets = [open_.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [f"localhost:{one.getsockname()[1]}" for one in sockets]


def environment(**more):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", **more}


def end(processes):
    for process in processes:
        process.kill()
        process.wait()


def read(path):
    with np.load(path) as found:
        return [found[name] for name in found.files]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_machines_give_the_weights_of_two_replicas_and_of_one(tmp_path):
    addresses, running = ports(2), []
    try:
        for index in range(2):
            told = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            command = [sys.executable, "-c", FIT, "multi_worker", str(tmp_path)]
            variables = environment(TF_CONFIG=json.dumps(told))
            with open(tmp_path / f"{index}.log", "w") as log:
                running.append(subprocess.Popen(command, cwd=ROOT, env=variables, stderr=log))
        for index, process in enumerate(running):
            assert process.wait(800) == 0, (tmp_path / f"{index}.log").read_text()[-3000:]
    finally:
        end(running)
    for kind in ("mirrored", "one"):
        done = subprocess.run([sys.executable, "-c", FIT, kind, str(tmp_path)], cwd=ROOT, env=environment(), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
    ours, other, mirrored, one = (
        read(tmp_path / f"{name}.npz") for name in ("multi_worker-0", "multi_worker-1", "mirrored-0", "one-0")
    )
    for a, b, c, d in zip(ours, other, mirrored, one, strict=True):
        np.testing.assert_array_equal(b, a)
        np.testing.assert_array_equal(c, a)
        np.testing.assert_allclose(d, a, rtol=1e-4, atol=1e-5)  # in other sums
    history, alone = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("multi_worker-0", "one-0"))
    assert history.keys() == alone.keys() and {"contrastive", "rkd_distance", "val_accuracy"} <= history.keys()
    for name, values in alone.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, err_msg=name)


def write_config(folder):
    for split, rows in (("train", 480), ("test", 60)):
        write_colours(folder / f"{split}.jsonl", rows, seed=rows)
    tree = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    tree["data"] = {"files": {s: str(folder / f"{s}.jsonl") for s in ("train", "test")}, "max_length": 32, "vocabulary_size": 100}
    tree["teacher"]["dimensions"] |= {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0}
    tree["teacher"] |= {"cache": True}
    tree["student"] = {"dimensions": {"layers": 1, "width": 16, "heads": 2, "pooling": "mean", "dropout": 0.0}}
    tree["teacher"]["train"] |= {"epochs": 1, "batch_size": 32, "learning_rate": 0.01}
    tree["train"] |= {"epochs": 8, "batch_size": 32, "learning_rate": 0.01}
    tree |= {"baseline": False, "evaluate": {"bootstrap": 100}, "export": {"formats": []}, "checkpoint": {"steps": 10}}
    tree["compression"] = {"qat": {"epochs": 1, "learning_rate": 0.001}}
    path = folder / "colours.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start(path, folder, addresses, index, *more):
    command = [sys.executable, "-m", "tfkd.train", str(path), "--output", str(folder / "run"), "--set=strategy.xla=false", *more]
    command += ["--cluster", ",".join(addresses), "--worker", str(index)]
    variables = environment(TFKD_CACHE=str(folder / "cache"))
    with open(folder / f"{index}.log", "a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whoever_is_killed_and_started_again_rejoins_with_the_same_result(tmp_path):
    path, addresses = write_config(tmp_path), ports(2)
    alone = tmp_path / "alone"
    command = [sys.executable, "-m", "tfkd.train", str(path), "--output", str(alone), "--set", "strategy.logical_cpus=2"]
    done = subprocess.run(command, cwd=ROOT, env=environment(TFKD_CACHE=str(alone) + "-cache"), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]

    run = RunDir(tmp_path / "run")
    running = [start(path, tmp_path, addresses, index) for index in range(2)]
    try:
        for index, more in ((1, ()), (0, ("--resume",))):  # the chief writes the run, so that it is told to go on
            steps = steps_kept(run)
            wait_for(lambda steps=steps: steps_kept(run) - steps, running[0])
            running[index].send_signal(signal.SIGKILL)
            running[index].wait()
            running[index] = start(path, tmp_path, addresses, index, *more)
        for index, process in enumerate(running):
            assert process.wait(600) == 0, (tmp_path / f"{index}.log").read_text()[-3000:]
    finally:
        end(running)
    said, other = ((tmp_path / f"{index}.log").read_text() for index in range(2))
    assert "lost another worker" in said and said.count("going on after") == 2
    assert "lost another worker" in other
    assert "2 CPUs of 2 machines, mirrored: 16 of each batch of 32" in said
    import keras

    for name in ("student", "quantized"):
        files = (getattr(one, name) for one in (run, RunDir(alone)))
        weights = [keras.models.load_model(file, compile=False).get_weights() for file in files]
        for ours, theirs in zip(*weights, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    answers = [np.load(one.predictions)["student"] for one in (run, RunDir(alone))]
    np.testing.assert_allclose(*answers, atol=1e-5)


def steps_kept(run):
    """Names of the student's checkpoints within an epoch."""
    return {path.name for path in run.checkpoints.glob("student/step-*")}


def wait_for(there, process, seconds=300):
    until = time.monotonic() + seconds
    while not there():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)


# ---------------------------------------------------------------- docs/scaling.md


def test_the_tables_of_the_scaling_page_are_those_of_its_script():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    for arguments in ([], ["--between", "1.25", "--gpus", "8", "16", "64"]):
        command = [sys.executable, "benchmarks/scaling.py", *arguments]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        tables = [part for part in said.strip().split("\n\n") if part.startswith("|")]
        assert len(tables) == 3
        for part in tables if not arguments else tables[1:2]:
            assert part in page


def test_an_all_reduce_by_hand():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import scaling

    rates = scaling.Rates(inside=100.0, between=10.0, latency=0.5)
    assert scaling.all_reduce(1, 400.0, rates) == 0.0
    assert scaling.all_reduce(4, 400.0, rates) == pytest.approx(2 * 3 / 4 * 400 / 100 + 2 * 3 * 0.5)
    assert scaling.all_reduce(16, 400.0, rates) == pytest.approx(2 * 7 / 8 * 4 + 14 * 0.5 + 2 * 1 / 2 * 40 + 2 * 0.5)
    # BERT-base without its pooler, as Devlin et al. 2018 have it: 110 M; 22 GFLOP for 128 positions, 2 a multiply-add
    assert scaling.BASE.parameters == pytest.approx(108.9e6, rel=1e-3)
    assert scaling.BASE.forward(128) == pytest.approx(2 * 128 * 84.9e6 + 12 * 4 * 128**2 * 768, rel=1e-3)
