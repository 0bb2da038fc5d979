"""Data files that spreadsheets, scripts and broken disks could have made, of every format and for every kind of target."""

import csv
import dataclasses
import datetime
import decimal
import functools
import io
import json
import pathlib
import tempfile
import time

import numpy as np
import pyarrow
import pyarrow.parquet
from hypothesis import strategies as st

from tfkd.data import pipeline, prepare, sources
from tfkd.data.targets import TARGETS
from tfkd.data.tokenizer import Tokenizer, learn_vocabulary
from tfkd.errors import UserError

SECONDS = 10.0
LENGTH = 16
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmno")]
SUFFIXES = [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".txt"]
NAME = "rows"

TEXTS = ["a cab", "bad dad fed", "he hid a", "i am ok", "no", "jab lap", "a", "we see", "tap tap tap", "old kid", "é", "z z"]
CONTEXT = "the cat sat on a mat and ate the hat"


def _rows(kind: str) -> list[dict]:
    """A dozen rows that a kind of target can use."""
    match kind:
        case "number":
            return [{"text": text, "label": place / 4 - 1} for place, text in enumerate(TEXTS)]
        case "classes":
            return [{"text": text, "label": [["x"], ["x", "y"], []][place % 3]} for place, text in enumerate(TEXTS)]
        case "tags":
            return [{"tokens": text.split(), "tags": ["O", "B", "I"][: len(text.split())]} for text in TEXTS]
        case "span":
            found = [CONTEXT.split()[place % 9] for place in range(len(TEXTS))]
            answers = [{"text": [word], "answer_start": [CONTEXT.index(word)]} for word in found]
            rows = zip(TEXTS, answers, strict=True)
            return [{"question": text, "context": f"{CONTEXT} {text}", "answers": answer} for text, answer in rows]
        case "sentences":
            return [{"text": text, "text_pair": text[::-1], "label": place / 3} for place, text in enumerate(TEXTS)]
        case _:
            return [{"text": text, "label": "xyz"[place % 3]} for place, text in enumerate(TEXTS)]


@dataclasses.dataclass(frozen=True)
class Case:
    """A data file, and how it is read."""

    kind: str
    suffix: str
    content: bytes
    options: tuple[tuple[str, object], ...] = ()
    learn: bool = False
    twice: bool = False

    def __repr__(self):  # what a failing test prints: enough to see, and not megabytes
        content = self.content if len(self.content) < 3000 else self.content[:1500] + b"..." + self.content[-500:]
        return f"Case({self.kind!r}, {self.suffix!r}, {content!r}, {self.options!r}, {self.learn}, {self.twice})"


DAY = datetime.date(2020, 1, 1)
PLAIN = [
    None,
    "",
    " ",
    "\t",
    0,
    -1,
    7,
    1.5,
    1e300,
    10**30,
    10**400,
    True,
    [],
    {},
    [[]],
    ["a"],
    [1],
    [None],
    {"a": 1},
    [{"text": 3}],
]
PLAIN += [
    float("nan"),
    float("inf"),
    -0.0,
    "x",
    "1",
    "-1",
    "1,5",
    "nan",
    "1e400",
    "true",
    "O",
    "=1+1",
    '"',
    "'",
    ",",
    "a\tb",
    "a\nb",
]
PLAIN += ["a\r\nb", "\u2028", "\x85", "a\0b", "\ud800", "\ufeff", "\u202eabc", "́" * 5000, "\U0001f1ea" * 500, "漢字" * 200]
PLAIN += ["w" * 30_000, "a " * 10_000, "Σ" * 3000, "[SEP] [CLS]", "\u00ad\u200b\ufffd", "ﬁ" * 300, "\ue000", "9" * 5000, "<b>"]
PLAIN += [{"text": ["x"], "answer_start": [10**20]}, {"text": ["a"], "answer_start": [-1]}, {"text": [], "answer_start": [0]}]
PLAIN += [{"text": "a", "answer_start": 0}, {"text": ["a"], "answer_start": [2.0]}, {"text": [""], "answer_start": [0]}]
ARROW = [b"\xff", b"ab", DAY, datetime.datetime(1, 1, 1), datetime.timedelta(days=9**5), decimal.Decimal("1.5")]
TYPES = [pyarrow.large_string(), pyarrow.binary(), pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), pyarrow.null()]
TYPES += [pyarrow.timestamp("ns"), pyarrow.timestamp("s"), pyarrow.duration("ns"), pyarrow.date64(), pyarrow.decimal128(30, 3)]
TYPES += [pyarrow.list_(pyarrow.string()), pyarrow.struct({"text": pyarrow.list_(pyarrow.string())}), pyarrow.float16()]
TYPES += [
    pyarrow.map_(pyarrow.string(), pyarrow.int8()),
    pyarrow.bool_(),
    pyarrow.int64(),
    pyarrow.uint64(),
    pyarrow.time64("ns"),
]

cells = st.one_of(
    st.sampled_from(PLAIN), st.text(max_size=12), st.integers(), st.floats(), st.lists(st.text(max_size=4), max_size=3)
)


def _spoil(draw, rows: list[dict]) -> list[dict]:
    """One thing that is wrong with some rows, or with all of them."""
    place = draw(st.integers(0, len(rows) - 1))
    names = list(rows[place])
    name = draw(st.sampled_from(names)) if names else "text"
    match draw(st.integers(0, 9)):
        case 0 | 1 | 2:
            rows[place] = rows[place] | {name: draw(cells)}
        case 3:
            value = draw(cells)
            return [row | {name: value} for row in rows]
        case 4:
            rows[place] = {key: value for key, value in rows[place].items() if key != name}
        case 5:
            other = draw(st.one_of(st.text(max_size=6), st.just(name.upper()), st.just(f" {name} "), st.just("a\nb")))
            return [{other if key == name else key: value for key, value in row.items()} for row in rows]
        case 6:
            return rows[: draw(st.integers(0, 3))]
        case 7:
            return [row | {f"more {number}": number for number in range(draw(st.integers(1, 40)))} for row in rows]
        case 8:
            return rows * draw(st.sampled_from([2, 120]))
        case _:
            return [rows[place]] * draw(st.sampled_from([1, 30]))
    return rows


def _names(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _flat(value) -> str:
    text = "" if value is None else json.dumps(value) if isinstance(value, list | dict) else str(value)
    return text.replace("\ud800", "?")


def _table(draw, rows: list[dict], delimiter: str) -> bytes:
    """CSV or TSV, quoted as somebody's program does it, or not at all."""
    names = _names(rows)
    lines = [names] * draw(st.integers(0, 2) if draw(st.integers(0, 9)) == 0 else st.just(1))
    lines = lines + [[_flat(row.get(name)) for name in names] for row in rows]
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]) if draw(st.integers(0, 4)) == 0 else st.just("\n"))
    if draw(st.integers(0, 4)) == 0:
        return end.join(delimiter.join(line) for line in lines).encode("utf-8", "replace")
    stream, quoting = io.StringIO(newline=""), draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(lines)
    return stream.getvalue().encode("utf-8", "replace")


def _parquet(draw, rows: list[dict]) -> bytes:
    names, wanted = _names(rows), None
    columns = {name: [row.get(name) for row in rows] for name in names}
    if names and draw(st.integers(0, 2)) == 0:
        wanted, kind = draw(st.sampled_from(names)), draw(st.sampled_from(TYPES))
    if names and draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(names))
        columns[name] = [draw(st.sampled_from(ARROW))] * len(rows)
    arrays = []
    for name, values in columns.items():
        try:
            arrays.append(pyarrow.array(values, kind) if name == wanted else pyarrow.array(values))
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
            arrays.append(pyarrow.array([_flat(value) for value in values], pyarrow.string()))
    keys = [name.replace("\ud800", "?") for name in names]
    if arrays and draw(st.integers(0, 14)) == 0:
        arrays, keys = [*arrays, arrays[0]], [*keys, keys[0]]
    stream = io.BytesIO()
    try:
        table = pyarrow.Table.from_arrays(arrays, keys)
        size = draw(st.sampled_from([None, 2]))
        pyarrow.parquet.write_table(
            table, stream, row_group_size=size, compression=draw(st.sampled_from(["snappy", "none", "zstd"]))
        )
    except (pyarrow.ArrowException, OSError, ValueError):  # what Parquet cannot hold
        return b"PAR1"
    return stream.getvalue()


def _write(draw, rows: list[dict], suffix: str) -> bytes:
    match suffix:
        case ".csv" | ".tsv":
            return _table(draw, rows, "," if suffix == ".csv" else "\t")
        case ".parquet":
            return _parquet(draw, rows)
        case ".txt":
            return "".join(_flat(row.get("text")) + "\n" for row in rows).encode("utf-8", "replace")
        case _:
            with_nan = "".join(json.dumps(row, ensure_ascii=draw(st.booleans())) + "\n" for row in rows)
            return with_nan.encode("utf-8", "surrogatepass")


SNIPPETS = [
    b"\0",
    b"\xff",
    b"\xc3",
    b"\r",
    b"\n\n",
    b'"',
    b'""',
    b",",
    b"\t",
    b"{",
    b"}",
    b"[" * 4000,
    b"\\",
    b'"\n',
    b"1e999",
    b"\x1a",
]
SNIPPETS += [
    b"x" * 300_000,
    b"null\n",
    b"[]\n",
    b"NaN\n",
    b'{"text": "a", "text": "b", "label": 1}\n',
    b"," * 20_000,
    b'"a"b,"c"\n',
]
SNIPPETS += [b'{"text": ' + b"9" * 5000 + b"}\n", '{"label": "é"}\n'.encode(), b"\xef\xbb\xbf", b"\xf0\x9f\x98", b"\xed\xa0\x80"]
ENCODINGS = ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp037", "utf-7", "utf-8-sig"]


def _damage(draw, content: bytes) -> bytes:
    """One thing that a program or a disk can do to a file."""
    place = draw(st.integers(0, len(content)))
    line = content.rfind(b"\n", 0, place) + 1
    match draw(st.integers(0, 8)):
        case 0:
            return content[:place]
        case 1 | 2:
            return content[:place] + draw(st.sampled_from(SNIPPETS)) + content[place:]
        case 3:
            return content[:line] + draw(st.sampled_from(SNIPPETS)) + content[line:]
        case 4:
            return content[:place] + content[place + draw(st.integers(1, 30)) :]
        case 5:
            return content[:place] + draw(st.binary(min_size=1, max_size=4)) + content[place + 1 :]
        case 6:
            return content.decode("utf-8", "replace").encode(draw(st.sampled_from(ENCODINGS)), "replace")
        case 7:
            return content.replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r", b"\n\n", b"", "\u2028".encode()])))
        case _:
            end = content.find(b"\n", line) + 1
            return content[:line] + content[line:end] * draw(st.sampled_from([2, 40])) + content[end:]


OPTIONS = {
    "class": [(), (("labels", ("x", "y", "z")),), (("text_pair", "label"),), (("text", "more 1"),)],
    "classes": [(), (("separator", "|"),), (("labels", ("x", "y")),)],
    "tags": [(), (("labels", ("O", "B", "I")),), (("tags", "tokens"),)],
    "span": [(), (("stride", 1),), (("answers", "context"),)],
    "sentences": [(), (("label", "label"), ("text_pair", "text_pair"))],
}


@st.composite
def cases(draw) -> Case:
    """A file with something wrong, or nothing."""
    kind = draw(st.sampled_from(sorted(TARGETS)))
    likely = {"tags": 2, "span": 2, "none": 0, "masked": 0}.get(kind, 0), len(SUFFIXES) - (kind not in ("none", "masked"))
    suffix = draw(st.sampled_from(SUFFIXES[slice(*likely)] if draw(st.integers(0, 9)) else SUFFIXES))
    rows = _rows(kind)
    for _ in range(draw(st.integers(0, 2))):
        rows = _spoil(draw, rows) or [{}]
    content = _write(draw, rows, suffix)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        content = _damage(draw, content)
    options = draw(st.sampled_from(OPTIONS.get(kind, [()])))
    return Case(kind, suffix, content, options, draw(st.booleans()), draw(st.booleans()))


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer(PIECES)


def check(case: Case) -> str | None:
    """Reads and prepares a file as a run does. Answers with the one line for the person, None where it can be used."""
    with tempfile.TemporaryDirectory() as folder:
        path, cache = pathlib.Path(folder) / f"{NAME}{case.suffix}", pathlib.Path(folder) / "cache"
        path.write_bytes(case.content)
        begin, message = time.process_time(), None
        try:
            _use(case, path, cache)
        except UserError as error:
            message = str(error)
        seconds = time.process_time() - begin
        assert seconds < SECONDS, f"{seconds:.1f} s"
        for file in cache.rglob("*"):
            assert "partial" not in str(file.relative_to(cache)), file
            whole = file.is_dir() or (file.parent / "about.json").exists()
            assert whole or (file.suffix == ".lock" and not file.stat().st_size), file  # a lock stays, for whoever waits for it
        if message is not None:
            assert path.name in message or message.startswith("a vocabulary of nothing but"), message
            assert message.splitlines() == [message] and message.isprintable(), repr(message)
            assert len(message.replace(folder, "")) < 900, message
        return message and message.replace(f"{folder}/", "")


def _use(case: Case, path: pathlib.Path, cache: pathlib.Path) -> None:
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in case.options}
    files = {"train": str(path), "validation": str(path)} if case.twice else {"train": str(path)}
    source = sources.open_source(files=files, target=TARGETS[case.kind](**options), validation_fraction=0.3)
    tokenizer = _tokenizer()
    if case.learn:
        texts = (example[key] for example in source.examples("train") for key in ("text", "text_pair") if key in example)
        tokenizer = Tokenizer(learn_vocabulary(texts, 64))
    stores = prepare.prepare(source, tokenizer, LENGTH, cache)
    "\n".join(source.labels).encode()
    for split, store in stores.items():
        lengths = np.asarray(store.lengths)
        assert len(store) and lengths.min() >= 2 and lengths.max() <= LENGTH, split
        batches = pipeline.Batches(store, 4, pipeline.choose_buckets(lengths, LENGTH), shuffle=True)
        for rows, length in batches.plan()[:3]:
            _, y, weight = source.target.batch(store, rows, length, np.random.default_rng(0))
            assert np.isfinite(y).all() and np.isfinite(weight).all()
        source.target.describe(store)
        source.target.truth(store)
        for row in range(min(len(store), 3)):
            json.dumps(source.target.told(store, row), allow_nan=False)
            assert store.text(row) is not None
