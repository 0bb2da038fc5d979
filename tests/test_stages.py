"""Runs with several stages, objectives beyond the response, and a teacher that is asked once."""

import collections
import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
import yaml

from tests.whole_run import go
from tfkd import build, compression, config, fitting, open_teacher
from tfkd.choose_run import check_data
from tfkd.errors import UserError
from tfkd.objectives import OBJECTIVES
from tfkd.run_dir import RunDir

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """Labelled lines, plain text, and a configuration with a stage on each."""
    folder, random = tmp_path_factory.mktemp("staged"), np.random.default_rng(0)
    words = ["apple", "grass", "sky", "brick", "leaf", "sea", "this", "that", "very", "quite", "old", "new"]

    def line():
        return " ".join(random.choice(words, random.integers(3, 9)))

    for name, rows in (("train", 192), ("test", 64)):
        with open(folder / f"{name}.jsonl", "w") as file:
            for _ in range(rows):
                text = line()
                file.write(json.dumps({"text": text, "label": "yes" if "apple" in text else "no"}) + "\n")
    (folder / "plain.jsonl").write_text("".join(json.dumps({"text": line()}) + "\n" for _ in range(128)))
    labelled = {"files": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}}
    tree = {
        "data": labelled | {"max_length": 16, "vocabulary_size": 80},
        "teacher": {
            "dimensions": {"layers": 4, "width": 24, "heads": 2, "dropout": 0.0},
            "train": {"epochs": 1, "batch_size": 32, "learning_rate": 0.003},
        },
        "student": {"dimensions": {"layers": 2, "width": 16, "heads": 2}},
        "baseline": False,
        "stages": [
            {
                "name": "general",
                "data": {"files": {"train": str(folder / "plain.jsonl")}, "columns": {"label": None}, "max_length": 16},
                "distill": {
                    "alpha": 0.0,
                    "objectives": [
                        {"name": "hidden_state_mse", "layers": "uniform"},
                        {"name": "attention_score_mse", "weight": {"start": 0.5, "end": 1, "shape": "cosine", "by": "epoch"}},
                    ],
                },
                "train": {"epochs": 2, "batch_size": 32, "learning_rate": 0.003},
            },
            {
                "name": "prediction",
                "distill": {
                    "alpha": {"start": 0.0, "end": 0.5},
                    "temperature": {"start": 4.0, "end": 2.0, "by": "epoch"},
                    "objectives": ["kl_divergence", {"name": "minilm_v2"}, {"name": "hidden_state_mse", "layers": "uniform"}],
                },
                "train": {"epochs": 1, "batch_size": 32, "learning_rate": 0.003},
            },
        ],
        "evaluate": {"bootstrap": 100},
        "export": {"formats": []},
    }
    path = folder / "staged.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


Projection = collections.namedtuple("Projection", ["start", "end"])
"""That of the hidden states, before and after a stage."""


@pytest.fixture(scope="module")
def finished(staged, tmp_path_factory):
    real, seen = fitting.fit, []

    def fit(role, *arguments, objectives=(), **named):
        learned = [objective.project.kernel for objective in objectives if objective.name == "hidden_state_mse"]
        start = [kernel.numpy() for kernel in learned]
        real(role, *arguments, objectives=objectives, **named)
        seen.extend(Projection(*pair) for pair in zip(start, [kernel.numpy() for kernel in learned], strict=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "fit", fit)
        return *go(staged, tmp_path_factory.mktemp("run") / "whole"), seen


def test_the_plan_names_stages_layer_pairs_and_schedules(finished):
    _, said, _ = finished
    plan = " ".join(said[: said.index("Teacher:")].split())
    assert "general" in plan and "prediction" in plan
    assert "hidden state mse of layers 0 < 1, 1 < 3 + (0.5 to 1, cosine by epoch) x attention score mse" in plan
    assert "(0 to 0.5, linear by step) x labels" in plan
    assert "kl divergence at temperature (4 to 2, linear by epoch: 4 in the only one)" in plan


def test_epochs_count_on_through_the_stages_and_each_logs_its_own_terms(finished):
    run, *_ = finished
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    student = [line for line in lines if line["role"] == "student"]
    assert [(line["stage"], line["epoch"]) for line in student] == [("general", 1), ("general", 2), ("prediction", 3)]
    assert {"hidden_state_mse", "attention_score_mse"} <= student[0].keys() and "alpha" not in student[0]
    assert {"kl_divergence", "minilm_v2", "alpha", "val_accuracy"} <= student[2].keys()
    assert student[1]["hidden_state_mse"] < student[0]["hidden_state_mse"]


def test_every_stages_schedules_go_from_start_to_end(finished):
    run, *_ = finished
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines() if "student" in line]
    assert [line["attention_score_mse_weight"] for line in lines[:2]] == [0.5, 1.0]
    assert lines[2]["alpha"] == pytest.approx(0.5) and lines[2]["kl_divergence_temperature"] == 4.0


def test_projections_stay_out_of_the_students_file(finished):
    run, *_ = finished
    student = keras.models.load_model(run.student, compile=False)
    assert not [variable.path for variable in student.variables if "projection" in variable.path]


@pytest.mark.slow
def test_a_finished_stage_is_not_repeated_on_resume(finished, staged, tmp_path, monkeypatch):
    whole, *_ = finished
    real, trained = fitting.fit, []

    def fit(role, *arguments, stage=None, **named):
        trained.append((role, stage))
        if stage == "prediction" and trained.count((role, stage)) == 1:
            raise KeyboardInterrupt
        return real(role, *arguments, stage=stage, **named)

    monkeypatch.setattr(fitting, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        go(staged, tmp_path / "run")
    run, _ = go(staged, tmp_path / "run", resume=True)
    assert trained == [("student", "general"), ("student", "prediction"), ("student", "prediction")]
    expected, found = (keras.models.load_model(one.student, compile=False).get_weights() for one in (whole, run))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_a_finished_student_is_read_whole_when_its_run_gets_a_baseline(finished, staged, tmp_path, monkeypatch):
    """What its first stage left for a resume is gone by then."""
    run = RunDir(shutil.copytree(finished[0].path, tmp_path / "run"))
    real, trained = fitting.fit, []
    monkeypatch.setattr(fitting, "fit", lambda role, *rest, **named: trained.append(role) or real(role, *rest, **named))
    before = run.student.read_bytes()
    go(staged, run.path, "baseline=true", resume=True)
    assert trained == ["baseline"] and run.student.read_bytes() == before
    assert {model["role"] for model in json.loads(run.report_json.read_text())["models"]} == {"teacher", "baseline", "student"}


@pytest.mark.slow
def test_stages_draw_alike_just_after_one_another_and_resumed_and_the_baseline_reads_what_the_last_one_does(
    staged, tmp_path, monkeypatch
):
    tree = yaml.safe_load(staged.read_text())
    model = {name: tree["teacher"][name] for name in ("dimensions", "train")}
    tree["stages"][1]["data"] = tree["data"] | {"limit": 64}
    tree |= {"teacher": {"members": [model, model], "combine": "random"}, "baseline": True, "compression": {"qat": {}}}
    path, begun, stops = tmp_path / "random.yaml", [], []
    path.write_text(yaml.safe_dump(tree | {"seed": 7}))

    def fit(role, model, config, training, train, *rest, teacher=None, stage=None, **named):
        """In place of a training: notes where it begins, and draws."""
        state = None if teacher is None else teacher.seed_generator.state.numpy().tolist()
        begun.append((role, stage, len(train.store) == 64, state))
        if stage == stops[-1]:
            raise KeyboardInterrupt
        if teacher is not None:
            teacher.seed_generator.next()

    for module in (fitting, compression):
        monkeypatch.setattr(module, "fit", fit)
    for stage in ("prediction", "int8", "int8"):
        stops.append(stage)
        with pytest.raises(KeyboardInterrupt):
            go(path, tmp_path / "run", resume=bool(begun))
    prediction, int8 = ("student", "prediction", True, [8, 0]), ("student", "int8", True, [9, 0])
    assert [one for one in begun if one[0] != "teacher"] == [
        *[("baseline", None, True, None), ("student", "general", False, [7, 0]), prediction],
        *[prediction, int8],  # resumed
        *[int8],
    ]


def test_a_stage_is_not_resumed_on_other_data(tmp_path):
    run = RunDir(tmp_path)
    check_data(run, "whole", resume=False)
    check_data(run, "plain", resume=False, stage="general")
    check_data(run, "whole", resume=True)
    check_data(run, "more", resume=True, stage="prediction")  # not begun before
    check_data(run, "plain", resume=True, stage="general")
    with pytest.raises(UserError, match="the data of stage general are not those"):
        check_data(run, "other", resume=True, stage="general")


@pytest.mark.slow
def test_a_cached_run_gives_the_student_of_a_live_one(finished, staged, tmp_path):
    live, *_ = finished
    cached, said = go(staged, tmp_path / "cached", "teacher.cache=true")
    assert "asked once about every training row" in said and "Teacher's outputs: " in said
    expected, found = (keras.models.load_model(one.student, compile=False).get_weights() for one in (live, cached))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=0.05, atol=2e-3)  # the teacher's tensors were rounded to float16


def test_a_projection_goes_on_into_a_stage_that_has_its_objective_too(finished):
    _, _, (general, prediction) = finished
    assert general.start.shape == (16, 24) and np.abs(general.end - general.start).max() > 1e-3
    np.testing.assert_array_equal(prediction.start, general.end)
    assert np.abs(prediction.end - prediction.start).max() > 1e-4


def test_an_objective_that_does_not_fit_is_refused_before_anything_is_trained(staged, tmp_path):
    one_head = ["student.dimensions={layers: 2, width: 16, heads: 1}"]
    with pytest.raises(UserError, match="distill.objectives: attention_score_mse.*heads"):
        go(staged, tmp_path / "run", *one_head)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_schema_knows_every_objective_and_exactly_its_options():
    import inspect

    assert set(config.OBJECTIVE_OPTIONS) == set(OBJECTIVES)
    for name, kind in OBJECTIVES.items():
        makers = [cls.__init__ for cls in kind.__mro__ if "__init__" in vars(cls)]
        # `deviation` is what the task knows of its targets: nobody types it.
        options = set(inspect.signature(makers[0]).parameters) - {"self", "weight", "deviation", "kwargs"}
        assert options == set(config.OBJECTIVE_OPTIONS[name]), name


def test_every_objective_can_be_asked_for_by_its_name_alone(staged):
    tree = yaml.safe_load(staged.read_text()) | {"stages": None}
    names = sorted(set(OBJECTIVES) - {"binary_kl"})
    loaded = config.parse(tree | {"distill": {"objectives": names}})
    from tfkd.data.tokenizer import SPECIAL, Tokenizer
    from tfkd.tasks.classification import Classification

    task = Classification()
    keras.utils.set_random_seed(0)
    members = open_teacher.open_members(loaded, Classification)
    open_teacher.share_tokenizer(members, Tokenizer([*SPECIAL, *(f"word{index}" for index in range(75))]))
    teacher = build.make_teacher(loaded, members, ["no", "yes"], task)
    student = build.make_student(loaded, teacher, ["no", "yes"], 80, task)
    made = build.make_objectives(loaded.distill, task, student, teacher)
    assert [objective.name for objective in made] == names
    assert all(objective.built for objective in made)
