"""The direction of the arrows: who may import whom, read from the syntax trees."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
GROUND = {"errors", "run_dir", "config", "schedules", "objectives", "data", "strategy", "optimizer", "progress"}
# Room -> the rooms of tfkd it may import, itself always allowed. A program may import anything above it in this picture.
ALLOWED = {
    "errors": set(),
    "run_dir": {"errors"},
    "config": {"config_errors", "errors", "yaml_file"},
    "config_errors": {"errors"},
    "yaml_file": {"errors"},
    "schedules": set(),
    "objectives": {"errors", "schedules"},
    "tasks": {"errors", "layers"},
    "data": {"errors", "lock", "run_dir"},
    "strategy": {"errors", "multi_worker"},
    "cluster": {"errors"},
    "cpu": set(),
    "multi_worker": set(),
    "optimizer": {"errors"},
    "progress": set(),
    "layers": {"errors"},
    "models": {"errors", "layers"},
    "checkpoints": {"errors", "run_dir", "yaml_file", "layers", "models", "tasks"},
    "teacher": {"errors", "models"},
    "student": {"errors", "models"},
    "ensemble": {"errors", "models", "objectives", "teacher"},
    "lock": {"errors", "run_dir"},
    "stopping": set(),
    "speed": set(),
    "accumulation": set(),
    "bad_steps": set(),
    "global_mean": set(),
    "gradients": set(),
    "training_state": {"errors", "run_dir"},
    "projections": {"run_dir"},
    "callbacks": {"errors", "run_dir", "stopping", "training_state"},
    "distiller": {"accumulation", "bad_steps", "global_mean", "gradients", "multi_worker"}
    | {"models", "objectives", "optimizer", "schedules", "teacher"},
}
PROGRAMS = {"failures", "train", "build", "build_teacher", "compression", "fitting", "outputs", "plan", "evaluate", "run_log"}
PROGRAMS |= {"choose_run", "open_teacher", "start_export"}
PROGRAMS |= {path.stem for path in (ROOT / "tfkd").glob("report*.py")}
HEAVY = {"tensorflow", "keras", "numpy", "keras_hub", "tensorflow_text", "tensorflow_datasets"}


def modules(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    return paths


def imports(path, top_only=False):
    """Dotted names that a file imports, from anywhere in it, or as it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path):
    parts = path.relative_to(ROOT / "tfkd").with_suffix("").parts
    return parts[0]


def rooms_imported(path):
    names = {name.split(".")[1] for name in imports(path) if name.startswith("tfkd.")}
    return {name for name in names if (ROOT / "tfkd" / name).is_dir() or (ROOT / "tfkd" / f"{name}.py").exists()}


def test_every_room_is_in_the_picture():
    rooms = {room(path) for path in modules("tfkd")}
    assert rooms == set(ALLOWED) | PROGRAMS | {"__init__"}
    assert set(ALLOWED) >= GROUND


@pytest.mark.parametrize("path", modules("tfkd"), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down_and_never_back(path):
    mine = room(path)
    if mine in PROGRAMS:
        return
    allowed = ALLOWED.get(mine, set()) | {mine}
    assert rooms_imported(path) <= allowed, f"{path.name} may import {sorted(allowed)}"


def test_only_programs_read_the_configuration():
    readers = {room(path) for path in modules("tfkd") if "config" in rooms_imported(path)} - {"config"}
    assert readers and readers <= PROGRAMS


@pytest.mark.parametrize(("folder", "forbidden"), [("tfkd", {"export", "serving"}), ("export", {"serving"})])
def test_the_three_programs_do_not_import_one_another(folder, forbidden):
    for path in modules(folder):
        assert not {name.split(".")[0] for name in imports(path)} & forbidden, path


def test_export_imports_only_what_rebuilds_a_student():
    allowed = {"errors", "run_dir", "config", "models", "tasks", "data", "layers", "checkpoints"}
    for path in modules("export"):
        assert rooms_imported(path) <= allowed, path


def test_serving_reads_files_alone():
    """A run's folder is all that it knows of the other rooms: deploying and asking take neither Keras nor TensorFlow's import."""
    for path in modules("serving"):
        assert not {name.split(".")[0] for name in imports(path)} & {"tfkd", "export", "keras", "tensorflow"}, path


@pytest.mark.parametrize(
    "name",
    [
        *("cluster", "config", "config_errors", "yaml_file", "run_dir", "errors", "progress"),
        *("train", "choose_run", "start_export", "evaluate"),
    ],
)
def test_what_answers_at_once_imports_nothing_heavy(name):
    tops = {module.split(".")[0] for module in imports(ROOT / "tfkd" / f"{name}.py", top_only=True)}
    assert not tops & HEAVY


@pytest.mark.parametrize("folder", ["layers", "objectives"])
def test_layers_and_objectives_are_keras_ops_alone(folder):
    for path in modules(f"tfkd/{folder}"):
        if path.name == "gather.py":  # over replicas: Keras has no word for it
            continue
        assert "tensorflow" not in {name.split(".")[0] for name in imports(path)}, path


def test_the_wheel_holds_every_package():
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in modules("tfkd") if path.name == "__init__.py"}
    assert listed == packages


def test_tests_are_flat():
    assert not list((ROOT / "tests").rglob("__init__.py"))
