"""Tokenized examples on disk, memory-mapped: texts and tokens stay there, and any row is one read away.

What does grow with the number of rows is its length, its bucket and its place in an epoch's order: some 50 bytes a row.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from tfkd.data.target import Column, Target
from tfkd.data.tokenizer import Tokenizer
from tfkd.run_dir import read_json, sha256, whole

EXAMPLES_AT_ONCE = 1024
"""Examples tokenized together: enough to keep the tokenizer busy, few enough to stay in the cache."""


class Store:
    """Rows of one split, in the order of the source.

    Arguments:
        path: a folder that `write_store` wrote.
        target: what the rows' answers are, as it was when the store was written.

    Attributes:
        examples: how many examples the rows come from; more or less than the rows where an example can give several or none.
        lengths: (R,) int64, word pieces of each row.
        pairs: whether rows are pairs of texts, which adds `segment_ids`.
    """

    def __init__(self, path: str | os.PathLike, target: Target):
        self.path, self.target = pathlib.Path(path), target
        about = read_json(self.path / "about.json")
        self.rows, self.examples = about["rows"], about["examples"]
        self._columns = {name: self._open(name, **kind) for name, kind in about["columns"].items()}
        self.pairs = "segment_ids" in self._columns
        self.lengths = np.diff(self._columns["token_ids"][1])

    def __len__(self) -> int:
        return self.rows

    def _open(self, name: str, dtype: str, ragged: bool, shape: list[int]):
        values = self._map(name, dtype)
        return (values, self._map(f"{name}_offsets", "int64")) if ragged else values.reshape(-1, *shape)

    def _map(self, name: str, dtype: str) -> np.ndarray:
        path = self.path / f"{name}.{dtype}"
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)

    def column(self, name: str) -> np.ndarray:
        """A column that has one entry a row: (R, ...), memory-mapped."""
        return self._columns[name]

    def ragged(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A column of rows of different lengths, memory-mapped: its values (P,), and where each row begins (R + 1,)."""
        return self._columns[name]

    def row(self, name: str, row: int) -> np.ndarray:
        """One row of a ragged column."""
        values, offsets = self._columns[name]
        return values[offsets[row] : offsets[row + 1]]

    def text(self, row: int, name: str = "text") -> str:
        """The text of a row as the source gave it."""
        return self.row(name, row).tobytes().decode("utf-8")

    def text_pair(self, row: int) -> str | None:
        """The second text of a row, or None where rows are single texts."""
        return self.text(row, "text_pair") if "text_pair" in self._columns else None

    def json(self, row: int, name: str):
        """What a target kept of a row by `json_column`."""
        return json.loads(self.row(name, row).tobytes())

    @property
    def example(self) -> np.ndarray | None:
        """(R,) which example each row comes from, rising; None where every example gives one row."""
        return self._columns.get("example")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what `gather` gives."""
        return ("token_ids", "padding_mask", *(("segment_ids",) if self.pairs else ()))

    @property
    def key(self) -> str:
        """Hex digest of every file."""
        return sha256(self.path)

    def gather(self, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Model inputs of `rows` (B,), each padded to `length`: (B, T) int32. A row of -1 is all padding."""
        names = ("token_ids", "segment_ids") if self.pairs else ("token_ids",)
        batch = {name: np.zeros((len(rows), length), "int32") for name in (*names, "padding_mask")}
        for place, row in enumerate(rows):
            if row >= 0:
                for name in names:
                    values = self.row(name, row)
                    batch[name][place, : len(values)] = values
                batch["padding_mask"][place, : len(values)] = 1
        return batch

    def padded(self, name: str, rows: np.ndarray, length: int, fill) -> np.ndarray:
        """A ragged column with an entry a word piece, padded with `fill`: (B, T). A row of -1 is all padding."""
        batch = np.full((len(rows), length), fill, self._columns[name][0].dtype)
        for place, row in enumerate(rows):
            if row >= 0:
                values = self.row(name, row)
                batch[place, : len(values)] = values
        return batch


def write_store(
    path: str | os.PathLike,
    examples: Iterable[dict],
    tokenizer: Tokenizer,
    max_length: int,
    target: Target,
    progress: Callable[[int], None] | None = None,
) -> Store:
    """Tokenizes a stream of examples into a folder, whole or not at all.

    Arguments:
        path: the folder.
        examples: dicts, as `target.example` makes them.
        tokenizer: turns text into word pieces.
        max_length: longest row in word pieces; longer texts are cut, or make several rows, as the target has it.
        target: how examples become rows.
        progress: is told the number of examples done, now and then.
    """
    with whole(path) as folder, contextlib.ExitStack() as files:
        folder.mkdir()
        writers: dict[str, _Writer] = {}
        done = 0
        for chunk in _chunks(examples, EXAMPLES_AT_ONCE):
            columns = target.encode(chunk, tokenizer, max_length)
            if "example" in columns:
                columns["example"] = columns["example"] + done
            for name, column in columns.items():
                if name not in writers:
                    writers[name] = _Writer(files, folder, name, column)
                writers[name].write(column)
            done += len(chunk)
            if progress is not None and chunk:
                progress(done)
        about = {"rows": writers["token_ids"].rows, "examples": done}
        uneven = {name: writer.rows for name, writer in writers.items() if writer.rows != about["rows"]}
        if uneven:
            raise ValueError(f"{target.kind} encodes columns of different lengths: {uneven}, token_ids {about['rows']}")
        about["columns"] = {name: writer.kind for name, writer in writers.items()}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    return Store(path, target)


class _Writer:
    """Appends to one column: a file of values, and for rows of different lengths one of offsets.

    Arguments:
        column: the first part, which says type and shape for all.
    """

    def __init__(self, files: contextlib.ExitStack, folder: pathlib.Path, name: str, column: Column):
        ragged = isinstance(column, tuple)
        values = column[0] if ragged else column
        self.kind = {"dtype": str(values.dtype), "ragged": ragged, "shape": list(values.shape[1:])}
        self.rows, self.end = 0, 0
        self.values = files.enter_context((folder / f"{name}.{values.dtype}").open("wb"))
        self.offsets = None
        if ragged:
            self.offsets = files.enter_context((folder / f"{name}_offsets.int64").open("wb"))
            self.offsets.write(np.zeros(1, "int64").tobytes())

    def write(self, column: Column) -> None:
        values, lengths = column if self.offsets is not None else (column, column)
        self.values.write(values.astype(self.kind["dtype"], copy=False).tobytes())
        self.rows += len(lengths)
        if self.offsets is not None and len(lengths):
            ends = self.end + np.cumsum(lengths, dtype="int64")
            self.offsets.write(ends.tobytes())
            self.end = int(ends[-1])


def _chunks(examples: Iterable[dict], size: int) -> Iterator[list[dict]]:
    """Lists of at most `size` examples; a single empty one where there are none, which says what the columns would be."""
    chunk, any_yet = [], False
    for example in examples:
        chunk.append(example)
        if len(chunk) == size:
            yield chunk
            chunk, any_yet = [], True
    if chunk or not any_yet:
        yield chunk
