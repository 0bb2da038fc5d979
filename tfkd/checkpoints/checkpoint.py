"""Opens a checkpoint by its reference: a folder, `hf://owner/name` or `keras_hub://preset`."""

import dataclasses
import pathlib
import types
from typing import TYPE_CHECKING

import numpy as np

from tfkd.checkpoints import hugging_face, keras_hub, run, safetensors_files, sentence_transformers
from tfkd.checkpoints.description import Description
from tfkd.errors import UserError, show
from tfkd.run_dir import read_json

if TYPE_CHECKING:  # TensorFlow takes seconds to import, and `describe` does without it
    import keras

    from tfkd.models.encoder import TransformerEncoder

FORMS = "a folder, hf://owner/name or keras_hub://preset"
SMALL_FILES = hugging_face.SMALL_FILES + sentence_transformers.SMALL_FILES + keras_hub.SMALL_FILES
WEIGHT_FILES = safetensors_files.WEIGHT_FILES + sentence_transformers.WEIGHT_FILES + keras_hub.WEIGHT_FILES


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Somebody's trained encoder in our layers, with what it needs to read text.

    Attributes:
        name: what to call it.
        encoder: weights loaded, created in the caller's `tf.distribute` scope and dtype policy.
        head: the checkpoint's own head, built, weights loaded; None where it has none.
        labels: names of the head's `head.classes` classes in order; None without a head, and for KerasHub presets, which
            do not name them.
        pieces: the WordPiece vocabulary in id order.
        lowercase: whether texts are lower-cased and stripped of accents.
        max_length: longest text in word pieces.
        pooler: kernel (D, D), inputs by outputs, and bias (D,) of BERT's tanh pooler, for a new head's hidden layer to start
            from; None where the checkpoint has none.
        task: name of the task whose head it is.
    """

    name: str
    encoder: "TransformerEncoder"
    head: "keras.layers.Layer | None"
    labels: list[str] | None
    pieces: list[str]
    lowercase: bool
    max_length: int
    pooler: tuple[np.ndarray, np.ndarray] | None
    task: str | None = "classification"


def describe(reference: str, revision: str | None = None) -> Description:
    """What a checkpoint is, from its small files, without TensorFlow; of a `keras_hub://` preset alone weights are fetched.

    Raises:
        UserError: as `open_checkpoint`, for all but the weights.
    """
    folder, name, kind = _locate(reference, revision, weights=False)
    return kind.describe(folder, name)


def open_checkpoint(reference: str, revision: str | None = None, vectors: bool = False) -> Checkpoint:
    """Reads a checkpoint's weights into our encoder and, where it has a classifier, our head.

    Arguments:
        reference: a Hugging Face folder (config.json, safetensors, vocabulary), a KerasHub preset folder,
            `hf://owner/name` or `keras_hub://preset`; the last two are fetched unless they are in the cache. Or a run of
            tfkd, which means the teacher that was trained there, or one of its `.keras` files.
        revision: branch, tag or commit of an `hf://` reference.
        vectors: the head that is wanted makes one vector of a text: as a folder of sentence-transformers says, in place of any
            other head; without one where nothing says it.

    Raises:
        UserError: nothing there, not reachable, not of the BERT family, broken, or computed differently here.
    """
    if run.is_run(reference) and revision is None:
        return Checkpoint(**run.open_run(reference))
    folder, name, kind = _locate(reference, revision, weights=True)
    description = kind.describe(folder, name)
    vectors = vectors and (folder / sentence_transformers.MODULES).exists()
    if vectors:
        description = dataclasses.replace(description, head=None, labels=None, task="sentence_embedding")
    source = kind.weights(folder, description)
    from tfkd.layers.head import ClassificationHead, RegressionHead
    from tfkd.layers.token_head import SpanHead, TokenHead
    from tfkd.models.encoder import TransformerEncoder

    heads = {"regression": RegressionHead, "tagging": TokenHead, "question_answering": SpanHead}
    encoder = TransformerEncoder(**description.encoder)
    head = None
    if description.head is not None:
        head = heads.get(description.task, ClassificationHead)(**description.head)
        head.build((None, None, description.encoder["width"]))
    for variable, slots in variables(encoder, head):
        variable.assign(np.concatenate([source.take(slot) for slot in slots], axis=-1))
    if vectors:
        head = sentence_transformers.open_head(folder, description.encoder["width"], description.lowercase)
    pooler = None
    if source.has_pooler:
        pooler = source.take(("hidden", None, "kernel")), source.take(("hidden", None, "bias"))
    return Checkpoint(
        name,
        encoder,
        head,
        description.labels,
        description.pieces,
        description.lowercase,
        description.max_length,
        pooler,
        description.task,
    )


def variables(encoder, head):
    """Yields every variable with the slots of `description.slots` that fill it, side by side."""

    def dense(layer, part, index=None):
        yield layer.kernel, [(part, index, "kernel")]
        yield layer.bias, [(part, index, "bias")]

    def norm(layer, part, index=None):
        yield layer.gamma, [(part, index, "gamma")]
        yield layer.beta, [(part, index, "beta")]

    for part, table in (
        ("token", encoder.embedding.token_table),
        ("position", encoder.embedding.position_table),
        ("segment", encoder.embedding.segment_table),
    ):
        if table is not None:
            yield table, [(part, None, "table")]
    yield from norm(encoder.embedding.layer_norm, "embedding_norm")
    for index, block in enumerate(encoder.blocks):
        attention = block.attention
        yield attention.kernel, [(part, index, "kernel") for part in ("query", "key", "value")]
        yield attention.bias, [(part, index, "bias") for part in ("query", "key", "value")]
        yield attention.output_kernel, [("attention_output", index, "kernel")]
        yield attention.output_bias, [("attention_output", index, "bias")]
        yield from norm(block.attention_norm, "attention_norm", index)
        yield from dense(block.feed_forward.expand, "expand", index)
        yield from dense(block.feed_forward.contract, "contract", index)
        yield from norm(block.feed_forward_norm, "feed_forward_norm", index)
    if head is not None:
        if hasattr(head, "hidden_dense"):
            yield from dense(head.hidden_dense, "hidden")
        yield from dense(head.output_dense, "output")


def _locate(reference: str, revision: str | None, weights: bool) -> tuple[pathlib.Path, str, types.ModuleType]:
    """The folder a reference means, fetched where it is remote; a name for it; and the module that reads its kind."""
    scheme, separator, rest = reference.partition("://")
    if revision is not None and (scheme, separator) != ("hf", "://"):
        raise UserError(f"revision {revision} goes with an hf:// checkpoint, not with {reference}")
    if not separator:
        folder, name = pathlib.Path(reference), pathlib.Path(reference).resolve().name
    elif scheme == "hf":
        folder, name = hugging_face.fetch(rest, revision, SMALL_FILES + (WEIGHT_FILES if weights else ())), rest
    elif scheme == "keras_hub":
        folder, name = keras_hub.fetch(rest), rest
    else:
        raise UserError(f"{reference}: not a checkpoint; give {FORMS}")
    return folder, name, _kind(folder, reference)


def _kind(folder: pathlib.Path, reference: str) -> types.ModuleType:
    if not folder.is_dir():
        hint = f"; give the folder it is in: {folder.parent}" if folder.exists() else f"; a checkpoint is {FORMS}"
        raise UserError(f"{reference}: {'a file' if folder.exists() else 'no such folder'}{hint}")
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: no config.json; a checkpoint folder is one that Hugging Face or KerasHub saved")
    config = read_json(folder / "config.json")
    if isinstance(config, dict) and "model_type" in config:
        return hugging_face
    if isinstance(config, dict) and "class_name" in config:
        return keras_hub
    raise UserError(f"{folder / 'config.json'}: neither Hugging Face's (model_type) nor KerasHub's (class_name): {show(config)}")
