"""Tokenized examples on disk, memory-mapped: texts and tokens stay there, and any row is one read away.

What does grow with the number of rows is its length, its bucket and its place in an epoch's order: some 50 bytes a row.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from tfkd.data.tokenizer import Tokenizer
from tfkd.run_dir import read_json, whole

ROWS_AT_ONCE = 1024
"""Rows tokenized together: enough to keep the tokenizer busy, few enough to stay in the cache."""


class Store:
    """Rows of one split, in the order of the source.

    Arguments:
        path: a folder that `write_store` wrote.

    Attributes:
        lengths: (N,) int64, word pieces of each row.
        labels: (N,) int32.
        pairs: whether rows are pairs of texts, which adds `segment_ids`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        about = read_json(self.path / "about.json")
        self.rows, self.pairs = about["rows"], about["pairs"]
        self.labels = self._map("labels", "int32")
        self._columns = {"token_ids": self._ragged("token_ids", "int32"), "text": self._ragged("text", "uint8")}
        if self.pairs:
            self._columns["segment_ids"] = self._ragged("segment_ids", "int32")
            self._columns["text_pair"] = self._ragged("text_pair", "uint8")
        self.lengths = np.diff(self._columns["token_ids"][1])

    def __len__(self) -> int:
        return self.rows

    def _map(self, name: str, dtype: str) -> np.ndarray:
        path = self.path / f"{name}.{dtype}"
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)

    def _ragged(self, name: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        return self._map(name, dtype), self._map(f"{name}_offsets", "int64")

    def _row(self, name: str, row: int) -> np.ndarray:
        values, offsets = self._columns[name]
        return values[offsets[row] : offsets[row + 1]]

    def text(self, row: int) -> str:
        """The text of a row as the source gave it."""
        return self._row("text", row).tobytes().decode("utf-8")

    def text_pair(self, row: int) -> str | None:
        """The second text of a row, or None where rows are single texts."""
        return self._row("text_pair", row).tobytes().decode("utf-8") if self.pairs else None

    def gather(self, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Model inputs of `rows` (B,), each padded to `length`: (B, T) int32. A row of -1 is all padding."""
        names = ("token_ids", "segment_ids") if self.pairs else ("token_ids",)
        batch = {name: np.zeros((len(rows), length), "int32") for name in (*names, "padding_mask")}
        for place, row in enumerate(rows):
            if row >= 0:
                for name in names:
                    values = self._row(name, row)
                    batch[name][place, : len(values)] = values
                batch["padding_mask"][place, : len(values)] = 1
        return batch


def write_store(
    path: str | os.PathLike,
    examples: Iterable[dict],
    tokenizer: Tokenizer,
    max_length: int,
    pairs: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Store:
    """Tokenizes a stream of examples into a folder, whole or not at all.

    Arguments:
        path: the folder.
        examples: dicts of `text`, `text_pair` with `pairs`, and `label`.
        tokenizer: turns text into word pieces.
        max_length: longest row in word pieces; longer ones are cut.
        progress: is told the number of rows done, now and then.
    """
    with whole(path) as folder, contextlib.ExitStack() as files:
        folder.mkdir()
        columns = ("text", "token_ids", *(("text_pair", "segment_ids") if pairs else ()))
        dtypes = {"text": "uint8", "text_pair": "uint8"}
        writers = {name: _RaggedWriter(files, folder, name, dtypes.get(name, "int32")) for name in columns}
        labels = files.enter_context(open(folder / "labels.int32", "wb"))
        rows = 0
        for chunk in _chunks(examples, ROWS_AT_ONCE):
            texts = [example["text"].encode("utf-8") for example in chunk]
            others = [example["text_pair"].encode("utf-8") for example in chunk] if pairs else None
            tokens = tokenizer(tf.constant(texts), tf.constant(others) if pairs else None, max_length=max_length)
            writers["text"].write([np.frombuffer(text, "uint8") for text in texts])
            if pairs:
                writers["text_pair"].write([np.frombuffer(text, "uint8") for text in others])
            for name, ragged in tokens.items():
                writers[name].write_flat(ragged.values.numpy(), ragged.row_lengths().numpy())
            labels.write(np.array([example["label"] for example in chunk], "int32").tobytes())
            rows += len(chunk)
            if progress is not None:
                progress(rows)
        (folder / "about.json").write_text(json.dumps({"rows": rows, "pairs": pairs}), encoding="utf-8")
    return Store(path)


class _RaggedWriter:
    """Appends rows of different lengths to a values file and an offsets file."""

    def __init__(self, files: contextlib.ExitStack, folder: pathlib.Path, name: str, dtype: str):
        self.dtype, self.end = dtype, 0
        self.values = files.enter_context((folder / f"{name}.{dtype}").open("wb"))
        self.offsets = files.enter_context((folder / f"{name}_offsets.int64").open("wb"))
        self.offsets.write(np.zeros(1, "int64").tobytes())

    def write(self, rows: list[np.ndarray]) -> None:
        self.write_flat(np.concatenate(rows), np.array([len(row) for row in rows]))

    def write_flat(self, values: np.ndarray, lengths: np.ndarray) -> None:
        self.values.write(values.astype(self.dtype, copy=False).tobytes())
        ends = self.end + np.cumsum(lengths, dtype="int64")
        self.offsets.write(ends.tobytes())
        self.end = int(ends[-1])


def _chunks(examples: Iterable[dict], size: int) -> Iterator[list[dict]]:
    chunk = []
    for example in examples:
        chunk.append(example)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
