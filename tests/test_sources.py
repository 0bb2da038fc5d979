"""The interface that every source of examples shares: cuts, limits, checks and keys."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tfkd.data.sources import Source, in_cut, open_source
from tfkd.data.targets import Class, Number, Unlabelled
from tfkd.errors import UserError


class Rows:
    """A reader over lists, so that what `Source` adds is tested alone."""

    name = "rows"
    provenance = {"rows": "1"}
    notes = ["told by the reader"]
    key = "k"

    def __init__(self, **splits):
        self._rows = {split: [{"text": text, "label": label} for text, label in rows] for split, rows in splits.items()}
        self.splits = tuple(splits)
        self.target = Class(labels=["a", "b"])

    def rows(self, split):
        return iter(self._rows[split])


def many(count):
    return [(f"text {i}", i % 2) for i in range(count)]


def texts(source, split):
    return [example["text"] for example in source.examples(split)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_splits_that_exist_are_passed_through():
    source = Source(Rows(train=many(4), validation=many(3), test=many(2)))
    assert source.splits == ("train", "validation", "test")
    assert [len(texts(source, split)) for split in source.splits] == [4, 3, 2]
    assert source.notes == ["told by the reader"]


def test_cut_takes_every_row_once_and_about_the_fraction():
    source = Source(Rows(train=many(5000)), validation_fraction=0.2)
    train, validation = texts(source, "train"), texts(source, "validation")
    assert sorted(train + validation) == sorted(text for text, _ in many(5000))
    assert 0.18 < len(validation) / 5000 < 0.22  # standard error 0.0057
    assert source.splits == ("train", "validation")


def test_cut_is_told_with_its_numbers():
    source = Source(Rows(train=many(5000)), validation_fraction=0.2)
    cut = len(texts(source, "validation"))
    assert (
        source.notes[1] == f"no validation split: 20 % of train ({cut:,} of 5,000 rows) was cut out by a stable hash of the text"
    )


def test_cut_ignores_order_and_keeps_equal_texts_together():
    rows = many(300)
    one, other = Source(Rows(train=rows)), Source(Rows(train=rows[::-1] * 2))
    assert set(texts(one, "validation")) == set(texts(other, "validation"))
    assert not set(texts(other, "train")) & set(texts(other, "validation"))


def test_cut_is_the_same_in_a_process_with_another_hash_seed():
    code = "from tfkd.data.sources import in_cut; print([i for i in range(300) if in_cut(f'té {i}', 0.1)])"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(other) == [i for i in range(300) if in_cut(f"té {i}", 0.1)]


def test_limit_takes_the_first_rows_of_each_final_split():
    whole = Source(Rows(train=many(500), test=many(50)))
    limited = Source(Rows(train=many(500), test=many(50)), limit=7)
    for split in ("train", "validation", "test"):
        assert texts(limited, split) == texts(whole, split)[:7]


def test_examples_can_be_read_again():
    source = Source(Rows(train=many(100)))
    assert texts(source, "train") == texts(source, "train")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"train": [("x", 1), ("y", 1)], "validation": many(2)}, {}, "all rows of train have the label b"),
        (
            {"train": [("x", 1), ("y", 1), ("z", 0)], "validation": many(2)},
            {"limit": 2},
            "first 2 rows of train have the label b",
        ),
        ({"train": [("x", 0), ("x", 1)]}, {}, "2 rows of train are too few to cut out 10 % for validation"),
        ({"train": [], "validation": many(2)}, {}, "rows: the train split has no rows"),
        ({"train": many(9), "validation": []}, {}, "rows: the validation split has no rows"),
        ({"train": many(9), "validation": many(2), "test": []}, {}, "rows: the test split has no rows"),
        ({"train": many(9)}, {"validation_fraction": 1.0}, "data.validation_fraction = 1.0"),
        ({"train": many(9)}, {"validation_fraction": float("nan")}, "data.validation_fraction = nan"),
        ({"train": many(9)}, {"limit": 0}, "data.limit = 0"),
    ],
)
def test_unusable_splits_are_one_line(rows, options, message):
    with pytest.raises(UserError) as error:
        Source(Rows(**rows), **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_split_that_is_not_there_names_those_that_are():
    with pytest.raises(UserError, match="rows has no test split; it has train, validation"):
        Source(Rows(train=many(100))).examples("test")


def test_key_changes_with_whatever_changes_the_examples(tmp_path):
    rows = [{"text": text, "pair": "p", "label": label} for text, label in many(60)]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    options = [{}, {"validation_fraction": 0.2}, {"limit": 30}]
    options += [{"target": target} for target in (Class(text_pair="pair"), Class(labels=["1", "0"]), Number(), Unlabelled())]
    keys = [open_source(files={"train": path}, **option).key for option in options]
    keys.append(open_source(files={"train": path, "validation": path}).key)
    keys.append(open_source(files={"train": path, "validation": path, "test": path}).key)
    rows[-1]["label"] = 0
    keys.append(open_source(files={"train": write_jsonl(tmp_path / "train.jsonl", rows)}).key)
    assert len(set(keys)) == len(keys)
    assert open_source(files={"train": path}).key == keys[-1]  # and with nothing else, such as the time


def test_key_does_not_depend_on_where_a_file_lies(tmp_path):
    rows = [{"text": text, "label": label} for text, label in many(60)]
    (tmp_path / "elsewhere").mkdir()
    one, other = write_jsonl(tmp_path / "a.jsonl", rows), write_jsonl(tmp_path / "elsewhere" / "b.jsonl", rows)
    assert open_source(files={"train": one}).key == open_source(files={"train": other}).key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give exactly one of data.builtin, data.tfds and data.files, not none"),
        ({"builtin": "docstrings", "tfds": "glue/sst2"}, "not builtin, tfds"),
        ({"builtin": "docstring"}, "the one built-in data set is docstrings"),
        ({"builtin": "docstrings", "target": Class(labels=["a", "b"])}, "its own labels and columns"),
        ({"builtin": "docstrings", "target": Class(text="sentence")}, "its own labels and columns"),
        ({"builtin": "docstrings", "target": Number()}, "one label a text, and no number"),
        ({"files": {"test": "x.csv"}}, "data.files.train is missing"),
    ],
)
def test_what_cannot_be_opened_is_one_line(options, message):
    with pytest.raises(UserError) as error:
        open_source(**options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_no_tensorflow_is_imported_for_files(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", [{"text": text, "label": label} for text, label in many(60)])
    code = (
        "import sys\nfrom tfkd.data.sources import open_source\n"
        f"list(open_source(files={{'train': {path!r}}}).examples('train'))\nassert 'tensorflow' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
