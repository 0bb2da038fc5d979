"""What a run directory holds, and how files get into it: whole or not at all. No TensorFlow here."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

from tfkd.errors import UserError

PARTIAL = ".partial"


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a path beside `path` to write a file or a folder to; on success it is synced and renamed to `path`.

    On an exception what was written is removed and `path` is as it was before. The suffixes of `path` are kept
    (`student.partial.keras`), because several writers choose their format by them.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name.split(".", 1)[0] + PARTIAL + "".join(path.suffixes))
    remove(beside)
    try:
        yield beside
        files = [file for file in beside.rglob("*") if file.is_file()] if beside.is_dir() else [beside]
        for file in files:
            _sync(file)
        if path.is_dir():
            remove(path)
        os.replace(beside, path)
        _sync(path.parent)
    finally:
        remove(beside)


def _sync(path: pathlib.Path) -> None:
    """Asks the disk for a file's or a folder's bytes, so that a rename never outruns its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: pathlib.Path) -> None:
    """Deletes a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike, value) -> None:
    """Writes JSON, whole or not at all; NaN and infinity are refused, because JSON has neither."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike):
    """Reads a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file, or of a folder's relative file names and contents in sorted order."""
    path = pathlib.Path(path)
    digest = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def size(path: str | os.PathLike) -> int:
    """Bytes of a file, or of all files in a folder."""
    path = pathlib.Path(path)
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


class RunDir:
    """Names of what one run holds: the contract between `tfkd.train`, `export`, `serving` and the report.

    Arguments:
        path: the run's folder, `runs/NAME`. It need not exist yet.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> pathlib.Path:
        """The resolved configuration: every field, defaults written out."""
        return self.path / "config.yaml"

    @property
    def log(self) -> pathlib.Path:
        """Everything that was said, with tracebacks."""
        return self.path / "log.txt"

    @property
    def data_key(self) -> pathlib.Path:
        """`{"key"}`: a digest of data and preprocessing, so that no run goes on with other data than it was begun with."""
        return self.path / "data_key.json"

    @property
    def seconds(self) -> pathlib.Path:
        """Seconds by stage, those of interrupted sittings included."""
        return self.path / "seconds.json"

    @property
    def metrics(self) -> pathlib.Path:
        """`{"role", "epoch", "step", "seconds", "loss", ...}`, one JSON object a line, one line a logging step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> pathlib.Path:
        """A folder a role (`teacher`, `baseline`, `student`) with what `--resume` needs."""
        return self.path / "checkpoints"

    @property
    def teacher(self) -> pathlib.Path:
        """`model.keras` of a teacher trained here, and `key.json` saying from what."""
        return self.path / "teacher"

    @property
    def student(self) -> pathlib.Path:
        """The distilled student, best epoch; no teacher and no projection in it."""
        return self.path / "student.keras"

    @property
    def baseline(self) -> pathlib.Path:
        """The same student trained without distillation."""
        return self.path / "baseline.keras"

    @property
    def vocabulary(self) -> pathlib.Path:
        """WordPiece vocabulary, one piece a line; the line number is the id."""
        return self.path / "vocab.txt"

    @property
    def labels(self) -> pathlib.Path:
        """Label names, one a line; the line number is the class."""
        return self.path / "labels.txt"

    @property
    def tokenizer(self) -> pathlib.Path:
        """`{"lowercase": bool, "max_length": int, "pairs": bool}`: what, beside `vocab.txt`, turns text into token ids."""
        return self.path / "tokenizer_config.json"

    @property
    def examples(self) -> pathlib.Path:
        """Up to 2,000 test examples `{"row", "text", "text_pair"?, "label"}`, one JSON object a line, `label` the name.

        Exports are checked on them and the report shows some; `row` is the row of `predictions`.
        """
        return self.path / "examples.jsonl"

    @property
    def predictions(self) -> pathlib.Path:
        """Test split: `labels` (N,) int32 and, for each role, logits (N, C) float32 under the role's name."""
        return self.path / "predictions.npz"

    @property
    def report_json(self) -> pathlib.Path:
        return self.path / "report.json"

    @property
    def report_html(self) -> pathlib.Path:
        return self.path / "report.html"

    @property
    def tensorboard(self) -> pathlib.Path:
        return self.path / "tensorboard"

    @property
    def exports(self) -> pathlib.Path:
        return self.path / "export"

    @property
    def manifest(self) -> pathlib.Path:
        """What was exported and how it was proven; written by `python -m export`."""
        return self.exports / "manifest.json"

    def require(self, *paths: pathlib.Path) -> None:
        """Raises `UserError` unless this is a finished run that holds `paths`."""
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such run directory")
        for path in paths:
            if not path.exists():
                raise UserError(f"{self.path}: not a finished run, {path.name} is missing; train it, or go on with --resume")


def cache_root() -> pathlib.Path:
    """Where work that several runs share is kept: `$TFKD_CACHE`, else `~/.cache/tfkd`. Deleting it costs time alone."""
    return pathlib.Path(os.environ.get("TFKD_CACHE") or pathlib.Path.home() / ".cache" / "tfkd")
