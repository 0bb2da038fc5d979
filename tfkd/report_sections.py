"""What the sections of several tasks' pages share: rows by label, and examples by who is right."""

from collections.abc import Callable

import numpy as np

from tfkd import report_words as words
from tfkd.report_inputs import View

MOST_EXAMPLES = 8  # of each kind
LONGEST_TEXT = 400  # characters


def by_label(view: View) -> list[dict]:
    """A row a label, in the measure's order: its name, its `support`, and by `roles` what the report says of it."""
    rows = []
    for entries in zip(*(entry["per_label"] for entry in view.models.values()), strict=True):
        by_role = dict(zip(view.models, entries, strict=True))
        rows.append({"label": entries[0]["label"], "support": entries[0]["support"], "roles": by_role})
    return rows


def furthest_behind(rows: list[dict], most: int) -> list[dict]:
    """Of rows by label those in which the student's F1 is lowest beside the teacher's, the lowest first."""
    return sorted(rows, key=lambda row: row["roles"]["student"]["f1"] - row["roles"]["teacher"]["f1"])[:most]


def texts(example: dict) -> list[str]:
    """The one or two texts of an example, cut."""
    return [words.cut(text, LONGEST_TEXT) for text in example["texts"]]


def disagreements(
    examples: dict[int, dict],
    differ: np.ndarray,
    right: dict[str, np.ndarray],
    telling: np.ndarray,
    shown: Callable[[int], dict],
    claim: tuple[str, str] = ("is", "right"),
) -> dict:
    """Where teacher and student answer differently: how often, and by who is right the kept examples that tell most.

    Arguments:
        examples: row of the predictions -> what the run kept of it; rows without are counted and not shown.
        differ: (R,) whether the two answer differently.
        right: role -> (R,) whether its answer is right.
        telling: (R,) what is shown first where it is large.
        shown: row -> what the template says of it.
        claim: how it is said that somebody is right: the verb, and what follows.
    """
    verb, rest = claim
    kinds = {
        f"The teacher {verb} {rest}, the student {verb} not": differ & right["teacher"],
        f"The student {verb} {rest}, the teacher {verb} not": differ & right["student"],
        "Both are wrong, in different ways": differ & ~right["teacher"] & ~right["student"],
    }
    groups = []
    for title, which in kinds.items():
        rows = sorted((int(row) for row in np.flatnonzero(which) if row in examples), key=lambda row: -telling[row])
        groups.append({"title": title, "count": int(which.sum()), "shown": [shown(row) for row in rows[:MOST_EXAMPLES]]})
    return {"count": int(differ.sum()), "groups": groups}
