"""The sections of a regression's page: predictions against targets, residuals, student beside teacher, worst examples."""

import numpy as np

from tfkd import report_plots as plots
from tfkd.report_inputs import View
from tfkd.report_plots import MOST_DOTS, MUTED, SQUARE
from tfkd.report_sections import texts

MOST_EXAMPLES = 10
BINS = 40


def values(view: View) -> dict:
    """What `report_regression.html` is filled with."""
    measure = view.measure
    targets = measure.targets
    predictions = {role: measure.predictions(outputs) for role, outputs in view.outputs.items()}
    return {
        "target_name": view.names[0],
        "scatters": {role: _scatter(targets, found, role) for role, found in predictions.items()},
        "drawn": min(MOST_DOTS, len(targets)),
        "residuals": _residuals(targets, predictions),
        "beside_teacher": {role: _beside_teacher(predictions, role) for role in predictions if role != "teacher"},
        "quarters": _quarters(targets, predictions),
        "worst": _worst(view.examples, targets, predictions),
    }


def _scatter(targets: np.ndarray, predictions: np.ndarray, role: str) -> str:
    drawn = targets, predictions, role, "target", "prediction"
    alt = f"predictions of the {role} against the targets"
    return plots.picture(plots.beside, *drawn, name=f"scatter-{role}", alt=alt, **SQUARE)


def _beside_teacher(predictions: dict[str, np.ndarray], role: str) -> str:
    drawn = predictions["teacher"], predictions[role], role, "teacher", role
    alt = f"predictions of the {role} against the teacher's"
    return plots.picture(plots.beside, *drawn, name=f"beside-{role}", alt=alt, **SQUARE)


def _residuals(targets: np.ndarray, predictions: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """Pictures with their titles: how errors are distributed, and how they depend on the target."""
    errors = {role: found - targets for role, found in predictions.items()}
    spread = plots.picture(histogram, errors, name="residuals", alt="distribution of prediction less target")
    along = plots.picture(bias, targets, errors, name="bias", alt="mean of prediction less target, by target")
    return [("prediction − target, share of the examples", spread), ("mean of prediction − target, by target", along)]


def _quarters(targets: np.ndarray, predictions: dict[str, np.ndarray]) -> list[dict]:
    """Errors for the lowest, middle and highest targets; quarters that hold no example of their own are left out."""
    edges = np.quantile(targets, [0.0, 0.25, 0.5, 0.75, 1.0])
    rows = []
    for place, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        inside = (targets >= low) & ((targets < high) if place < 3 else (targets <= high))
        if inside.any():
            errors = {role: float(np.abs(found - targets)[inside].mean()) for role, found in predictions.items()}
            rows.append({"low": float(low), "high": float(high), "count": int(inside.sum()), "errors": errors})
    return rows


def _worst(examples: dict[int, dict], targets: np.ndarray, predictions: dict[str, np.ndarray]) -> list[dict]:
    """The kept examples on which the student errs most, and those on which it is farthest from the teacher."""
    student, teacher = predictions["student"], predictions["teacher"]
    kinds = {
        "The student is farthest from the target": np.abs(student - targets),
        "The student is farthest from the teacher": np.abs(student - teacher),
    }
    groups = []
    for title, distance in kinds.items():
        rows = sorted(examples, key=lambda row: -distance[row])[:MOST_EXAMPLES]
        shown = [
            {
                "texts": texts(examples[row]),
                "target": float(targets[row]),
                "said": {role: float(found[row]) for role, found in predictions.items()},
            }
            for row in rows
        ]
        groups.append({"title": title, "shown": shown})
    return groups


def histogram(axes, errors: dict[str, np.ndarray]) -> None:
    """Draws how each role's errors are distributed, as steps; the farthest 1 % of all is not drawn."""
    together = np.concatenate(list(errors.values()))
    low, high = np.quantile(together, [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    for role, found in errors.items():
        counts = np.histogram(found, edges)[0] / len(found)
        axes.stairs(counts, edges, **plots.line(role))
    axes.axvline(0.0, color=MUTED, linewidth=0.6)
    axes.set(ylim=(0, None), xlabel="prediction − target")
    axes.locator_params(nbins=6)


def bias(axes, targets: np.ndarray, errors: dict[str, np.ndarray]) -> None:
    """Draws each role's mean error over tenths of the examples in the order of their targets."""
    order = np.argsort(targets, kind="stable")
    parts = np.array_split(order, min(10, len(order)))
    axes.axhline(0.0, color=MUTED, linewidth=0.6)
    for role, found in errors.items():
        centres, means = [targets[part].mean() for part in parts], [found[part].mean() for part in parts]
        axes.plot(centres, means, **plots.line(role), marker="o", markersize=3)
    axes.set_xlabel("target, mean of a tenth of the examples")
    axes.locator_params(nbins=6)
