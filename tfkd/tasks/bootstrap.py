"""Intervals by resampling the examples: what other test examples from the same source might have said. NumPy alone."""

from collections.abc import Callable

import numpy as np

from tfkd.errors import UserError

_DRAWS_AT_ONCE = 1_000_000  # 8 MB of counts


def bootstrap_interval(values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of `values` (N,) under resampling of the examples (Efron 1979).

    Drawing N rows with replacement decides only how often each distinct value is drawn, and those counts are
    multinomial: drawing them directly is the same bootstrap, and for right-or-wrong values it takes N out of the cost.

    Arguments:
        values: one number an example, such as 1 where the prediction is right and 0 where it is wrong.
        resamples: means drawn.
        seed: the same seed gives the same interval.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise UserError(f"an interval needs one value an example, not an array of shape {values.shape}")
    distinct, counts = np.unique(values, return_counts=True)
    generator = np.random.default_rng(seed)
    chunk = max(1, _DRAWS_AT_ONCE // len(distinct))
    means = [
        generator.multinomial(len(values), counts / len(values), size=min(chunk, resamples - start)) @ distinct / len(values)
        for start in range(0, resamples, chunk)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def paired_difference(student: np.ndarray, baseline: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> dict:
    """Mean of student's minus baseline's values, with the 95 % interval of the paired bootstrap over the same examples.

    Each resampled example brings both answers along, so what makes an example hard for both cancels out. The
    interval speaks of other test examples from the same source, not of other seeds in training.

    Arguments:
        student: (N,) one number an example, such as whether the student is right.
        baseline: (N,) the same of the baseline.

    Returns:
        `{"difference", "interval": [low, high]}`.
    """
    student = np.asarray(student, dtype=np.float64)
    baseline = np.asarray(baseline, dtype=np.float64)
    if student.shape != baseline.shape:
        raise UserError(f"student and baseline answered {student.shape} and {baseline.shape} examples, not the same ones")
    difference = student - baseline
    interval = bootstrap_interval(difference, resamples=resamples, seed=seed)
    return {"difference": float(difference.mean()), "interval": list(interval)}


def resampled_interval(
    value: Callable[[np.ndarray], float | None], examples: int, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % percentile interval of any figure under resampling of the examples (Efron 1979).

    Arguments:
        value: the figure on some examples, given as row numbers (N,) that may repeat; None where it is not defined on them.
        examples: N.
        resamples: figures drawn.
        seed: the same seed draws the same examples, whatever the figure: two figures can be compared in pairs.

    Returns:
        Low and high; None where the figure is not defined on half of the resamples, so that an interval would mislead.
    """
    generator = np.random.default_rng(seed)
    drawn = [value(generator.integers(0, examples, examples)) for _ in range(resamples)]
    drawn = [figure for figure in drawn if figure is not None]
    if 2 * len(drawn) < resamples:
        return None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
