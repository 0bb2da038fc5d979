"""From the cells of one row to an example: texts are checked, labels become classes. Shared by files and TFDS."""

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterable

from tfkd.errors import UserError

MOST_LABELS = 1000
LONGEST_LABEL = 1000  # characters; a longer one is a text
LONGEST_NAME = 100  # characters that are compared with what was meant
_INTEGER = re.compile(r"-?\d{1,18}\Z", re.ASCII)  # more digits are a name: int() refuses thousands of them


class TooManyLabels(UserError):
    """A label column with more distinct values than classes are likely; says so without naming the data."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean NAME?`, or nothing where no name is near. Who has long or a thousand names finds out alone."""
    names = [known for known in itertools.islice(names, MOST_LABELS) if len(known) <= LONGEST_NAME]
    if len(name) > LONGEST_NAME:
        return ""
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {listed([by_lower[close[0]]])}?" if close else ""


def listed(names: Iterable[str], most: int = 12) -> str:
    """Joins names for an error message; long names and long lists are cut, blank ones and spaces around them shown."""
    names = list(names)
    if not names:
        return "none"
    cut = [name if len(name) <= 40 else name[:37] + "..." for name in names[:most]]
    cut = [name if name == name.strip() and name else repr(name) for name in cut]
    return ", ".join(cut) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def shown(value) -> str:
    """A cell as an error message shows it: quoted, on one line, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def checked_text(value, column: str) -> str:
    """Answers with a cell that may be a text.

    Raises:
        UserError: it is missing, not a string, blank, or holds half a surrogate pair, which UTF-8 cannot carry.
    """
    if value is None:
        raise UserError(f"column {column} is null, not text; fill it in or leave the row out")
    if not isinstance(value, str):
        raise UserError(f"column {column} holds {shown(value)}, not text; make it a string")
    if not value or value.isspace():
        raise UserError(f"column {column} is empty; fill it in or leave the row out")
    _require_whole_characters(value, column)
    return value


def _require_whole_characters(text: str, column: str) -> None:
    """Raises `UserError` where a text holds half a surrogate pair, which JSON can say and UTF-8 cannot carry."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise UserError(f"column {column} holds {half}, half of a surrogate pair; write the file as UTF-8") from None


def label_name(value, column: str) -> str:
    """The name of a label: a string without surrounding space, a whole number in decimals, `true` or `false`.

    Raises:
        UserError: the cell is missing, blank, a fraction, nested, longer than a line or as long as a text.
    """
    match value:
        case None:
            name = ""
        case bool():
            name = str(value).lower()
        case str():
            name = value.strip()
        case int():
            name = str(value)
        case float() if value != value:
            name = ""
        case float() if value.is_integer():  # what pandas makes of whole numbers beside a missing one
            name = str(int(value))
        case _:
            raise UserError(f"column {column} holds {shown(value)}; a label is a name or a whole number")
    if not name:
        raise UserError(f"column {column}, the label, is empty; fill it in or leave the row out")
    if len(name.splitlines()) > 1:
        raise UserError(f"column {column}, the label, spans several lines: {shown(name)}; a label is one line")
    if len(name) > LONGEST_LABEL:
        raise UserError(f"column {column}, the label, has {len(name):,} characters: {shown(name)}; set data.columns.label")
    _require_whole_characters(name, column)
    return name


def label_names(values: Iterable[str], column: str) -> list[str]:
    """Sorted distinct label names; whole numbers in their numeric order.

    Raises:
        TooManyLabels: more than 1,000 distinct values: the column is hardly a label.
    """
    names = set()
    for value in values:
        names.add(value)
        if len(names) > MOST_LABELS:
            some = listed([shown(name) for name in sorted(names)], most=3)
            raise TooManyLabels(
                f"column {column} holds more than {MOST_LABELS:,} distinct values ({some}) and hardly is a label; "
                "set data.columns.label, or name the labels in data.labels"
            )
    if all(_INTEGER.match(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


class Labels:
    """Label names in class order, and the class of a name or of a whole number that indexes them.

    Where a name itself is a whole number, numbers are names only: in `["1", "2"]` the label 1 is class 0.

    Raises:
        UserError: a name is there twice, is blank or spans lines.
    """

    def __init__(self, names: Iterable[str]):
        self.names = list(names)
        times = Counter(self.names)
        for name in self.names:
            if name != name.strip() or len(name.splitlines()) != 1 or times[name] > 1:
                raise UserError(f"data.labels: {shown(name)} must be one line, without spaces around it, and there once")
        self._classes = {name: index for index, name in enumerate(self.names)}
        self._indexable = not any(_INTEGER.match(name) for name in self.names)

    def class_of(self, name: str) -> int:
        """Answers with the class of a label. Raises `UserError` with the list and the nearest name."""
        index = self._classes.get(name)
        if index is not None:
            return index
        if self._indexable and _INTEGER.match(name) and 0 <= int(name) < len(self.names):
            return int(name)
        raise UserError(f"label {shown(name)} is not among the labels {listed(self.names)}{nearest(name, self.names)}")
