"""Kinds of targets: what a cell becomes, from file to batch, and one line for whatever cannot be a target."""

import json
import pathlib

import numpy as np
import pytest

from tfkd.data.pipeline import Batches
from tfkd.data.sources import open_source
from tfkd.data.store import write_store
from tfkd.data.targets import TARGETS, Class, Classes, Number, Unlabelled
from tfkd.data.tokenizer import Tokenizer
from tfkd.errors import UserError

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data" / "tfds"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(10))]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(PIECES)


def put(tmp_path, rows, name="train.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def opened(tmp_path, target, rows):
    path = put(tmp_path, rows)
    return open_source(files={"train": path, "validation": path}, target=target)


def problem(tmp_path, target, rows):
    """The one line that a person gets, on opening or on reading."""
    with pytest.raises(UserError) as error:
        list(opened(tmp_path, target, rows).examples("train"))
    assert "\n" not in str(error.value)
    return str(error.value)


def labelled(*labels):
    return [{"text": f"w{i} w{i}", "label": label} for i, label in enumerate(labels)]


def batches(tmp_path, tokenizer, target, rows, batch_size=2):
    """Every batch of some rows as NumPy arrays, in order, beside the store."""
    source = opened(tmp_path, target, rows)
    store = write_store(tmp_path / "store", source.examples("train"), tokenizer, 8, target)
    return store, [tuple(part.numpy() for part in batch[1:]) for batch in Batches(store, batch_size, [8]).dataset()]


# Numbers.


def test_numbers_keep_their_units_from_file_to_batch(tmp_path, tokenizer):
    store, found = batches(tmp_path, tokenizer, Number(), labelled(3.8, "0.25", -2))
    assert [y.dtype for y, _ in found] == [np.float32] * 2
    np.testing.assert_array_equal(found[0][0], np.array([3.8, 0.25], "float32"))
    np.testing.assert_array_equal(found[1][0], [-2.0, 0.0])
    np.testing.assert_array_equal(found[1][1], [1.0, 0.0])  # the filler row weighs nothing
    assert [store.target.told(store, row) for row in range(3)] == [3.8, 0.25, -2.0]
    np.testing.assert_array_equal(store.target.truth(store)["labels"], np.array([3.8, 0.25, -2], "float32"))


def test_mean_and_deviation_of_train_are_known_after_opening(tmp_path):
    values = np.random.default_rng(0).normal(1e5, 3.0, 50)
    source = opened(tmp_path, Number(), labelled(*values.tolist()))
    assert source.target.mean == pytest.approx(values.mean(), rel=1e-12)
    assert source.target.deviation == pytest.approx(values.std(), rel=1e-9)
    assert source.labels == ["label"]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (float("nan"), "holds nan; a target is a finite number"),
        (float("-inf"), "holds -inf; a target is a finite number"),
        ("nan", "holds 'nan', not a finite number"),
        ("1,5", "holds '1,5', not a finite number; write a decimal point"),
        ("1_000", "holds '1_000', not a finite number"),
        ("good", "holds 'good', not a finite number"),
        (1e39, "holds 1e+39; a target is a finite number below 3e38"),
        (10**400, "a target is a finite number below 3e38"),
        (True, "holds True, not a number"),
        ([1.0], "holds [1.0], not a number"),
        (None, "the target, is empty"),
        ("  ", "the target, is empty"),
    ],
)
def test_what_is_no_finite_number_names_row_and_value(tmp_path, cell, message):
    said = problem(tmp_path, Number(), labelled(1.0, 2.0, cell))
    assert "train.jsonl, row 3: column label" in said and message in said


def test_a_constant_target_cannot_be_learned(tmp_path):
    assert "all rows of train have the number 3; there is nothing to learn" in problem(tmp_path, Number(), labelled(3, 3.0, "3"))
    message = problem(tmp_path, Number(), labelled(*[0.1 + 1e-9 * i for i in range(9)]))  # one number as float32 has it
    assert "all rows of train have the number 0.1" in message


def test_numbers_have_no_label_names():
    with pytest.raises(UserError, match="data.labels = a, b: the targets are no labels"):
        Number(labels=["a", "b"])


# Several labels.


@pytest.mark.parametrize(
    ("separator", "cells"),
    [
        ("|", ["a|b", "", "b", " c | a "]),
        (", ", ["a, b", "", "b", "c, a"]),
        (None, [["a", "b"], [], "b", ["c", "a"]]),
        (None, [["b", "a"], [], ["b"], ("a", "c")]),
    ],
)
def test_lists_and_separated_strings_are_the_same_labels(tmp_path, tokenizer, separator, cells):
    target = Classes(separator=separator)
    store, found = batches(tmp_path, tokenizer, target, labelled(*cells), batch_size=4)
    assert target.labels == ["a", "b", "c"]
    np.testing.assert_array_equal(found[0][0], [[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]])
    assert found[0][0].dtype == np.float32 and found[0][1].shape == (4,)
    assert [target.told(store, row) for row in range(4)] == [["a", "b"], [], ["b"], ["a", "c"]]
    assert target.describe(store) == ("labels", "1.25 a row of 3: a 2, b 2, c 1")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (["a", "bb"], "label 'bb' is not among the labels a, b"),
        (["a", "a"], "has the label a twice"),
        (["a", None], "the label, is empty"),
        (["a", ["b"]], "holds ['b']; a label is a name"),
        (None, "is null; write an empty list or an empty string"),
        ({"a": 1}, "holds {'a': 1}; a label is a name"),
        ("a|b", "label 'a|b' is not among the labels a, b"),
    ],
)
def test_what_is_no_list_of_labels_names_row_and_value(tmp_path, cell, message):
    said = problem(tmp_path, Classes(labels=["a", "b"]), labelled(["a"], [], cell))
    assert "train.jsonl, row 3: " in said and message in said


def test_labels_that_never_change_cannot_be_learned(tmp_path):
    assert "have the same labels (a)" in problem(tmp_path, Classes(labels=["a", "b"]), labelled(["a"], ["a"]))
    assert "have the same labels (none)" in problem(tmp_path, Classes(labels=["a", "b"]), labelled([], [], ""))


def test_no_separator_is_not_an_empty_one():
    with pytest.raises(UserError, match="data.label_separator is empty"):
        Classes(separator="")


def test_the_separator_is_part_of_what_names_prepared_data(tmp_path):
    rows = labelled("a b", "b", "a")
    keys = {opened(tmp_path, Classes(separator=mark, labels=["a", "b", "a b"]), rows).key for mark in (None, " ", "|")}
    assert len(keys) == 3


# Plain texts.


def test_plain_text_files_need_no_label(tmp_path, tokenizer):
    path = tmp_path / "speeches.txt"
    path.write_text("  w1 w2 \n\n\nw3\n \n")
    target = Unlabelled()
    source = open_source(files={"train": str(path), "validation": str(path)}, target=target)
    assert list(source.examples("train")) == [{"text": "w1 w2"}, {"text": "w3"}]
    store = write_store(tmp_path / "store", source.examples("train"), tokenizer, 8, target)
    ((x, y, weight),) = Batches(store, 3, [4]).dataset()
    np.testing.assert_array_equal(weight, [1, 1, 0])
    assert y.shape == (3,) and x["token_ids"].shape == (3, 4) and target.truth(store) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.txt: is empty"),
        (b"\n \n", "a.txt: has no rows"),
        (b"fine\ncaf\xe9\n", "a.txt, row 2: byte 8 is 0xE9, not UTF-8"),
    ],
)
def test_texts_that_cannot_be_read_say_where(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        list(open_source(files={"train": str(path), "validation": str(path)}, target=Unlabelled()).examples("train"))
    assert message in str(error.value)


def test_a_text_file_has_no_label_column(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x\ny\n")
    with pytest.raises(UserError, match="a.txt: no column label; it has text"):
        open_source(files={"train": str(path)}, target=Class())


# All kinds.


def test_the_table_knows_every_kind_by_its_name():
    assert {"class", "number", "classes", "none"} <= set(TARGETS)
    assert all(target.kind == name for name, target in TARGETS.items())


ALL = [Class(labels=["a", "b"]), Number(), Classes(labels=["a"]), Unlabelled()]


def test_no_array_of_a_batch_is_handed_out_twice(tmp_path, tokenizer):
    """TensorFlow takes a generator's arrays without a copy and may write into them: a second reader would read what it left."""
    rows = labelled("a", "b", "a", "b")
    source = opened(tmp_path, Class(), rows)
    store = write_store(tmp_path / "store", source.examples("train"), tokenizer, 8, source.target)
    plan = Batches(store, 2, [8])

    def arrays():
        return [
            array
            for part in plan._batch(np.array([0, 1]), 8, (0, 0, 1))
            for array in (part.values() if isinstance(part, dict) else [part])
        ]

    first, second, columns = arrays(), arrays(), [store.column("label"), store.row("token_ids", 0)]
    for array in first:
        assert array.flags.writeable and not any(np.shares_memory(array, other) for other in (*second, *columns))


@pytest.mark.parametrize("target", ALL, ids=lambda target: target.kind)
def test_an_empty_split_has_the_columns_of_a_full_one(tmp_path, tokenizer, target):
    store = write_store(tmp_path / "store", iter(()), tokenizer, 8, target)
    assert len(store) == store.examples == 0 and list(Batches(store, 2, [8]).dataset()) == []
    assert all(len(array) == 0 for array in target.truth(store).values())


def test_unknown_columns_are_refused_with_those_there_are():
    with pytest.raises(UserError, match="data.columns.words: is not read here; the columns are text, text_pair, label"):
        Number(words="tokens")


def test_rows_of_one_example_keep_its_number_across_chunks(tmp_path, tokenizer):
    class Doubled(Unlabelled):
        def encode(self, examples, tokenizer, max_length):
            twice = [example for example in examples for _ in range(2)]
            return super().encode(twice, tokenizer, max_length) | {"example": np.repeat(np.arange(len(examples)), 2)}

    store = write_store(tmp_path / "store", ({"text": "w1"} for _ in range(1500)), tokenizer, 8, Doubled())
    assert (len(store), store.examples) == (3000, 1500)
    np.testing.assert_array_equal(store.column("example"), np.repeat(np.arange(1500), 2))


def test_columns_of_different_lengths_are_a_bug_that_shows(tmp_path, tokenizer):
    class Broken(Unlabelled):
        def targets(self, examples):
            return {"label": np.zeros(len(examples) + 1)}

    with pytest.raises(ValueError, match="columns of different lengths: {'label': 2}, token_ids 1"):
        write_store(tmp_path / "store", iter([{"text": "w1"}]), tokenizer, 8, Broken())
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(not (SHARED / "glue" / "stsb").exists(), reason="needs ../shared/data")
def test_stsb_is_read_with_its_official_rows():
    target = Number(text="sentence1", text_pair="sentence2")
    source = open_source(tfds="glue/stsb", data_dir=SHARED, target=target)
    assert source.splits == ("train", "validation")  # the test split's -1 is no similarity
    assert "unlabelled" in source.notes[0]
    assert (round(target.mean, 2), round(target.deviation, 2)) == (2.70, 1.46)
    rows = list(source.examples("validation"))
    assert len(rows) == 1500 and {"text", "text_pair", "label"} == set(rows[0])
    assert min(row["label"] for row in rows) == 0.0 and max(row["label"] for row in rows) == 5.0
