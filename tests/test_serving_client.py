"""`serving.client`: requests, retries, deadlines and errors, against servers on loopback that say what a test wants them to."""

import concurrent.futures
import http.server
import io
import json
import socket
import struct
import sys
import threading
import time
import types

import grpc
import pytest

from serving import client as clients
from serving import protos
from serving.client import Answer, Client, batches, main
from serving.errors import DeadlineExceeded, NotFound, ServingError, Unavailable
from tests.fresh_python import fresh

api = protos.load()
CHECKOUT = __file__.rpartition("/tests/")[0]
BOTH = pytest.mark.parametrize("rest", (False, True), ids=("grpc", "rest"))
UNAVAILABLE, FOUND = (grpc.StatusCode.UNAVAILABLE, 503), (grpc.StatusCode.NOT_FOUND, 404)
INVALID, TIMED_OUT = (grpc.StatusCode.INVALID_ARGUMENT, 400), (grpc.StatusCode.DEADLINE_EXCEEDED, 504)


class Scripted(api.prediction_service_pb2_grpc.PredictionServiceServicer):
    """A gRPC and a REST server of one model, `echo`, whose label for a text is the text itself.

    `script` says how the first requests end: a (gRPC, HTTP) pair of codes, or an event that is waited for. `asked`
    holds what came: signature, version, columns.
    """

    def __init__(self):
        self.script, self.asked = [], []
        self.grpc = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        api.prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self.grpc)
        self.grpc_port = self.grpc.add_insecure_port("127.0.0.1:0")
        self.grpc.start()
        self.web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.rest_port = self.web.server_address[1]
        threading.Thread(target=self.web.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.grpc.stop(None).wait()
        self.web.shutdown()
        self.web.server_close()

    def port(self, rest):
        return self.rest_port if rest else self.grpc_port

    def ended(self, kind):
        """What the script says of this request: a code, or None."""
        step = self.script.pop(0) if self.script else None
        if isinstance(step, threading.Event):
            step.wait(30)
            return None
        return step[kind] if step else None

    def Predict(self, request, context):
        version = request.model_spec.version.value if request.model_spec.HasField("version") else None
        columns = {name: list(tensor.string_val) for name, tensor in request.inputs.items()}
        self.asked.append((request.model_spec.signature_name, version, columns))
        if code := self.ended(0):
            context.abort(code, "as the script\nsays")
        response, texts = api.predict_pb2.PredictResponse(), columns["text"]
        label, scores, truncated = (response.outputs[name] for name in ("label", "scores", "truncated"))
        label.dtype, scores.dtype, truncated.dtype = api.types_pb2.DT_STRING, api.types_pb2.DT_FLOAT, api.types_pb2.DT_BOOL
        label.string_val.extend(texts)
        scores.tensor_content = struct.pack("=ff", 0.25, 0.75) * len(texts)
        truncated.bool_val.append(False)  # the others are alike, and a server may leave them out
        for tensor in (label, scores, truncated):
            tensor.tensor_shape.dim.add(size=len(texts))
        scores.tensor_shape.dim.add(size=2)
        return response


def handler(scripted):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            _, _, version = self.path.removesuffix(":predict").partition("/versions/")
            scripted.asked.append((body["signature_name"], int(version) if version else None, body["inputs"]))
            code = scripted.ended(1)
            count = len(body["inputs"]["text"])
            outputs = {"label": body["inputs"]["text"], "scores": [[0.25, 0.75]] * count, "truncated": [False] * count}
            self.reply(code or 200, {"error": "as the script\nsays"} if code else {"outputs": outputs})

        def reply(self, code, answer):
            try:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())
            except BrokenPipeError:
                pass  # the client gave up

    return Handler


@pytest.fixture(scope="module")
def shared():
    scripted = Scripted()
    yield scripted
    scripted.stop()


@pytest.fixture()
def server(shared):
    shared.script, shared.asked = [], []
    return shared


@pytest.fixture()
def pauses(monkeypatch):
    """What the client slept, on a clock of its own that nothing else moves."""
    slept = []
    monkeypatch.setattr(clients, "time", types.SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    return slept


def ask(server, rest, **options):
    return Client("echo", port=server.port(rest), rest=rest, **options)


# -------------------------------------------------------------------- answers


@BOTH
def test_answers_come_in_order_with_labels_scores_and_truncation(server, rest):
    with ask(server, rest) as client:
        assert client.classify(["red", "größer \N{FOX FACE}"]) == [
            Answer("red", (0.25, 0.75), False),
            Answer("größer \N{FOX FACE}", (0.25, 0.75), False),
        ]


@BOTH
def test_70_texts_are_3_requests_and_none_is_no_request(server, rest):
    texts = [f"text {number}" for number in range(70)]
    with ask(server, rest) as client:
        assert [answer.label for answer in client.classify(texts)] == texts
        assert [len(columns["text"]) for *_, columns in server.asked] == [32, 32, 6]
        assert client.classify([]) == []
    assert len(server.asked) == 3


def test_long_texts_travel_apart():
    long = "x" * 300_000  # 1.2 MB at most
    assert [(rows.start, rows.stop) for rows in batches(["a", long, "b", long, "c"])] == [(0, 3), (3, 5)]
    assert [(rows.start, rows.stop) for rows in batches([long * 3, long * 3])] == [(0, 1), (1, 2)]
    assert [(rows.start, rows.stop) for rows in batches(["a", "b"], [long, long])] == [(0, 1), (1, 2)]


@BOTH
def test_bytes_that_are_not_utf_8_and_half_characters_arrive(server, rest):
    with ask(server, rest) as client:
        client.predict({"text": [b"caf\xe9", "half \ud83d"]})
    ((_, _, columns),) = server.asked
    if rest:
        assert columns["text"] == [{"b64": "Y2Fm6Q=="}, {"b64": "aGFsZiDtoL0="}]
    else:
        assert columns["text"] == [b"caf\xe9", b"half \xed\xa0\xbd"]


@BOTH
def test_pairs_version_and_signature_are_said_to_the_server(server, rest):
    with ask(server, rest, version=3) as client:
        client.classify(["a"], ["b"])
        client.predict({"text": ["a"]}, "from_examples")
    read = (lambda text: text) if rest else str.encode
    assert server.asked == [
        ("serving_default", 3, {"text": [read("a")], "text_pair": [read("b")]}),
        ("from_examples", 3, {"text": [read("a")]}),
    ]


@pytest.mark.parametrize(("texts", "pairs"), (("one text", None), (["a"], "b"), (["a", "b"], ["c"])))
def test_texts_that_are_no_list_or_have_no_partner_are_an_error(server, texts, pairs):
    with ask(server, True) as client, pytest.raises(ValueError, match="text"):
        client.classify(texts, pairs)
    assert not server.asked


def test_a_model_of_another_kind_answers_by_name_and_is_no_classifier(server, monkeypatch):
    with ask(server, True) as client:
        monkeypatch.setattr(client, "predict", lambda inputs: {"words": [[b"a", "b"], [b"c"]], "value": [1.5, 2.5]})
        assert client.ask(["a b", "c"]) == [{"words": ["a", "b"], "value": 1.5}, {"words": ["c"], "value": 2.5}]
        with pytest.raises(ServingError, match="no classifier of texts: it answers with words, value"):
            client.classify(["a b", "c"])


@pytest.mark.parametrize("outputs", ({"value": [1.0]}, {"value": 1.0}))
def test_an_answer_that_is_none_to_each_text_is_an_error(server, monkeypatch, outputs):
    with ask(server, True) as client:
        monkeypatch.setattr(client, "predict", lambda inputs: outputs)
        with pytest.raises(ServingError, match="does not answer each text, with value"):
            client.ask(["a", "b"])


def test_other_answers_are_printed_as_json(server, monkeypatch, capsys):
    monkeypatch.setattr(Client, "predict", lambda self, inputs: {"value": [1.5]})
    assert main(["red", "--rest", "--name", "echo"]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": "red", "value": 1.5}


# -------------------------------------------------------------------- servers in trouble


@BOTH
def test_unavailable_is_tried_again_after_growing_pauses(server, rest, pauses):
    server.script = [UNAVAILABLE] * 4
    with ask(server, rest) as client:
        assert client.classify(["red"])[0].label == "red"
    assert len(server.asked) == 5
    for pause, longest in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert longest / 2 <= pause <= longest


@BOTH
def test_pauses_differ_between_clients(server, rest, pauses):
    server.script = [UNAVAILABLE] * 6
    with ask(server, rest, tries=7) as client:
        client.classify(["red"])
    # Between half and all of 0.1, 0.2 ... 2 s: without chance these shares were all alike.
    shares = [pause / longest for pause, longest in zip(pauses, (0.1, 0.2, 0.4, 0.8, 1.6, 2.0), strict=True)]
    assert len(set(shares)) == 6


@BOTH
def test_a_server_that_stays_unavailable_is_an_error_after_the_last_try(server, rest, pauses):
    server.script = [UNAVAILABLE] * 9
    with ask(server, rest, tries=3) as client, pytest.raises(Unavailable, match=r"as the script says \(after 3 tries\)"):
        client.classify(["red"])
    assert len(server.asked) == 3


def test_no_pause_outlasts_the_deadline(server, pauses, monkeypatch):
    given = []

    def unavailable(signature, inputs, seconds):
        given.append(seconds)
        raise Unavailable("away")

    with ask(server, True, deadline=0.5, tries=9) as client, pytest.raises(Unavailable, match=r"away \(after [34] tries\)"):
        monkeypatch.setattr(client._server, "predict", unavailable)
        client.classify(["red"])
    assert 0.15 <= sum(pauses) < 0.5  # the first two are 0.3 s at most, the first three 0.35 s at least
    assert given == pytest.approx([0.5 - sum(pauses[:attempt]) for attempt in range(len(pauses) + 1)])


@BOTH
def test_a_slow_server_is_given_up_at_the_deadline(server, rest):
    answered = threading.Event()
    server.script = [answered]
    begin = time.monotonic()
    with ask(server, rest, deadline=0.3) as client, pytest.raises(DeadlineExceeded, match=r"no answer within 0\.3 s"):
        client.classify(["red"])
    assert time.monotonic() - begin >= 0.3
    answered.set()
    assert len(server.asked) <= 1


@BOTH
@pytest.mark.parametrize(("codes", "kind"), ((FOUND, NotFound), (INVALID, ServingError), (TIMED_OUT, DeadlineExceeded)))
def test_other_errors_are_final_and_one_line(server, rest, codes, kind, pauses):
    server.script = [codes]
    with ask(server, rest) as client, pytest.raises(ServingError) as caught:
        client.classify(["red"])
    assert type(caught.value) is kind
    assert "as the script says" in str(caught.value) and "\n" not in str(caught.value)
    assert len(server.asked) == 1 and not pauses


@BOTH
def test_nobody_there_is_unavailable(rest, pauses):
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port meanwhile
        taken.bind(("127.0.0.1", 0))
        with Client("echo", port=taken.getsockname()[1], rest=rest, tries=2) as client, pytest.raises(Unavailable):
            client.classify(["red"])
    assert len(pauses) == 1


@BOTH
def test_a_server_that_comes_up_late_is_found(rest):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    late = Scripted()
    web = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler(late), bind_and_activate=False)
    web.allow_reuse_address = True

    def appear():
        if rest:
            web.server_bind()
            web.server_activate()
            web.serve_forever(0.01)
        else:
            late.grpc_late = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
            api.prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(late, late.grpc_late)
            late.grpc_late.add_insecure_port(f"127.0.0.1:{port}")
            late.grpc_late.start()

    timer = threading.Timer(0.3, appear)
    timer.daemon = True
    timer.start()
    with Client("echo", port=port, rest=rest, tries=20, deadline=20) as client:
        assert client.classify(["red"])[0].label == "red"
    web.shutdown() if rest else late.grpc_late.stop(None).wait()
    web.server_close()
    late.stop()


@pytest.mark.parametrize(
    ("code", "text"), ((200, b"<html>"), (200, b"[1]"), (200, b'{"error": "odd"}'), (502, b"\xff bad gateway"))
)
def test_what_is_no_tf_serving_is_an_error(server, code, text, monkeypatch):
    monkeypatch.setattr(server.web.RequestHandlerClass, "do_POST", lambda self: self.reply(code, text))
    with ask(server, True) as client, pytest.raises(ServingError, match="HTTP"):
        client.classify(["red"])


# -------------------------------------------------------------------- command line


def test_texts_are_answered_on_the_terminal_and_as_json(server, capsys):
    assert main(["red cat", "dog", "--name", "echo", "--port", str(server.grpc_port)]) == 0
    said = capsys.readouterr().out
    assert "red cat" in said and "75.0%" in said
    assert main(["caf\udce9", "--name", "echo", "--port", str(server.grpc_port)]) == 0  # an argument that is not UTF-8
    assert "caf\N{REPLACEMENT CHARACTER}" in capsys.readouterr().out
    assert main(["red [cat]", "--pair", "dog", "--name", "echo", "--rest", "--port", str(server.rest_port), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "text": "red [cat]", "text_pair": "dog", "label": "red [cat]", "scores": [0.25, 0.75], "truncated": False,
    }  # fmt: skip


def test_standard_input_is_one_text_a_line(server, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\ntw\xe9 \xe2\x80\xa8.\r\n")))
    assert main(["-", "--name", "echo", "--port", str(server.grpc_port), "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == [
        "one",
        "",
        "tw\N{REPLACEMENT CHARACTER} \u2028.",
    ]


def test_where_nobody_answers_the_line_says_how_a_server_is_started(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert main(["a", "--name", "echo", "--port", str(port), "--rest", "--deadline", "0.3"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "docker compose up" in line and "--port" in line


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    (
        (["a", "--name", "echo", "--pair", "b", "--pair", "c"], 2, "given 2 times for 1 texts"),
        (["a"], 2, "--name is missing: models/models.config has no model"),
        (["caf\udce9", "--name", "echo", "--rest"], 1, "as the script says"),
    ),
)
def test_errors_are_one_line_with_their_exit_code(server, arguments, code, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.script = [INVALID]
    assert main([*arguments, "--port", str(server.port("--rest" in arguments))]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


@pytest.mark.parametrize(
    "arguments", ([], ["a", "--status"], ["a", "--deadline", "0"], ["a", "--deadline", "nan"], ["a", "--port", "70000"])
)
def test_wrong_arguments_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_the_client_asks_over_grpc_without_importing_tensorflow_or_keras(server):
    code = (
        "import sys\n"
        "from serving.client import main\n"
        f"code = main(['red', '--json', '--name', 'echo', '--port', '{server.grpc_port}'])\n"
        "print(code, *[name for name in ('tensorflow', 'keras', 'tfkd', 'numpy') if name in sys.modules])"
    )
    done = fresh(code, "-W", "error")
    assert done.stdout.splitlines()[1:] == ["0"]


def test_over_rest_nothing_but_the_standard_library_is_imported(server):
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from serving.client import main\n"
        f"main(['red', '--json', '--rest', '--name', 'echo', '--port', '{server.rest_port}'])\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    done = fresh(code, "-W", "error")
    assert done.stdout.splitlines()[1:] == ["serving"]
