"""The kinds of targets, and the table of them by the name that tasks give. No TensorFlow with this module."""

import math
import re
from collections.abc import Iterator

import numpy as np

from tfkd.data import columns
from tfkd.data.masking import Masked
from tfkd.data.sentences import Sentences
from tfkd.data.spans import Spans
from tfkd.data.tags import Tags
from tfkd.data.target import NUMBERS, Target, counted, only
from tfkd.errors import UserError

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\Z", re.ASCII)
_LARGEST = float(np.finfo("float32").max)
LABELS = ("text", "classes", "whole numbers")


class Class(Target):
    """One label of several: y (B,) int32, the class."""

    kind = "class"
    holds = {"label": ("a class", ("text", "classes", "whole numbers", "booleans"))}

    def names(self, cells):
        return [columns.label_name(cells["label"], self.columns["label"])]

    def label(self, cells):
        return {"label": self.classes.class_of(columns.label_name(cells["label"], self.columns["label"]))}

    def is_unlabelled(self, cell):
        return cell == -1 and "-1" not in self.labels

    def survey(self, examples):
        """Reads until a second class appears."""
        label = only(example["label"] for example in examples)
        return None if label is None else (f"have the label {self.labels[label]}", "a classifier needs two classes at least")

    def targets(self, examples):
        return {"label": np.array([example["label"] for example in examples], "int32")}

    def told(self, store, row):
        return self.labels[store.column("label")[row]]

    def describe(self, store):
        return "classes", counted(np.bincount(store.column("label"), minlength=len(self.labels)), self.labels)


class Number(Target):
    """A finite number: y (B,) float32, in the data's own units.

    Attributes:
        mean, deviation: of train, once it was surveyed; a head answers in the same units by them.
    """

    kind = "number"
    holds = {"label": ("a number", (*NUMBERS, "text"))}
    named = False
    y_dtype = "float32"
    mean, deviation = 0.0, 1.0

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.labels = [self.columns["label"]]  # the one output, named as what it predicts

    def label(self, cells):
        return {"label": number(cells["label"], self.columns["label"])}

    def is_unlabelled(self, cell):
        return cell == -1

    def survey(self, examples: Iterator[dict]):
        """Mean and standard deviation of train, in one pass (Welford 1962)."""
        count, mean, squares = 0, 0.0, 0.0
        for count, example in enumerate(examples, start=1):
            step = example["label"] - mean
            mean += step / count
            squares += step * (example["label"] - mean)
        deviation = math.sqrt(squares / max(1, count))
        if not deviation > 1e-6 * abs(mean):  # less is the rounding of float32
            return f"have the number {mean:g}", "there is nothing to learn from targets that are all alike"
        self.mean, self.deviation = mean, deviation
        return None

    def targets(self, examples):
        return {"label": np.array([example["label"] for example in examples], "float32")}

    def told(self, store, row):
        return float(f"{store.column('label')[row]:.7g}")  # 3.8, not 3.799999952316284

    def describe(self, store):
        values = np.array(store.column("label"), "float64")
        return "targets", f"{values.min():g} to {values.max():g}, mean {values.mean():.4g}, standard deviation {values.std():.4g}"


class Classes(Target):
    """Any number of several labels, maybe none: y (B, C) float32 of ones and zeros.

    Arguments:
        separator: what stands between the labels where a cell is one string; without it such a cell is one label. A cell may
            also be a list of strings.
    """

    kind = "classes"
    holds = {"label": ("labels", (*LABELS, *(f"lists of {kind}" for kind in LABELS)))}
    y_dtype = "float32"

    def __init__(self, *, separator: str | None = None, **arguments):
        if separator == "":
            raise UserError("data.label_separator is empty; give what stands between labels, such as ',' or '|'")
        self.separator = separator
        super().__init__(**arguments)

    @property
    def rule(self):
        return super().rule | {"separator": self.separator}

    def names(self, cells):
        column = self.columns["label"]
        cell = cells["label"]
        if cell is None or (isinstance(cell, float) and cell != cell):
            raise UserError(f"column {column}, the labels, is null; write an empty list or an empty string for no label")
        if isinstance(cell, str):
            parts = cell.split(self.separator) if self.separator is not None else [cell]
            cell = [part for part in parts if part.strip()]
        elif not isinstance(cell, list | tuple):
            cell = [cell]
        return [columns.label_name(name, column) for name in cell]

    def label(self, cells):
        found = [self.classes.class_of(name) for name in self.names(cells)]
        if len(set(found)) < len(found):
            twice = next(index for index in found if found.count(index) > 1)
            raise UserError(f"column {self.columns['label']} has the label {self.labels[twice]} twice; name it once")
        return {"label": sorted(found)}

    def survey(self, examples):
        """Reads until some label is seen to be there in one row and not in another."""
        indices = only(example["label"] for example in examples)
        if indices is None:
            return None
        alike = columns.listed(self.labels[index] for index in indices) or "none"
        return f"have the same labels ({alike})", "there is nothing to learn from targets that are all alike"

    def targets(self, examples):
        label = np.zeros((len(examples), len(self.labels)), "uint8")
        for row, example in enumerate(examples):
            label[row, example["label"]] = 1
        return {"label": label}

    @property
    def y_shape(self):
        return (len(self.labels),)

    def told(self, store, row):
        return [self.labels[index] for index in np.flatnonzero(store.column("label")[row])]

    def describe(self, store):
        label = store.column("label")
        counts = label.sum(axis=0, dtype="int64")
        return "labels", f"{counts.sum() / max(1, len(label)):.2f} a row of {counted(counts, self.labels)}"


class Unlabelled(Target):
    """No answer: plain texts, to learn from the teacher alone or from the text itself. y (B,) is zeros, and is not read."""

    kind = "none"
    labelled = False
    defaults = {"text": "text", "text_pair": None}
    keys = ()
    named = False

    def label(self, cells):
        return {}

    def targets(self, examples):
        return {}

    def batch(self, store, rows, length, random):
        return store.gather(rows, length), np.zeros(len(rows), "int32"), (rows >= 0).astype("float32")

    def truth(self, store):
        return {}

    def told(self, store, row):
        return None

    def describe(self, store):
        return "targets", "none: plain texts"


TARGETS = {target.kind: target for target in (Class, Number, Classes, Unlabelled, Tags, Spans, Masked, Sentences)}


def number(value, column: str) -> float:
    """A cell as a finite number that float32 can hold.

    Raises:
        UserError: it is missing, no number, infinite, NaN or too large.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UserError(f"column {column}, the target, is empty; fill it in or leave the row out")
    if isinstance(value, str):
        if not _NUMBER.match(value.strip()):
            comma = "; write a decimal point" if _NUMBER.match(value.strip().replace(",", ".", 1)) else ""
            raise UserError(f"column {column} holds {columns.shown(value)}, not a finite number{comma}")
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"column {column} holds {columns.shown(value)}, not a number")
    if not -_LARGEST <= value <= _LARGEST:  # NaN is not
        raise UserError(f"column {column} holds {columns.shown(value)}; a target is a finite number below 3e38")
    return float(value)
