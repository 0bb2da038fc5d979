"""Examples from CSV, TSV, JSONL, Parquet and text files: streamed, checked, errors that name file and row. No TensorFlow."""

import codecs
import collections
import csv
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator

from tfkd import run_dir
from tfkd.data import columns
from tfkd.data.target import Target
from tfkd.errors import UserError

LARGEST_FIELD = 10_000_000  # characters of one CSV field; more is a quote that nobody closed
LARGEST_LINE = 64_000_000  # bytes; more is not a text file, and would be read into memory whole

Row = tuple[int, int | None, list]  # data row from 1, first line from 1 where there are lines, cells


class Files:
    """Reads examples from one file a split.

    Arguments:
        paths: split -> path; `train` must be there, `validation` and `test` may. The suffix says the format: `.csv`, `.tsv`,
            `.jsonl`, `.ndjson`, `.parquet`, or `.txt`: one text a line, in a column called `text`.
        target: which columns are read, and what becomes of them. Where its labels are not given, they are the sorted distinct
            values of the training file, found by reading it once.

    Attributes:
        name: of the training file.
        provenance: file name and split -> bytes and checksum.
        key: hex digest of contents and target.

    Raises:
        UserError: a file is missing, unreadable, of another format, or has no such column.
    """

    def __init__(self, paths: dict[str, str | os.PathLike | None], target: Target):
        self._paths = {split: pathlib.Path(paths[split]) for split in ("train", "validation", "test") if paths.get(split)}
        if "train" not in self._paths:
            raise UserError("data.files.train is missing: name the training file")
        for split, path in self._paths.items():
            _require_readable(path, f"data.files.{split}")
        self.target = target
        self.name = self._paths["train"].name
        self.splits = tuple(self._paths)
        self._stamps = {path: _stamp(path) for path in self._paths.values()}
        digests = {split: run_dir.sha256(path) for split, path in self._paths.items()}
        self.provenance = {
            f"{path.name} ({split})": f"{path.stat().st_size:,} bytes, sha256 {digests[split][:16]}"
            for split, path in self._paths.items()
        }
        self.notes = _same_files(digests)
        if target.labels is None:
            target.settle(self._find_labels())
        formats = [path.suffix.lower() for path in self._paths.values()]
        rule = {"files": digests, "formats": formats, "target": target.rule}
        self.key = hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()

    def rows(self, split: str) -> Iterator[dict]:
        """Yields examples as the target makes them, in file order. Raises `UserError` at a row that it cannot use."""
        return _read(self._paths[split], self.target.columns, self.target.example)

    def check_unchanged(self) -> None:
        """Raises `UserError` where a file is no longer the one that `key` stands for."""
        for path, stamp in self._stamps.items():
            if not path.exists() or _stamp(path) != stamp:
                raise UserError(f"{path}: changed while it was read; run again when it is finished")

    def _find_labels(self) -> list[str]:
        """Reads the label column of the training file."""
        key = self.target.keys[0]
        named = {key: self.target.columns[key]}
        values = _read(self._paths["train"], named, self.target.names)
        try:
            return columns.label_names(itertools.chain.from_iterable(values), named[key])
        except columns.TooManyLabels as error:
            raise UserError(f"{self._paths['train']}: {error}") from None


def _stamp(path: pathlib.Path) -> tuple[int, int, int]:
    """Changes whenever a file is written to or replaced."""
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns


def _require_readable(path: pathlib.Path, key: str) -> None:
    if path.is_dir():
        raise UserError(f"{key} = {path}: is a folder; name a file")
    if not path.exists():
        raise UserError(f"{key} = {path}: no such file")
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{key} = {path}: unknown format {path.suffix or '(no suffix)'}; known are {', '.join(_FORMATS)}")
    if not path.is_file():
        raise UserError(f"{key} = {path}: is not a regular file, and it must be read more than once")
    if not os.access(path, os.R_OK):
        raise UserError(f"{key} = {path}: no permission to read it")


def _same_files(digests: dict[str, str]) -> list[str]:
    pairs = [("train", "validation"), ("train", "test"), ("validation", "test")]
    return [
        f"the {one} and the {other} file are the same: what is measured there was seen before"
        for one, other in pairs
        if one in digests and digests[one] == digests.get(other)
    ]


def _read(path: pathlib.Path, named: dict[str, str], convert: Callable[[dict], object]) -> Iterator:
    """Yields `convert(cells)` of every row; an error in a row gets file, row and line before it.

    Arguments:
        path: a file of a known format.
        named: key under `data.columns` -> column.
        convert: from cells by key to what is yielded; raises `UserError` without a place.
    """
    row, line = 0, None
    try:
        for row, line, cells in _FORMATS[path.suffix.lower()](path, named):
            try:
                converted = convert(dict(zip(named, cells, strict=True)))
            except UserError as error:
                raise UserError(f"{_place(path, row, line)}: {error}") from None
            yield converted
    except OSError as error:
        raise UserError(f"{path}: cannot be read after row {row:,}: {error.strerror}") from None
    if row == 0:
        raise UserError(f"{path}: has no rows")


def _place(path: pathlib.Path, row: int, line: int | None) -> str:
    return f"{path}, row {row:,}" + (f" (line {line:,})" if line is not None and line != row else "")


def _require_columns(path: pathlib.Path | str, named: dict[str, str], present: list[str], fix: str = "") -> list[int]:
    """Positions of the named columns. Raises `UserError` with those there are and the nearest one, or else how to mend it."""
    for key, column in named.items():
        if column not in present:
            near = columns.nearest(column, present) or f"; set data.columns.{key}{fix}"
            raise UserError(f"{path}: no column {column}; it has {columns.listed(present)}{near}")
    return [present.index(column) for column in named.values()]


def _require_distinct(path: pathlib.Path, names: list[str]) -> None:
    twice = sorted(name for name, times in collections.Counter(names).items() if name and times > 1)
    if twice:
        raise UserError(f"{path}: column {twice[0]} is there twice; rename one of them")


def _lines(stream) -> Iterator[str]:
    """Decodes a file line by line; a byte order mark is skipped. Raises `UserError` without a place."""
    before = 0  # bytes of the lines read so far
    while raw := stream.readline(LARGEST_LINE + 1):
        if before == 0:
            if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UserError("the file is UTF-16; save it as UTF-8")
            if raw.startswith(codecs.BOM_UTF8):
                raw, before = raw[3:], 3
        if len(raw) > LARGEST_LINE:
            raise UserError(f"a line has more than {LARGEST_LINE:,} bytes; this is not a text file")
        if b"\0" in raw:
            raise UserError(f"byte {before + raw.index(0):,} is NUL; this is not a text file in UTF-8")
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"byte {before + error.start:,} is 0x{raw[error.start]:02X}, not UTF-8; save the file as UTF-8"
            ) from None
        before += len(raw)


def _read_csv(path: pathlib.Path, named: dict[str, str], delimiter: str = ",") -> Iterator[Row]:
    """Yields rows of a file with a header line. Quotes as in RFC 4180; blank lines are skipped."""
    csv.field_size_limit(LARGEST_FIELD)
    with open(path, "rb") as stream:
        reader = csv.reader(_lines(stream), delimiter=delimiter, strict=True)
        header, positions, row = None, [], 0
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except (csv.Error, UserError) as error:
                where = f"{path}, header" if header is None else _place(path, row + 1, line)
                raise UserError(f"{where}: {_csv_problem(str(error), delimiter)}") from None
            if cells is None:
                break
            if not cells:
                continue
            if header is None:
                header = [name.strip() for name in cells]
                _require_distinct(path, header)
                positions = _require_columns(path, named, header, ", or begin the file with a line of names")
                continue
            row += 1
            if len(cells) != len(header):
                fix = f"quote fields that hold a {'comma' if delimiter == ',' else 'tab'}"
                fields = f"{len(cells)} field{'s' * (len(cells) != 1)}, but the header has {len(header)}"
                raise UserError(f"{_place(path, row, line)}: {fields}; {fix}")
            yield row, line, [cells[position] for position in positions]
    if header is None:
        raise UserError(f"{path}: is empty")


def _csv_problem(message: str, delimiter: str) -> str:
    """The csv module's messages in the words of a person who never saw it."""
    if "expected after" in message:
        return "text after a closing quote; write a quote inside a quoted field twice, or save the file as JSONL"
    if "unexpected end" in message:
        return "a quote opens a field and is never closed; write a quote inside a quoted field twice, or save the file as JSONL"
    if "field larger" in message:
        return f"a field has more than {LARGEST_FIELD:,} characters; is a quote not closed?"
    if "new-line character" in message:
        return "lines end in a bare carriage return; save the file with line feeds"
    return message


def _read_jsonl(path: pathlib.Path, named: dict[str, str]) -> Iterator[Row]:
    """Yields rows of a file with one JSON object a line; blank lines are skipped."""
    row = line = 0
    with open(path, "rb") as stream:
        lines = _lines(stream)
        while True:
            line += 1
            try:
                text = next(lines, None)
                if text is None:
                    break
                if not text.strip():
                    continue
                fields = _parsed(text)
            except UserError as error:
                raise UserError(f"{_place(path, row + 1, line)}: {error}") from None
            row += 1
            _require_columns(_place(path, row, line), named, list(fields), ", or give every row one" * (row > 1))
            yield row, line, [fields[column] for column in named.values()]
    if line == 1:
        raise UserError(f"{path}: is empty")


def _parsed(text: str) -> dict:
    """One line of JSONL. Raises `UserError` without a place."""
    try:
        value = json.loads(text.rstrip(), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON at column {error.colno} ({error.msg}); write one object a line") from None
    except RecursionError:
        raise UserError("not readable as JSON: nested too deep") from None
    except UserError:
        raise
    except ValueError:  # the interpreter's limit on the digits of an integer
        raise UserError("not readable as JSON: a number with thousands of digits") from None
    if not isinstance(value, dict):
        raise UserError(f"holds {columns.shown(value)}, not an object; write one object a line")
    return value


def _object(pairs: list[tuple[str, object]]) -> dict:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        (twice, _), *_ = collections.Counter(name for name, _ in pairs).most_common(1)
        raise UserError(f"key {columns.shown(twice)} is there twice")
    return fields


def _read_parquet(path: pathlib.Path, named: dict[str, str]) -> Iterator[Row]:
    """Yields rows of a Parquet file, a thousand in memory at a time; only the named columns are read."""
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            names = file.schema_arrow.names
            _require_distinct(path, names)
            _require_columns(path, named, names)
            for batch in file.iter_batches(batch_size=1024, columns=list(dict.fromkeys(named.values())), use_threads=False):
                for cells in zip(*(batch.column(column).to_pylist() for column in named.values()), strict=True):
                    row += 1
                    yield row, None, list(cells)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, after row {row:,}: text that is not UTF-8 ({error.reason}); write the file anew") from None
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # damage; times that Python does not know
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise UserError(f"{path}: not readable as Parquet after row {row:,}: {reason}; write the file anew") from None


def _read_text(path: pathlib.Path, named: dict[str, str]) -> Iterator[Row]:
    """Yields the lines of a plain text, without white space around them; blank ones are skipped."""
    _require_columns(path, named, ["text"], "; a .txt file has texts alone: what else a task needs is in CSV, JSONL or Parquet")
    row = line = 0
    with open(path, "rb") as stream:
        try:
            for line, text in enumerate(_lines(stream), start=1):
                if text.strip():
                    row += 1
                    yield row, line, [text.strip()] * len(named)
        except UserError as error:
            raise UserError(f"{_place(path, row + 1, line + 1)}: {error}") from None
    if line == 0:
        raise UserError(f"{path}: is empty")


_FORMATS: dict[str, Callable[[pathlib.Path, dict[str, str]], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".tsv": functools.partial(_read_csv, delimiter="\t"),
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
