"""The schema of a run: what a YAML file may say, its defaults, and one-line answers to what it may not. No TensorFlow.

Sections in the order of a run: data, teacher, student, distill, train, strategy, evaluate, export.
`python -m tfkd.config > configs/schema.json` writes the JSON Schema that editors read.
"""

import difflib
import json
import os
import pathlib
import re
import typing
from typing import Annotated, Literal

import pydantic
import yaml
from pydantic import Field

from tfkd.errors import UserError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]

TASKS = (
    "classification",
    "regression",
    "multilabel",
    "tagging",
    "question_answering",
    "masked_language_model",
    "sentence_embedding",
)

_SOFTENED = ("temperature", "over")
_FEATURES = ("layers", "projection")
OBJECTIVE_OPTIONS = {
    "kl_divergence": _SOFTENED,
    "reverse_kl": _SOFTENED,
    "jensen_shannon": ("beta", *_SOFTENED),
    "decoupled_kd": ("alpha", "beta", *_SOFTENED),
    "binary_kl": ("temperature", "classes"),
    "logits_mse": (),
    "hidden_state_mse": _FEATURES,
    "hidden_state_cosine": _FEATURES,
    "layer_norm_mse": _FEATURES,
    "pkd": _FEATURES,
    "embedding_mse": ("projection",),
    "attention_score_mse": ("layers", "average_heads"),
    "attention_probability_kl": ("layers", "average_heads"),
    "minilm_v1": ("layers", "average_heads"),
    "minilm_v2": ("layers", "relation_heads", "relations"),
    "rkd_distance": ("vector", "layers"),
    "rkd_angle": ("vector", "layers"),
    "similarity_preserving": ("vector", "layers"),
    "contrastive": ("vector", "layers", "tau", "projection"),
}
"""Objective -> what it may be told besides its weight; a test holds it to the classes of `tfkd.objectives`."""


class Section(pydantic.BaseModel):
    """A part of the configuration. Unknown keys are errors; `epochs: "3"` is not a number; values never change."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Columns(Section):
    """Which column of the data holds what."""

    text: str = "text"
    """Column with the text."""
    text_pair: str | None = None
    """Column with the second text, for tasks on pairs."""
    label: str | None = "label"
    """Column with the label: a name, or a whole number that indexes `data.labels`. null: there is none."""
    words: str = "tokens"
    """Tagging: column with the list of words."""
    tags: str = "tags"
    """Tagging: column with the list of their tags."""
    question: str = "question"
    """Question answering: column with the question."""
    context: str = "context"
    """Question answering: column with the text that holds the answer."""
    answers: str = "answers"
    """Question answering: column with the answers' texts and where they start: `{"text": [...], "answer_start": [...]}`."""


class Splits(Section):
    """Which part of the data trains, selects and measures. TFDS expressions such as `train[:90%]`, or files."""

    train: str | None = None
    validation: str | None = None
    """Chooses the best epoch. Where there is none, `data.validation_fraction` of train is cut out by a stable hash."""
    test: str | None = None
    """Measures the result. Where there is none, the validation split does, and the report says so."""


class Data(Section):
    """Where examples come from and how they become batches. Exactly one of `builtin`, `tfds` and `files`."""

    builtin: Literal["docstrings"] | None = None
    """`docstrings`: first sentences of the docstrings of installed packages, labelled with the package."""
    tfds: str | None = None
    """Name of a TensorFlow Datasets data set, such as `glue/sst2`."""
    data_dir: str | None = None
    """TFDS folder; default: `$TFDS_DATA_DIR`, then TFDS's own default. Nothing is downloaded unless `download` is true."""
    download: bool = False
    """Lets TFDS download and prepare a data set that is not in `data_dir`."""
    files: Splits | None = None
    """Paths of CSV, TSV, JSONL or Parquet files by split; relative to the working directory; `${VARIABLES}` are expanded."""
    splits: Splits = Splits()
    """TFDS split expressions; default: the data set's own train, validation and test."""
    columns: Columns = Columns()
    labels: list[str] | None = None
    """Label names in class order; default: the data set's own, or the sorted values of the training file."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of train that becomes the validation split where the data have none."""
    limit: Positive | None = None
    """At most this many rows of each split, the first ones; for trying things out."""
    max_length: Annotated[int, Field(ge=4, le=4096)] = 128
    """Longest input in word pieces, special tokens included; longer texts are cut."""
    buckets: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Lengths that batches are padded to, rising, the last one `max_length`; default: chosen from the data."""
    vocabulary_size: Annotated[int, Field(ge=64)] = 8000
    """Word pieces to learn where the teacher is trained here; a checkpoint brings its own vocabulary."""
    stride: Positive | None = None
    """Question answering: word pieces from one window on a long context to the next; default: a third of `max_length`."""
    label_separator: str | None = None
    """What stands between the labels of one cell, where a text may have several."""
    lowercase: bool = True
    """Lower-cases and strips accents where the vocabulary is learned here; a checkpoint brings its own setting."""

    @pydantic.model_validator(mode="after")
    def _one_source(self):
        given = [name for name in ("builtin", "tfds", "files") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of data.builtin, data.tfds and data.files, not {', '.join(given) or 'none'}")
        if self.files is not None and self.files.train is None:
            raise ValueError("data.files.train is missing: name the training file")
        if self.tfds is None and (self.data_dir is not None or self.download):
            raise ValueError("data.data_dir and data.download go with data.tfds")
        if self.tfds is None and self.splits != Splits():
            raise ValueError("data.splits goes with data.tfds; for files, name them in data.files")
        if self.buckets is not None and (sorted(set(self.buckets)) != self.buckets or self.buckets[-1] != self.max_length):
            raise ValueError(f"data.buckets must rise and end at data.max_length ({self.max_length}), not {self.buckets}")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"data.labels names a label twice: {self.labels}")
        return self


class Dimensions(Section):
    """Size and make of a Transformer encoder with a classification head."""

    layers: Positive = 2
    width: Positive = 128
    heads: Positive = 2
    feed_forward: Positive | None = None
    """Inner width of the feed-forward layers; default: 4 x width."""
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    """`gelu` is exact (erf), `gelu_tanh` its tanh approximation."""
    norm: Literal["post", "pre"] = "post"
    """Layer normalization after each residual sum (BERT) or before each sub-layer (GPT-2)."""
    position: Literal["learned", "sinusoidal"] = "learned"
    pooling: Literal["first", "mean"] = "first"
    """What the head reads: the first position, or the mean over the text."""
    dropout: Dropout = 0.1
    embedding_dropout: Dropout | None = None
    """Dropout after the embeddings; default: `dropout`."""
    token_dropout: Dropout = 0.0
    """Dropout of whole token vectors: keeps a model trained from scratch on little data from learning it by heart."""
    attention_dropout: Dropout | None = None
    """Dropout on attention probabilities; default: `dropout`."""

    @pydantic.model_validator(mode="after")
    def _heads_divide_width(self):
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        if self.position == "sinusoidal" and self.width % 2:
            raise ValueError(f"width = {self.width} must be even with position: sinusoidal")
        return self


class Training(Section):
    """One supervised or distilled training: AdamW, linear warm-up and decay."""

    epochs: Positive = 3
    batch_size: Positive = 32
    """Examples a step, over all replicas."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 5e-5
    """Peak of the schedule."""
    warmup: Fraction = 0.1
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled (AdamW); biases and layer normalization are never decayed."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    """Largest global gradient norm."""
    label_smoothing: Dropout = 0.0
    early_stopping: Positive | None = None
    """Stop after this many epochs without a better validation metric. The best epoch is kept in any case."""


class Teacher(Section):
    """The large model: a checkpoint with a head as it is, a checkpoint fine-tuned here, or one trained here from scratch."""

    checkpoint: str | None = None
    """Hugging Face BERT-family folder, `hf://owner/name`, KerasHub preset folder or `keras_hub://preset`; `${NAMES}` expand."""
    revision: str | None = None
    """Branch, tag or commit of an `hf://` checkpoint."""
    head: Literal["auto", "keep", "new"] = "auto"
    """`keep` the checkpoint's classification head, start a `new` one, or `auto`: keep it unless there is fine-tuning."""
    label_map: dict[str, str] | None = None
    """Checkpoint label name -> data label name, where the two disagree."""
    finetune: Training | None = None
    """Trains the checkpoint on the same data first; needed where it has no head."""
    dimensions: Dimensions | None = None
    """A teacher trained here from scratch, with `train`."""
    train: Training | None = None
    cache: bool = False
    """Asks the teacher about every training row once, keeps its answers on disk, and reads them in every later epoch and run."""
    cache_top_k: Positive | None = None
    """Keeps only the k largest logits of an answer; for outputs of thousands of classes."""

    @pydantic.model_validator(mode="after")
    def _one_kind(self):
        if self.cache_top_k is not None and not self.cache:
            raise ValueError("teacher.cache_top_k goes with teacher.cache: true")
        if (self.checkpoint is None) == (self.dimensions is None):
            raise ValueError("give exactly one of teacher.checkpoint and teacher.dimensions")
        if self.checkpoint is None and self.train is None:
            raise ValueError("teacher.dimensions needs teacher.train: how to train it")
        if self.checkpoint is None and self.finetune is not None:
            raise ValueError("teacher.finetune goes with teacher.checkpoint; with teacher.dimensions use teacher.train")
        if self.checkpoint is not None and self.train is not None:
            raise ValueError("teacher.train goes with teacher.dimensions; with teacher.checkpoint use teacher.finetune")
        if self.head == "new" and self.checkpoint is not None and self.finetune is None:
            raise ValueError("teacher.head: new is random: say with teacher.finetune how to train it")
        if self.checkpoint is None:
            for name in ("revision", "label_map"):
                if getattr(self, name) is not None:
                    raise ValueError(f"teacher.{name} goes with teacher.checkpoint")
            if self.head != "auto":
                raise ValueError(f"teacher.head: {self.head} goes with teacher.checkpoint")
        elif self.revision is not None and not self.checkpoint.startswith(("hf://", "$")):
            raise ValueError(f"teacher.revision = {self.revision} goes with an hf:// checkpoint, not with {self.checkpoint}")
        elif self.label_map is not None and self.finetune is not None and self.head != "keep":
            raise ValueError(
                "teacher.label_map goes with the checkpoint's own head; fine-tuning keeps it with teacher.head: keep"
            )
        return self


class Student(Section):
    """The small model: new dimensions, or some of the teacher's layers with its embeddings and head."""

    dimensions: Dimensions | None = None
    """Starts from random weights."""
    layers: Positive | list[Annotated[int, Field(ge=0)]] | None = None
    """Teacher layers to copy: how many (spread uniformly) or which (from 0, rising)."""

    @pydantic.model_validator(mode="after")
    def _one_kind(self):
        if (self.dimensions is None) == (self.layers is None):
            raise ValueError("give exactly one of student.dimensions and student.layers")
        if isinstance(self.layers, list) and (not self.layers or sorted(set(self.layers)) != self.layers):
            raise ValueError(f"student.layers must name rising teacher layers, not {self.layers}")
        return self


class Changing(Section):
    """A number that changes while a training goes on."""

    start: Annotated[float, Field(ge=0.0)]
    """At the first step."""
    end: Annotated[float, Field(ge=0.0)]
    """At the last step."""
    shape: Literal["linear", "cosine"] = "linear"
    by: Literal["step", "epoch"] = "step"
    """How often it changes."""


class Objective(Section):
    """One thing that the student learns from the teacher. Which options go with which name: `OBJECTIVE_OPTIONS`."""

    name: Literal[tuple(OBJECTIVE_OPTIONS)]
    """What is compared."""
    weight: Annotated[float, Field(ge=0.0)] | Changing = 1.0
    """Factor in the sum of the objectives."""
    label: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")] | None = None
    """What logs and the report call it; needed where one name is used twice. Default: its name."""
    layers: Literal["uniform", "first", "last"] | list[Annotated[list[int], Field(min_length=2, max_length=2)]] | None = None
    """Which layer of the student learns from which of the teacher: a rule, or pairs from 0 such as [[0, 1], [2, 5]]."""
    projection: Literal["auto", "always", "never"] | None = None
    """A learned matrix from the student's width to the teacher's; `auto`: where they differ."""
    temperature: Annotated[float, Field(gt=0.0)] | Changing | None = None
    """Softens answers; default: `distill.temperature`."""
    tau: Annotated[float, Field(gt=0.0)] | None = None
    """Temperature of similarities."""
    over: Literal["classes", "positions"] | None = None
    """What an answer is a distribution over: the classes, or (spans) the positions of the text."""
    alpha: Annotated[float, Field(ge=0.0)] | None = None
    """Weight of the target class's part."""
    beta: Annotated[float, Field(ge=0.0)] | None = None
    """Of `decoupled_kd`: weight of the other classes' part. Of `jensen_shannon`: the teacher's share in the mixture."""
    classes: Literal["mean", "sum"] | None = None
    """How the divergences of single classes are put together."""
    average_heads: bool | None = None
    """Averages over the heads first, where student and teacher have different numbers of them."""
    relation_heads: Positive | None = None
    """Into how many parts queries, keys and values are cut; default: the most that leave the teacher's parts 16 wide."""
    relations: list[Literal["query", "key", "value"]] | None = None
    vector: Literal["pooled", "mean"] | None = None
    """What stands for a text: what the head pools, or the mean of the last hidden states."""

    @pydantic.model_serializer(mode="wrap")
    def _without_defaults(self, write):
        return {option: value for option, value in write(self).items() if value is not None}

    @pydantic.model_validator(mode="after")
    def _options_fit(self):
        given = {option for option, value in self if value is not None} - {"name", "weight", "label"}
        for option in sorted(given - set(OBJECTIVE_OPTIONS[self.name])):
            known = ", ".join(("weight", "label", *OBJECTIVE_OPTIONS[self.name]))
            raise ValueError(f"{option} does not go with {self.name}, which takes {known}")
        return self


class Distill(Section):
    """L = alpha * labels' loss + (1 - alpha) * sum of objectives; by default T^2 * KL(teacher || student), Hinton et al. 2015."""

    alpha: Fraction | Changing = 0.5
    """Weight of the labels; 1 learns from labels alone, 0 from the teacher alone."""
    temperature: Annotated[float, Field(gt=0.0)] | Changing = 4.0
    """Of the objectives that soften answers and do not set their own."""
    objectives: Annotated[list[Objective], Field(min_length=1)] | None = None
    """What is learned from the teacher; a name alone stands for it with its defaults. Default: the task's response."""

    @pydantic.field_validator("objectives", mode="before")
    @classmethod
    def _names_alone(cls, value):
        return [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value

    @pydantic.model_validator(mode="after")
    def _make_sense(self):
        labels = [objective.label or objective.name for objective in self.objectives or []]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"objectives has {twice} twice: give one of them a label of its own")
        if isinstance(self.alpha, Changing) and max(self.alpha.start, self.alpha.end) > 1.0:
            raise ValueError("alpha must stay from 0 to 1")
        if isinstance(self.temperature, Changing) and not min(self.temperature.start, self.temperature.end) > 0.0:
            raise ValueError("temperature must stay above 0")
        return self


class Stage(Section):
    """One training of the student; the next stage begins where it ends."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]
    data: Data | None = None
    """What it is trained on; default: the run's data. Without labels (`columns: {label: null}`) alpha must be 0."""
    distill: Distill = Distill()
    train: Training = Training()
    keep: Literal["best", "last"] | None = None
    """Which epoch the next stage goes on from; default: the last one, and of the last stage the best one."""

    @pydantic.model_validator(mode="after")
    def _labels(self):
        if self.data is not None and self.data.columns.label is None:
            if self.distill.alpha != 0.0:
                raise ValueError(f"stage {self.name}: its data have no labels (columns.label: null): set distill.alpha to 0")
            if self.keep == "best":
                raise ValueError(f"stage {self.name}: without labels there is no best epoch: set keep to last")
        return self


class Strategy(Section):
    """Devices, precision and compilation."""

    kind: Literal["auto", "one", "mirrored"] = "auto"
    """`auto`: MirroredStrategy where there are several GPUs, one device otherwise."""
    logical_cpus: Positive | None = None
    """Splits the CPU into this many logical devices and mirrors over them: a rehearsal of several GPUs."""
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    xla: Literal["auto"] | bool = "auto"
    """`auto`: compiled where the planned steps pay for it."""

    @pydantic.model_validator(mode="after")
    def _kinds_agree(self):
        if self.kind == "one" and self.logical_cpus not in (None, 1):
            raise ValueError(f"strategy.kind: one contradicts strategy.logical_cpus = {self.logical_cpus}")
        return self


class Evaluate(Section):
    """How the result is measured."""

    bootstrap: Annotated[int, Field(ge=100)] = 2000
    """Resamples of the test split behind every 95 % interval."""


class Export(Section):
    """Which files leave, and how they are proven."""

    formats: list[Literal["saved_model", "tflite", "onnx"]] = ["saved_model", "tflite", "onnx"]
    """May be empty: nothing is exported."""
    length: Positive | None = None
    """Fixed input length of TFLite files; default: `data.max_length`."""
    examples: Annotated[int, Field(ge=256, le=2000)] = 512
    """Test examples that every file is compared with the Keras student on; all of them where there are fewer."""


class Config(Section):
    """A run of `python -m tfkd.train`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "run"
    """The run is written to `runs/NAME`."""
    task: Literal[TASKS] = "classification"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Weights, shuffling, dropout, bootstrap: everything random follows from it."""
    data: Data
    teacher: Teacher
    student: Student
    distill: Distill = Distill()
    baseline: bool = True
    """Trains the student without distillation too, so that the report can say what distillation was worth."""
    train: Training = Training()
    """How the student and its baseline are trained."""
    stages: Annotated[list[Stage], Field(min_length=1)] | None = None
    """Trains the student in several stages, in place of `distill` and `train`; the baseline is trained as in the last one."""
    strategy: Strategy = Strategy()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()

    @pydantic.model_validator(mode="after")
    def _student_fits(self):
        dimensions = self.teacher.dimensions
        if dimensions is not None and self.student.layers is not None:
            _check_layers(self.student.layers, dimensions.layers)
        pairs = self.data.columns.text_pair is not None or self.task == "question_answering"
        least = 5 if pairs else 3  # special pieces, and one of each text
        if self.export.length is not None and not least <= self.export.length <= self.data.max_length:
            limits = f"must be from {least} to data.max_length = {self.data.max_length}"
            raise ValueError(f"export.length = {self.export.length}: {limits}")
        return self

    @pydantic.model_validator(mode="after")
    def _something_to_learn(self):
        if self.task != "sentence_embedding":
            return self
        if any(stage.distill.alpha != 0.0 for stage in self.trainings()):
            raise ValueError("task: sentence_embedding learns from the teacher alone: set distill.alpha to 0")
        if self.baseline:
            raise ValueError("task: sentence_embedding has no labels that a baseline could learn from: set baseline to false")
        if self.teacher.finetune is not None or self.teacher.train is not None:
            raise ValueError("task: sentence_embedding takes a teacher.checkpoint as it is: leave teacher.finetune and train out")
        return self

    @pydantic.model_validator(mode="after")
    def _one_plan(self):
        if self.stages is None:
            return self
        for section in sorted({"distill", "train"} & self.model_fields_set):
            if getattr(self, section) != type(getattr(self, section))():
                raise ValueError(f"{section} goes into the stages: with stages there is none outside them")
        names = [stage.name for stage in self.stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"stages has {twice} twice: give each a name of its own")
        last = self.stages[-1]
        if last.data is not None and last.data.columns.label is None:
            raise ValueError(f"stage {last.name}: the last stage cannot be without labels, which choose its best epoch")
        return self

    def trainings(self) -> list[Stage]:
        """The student's trainings in order: its stages, or the single one that `distill` and `train` describe."""
        stages = self.stages or [Stage(name="student", distill=self.distill, train=self.train)]
        kept = [stage.keep or ("best" if stage is stages[-1] else "last") for stage in stages]
        return [stage.model_copy(update={"keep": keep}) for stage, keep in zip(stages, kept, strict=True)]


def _check_layers(layers: int | list[int], available: int) -> None:
    if (isinstance(layers, int) and layers > available) or (isinstance(layers, list) and layers[-1] >= available):
        raise ValueError(f"student.layers = {layers} asks for more than the teacher's {available} layers")


class _Loader(yaml.SafeLoader):
    """YAML as people write it: PyYAML alone takes `1e-3`, a number in YAML 1.2, for a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load(path: str | os.PathLike, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a YAML file, applies `key=value` overrides and checks the result.

    Arguments:
        path: a YAML file.
        overrides: dotted keys with YAML values, such as `train.epochs=2` or `student.layers=[0,2,4]`.

    Raises:
        UserError: one line with the file, the full key, the value and the nearest valid key.
    """
    path = pathlib.Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {_yaml_problem(error)}") from None
    except (ValueError, RecursionError) as error:  # PyYAML: impossible dates, bottomless nesting
        raise UserError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold `key: value` lines (data, teacher, student, ...), not {_show(tree)}")
    for override in overrides:
        _set(tree, override)
    return parse(tree, str(path))


def parse(tree: dict, where: str = "configuration") -> Config:
    """Checks a tree of plain values against the schema. Raises `UserError` with the first mistake, as `load` does."""
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from None


def dump(config: Config) -> str:
    """The configuration as YAML with every default written out; `load` reads it back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def expand(path: str, key: str) -> str:
    """Replaces `${VARIABLES}` and `~` in a path given in the configuration.

    Raises:
        UserError: a variable is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    if "${" in expanded:
        raise UserError(f"{key}: {path}: {expanded[expanded.index('${') :].split('}')[0]}}} is not set in the environment")
    return expanded


def _set(tree: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write key=value, such as train.epochs=2")
    try:
        value = yaml.load(text, _Loader) if text else None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--set {override}: {text} is not a YAML value") from None
    *parents, last = key.split(".")
    node = tree
    for depth, parent in enumerate(parents):
        if not isinstance(node.get(parent), dict):
            node[parent] = {} if node.get(parent) is None else node[parent]
        node = node[parent]
        if not isinstance(node, dict):
            raise UserError(f"--set {override}: {'.'.join(parents[: depth + 1])} holds a value, not a section")
    node[last] = value


def _explain(error: pydantic.ValidationError) -> str:
    """The first mistake in one line: full key, value, fix. Unknown keys come first: they explain missing ones."""
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = [part for part in problem["loc"] if not (isinstance(part, str) and _UNION_TAG.search(part))]
    key = ".".join(str(part) for part in location)
    value = _show(problem["input"])
    match problem["type"]:
        case "extra_forbidden":
            return f"{key} = {value}: unknown key{_nearest(key)}"
        case "missing":
            return f"{key}: missing, and it has no default"
        case "value_error":
            return str(problem["ctx"]["error"]) if key in ("", *_SECTIONS) else f"{key}: {problem['ctx']['error']}"
        case "literal_error":
            return f"{key} = {value}: must be {problem['ctx']['expected']}{_close(problem)}"
        case _:
            return f"{key} = {value}: {_lower(problem['msg'])}"


_SECTIONS = ("data", "teacher", "student", "strategy")  # whose own messages already carry full keys
_UNION_TAG = re.compile(r"^(bool|int|float|str)$|^constrained-|\[")  # what pydantic adds to the place of a value in a union


def _close(problem: dict) -> str:
    choices = [choice.strip(" '") for choice in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
    close = difflib.get_close_matches(str(problem["input"]), choices, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _nearest(key: str) -> str:
    """The valid key that looks most like an unknown one: in its own section first, then anywhere."""
    keys = list(_keys(Config))
    key = ".".join(part for part in key.split(".") if not part.isdigit())  # places in lists
    section, _, last = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == section}
    close = difflib.get_close_matches(last, siblings, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {siblings[close[0]]}?"
    elsewhere = [k for k in keys if k.rpartition(".")[2] == last] or difflib.get_close_matches(key, keys, n=1, cutoff=0.7)
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; {section or 'the configuration'} knows {', '.join(siblings)}" if siblings else ""


def _keys(section: type[Section], prefix: str = "") -> typing.Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in _sections(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def _sections(annotation) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections(part)]


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{place}not valid YAML ({reason})"


def _show(value) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _lower(message: str) -> str:
    message = message.removeprefix("Input ")
    return message[0].lower() + message[1:]


def schema() -> str:
    """The JSON Schema of a configuration file, as text."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
