"""The sections of a page for answers in texts: scores by length, who is right where, questions with all answers."""

import numpy as np

from tfkd.report_inputs import View
from tfkd.report_sections import MOST_EXAMPLES, by_label
from tfkd.report_words import cut

MOST_ANSWERS = 5  # that people gave
LONGEST_TEXT = 600  # characters
LONGEST_ANSWER = 200


def values(view: View) -> dict:
    """What `report_question_answering.html` is filled with."""
    answers = {role: view.measure.answers(outputs) for role, outputs in view.outputs.items()}
    right = {role: view.measure.scores(outputs)[:, 1] > 0.0 for role, outputs in view.outputs.items()}
    return {
        "lengths": by_label(view),
        "nullable": view.measure.nullable,
        "together": _together(right),
        "groups": _groups(view, answers, right),
    }


def _together(right: dict[str, np.ndarray]) -> list[tuple[str, int]]:
    """How many questions teacher and student answer exactly, together and alone."""
    teacher, student = right["teacher"], right["student"]
    counts = {"both": teacher & student, "the teacher alone": teacher & ~student, "the student alone": student & ~teacher}
    return [(who, int(which.sum())) for who, which in (counts | {"neither": ~teacher & ~student}).items()]


def _groups(view: View, answers: dict[str, list[str]], right: dict[str, np.ndarray]) -> list[dict]:
    """Questions on which student and teacher differ, spread evenly over the split, and some that both answer wrongly."""
    teacher, student = right["teacher"], right["student"]
    kinds = {
        "The teacher is right, the student is not": teacher & ~student,
        "The student is right, the teacher is not": student & ~teacher,
        "Both are wrong": ~teacher & ~student,
    }
    rows = view.measure.rows  # of each question the first window

    def shown(question: int) -> dict:
        texts = view.examples[int(rows[question])]["texts"]
        gold = view.measure.gold[question]
        return {
            "question": cut(texts[0], LONGEST_TEXT),
            "context": cut(texts[1], LONGEST_TEXT) if len(texts) > 1 else "",
            "true": [cut(answer, LONGEST_ANSWER) for answer in dict.fromkeys(gold)][:MOST_ANSWERS],
            "said": {
                role: {"text": cut(answers[role][question], LONGEST_ANSWER), "right": bool(right[role][question])}
                for role in ("teacher", "student")
            },
        }

    groups = []
    for title, which in kinds.items():
        known = [int(question) for question in np.flatnonzero(which) if int(rows[question]) in view.examples]
        chosen = known[:: max(1, -(-len(known) // MOST_EXAMPLES))]
        groups.append({"title": title, "count": int(which.sum()), "shown": [shown(question) for question in chosen]})
    return groups
