"""The main program: data and a teacher in, a small student, its proof and its files out.

    python -m tfkd.train [CONFIG] [--set key=value ...] [--output DIR] [--resume] [--quiet | --json]

`train` below is the run, top to bottom. TensorFlow is imported only once the arguments and the configuration are known
to be right: importing it takes seconds, a mistake should be answered at once.
"""

import argparse
import contextlib
import os
import pathlib
import shlex
import shutil
import sys
import time

import rich.console

from tfkd import cluster as clusters
from tfkd import config as configs
from tfkd import cpu, failures, lock, stopping
from tfkd.choose_run import check_data, check_same, choose_place, choose_run, occupied
from tfkd.cluster import Cluster
from tfkd.config import Config
from tfkd.errors import UserError, first_line
from tfkd.progress import Display, clock
from tfkd.run_dir import RunDir, cache_root, read_json, remove, size, whole, write_json, write_text
from tfkd.run_log import log_traceback, open_log, quiet_libraries
from tfkd.start_export import export

QUICKSTART = "configs/quickstart.yaml"


def train(config: Config, run: RunDir, display: Display, resume: bool, cluster: Cluster | None = None) -> int:
    """Runs the whole pipeline into `run`. Returns the exit code of the export, 0 where nothing is exported.

    Where several machines train together, what is decided by files is decided by the chief, and what the others write into a
    `run` of theirs is thrown away.
    """
    import keras

    from tfkd import build, build_teacher, compression, open_teacher, outputs, report, strategy
    from tfkd.evaluate import parameters, predict
    from tfkd.fitting import fit
    from tfkd.multi_worker import Team
    from tfkd.plan import show_plan
    from tfkd.projections import carry_projections, write_projections
    from tfkd.tasks.table import TASKS
    from tfkd.training_state import reseed

    seconds = Stopwatch(run.seconds)
    if cluster is not None:
        display.say(f"This is {cluster}; waiting for the others at {', '.join(cluster.others)}")
    devices = strategy.make_strategy(config.strategy.kind if cluster is None else "multi_worker", config.strategy.logical_cpus)
    team = Team(devices)
    strategy.set_precision(config.strategy.precision)
    if config.strategy.deterministic:
        strategy.set_deterministic()

    # data
    kind = TASKS[config.task]
    source = build.open_source(config.data, kind.target, display)
    task = kind(source.target)
    with devices.scope():
        keras.utils.set_random_seed(config.seed)
        members = open_teacher.open_members(config, kind)
    tokenizer = open_teacher.choose_tokenizer(config, members, source)
    others = open_teacher.share_tokenizer(members, tokenizer)
    # The models come before the tokens: what does not fit together is said before an hour of tokenizing.
    stages = config.trainings()
    with devices.scope():
        keras.utils.set_random_seed(config.seed)
        teacher = build.make_teacher(config, members, source.labels, task)
        student = build.make_student(config, teacher, source.labels, tokenizer.vocabulary_size, task)
        objectives = [build.make_objectives(stage.distill, task, student, teacher) for stage in stages]
    data = build.prepare(source, tokenizer, config.data, config.seed, display, others)
    check_data(run, data.key, resume)
    if team.told([configs.dump(config), data.key]) != [configs.dump(config), data.key]:
        raise UserError(f"{cluster}: it has another configuration or other data than worker 0; give all the same")
    outputs.write_inputs(run, config, tokenizer, data.stores[data.measured], data.stores["train"])
    seconds.lap("data")

    # teacher, or several
    trainings = [*(member.training for member in members if member.training), *(stage.train for stage in stages)]
    batch_sizes = [training.batch_size for training in trainings]
    show_plan(display, config, run, data, strategy.describe(devices, batch_sizes), members, teacher, student, objectives)
    epochs_before = 0
    for member in members:
        training, model = member.training, member.teacher.model
        if training is None:
            continue
        read, folder, seed = data.read_with(member.prefix), member.folder(run), member.seed(config)
        key = build_teacher.teacher_key(member, training, read.key, read.buckets, seed)
        kept = cache_root() / "teachers" / key / "model.keras"
        stage = None if member.number is None else str(member.number + 1)
        if team.told(kept.exists()):
            team.read(model, kept)
            who = "Teacher" if stage is None else f"Teacher, {stage}"
            display.say(f"{who}: trained before on the same data with the same settings, used again")
        else:
            parts = read.train(training), read.validation()
            counted = {"stage": stage, "epochs_before": epochs_before}
            fit("teacher", model, config, training, *parts, task, run, display, devices, resume, **counted)
            if team.chief:
                with whole(kept) as path:
                    model.save(path)
        epochs_before += training.epochs
        if not team.chief:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        build_teacher.write_reader(member, folder, config.data.max_length, source.target.pairs)
        with whole(folder / "model.keras") as path:
            shutil.copyfile(kept, path)
        write_json(folder / "key.json", {"key": key})
    seconds.lap("teacher")
    models = {"teacher": build_teacher.measured(teacher)}

    opened = {}

    def texts_of(stage):  # read once, though baseline, student and 8 bits may ask
        if stage.name not in opened:
            opened[stage.name] = texts = build.open_stage(stage, data, kind.target, tokenizer, display, others)
            if texts is not data:
                check_data(run, texts.key, resume, stage.name)
        return opened[stage.name]

    # baseline: the student's start, batches and last stage, but the labels alone
    if config.baseline:
        with devices.scope():
            keras.utils.set_random_seed(config.seed)
            models["baseline"] = build.make_student(config, teacher, source.labels, tokenizer.vocabulary_size, task)
        if team.told(resume and run.baseline.exists()):
            team.read(models["baseline"], run.baseline)
        else:
            texts, training = texts_of(stages[-1]), stages[-1].train
            parts = texts.train(training), texts.validation()
            fit("baseline", models["baseline"], config, training, *parts, task, run, display, devices, resume)
            with whole(run.baseline) as path:
                models["baseline"].save(path)
        seconds.lap("baseline")

    # student, stage after stage
    with devices.scope():
        keras.utils.set_random_seed(config.seed)
        models["student"] = student = build.make_student(config, teacher, source.labels, tokenizer.vocabulary_size, task)
    files = [run.checkpoints / f"student-{stage.name}.weights.h5" for stage in stages[:-1]] + [run.student]
    projections = [run.checkpoints / f"projections-{stage.name}.safetensors" for stage in stages[:-1]]
    # Where a stage's file is, all stages before it are done, though what they left may be gone.
    done = team.told(max((number for number, file in enumerate(files, start=1) if resume and file.exists()), default=0))
    if done:
        team.read(student, files[done - 1])
    epochs_before = sum(stage.train.epochs for stage in stages[:done])
    for number, stage in enumerate(stages[done:], start=done):
        texts = texts_of(stage)
        keras.utils.set_random_seed(config.seed + number)
        build_teacher.reseed(teacher, config.seed + number)  # the same draws whether the stage before ran just now or was read
        if number:
            reseed(student, config.seed + number)
        part = texts.train(stage.train)
        steps = {"steps": part.steps * stage.train.epochs, "steps_per_epoch": part.steps}
        with devices.scope():
            objectives = build.make_objectives(stage.distill, task, student, teacher, **steps)
            alpha = build.schedule(stage.distill.alpha, **steps)
            carry_projections(projections[:number], objectives, team)
        asked = config, teacher, members, objectives, texts, stage.train, display, team
        knowledge, part = build_teacher.make_knowledge(*asked)
        watched = stage is stages[-1] or stage.train.keep == "best"
        parts = part, texts.validation() if watched else None
        learned = {"teacher": knowledge, "objectives": objectives, "alpha": alpha, "labelled": texts.source.target.kind != "none"}
        counted = {"stage": stage.name if len(stages) > 1 else None, "epochs_before": epochs_before}
        fit("student", student, config, stage.train, *parts, task, run, display, devices, resume, **learned, **counted)
        if number < len(projections):
            write_projections(projections[number], objectives)
        with whole(files[number]) as path:
            student.save(path) if stage is stages[-1] else student.save_weights(path)
        epochs_before += stage.train.epochs
        seconds.lap("student" if len(stages) == 1 else f"student, {stage.name}")

    # the student once more, with 8 bits for every number
    if config.compression.qat is not None:
        if not team.told(resume and run.quantized.exists()):
            texts = texts_of(stages[-1])
            asked = config, run, student, teacher, members, texts, task, display, devices, resume, team, epochs_before
            compression.train_quantized(*asked)
        seconds.lap("student, int8")

    # proof
    logits = {}
    for role, model in models.items():
        test = data.batches(data.measured, 64, taught=role == "teacher")
        with display.bar(f"measure {role}", test.steps) as update:
            logits[role] = predict(model, test, update, task.kept, team)
    if not team.chief:
        return 0  # it has nothing more to give
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
    result["teacher"] = build_teacher.origin(members)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tfkd.train", description="Distil a small Transformer from a large one, measure it, and export it."
    )
    parser.add_argument("config", nargs="?", default=QUICKSTART, help="YAML file (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a field, as in --set train.epochs=2"
    )
    parser.add_argument("--output", metavar="DIR", help="the run's folder (default: runs/NAME, numbered where it is taken)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder after its last checkpoint")
    parser.add_argument("--cluster", metavar="HOST:PORT,...", help="machines that train together; the first one writes the run")
    parser.add_argument("--worker", type=int, metavar="N", help="which of them this is, from 0")
    said = parser.add_mutually_exclusive_group()
    said.add_argument("--quiet", action="store_true", help="say nothing but what went wrong; the run's log has it all")
    said.add_argument("--json", action="store_true", help="say it in JSON, an object a line")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The program.

    Exit codes: 0 done, 1 something failed inside or an export did not pass, 2 a user's mistake, 130 Ctrl-C, 143 SIGTERM.
    """
    options = _parser().parse_args(arguments)
    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=120)  # a log file has no width of its own
    errors = rich.console.Console(stderr=True, soft_wrap=True)
    mode = "quiet" if options.quiet else "json" if options.json else "person"
    run = new = config = cluster = None
    with contextlib.ExitStack() as held:
        try:
            config = configs.load(options.config, options.set)
            cluster = clusters.find_cluster(config.strategy.kind, options.cluster, options.worker)
            resume = options.resume
            if cluster is None:
                run = choose_run(config, options.output, resume)
            else:
                run, resume = choose_place(config, options.output, resume, cluster, held)
            new = not resume
            held.enter_context(occupied(run))
            if resume:
                check_same(config, run)
            write_text(run.config, configs.dump(config))
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            cpu.use_onednn()
            log = open_log(run)
            quiet_libraries(run)
            if cluster is not None and not cluster.chief:
                console.print(f"This is {cluster}; worker 0 shows the run and writes it", highlight=False)
                mode = "quiet"
            display = Display(console, log.info, mode)
            stopping.install(display.say)
            held.callback(stopping.restore)
            return train(config, run, display, resume, cluster)
        except UserError as error:
            say_error(errors, str(error))
            if new and run is not None and not run.metrics.exists() and lock.held():
                remove(run.path)  # nothing was trained: a run that never began leaves nothing behind
            return 2
        except (KeyboardInterrupt, stopping.Stopped) as stop:
            if run is not None and run.config.exists():
                how = " after a checkpoint" if getattr(stop, "saved", False) else ""
                again = resuming(options, run) if cluster is None else "the same commands, each with --resume"
                errors.print(f"\ntfkd: stopped{how}. Go on with: {again}", highlight=False, markup=False)
            return getattr(stop, "code", 130)
        except Exception as error:  # the last resort: one line for the person, everything for the log
            if cluster is not None and clusters.lost_a_worker(error) and clusters.may_rejoin():
                log_traceback(run)
                continue_with = sys.argv[1:] if arguments is None else arguments
                errors.print(f"tfkd: {cluster}: lost another worker; going on from the last checkpoint when all are there again")
                held.close()  # the run's lock, the temporary folder
                clusters.rejoin(continue_with, sys.stderr)
            known = None if config is None else failures.explain(error, config, begun=run is not None and run.config.exists())
            say_error(errors, (known or f"{type(error).__name__}: {first_line(error, 300)}") + log_traceback(run))
            return 1


def say_error(console: rich.console.Console, message: str) -> None:
    console.print(f"tfkd: {message}", style="bold red", highlight=False, markup=False)


def resuming(options: argparse.Namespace, run: RunDir) -> str:
    """The command that goes on with a run."""
    again = ["python", "-m", "tfkd.train", options.config, *(f"--set={item}" for item in options.set)]
    return f"{shlex.join([*again, '--output', str(run)])} --resume"


if __name__ == "__main__":
    sys.exit(main())
