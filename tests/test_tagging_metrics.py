"""Entities counted as conlleval and seqeval count them: cases worked out by hand, and a plain reading of the script's rules."""

import random

import numpy as np
import pytest

from tfkd.errors import UserError
from tfkd.tasks.tagging_metrics import Scheme, TaggingMeasure, decode, scores

LABELS = ["B-loc", "B-per", "I-loc", "I-per", "O"]


def measure(sentences, labels=LABELS, unread=()):
    """A measure of sentences of tag names, one output a word; `unread` are words that no output speaks for."""
    tags = [labels.index(tag) for sentence in sentences for tag in sentence]
    offsets = np.cumsum([0, *(len(sentence) for sentence in sentences)])
    pieces = np.array([place for sentence in sentences for place in range(len(sentence))], int)
    pieces[list(unread)] = -1
    return TaggingMeasure({"labels": np.array(tags), "pieces": pieces, "offsets": offsets, "piece_offsets": offsets}, labels)


def logits(sentences, labels=LABELS, sure=4.0):
    tags = [labels.index(tag) for sentence in sentences for tag in sentence]
    return sure * np.eye(len(labels), dtype="float32")[tags]


def chunks(sentence):
    """conlleval's own rules, read off the Perl script one word at a time: (type, first, last) of each chunk."""
    found, begin, kind = [], None, None
    for place, tag in enumerate([*sentence, "O"]):
        prefix, _, type_ = tag.partition("-")
        if begin is not None and (prefix in ("B", "O") or type_ != kind):
            found.append((kind, begin, place - 1))
            begin = None
        if prefix == "B" or (prefix == "I" and begin is None):
            begin, kind = place, type_
    return found


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (["O", "O"], []),
        (["B-per", "I-per", "O"], [("per", 0, 1)]),
        (["B-per", "B-per"], [("per", 0, 0), ("per", 1, 1)]),
        (["O", "I-per", "I-per"], [("per", 1, 2)]),  # I after O begins one
        (["I-per"], [("per", 0, 0)]),
        (["B-per", "I-loc", "I-loc"], [("per", 0, 0), ("loc", 1, 2)]),  # of another type: begins one
        (["I-per", "B-per", "I-per", "O", "I-loc"], [("per", 0, 0), ("per", 1, 2), ("loc", 4, 4)]),
    ],
)
def test_entities_of_a_sentence_by_hand(sentence, expected):
    found = decode(np.array([LABELS.index(tag) for tag in sentence]), list("abcde")[: len(sentence)], LABELS)
    assert [entity[:3] for entity in found] == expected == chunks(sentence)
    assert [entity[3] for entity in found] == [" ".join("abcde"[first : last + 1]) for _, first, last in expected]


def test_an_entity_ends_with_its_sentence():
    offsets, tags = np.array([0, 2, 2, 4]), np.array([1, 3, 3, 4])  # B-per I-per | | I-per O
    assert Scheme(LABELS).entities(tags, offsets).tolist() == [[1, 0, 1], [1, 2, 2]]


def test_f1_by_hand():
    true = [["B-per", "I-per", "O", "B-loc"], ["B-loc", "O", "O"]]
    found = [["B-per", "I-per", "O", "I-loc"], ["B-per", "O", "I-per"]]  # two right of four found; three there
    answer = measure(true).metrics(logits(found))
    assert answer["precision"] == 2 / 4 and answer["recall"] == 2 / 3 and answer["f1"] == pytest.approx(4 / 7)
    # per: 1 right, 3 found, 1 there: 1/2; loc: 1, 1, 2: 2/3
    assert answer["f1_macro"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert answer["accuracy"] == pytest.approx(4 / 7) and answer["unread"] == 0.0
    # -log softmax of the true class: log(1 + 4 e^-4) where it is the answer, and 4 more where it is not
    assert answer["cross_entropy"] == pytest.approx(np.log1p(4 * np.exp(-4)) + 3 / 7 * 4)


def test_a_span_that_is_too_short_is_wrong_twice():
    answer = measure([["B-per", "I-per"]]).metrics(logits([["B-per", "O"]]))
    assert (answer["precision"], answer["recall"], answer["f1"]) == (0.0, 0.0, 0.0) and answer["accuracy"] == 0.5


def test_words_that_were_cut_off_are_missed():
    true = [["B-per", "O", "B-loc", "I-loc"]]
    all_read, cut = measure(true), measure(true, unread=[2, 3])
    perfect = logits(true)
    assert all_read.metrics(perfect)["recall"] == 1.0
    answer = cut.metrics(perfect)
    assert answer["precision"] == 1.0 and answer["recall"] == 0.5 and answer["accuracy"] == 0.5 and answer["unread"] == 0.5
    assert cut.answers(perfect).tolist() == [1, 4, -1, -1]
    assert measure([["B-per", "I-per"]], unread=[1]).metrics(logits([["B-per", "I-per"]]))["f1"] == 0.0  # half an entity is none


def test_random_sentences_agree_with_the_scripts_rules():
    chance = random.Random(3)
    labels = ["B-a", "B-b", "I-a", "I-b", "I-c", "O"]
    draw = lambda: [[chance.choice(labels) for _ in range(length)] for length in lengths]  # noqa: E731
    lengths = [chance.randrange(1, 9) for _ in range(200)]
    true, found = draw(), draw()
    there = {(n, *chunk) for n, sentence in enumerate(true) for chunk in chunks(sentence)}
    said = {(n, *chunk) for n, sentence in enumerate(found) for chunk in chunks(sentence)}
    assert len(there & said) > 20
    answer = measure(true, labels).metrics(logits(found, labels))
    assert answer["precision"] == pytest.approx(len(there & said) / len(said))
    assert answer["recall"] == pytest.approx(len(there & said) / len(there))
    assert answer["f1"] == pytest.approx(2 * len(there & said) / (len(there) + len(said)))
    for row in measure(true, labels).per_label(logits(found, labels)):
        own = [{entity for entity in part if entity[1] == row["label"]} for part in (there & said, said, there)]
        assert row["support"] == len(own[2])
        assert row["f1"] == pytest.approx(2 * len(own[0]) / (len(own[1]) + len(own[2])))


def test_headline_of_some_sentences_is_the_f1_of_those_sentences():
    true = [["B-per", "O"], ["B-loc", "I-loc"], ["O"], ["B-per", "B-loc"]]
    found = [["B-per", "O"], ["B-loc", "O"], ["B-per"], ["B-per", "O"]]
    headline = measure(true).headline_on(logits(found))
    for rows in ([0, 1, 2, 3], [0, 0, 3], [1, 2], [2]):
        part = measure([true[row] for row in rows]).metrics(logits([found[row] for row in rows]))
        assert headline(np.array(rows)) == pytest.approx(part["f1"])
    low, high = measure(true).interval(logits(found), resamples=200, seed=1)
    assert 0.0 <= low < measure(true).metrics(logits(found))["f1"] < high <= 1.0


def test_the_truth_of_some_sentences_measures_those_sentences():
    truth = {"labels": np.array([1, 3, 4, 0, 2, 4]), "pieces": np.array([1, 2, 1, 1, 3, -1])}
    truth |= {"offsets": np.array([0, 2, 3, 6]), "piece_offsets": np.array([0, 4, 7, 12])}  # 4, 3 and 5 pieces
    part = TaggingMeasure.take(truth, np.array([2, 0]))
    assert {name: array.tolist() for name, array in part.items()} == {
        "labels": [0, 2, 4, 1, 3],
        "pieces": [1, 3, -1, 1, 2],
        "offsets": [0, 3, 5],
        "piece_offsets": [0, 5, 9],
    }
    outputs = np.zeros((9, 5))
    outputs[[1, 3, 6, 7], [0, 2, 1, 3]] = 5.0  # the pieces that speak, and nothing else
    answer = TaggingMeasure(part, LABELS).metrics(outputs)
    assert answer["f1"] == 1.0 and answer["unread"] == pytest.approx(1 / 5)


def test_tags_without_prefixes_are_words_of_their_own():
    labels = ["ADJ", "NOUN", "VERB"]
    answer = measure([["NOUN", "NOUN", "VERB"]], labels).metrics(logits([["NOUN", "ADJ", "VERB"]], labels))
    assert answer["f1"] == answer["precision"] == answer["recall"] == answer["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("labels", [["B-per", "I-per", "NOUN"], ["B-", "O"], ["B-per", "E-per"]])
def test_a_mixture_of_schemes_is_refused(labels):
    with pytest.raises(UserError, match="tags must be O, B-TYPE and I-TYPE"):
        Scheme(labels)


def test_nearness_by_hand():
    two = ["B-x", "O"]
    truth = measure([["O", "O"]], two)
    student, teacher = np.log([[0.5, 0.5], [0.25, 0.75]]), np.log([[0.25, 0.75], [0.25, 0.75]])
    found = truth.near(student, teacher)
    assert found["agreement"] == 0.5  # of equal scores the first is taken
    assert found["kl"] == pytest.approx((0.25 * np.log(0.5) + 0.75 * np.log(1.5)) / 2)
    assert measure([["O", "O"]], two, unread=[0]).near(student, teacher) == {"agreement": 1.0, "kl": 0.0}


def test_nothing_found_and_nothing_there_is_zero_not_an_error():
    answer = measure([["O"]]).metrics(logits([["O"]]))
    assert (answer["f1"], answer["f1_macro"], answer["accuracy"]) == (0.0, 0.0, 1.0)
    assert scores(np.zeros((2, 3)))[2].tolist() == [0.0, 0.0]


def test_outputs_that_do_not_fit_are_refused():
    truth = measure([["O", "O"]])
    with pytest.raises(UserError, match="NaN or infinite"):
        truth.metrics(np.full((2, 5), np.nan))
    with pytest.raises(UserError, match="must be"):
        truth.metrics(np.zeros((2, 4)))
    with pytest.raises(UserError, match="1 positions were scored, but the sentences have 2"):
        truth.metrics(np.zeros((1, 5)))
    with pytest.raises(UserError, match="no words"):
        measure([])
