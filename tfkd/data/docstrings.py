"""The built-in data: first sentences of the docstrings of installed packages, labelled with the package they came from.

Everybody who can run tfkd has these data already, so that a first run needs no download. Sources are parsed, never imported.
"""

import ast
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator

from tfkd import run_dir
from tfkd.data.target import Target
from tfkd.data.targets import Class
from tfkd.errors import UserError

PACKAGES = ("huggingface_hub", "keras", "keras_hub", "numpy", "python", "tensorflow", "tensorflow_datasets")
RULE = 2  # of what a sentence is and which are left out; a new rule makes old caches unread
TEST, VALIDATION = 0.1, 0.05  # shares of the sentences
SHORTEST = 25  # characters; shorter sentences ("Returns the name.") say nothing about where they came from
_LEFT_OUT = {"test", "tests", "testdata", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_TEST_FILE = re.compile(r"(test_.*|.*_test|conftest)\.py\Z")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)")
_ABBREVIATION = re.compile(
    r"\b(?:e\.g|i\.e|a\.k\.a|w\.r\.t|etc|cf|vs|viz|resp|approx|incl|et\s+al|figs?|eqs?|sec|refs?|dr|mrs?|prof|inc)\.\Z",
    re.IGNORECASE,
)


class Docstrings:
    """Reads the docstrings data, from its cache or, the first time, from the packages' source files.

    Arguments:
        cache_dir: folder of the cache; default: `$TFKD_CACHE`, then `~/.cache/tfkd`.
        progress: called with (files parsed, files in all) while the sources are parsed; not called when the cache answers.
        target: makes examples of texts and their packages; default: a `Class`, whose labels are the packages found, sorted.

    Attributes:
        splits: `("train", "validation", "test")`: 85, 5 and 10 % by a stable hash of the sentence.
        provenance: package -> version.
        key: hex digest of every sentence, its label and its split.
    """

    name = "docstrings"
    splits = ("train", "validation", "test")

    def __init__(
        self,
        cache_dir: str | os.PathLike | None = None,
        progress: Callable[[int, int], None] | None = None,
        target: Target | None = None,
    ):
        self.target = target or Class()
        roots = {package: _roots(package) for package in PACKAGES}
        self.provenance = {package: _version(package) for package, folders in roots.items() if folders}
        self.notes = [f"{package} is not installed: its docstrings are missing" for package in PACKAGES if not roots[package]]
        if len(self.provenance) < 2:
            (only,) = self.provenance
            raise UserError(f"data.builtin docstrings: only {only} is installed; two packages at least are needed")
        if self.target.named:
            self.target.settle(self.provenance)
        header = {"rule": RULE, "interpreter": platform.python_version(), "versions": self.provenance}
        name = f"docstrings-{hashlib.sha256(json.dumps(header).encode()).hexdigest()[:16]}.jsonl"
        path = _cache_dir(cache_dir) / name
        cached = _read_cache(path)
        if cached is None:
            cached = self._parse({package: folders for package, folders in roots.items() if folders}, path, progress)
        self._lines, digest, unparsed = cached
        self.key = hashlib.sha256(f"{digest} {TEST} {VALIDATION}".encode()).hexdigest()
        if unparsed:
            self.notes.append(f"{unparsed:,} source files could not be parsed and were left out")

    def _parse(
        self, roots: dict[str, list[pathlib.Path]], path: pathlib.Path, progress: Callable[[int, int], None] | None
    ) -> tuple[list[str], str, int]:
        """Parses the packages and writes the cache; what `_read_cache` will answer. A note says where it cannot be written."""
        examples, unparsed = parse(roots, progress)
        body = "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in examples)
        key = hashlib.sha256(body.encode()).hexdigest()
        try:
            run_dir.write_text(path, json.dumps({"sha256": key, "unparsed": unparsed}) + "\n" + body)
        except OSError as error:
            self.notes.append(f"{path.parent}: cannot be written ({error.strerror}): every run parses again; set TFKD_CACHE")
        return body.split("\n")[:-1], key, unparsed

    def rows(self, split: str) -> Iterator[dict]:
        """Yields examples of a split, in an order that mixes the packages and is the same everywhere."""
        for line in self._lines:
            row = json.loads(line)
            if split_of(row["text"]) == split:
                yield self.target.example(row)


def split_of(sentence: str) -> str:
    """Answers `train`, `validation` or `test`: 85, 5, 10 % by a hash that every process and platform computes alike."""
    share = int.from_bytes(hashlib.blake2b(sentence.encode(), digest_size=8, person=b"docstrings").digest()) / 2**64
    return "test" if share < TEST else "validation" if share < TEST + VALIDATION else "train"


def parse(
    roots: dict[str, list[pathlib.Path]], progress: Callable[[int, int], None] | None = None
) -> tuple[list[tuple[str, str]], int]:
    """Collects first sentences from source folders.

    Arguments:
        roots: folders by package.
        progress: called with (files done, files in all).

    Returns:
        `(sentence, package)` in the order of the sentence's SHA-256, so that neither the file system nor the package decides
        where an example stands; and how many files could not be parsed. A sentence found in two packages is left out.
    """
    files = [(package, file) for package, folders in roots.items() for folder in folders for file in source_files(folder)]
    owner: dict[str, str | None] = {}
    unparsed = 0
    collecting = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles; scanning millions of their nodes costs 40 % of the time
    try:
        for done, (package, file) in enumerate(files, start=1):
            sentences = _sentences(file)
            unparsed += sentences is None
            for sentence in sentences or ():
                owner[sentence] = package if owner.get(sentence, package) == package else None
            if progress is not None:
                progress(done, len(files))
    finally:
        if collecting:
            gc.enable()
    unique = [(sentence, package) for sentence, package in owner.items() if package is not None]
    return sorted(unique, key=lambda pair: hashlib.sha256(pair[0].encode()).digest()), unparsed


def source_files(root: pathlib.Path) -> list[pathlib.Path]:
    """Python files below a folder in the order of their names, without tests and without other people's packages."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        found += [pathlib.Path(folder, name) for name in names if name.endswith(".py") and not _TEST_FILE.match(name)]
    return sorted(found)


def _sentences(file: pathlib.Path) -> list[str] | None:
    """First sentences of a file that are long enough, or None where it is not valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    sentences = []
    for node in _documented(tree):
        docstring = ast.get_docstring(node, clean=False)
        sentence = first_sentence(docstring) if docstring else ""
        if len(sentence) >= SHORTEST and _is_utf8(sentence):
            sentences.append(sentence)
    return sentences


def _documented(tree: ast.Module) -> Iterator[ast.AST]:
    """Yields the module, its classes and functions, nested ones too.

    Only statements are walked: definitions never hide in expressions, which are most of a tree (8 times faster than `ast.walk`).
    """
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, field, ())
            if isinstance(inner, list):  # the body of a lambda or of `a if b else c` is an expression
                waiting.extend(inner)


def first_sentence(docstring: str) -> str:
    """The text up to the first `.`, `?` or `!` before white space, or up to a blank line; white space becomes single spaces.

    The periods of "e.g.", "et al." and the like do not count. Those of initials do: here "of X and Y. Return" is commoner than
    "J. Smith".
    """
    paragraph = " ".join(_BLANK_LINE.split(docstring.strip(), maxsplit=1)[0].split())
    for end in _SENTENCE_END.finditer(paragraph):
        if not _ABBREVIATION.search(paragraph[: end.end()]):
            return paragraph[: end.end()]
    return paragraph


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _roots(package: str) -> list[pathlib.Path]:
    """Folders of a package, found without importing it; none where it is not installed."""
    if package == "python":
        return [pathlib.Path(sysconfig.get_path("stdlib"))]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    return sorted(pathlib.Path(folder) for folder in (spec.submodule_search_locations or ())) if spec else []


def _version(package: str) -> str:
    """The installed version; of a package whose distribution bears another name (tensorflow-cpu) that name with it."""
    if package == "python":
        return platform.python_version()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package, ())
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names))) or "unknown"


def _cache_dir(cache_dir: str | os.PathLike | None) -> pathlib.Path:
    return pathlib.Path(cache_dir or os.environ.get("TFKD_CACHE") or os.path.expanduser("~/.cache/tfkd"))


def _read_cache(path: pathlib.Path) -> tuple[list[str], str, int] | None:
    """Lines, key and number of unparsed files of a cache, None where there is none or it is not what was written.

    All of it stays in memory: 3 MB, whatever a run does with it.
    """
    try:
        header, _, body = path.read_bytes().partition(b"\n")
        known = json.loads(header)
        if known["sha256"] == hashlib.sha256(body).hexdigest():
            return body.decode().split("\n")[:-1], known["sha256"], int(known["unparsed"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
