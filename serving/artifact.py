"""The SavedModel of a run, as its manifest vouches for it."""

import dataclasses
import hashlib
import json
import pathlib

from .errors import UserError


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A SavedModel that passed the export's checks.

    Arguments:
        run: the run's folder.
        path: the SavedModel's folder.
        entry: what the manifest says of it.
    """

    run: pathlib.Path
    path: pathlib.Path
    entry: dict


def find(run: pathlib.Path) -> Artifact:
    """Reads `export/manifest.json` of a run.

    Raises:
        UserError: no run, no manifest, or no SavedModel in it that passed.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run directory")
    manifest = run / "export" / "manifest.json"
    again = f"python -m export {run} --format saved_model"
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
        found = [entry for entry in entries if entry["format"] == "saved_model"]
    except FileNotFoundError:
        raise UserError(f"{run}: nothing is exported yet; run {again}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{manifest}: not a manifest of exports; run {again}") from None
    if not found:
        raise UserError(f"{run}: no SavedModel is exported; run {again}")
    entry = found[0]
    if entry.get("passed") is not True:
        raise UserError(f"{run}: its SavedModel did not pass, and is not deployed: {entry.get('reason')}")
    name = entry.get("path")
    if not isinstance(name, str) or pathlib.PurePath(name).name != name or name in ("", ".."):
        raise UserError(f"{manifest}: path = {json.dumps(name)} is not a name in its folder")
    link = next((part for part in ((manifest.parent / name), *(manifest.parent / name).rglob("*")) if part.is_symlink()), None)
    if link is not None:
        raise UserError(f"{link}: a link, through which files elsewhere would be served; run {again}")
    if not (manifest.parent / name / "saved_model.pb").is_file():
        raise UserError(f"{manifest.parent / name}: no SavedModel there; run {again}")
    return Artifact(run, manifest.parent / name, entry)


def sha256(folder: pathlib.Path) -> str:
    """Hexadecimal SHA-256 of a folder's relative file names and contents in sorted order, as the manifest has it."""
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def example_texts(run: pathlib.Path) -> list[dict[str, str]]:
    """Test examples of a run, `{"text", "text_pair"?}`; a few of our own where it has none."""
    try:
        lines = (run / "examples.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        lines = []
    rows = [row for row in map(_row, lines) if row]
    return rows or [{"text": text, "text_pair": text} for text in ("Short.", "A sentence of some more words than that one.")]


def _row(line: str) -> dict[str, str] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    texts = {name: row[name] for name in ("text", "text_pair") if name in row} if isinstance(row, dict) else {}
    return texts if "text" in texts and all(isinstance(text, str) for text in texts.values()) else None
