"""The test examples that a run keeps for its exports: read, and put together of all their rows."""

import functools
import json
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from tfkd.errors import UserError
from tfkd.run_dir import RunDir
from tfkd.tasks.measures import MEASURES

from .inference import Student

ROLES = ("teacher", "baseline", "student")

BROKEN = (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises of a damaged archive."""


class Line(NamedTuple):
    """A row of an example.

    Arguments:
        text, pair: UTF-8 bytes; `pair` is empty for a student that reads one text.
        row: its place in the run's predictions.
        label: of classes the number, else None.
    """

    text: bytes
    pair: bytes
    row: int
    label: int | None


def read_lines(run: RunDir, student: Student) -> list[Line]:
    """All lines of `examples.jsonl`.

    Raises:
        UserError: there is none, or one is no example; the message names it.
    """
    run.require(run.examples)
    lines, classes = [], student.task == "classification"
    with open(run.examples, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line)
                pair = row["text_pair"] if student.pairs else ""
                if classes and row["label"] not in student.labels:
                    raise ValueError(f"label {json.dumps(row['label'])[:60]} is not in {run.labels.name}")
                label = student.labels.index(row["label"]) if classes else None
                lines.append(Line(row["text"].encode(), pair.encode(), int(row["row"]), label))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{run.examples}:{number}: not an example of this run ({error})") from None
    if not lines:
        raise UserError(f"{run.examples}: holds no example, so nothing can be proven")
    return lines


def read_truth(run: RunDir) -> dict[str, np.ndarray]:
    """What is true of the whole test split, by name. Raises one of `BROKEN` where the predictions cannot be read."""
    run.require(run.predictions)
    with np.load(run.predictions, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files if name not in ROLES}


def whole_examples(student: Student, lines: list[Line], truth: dict[str, np.ndarray]) -> tuple[list[np.ndarray], str | None]:
    """Which lines make up each example that can be measured as it was in the run.

    One that gave several rows cannot where lines of it are missing: half a pair has no cosine, and a question whose answer
    stands in another window would count as wrong. Nor can one whose texts, which is what files are asked, fall into other word
    pieces than those that were measured: a window may begin within a word that is longer than the stride.

    Arguments:
        truth: what is true of the whole test split; without `example`, every line is one.

    Returns:
        Places in `lines`, an array an example, in order; and which examples are left out, in words, or None.
    """
    if "example" not in truth:
        return list(np.arange(len(lines))[:, np.newaxis]), None
    rows = np.array([line.row for line in lines])
    numbers, example, counts = np.unique(truth["example"][rows], return_inverse=True, return_counts=True)
    whole = counts == np.bincount(truth["example"])[numbers]
    measure = MEASURES[student.task]
    other = ~measure.same_pieces(measure.take(truth, rows), functools.partial(_pieces, student, lines))
    same = np.bincount(example, other) == 0
    told = [f"{(~whole).sum()} without all their rows in the file"] if not whole.all() else []
    if (whole & ~same).any():
        told.append(f"{(whole & ~same).sum()} whose texts fall into other word pieces than were measured")
    places = np.split(np.argsort(example, kind="stable"), np.cumsum(counts)[:-1])
    kept = [lines_of for lines_of, good in zip(places, whole & same, strict=True) if good]
    return kept, f"not asked of {len(numbers)} examples: {'; '.join(told)}" if told else None


def _pieces(student: Student, lines: list[Line]) -> list[np.ndarray]:
    """Ids of each line's word pieces, not cut at what the student reads: a text may have become longer than its row was."""
    pairs = [line.pair for line in lines] if student.pairs else None
    features = student.encode([line.text for line in lines], pairs, 2 * student.max_length)
    masks = np.asarray(features["padding_mask"]).astype(bool)
    return [ids[mask] for ids, mask in zip(np.asarray(features["token_ids"]), masks, strict=True)]
