"""What a run directory holds, and how files get into it: whole or not at all. No TensorFlow here."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Iterator

from tfkd.errors import UserError, show

PARTIAL = ".partial"
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
"""This machine, in names of unfinished files: folders may be shared by several."""


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a path beside `path` to write a file or a folder to; on success it is synced and renamed to `path`.

    On an exception what was written is removed and `path` is as it was before. The suffixes of `path` are kept
    (`student.partial-….keras`), because several writers choose their format by them. Every process has a name of its own for
    it, so that two may write the same; what killed processes left there is removed.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stem, suffixes = path.name.split(".", 1)[0] + PARTIAL, "".join(path.suffixes)
    _remove_leftovers(path.parent, stem)
    beside = path.with_name(f"{stem}-{_HOST}-{os.getpid()}{suffixes}")
    older = path.with_name(f"{stem}-{_HOST}-{os.getpid()}.old")
    try:
        yield beside
        files = [file for file in beside.rglob("*") if file.is_file()] if beside.is_dir() else [beside]
        for file in files:
            _sync(file)
        if path.is_dir():  # a folder cannot be replaced by another: the older one steps aside, for as short as can be
            os.rename(path, older)
        os.replace(beside, path)
        _sync(path.parent)
    finally:
        if older.exists() and not path.exists():
            os.rename(older, path)
        remove(beside)
        remove(older)


def _remove_leftovers(folder: pathlib.Path, stem: str) -> None:
    """Removes what writers of a file left that are no more: those of this machine by number, others' after a day."""
    for name in os.listdir(folder):
        if not name.startswith(f"{stem}-"):
            continue
        host, _, process = name.removeprefix(f"{stem}-").split(".", 1)[0].partition("-")
        with contextlib.suppress(FileNotFoundError):  # another process tidies up too
            if host == _HOST and process.isdigit():
                gone = int(process) == os.getpid() or not running(int(process))
            else:
                gone = time.time() - (folder / name).stat().st_mtime > 86_400
            if gone:
                remove(folder / name)


def running(process: int) -> bool:
    """Whether this machine runs a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


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
    def lock(self) -> pathlib.Path:
        """There while a process works in the run: `{"pid", "host"}`."""
        return self.path / "lock"

    @property
    def data_key(self) -> pathlib.Path:
        """`{"key", "stage NAME", ...}`: digests of data and preprocessing, the run's and a stage's own, so that neither goes
        on with other data than it was begun with."""
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
    def metrics_csv(self) -> pathlib.Path:
        """The same as a table, a column a name."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> pathlib.Path:
        """A folder a training (`teacher`, `baseline`, `student`, `student-STAGE`) with what `--resume` needs."""
        return self.path / "checkpoints"

    @property
    def teacher(self) -> pathlib.Path:
        """`model.keras` of a teacher trained here, `key.json` saying from what, `vocab.txt` where the student reads others.

        Of several teachers, a folder for each that is trained, numbered from 1.
        """
        return self.path / "teacher"

    @property
    def student(self) -> pathlib.Path:
        """The distilled student, best epoch; no teacher and no projection in it."""
        return self.path / "student.keras"

    @property
    def quantized(self) -> pathlib.Path:
        """The student after quantization-aware training, with the ranges of its int8 file (`compression.qat`)."""
        return self.path / "student-qat.keras"

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

        An example of several rows, such as a question with its windows, has a line for each of them. Exports are checked on the
        examples and the report shows some; `row` is the row of `predictions`.
        """
        return self.path / "examples.jsonl"

    @property
    def calibration(self) -> pathlib.Path:
        """Up to 500 training texts `{"text", "text_pair"?}`, one JSON object a line: what int8 files are calibrated on."""
        return self.path / "calibration.jsonl"

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

    def read_labels(self) -> list[str]:
        """Label names in class order. Raises `UserError` where the file is not UTF-8."""
        try:
            return self.labels.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.labels}: byte {error.start} is not UTF-8") from None

    def read_tokenizer(self) -> dict:
        """`{"lowercase", "max_length", "pairs"}`. Raises `UserError` where one is missing or of another type."""
        settings = read_json(self.tokenizer)
        for key, kind in (("lowercase", bool), ("max_length", int), ("pairs", bool)):
            if not isinstance(settings, dict) or type(settings.get(key)) is not kind:
                raise UserError(f"{self.tokenizer}: must hold lowercase, max_length and pairs, not {show(settings)}")
        return settings

    def require(self, *paths: pathlib.Path) -> None:
        """Raises `UserError` unless this is a finished run that holds `paths`, and nothing in it leads out of it."""
        if not self.path.is_dir():
            raise UserError(f"{self.path}: no such run directory")
        inside = self.path.resolve()
        for link in self.path.rglob("*"):
            if link.is_symlink() and not link.resolve().is_relative_to(inside):
                raise UserError(f"{link}: a link out of the run, so that files elsewhere would be written; put a copy there")
        for path in paths:
            if not path.exists():
                raise UserError(f"{self.path}: not a finished run, {path.name} is missing; train it, or go on with --resume")


def cache_root() -> pathlib.Path:
    """Where work that several runs share is kept: `$TFKD_CACHE`, else `~/.cache/tfkd`. Deleting it costs time alone."""
    return pathlib.Path(os.environ.get("TFKD_CACHE") or pathlib.Path.home() / ".cache" / "tfkd")
