"""A disk without room: one line from every program, nothing half-written, and what was there before stands."""

import contextlib
import errno
import logging
import os
import pathlib

import numpy as np
import pytest

import export.__main__
from tests.test_report import make_run
from tests.tiny_run import PIECES, build_run
from tfkd import report, run_log, train, training_state
from tfkd.data import prepare, sources
from tfkd.data.targets import Class
from tfkd.data.tokenizer import Tokenizer
from tfkd.run_dir import RunDir

ROOT = pathlib.Path(__file__).parent.parent


def fill_up(monkeypatch, after: int = 0):
    """Lets so many files and folders reach the disk, and no other."""
    real, done = os.fsync, []

    def fsync(descriptor):
        done.append(descriptor)
        if len(done) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def everything(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_training_without_room_to_begin_is_one_line_and_can_be_begun_again(tmp_path, capsys, monkeypatch):
    fill_up(monkeypatch)
    path = tmp_path / "run"
    assert train.main([str(ROOT / "configs" / "quickstart.yaml"), "--output", str(path)]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("tfkd: no space left on the disk; make room, and begin again") and not out
    assert everything(path) == ["log.txt"]
    assert train.choose_run(None, str(path), resume=False).path == path


def test_a_log_without_room_says_nothing_of_it(tmp_path, capsys):
    run, root = RunDir(tmp_path), logging.getLogger()
    run.log.symlink_to("/dev/full")
    before = list(root.handlers)
    try:
        run_log.open_log(run).info("a line")
        try:
            raise ValueError
        except ValueError:
            assert run_log.log_traceback(run) == ""
    finally:
        logging.captureWarnings(False)
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()
    assert capsys.readouterr() == ("", "")


def test_rows_without_room_are_not_kept_by_halves(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"{one} {two},{one in 'abc'}\n" for one in "abcdef" for two in "abcdef")
    )
    files = {"train": str(tmp_path / "train.csv")}
    source = sources.open_source(files=files, target=Class(), validation_fraction=0.3)
    fill_up(monkeypatch, after=3)
    with pytest.raises(OSError, match="No space left"):
        prepare.prepare(source, Tokenizer(PIECES), 8, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size]
    monkeypatch.undo()
    stores = prepare.prepare(source, Tokenizer(PIECES), 8, tmp_path / "cache")
    assert sum(map(len, stores.values())) == 36


def test_a_checkpoint_without_room_leaves_the_one_before(tmp_path, monkeypatch):
    arrays = {kind: [np.arange(6, dtype="float32")] for kind in ("model", "optimizer", "averages")}
    training_state.save(tmp_path, 1, {"step": 1}, arrays)
    before = everything(tmp_path)
    for after in range(4):
        fill_up(monkeypatch, after)
        with pytest.raises(OSError, match="No space left"):
            training_state.save(tmp_path, 2, {"step": 2}, arrays)
        monkeypatch.undo()
        assert everything(tmp_path) == before
    about, found, damaged = training_state.load(tmp_path)
    assert about["step"] == 1 and not damaged
    np.testing.assert_array_equal(found["model"][0], arrays["model"][0])


@pytest.mark.parametrize("after", [0, 2])
def test_an_export_without_room_is_one_line_and_leaves_no_file(tmp_path, capsys, monkeypatch, after):
    run = build_run(tmp_path / "run")
    fill_up(monkeypatch, after)
    assert export.__main__.main([str(run), "--format", "onnx:float32"]) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    assert not {"student.float32.onnx", "manifest.json"} & set(everything(run.exports))
    assert not [name for name in everything(run.path) if "partial" in name]


def test_a_page_without_room_leaves_the_one_before(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "run")
    run.report_html.write_text("the page before")
    fill_up(monkeypatch)
    assert report.main([str(run)]) == 2
    assert capsys.readouterr().err == "tfkd.report: [Errno 28] No space left on device\n"
    assert run.report_html.read_text() == "the page before" and "partial" not in " ".join(everything(run.path))
