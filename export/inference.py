"""The student as exporters see it: float32, named inputs, its tokenizer and labels, and which lengths it is asked for."""

import dataclasses
import functools
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

import tfkd.layers.head
import tfkd.layers.token_head
import tfkd.models.encoder
import tfkd.models.quantized
import tfkd.models.with_head  # noqa: F401  these five register what models of a run are made of
from tfkd.config import WITHOUT_LABELS
from tfkd.data.tokenizer import Tokenizer
from tfkd.errors import UserError, first_line
from tfkd.run_dir import RunDir

from .graph import InferenceGraph


@dataclasses.dataclass(frozen=True)
class Student:
    """What every exporter starts from.

    Arguments:
        model: answers a dict of `inputs` with logits, in float32: the reference of every file.
        tokenizer: text to token ids, the one it was trained with.
        labels: names of the outputs, none where they have no names.
        pairs: whether it reads two texts.
        max_length: longest input in tokens.
        lengths: input lengths of formats whose shapes are fixed, rising.
        task: its name, a key of `tfkd.tasks.measures`.
        calibration_texts: file with training texts, one JSON object `{"text", "text_pair"?}` a line.
        masked_score, int8_table: as in `InferenceGraph`.
        run: where it comes from; what a model card tells of it is there.
    """

    model: keras.Model
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    pairs: bool
    max_length: int
    lengths: tuple[int, ...]
    task: str = "classification"
    calibration_texts: pathlib.Path | None = None
    masked_score: float | None = None
    int8_table: bool = False
    run: RunDir | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the model's inputs. A model without segment vectors has no use for segment ids."""
        segments = self.pairs and self.model.encoder.config["segments"]
        return ("token_ids", "padding_mask", "segment_ids") if segments else ("token_ids", "padding_mask")

    @functools.cached_property
    def graph(self) -> InferenceGraph:
        """The model's computation as it is served."""
        return InferenceGraph(self.model, self.masked_score, self.int8_table)

    @property
    def variables(self) -> list[tf.Variable]:
        """The weights of `graph`. What is saved must hold them, or they are left out of the file."""
        return list(self.graph.variables)

    def specs(self, batch: int | None, length: int | None) -> dict[str, tf.TensorSpec]:
        """int32 inputs of shape (batch, length) by name; None is a size known only when serving."""
        return {name: tf.TensorSpec((batch, length), tf.int32, name) for name in self.inputs}

    def logits(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Inputs (B, T) by name -> what the head answers, (B, C) or (B, T, C): what exporters write."""
        return self.graph(inputs)

    def encode(self, texts: list[bytes], pairs: list[bytes] | None, length: int) -> dict[str, tf.Tensor]:
        """Texts, and their second texts where there are any -> int32 inputs (B, length) by name."""
        pairs = None if pairs is None else tf.constant(pairs)
        features = self.tokenizer.padded(tf.constant(texts), pairs, max_length=length, length=length)
        return {name: features[name] for name in self.inputs}

    def calibration(self, length: int) -> dict[str, np.ndarray]:
        """Training texts as int32 inputs (N, length) by name: what ranges of activations are measured on.

        Raises:
            UserError: the run holds none, or a line is none; the message names it.
        """
        path = self.calibration_texts
        if path is None or not path.exists():
            raise UserError(f"{path}: no such file; full int8 is calibrated on training texts, which `tfkd.train` writes there")
        texts, pairs = [], []
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                row = json.loads(line)
                texts.append(row["text"].encode())
                pairs.append(row["text_pair"].encode() if self.pairs else b"")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}:{number}: not a training text of this run ({error})") from None
        if not texts:
            raise UserError(f"{path}: holds no text to calibrate on")
        return {name: np.asarray(values) for name, values in self.encode(texts, pairs if self.pairs else None, length).items()}


def load(run: RunDir, lengths: list[int] | None = None, task: str = "classification") -> Student:
    """Reads the student, its vocabulary and its labels out of a run.

    Arguments:
        lengths: of formats whose shapes are fixed; default: the longest input alone.
        task: name of what it was trained for.

    Raises:
        UserError: a file is missing or unreadable, or the files do not belong together.
    """
    run.require(run.student, run.vocabulary, run.labels, run.tokenizer)
    settings = run.read_tokenizer()
    max_length, pairs = settings["max_length"], settings["pairs"]
    model, labels = float32(read_model(run.student)), tuple(run.read_labels())
    if task == "masked_language_model":
        raise UserError(
            f"{run}: a language model is exported with the task it is fine-tuned for: {run} as its teacher.checkpoint"
        )
    if len(labels) != model.head.classes and task not in WITHOUT_LABELS:
        raise UserError(f"{run.labels}: {len(labels)} labels for the {model.head.classes} classes of {run.student.name}")
    positions = model.encoder.config["max_positions"]
    if max_length > positions:
        raise UserError(f"{run.tokenizer}: max_length = {max_length} is above the {positions} positions of {run.student.name}")
    least = 5 if pairs else 3  # special pieces, and one of each text
    for length in lengths or ():
        if not least <= length <= max_length:
            raise UserError(f"export.lengths holds {length}: must be from {least} to {max_length}, the student's longest input")
    tokenizer, rows = Tokenizer.from_file(run.vocabulary, settings["lowercase"]), model.encoder.config["vocabulary_size"]
    if tokenizer.vocabulary_size > rows:
        pieces = f"{tokenizer.vocabulary_size:,} pieces"
        raise UserError(f"{run.vocabulary}: {pieces} for the {rows:,} embeddings of {run.student.name}")
    lengths = tuple(sorted(set(lengths or [max_length])))
    return Student(model, tokenizer, labels, pairs, max_length, lengths, task, run.calibration, run=run)


def float32(model: keras.Model) -> keras.Model:
    """The same weights in a model that computes in float32, whatever precision it was trained in."""
    config = keras.saving.serialize_keras_object(model)
    wanted = _in_float32(config)
    if wanted == config:
        return model
    twin = keras.saving.deserialize_keras_object(wanted)
    twin.set_weights(model.get_weights())
    return twin


def _in_float32(config):
    """A serialized model with every dtype policy replaced."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": "float32"}}
        return {key: _in_float32(value) for key, value in config.items()}
    return [_in_float32(value) for value in config] if isinstance(config, list) else config


def read_model(path: pathlib.Path) -> keras.Model:
    """A model that a run holds. Raises `UserError` where the file is none."""
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged archive surfaces as anything: zip, HDF5, JSON, Keras
        raise UserError(f"{path}: cannot be read as a Keras model ({first_line(error)})") from error
