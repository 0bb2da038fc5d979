"""`python -m export RUN --demo`: a static page that classifies what a person types, in the browser.

The page is a folder that any web server hands out. Model, page and MediaPipe's web text task lie in it, and nothing is fetched
from elsewhere: the task would also report how it is used to its makers, and the page's content security policy forbids that.
MediaPipe comes from its npm package, by npm or from a folder or tarball that a person names.
"""

import json
import pathlib
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable

from tfkd.errors import UserError
from tfkd.run_dir import RunDir, remove, size, whole, write_json

PACKAGE = "@mediapipe/tasks-text@1.0.1"
"""The version that was tried. npm compares what it fetches with the checksum of its registry."""

LIBRARY = ("text_bundle.mjs", "wasm/text_wasm_internal.js", "wasm/text_wasm_internal.wasm")
LIBRARY += ("wasm/text_wasm_nosimd_internal.js", "wasm/text_wasm_nosimd_internal.wasm", "package.json", "README.md")
"""What the page needs of the package; the last two say whose it is, which version, and its licence."""

PAGE = {"index.html": "demo.html", "demo.css": "demo.css", "demo.js": "demo.js"}
"""File of the page -> the one beside this module."""

VARIANTS = ("int8_dynamic", "float32")
"""Of the MediaPipe file, the one to take first: it has to travel to the browser."""

FOLDER, ABOUT = "demo", "about.json"
SECONDS = 180
EXAMPLES, LONGEST = 5, 110


def check(run: RunDir, task: str) -> None:
    """Raises `UserError` for a student that MediaPipe cannot classify with."""
    if task != "classification":
        raise UserError(f"--demo: MediaPipe classifies texts, and this student does {task}")
    settings = run.read_tokenizer()
    if settings["pairs"]:
        raise UserError("--demo: MediaPipe reads one text, and this student two")
    if not settings["lowercase"]:
        raise UserError("--demo: MediaPipe lower-cases every text, and this student tells cases apart: data.lowercase: true")


def library(package: str | None) -> dict[str, bytes]:
    """The files of `LIBRARY`, by name.

    Arguments:
        package: a folder or a tarball of the npm package; None: npm fetches `PACKAGE`.

    Raises:
        UserError: there is no npm, it could not fetch, or a file is missing.
    """
    if package is not None:
        path = pathlib.Path(package)
        if not path.exists():
            raise UserError(f"--demo-package {package}: no such folder or file")
        return _from_folder(path) if path.is_dir() else _from_tarball(path)
    with tempfile.TemporaryDirectory() as folder:
        return _from_tarball(_fetched(pathlib.Path(folder)))


def write(run: RunDir, entries: list[dict], files: dict[str, bytes]) -> pathlib.Path | None:
    """Writes `RUN/export/demo/`, whole or not at all. Returns the folder, or None where no MediaPipe file passed.

    Arguments:
        entries: of the run's manifest.
        files: what `library` answered.
    """
    passed = {entry["variant"]: entry for entry in entries if entry["format"] == "mediapipe" and entry["passed"]}
    entry = next((passed[variant] for variant in VARIANTS if variant in passed), None)
    if entry is None:
        remove(run.exports / FOLDER)
        return None
    with whole(run.exports / FOLDER) as beside:
        for name, content in files.items():
            _put(beside / "mediapipe" / name, content)
        for name, source in PAGE.items():
            _put(beside / name, pathlib.Path(__file__).with_name(source).read_bytes())
        _put(beside / entry["path"], (run.exports / entry["path"]).read_bytes())
        write_json(beside / ABOUT, about(run, entry, json.loads(files["package.json"])))
    return run.exports / FOLDER


def about(run: RunDir, entry: dict, package: dict) -> dict:
    """What the page says: the student's name, a sentence, facts and examples; and whose student it is."""
    labels = run.read_labels()
    few = f"{', '.join(labels[:-1])} or {labels[-1]}" if 1 < len(labels) <= 6 else f"one of {len(labels):,} labels"
    metric = ", ".join(f"{name.replace('_', ' ')} {100 * value:.1f} %" for name, value in (entry["metrics"] or {}).items())
    facts = [f"{entry['variant'].replace('_', ' ')}, {entry['bytes'] / 1e6:.1f} MB"]
    facts += [f"{metric} on {entry['examples']:,} test examples"] if metric else []
    facts += [f"{package.get('name')} {package.get('version')}, {package.get('license')}"]
    return {
        "name": run.path.resolve().name,
        "sentence": f"A distilled Transformer says of a text: {few}.",
        "facts": " · ".join(facts) + (f". {entry['note']}." if entry["note"] else ""),
        "examples": examples(run),
        "model": entry["path"],
        "bytes": size(run.exports / entry["path"]),
        "student_sha256": entry["student_sha256"],
    }


def examples(run: RunDir) -> list[str]:
    """A few test examples to begin with: short ones, of different labels where there are."""
    first: dict[str, list[str]] = {}
    with open(run.examples, "rb") as stream:
        for line in stream:
            try:
                row = json.loads(line)
                text, label = row["text"].strip(), str(row["label"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # the export has told of it
            if 0 < len(text) <= LONGEST and text.isprintable():
                first.setdefault(label, []).append(text)
    turns = [texts[turn] for turn in range(EXAMPLES) for texts in first.values() if turn < len(texts)]
    return list(dict.fromkeys(turns))[:EXAMPLES]


def _fetched(folder: pathlib.Path) -> pathlib.Path:
    """Has npm fetch the package into a folder; from its own cache where it has it."""
    instead = "or name a folder or tarball of it: --demo-package PATH"
    command = ["npm", "pack", PACKAGE, "--pack-destination", str(folder), "--ignore-scripts", "--prefer-offline"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    except FileNotFoundError:
        raise UserError(f"--demo: npm, which would fetch {PACKAGE}, is not installed; install Node.js, {instead}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"--demo: npm did not fetch {PACKAGE} within {SECONDS} s; try again, {instead}") from None
    found = sorted(folder.glob("*.tgz"))
    if done.returncode or not found:
        raise UserError(f"--demo: npm could not fetch {PACKAGE} ({_reason(done.stderr)}); go online, {instead}")
    return found[0]


def _reason(said: str) -> str:
    """The line of npm's messages that tells most."""
    lines = [re.sub(r"^npm (error|ERR!)", "", line).strip() for line in said.splitlines() if "err" in line.lower()]
    telling = [line for line in lines if line and not line.startswith(("A complete log", "code "))]
    return telling[0][:200] if telling else "it does not say why"


def _from_folder(path: pathlib.Path) -> dict[str, bytes]:
    return _complete(path, lambda name: (path / name).read_bytes())


def _from_tarball(path: pathlib.Path) -> dict[str, bytes]:
    try:
        with tarfile.open(path) as archive:
            inside = {member.name.partition("/")[2]: member for member in archive if member.isfile()}  # npm's lie under package/
            return _complete(path, lambda name: archive.extractfile(inside[name]).read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path}: cannot be read as an npm package ({error})") from None


def _complete(path: pathlib.Path, read: Callable[[str], bytes]) -> dict[str, bytes]:
    files = {}
    for name in LIBRARY:
        try:
            files[name] = read(name)
        except (KeyError, FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path}: holds no {name}; it must be npm's {PACKAGE}") from None
    try:
        named = json.loads(files["package.json"])["name"]
    except (ValueError, KeyError, TypeError):
        named = None
    if named != PACKAGE.rpartition("@")[0]:
        raise UserError(f"{path}: is the package {named}, not {PACKAGE}")
    return files


def _put(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
