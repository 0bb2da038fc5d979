"""The main program: data and a teacher in, a small student, its proof and its files out.

    python -m tfkd.train [CONFIG] [--set key=value ...] [--output DIR] [--resume]

`train` below is the run, top to bottom. TensorFlow is imported only once the arguments and the configuration are known
to be right: importing it takes seconds, a mistake should be answered at once.
"""

import argparse
import importlib.util
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import rich.console

from tfkd import config as configs
from tfkd.config import Config
from tfkd.errors import UserError
from tfkd.progress import Display, clock
from tfkd.run_dir import RunDir, cache_root, read_json, remove, size, whole, write_json, write_text
from tfkd.run_log import log_traceback, open_log, quiet_libraries

QUICKSTART = "configs/quickstart.yaml"


def train(config: Config, run: RunDir, display: Display, resume: bool) -> int:
    """Runs the whole pipeline into `run`. Returns the exit code of the export, 0 where nothing is exported."""
    import keras

    from tfkd import build, outputs, report, strategy
    from tfkd.callbacks import reseed
    from tfkd.data import tokenizer as tokenizers
    from tfkd.evaluate import parameters, predict
    from tfkd.fitting import fit
    from tfkd.plan import show_plan
    from tfkd.tasks.table import TASKS

    seconds = Stopwatch(run.seconds)
    devices = strategy.make_strategy(config.strategy.kind, config.strategy.logical_cpus)
    strategy.set_precision(config.strategy.precision)

    # data
    kind = TASKS[config.task]
    source = build.open_source(config.data, kind.target, display)
    task = kind(source.target)
    with devices.scope():
        keras.utils.set_random_seed(config.seed)
        checkpoint = build.open_checkpoint(config, kind)
    if checkpoint is not None:
        tokenizer = tokenizers.Tokenizer(checkpoint.pieces, lowercase=checkpoint.lowercase)
    else:
        texts = (example[key] for example in source.examples("train") for key in ("text", "text_pair") if key in example)
        pieces = tokenizers.learn_vocabulary(texts, config.data.vocabulary_size, config.data.lowercase)
        tokenizer = tokenizers.Tokenizer(pieces, lowercase=config.data.lowercase)
    # The models come before the tokens: what does not fit together is said before an hour of tokenizing.
    stages = config.trainings()
    with devices.scope():
        keras.utils.set_random_seed(config.seed)
        teacher = build.make_teacher(config, checkpoint, source.labels, tokenizer.vocabulary_size, task)
        student = build.make_student(config, teacher, tokenizer.vocabulary_size, task)
        objectives = [build.make_objectives(stage.distill, task, student, teacher) for stage in stages]
    data = build.prepare(source, tokenizer, config.data, config.seed, display)
    check_data(run, data.key, resume)
    outputs.write_inputs(run, config, tokenizer, data.stores[data.measured])
    seconds.lap("data")

    # teacher
    training = config.teacher.finetune or config.teacher.train
    teacher_name = None if checkpoint is None else checkpoint.name
    show_plan(display, config, run, data, strategy.describe(devices), teacher, student, training, teacher_name, objectives)
    if training is not None:
        key = build.teacher_key(config, teacher, training, data.key, data.buckets)
        kept = cache_root() / "teachers" / key / "model.keras"
        if kept.exists():
            teacher.load_weights(kept)
            display.say("Teacher: trained before on the same data with the same settings, used again")
        else:
            parts = data.train(training.batch_size), data.validation()
            fit("teacher", teacher, config, training, *parts, task, run, display, devices, resume)
            with whole(kept) as path:
                teacher.save(path)
        run.teacher.mkdir(parents=True, exist_ok=True)
        with whole(run.teacher / "model.keras") as path:
            shutil.copyfile(kept, path)
        write_json(run.teacher / "key.json", {"key": key})
    seconds.lap("teacher")
    models = {"teacher": teacher}

    # baseline: the student's start, batches and last stage, but the labels alone
    if config.baseline:
        with devices.scope():
            keras.utils.set_random_seed(config.seed)
            models["baseline"] = build.make_student(config, teacher, tokenizer.vocabulary_size, task)
        if resume and run.baseline.exists():
            models["baseline"].load_weights(run.baseline)
        else:
            training = stages[-1].train
            parts = data.train(training.batch_size), data.validation()
            fit("baseline", models["baseline"], config, training, *parts, task, run, display, devices, resume)
            with whole(run.baseline) as path:
                models["baseline"].save(path)
        seconds.lap("baseline")

    # student, stage after stage
    with devices.scope():
        keras.utils.set_random_seed(config.seed)
        models["student"] = student = build.make_student(config, teacher, tokenizer.vocabulary_size, task)
    epochs_before = 0
    for number, stage in enumerate(stages):
        after = run.student if stage is stages[-1] else run.checkpoints / f"student-{stage.name}.weights.h5"
        if resume and after.exists():
            student.load_weights(after)
        else:
            texts = build.open_stage(stage, data, kind.target, tokenizer, display)
            keras.utils.set_random_seed(config.seed + number)
            if number:
                reseed(student, config.seed + number)  # the same draws whether the stage before ran just now or was read
            part = texts.train(stage.train.batch_size)
            steps = {"steps": part.steps * stage.train.epochs, "steps_per_epoch": part.steps}
            with devices.scope():
                objectives = build.make_objectives(stage.distill, task, student, teacher, **steps)
                alpha = build.schedule(stage.distill.alpha, **steps)
            knowledge, part = build.make_knowledge(config, teacher, objectives, part, display)
            fit(
                "student",
                student,
                config,
                stage.train,
                part,
                texts.validation() if stage.keep == "best" and task.monitor else None,
                task,
                run,
                display,
                devices,
                resume,
                teacher=knowledge,
                objectives=objectives,
                alpha=alpha,
                stage=stage.name if len(stages) > 1 else None,
                keep=stage.keep if task.monitor else "last",
                epochs_before=epochs_before,
            )
            with whole(after) as path:
                student.save(path) if stage is stages[-1] else student.save_weights(path)
        epochs_before += stage.train.epochs
        seconds.lap("student" if len(stages) == 1 else f"student, {stage.name}")

    # proof
    logits = {}
    test = data.batches(data.measured, 64)
    for role, model in models.items():
        with display.bar(f"measure {role}", test.steps) as update:
            logits[role] = predict(model, test, update, task.kept)
    truth = source.target.truth(data.stores[data.measured])
    outputs.write_predictions(run, truth, logits)
    seconds.lap("evaluation")
    result = report.summarize(
        task=config.task,
        dataset={
            "name": source.name,
            "measured_on": data.measured,
            "rows": {split: store.examples for split, store in data.stores.items()},
            "provenance": source.provenance,
            "notes": source.notes,
        },
        labels=source.labels,
        truth=truth,
        outputs=logits,
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


if __name__ == "__main__":
    sys.exit(main())
