"""Measures of regression and of several labels, beside SciPy and scikit-learn; intervals of figures that are no means."""

import warnings

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as reference

from tfkd.errors import UserError
from tfkd.tasks.bootstrap import bootstrap_interval, resampled_interval
from tfkd.tasks.measures import MEASURES
from tfkd.tasks.multilabel_metrics import MultilabelMeasure
from tfkd.tasks.regression_metrics import RegressionMeasure, pearson, spearman

RANDOM = np.random.default_rng(7)
DRAW = {"resamples": 200, "seed": 0}


def numbers(count=300, noise=1.0):
    """Ratings with many ties, and predictions of them."""
    targets = np.round(5 * RANDOM.random(count) * 5) / 5
    return targets.astype("float32"), (targets + noise * RANDOM.normal(size=count)).astype("float32")[:, None]


def labels(count=200, frequencies=(0.5, 0.3, 0.05, 0.0, 1.0)):
    """Ones and zeros, of which one label never and one always occurs, and logits that know something of them."""
    y = (RANDOM.random((count, len(frequencies))) < frequencies).astype("uint8")
    return y, RANDOM.normal(size=y.shape) + 1.5 * y - 0.5


def multilabel(y):
    return MultilabelMeasure({"labels": y}, [f"label {c}" for c in range(y.shape[1])])


# Regression.


def test_correlations_are_scipys():
    y, z = numbers()
    found = RegressionMeasure({"labels": y}, ["score"]).metrics(z)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(z[:, 0].astype("float64"), y).statistic, abs=1e-12)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(z[:, 0], y).statistic, abs=1e-12)


def test_errors_are_scikit_learns():
    y, z = numbers()
    found = RegressionMeasure({"labels": y}, ["score"]).metrics(z)
    y, z = y.astype("float64"), z[:, 0].astype("float64")
    assert found["mean_squared_error"] == pytest.approx(reference.mean_squared_error(y, z))
    assert found["root_mean_squared_error"] == pytest.approx(reference.root_mean_squared_error(y, z))
    assert found["mean_absolute_error"] == pytest.approx(reference.mean_absolute_error(y, z))
    assert found["r2"] == pytest.approx(reference.r2_score(y, z))


def test_correlation_by_hand():
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: sums of squares 4.5 and 5, of products 4.5.
    assert spearman(np.array([1.0, 7.0, 7.0, 9.0]), np.array([0.0, 1.0, 2.0, 3.0])) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert pearson(np.array([1.0, 2.0]), np.array([5.0, 1.0])) == -1.0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_correlation_does_not_depend_on_units(scale):
    y, z = numbers()
    y, z = y.astype("float64"), z[:, 0].astype("float64")
    assert pearson(scale * z, y) == pytest.approx(pearson(z, y), abs=1e-12)
    assert spearman(scale * z, y) == spearman(z, y)


@pytest.mark.parametrize("constant", ["targets", "predictions", "predictions up to rounding"])
def test_correlation_with_a_constant_is_undefined_and_said_so(constant):
    y, z = numbers(40)
    if constant == "targets":
        y = np.full(40, 3.0, "float32")
    else:
        z = np.full((40, 1), 2.7, "float32")
        z[::2] += 2e-7 if "rounding" in constant else 0.0
    measure = RegressionMeasure({"labels": y}, ["score"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure.metrics(z)
        assert found["spearman"] is None and found["pearson"] is None
        assert found["mean_absolute_error"] > 0.0
        assert measure.interval(z, **DRAW) is None and measure.difference(z, z, **DRAW) is None
        assert measure.near(z, z)["mean_absolute_difference"] == 0.0
    assert (found["r2"] is None) == (constant == "targets")


def test_one_example_has_an_error_and_no_correlation():
    measure = RegressionMeasure({"labels": np.array([2.0])}, ["score"])
    found = measure.metrics(np.array([[3.5]]))
    assert found["spearman"] is None and found["mean_absolute_error"] == 1.5 and found["bias"] == 1.5


def test_spearman_on_drawn_rows_is_scipys():
    y, z = numbers()
    headline = RegressionMeasure({"labels": y}, ["score"]).headline_on(z)
    for seed in range(5):
        rows = np.random.default_rng(seed).integers(0, 300, 300)
        assert headline(rows) == pytest.approx(scipy.stats.spearmanr(z[rows, 0], y[rows]).statistic, abs=1e-12)
    assert headline(np.zeros(300, int)) is None


def test_students_difference_is_paired():
    y, z = numbers()
    measure = RegressionMeasure({"labels": y}, ["score"])
    worse = z + 0.3 * RANDOM.normal(size=z.shape).astype("float32")
    found = measure.difference(z, worse, **DRAW)
    assert found["difference"] == pytest.approx(measure.metrics(z)["spearman"] - measure.metrics(worse)["spearman"])
    low, high = found["interval"]
    alone = measure.interval(z, **DRAW)
    assert low <= found["difference"] <= high and high - low < alone[1] - alone[0]
    assert measure.difference(z, z, **DRAW) == {"difference": 0.0, "interval": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (np.zeros((4, 2)), "must be (examples, 1), not of shape (4, 2)"),
        (np.full((4, 1), np.nan), "4 of 4 rows of logits are NaN"),
        (np.zeros((0, 1)), "no examples to measure"),
    ],
)
def test_outputs_that_are_no_predictions_are_refused(outputs, message):
    with pytest.raises(UserError) as error:
        RegressionMeasure({"labels": np.zeros(4)}, ["score"]).metrics(outputs)
    assert message in str(error.value)


# Several labels.


def test_scores_are_scikit_learns():
    y, z = labels()
    found, given = multilabel(y).metrics(z), z > 0
    for average in ("micro", "macro"):
        options = {"average": average, "zero_division": 0}
        assert found[f"f1_{average}"] == pytest.approx(reference.f1_score(y, given, **options))
        assert found[f"precision_{average}"] == pytest.approx(reference.precision_score(y, given, **options))
        assert found[f"recall_{average}"] == pytest.approx(reference.recall_score(y, given, **options))
    assert found["subset_accuracy"] == reference.accuracy_score(y, given)
    assert found["hamming_loss"] == pytest.approx(reference.hamming_loss(y, given))


def test_areas_are_scikit_learns_over_the_labels_that_have_one():
    y, z = labels()
    z = np.round(z, 1)  # ties
    found = multilabel(y).metrics(z)
    assert found["roc_auc"] == pytest.approx(np.mean([reference.roc_auc_score(y[:, c], z[:, c]) for c in (0, 1, 2)]))
    precisions = [reference.average_precision_score(y[:, c], z[:, c]) for c in (0, 1, 2, 4)]
    assert found["mean_average_precision"] == pytest.approx(np.mean(precisions))
    rows = multilabel(y).per_label(z)
    assert rows[3]["average_precision"] is None and rows[4]["roc_auc"] is None and rows[4]["average_precision"] == 1.0
    assert [row["support"] for row in rows] == y.sum(axis=0).tolist()


def test_scores_by_hand():
    y = np.array([[1, 0], [1, 1], [0, 0]])
    z = np.array([[1.0, 1.0], [-1.0, 2.0], [-3.0, -1.0]])
    found = multilabel(y).metrics(z)
    # Given: a and b, b, nothing. Right: a once, b once; 3 given, 3 true.
    assert (found["f1_micro"], found["subset_accuracy"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found["hamming_loss"] == pytest.approx(2 / 6)
    by_hand = np.log1p(np.exp([-1.0, 1.0, 1.0, -2.0, -3.0, -1.0])).mean()
    assert found["binary_cross_entropy"] == pytest.approx(by_hand)


def test_rows_without_labels_are_right_where_nothing_is_given():
    y = np.zeros((5, 3), "uint8")
    found = multilabel(y).metrics(np.full((5, 3), -2.0))
    assert (found["subset_accuracy"], found["f1_micro"], found["roc_auc"]) == (1.0, 0.0, None)
    assert found["mean_average_precision"] is None


def test_f1_interval_is_the_bootstrap_over_examples():
    y, z = labels()
    headline = multilabel(y).headline_on(z)
    rows = RANDOM.integers(0, 200, 200)
    assert headline(rows) == pytest.approx(reference.f1_score(y[rows], z[rows] > 0, average="micro"))
    low, high = multilabel(y).interval(z, **DRAW)
    assert low < multilabel(y).metrics(z)["f1_micro"] < high


def test_nearness_to_the_teacher_by_hand():
    y = np.zeros((2, 2), "uint8")
    student, teacher = np.array([[0.5, -1.0], [1.0, 1.0]]), np.array([[1.0, -1.0], [1.0, -1.0]])
    near = multilabel(y).near(student, teacher)
    assert (near["agreement"], near["label_agreement"]) == (0.5, 0.75)

    def kl(z, v):
        p, q = 1 / (1 + np.exp(-v)), 1 / (1 + np.exp(-z))
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

    assert near["kl"] == pytest.approx((kl(0.5, 1.0) + kl(1.0, -1.0)) / 4)
    assert multilabel(y).near(teacher, teacher)["kl"] == 0.0


def test_curves_are_scikit_learns_micro_average():
    y, z = labels()
    curves = multilabel(y).curves(z, points=10_000)
    area = np.trapezoid(curves["roc"][1], curves["roc"][0])
    assert area == pytest.approx(reference.roc_auc_score(y.ravel(), z.ravel()))
    precision, recall, _ = reference.precision_recall_curve(y.ravel(), z.ravel())
    x, at = curves["precision_recall"]
    np.testing.assert_allclose(np.interp(0.5, x, at), np.interp(0.5, recall[::-1], precision[::-1]), atol=0.02)
    assert len(multilabel(y).curves(z)["roc"][0]) <= 200
    assert multilabel(np.ones_like(y)).curves(z)["roc"] is None


def test_logits_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"logits have shape \(200, 4\), targets \(200, 5\)"):
        multilabel(labels()[0]).metrics(np.zeros((200, 4)))


# All tasks.


def test_resampling_a_mean_gives_the_bootstrap_of_means():
    values = (RANDOM.random(300) < 0.8).astype(float)
    found = resampled_interval(lambda rows: float(values[rows].mean()), 300, resamples=3000, seed=1)
    assert found == pytest.approx(bootstrap_interval(values, resamples=3000, seed=2), abs=0.006)


def test_a_figure_that_is_rarely_defined_has_no_interval():
    draws = iter(range(100))
    assert resampled_interval(lambda rows: None if next(draws) % 4 else 1.0, 5, resamples=100) is None
    draws = iter(range(100))
    assert resampled_interval(lambda rows: None if next(draws) % 4 == 0 else 1.0, 5, resamples=100) == (1.0, 1.0)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_says_what_its_tables_show(name):
    measure = MEASURES[name]
    assert measure.headline == measure.figures[0].key
    assert all(figure.style in ("percent", "decimal", "number") for figure in (*measure.figures, *measure.nearness))
    assert len(measure.figures) >= 1 and len(measure.nearness) >= 1


@pytest.mark.parametrize("name", ["classification", "regression", "multilabel"])
def test_the_truth_of_some_rows_measures_those_rows(name):
    y, z = {"regression": numbers, "multilabel": labels}.get(name, lambda: (np.arange(9) % 3, RANDOM.normal(size=(9, 3))))()
    rows, names = np.array([5, 2, 7, 1]), ["a"] * (1 if name == "regression" else z.shape[1])
    taken = MEASURES[name](MEASURES[name].take({"labels": y}, rows), names).metrics(z[rows])
    assert taken == MEASURES[name]({"labels": y[rows]}, names).metrics(z[rows])
