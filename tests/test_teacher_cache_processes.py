import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from keras import ops

from tfkd.data.teacher_cache import TeacherCache
from tfkd.data.teacher_cache_writer import write_cache
from tfkd.run_dir import sha256
from tfkd.teacher import CachedTeacher, LiveTeacher

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.slow

sys.path.insert(0, str(ROOT / "tests"))
from test_teacher_cache import BUCKETS, Table, again, examples, files, make_store, model, trained  # noqa: E402


class Rounded:
    """A live teacher whose answers went through float16."""

    def __init__(self, model):
        self.live = LiveTeacher(model)

    def __call__(self, inputs, names):
        return {name: ops.cast(ops.cast(tensor, "float16"), "float32") for name, tensor in self.live(inputs, names).items()}

    def shapes(self, names):
        return self.live.shapes(names)


def test_the_cache_differs_from_the_live_teacher_by_float16_alone(tmp_path):
    """As the fast test, but against a live teacher whose answers are rounded as on disk: nothing else may differ."""
    store = make_store(tmp_path / "store", examples())
    teacher = model()
    cache = write_cache(tmp_path / "cache", LiveTeacher(teacher), ("hidden.0",), store, BUCKETS, 16)
    _, rounded, _ = trained(Rounded(teacher), store)
    _, cached, _ = trained(CachedTeacher(cache.shapes(cache.names)), store, cache)
    for a, b in zip(cached, rounded, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)  # sums in another order, in batches of another size


def test_xla_writes_the_same_numbers(tmp_path):
    store = make_store(tmp_path / "store", examples(64))
    plain, compiled = (
        write_cache(tmp_path / str(xla), LiveTeacher(model()), ("attention.1",), store, BUCKETS, 16, top_k=2, jit_compile=xla)
        for xla in (False, True)
    )
    for name, values in plain.gather(np.arange(64), 16).items():
        np.testing.assert_allclose(compiled.gather(np.arange(64), 16)[name], values, rtol=2**-10, atol=1e-5, err_msg=name)


REPLICAS = """
import pathlib, sys
import keras, numpy as np
from tfkd import strategy
replicas, cached, folder = int(sys.argv[1]), sys.argv[2] == "cached", pathlib.Path(sys.argv[3])
devices = strategy.make_strategy(logical_cpus=replicas if replicas > 1 else None)
assert devices.num_replicas_in_sync == replicas
from test_teacher_cache import *
store = make_store(folder / "store", examples())
pairs = [(0, 1)]
objectives = [KLDivergence(2.0), HiddenStateMSE(pairs), AttentionScoreMSE(pairs), MiniLMv2(pairs, relation_heads=2)]
with devices.scope():
    teacher = LiveTeacher(model())
    student = model(seed=7, layers=1)  # without dropout, which two replicas draw otherwise than one
    np.savez(folder / "start.npz", *student.get_weights())
    knowledge, cache = teacher, None
    if cached:
        names = sorted({name for objective in objectives for name in objective.teacher_names})
        cache = write_cache(folder / "cache", teacher, names, store, BUCKETS, 16)
        knowledge = CachedTeacher(cache.shapes(names))
    keras.utils.set_random_seed(5)
    distiller = Distiller(student, knowledge, objectives, alpha=0.3)
    optimizer = keras.optimizers.SGD(0.02, momentum=0.9)
    distiller.compile(optimizer, loss=labels_loss(), jit_compile=False)
batches = Batches(store, 32, BUCKETS, shuffle=True, teacher=cache)  # 300 rows: the last batch is uneven
distiller.fit(batches.dataset(), verbose=0, shuffle=False)
np.savez(folder / "weights.npz", *student.get_weights())
"""


def replicated(folder, replicas, kind):
    """A student's weights before and after an epoch."""
    folder.mkdir()
    run_python(REPLICAS, str(replicas), kind, str(folder))
    for name in ("start", "weights"):
        with np.load(folder / f"{name}.npz") as found:
            yield [found[name] for name in found.files]


@pytest.mark.timeout(1800)
def test_two_replicas_learn_from_the_cache_what_they_learn_from_the_live_teacher_and_what_one_learns(tmp_path):
    start, live = replicated(tmp_path / "live", 2, "live")
    _, cached = replicated(tmp_path / "cached", 2, "cached")
    _, one = replicated(tmp_path / "one", 1, "cached")
    moved = max(np.abs(a - b).max() for a, b in zip(start, live, strict=True))
    assert moved > 0.1
    for a, b, c in zip(cached, live, one, strict=True):
        np.testing.assert_allclose(a, b, atol=moved * 2**-13)  # float16 is right to within 2^-11 of each value
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-5)


WRITE = """
import pathlib, sys, time
from test_teacher_cache import *
class Slow(Table):
    def count(self):
        time.sleep(0.03)
folder = pathlib.Path(sys.argv[1])
again(folder / "cache", Slow(), make_store(folder / f"store{sys.argv[2]}", examples(2000)))
"""


@pytest.mark.timeout(1800)
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path):
    store = make_store(tmp_path / "store", examples(2000))
    expected = again(tmp_path / "expected", Table(), store)
    path, random, counts = tmp_path / "cache", np.random.default_rng(0), [0]
    for attempt in range(3):
        command = [sys.executable, "-c", WRITE, str(tmp_path), str(attempt)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment())
        wanted = counts[-1] + int(random.integers(1, 8))
        while chunks_in(path) < wanted:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        counts.append(chunks_in(path))
        assert counts[-2] < counts[-1] < len(expected.files) and not (path / "manifest.json").exists()
        for file in path.glob("chunk-*.bin"):  # whole, or under a name that nobody takes for whole
            assert ".partial" in file.name or sha256(file) in file.name
    teacher = Table()
    again(path, teacher, store)
    assert files(path) == files(expected.path)
    assert teacher.times == 2000 // 16 - 4 * counts[-1]
    TeacherCache(path)


def chunks_in(path):
    return sum(".partial" not in file.name for file in path.glob("chunk-*.bin"))


def run_python(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
