"""Where examples come from: docstrings, a TFDS data set or files, behind one interface. No TensorFlow until TFDS needs it."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Protocol

from tfkd.data.docstrings import Docstrings
from tfkd.data.files import Files
from tfkd.data.target import Target
from tfkd.data.targets import Class, Unlabelled
from tfkd.data.tfds import Tfds
from tfkd.errors import UserError


class Reader(Protocol):
    """What each kind of source provides; `Source` adds the validation cut, the limit and the checks common to all."""

    name: str
    target: Target
    splits: tuple[str, ...]
    provenance: dict[str, str]
    notes: list[str]
    key: str

    def rows(self, split: str) -> Iterator[dict]:
        """Yields checked examples of a split, always in the same order."""


class Source:
    """Examples by split, checked as they stream.

    Arguments:
        reader: where the rows come from.
        validation_fraction: share of train that becomes the validation split where the reader has none.
        limit: at most this many rows of each final split, the first ones.

    Attributes:
        name: `docstrings`, a TFDS name or the name of the training file.
        target: what the examples' answers are; it knows the labels.
        labels: names of a model's outputs in order, where they have names.
        splits: those of `train`, `validation`, `test` that exist; the first two always do.
        provenance: what a report says about the origin: package -> version, file -> bytes and checksum.
        notes: single lines that a person must be told.
        key: hex digest that changes with any example, label, column, split rule or limit.

    Raises:
        UserError: a split is empty, or there is nothing to learn from train.
    """

    def __init__(self, reader: Reader, validation_fraction: float = 0.1, limit: int | None = None):
        if not 0.0 < validation_fraction < 1.0:
            raise UserError(f"data.validation_fraction = {validation_fraction}: must be above 0 and below 1")
        if limit is not None and limit < 1:
            raise UserError(f"data.limit = {limit}: must be at least 1")
        self.name, self.target, self.labels = reader.name, reader.target, reader.target.labels
        self.provenance = reader.provenance
        self.notes = list(reader.notes)
        self._reader, self._fraction, self._limit = reader, validation_fraction, limit
        self._cut = "validation" not in reader.splits
        self.splits = ("train", "validation", "test") if "test" in reader.splits else ("train", "validation")
        cut = validation_fraction if self._cut else None
        rule = {"reader": reader.key, "target": self.target.rule, "cut": cut, "limit": limit}
        self.key = hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()
        if self._cut:
            self._tell_cut()
        self._survey()
        for split in self.splits[1:]:
            if next(self.examples(split), None) is None:
                raise UserError(f"{self.name}: the {split} split has no rows")

    def examples(self, split: str) -> Iterator[dict]:
        """Yields `{"text": str, "text_pair": str (pairs only), ...}`, as the target has it, always in the same order.

        Raises:
            UserError: there is no such split, or a row cannot be used: file, row and what is wrong with it.
        """
        if split not in self.splits:
            raise UserError(f"{self.name} has no {split} split; it has {', '.join(self.splits)}")
        if self._cut and split != "test":
            rows = (
                row
                for row in self._reader.rows("train")
                if in_cut(row[self.target.group], self._fraction) == (split == "validation")
            )
        else:
            rows = self._reader.rows(split)
        return itertools.islice(rows, self._limit)

    def check_unchanged(self) -> None:
        """Raises `UserError` where a file changed since the source was opened: `key` does not stand for what was read then."""
        check = getattr(self._reader, "check_unchanged", None)
        if check is not None:
            check()

    def _tell_cut(self) -> None:
        """Counts the rows that the cut takes out of train, and notes it."""
        counts = [0, 0]
        for row in self._reader.rows("train"):
            counts[in_cut(row[self.target.group], self._fraction)] += 1
        if not all(counts):
            raise UserError(
                f"{self.name}: {sum(counts):,} rows of train are too few to cut out {self._fraction * 100:g} % for validation; "
                "name a validation split or change data.validation_fraction"
            )
        self.notes.append(
            f"no validation split: {self._fraction * 100:g} % of train ({counts[1]:,} of {sum(counts):,} rows) "
            "was cut out by a stable hash of the text"
        )

    def _survey(self) -> None:
        """Shows train to the target, which says whether there is something to learn from it."""
        rows = self.examples("train")
        first = next(rows, None)
        if first is None:
            raise UserError(f"{self.name}: the train split has no rows")
        problem = self.target.survey(itertools.chain([first], rows))
        if problem is None:
            return
        finding, fix = problem
        which = "all rows of train"
        if self._limit is not None:
            which, fix = f"the first {self._limit:,} rows of train", "raise data.limit or shuffle the rows"
        raise UserError(f"{self.name}: {which} {finding}; {fix}")


def in_cut(text: str, fraction: float) -> bool:
    """Whether a text of train goes to validation: by its hash alone, so that equal texts stay together, in any order."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest) < fraction * 2**64


def open_source(
    *,
    builtin: str | None = None,
    tfds: str | None = None,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    files: dict[str, str | None] | None = None,
    splits: dict[str, str | None] | None = None,
    target: Target | None = None,
    validation_fraction: float = 0.1,
    limit: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Opens the one source that is named, and checks its first rows.

    Arguments:
        builtin: `docstrings`.
        tfds: name of a TFDS data set, such as `glue/sst2`, or `glue/sst2:2.0.0`.
        data_dir: TFDS folder; default: `$TFDS_DATA_DIR`, then TFDS's own default.
        download: lets TFDS download and prepare what is not in `data_dir`.
        files: split -> path of a CSV, TSV, JSONL, Parquet or text file.
        splits: split -> TFDS expression; default: the data set's own splits.
        target: which columns are read and what the answers are, of `tfkd.data.targets`; default: a `Class` in the columns
            `text` and `label`. Labels that it does not know are found in the data.
        validation_fraction: share of train that becomes the validation split where there is none.
        limit: at most this many rows of each split.
        cache_dir: where the docstrings data are kept; default: `$TFKD_CACHE`, then `~/.cache/tfkd`.
        progress: called with (files done, files in all) while docstrings are parsed.

    Raises:
        UserError: nothing or several are named, or the data cannot be used; one line says where and why.
    """
    given = [name for name, value in (("builtin", builtin), ("tfds", tfds), ("files", files)) if value]
    if len(given) != 1:
        raise UserError(f"give exactly one of data.builtin, data.tfds and data.files, not {', '.join(given) or 'none'}")
    target = target or Class()
    if tfds:
        reader = Tfds(tfds, target, data_dir=data_dir, download=download, splits=splits)
    elif files:
        reader = Files(files, target)
    elif builtin != "docstrings":
        raise UserError(f"data.builtin = {builtin}: the one built-in data set is docstrings")
    else:
        reader = _docstrings(target, cache_dir, progress)
    return Source(reader, validation_fraction, limit)


def _docstrings(target: Target, cache_dir, progress) -> Docstrings:
    """The built-in data with a target that fits them."""
    if not isinstance(target, Class | Unlabelled):
        raise UserError(f"data.builtin docstrings has one label a text, and no {target.kind}; name other data, or another task")
    if target.labels or target.columns != type(target)().columns:
        raise UserError("data.builtin docstrings has its own labels and columns; leave data.labels and data.columns out")
    return Docstrings(cache_dir, progress, target)
