"""`python -m serving`: versions, rollback, warm-up requests and the server's files; the SavedModel is made by hand."""

import concurrent.futures
import http.server
import json
import os
import pathlib
import shutil
import stat
import subprocess
import threading

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow_serving.config import model_server_config_pb2

from serving import artifact, protos, server_files, warmup
from serving.__main__ import main
from serving.base import ModelBase
from tests.fresh_python import fresh
from tfkd import run_dir

api = protos.load()
CHECKOUT = pathlib.Path(__file__).parents[1]
STRING, INT, FLOAT = api.types_pb2.DT_STRING, api.types_pb2.DT_INT32, api.types_pb2.DT_FLOAT
TEXTS = [f"text number {number}" for number in range(50)] + ["the longest text of all, and not the first one"]


def saved_model(pairs=False) -> bytes:
    """`saved_model.pb` of a model that has signatures and cannot compute."""
    saved = api.saved_model_pb2.SavedModel()
    graph = saved.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    texts = {"text": (STRING, 1), "text_pair": (STRING, 1)} if pairs else {"text": (STRING, 1)}
    signatures = {
        "__saved_model_init_op": {},
        "serving_default": texts,
        "from_examples": {"examples": (STRING, 1)},
        "from_token_ids": {"token_ids": (INT, 2), "padding_mask": (INT, 2)},
        "of_another_kind": {"images": (FLOAT, 4)},
    }
    for name, inputs in signatures.items():
        graph.signature_def[name].SetInParent()
        for key, (dtype, rank) in inputs.items():
            graph.signature_def[name].inputs[key].dtype = dtype
            for _ in range(rank):
                graph.signature_def[name].inputs[key].tensor_shape.dim.add(size=-1)
    return saved.SerializeToString()


def make_run(path: pathlib.Path, weights: bytes = b"weights", pairs=False, entry=None) -> pathlib.Path:
    folder = path / "export" / "saved_model"
    (folder / "variables").mkdir(parents=True)
    (folder / "assets").mkdir()
    (folder / "saved_model.pb").write_bytes(saved_model(pairs))
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(weights)
    rows = [
        {"row": row, "text": text, "label": "a"} | ({"text_pair": f"pair {row}"} if pairs else {})
        for row, text in enumerate(TEXTS)
    ]
    (path / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {
        "format": "saved_model", "variant": "float32", "path": "saved_model", "bytes": 4_600_000, "passed": True, "reason": None,
        "sha256": run_dir.sha256(folder), "student_sha256": "5", "metrics": {"accuracy": 0.875}, **(entry or {}),
    }  # fmt: skip
    (path / "export" / "manifest.json").write_text(json.dumps([{"format": "onnx", "passed": True}, entry]))
    return path


@pytest.fixture()
def run(tmp_path):
    return make_run(tmp_path / "runs" / "first")


@pytest.fixture()
def base(tmp_path):
    return tmp_path / "models"


def serve(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def configuration(base: pathlib.Path):
    return text_format.Parse((base / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())


def policies(base: pathlib.Path) -> dict[str, list[int]]:
    entries = configuration(base).model_config_list.config
    return {entry.name: list(entry.model_version_policy.specific.versions) for entry in entries}


def versions(base: pathlib.Path, name: str = "first") -> list[str]:
    return sorted(child.name for child in (base / name).iterdir() if child.is_dir())


# -------------------------------------------------------------------- versions


def test_a_deployed_version_is_the_proven_model_with_warm_up_requests(run, base):
    assert serve(run, "--base", base) == 0
    deployed, proven = base / "first" / "1", run / "export" / "saved_model"
    files = {file.relative_to(deployed).as_posix() for file in deployed.rglob("*") if file.is_file()}
    assert files == {"saved_model.pb", "variables/variables.data-00000-of-00001", "assets.extra/tf_serving_warmup_requests"}
    for name in files - {warmup.FILE}:
        assert (deployed / name).read_bytes() == (proven / name).read_bytes()
    assert (
        run_dir.sha256(proven) == artifact.sha256(proven) == json.loads((run / "export/manifest.json").read_text())[1]["sha256"]
    )


def test_several_models_are_deployed_upgraded_and_rolled_back_apart(run, base, tmp_path):
    second = make_run(tmp_path / "runs" / "second", b"others")
    assert serve(run, "--base", base) == serve(second, "--base", base) == serve(second, "--base", base) == 0
    assert serve(second, "--base", base, "--name", "first") == 0
    assert policies(base) == {"first": [2], "second": [2]}
    assert serve(run, "--base", base, "--rollback") == 0
    assert policies(base) == {"first": [1], "second": [2]}
    assert [(entry["version"], entry["run"]) for entry in ModelBase(base).history("first")] == [(1, str(run)), (2, str(second))]


def test_numbers_only_grow(run, base):
    for _ in range(3):
        serve(run, "--base", base)
    serve(run, "--base", base, "--rollback")
    serve(run, "--base", base)
    assert policies(base) == {"first": [4]}
    for version in (2, 3, 4):  # somebody tidies up by hand
        shutil.rmtree(base / "first" / str(version))
    serve(run, "--base", base)
    assert (policies(base), versions(base)) == ({"first": [5]}, ["1", "5"])
    serve(run, "--base", base, "--rollback")
    shutil.rmtree(base / "first" / "5")  # now neither a folder nor models.config tells that it ever was
    serve(run, "--base", base)
    assert policies(base) == {"first": [6]}
    (base / "first" / "0000012").mkdir()  # a version that another program put there; TF Serving reads it as 12
    (base / "first" / "not a version").mkdir()
    serve(run, "--base", base)
    assert policies(base) == {"first": [13]}


def test_old_versions_are_kept_unless_told(run, base):
    for _ in range(3):
        serve(run, "--base", base)
    assert versions(base) == ["1", "2", "3"]
    serve(run, "--base", base, "--keep", 2)
    assert versions(base) == ["3", "4"]


def test_pruning_leaves_the_version_that_a_running_server_still_serves(run, base):
    for _ in range(3):
        serve(run, "--base", base)
    serve(run, "--base", base, "--rollback")
    serve(run, "--base", base, "--rollback")
    serve(run, "--base", base, "--keep", 1)  # 1 was served until now
    assert versions(base) == ["1", "4"]
    serve(run, "--base", base, "--keep", 1)
    assert versions(base) == ["4", "5"]


def test_rolling_back_goes_one_version_further_each_time_and_ends(run, base, capsys):
    for _ in range(4):
        serve(run, "--base", base)
    shutil.rmtree(base / "first" / "2")
    for version in (3, 1):
        assert serve(run, "--base", base, "--rollback") == 0
        assert policies(base) == {"first": [version]}
    assert versions(base) == ["1", "3", "4"]
    capsys.readouterr()
    assert serve(run, "--base", base, "--rollback") == 2
    assert "no version before 1" in capsys.readouterr().err
    assert policies(base) == {"first": [1]}


def test_rolling_back_needs_the_name_alone(run, base):
    serve(run, "--base", base)
    serve(run, "--base", base)
    shutil.rmtree(run)
    assert serve(run, "--base", base, "--rollback") == 0


def test_everything_is_readable_by_the_servers_own_user(run, base):
    before = os.umask(0o077)
    try:
        assert serve(run, "--base", base) == 0
    finally:
        os.umask(before)
    for path in [base, *base.rglob("*")]:
        if path.name != ".lock":
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o755 if path.is_dir() else 0o644), path


def test_two_deployments_at_once_lose_nothing(run, base):
    def deploy(number):
        return serve(run, "--base", base, "--name", f"model{number % 2}")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert set(pool.map(deploy, range(8))) == {0}
    assert policies(base) == {"model0": [4], "model1": [4]}


@pytest.mark.parametrize("stage", ("copytree", "sha256", "warmup"))
def test_an_interrupted_deployment_leaves_the_base_as_it_was(run, base, stage, monkeypatch, capsys):
    serve(run, "--base", base)
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}

    def stop(*_, **__):
        raise OSError("the disk is full")

    target = {"copytree": (shutil, "copytree"), "sha256": (artifact, "sha256"), "warmup": (warmup, "write")}[stage]
    monkeypatch.setattr(*target, stop)
    assert serve(run, "--base", base) == 2
    assert capsys.readouterr().err == "error: the disk is full\n"
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before
    assert versions(base) == ["1"]


# -------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("entry", "words"),
    (
        ({"passed": False, "reason": "logits differ by up to 3"}, "did not pass, and is not deployed: logits differ by up to 3"),
        ({"passed": None}, "did not pass"),
        ({"sha256": "0" * 64}, "not the files that passed"),
        ({"sha256": None}, "not the files that passed"),
        ({"path": "../saved_model"}, "not a name in its folder"),
        ({"path": None}, "not a name in its folder"),
        ({"path": "elsewhere"}, "no SavedModel there"),
        ({"format": "tflite"}, "no SavedModel is exported; run python -m export"),
    ),
)
def test_only_what_passed_and_did_not_change_is_deployed(tmp_path, base, entry, words, capsys):
    run = make_run(tmp_path / "run", entry=entry)
    assert serve(run, "--base", base) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not (base / "models.config").exists() and not (base / "run" / "1").exists()


def test_a_model_that_changed_since_it_was_proven_is_refused(run, base, capsys):
    with open(run / "export/saved_model/variables/variables.data-00000-of-00001", "ab") as file:
        file.write(b"\0")
    assert serve(run, "--base", base) == 2
    assert "its SHA-256 is another; run python -m export" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("manifest", "words"),
    ((None, "nothing is exported yet"), ("{", "not a manifest"), ('{"a": 1}', "not a manifest"), ("[]", "no SavedModel")),
)
def test_a_run_without_a_manifest_names_the_command(run, base, manifest, words, capsys):
    path = run / "export" / "manifest.json"
    path.unlink() if manifest is None else path.write_text(manifest)
    assert serve(run, "--base", base) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and f"python -m export {run} --format saved_model" in line


def test_no_run_is_one_line(tmp_path, capsys):
    assert serve(tmp_path / "nothing", "--base", tmp_path / "models") == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nothing'}: no such run directory\n"
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "name",
    (
        "../out",
        "a/b",
        "/etc",
        "..",
        ".hidden",
        "",
        "a b",
        "a:b",
        "-x",
        "é",
        "a\n",
        "models.config",
        "docker-compose.yml",
        "x" * 101,
    ),
)
def test_a_name_that_leaves_the_base_or_hides_a_file_is_refused(run, base, name, capsys):
    for rollback in ([], ["--rollback"]):
        if name:
            assert serve(run, "--base", base, f"--name={name}", *rollback) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: --name ")
    assert not base.exists()


def test_a_folder_that_cannot_be_written_is_one_line(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert serve(run, "--base", tmp_path / "file" / "models") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "file" in line


@pytest.mark.parametrize(
    ("file", "text", "words"),
    (
        ("models.config", "model_config_list { oops", "not a ModelServerConfig"),
        ("models.config", "no_such_field: 1", "not a ModelServerConfig"),
        ("first/history.json", "{", "not a history"),
        ("first/history.json", '[{"version": "1"}]', "not a history"),
    ),
)
def test_a_damaged_file_of_the_base_stops_before_anything_is_written(run, base, file, text, words, capsys):
    serve(run, "--base", base)
    (base / file).write_text(text)
    assert serve(run, "--base", base) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(base / file) in line and words in line
    assert versions(base) == ["1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    ((["--rollback"], "models.config is missing"), (["--rollback", "--name", "other"], "models.config is missing")),
)
def test_rolling_back_where_nothing_is_deployed(run, base, arguments, words, capsys):
    assert serve(run, "--base", base, *arguments) == 2
    assert words in capsys.readouterr().err
    assert not base.exists()


def test_rolling_back_an_unknown_model_names_those_there_are(run, base, capsys):
    serve(run, "--base", base)
    assert serve(run, "--base", base, "--rollback", "--name", "other") == 2
    assert "no model other; it has first" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ([], ["RUN", "--keep", "0"], ["RUN", "--keep", "x"], ["RUN", "--keep", "2", "--rollback"]))
def test_wrong_arguments_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


# -------------------------------------------------------------------- warm-up requests


def requests_in(folder: pathlib.Path) -> list:
    """Reads TFRecords as TensorFlow documents them: length, checksum, data, checksum. Checksums are TensorFlow's to judge."""
    data, found = (folder / "assets.extra" / "tf_serving_warmup_requests").read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        found.append(api.prediction_log_pb2.PredictionLog.FromString(data[12 : 12 + length]).predict_log.request)
        data = data[12 + length + 4 :]
    return found


@pytest.mark.parametrize("pairs", (False, True))
def test_every_signature_is_warmed_up_with_real_texts_at_every_size(tmp_path, base, pairs):
    serve(make_run(tmp_path / "first", pairs=pairs), "--base", base)
    found = requests_in(base / "first" / "1")
    asked = [
        (request.model_spec.signature_name, len(request.inputs), next(iter(request.inputs.values())).tensor_shape)
        for request in found
    ]
    assert [(name, inputs, shape.dim[0].size) for name, inputs, shape in asked] == [
        (name, inputs, size)
        for name, inputs in (("from_examples", 1), ("from_token_ids", 2), ("serving_default", 1 + pairs))
        for size in (1, 8, 32)
    ]
    assert {request.model_spec.name for request in found} == {"first"}
    *_, default = found
    texts = [text.decode() for text in default.inputs["text"].string_val]
    assert len(set(texts)) == 32 and set(texts) <= set(TEXTS)
    assert texts[0] == TEXTS[-1]  # the longest: whatever a long text needs is there too
    example = api.example_pb2.Example.FromString(found[0].inputs["examples"].string_val[0]).features.feature
    assert example["text"].bytes_list.value[:] == [TEXTS[-1].encode()]
    if pairs:
        assert default.inputs["text_pair"].string_val[0] == example["text_pair"].bytes_list.value[0] == b"pair 50"
    ids = next(request for request in found if request.model_spec.signature_name == "from_token_ids").inputs["token_ids"]
    assert (ids.dtype, len(ids.int_val), set(ids.int_val)) == (INT, 4, {1})


@pytest.mark.parametrize(
    "examples", (None, "", "not JSON\n[1]\n{}\n" + '{"text": 5}\n', '{"text": "half \\ud83d"}\n', b"\xff\xfe")
)
def test_a_run_without_good_examples_is_warmed_up_all_the_same(run, base, examples):
    path = run / "examples.jsonl"
    path.unlink() if examples is None else path.write_bytes(examples if isinstance(examples, bytes) else examples.encode())
    assert serve(run, "--base", base) == 0
    assert len(requests_in(base / "first" / "1")) == 9


# -------------------------------------------------------------------- the server's files


def message(name: str, file: str, fields: dict[str, list[tuple[str, int, str]]]):
    """A message class of TF Serving's that tensorflow-serving-api leaves out, from the names and numbers of its fields."""
    proto = descriptor_pb2.FileDescriptorProto(name=file, package="tensorflow.serving", syntax="proto3")
    proto.dependency.append("google/protobuf/wrappers.proto")
    kinds = {"bool": 8, "string": 9, "int64": 3}
    for title, members in fields.items():
        added = proto.message_type.add(name=title)
        for field, number, kind in members:
            repeated, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
            member = added.field.add(name=field, number=number, label=3 if repeated else 1, type=kinds.get(kind, 11))
            if kind not in kinds:
                member.type_name = f".{kind}"
    pool = descriptor_pool.Default()
    pool.Add(proto) if hasattr(pool, "Add") else pool.AddSerializedFile(proto.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


WRAPPED = "google.protobuf.Int64Value"
BATCHING = [
    ("max_batch_size", 1, WRAPPED), ("batch_timeout_micros", 2, WRAPPED), ("max_enqueued_batches", 3, WRAPPED),
    ("num_batch_threads", 4, WRAPPED), ("thread_pool_name", 5, "google.protobuf.StringValue"),
    ("allowed_batch_sizes", 6, "repeated int64"), ("pad_variable_length_inputs", 7, "bool"),
]  # fmt: skip
MONITORING = {
    "PrometheusConfig": [("enable", 1, "bool"), ("path", 2, "string")],
    "MonitoringConfig": [("prometheus_config", 1, "tensorflow.serving.PrometheusConfig")],
}


def test_models_config_is_a_model_server_config_that_names_every_path_and_version(run, base):
    serve(run, "--base", base)
    (entry,) = configuration(base).model_config_list.config
    assert (entry.name, entry.base_path, entry.model_platform) == ("first", "/models/first", "tensorflow")
    assert list(entry.model_version_policy.specific.versions) == [1] and not entry.version_labels


def test_models_of_others_in_models_config_stay(run, base):
    base.mkdir()
    others = 'model_config_list { config { name: "theirs" base_path: "/else/theirs" model_platform: "tensorflow" } }'
    (base / "models.config").write_text(others)
    assert serve(run, "--base", base) == 0
    theirs, ours = configuration(base).model_config_list.config
    assert (theirs.name, theirs.base_path, ours.name) == ("theirs", "/else/theirs", "first")


def test_batching_and_monitoring_parse_and_fit_the_client(run, base):
    from serving import client

    serve(run, "--base", base)
    batching = message("BatchingParameters", "session_bundle_config_of_the_test.proto", {"BatchingParameters": BATCHING})()
    text_format.Parse((base / "batching.config").read_text(), batching)
    assert batching.max_batch_size.value == client.BATCH == max(warmup.SIZES)
    assert batching.batch_timeout_micros.value == 0 and batching.max_enqueued_batches.value > 0
    assert not batching.pad_variable_length_inputs and not batching.allowed_batch_sizes
    monitoring = message("MonitoringConfig", "monitoring_config_of_the_test.proto", MONITORING)()
    text_format.Parse((base / "monitoring.config").read_text(), monitoring)
    assert monitoring.prometheus_config.enable


def test_what_a_person_changed_stays(run, base):
    serve(run, "--base", base)
    (base / "batching.config").write_text("max_batch_size { value: 8 }\n")
    serve(run, "--base", base)
    assert (base / "batching.config").read_text() == "max_batch_size { value: 8 }\n"


@pytest.fixture()
def compose(run, base):
    serve(run, "--base", base)
    return yaml.safe_load((base / "docker-compose.yml").read_text())["services"]["serving"]


def test_the_container_is_pinned_to_our_tensorflow_and_may_do_nothing(compose):
    pins = (CHECKOUT / "constraints.txt").read_text().splitlines()
    assert compose["image"].removeprefix("tensorflow/serving:") in {pin.removeprefix("tensorflow==") for pin in pins}
    assert compose["volumes"] == [".:/models:ro"] and compose["read_only"] is True
    user, _, group = compose["user"].partition(":")
    assert int(user) > 0 and int(group) > 0
    assert compose["cap_drop"] == ["ALL"] and compose["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in compose["ports"])


def test_the_servers_flags_name_files_that_are_there(compose, base):
    flags = dict(flag.removeprefix("--").split("=") for flag in compose["command"])
    files = {name: path for name, path in flags.items() if path.startswith("/")}
    assert len(files) == 3
    for path in files.values():
        assert (base / pathlib.PurePath(path).relative_to("/models")).is_file()
    assert (flags["port"], flags["rest_api_port"]) == ("8500", "8501")
    assert int(flags["model_config_file_poll_wait_seconds"]) == server_files.POLL_SECONDS


@pytest.mark.skipif(shutil.which("bash") is None, reason="the check is written for the container's bash")
@pytest.mark.parametrize(
    ("states", "healthy"),
    ((("AVAILABLE", "AVAILABLE"), True), (("AVAILABLE", "LOADING"), False), (("END", "AVAILABLE"), False), (None, False)),
)
def test_the_health_check_asks_every_model(compose, base, run, states, healthy):
    serve(run, "--base", base, "--name", "other.one")
    names, asked = ("first", "other.one"), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked.append(self.path)
            state = states[names.index(self.path.removeprefix("/v1/models/"))]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"model_version_status": [{"version": "1", "state": state}]}, indent=1).encode())

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        port = web.server_address[1]
        if states is None:
            web.shutdown()
            web.server_close()
        command, program, option, script = compose["healthcheck"]["test"]
        assert (command, program, option) == ("CMD", "bash", "-c")
        assert script.count("$") == 2 * script.count("$$") > 0  # a single one is Compose's own
        script = script.replace("$$", "$").replace(" /models/", f" {base}/").replace("8501", str(port))
        done = subprocess.run([program, option, script], capture_output=True, timeout=60, check=False)
        if states is not None:
            web.shutdown()
    assert (done.returncode == 0) == healthy
    reached = [] if states is None else names[:1] if states[0] == "END" else names
    assert asked == [f"/v1/models/{name}" for name in reached]


# -------------------------------------------------------------------- the program


def test_the_program_says_what_is_served_and_how_to_start(run, base, capsys):
    serve(run, "--base", base)
    serve(run, "--base", base, "--name", "other", "--keep", "3")
    said = capsys.readouterr().out
    for words in ("other serves version 1", "first", "accuracy 0.875", "4.6 MB", server_files.IMAGE):
        assert words in said
    assert f"docker compose -f {base / 'docker-compose.yml'} up -d" in said
    assert "python -m serving.client --name other" in said


def test_deploying_imports_neither_tensorflow_nor_keras_nor_tfkd(run, base):
    code = (
        "import sys\n"
        "from serving.__main__ import main\n"
        f"code = main([{str(run)!r}, '--base', {str(base)!r}])\n"
        "print(code, *[name for name in ('tensorflow', 'keras', 'tfkd') if name in sys.modules])"
    )
    done = fresh(code, "-W", "error")
    assert done.stdout.splitlines()[-1] == "0"


@pytest.mark.parametrize("program", ("serving.__main__", "serving.client"))
def test_without_tf_servings_messages_the_package_to_install_is_named(run, base, program):
    arguments = [str(run), "--base", str(base)] if program == "serving.__main__" else ["a text", "--name", "first"]
    code = (
        "import importlib, sys\n"
        "sys.modules['tensorflow_serving'] = None\n"
        f"sys.exit(importlib.import_module({program!r}).main({arguments}))"
    )
    done = fresh(code, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("error: tensorflow_serving") and "pip install tfkd[serving]" in line


@pytest.mark.slow
def test_tensorflow_imported_after_the_messages_shares_them(run, base):
    serve(run, "--base", base)
    code = (
        "import sys\n"
        "from serving import protos\n"
        "api = protos.load()\n"
        "assert 'tensorflow' not in sys.modules\n"
        "import tensorflow as tf\n"
        "request = api.predict_pb2.PredictRequest()\n"
        "request.inputs['a'].CopyFrom(tf.make_tensor_proto(['x', 'y']))\n"
        "assert tf.make_ndarray(request.inputs['a']).tolist() == [b'x', b'y']\n"
        "assert isinstance(tf.train.Example(), api.example_pb2.Example)\n"
        f"records = tf.data.TFRecordDataset({str(base / 'first' / '1' / warmup.FILE)!r})\n"  # checks the checksums
        "logs = [api.prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]\n"
        "print(len(logs), logs[0].predict_log.request.model_spec.name)"
    )
    done = fresh(code)
    assert done.stdout.split() == ["9", "first"]
