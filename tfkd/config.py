"""The schema of a run: what a YAML file may say, its defaults, and which values go together. No TensorFlow.

Sections in the order of a run: data, teacher, student, distill, train, strategy, checkpoint, compression, evaluate,
export.
`python -m tfkd.config > configs/schema.json` writes the JSON Schema that editors read.
"""

import json
import os
import pathlib
import re
import typing
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from tfkd import yaml_file
from tfkd.config_errors import explain
from tfkd.errors import UserError, show

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

WITHOUT_CLASSES = ("regression", "question_answering", "sentence_embedding")
"""Tasks whose labels cannot be smoothed."""

QUANTIZABLE = ("classification", "regression", "multilabel", "tagging", "question_answering")
"""Tasks whose heads `tfkd.models.quantized` knows."""

OVER_CLASSES = ("classification", "tagging", "masked_language_model")
"""Tasks whose answer is a softmax over the last axis of the logits; a test holds it to their `mixture`."""

PACKABLE = ("classification", "regression", "multilabel", "sentence_embedding")
"""Tasks that answer once for a text: it may lie anywhere in a row, and another one may follow it."""

WITHOUT_LABELS = ("masked_language_model", "sentence_embedding")
"""Tasks that learn from the texts themselves, or from the teacher alone: any text will do."""

PER_POSITION = ("tagging", "question_answering", "masked_language_model")
"""Tasks whose heads answer at each position and pool no vector of the text."""

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


_OF_CLASSES = ("kl_divergence", "reverse_kl", "jensen_shannon", "decoupled_kd", "logits_mse")
RESPONSES = {
    "classification": _OF_CLASSES,
    "regression": ("logits_mse",),
    "multilabel": ("binary_kl", "logits_mse"),
    "tagging": _OF_CLASSES,
    "question_answering": _OF_CLASSES,
    "masked_language_model": _OF_CLASSES,
    "sentence_embedding": ("logits_mse",),
}
"""Task -> objectives that compare its answers: no softmax over what are not alternatives; a test trains with all of them."""

_OF_LABELS = ("decoupled_kd",)
"""Objectives that read the labels beside the teacher's answers; a test holds it to `tfkd.objectives`."""

_EVERY_LOGIT = ("binary_kl", "logits_mse")
"""Objectives of the answers that read no softmax; a test holds it to `tfkd.objectives`."""

_TOGETHER = ("rkd_distance", "rkd_angle", "similarity_preserving", "contrastive")
"""Objectives that compare the examples of a batch with one another; a test holds it to `tfkd.objectives`."""

_BETWEEN = ("attention_score_mse", "attention_probability_kl", "minilm_v1", "minilm_v2")
"""Objectives that read what is between the positions of a text; a test holds it to `tfkd.objectives`."""


_LOGGED = ("loss", "label_loss", "alpha", "role", "stage", "epoch", "step", "seconds", "learning_rate")
"""What a line of `metrics.jsonl` says besides the objectives."""


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
    pooling: Literal["first", "mean"] | None = None
    """What the head reads: the first position, or the mean over the text. Default: the first, of sentence vectors the mean."""
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


class Augment(Section):
    """What is changed in the texts that a training reads, drawn anew each epoch; teacher and student read the same."""

    mask: Fraction = 0.1
    """Share of the word pieces that are hidden behind [MASK]."""
    replace: Fraction = 0.0
    """Share of the word pieces that pieces of other texts stand in for."""
    concatenate: Fraction = 0.0
    """Share of the texts that another one of the batch follows: more of them than there are to ask a teacher about, and longer
    ones. Labels say nothing of the two, so that it needs `distill.alpha: 0`, and what a training shows of its own accuracy counts
    the first one's; the baseline reads texts as they are."""

    @pydantic.model_validator(mode="after")
    def _some_text_is_left(self):
        if not 0.0 < self.mask + self.replace < 1.0 and not (self.concatenate and self.mask + self.replace == 0.0):
            raise ValueError(f"mask + replace = {self.mask + self.replace:g}: must be above 0 and below 1")
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
    """Stop after this many epochs without a better validation metric; the best one is kept."""
    keep: Literal["best", "last"] | None = None
    """Which epoch's weights stay: the `best` on the validation split, or the `last`, where that split says little. Default: the
    best; of a stage that another one follows, the last, unless it stops early."""
    max_bad_steps: Annotated[int, Field(ge=0)] = 10
    """How many steps whose loss or gradients are no finite numbers may be skipped before the training stops."""
    accumulate: Positive = 1
    """Parts, one after another, that a step computes its batch in: the same step in less memory."""
    checkpoint_gradients: bool = False
    """Keeps of each block what goes into it alone and computes it again for the gradients: less memory for long texts."""
    pack: bool = False
    """Lays a batch's texts one behind another into a few long rows: hardly any padding, and a shape or two to compile."""
    augment: Augment | None = None
    """Changes the texts a little each epoch, so that a teacher says more than what it knows by heart; `{}` for its defaults."""

    @pydantic.model_validator(mode="after")
    def _parts(self):
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate = {self.accumulate} does not divide batch_size = {self.batch_size}")
        if self.early_stopping is not None and self.keep == "last":
            raise ValueError(f"early_stopping = {self.early_stopping} ends a training after its best epoch: leave keep: last out")
        if self.accumulate > 1 and self.pack:
            raise ValueError(f"accumulate = {self.accumulate}: packed texts of a batch share rows and cannot come in parts")
        return self


class TeacherModel(Section):
    """One large model: a checkpoint as it is or fine-tuned here, a Keras file, a SavedModel, or one trained here from scratch."""

    checkpoint: str | None = None
    """Hugging Face BERT-family folder (sentence-transformers' too), `hf://owner/name`, KerasHub preset folder,
    `keras_hub://preset`, or a run of tfkd."""
    revision: str | None = None
    """Branch, tag or commit of an `hf://` checkpoint."""
    head: Literal["auto", "keep", "new"] = "auto"
    """`keep` the checkpoint's head, start a `new` one, or `auto`: keep it unless there is fine-tuning."""
    finetune: Training | None = None
    """Trains the checkpoint on the same data first; needed where it has no head."""
    keras_file: str | None = None
    """A `.keras` file. A functional model or KerasHub task teaches what its layers hold, any other model its output alone."""
    saved_model: str | None = None
    """A SavedModel folder; it teaches its output alone."""
    signature: str | None = None
    """Of a SavedModel: which one is asked; default: `serving_default`, or the only one."""
    output: str | None = None
    """Of a SavedModel: which of the signature's outputs; default: `logits`, or the only one."""
    inputs: dict[str, str] | None = None
    """Of a SavedModel: its name of an input -> token_ids, padding_mask or segment_ids, where it is no well-known one."""
    inner: dict[str, str] | None = None
    """Of a Keras file: tfkd's name of an inner tensor -> layer path, such as {hidden.3: bert_backbone/transformer_layer_3}."""
    activation: Literal["linear", "softmax", "sigmoid"] | None = None
    """What the output has been through; default: what a Keras model's last layer says, and linear of a SavedModel."""
    vocabulary: str | None = None
    """vocab.txt of the word pieces that a Keras file or SavedModel reads; default: the one beside it, or of its run."""
    lowercase: bool | None = None
    """Whether it reads lower-cased text without accents; default: what the settings beside its vocabulary say, else yes."""
    trust: bool = False
    """Lets a Keras file or SavedModel run code of its maker."""
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] | None = None
    """What it computes in, trained here and teaching, whatever the student does; default: `strategy.precision`."""
    label_map: dict[str, str] | None = None
    """Teacher's label -> data label, where the two disagree; labels without names are "0", "1", ..."""
    dimensions: Dimensions | None = None
    """A teacher trained here from scratch, with `train`."""
    train: Training | None = None

    @pydantic.model_validator(mode="after")
    def _one_kind(self):
        given = [name for name in self._kinds() if getattr(self, name) is not None]
        if len(given) != 1:
            choices = ", ".join(f"teacher.{name}" for name in self._kinds())
            raise ValueError(f"give exactly one of {choices}, not {', '.join(given) or 'none'}")
        for name, kinds in _GOES_WITH.items():
            value = getattr(self, name)
            if value != TeacherModel.model_fields[name].default and given[0] not in kinds:
                shown = f": {value}" if isinstance(value, str) else ""
                raise ValueError(f"teacher.{name}{shown} goes with {' or '.join(f'teacher.{kind}' for kind in kinds)}")
        if self.dimensions is not None and self.train is None:
            raise ValueError("teacher.dimensions needs teacher.train: how to train it")
        if self.head == "new" and self.finetune is None:
            raise ValueError("teacher.head: new is random: say with teacher.finetune how to train it")
        if self.revision is not None and not self.checkpoint.startswith(("hf://", "$")):
            raise ValueError(f"teacher.revision = {self.revision} goes with an hf:// checkpoint, not with {self.checkpoint}")
        if self.label_map is not None and self.finetune is not None and self.head != "keep":
            raise ValueError(
                "teacher.label_map goes with the checkpoint's own head; fine-tuning keeps it with teacher.head: keep"
            )
        return self

    @classmethod
    def _kinds(cls) -> tuple[str, ...]:
        return ("checkpoint", "keras_file", "saved_model", "dimensions")

    @property
    def training(self) -> Training | None:
        """How it is trained here, if it is."""
        return self.finetune or self.train


_FILES = ("keras_file", "saved_model")
_GOES_WITH = {
    **dict.fromkeys(("revision", "head", "finetune"), ("checkpoint",)),
    **dict.fromkeys(("signature", "output", "inputs"), ("saved_model",)),
    **dict.fromkeys(("activation", "vocabulary", "lowercase", "trust"), _FILES),
    "inner": ("keras_file",),
    "label_map": ("checkpoint", *_FILES),
    "precision": ("checkpoint", "keras_file", "dimensions"),
    "train": ("dimensions",),
}
"""What may be said of which kind of teacher."""


class Member(TeacherModel):
    """One of several teachers."""

    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Its share in the average, or how often it is drawn."""


class Teacher(TeacherModel):
    """The large model that is distilled, or several as one."""

    members: Annotated[list[Member], Field(min_length=2)] | None = None
    """Several teachers, in place of one: each as a teacher alone, with a weight."""
    combine: Literal["average", "random"] = "average"
    """Of several: the weighted average of their probabilities, or one of them drawn at each step."""
    cache: bool = False
    """Asks the teacher about every training row once, keeps its answers on disk, and reads them in every later epoch and run."""
    cache_top_k: Positive | None = None
    """Keeps only the k largest logits of an answer; for outputs of thousands of classes. The others count as if all alike."""

    @pydantic.model_validator(mode="after")
    def _as_a_whole(self):
        if self.cache_top_k is not None and not self.cache:
            raise ValueError("teacher.cache_top_k goes with teacher.cache: true")
        if self.combine == "random" and self.members is None:
            raise ValueError("teacher.combine: random goes with teacher.members")
        if self.combine == "random" and self.cache:
            raise ValueError(
                "teacher.cache: true keeps one answer to every row, and teacher.combine: random draws another teacher at each "
                "step: use combine: average, or cache: false"
            )
        return self

    @classmethod
    def _kinds(cls) -> tuple[str, ...]:
        return (*super()._kinds(), "members")

    @property
    def models(self) -> list[TeacherModel]:
        """The teachers, one or several."""
        return list(self.members or [self])


class Student(Section):
    """The small model: new dimensions, or some of the teacher's layers with its embeddings and head."""

    dimensions: Dimensions | None = None
    """Starts from random weights."""
    layers: Positive | list[Annotated[int, Field(ge=0)]] | None = None
    """Teacher layers to copy: how many (spread uniformly) or which (from 0, rising). Of several teachers, the first one's."""
    vocabulary: Literal["teacher", "learned"] = "teacher"
    """Whose word pieces it reads: those that the (first) teacher brings, or `data.vocabulary_size` learned from the data."""

    @pydantic.model_validator(mode="after")
    def _one_kind(self):
        if (self.dimensions is None) == (self.layers is None):
            raise ValueError("give exactly one of student.dimensions and student.layers")
        if isinstance(self.layers, list) and (not self.layers or sorted(set(self.layers)) != self.layers):
            raise ValueError(f"student.layers must name rising teacher layers, not {self.layers}")
        return self


class Changing(Section):
    """A number that changes while a training goes on; each stage is one of its own."""

    start: Annotated[float, Field(ge=0.0)]
    """At the first step."""
    end: Annotated[float, Field(ge=0.0)]
    """At the last step."""
    shape: Literal["linear", "cosine"] = "linear"
    by: Literal["step", "epoch"] = "step"
    """How often it changes. By `epoch` the first one has `start` and the last one `end`; a single one has `start`."""

    def at_end(self, epochs: int) -> float:
        """What it is when a training of so many epochs ends."""
        return self.start if self.by == "epoch" and epochs == 1 else self.end


def _check_temperature(value: float | Changing | None) -> None:
    if isinstance(value, Changing) and not min(value.start, value.end) > 0.0:
        raise ValueError(f"temperature goes from {value.start:g} to {value.end:g}: must stay above 0")


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
        _check_temperature(self.temperature)
        if self.label in _LOGGED:
            raise ValueError(f"label = {self.label}: logs call something else so; choose another")
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
            raise ValueError(f"alpha goes from {self.alpha.start:g} to {self.alpha.end:g}: must stay from 0 to 1")
        _check_temperature(self.temperature)
        return self


class Stage(Section):
    """One training of the student; the next stage begins where it ends."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]
    data: Data | None = None
    """What it is trained on; default: the run's data. Without labels (`columns: {label: null}`) alpha must be 0."""
    distill: Distill = Distill()
    train: Training = Training()


class Strategy(Section):
    """Devices, precision and compilation."""

    kind: Literal["auto", "one", "mirrored", "multi_worker"] = "auto"
    """`multi_worker`: several machines, named by `TF_CONFIG` or `--cluster`. `auto`: that where `TF_CONFIG` names several, else
    MirroredStrategy where there are several GPUs, else one device."""
    logical_cpus: Positive | None = None
    """Splits the CPU into this many logical devices and mirrors over them: a rehearsal of several GPUs."""
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    xla: Literal["auto"] | bool = "auto"
    """`auto`: compiled where the planned steps pay for it."""
    deterministic: bool = False
    """The same bits on a GPU each time, at some cost of speed. On CPUs they are the same in any case."""

    @pydantic.model_validator(mode="after")
    def _kinds_agree(self):
        if self.kind in ("one", "multi_worker") and self.logical_cpus not in (None, 1):
            raise ValueError(f"strategy.kind: {self.kind} contradicts strategy.logical_cpus = {self.logical_cpus}")
        return self


class Checkpoint(Section):
    """How often a training writes all that `--resume` needs; after each epoch it always does."""

    minutes: Annotated[float, Field(gt=0.0)] | None = 5.0
    """Minutes from one checkpoint to the next."""
    steps: Positive | None = None
    """Steps from one checkpoint to the next."""


class QuantizationAware(Training):
    """A last training of the student, in which every operation rounds as int8 arithmetic does."""

    epochs: Positive = 1
    range_pace: Annotated[float, Field(gt=0.0)] = 50.0
    """How much faster than the weights the logarithms of the ranges of 8 bits are learned."""


class Compression(Section):
    """What is done to a finished student to make it smaller."""

    qat: QuantizationAware | None = None
    """Quantization-aware training, for `tflite:int8_qat`; `{}` for its defaults. `student.keras` stays as it is."""


class Evaluate(Section):
    """How the result is measured."""

    bootstrap: Annotated[int, Field(ge=100)] = 2000
    """Resamples of the test split behind every 95 % interval."""


EXPORT_VARIANTS = {
    "saved_model": ("float32",),
    "tflite": ("float32", "float16", "int8_dynamic", "int8", "int8_qat", "int4_dynamic"),
    "mediapipe": ("float32", "int8_dynamic"),
    "onnx": ("float32", "float16", "int8_dynamic", "int8"),
    "huggingface": ("float32",),
}
"""Format -> its variants, in the order of the manifest."""

EXPORT_FILES = tuple(f"{format}:{variant}" for format, variants in EXPORT_VARIANTS.items() for variant in variants)
_VARIANTS = tuple(dict.fromkeys(variant for variants in EXPORT_VARIANTS.values() for variant in variants))


class Tolerance(Section):
    """How far a file may be from the Keras student; what is left out is as usual for its variant."""

    difference: Annotated[float, Field(gt=0.0)] | None = None
    """Largest difference of a logit, in units of the largest logit of the student, or of 1 where that is larger."""
    disagreement: Fraction | None = None
    """Share of examples that may get another answer."""
    drop: Fraction | None = None
    """How much of the metric may be lost."""


class Export(Section):
    """Which files leave, and how they are proven."""

    formats: list[Literal[(*EXPORT_VARIANTS, *EXPORT_FILES)]] = ["saved_model", "tflite", "onnx"]
    """A format for its usual variants, `tflite:int8` for one. May be empty: nothing is exported."""
    lengths: Annotated[list[Positive], Field(min_length=1)] | None = None
    """Fixed input lengths of TFLite files, rising, a signature each; default: `data.max_length` alone."""
    examples: Annotated[int, Field(ge=256, le=2000)] = 512
    """Test examples that every file is compared with the Keras student on; all of them where there are fewer. A pair of
    sentences, or a question with all windows of its context, is one."""
    tolerance: dict[Literal[(*_VARIANTS, *EXPORT_FILES)], Tolerance] = {}
    """By variant, such as `int8`, or by file, such as `tflite:int8`."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _one_length(cls, tree):
        """Runs of before 0.2.0 say `length`, a single one."""
        if not isinstance(tree, dict) or "length" not in tree:
            return tree
        if tree.get("lengths") is not None:
            raise ValueError("export.length and export.lengths are both given; export.lengths alone is enough")
        rest = {key: value for key, value in tree.items() if key not in ("length", "lengths")}
        return rest | ({} if tree["length"] is None else {"lengths": [tree["length"]]})

    @pydantic.model_validator(mode="after")
    def _rising(self):
        if self.lengths is not None and sorted(set(self.lengths)) != self.lengths:
            raise ValueError(f"export.lengths must rise, not {self.lengths}")
        return self


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
    checkpoint: Checkpoint = Checkpoint()
    compression: Compression = Compression()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _language_models_stay_here(cls, tree):
        """A language model is what other tasks begin with: unless told otherwise, nothing is exported."""
        if isinstance(tree, dict) and tree.get("task") == "masked_language_model" and isinstance(tree.get("export", {}), dict):
            return tree | {"export": {"formats": []} | tree.get("export", {})}
        return tree

    @pydantic.model_validator(mode="after")
    def _exportable(self):
        if self.task == "masked_language_model" and self.export.formats:
            formats = ", ".join(self.export.formats)
            raise ValueError(
                f"export.formats = [{formats}]: task: masked_language_model trains what other tasks begin with; leave it out"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _student_fits(self):
        first = self.teacher.models[0]
        if self.student.layers is not None and first.dimensions is not None:
            _check_layers(self.student.layers, first.dimensions.layers)
        elif self.student.layers is not None and first.saved_model is not None:
            raise ValueError("student.layers copies layers, and teacher.saved_model shows none: give student.dimensions")
        elif self.student.layers is not None and self.student.vocabulary == "learned":
            raise ValueError("student.layers copies what reads the teacher's word pieces: leave student.vocabulary: learned out")
        pairs = self.data.columns.text_pair is not None or self.task == "question_answering"
        least = 5 if pairs else 3  # special pieces, and one of each text
        for length in self.export.lengths or ():
            if not least <= length <= self.data.max_length:
                limits = f"must be from {least} to data.max_length = {self.data.max_length}"
                raise ValueError(f"export.lengths holds {length}: {limits}")
        return self

    @pydantic.model_validator(mode="after")
    def _quantizable(self):
        if self.compression.qat is not None and self.task not in QUANTIZABLE:
            raise ValueError(f"compression.qat goes with task: {', '.join(QUANTIZABLE)}; not with {self.task}")
        if self.compression.qat is None and "tflite:int8_qat" in self.export.formats:
            raise ValueError("export.formats has tflite:int8_qat, which needs compression.qat: {}: how to train for it")
        return self

    @pydantic.model_validator(mode="after")
    def _texts_as_they_are(self):
        trainings = [*(stage.train for stage in self.trainings()), self.compression.qat]
        if not any(training is not None and training.augment for training in trainings):
            return self
        if self.teacher.cache:
            raise ValueError(
                "teacher.cache: true keeps one answer to every row, and train.augment changes the rows each epoch: leave one out"
            )
        if self.task == "masked_language_model":
            raise ValueError("train.augment: task: masked_language_model hides words itself; leave it out")
        return self

    @pydantic.model_validator(mode="after")
    def _teachers_answer_for_two_texts(self):
        trainings = self._every_training()
        longer = [where for where, training in trainings.items() if training.augment and training.augment.concatenate]
        teachers = [where for where in longer if where.startswith("teacher")]
        if teachers:
            why = "is for a student: a teacher learns from labels, which say nothing of two texts"
            raise ValueError(f"{teachers[0]}.augment.concatenate {why}")
        if not longer:
            return self
        stages = [stage for where, stage in self._of_the_student() if where in longer]
        stages += self.trainings()[-1:] if "compression.qat" in longer else []
        pairs = [stage for stage in stages if (stage.data or self.data).columns.text_pair is not None]
        key = f"{longer[0]}.augment.concatenate"
        if self.task not in PACKABLE or (pairs and self.task != "sentence_embedding"):
            raise ValueError(f"{key} goes with single texts of task: {', '.join(PACKABLE)}; leave it out")
        if any(stage.distill.alpha != 0.0 for stage in stages):
            raise ValueError(f"{key}: labels say nothing of two texts one behind another: set distill.alpha to 0")
        return self

    @pydantic.model_validator(mode="after")
    def _largest_logits(self):
        if self.teacher.cache_top_k is None:
            return self
        given = f"teacher.cache_top_k = {self.teacher.cache_top_k}"
        if self.task not in OVER_CLASSES:
            raise ValueError(f"{given} goes with a softmax over classes, task: {', '.join(OVER_CLASSES)}; not with {self.task}")
        for _, stage in self._of_the_student():
            whole = next((each.name for each in stage.distill.objectives or [] if each.name in _EVERY_LOGIT), None)
            if whole is not None:
                raise ValueError(
                    f"{given}: {whole} reads every logit as it is, and those left out are known by their sum alone: leave one out"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _something_to_learn(self):
        if self.task != "sentence_embedding":
            return self
        if any(stage.distill.alpha != 0.0 for stage in self.trainings()):
            raise ValueError("task: sentence_embedding learns from the teacher alone: set distill.alpha to 0")
        if self.baseline:
            raise ValueError("task: sentence_embedding has no labels that a baseline could learn from: set baseline to false")
        if any(model.training is not None for model in self.teacher.models):
            raise ValueError("task: sentence_embedding takes a teacher.checkpoint as it is: leave teacher.finetune and train out")
        return self

    def _of_the_student(self) -> list[tuple[str, Stage]]:
        """The student's trainings, each with the section that describes it."""
        stages = self.trainings()
        places = ["train"] if self.stages is None else [f"stage {stage.name}: train" for stage in stages]
        return list(zip(places, stages, strict=True))

    def _every_training(self) -> dict[str, Training]:
        """All trainings of the run that are given, by the section that describes them."""
        trained = {where: stage.train for where, stage in self._of_the_student()}
        for number, model in enumerate(self.teacher.models):
            where = "teacher" if self.teacher.members is None else f"teacher.members.{number}"
            trained |= {f"{where}.finetune": model.finetune, f"{where}.train": model.train}
        trained["compression.qat"] = self.compression.qat
        return {where: training for where, training in trained.items() if training is not None}

    @pydantic.model_validator(mode="after")
    def _classes_to_smooth(self):
        for where, training in self._every_training().items():
            if training.label_smoothing and self.task in WITHOUT_CLASSES:
                value = f"{where}.label_smoothing = {training.label_smoothing}"
                raise ValueError(f"{value}: task: {self.task} has no classes to smooth; leave it out")
        return self

    @pydantic.model_validator(mode="after")
    def _packable(self):
        packed = [where for where, training in self._every_training().items() if training.pack]
        if packed and self.task not in PACKABLE:
            raise ValueError(f"{packed[0]}.pack goes with task: {', '.join(PACKABLE)}; not with {self.task}")
        if "compression.qat" in packed:
            raise ValueError("compression.qat.pack: 8 bits are learned from one text to a row: leave pack out there")
        for where, stage in self._of_the_student():
            between = next((each.name for each in stage.distill.objectives or [] if each.name in _BETWEEN), None)
            if stage.train.pack and between is not None:
                raise ValueError(f"{where}.pack: {between} reads what is between positions, which packed texts do not show")
        return self

    def _labelled(self, stage: Stage) -> bool:
        """Whether a stage's data hold what the task learns from: a task without labels learns from any text."""
        return stage.data is None or stage.data.columns.label is not None or self.task in WITHOUT_LABELS

    @pydantic.model_validator(mode="after")
    def _labels_where_they_are_read(self):
        for stage in self.stages or []:
            if self._labelled(stage):
                continue
            if stage.distill.alpha != 0.0:
                raise ValueError(f"stage {stage.name}: its data have no labels (columns.label: null): set distill.alpha to 0")
            if stage.train.keep == "best" or stage.train.early_stopping is not None:
                best = stage.train.keep == "best"
                asked = "train.keep: best" if best else f"train.early_stopping = {stage.train.early_stopping}"
                raise ValueError(f"stage {stage.name}: without labels there is no best epoch: leave {asked} out")
            if stage is self.stages[-1]:
                raise ValueError(f"stage {stage.name}: the last stage cannot be without labels, which choose its best epoch")
        return self

    @pydantic.model_validator(mode="after")
    def _objectives_suit(self):
        suited = RESPONSES[self.task]
        for stage in self.trainings():
            where = "distill.objectives" if self.stages is None else f"stage {stage.name}: distill.objectives"
            for objective in stage.distill.objectives or []:
                name = objective.name
                if any(name in others for others in RESPONSES.values()) and name not in suited:
                    raise ValueError(f"{where}: {name} does not suit the answers of task: {self.task}; use {', '.join(suited)}")
                if name in _TOGETHER and objective.vector != "mean" and self.task in PER_POSITION:
                    raise ValueError(f"{where}: {name}: task: {self.task} pools no vector of a text; set its vector to mean")
                if name not in _OF_LABELS:
                    continue
                if not self._labelled(stage):
                    raise ValueError(f"{where}: {name} reads labels, and the stage's data have none; use kl_divergence")
                if stage.train.augment and stage.train.augment.concatenate:
                    raise ValueError(f"{where}: {name} reads labels, and concatenated texts have none; use kl_divergence")
        return self

    @pydantic.model_validator(mode="after")
    def _batches_whole(self):
        for where, stage in self._of_the_student():
            together = [objective.name for objective in stage.distill.objectives or [] if objective.name in _TOGETHER]
            if together and stage.train.accumulate > 1:
                raise ValueError(
                    f"{where}.accumulate = {stage.train.accumulate}: {together[0]} compares all examples of a batch, which "
                    "cannot come in parts; leave one of the two out"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _one_plan(self):
        if self.stages is None:
            return self
        for section in sorted({"distill", "train"} & self.model_fields_set):
            if getattr(self, section) != type(getattr(self, section))():
                raise ValueError(f"{section} goes into the stages: with stages there is none outside them")
        names = [stage.name.lower() for stage in self.stages]  # of files, which some systems keep without regard to case
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"stages has {twice} twice: give each a name of its own")
        if self.compression.qat is not None and "int8" in names:
            raise ValueError("stages has int8, which is what compression.qat calls its own training: give it another name")
        return self

    def trainings(self) -> list[Stage]:
        """The student's trainings in order: its stages, or the single one that `distill` and `train` describe."""
        stages = self.stages or [Stage(name="student", distill=self.distill, train=self.train)]
        found = []
        for stage in stages:
            default = "best" if stage is stages[-1] or stage.train.early_stopping is not None else "last"
            kept = stage.train.model_copy(update={"keep": stage.train.keep or default})
            found.append(stage.model_copy(update={"train": kept}))
        return found


def _check_layers(layers: int | list[int], available: int) -> None:
    if (isinstance(layers, int) and layers > available) or (isinstance(layers, list) and layers[-1] >= available):
        raise ValueError(f"student.layers = {layers} asks for more than the teacher's {available} layers")


def load(path: str | os.PathLike, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a YAML file, applies `key=value` overrides and checks the result.

    Arguments:
        path: a YAML file.
        overrides: dotted keys with YAML values, such as `train.epochs=2` or `student.layers=[0,2,4]`.

    Raises:
        UserError: one line with the file, the full key, the value and the nearest valid key.
    """
    path = pathlib.Path(path)
    tree = yaml_file.read(path)
    for override in overrides:
        yaml_file.override(tree, override)
    return parse(tree, str(path))


def parse(tree: dict, where: str = "configuration") -> Config:
    """Checks a tree of plain values against the schema. Raises `UserError` with the first mistake, as `load` does."""
    unwritable = next(_unwritable(tree), None)
    if unwritable is not None:
        raise UserError(f"{where}: {unwritable}")
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: {explain(error, Config)}") from None


def _unwritable(value, key: str = "") -> typing.Iterator[str]:
    """Complaints about texts that no file could be named by, nor UTF-8 hold: with NUL or half of a surrogate pair."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in inner:
        place = f"{key}.{name}" if key else str(name)
        yield from _unwritable(name, place)
        yield from _unwritable(child, place)
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        yield f"{show(key)} = {show(value)}: holds NUL or half of a surrogate pair"


def dump(config: Config) -> str:
    """The configuration as YAML with every default written out; `load` reads it back unchanged."""
    return yaml_file.dump(config.model_dump(mode="json"))


def expand(path: str, key: str) -> str:
    """Replaces `${VARIABLES}` and `~` in a path given in the configuration.

    Raises:
        UserError: a variable is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    if "${" in expanded:
        raise UserError(f"{key}: {path}: {expanded[expanded.index('${') :].split('}')[0]}}} is not set in the environment")
    return expanded


def schema() -> str:
    """The JSON Schema of a configuration file, as text."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
