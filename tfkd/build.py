"""The parts of a run, made from its configuration: source, checkpoint, teacher, student."""

import hashlib
import json

import keras
import numpy as np

from tfkd import config as configs
from tfkd import student
from tfkd.checkpoints import checkpoint as checkpoints
from tfkd.config import Config, Dimensions, Training
from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.run_dir import cache_root
from tfkd.teacher import build_teacher

TRAINING_FORMAT = 1
"""Of how teachers are trained; a change of it makes those trained before unused."""


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


def open_checkpoint(config: Config) -> checkpoints.Checkpoint | None:
    """The teacher's checkpoint, or None for a teacher trained from scratch.

    Raises:
        UserError: it cannot be read, is too short for `data.max_length`, or lacks a head that it is to be used with.
    """
    if config.teacher.checkpoint is None:
        return None
    found = checkpoints.open_checkpoint(configs.expand(config.teacher.checkpoint, "teacher.checkpoint"), config.teacher.revision)
    if config.data.max_length > found.max_length:
        raise UserError(f"data.max_length = {config.data.max_length} is above the {found.max_length} positions of {found.name}")
    keep = config.teacher.head == "keep" or (config.teacher.head == "auto" and config.teacher.finetune is None)
    if keep and found.head is None:
        how = "use teacher.head: new" if config.teacher.finetune else "say with teacher.finetune how to train one"
        raise UserError(f"teacher.checkpoint = {found.name} has no classification head; {how}")
    return found


def make_teacher(config: Config, checkpoint, labels: list[str], vocabulary_size: int, task):
    """The teacher before any training here: from dimensions, or a checkpoint with its own head or a new one."""
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
    if config.student.layers is not None:
        return student.from_layers(teacher, config.student.layers)
    return from_dimensions(config.student.dimensions, config, teacher.head.classes, vocabulary_size, task, "student")


def from_dimensions(dimensions: Dimensions, config: Config, classes: int, vocabulary_size: int, task, name: str):
    """A model of the given size with random weights."""
    given = dimensions.model_dump(exclude={"pooling"})
    segments = 2 if config.data.columns.text_pair is not None else 0
    encoder = TransformerEncoder(
        vocabulary_size, **given, max_positions=config.data.max_length, segments=segments, name="encoder"
    )
    return TransformerWithHead(encoder, task.head(classes, dimensions.pooling, dimensions.dropout), name=name)


def teacher_key(config: Config, teacher, training: Training, data_key: str, buckets: list[int]) -> str:
    """Digest of all that a trained teacher depends on: its weights before training, whatever they came from, first of all."""
    start = hashlib.sha256(json.dumps(keras.saving.serialize_keras_object(teacher), sort_keys=True).encode())
    for weight in teacher.get_weights():
        start.update(np.ascontiguousarray(weight).data)
    parts = {
        "format": TRAINING_FORMAT,
        "start": start.hexdigest(),
        "training": training.model_dump(mode="json"),
        "data": data_key,
        "buckets": buckets,
        "seed": config.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
