"""One process in a folder, signals, and what stops a run without anybody's mistake. No TensorFlow."""

import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tfkd import config, failures, lock, run_dir, stopping, train
from tfkd.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
HOLDER = """
import sys, time
from tfkd import lock
with lock.only_one(sys.argv[1], "runs/x"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_with_the_first_ones_number_and_machine(holder, tmp_path):
    refused = pytest.raises(UserError, match=rf"^runs/x is in use by process {holder.pid} on .+; wait for it")
    with refused as caught, lock.only_one(tmp_path / "lock", "runs/x"):
        pass
    assert "\n" not in str(caught.value)
    assert lock.held() == ()


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == holder.pid  # it could not tidy up
    with lock.only_one(tmp_path / "lock", "runs/x"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_a_child_that_is_handed_the_lock_holds_it_on(tmp_path):
    path = tmp_path / "lock"
    with lock.only_one(path, "runs/x"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=lock.held())
        os.link(path, tmp_path / "kept")  # as if this process had been killed, and not tidied up
    os.rename(tmp_path / "kept", path)
    try:
        with pytest.raises(UserError, match="in use by"), lock.only_one(path, "runs/x"):
            pass
    finally:
        child.kill()
        child.wait()
    with lock.only_one(path, "runs/x"):
        pass


def test_the_program_leaves_a_run_alone_that_another_process_works_in(holder, tmp_path, capsys):
    small = {"dimensions": {}}
    loaded = config.parse({"data": {"builtin": "docstrings"}, "teacher": small | {"train": {}}, "student": small})
    for name in ("config.yaml", "mine.yaml"):
        (tmp_path / name).write_text(config.dump(loaded))
    before = sorted(os.listdir(tmp_path))
    assert train.main([str(tmp_path / "mine.yaml"), "--output", str(tmp_path), "--resume"]) == 2
    out, err = capsys.readouterr()
    assert f"is in use by process {holder.pid} on " in err and len(err.strip().splitlines()) == 1 and not out
    assert sorted(os.listdir(tmp_path)) == before


def test_an_output_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train.main([str(ROOT / "configs" / "quickstart.yaml"), "--output", str(tmp_path / "file" / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "file/run: cannot be made: Not a directory; choose another folder with --output" in line


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written to: "), lock.only_one(tmp_path / "file" / "lock", "runs/x"):
        pass


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with run_dir.whole(tmp_path / "model.keras") as beside:
        beside.write_text("one")
        mine = beside.name
    dead = tmp_path / mine.replace(f"-{os.getpid()}.", f"-{process.pid}.")
    living = tmp_path / mine.replace(f"-{os.getpid()}.", f"-{os.getppid()}.")
    elsewhere = tmp_path / f"model.partial-00000000-{process.pid}.keras"  # another machine's
    for path in (dead, living, elsewhere):
        path.write_text("half")
    with run_dir.whole(tmp_path / "model.keras") as beside:
        beside.write_text("two")
    assert sorted(os.listdir(tmp_path)) == sorted(["model.keras", living.name, elsewhere.name])
    os.utime(elsewhere, (0, 0))  # long ago: nobody comes back to it
    with run_dir.whole(tmp_path / "model.keras") as beside:
        beside.write_text("three")
    assert not elsewhere.exists() and (tmp_path / "model.keras").read_text() == "three"


def test_a_folder_is_there_again_where_its_replacement_fails(tmp_path, monkeypatch):
    with run_dir.whole(tmp_path / "saved") as folder:
        folder.mkdir()
        (folder / "old").write_text("")

    def full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_dir.os, "replace", full)
    with pytest.raises(OSError, match="No space left"), run_dir.whole(tmp_path / "saved") as folder:
        folder.mkdir()
        (folder / "new").write_text("")
    assert os.listdir(tmp_path) == ["saved"] and os.listdir(tmp_path / "saved") == ["old"]


@pytest.fixture
def signals():
    said = []
    stopping.install(said.append)
    yield said
    stopping.restore()
    stopping._State.requested = None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_at_once_where_there_is_no_step_to_finish(signals, number, code):
    with pytest.raises(stopping.Stopped) as caught:
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert caught.value.code == code and not caught.value.saved
    assert signals == []


def test_a_signal_waits_for_the_step_and_a_second_one_does_not(signals):
    with pytest.raises(stopping.Stopped), stopping.finishing_steps():
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.requested() == signal.SIGINT
        assert len(signals) == 1 and "Ctrl-C again" in signals[0]
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        raise AssertionError


def test_a_signal_after_the_last_step_is_not_lost(signals):
    with pytest.raises(stopping.Stopped) as caught, stopping.finishing_steps():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143 and caught.value.saved


class ResourceExhaustedError(Exception):
    """Named as TensorFlow's."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x/a"), "runs/x/a: no space left on the disk; make room"),
        (RuntimeError("Can't write data (No space left on device)"), "no space left on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x/a"), "runs/x/a: no permission"),
        (OSError(errno.EROFS, "Read-only file system", "runs/x/a"), "runs/x/a: the disk cannot be written to"),
        (ResourceExhaustedError("OOM when allocating tensor"), r"out of memory; lower train.batch_size \(32\), teacher.train"),
        (MemoryError(), "or use strategy.precision: mixed_bfloat16 and teacher.cache: true"),
        (ValueError("else"), None),
    ],
)
def test_what_stopped_a_run_is_said_with_what_to_do(error, line):
    small = {"dimensions": {}}
    tree = {"data": {"builtin": "docstrings"}, "teacher": small | {"train": {}}, "student": small}
    found = failures.explain(error, config.parse(tree))
    if line is None:
        assert found is None
    else:
        assert re.search(line, found) and "\n" not in found


def test_memory_that_several_teachers_take_is_told_of_each():
    trained = {"dimensions": {"layers": 1, "width": 8, "heads": 2}, "train": {"batch_size": 48}}
    tree = {"data": {"builtin": "docstrings"}, "teacher": {"members": [trained, {"checkpoint": "x"}]}}
    tree |= {"student": {"dimensions": {"layers": 1, "width": 8, "heads": 2}}}
    found = failures.explain(ResourceExhaustedError("OOM when allocating tensor"), config.parse(tree))
    assert "teacher.members.0.train.batch_size (48), data.max_length" in found
