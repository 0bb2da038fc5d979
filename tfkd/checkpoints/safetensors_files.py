"""Tensors of a Hugging Face folder by our names. No TensorFlow."""

import pathlib
from collections.abc import Iterable

import ml_dtypes  # noqa: F401  makes bfloat16 a NumPy type, which safetensors looks up by name
import numpy as np
from safetensors import SafetensorError, safe_open

from tfkd.checkpoints.description import Fields
from tfkd.errors import UserError, show
from tfkd.run_dir import read_json

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_FILES = (ONE_FILE, INDEX, "model-*-of-*.safetensors")
FLOATS = ("F64", "F32", "F16", "BF16")

_BERT = {
    "token": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "segment": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "query": "encoder.layer.{}.attention.self.query",
    "key": "encoder.layer.{}.attention.self.key",
    "value": "encoder.layer.{}.attention.self.value",
    "attention_output": "encoder.layer.{}.attention.output.dense",
    "attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "expand": "encoder.layer.{}.intermediate.dense",
    "contract": "encoder.layer.{}.output.dense",
    "feed_forward_norm": "encoder.layer.{}.output.LayerNorm",
}
_DISTILBERT = {
    "token": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "query": "transformer.layer.{}.attention.q_lin",
    "key": "transformer.layer.{}.attention.k_lin",
    "value": "transformer.layer.{}.attention.v_lin",
    "attention_output": "transformer.layer.{}.attention.out_lin",
    "attention_norm": "transformer.layer.{}.sa_layer_norm",
    "expand": "transformer.layer.{}.ffn.lin1",
    "contract": "transformer.layer.{}.ffn.lin2",
    "feed_forward_norm": "transformer.layer.{}.output_layer_norm",
}
BODIES = {"bert": _BERT, "distilbert": _DISTILBERT, "electra": _BERT}
HEADS = {
    "bert": {"hidden": "bert.pooler.dense", "output": "classifier"},
    "distilbert": {"hidden": "pre_classifier", "output": "classifier"},
    "electra": {"hidden": "classifier.dense", "output": "classifier.out_proj"},
}
TOKEN_HEADS = {"tagging": {"output": "classifier"}, "question_answering": {"output": "qa_outputs"}}
"""By task, where a head scores every position: the same for all families."""
SUFFIXES = {
    "table": (".weight",),
    "kernel": (".weight",),
    "bias": (".bias",),
    "gamma": (".weight", ".gamma"),
    "beta": (".bias", ".beta"),
}


class Tensors:
    """The tensors of a folder, read one at a time.

    Arguments:
        folder: holds model.safetensors, or model.safetensors.index.json and its parts.
        family: `bert`, `distilbert` or `electra`.
        task: of the head, where there is one.

    Raises:
        UserError: no weights, only pickled ones, or files that are cut off or missing.
    """

    def __init__(self, folder: pathlib.Path, family: str, task: str | None = None):
        self.folder, self.family = folder, family
        self.files = _files(folder)
        prefix = f"{family}."
        bare = not any(name.startswith(prefix) for name in self.files)
        self.prefix = "" if bare else prefix
        self.stems = {part: self.prefix + stem for part, stem in BODIES[family].items()}
        heads = HEADS[family] | TOKEN_HEADS.get(task, {})
        self.stems |= {part: stem.removeprefix(prefix) if bare else stem for part, stem in heads.items()}

    def name(self, slot: tuple[str, int | None, str]) -> str | None:
        """What the folder calls a slot of `description.slots`; None where it has no such tensor."""
        part, layer, kind = slot
        names = [self.stems[part].format(layer) + suffix for suffix in SUFFIXES[kind]]
        return next((name for name in names if name in self.files), None)

    @property
    def has_pooler(self) -> bool:
        """Whether BERT's pooler is there, with or without a classifier."""
        return self.family == "bert" and self.name(("hidden", None, "kernel")) is not None

    def check(self, expected: Iterable, body_only: bool, description: str) -> None:
        """Compares names and shapes with what `expected` yields, without reading values.

        Arguments:
            expected: (slot, shape) pairs, kernels as (inputs, outputs).
            body_only: whether tensors outside the encoder, other heads', may be there.
            description: where the expectation comes from, for messages.

        Raises:
            UserError: a tensor is missing, too many, of another shape or not made of floats.
        """
        known = set()
        for slot, shape in expected:
            part, layer, kind = slot
            name = self.name(slot)
            if name is None:
                missing = self.stems[part].format(layer) + SUFFIXES[kind][0]
                raise UserError(f"{self.folder}: no tensor {missing} in its weights, which {description} asks for")
            known.add(name)
            header = self.files[name].get_slice(name)
            wanted = shape[::-1] if kind == "kernel" else shape
            if tuple(header.get_shape()) != wanted:
                raise UserError(
                    f"{self.folder}: tensor {name} is {_shape(header.get_shape())}; {description} asks for {_shape(wanted)}"
                )
            if header.get_dtype() not in FLOATS:
                raise UserError(
                    f"{self.folder}: tensor {name} is made of {header.get_dtype()}; only {', '.join(FLOATS)} are read"
                )
        for name in self.files.keys() - known:
            outside = body_only and not name.startswith(self.prefix or ("embeddings.", "encoder.", "transformer."))
            if not outside and not name.endswith("position_ids"):
                raise UserError(f"{self.folder}: tensor {name} has no place in the model of {description}; it would be lost")

    def take(self, slot: tuple[str, int | None, str]) -> np.ndarray:
        """A tensor as float32, kernels turned to (inputs, outputs). Raises `UserError` where it is not finite."""
        name = self.name(slot)
        values = _float32(self.files[name], name, self.folder)
        return values.T if slot[2] == "kernel" else values


def read_tensors(folder: pathlib.Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The tensors of a small folder, float32, by name; they must be those of `shapes`. Raises `UserError` as `Tensors`."""
    files = _files(folder)
    for name, shape in shapes.items():
        if name not in files:
            raise UserError(f"{folder}: no tensor {name} in its weights, which its config.json asks for")
        found = tuple(files[name].get_slice(name).get_shape())
        if found != shape:
            raise UserError(f"{folder}: tensor {name} is {_shape(found)}; its config.json asks for {_shape(shape)}")
    if more := files.keys() - shapes.keys():
        raise UserError(f"{folder}: tensor {min(more)} has no place in the layer of its config.json; it would be lost")
    return {name: _float32(files[name], name, folder) for name in shapes}


def _float32(file, name: str, folder: pathlib.Path) -> np.ndarray:
    """A tensor as float32. Raises `UserError` where it is not finite."""
    with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes infinity, and is refused as such
        values = file.get_tensor(name).astype("float32")
    if not np.isfinite(values).all():
        raise UserError(f"{folder}: tensor {name} holds NaN or infinity; the checkpoint is broken")
    return values


def _shape(shape) -> str:
    return " x ".join(str(size) for size in shape) or "a single number"


def _files(folder: pathlib.Path) -> dict:
    """Tensor name -> the open file that holds it."""
    if (folder / ONE_FILE).exists():
        opened = _open(folder / ONE_FILE)
        return dict.fromkeys(opened.keys(), opened)
    if not (folder / INDEX).exists():
        pickled = next(iter(sorted(folder.glob("*.bin"))), None)
        why = f"{pickled.name} is a pickle, which can run code and is not read" if pickled else "no weights"
        raise UserError(
            f"{folder}: no {ONE_FILE} ({why}); write one with "
            "transformers.AutoModelForSequenceClassification.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    index = Fields(read_json(folder / INDEX), folder / INDEX)
    parts = index.fields("weight_map").values
    for name, part in parts.items():
        if not isinstance(part, str) or pathlib.PurePath(part).name != part:
            raise UserError(f"{folder / INDEX}: {name} is said to be in {show(part)}, which is not a file beside it")
    opened = {part: _open(folder / part) for part in sorted(set(parts.values()))}
    present = {part: set(file.keys()) for part, file in opened.items()}
    for name, part in parts.items():
        if name not in present[part]:
            raise UserError(f"{folder / part}: no tensor {name}, which {INDEX} says is there")
    return {name: opened[part] for name, part in parts.items()}


def _open(file: pathlib.Path):
    try:
        return safe_open(file, framework="numpy")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file, though {INDEX} names it") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); fetch it again") from None
