"""The main program: data and a teacher in, a small student, its proof and its files out.

    python -m tfkd.train [CONFIG] [--set key=value ...] [--output DIR] [--resume]

`train` below is the run, top to bottom. TensorFlow is imported only once the arguments and the configuration are known
to be right: importing it takes seconds, a mistake should be answered at once.
"""

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import time
import traceback

import rich.console

from tfkd import config as configs
from tfkd.config import Config, Dimensions, Training
from tfkd.errors import UserError
from tfkd.progress import Display, clock
from tfkd.run_dir import RunDir, cache_root, read_json, remove, size, whole, write_json, write_text

QUICKSTART = "configs/quickstart.yaml"
EXAMPLES_KEPT = 2000
"""Test examples written into the run for exports and the report."""


def train(config: Config, run: RunDir, display: Display, resume: bool) -> int:
    """Runs the whole pipeline into `run`. Returns the exit code of the export, 0 where nothing is exported."""
    import keras
    import numpy as np

    from tfkd import report, strategy
    from tfkd.data import pipeline, prepare, sources, tokenizer as tokenizers
    from tfkd.evaluate import parameters, predict
    from tfkd.tasks.table import TASKS

    seconds = Stopwatch()
    task = TASKS[config.task]()
    devices = strategy.make_strategy(config.strategy.kind, config.strategy.logical_cpus)
    strategy.set_precision(config.strategy.precision)

    # data
    with display.bar("data", None) as update:
        source = sources.open_source(
            **source_arguments(config.data), progress=lambda done, total: update(done, "files read", total)
        )
    for note in source.notes:
        display.say(f"Note: {note}")
    with devices.scope():
        keras.utils.set_random_seed(config.seed)
        checkpoint = open_checkpoint(config)
    with display.bar("tokenize", None) as update:
        if checkpoint is not None:
            tokenizer = tokenizers.Tokenizer(checkpoint.pieces, lowercase=checkpoint.lowercase)
        else:
            texts = (example["text"] for example in source.examples("train"))
            pieces = tokenizers.learn_vocabulary(texts, config.data.vocabulary_size, config.data.lowercase)
            tokenizer = tokenizers.Tokenizer(pieces, lowercase=config.data.lowercase)
        pairs = config.data.columns.text_pair is not None
        stores = prepare.prepare(source, tokenizer, config.data.max_length, pairs, cache_root(), update)
    measured = "test" if "test" in stores else "validation"
    buckets = config.data.buckets or pipeline.choose_buckets(
        np.concatenate([store.lengths for store in stores.values()]), config.data.max_length
    )
    write_inputs(run, config, source.labels, tokenizer, stores[measured], pairs)
    seconds.lap("data")

    def batches(split: str, batch_size: int, shuffle: bool = False) -> pipeline.Batches:
        return pipeline.Batches(stores[split], batch_size, buckets, shuffle=shuffle, seed=config.seed)

    # teacher
    with devices.scope():
        keras.utils.set_random_seed(config.seed)
        teacher = make_teacher(config, checkpoint, source.labels, tokenizer.vocabulary_size, task)
        student = make_student(config, teacher, tokenizer.vocabulary_size, task)
    teacher_training = config.teacher.finetune or config.teacher.train
    teacher_name = None if checkpoint is None else checkpoint.name
    described = strategy.describe(devices)
    show_plan(display, config, run, source, stores, buckets, described, teacher, student, teacher_training, teacher_name)
    if teacher_training is not None:
        key = teacher_key(config, prepare.prepared_key(source, tokenizer, config.data.max_length, pairs), buckets)
        kept = cache_root() / "teachers" / key / "model.keras"
        if kept.exists():
            teacher.load_weights(kept)
            display.say("Teacher: trained before on the same data with the same settings, used again")
        else:
            fit("teacher", teacher, None, config, teacher_training, batches, task, run, display, devices, resume)
            with whole(kept) as path:
                teacher.save(path)
        run.teacher.mkdir(parents=True, exist_ok=True)
        with whole(run.teacher / "model.keras") as path:
            shutil.copyfile(kept, path)
        write_json(run.teacher / "key.json", {"key": key})
    seconds.lap("teacher")

    # baseline and student: the same start, the same batches; one learns from the labels alone
    roles = {"baseline": (run.baseline, None), "student": (run.student, teacher)}
    models = {"teacher": teacher}
    for role, (path, knowledge) in roles.items():
        if role == "baseline" and not config.baseline:
            continue
        with devices.scope():
            keras.utils.set_random_seed(config.seed)
            models[role] = make_student(config, teacher, tokenizer.vocabulary_size, task)
        if resume and path.exists():
            models[role].load_weights(path)
        else:
            fit(role, models[role], knowledge, config, config.train, batches, task, run, display, devices, resume)
            with whole(path) as beside:
                models[role].save(beside)
        seconds.lap(role)

    # proof
    logits = {}
    test = batches(measured, 64)
    for role, model in models.items():
        with display.bar(f"measure {role}", test.steps) as update:
            logits[role] = predict(model, test, update)
    write_predictions(run, stores[measured].labels, logits)
    seconds.lap("evaluation")
    result = report.summarize(
        task=config.task,
        dataset={
            "name": source.name,
            "measured_on": measured,
            "rows": {split: len(store) for split, store in stores.items()},
            "labels": source.labels,
            "provenance": source.provenance,
            "notes": source.notes,
        },
        metric=task.metric,
        label_names=source.labels,
        labels=stores[measured].labels,
        logits=logits,
        parameters={role: parameters(model) for role, model in models.items()},
        bytes={role: size(path) for role, path in model_files(run).items()},
        seconds=seconds.laps,
        bootstrap=config.evaluate.bootstrap,
        seed=config.seed,
    )
    write_json(run.report_json, result)

    # files for the world
    code = export(run, config, display)
    seconds.lap("export")
    result["seconds"] = seconds.laps
    manifest = report.read_manifest(run)
    result["artifacts"] = [entry["path"] for entry in manifest or [] if entry["passed"]]
    write_json(run.report_json, result)
    report.write_html(run)
    remove(run.checkpoints)
    display.say(report.table(result))  # the export has shown its own
    display.say(f"Done in {clock(sum(seconds.laps.values()))}. Report: {run.report_html}")
    return code


def source_arguments(data: configs.Data) -> dict:
    """What `tfkd.data.sources.open_source` is told by the `data` section."""
    files = None
    if data.files is not None:
        given = {split: path for split, path in data.files.model_dump().items() if path is not None}
        files = {split: configs.expand(path, f"data.files.{split}") for split, path in given.items()}
    splits = {split: expression for split, expression in data.splits.model_dump().items() if expression is not None}
    return {
        "builtin": data.builtin,
        "tfds": data.tfds,
        "data_dir": None if data.data_dir is None else configs.expand(data.data_dir, "data.data_dir"),
        "download": data.download,
        "files": files,
        "splits": splits or None,
        "text": data.columns.text,
        "text_pair": data.columns.text_pair,
        "label": data.columns.label,
        "labels": data.labels,
        "validation_fraction": data.validation_fraction,
        "limit": data.limit,
        "cache_dir": cache_root(),
    }


def open_checkpoint(config: Config):
    """The teacher's checkpoint, or None for a teacher trained from scratch."""
    from tfkd.checkpoints import checkpoint

    if config.teacher.checkpoint is None:
        return None
    found = checkpoint.open_checkpoint(configs.expand(config.teacher.checkpoint, "teacher.checkpoint"), config.teacher.revision)
    if config.data.max_length > found.max_length:
        raise UserError(f"data.max_length = {config.data.max_length} is above the {found.max_length} positions of {found.name}")
    keep = config.teacher.head == "keep" or (config.teacher.head == "auto" and config.teacher.finetune is None)
    if keep and found.head is None:
        raise UserError(
            f"teacher.checkpoint = {found.name} has no classification head; say with teacher.finetune how to train one"
        )
    return found


def make_teacher(config: Config, checkpoint, labels: list[str], vocabulary_size: int, task):
    """The teacher before any training here: from dimensions, or a checkpoint with its own head or a new one."""
    from tfkd.models.with_head import TransformerWithHead
    from tfkd.teacher import build_teacher

    if checkpoint is None:
        return from_dimensions(config.teacher.dimensions, config, len(labels), vocabulary_size, task, "teacher")
    if checkpoint.head is not None and (config.teacher.head == "keep" or config.teacher.finetune is None):
        return build_teacher(checkpoint.encoder, checkpoint.head, checkpoint.labels, labels, config.teacher.label_map)
    head = task.head(len(labels), dropout=checkpoint.encoder.config["dropout"])
    model = TransformerWithHead(checkpoint.encoder, head, name="teacher")
    if checkpoint.pooler is not None:
        kernel, bias = checkpoint.pooler
        head.hidden_dense.kernel.assign(kernel)
        head.hidden_dense.bias.assign(bias)
    return model


def make_student(config: Config, teacher, vocabulary_size: int, task):
    """The student before training: some layers of the teacher, or new dimensions."""
    from tfkd import student

    if config.student.layers is not None:
        return student.from_layers(teacher, config.student.layers)
    return from_dimensions(config.student.dimensions, config, teacher.head.classes, vocabulary_size, task, "student")


def from_dimensions(dimensions: Dimensions, config: Config, classes: int, vocabulary_size: int, task, name: str):
    """A model of the given size with random weights."""
    from tfkd.models.encoder import TransformerEncoder
    from tfkd.models.with_head import TransformerWithHead

    given = dimensions.model_dump(exclude={"pooling"})
    segments = 2 if config.data.columns.text_pair is not None else 0
    encoder = TransformerEncoder(
        vocabulary_size, **given, max_positions=config.data.max_length, segments=segments, name="encoder"
    )
    return TransformerWithHead(encoder, task.head(classes, dimensions.pooling, dimensions.dropout), name=name)


def fit(
    role, model, teacher, config: Config, training: Training, batches, task, run: RunDir, display: Display, devices, resume: bool
):
    """Trains `model` in place, on labels and, where there is one, on `teacher`; it ends with its best epoch's weights."""
    import keras

    from tfkd import callbacks, strategy
    from tfkd.distiller import Distiller
    from tfkd.objectives import KLDivergence
    from tfkd.optimizer import adamw

    examples, validation = batches("train", training.batch_size, shuffle=True), batches("validation", 64)
    steps = examples.steps * training.epochs
    xla, reason = strategy.choose_xla(config.strategy.xla, steps, len(examples.buckets), devices)
    with devices.scope():
        objectives = [KLDivergence(config.distill.temperature)] if teacher is not None else None
        distiller = Distiller(model, teacher, objectives, alpha=config.distill.alpha)
        optimizer = adamw(
            distiller.trainable_variables,
            steps,
            training.learning_rate,
            training.warmup,
            training.weight_decay,
            training.clip_norm,
        )
        distiller.compile(
            optimizer, loss=task.loss(training.label_smoothing), weighted_metrics=task.training_metrics(), jit_compile=xla
        )
    checkpoint = callbacks.Checkpoint(run.checkpoints / role, f"val_{task.metric}", training.early_stopping)
    first = checkpoint.resume(distiller) if resume else 0
    if not first:
        remove(run.checkpoints / role)
    display.say(f"{role.capitalize()}: {steps:,} steps, XLA {reason}" + (f", going on after epoch {first}" if first else ""))
    if first >= training.epochs or checkpoint.state["stopped"]:
        checkpoint.set_model(distiller)
        checkpoint.on_train_end()
        return
    with display.bar(role, steps) as update:
        distiller.fit(
            examples.dataset(first_epoch=first, repeat=True),
            validation_data=validation.dataset(),
            initial_epoch=first,
            epochs=training.epochs,
            steps_per_epoch=examples.steps,
            shuffle=False,
            verbose=0,
            callbacks=[
                callbacks.ProgressBar(update, examples.steps, training.epochs),
                callbacks.MetricsLog(run.metrics, role, examples.steps),
                keras.callbacks.TensorBoard(run.tensorboard / role, write_graph=False),
                checkpoint,
            ],
        )
    state = checkpoint.state
    display.say(
        f"{role.capitalize()}: best validation {task.metric} {state['best']:.4f} at epoch {state['best_epoch']} of {state['epochs']}"
    )


def teacher_key(config: Config, data_key: str, buckets: list[int]) -> str:
    """Digest of all that a trained teacher depends on."""
    parts = {
        "teacher": config.teacher.model_dump(mode="json"),
        "checkpoint": None if config.teacher.checkpoint is None else checkpoint_key(config.teacher.checkpoint),
        "data": data_key,
        "buckets": buckets,
        "seed": config.seed,
        "precision": config.strategy.precision,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def checkpoint_key(reference: str) -> list:
    """Names, sizes and times of a local checkpoint's files; a remote one is told by its name and revision alone."""
    folder = pathlib.Path(configs.expand(reference, "teacher.checkpoint"))
    return (
        [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(folder.iterdir()) if f.is_file()]
        if folder.is_dir()
        else []
    )


def write_inputs(run: RunDir, config: Config, labels: list[str], tokenizer, store, pairs: bool) -> None:
    """Writes what turns text into model inputs and classes into names, and some of the test examples."""
    write_text(run.labels, "".join(f"{label}\n" for label in labels))
    tokenizer.write(run.vocabulary)
    write_json(run.tokenizer, {"lowercase": tokenizer.lowercase, "max_length": config.data.max_length, "pairs": pairs})
    lines = []
    # Evenly spread over the split: a data set may be sorted by label.
    for row in sorted({int(i * len(store) / EXAMPLES_KEPT) for i in range(EXAMPLES_KEPT)}):
        example = {"row": row, "text": store.text(row), "text_pair": store.text_pair(row), "label": labels[store.labels[row]]}
        lines.append(json.dumps({k: v for k, v in example.items() if v is not None}, ensure_ascii=False))
    write_text(run.examples, "".join(f"{line}\n" for line in lines))


def write_predictions(run: RunDir, labels, logits: dict) -> None:
    """Writes the test split's labels and every role's logits."""
    import numpy as np

    with whole(run.predictions) as path, open(path, "wb") as file:
        np.savez_compressed(file, labels=labels, **logits)


def model_files(run: RunDir) -> dict[str, pathlib.Path]:
    """The models that the run holds, by role."""
    files = {"teacher": run.teacher / "model.keras", "baseline": run.baseline, "student": run.student}
    return {role: path for role, path in files.items() if path.exists()}


def show_plan(
    display, config: Config, run: RunDir, source, stores, buckets, devices: str, teacher, student, teacher_training, teacher_name
) -> None:
    """Prints what will be done, before it is done."""
    import numpy as np
    import rich.box
    import rich.table

    from tfkd.evaluate import parameters
    from tfkd.student import choose_layers

    def trained(training: Training) -> str:
        steps = -(-len(stores["train"]) // training.batch_size) * training.epochs
        epochs = "1 epoch" if training.epochs == 1 else f"{training.epochs} epochs"
        return f"{epochs} of {len(stores['train']):,} examples, batch {training.batch_size}: {steps:,} steps"

    def shape(model) -> str:
        size = model.encoder.config
        return (
            f"{size['layers']} layers, width {size['width']}, {size['heads']} heads, {parameters(model) / 1e6:.2f} M parameters"
        )

    counts = np.bincount(stores["train"].labels, minlength=len(source.labels))
    order = np.argsort(-counts, kind="stable")
    shown = ", ".join(f"{source.labels[i]} {counts[i]:,}" for i in order[:10]) + (", ..." if len(counts) > 10 else "")
    rows = ", ".join(f"{split} {len(store):,}" for split, store in stores.items())
    if config.teacher.checkpoint is None:
        origin = "from scratch, "
    else:
        origin = f"{teacher_name}, " + ("fine-tuned first, " if teacher_training else "as it is, ")
    copied = ""
    if config.student.layers is not None:
        copied = f"teacher's layers {', '.join(map(str, choose_layers(teacher, config.student.layers)))}, "
    ratio = parameters(teacher) / parameters(student)
    plan = rich.table.Table(title=f"Plan: {config.name}", box=rich.box.SIMPLE_HEAD, show_header=False, title_justify="left")
    plan.add_column(style="bold")
    plan.add_column(overflow="fold")
    plan.add_row("data", f"{source.name}: {rows}")
    plan.add_row("classes", f"{len(source.labels)}: {shown}")
    plan.add_row("lengths", f"batches padded to {', '.join(map(str, buckets))} word pieces")
    plan.add_row("teacher", origin + shape(teacher))
    if teacher_training is not None:
        plan.add_row("", trained(teacher_training))
    plan.add_row("student", f"{copied}{shape(student)}, {ratio:.1f} times smaller")
    plan.add_row("", trained(config.train) + (", twice: without the teacher (baseline) and with it" if config.baseline else ""))
    plan.add_row(
        "objective",
        f"{config.distill.alpha:g} x labels + {1 - config.distill.alpha:g} x KL at temperature {config.distill.temperature:g}",
    )
    plan.add_row("devices", f"{devices}, {config.strategy.precision}")
    plan.add_row("run", str(run))
    display.say(plan)


def export(run: RunDir, config: Config, display: Display) -> int:
    """Starts `python -m export RUN` as a process of its own: float32, no GPU memory held, its memory given back at its end."""
    if not config.export.formats:
        return 0
    if importlib.util.find_spec("export") is None:
        display.say("Not exported: there is no `export` here; run `python -m export` from a checkout of tfkd")
        return 0
    command = [sys.executable, "-m", "export", str(run.path), "--format", *config.export.formats]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        display.say(f"Export: at least one file did not pass (exit code {code}); what passed is in {run.exports}")
    return code


class Stopwatch:
    """Seconds between laps, by name."""

    def __init__(self):
        self.laps, self.last = {}, time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self.last, 1)
        self.last = now


def choose_run(config: Config, output: str | None, resume: bool) -> RunDir:
    """Where the run goes: `--output`, else `runs/NAME`, or `runs/NAME-2`, ... so that no earlier run is touched.

    Raises:
        UserError: `--output` is taken, or there is nothing to resume.
    """
    if output is not None:
        run = RunDir(output)
        taken = run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir()))
        if taken and not resume:
            raise UserError(f"--output {output}: already there; go on with --resume, or choose another folder")
    else:
        paths = [pathlib.Path("runs") / (config.name if i == 1 else f"{config.name}-{i}") for i in range(1, 10_000)]
        free = next(i for i, path in enumerate(paths) if not path.exists())
        run = RunDir(paths[max(free - 1, 0)] if resume else paths[free])
    if resume and not run.config.exists():
        raise UserError(f"--resume: {run.path} holds no run to go on with")
    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tfkd.train", description="Distil a small Transformer from a large one, measure it, and export it."
    )
    parser.add_argument("config", nargs="?", default=QUICKSTART, help="YAML file (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a field, as in --set train.epochs=2"
    )
    parser.add_argument("--output", metavar="DIR", help="the run's folder (default: runs/NAME, numbered where it is taken)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder after its last finished epoch")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The program. Exit codes: 0 done, 1 something failed inside or an export did not pass, 2 a user's mistake, 130 Ctrl-C."""
    options = _parser().parse_args(arguments)
    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=120)  # a log file has no width of its own
    errors = rich.console.Console(stderr=True, soft_wrap=True)
    run = None
    try:
        config = configs.load(options.config, options.set)
        run = choose_run(config, options.output, options.resume)
        if options.resume:
            check_same(config, run)
        write_text(run.config, configs.dump(config))
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        log = open_log(run)
        quiet_libraries(run)
        return train(config, run, Display(console, log.info), options.resume)
    except UserError as error:
        errors.print(f"tfkd: {error}", style="bold red", highlight=False, markup=False)
        return 2
    except KeyboardInterrupt:
        again = " ".join(["python -m tfkd.train", options.config, *(f"--set {item}" for item in options.set)])
        errors.print(f"\ntfkd: stopped. Go on with: {again} --output {run} --resume", highlight=False, markup=False)
        return 130
    except Exception as error:  # noqa: BLE001 the last resort: one line for the person, everything for the log
        with open(run.log, "a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        errors.print(
            f"tfkd: {type(error).__name__}: {first[:300]} (whole story: {run.log})",
            style="bold red",
            highlight=False,
            markup=False,
        )
        return 1


def check_same(config: Config, run: RunDir) -> None:
    """Raises `UserError` when a run is resumed with another configuration than it was begun with."""
    before = configs.load(run.config).model_dump()
    for section, value in config.model_dump().items():
        if before[section] != value:
            changed = [k for k in value if before[section].get(k) != value[k]] if isinstance(value, dict) else []
            key = f"{section}.{changed[0]}" if changed else section
            raise UserError(f"--resume: {key} is not what {run.path} was begun with; start a new run, or take the change back")


def open_log(run: RunDir) -> logging.Logger:
    """The run's log file, which also takes what the libraries log."""
    handler = logging.FileHandler(run.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)
    logger = logging.getLogger("tfkd")
    logger.setLevel(logging.INFO)
    return logger


def quiet_libraries(run: RunDir) -> None:
    """Sends what compiled libraries write on standard error to the run's log; Python's own messages still reach the person."""
    person = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)
    with open(run.log, "ab") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    sys.stderr = person


if __name__ == "__main__":
    sys.exit(main())
