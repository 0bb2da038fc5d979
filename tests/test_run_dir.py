import os

import pytest

from tfkd import run_dir
from tfkd.errors import UserError


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "model.keras"
    run_dir.write_text(path, "old")
    with pytest.raises(RuntimeError), run_dir.whole(path) as beside:
        assert beside.suffix == ".keras"  # writers choose their format by it
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["model.keras"]


def test_a_folder_replaces_an_older_one_whole(tmp_path):
    path = tmp_path / "saved"
    for content in ("one", "two"):
        with run_dir.whole(path) as folder:
            folder.mkdir()
            (folder / content).write_text(content)
    assert os.listdir(path) == ["two"]
    assert os.listdir(tmp_path) == ["saved"]


def test_leftovers_of_a_killed_writer_are_not_in_the_way(tmp_path):
    path = tmp_path / "saved"
    with run_dir.whole(path) as folder:
        killed = folder
        folder.mkdir()
    killed.mkdir()
    (killed / "rubbish").write_text("")
    with run_dir.whole(path) as folder:
        folder.mkdir()
        (folder / "good").write_text("")
    assert os.listdir(path) == ["good"]


def test_json_refuses_what_json_does_not_have(tmp_path):
    with pytest.raises(ValueError):
        run_dir.write_json(tmp_path / "report.json", {"accuracy": float("nan")})
    assert os.listdir(tmp_path) == []


def test_broken_json_is_one_line_with_the_file(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"report\.json: not a JSON file"):
        run_dir.read_json(path)


def test_sha256_of_a_folder_depends_on_names_and_contents(tmp_path):
    def digest(name, content):
        folder = tmp_path / f"{name}{content}"
        folder.mkdir()
        (folder / name).write_text(content)
        return run_dir.sha256(folder)

    assert len({digest("a", "1"), digest("a", "2"), digest("b", "1")}) == 3


def test_an_unfinished_run_is_refused_by_name(tmp_path):
    run = run_dir.RunDir(tmp_path)
    with pytest.raises(UserError, match="student.keras is missing"):
        run.require(run.student)
    with pytest.raises(UserError, match="no such run directory"):
        run_dir.RunDir(tmp_path / "nowhere").require()
