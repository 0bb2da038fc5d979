"""`tfkd.tasks.classification_metrics` against scikit-learn, brute force and numbers worked out by hand."""

import math
import time

import numpy as np
import pytest
from sklearn import metrics as reference

from tfkd.errors import UserError
from tfkd.tasks import bootstrap
from tfkd.tasks import classification_metrics as ours


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def predictions(examples, classes, seed=0, absent=()):
    """Logits that are right more often than not; labels never name a class in `absent`, predictions may."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([c for c in range(classes) if c not in absent], size=examples).astype(np.int32)
    logits = generator.normal(size=(examples, classes))
    logits[np.arange(examples), labels] += 1.5
    return logits.astype(np.float32), labels


CASES = {
    "two classes": predictions(300, 2),
    "seven classes": predictions(500, 7, seed=1),
    "absent classes": predictions(200, 6, seed=2, absent=(0, 4)),
    "150 classes": predictions(600, 150, seed=3),
    "more classes than examples": predictions(20, 50, seed=4),
    "rounded, so tied": (np.round(predictions(400, 2, seed=5)[0]), predictions(400, 2, seed=5)[1]),
}


@pytest.mark.parametrize("case", CASES)
def test_measure_agrees_with_scikit_learn(case):
    logits, labels = CASES[case]
    classes, predicted, probabilities = logits.shape[1], logits.argmax(axis=1), softmax(logits.astype(np.float64))
    found = ours.measure(logits, labels)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted), abs=1e-12)
    for average in ("macro", "micro"):
        expected = reference.precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert found[f"{name}_{average}"] == pytest.approx(value, abs=1e-12)
    assert found["cross_entropy"] == pytest.approx(reference.log_loss(labels, probabilities, labels=range(classes)), abs=1e-9)
    columns = [1] if classes == 2 else [c for c in range(classes) if (labels == c).any()]
    areas = [reference.roc_auc_score(labels == c, probabilities[:, c]) for c in columns]
    assert found["roc_auc"] == pytest.approx(np.mean(areas), abs=1e-12)


def test_roc_auc_of_all_classes_is_scikit_learns_one_against_the_rest():
    logits, labels = CASES["seven classes"]
    expected = reference.roc_auc_score(labels, softmax(logits.astype(np.float64)), multi_class="ovr", average="macro")
    assert ours.measure(logits, labels)["roc_auc"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_classes_and_confusion_agree_with_scikit_learn(case):
    logits, labels = CASES[case]
    classes, predicted = range(logits.shape[1]), logits.argmax(axis=1)
    np.testing.assert_array_equal(ours.confusion(logits, labels), reference.confusion_matrix(labels, predicted, labels=classes))
    expected = reference.precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    rows = ours.per_class(logits, labels, [f"c{c}" for c in classes])
    assert [row["label"] for row in rows] == [f"c{c}" for c in classes]
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([row[name] for row in rows], values, atol=1e-12)


def test_confusion_rows_are_true_classes():
    counts = ours.confusion(np.array([[0.0, 9.0], [0.0, 9.0], [9.0, 0.0]]), np.array([0, 0, 0]))
    assert counts.tolist() == [[1, 2], [0, 0]]


def test_of_equal_logits_the_first_class_is_predicted():
    assert ours.confusion(np.zeros((2, 3)), np.array([0, 2])).tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_macro_f1_by_hand():
    # True a a b, predicted a b b: precision 1 and 1/2, recall 1/2 and 1, F1 2/3 twice; class c occurs nowhere.
    logits = np.array([[5.0, 0, -9], [0, 5.0, -9], [0, 5.0, -9]])
    found = ours.measure(logits, np.array([0, 0, 1]))
    assert found["accuracy"] == found["f1_micro"] == pytest.approx(2 / 3)
    assert (found["precision_macro"], found["recall_macro"], found["f1_macro"]) == pytest.approx((0.75, 0.75, 2 / 3))


def test_cross_entropy_by_hand():
    logits = np.log([[0.5, 0.5], [0.1, 0.9]])
    assert ours.measure(logits, np.array([1, 0]))["cross_entropy"] == pytest.approx((math.log(2) + math.log(10)) / 2)


def test_huge_logits_do_not_overflow():
    found = ours.measure(np.array([[3e4, -3e4], [-3e4, 3e4]], np.float32), np.array([0, 0]))
    assert found["cross_entropy"] == pytest.approx(3e4)
    assert found["accuracy"] == 0.5


def test_one_label_alone_has_no_roc_auc_and_everything_else():
    logits, _ = CASES["seven classes"]
    labels = np.full(len(logits), 3)
    found = ours.measure(logits, labels)
    assert found.pop("roc_auc") is None
    assert all(math.isfinite(value) for value in found.values())
    assert ours.roc_curves(logits, labels) == []


def test_one_example_is_enough():
    found = ours.measure(np.array([[0.0, 1.0, 0.0]]), np.array([1]))
    assert found["accuracy"] == found["f1_macro"] == 1.0
    assert bootstrap.bootstrap_interval(np.array([1.0])) == (1.0, 1.0)


def test_equal_scores_are_worth_a_coin():
    assert ours.measure(np.zeros((10, 2)), np.arange(10) % 2)["roc_auc"] == 0.5


@pytest.mark.parametrize("case", ["two classes", "seven classes", "rounded, so tied"])
def test_roc_curves_are_scikit_learns_curves_thinned(case):
    logits, labels = CASES[case]
    probabilities = softmax(logits.astype(np.float64))
    curves = ours.roc_curves(logits, labels, points=40)
    assert [curve["class"] for curve in curves] == ([1] if logits.shape[1] == 2 else list(range(logits.shape[1])))
    for curve in curves:
        column = curve["class"]
        false, true, _ = reference.roc_curve(labels == column, probabilities[:, column], drop_intermediate=False)
        mine = list(zip(curve["false_positive_rate"], curve["true_positive_rate"], strict=True))
        assert set(mine) <= set(zip(false.tolist(), true.tolist(), strict=True))
        assert mine[0] == (0.0, 0.0) and mine[-1] == (1.0, 1.0) and len(mine) <= 40
        assert mine == sorted(mine)
        assert curve["auc"] == pytest.approx(reference.auc(false, true), abs=1e-12)
        assert np.trapezoid(*reversed(list(zip(*mine, strict=True)))) == pytest.approx(curve["auc"], abs=0.02)


def test_long_roc_curves_keep_to_200_points():
    logits, labels = predictions(5000, 2, seed=6)
    assert 150 < len(ours.roc_curves(logits, labels)[0]["true_positive_rate"]) <= 200


def test_calibration_error_by_hand():
    # Two examples at confidence 0.8, one right; two at 0.65, both right: (|1/2 - 0.8| + |1 - 0.65|) / 2.
    logits = np.log([[0.8, 0.2], [0.8, 0.2], [0.65, 0.35], [0.35, 0.65]])
    found = ours.calibration_error(logits, np.array([0, 1, 0, 1]))
    assert found == pytest.approx((0.3 + 0.35) / 2)


@pytest.mark.parametrize("case", CASES)
def test_calibration_error_agrees_with_a_loop_over_guos_bins(case):
    logits, labels = CASES[case]
    probabilities = softmax(logits.astype(np.float64))
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    assert ours.measure(logits, labels)["calibration_error"] == pytest.approx(expected, abs=1e-9)


def test_calibration_bins_are_closed_above():
    # Confidence is exactly 1/2: it belongs to (0, 1/2], not to (1/2, 1].
    (only,) = ours.calibration_bins(np.zeros((4, 2)), np.array([0, 0, 0, 1]), bins=2)
    assert only == {"lower": 0.0, "upper": 0.5, "confidence": pytest.approx(0.5), "accuracy": 0.75, "count": 4}


def test_calibration_bins_count_every_example_once():
    logits, labels = CASES["150 classes"]
    parts = ours.calibration_bins(logits, labels)
    assert sum(part["count"] for part in parts) == len(labels)
    assert all(part["lower"] < part["confidence"] <= part["upper"] and part["count"] for part in parts)


def brute_interval(values, resamples, seed):
    generator = np.random.default_rng(seed)
    rows = generator.integers(len(values), size=(resamples, len(values)))
    return np.percentile(values[rows].mean(axis=1), [2.5, 97.5])


@pytest.mark.parametrize(
    "values",
    [np.arange(400) % 5 > 0, np.random.default_rng(0).normal(size=300), np.random.default_rng(1).choice([-1, 0, 1], 500)],
    ids=["right or wrong", "continuous", "differences"],
)
def test_bootstrap_is_the_bootstrap_over_rows(values):
    spread = np.std(values) / math.sqrt(len(values))
    found = bootstrap.bootstrap_interval(values, resamples=20_000, seed=1)
    np.testing.assert_allclose(found, brute_interval(np.asarray(values, float), 20_000, 2), atol=0.08 * spread)


def test_bootstrap_is_known_by_its_seed():
    values = np.random.default_rng(0).normal(size=200)
    first, again, other = (bootstrap.bootstrap_interval(values, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_bootstrap_in_pieces_equals_bootstrap_in_one(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap.bootstrap_interval(values, resamples=500, seed=5)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 700)
    assert bootstrap.bootstrap_interval(values, resamples=500, seed=5) == whole


def test_bootstrap_of_5000_examples_takes_no_time():
    values = np.random.default_rng(0).random(5000) < 0.85
    start = time.perf_counter()
    low, high = bootstrap.bootstrap_interval(values, resamples=2000)
    assert time.perf_counter() - start < 0.5
    assert low < values.mean() < high


def test_paired_difference_by_hand():
    student, baseline = np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 0], bool)
    found = bootstrap.paired_difference(student, baseline)
    assert found["difference"] == 0.5
    assert found["interval"] == [0.0, 1.0]  # of 4 draws of {0, 1, 1, 0}, none or all are 1 in 1/16 of the cases, above 2.5 %


def test_paired_interval_is_narrower_than_the_spread_of_either():
    generator = np.random.default_rng(0)
    baseline = generator.random(2000) < 0.7
    student = baseline | (np.arange(2000) % 50 == 0)  # never worse, better on at most 2 % of the examples
    low, high = bootstrap.paired_difference(student, baseline)["interval"]
    alone = bootstrap.bootstrap_interval(student)
    assert 0 < low < high
    assert high - low < 0.5 * (alone[1] - alone[0])


def test_equal_answers_differ_by_nothing():
    right = np.arange(100) % 3 > 0
    assert bootstrap.paired_difference(right, right) == {"difference": 0.0, "interval": [0.0, 0.0]}


def test_compare_by_hand():
    teacher, student = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    found = ours.compare(student, teacher)
    assert found["agreement"] == 0.5  # the tie goes to class 0, the student says 1
    assert found["kl"] == pytest.approx(0.5 * (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)))


def test_divergence_runs_from_teacher_to_student():
    teacher, student = np.log([[0.99, 0.01]]), np.log([[0.5, 0.5]])
    assert ours.compare(student, teacher)["kl"] == pytest.approx(0.99 * math.log(1.98) + 0.01 * math.log(0.02))
    assert ours.compare(teacher, student)["kl"] != pytest.approx(ours.compare(student, teacher)["kl"])


def test_a_shift_of_all_logits_changes_nothing():
    logits, _ = CASES["150 classes"]
    found = ours.compare(logits + 7, logits)
    assert found["agreement"] == 1.0
    assert 0.0 <= found["kl"] < 1e-9


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.array([[0, np.nan], [1, 2], [np.inf, 0]]), [0, 1, 1], "2 of 3 rows of logits are NaN or infinite"),
        (np.zeros((0, 3)), [], "no examples"),
        (np.zeros((2, 1)), [0, 0], "at least 2 classes, not of shape (2, 1)"),
        (np.zeros(4), [0, 0, 0, 0], "not of shape (4,)"),
        (np.zeros((2, 3)), [0, 3], "row 1: label 3 is not one of the 3 classes"),
        (np.zeros((2, 3)), [-1, 0], "row 0: label -1 is not one of the 3 classes"),
        (np.zeros((2, 3)), [0.0, 1.0], "labels must be 2 whole numbers"),
        (np.zeros((2, 3)), [0, 1, 2], "labels must be 2 whole numbers"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(logits, labels, message):
    with pytest.raises(UserError) as caught:
        ours.measure(logits, np.array(labels))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_other_mismatches_are_told_too():
    with pytest.raises(UserError, match="2 label names do not name the 3 classes"):
        ours.per_class(np.zeros((1, 3)), np.array([0]), ["a", "b"])
    with pytest.raises(UserError, match="not the same ones"):
        bootstrap.paired_difference(np.ones(3), np.ones(4))
    with pytest.raises(UserError, match="must be equal"):
        ours.compare(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(UserError, match="1 of 2 rows"):
        ours.compare(np.array([[0, 1], [np.nan, 0]]), np.zeros((2, 2)))
    with pytest.raises(UserError, match="one value an example"):
        bootstrap.bootstrap_interval(np.array([]))
