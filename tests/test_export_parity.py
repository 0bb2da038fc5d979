"""The gate where files have several signatures, tasks are not one class a text, and configurations set tolerances."""

import json
import types

import numpy as np
import pytest

from export import artifacts, questions
from export.parity import FLOAT32, INT8, Answers, Tolerance, compare, loss, probabilities
from tests.tiny_run import LABELS, LENGTH, build_run
from tfkd import config
from tfkd.errors import UserError
from tfkd.tasks.measures import MEASURES


def asked(task: str, reference, labels, names=("a", "b", "c"), mask=None):
    """Questions whose reference is known; it is the same for texts cut at any length."""
    reference = np.asarray(reference, "float32")
    return types.SimpleNamespace(
        examples=len(labels),
        count=len(labels),
        measure=MEASURES[task]({"labels": np.asarray(labels)}, list(names)),
        student=types.SimpleNamespace(labels=tuple(names), task=task),
        max_length=8,
        reference=lambda length: reference,
        features=lambda length: {"padding_mask": mask},
    )


def answered(logits, signature=None, length=8, **others):
    return Answers(np.asarray(logits, "float32"), length, np.ones(3), "by hand", signature=signature, **others)


REFERENCE = np.array([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [3, 0, 0]])


# -------------------------------------------------------------------- several signatures


def test_worst_signature_stands_for_the_file_and_the_longest_for_its_metric():
    near, far = REFERENCE + [[0, 1e-5, 0]], REFERENCE + [[0, 6e-5, 0]]
    both = [answered(far, "length_4", 4), answered(near, "length_8", 8)]
    result = compare(both, asked("classification", REFERENCE, [0, 1, 1, 0]), FLOAT32)
    assert result["reason"] is None
    assert result["max_abs_difference"] == pytest.approx(6e-5, rel=1e-2)
    assert result["mean_abs_difference"] == pytest.approx(2e-5, rel=1e-2)
    assert (result["agreement"], result["metrics"], result["student_metrics"]) == (1.0, {"accuracy": 0.75}, {"accuracy": 0.75})
    told = [(each["signature"], each["length"], each["latency_ms"]["p50"]) for each in result["signatures"]]
    assert told == [("length_4", 4, 1.0), ("length_8", 8, 1.0)]
    assert result["signatures"][0]["max_abs_difference"] > result["signatures"][1]["max_abs_difference"]


@pytest.mark.parametrize("bad", (0, 1))
def test_one_bad_signature_fails_the_file_and_is_named(bad):
    logits = [REFERENCE, REFERENCE]
    logits[bad] = REFERENCE[::-1]
    both = [answered(each, f"length_{length}", length) for each, length in zip(logits, (4, 8), strict=True)]
    result = compare(both, asked("classification", REFERENCE, [0, 1, 2, 0]), FLOAT32)
    assert result["reason"] == f"length_{(4, 8)[bad]}: logits differ by up to 2, allowed are 0.0003"


def test_signature_without_an_answer_in_numbers_fails_the_file():
    both = [answered(REFERENCE, "length_4", 4), answered(REFERENCE * np.nan, "length_8", 8)]
    result = compare(both, asked("classification", REFERENCE, [0, 1, 2, 0]), INT8)
    assert result["reason"] == "length_8: the file answers NaN or infinity to 4 of 4 texts"


def test_file_of_scores_alone_is_compared_by_logarithms():
    scores = np.exp(REFERENCE) / np.exp(REFERENCE).sum(axis=1, keepdims=True)
    questions = asked("classification", REFERENCE, [0, 1, 2, 0])
    assert compare(answered(np.log(scores), normalized=True), questions, FLOAT32)["reason"] is None
    other = compare(answered(np.log(scores[:, ::-1]), normalized=True), questions, FLOAT32)
    assert other["reason"].startswith("logits differ by up to 3")
    assert compare(answered(np.log(scores)), questions, FLOAT32)["reason"].startswith("logits differ")


@pytest.mark.parametrize(
    ("lost", "gained", "words"), ((6, 0, "accuracy falls by 1.5%, allowed are 1.0%"), (4, 0, None), (9, 5, None))
)
def test_loss_against_the_run_s_student_counts_right_answers_and_no_others(lost, gained, words):
    # Of 400 examples 4 may be lost, or as many as chance explains: 9 - 5 = 4. Another answer that is as wrong does not count.
    reference = np.tile([2.0, 0.0, 0.0], (400, 1))
    labels = np.zeros(400, int)
    logits = reference.copy()
    logits[: lost + gained + 100, 1] = 3.0
    labels[lost : lost + gained] = 1
    labels[lost + gained : lost + gained + 100] = 2
    given = asked("classification", reference, labels)
    given.student.run = types.SimpleNamespace(student=types.SimpleNamespace(name="student.keras"))
    found = loss([answered(REFERENCE, "length_4", 4), answered(logits, "length_8", 8)], given, Tolerance(None, 0.05, 0.01))
    assert found["student_metrics"] == {"accuracy": (300 - gained) / 400}
    assert found["reason"] == (words and f"against student.keras: {words}: {lost} examples lost, {gained} gained")


# -------------------------------------------------------------------- other tasks


def test_regression_has_no_agreement_and_a_metric_of_its_own():
    numbers = np.arange(6.0)[:, None]
    result = compare(answered(numbers + 1e-5), asked("regression", numbers, np.arange(6.0), ["score"]), FLOAT32)
    assert (result["reason"], result["agreement"]) == (None, None)
    assert result["metrics"] == result["student_metrics"] == {"spearman": pytest.approx(1.0)}


def test_regression_that_runs_against_the_student_is_refused_where_logits_are_not_limited():
    numbers = np.random.default_rng(0).normal(size=(50, 1))
    questions = asked("regression", numbers, numbers[:, 0], ["score"])
    assert compare(answered(numbers * 1.01), questions, INT8)["reason"] is None
    reason = compare(answered(-numbers), questions, INT8)["reason"]
    assert reason == "pearson with the student's answers is -1.000, allowed is 0.980 at least"


def test_multilabel_counts_examples_whose_labels_all_agree():
    reference = np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [2.0, -2.0]] * 10)
    questions = asked("multilabel", reference, reference > 0, ["a", "b"])
    logits = reference.copy()
    logits[0, 1] = 0.5  # one label more in one of 40 examples
    result = compare(answered(logits), questions, INT8)
    assert (result["reason"], result["agreement"]) == (None, 39 / 40)
    logits[1, 1] = -0.5
    result = compare(answered(logits), questions, INT8)
    assert result["reason"] == "agreement with the student's answers is 0.950, allowed is 0.975 at least"


def test_metric_that_falls_beyond_chance_fails_though_answers_mostly_agree():
    # 400 examples, the student right on all; the file loses the one positive label of 20 of them: f1 falls to 0.974.
    reference = np.full((400, 1), 3.0)
    logits = reference.copy()
    logits[:20] = -3.0
    questions = asked("multilabel", reference, np.ones((400, 1)), ["a"])
    tolerance = Tolerance(difference=None, disagreement=0.06, drop=0.01)
    assert compare(answered(logits), questions, tolerance)["reason"] == "f1_micro falls by 0.026, allowed are 0.010"
    assert compare(answered(logits), questions, Tolerance(None, 0.06, 0.03))["reason"] is None


def test_logits_of_padding_do_not_count():
    mask = np.array([[1, 1, 0], [1, 1, 1]], "int32")
    reference = np.arange(12.0).reshape(2, 3, 2)
    logits = reference.copy()
    logits[0, 2] = np.nan
    # Cut at 3 of 8 pieces, and one text fills them: the measure of whole texts has nothing to say.
    result = compare(answered(logits, length=3), asked("classification", reference, [0, 1], mask=mask), FLOAT32)
    assert (result["reason"], result["max_abs_difference"], result["metrics"]) == (None, 0.0, None)
    logits[0, 1, 0] += 1.0
    result = compare(answered(logits, length=3), asked("classification", reference, [0, 1], mask=mask), FLOAT32)
    assert result["reason"] == "logits differ by up to 1, allowed are 0.0011"


def test_scores_are_softmax_sigmoid_or_the_answer_itself():
    logits = np.array([[0.0, np.log(3.0)]])
    np.testing.assert_allclose(probabilities("classification", logits), [[0.25, 0.75]])
    np.testing.assert_allclose(probabilities("multilabel", logits), [[0.5, 0.75]])
    np.testing.assert_array_equal(probabilities("regression", logits), logits)
    assert np.isfinite(probabilities("multilabel", np.array([[-1e4, 1e4]]))).all()


# -------------------------------------------------------------------- tolerances


def test_configuration_sets_tolerances_of_a_variant_or_of_one_file():
    set_otherwise = {"int8": {"drop": 0.03}, "tflite:int8": {"disagreement": 0.2}}
    assert artifacts.held_to(INT8, "tflite", "int8", set_otherwise) == Tolerance(None, 0.2, 0.03)
    assert artifacts.held_to(INT8, "onnx", "int8", set_otherwise) == Tolerance(None, 0.02, 0.03)
    assert artifacts.held_to(INT8, "tflite", "int8_dynamic", set_otherwise) == INT8


def test_configured_tolerances_reach_the_gate_as_they_were_written():
    tree = {"data": {"builtin": "docstrings"}, "teacher": {"dimensions": {}, "train": {}}, "student": {"dimensions": {}}}
    read = config.parse(tree | {"export": {"tolerance": {"int8": {"drop": 0.03}, "tflite:int8": {"disagreement": 0.2}}}})
    assert read.export.model_dump(exclude_none=True)["tolerance"] == {
        "int8": {"drop": 0.03},
        "tflite:int8": {"disagreement": 0.2},
    }
    for name in ("in8", "tflite", "tflite:in8"):
        with pytest.raises(UserError, match="export.tolerance.*must be 'float32'.*did you mean"):
            config.parse(tree | {"export": {"tolerance": {name: {"drop": 0.1}}}})


# -------------------------------------------------------------------- questions


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("runs") / "run", examples=12)


def student_of(run, task="classification"):
    return types.SimpleNamespace(task=task, labels=tuple(LABELS), pairs=False, max_length=LENGTH, encode=lambda *given: given)


def test_at_least_500_examples_are_asked_spread_over_the_file(run, tmp_path):
    copy = type(run)(tmp_path)
    rows = [{"row": row, "text": f"text {row}", "label": LABELS[0]} for row in range(1999)]
    copy.examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = questions.load_questions(copy, student_of(run), 1)
    assert asked.examples == 500
    assert (asked.rows[0], asked.rows[-1], asked.texts[499]) == (0, 1998, b"text 1998")
    assert 3 <= np.diff(asked.rows).min() <= np.diff(asked.rows).max() <= 5


def test_edges_are_asked_behind_the_examples(run):
    asked = questions.load_questions(run, student_of(run), 500)
    assert (asked.examples, len(asked.texts)) == (12, 12 + len(questions.EDGES))
    assert b"" in asked.texts[12:] and any(len(text) > 10_000 for text in asked.texts[12:])
    assert any("\N{FOX FACE}".encode() in text for text in asked.texts[12:])


def test_truth_of_other_tasks_is_that_of_the_predictions(run, tmp_path):
    copy = type(run)(tmp_path)
    copy.examples.write_text("".join(json.dumps({"row": row, "text": "red", "label": 0.5}) + "\n" for row in (1, 3)))
    roles = {"student": np.zeros((4, 1)), "teacher": np.array([[4.0], [3.0], [2.0], [1.0]])}
    np.savez(copy.predictions, labels=np.array([0.5, 1.5, 2.5, 3.5]), **roles)
    asked = questions.load_questions(copy, student_of(run, "regression"), 500)
    np.testing.assert_array_equal(asked.measure.truth["labels"], [1.5, 3.5])
    assert list(asked.measure.truth) == ["labels"]
    assert questions.metric_of(copy, asked, "teacher") == {"spearman": pytest.approx(-1.0)}
    assert questions.metric_of(copy, asked, "baseline") is None


@pytest.mark.parametrize("content", (None, b"not an archive"))
def test_predictions_that_tell_no_truth_are_a_users_mistake(run, tmp_path, content):
    copy = type(run)(tmp_path)
    copy.examples.write_text('{"row": 7, "text": "red", "label": 1.0}\n')
    if content is not None:
        copy.predictions.write_bytes(content)
    with pytest.raises(UserError, match="predictions.npz"):
        questions.load_questions(copy, student_of(run, "regression"), 500)


def test_row_beyond_the_predictions_is_a_users_mistake(run, tmp_path):
    copy = type(run)(tmp_path)
    copy.examples.write_text('{"row": 7, "text": "red", "label": 1.0}\n')
    np.savez(copy.predictions, labels=np.zeros(2))
    with pytest.raises(UserError, match="does not tell what is true"):
        questions.load_questions(copy, student_of(run, "regression"), 500)
