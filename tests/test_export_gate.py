"""The gate itself, on answers written by hand; and its surroundings: latency, silence."""

import os
import sys
import types
import warnings

import numpy as np
import pytest

from export.parity import FLOAT32, INT8, Answers, compare
from export.quiet import quiet
from export.timing import latency, measure
from tfkd.tasks.classification_metrics import ClassificationMeasure

LABELS = ("a", "b", "c")


def softmax(logits):
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


def asked(reference, targets=None, truncated=None):
    """Questions whose reference is known."""
    reference = np.asarray(reference, "float32")
    targets = reference.argmax(axis=1) if targets is None else np.asarray(targets)
    return types.SimpleNamespace(
        examples=len(targets),
        count=len(targets),
        measure=ClassificationMeasure({"labels": targets}, list(LABELS)),
        student=types.SimpleNamespace(labels=LABELS, task="classification"),
        reference=lambda length: reference,
        truncated=lambda: np.zeros(len(reference), bool) if truncated is None else np.asarray(truncated),
    )


def answered(logits, **others):
    return Answers(np.asarray(logits, "float32"), 8, np.ones(3), "by hand", **others)


def spread(count: int) -> np.ndarray:
    """Logits (count, 3) whose best class is clear: 2, 1, 0 in turned order."""
    return np.stack([np.roll([2.0, 1.0, 0.0], row) for row in range(count)])


def with_other_class(reference, rows):
    changed = reference.copy()
    changed[rows] = np.roll(changed[rows], 1, axis=1)
    return changed


def test_equal_answers_pass_with_numbers_counted_by_hand():
    reference = np.array([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [3, 0, 0]])
    result = compare(answered(reference + [[0, 3e-5, 0]] * 4), asked(reference, [0, 1, 1, 0]), FLOAT32)
    assert result["reason"] is None
    assert result["max_abs_difference"] == pytest.approx(3e-5, rel=1e-2)
    assert result["mean_abs_difference"] == pytest.approx(1e-5, rel=1e-2)
    assert (result["agreement"], result["metrics"], result["student_metrics"]) == (1.0, {"accuracy": 0.75}, {"accuracy": 0.75})


@pytest.mark.parametrize(
    ("largest", "difference", "passes"), ((0.5, 0.9e-4, True), (0.5, 1.1e-4, False), (20.0, 19e-4, True), (20.0, 21e-4, False))
)
def test_float32_may_differ_by_a_ten_thousandth_of_the_largest_logit_or_of_1(largest, difference, passes):
    reference = np.array([[largest, 0.0, 0.0]])
    result = compare(answered(reference + [[0, 0, difference]]), asked(reference), FLOAT32)
    assert (result["reason"] is None) == passes


def test_float32_tie_may_break_either_way():
    reference = np.array([[1.0, 1.00001, 0.0], [1.0, 0.0, 0.0]])
    result = compare(answered([[1.00001, 1.0, 0.0], [1.0, 0.0, 0.0]]), asked(reference), FLOAT32)
    assert (result["reason"], result["agreement"]) == (None, 0.5)


@pytest.mark.parametrize("broken", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("tolerance", (FLOAT32, INT8))
def test_one_number_that_is_none_fails_even_on_an_edge_text(broken, tolerance):
    reference = spread(10)
    logits = reference.copy()
    logits[9, 2] = broken
    result = compare(answered(logits), asked(reference, reference[:9].argmax(axis=1)), tolerance)
    assert result["reason"] == "the file answers NaN or infinity to 1 of 10 texts"
    assert "max_abs_difference" not in result


def test_nan_of_the_student_is_blamed_on_the_student():
    reference = np.full((2, 3), np.nan)
    assert "the Keras student itself answers NaN" in compare(answered(reference), asked(reference), FLOAT32)["reason"]


def test_wrong_shape_fails():
    assert "shape (2, 2)" in compare(answered(np.zeros((2, 2))), asked(spread(2)), FLOAT32)["reason"]


@pytest.mark.parametrize(("count", "others", "passes"), ((500, 10, True), (500, 11, False), (30, 1, True), (30, 2, False)))
def test_int8_may_give_two_in_a_hundred_another_class_and_always_one(count, others, passes):
    reference = spread(count)
    targets = with_other_class(reference, slice(0, others)).argmax(axis=1)  # nothing is lost: the file is right where they differ
    result = compare(answered(with_other_class(reference, slice(0, others))), asked(reference, targets), INT8)
    assert (result["reason"] is None) == passes
    assert result["agreement"] == pytest.approx(1 - others / count)


@pytest.mark.parametrize(("lost", "gained", "passes"), ((5, 0, True), (6, 0, False), (8, 0, False), (7, 2, True)))
def test_int8_may_lose_a_point_of_accuracy_or_what_chance_explains(lost, gained, passes):
    # 500 examples: a point is 5. Of 6 lost and none gained, 6 > 2 sqrt(6) = 4.9; of 7 lost and 2 gained, 5 < 2 sqrt(9) = 6.
    reference = spread(500)
    targets = reference.argmax(axis=1)
    logits = with_other_class(reference, slice(0, lost + gained))
    targets[lost : lost + gained] = logits[lost : lost + gained].argmax(axis=1)
    result = compare(answered(logits), asked(reference, targets), INT8)
    assert (result["reason"] is None) == passes
    assert result["student_metrics"]["accuracy"] - result["metrics"]["accuracy"] == pytest.approx((lost - gained) / 500)


def test_edge_texts_count_for_differences_alone():
    reference = spread(8)
    result = compare(answered(with_other_class(reference, slice(4, 8))), asked(reference, reference[:4].argmax(axis=1)), INT8)
    assert (result["reason"], result["examples"], result["agreement"], result["max_abs_difference"]) == (None, 4, 1.0, 2.0)
    assert (
        "differ"
        in compare(answered(with_other_class(reference, [7])), asked(reference, reference[:4].argmax(axis=1)), FLOAT32)["reason"]
    )


def text_answers(reference, labels, scores=None, truncated=None):
    scores = softmax(reference) if scores is None else scores
    return answered(
        reference,
        scores={"serving_default": scores, "from_token_ids": softmax(reference)},
        labels=labels,
        truncated=np.zeros(len(reference), bool) if truncated is None else np.asarray(truncated),
    )


def test_label_strings_must_be_those_of_the_best_scores():
    reference = spread(3)
    assert compare(text_answers(reference, ["a", "b", "c"]), asked(reference), FLOAT32)["reason"] is None
    wrong = compare(text_answers(reference, ["c", "b", "a"]), asked(reference), FLOAT32)
    assert wrong["reason"] == "serving_default answers 'c' where class 0 is 'a' (labels.txt)"


@pytest.mark.parametrize(
    "scores", (np.full((3, 3), 1 / 3), np.full((3, 3), np.nan), softmax(spread(3))[:, :2], softmax(spread(3))[::-1])
)
def test_scores_of_raw_text_must_be_the_softmax_of_the_logits(scores):
    result = compare(text_answers(spread(3), ["a", "b", "c"], scores), asked(spread(3)), FLOAT32)
    assert "serving_default" in result["reason"] and "scores" in result["reason"]


def test_truncation_must_be_told_right():
    reference = spread(3)
    result = compare(
        text_answers(reference, ["a", "b", "c"], truncated=[0, 0, 1]), asked(reference, truncated=[0, 1, 0]), FLOAT32
    )
    assert result["reason"] == "serving_default's truncated is wrong for 2 of 3 texts"
    result = compare(
        text_answers(reference, ["a", "b", "c"], truncated=[0, 1, 0]), asked(reference, truncated=[0, 1, 0]), FLOAT32
    )
    assert result["reason"] is None


def test_warm_up_is_called_and_not_counted():
    calls = []
    assert measure(calls.append, ["x", "y"], warmup=3).shape == (2,)
    assert calls == ["x", "y", "x", "x", "y"]


def test_latency_is_the_median_and_the_95th_percentile():
    assert latency(np.arange(101.0)) == {"p50": 50.0, "p95": 95.0}


def test_everything_written_inside_quiet_goes_to_the_log(tmp_path, capfd):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    with quiet(log):
        print("from python")
        print("to stderr", file=sys.stderr)
        os.write(1, b"from native code\n")
        os.write(2, b"and its stderr\n")
        warnings.warn("old function", DeprecationWarning, stacklevel=1)
    print("afterwards")
    lines = log.read_text()
    for words in ("before", "from python", "to stderr", "from native code", "and its stderr", "old function"):
        assert words in lines
    assert capfd.readouterr() == ("afterwards\n", "")


def test_quiet_ends_with_an_exception(tmp_path, capfd):
    with pytest.raises(ZeroDivisionError), quiet(tmp_path / "log.txt"):
        raise ZeroDivisionError
    os.write(1, b"heard again\n")
    assert capfd.readouterr().out == "heard again\n"
