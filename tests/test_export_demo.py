"""`python -m export RUN --demo`: a page that is whole, asks nobody else for anything, and says what the file says."""

import base64
import functools
import http.server
import io
import json
import os
import pathlib
import re
import tarfile
import threading

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from export import demo, manifest
from export.__main__ import main as export
from tests import headless_chromium
from tests.tiny_run import LABELS, LENGTH, WORDS, batch_of, build_run
from tfkd.errors import UserError
from tfkd.run_dir import RunDir, sha256, write_json

PACKAGE = {"name": "@mediapipe/tasks-text", "version": "1.0.1", "license": "Apache-2.0"}
FILES = {name: name.encode() for name in demo.LIBRARY} | {"package.json": json.dumps(PACKAGE).encode()}


def folder_of(path, files=FILES) -> pathlib.Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def tarball_of(path, files=FILES) -> pathlib.Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def run_of(path: pathlib.Path, examples: list[tuple[str, str]] = ()) -> RunDir:
    """As much of a run as the page speaks of."""
    run = RunDir(path)
    run.exports.mkdir(parents=True)
    run.labels.write_text("no\nyes\n")
    run.examples.write_text("".join(json.dumps({"row": 0, "text": text, "label": label}) + "\n" for text, label in examples))
    return run


def entry_of(run: RunDir, variant: str = "int8_dynamic", passed: bool = True) -> dict:
    path = run.exports / f"mediapipe.{variant}.tflite"
    path.write_bytes(b"model" * 100)
    entry = {"format": "mediapipe", "variant": variant, "passed": passed, "path": path.name, "bytes": 500, "examples": 1821}
    return entry | {"metrics": {"accuracy": 0.8849}, "note": "it is so", "student_sha256": "abc"}


def test_package_is_read_from_a_folder_and_from_a_tarball(tmp_path):
    assert demo.library(str(folder_of(tmp_path / "folder"))) == FILES
    assert demo.library(str(tarball_of(tmp_path / "some.tgz"))) == FILES


def test_what_is_not_the_package_is_named(tmp_path):
    short = {name: content for name, content in FILES.items() if name != "text_bundle.mjs"}
    other = FILES | {"package.json": b'{"name": "left-pad"}'}
    (tmp_path / "text.tgz").write_bytes(b"no tarball")
    cut = tarball_of(tmp_path / "cut.tgz", FILES | {"text_bundle.mjs": os.urandom(50_000)}).read_bytes()[:20_000]
    (tmp_path / "cut.tgz").write_bytes(cut)
    for path, words in (
        (tmp_path / "none", "no such folder or file"),
        (folder_of(tmp_path / "short", short), "holds no text_bundle.mjs"),
        (tarball_of(tmp_path / "short.tgz", short), "holds no text_bundle.mjs"),
        (folder_of(tmp_path / "other", other), "is the package left-pad"),
        (folder_of(tmp_path / "json", FILES | {"package.json": b"{"}), "is the package None"),
        (tmp_path / "text.tgz", "cannot be read as an npm package"),
        (tmp_path / "cut.tgz", "cannot be read as an npm package"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            demo.library(str(path))
        assert "\n" not in str(caught.value)


def test_without_npm_and_offline_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm, which would fetch .*, is not installed; install Node.js, or .*--demo-package PATH"):
        demo.library(None)
    said = "npm warn Unknown\\nnpm error code ENOTFOUND\\nnpm error getaddrinfo ENOTFOUND somewhere\\nnpm error A complete log"
    (tmp_path / "npm").write_text(f"#!/bin/sh\nprintf '{said}' >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(UserError, match=r"\(getaddrinfo ENOTFOUND somewhere\); go online, or .*--demo-package PATH"):
        demo.library(None)
    (tmp_path / "npm").write_text(f'#!/bin/sh\n/bin/cp {tarball_of(tmp_path / "its")} "$4/its.tgz"\n')
    assert demo.library(None) == FILES  # the folder is the fourth word that npm is given


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (["--demo", "--demo-package", "nowhere"], "--demo-package nowhere: no such folder or file"),
        (["--demo", "--pairs"], "MediaPipe reads one text, and this student two"),
    ),
)
def test_a_mistake_is_one_line_and_2_and_nothing_is_written(arguments, words, tmp_path, capsys):
    run = build_run(tmp_path / "run", pairs="--pairs" in arguments)
    assert export([str(run), *(word for word in arguments if word != "--pairs")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not run.exports.exists()


def test_only_classifiers_have_a_page(tmp_path):
    with pytest.raises(UserError, match="this student does tagging"):
        demo.check(RunDir(tmp_path), "tagging")
    RunDir(tmp_path).tokenizer.write_text('{"lowercase": false, "pairs": false, "max_length": 12}')
    with pytest.raises(UserError, match="lower-cases every text"):
        demo.check(RunDir(tmp_path), "classification")


def test_a_package_without_a_page_is_a_mistake(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        export([str(tmp_path), "--demo-package", "here"])
    assert caught.value.code == 2 and "--demo alone" in capsys.readouterr().err


def test_page_lies_with_all_that_it_names(tmp_path):
    run = run_of(tmp_path / "mine", [("fine", "yes"), ("too long " * 20, "yes"), ("bad", "no"), ("good", "yes")])
    folder = demo.write(run, [entry_of(run, "float32"), entry_of(run)], FILES)
    about = json.loads((folder / "about.json").read_text())
    assert (folder / about["model"]).read_bytes() == b"model" * 100
    assert about["model"] == "mediapipe.int8_dynamic.tflite" and about["bytes"] == 500
    assert about["examples"] == ["fine", "bad", "good"]  # a label after the other
    assert about["sentence"].endswith("no or yes.")
    assert "88.5 % on 1,821 test examples" in about["facts"] and "1.0.1, Apache-2.0. it is so." in about["facts"]
    for name, content in FILES.items():
        assert (folder / "mediapipe" / name).read_bytes() == content
    page = "".join((folder / name).read_text() for name in ("index.html", "demo.js"))
    for name in ("demo.css", "demo.js", "about.json"):
        assert name in page and (folder / name).exists()
    assert "mediapipe/text_bundle.mjs" in page and "mediapipe/wasm" in page


def test_page_takes_what_passed_and_is_not_written_without(tmp_path):
    run = run_of(tmp_path / "mine", [("fine", "yes")])
    failed = entry_of(run, passed=False)
    assert demo.write(run, [failed], FILES) is None and not (run.exports / "demo").exists()
    folder = demo.write(run, [failed, entry_of(run, "float32")], FILES)
    assert json.loads((folder / "about.json").read_text())["model"] == "mediapipe.float32.tflite"
    assert demo.write(run, [failed], FILES) is None and not folder.exists()  # nor does an older one stay


def test_page_that_breaks_off_leaves_the_older_one(tmp_path):
    run = run_of(tmp_path / "mine", [("fine", "yes")])
    entry = entry_of(run)
    demo.write(run, [entry], FILES)
    (run.exports / entry["path"]).unlink()
    with pytest.raises(FileNotFoundError):
        demo.write(run, [entry], FILES | {"README.md": b"newer"})
    assert (run.exports / "demo" / "mediapipe" / "README.md").read_bytes() == b"README.md"
    assert [path.name for path in run.exports.iterdir()] == ["demo"]


def test_page_of_an_older_student_does_not_stay(tmp_path):
    run = build_run(tmp_path / "run")
    for student, stays in ((sha256(run.student), True), ("another", False)):
        write_json(run.exports / "demo" / "about.json", {"student_sha256": student})
        manifest.Manifest(run, {})
        assert (run.exports / "demo").exists() == stays


def test_page_may_talk_to_nobody_else():
    source = {name: pathlib.Path(demo.__file__).with_name(name).read_text() for name in demo.PAGE.values()}
    assert not any("//" in re.sub(r"^\s*//.*$|;\s*//.*$", "", text, flags=re.MULTILINE) for text in source.values())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', source["demo.html"])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["connect-src"] == "'self'"
    assert set(" ".join(rules.values()).split()) == {"'none'", "'self'", "'wasm-unsafe-eval'", "data:"}


ELSEWHERE = """new Promise((done) => {
  document.addEventListener("securitypolicyviolation", (event) => done(event.blockedURI));
  fetch("http://127.0.0.1:9").then(() => done("reached"), () => setTimeout(() => done("failed"), 2000));
})"""
"""Asks another origin for something; comes to the address that the page's policy stopped."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def library():
    """What `TFKD_DEMO_PACKAGE` names, or npm fetches."""
    try:
        return demo.library(os.environ.get("TFKD_DEMO_PACKAGE"))
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.skipif(headless_chromium.PROGRAM is None, reason="Chromium is not installed")
def test_what_is_typed_into_the_page_is_classified_as_the_file_does(tmp_path, library):
    run = build_run(tmp_path / "run", steps=250)
    assert export([str(run), "--demo", "--demo-package", str(folder_of(tmp_path / "package", library))]) == 0
    folder = run.exports / "demo"
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{server.server_port}/"
        with headless_chromium.page(origin, tmp_path / "profile") as page:
            page.wait("document.body?.dataset.state === 'ready'")
            assert page.ask("document.title").startswith("run")
            page.type("cat sings")
            page.wait("document.body.dataset.state === 'answered'")
            typed = shown(page)
            assert 0 < page.ask("Number(document.getElementById('time').dataset.milliseconds)") < 10_000
            assert "ms, from text to scores" in page.ask("document.getElementById('time').textContent")
            page.ask("document.querySelector('#examples button').click()")
            clicked = shown(page)
            example = page.ask("document.getElementById('text').value")
            picture = base64.b64decode(page.do("Page.captureScreenshot")["data"])
            stopped = page.ask(ELSEWHERE)
        server.shutdown()
    assert picture.startswith(b"\x89PNG")
    for text, scores in (("cat sings", typed), (example, clicked)):
        wanted = expected(folder / "mediapipe.int8_dynamic.tflite", text)
        assert scores.keys() == wanted.keys()
        assert max(abs(scores[label] - wanted[label]) for label in wanted) < 1e-3
        assert list(scores) == sorted(wanted, key=wanted.get, reverse=True)
    assert {url for url in page.requests if not url.startswith(("data:", "about:"))} >= {origin, f"{origin}about.json"}
    assert all(url.startswith((origin, "data:", "about:", "blob:")) for url in page.requests), page.requests
    assert stopped == "http://127.0.0.1:9/"  # the policy of the page is in force: another port is another origin


def shown(page) -> dict[str, float]:
    """Label -> score, as the page lists them."""
    rows = page.ask("[...document.querySelectorAll('#answer li')].map((r) => [r.children[0].textContent, r.dataset.score])")
    return {label: float(score) for label, score in rows}


def expected(path: pathlib.Path, text: str) -> dict[str, float]:
    """What the file itself says of the token ids, made by hand."""
    assert set(text.split()) <= set(WORDS.split())
    inputs = batch_of(text, length=LENGTH)
    runner = Interpreter(model_path=str(path), num_threads=1).get_signature_runner("classify")
    return dict(zip(LABELS, runner(**inputs, segment_ids=np.zeros((1, LENGTH), "int32"))["scores"][0].tolist(), strict=True))
