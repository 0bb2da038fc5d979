"""The parts of a run, made from its configuration: data, student, objectives; the teacher's are in `build_teacher`."""

import dataclasses

import numpy as np

from tfkd import build_teacher, student
from tfkd import config as configs
from tfkd.config import Config, Dimensions
from tfkd.data import pipeline, sources, store
from tfkd.data import prepare as preparation
from tfkd.data.augmentation import Augmentation
from tfkd.data.packed_batches import PackedBatches
from tfkd.data.readings import Readings
from tfkd.data.targets import TARGETS
from tfkd.data.tokenizer import Tokenizer
from tfkd.distiller import build_objective
from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import OBJECTIVES
from tfkd.objectives.layer_map import layer_pairs
from tfkd.open_teacher import Member
from tfkd.run_dir import cache_root
from tfkd.schedules import Schedule


@dataclasses.dataclass
class Data:
    """One data set, tokenized: what batches are cut from.

    Attributes:
        tokenizer: what made the word pieces.
        others: the same rows as teachers with tokenizers of their own read them, by the prefix of their inputs.
    """

    source: sources.Source
    stores: dict[str, store.Store]
    buckets: list[int]
    key: str
    seed: int
    tokenizer: Tokenizer
    others: dict[str, "Data"] = dataclasses.field(default_factory=dict)

    @property
    def measured(self) -> str:
        """The split that results are measured on."""
        return "test" if "test" in self.stores else "validation"

    def read_with(self, prefix: str) -> "Data":
        """The data as the teachers of a prefix read them; as the student does without."""
        return self.others[prefix] if prefix else self

    def batches(self, split: str, batch_size: int, taught: bool = False, pack: bool = False, **options) -> pipeline.Batches:
        """Batches of a split; `taught`: with what teachers with tokenizers of their own read; `pack`: see `PackedBatches`."""
        rows = self.stores[split]
        if taught and self.others:
            rows = Readings(rows, {prefix: other.stores[split] for prefix, other in self.others.items()})
        kind = PackedBatches if pack else pipeline.Batches
        return kind(rows, batch_size, self.buckets, seed=self.seed, **options)

    def train(self, training: configs.Training, taught: bool = False) -> pipeline.Batches:
        """Batches of train, shuffled and, where the training asks for it, augmented."""
        augment = training.augment
        if augment is not None:
            if taught and self.others:
                raise UserError(
                    "train.augment changes what the student reads, and the teacher reads word pieces of its own: leave it out"
                )
            # Labels do not say what two texts one behind another are about; a teacher does.
            concatenate = augment.concatenate if taught else 0.0
            augment = Augmentation(augment.mask, augment.replace, self.tokenizer, concatenate)
        return self.batches("train", training.batch_size, taught, training.pack, shuffle=True, augment=augment)

    def validation(self) -> pipeline.Batches:
        return self.batches("validation", 64)


def make_target(data: configs.Data, kind: str, labels: list[str] | None = None, named: dict[str, str] | None = None):
    """What is read of every row: a target of `tfkd.data.targets`, with the columns that the configuration names.

    Arguments:
        labels: names of the outputs where they are known already.
        named: key -> column, in place of the configuration's.
    """
    target, defaults = TARGETS[kind], configs.Columns().model_dump()
    if target.defaults.get("label") is not None and kind != "none" and data.columns.label is None:
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


def prepare(source: sources.Source, tokenizer, data: configs.Data, seed: int, display, others: dict | None = None) -> Data:
    """Tokenizes a source's splits into the cache, or finds them there.

    Arguments:
        others: tokenizers of teachers that have their own, by the prefix of their inputs.
    """
    with display.bar("tokenize", None) as update:
        stores = preparation.prepare(source, tokenizer, data.max_length, cache_root(), update)
    lengths = np.concatenate([rows.lengths for rows in stores.values()])
    buckets = data.buckets or pipeline.choose_buckets(lengths, data.max_length)
    key = preparation.prepared_key(source, tokenizer, data.max_length)
    read = {prefix: prepare(source, other, data, seed, display) for prefix, other in (others or {}).items()}
    return Data(source, stores, buckets, key, seed, tokenizer, read)


def open_stage(stage: configs.Stage, data: Data, kind: str, tokenizer, display, others: dict | None = None) -> Data:
    """What a stage is trained on: the run's data, or its own; those are plain texts where it names no label.

    Arguments:
        others: as of `prepare`.

    Raises:
        UserError: they have other labels than the run's, which the outputs of the models stand for.
    """
    if stage.data is None:
        return data
    if stage.data.columns.label is None and TARGETS[kind].labelled:
        kind = "none"
    own = stage.data.labels is not None or stage.data.builtin is not None
    labels = data.source.labels
    source = open_source(stage.data, kind, display, None if own else labels)
    if TARGETS[kind].named and source.labels != labels:
        theirs, ours = ", ".join(source.labels), ", ".join(labels)
        raise UserError(f"stage {stage.name}: its data have the labels [{theirs}], the run has [{ours}]")
    return prepare(source, tokenizer, stage.data, data.seed, display, others)


def make_teacher(config: Config, members: list[Member], labels: list[str], task):
    """The teachers before any training here, and how they are asked as one. Raises `UserError` where they do not fit."""
    return build_teacher.make_teacher(
        config,
        members,
        labels,
        task,
        lambda dimensions, outputs, size: from_dimensions(dimensions, config, outputs, size, task, "teacher"),
    )


def make_student(config: Config, teacher, labels: list[str], vocabulary_size: int, task):
    """The student before training: some layers of the (first) teacher, or new dimensions."""
    if config.student.layers is not None:
        first = getattr(teacher, "teachers", [teacher])[0]
        return student.from_layers(first.model, config.student.layers)
    outputs = build_teacher.count_outputs(task, labels, vocabulary_size)
    if outputs is None:
        shape = teacher.shapes(("logits",))["logits"]
        if shape is None or shape[-1] is None:
            raise UserError(f"{teacher.name} does not say how many numbers it answers with; export it with a fixed shape")
        outputs = shape[-1]
    return from_dimensions(config.student.dimensions, config, outputs, vocabulary_size, task, "student")


def from_dimensions(dimensions: Dimensions, config: Config, classes: int, vocabulary_size: int, task, name: str):
    """A model of the given size with random weights."""
    given = dimensions.model_dump(exclude={"pooling"})
    segments = 2 if make_target(config.data, task.target).pairs else 0
    encoder = TransformerEncoder(
        vocabulary_size, **given, max_positions=config.data.max_length, segments=segments, name="encoder"
    )
    pooling = {} if dimensions.pooling is None else {"pooling": dimensions.pooling}
    return TransformerWithHead(encoder, task.head(classes, dropout=dimensions.dropout, **pooling), name=name)


def schedule(value: float | configs.Changing, steps: int, steps_per_epoch: int) -> float | Schedule:
    """A number of the configuration as the distiller takes it."""
    if not isinstance(value, configs.Changing):
        return value
    return Schedule(value.start, value.end, steps, value.shape, steps_per_epoch if value.by == "epoch" else 1)


def make_objectives(distill: configs.Distill, task, student, teacher, steps: int = 1, steps_per_epoch: int = 1) -> list:
    """What the student learns from the teacher, projections included.

    Arguments:
        teacher: a `LiveTeacher` or what is asked as one is.
        steps, steps_per_epoch: of the training, for what changes while it goes on.

    Raises:
        UserError: an objective does not fit the two models.
    """
    default = [configs.Objective(name=task.response)]
    made = []
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
                choice_of_layers = options.get("layers", kind.default_layers)
                options["layers"] = layer_pairs(
                    choice_of_layers, student.encoder.config["layers"], _layers(teacher, choice, choice_of_layers)
                )
            weight = schedule(choice.weight, steps, steps_per_epoch)
            objective = kind(weight=weight, name=choice.label or choice.name, **options)
            build_objective(objective, student, teacher)
        except ValueError as error:
            raise UserError(f"distill.objectives: {error}") from None
        made.append(objective)
    return made


def _layers(teacher, objective: configs.Objective, chosen) -> int:
    """How many layers the teacher's tensors are numbered by: of several of different depth, those that all of them have,
    where `chosen` names layers from the first on. Raises `ValueError` where nobody knows."""
    if teacher.layers is not None:
        return teacher.layers
    several = getattr(teacher, "teachers", [teacher])
    unknown = next((one.name for one in several if one.layers is None), None)
    if unknown is not None:
        raise ValueError(
            f"{objective.name}: {unknown} does not number its layers: say with teacher.inner which tensor is hidden.0 and so "
            "on; a SavedModel has none"
        )
    depths = [one.layers for one in several]
    if isinstance(chosen, str) or not all(0 <= of_teacher < min(depths) for _, of_teacher in chosen):
        raise ValueError(
            f"{objective.name}: the teachers differ in their number of layers, {', '.join(map(str, depths))}: give layers that "
            f"all have, as pairs [student layer, teacher layer] with teacher layers 0 to {min(depths) - 1}, or use objectives "
            "without layers"
        )
    return min(depths)
