import json
import pathlib
import re
import resource
import subprocess
import sys
import time

import pytest
import yaml

from tfkd import config
from tfkd.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
SMALL = {
    "data": {"builtin": "docstrings"},
    "teacher": {"dimensions": {"layers": 3}, "train": {"epochs": 3}},
    "student": {"dimensions": {"layers": 1}},
}


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epcohs=2", "train.epcohs = 2: unknown key; did you mean train.epochs?"),
        ("tran={}", "tran = {}: unknown key; did you mean train?"),
        ("train.temperature=2", "train.temperature = 2: unknown key; did you mean distill.temperature?"),
        ("train.epochs=two", 'train.epochs = "two": should be a valid integer'),
        ('train.epochs="2"', 'train.epochs = "2": should be a valid integer; write it without quotes'),
        ("train.epochs=0", "train.epochs = 0: should be greater than or equal to 1"),
        ("distill.temperature=.nan", "distill.temperature = NaN: should be a finite number"),
        ("strategy.xla='off'", "strategy.xla = \"off\": must be 'auto', on or off, those two without quotes"),
        (
            "strategy.kind=mirored",
            "strategy.kind = \"mirored\": must be 'auto', 'one', 'mirrored' or 'multi_worker'; did you mean mirrored?",
        ),
        ("name=../outside", 'name = "../outside": string should match pattern'),
        ("train={early_stopping: 2, keep: last}", "early_stopping = 2 ends a training after its best epoch: leave keep"),
        ("train.keep=first", "train.keep = \"first\": must be 'best' or 'last'"),
        ("student.layers=3", "give exactly one of student.dimensions and student.layers"),
        ("data.tfds=glue/sst2", "give exactly one of data.builtin, data.tfds and data.files, not builtin, tfds"),
        ("teacher.finetune.epochs=3", "teacher.finetune goes with teacher.checkpoint"),
        ("teacher.dimensions.heads=3", "teacher.dimensions: heads = 3 does not divide width = 128"),
        ("export.length=900", "export.lengths holds 900: must be from 3 to data.max_length = 128"),
        ("export.lengths=[64, 32]", "export.lengths must rise, not [64, 32]"),
        ("export.formats=[tflite:in8]", "did you mean tflite:int8?"),
        ("export.formats=[tflite:int8_qat]", "export.formats has tflite:int8_qat, which needs compression.qat"),
        ("export.tolerance={in8: {}}", 'export.tolerance.in8 = "in8": must be'),
        ("train.augment={mask:0.2}", "unknown key; write `mask: 0.2`, with a space after the colon"),
        ("compression.quat={}", "compression.quat = {}: unknown key; did you mean compression.qat?"),
        ("student.layers=[a]", 'student.layers = ["a"]: should be a valid integer'),
        ("student.layers=two", 'student.layers = "two": should be a valid integer'),
        ("data.buckets=[]", "data.buckets = []: list should have at least 1 item"),
        ("data.download=true", "data.data_dir and data.download go with data.tfds"),
        ("teacher.label_map={a: b}", "teacher.label_map goes with teacher.checkpoint"),
        ("teacher.head=new", "teacher.head: new goes with teacher.checkpoint"),
        ("train.epochs.more=3", "--set train.epochs.more=3: train.epochs holds a value, not a section"),
        ("train.epochs", "--set train.epochs: write key=value"),
        ("train.epochs=[", "--set train.epochs=[: [ is not a YAML value"),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_fix(small, override, message):
    first = ["train.epochs=2"] if override.startswith("train.epochs.") else []
    with pytest.raises(UserError) as caught:
        config.load(small, [*first, override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold `key: value` lines"),
        (b"- 1", "must hold `key: value` lines"),
        (b"data: [", "not valid YAML"),
        (b"data: \xff", "byte 6 is not UTF-8"),
        (b"data: !!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"{}", "data: missing, and it has no default"),
        # found by fuzzing
        (b"\0", "line 1: holds the control character U+0000; delete it"),
        (b"name: a\ndata: \xff", "line 2: byte 14 is not UTF-8; save the file as UTF-8"),
        ("name: a".encode("utf-16"), "line 1: byte 0 is not UTF-8"),
        (
            b"name: a\n\tseed: 1",
            "line 2, column 1: not valid YAML (found character '\\t' that cannot start any token); indent with",
        ),
        (b"name: a: b", "line 1, column 8: not valid YAML (mapping values are not allowed here); put quotes around a text"),
        (b"data: {}\nname: a\nname: b", "line 3, column 1: key name is there twice; delete one of them"),
        (b"data: &a {b: *a}", "line 1, column 7: an anchor that holds an alias of itself"),
        (b"data: &a [*a]", "line 1, column 7: an anchor that holds an alias of itself"),
        (b"a: " + b"[" * 100_000, "line 1, column 54: more than 50 brackets within brackets"),
        (b"- " * 5000, "not valid YAML (nested too deep)"),
        (b"a: " + b"x" * 300_000, "has more than 300,000 bytes, and is hardly a configuration"),
        (b"name: 2020-13-01", 'line 1, column 7: "2020-13-01" is no timestamp; put it in quotes'),
        (b"name: !!int x", 'line 1, column 7: "x" is no int'),
        (b"seed: " + b"9" * 5000, "is no int"),
        (b"seed: 0x" + b"f" * 5000, "seed = (a number with thousands of digits): should be less than 2147483648"),
        (b"data: {a: {3020-01-01: 1}}", "data.a = {datetime.date(3020, 1, 1): 1}: unknown key"),
        (b"data: {3020-01-01: 1}", "keys should be strings"),
        (b'name: "\\uD800"', '"name" = "\\ud800": holds NUL or half of a surrogate pair'),
        (b'data: {tfds: "a\\0b"}', '"data.tfds" = "a\\u0000b": holds NUL'),
        (b'"\\uD800": 1', "holds NUL or half of a surrogate pair"),
        (b'"a\\nb": 1', '"a\\nb" = 1: unknown key'),
        (b'"a [b": 1', '"a [b" = 1: unknown key'),
        (b"data:", "data = null: must be a section of `key: value` lines: builtin, tfds"),
        (b"data: {labels: [a, 1e3]}", "data.labels.1 = 1000.0: should be a valid string; put it in quotes"),
        (b"distill: {temperature: {begin: 1}}", "distill.temperature.begin = 1: unknown key"),
        (b"stages: [{name: a, distill: {alphas: 1}}]", "did you mean stages.0.distill.alpha?"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line_with_its_name(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("repeated", ["[{}]", "{{<<: [{}]}}", "[{}, x]"])
def test_aliases_that_stand_for_billions_of_values_are_refused_at_once(tmp_path, repeated):
    lines = ["a0: &a0 {x: x}" if "<<" in repeated else "a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} {repeated.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    begin = time.process_time()
    with pytest.raises(UserError, match="aliases that stand for more than 100,000 values"):
        config.load(path)
    assert time.process_time() - begin < 1.0


def test_an_override_of_one_place_leaves_others_that_an_alias_makes_equal(tmp_path):
    path = tmp_path / "shared.yaml"
    path.write_text(
        "data: {builtin: docstrings}\nteacher: {dimensions: &size {layers: 3}, train: {}}\nstudent: {dimensions: *size}\n"
    )
    loaded = config.load(path, ["student.dimensions.layers=1"])
    assert (loaded.teacher.dimensions.layers, loaded.student.dimensions.layers) == (3, 1)


@pytest.mark.parametrize("label", ["1e3", "12e-3", "1.5", "yes", "~", "2020-01-01", "a: b", "=", "é\u2028", "0x1f", "'", "\x85"])
def test_labels_that_look_like_something_else_are_written_in_quotes(tmp_path, label):
    path = tmp_path / "labels.yaml"
    loaded = config.parse({**SMALL, "data": {"builtin": "docstrings", "labels": ["a", label]}})
    path.write_text(config.dump(loaded), encoding="utf-8")
    assert config.load(path).data.labels == ["a", label]


def test_overrides_are_yaml_and_reach_into_sections(small):
    loaded = config.load(
        small, ["student.dimensions=null", "student.layers=[0,2]", "train.learning_rate=1e-3", "train.clip_norm=null"]
    )
    assert loaded.student.layers == [0, 2]
    assert loaded.train.learning_rate == 0.001
    assert loaded.train.clip_norm is None


def test_overrides_reach_an_item_of_a_list_by_its_number(small):
    lists = ["stages=[{name: a}, {name: b}]", "export.formats=[tflite, onnx]"]
    items = ["stages.1.train.epochs=3", "stages.0.distill.alpha=0", "export.formats.1=saved_model"]
    loaded = config.load(small, [*lists, *items])
    assert [stage.name for stage in loaded.stages] == ["a", "b"]
    assert loaded.stages[1].train.epochs == 3 and loaded.stages[0].train.epochs == config.Training().epochs
    assert loaded.stages[0].distill.alpha == 0 and loaded.export.formats == ["tflite", "saved_model"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.2.train.epochs=3", "stages is a list; its items are stages.0 to stages.1"),
        ("stages.inner.train.epochs=3", "stages is a list; its items are stages.0 to stages.1"),
        ("stages.-1.name=c", "stages is a list; its items are stages.0 to stages.1"),
        ("stages.0.data.buckets.1=32", "stages.0.data.buckets is a list; its items are stages.0.data.buckets.0"),
        ("export.formats.0=onnx", "export.formats is an empty list; write export.formats=[...]"),
        ("stages.0.name.more=3", "stages.0.name holds a value, not a section"),
    ],
)
def test_an_item_that_a_list_lacks_is_refused_with_those_it_has(small, override, message):
    lists = ["stages=[{name: a, data: {buckets: [16]}}, {name: b}]", "export.formats=[]"]
    with pytest.raises(UserError) as caught:
        config.load(small, [*lists, override])
    assert str(caught.value) == f"--set {override}: {message}"


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"head": "new"}, "teacher.head: new is random: say with teacher.finetune"),
        ({"revision": "main"}, "teacher.revision = main goes with an hf:// checkpoint"),
        ({"finetune": {}, "label_map": {"a": "b"}}, "teacher.label_map goes with the checkpoint's own head"),
    ],
)
def test_a_teacher_that_contradicts_itself_is_refused(teacher, message):
    with pytest.raises(UserError, match=message):
        config.parse({**SMALL, "teacher": {"checkpoint": "somewhere", **teacher}})


def test_what_is_written_is_read_back_unchanged(small, tmp_path):
    loaded = config.load(small, ["name=other", "train.warmup=0.25"])
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(loaded))
    assert config.load(path) == loaded


def test_expand_names_a_variable_that_is_not_set(monkeypatch):
    monkeypatch.setenv("TFKD_HERE", "/data")
    monkeypatch.delenv("TFKD_NOWHERE", raising=False)
    assert config.expand("${TFKD_HERE}/a", "data.data_dir") == "/data/a"
    with pytest.raises(UserError, match=r"data.data_dir: \$\{TFKD_NOWHERE\}/a: \$\{TFKD_NOWHERE\} is not set"):
        config.expand("${TFKD_NOWHERE}/a", "data.data_dir")


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"alpha": {"start": 0.5, "end": 1.5}}, "distill: alpha goes from 0.5 to 1.5: must stay from 0 to 1"),
        ({"temperature": {"start": 4.0, "end": 0.0}}, "distill: temperature goes from 4 to 0: must stay above 0"),
        (
            {"objectives": [{"name": "kl_divergence", "temperature": {"start": 0.0, "end": 4.0}}]},
            "distill.objectives.0: temperature goes from 0 to 4: must stay above 0",
        ),
        (
            {"alpha": {"start": 0.0, "end": 1.0, "by": "epochs"}},
            "distill.alpha.by = \"epochs\": must be 'step' or 'epoch'; did you mean epoch?",
        ),
        (
            {"temperature": {"start": 4.0, "end": "1"}},
            'distill.temperature.end = "1": should be a valid number; write it without',
        ),
        ({"alpha": {"start": 0.0}}, "distill.alpha.end: missing, and it has no default"),
        ({"alpha": {"start": 0.0, "end": 1.0, "shap": "cosine"}}, "unknown key; did you mean distill.alpha.shape?"),
        (
            {"objectives": [{"name": "kl_divergence", "label": "alpha"}]},
            "label = alpha: logs call something else so; choose another",
        ),
        ({"alpha": [0.0, 1.0]}, "distill.alpha = [0.0, 1.0]: should be a valid number"),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused_where_it_is_wrong(distill, message):
    with pytest.raises(UserError, match=re.escape(message)):
        config.parse(SMALL | {"distill": distill})


def test_stages_whose_files_would_be_the_same_are_refused():
    with pytest.raises(UserError, match="stages has second twice: give each a name of its own"):
        config.parse(stages(name="Second"))
    assert config.parse(stages(name="int8")).stages[0].name == "int8"
    for name in ("int8", "INT8"):
        with pytest.raises(UserError, match="stages has int8, which is what compression.qat calls its own training"):
            config.parse(stages(name=name) | {"compression": {"qat": {}}})


def stages(**first) -> dict:
    return SMALL | {"stages": [{"name": "first"} | first, {"name": "second"}]}


def test_a_stage_that_another_follows_keeps_its_last_epoch_unless_told_to_or_stopping_early():
    def kept(tree):
        return [stage.train.keep for stage in config.parse(tree).trainings()]

    assert kept(SMALL) == ["best"] and kept(stages()) == ["last", "best"]
    assert kept(stages(train={"keep": "best"})) == kept(stages(train={"early_stopping": 2})) == ["best", "best"]
    assert kept(SMALL | {"train": {"keep": "last"}}) == ["last"]


@pytest.mark.parametrize("train", [{"keep": "best"}, {"early_stopping": 2}])
def test_without_labels_no_epoch_is_the_best(train):
    unlabelled = {"data": {"files": {"train": "plain.jsonl"}, "columns": {"label": None}}, "distill": {"alpha": 0.0}}
    assert config.parse(stages(**unlabelled)).trainings()[0].train.keep == "last"
    with pytest.raises(UserError, match="stage first: without labels there is no best epoch: leave train"):
        config.parse(stages(**unlabelled, train=train))


def test_the_schema_for_editors_is_current():
    stored = json.loads((ROOT / "configs" / "schema.json").read_text())
    assert stored == json.loads(config.schema()), "run: python -m tfkd.config > configs/schema.json"


def test_every_shipped_config_is_valid():
    paths = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(paths) >= 7
    for path in paths:
        assert config.load(path).name == path.stem


def test_a_run_in_place_of_a_configuration_is_told_of_its_own(tmp_path):
    with pytest.raises(UserError, match="a folder; name a file, such as mine.yaml"):
        config.load(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=f"{tmp_path}: a folder; name a file, such as {tmp_path}/config.yaml"):
        config.load(tmp_path)


@pytest.mark.parametrize("arguments", [["--help"], ["configs/quickstart.yaml", "--set", "train.epcohs=2"], ["nowhere.yaml"]])
def test_help_and_mistakes_answer_before_tensorflow_is_imported(arguments):
    program = f"import sys, tfkd.train\ntry: code = tfkd.train.main({arguments})\nexcept SystemExit as e: code = e.code\n"
    program += "assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules), 'too much imported'\nsys.exit(code)"
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == (0 if arguments == ["--help"] else 2), done.stderr
    assert "Traceback" not in done.stderr
    # Processor seconds, not the clock's: other tests share the machine.
    assert end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime < 1.0
