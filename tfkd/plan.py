"""What a run is going to do, shown before it does it."""

import rich.box
import rich.table
from rich.text import Text

from tfkd.config import OBJECTIVE_OPTIONS, Augment, Changing, Config, Objective, Stage, Training
from tfkd.data.teacher_cache import cache_bytes
from tfkd.evaluate import parameters
from tfkd.models.with_head import TransformerWithHead
from tfkd.run_dir import RunDir
from tfkd.schedules import bounds
from tfkd.student import choose_layers


def show_plan(display, config: Config, run: RunDir, data, devices: str, members: list, teacher, student, objectives) -> None:
    """Prints what will be done, before it is done.

    Arguments:
        data: a `tfkd.build.Data`.
        devices: in words.
        members: the teachers, `tfkd.open_teacher.Member`s; `teacher` is what they are together.
        objectives: what is learned from the teacher, a list for each of the student's trainings.
    """
    copied = ""
    if config.student.layers is not None:
        layers = choose_layers(members[0].teacher.model, config.student.layers)
        copied = f"{'first ' if len(members) > 1 else ''}teacher's layers {', '.join(map(str, layers))}, "
    stages = config.trainings()
    splits = ", ".join(f"{split} {len(store):,}" for split, store in data.stores.items())
    train = data.train(stages[-1].train)
    large = parameters(teacher)
    smaller = "" if large is None else f", {large / parameters(student):.1f} times smaller"
    rows = [
        ("data", f"{data.source.name}: {splits}"),
        data.source.target.describe(data.stores["train"]),
        ("lengths", f"{train.describe()}, {train.padding():.0%} of them padding"),
        *_teachers(config, members, data),
        *_cached(config, teacher, objectives, data),
        ("student", f"{copied}{_shape(student)}{smaller}"),
        ("baseline", "the labels alone, from the same start" if config.baseline else "none"),
        *(row for stage, learned in zip(stages, objectives, strict=True) for row in _stage(stage, learned, data, len(stages))),
        ("8 bits", "" if config.compression.qat is None else f"{_trained(config.compression.qat, data)}, student-qat.keras"),
        ("devices", f"{devices}, {config.strategy.precision}"),
        ("run", str(run)),
    ]
    plan = rich.table.Table(title=Text(f"Plan: {config.name}"), box=rich.box.SIMPLE_HEAD, show_header=False, title_justify="left")
    plan.add_column(style="bold")
    plan.add_column(overflow="fold")
    for name, value in rows:
        if value:
            plan.add_row(name, Text(value))  # labels and paths may hold [brackets]: no markup
    display.say(plan)


def _teachers(config: Config, members: list, data) -> list[tuple[str, str]]:
    """Lines on the teachers: what each came from, how large it is, how it reads and how it is trained here."""
    lines = []
    if len(members) > 1:
        how = "the weighted average of" if config.teacher.combine == "average" else "at each step one, drawn by weight, of"
        lines.append(("teacher", f"{how} {len(members)}"))
    for member in members:
        how = "fine-tuned first" if member.training else "as it is"
        came = "from scratch" if member.name is None else f"{member.name}, {how}"
        title, weight = ("teacher", "") if member.number is None else ("", f"{member.given.weight:g} x ")
        lines.append((title, f"{weight}{came}, {_size(member.teacher)}"))
        read = data.read_with(member.prefix)
        if member.prefix:
            lines.append(("", f"reads with {member.tokenizer.vocabulary_size:,} word pieces of its own"))
        if member.training is not None:
            lines.append(("", _trained(member.training, read)))
    return lines


def _cached(config: Config, teacher, objectives: list, data) -> list[tuple[str, str]]:
    """Lines on answers that are kept on disk: how large they will be, where that is known, and what top k leaves out."""
    if not config.teacher.cache:
        return []
    kept: list[set[str]] = []
    stages, k = config.trainings(), config.teacher.cache_top_k
    for stage, learned in zip(stages, objectives, strict=True):
        names = {"logits", *(name for objective in learned for name in objective.teacher_names)}
        if stage.data is None and not any(names <= others for others in kept):  # else an earlier stage's serve it
            kept.append(names)
    shapes = [teacher.shapes(tuple(sorted(names))) for names in kept]
    size = ""
    if kept and not any(None in each.values() for each in shapes):
        lengths = data.batches("train", 1, taught=True).store.lengths
        size = f": {sum(cache_bytes(each, lengths, k) for each in shapes) / 1e6:,.1f} MB"
        size += "" if all(stage.data is None for stage in stages) else ", and more for stages with data of their own"
    lines = [("", f"asked once about every training row, then read from disk{size}")]
    hottest = max(bounds(getattr(objective, "temperature", 1.0))[1] for learned in objectives for objective in learned)
    if k is not None and hottest > 1.0:
        note = f"of its logits the {k} largest, the others as if all alike; at temperature {hottest:g} those weigh more than at 1"
        lines.append(("", f"{note}, and somewhat too much"))
    return lines


def _size(teacher) -> str:
    """Of any teacher: our own say how they are made, of others we know what can be asked for."""
    if isinstance(teacher.model, TransformerWithHead):
        return _shape(teacher.model)
    weights = parameters(teacher)
    layers = "1 layer" if teacher.layers == 1 else f"{teacher.layers} layers"
    known = f"{layers} known by name" if teacher.layers else "asked for its answers alone"
    return known + ("" if weights is None else f", {weights / 1e6:.2f} M parameters")


def _trained(training: Training, data) -> str:
    rows = len(data.stores["train"])
    steps = -(-rows // training.batch_size) * training.epochs
    augment = training.augment
    changed = "" if augment is None else f"; {_altered(augment)}"
    return f"{_epochs(training)} of {rows:,} examples, batch {training.batch_size}: {steps:,} steps{changed}"


def _epochs(training: Training) -> str:
    return "1 epoch" if training.epochs == 1 else f"{training.epochs} epochs"


def _altered(augment: Augment) -> str:
    pieces = f"{augment.mask:.0%} of the pieces hidden, {augment.replace:.0%} replaced"
    texts = f"{augment.concatenate:.0%} of the texts with another one behind"
    return ", ".join([texts] * (augment.concatenate > 0) + [pieces] * (augment.mask + augment.replace > 0))


def _shape(model) -> str:
    size, millions = model.encoder.config, parameters(model) / 1e6
    layers = "1 layer" if size["layers"] == 1 else f"{size['layers']} layers"
    return f"{layers} of width {size['width']}, {size['heads']} heads, {millions:.2f} M parameters"


def _stage(stage: Stage, objectives: list, data, stages: int) -> list[tuple[str, str]]:
    """Lines on one training of the student: on what, how long, and what it learns from."""
    training = stage.train
    if stage.data is None:
        trained = _trained(training, data)
    else:  # its rows are counted when its turn comes
        where = stage.data.builtin or stage.data.tfds or stage.data.files.train
        trained = f"{_epochs(training)} of {where}, batch {training.batch_size}"
    alpha = stage.distill.alpha
    labels = [] if alpha == 0.0 else [f"{_value(alpha, training.epochs)} x labels"]
    rest = "1 - alpha" if isinstance(alpha, Changing) else f"{1 - alpha:g}"
    given = stage.distill.objectives or [None] * len(objectives)
    terms = [_objective(objective, asked, stage) for objective, asked in zip(objectives, given, strict=True)]
    taught = [] if alpha == 1.0 else [f"{rest} x ({' + '.join(terms)})"]
    return [("trained" if stages == 1 else stage.name, trained), ("loss", " + ".join(labels + taught))]


def _objective(objective, given: Objective | None, stage: Stage) -> str:
    """A term of the loss; `given` is how the configuration asks for it, None for the task's own."""
    weight = "1" if given is None else _value(given.weight, stage.train.epochs)
    text = ("" if weight == "1" else f"{weight} x ") + objective.name.replace("_", " ")
    if "temperature" in OBJECTIVE_OPTIONS[type(objective).default_name]:
        own = None if given is None else given.temperature
        text += f" at temperature {_value(stage.distill.temperature if own is None else own, stage.train.epochs)}"
    if layers := getattr(objective, "layers", None):
        text += f" of layers {', '.join(f'{student} < {teacher}' for student, teacher in layers)}"
    return text


def _value(value: float | Changing, epochs: int) -> str:
    """A number, or from what to what it goes, how, and how often it changes."""
    if not isinstance(value, Changing):
        return f"{value:g}"
    alone = f": {value.start:g} in the only one" if value.by == "epoch" and epochs == 1 else ""
    return f"({value.start:g} to {value.end:g}, {value.shape} by {value.by}{alone})"
