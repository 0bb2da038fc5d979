"""The teacher of a run, made from its configuration: one or several, of any make, each with the word pieces it reads."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib

import keras
import numpy as np

from tfkd import config as configs
from tfkd import strategy
from tfkd.checkpoints import checkpoint as checkpoints
from tfkd.checkpoints.keras_file import open_keras_file
from tfkd.checkpoints.run import Surroundings, surroundings
from tfkd.checkpoints.saved_model import open_saved_model
from tfkd.config import Config, Training
from tfkd.data import teacher_cache, teacher_cache_writer
from tfkd.data.targets import TARGETS
from tfkd.data.tokenizer import Tokenizer, learn_vocabulary
from tfkd.ensemble import TeacherEnsemble
from tfkd.errors import UserError
from tfkd.models.with_head import TransformerWithHead
from tfkd.run_dir import RunDir, cache_root, read_json, sha256, write_json
from tfkd.teacher import CachedTeacher, LiveTeacher, build_teacher, foreign_teacher, reorder_classes

TRAINING_FORMAT = 1
"""Of how teachers are trained; a change of it makes those trained before unused."""


@dataclasses.dataclass
class Member:
    """One teacher of a run.

    Attributes:
        given: its section of the configuration.
        number: its place among the teachers, from 0; None where it is the only one.
        checkpoint: what was read, of a `teacher.checkpoint`.
        model: what was read, of a file, or trained in a run before.
        around: what lies beside that file.
        tokenizer: what it reads with; None until it is known that it reads what the student reads.
        prefix: of its inputs in a batch; empty where they are the student's.
        teacher: how it is asked, once it was made.
    """

    given: configs.TeacherModel
    number: int | None = None
    checkpoint: checkpoints.Checkpoint | None = None
    model: object = None
    around: Surroundings = Surroundings()
    tokenizer: Tokenizer | None = None
    prefix: str = ""
    teacher: LiveTeacher | None = None

    @property
    def name(self) -> str | None:
        """Of what it came from; None where it is trained from scratch."""
        if self.checkpoint is not None:
            return self.checkpoint.name
        path = self.given.keras_file or self.given.saved_model or self.given.checkpoint
        return None if path is None else pathlib.PurePath(path).name

    @property
    def training(self) -> Training | None:
        return self.given.training

    def seed(self, config: Config) -> int:
        """Of its start and its training: several that are alike in all else still differ."""
        return config.seed + (self.number or 0)

    def folder(self, run: RunDir) -> pathlib.Path:
        """What a run keeps of it, where it is trained there."""
        return run.teacher if self.number is None else run.teacher / str(self.number + 1)

    def place(self) -> str:
        return "teacher" if self.number is None else f"teacher.members.{self.number}"


@contextlib.contextmanager
def _of(member: Member):
    """Says of whom a mistake is, where there are several."""
    try:
        yield
    except UserError as error:
        raise error if member.number is None else UserError(f"{member.place()}: {error}") from None


# ---------------------------------------------------------------- opening


def open_members(config: Config, task, trained: RunDir | None = None) -> list[Member]:
    """Reads what the teachers are made of.

    Arguments:
        task: the class.
        trained: a finished run: those that were trained in it are read from there.

    Raises:
        UserError: something cannot be read, is too short for `data.max_length`, or lacks a head that it is to be used with.
    """
    members = []
    for number, given in enumerate(config.teacher.models):
        member = Member(given, None if config.teacher.members is None else number)
        members.append(member)
        keras.utils.set_random_seed(member.seed(config))
        with _of(member):
            if trained is not None and given.training is not None:
                _open_trained(member, trained)
            elif given.checkpoint is not None:
                member.checkpoint = open_checkpoint(given, config.data.max_length, task)
                member.tokenizer = Tokenizer(member.checkpoint.pieces, lowercase=member.checkpoint.lowercase)
            elif given.dimensions is None:
                _open_file(member)
    return members


def open_checkpoint(given: configs.TeacherModel, max_length: int, task) -> checkpoints.Checkpoint:
    """A teacher's checkpoint. Raises `UserError` as `open_members`."""
    found = checkpoints.open_checkpoint(configs.expand(given.checkpoint, "teacher.checkpoint"), given.revision)
    if max_length > found.max_length:
        raise UserError(f"data.max_length = {max_length} is above the {found.max_length} positions of {found.name}")
    keep = given.head == "keep" or (given.head == "auto" and given.finetune is None)
    if not task.learns_from_labels or not keep:
        return found
    if found.head is None:
        how = "use teacher.head: new" if given.finetune else "say with teacher.finetune how to train one"
        raise UserError(f"teacher.checkpoint = {found.name} has no head for task: {task.name}; {how}")
    if found.task != task.name:
        raise UserError(
            f"teacher.checkpoint = {found.name} brings a {found.task} head; task: {task.name} needs one of its own: say with "
            "teacher.finetune how to train it" + (", and leave out teacher.head: keep" if given.finetune else "")
        )
    return found


def _open_file(member: Member) -> None:
    given = member.given
    if given.keras_file is not None:
        path = configs.expand(given.keras_file, "teacher.keras_file")
        member.model = open_keras_file(path, given.trust)
    else:
        path = configs.expand(given.saved_model, "teacher.saved_model")
        member.model = open_saved_model(path, given.signature, given.output, given.inputs, given.activation, given.trust)
    member.around = around = surroundings(path)
    vocabulary, lowercase = around.vocabulary, around.lowercase
    if given.vocabulary is not None:
        vocabulary = pathlib.Path(configs.expand(given.vocabulary, "teacher.vocabulary")).resolve()
        beside = surroundings(vocabulary)
        lowercase = beside.lowercase if beside.vocabulary == vocabulary else True
    if vocabulary is None:
        raise UserError(f"{path}: no vocab.txt beside it: say with teacher.vocabulary whose word pieces its token ids are")
    member.tokenizer = Tokenizer.from_file(vocabulary, lowercase if given.lowercase is None else given.lowercase)
    known = member.model.encoder.config["vocabulary_size"] if isinstance(member.model, TransformerWithHead) else None
    if known not in (None, member.tokenizer.vocabulary_size):
        raise UserError(f"{vocabulary}: {member.tokenizer.vocabulary_size} pieces, but {path} knows {known}")


def _open_trained(member: Member, run: RunDir) -> None:
    folder = member.folder(run)
    run.require(folder / "model.keras")
    import tfkd.tasks.table  # noqa: F401 registers the heads that files name

    member.model = open_keras_file(folder / "model.keras")
    if (folder / "vocab.txt").exists():
        settings = read_json(folder / "tokenizer_config.json")
        member.tokenizer = Tokenizer.from_file(folder / "vocab.txt", lowercase=settings["lowercase"])


# ---------------------------------------------------------------- word pieces


def choose_tokenizer(config: Config, members: list[Member], source) -> Tokenizer:
    """What the student reads with: as the first teacher that brings word pieces, or learned from the training texts."""
    brought = [member.tokenizer for member in members if member.tokenizer is not None]
    if brought and config.student.vocabulary == "teacher":
        return brought[0]
    texts = (example[key] for example in source.examples("train") for key in ("text", "text_pair") if key in example)
    pieces = learn_vocabulary(texts, config.data.vocabulary_size, config.data.lowercase)
    return Tokenizer(pieces, lowercase=config.data.lowercase)


def share_tokenizer(members: list[Member], tokenizer: Tokenizer) -> dict[str, Tokenizer]:
    """Says of each teacher whether it reads what the student reads; returns the others' tokenizers by prefix."""
    others: dict[str, Tokenizer] = {}
    for member in members:
        if member.tokenizer is None or _same(member.tokenizer, tokenizer):
            member.tokenizer, member.prefix = tokenizer, ""
            continue
        known = next((prefix for prefix, other in others.items() if _same(other, member.tokenizer)), None)
        member.prefix = known or (f"teacher{len(others) + 1}." if others else teacher_cache.PREFIX)
        others.setdefault(member.prefix, member.tokenizer)
    return others


def _same(one: Tokenizer, other: Tokenizer) -> bool:
    return one.lowercase == other.lowercase and one.pieces == other.pieces


# ---------------------------------------------------------------- making


def make_teacher(config: Config, members: list[Member], labels: list[str], task, from_dimensions):
    """The teachers before any training here, and how they are asked as one.

    Arguments:
        from_dimensions: makes a model of given dimensions: `(dimensions, outputs, vocabulary_size)`.

    Returns:
        A `LiveTeacher`, or a `TeacherEnsemble` of several.

    Raises:
        UserError: a teacher does not fit the task or its labels, or several do not fit together.
    """
    for member in members:
        keras.utils.set_random_seed(member.seed(config))
        with _of(member):
            member.teacher = _live(member, config, labels, task, from_dimensions)
        if member.given.precision is not None:
            strategy.compute_in(member.teacher.model, member.given.precision)
    if config.teacher.members is None:
        return members[0].teacher
    teachers, weights = [member.teacher for member in members], [member.given.weight for member in members]
    try:
        ensemble = TeacherEnsemble(teachers, weights, config.teacher.combine, **task.mixture, seed=config.seed)
        ensemble.shapes(("logits",))
    except ValueError as error:
        raise UserError(f"teacher.members: {error}") from None
    return ensemble


def _live(member: Member, config: Config, labels, task, from_dimensions) -> LiveTeacher:
    given, size = member.given, member.tokenizer.vocabulary_size
    outputs = count_outputs(task, labels, size)
    if member.model is not None and given.training is None:
        return _foreign(member, config, labels if TARGETS[task.target].named else None, task, outputs)
    if member.model is not None:
        return LiveTeacher(member.model, member.prefix)
    if given.dimensions is not None:
        return LiveTeacher(from_dimensions(given.dimensions, outputs, size), member.prefix)
    found = member.checkpoint
    if found.head is not None and found.task == task.name and (given.head == "keep" or given.finetune is None):
        if TARGETS[task.target].named:
            return LiveTeacher(build_teacher(found.encoder, found.head, found.labels, labels, given.label_map), member.prefix)
        return LiveTeacher(TransformerWithHead(found.encoder, found.head, name="teacher"), member.prefix)
    head = task.head(outputs, dropout=found.encoder.config["dropout"])
    model = TransformerWithHead(found.encoder, head, name="teacher")
    if found.pooler is not None and getattr(head, "hidden_dense", None) is not None and not task.per_position:
        kernel, bias = found.pooler
        head.hidden_dense.kernel.assign(kernel)
        head.hidden_dense.bias.assign(bias)
    return LiveTeacher(model, member.prefix)


def _foreign(member: Member, config: Config, labels: list[str] | None, task, outputs: int | None) -> LiveTeacher:
    given, around = member.given, member.around
    teacher = foreign_teacher(
        member.model,
        labels,
        given.label_map,
        member.prefix,
        given.inner,
        task.per_position,
        config.data.max_length,
        given.activation if given.keras_file is not None else None,  # a SavedModel was told when it was opened
        around.labels if around.task == task.name else None,
        outputs,
    )
    if isinstance(member.model, TransformerWithHead) and teacher.order is not None:
        reorder_classes(member.model.head, teacher.order)  # in the model: a student may copy its head
        teacher.order = None
    return teacher


def count_outputs(task, labels: list[str], vocabulary_size: int) -> int | None:
    """How many numbers a model of the task answers with; None where the teacher decides."""
    return vocabulary_size if task.over_vocabulary else task.outputs(labels)


def measured(teacher: LiveTeacher | TeacherEnsemble) -> LiveTeacher | TeacherEnsemble:
    """The teacher as it is measured: of several, the average."""
    return teacher.averaged() if isinstance(teacher, TeacherEnsemble) else teacher


def origin(members: list[Member]) -> dict | None:
    """What the teachers came from, for the report; None where the only one was trained from scratch."""
    names = [member.name or "a teacher trained from scratch" for member in members]
    if len(members) == 1:
        return None if members[0].name is None else {"checkpoint": names[0], "revision": members[0].given.revision}
    return {"checkpoint": f"{', '.join(names[:-1])} and {names[-1]}", "revision": None}


# ---------------------------------------------------------------- training


def teacher_key(member: Member, training: Training, data_key: str, buckets: list[int], seed: int) -> str:
    """Digest of all that a trained teacher depends on: its weights before training, whatever they came from, first of all."""
    model = member.teacher.model
    start = hashlib.sha256(json.dumps(keras.saving.serialize_keras_object(model), sort_keys=True).encode())
    for weight in model.get_weights():
        start.update(np.ascontiguousarray(weight).data)
    parts = {
        "format": TRAINING_FORMAT,
        "start": start.hexdigest(),
        "training": training.model_dump(mode="json"),
        "data": data_key,
        "buckets": buckets,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def write_reader(member: Member, folder: pathlib.Path, max_length: int, pairs: bool) -> None:
    """Writes how a trained teacher reads text, where that is not how the student does."""
    if member.prefix:
        member.tokenizer.write(folder / "vocab.txt")
        write_json(
            folder / "tokenizer_config.json",
            {"lowercase": member.tokenizer.lowercase, "max_length": max_length, "pairs": pairs},
        )


# ---------------------------------------------------------------- asking


def make_knowledge(config: Config, teacher, members: list[Member], objectives: list, data, training, display, team=None):
    """How the student is told what the teacher knows: asked anew at every step, or once and read from disk afterwards.

    Arguments:
        data: a `tfkd.build.Data`.
        team: a `tfkd.multi_worker.Team`, which shares the asking once for all.

    Returns:
        The teacher that a `Distiller` takes, and the batches of train that go with it.
    """
    batches = data.train(training, taught=True)
    if not config.teacher.cache:
        return teacher, batches
    names = tuple(dict.fromkeys(name for objective in objectives for name in objective.teacher_names))
    asked = {"members": [_content(member) for member in members], "mixture": getattr(teacher, "mixing", None)}
    key = teacher_cache.cache_key(asked, batches.store, names, config.teacher.cache_top_k)
    with display.bar("teacher's outputs", len(batches.store)) as update:
        cache = teacher_cache_writer.write_cache(
            cache_root() / "outputs" / key,
            teacher,
            names,
            batches.store,
            batches.buckets.tolist(),
            batches.batch_size,
            config.teacher.cache_top_k,
            lambda done, rows: update(done, f"{rows:,} rows", rows),
            team=team,
        )
    display.say(f"Teacher's outputs: {', '.join(cache.names)} of {len(cache):,} rows, {cache.bytes / 1e6:,.1f} MB on disk")
    known = CachedTeacher(cache.shapes(names), same_positions=teacher.same_positions)
    return known, data.train(training).with_teacher(cache)


def _content(member: Member) -> list:
    """All that decides what a teacher answers to the word pieces it is given."""
    model, given = member.teacher.model, member.given
    if isinstance(model, keras.Model):
        return [teacher_cache.model_digest(model), member.teacher.asked]
    told = given.model_dump(mode="json", include={"signature", "output", "inputs", "activation"})
    return [sha256(configs.expand(given.saved_model, "teacher.saved_model")), told, member.teacher.asked]
