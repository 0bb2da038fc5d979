"""Answers in contexts: read, checked, cut into windows, found again as the very text they were."""

import numpy as np
import pytest
import tensorflow as tf

from tests.stored_rows import store_rows, write
from tfkd.data.files import Files
from tfkd.data.sources import Source
from tfkd.data.spans import Spans, windows
from tfkd.data.store import write_store
from tfkd.data.tokenizer import SPECIAL, Tokenizer
from tfkd.errors import UserError
from tfkd.tasks.question_answering_metrics import QuestionAnsweringMeasure

PIECES = [*SPECIAL, "who", "?", "a", "b", "c", "d", "e", "f", "g", "h", "##b", "##c", "##d", "é", "."]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(PIECES)


def row(context, *answers, question="who?"):
    """A question; each answer is a text, or (text, first character)."""
    pairs = [answer if isinstance(answer, tuple) else (answer, context.index(answer)) for answer in answers]
    record = {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}
    return {"question": question, "context": context, "answers": record}


def store_of(tmp_path, rows, tokenizer, max_length=32, **options):
    return store_rows(tmp_path, rows, tokenizer, Spans(**options), max_length)


def perfect(store):
    """Logits (P, 2) that are sure of every row's label."""
    begins = store.ragged("token_ids")[1]
    outputs = np.zeros((begins[-1], 2))
    for begin, (first, last) in zip(begins, store.column("label"), strict=False):
        outputs[begin + first, 0] = outputs[begin + last, 1] = 9.0
    return outputs


def answers(store):
    return QuestionAnsweringMeasure(store.target.truth(store), store.target.labels).answers(perfect(store))


def pieces(store, place):
    return [PIECES[id_] for id_ in store.row("token_ids", place)]


def test_a_short_context_is_one_row_by_hand(tmp_path, tokenizer):
    store = store_of(tmp_path, [row("a bc d", "bc")], tokenizer)
    assert pieces(store, 0) == ["[CLS]", "who", "?", "[SEP]", "a", "b", "##c", "d", "[SEP]"]
    x, y, weight = store.target.batch(store, np.array([0, -1]), 10, None)
    assert x["segment_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 0] and x["padding_mask"].sum() == 9
    assert y.tolist() == [[5, 6], [0, 0]] and weight.tolist() == [1.0, 0.0]
    assert store.row("start", 0).tolist() == [0, 2, 3, 5] and store.row("end", 0).tolist() == [1, 3, 4, 6]
    assert (store.text(0), store.text_pair(0), store.target.told(store, 0)) == ("who?", "a bc d", ["bc"])


@pytest.mark.parametrize("answer", ["a", "h.", "a b c d e f g h.", "É\u0301", "b c"])
def test_answers_are_cut_from_the_context_as_they_were(tmp_path, tokenizer, answer):
    context = "a b c d e f g h." if answer.isascii() else "a b x É\u0301 y"
    assert answers(store_of(tmp_path, [row(context, answer)], tokenizer)) == [answer]


def test_an_answer_within_a_word_takes_its_pieces(tmp_path, tokenizer):
    store = store_of(tmp_path, [row("a abcd a", ("bc", 3))], tokenizer)
    assert store.column("label").tolist() == [[6, 7]] and answers(store) == ["bc"]
    (tmp_path / "other").mkdir()
    store = store_of(tmp_path / "other", [row("a zzz a", ("z", 3))], tokenizer)
    assert answers(store) == ["zzz"]  # an unknown word is one piece


def test_windows_by_hand():
    words = np.ones(10, bool)
    assert windows(words, 4, 3) == [(0, 4), (3, 7), (6, 10)]
    assert windows(words, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert windows(words, 4, 9) == [(0, 4), (4, 8), (8, 10)]  # no gap where the stride is larger than the window
    assert windows(words, 10, 3) == windows(words, 99, 3) == [(0, 10)]
    assert windows(np.ones(0, bool), 4, 3) == [(0, 0)]
    words[[3, 6, 7]] = False
    assert windows(words, 4, 3) == [(0, 4), (2, 6), (5, 9), (8, 10)]  # back to where a word begins
    assert windows(np.array([True] + [False] * 9), 4, 3) == [(0, 4), (3, 7), (6, 10)]  # one word, longer than the stride


def test_windows_cover_everything_and_begin_with_words():
    generator = np.random.default_rng(0)
    for _ in range(300):
        words = generator.random(generator.integers(1, 80)) < 0.6
        words[0] = True
        room, stride = (int(number) for number in generator.integers(1, 20, 2))
        found = windows(words, room, stride)
        covered = {piece for begin, end in found for piece in range(begin, end)}
        assert covered == set(range(len(words))) and all(0 < end - begin <= room for begin, end in found)
        steps = [second - first for (first, _), (second, _) in zip(found, found[1:], strict=False)]
        assert all(0 < step <= min(stride, room) for step in steps)
        assert all(
            words[begin] or not words[before + 1 : begin].any() for (before, _), (begin, _) in zip(found, found[1:], strict=False)
        )


def test_a_long_context_gives_windows_of_which_some_hold_the_answer(tmp_path, tokenizer):
    rows = [row("a b c d e f g h a b c d", "e f"), row("a b", "b")]
    store = store_of(tmp_path, rows, tokenizer, max_length=10, stride=2)  # [CLS] who ? [SEP] and 5 pieces and [SEP]
    assert store.examples == 2 and store.column("example").tolist() == [0, 0, 0, 0, 0, 1]
    assert [store.text_pair(place) for place in range(6)] == [
        "a b c d e",
        "c d e f g",
        "e f g h a",
        "g h a b c",
        "a b c d",
        "a b",
    ]
    # The first window holds e alone: an answer cut by the edge is no answer there.
    assert store.column("label").tolist() == [[0, 0], [6, 7], [4, 5], [0, 0], [0, 0], [5, 5]]
    assert answers(store) == ["e f", "b"]
    assert store.target.describe(store) == ("answers", "2 questions in 6 windows")


def test_windows_texts_fall_into_their_own_pieces(tmp_path, tokenizer):
    """So that exported files, which read texts, read what the student read."""
    context = "abcd bcd a abcd éb c. abc a " * 4
    store = store_of(tmp_path, [row(context, "éb")], tokenizer, max_length=16, stride=4)
    assert len(store) > 5
    texts, pairs = zip(*((store.text(place), store.text_pair(place)) for place in range(len(store))), strict=True)
    again = tokenizer(tf.constant(texts), tf.constant(pairs), max_length=99)
    assert [store.row("token_ids", place).tolist() for place in range(len(store))] == again["token_ids"].to_list()
    assert [store.row("segment_ids", place).tolist() for place in range(len(store))] == again["segment_ids"].to_list()


def test_a_long_question_leaves_half_of_the_room(tmp_path, tokenizer):
    store = store_of(tmp_path, [row("a b c d e f g h", "h", question="who " * 50)], tokenizer, max_length=13, stride=5)
    assert store.lengths.max() == 13 and pieces(store, 0)[:7] == ["[CLS]", *["who"] * 5, "[SEP]"]
    assert answers(store) == ["h"] and store.text(0) == "who who who who who"  # what the row reads
    (tmp_path / "other").mkdir()
    store = store_of(tmp_path / "other", [row("a b", "b", question="who " * 50)], tokenizer, max_length=13)
    assert pieces(store, 0) == ["[CLS]", *["who"] * 8, "[SEP]", "a", "b", "[SEP]"] and answers(store) == ["b"]


def test_the_default_stride_is_a_third_of_the_longest_row(tmp_path, tokenizer):
    context = " ".join("abcdefgh" * 4)
    default = store_of(tmp_path, [row(context, ("a", 0))], tokenizer, max_length=15)
    (tmp_path / "other").mkdir()
    named = store_of(tmp_path / "other", [row(context, ("a", 0))], tokenizer, max_length=15, stride=5)
    assert [default.text_pair(place) for place in range(len(default))] == [named.text_pair(place) for place in range(len(named))]
    assert Spans().rule != Spans(stride=5).rule


def test_questions_may_have_several_answers_or_none(tmp_path, tokenizer):
    store = store_of(tmp_path, [row("a b c", ("c", 4), ("b c", 2)), row("a b c")], tokenizer)
    assert store.column("label").tolist() == [[6, 6], [0, 0]]
    assert [store.target.told(store, place) for place in range(2)] == [["c", "b c"], []]
    measure = QuestionAnsweringMeasure(store.target.truth(store), store.target.labels)
    assert measure.nullable and measure.answers(perfect(store)) == ["c", ""]
    assert measure.metrics(perfect(store))["exact_match"] == 1.0
    assert store.target.describe(store)[1] == "2 questions in 2 windows, 1 of them without an answer in any window"


def test_answers_may_be_a_list_of_records(tmp_path, tokenizer):
    given = {"question": "who?", "context": "a b", "answers": [{"text": "b", "answer_start": 2}]}
    assert answers(store_of(tmp_path, [given], tokenizer)) == ["b"]
    named = {"q": "who?", "c": "a b", "z": {"text": [], "answer_start": []}}
    (tmp_path / "other").mkdir()
    store = store_of(tmp_path / "other", [named], tokenizer, question="q", context="c", answers="z")
    assert store.column("label").tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (row("", question="x"), "column context is empty"),
        (row(" \n"), "column context is empty"),
        (row("a", question=""), "column question is empty"),
        (
            row("a b", ("b", 1)),
            "column answers/answer_start is 1, but the answer 'b' is not at that character of context; it is at 2",
        ),
        (row("a b", ("c", 0)), "it is nowhere there"),
        (row("a b", ("b", -1)), "column answers/answer_start is -1"),
        (row("a b", ("", 0)), "column answers/text is empty"),
        (row("a b") | {"answers": "b"}, "column answers holds 'b', not answers; write"),
        (row("a b") | {"answers": None}, "column answers holds None"),
        (row("a b") | {"answers": {"text": ["b"], "answer_start": []}}, "1 texts, but 0 starts"),
        (row("a b") | {"answers": {"text": ["b"]}}, "not answers"),
        (row("a b") | {"answers": {"text": ["b"], "answer_start": ["2"]}}, "answer_start holds '2'"),
        (row("a b") | {"answers": [{"text": "b"}]}, "answer_start holds None"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, given, message):
    path = write(tmp_path / "train.jsonl", [row("a b", "b"), given])
    with pytest.raises(UserError) as error:
        list(Files({"train": path}, Spans()).rows("train"))
    assert str(error.value).startswith(f"{path}, row 2") and message in str(error.value)


def test_options_that_cannot_be_are_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match="data.stride = 0"):
        Spans(stride=0)
    with pytest.raises(UserError, match="data.labels"):
        Spans(labels=["x", "y"])
    with pytest.raises(UserError, match="data.max_length = 4"):
        store_of(tmp_path, [row("a", "a")], tokenizer, max_length=4)


def test_questions_about_one_context_stay_on_one_side_of_the_cut(tmp_path):
    letters = "abcdefgh"
    rows = [row(f"{one} {other}", one, question=f"{number}?") for one in letters for other in letters for number in range(3)]
    source = Source(Files({"train": write(tmp_path / "train.jsonl", rows)}, Spans()), validation_fraction=0.3)
    sides = {split: {example["text_pair"] for example in source.examples(split)} for split in ("train", "validation")}
    assert sides["train"] and sides["validation"] and not sides["train"] & sides["validation"]


def test_questions_without_answers_are_nothing_to_learn():
    target, answered, unanswered = Spans(), {"answers": [("a", 0)]}, {"answers": []}
    assert target.survey(iter([unanswered]))[0] == "have no answer"
    assert target.survey(iter([answered, unanswered])) is None and target.nullable
    assert target.survey(iter([answered, answered])) is None and not target.nullable


def test_a_context_of_nothing_but_dropped_characters_is_a_row_without_an_answer(tmp_path, tokenizer):
    store = store_of(tmp_path, [row("\u200b\u200b", ("\u200b", 0)), row("a", "a")], tokenizer)
    assert store.column("label").tolist() == [[0, 0], [4, 4]] and answers(store) == ["", "a"]


def test_no_examples_are_a_store_of_nothing(tmp_path, tokenizer):
    store = write_store(tmp_path / "store", [], tokenizer, 8, Spans())
    assert len(store) == 0 and len(store.target.truth(store)["start"]) == 0
