"""What a SavedModel answers to raw text, for every task; and that wrong answers are noticed."""

import functools
import types

import numpy as np
import pytest
import tensorflow as tf

from export import inference, saved_model, text_answers, text_answers_check
from export.questions import EDGES, Questions
from tests.tiny_run import LABELS, LENGTH, PIECES, build_model, tokens
from tfkd.data.tokenizer import Tokenizer
from tfkd.models.with_head import TransformerWithHead
from tfkd.tasks.measures import MEASURES
from tfkd.tasks.table import TASKS

TOKENIZER = Tokenizer(PIECES)
ROOM = LENGTH - 2


def sharp(logits, length: int = LENGTH, pairs: bool = False) -> types.SimpleNamespace:
    """A student whose logits are given, whatever it reads; what it read lies in `seen`."""
    inputs = ("token_ids", "padding_mask", "segment_ids") if pairs else ("token_ids", "padding_mask")
    student = types.SimpleNamespace(tokenizer=TOKENIZER, labels=tuple(LABELS), max_length=length, pairs=pairs, inputs=inputs)

    def answer(features):
        student.seen = {name: values.numpy() for name, values in features.items()}
        return logits(student.seen) if callable(logits) else tf.constant(logits, tf.float32)

    student.logits = answer
    return student


def said(task: str, student, *texts) -> dict[str, np.ndarray]:
    serve = text_answers.ANSWERS[task](student)
    return {name: values.numpy() for name, values in serve(*(tf.constant(column, tf.string) for column in texts)).items()}


# -------------------------------------------------------------------- one answer a text


def test_every_task_but_the_masked_language_model_answers_texts():
    assert set(TASKS) - set(text_answers.ANSWERS) == {"masked_language_model"}


def test_classification_names_the_likeliest():
    got = said("classification", sharp([[0.0, np.log(2.0), 0.0], [np.log(6.0), 0.0, 0.0]]), ["red", "cat"])
    assert [label.decode() for label in got["label"]] == ["animals", "colours"]
    np.testing.assert_allclose(got["scores"], [[0.25, 0.5, 0.25], [0.75, 0.125, 0.125]], rtol=1e-6)


def test_multilabel_names_what_is_likelier_than_not():
    got = said("multilabel", sharp([[np.log(3.0), -1.0, 0.0], [-1.0, -1.0, -1.0]]), ["red", "cat"])
    assert [[label.decode() for label in row] for row in got["labels"]] == [["colours", "", ""], ["", "", ""]]
    np.testing.assert_allclose(got["scores"][0], [0.75, 1 / (1 + np.e), 0.5], rtol=1e-6)


def test_regression_and_sentence_embedding_answer_what_the_head_does():
    np.testing.assert_array_equal(said("regression", sharp([[1.5], [-2.0]]), ["red", "cat"])["value"], [1.5, -2.0])
    vectors = np.eye(3, dtype="float32")[:2]
    np.testing.assert_array_equal(said("sentence_embedding", sharp(vectors), ["red", "cat"])["embedding"], vectors)


@pytest.mark.parametrize("task", ("classification", "multilabel", "regression", "sentence_embedding"))
def test_the_model_reads_the_whole_text_or_its_beginning_and_says_which(task):
    student = sharp(np.zeros((4, 3)))
    got = said(task, student, ["red cat", "", "red " * ROOM, "cat " * (ROOM + 1)])
    rows = [tokens("red cat"), [2, 3], tokens("red " * ROOM), tokens("cat " * (ROOM + 1))]
    np.testing.assert_array_equal(student.seen["token_ids"], [row + [0] * (LENGTH - len(row)) for row in rows])
    np.testing.assert_array_equal(student.seen["padding_mask"], [[1] * len(row) + [0] * (LENGTH - len(row)) for row in rows])
    assert got["truncated"].tolist() == [False, False, False, True]


# -------------------------------------------------------------------- a tag a word


def test_a_word_is_tagged_by_its_first_piece():
    # [CLS] cat ##s red dog ##g [SEP]: the words begin at 1, 3 and 4; each position has its own tag.
    tags = [2, 1, 0, 2, 0, 1, 2]
    logits = np.log(np.eye(3)[tags] * 6 + 1)[np.newaxis]  # 7/9 for the tag
    student = sharp(logits)
    got = said("tagging", student, ["cats red  dogg"])
    assert student.seen["token_ids"].tolist() == [[2, *(PIECES.index(piece) for piece in ("cat", "##s", "red", "dog", "##g")), 3]]
    assert got["words"].tolist() == [[b"cats", b"red", b"dogg"]]
    assert [tag.decode() for tag in got["tags"][0]] == [LABELS[1], LABELS[2], LABELS[0]]
    np.testing.assert_allclose(got["scores"], [[7 / 9] * 3], rtol=1e-6)


def test_words_that_were_cut_are_left_out_and_words_without_a_piece_have_no_tag():
    student = sharp(lambda seen: tf.zeros((*seen["token_ids"].shape, 3)))
    got = said("tagging", student, ["dog " * 50, "red \u200b cat", "", b"caf\xe9 \xff big\x0b"])
    assert got["words"].shape == (4, ROOM)
    assert got["words"][0].tolist() == [b"dog"] * ROOM
    assert got["words"][1].tolist() == [b"red", "\u200b".encode(), b"cat", *[b""] * (ROOM - 3)]
    assert [bool(tag) for tag in got["tags"][1]] == [True, False, True, *[False] * (ROOM - 3)]
    assert got["words"][3].tolist()[:3] == [b"caf", b"big", b""]  # bytes that are not UTF-8 are no word
    assert got["truncated"].tolist() == [True, False, False, False]
    np.testing.assert_allclose(got["scores"][0], 1 / 3, rtol=1e-6)


# -------------------------------------------------------------------- an answer in a context


def pointing(first: int, last: int, **others):
    """Logits that point at a span of positions."""

    def logits(seen):
        scores = np.zeros((*seen["token_ids"].shape, 2), "float32")
        scores[:, first, 0], scores[:, last, 1] = 5.0, 7.0
        for place, value in others.items():
            scores[:, int(place.removeprefix("at_"))] = value
        return tf.constant(scores)

    return logits


@pytest.mark.parametrize(
    ("context", "first", "last", "answer"),
    (
        ("The red Cat", 0, 2, "The"),
        ("a Cat, BIG dog", 1, 3, "Cat, BIG"),
        ("the BI\u0301G\u0301 dog", 3, 3, "BI\u0301G\u0301"),  # marks belong to the letter before
        ("\u200bred\u200b cat", 0, 0, "red\u200b"),
        ("ﬁ red \N{FOX FACE} cat", 1, 3, "red \N{FOX FACE} cat"),
        ("dogs", 1, 1, "s"),
        (b"caf\xe9 \xff red", 1, 1, "red"),
        ("İstanbul red", 1, 1, "red"),  # two characters when lower-cased
        ("x" * 101 + " Red cat", 1, 1, "red"),  # a word too long to be read: the answer in the tokenizer's own form
        ("red " * 200, 2, 3, "red red"),
    ),
)
def test_an_answer_stands_in_the_context_as_it_is_written(context, first, last, answer):
    # [CLS] who [SEP] comes before: `who` is w ##h ##o, as `the` is t ##h ##e.
    begin = 5
    got = said("question_answering", sharp(pointing(begin + first, begin + last), 16, pairs=True), ["who"], [context])
    assert got["answer"][0].decode() == answer
    assert got["score"][0] == 12.0
    assert got["truncated"].tolist() == [len(context) > 300]


def test_no_answer_reaches_beyond_the_context_or_30_pieces():
    question = pointing(1, 2)  # within the question, where no answer is: all spans of the context score 0, the first of them wins
    got = said("question_answering", sharp(question, 16, pairs=True), ["who"], ["cat dog"])
    assert (got["answer"].tolist(), got["score"].tolist()) == ([b"cat"], [0.0])
    separator = pointing(6, 7)  # its end would be the last [SEP]
    got = said("question_answering", sharp(separator, 16, pairs=True), ["who"], ["cat dog"])
    assert (got["answer"].tolist(), got["score"].tolist()) == ([b"dog"], [5.0])
    far = pointing(5, 5 + 30)  # 31 pieces, worth 12; the best of 30 has the end alone
    got = said("question_answering", sharp(far, 64, pairs=True), ["who"], ["cat " * 40])
    assert (len(got["answer"][0].split()), got["score"].tolist()) == (30, [7.0])


def test_a_score_for_no_answer_stands_beside():
    logits = pointing(5, 5, at_0=4.0)
    got = said("question_answering", sharp(logits, 16, pairs=True), ["who", "who"], ["cat", ""])
    assert got["none_score"].tolist() == [8.0, 8.0]
    assert got["answer"].tolist() == [b"cat", b""]
    assert got["score"][1] < -1e6


@pytest.mark.parametrize("task", text_answers.ANSWERS)
def test_an_empty_batch_is_answered(task):
    pairs = task == "question_answering"
    numbers = {"tagging": (0, 3, 3), "question_answering": (0, 3, 2)}.get(task, (0, 3))
    got = said(task, sharp(np.zeros(numbers), pairs=pairs), *[[]] * (1 + pairs))
    assert {len(values) for values in got.values()} == {0}


# -------------------------------------------------------------------- proof


def real(task: str) -> inference.Student:
    """An untrained student of a task."""
    pairs, kind = task == "question_answering", TASKS[task]()
    outputs = len(PIECES) if task == "masked_language_model" else kind.outputs(LABELS)
    head = kind.head(outputs, "mean" if task == "sentence_embedding" else "first")
    model = TransformerWithHead(build_model(2 if pairs else 0).encoder, head)
    generator = np.random.default_rng(5)
    model.set_weights([w + generator.normal(0, 0.3, w.shape).astype(w.dtype) for w in model.get_weights()])
    return inference.Student(model, TOKENIZER, tuple(LABELS), pairs, LENGTH, (LENGTH,), task)


@functools.cache
def asked(task: str) -> Questions:
    """A few texts and the edges, without a measure: the metric is not what is tested here."""
    words = np.random.default_rng(6).choice(["red", "cats", "Dog", "sings,", "old\u0301"], (12, 9))
    texts = [" ".join(row[: 1 + place % 9]).encode() for place, row in enumerate(words)]
    student = real(task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MEASURES, task, lambda truth, labels: None)
        return Questions(student, texts, texts[::-1] if student.pairs else None, {}, np.arange(len(texts)))


@functools.cache
def logits_and_answers(task: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What the token ids and the raw texts are answered with, without a file between."""
    questions, student = asked(task), asked(task).student
    texts = [questions.texts] if questions.pairs is None else [questions.texts, questions.pairs]
    features = {name: tf.constant(values) for name, values in questions.features(questions.max_length).items()}
    return student.logits(features).numpy(), said(task, student, *texts)


@pytest.mark.parametrize("task", text_answers.ANSWERS)
def test_right_answers_pass_the_check(task):
    assert len(asked(task).texts) == 12 + len(EDGES)
    text_answers_check.check(asked(task), *logits_and_answers(task))


def shifted(values):
    """Each row's answer is that of the row before."""
    return np.roll(values, 1, axis=0)


@pytest.mark.parametrize(
    ("task", "name", "fault", "words"),
    (
        ("multilabel", "labels", lambda labels: np.where(labels == b"animals", b"", labels), "answers '' where 'animals'"),
        ("multilabel", "labels", lambda labels: labels[:, ::-1], "answers"),
        ("regression", "value", shifted, "values that are off those of the token ids"),
        ("regression", "value", lambda values: values * np.nan, "off those"),
        ("regression", "value", lambda values: values[:-1], "off those"),
        ("sentence_embedding", "embedding", lambda vectors: -vectors, "embeddings that are off"),
        ("tagging", "tags", lambda tags: np.roll(tags, 1, axis=1), "tags b'"),
        ("tagging", "tags", lambda tags: np.where(tags == LABELS[0].encode(), LABELS[1].encode(), tags), "not as 'colours'"),
        ("tagging", "words", shifted, "into other words"),
        ("question_answering", "answer", shifted, "answers b'"),
        ("question_answering", "answer", lambda answers: np.array([answer[:-1] for answer in answers], object), "answers b'"),
    ),
)
def test_wrong_answers_do_not(task, name, fault, words):
    logits, answers = logits_and_answers(task)
    with pytest.raises(RuntimeError, match=words):
        text_answers_check.check(asked(task), logits, answers | {name: fault(answers[name])})


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_saved_model_of_every_task_is_proven_in_a_process_of_its_own(task, tmp_path):
    questions = asked(task)
    saved_model.write_float32(questions.student, tmp_path / "saved_model")
    answers = saved_model.answer(tmp_path / "saved_model", questions)
    reference = questions.reference(LENGTH)
    read = questions.features(LENGTH)["padding_mask"].astype(bool) if reference.ndim > 2 else ...
    np.testing.assert_allclose(answers.logits[read], reference[read], atol=1e-4)
    assert len(answers.milliseconds) == 12
    assert (answers.truncated is None) == (task == "masked_language_model")
