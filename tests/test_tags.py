"""Tags of words: read, checked, laid beside word pieces, batched; words that are cut off stay known."""

import numpy as np
import pytest
import tensorflow as tf

from tests.stored_rows import store_rows, write
from tfkd.data.files import Files
from tfkd.data.store import write_store
from tfkd.data.tags import Tags
from tfkd.data.tokenizer import SPECIAL, Tokenizer
from tfkd.errors import UserError
from tfkd.tasks.tagging_metrics import TaggingMeasure

PIECES = [*SPECIAL, "in", "new", "york", "walk", "##ing", "##s", "s", "'", ".", "é"]
ROWS = [
    {"tokens": ["walking", "in", "New", "York", "."], "tags": ["O", "O", "B-loc", "I-loc", "O"]},
    {"tokens": ["York's", "\u200b", "walks"], "tags": ["B-loc", "O", "O"]},
    {"tokens": ["in"], "tags": ["O"]},
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(PIECES)


def store_of(tmp_path, rows, tokenizer, max_length=16, **named):
    return store_rows(tmp_path, rows, tokenizer, Tags(**named), max_length)


def row_pieces(store, place):
    return [PIECES[id_] for id_ in store.row("token_ids", place)]


def test_first_pieces_carry_the_tag_and_nothing_else_does(tmp_path, tokenizer):
    store = store_of(tmp_path, ROWS, tokenizer)
    assert store.target.labels == ["B-loc", "I-loc", "O"]
    x, y, weight = store.target.batch(store, np.array([0, 1, -1]), 10, None)
    assert row_pieces(store, 0) == ["[CLS]", "walk", "##ing", "in", "new", "york", ".", "[SEP]"]
    assert x["token_ids"][0, :8].tolist() == store.row("token_ids", 0).tolist() and not x["token_ids"][0, 8:].any()
    assert weight[0].tolist() == [0, 1, 0, 1, 1, 1, 1, 0, 0, 0] and y[0].tolist() == [0, 2, 0, 2, 0, 1, 2, 0, 0, 0]
    assert row_pieces(store, 1) == ["[CLS]", "york", "'", "s", "walk", "##s", "[SEP]"]
    assert weight[1].tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 0] and y[1, [1, 4]].tolist() == [0, 2]
    assert not weight[2].any() and not x["padding_mask"][2].any()
    assert (y.dtype, weight.dtype, y.shape) == ("int32", "float32", (3, 10))


def test_pieces_of_the_words_are_those_of_the_joined_text(tmp_path, tokenizer):
    store = store_of(tmp_path, ROWS, tokenizer)
    whole = tokenizer(tf.constant([store.text(row) for row in range(3)]), max_length=16)["token_ids"].to_list()
    assert [store.row("token_ids", row).tolist() for row in range(3)] == whole


def test_words_that_are_cut_off_are_kept_and_told(tmp_path, tokenizer):
    store = store_of(tmp_path, ROWS, tokenizer, max_length=5)  # room for three pieces: walk ##ing in | york ' s
    truth = store.target.truth(store)
    assert truth["labels"].tolist() == [2, 2, 0, 1, 2, 0, 2, 2, 2]
    assert truth["pieces"].tolist() == [1, 3, -1, -1, -1, 1, -1, -1, 1]
    assert truth["offsets"].tolist() == [0, 5, 8, 9] and truth["piece_offsets"].tolist() == [0, 5, 10, 13]
    title, line = store.target.describe(store)
    assert title == "tags" and line.startswith("3: O 6, B-loc 2, I-loc 1") and "5 of 9 words are cut off" in line
    _, _, weight = store.target.batch(store, np.array([0]), 5, None)
    assert weight.sum() == 2
    # A model that is right about all it reads still misses the entity behind the cut.
    outputs = np.zeros((13, 3))
    outputs[[1, 3, 6, 11], [2, 2, 0, 2]] = 9.0
    found = TaggingMeasure(truth, store.target.labels).metrics(outputs)
    assert found["precision"] == 1.0 and found["recall"] == 0.5


def test_a_word_whose_first_piece_is_in_is_read(tmp_path, tokenizer):
    store = store_of(tmp_path, [{"tokens": ["in", "walking"], "tags": ["A", "B"]}], tokenizer, max_length=4)
    assert store.target.truth(store)["pieces"].tolist() == [1, 2]


def test_words_come_back_as_they_were(tmp_path, tokenizer):
    rows = [{"tokens": ["New York", "é\u0301", "日本", "a  b"], "tags": ["A", "B", "A", "B"]}]
    store = store_of(tmp_path, rows, tokenizer)
    assert store.target.words(store, 0) == rows[0]["tokens"]
    assert store.target.told(store, 0) == [list(pair) for pair in zip(rows[0]["tokens"], rows[0]["tags"], strict=True)]


def test_classes_and_other_columns_may_be_named(tmp_path, tokenizer):
    rows = [{"w": ["in", "new"], "t": [1, 0]}, {"w": ["in"], "t": [1]}]
    store = store_of(tmp_path, rows, tokenizer, words="w", tags="t", labels=["X", "Y"])
    assert store.target.told(store, 0) == [["in", "Y"], ["new", "X"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["in", "new"], "tags": ["O"]}, "2 words in tokens, but 1 tags in tags"),
        ({"tokens": "in new", "tags": ["O", "O"]}, "column tokens holds 'in new', not a list of words; write a JSON list"),
        ({"tokens": ["in"], "tags": "O"}, "column tags holds 'O', not a list of tags"),
        ({"tokens": [], "tags": []}, "column tokens is an empty list"),
        ({"tokens": None, "tags": ["O"]}, "column tokens holds None"),
        ({"tokens": ["in", ""], "tags": ["O", "O"]}, "word 2: column tokens is empty"),
        ({"tokens": ["in", 3], "tags": ["O", "O"]}, "word 2: column tokens holds 3, not text"),
        ({"tokens": ["\ud800"], "tags": ["O"]}, "half of a surrogate pair"),
        ({"tokens": ["in"], "tags": ["X"]}, "label 'X' is not among the labels"),
        ({"tokens": ["in"], "tags": [None]}, "column tags, the label, is empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, message):
    path = write(tmp_path / "train.jsonl", [ROWS[0], row])
    files = Files({"train": path}, Tags(labels=["B-loc", "I-loc", "O"]))
    with pytest.raises(UserError) as error:
        list(files.rows("train"))
    assert str(error.value).startswith(f"{path}, row 2") and message in str(error.value)


def test_one_tag_everywhere_is_nothing_to_learn(tmp_path):
    target = Tags(labels=["O", "B-x"])
    finding, _ = target.survey(iter([{"label": [0, 0]}, {"label": [0]}]))
    assert finding == "have the tag O on every word"
    assert target.survey(iter([{"label": [0, 0]}, {"label": [0, 1]}])) is None
    assert target.is_unlabelled([-1, -1]) and not target.is_unlabelled([-1, 0])


def test_no_examples_are_a_store_of_nothing(tmp_path, tokenizer):
    store = write_store(tmp_path / "store", [], tokenizer, 8, Tags(labels=["O", "X"]))
    assert len(store) == 0 and len(store.target.truth(store)["labels"]) == 0
