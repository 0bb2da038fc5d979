"""The SavedModel's signatures; and, slow, a server: `tensorflow_model_server` where there is one, else its stand-in."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import yaml
from tensorflow_serving.apis import prediction_log_pb2

from export import inference, saved_model
from export.__main__ import main as export_main
from serving import warmup
from serving.__main__ import main as serving_main
from serving.client import Client
from serving.errors import NotFound, ServingError, Unavailable
from tests.tiny_run import LABELS, LENGTH, PIECES, build_run
from tfkd import run_dir

TESTS = pathlib.Path(__file__).parent
HARD = ["red cat", "", b"caf\xe9 \xff", "dog " * 10_000, "red " * 10, "red " * 11, "\N{FOX FACE} \u202e é"]
"""Texts that must be answered."""

COUNTS = [2, 0, 1, 10_000, 10, 11, 2]
"""Their pieces: a word that is none is [UNK], and bytes that are not UTF-8 are dropped."""


def example(**texts: str | bytes) -> bytes:
    texts = {name: text if isinstance(text, bytes) else text.encode() for name, text in texts.items()}
    features = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text])) for name, text in texts.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def asked(signature, **columns) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in signature(**columns).items()}


@pytest.fixture(scope="module", params=(False, pytest.param(True, marks=pytest.mark.slow)), ids=("one text", "two texts"))
def written(request, tmp_path_factory):
    """A student, its SavedModel's signatures, and the folder."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    student = inference.load(build_run(folder, request.param))
    saved_model.write_float32(student, folder / "saved_model")
    return student, tf.saved_model.load(str(folder / "saved_model")).signatures, folder / "saved_model"


# -------------------------------------------------------------------- signatures


def expected(student: inference.Student, texts, pairs=None) -> np.ndarray:
    """Probabilities of the Keras student on the tokenizer's own padding to the longest input."""
    features = student.tokenizer.padded(
        tf.constant(texts), None if pairs is None else tf.constant(pairs), max_length=LENGTH, length=LENGTH
    )
    with tf.device("CPU"):
        logits = student.model({name: features[name] for name in student.inputs}).numpy()
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("signature", ("serving_default", "from_examples"))
def test_hard_texts_are_answered_as_the_student_answers_them(written, signature):
    student, signatures, _ = written
    pairs = student.pairs
    others = [*reversed(HARD)]
    columns = {"text": HARD} | ({"text_pair": others} if pairs else {})
    if signature == "from_examples":
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        got = asked(signatures[signature], examples=tf.constant([example(**row) for row in rows]))
    else:
        got = asked(signatures[signature], **{name: tf.constant(values) for name, values in columns.items()})
    scores = expected(student, HARD, others if pairs else None)
    np.testing.assert_allclose(got["scores"], scores, atol=1e-5)
    assert [label.decode() for label in got["label"]] == [LABELS[best] for best in scores.argmax(axis=1)]
    both = [one + other for one, other in zip(COUNTS, COUNTS[::-1], strict=True)]
    cut = [count > LENGTH - 3 for count in both] if pairs else [count > LENGTH - 2 for count in COUNTS]
    assert got["truncated"].tolist() == cut


def test_a_cut_text_ends_with_its_separator_whatever_stands_beside_it(written):
    student, signatures, _ = written
    second = {"text_pair": tf.constant([""])} if student.pairs else {}
    seconds = {"text_pair": tf.constant(["", "", "cat"])} if student.pairs else {}
    alone = asked(signatures["serving_default"], text=tf.constant(["red " * 11]), **second)["scores"]
    beside = asked(signatures["serving_default"], text=tf.constant(["cat", "red " * 11, "dog " * 500]), **seconds)["scores"][1:2]
    red = [2, *[PIECES.index("red")] * (9 if student.pairs else 10), 3, 3][:LENGTH]
    by_hand = {"token_ids": [red], "padding_mask": [[1] * LENGTH], "segment_ids": [[0] * (LENGTH - 1) + [1]]}
    by_hand = {name: tf.constant(by_hand[name]) for name in student.inputs}
    ids = asked(signatures["from_token_ids"], **by_hand)["scores"]
    np.testing.assert_allclose(alone, ids, atol=1e-6)
    np.testing.assert_allclose(beside, ids, atol=1e-6)


def test_an_empty_batch_is_answered_by_every_signature(written):
    student, signatures, _ = written
    no_text, no_ids = tf.zeros((0,), tf.string), tf.zeros((0, 5), tf.int32)
    texts = {"text": no_text} | ({"text_pair": no_text} if student.pairs else {})
    for signature, columns in (("serving_default", texts), ("from_examples", {"examples": no_text})):
        got = asked(signatures[signature], **columns)
        assert {name: values.shape for name, values in got.items()} == {"label": (0,), "scores": (0, 3), "truncated": (0,)}
    got = asked(signatures["from_token_ids"], **dict.fromkeys(student.inputs, no_ids))
    assert {name: values.shape for name, values in got.items()} == {"logits": (0, 3), "scores": (0, 3)}


@pytest.mark.parametrize(
    "bad", (b"not an example", example(texts="a misspelt name")), ids=("no example", "no feature called text")
)
def test_what_is_no_example_is_an_error_and_the_next_request_is_answered(written, bad):
    _, signatures, _ = written
    with pytest.raises(tf.errors.InvalidArgumentError):
        signatures["from_examples"](examples=tf.constant([bad]))
    good = example(text="red", text_pair="cat")
    assert asked(signatures["from_examples"], examples=tf.constant([good]))["label"].shape == (1,)


def test_warm_up_requests_are_answered(written, tmp_path):
    _, signatures, folder = written
    model = shutil.copytree(folder, tmp_path / "1")
    count = warmup.write(model, "name", [{"text": "red cat", "text_pair": "dog"}, {"text": "red " * 50}])
    records = list(tf.data.TFRecordDataset(str(model / warmup.FILE)))  # checks the checksums
    assert len(records) == count == 9
    for record in records:
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        columns = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        got = asked(signatures[request.model_spec.signature_name], **{name: tf.constant(each) for name, each in columns.items()})
        assert len(got["scores"]) == len(next(iter(columns.values()))) > 0


# -------------------------------------------------------------------- faults


@pytest.mark.slow
@pytest.mark.parametrize("fault", ("swapped texts", "always untruncated"))
def test_examples_that_are_read_wrong_are_refused(tmp_path, fault, monkeypatch, capsys):
    real = saved_model._from_examples

    def wrong(names, from_text):
        if fault == "swapped texts":
            return real(names, lambda text, text_pair: from_text(text=text_pair, text_pair=text))
        return real(names, lambda **texts: from_text(**texts) | {"truncated": tf.zeros_like(texts["text"] == "", tf.bool)})

    monkeypatch.setattr(saved_model, "_from_examples", wrong)
    run = build_run(tmp_path / "run", pairs=True)
    assert export_main([str(run), "--format", "saved_model"]) == 1
    (entry,) = json.loads(run.manifest.read_text())
    assert "from_examples" in entry["reason"]
    assert not (run.exports / "saved_model").exists()


# -------------------------------------------------------------------- on a server


class Server:
    """A server on loopback, over a model base; started with the flags of the base's own `docker-compose.yml`."""

    def __init__(self, base: pathlib.Path, folder: pathlib.Path):
        self.base, self.config, self.log = base, folder / "models.config", folder / "server.log"
        self.publish()
        ports = [socket.socket() for _ in range(2)]
        for taken in ports:
            taken.bind(("127.0.0.1", 0))
        self.grpc, self.rest = (taken.getsockname()[1] for taken in ports)
        for taken in ports:
            taken.close()
        compose = yaml.safe_load((base / "docker-compose.yml").read_text())["services"]["serving"]
        flags = dict(flag.split("=") for flag in compose["command"])
        flags |= {"--port": self.grpc, "--rest_api_port": self.rest, "--model_config_file_poll_wait_seconds": 1}
        flags = {name: str(value).replace("/models/", f"{base}/") for name, value in flags.items()}
        flags["--model_config_file"] = str(self.config)
        (entrypoint,) = compose["entrypoint"]
        stand_in = [sys.executable, "-I", str(TESTS / "loopback_server.py")]
        program = [entrypoint] if shutil.which(entrypoint) else stand_in
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
        with open(self.log, "w") as log:
            command = [*program, *(f"{name}={value}" for name, value in flags.items())]
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def publish(self) -> None:
        """Gives the server the base's models.config, with the base's path here in place of the container's."""
        beside = self.config.with_suffix(".partial")
        beside.write_text((self.base / "models.config").read_text().replace('"/models/', f'"{self.base}/'))
        os.replace(beside, self.config)

    def client(self, name: str = "first", rest: bool = False, **options) -> Client:
        return Client(name, port=self.rest if rest else self.grpc, rest=rest, deadline=60, **options)

    def wait(self, name: str, version: int) -> None:
        """Until this version, and no other, is served."""
        end = time.monotonic() + 400
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(Unavailable, NotFound), self.client(name, tries=1) as client:
                if [found for found, state in client.health().items() if state == "AVAILABLE"] == [version]:
                    return
            time.sleep(0.2)
        raise AssertionError(self.log.read_text())


def say(*arguments) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert serving_main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server with one model, `first`, of a run that went through the whole export; and the run."""
    folder = tmp_path_factory.mktemp("served")
    run = build_run(folder / "first")
    with contextlib.redirect_stdout(io.StringIO()):
        assert export_main([str(run), "--format", "saved_model"]) == 0
    say(run, "--base", folder / "models")
    server = Server(folder / "models", tmp_path_factory.mktemp("server"))
    try:
        server.wait("first", 1)
        yield server, run
    finally:
        server.process.terminate()
        server.process.wait()


BOTH = pytest.mark.parametrize("rest", (False, True), ids=("grpc", "rest"))


@pytest.mark.slow
@BOTH
def test_the_server_answers_hard_texts_as_the_student_does(served, rest):
    server, run = served
    scores = expected(inference.load(run), HARD)
    with server.client(rest=rest) as client:
        answers = client.classify(HARD)
    np.testing.assert_allclose([answer.scores for answer in answers], scores, atol=1e-5)
    assert [answer.label for answer in answers] == [LABELS[best] for best in scores.argmax(axis=1)]
    assert [answer.truncated for answer in answers] == [count > LENGTH - 2 for count in COUNTS]


@pytest.mark.slow
@BOTH
def test_the_server_answers_token_ids_examples_and_an_empty_batch(served, rest):
    server, run = served
    scores = expected(inference.load(run), ["red cat"])
    ids = {"token_ids": [[2, PIECES.index("red"), PIECES.index("cat"), 3]], "padding_mask": [[1, 1, 1, 1]]}
    with server.client(rest=rest) as client:
        np.testing.assert_allclose(client.predict(ids, "from_token_ids")["scores"], scores, atol=1e-5)
        examples = client.predict({"examples": [example(text="red cat")]}, "from_examples")
        np.testing.assert_allclose(examples["scores"], scores, atol=1e-5)
        assert client.predict({"text": []}) == {"label": [], "scores": [], "truncated": []}


@pytest.mark.slow
@BOTH
def test_health_and_metadata_are_told(served, rest):
    server, _ = served
    with server.client(rest=rest) as client:
        assert client.health()[1] == "AVAILABLE"
        assert client.metadata() == {
            "from_examples": {
                "inputs": {"examples": "string (?)"},
                "outputs": {"label": "string (?)", "scores": "float (?, 3)", "truncated": "bool (?)"},
            },
            "from_token_ids": {
                "inputs": {"padding_mask": "int32 (?, ?)", "token_ids": "int32 (?, ?)"},
                "outputs": {"logits": "float (?, 3)", "scores": "float (?, 3)"},
            },
            "serving_default": {
                "inputs": {"text": "string (?)"},
                "outputs": {"label": "string (?)", "scores": "float (?, 3)", "truncated": "bool (?)"},
            },
        }


@pytest.mark.slow
@BOTH
def test_unknown_model_version_signature_and_input_are_errors(served, rest):
    server, _ = served
    for options in ({"name": "nobody"}, {"version": 99}):
        with server.client(rest=rest, **options) as client, pytest.raises(NotFound):
            client.classify(["red"])
    with server.client(rest=rest) as client:
        with pytest.raises(ServingError):
            client.predict({"text": ["red"]}, "no_such_signature")
        with pytest.raises(ServingError):
            client.predict({"texts": ["red"]})
        assert client.classify(["red"])


@pytest.mark.slow
def test_upgrades_and_rollbacks_reach_a_running_server_model_by_model(served, tmp_path):
    server, run = served
    other = run_dir.RunDir(shutil.copytree(run.path, tmp_path / "other"))
    student = inference.load(run)
    student.model.set_weights([-weight for weight in student.model.get_weights()])
    shutil.rmtree(other.exports / "saved_model")
    saved_model.write_float32(student, other.exports / "saved_model")
    (entry,) = json.loads(other.manifest.read_text())
    other.manifest.write_text(json.dumps([entry | {"sha256": run_dir.sha256(other.exports / "saved_model")}]))

    def scores(name):
        with server.client(name) as client:
            return client.classify(["red cat"])[0].scores

    before = scores("first")
    say(other, "--base", server.base)  # a second model, beside the first
    server.publish()
    server.wait("other", 1)
    assert np.abs(np.subtract(scores("other"), before)).max() > 1e-3 and scores("first") == before
    say(other, "--base", server.base, "--name", "first")
    server.publish()
    server.wait("first", 2)
    assert scores("first") == scores("other")
    say(run, "--base", server.base, "--rollback")
    server.publish()
    server.wait("first", 1)
    assert scores("first") == before
    server.wait("other", 1)


@pytest.mark.slow
def test_the_programs_of_the_readme_work_end_to_end(served):
    server, _ = served
    command = [sys.executable, "-m", "serving.client", "--name", "first"]
    done = subprocess.run(
        [*command, "--port", str(server.grpc), "red cat"], cwd=TESTS.parent, capture_output=True, text=True, check=True
    )
    assert "red cat" in done.stdout
    status = subprocess.run(
        [*command, "--rest", "--port", str(server.rest), "--status"], cwd=TESTS.parent, capture_output=True, text=True, check=True
    )
    assert "first version 1: AVAILABLE" in status.stdout
    assert "serving_default: text string (?) -> label string (?)" in status.stdout
