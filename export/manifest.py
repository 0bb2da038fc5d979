"""`manifest.json`: what was exported and how it was proven; and that nothing unproven lies under a final name."""

import json
import pathlib

from tfkd.run_dir import RunDir, remove, sha256, size, write_json

from .formats import BESIDE

ORDER = ("format", "variant", "path", "bytes", "sha256", "metrics", "student_metrics", "agreement", "max_abs_difference")
ORDER += ("mean_abs_difference", "examples", "signatures", "latency_ms", "latency_request", "note", "student_sha256")
ORDER += ("compared_with", "compared_sha256", "seconds", "passed", "reason")
"""Keys of an entry as they are written."""

DERIVED = {"benchmark.json": ("benchmark.json", "benchmark.svg", "benchmark.png"), "demo/about.json": ("demo",)}
"""File that names the SHA-256 of a student -> what `python -m export.benchmark` and `--demo` made of that student."""


class Manifest:
    """The entries of a run's manifest, one for every file tried; written anew after each.

    Arguments:
        run: where the files are.
        files: final name of every (format, variant) there is.

    Entries of an earlier export are kept where they speak of this student and their file is still the one that was proven.
    Files under a final name that no kept entry vouches for are deleted: they are of another student, or changed since.
    """

    def __init__(self, run: RunDir, files: dict[tuple[str, str], str]):
        self.run, self.files = run, files
        self.student = sha256(run.student)
        self.entries = {}
        for entry in _read(run.manifest):
            key = (entry.get("format"), entry.get("variant"))
            if key in files and self._still_true(entry, run.exports / files[key]):
                self.entries[key] = entry
        self.removed = self._sweep()

    def _still_true(self, entry: dict, path: pathlib.Path) -> bool:
        if entry.get("student_sha256") != self.student or entry.get("compared_sha256") != self._compared(entry):
            return False
        return path.exists() and sha256(path) == entry.get("sha256") if entry.get("passed") else not path.exists()

    def _compared(self, entry: dict) -> str | None:
        """Of the model that a file is made of and compared with, where it is not the student; None without one."""
        other = entry.get("compared_with") == self.run.quantized.name and self.run.quantized.exists()
        return sha256(self.run.quantized) if other else None

    def _sweep(self) -> list[str]:
        removed = []
        for key, name in self.files.items():
            path = self.run.exports / name
            if path.exists() and key not in self.entries:
                remove(path)
                removed.append(name)
        for format, names in BESIDE.items():
            if not any(entry["format"] == format and entry["passed"] for entry in self.entries.values()):
                for name in names:
                    remove(self.run.exports / name)
        for about, names in DERIVED.items():
            if _student_of(self.run.exports / about) != self.student:
                for name in names:
                    remove(self.run.exports / name)
        return removed

    def add(self, entry: dict) -> dict:
        """Completes an entry from the file it speaks of, and writes the manifest. Returns the entry."""
        key = (entry["format"], entry["variant"])
        path = self.run.exports / self.files[key]
        entry = dict.fromkeys(ORDER) | entry | {"student_sha256": self.student, "compared_sha256": self._compared(entry)}
        if entry["passed"]:
            entry |= {"path": path.name, "bytes": size(path), "sha256": sha256(path)}
        self.entries[key] = entry
        self.write()
        return entry

    def write(self) -> None:
        write_json(self.run.manifest, [self.entries[key] for key in self.files if key in self.entries])


def _read(path: pathlib.Path) -> list[dict]:
    """The entries of an earlier export; none where it is missing or damaged: it is written anew in any case."""
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _student_of(path: pathlib.Path) -> str | None:
    """The student that a file speaks of; None where it is missing or damaged."""
    try:
        return json.loads(path.read_bytes()).get("student_sha256")
    except (OSError, ValueError, AttributeError):
        return None
