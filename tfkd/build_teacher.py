"""The teacher of a run, made of what `open_teacher` found: how it answers, what it depends on, how the student is told."""

import hashlib
import json
import pathlib

import keras
import numpy as np

from tfkd import strategy
from tfkd.config import Config, Training
from tfkd.data import teacher_cache, teacher_cache_writer
from tfkd.data.targets import TARGETS
from tfkd.ensemble import TeacherEnsemble
from tfkd.errors import UserError
from tfkd.models.with_head import TransformerWithHead
from tfkd.open_teacher import Member, blamed
from tfkd.run_dir import cache_root, write_json
from tfkd.teacher import CachedTeacher, LiveTeacher, build_teacher, foreign_teacher, reorder_classes

TRAINING_FORMAT = 1
"""Of how teachers are trained; a change of it makes those trained before unused."""


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
        with blamed(member):
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


def reseed(teacher, seed: int) -> None:
    """Which teacher a step asks, where one is drawn at random, follows from `seed` and the steps from here on alone."""
    if isinstance(teacher, TeacherEnsemble):
        teacher.reseed(seed)


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
    path = cache_root() / "outputs" / teacher_cache.cache_key(asked, batches.store, names, config.teacher.cache_top_k)
    cache = teacher_cache_writer.write_cache(
        path,
        teacher,
        names,
        batches.store,
        batches.buckets.tolist(),
        batches.batch_size,
        config.teacher.cache_top_k,
        display.bar,
        display.say,
        team=team,
        beside=teacher_cache.caches_beside(path),
    )
    display.say(f"Teacher's outputs: {', '.join(names)} of {len(cache):,} rows, read from {cache.bytes / 1e6:,.1f} MB on disk")
    known = CachedTeacher(cache.shapes(names), same_positions=teacher.same_positions)
    return known, data.train(training).with_teacher(cache.only(names))


def _content(member: Member) -> list:
    """All that decides what a teacher answers to the word pieces it is given."""
    model, given = member.teacher.model, member.given
    if isinstance(model, keras.Model):
        return [teacher_cache.model_digest(model), member.teacher.asked]
    told = given.model_dump(mode="json", include={"signature", "output", "inputs", "activation"})
    return [member.files, told, member.teacher.asked]
