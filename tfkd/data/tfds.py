"""Examples from TensorFlow Datasets. TensorFlow is imported when a data set is opened, not with this module."""

import difflib
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator

from tfkd.data import columns
from tfkd.data.target import Target
from tfkd.data.tfds_features import class_names, kind_of, listed, text
from tfkd.errors import LONGEST, UserError, first_line

_OWN = {"train": ("train",), "validation": ("validation", "dev", "valid"), "test": ("test",)}  # names that data sets give theirs
_CONSTRUCTING = re.compile(r'Failed to construct dataset .*?}": ')
_OPERATION = re.compile(r"{{.*?}} | \[Op:.*")  # where in a graph something failed, which says nothing to a person
_COMMUNITY = re.compile(r"[^:/]+:(?!\d)")  # `huggingface:glue`, but not `glue:2.0.0`


class Tfds:
    """Reads examples of a TFDS data set, in the order in which it was prepared.

    Arguments:
        name: `glue/sst2`, or with a version `glue/sst2:2.0.0`.
        target: which features are read, and what becomes of them. Where its labels are not given, they are those of the
            ClassLabel, else the sorted distinct values of train. Given ones rename the classes of a ClassLabel with which they
            have no name in common.
        data_dir: folder of prepared data sets; default: `$TFDS_DATA_DIR`, then TFDS's own default.
        download: lets TFDS download and prepare what is not in `data_dir`.
        splits: split -> TFDS expression such as `train[:90%]`; default: the data set's own. Its own test split is left
            out where it is unlabelled.

    Attributes:
        name: as given.
        provenance: full name -> version.
        key: hex digest of version, files, splits and target.

    Raises:
        UserError: no such data set, split or feature, or it is not prepared and may not be downloaded.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        *,
        data_dir: str | os.PathLike | None = None,
        download: bool = False,
        splits: dict[str, str | None] | None = None,
    ):
        self.name, self.target = name, target
        self._builder = _prepared(name, data_dir, download)
        self._check_features()
        asked = {split: expression for split, expression in (splits or {}).items() if expression is not None}
        self._expressions, self.notes = asked | self._own_splits(asked), []
        files = {split: self._files(split) for split in self._expressions}
        self.notes += _overlaps(files)
        self._class_names = self._resolve_labels()
        if "test" in self._expressions and "test" not in asked and self._is_unlabelled("test"):
            del self._expressions["test"]
            self.notes.append(f"the test split of {name} is unlabelled (-1) and is not used")
        self.splits = tuple(split for split in _OWN if split in self._expressions)
        info = self._builder.info
        self.provenance = {info.full_name.removesuffix(f"/{info.version}"): str(info.version)}
        rule = {"name": info.full_name, "files": files, "splits": self.splits, "target": target.rule}
        self.key = hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()

    def rows(self, split: str) -> Iterator[dict]:
        """Yields examples as the target makes them. Raises `UserError` at a row that it cannot use."""
        return self._read(split, self.target.columns, self.target.example)

    def _read(self, split: str, named: dict[str, str], convert: Callable[[dict], object]) -> Iterator:
        """Yields `convert(cells)` of every row; an error in a row gets split and row before it."""
        for row, cells in enumerate(self._cells(split, list(named.values())), start=1):
            try:
                cells = {key: self._decoded(cell, named[key]) for key, cell in zip(named, cells, strict=True)}
                converted = convert(cells)
            except UserError as error:
                raise UserError(f"{self._place(split)}, row {row:,}: {error}") from None
            yield converted

    def _decoded(self, cell, column: str):
        """Bytes as text, classes as their names, inside lists and records too; anything else as it is."""
        names = self._class_names.get(column)
        if isinstance(cell, list):
            return [self._decoded(inner, column) for inner in cell]
        if isinstance(cell, dict):
            return {key: self._decoded(inner, f"{column}/{key}") for key, inner in cell.items()}
        if isinstance(cell, bytes):
            return text(cell, column)
        if names is None:
            return cell
        if not 0 <= cell < len(names):
            raise UserError(f"label {cell}: the row is unlabelled; name a labelled split in data.splits")
        return names[cell]

    def _cells(self, split: str, names: list[str]) -> Iterator[tuple]:
        """Yields the named features row by row as Python values, a thousand rows in memory at a time."""
        import tensorflow as tf
        import tensorflow_datasets as tfds

        try:
            dataset = self._builder.as_dataset(
                split=self._expressions[split], shuffle_files=False, read_config=tfds.ReadConfig(try_autocache=False)
            )
            # Other features may be such as no batch holds.
            dataset = dataset.map(lambda row: {name: row[name] for name in names}, num_parallel_calls=tf.data.AUTOTUNE)
            for batch in dataset.ragged_batch(1024).prefetch(1):
                yield from zip(*(listed(batch[name]) for name in names), strict=True)
        except tf.errors.OpError as error:
            reason = _OPERATION.sub("", first_line(error, LONGEST)).rstrip(".")
            raise UserError(f"{self._place(split)}: cannot be read: {reason}; prepare it anew") from None

    def _place(self, split: str) -> str:
        expression = self._expressions[split]
        return f"{self.name}, split {split}" + (f" ({expression})" if expression != split else "")

    def _check_features(self) -> None:
        """Raises `UserError` unless the named features are there and hold what the target can read."""
        features = self._builder.info.features
        for key, column in self.target.columns.items():
            if column not in features:
                near = columns.nearest(column, features)
                fix = near or f"; set data.columns.{key}"
                raise UserError(f"{self.name}: no column {column}; it has {columns.listed(sorted(features))}{fix}")
            wanted, kinds = self.target.holds.get(key, ("text", ("text",)))
            kind = kind_of(features[column])
            if kind not in kinds:
                raise UserError(f"{self.name}: column {column} holds {kind}, not {wanted}; set data.columns.{key}")

    def _own_splits(self, asked: dict[str, str]) -> dict[str, str]:
        """The data set's own splits, where none was asked for."""
        own = {}
        for split, names in _OWN.items():
            known = [name for name in names if name in self._builder.info.splits]
            if split not in asked and known:
                own[split] = known[0]
        if "train" not in own and "train" not in asked:
            raise UserError(f"{self.name}: has no split train; it has {self._own_names()}; set data.splits.train")
        return own

    def _own_names(self) -> str:
        return columns.listed(f"{name} ({info.num_examples:,})" for name, info in self._builder.info.splits.items())

    def _files(self, split: str) -> list[tuple[str, int, int, int]]:
        """(name, bytes, first row, row after the last) of each file of a split. Raises `UserError` for a bad expression."""
        expression = self._expressions[split]
        try:
            instructions = self._builder.info.splits[expression].file_instructions
        except (ValueError, KeyError, AssertionError) as error:
            reason = first_line(error, LONGEST).split(" See format")[0].rstrip(".")
            raise UserError(f"{self.name}: data.splits.{split} = {expression!r}: {reason}; it has {self._own_names()}") from None
        files = []
        for instruction in instructions:
            first = instruction.skip
            after = instruction.examples_in_shard if instruction.take == -1 else first + instruction.take
            path = pathlib.Path(instruction.filename)
            files.append((path.name, path.stat().st_size if path.exists() else -1, first, after))
        if not any(after > first for _, _, first, after in files):
            raise UserError(f"{self.name}: data.splits.{split} = {expression!r} selects no rows; it has {self._own_names()}")
        return files

    def _resolve_labels(self) -> dict[str, list[str]]:
        """Settles the target's labels. Answers with the names of the classes, by column, in the order of their numbers."""
        if not self.target.named:
            return class_names(self._builder.info.features, self.target.columns.values())
        column, given = self.target.columns[self.target.keys[0]], self.target.labels
        names = class_names(self._builder.info.features, self.target.columns.values())
        own = names.get(column)
        if own is None:
            if given is None:
                self.target.settle(self._find_labels())
            return names
        if given is None:
            self.target.settle(own)
        elif sorted(given) != sorted(own):
            if len(given) != len(own) or set(given) & set(own):
                shown = f"the {len(own)} labels of {self.name} are {columns.listed(own)}"
                raise UserError(f"data.labels = {columns.listed(given)}: {shown}")
            names[column] = list(given)
        return names

    def _find_labels(self) -> list[str]:
        """Reads the label column of train."""
        key = self.target.keys[0]
        column = self.target.columns[key]
        self._class_names = {}
        values = self._read("train", {key: column}, self.target.names)
        try:
            return columns.label_names(itertools.chain.from_iterable(values), column)
        except columns.TooManyLabels as error:
            raise UserError(f"{self._place('train')}: {error}") from None

    def _is_unlabelled(self, split: str) -> bool:
        """Whether the first rows of a split all have the label -1, which TFDS writes where the authors keep the answers."""
        if not self.target.keys:
            return False
        column = self.target.columns[self.target.keys[0]]
        first = list(itertools.islice(self._cells(split, [column]), 100))
        return bool(first) and all(self.target.is_unlabelled(cell) for (cell,) in first)


def _prepared(name: str, data_dir: str | os.PathLike | None, download: bool):
    """A builder with data behind it. Raises `UserError` where there are none."""
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    if _COMMUNITY.match(name) and not download:
        why = "a community data set is fetched, and its maker's code run"
        raise UserError(f"data.tfds = {name}: {why}; if you trust it, set data.download: true")
    try:
        _require_configuration(name)
        builder = tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    except UserError:
        raise
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(name.split("/")[0], tfds.list_builders(with_community_datasets=False), n=1)
        fix = f"did you mean {near[0]}?" if near else "`tfds.list_builders()` lists those there are"
        raise UserError(f"data.tfds = {name}: no such data set; {fix}") from None
    except ParseError as error:
        reason = _CONSTRUCTING.sub("", first_line(error, LONGEST)).rstrip(".")
        raise UserError(f"data.tfds = {name}: dataset_info.json cannot be read: {reason}; prepare it anew") from None
    except Exception as error:  # whatever a builder's constructor raises: its version, its arguments, a broken folder
        raise UserError(f"data.tfds = {name}: {_CONSTRUCTING.sub('', first_line(error, LONGEST))}") from error
    if builder.info.splits:
        return builder
    if not download:
        folder = pathlib.Path(builder.data_path).parents[len(builder.info.full_name.split("/")) - 1]
        raise UserError(f"{name}: not prepared in {folder}; set data.data_dir to where it is, or data.download: true to get it")
    try:
        builder.download_and_prepare()
    except Exception as error:  # network, disk, checksums, missing packages: TFDS has no base class for them
        raise UserError(f"{name}: cannot be downloaded and prepared: {type(error).__name__}: {first_line(error)}") from error
    return builder


def _require_configuration(name: str) -> None:
    """Raises `UserError` where a data set that TFDS knows has configurations, and not the named one."""
    import tensorflow_datasets as tfds

    data_set, _, configuration = name.split(":")[0].partition("/")
    if not configuration or data_set not in tfds.list_builders(with_community_datasets=False):
        return
    known = list(tfds.builder_cls(data_set).builder_configs)
    if known and configuration.split("/")[0] not in known:
        near = columns.nearest(configuration, known)
        raise UserError(
            f"data.tfds = {name}: {data_set} has no configuration {configuration}; it has {columns.listed(known)}{near}"
        )


def _overlaps(files: dict[str, list[tuple[str, int, int, int]]]) -> list[str]:
    """A note for every two splits that share rows."""
    notes = []
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = sum(
            max(0, min(after, other_after) - max(first, other_first))
            for name, _, first, after in files.get(one, ())
            for other_name, _, other_first, other_after in files.get(other, ())
            if name == other_name
        )
        if shared:
            notes.append(f"the {one} and the {other} split share {shared:,} rows: what is measured there was seen before")
    return notes
