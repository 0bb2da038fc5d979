"""A model base: the folder that a TF Serving server reads, `NAME/VERSION/` for every model and the server's own files."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from . import artifact, server_files, warmup
from .errors import UserError

INSIDE = "/models"
"""Where the server sees the base."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
HISTORY = "history.json"


class ModelBase:
    """Deploys SavedModels side by side: each model has its versions, its history and its entry in `models.config`.

    A version is a folder whose number nothing ever had before. Which one is served is a number in `models.config`, TF Serving's
    `specific` version policy: the server loads what the file names, and lets go of the version before once the new one answers.

    Everything is readable by all, because the server runs as nobody.

    Arguments:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: pathlib.Path):
        self.path = pathlib.Path(path)

    @property
    def config(self) -> pathlib.Path:
        return self.path / "models.config"

    def served(self) -> dict[str, int]:
        """Version that `models.config` names for each model."""
        return {entry.name: max(entry.model_version_policy.specific.versions, default=0) for entry in _entries(self._read())}

    def versions(self, name: str) -> list[int]:
        """Versions of a model that are there, rising."""
        folder = self.path / name
        names = [child.name for child in folder.iterdir() if child.is_dir()] if folder.is_dir() else []
        return sorted(int(child) for child in names if child.isascii() and child.isdigit())

    def history(self, name: str) -> list[dict]:
        """What was ever deployed as a model: version, run, time, SHA-256, metrics.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / name / HISTORY
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            if not all(isinstance(entry["version"], int) for entry in entries):
                raise ValueError
            return entries
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}: not a history of versions; repair it, or delete it") from None

    def deploy(self, name: str, model: artifact.Artifact, keep: int | None = None) -> tuple[int, list[int]]:
        """Adds a SavedModel as a model's next version, with warm-up requests, and makes it the one that is served.

        The version appears whole: it is written beside, compared with the manifest, synced and renamed.

        Arguments:
            keep: deletes all but the newest `keep` versions and the one served until now: a running server goes on with that
                until it has read `models.config` again, and would be left with none.

        Returns:
            The version, and those that were deleted.

        Raises:
            UserError: a bad name, or files that are not the proven ones.
        """
        check(name)
        with self._locked():
            config = self._read()  # before anything is written: a damaged one stops here
            history, before = self.history(name), self.served().get(name, 0)
            version = 1 + max([before, *self.versions(name), *(entry["version"] for entry in history)])
            with _whole(self.path / name / str(version)) as beside:
                shutil.copytree(model.path, beside, copy_function=shutil.copyfile)
                if artifact.sha256(beside) != model.entry.get("sha256"):
                    again = f"python -m export {model.run} --format saved_model"
                    raise UserError(f"{model.path}: not the files that passed, its SHA-256 is another; run {again}")
                warmup.write(beside, name, artifact.example_texts(model.run))
            entry = {"version": version, "run": str(model.run), "deployed": _now()}
            entry |= {key: model.entry.get(key) for key in ("bytes", "sha256", "student_sha256", "metrics")}
            _write(self.path / name / HISTORY, json.dumps([*history, entry], indent=2) + "\n")
            for file, text in server_files.FILES.items():
                if not (self.path / file).exists():
                    _write(self.path / file, text)
            self._serve(config, name, version)
            return version, self._prune(name, keep, {before, version}) if keep else []

    def roll_back(self, name: str) -> tuple[int, int]:
        """Serves the version before the served one. Returns both, the one served until now first.

        Raises:
            UserError: no such model, or no earlier version of it.
        """
        check(name)
        if not self.config.exists():
            raise UserError(f"{self.path}: no model base, models.config is missing")
        with self._locked():
            config = self._read()
            now = self.served().get(name)
            if now is None:
                raise UserError(f"{self.config}: no model {name}; it has {', '.join(self.served()) or 'none'}")
            earlier = [version for version in self.versions(name) if version < now]
            if not earlier:
                raise UserError(f"{self.path / name}: no version before {now}, which is served, is kept")
            self._serve(config, name, earlier[-1])
        return now, earlier[-1]

    def _prune(self, name: str, keep: int, needed: set[int]) -> list[int]:
        folder, versions = self.path / name, self.versions(name)
        gone = [version for version in versions[:-keep] if version not in needed]
        for version in gone:  # renamed first: a server that lists the folder never sees half a version
            os.replace(folder / str(version), folder / f".{version}.deleted")
        for dying in folder.glob(".*.deleted"):
            shutil.rmtree(dying)
        return gone

    def _serve(self, config: model_server_config_pb2.ModelServerConfig, name: str, version: int) -> None:
        entry = next((entry for entry in _entries(config) if entry.name == name), None) or _entries(config).add()
        entry.name, entry.base_path, entry.model_platform = name, f"{INSIDE}/{name}", "tensorflow"
        entry.model_version_policy.specific.versions[:] = [version]
        _write(self.config, server_files.MODELS_HEADER + text_format.MessageToString(config, as_utf8=True))

    def _read(self) -> model_server_config_pb2.ModelServerConfig:
        config = model_server_config_pb2.ModelServerConfig()
        try:
            return text_format.Parse(self.config.read_text(encoding="utf-8"), config)
        except FileNotFoundError:
            return config
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise UserError(f"{self.config}: not a ModelServerConfig of TF Serving ({error})") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps a second deployment into the same base waiting, so that neither loses the other's entry."""
        _folder(self.path)
        with open(self.path / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def check(name: str) -> None:
    """Raises `UserError` for a name that is no plain folder name, or that one of the base's own files has."""
    if not NAME.fullmatch(name):
        shown = json.dumps(name if len(name) <= 80 else name[:77] + "...")
        raise UserError(f"--name {shown}: letters, digits, dots, hyphens and underscores, beginning with a letter or a digit")
    if name in {*server_files.FILES, "models.config"}:
        raise UserError(f"--name {name}: the base has a file of this name")


def _entries(config: model_server_config_pb2.ModelServerConfig):
    return config.model_config_list.config


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def _whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path beside `path` to write a file or a folder to; then it is synced, readable by all, and renamed to `path`.

    A name that is no number is no version for TF Serving. On an exception what was written is removed.
    """
    _folder(path.parent)
    beside = path.with_name(f".{path.name}.partial")
    _remove(beside)
    try:
        yield beside
        for part in (*beside.rglob("*"), beside):
            part.chmod(0o755 if part.is_dir() else 0o644)
            _sync(part)
        os.replace(beside, path)
        _sync(path.parent)
    finally:
        _remove(beside)


def _folder(path: pathlib.Path) -> None:
    """Makes a folder that all may read, if there is none."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)  # another deployment may make it now
        path.chmod(0o755)
        _sync(path.parent)


def _write(path: pathlib.Path, text: str) -> None:
    with _whole(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
