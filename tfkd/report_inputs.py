"""Reads what the report needs of a run: predictions, the log of training, examples, configuration. No TensorFlow."""

import dataclasses
import json
import pathlib
import re
import zipfile

import numpy as np
import yaml

from tfkd.errors import UserError
from tfkd.report_words import ROLES
from tfkd.run_dir import RunDir
from tfkd.tasks.measure import Measure
from tfkd.tasks.measures import MEASURES

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """Replaces what may not stand in a web page: control characters and halves of surrogate pairs."""
    return _UNPRINTABLE.sub("\ufffd", text)


@dataclasses.dataclass(frozen=True)
class View:
    """A run as the sections of its page see it.

    Arguments:
        models: role -> its entry in the report.
        measure: of the task, on the run's examples.
        outputs: role -> logits, in the order of the roles.
        names: of the outputs, printable.
        examples: row -> `{"texts": [...], "label": ...}`, of those rows that the run kept in words.
        vocabulary: the student's word pieces by id, printable; none where the run lacks them.
    """

    models: dict[str, dict]
    measure: Measure
    outputs: dict[str, np.ndarray]
    names: list[str]
    examples: dict[int, dict]
    vocabulary: list[str]


def view(run: RunDir, report: dict) -> View:
    """Reads what belongs to a report.

    Raises:
        UserError: a file is missing or broken, or is not of the report's examples.
    """
    models = {entry["role"]: entry for entry in report["models"]}
    names = [printable(name) for name in report["labels"]]
    truth, outputs = predictions(run, list(models))
    measure = MEASURES[report["task"]](truth, names)
    try:
        count = measure.examples
        for role, array in outputs.items():
            try:
                measure.metrics(array)
            except UserError as error:
                raise UserError(f"{role}: {error}") from None
    except (UserError, KeyError, IndexError) as error:
        raise UserError(f"{run.predictions}: cannot be measured ({error}); train it again, or go on with --resume") from None
    if count != report["examples"]:
        counts = f"{count:,} examples, but report.json speaks of {report['examples']:,}"
        raise UserError(f"{run.predictions}: holds {counts}; train it again, or go on with --resume")
    rows = len(next(iter(outputs.values())))
    return View(models, measure, outputs, names, examples(run.examples, rows), vocabulary(run.vocabulary))


def predictions(run: RunDir, roles: list[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """`predictions.npz`: what is true, by name, and role -> logits, in the order of the roles.

    Raises:
        UserError: it is missing or broken.
    """
    run.require(run.predictions)
    try:
        with open(run.predictions, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            outputs = {role: arrays[role] for role in ROLES if role in roles}
            return {name: arrays[name] for name in arrays.files if name not in ROLES}, outputs
    except (KeyError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{run.predictions}: cannot be read ({reason}); train it again, or go on with --resume") from None


def history(path: pathlib.Path) -> tuple[dict[str, list[dict]], int]:
    """`metrics.jsonl` by role, in the order of the steps, and how many lines could not be used.

    A run that was killed may end in half a line, and one that was resumed may say a step twice: the later counts.
    A missing file is an empty one.
    """
    found: dict[tuple, dict] = {}
    unusable = 0
    for text in _lines(path):
        try:
            line = json.loads(text)
            place = {"epoch": int(line["epoch"]), "step": int(line["step"])}
            key = (ROLES.index(line["role"]), *place.values(), any(name.startswith("val_") for name in line))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            unusable += 1
        else:
            found[key] = line | place
    by_role: dict[str, list[dict]] = {}
    for key in sorted(found):
        by_role.setdefault(ROLES[key[0]], []).append(found[key])
    return by_role, unusable


def examples(path: pathlib.Path, rows: int) -> dict[int, dict]:
    """`examples.jsonl`: row of the predictions -> its one or two texts and its answer in words. A missing file is an empty one.

    Raises:
        UserError: a line is not an example.
    """
    found = {}
    for number, text in enumerate(_lines(path), 1):
        try:
            line = json.loads(text)
            row, texts = int(line["row"]), [str(line[key]) for key in ("text", "text_pair") if line.get(key) is not None]
            label = line.get("label")
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise UserError(f"{path}: line {number} is not an example with row and text; train the run again") from None
        if 0 <= row < rows:
            found[row] = {"texts": texts, "label": label}
    return found


def vocabulary(path: pathlib.Path) -> list[str]:
    """`vocab.txt`: the word pieces by id. A missing file is an empty one."""
    if not path.exists():
        return []
    return printable(path.read_text(encoding="utf-8", errors="replace")).rstrip("\n").split("\n")


def config(path: pathlib.Path) -> tuple[str | None, dict]:
    """`config.yaml` as text, and as a tree of sections, stages by number.

    An unreadable one still has its text; a missing one is None.
    """
    if not path.exists():
        return None, {}
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        tree = None
    sections = tree if isinstance(tree, dict) else {}
    if isinstance(stages := sections.get("stages"), list):
        sections["stages"] = dict(enumerate(stages, start=1))
    return text, {name: section for name, section in sections.items() if isinstance(section, dict)}


def _lines(path: pathlib.Path) -> list[bytes]:
    return [line for line in path.read_bytes().split(b"\n") if line.strip()] if path.exists() else []
