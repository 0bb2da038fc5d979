"""Run directories that a broken disk, a careless hand or an enemy could have left, and the programs that read them."""

import atexit
import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import shutil
import tempfile
import time
from unittest import mock

from hypothesis import strategies as st

import export.__main__
import serving.__main__
import tfkd.evaluate
from tests.test_serving import make_run
from tests.tiny_run import LABELS, build_run

SECONDS = 20.0
FILES = {
    "export": ["config.yaml", "student.keras", "vocab.txt", "labels.txt", "tokenizer_config.json", "examples.jsonl"],
    "evaluate": ["config.yaml", "student.keras", "vocab.txt", "labels.txt", "tokenizer_config.json", "teacher/model.keras"],
    "serving": ["export/manifest.json", "export/saved_model/saved_model.pb", "examples.jsonl"],
}
SNIPPETS = [b"", b"\0", b"\xff", b"\n", b"[]", b"{}", b"null", b"1", b'"a"', b"[" * 3000, b"PK\3\4", b"\x89HDF", b"9" * 5000]
SNIPPETS += [b"x" * 9999, b'{"lowercase": 1, "max_length": -3, "pairs": "no"}', b"[PAD]\n[UNK]\n", b"a\nb\nc\n", b"a\na\na\n"]
SNIPPETS += [b'{"lowercase": true, "max_length": 1e99, "pairs": false}', b'{"lowercase": true, "max_length": null, "pairs": []}']
SNIPPETS += [b'[{"format": "saved_model", "passed": true, "path": ".."}]', b'[{"format": "saved_model", "passed": true}]']
SNIPPETS += [b'[{"format": "saved_model", "passed": true, "path": 3}]', b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n", b"{"]
SNIPPETS += [b'{"row": 0, "text": "a"}\n', b'{"row": -1, "text": 3, "label": "x"}\n']
HOWS = ["cut", "flip", "flip", "insert", "replace", "delete", "folder", "link"]


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is done to one file of a run, and which program reads it then."""

    program: str
    file: str
    how: str
    place: float
    value: bytes


@st.composite
def cases(draw) -> Damage:
    program = draw(st.sampled_from(sorted(FILES)))
    value = draw(st.one_of(st.sampled_from(SNIPPETS), st.binary(min_size=1, max_size=8)))
    return Damage(program, draw(st.sampled_from(FILES[program])), draw(st.sampled_from(HOWS)), draw(st.floats(0, 1)), value)


@functools.cache
def _whole(program: str) -> pathlib.Path:
    """A run that the program reads without complaint, made once."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="whole-")) / program
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    if program == "serving":
        return make_run(path)
    run = build_run(path)
    run.teacher.mkdir()
    shutil.copy(run.student, run.teacher / "model.keras")
    return path


def _apply(damage: Damage, run: pathlib.Path) -> None:
    path = run / damage.file
    content = path.read_bytes()
    place = int(damage.place * len(content))
    match damage.how:
        case "cut":
            path.write_bytes(content[:place])
        case "flip":
            path.write_bytes(content[:place] + bytes(b ^ 0x55 for b in content[place : place + 2]) + content[place + 2 :])
        case "insert":
            path.write_bytes(content[:place] + damage.value + content[place:])
        case "replace":
            path.write_bytes(damage.value)
        case _:
            path.unlink()
    if damage.how == "folder":
        path.mkdir()
    if damage.how == "link":
        path.symlink_to("/etc/passwd")


def _made(student, questions, format, variant, folder, *_) -> dict:
    """In place of converters, which take seconds: what they are given is read by then."""
    return {"format": format, "variant": variant, "passed": False, "reason": "not tried", "seconds": 0.0}


def _run(program: str, folder: pathlib.Path, run: pathlib.Path) -> int:
    if program == "serving":
        return serving.__main__.main([str(run), "--base", str(folder / "base")])
    if program == "export":
        with mock.patch("export.artifacts.make", _made):
            return export.__main__.main([str(run), "--format", "onnx:float32"])
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"red cat {label}", "label": label}) + "\n" for label in LABELS))
    return tfkd.evaluate.main([str(run), "--data", str(data)])


def check(damage: Damage) -> str | None:
    """Runs a program on a damaged run. Answers with the one line for the person, None where it could be used."""
    with tempfile.TemporaryDirectory() as folder:
        folder, said = pathlib.Path(folder), io.StringIO()
        run = folder / "run"
        shutil.copytree(_whole(damage.program), run)
        _apply(damage, run)
        begin = time.process_time()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = _run(damage.program, folder, run)
        assert time.process_time() - begin < SECONDS
        assert not [path for path in folder.rglob("*") if "partial" in path.name]
        message = said.getvalue().replace(f"{folder}/", "")
        if code == 0 or (damage.program == "export" and code == 1 and not message):
            return None
        assert code in (1, 2), code
        assert message.strip().splitlines() == [message.strip()] and message.strip(), message
        assert "Traceback" not in message and len(message) < 1200, message
        return f"{code} {message.strip()}"
