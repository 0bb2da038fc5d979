"""`benchmarks/ablation.py`, `proof.py`, `training.py`: what is trained and timed, and how results become rows."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from tfkd import config
from tfkd.run_dir import RunDir

ROOT = pathlib.Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data" / "tfds"


def program(name: str):
    """A program of `benchmarks/` as a module."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoints(monkeypatch, tmp_path):
    for name in ("MINILM", "WNUT17", "SQUAD"):
        monkeypatch.setenv(name, str(tmp_path))


def loads(command: list[str]):
    """The configuration of a command that a benchmark prints, which must be one that the program accepts."""
    assert command[:3] == ["python", "-m", "tfkd.train"]
    assert set(command[4::2]) == {"--set"}
    return config.load(ROOT / command[3], command[5::2])


def test_the_ablation_has_every_objective_that_fits_one_label_a_text(checkpoints):
    ablation = program("ablation")
    alone = {names[0] for names in ablation.LEARNS_FROM.values() if len(names) == 1}
    assert alone == set(config.OBJECTIVE_OPTIONS) - {"binary_kl"}  # which is for several labels a text


def test_every_run_of_the_ablation_is_a_valid_configuration(checkpoints):
    ablation = program("ablation")
    baselines = []
    for name, start in ablation.rows():
        settings = loads(ablation.command(name, start, seed=2))
        assert tuple(one.name for one in settings.distill.objectives) == ablation.LEARNS_FROM[name]
        assert settings.seed == 2 and (settings.student.layers is None) == (start == "random")
        baselines += [start] * settings.baseline
    assert sorted(baselines) == ["random", "teacher layers"]


def test_the_ablation_subtracts_the_labels_alone_from_the_same_start():
    ablation = program("ablation")
    place = {"metric": "accuracy", "examples": 100, "interval": [0.1, 0.9]}
    rows = [
        {"learns_from": name, "start": start, "seed": seed, "value": value, **place}
        for name, start, seed, value in [
            (ablation.LABELS, "teacher layers", 0, 0.80),
            (ablation.LABELS, "random", 0, 0.50),
            ("logits_mse", "teacher layers", 0, 0.84),
            ("logits_mse", "teacher layers", 1, 0.82),
            ("logits_mse", "random", 0, 0.45),
        ]
    ]
    assert ablation.table(rows).splitlines()[2:] == [
        "| logits mse | teacher layers | 83.00 (10.0 to 90.0) | +3.00 | 2 |",
        "| labels alone | teacher layers | 80.00 (10.0 to 90.0) |  | 1 |",
        "| labels alone | random | 50.00 (10.0 to 90.0) |  | 1 |",
        "| logits mse | random | 45.00 (10.0 to 90.0) | -5.00 | 1 |",
    ]
    assert ablation.table([]) == "No run is recorded yet."


def test_every_run_of_the_proof_is_a_valid_configuration(checkpoints):
    proof = program("proof")
    for data in proof.DATA:
        for student in proof.STUDENTS:
            for recipe in proof.RECIPES:
                settings = loads(proof.command(data, student, recipe, seed=1))
                assert settings.seed == 1 and settings.baseline == (recipe == "response")


def test_the_proof_keeps_the_better_recipe_of_each_student():
    proof = program("proof")

    def run(recipe: str, seed: int, student: float, **others: float) -> dict:
        values = {**others, "student": student}.items()
        models = {
            role: {"value": value, "parameters": 2_000_000, "interval": [value - 0.02, value + 0.02 * seed + 0.02]}
            for role, value in values
        }
        place = {"data": "stsb", "student": "half", "metric": "spearman", "examples": 1500}
        return {**place, "recipe": recipe, "seed": seed, "models": models, "minutes": 7.4 + 10 * seed}

    runs = [
        run("response", 0, 0.70, teacher=0.80, baseline=0.60),
        run("response", 1, 0.74, teacher=0.82, baseline=0.64),
        run("best", 0, 0.78, teacher=0.80),
    ]
    (row,) = proof.table(runs).splitlines()[2:]
    response, recipe = "72.00 ± 2.5 (70.00, 74.00)", "78.00 ± 2.0"  # halves of 4 and 6 points
    teacher = "81.00 ± 2.5 (80.00, 82.00)"  # that of seed 0 counts once, although it taught twice
    cells = [teacher, "62.00 ± 2.5 (60.00, 64.00)", response, recipe, "96.3 %", "7 + 7"]
    assert row == f"| `stsb` | spearman, 1,500 | half | 2.0 M | {' | '.join(cells)} |"
    assert proof.table([]) == "No run is recorded yet."


def test_every_figure_of_a_run_is_kept_and_what_was_changed_for_it(tmp_path):
    figures = {"f1": 0.5, "exact_match": 0.25, "by_length": {"short": 0.5}}
    model = {"role": "teacher", "parameters": 7, "interval": [0.4, 0.6], "metrics": figures, "bytes": 3}
    report = {"metric": "f1", "examples": 9, "models": [model], "seconds": {"data": 30, "teacher": 60}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    place = {"data": "squad", "student": "half", "recipe": "best", "seed": 1, "set": ["strategy.precision=mixed_bfloat16"]}
    kept = {"parameters": 7, "interval": [0.4, 0.6], "value": 0.5, "metrics": {"f1": 0.5, "exact_match": 0.25}}
    wanted = place | {"metric": "f1", "examples": 9, "models": {"teacher": kept}, "minutes": 1.5}
    assert program("proof").entry(RunDir(tmp_path), **place) == wanted


def test_of_a_run_stays_what_is_kept_of_it_and_one_that_was_stopped_goes_on(monkeypatch, tmp_path):
    proof, seen = program("proof"), []
    monkeypatch.setattr(proof, "RUNS", tmp_path)

    def keep(run):
        seen.append(run.path)
        return json.loads(run.report_json.read_text())

    half_done = """
import sys, pathlib
run = pathlib.Path(sys.argv[2])
if "--resume" not in sys.argv:
    run.mkdir()
    (run / "config.yaml").write_text("")
    raise SystemExit(143)
(run / "report.json").write_text("[1, 2]")
"""
    with pytest.raises(SystemExit, match="143"):
        proof.trained(["python", "-c", half_done], keep)
    assert not seen and len(list(tmp_path.iterdir())) == 1
    assert proof.trained(["python", "-c", half_done], keep) == [1, 2]
    assert len(seen) == 1 and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="1"):  # nothing is recorded of a run that failed
        proof.trained(["python", "-c", "raise SystemExit(1)"], keep)
    assert len(seen) == 1


# -------------------------------------------------------------------- what is timed


def test_every_objective_is_timed_beside_the_response_and_shown(monkeypatch, tmp_path, capsys):
    objectives = program("objectives")
    for name, value in {"LAYERS": (2, 1), "WIDTH": 8, "HEADS": 2, "VOCABULARY": 1010}.items():
        monkeypatch.setattr(objectives, name, value)
    asked = ["--objectives", "hidden_state_mse", "rkd_angle", "--batch", "3", "--length", "5", "--rounds", "1", "--no-xla"]
    monkeypatch.setattr(sys, "argv", ["objectives.py", *asked, "--json", str(tmp_path / "told.json")])
    objectives.main()
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["batch"], told["length"], told["xla"], told["rounds"]) == (3, 5, False, 1)
    rows = {row["objective"]: row for row in told["objectives"]}
    assert list(rows) == ["kl_divergence", "hidden_state_mse", "rkd_angle"] and rows["kl_divergence"]["ratio"] == 1.0
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["milliseconds"] / rows["kl_divergence"]["milliseconds"], rel=0.1)
    assert all(name in capsys.readouterr().out for name in ("batch 3, length 5, XLA off",))


def test_the_page_shows_the_cost_of_every_objective():
    objectives = program("objectives")
    told = json.loads(objectives.RESULTS.read_text())
    assert {row["objective"] for row in told["objectives"]} == set(config.OBJECTIVE_OPTIONS)
    row = {"objective": "pkd", "milliseconds": 1234.4, "ratio": 1.173, "processor": 225.0, "processor_ratio": 1.2}
    few = {"batch": 8, "length": 4, "xla": False, "rounds": 2, "load": 1.25, "objectives": [row]}
    first, _, *_, last = objectives.table(few).splitlines()
    assert first == "Batch 8, length 4, XLA off, 2 rounds, load 1.2:" and last == "| `pkd` | 1,234 | 1.17 | 225 | 1.20 |"


def timed(tmp_path, *arguments) -> dict:
    """What `benchmarks/training.py` writes of two steps of the tiny models."""
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), "--shapes", "tiny", "--rounds", "1", "--steps", "2"]
    done = subprocess.run([*command, "--json", tmp_path / "told", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "told").read_text())


@pytest.mark.slow
def test_a_step_of_ours_is_timed_beside_keras(tmp_path):
    items = ["student", "teacher", "live", "cached", "inner", "keras"]
    told = timed(tmp_path, "--items", *items, "--batch", "2", "--length", "8", "--no-xla")
    assert list(told["items"]) == items and told["lengths"] == [8] and told["padding"] == 0.0
    assert all(entry["milliseconds"] > 0 and entry["peak_megabytes"] > 100 for entry in told["items"].values())
    teacher, student, live = (told["items"][name]["milliseconds"] for name in ("teacher", "student", "live"))
    assert told["ratios"]["live / (teacher + student)"]["ratio"] == pytest.approx(live / (teacher + student), rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "glue" / "sst2").is_dir(), reason="../shared/data is not there")
def test_the_input_pipeline_of_a_real_data_set_is_timed_too(tmp_path):
    told = timed(tmp_path, "--items", "student", "packed-live", "--batch", "32", "--no-xla", "--sst2", str(SHARED))
    assert 0.0 < told["pipeline"]["padding"] < 0.3 and len(told["pipeline"]["shapes"]) <= 8
    assert 0.0 < told["packed_pipeline"]["padding"] <= 0.08 and len(told["packed_pipeline"]["shapes"]) <= 8
    assert told["packed_pipeline"]["batches_per_second"] > 10 and told["items"]["packed-live"]["milliseconds"] > 0
    assert told["pipeline"]["batches_per_second"] > 10 and told["items"]["student"]["milliseconds"] > 0
