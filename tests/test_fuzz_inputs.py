"""Broken configurations, data files and runs: each can be used all the same, or gives one line for the person.

The same cases every time. `python benchmarks/fuzz.py` tries others; what it found is in the fast tests, each by itself.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings

import serving.__main__
from tests import fuzz_configs, fuzz_files, fuzz_runs
from tests.test_serving import make_run
from tfkd import run_dir

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = "2 tfkd.evaluate: run/tokenizer_config.json: must hold lowercase, max_length and pairs"
PIECES = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(99))])
ELSEWHERE = b'[{"format": "saved_model", "passed": true, "path": ".."}]'
FOUND = [
    ("evaluate", "labels.txt", b"\xff", "2 tfkd.evaluate: run/labels.txt: byte 0 is not UTF-8"),
    ("evaluate", "tokenizer_config.json", b"{}", SETTINGS),
    ("evaluate", "tokenizer_config.json", b"3", SETTINGS),
    ("evaluate", "vocab.txt", PIECES, "103 pieces for the 64 embeddings"),
    ("evaluate", "student.keras", b"PK\3\4", "2 tfkd.evaluate: run/student.keras: not a whole .keras file"),
    ("evaluate", "config.yaml", b"", "2 tfkd.evaluate: run/config.yaml: must hold `key: value` lines"),
    ("export", "student.keras", b"PK\3\4", "2 error: run/student.keras: cannot be read as a Keras model"),
    ("export", "examples.jsonl", None, "2 error: run/examples.jsonl: Is a directory"),
    ("export", "labels.txt", b"\xff", "2 error: run/labels.txt: byte 0 is not UTF-8"),
    (
        "serving",
        "export/manifest.json",
        b'[{"format": "saved_model", "passed": true, "path": ".."}]',
        "is not a name in its folder",
    ),
    ("serving", "export/saved_model/saved_model.pb", b"x" * 99, "not the files that passed, its SHA-256 is another"),
]

ALIKE = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize(("program", "file", "content", "message"), FOUND)
def test_a_run_that_is_broken_in_one_file_is_one_line(program, file, content, message):
    content = content.encode() if isinstance(content, str) else content
    damage = fuzz_runs.Damage(program, file, "folder" if content is None else "replace", 0.0, content)
    assert message in fuzz_runs.check(damage)


def test_a_saved_model_that_is_none_is_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    folder = run / "export" / "saved_model"
    (folder / "saved_model.pb").write_bytes(b"x" * 99)  # proven by whoever wrote the manifest
    entries = json.loads((run / "export" / "manifest.json").read_text())
    entries[1]["sha256"] = run_dir.sha256(folder)
    (run / "export" / "manifest.json").write_text(json.dumps(entries))
    assert serving.__main__.main([str(run), "--base", str(tmp_path / "base")]) == 2
    assert capsys.readouterr().err.startswith("error: saved_model.pb: not a SavedModel with one graph to serve")


TRAININGS = [
    ({"train.csv": "text,label\na,x\nb,y,z\n"}, [], "train.csv, row 2 (line 3): 3 fields, but the header has 2"),
    ({"train.jsonl": '{"text": "a", "label": 1}\n{"text": "b\n'}, [], "train.jsonl, row 2: not JSON at column 10"),
    ({"train.csv": "text,label\na,x\nb,y\n"}, ["teacher={checkpoint: nowhere, finetune: {}}"], "nowhere: no such folder"),
    ({"train.csv": "text,label\na,x\n"}, ["train.epochs=0"], "train.epochs = 0: should be greater than or equal to 1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("files", "overrides", "message"), TRAININGS)
def test_a_training_on_broken_inputs_is_one_line_and_leaves_no_run(tmp_path, files, overrides, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    source = json.dumps({"files": {"train": str(tmp_path / name), "validation": str(tmp_path / name)}})
    command = [sys.executable, "-m", "tfkd.train", "--output", str(tmp_path / "run"), "--set", f"data={source}"]
    command += [word for setting in overrides for word in ("--set", setting)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("tfkd: ") and len(done.stderr.splitlines()) == 1 and message in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@settings(max_examples=1000, **ALIKE)
@given(fuzz_configs.cases())
def test_a_broken_configuration_is_one_line(case):
    fuzz_configs.check(case)


@pytest.mark.slow
@settings(max_examples=500, **ALIKE)
@given(fuzz_files.cases())
def test_a_broken_data_file_is_one_line_and_leaves_nothing_behind(case):
    fuzz_files.check(case)


@pytest.mark.slow
@settings(max_examples=100, **ALIKE)
@given(fuzz_runs.cases())
def test_a_broken_run_is_one_line_to_every_program_that_reads_it(case):
    fuzz_runs.check(case)
