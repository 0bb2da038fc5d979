"""The sections of a page for sentence vectors: cosines beside judgements, student beside teacher, pairs that tell most."""

import numpy as np

from tfkd import report_plots as plots
from tfkd.report_inputs import View
from tfkd.report_plots import MOST_DOTS, SQUARE
from tfkd.report_sections import texts
from tfkd.tasks.regression_metrics import spearman

MOST_EXAMPLES = 10
DIGITS = 6  # of a cosine: less is float32's rounding, and orders nothing


def values(view: View) -> dict:
    """What `report_sentence_embedding.html` is filled with."""
    measure = view.measure
    paired, judged = measure.sides is not None, measure.judged
    sides = measure.sides if paired else _neighbours(len(measure.truth["example"]))
    cosines = {role: measure.cosines(outputs, sides) for role, outputs in view.outputs.items()}
    others = [role for role in cosines if role != "teacher"]
    return {
        "paired": paired,
        "pairs": len(sides),
        "drawn": min(MOST_DOTS, len(sides)),
        "judged": {} if judged is None else {role: _judged(judged, cosines, role) for role in cosines},
        "beside_teacher": {role: _beside_teacher(cosines, role) for role in others},
        "rank_correlation": {role: spearman(cosines[role], cosines["teacher"]) for role in others},
        "gaps": {role: float(np.abs(cosines[role] - cosines["teacher"]).mean()) for role in others},
        "telling": _telling(view, sides, cosines),
    }


def _neighbours(count: int) -> np.ndarray:
    """(R, 2) rows of each sentence and the next one, of the last one and the first: pairs where there are none."""
    rows = np.arange(count)
    return np.stack([rows, np.roll(rows, -1)], axis=1)


def _judged(judged: np.ndarray, cosines: dict[str, np.ndarray], role: str) -> str:
    everything = np.concatenate(list(cosines.values()))
    limits = everything.min(), everything.max()  # the same for every model, so that their pictures can be compared
    alt = f"cosines of the {role} against the judgements"
    return plots.picture(within, judged, cosines[role], role, limits, name=f"judged-{role}", alt=alt, **SQUARE)


def _beside_teacher(cosines: dict[str, np.ndarray], role: str) -> str:
    drawn = cosines["teacher"], cosines[role], role, "teacher", role
    alt = f"cosines of the {role} against the teacher's"
    return plots.picture(plots.beside, *drawn, name=f"beside-{role}", alt=alt, **SQUARE)


def _telling(view: View, sides: np.ndarray, cosines: dict[str, np.ndarray]) -> list[dict]:
    """The kept pairs on which the student is farthest from the teacher, and those on which it is farthest from people.

    Judgements have a unit of their own, and only their order counts: beside them stands how many percent of the pairs each
    number is above.
    """
    examples, judged, above = view.examples, view.measure.judged, {}
    distances = {"The student is farthest from the teacher": np.abs(cosines["student"] - cosines["teacher"])}
    if judged is not None:
        above = {who: _above(found) for who, found in (cosines | {"judged": judged}).items()}
        misplaced = np.abs(above["student"] - above["judged"])
        distances["The student is farthest from the judgement, in the order of all pairs"] = misplaced
    known = [pair for pair, (one, other) in enumerate(sides.tolist()) if one in examples and other in examples]
    groups = []
    for title, distance in distances.items():
        shown = [
            {
                "texts": [text for row in sides[pair].tolist() for text in texts(examples[row])],
                "judged": None if judged is None else float(judged[pair]),
                "said": {role: float(found[pair]) for role, found in cosines.items()},
                "above": {who: float(found[pair]) for who, found in above.items()},
            }
            for pair in sorted(known, key=lambda pair: -distance[pair])[:MOST_EXAMPLES]
        ]
        groups.append({"title": title, "shown": shown})
    return groups


def _above(values: np.ndarray) -> np.ndarray:
    """(N,) the share of all values that each is above; of equal ones it is above half."""
    values = np.round(values, DIGITS)
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2.0 * len(values))


def within(axes, judged: np.ndarray, cosines: np.ndarray, role: str, limits: tuple[float, float]) -> None:
    """Draws cosines against judgements; the axis of the cosines reaches from one limit to the other."""
    low, high = limits
    room = 0.04 * ((high - low) or 1.0)
    plots.dots(axes, judged, cosines, role, "judged likeness", "cosine")
    axes.set_ylim(low - room, high + room)
