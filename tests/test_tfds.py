"""TFDS data sets: labels, splits and one line for whatever cannot be opened. A small data set is prepared for the tests."""

import os
import pathlib
import shutil

import numpy as np
import pytest

from tfkd.data.sources import open_source
from tfkd.data.targets import Class, Classes, Number, Unlabelled
from tfkd.errors import UserError

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data" / "tfds"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder with `tfkd_tiny`: train of 50 rows, dev of 6, test of 4 without labels, broken of 2."""
    import tensorflow_datasets as tfds

    class TfkdTiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.3")

        def _info(self):
            features = {
                "sentence": tfds.features.Text(),
                "other": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["bad", "good"]),
                "stars": tfds.features.Scalar(np.int32),
                "name": tfds.features.Text(),
                "score": tfds.features.Scalar(np.float32),
                "words": tfds.features.Sequence(tfds.features.Text()),
                "flag": tfds.features.Scalar(np.bool_),
                "kinds": tfds.features.Sequence(tfds.features.ClassLabel(names=["red", "blue"])),
                "answers": tfds.features.Sequence({"text": tfds.features.Text(), "start": np.int32}),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "dev", "test", "broken")}

        def _generate_examples(self, split):
            for i in range({"train": 50, "dev": 6, "test": 4, "broken": 2}[split]):
                text = f"naïve {split} {i}".encode() if split != "broken" or i == 0 else b"caf\xe9"
                label = -1 if split == "test" else i % 2
                row = {"sentence": text, "other": f"pair {i}", "label": label, "stars": 10 - i % 3, "name": "xyz"[i % 3]}
                row |= {"score": 0.5, "words": ["a"] * (i % 3 > 0), "flag": i % 2 == 0, "kinds": list(range(i % 3))}
                yield i, row | {"answers": [{"text": f"é {j}", "start": j} for j in range(i % 3)]}

    folder = tmp_path_factory.mktemp("tfds")
    TfkdTiny(data_dir=folder).download_and_prepare()
    return folder


def opened(data_dir, kind=Class, **options):
    """The tiny data set; options of the target and of the source alike."""
    own = {key: options.pop(key) for key in ("text", "text_pair", "label", "labels", "separator") if key in options}
    return open_source(**{"tfds": "tfkd_tiny", "data_dir": data_dir, "target": kind(**{"text": "sentence"} | own)} | options)


def problem(data_dir, **options):
    """The one line that a person gets, on opening or on reading."""
    with pytest.raises(UserError) as error:
        source = opened(data_dir, **options)
        for split in source.splits:
            list(source.examples(split))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_rows_come_in_order_as_decoded_text_with_the_class_labels(data_dir):
    source = opened(data_dir, text_pair="other")
    examples = list(source.examples("validation"))  # which this data set calls dev
    assert source.labels == ["bad", "good"]
    assert {example["text"]: (example["text_pair"], example["label"]) for example in examples} == {
        f"naïve dev {i}": (f"pair {i}", i % 2) for i in range(6)
    }
    assert examples == list(opened(data_dir, text_pair="other").examples("validation"))
    assert source.provenance == {"tfkd_tiny": "1.2.3"} and source.name == "tfkd_tiny"


def test_numbers_are_read_from_any_number(data_dir):
    source = opened(data_dir, Number, label="stars")
    assert sorted({example["label"] for example in source.examples("train")}) == [8.0, 9.0, 10.0]
    assert "all rows of train have the number 0.5" in problem(data_dir, kind=Number, label="score")
    assert "column words holds lists of text, not a number" in problem(data_dir, kind=Number, label="words")


@pytest.mark.parametrize("label", ["words", "kinds"])
def test_lists_of_labels_are_read_row_by_row(data_dir, label):
    source = opened(data_dir, Classes, label=label)
    assert source.labels == {"words": ["a"], "kinds": ["red", "blue"]}[label]
    found = {example["text"]: example["label"] for example in source.examples("validation")}
    assert [found[f"naïve dev {i}"] for i in range(6)] == [[], [0], [0] if label == "words" else [0, 1]] * 2


def test_records_are_read_with_what_is_in_them(data_dir):
    class Records(Unlabelled):
        defaults = {"text": "sentence", "answers": "answers"}
        holds = {"answers": ("records", ("records",))}

        def label(self, cells):
            return cells

    found = {example["text"]: example["answers"] for example in opened(data_dir, Records).examples("validation")}
    assert found["naïve dev 2"] == {"text": ["é 0", "é 1"], "start": [0, 1]}
    assert found["naïve dev 0"] == {"text": [], "start": []}


def test_an_unlabelled_test_split_is_left_out_and_told(data_dir):
    source = opened(data_dir)
    assert source.splits == ("train", "validation")
    assert source.notes == ["the test split of tfkd_tiny is unlabelled (-1) and is not used"]


def test_an_unlabelled_split_that_was_asked_for_is_refused(data_dir):
    message = problem(data_dir, splits={"test": "test"})
    assert message == "tfkd_tiny, split test, row 1: label -1: the row is unlabelled; name a labelled split in data.splits"


def test_split_expressions_select_rows(data_dir):
    source = opened(data_dir, splits={"train": "train[:60%]", "validation": "train[60%:]", "test": "dev[2:]"})
    assert [len(list(source.examples(split))) for split in source.splits] == [30, 20, 4]
    assert source.notes == []


def test_splits_that_share_rows_are_told(data_dir):
    source = opened(data_dir, splits={"train": "train[:60%]+dev", "validation": "train[40%:]"})
    assert "the train and the validation split share 10 rows: what is measured there was seen before" in source.notes


def test_key_changes_with_splits_and_columns(data_dir):
    options = [
        {},
        {"splits": {"train": "train[:60%]"}},
        {"splits": {"train": "train[:62%]"}},
        {"text": "other"},
        {"text_pair": "other"},
        {"label": "name"},
        {"labels": ["good", "bad"]},
        {"labels": ["minus", "plus"]},
        {"limit": 10},
    ]
    keys = [opened(data_dir, **option).key for option in options]
    assert len(set(keys)) == len(keys)
    assert opened(data_dir).key == keys[0]


def test_given_labels_reorder_or_rename_the_classes(data_dir):
    def named(**options):
        source = opened(data_dir, **options)
        return {example["text"]: source.labels[example["label"]] for example in source.examples("validation")}

    own = named()
    assert named(labels=["good", "bad"]) == own
    assert named(labels=["minus", "plus"]) == {text: {"bad": "minus", "good": "plus"}[name] for text, name in own.items()}
    assert "data.labels = good, better: the 2 labels of tfkd_tiny are bad, good" in problem(data_dir, labels=["good", "better"])
    assert "the 2 labels of tfkd_tiny are bad, good" in problem(data_dir, labels=["a", "b", "c"])


@pytest.mark.parametrize(
    ("label", "labels"), [("stars", ["8", "9", "10"]), ("name", ["x", "y", "z"]), ("flag", ["false", "true"])]
)
def test_labels_that_are_no_class_label_are_found_in_train(data_dir, label, labels):
    source = opened(data_dir, label=label)
    assert source.labels == labels
    assert {example["label"] for example in source.examples("train")} == set(range(len(labels)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"text": "sentense"},
            "no column sentense; it has answers, flag, kinds, label, name, other, score, sentence, stars, words; did you mean",
        ),
        ({"text": "stars"}, "column stars holds whole numbers, not text; set data.columns.text"),
        ({"text_pair": "words"}, "column words holds lists of text, not text; set data.columns.text_pair"),
        ({"label": "score"}, "column score holds float32 numbers, not a class"),
        ({"label": "words"}, "column words holds lists of text, not a class"),
        ({"splits": {"train": "training"}}, "data.splits.train = 'training': Unknown split 'training'"),
        ({"splits": {"train": "train["}}, "data.splits.train = 'train[': Error parsing split"),
        (
            {"splits": {"test": "train[:0]"}},
            "data.splits.test = 'train[:0]' selects no rows; it has train (50), dev (6), test (4), broken (2)",
        ),
        ({"splits": {"test": "train[5:1]"}}, "data.splits.test = 'train[5:1]' selects no rows"),
        ({"splits": {"train": "broken"}}, "tfkd_tiny, split train (broken), row "),
        ({"tfds": "tfkd_tinny"}, "data.tfds = tfkd_tinny: no such data set; did you mean tfkd_tiny?"),
        ({"tfds": "no_data_set_is_called_so"}, "no such data set; `tfds.list_builders()` lists those there are"),
        ({"tfds": "tfkd_tiny:9.9.9"}, "data.tfds = tfkd_tiny:9.9.9: Dataset tfkd_tiny cannot be loaded at version 9.9.9"),
        ({"tfds": "glue/sst3"}, "data.tfds = glue/sst3: glue has no configuration sst3; it has cola, sst2,"),
        ({"tfds": "../tiny"}, "data.tfds = ../tiny: "),
        ({"tfds": "huggingface:glue"}, "a community data set is fetched, and its maker's code run; if you trust it"),
    ],
)
def test_what_cannot_be_opened_is_one_line(data_dir, options, message):
    assert message in problem(data_dir, **options)


def test_bytes_that_are_not_utf8_name_the_row(data_dir):
    message = problem(data_dir, splits={"test": "broken"})
    assert "column sentence: byte 3 is 0xE9, not UTF-8" in message and "split test (broken), row " in message


def test_what_is_not_prepared_is_one_line_and_prepared_only_if_allowed(data_dir, tmp_path):
    message = problem(tmp_path)
    assert message == f"tfkd_tiny: not prepared in {tmp_path}; set data.data_dir to where it is, or data.download: true to get it"
    assert not list(tmp_path.iterdir())
    assert opened(tmp_path, download=True).key == opened(data_dir).key


def test_a_damaged_data_set_is_one_line(tmp_path):
    opened(tmp_path, download=True)
    (record,) = tmp_path.rglob("*train.tfrecord*")
    content = bytearray(record.read_bytes())
    content[len(content) // 2 :] = os.urandom(len(content) - len(content) // 2)
    record.write_bytes(content)
    assert "tfkd_tiny, split train: cannot be read" in problem(tmp_path)


def without_a_file(folder):
    next(folder.glob("*train.tfrecord*")).unlink()


def with_an_empty_file(folder):
    next(folder.glob("*train.tfrecord*")).write_bytes(b"")


def with_half_a_file(folder):
    record = next(folder.glob("*train.tfrecord*"))
    record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])


def with_half_its_description(folder):
    about = folder / "dataset_info.json"
    about.write_bytes(about.read_bytes()[: about.stat().st_size // 2])


def without_its_description(folder):
    (folder / "dataset_info.json").unlink()


def as_a_killed_preparation_leaves_it(folder):
    folder.rename(folder.with_name("incomplete.ABCDEF_1.2.3"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_file, "tfkd_tiny, split train: cannot be read: "),
        (with_an_empty_file, "tfkd_tiny, split train: cannot be read: Input dataset was expected to contain 50 elements but"),
        (with_half_a_file, "tfkd_tiny, split train: cannot be read: truncated record at "),
        (with_half_its_description, "data.tfds = tfkd_tiny: dataset_info.json cannot be read: "),
        (without_its_description, "tfkd_tiny: not prepared in "),
        (as_a_killed_preparation_leaves_it, "tfkd_tiny: not prepared in "),
    ],
)
def test_an_incomplete_data_set_is_one_line_and_left_as_it_is(data_dir, tmp_path, damage, message):
    folder = shutil.copytree(data_dir, tmp_path / "data")
    damage(folder / "tfkd_tiny" / "1.2.3")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert problem(folder).startswith(message)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.skipif(not (SHARED / "glue" / "sst2").is_dir(), reason="../shared/data is not there")
def test_sst2_has_its_official_counts_and_labels():
    source = open_source(tfds="glue/sst2", data_dir=SHARED, target=Class(text="sentence"))
    assert source.labels == ["negative", "positive"] and source.splits == ("train", "validation")
    labels = [example["label"] for example in source.examples("validation")]
    assert (len(labels), sum(labels)) == (872, 444)
    assert source.notes == ["the test split of glue/sst2 is unlabelled (-1) and is not used"]
