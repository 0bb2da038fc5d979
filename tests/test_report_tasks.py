"""Reports of other tasks than classification: the same contract, sections of their own."""

import json
import re

import numpy as np
import pytest

from tests.test_report import Reader, page_of, shown
from tfkd import report, report_multilabel, report_regression, run_dir
from tfkd import report_words as words
from tfkd.report_page import SECTIONS
from tfkd.tasks.measures import MEASURES

NAMES = {"regression": ["stars"], "multilabel": ["joy", "anger", "<b>fear</b>", "rare"]}
OWN = {
    "regression": ["predictions", "residuals", "teacher", "worst"],
    "multilabel": ["labels", "curves", "counts", "disagreement"],
}


def truth_of(task, count=60):
    random = np.random.default_rng(3)
    if task == "regression":
        return np.round(5 * random.random(count), 1).astype("float32")
    return (random.random((count, 4)) < [0.5, 0.4, 0.2, 0.0]).astype("uint8")


def outputs_of(task, truth, seed):
    random = np.random.default_rng(seed)
    if task == "regression":
        return (truth + random.normal(size=len(truth)))[:, None].astype("float32")
    return (2.0 * truth - 1.0 + random.normal(size=truth.shape)).astype("float32")


def make_run(path, task, truth=None, outputs=None, examples=40, text="A text."):
    """A run with all that its page reads."""
    run = run_dir.RunDir(path)
    path.mkdir(parents=True)
    truth = truth_of(task) if truth is None else truth
    outputs = outputs or {role: outputs_of(task, truth, seed) for seed, role in enumerate(words.ROLES)}
    np.savez(run.predictions, labels=truth, **outputs)
    found = report.summarize(
        task=task,
        dataset={"name": "data"},
        labels=NAMES[task],
        truth={"labels": truth},
        outputs=outputs,
        parameters={"teacher": 9_000_000, "student": 1_000_000},
        bytes={},
        seconds={"data": 1.0},
        bootstrap=100,
    )
    run_dir.write_json(run.report_json, found)
    rows = range(min(examples, len(truth)))
    lines = [{"row": row, "text": f"{text} {row}", "text_pair": "Other.", "label": None} for row in rows]
    run_dir.write_text(run.examples, "".join(json.dumps(line) + "\n" for line in lines))
    watched = {"regression": "pearson", "multilabel": "f1_micro"}[task]
    steps = [{"role": "student", "epoch": 1, "step": step, "loss": 1.0, watched: 0.5} for step in (1, 2)]
    run_dir.write_text(run.metrics, "".join(json.dumps(step) + "\n" for step in steps))
    return run


@pytest.mark.parametrize("task", OWN)
def test_report_holds_the_headline_its_interval_and_its_difference(tmp_path, task):
    run = make_run(tmp_path / "run", task)
    found = report.read_report(run)
    headline = MEASURES[task].headline
    models = {entry["role"]: entry for entry in found["models"]}
    assert (found["task"], found["metric"], found["examples"], found["labels"]) == (task, headline, 60, NAMES[task])
    for entry in models.values():
        low, high = entry["interval"]
        assert low <= entry["metrics"][headline] <= high
    values = {role: entry["metrics"][headline] for role, entry in models.items()}
    assert found["student_minus_baseline"]["difference"] == pytest.approx(values["student"] - values["baseline"])
    assert found["retention"] == pytest.approx(values["student"] / values["teacher"])
    assert set(found["near_teacher"]) == {"baseline", "student"}
    labels = [row["label"] for row in models["student"]["per_label"]]
    assert labels == ([] if task == "regression" else NAMES[task])


@pytest.mark.parametrize("task", OWN)
def test_page_has_the_sections_of_the_task_and_needs_nothing_else(tmp_path, task):
    text = page_of(make_run(tmp_path / "run", task, text="<script>alert(1)</script>"))
    read = Reader(text)
    assert list(read.sections) == ["models", "training", *OWN[task], "exports", "data", "configuration", "time"]
    assert not {"script", "link", "img"} & set(read.elements) and "http" not in text
    assert all(link.startswith("#") and link[1:] in read.ids for link in read.links)
    assert len(read.ids) == len(set(read.ids))
    assert "<script>alert(1)</script>" in "".join(read.texts) and "Other." in "".join(read.texts)
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", "".join(re.findall(r"<svg.*?</svg>", text))))
    assert all(colour == "none" or colour.startswith("var(--") for colour in colours)


@pytest.mark.parametrize("task", OWN)
def test_terminal_table_tells_the_tasks_own_figures(tmp_path, task):
    run = make_run(tmp_path / "run", task)
    text = shown(report.table(report.read_report(run)), width=80)
    said = {"regression": ("Spearman", "Pearson", "RMS"), "multilabel": ("micro", "macro", "precision")}[task]
    assert all(word in text for word in said) and "95 % interval" in text
    assert re.search(r"student +1\.0 M +– +0\.\d{4} +0\.\d{3} to 0\.\d{3}", text)


def test_runs_of_different_tasks_get_a_table_each(tmp_path, no_pictures, capsys):
    paths = [str(make_run(tmp_path / task, task).path) for task in OWN]
    assert report.main(paths) == 0
    said = capsys.readouterr().out
    assert "1 run, regression" in said and "1 run, multilabel" in said
    assert "Spearman" in said and "macro" in said


@pytest.mark.parametrize("constant", ["truth", "student"])
def test_an_undefined_correlation_is_said_and_nothing_breaks(tmp_path, constant):
    truth = np.full(50, 3.0, "float32") if constant == "truth" else truth_of("regression", 50)
    outputs = {role: outputs_of("regression", truth, seed) for seed, role in enumerate(words.ROLES)}
    if constant == "student":
        outputs["student"][:] = 2.5
    run = make_run(tmp_path / "run", "regression", truth, outputs)
    found = report.read_report(run)
    assert words.model(found, "student")["metrics"]["spearman"] is None
    assert found["retention"] is None and found["student_minus_baseline"] is None
    sentence = "cannot be said: the Spearman is not defined on these examples"
    assert sentence in words.verdict(found) and sentence in " ".join("".join(Reader(page_of(run)).texts).split())
    assert "–" in shown(report.table(found))


@pytest.mark.parametrize("task", OWN)
def test_one_example_has_a_page(tmp_path, task):
    truth = truth_of(task, 1)
    outputs = {role: outputs_of(task, truth, seed) for seed, role in enumerate(words.ROLES)}
    assert "1 test example" in page_of(make_run(tmp_path / "run", task, truth, outputs))


def test_a_page_without_examples_says_so(tmp_path, no_pictures):
    for task in OWN:
        run = make_run(tmp_path / task, task)
        run.examples.unlink()
        assert "no examples.jsonl" in "".join(Reader(page_of(run)).texts)


def test_worst_examples_are_the_farthest_first():
    targets = np.array([0.0, 1.0, 2.0, 3.0])
    predictions = {"teacher": np.array([0.0, 1.0, 4.0, 3.0]), "student": np.array([0.5, 1.0, 2.0, 5.0])}
    examples = {row: {"texts": [f"text {row}"]} for row in (0, 1, 2, 3)}
    by_target, by_teacher = report_regression._worst(examples, targets, predictions)
    assert [shown["texts"] for shown in by_target["shown"]] == [["text 3"], ["text 0"], ["text 1"], ["text 2"]]
    assert by_target["shown"][0]["said"] == {"teacher": 3.0, "student": 5.0}
    assert [shown["texts"][0] for shown in by_teacher["shown"]] == ["text 2", "text 3", "text 0", "text 1"]


def test_quarters_hold_every_example_once():
    targets = np.array([0.0, 0.0, 0.0, 1.0, 2.0, 5.0, 5.0, 5.0])
    rows = report_regression._quarters(targets, {"student": targets + 0.5})
    assert sum(row["count"] for row in rows) == 8
    assert all(row["errors"]["student"] == pytest.approx(0.5) for row in rows)


def test_what_a_model_said_is_right_wrong_or_missing():
    said = report_multilabel._said(["a", "b", "c"], np.array([True, True, False]), np.array([True, False, True]))
    assert said == {"right": ["a"], "wrong": ["b"], "missing": ["c"]}


def test_numbers_of_labels_are_counted_and_the_last_row_is_open():
    positive = np.zeros((3, 12), bool)
    positive[1, :2], positive[2, :] = True, True
    rows = report_multilabel._counts(positive, {"student": np.zeros((3, 12), bool)})
    assert [row["labels"] for row in rows][-1] == "8 or more"
    assert [row["counts"]["true"] for row in rows] == [1, 0, 1, 0, 0, 0, 0, 0, 1]
    assert rows[0]["counts"]["student"] == 3


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_verdicts_of_decimals_have_no_points(task):
    found = {"task": task, "metric": MEASURES[task].headline, "examples": 900, "dataset": {}, "models": [{"role": "baseline"}]}
    verdict = words.verdict(found | {"student_minus_baseline": {"difference": 0.0123, "interval": [0.004, 0.021]}})
    assert verdict.startswith("Distillation helped: the student is 0.012 above") and "point" not in verdict


def test_every_task_has_a_page_of_its_own():
    assert set(SECTIONS) == set(MEASURES)
