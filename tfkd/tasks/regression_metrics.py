"""Regression, measured: what `report.json` says of predictions (N, 1) and numbers (N,). NumPy alone.

Correlations follow SciPy's definitions; equal values share their mean rank.
"""

from collections.abc import Callable

import numpy as np

from tfkd.tasks.measure import Figure, Measure, finite

_ROUNDING = 1e-6
"""Of float32, relative. Predictions that differ by less are all alike: a correlation with them would be one with noise."""


def pearson(one: np.ndarray, other: np.ndarray) -> float | None:
    """r = cov(x, y) / (sd(x) sd(y)) of two arrays (N,); None where one of them is constant."""
    x, y = (values - values.mean() for values in (one, other))
    for values, centred in ((one, x), (other, y)):
        if not np.abs(centred).max() > _ROUNDING * np.abs(values).max():
            return None
    x, y = x / np.abs(x).max(), y / np.abs(y).max()  # squares of tiny numbers would be 0
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's r of the ranks of two arrays (N,); None where one of them is constant (Spearman 1904)."""
    return rank_correlation(one, other)(np.arange(len(one)))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> Callable[[np.ndarray], float | None]:
    """Spearman's correlation of two arrays (N,) on drawn rows: (n,) -> r, or None. Values are put in order once; a draw only
    counts them."""
    ordered_one, ordered_other = _places(one), _places(other)

    def centred_ranks(places: np.ndarray, distinct: int, rows: np.ndarray) -> np.ndarray:
        drawn = places[rows]
        counts = np.bincount(drawn, minlength=distinct)
        return (np.cumsum(counts) - 0.5 * counts)[drawn] - 0.5 * len(rows)  # the mean of all ranks is known

    def correlation(rows: np.ndarray) -> float | None:
        x, y = centred_ranks(*ordered_one, rows), centred_ranks(*ordered_other, rows)
        spread = (x @ x) * (y @ y)
        return float(x @ y / spread**0.5) if spread > 0.0 else None

    return correlation


def _places(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Each value's place among the distinct ones, and how many of them there are. Constants up to rounding are one value."""
    if not np.ptp(values) > _ROUNDING * np.abs(values).max():
        return np.zeros(len(values), "int64"), 1
    distinct, places = np.unique(values, return_inverse=True)
    return places, len(distinct)


class RegressionMeasure(Measure):
    """Spearman's rank correlation first; truth: `labels` (N,), the numbers."""

    headline = "spearman"
    figures = (
        Figure("spearman", "Spearman"),
        Figure("pearson", "Pearson"),
        Figure("root_mean_squared_error", "RMS error", "number"),
        Figure("mean_absolute_error", "mean absolute error", "number"),
        Figure("r2", "R²"),
    )
    nearness = (
        Figure("pearson", "Pearson with teacher"),
        Figure("mean_absolute_difference", "mean difference from teacher", "number"),
    )

    def predictions(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs (N, 1) -> (N,). Raises `UserError` where they are not that."""
        return finite(outputs, 1)[:, 0]

    @property
    def targets(self) -> np.ndarray:
        """(N,) float64."""
        return np.asarray(self.truth["labels"], "float64")

    def metrics(self, outputs):
        """Errors are in the data's units, squared ones in their square; `r2` = 1 - squared error / variance."""
        z, y = self.predictions(outputs), self.targets
        squared, variance = float(np.mean((z - y) ** 2)), float(np.var(y))
        return {
            "spearman": spearman(z, y),
            "pearson": pearson(z, y),
            "mean_squared_error": squared,
            "root_mean_squared_error": squared**0.5,
            "mean_absolute_error": float(np.mean(np.abs(z - y))),
            "bias": float(np.mean(z - y)),
            "r2": 1.0 - squared / variance if variance > 0.0 else None,
        }

    def headline_on(self, outputs):
        return rank_correlation(self.predictions(outputs), self.targets)

    def near(self, outputs, teacher):
        ours, theirs = self.predictions(outputs), self.predictions(teacher)
        return {
            "pearson": pearson(ours, theirs),
            "spearman": spearman(ours, theirs),
            "mean_absolute_difference": float(np.mean(np.abs(ours - theirs))),
        }
