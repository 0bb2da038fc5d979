"""What every kind of target is: how a row's answer is read, stored and batched. No TensorFlow with this module.

The kinds are in `tfkd.data.targets`, with their table. A kind that is more than some forty lines has a file of its own.
"""

import json
from collections.abc import Iterable, Iterator

import numpy as np

from tfkd.data import columns
from tfkd.errors import UserError

Column = np.ndarray | tuple[np.ndarray, np.ndarray]
"""Of a store: an array (R, ...), one entry a row; or `(values, lengths)`: rows of different lengths one behind the other."""


Batch = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]
"""`(x, y, sample_weight)`."""

NUMBERS = ("whole numbers", "float16 numbers", "bfloat16 numbers", "float32 numbers", "float64 numbers")
"""What `tfkd.data.tfds` calls features that hold numbers."""


class Target:
    """Reads one kind of answer out of cells, keeps it beside the word pieces, and makes batches of it.

    An *example* is what the source gives: a dict with `text`, maybe `text_pair`, and what the kind adds. A *row* is what a
    model reads at once. Most kinds make one row of an example; a long text may give several.

    A new kind sets the class attributes and writes `label`, `targets` and, where they do not fit, the methods below them:

        kind       the name in the table.
        defaults   key of `data.columns` -> its column where none is named; None: optional. `texts` are among the keys.
        texts      the keys whose cells are plain texts.
        keys       the keys that hold the answer. The first one is where label names are looked for.
        holds      key -> (what it must hold, in words; what TFDS features may hold it, as `tfkd.data.tfds` calls them).
        group      the key of an example by whose hash a validation split is cut out: equal ones stay together.
        labelled   whether training reads answers that the data must hold.
        named      whether the answers have names: `labels` are given, or found by reading train once.
        y_dtype    of y.
        y_shape, weight_shape   shapes of y and of the sample weights behind the batch's B; None is the padded length T.

    Arguments:
        labels: names of the model's outputs in order, where they have names; default: found in the data.
        named_columns: key -> column; a key that the kind does not know is a mistake.

    Attributes:
        columns: key -> column, of the keys that are read.
        labels: names of the model's outputs in order, none where answers have no names; None until they are found.
    """

    kind: str
    defaults: dict[str, str | None] = {"text": "text", "text_pair": None, "label": "label"}
    texts: tuple[str, ...] = ("text", "text_pair")
    keys: tuple[str, ...] = ("label",)
    holds: dict[str, tuple[str, tuple[str, ...]]] = {}
    group = "text"
    labelled = True
    named = True
    y_dtype = "int32"
    y_shape: tuple[int | None, ...] = ()
    weight_shape: tuple[int | None, ...] = ()

    def __init__(self, *, labels: list[str] | None = None, **named_columns: str | None):
        unknown = sorted(set(named_columns) - set(self.defaults))
        if unknown:
            raise UserError(f"data.columns.{unknown[0]}: is not read here; the columns are {', '.join(self.defaults)}")
        chosen = {key: named_columns.get(key) or column for key, column in self.defaults.items()}
        self.columns = {key: column for key, column in chosen.items() if column is not None}
        if labels is not None and not self.named:
            raise UserError(f"data.labels = {columns.listed(labels)}: the targets are no labels; leave it out")
        self.labels: list[str] | None = None if self.named else []
        if labels is not None:
            self.settle(labels)

    @property
    def pairs(self) -> bool:
        """Whether rows are pairs of texts, which adds `segment_ids` to what a model reads."""
        return "text_pair" in self.columns

    @property
    def rule(self) -> dict:
        """All that decides what becomes of a cell, as plain values: a part of every key that names prepared data."""
        return {"kind": self.kind, "columns": self.columns, "labels": self.labels}

    # ---------------------------------------------------------------- reading

    def settle(self, labels: Iterable[str]) -> None:
        """Takes the names of the outputs: `classes` then finds their numbers. Raises `UserError` where one cannot be a name."""
        self.classes = columns.Labels(labels)
        self.labels = self.classes.names

    def names(self, cells: dict) -> list[str]:
        """Label names in one row's cells of `keys`, to find out which there are. Raises `UserError` without a place."""
        raise TypeError(f"{type(self).__name__} must define names(cells), or set named = False")

    def example(self, cells: dict) -> dict:
        """From one row's cells, by key, to an example. Raises `UserError` without a place: the reader adds file and row."""
        texts = {key: columns.checked_text(cells[key], self.columns[key]) for key in self.texts if key in self.columns}
        return texts | self.label(cells)

    def label(self, cells: dict) -> dict:
        """What one row's cells of `keys` add to its example. Raises `UserError` without a place."""
        raise TypeError(f"{type(self).__name__} must define label(cells)")

    def is_unlabelled(self, cell) -> bool:
        """Whether a cell of `keys[0]` is what data sets write where the authors keep the answers to themselves."""
        return False

    def survey(self, examples: Iterator[dict]) -> tuple[str, str] | None:
        """Reads as much of train as it takes to see that there is something to learn, and keeps what the task must know of it.

        Returns:
            What is wrong with "all rows of train" (a verb phrase) and how to mend it; None where nothing is.
        """
        return None if next(examples, None) is not None else ("are missing", "name a training split")

    # ---------------------------------------------------------------- storing

    def encode(self, examples: list[dict], tokenizer, max_length: int) -> dict[str, Column]:
        """Some examples, maybe none, as columns of a store, all of the same number of rows R.

        Needed are `token_ids`, and `segment_ids` where rows are pairs; `text` and `text_pair` are what reports show. Where an
        example may give several rows, or none, the column `example` (R,) int32 must say which of `examples` a row comes from.
        """
        import tensorflow as tf

        texts = {key: [example[key].encode() for example in examples] for key in self.texts if key in self.columns}
        tensors = [tf.constant(values, tf.string, [len(examples)]) for values in texts.values()]
        pieces = tokenizer(*tensors, max_length=max_length)
        found = {name: (ragged.values.numpy(), ragged.row_lengths().numpy()) for name, ragged in pieces.items()}
        return found | {key: byte_column(values) for key, values in texts.items()} | self.targets(examples)

    def targets(self, examples: list[dict]) -> dict[str, Column]:
        """The columns that hold the answers, `label` as a rule."""
        raise TypeError(f"{type(self).__name__} must define targets(examples)")

    # ---------------------------------------------------------------- batching

    def batch(self, store, rows: np.ndarray, length: int, random: np.random.Generator | None) -> Batch:
        """One batch `(x, y, sample_weight)`.

        Arguments:
            store: the `Store` of the rows.
            rows: (B,), -1 where a row is filler, whose weights must be 0.
            length: T.
            random: for what is drawn anew each epoch; None where nothing may be: measuring.

        Returns:
            x: `token_ids`, `padding_mask` (and `segment_ids`), (B, T) int32.
            y: (B, *y_shape) of `y_dtype`.
            sample_weight: (B, *weight_shape) float32.

        All are arrays made for this call: TensorFlow takes them over without a copy and may write into them.
        """
        y = store.column("label")[np.maximum(rows, 0)].astype(self.y_dtype)
        real = rows >= 0
        y[~real] = 0
        return store.gather(rows, length), y, real.astype("float32")

    # ---------------------------------------------------------------- telling

    def truth(self, store) -> dict[str, np.ndarray]:
        """What outputs are measured against, by name: arrays that `predictions.npz` keeps and the task's measures read.

        `labels` is the answer: (R, ...), or for positions (P,), the rows one behind the other. `offsets` (R + 1,) says where each
        row's positions begin, `example` (R,) which example a row belongs to; they are left out where they say nothing.
        """
        return {"labels": np.array(store.column("label"))}

    def told(self, store, row: int):
        """A row's answer in words, as `examples.jsonl` and reports say it: a plain value that JSON can hold."""
        raise TypeError(f"{type(self).__name__} must define told(store, row)")

    def describe(self, store) -> tuple[str, str]:
        """What a plan says of a split's targets: a title and a line."""
        return "targets", self.kind


def byte_column(texts: list[bytes]) -> Column:
    """Texts as a store keeps them."""
    return np.frombuffer(b"".join(texts), "uint8"), np.array([len(text) for text in texts], "int64")


def json_column(values: list) -> Column:
    """Anything that JSON can hold, one value a row, to be read back by `Store.json`."""
    return byte_column([json.dumps(value, ensure_ascii=False).encode() for value in values])


def only(values: Iterable) -> object | None:
    """The value that all are; None as soon as a second one appears, and where there is none."""
    values = iter(values)
    first = next(values, None)
    return None if any(value != first for value in values) else first


def counted(counts: np.ndarray, labels: list[str]) -> str:
    """`3: pos 3,610, neg 3,310, ...`, the most frequent first."""
    order = np.argsort(-counts, kind="stable")
    shown = ", ".join(f"{labels[index]} {counts[index]:,}" for index in order[:10])
    return f"{len(labels)}: {shown}" + (", ..." if len(labels) > 10 else "")
