"""Reading CSV, TSV, JSONL and Parquet: what is read, and one line for whatever cannot be."""

import csv
import json
import os
import time
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from tfkd.data import files
from tfkd.data.targets import Class
from tfkd.errors import UserError

SHA256 = "cf4ae2aa7a83ef12c1fbddcb7cb4354f92fb9345ca01540bf752a590ccd65855"
ROWS = [("good film", "pos"), ('he said "no", twice', "neg"), ("two\nlines", "pos"), ("naïve café 電影", "neg")]


def opened(path, **options):
    """One file, read for classes."""
    return files.Files({"train": path}, Class(**options))


def read(path, **options):
    reader = opened(path, **options)
    return [(example["text"], reader.target.labels[example["label"]]) for example in reader.rows("train")]


def problem(path, **options):
    """The one line that a person gets."""
    with pytest.raises(UserError) as error:
        read(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def put(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write(tmp_path, suffix, rows=ROWS):
    """The rows as another library's writer puts them."""
    path = tmp_path / f"train{suffix}"
    if suffix in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerows([("text", "label"), *rows])
    elif suffix == ".parquet":
        table = pyarrow.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    else:
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".CSV"])
def test_every_format_reads_the_same_rows(tmp_path, suffix):
    path = write(tmp_path, suffix.lower())
    path = path.rename(path.with_suffix(suffix))
    assert read(path) == ROWS


def test_byte_order_mark_line_ends_and_blank_lines_change_nothing(tmp_path):
    assert read(put(tmp_path, "a.csv", b"\xef\xbb\xbftext, label\r\n\r\na,x\r\n\r\nb, y \r\n")) == [("a", "x"), ("b", "y")]
    assert read(put(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "a", "label": 1}\r\n\n{"label": 0, "text": "b"}')) == [
        ("a", "1"),
        ("b", "0"),
    ]


def test_columns_are_chosen_by_name_and_others_ignored(tmp_path):
    path = put(tmp_path, "a.csv", "id,second,first,class\n1,b,a,x\n2,d,c,y\n")
    reader = opened(path, text="first", text_pair="second", label="class")
    assert list(reader.rows("train")) == [
        {"text": "a", "text_pair": "b", "label": 0},
        {"text": "c", "text_pair": "d", "label": 1},
    ]


def test_labels_are_sorted_and_numbers_numerically(tmp_path):
    assert opened(put(tmp_path, "a.csv", "text,label\na,10\nb,9\nc,-1\n")).target.labels == ["-1", "9", "10"]
    assert opened(put(tmp_path, "b.csv", "text,label\na,b\nb,B\nc,a\n")).target.labels == ["B", "a", "b"]
    assert opened(put(tmp_path, "c.jsonl", '{"text":"a","label":true}\n{"text":"b","label":false}\n')).target.labels == [
        "false",
        "true",
    ]


def test_whole_numbers_that_pandas_made_floats_stay_whole(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [1.0, 0.0]}), path)
    assert read(path) == [("a", "1"), ("b", "0")]


def test_given_labels_are_read_as_names_or_as_indices(tmp_path):
    assert read(put(tmp_path, "a.csv", "text,label\na,neg\nb,1\nc,0\n"), labels=["neg", "pos"]) == [
        ("a", "neg"),
        ("b", "pos"),
        ("c", "neg"),
    ]


def test_numbers_are_never_indices_where_a_name_is_a_number(tmp_path):
    path = put(tmp_path, "a.csv", "text,label\na,1\nb,2\nc,0\n")
    assert "row 3 (line 4): label '0' is not among the labels 1, 2" in problem(path, labels=["1", "2"])


def test_dictionary_columns_of_parquet_read_as_text(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": pyarrow.array(["a", "b", "a"]).dictionary_encode(), "label": pyarrow.array([0, 1, 0], "int8")})
    pyarrow.parquet.write_table(table, path)
    assert read(path) == [("a", "0"), ("b", "1"), ("a", "0")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.csv: is empty"),
        ("\n\n", "a.csv: is empty"),
        ("text,label\n", "a.csv: has no rows"),
        ("txt,label\na,b\n", "a.csv: no column text; it has txt, label; did you mean txt?"),
        (
            "id,label\na,b\n",
            "no column text; it has id, label; set data.columns.text, or begin the file with a line of names",
        ),
        (",x\na,b\n", "it has '', x; set data.columns"),
        ('" Label ","a\nb"\na,b\n', "a.csv: no column label; it has Label, a\\nb; did you mean Label?"),
        ("text,label,text\na,b,c\n", "a.csv: column text is there twice"),
        ("text,label\na,x\nb,y,z\n", "a.csv, row 2 (line 3): 3 fields, but the header has 2; quote fields that hold a comma"),
        ("text,label\na,x\nb\n", "a.csv, row 2 (line 3): 1 field, but the header has 2"),
        ('text,label\n"a\nb",x\n  ,y\n', "a.csv, row 2 (line 4): column text is empty"),
        ("text,label\na,x\nb,\n", "a.csv, row 2 (line 3): column label, the label, is empty"),
        ("text,label\na,0.5\nb,x\n", None),
        ('text,label\n"a"b,x\n', "a.csv, row 1 (line 2): text after a closing quote"),
        ('text,label\nc,x\n"a,x\nb,y\n', "a.csv, row 2 (line 3): a quote opens a field and is never closed"),
        (b"text,label\na,x\ncaf\xe9,y\n", "a.csv, row 2 (line 3): byte 18 is 0xE9, not UTF-8"),
        (b"\xef\xbb\xbftext,label\ncaf\xe9,y\n", "a.csv, row 1 (line 2): byte 17 is 0xE9, not UTF-8"),
        (b"text,label\na,x\nb\0c,y\n", "a.csv, row 2 (line 3): byte 16 is NUL"),
        ("text,label\na,b\n".encode("utf-16"), "a.csv, header: the file is UTF-16; save it as UTF-8"),
        (b"text,label\ra,x\rb,y\r", "a.csv, header: lines end in a bare carriage return"),
        ('text,label\na,"x\ny"\n', "a.csv, row 1 (line 2): column label, the label, spans several lines"),
    ],
)
def test_broken_csv_is_one_line_with_row_and_line(tmp_path, content, message):
    path = put(tmp_path, "a.csv", content)
    if message is None:
        assert read(path) == [("a", "0.5"), ("b", "x")]  # a name, where the file is text
    else:
        assert message in problem(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.jsonl: is empty"),
        ("\n \n", "a.jsonl: has no rows"),
        ('{"text": "a", "label": 1}\n\n{"text": "b"\n', "a.jsonl, row 2 (line 3): not JSON at column 13"),
        (
            '[{"text": "a", "label": 1}]\n',
            "a.jsonl, row 1: holds [{'text': 'a', 'label': 1}], not an object; write one object a line",
        ),
        ('{"text": "a"}\n', "a.jsonl, row 1: no column label; it has text; set data.columns.label"),
        (
            '{"text": "a", "label": 1}\n{"text": "a"}\n',
            "row 2: no column label; it has text; set data.columns.label, or give every row one",
        ),
        ("{}\n", "a.jsonl, row 1: no column label; it has none; set data.columns.label"),
        ('{"text": "a", "label": "\\ud800"}\n', "a.jsonl, row 1: column label holds U+D800, half of a surrogate pair"),
        ('{"text": "a", "label": "' + "x" * 1001 + '"}\n', "column label, the label, has 1,001 characters: 'xxx"),
        ('{"text": null, "label": 1}\n', "a.jsonl, row 1: column text is null, not text"),
        ('{"text": 5, "label": 1}\n', "a.jsonl, row 1: column text holds 5, not text"),
        ('{"text": ["a"], "label": 1}\n', "a.jsonl, row 1: column text holds ['a'], not text"),
        ('{"text": "a", "label": null}\n', "a.jsonl, row 1: column label, the label, is empty"),
        (
            '{"text": "a", "label": {"x": 1}}\n',
            "a.jsonl, row 1: column label holds {'x': 1}; a label is a name or a whole number",
        ),
        ('{"text": "a", "label": 0.5}\n', "a.jsonl, row 1: column label holds 0.5"),
        ('{"text": "a", "label": NaN}\n', "a.jsonl, row 1: column label, the label, is empty"),
        ('{"text": "a", "text": "b", "label": 1}\n', "a.jsonl, row 1: key 'text' is there twice"),
        ('{"text": "\\ud800", "label": 1}\n', "a.jsonl, row 1: column text holds U+D800, half of a surrogate pair"),
        ("[" * 100_000 + "\n", "a.jsonl, row 1: not readable as JSON: nested too deep"),
        (b'{"text": "a", "label": 1}\n{"text": "\xff", "label": 1}\n', "a.jsonl, row 2: byte 36 is 0xFF, not UTF-8"),
        (
            '{"text": "a", "label": ' + "9" * 5000 + "}\n",
            "a.jsonl, row 1: not readable as JSON: a number with thousands of digits",
        ),
    ],
)
def test_broken_jsonl_is_one_line_with_row_and_line(tmp_path, content, message):
    assert message in problem(put(tmp_path, "a.jsonl", content))


def test_broken_parquet_is_one_line(tmp_path):
    whole = write(tmp_path, ".parquet").read_bytes()
    assert "not readable as Parquet" in problem(put(tmp_path, "cut.parquet", whole[:-20]))
    assert "not readable as Parquet" in problem(put(tmp_path, "empty.parquet", b""))
    assert "not readable as Parquet" in problem(put(tmp_path, "csv.parquet", "text,label\na,b\n"))
    damaged = bytearray(whole)
    damaged[4:60] = bytes(56)
    assert "not readable as Parquet" in problem(put(tmp_path, "damaged.parquet", bytes(damaged)))
    table = pyarrow.table({"text": pyarrow.array([1, 2]), "label": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "numbers.parquet")
    assert "numbers.parquet, row 1: column text holds 1, not text" in problem(tmp_path / "numbers.parquet")
    pyarrow.parquet.write_table(table.slice(0, 0), tmp_path / "norows.parquet")
    assert problem(tmp_path / "norows.parquet").endswith("norows.parquet: has no rows")
    pyarrow.parquet.write_table(table.rename_columns(["text", "text"]), tmp_path / "twice.parquet")
    assert "column text is there twice" in problem(tmp_path / "twice.parquet")
    assert "no column sentence; it has text, label" in problem(write(tmp_path, ".parquet"), text="sentence")
    times = pyarrow.table({"text": ["a"], "label": pyarrow.array([2**62], "timestamp[us]")})  # of a year that Python has not
    pyarrow.parquet.write_table(times, tmp_path / "times.parquet")
    assert "times.parquet: not readable as Parquet after row 0: " in problem(tmp_path / "times.parquet")
    bad = pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff"))
    pyarrow.parquet.write_table(pyarrow.table({"text": bad, "label": ["a"]}), tmp_path / "bytes.parquet")
    assert "not UTF-8" in problem(tmp_path / "bytes.parquet")


def test_a_text_file_has_texts_alone(tmp_path):
    assert "a.txt: no column label; it has text; set data.columns.label; a .txt file has texts alone" in problem(
        put(tmp_path, "a.txt", "a\nb\n")
    )


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_name_that_is_there_twice_among_very_many_is_found_at_once(tmp_path, name):
    names = [f"column {number}" for number in range(100_000)] + ["column 99999"]
    content = ",".join(names) if name == "a.csv" else "{" + ",".join(f'"{column}": 1' for column in names) + "}"
    begin = time.process_time()
    assert "column 99999" in problem(put(tmp_path, name, content + "\n"))
    assert time.process_time() - begin < 5.0  # counting each name in a list took an hour


def test_a_column_that_is_missing_among_very_many_is_told_at_once(tmp_path):
    content = ",".join(f"lab{number}" for number in range(200_000))
    begin = time.process_time()
    assert "a.csv: no column label; it has lab0, lab1" in problem(put(tmp_path, "a.csv", content + "\n"))
    assert time.process_time() - begin < 5.0


def test_paths_that_are_no_data_files_are_one_line(tmp_path):
    assert problem(tmp_path / "none.csv").endswith("none.csv: no such file")
    assert problem(tmp_path).endswith("is a folder; name a file")
    assert "unknown format .xlsx; known are .csv, .tsv, .jsonl, .ndjson, .parquet" in problem(put(tmp_path, "a.xlsx", b"x"))
    assert "unknown format (no suffix)" in problem(put(tmp_path, "a", b"x"))
    os.mkfifo(tmp_path / "pipe.csv")
    assert "is not a regular file" in problem(tmp_path / "pipe.csv")


def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    path = write(tmp_path, ".csv")
    monkeypatch.setattr(os, "access", lambda *_: False)  # chmod stops nobody where tests run as root
    assert problem(path).endswith("no permission to read it")


def test_unknown_labels_name_file_row_list_and_nearest(tmp_path):
    train, test = write(tmp_path, ".csv"), put(tmp_path, "test.csv", "text,label\na,pos\nb,Postive\n")
    reader = files.Files({"train": train, "test": test}, Class(labels=["positive", "neg", "pos"]))
    with pytest.raises(UserError) as error:
        list(reader.rows("test"))
    assert (
        str(error.value)
        == f"{test}, row 2 (line 3): label 'Postive' is not among the labels positive, neg, pos; did you mean positive?"
    )


@pytest.mark.parametrize("labels", [["a", "a"], ["a", ""], ["a", " b"], ["a", "b\nc"]])
def test_label_names_that_no_file_could_list_are_refused(tmp_path, labels):
    assert "data.labels" in problem(put(tmp_path, "a.csv", "text,label\nx,a\n"), labels=labels)


def test_a_column_of_texts_is_no_label_column(tmp_path):
    path = put(tmp_path, "a.csv", "text,label\n" + "".join(f"a,text {i}\n" for i in range(1001)))
    message = problem(path)
    assert "a.csv: column label holds more than 1,000 distinct values" in message and "data.labels" in message
    assert len(opened(put(tmp_path, "b.csv", "text,label\n" + "".join(f"a,{i}\n" for i in range(1000)))).target.labels) == 1000


def test_a_field_or_line_without_end_is_refused_before_memory_is(tmp_path):
    path = put(tmp_path, "a.csv", 'text,label\n"' + "a" * (files.LARGEST_FIELD + 10) + '",x\n')
    assert "row 1 (line 2): a field has more than 10,000,000 characters" in problem(path)
    with open(tmp_path / "b.jsonl", "wb") as stream:
        stream.truncate(files.LARGEST_LINE + 10)  # a hole of NULs, one line
    assert "row 1: a line has more than 64,000,000 bytes" in problem(tmp_path / "b.jsonl")


def test_the_same_file_twice_is_told(tmp_path):
    path = write(tmp_path, ".csv")
    reader = files.Files({"train": path, "validation": path, "test": None}, Class())
    assert reader.splits == ("train", "validation")
    assert reader.notes == ["the train and the validation file are the same: what is measured there was seen before"]


def test_provenance_holds_size_and_checksum(tmp_path):
    path = put(tmp_path, "a.csv", "text,label\na,x\n")
    # printf 'text,label\na,x\n' | sha256sum
    assert opened(path).provenance == {"a.csv (train)": "15 bytes, sha256 " + SHA256[:16]}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    path = write(tmp_path, suffix, [(f"{i} " + "word " * 240, "ab"[i % 2]) for i in range(10_000)])
    assert suffix == ".parquet" or path.stat().st_size > 12e6  # Parquet compresses
    next(opened(path).rows("train"))  # imports are not what is measured
    tracemalloc.start()
    try:
        rows = sum(1 for _ in opened(path).rows("train"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 10_000
    assert peak < 4e6  # two batches of 1,024 rows, a checksum's buffer
