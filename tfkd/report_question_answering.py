"""The sections of a page for answers in texts: scores by length, who is right where, questions with all answers."""

import numpy as np

from tfkd.report_inputs import View
from tfkd.report_sections import MOST_EXAMPLES, by_label
from tfkd.report_words import around, cut
from tfkd.tasks.question_answering_metrics import QuestionAnsweringMeasure

MOST_ANSWERS = 5  # that people gave
LONGEST_TEXT = 500  # characters
LONGEST_ANSWER = 200
NEARBY = 20  # characters beside an answer by which its place is known again in another window


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
    rows = {int(view.measure.question[row]): row for row in view.examples}  # of a question any window: all repeat it
    places = {role: view.measure.places(view.outputs[role]) for role in ("teacher", "student")}

    def shown(question: int) -> dict:
        gold = view.measure.gold[question]
        return {
            "question": cut(view.examples[rows[question]]["texts"][0], LONGEST_TEXT),
            "contexts": _contexts(view.measure, question, [places[role][question].tolist() for role in places]),
            "true": [cut(answer, LONGEST_ANSWER) for answer in dict.fromkeys(gold)][:MOST_ANSWERS],
            "said": {
                role: {"text": cut(answers[role][question], LONGEST_ANSWER), "right": bool(right[role][question])}
                for role in ("teacher", "student")
            },
        }

    groups = []
    for title, which in kinds.items():
        known = [int(question) for question in np.flatnonzero(which) if int(question) in rows]
        chosen = known[:: max(1, -(-len(known) // MOST_EXAMPLES))]
        groups.append({"title": title, "count": int(which.sum()), "shown": [shown(question) for question in chosen]})
    return groups


def _contexts(measure: QuestionAnsweringMeasure, question: int, said: list[list[int]]) -> list[tuple[str, str, str]]:
    """Parts of the context, each in three: before an answer, the answer, behind it.

    First the true answer, from the window that the first model answered from where that holds it; then what models answered
    elsewhere. Where nobody answers, the beginning of the first window.

    Arguments:
        said: of each model its answer's place, as `measure.places` has it.
    """
    windows = sorted(np.flatnonzero(measure.question == question).tolist(), key=lambda row: row != said[0][0])
    true = [[row, *held] for row in windows if (held := measure.held(row)) is not None][:1]
    found = []
    for row, begin, end in [*true, *said]:
        if row < 0:
            continue
        window = measure.window(row)
        nearby = window[max(0, begin - NEARBY) : end + NEARBY]
        if not any(nearby in "".join(parts) for parts in found):
            found.append(around(window, begin, end, LONGEST_TEXT))
    return found or [(cut(measure.window(min(windows)), LONGEST_TEXT), "", "")]
