"""The parts of a run, made from its configuration: data, checkpoint, teacher, student, objectives."""

import dataclasses
import hashlib
import json

import keras
import numpy as np

from tfkd import config as configs
from tfkd import student
from tfkd.checkpoints import checkpoint as checkpoints
from tfkd.config import Config, Dimensions, Training
from tfkd.data import pipeline, sources, store, teacher_cache, teacher_cache_writer
from tfkd.data import prepare as preparation
from tfkd.data.targets import TARGETS
from tfkd.distiller import FROM_BATCH
from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.inner import inner_shapes
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import OBJECTIVES
from tfkd.objectives.layer_map import layer_pairs
from tfkd.run_dir import cache_root
from tfkd.schedules import Schedule
from tfkd.teacher import CachedTeacher, LiveTeacher, build_teacher

TRAINING_FORMAT = 1
"""Of how teachers are trained; a change of it makes those trained before unused."""


@dataclasses.dataclass
class Data:
    """One data set, tokenized: what batches are cut from."""

    source: sources.Source
    stores: dict[str, store.Store]
    buckets: list[int]
    key: str
    seed: int

    @property
    def measured(self) -> str:
        """The split that results are measured on."""
        return "test" if "test" in self.stores else "validation"

    def batches(self, split: str, batch_size: int, shuffle: bool = False) -> pipeline.Batches:
        return pipeline.Batches(self.stores[split], batch_size, self.buckets, shuffle=shuffle, seed=self.seed)

    def train(self, batch_size: int) -> pipeline.Batches:
        return self.batches("train", batch_size, shuffle=True)

    def validation(self) -> pipeline.Batches:
        return self.batches("validation", 64)


def make_target(data: configs.Data, kind: str, labels: list[str] | None = None, named: dict[str, str] | None = None):
    """What is read of every row: a target of `tfkd.data.targets`, with the columns that the configuration names.

    Arguments:
        labels: names of the outputs where they are known already.
        named: key -> column, in place of the configuration's.
    """
    target, defaults = TARGETS[kind], configs.Columns().model_dump()
    if kind != "none" and "label" in target.defaults and data.columns.label is None:
        raise UserError("data.columns.label = null: this task learns from labels; name their column")
    columns = data.columns.model_dump() | (named or {})
    # What has its default value was not asked for: a task without such a column need not complain.
    columns = {key: column for key, column in columns.items() if key in target.defaults or column != defaults.get(key)}
    options = {} if data.label_separator is None else {"separator": data.label_separator}
    if options and kind != "classes":
        raise UserError(f"data.label_separator = {data.label_separator}: goes with task: multilabel")
    if data.stride is not None:
        if kind != "span":
            raise UserError(f"data.stride = {data.stride}: goes with task: question_answering")
        options["stride"] = data.stride
    labels = labels if labels and target.named else data.labels
    return target(labels=labels, **options, **{key: column for key, column in columns.items() if column is not None})


def open_source(data: configs.Data, kind: str, display, labels: list[str] | None = None) -> sources.Source:
    """The examples that a `data` section names, with what a person must be told of them.

    Arguments:
        labels: names of the outputs where they are known already.
    """
    files = None
    if data.files is not None:
        given = {split: path for split, path in data.files.model_dump().items() if path is not None}
        files = {split: configs.expand(path, f"data.files.{split}") for split, path in given.items()}
    splits = {split: expression for split, expression in data.splits.model_dump().items() if expression is not None}
    with display.bar("data", None) as update:
        source = sources.open_source(
            builtin=data.builtin,
            tfds=data.tfds,
            data_dir=None if data.data_dir is None else configs.expand(data.data_dir, "data.data_dir"),
            download=data.download,
            files=files,
            splits=splits or None,
            target=make_target(data, kind, labels),
            validation_fraction=data.validation_fraction,
            limit=data.limit,
            cache_dir=cache_root(),
            progress=lambda done, total: update(done, "files read", total),
        )
    for note in source.notes:
        display.say(f"Note: {note}")
    return source


def prepare(source: sources.Source, tokenizer, data: configs.Data, seed: int, display) -> Data:
    """Tokenizes a source's splits into the cache, or finds them there."""
    with display.bar("tokenize", None) as update:
        stores = preparation.prepare(source, tokenizer, data.max_length, cache_root(), update)
    lengths = np.concatenate([rows.lengths for rows in stores.values()])
    buckets = data.buckets or pipeline.choose_buckets(lengths, data.max_length)
    return Data(source, stores, buckets, preparation.prepared_key(source, tokenizer, data.max_length), seed)


def open_stage(stage: configs.Stage, data: Data, kind: str, tokenizer, display) -> Data:
    """What a stage is trained on: the run's data, or its own; those are plain texts where it names no label.

    Raises:
        UserError: they have other labels than the run's, which the outputs of the models stand for.
    """
    if stage.data is None:
        return data
    kind = "none" if stage.data.columns.label is None else kind
    own = stage.data.labels is not None or stage.data.builtin is not None
    labels = data.source.labels
    source = open_source(stage.data, kind, display, None if own else labels)
    if TARGETS[kind].named and source.labels != labels:
        theirs, ours = ", ".join(source.labels), ", ".join(labels)
        raise UserError(f"stage {stage.name}: its data have the labels [{theirs}], the run has [{ours}]")
    return prepare(source, tokenizer, stage.data, data.seed, display)


def open_checkpoint(config: Config, task) -> checkpoints.Checkpoint | None:
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
    if not task.learns_from_labels:
        return found
    if keep and found.head is not None and not task.checkpoint_head:
        raise UserError(
            f"teacher.checkpoint = {found.name} brings a classification head; task: {task.name} needs one of its own: say with "
            "teacher.finetune how to train it" + (", and leave out teacher.head: keep" if config.teacher.finetune else "")
        )
    if keep and found.head is None:
        how = "use teacher.head: new" if config.teacher.finetune else "say with teacher.finetune how to train one"
        raise UserError(f"teacher.checkpoint = {found.name} has no head for task: {task.name}; {how}")
    return found


def make_teacher(config: Config, checkpoint, labels: list[str], vocabulary_size: int, task):
    """The teacher before any training here: from dimensions, or a checkpoint with its own head or a new one."""
    if checkpoint is None:
        return from_dimensions(
            config.teacher.dimensions, config, _outputs(task, labels, vocabulary_size), vocabulary_size, task, "teacher"
        )
    if (
        task.checkpoint_head
        and checkpoint.head is not None
        and (config.teacher.head == "keep" or config.teacher.finetune is None)
    ):
        return build_teacher(checkpoint.encoder, checkpoint.head, checkpoint.labels, labels, config.teacher.label_map)
    head = task.head(_outputs(task, labels, vocabulary_size), dropout=checkpoint.encoder.config["dropout"])
    model = TransformerWithHead(checkpoint.encoder, head, name="teacher")
    if checkpoint.pooler is not None and getattr(head, "hidden_dense", None) is not None:
        kernel, bias = checkpoint.pooler
        head.hidden_dense.kernel.assign(kernel)
        head.hidden_dense.bias.assign(bias)
    return model


def _outputs(task, labels: list[str], vocabulary_size: int) -> int:
    return vocabulary_size if task.over_vocabulary else task.outputs(labels)


def make_student(config: Config, teacher, vocabulary_size: int, task):
    """The student before training: some layers of the teacher, or new dimensions."""
    if config.student.layers is not None:
        return student.from_layers(teacher, config.student.layers)
    return from_dimensions(config.student.dimensions, config, teacher.head.classes, vocabulary_size, task, "student")


def from_dimensions(dimensions: Dimensions, config: Config, classes: int, vocabulary_size: int, task, name: str):
    """A model of the given size with random weights."""
    given = dimensions.model_dump(exclude={"pooling"})
    segments = 2 if make_target(config.data, task.target).pairs else 0
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


def schedule(value: float | configs.Changing, steps: int, steps_per_epoch: int) -> float | Schedule:
    """A number of the configuration as the distiller takes it."""
    if not isinstance(value, configs.Changing):
        return value
    return Schedule(value.start, value.end, steps, value.shape, steps_per_epoch if value.by == "epoch" else 1)


def make_objectives(distill: configs.Distill, task, student, teacher, steps: int = 1, steps_per_epoch: int = 1) -> list:
    """What the student learns from the teacher, projections included.

    Arguments:
        steps, steps_per_epoch: of the training, for what changes while it goes on.

    Raises:
        UserError: an objective does not fit the two models.
    """
    default = [configs.Objective(name=task.response)]
    knowledge, made = LiveTeacher(teacher), []
    for choice in distill.objectives or default:
        kind, knows = OBJECTIVES[choice.name], configs.OBJECTIVE_OPTIONS[choice.name]
        told = {name for name in task.response_arguments if name in knows or choice.name == task.response}
        options = {name: task.response_arguments[name] for name in told}
        options |= {name: getattr(choice, name) for name in knows if getattr(choice, name) is not None}
        if "temperature" in knows:
            options["temperature"] = schedule(options.get("temperature", distill.temperature), steps, steps_per_epoch)
        try:
            pooled = "vector" in knows and choice.vector != "mean"  # reads the head's vector: no layer is chosen
            if "layers" in knows and kind.default_layers is not None and not pooled:
                sizes = student.encoder.config["layers"], teacher.encoder.config["layers"]
                options["layers"] = layer_pairs(options.get("layers", kind.default_layers), *sizes)
            weight = schedule(choice.weight, steps, steps_per_epoch)
            objective = kind(weight=weight, name=choice.label or choice.name, **options)
            if not objective.built:
                asked = [name for name in objective.student_names if name not in FROM_BATCH]
                objective.build(inner_shapes(student, asked), knowledge.shapes(objective.teacher_names))
        except ValueError as error:
            raise UserError(f"distill.objectives: {error}") from None
        made.append(objective)
    return made


def make_knowledge(config: Config, teacher, objectives: list, batches: pipeline.Batches, display):
    """How the student is told what the teacher knows: asked anew at every step, or once and read from disk afterwards.

    Returns:
        The teacher that a `Distiller` takes, and the batches that go with it.
    """
    live = LiveTeacher(teacher)
    if not config.teacher.cache:
        return live, batches
    names = tuple(dict.fromkeys(name for objective in objectives for name in objective.teacher_names))
    key = teacher_cache.cache_key(teacher_cache.model_digest(teacher), batches.store, names, config.teacher.cache_top_k)
    with display.bar("teacher's outputs", len(batches.store)) as update:
        cache = teacher_cache_writer.write_cache(
            cache_root() / "outputs" / key,
            live,
            names,
            batches.store,
            batches.buckets.tolist(),
            batches.batch_size,
            config.teacher.cache_top_k,
            lambda done, rows: update(done, f"{rows:,} rows", rows),
        )
    display.say(f"Teacher's outputs: {', '.join(cache.names)} of {len(cache):,} rows, {cache.bytes / 1e6:,.1f} MB on disk")
    return CachedTeacher(cache.shapes(names)), batches.with_teacher(cache)
