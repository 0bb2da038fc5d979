"""Every task from its rows to its exports: a stage of plain texts, one of its own, the report's page, the files' figures."""

import json

import numpy as np
import pytest
import yaml

from tests.whole_run import go
from tfkd.run_dir import read_json
from tfkd.tasks.table import TASKS

WORDS = ["apple", "grass", "sky", "brick", "leaf", "sea", "this", "that", "very", "quite", "old", "new"]
RANDOM = np.random.default_rng(0)


def words():
    return [str(word) for word in RANDOM.choice(WORDS, RANDOM.integers(4, 9))]


def regression():
    text = words()
    return {"text": " ".join(text), "label": text.count("apple") + 0.5 * text.count("sky")}


def multilabel():
    text = words()
    return {"text": " ".join(text), "label": [word for word in ("apple", "sea", "old") if word in text]}


def tagging():
    text = words()
    return {"tokens": text, "tags": ["B-fruit" if word == "apple" else "B-place" if word == "sea" else "O" for word in text]}


def question_answering():
    text = words()
    context, asked = " ".join(text), text[0]
    answer = {"text": [text[1]], "answer_start": [len(text[0]) + 1]}
    return {"id": str(RANDOM.integers(1 << 40)), "question": f"{asked} this", "context": context, "answers": answer}


def masked_language_model():
    return {"text": " ".join(sorted(words()))}


ROWS = {make.__name__: make for make in (regression, multilabel, tagging, question_answering, masked_language_model)}


def configuration(folder, task: str) -> dict:
    """Rows of that task in files, and a run with a stage of plain texts first."""
    for split, rows in (("train", 160), ("validation", 48), ("test", 48)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(ROWS[task]()) + "\n" for _ in range(rows)))
    (folder / "plain.txt").write_text("".join(" ".join(words()) + "\n" for _ in range(64)))
    training = {"epochs": 2, "batch_size": 32, "learning_rate": 0.003}
    plain = {"files": {"train": str(folder / "plain.txt")}, "columns": {"label": None}, "max_length": 16}
    inner = {"alpha": 0.0, "objectives": ["logits_mse", "hidden_state_mse"]}
    return {
        "task": task,
        "data": {
            "files": {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")},
            "max_length": 16,
            "vocabulary_size": 80,
        },
        "teacher": {"dimensions": {"layers": 2, "width": 24, "heads": 2, "dropout": 0.0}, "train": training},
        "student": {"dimensions": {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0}},
        "baseline": False,
        "stages": [
            {"name": "plain", "data": plain, "distill": inner, "train": training | {"epochs": 1}},
            {"name": "task", "train": training},
        ],
        "evaluate": {"bootstrap": 100},
        "export": {"formats": [] if task == "masked_language_model" else ["tflite", "huggingface"]},
    }


@pytest.mark.slow
@pytest.mark.parametrize("task", ROWS)
def test_a_task_is_trained_reported_and_exported(task, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(configuration(tmp_path, task)))
    run, _ = go(tmp_path / "run.yaml", tmp_path / "run")
    report = read_json(run.report_json)
    figures = {model["role"]: model["metrics"] for model in report["models"]}
    assert report["metric"] == TASKS[task].metric and set(figures) == {"teacher", "student"}
    assert all(np.isfinite(value[report["metric"]]) for value in figures.values())
    logged = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    stages = [line for line in logged if line["role"] == "student"]
    assert [line["stage"] for line in stages] == ["plain", "task", "task"]
    assert stages[0]["hidden_state_mse"] > 0.0 and f"val_{TASKS[task].monitor}" in stages[-1]
    assert f"val_{TASKS[task].monitor}" not in stages[0] and "label_loss" not in stages[0]
    assert TASKS[task].response in stages[-1]
    assert run.manifest.exists() == (task != "masked_language_model")
    page = run.report_html.read_text()
    assert page.count("<svg") >= 3
    for entry in read_json(run.manifest) if run.manifest.exists() else ():
        assert entry["passed"], entry
        assert entry["examples"] == report["examples"]
        exported, student = entry["metrics"], figures["student"]
        assert exported[report["metric"]] == pytest.approx(student[report["metric"]], abs=0.02), entry
