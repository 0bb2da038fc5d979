"""What a checkpoint's small files say about it, in our terms. No TensorFlow."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterator

from tfkd.errors import UserError, show
from tfkd.run_dir import read_json

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@dataclasses.dataclass(frozen=True)
class Description:
    """A checkpoint before its weights are read.

    Attributes:
        name: what to call it.
        encoder: arguments of `TransformerEncoder`.
        head: arguments of the task's head; None where the checkpoint has none.
        labels: names of the head's classes in order; None without classes, and where the checkpoint does not name them.
        pieces: the WordPiece vocabulary in id order.
        lowercase: whether texts are lower-cased and stripped of accents.
        task: name of the task whose head it is.
    """

    name: str
    encoder: dict
    head: dict | None
    labels: list[str] | None
    pieces: list[str]
    lowercase: bool
    task: str | None = "classification"

    def __post_init__(self):
        width, heads = self.encoder["width"], self.encoder["heads"]
        if width % heads:
            raise UserError(f"{self.name}: its {heads} attention heads do not divide its width of {width}")

    @property
    def max_length(self) -> int:
        """Longest text in word pieces that the encoder has positions for."""
        return self.encoder["max_positions"]


class Fields:
    """Typed reading of a JSON object; every mistake is a `UserError` that names the file, the key and the value."""

    def __init__(self, values, file: pathlib.Path):
        self.file = file
        if not isinstance(values, dict):
            raise UserError(f"{file}: must hold a JSON object, not {show(values)}")
        self.values = values

    @classmethod
    def optional(cls, file: pathlib.Path) -> "Fields":
        """The object in a file, an empty one where there is no such file."""
        return cls(read_json(file) if file.exists() else {}, file)

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str, default=None):
        """The value as it is; null counts as absent."""
        value = self.values.get(key)
        return default if value is None else value

    def fields(self, key: str) -> "Fields":
        """The object under `key`, empty where absent."""
        return Fields(self.get(key, {}), self.file)

    def items(self, key: str) -> list:
        """The list under `key`, empty where absent."""
        value = self.get(key, [])
        if not isinstance(value, list):
            self.refuse(key, "must be a list")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self.get(key, default)
        if type(value) is not int or value < 1:
            self.refuse(key, "must be a whole number above 0")
        return value

    def share(self, key: str, default: float) -> float:
        """A number from 0 to below 1, such as a dropout."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 <= value < 1:
            self.refuse(key, "must be a number from 0 to below 1")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool | None:
        """True, false, or the default."""
        value = self.get(key, default)
        if value is not None and type(value) is not bool:
            self.refuse(key, "must be true or false")
        return value

    def refuse(self, key: str, why: str):
        """Raises `UserError` about the value of `key`."""
        raise UserError(f"{self.file}: {key} = {show(self.values.get(key))}: {why}")


def read_vocabulary(file: pathlib.Path) -> list[str]:
    """One piece a line, in id order. Raises `UserError` where the file is missing or is not UTF-8."""
    try:
        with open(file, encoding="utf-8") as stream:
            return [line.rstrip("\n") for line in stream]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; without its vocabulary a checkpoint cannot read text") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def check_vocabulary(pieces: list[str], file: pathlib.Path, rows: int) -> list[str]:
    """`pieces`, if the token table's `rows` match them, none stands twice and the special ones are there."""
    if len(pieces) != rows:
        raise UserError(
            f"{file}: {len(pieces)} pieces, but the token table has {rows} rows; give the vocabulary of this checkpoint"
        )
    twice = [piece for piece, times in Counter(pieces).items() if times > 1]
    if twice:
        raise UserError(f"{file}: piece {show(twice[0])} stands twice, so its id is ambiguous")
    missing = [piece for piece in SPECIAL_PIECES if piece not in set(pieces)]
    if missing:
        raise UserError(f"{file}: no {missing[0]} piece; only BERT's WordPiece vocabularies are read")
    return pieces


def slots(encoder: dict, head: dict | None, pooler: bool) -> Iterator[tuple[tuple[str, int | None, str], tuple[int, ...]]]:
    """Every array that fills an encoder and a head: (part, layer, kind) and its shape, kernels as (inputs, outputs).

    Arguments:
        encoder: arguments of `TransformerEncoder`, post-norm with learned positions.
        head: arguments of a head, `hidden` among them where it has such a layer, or None.
        pooler: whether that hidden layer, BERT's pooler, is there without a head too.
    """
    width, inner = encoder["width"], encoder["feed_forward"]
    yield ("token", None, "table"), (encoder["vocabulary_size"], width)
    yield ("position", None, "table"), (encoder["max_positions"], width)
    if encoder["segments"]:
        yield ("segment", None, "table"), (encoder["segments"], width)
    yield from _norm("embedding_norm", None, width)
    for layer in range(encoder["layers"]):
        for part in ("query", "key", "value", "attention_output"):
            yield from _dense(part, layer, width, width)
        yield from _norm("attention_norm", layer, width)
        yield from _dense("expand", layer, width, inner)
        yield from _dense("contract", layer, inner, width)
        yield from _norm("feed_forward_norm", layer, width)
    if pooler or (head is not None and "hidden" in head):
        yield from _dense("hidden", None, width, width)
    if head is not None:
        yield from _dense("output", None, width, head["classes"])


def _dense(part, layer, inputs, outputs):
    yield (part, layer, "kernel"), (inputs, outputs)
    yield (part, layer, "bias"), (outputs,)


def _norm(part, layer, width):
    yield (part, layer, "gamma"), (width,)
    yield (part, layer, "beta"), (width,)
