"""`python -m export.benchmark`: what is timed, how rounds become one number, and what comes out."""

import io
import json
import pathlib
import shutil
import types

import numpy as np
import pytest

from export import benchmark, benchmark_plot, benchmark_process, manifest
from export.__main__ import main as export
from export.screen import Screen
from tests.tiny_run import build_run
from tfkd.run_dir import RunDir, sha256, write_json


def test_median_is_taken_number_by_number():
    rounds = [{"a": {"p50": 1.0}, "b": 9}, {"a": {"p50": 5.0}, "b": 7}, {"a": {"p50": 2.0}, "b": 8}]
    assert benchmark.median(rounds) == {"a": {"p50": 2.0}, "b": 8}


@pytest.mark.parametrize(("count", "sizes"), ((500, [32] * 8), (70, [32, 32]), (31, [31]), (1, [1])))
def test_groups_are_of_32_texts_or_of_all_there_are(count, sizes):
    cuts = benchmark.groups(types.SimpleNamespace(count=count))
    assert [len(range(count)[cut]) for cut in cuts] == sizes


class Asked:
    """Questions of 40 examples of 3 pieces, 6 where they are padded."""

    examples, count, max_length, timed = 40, 40, 6, range(40)

    def features(self, length):
        return {name: np.ones((45, length), "int32") for name in ("token_ids", "padding_mask")}

    def singles(self, length):
        return [self.cut(slice(row, row + 1), length) for row in self.timed]

    def cut(self, rows, length):
        return {name: values[rows, :3] for name, values in self.features(length).items()}


@pytest.mark.parametrize(
    ("format", "length", "width", "names"),
    (
        ("onnx", None, 3, {"token_ids", "padding_mask"}),
        ("tflite", 6, 6, {"token_ids", "padding_mask"}),
        ("mediapipe", 6, 6, {"token_ids", "padding_mask", "segment_ids"}),
    ),
)
def test_requests_have_the_width_that_the_format_reads(format, length, width, names):
    singles, batches = benchmark.requests({"format": format, "length": length}, Asked())
    assert [set(request) for request in (*singles, *batches)] == [names] * 41
    assert {request["token_ids"].shape for request in singles} == {(1, width)}
    assert [request["token_ids"].shape for request in batches] == [(32, width)]


ENTRY = {
    "passed": True,
    "bytes": 10,
    "sha256": "0",
    "metrics": {"accuracy": 0.5},
    "latency_request": "token ids",
    "signatures": None,
}


def test_what_is_timed_are_the_signatures_of_files_that_passed_and_the_teacher(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    told = [{"signature": f"length_{length}", "length": length, "metrics": {"accuracy": 0.4}} for length in (6, 12)]
    entries = [
        {**ENTRY, "format": "saved_model", "variant": "float32", "path": "saved_model"},
        {**ENTRY, "format": "tflite", "variant": "float32", "path": "student.float32.tflite", "signatures": told},
        {**ENTRY, "format": "onnx", "variant": "int8", "path": None, "passed": False},
        {**ENTRY, "format": "huggingface", "variant": "float32", "path": "huggingface"},
    ]
    write_json(run.manifest, entries)
    assert [(row["format"], row["signature"], row["length"]) for row in benchmark.subjects(run, None)] == [
        ("saved_model", "from_token_ids", None),
        ("tflite", "length_6", 6),
        ("tflite", "length_12", 12),
    ]
    run.teacher.mkdir()
    (run.teacher / "model.keras").write_bytes(b"12345")
    np.savez(run.predictions, labels=np.zeros(3))
    *_, teacher = benchmark.subjects(run, types.SimpleNamespace())
    assert (teacher["variant"], teacher["bytes"], teacher["metrics"]) == ("teacher", 5, None)


def test_artifact_is_asked_once_a_request_after_warming_up(monkeypatch):
    calls = []
    monkeypatch.setitem(benchmark_process.RUNNERS, "fake", lambda path, threads, signature: calls.append)
    singles = [{"token_ids": np.zeros((1, 4))}] * 7
    batches = [{"token_ids": np.zeros((32, 4))}] * 2
    told = benchmark_process.time_artifact("fake", "path", None, 1, singles, batches)
    rows = [len(batch["token_ids"]) for batch in calls]
    assert rows == [1] * (5 + 7) + [32] * (2 + 2)
    assert 0 < told["batch_1"]["p50"] <= told["batch_1"]["p95"]
    assert told["texts_per_second"] > 0
    assert 0 < told["runtime_bytes"] <= told["peak_bytes"]


def test_peak_memory_grows_with_what_is_held():
    before = benchmark_process._peak()
    held = np.ones(40_000_000, "uint8")
    assert held.sum() == 40_000_000
    assert benchmark_process._peak() >= before
    assert benchmark_process._peak() > 40_000_000


def result(**changes) -> dict:
    """What `benchmark.json` holds, by hand."""
    timed = {"batch_1": {"p50": 0.5, "p95": 1.25}, "batch_32": {"p50": 16.0, "p95": 20.0}, "texts_per_second": 2000.0}
    timed |= {"peak_bytes": 43_000_000, "runtime_bytes": 20_000_000}
    row = {"format": "tflite", "variant": "float32", "bytes": 4_400_000, "metrics": {"accuracy": 0.885}, "signature": "length_6"}
    row |= {"length": 6, "note": "", "reason": None, "threads": {"1": timed, "2": timed}}
    teacher = {**row, "format": "keras", "variant": "teacher", "length": None, "metrics": {"accuracy": 0.91}}
    failed = {**row, "variant": "int8", "threads": {}, "reason": "it broke"}
    rows = [row, {**row, "length": 12}, failed, teacher]
    return {"metric": "accuracy", "examples": 500, "rounds": 3, "threads": [1, 2], "machine": "any", "rows": rows, **changes}


def test_picture_is_drawn_in_both_forms_with_the_teacher_in_it(tmp_path):
    benchmark_plot.draw(result(), tmp_path / "picture")
    drawn = (tmp_path / "picture.svg").read_text()
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    for words in (">teacher<", ">tflite float32, 6<", ">tflite float32, 12<", ">MB on disk<"):
        assert words in drawn
    assert "int8" not in drawn  # it could not be timed


def test_picture_without_a_row_is_drawn_too(tmp_path):
    benchmark_plot.draw(result(rows=[]), tmp_path / "picture")
    assert (tmp_path / "picture.svg").stat().st_size > 1000


def test_only_the_longest_signature_of_a_file_is_drawn_full():
    rows = result()["rows"][:2]
    assert [benchmark_plot.shorter(row, rows) for row in rows] == [True, False]


def test_table_says_every_number_and_what_failed(tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    with Screen(tmp_path / "log.txt") as screen:
        screen.benchmark(result())
    said = stream.getvalue()
    for words in ("tflite float32 12", "4.4 MB", "88.5%", "0.50/1.25", "16.00/20.00", "2,000", "43.0 MB", "threads"):
        assert words in said
    assert [line.split()[-6] for line in said.splitlines() if "0.50/1.25" in line] == ["1", "2"] * 3  # numbers of threads
    assert "tflite int8: FAILED: it broke" in said
    assert max(map(len, said.splitlines())) <= 120


def test_benchmark_of_an_older_student_does_not_stay(tmp_path):
    run = build_run(tmp_path / "run")
    for student, stays in ((sha256(run.student), True), ("another", False), (None, False)):
        write_json(run.exports / "benchmark.json", {"student_sha256": student})
        for name in ("benchmark.svg", "benchmark.png"):
            (run.exports / name).write_bytes(b"picture")
        manifest.Manifest(run, {})
        assert [(run.exports / name).exists() for name in manifest.DERIVED["benchmark.json"]] == [stays] * 3


def test_mistakes_are_one_line_and_2(tmp_path, capsys):
    run = build_run(tmp_path / "run")
    for arguments, words in (
        ([str(tmp_path / "none")], "no such run directory"),
        ([str(run)], "manifest.json is missing"),
        ([str(run), "--rounds", "0"], "--rounds 0: must be at least 1"),
    ):
        assert benchmark.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_page_of_the_run_is_written_anew_or_why_not_is_said(tmp_path, monkeypatch):
    asked, done = [], types.SimpleNamespace(returncode=0, stderr="")
    monkeypatch.setattr(benchmark.subprocess, "run", lambda command, **_: asked.append(command) or done)
    assert benchmark.report(RunDir(tmp_path)) is None
    assert asked[0][1:] == ["-m", "tfkd.report", str(tmp_path)]
    done.returncode, done.stderr = 2, "a warning\ntfkd.report: predictions.npz is missing\n"
    assert benchmark.report(RunDir(tmp_path)) == "tfkd.report: predictions.npz is missing"


@pytest.mark.slow
def test_benchmark_of_an_exported_run(tmp_path, capsys):
    run = build_run(tmp_path / "run")
    assert export([str(run), "--format", "tflite:float32", "onnx:float32"]) == 0
    run.teacher.mkdir()
    shutil.copy(run.student, run.teacher / "model.keras")
    assert benchmark.main([str(run), "--rounds", "2"]) == 0
    told = json.loads((run.exports / "benchmark.json").read_text())
    assert [row["format"] for row in told["rows"]] == ["tflite", "onnx", "keras"]
    for row in told["rows"]:
        for timed in row["threads"].values():
            assert 0 < timed["batch_1"]["p50"] <= timed["batch_1"]["p95"]
            assert timed["runtime_bytes"] <= timed["peak_bytes"] < 3e9
    memory = {row["format"]: row["threads"]["1"]["peak_bytes"] for row in told["rows"]}
    assert memory["tflite"] < memory["keras"] / 2  # nothing of TensorFlow is loaded beside LiteRT
    assert {"benchmark.svg", "benchmark.png"} <= {path.name for path in run.exports.iterdir()}
    pathlib.Path(run.exports, "student.float32.onnx").write_bytes(b"broken since")
    assert benchmark.main([str(run), "--rounds", "1"]) == 1
    assert "onnx float32: FAILED" in capsys.readouterr().out
