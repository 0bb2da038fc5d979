"""Answers chosen, cut and scored: worked out by hand, as the SQuAD scripts count, and by brute force."""

import json

import numpy as np
import pytest

from tfkd.errors import UserError
from tfkd.tasks.question_answering_metrics import QuestionAnsweringMeasure, exact_match, normalized, word_f1

CONTEXT = "The cat sat on a mat"
LABELS = ["start", "end"]


def truth(windows, answers):
    """What `Spans.truth` says of rows with a question of one piece, where each word of a window is a piece.

    Arguments:
        windows: (question, text) of each row.
        answers: those to each question.
    """
    starts, ends, offsets = [], [], [0]
    for _, text in windows:
        place = 0
        for word in text.split():
            place = text.index(word, place)
            starts.append(place)
            ends.append(place + len(word))
            place += len(word)
        offsets.append(len(starts))
    found = {"labels": np.zeros((len(windows), 2), "int32"), "example": np.array([number for number, _ in windows])}
    found |= {"first": np.full(len(windows), 3), "start": np.array(starts), "end": np.array(ends), "offsets": np.array(offsets)}
    texts = {"contexts": [text for _, text in windows], "answers": [json.dumps(answers[number]) for number, _ in windows]}
    for name, parts in texts.items():
        parts = [part.encode() for part in parts]
        found[name] = np.frombuffer(b"".join(parts), "uint8")
        found[f"{name}_offsets"] = np.cumsum([0, *map(len, parts)])
    return found


def outputs(*rows):
    """Logits (P, 2) of rows of (start, end) scores by position; what is not named is 0."""
    parts = []
    for length, scores in rows:
        part = np.zeros((length, 2))
        for position, (start, end) in scores.items():
            part[position] = start, end
        parts.append(part)
    return np.concatenate(parts)


def one(scores, answers=("cat",), context=CONTEXT):
    """A measure of one question in one window: [CLS] q [SEP] words [SEP], so that word i is position 3 + i; and its outputs."""
    measure = QuestionAnsweringMeasure(truth([(0, context)], [list(answers)]), LABELS)
    return measure, outputs((4 + len(context.split()), scores))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, sat.", "cat sat"),
        ("an apple a day", "apple day"),
        ("Theatre another", "theatre another"),  # articles are whole words
        ("U.S.A. (1,000)", "usa 1000"),
        ("the", ""),
        ("  \n", ""),
        ("“Ünïcode” – kept", "“ünïcode” – kept"),  # the script removes ASCII punctuation alone
    ],
)
def test_normalization_by_hand(text, expected):
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("the cat", ["Cat"], 1.0, 1.0),
        ("cat sat", ["cat"], 0.0, 2 / 3),
        ("cat cat dog", ["cat dog dog"], 0.0, 2 / 3),  # words count as often as they occur: 2 shared of 3 and 3
        ("black cat", ["dog", "the black cat sat", "cat"], 0.0, 0.8),  # the best answer counts
        ("x", ["y"], 0.0, 0.0),
        ("", ["y"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("x", [], 0.0, 0.0),
        ("the", [], 1.0, 1.0),  # says nothing once normalized
        ("x", ["the", "x"], 1.0, 1.0),
        ("", ["the"], 1.0, 1.0),
    ],
)
def test_scores_of_an_answer_by_hand(answer, gold, exact, f1):
    assert exact_match(answer, gold) == exact
    assert word_f1(answer, gold) == pytest.approx(f1)


def test_the_best_span_is_cut_from_the_context():
    measure, scores = one({4: (5, 0), 5: (0, 5)}, ["cat sat"])
    assert measure.answers(scores) == ["cat sat"]
    assert measure.metrics(scores) == {"f1": 1.0, "exact_match": 1.0}


def test_answers_at_the_very_start_and_the_very_end():
    assert one({3: (5, 5)})[0].answers(one({3: (5, 5)})[1]) == ["The"]
    assert one({8: (5, 5)})[0].answers(one({8: (5, 5)})[1]) == ["mat"]
    measure, scores = one({3: (5, 0), 8: (0, 5)})
    assert measure.answers(scores) == [CONTEXT]


def test_an_answer_knows_its_window_and_a_window_the_true_one():
    told = truth([(0, "the cat sat"), (0, "sat on a mat"), (1, "no dog")], [["mat"], []])
    told["labels"][1] = (6, 6)
    measure = QuestionAnsweringMeasure(told, LABELS)
    scores = outputs((7, {4: (1, 1)}), (8, {4: (5, 0), 6: (0, 5)}), (6, {0: (9, 9)}))
    assert measure.answers(scores) == ["on a mat", ""]
    assert measure.places(scores).tolist() == [[1, 4, 12], [-1, -1, -1]]
    assert [measure.held(row) for row in range(3)] == [None, (9, 12), None] and measure.window(1)[9:12] == "mat"


def test_an_end_before_its_start_is_no_answer():
    measure, scores = one({7: (9, 1), 4: (0, 9)})  # 18 from word 4 to word 1, 10 for word 4 alone, 9 up to word 1
    assert measure.answers(scores) == ["a"]


def test_question_and_frame_are_never_answers():
    measure, scores = one({0: (50, 50), 1: (60, 60), 2: (70, 70), 9: (80, 80), 6: (1, 1)})
    assert measure.answers(scores) == ["on"]  # a question that has an answer is not left without one


def test_spans_of_more_than_thirty_pieces_are_not_chosen():
    words = [f"w{number}" for number in range(40)]
    scores = {3: (5, 0), 32: (0, 3), 33: (0, 9)}
    measure, logits = one(scores, ["x"], " ".join(words))
    assert measure.answers(logits) == [" ".join(words[1:31])]  # 0 + 9, the first span of 30 that reaches the end; 5 + 3 is less
    scores[32] = (0, 5)
    measure, logits = one(scores, ["x"], " ".join(words))
    assert measure.answers(logits) == [" ".join(words[:30])]


def test_best_spans_agree_with_brute_force():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 60, 40)
    windows = [(number, " ".join(f"w{number}x{word}" for word in range(length))) for number, length in enumerate(lengths)]
    measure = QuestionAnsweringMeasure(truth(windows, [["x"]] * 40), LABELS)
    scores = generator.normal(size=(int((lengths + 4).sum()), 2))
    begin = 0
    for (_, text), length, answer in zip(windows, lengths, measure.answers(scores), strict=True):
        start, end = scores[begin + 3 : begin + 3 + length].T
        spans = {(i, j): start[i] + end[j] for i in range(length) for j in range(i, min(i + 30, length))}
        first, last = max(spans, key=spans.get)
        assert answer == " ".join(text.split()[first : last + 1])
        begin += length + 4


def test_the_best_of_overlapping_windows_answers():
    windows = [(0, "the cat sat"), (1, "x y"), (0, "cat sat on"), (0, "sat on mats")]
    measure = QuestionAnsweringMeasure(truth(windows, [["sat on"], ["y"]]), LABELS)
    rows = [(7, {4: (3, 0), 5: (0, 3)}), (6, {4: (1, 1)}), (7, {4: (4, 0), 5: (0, 4)}), (7, {3: (2, 0), 4: (0, 2)})]
    assert measure.answers(outputs(*rows)) == ["sat on", "y"]
    assert measure.examples == 2
    assert measure.metrics(outputs(*rows)) == {"f1": 1.0, "exact_match": 1.0}
    rows[0], rows[2] = (7, {4: (4, 0), 5: (0, 4)}), (7, {4: (4, 0), 5: (0, 4)})
    assert measure.answers(outputs(*rows))[0] == "cat sat"  # of equal windows the first


def test_no_answer_where_every_window_says_so():
    windows = [(0, "x b"), (0, "b c"), (1, "x b")]
    measure = QuestionAnsweringMeasure(truth(windows, [[], ["b"]]), LABELS)
    certain = [(6, {0: (4, 4), 3: (1, 1)}), (6, {0: (2, 2), 4: (1, 1)}), (6, {0: (1, 1), 4: (3, 3)})]
    assert measure.answers(outputs(*certain)) == ["", "b"]
    # One window sees an answer: the [CLS] that scores least speaks for the question.
    certain[1] = (6, {0: (0.5, 0.4), 4: (0.5, 0.5)})
    assert measure.answers(outputs(*certain))[0] == "x"  # 1 + 1, in the first window
    found = measure.metrics(outputs(*certain))
    assert found["f1"] == found["exact_match"] == 0.5
    assert (found["f1_answerable"], found["exact_match_answerable"], found["unanswerable_right"]) == (1.0, 1.0, 0.0)


def test_a_context_without_pieces_is_answered_with_nothing():
    measure = QuestionAnsweringMeasure(truth([(0, ""), (1, "cat")], [["x"], ["cat"]]), LABELS)
    assert measure.answers(outputs((4, {}), (5, {}))) == ["", "cat"]


def test_f1_by_the_length_of_the_answer():
    windows = [(number, "a b c d e f g") for number in range(4)]
    measure = QuestionAnsweringMeasure(truth(windows, [["b"], ["b c"], [], ["b c d e f g"]]), LABELS)
    row = (11, {4: (9, 9)})  # b
    table = {entry["label"]: entry for entry in measure.per_label(outputs(row, row, row, row))}
    assert {label: entry["support"] for label, entry in table.items()} == {
        "no answer": 1,
        "1 word": 1,
        "2 words": 1,
        "6 words or more": 1,
    }
    assert [table[label]["f1"] for label in table] == pytest.approx([0.0, 1.0, 2 / 3, 2 / 7])
    assert [table[label]["exact_match"] for label in table] == [0.0, 1.0, 0.0, 0.0]


def test_headline_of_some_questions_is_their_mean():
    windows = [(number, CONTEXT) for number in range(3)]
    measure = QuestionAnsweringMeasure(truth(windows, [["cat"], ["cat sat"], ["mat"]]), LABELS)
    headline = measure.headline_on(outputs(*[(10, {4: (5, 5)})] * 3))
    assert headline(np.array([0, 1, 2])) == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert headline(np.array([1, 1])) == pytest.approx(2 / 3)


def test_the_truth_of_some_rows_measures_those_rows():
    windows = [(0, "the cat sat"), (1, "x yy"), (2, "é zz"), (0, "sat on")]
    whole = truth(windows, [["cat"], ["yy"], ["zz"]])
    part = QuestionAnsweringMeasure(QuestionAnsweringMeasure.take(whole, np.array([3, 2])), LABELS)
    assert part.gold == [["cat"], ["zz"]] and part.pieces == 12
    assert part.answers(outputs((6, {4: (5, 5)}), (6, {4: (5, 5)}))) == ["on", "zz"]


def test_some_questions_may_go_without_an_answer_as_the_whole_split_has_it():
    whole = truth([(0, "x b"), (1, "x b")], [[], ["b"]])
    silent = outputs((6, {0: (4, 4), 4: (1, 1)}))
    part = QuestionAnsweringMeasure.take(whole, np.array([1]))
    for taken in (part, QuestionAnsweringMeasure.take(part, np.array([0]))):
        measure = QuestionAnsweringMeasure(taken, LABELS)
        assert measure.nullable and measure.answers(silent) == [""] and measure.summary(silent) == {"f1": 0.0, "exact_match": 0.0}
    assert QuestionAnsweringMeasure(truth([(0, "x b")], [["b"]]), LABELS).answers(silent) == ["b"]


def test_nearness_by_hand():
    measure = QuestionAnsweringMeasure(truth([(0, "a"), (1, "b c")], [["a"], ["b"]]), LABELS)
    teacher = outputs((5, {}), (6, {}))
    student = teacher.copy()
    student[5:, 0] = np.log([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])  # the start of the second row; the teacher's is uniform
    found = measure.near(student, teacher)
    divergence = sum(1 / 6 * np.log((1 / 6) / p) for p in [0.5, *[0.1] * 5])
    assert found["kl"] == pytest.approx(divergence / 4) and found["agreement"] == 1.0
    student[9] = 9.0  # c instead of b
    assert measure.near(student, teacher)["agreement"] == 0.5


def test_outputs_that_do_not_fit_are_refused():
    measure, scores = one({})
    with pytest.raises(UserError, match="9 positions were scored, but the rows have 10"):
        measure.metrics(scores[:-1])
    with pytest.raises(UserError, match="NaN or infinite"):
        measure.metrics(np.full_like(scores, np.nan))
    with pytest.raises(UserError, match="no questions"):
        QuestionAnsweringMeasure(truth([], []), LABELS)
