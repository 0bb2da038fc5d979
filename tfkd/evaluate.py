"""Measures teacher, baseline and student on the same examples: `python -m tfkd.evaluate RUN [--data FILE]`."""

import argparse
import os
import pathlib
import sys

from tfkd import config as configs
from tfkd.errors import UserError
from tfkd.run_dir import RunDir, read_json, write_json

ROLES = ("teacher", "baseline", "student")


def predict(model, batches, update=None):
    """Logits (N, C) float32 of every row, in the order of the rows.

    Arguments:
        model: a Keras model.
        batches: `tfkd.data.pipeline.Batches`, not shuffled.
        update: is told the number of batches done.
    """
    import numpy as np
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def forward(inputs):
        return model(inputs, training=False)

    logits = None
    for done, (rows, length) in enumerate(batches.plan(), start=1):
        inputs = {name: tf.constant(value) for name, value in batches.store.gather(rows, length).items()}
        answer = forward(inputs).numpy()
        if logits is None:
            logits = np.zeros((len(batches.store), answer.shape[-1]), "float32")
        logits[rows[rows >= 0]] = answer[rows >= 0]
        if update is not None:
            update(done)
    return logits


def parameters(model) -> int:
    """Trained numbers in a model: weights, without the states of random generators."""
    return sum(
        int(variable.shape.num_elements()) for variable in model.variables if variable.dtype.startswith(("float", "bfloat"))
    )


def load_models(run: RunDir, config: configs.Config, labels: list[str]) -> dict:
    """The run's models by role; a teacher used as it came is read from its checkpoint again."""
    import keras

    import tfkd.models.with_head  # noqa: F401 registers the classes that the files name
    import tfkd.tasks.table  # noqa: F401
    from tfkd.checkpoints.checkpoint import open_checkpoint
    from tfkd.teacher import build_teacher

    models = {}
    if config.teacher.checkpoint is None or config.teacher.finetune is not None:
        run.require(run.teacher / "model.keras")
        models["teacher"] = keras.models.load_model(run.teacher / "model.keras", compile=False)
    else:
        found = open_checkpoint(configs.expand(config.teacher.checkpoint, "teacher.checkpoint"), config.teacher.revision)
        models["teacher"] = build_teacher(found.encoder, found.head, found.labels, labels, config.teacher.label_map)
    if run.baseline.exists():
        models["baseline"] = keras.models.load_model(run.baseline, compile=False)
    models["student"] = keras.models.load_model(run.student, compile=False)
    return models


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tfkd.evaluate", description="Measure a run's teacher, baseline and student again."
    )
    parser.add_argument("run", metavar="RUN", help="a finished run, such as runs/quickstart")
    parser.add_argument(
        "--data", metavar="FILE", help="CSV, TSV, JSONL or Parquet file to measure on; default: the run's own test split"
    )
    parser.add_argument("--text", metavar="COLUMN", help="its column with the text; default: the run's")
    parser.add_argument("--label", metavar="COLUMN", help="its column with the label; default: the run's")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The program. Returns its exit code: 0, or 2 for a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        evaluate(options)
    except UserError as error:
        print(f"tfkd.evaluate: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"tfkd.evaluate: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def evaluate(options: argparse.Namespace) -> None:
    """Reads the models and the data, prints the table and writes it into the run as `evaluation-NAME.json`."""
    run = RunDir(options.run)
    run.require(run.config, run.student, run.vocabulary, run.labels, run.tokenizer)
    config = configs.load(run.config)
    if options.data is not None and not pathlib.Path(options.data).is_file():
        raise UserError(f"{options.data}: no such file")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    import tempfile

    import rich.console

    from tfkd import report
    from tfkd.build import source_arguments
    from tfkd.data import files, pipeline, sources, store
    from tfkd.data.tokenizer import Tokenizer
    from tfkd.progress import Display

    display = Display(rich.console.Console())
    labels = run.labels.read_text(encoding="utf-8").splitlines()
    about = read_json(run.tokenizer)
    tokenizer = Tokenizer.from_file(run.vocabulary, lowercase=about["lowercase"])
    with tempfile.TemporaryDirectory() as folder:
        if options.data is not None:
            columns = config.data.columns
            paths, pair = {"train": options.data}, columns.text_pair
            reader = files.Files(
                paths, text=options.text or columns.text, text_pair=pair, label=options.label or columns.label, labels=labels
            )
            rows, name = reader.rows("train"), pathlib.Path(options.data).name
        else:
            source = sources.open_source(**source_arguments(config.data))
            if source.labels != labels:
                now, before = ", ".join(source.labels), ", ".join(labels)
                raise UserError(f"{source.name}: its labels are now [{now}], those of {run} [{before}]")
            split = "test" if "test" in source.splits else "validation"
            rows, name = source.examples(split), f"{source.name} {split}"
        with display.bar("tokenize", None) as update:
            examples = store.write_store(f"{folder}/rows", rows, tokenizer, about["max_length"], about["pairs"], update)
        if not len(examples):
            raise UserError(f"{name}: no rows")
        buckets = pipeline.choose_buckets(examples.lengths, about["max_length"])
        batches = pipeline.Batches(examples, 64, buckets)
        models, logits = load_models(run, config, labels), {}
        for role, model in models.items():
            with display.bar(role, batches.steps) as update:
                logits[role] = predict(model, batches, update)
        truth = examples.labels[:].copy()
    result = report.summarize(
        task=config.task,
        dataset={"name": name, "measured_on": name.rpartition(" ")[2], "rows": {"test": len(truth)}},
        metric="accuracy",
        label_names=labels,
        labels=truth,
        logits=logits,
        parameters={role: parameters(model) for role, model in models.items()},
        bytes={},
        seconds={},
        bootstrap=config.evaluate.bootstrap,
        seed=config.seed,
    )
    path = run.path / f"evaluation-{name.replace(' ', '-').replace('/', '-')}.json"
    write_json(path, result)
    display.say(report.table(result, None))
    display.say(f"Written to {path}")


if __name__ == "__main__":
    sys.exit(main())
