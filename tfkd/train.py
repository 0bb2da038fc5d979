"""The main program: data and a teacher in, a small student, its proof and its files out.

    python -m tfkd.train [CONFIG] [--set key=value ...] [--output DIR] [--resume]

`train` below is the run, top to bottom. TensorFlow is imported only once the arguments and the configuration are known
to be right: importing it takes seconds, a mistake should be answered at once.
"""

import argparse
import importlib.util
import logging
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
import traceback

import rich.console

from tfkd import config as configs
from tfkd.config import Config, Training
from tfkd.errors import UserError
from tfkd.progress import Display, clock
from tfkd.run_dir import RunDir, cache_root, read_json, remove, size, whole, write_json, write_text

QUICKSTART = "configs/quickstart.yaml"


def train(config: Config, run: RunDir, display: Display, resume: bool) -> int:
    """Runs the whole pipeline into `run`. Returns the exit code of the export, 0 where nothing is exported."""
    import keras
    import numpy as np

    from tfkd import build, outputs, report, strategy
    from tfkd.data import pipeline, prepare, sources
    from tfkd.data import tokenizer as tokenizers
    from tfkd.evaluate import parameters, predict
    from tfkd.plan import show_plan
    from tfkd.tasks.table import TASKS

    seconds = Stopwatch(run.seconds)
    task = TASKS[config.task]()
    devices = strategy.make_strategy(config.strategy.kind, config.strategy.logical_cpus)
    strategy.set_precision(config.strategy.precision)

    # data
    with display.bar("data", None) as update:
        source = sources.open_source(
            **build.source_arguments(config.data), progress=lambda done, total: update(done, "files read", total)
        )
    for note in source.notes:
        display.say(f"Note: {note}")
    with devices.scope():
        keras.utils.set_random_seed(config.seed)
        checkpoint = build.open_checkpoint(config)
    if checkpoint is not None:
        tokenizer = tokenizers.Tokenizer(checkpoint.pieces, lowercase=checkpoint.lowercase)
    else:
        texts = (text for example in source.examples("train") for key, text in example.items() if key != "label")
        pieces = tokenizers.learn_vocabulary(texts, config.data.vocabulary_size, config.data.lowercase)
        tokenizer = tokenizers.Tokenizer(pieces, lowercase=config.data.lowercase)
    # The models come before the tokens: what does not fit together is said before an hour of tokenizing.
    with devices.scope():
        keras.utils.set_random_seed(config.seed)
        teacher = build.make_teacher(config, checkpoint, source.labels, tokenizer.vocabulary_size, task)
        student = build.make_student(config, teacher, tokenizer.vocabulary_size, task)
    pairs = config.data.columns.text_pair is not None
    data_key = prepare.prepared_key(source, tokenizer, config.data.max_length, pairs)
    check_data(run, data_key, resume)
    with display.bar("tokenize", None) as update:
        stores = prepare.prepare(source, tokenizer, config.data.max_length, pairs, cache_root(), update)
    measured = "test" if "test" in stores else "validation"
    buckets = config.data.buckets or pipeline.choose_buckets(
        np.concatenate([store.lengths for store in stores.values()]), config.data.max_length
    )
    outputs.write_inputs(run, config, source.labels, tokenizer, stores[measured], pairs)
    seconds.lap("data")

    def batches(split: str, batch_size: int, shuffle: bool = False) -> pipeline.Batches:
        return pipeline.Batches(stores[split], batch_size, buckets, shuffle=shuffle, seed=config.seed)

    # teacher
    teacher_training = config.teacher.finetune or config.teacher.train
    teacher_name = None if checkpoint is None else checkpoint.name
    described = strategy.describe(devices)
    show_plan(display, config, run, source, stores, buckets, described, teacher, student, teacher_training, teacher_name)
    if teacher_training is not None:
        key = build.teacher_key(config, teacher, teacher_training, data_key, buckets)
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
            models[role] = build.make_student(config, teacher, tokenizer.vocabulary_size, task)
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
    outputs.write_predictions(run, stores[measured].labels, logits)
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
        bytes={role: size(path) for role, path in outputs.model_files(run).items()},
        seconds=seconds.laps,
        bootstrap=config.evaluate.bootstrap,
        seed=config.seed,
    )
    result["teacher"] = None if checkpoint is None else {"checkpoint": checkpoint.name, "revision": config.teacher.revision}
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
    best = f"best validation {task.metric} {state['best']:.4f} at epoch {state['best_epoch']} of {state['epochs']}"
    display.say(f"{role.capitalize()}: {best}")


def export(run: RunDir, config: Config, display: Display) -> int:
    """Starts `python -m export RUN` as a process of its own: float32, no GPU memory held, its memory given back at its end.

    Returns:
        0 where every file passed or none was wanted, else 1.
    """
    if not config.export.formats:
        return 0
    try:
        found = importlib.util.find_spec("export.__main__")
    except ModuleNotFoundError:
        found = None
    if found is None:
        display.say("Not exported: there is no `export` here; run `python -m export` from a checkout of tfkd")
        return 0
    command = [sys.executable, "-m", "export", str(run.path), "--format", *config.export.formats]
    # The person's own stderr: this process's now goes to the log.
    with subprocess.Popen(command, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, stderr=sys.stderr) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # Ctrl-C reached it too: it tidies up what is half-written
            raise
    if code == 1:
        display.say(f"Export: at least one file did not pass; what passed is in {run.exports}")
    elif code:
        display.say(f"Export: it ended with code {code} before its files were proven; repeat it with: python -m export {run}")
    return min(abs(code), 1)


class Stopwatch:
    """Seconds between laps, by name; kept in a file, so that a resumed run adds to what it took before."""

    def __init__(self, path: pathlib.Path):
        self.path, self.last = path, time.monotonic()
        self.laps = read_json(path) if path.exists() else {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(self.laps.get(name, 0.0) + now - self.last, 1)
        self.last = now
        write_json(self.path, self.laps)


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
    run = new = None
    try:
        config = configs.load(options.config, options.set)
        run = choose_run(config, options.output, options.resume)
        new = not run.path.exists() or not any(run.path.iterdir())
        if options.resume:
            check_same(config, run)
        write_text(run.config, configs.dump(config))
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        log = open_log(run)
        quiet_libraries(run)
        return train(config, run, Display(console, log.info), options.resume)
    except UserError as error:
        errors.print(f"tfkd: {error}", style="bold red", highlight=False, markup=False)
        if new and not run.metrics.exists():
            remove(run.path)  # nothing was trained: a run that never began leaves nothing behind
        return 2
    except KeyboardInterrupt:
        if run is None or not run.config.exists():
            return 130
        again = shlex.join(["python", "-m", "tfkd.train", options.config, *(f"--set={item}" for item in options.set)])
        errors.print(f"\ntfkd: stopped. Go on with: {again} --output {run} --resume", highlight=False, markup=False)
        return 130
    except Exception as error:  # the last resort: one line for the person, everything for the log
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        errors.print(
            f"tfkd: {type(error).__name__}: {first}{log_traceback(run)}", style="bold red", highlight=False, markup=False
        )
        return 1


def log_traceback(run: RunDir | None) -> str:
    """Writes the traceback of the exception being handled into the run's log; says where, or nothing where that fails too."""
    try:
        with open(run.log, "a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
    except (AttributeError, OSError):  # no run yet, or no disk
        return ""
    return f" (whole story: {run.log})"


def check_same(config: Config, run: RunDir) -> None:
    """Raises `UserError` when a run is resumed with another configuration than it was begun with."""
    before = configs.load(run.config).model_dump()
    for section, value in config.model_dump().items():
        if before[section] != value:
            changed = [k for k in value if before[section].get(k) != value[k]] if isinstance(value, dict) else []
            key = f"{section}.{changed[0]}" if changed else section
            raise UserError(f"--resume: {key} is not what {run.path} was begun with; start a new run, or take the change back")


def check_data(run: RunDir, key: str, resume: bool) -> None:
    """Raises `UserError` when a run is resumed on other data or another vocabulary than it was begun with."""
    if resume and run.data_key.exists() and read_json(run.data_key)["key"] != key:
        raise UserError(f"--resume: the data are not those that {run.path} was begun with; start a new run")
    write_json(run.data_key, {"key": key})


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
