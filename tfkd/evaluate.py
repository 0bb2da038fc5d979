"""Measures teacher, baseline and student on the same examples: `python -m tfkd.evaluate RUN [--data FILE]`."""

import argparse
import dataclasses
import functools
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterator

from tfkd import config as configs
from tfkd import cpu
from tfkd.errors import UserError, first_line, of_system
from tfkd.run_dir import RunDir, write_json
from tfkd.run_log import log_traceback


def predict(model, batches, update=None, keep=None, team=None):
    """Logits of every row, float32: (R, C) in the order of the rows; of models that answer for each position (P, C), the
    positions of each row, padding left out, one behind the other, as `store.ragged("token_ids")` has them.

    Arguments:
        model: a Keras model, or a teacher, which answers with a dict.
        batches: `tfkd.data.pipeline.Batches`, not shuffled.
        update: is told the number of batches done.
        keep: what is kept of a batch's logits, `keep(logits, y)`, where all would be too much; default: everything.
        team: a `tfkd.multi_worker.Team`, whose workers answer for a part of the batches each, and all have all answers.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    store = batches.store

    @tf.function(reduce_retracing=True)
    def forward(inputs, y):
        logits = model(inputs, training=False) if isinstance(model, keras.Model) else model(inputs)["logits"]
        return logits if keep is None else keep(logits, y)

    _, offsets = store.ragged("token_ids")
    logits = None
    several = team is not None and team.count > 1
    for done, (rows, length) in enumerate(batches.plan(), start=1):
        mine = not several or done % team.count == team.index
        if not mine and done > 1:  # the first one says to everybody what answers look like
            continue
        x, y, _ = store.target.batch(store, rows, length, None)
        answer = forward({name: tf.constant(value) for name, value in x.items()}, tf.constant(y)).numpy()
        if logits is None:
            count = len(store) if answer.ndim == 2 else int(offsets[-1])
            logits = np.zeros((count, answer.shape[-1]), "float32")
        if not mine:
            continue
        if answer.ndim == 2:
            logits[rows[rows >= 0]] = answer[rows >= 0]
        else:
            for place in np.flatnonzero(rows >= 0):
                begin, end = offsets[rows[place]], offsets[rows[place] + 1]
                logits[begin:end] = answer[place, : end - begin]
        if update is not None:
            update(done)
    return team.total(logits) if several else logits


def parameters(model) -> int | None:
    """Trained numbers in a model or a teacher: weights, without the states of random generators.

    None where there are none to count: a SavedModel may hold its weights as constants.
    """
    import keras

    kinds = [(variable, keras.backend.standardize_dtype(variable.dtype)) for variable in model.variables]
    return sum(math.prod(variable.shape) for variable, kind in kinds if kind.startswith(("float", "bfloat"))) or None


def load_models(run: RunDir, config: configs.Config, labels: list[str], tokenizer) -> tuple[dict, dict]:
    """The run's models by role; a teacher used as it came is read from where it came from again.

    Arguments:
        tokenizer: the student's.

    Returns:
        The models, and the tokenizers of teachers that have their own, by the prefix of their inputs.
    """
    from tfkd import build, build_teacher, open_teacher
    from tfkd.checkpoints.keras_file import open_keras_file
    from tfkd.tasks.table import TASKS

    task, models = TASKS[config.task], {}
    members = open_teacher.open_members(config, task, trained=run)
    others = open_teacher.share_tokenizer(members, tokenizer)
    models["teacher"] = build_teacher.measured(build.make_teacher(config, members, labels, task()))
    if run.baseline.exists():
        models["baseline"] = open_keras_file(run.baseline)
    models["student"] = open_keras_file(run.student)
    _check_fits(run, models["student"], tokenizer)
    return models, others


def _check_fits(run: RunDir, student, tokenizer) -> None:
    """Raises `UserError` where a run's files do not belong together: what does not would be read beyond the tables' ends."""
    encoder = getattr(getattr(student, "encoder", None), "config", None)
    if encoder is None:
        raise UserError(f"{run.student}: not a student that tfkd wrote")
    longest, rows = run.read_tokenizer()["max_length"], encoder["vocabulary_size"]
    if not 3 <= longest <= encoder["max_positions"]:
        limits = f"must be from 3 to the {encoder['max_positions']} positions of {run.student.name}"
        raise UserError(f"{run.tokenizer}: max_length = {longest}: {limits}")
    if tokenizer.vocabulary_size > rows:
        pieces = f"{tokenizer.vocabulary_size:,} pieces"
        raise UserError(f"{run.vocabulary}: {pieces} for the {rows:,} embeddings of {run.student.name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tfkd.evaluate", description="Measure a run's teacher, baseline and student again."
    )
    parser.add_argument("run", metavar="RUN", help="a finished run, such as runs/quickstart")
    parser.add_argument(
        "--data", metavar="FILE", help="CSV, TSV, JSONL or Parquet file to measure on; default: the run's own test split"
    )
    parser.add_argument("--text", metavar="COLUMN", help="its column with the text; default: the run's")
    parser.add_argument("--text-pair", metavar="COLUMN", help="its column with the second text, for tasks on pairs")
    parser.add_argument("--label", metavar="COLUMN", help="its column with the label, the number or the labels")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="KEY=COLUMN",
        help="any other of its columns, by its key under data.columns, as in --column question=query",
    )
    return parser


def _columns(options: argparse.Namespace) -> dict[str, str]:
    """Columns that the person names, by key."""
    named = {"text": options.text, "text_pair": options.text_pair, "label": options.label}
    named = {key: column for key, column in named.items() if column is not None}
    for item in options.column:
        key, equals, column = item.partition("=")
        if not (key and equals and column):
            raise UserError(f"--column {item}: write KEY=COLUMN, as in --column question=query")
        named[key] = column
    return named


def main(arguments: list[str] | None = None) -> int:
    """The program. Returns its exit code: 0, or 2 for a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        evaluate(options)
    except UserError as error:
        print(f"tfkd.evaluate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"tfkd.evaluate: {of_system(error)}", file=sys.stderr)
        return 2
    except Exception as error:  # the last resort: one line for the person, everything for the log
        said = f"{type(error).__name__}: {first_line(error, 300)}"
        print(f"tfkd.evaluate: {said}{log_traceback(RunDir(options.run))}", file=sys.stderr)
        return 1
    return 0


@dataclasses.dataclass
class Measured:
    """The rows that a run is measured on.

    Attributes:
        name: of the data set, or of the file.
        split: of the data set; `test` where it is a file.
        title: what the results are filed under.
        target: what is read of a row.
        examples: `examples()` reads them, from the beginning each time.
    """

    name: str
    split: str
    title: str
    target: object
    examples: Callable[[], Iterator[dict]]


def evaluate(options: argparse.Namespace) -> None:
    """Reads the models and the data, prints the table and writes it into the run as `evaluation-NAME.json`."""
    run = RunDir(options.run)
    run.require(run.config, run.student, run.vocabulary, run.labels, run.tokenizer)
    config = configs.load(run.config)
    named = _columns(options)
    if named and options.data is None:
        raise UserError("--text, --text-pair, --label and --column name columns of --data; name the file too")
    if options.data is not None and not pathlib.Path(options.data).is_file():
        raise UserError(f"{options.data}: no such file")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    cpu.use_onednn()

    import rich.console

    from tfkd import report
    from tfkd.progress import Display

    display = Display(rich.console.Console())
    labels = run.read_labels()
    measured = _open(options, run, config, labels, named, display)
    truth, outputs, weights, count = _measure(run, config, labels, measured, display)
    result = report.summarize(
        task=config.task,
        dataset={"name": measured.name, "measured_on": measured.split, "rows": {measured.split: count}},
        labels=labels,
        truth=truth,
        outputs=outputs,
        parameters=weights,
        bytes={},
        seconds={},
        bootstrap=config.evaluate.bootstrap,
        seed=config.seed,
    )
    path = run.path / f"evaluation-{measured.title.replace(' ', '-').replace('/', '-')}.json"
    write_json(path, result)
    display.say(report.table(result, None))
    display.say(f"Written to {path}")


def _open(options, run: RunDir, config: configs.Config, labels: list[str], named: dict[str, str], display) -> Measured:
    """The file that the person names, or the run's own test split, or validation where it has none."""
    from tfkd import build
    from tfkd.data import files
    from tfkd.tasks.table import TASKS

    kind = TASKS[config.task].target
    if options.data is not None:
        target = build.make_target(config.data, kind, labels, named)
        reader = files.Files({"train": options.data}, target)
        name = pathlib.Path(options.data).name
        measured = Measured(name, "test", name, target, functools.partial(reader.rows, "train"))
    else:
        source = build.open_source(config.data, kind, display)
        if source.labels != labels:
            now, before = ", ".join(source.labels), ", ".join(labels)
            raise UserError(f"{source.name}: its labels are now [{now}], those of {run} [{before}]")
        split = "test" if "test" in source.splits else "validation"
        measured = Measured(
            source.name, split, f"{source.name} {split}", source.target, functools.partial(source.examples, split)
        )
    pairs = run.read_tokenizer()["pairs"]
    if measured.target.pairs != pairs:
        fix = "pairs of texts: name the second with --text-pair" if pairs else "single texts: leave --text-pair out"
        raise UserError(f"{run} was trained on {fix}")
    return measured


def _measure(run: RunDir, config: configs.Config, labels: list[str], measured: Measured, display) -> tuple[dict, dict, dict, int]:
    """The truth, what each model answers, how many weights each has, and how many examples there are."""
    import tempfile

    from tfkd.data import pipeline, readings, store
    from tfkd.data.tokenizer import Tokenizer
    from tfkd.tasks.table import TASKS

    about = run.read_tokenizer()
    tokenizer = Tokenizer.from_file(run.vocabulary, lowercase=about["lowercase"])
    models, others = load_models(run, config, labels, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        rows = {}
        with display.bar("tokenize", None) as update:
            for number, (prefix, reads) in enumerate({"": tokenizer, **others}.items()):
                path = f"{folder}/rows-{number}"
                rows[prefix] = store.write_store(path, measured.examples(), reads, about["max_length"], measured.target, update)
        examples = rows.pop("")
        if not len(examples):
            raise UserError(f"{measured.title}: no rows")
        buckets = pipeline.choose_buckets(examples.lengths, about["max_length"])
        batches = pipeline.Batches(readings.Readings(examples, rows) if rows else examples, 64, buckets)
        outputs = {}
        for role, model in models.items():
            with display.bar(role, batches.steps) as update:
                outputs[role] = predict(model, batches, update, TASKS[config.task].kept)
        truth = measured.target.truth(examples)
    return truth, outputs, {role: parameters(model) for role, model in models.items()}, examples.examples


if __name__ == "__main__":
    sys.exit(main())
