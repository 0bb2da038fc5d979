"""The program from a person's side: a whole small run, interruption and resumption, mistakes."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import yaml

from tests.whole_run import go
from tfkd import callbacks, config, evaluate, train
from tfkd.errors import UserError
from tfkd.run_dir import RunDir, read_json

ROOT = pathlib.Path(__file__).parent.parent
FILLER = ["the", "a", "this", "that", "very", "quite", "old", "new", "seems", "looks"]
SUBJECTS = {"red": "apple cherry tomato brick", "green": "grass leaf frog lime", "blue": "sky sea whale ink"}


def write_colours(path, rows, seed):
    """Sentences whose label follows from one of their words."""
    random = np.random.default_rng(seed)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            label = str(random.choice(list(SUBJECTS)))
            word = random.choice(SUBJECTS[label].split())
            filler = " ".join(random.choice(FILLER, random.integers(2, 8)))
            file.write(json.dumps({"text": f"{filler} {word} {filler}", "label": label}) + "\n")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A small shipped configuration: the quickstart, with another source and few steps."""
    folder = tmp_path_factory.mktemp("colours")
    for split, rows in (("train", 480), ("test", 60)):
        write_colours(folder / f"{split}.jsonl", rows, seed=rows)
    tree = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    tree["data"] = {"files": {s: str(folder / f"{s}.jsonl") for s in ("train", "test")}, "max_length": 32, "vocabulary_size": 100}
    tree["teacher"]["dimensions"] |= {"layers": 2, "width": 32, "heads": 2}
    tree["teacher"]["cache"] = False  # asked at each step; asked once: test_teacher_cache.py, test_multi_worker.py
    tree["student"] = {"dimensions": {"layers": 1, "width": 16, "heads": 2, "pooling": "mean"}}
    tree["teacher"]["train"] |= {"epochs": 6, "batch_size": 32, "learning_rate": 0.01}
    tree["train"] |= {"epochs": 3, "batch_size": 32, "learning_rate": 0.01}
    tree["evaluate"], tree["export"] = {"bootstrap": 100}, {"formats": []}
    path = folder / "colours.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def finished(colours, tmp_path_factory):
    return go(colours, tmp_path_factory.mktemp("run") / "whole")


def weights(path):
    return keras.models.load_model(path, compile=False).get_weights()


def test_a_run_holds_what_the_contract_names(finished):
    run, _ = finished
    for path in (run.config, run.metrics, run.student, run.baseline, run.teacher / "model.keras", run.vocabulary):
        assert path.exists(), path
    for path in (run.labels, run.tokenizer, run.examples, run.predictions, run.report_json, run.report_html, run.tensorboard):
        assert path.exists(), path
    assert not [path for path in run.path.rglob("*partial*")]
    assert run.labels.read_text().split() == ["blue", "green", "red"]
    about = read_json(run.report_json)
    assert [model["role"] for model in about["models"]] == ["teacher", "baseline", "student"]
    by_role = {model["role"]: model["metrics"][about["metric"]] for model in about["models"]}
    assert about["retention"] == pytest.approx(by_role["student"] / by_role["teacher"])
    assert by_role["teacher"] > 0.9  # the label follows from a word: whoever learns anything gets there


def test_reported_accuracy_is_that_of_the_saved_student_on_the_test_file(finished, colours):
    run, _ = finished
    from tfkd.data.tokenizer import Tokenizer

    rows = [json.loads(line) for line in (colours.parent / "test.jsonl").read_text().splitlines()]
    labels = run.labels.read_text().split()
    tokenizer = Tokenizer.from_file(run.vocabulary, lowercase=read_json(run.tokenizer)["lowercase"])
    student = keras.models.load_model(run.student, compile=False)
    logits = student(tokenizer.padded([row["text"] for row in rows], max_length=32)).numpy()
    right = np.mean([labels[best] == row["label"] for best, row in zip(logits.argmax(-1), rows, strict=True)])
    reported = next(m for m in read_json(run.report_json)["models"] if m["role"] == "student")
    assert reported["metrics"]["accuracy"] == pytest.approx(right)


def test_the_plan_comes_first_and_says_what_will_be_done(finished):
    _, said = finished
    plan = said[: said.index("Teacher:")]
    for words in ("train 4", "classes", "3:", "2 layers of width 32", "times smaller", "steps", "CPU"):
        assert words in plan
    assert "validation split" in plan  # cut from train, and said so


@pytest.mark.slow
def test_baseline_and_student_start_from_the_same_weights_and_end_apart(finished, colours, tmp_path):
    run, _ = finished
    differ = [not np.array_equal(a, b) for a, b in zip(weights(run.baseline), weights(run.student), strict=True)]
    assert any(differ)
    # With alpha 1 the teacher has no say: same start, batches and dropout make the very same student.
    alone, _ = go(colours, tmp_path / "alone", "distill.alpha=1.0")
    for a, b in zip(weights(alone.baseline), weights(alone.student), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_the_teacher_is_used_again(finished, colours, tmp_path):
    run, _ = finished
    again, said = go(colours, tmp_path / "again")
    assert "used again" in said
    for a, b in zip(weights(run.student), weights(again.student), strict=True):
        np.testing.assert_array_equal(a, b)
    _, said = go(colours, tmp_path / "other", "teacher.train.epochs=1", "baseline=false", "train.epochs=1")
    assert "used again" not in said


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(finished, colours, tmp_path, monkeypatch):
    run, _ = finished
    write, count = callbacks.Checkpoint._write, []

    def interrupted(self):
        write(self)
        count.append(self.folder.name)
        if count.count("student") == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.Checkpoint, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(colours, tmp_path / "stopped")
    assert not RunDir(tmp_path / "stopped").student.exists()
    monkeypatch.setattr(callbacks.Checkpoint, "_write", write)
    resumed, said = go(colours, tmp_path / "stopped", resume=True)
    assert "going on after epoch 2" in said
    for a, b in zip(weights(run.student), weights(resumed.student), strict=True):
        np.testing.assert_array_equal(b, a)


def test_the_best_epoch_is_kept_and_training_stops_early(colours, tmp_path):
    run, said = go(
        colours, tmp_path / "early", "train.epochs=30", "train.early_stopping=2", "baseline=false", "train.learning_rate=0.02"
    )
    epochs = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    values = [line["val_accuracy"] for line in epochs if line["role"] == "student" and "val_accuracy" in line]
    assert len(values) == values.index(max(values)) + 1 + 2
    assert f"best validation accuracy {max(values):.4f}" in said


@pytest.mark.slow
def test_a_student_of_the_teachers_layers_starts_as_the_teacher_answers(colours, tmp_path):
    go(colours, tmp_path / "layers", "student.dimensions=null", "student.layers=2", "train.epochs=1", "train.learning_rate=1e-9")
    by_role = {m["role"]: m for m in read_json(tmp_path / "layers" / "report.json")["models"]}
    assert by_role["student"]["parameters"] == by_role["teacher"]["parameters"]
    assert by_role["student"]["metrics"]["accuracy"] == by_role["teacher"]["metrics"]["accuracy"]


def test_evaluate_gives_the_reported_numbers_again_and_takes_another_file(finished, colours, capsys, monkeypatch):
    run, _ = finished
    reported = {m["role"]: m["metrics"]["accuracy"] for m in read_json(run.report_json)["models"]}
    assert evaluate.main([str(run)]) == 0
    again = read_json(run.path / "evaluation-train.jsonl-test.json")
    assert {m["role"]: m["metrics"]["accuracy"] for m in again["models"]} == pytest.approx(reported)
    assert evaluate.main([str(run), "--data", str(colours.parent / "train.jsonl")]) == 0
    assert read_json(run.path / "evaluation-train.jsonl.json")["dataset"]["rows"] == {"test": 480}
    assert evaluate.main([str(run), "--data", "nowhere.csv"]) == 2
    assert "nowhere.csv: no such file" in capsys.readouterr().err


def program(*arguments, cwd, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tfkd.train", *map(str, arguments)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup children inherit that it is ignored
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_mistake_in_the_data_is_one_line_and_exit_code_2(colours, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("text,label\nfine,red\n,blue\n")
    running = program(colours, "--set", f"data.files.train={bad}", cwd=tmp_path)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 2, err
    assert "Traceback" not in out + err
    (line,) = err.strip().splitlines()
    assert "bad.csv" in line and "empty" in line and ("row 2" in line or "line 3" in line)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "runs") == ["bad.csv"]
    assert not list(tmp_path.glob("runs/*"))


def test_a_failure_inside_is_one_line_with_the_log_and_exit_code_1(colours, tmp_path):
    cache = tmp_path / "cache"
    cache.write_text("a file where a folder is needed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TFKD_CACHE": str(cache)}
    command = [sys.executable, "-m", "tfkd.train", str(colours), "--output", "run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "run/log.txt" in line
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_the_command_that_is_named_goes_on(colours, tmp_path, number, code):
    running = program(colours, "--set", "train.epochs=12", "--output", "run", cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("run/checkpoints/student/step-????????")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert "stopping after this step, with a checkpoint" in out and "stopped after a checkpoint" in err
    assert "Traceback" not in out + err
    command = shlex.split(err.split("Go on with: python -m ", 1)[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "going on after epoch" in done.stdout
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "pack"),
    [("strategy.logical_cpus=2", True), ("strategy.precision=mixed_float16", True), ("strategy.precision=mixed_bfloat16", False)],
)
def test_the_whole_program_runs_on_replicas_and_in_half_precision(colours, tmp_path, override, pack):
    settings = [override, f"train.pack={str(pack).lower()}", "train.epochs=6", "export.formats=[tflite, saved_model, onnx]"]
    running = program(colours, *(word for one in settings for word in ("--set", one)), "--output", "run", cwd=tmp_path)
    out, err = running.communicate(timeout=500)
    assert running.returncode == 0, out + err
    assert ("2 CPUs, mirrored" in out) == ("logical" in override)
    assert ("a batch's texts packed into" in out) == pack
    by_role = {m["role"]: m["metrics"]["accuracy"] for m in read_json(tmp_path / "run" / "report.json")["models"]}
    assert by_role["teacher"] > 0.9 and min(by_role.values()) > 0.5
    artifacts = read_json(tmp_path / "run" / "report.json")["artifacts"]
    assert {name.rpartition(".")[2] for name in artifacts} == {"tflite", "saved_model", "onnx"}


@pytest.mark.slow
def test_pairs_of_texts_are_trained_and_exported(tmp_path):
    """The label follows from the second text alone: a program that lost it could not do better than two in three."""
    random = np.random.default_rng(0)
    for split, rows in (("train", 600), ("test", 100)):
        with open(tmp_path / f"{split}.csv", "w", encoding="utf-8") as file:
            file.write("first,second,red\n")
            for row in range(rows):
                colour = str(random.choice(["red", "green", "blue"]))
                file.write(f"{random.choice(FILLER)} thing {row},it looks {colour},{'yes' if colour == 'red' else 'no'}\n")
    training = {"epochs": 12, "batch_size": 32, "learning_rate": 0.003}
    size = {"layers": 2, "width": 32, "heads": 2, "dropout": 0.0}
    tree = {
        "data": {
            "files": {split: str(tmp_path / f"{split}.csv") for split in ("train", "test")},
            "columns": {"text": "first", "text_pair": "second", "label": "red"},
            "max_length": 16,
            "vocabulary_size": 64,
        },
        "teacher": {"dimensions": size, "train": training},
        "student": {"dimensions": {**size, "layers": 1}},
        "train": training,
        "evaluate": {"bootstrap": 100},
        "export": {"formats": ["tflite", "saved_model", "onnx"]},
    }
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump(tree))
    running = program(path, "--output", "run", cwd=tmp_path)
    out, err = running.communicate(timeout=500)
    assert running.returncode == 0, out + err
    by_role = {m["role"]: m["metrics"]["accuracy"] for m in read_json(tmp_path / "run" / "report.json")["models"]}
    assert by_role["teacher"] > 0.9


def test_runs_are_numbered_so_that_none_is_overwritten(colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = config.load(colours)
    first = train.choose_run(loaded, None, resume=False)
    assert first.path == pathlib.Path("runs/quickstart")
    first.path.mkdir(parents=True)
    assert train.choose_run(loaded, None, resume=False).path == pathlib.Path("runs/quickstart-2")
    with pytest.raises(UserError, match="holds no run to go on with"):
        train.choose_run(loaded, None, resume=True)
    first.config.write_text(config.dump(loaded))
    assert train.choose_run(loaded, None, resume=True).path == first.path
    with pytest.raises(UserError, match="already there; go on with --resume"):
        train.choose_run(loaded, str(first.path), resume=False)
    begun = tmp_path / "begun"  # and killed before its configuration was there
    begun.mkdir()
    for name in ("lock", "config.partial-00000000-1.yaml"):
        (begun / name).write_text("")
    assert train.choose_run(loaded, str(begun), resume=False).path == begun


def test_a_run_is_not_resumed_with_other_settings(colours, tmp_path):
    run = RunDir(tmp_path)
    run.config.write_text(config.dump(config.load(colours)))
    with pytest.raises(UserError, match=r"--resume: train.epochs is not what"):
        train.check_same(config.load(colours, ["train.epochs=9"]), run)
    train.check_same(config.load(colours), run)


def write_checkpoint(folder, labels):
    """A small Hugging Face BERT with a classification head, random weights and the words of `colours` as its vocabulary."""
    from safetensors.numpy import save_file

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLER, *" ".join(SUBJECTS.values()).split()]
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    about = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": len(words), **size}
    about |= {"max_position_embeddings": 40, "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    about |= {"id2label": {str(i): label for i, label in enumerate(labels)}, "hidden_dropout_prob": 0.1}
    shapes = {"embeddings.word_embeddings": (len(words), 16), "embeddings.position_embeddings": (40, 16)}
    shapes |= {"embeddings.token_type_embeddings": (2, 16)}
    dense = {"bert.pooler.dense": (16, 16), "classifier": (len(labels), 16)}
    norms = ["bert.embeddings.LayerNorm"]
    for layer in (f"bert.encoder.layer.{i}" for i in range(2)):
        dense |= {f"{layer}.attention.{part}": (16, 16) for part in ("self.query", "self.key", "self.value", "output.dense")}
        dense |= {f"{layer}.intermediate.dense": (32, 16), f"{layer}.output.dense": (16, 32)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    random = np.random.default_rng(0)
    tensors = {f"bert.{name}.weight": random.normal(0, 0.2, shape) for name, shape in shapes.items()}
    for name, shape in dense.items():
        tensors |= {f"{name}.weight": random.normal(0, 0.2, shape), f"{name}.bias": random.normal(0, 0.2, shape[0])}
    for name in norms:
        tensors |= {f"{name}.weight": np.ones(16), f"{name}.bias": np.zeros(16)}
    folder.mkdir()
    save_file({name: value.astype("float32") for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def teach(folder, *more):
    """Overrides that put a checkpoint in the place of the teacher trained from scratch, and its first layer in the student's."""
    teacher = ["teacher.dimensions=null", "teacher.train=null", f"teacher.checkpoint={folder}"]
    return [*teacher, "student.dimensions=null", "student.layers=1", "train.epochs=1", *more]


def test_a_checkpoint_with_a_head_teaches_as_it_is_whatever_its_label_order(colours, tmp_path):
    labels = ["red", "blue", "green"]  # not the data's order
    folder = write_checkpoint(tmp_path / "bert", labels)
    run, said = go(colours, tmp_path / "run", *teach(folder))
    assert "bert, as it is" in said.replace(str(tmp_path) + "/", "") and "teacher's layers 0" in said
    from tfkd.checkpoints.checkpoint import open_checkpoint
    from tfkd.data.tokenizer import Tokenizer
    from tfkd.models.with_head import TransformerWithHead

    found = open_checkpoint(str(folder))
    rows = [json.loads(line) for line in (colours.parent / "test.jsonl").read_text().splitlines()]
    ids = Tokenizer(found.pieces, lowercase=found.lowercase).padded([row["text"] for row in rows], max_length=32)
    best = TransformerWithHead(found.encoder, found.head)(ids).numpy().argmax(-1)
    right = np.mean([labels[i] == row["label"] for i, row in zip(best, rows, strict=True)])
    reported = {m["role"]: m["metrics"]["accuracy"] for m in read_json(run.report_json)["models"]}
    assert reported["teacher"] == pytest.approx(right)
    assert evaluate.main([str(run)]) == 0
    again = read_json(run.path / "evaluation-train.jsonl-test.json")
    assert {m["role"]: m["metrics"]["accuracy"] for m in again["models"]} == pytest.approx(reported)


@pytest.mark.slow
def test_a_checkpoint_is_fine_tuned_first_where_asked(colours, tmp_path):
    folder = write_checkpoint(tmp_path / "bert", ["LABEL_0", "LABEL_1"])  # its head is replaced
    tune = ["teacher.finetune.epochs=16", "teacher.finetune.learning_rate=0.003"]
    run, said = go(colours, tmp_path / "run", *teach(folder, *tune))
    assert "fine-tuned first" in said
    reported = {m["role"]: m["metrics"]["accuracy"] for m in read_json(run.report_json)["models"]}
    assert reported["teacher"] > 0.9
    # Other weights under the same name are another teacher.
    changed = write_checkpoint(tmp_path / "other", ["LABEL_0", "LABEL_1"])
    from safetensors.numpy import load_file, save_file

    tensors = load_file(changed / "model.safetensors")
    tensors["bert.pooler.dense.bias"] = tensors["bert.pooler.dense.bias"] + 1
    save_file(tensors, folder / "model.safetensors")
    _, said = go(colours, tmp_path / "again", *teach(folder, *tune), "teacher.finetune.epochs=8")
    assert "used again" not in said


@pytest.mark.parametrize(
    ("labels", "more", "message"),
    [
        (["red", "green", "purple"], [], r"the teacher has \[red, green, purple\], the data \[blue, green, red\]"),
        (["red", "green", "blue"], ["student.layers=3"], "asks for more than the teacher's 2 layers"),
        (["red", "green", "blue"], ["data.max_length=64"], "data.max_length = 64 is above the 40 positions"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_tokenized(colours, tmp_path, labels, more, message):
    folder = write_checkpoint(tmp_path / "bert", labels)
    with pytest.raises(UserError, match=message):
        go(colours, tmp_path / "run", *teach(folder, *more))
    assert not RunDir(tmp_path / "run").vocabulary.exists()


def test_a_run_is_not_resumed_on_other_data(colours, tmp_path):
    train.check_data(RunDir(tmp_path), "one", resume=False)
    train.check_data(RunDir(tmp_path), "one", resume=True)
    with pytest.raises(UserError, match="the data are not those"):
        train.check_data(RunDir(tmp_path), "two", resume=True)
