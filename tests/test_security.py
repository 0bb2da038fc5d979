"""What SECURITY.md says: nothing that is read can run code, lead out of a run, or put script into a page."""

import ast
import functools
import json
import pathlib
import zipfile

import h5py
import keras
import numpy as np
import pytest
import yaml
from tensorflow.core.protobuf import saved_model_pb2

from export import examples, model_card, plain, questions
from serving import artifact, base
from serving.errors import UserError as ServingError
from tfkd import config, train, yaml_file
from tfkd.checkpoints import checkpoint, keras_file
from tfkd.checkpoints.saved_model import open_saved_model
from tfkd.errors import UserError
from tfkd.run_dir import RunDir

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = ("tfkd", "export", "serving")
SMALL = {"data": {"builtin": "docstrings"}, "teacher": {"dimensions": {}, "train": {}}, "student": {"layers": 1}}


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@functools.cache
def trees() -> list[tuple[pathlib.Path, list[ast.AST]]]:
    """Every source file and the nodes of its syntax tree."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) > 100
    return [(path, list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))) for path in paths]


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute; of the attribute alone where it is that of another expression."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls():
    """Every call in the source, with its dotted name and its keywords."""
    for path, nodes in trees():
        for node in nodes:
            if isinstance(node, ast.Call):
                yield path, dotted(node.func), {word.arg: word.value for word in node.keywords}, node


def test_nothing_that_runs_code_from_data_is_called_or_imported():
    forbidden = {"pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "jsonpickle"}
    for path, nodes in trees():
        for node in nodes:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & forbidden, path
    for path, name, keywords, node in calls():
        assert name not in ("eval", "exec", "compile", "os.system", "os.popen", "torch.load"), (path, name)
        assert not {"shell", "trust_remote_code"} & set(keywords), path
        assert not name.endswith(("unsafe_load", "full_load", ".extractall")), (path, name)
        if name in ("yaml.load", "yaml.load_all"):
            assert dotted(node.args[1]) == "_Loader" and issubclass(yaml_file._Loader, yaml.SafeLoader), path


def test_arrays_and_models_are_read_as_data_alone():
    arrays = [(path, keywords) for path, name, keywords, _ in calls() if name in ("np.load", "numpy.load")]
    models = [(path, keywords) for path, name, keywords, _ in calls() if name.endswith(".load_model")]
    assert len(arrays) >= 3 and len(models) >= 2
    for path, keywords in arrays:
        assert ast.unparse(keywords["allow_pickle"]) == "False", path
    for path, keywords in models:
        assert ast.unparse(keywords["safe_mode"]) in ("True", "not trust"), path


# ---------------------------------------------------------------- code in files


def test_a_pickle_among_predictions_is_refused_and_never_runs(tmp_path):
    run, ran = RunDir(tmp_path / "run"), tmp_path / "ran"
    run.path.mkdir()
    np.savez(run.predictions, labels=np.array([Evil(ran)], object), allow_pickle=True)
    with pytest.raises(examples.BROKEN, match="allow_pickle=False"):
        examples.read_truth(run)
    assert questions.metric_of(run, None, "labels") is None
    assert not ran.exists()


def keras_archive(path, text: str):
    """A `.keras` file with a configuration of one's own choice."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", text)
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("model.weights.h5", b"")
        archive.writestr("../../outside", b"x")
    return path


@pytest.mark.parametrize(
    "function",
    [
        {"module": "os", "class_name": "system", "config": "touch {}", "registered_name": None},
        {"module": "builtins", "class_name": "open", "config": {"file": "{}", "mode": "w"}, "registered_name": None},
        {"module": "pathlib", "class_name": "Path", "config": {"touch": "{}"}, "registered_name": "pathlib>Path"},
        {"class_name": "__lambda__", "config": {"value": "not even code"}},
    ],
    ids=["os", "builtins", "pathlib", "lambda"],
)
def test_a_keras_file_cannot_name_functions_of_other_modules(tmp_path, function):
    text = json.dumps(function).replace("{}", str(tmp_path / "ran"))
    for outer in (text, json.dumps({"module": "keras.layers", "class_name": "Activation", "config": {"activation": 0}})):
        path = keras_archive(tmp_path / "evil.keras", outer.replace('"activation": 0', f'"activation": {text}'))
        with pytest.raises(UserError) as caught:
            keras_file.open_keras_file(path)
        assert str(caught.value).startswith(f"{path}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.keras"]
    assert not (tmp_path.parent / "outside").exists() and not (tmp_path.parents[1] / "outside").exists()


def test_weights_cannot_be_links_to_files_elsewhere(tmp_path):
    layer = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    layer.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel"] = np.full((2, 2), 42, "float32")
    (tmp_path / "weights.h5").write_bytes(parts["model.weights.h5"])
    with h5py.File(tmp_path / "weights.h5", "r+") as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        del file[found[0]]
        file[found[0]] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "kernel")
    parts["model.weights.h5"] = (tmp_path / "weights.h5").read_bytes()
    with zipfile.ZipFile(tmp_path / "linked.keras", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="linked.keras: "):
        keras_file.open_keras_file(tmp_path / "linked.keras")
    with h5py.File(tmp_path / "weights.h5", "r+") as file:  # the archive is whole otherwise
        del file[found[0]]
        file[found[0]] = np.full((2, 2), 3, "float32")
    parts["model.weights.h5"] = (tmp_path / "weights.h5").read_bytes()
    with zipfile.ZipFile(tmp_path / "whole.keras", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    assert keras_file.open_keras_file(tmp_path / "whole.keras").get_weights()[0].tolist() == [[3, 3], [3, 3]]


def test_a_configuration_that_unpacks_to_terabytes_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_file, "LARGEST_CONFIG", 1000)
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", " " * 100_000 + "{}")
    with pytest.raises(UserError, match="bomb.keras: its config.json claims more than 1,000 bytes"):
        keras_file.open_keras_file(path)


@pytest.mark.parametrize(
    ("op", "attribute", "named"),
    [
        ("EagerPyFunc", {}, "EagerPyFunc"),
        ("TextLineDataset", {}, "TextLineDataset"),
        ("DebugIdentityV3", {}, "DebugIdentityV3"),
        ("PrintV2", {"output_stream": b"file:///somewhere"}, "PrintV2 into a file"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_graph_that_can_reach_files_or_python_is_refused_before_it_is_loaded(tmp_path, op, attribute, named, inside):
    model = saved_model_pb2.SavedModel()
    graph = model.meta_graphs.add().graph_def
    node = graph.library.function.add().node_def.add() if inside else graph.node.add()
    node.op = op
    for name, value in attribute.items():
        node.attr[name].s = value
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=f"its graph holds {named}, which can reach files or Python of yours"):
        open_saved_model(tmp_path)


def test_printing_to_the_terminal_is_allowed(tmp_path):
    model = saved_model_pb2.SavedModel()
    node = model.meta_graphs.add().graph_def.node.add(op="PrintV2")
    node.attr["output_stream"].s = b"stderr"
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="TensorFlow cannot load it"):  # so it was tried
        open_saved_model(tmp_path)


def test_code_that_a_hugging_face_folder_brings_is_never_imported(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (tmp_path / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    values = {"model_type": "bert", "hidden_size": 4, "vocab_size": 5, "num_hidden_layers": 1, "num_attention_heads": 2}
    values |= {"intermediate_size": 8, "auto_map": {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert checkpoint.describe(str(tmp_path)).encoder["width"] == 4
    for name in ("pytorch_model.bin", "model.bin"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="is a pickle, which can run code and is not read"):
        checkpoint.open_checkpoint(str(tmp_path))
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- names and links


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ".", ".hidden", "", "a\n", "a\0", "-a", "a b", "ä", "x" * 101])
def test_names_that_could_leave_a_folder_are_refused(name):
    with pytest.raises(UserError, match="name"):
        config.parse({**SMALL, "name": name})
    stage = {"name": name, "train": {}}
    with pytest.raises(UserError, match="stages.0.name"):
        config.parse({**SMALL, "stages": [stage]})
    with pytest.raises(ServingError, match="--name"):
        base.check(name)


@pytest.mark.parametrize("path", ["..", "", ".", "/etc", "a/b", None, 3])
def test_a_manifest_cannot_name_a_folder_elsewhere(tmp_path, path):
    (tmp_path / "export").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"")
    entry = {"format": "saved_model", "passed": True, "path": path}
    (tmp_path / "export" / "manifest.json").write_text(json.dumps([entry]))
    with pytest.raises(ServingError, match="is not a name in its folder"):
        artifact.find(tmp_path)


def test_a_saved_model_with_a_link_in_it_is_not_served(tmp_path):
    folder = tmp_path / "export" / "saved_model"
    (folder / "assets").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"")
    (folder / "assets" / "all").symlink_to("/")
    entry = {"format": "saved_model", "passed": True, "path": "saved_model"}
    (tmp_path / "export" / "manifest.json").write_text(json.dumps([entry]))
    with pytest.raises(ServingError, match="assets/all: a link, through which files elsewhere would be served"):
        artifact.find(tmp_path)


@pytest.mark.parametrize("name", ["log.txt", "checkpoints", "export", "config.yaml", "export/deep/link"])
def test_a_run_that_links_elsewhere_is_neither_exported_nor_resumed(tmp_path, name):
    run, outside = RunDir(tmp_path / "run"), tmp_path / "outside"
    run.path.mkdir()
    outside.mkdir()
    run.config.write_text(config.dump(config.parse(SMALL)))
    link = run.path / name
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(ROOT / "configs" / "quickstart.yaml" if name == "config.yaml" else outside)
    with pytest.raises(UserError, match="a link out of the run"):
        run.require()
    with pytest.raises(UserError, match="a link out of the run"):
        train.choose_run(config.parse(SMALL), str(run.path), resume=True)


def test_a_run_that_is_itself_a_link_or_links_within_is_a_run(tmp_path):
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.labels.write_text("a\n")
    (run.path / "latest").symlink_to("labels.txt")
    (tmp_path / "best").symlink_to(run.path)
    RunDir(tmp_path / "best").require(RunDir(tmp_path / "best").labels)


# ---------------------------------------------------------------- pages and messages


def test_what_a_message_quotes_cannot_write_on_the_terminal():
    error = UserError("a\x1b[2J\r\nb\u202ec\ud800\x00é漢")
    assert str(error) == r"a\x1b[2J\r\nb\u202ec\ud800\x00é漢"
    assert len(str(UserError("x" * 10**6))) == 1000


def test_a_model_card_takes_names_as_text():
    assert model_card._labels(("a`<script>", "b")) == "`a'<script>`, `b`"  # nothing is a tag in a code span
    report = {
        "dataset": {"name": "<script>x</script>.csv", "measured_on": "test"},
        "metric": "accuracy",
        "examples": 3,
        "models": [{"role": "student", "parameters": 1, "metrics": {"accuracy": 0.5}}],
    }
    assert "<script>" not in model_card._figures(report) and "&lt;script&gt;" in model_card._figures(report)
    given = config.parse({**SMALL, "teacher": {"checkpoint": "runs/`<img src=x>`"}})
    assert model_card._base(given) == "`<img src=x>`"


def test_the_demo_puts_texts_into_the_page_as_text():
    script = (ROOT / "export" / "demo.js").read_text(encoding="utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert way not in script


# ---------------------------------------------------------------- between our own processes


def test_what_processes_tell_one_another_is_plain_data(tmp_path):
    texts = np.empty((2, 2), object)
    texts[:] = [[b"a", b"\xff"], [b"", b"\0"]]
    told = {"batches": {"ids": [{"token_ids": np.arange(6, dtype="int32").reshape(2, 3)}]}, "texts": [b"caf\xe9", b""]}
    told |= {"timed": ("ids", [1.5, np.float64(0.1)]), "scores": np.array([[0.1], [np.nan]], "float32"), "words": texts}
    told |= {"none": np.zeros((0, 4), "int64"), "flags": np.array([True, False])}
    plain.write(tmp_path / "told", told)
    heard = plain.read(tmp_path / "told")
    assert heard["timed"] == ["ids", [1.5, 0.1]] and heard["texts"] == told["texts"]
    for name in ("scores", "words", "none", "flags"):
        np.testing.assert_array_equal(heard[name], told[name])
        assert heard[name].dtype == told[name].dtype
    ids = heard["batches"]["ids"][0]["token_ids"]
    np.testing.assert_array_equal(ids, np.arange(6).reshape(2, 3))
    ids += 1  # not a view of what was read, which nobody may write into
    with pytest.raises(TypeError, match="Evil is no plain value"):
        plain.write(tmp_path / "told", Evil(tmp_path / "ran"))
