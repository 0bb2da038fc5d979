"""Which objectives go with which task: what a configuration accepts can be trained with, and what cannot be it refuses."""

import keras
import numpy as np
import pytest

from tfkd import build, config
from tfkd.config import PER_POSITION, RESPONSES
from tfkd.data.tags import Tags
from tfkd.data.targets import TARGETS
from tfkd.distiller import Distiller
from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import OBJECTIVES, PairwiseObjective
from tfkd.tasks.no_labels import NoLabels
from tfkd.tasks.table import TASKS
from tfkd.teacher import LiveTeacher

ROWS, LENGTH, PIECES = 4, 6, 20
LABELS = ["B-a", "I-a", "O"]
RANDOM = np.random.default_rng(0)


def tree(task: str, *names: str, **changes) -> dict:
    """A configuration of `task` with these objectives."""
    pooled = {kind.default_name for kind in OBJECTIVES.values() if issubclass(kind, PairwiseObjective)}
    mean = {"vector": "mean"} if task in PER_POSITION else {}
    objectives = [{"name": name} | (mean if name in pooled else {}) for name in names]
    teacher = {"checkpoint": "somewhere"} if task == "sentence_embedding" else {"dimensions": {}, "train": {}}
    return {
        "task": task,
        "data": {"files": {"train": "train.jsonl", "test": "test.jsonl"}},
        "teacher": teacher,
        "student": {"dimensions": {}},
        "baseline": False,
        "distill": {"alpha": 0.0 if task == "sentence_embedding" else 0.5, "objectives": objectives},
        **changes,
    }


def suited(task: str) -> list[str]:
    answers = {name for names in RESPONSES.values() for name in names}
    return sorted(RESPONSES[task]) + sorted(set(OBJECTIVES) - answers)


def made(task, layers: int, width: int):
    encoder = TransformerEncoder(PIECES, layers=layers, width=width, heads=2, max_positions=LENGTH, dropout=0.0)
    outputs = {"masked_language_model": PIECES, "sentence_embedding": 8}.get(task.name) or task.outputs(LABELS)
    return TransformerWithHead(encoder, task.head(1 if task.name == "regression" else outputs))


def batch(task: str):
    """`(x, y, sample_weight)` of that task, the last row filler."""
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3, [1] * 5 + [0]], "int32")
    x = {"token_ids": RANDOM.integers(5, PIECES, (ROWS, LENGTH)).astype("int32") * mask, "padding_mask": mask}
    weight = np.array([1, 1, 1, 0], "float32")
    y = {
        "classification": lambda: RANDOM.integers(0, 3, ROWS),
        "regression": lambda: RANDOM.normal(size=ROWS).astype("float32"),
        "multilabel": lambda: RANDOM.integers(0, 2, (ROWS, 3)).astype("float32"),
        "tagging": lambda: RANDOM.integers(0, 3, (ROWS, LENGTH)),
        "question_answering": lambda: np.array([[1, 2], [2, 3], [1, 1], [0, 0]]),
        "masked_language_model": lambda: RANDOM.integers(5, PIECES, (ROWS, LENGTH)),
        "sentence_embedding": lambda: np.zeros(ROWS, "int32"),
    }[task]()
    if task in ("tagging", "masked_language_model"):
        weight = mask * weight[:, None] * RANDOM.integers(0, 2, (ROWS, LENGTH)).astype("float32")
        weight[:, 1] = mask[:, 1] * (np.arange(ROWS) < 3)
    return x, y.astype("int32") if y.dtype == "int64" else y, weight


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_with_every_objective_that_suits_it(name, labelled):
    task, names = TASKS[name](Tags(labels=LABELS) if name == "tagging" else None), suited(name)
    if not labelled:
        names.remove("decoupled_kd") if "decoupled_kd" in names else None
    loaded = config.parse(tree(name, *names))
    keras.utils.set_random_seed(0)
    student, teacher = made(task, 1, 8), LiveTeacher(made(task, 2, 12))
    objectives = build.make_objectives(loaded.distill, task, student, teacher)
    assert [objective.name for objective in objectives] == names
    distiller = Distiller(student, teacher, objectives, alpha=0.5 if labelled and task.learns_from_labels else 0.0)
    loss, metrics = (task.loss(), task.training_metrics()) if labelled else (NoLabels(), [])
    distiller.compile(keras.optimizers.Adam(1e-3), loss=loss, weighted_metrics=metrics, run_eagerly=True)
    x, y, weight = batch(name)
    if not labelled:
        y, weight = np.zeros(ROWS, "int32"), np.array([1, 1, 1, 0], "float32")
    distiller._symbolic_build(data_batch=(x, y, weight))
    before = [value.copy() for value in student.get_weights()]
    found = distiller.train_on_batch(x, y, weight, return_dict=True)
    assert np.isfinite(list(found.values())).all(), found
    assert all(found[name] > 0.0 for name in names), found
    changed = [not np.array_equal(a, b) for a, b in zip(before, student.get_weights(), strict=True)]
    assert np.mean(changed) > 0.8


@pytest.mark.parametrize("name", TASKS)
def test_what_compares_other_tasks_answers_is_refused(name):
    refused = sorted(set(OBJECTIVES) - set(suited(name)))
    for objective in refused:
        with pytest.raises(UserError, match=f"distill.objectives: {objective} does not suit the answers of task: {name}; use"):
            config.parse(tree(name, objective))
    assert TASKS[name].response in RESPONSES[name]


def test_the_tasks_without_a_pooled_vector_are_those_whose_heads_answer_everywhere():
    assert set(PER_POSITION) == {name for name, task in TASKS.items() if task.per_position}
    for name in PER_POSITION:
        for objective in config._TOGETHER:
            with pytest.raises(UserError, match=f"{objective}: task: {name} pools no vector of a text; set its vector to mean"):
                config.parse(tree(name, "logits_mse") | {"distill": {"objectives": [objective]}})


def test_the_tasks_without_labels_are_those_whose_data_hold_none():
    assert set(config.WITHOUT_LABELS) == {name for name, task in TASKS.items() if not TARGETS[task.target].labelled}


def test_what_reads_labels_is_refused_where_there_are_none():
    assert set(config._OF_LABELS) == {name for name, kind in OBJECTIVES.items() if "labels" in kind.student_names}
    stage = {"name": "plain", "data": {"files": {"train": "plain.txt"}, "columns": {"label": None}}}
    plain = stage | {"distill": {"alpha": 0.0, "objectives": ["decoupled_kd"]}}
    stages = tree("tagging") | {"stages": [plain, {"name": "last"}]}
    del stages["distill"]
    with pytest.raises(
        UserError, match="stage plain: distill.objectives: decoupled_kd reads labels, and the stage's data have none"
    ):
        config.parse(stages)
    longer = {"train": {"augment": {"concatenate": 0.5}}, "distill": {"alpha": 0.0, "objectives": ["decoupled_kd"]}}
    with pytest.raises(UserError, match="decoupled_kd reads labels, and concatenated texts have none"):
        config.parse(tree("classification") | longer)
