"""KerasHub BERT presets, with or without a classifier. KerasHub itself reads the weights."""

import difflib
import pathlib

import numpy as np

from tfkd.checkpoints.description import Description, Fields, check_vocabulary, read_vocabulary
from tfkd.errors import UserError, first_line
from tfkd.run_dir import read_json

BACKBONE, TASKS = "BertBackbone", ("BertTextClassifier", "BertClassifier")
SIZES = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length", "num_segments")
TASK_WEIGHTS = "task.weights.h5"
SMALL_FILES = ("config.json", "task.json", "tokenizer.json", "metadata.json", "assets/tokenizer/vocabulary.txt")
WEIGHT_FILES = ("model.weights.h5", TASK_WEIGHTS)


def fetch(preset: str) -> pathlib.Path:
    """Downloads a preset by KerasHub's name for it, unless it is in the cache.

    Raises:
        UserError: KerasHub has no such BERT preset, or its files cannot be had.
    """
    import keras_hub

    known = keras_hub.models.BertTextClassifier.presets
    if preset not in known:
        close = difflib.get_close_matches(preset, known, n=3) or sorted(known)
        raise UserError(f"keras_hub://{preset}: KerasHub has no such BERT preset; it has {', '.join(close)}")
    import kagglehub

    try:
        return pathlib.Path(kagglehub.model_download(known[preset]["kaggle_handle"].removeprefix("kaggle://")))
    except Exception as error:  # requests, kagglehub and the file system share no base class
        raise UserError(
            f"keras_hub://{preset}: not in the cache, and not to be had from Kaggle ({first_line(error)}); download it where "
            "there is a network and give its folder"
        ) from None


def describe(folder: pathlib.Path, name: str) -> Description:
    """Reads config.json, task.json, tokenizer.json and the vocabulary; KerasHub is not imported.

    BERT there means the tanh approximation of GELU and an epsilon of 1e-12, whatever it was converted from.

    Raises:
        UserError: something is missing or broken, or it is not BERT.
    """
    outer = Fields(read_json(folder / "config.json"), folder / "config.json")
    if outer.get("class_name") != BACKBONE:
        outer.refuse("class_name", f"only KerasHub's {BACKBONE} is read")
    config = outer.fields("config")
    encoder = {
        "vocabulary_size": config.count("vocabulary_size"),
        "layers": config.count("num_layers"),
        "width": config.count("hidden_dim"),
        "heads": config.count("num_heads"),
        "feed_forward": config.count("intermediate_dim"),
        "max_positions": config.count("max_sequence_length", 512),
        "segments": config.count("num_segments", 2),
        "activation": "gelu_tanh",
        "dropout": config.share("dropout", 0.1),
        "epsilon": 1e-12,
    }
    tokenizer = Fields(read_json(folder / "tokenizer.json"), folder / "tokenizer.json")
    if tokenizer.get("class_name") != "BertTokenizer":
        tokenizer.refuse("class_name", "only KerasHub's BertTokenizer is read")
    file = folder / "assets" / "tokenizer" / "vocabulary.txt"
    pieces = check_vocabulary(read_vocabulary(file), file, encoder["vocabulary_size"])
    return Description(name, encoder, _head(folder, config), None, pieces, tokenizer.fields("config").flag("lowercase", False))


def _head(folder: pathlib.Path, backbone: Fields) -> dict | None:
    """Arguments of the `ClassificationHead` that a text classifier's task.json describes; None for other tasks and none.

    KerasHub builds a classifier from the backbone in task.json, so that one must be the `backbone` of config.json.
    """
    if not (folder / "task.json").exists():
        return None
    task = Fields(read_json(folder / "task.json"), folder / "task.json")
    if task.get("class_name") not in TASKS:
        return None
    config = task.fields("config")
    if config.get("activation", "linear") not in ("linear", "softmax"):
        config.refuse("activation", "only a classifier of one label for a text is read: linear or softmax")
    if config.count("num_classes") < 2:
        config.refuse("num_classes", "only a classifier of two classes or more is read")
    inner = config.fields("backbone").fields("config")
    for key in SIZES:
        if inner.get(key) != backbone.get(key):
            raise UserError(f"{folder}: config.json and task.json disagree on {key}: {backbone.get(key)} and {inner.get(key)}")
    return {"classes": config.count("num_classes"), "pooling": "first", "hidden": "tanh", "dropout": config.share("dropout", 0.1)}


def weights(folder: pathlib.Path, description: Description) -> "Weights":
    """Loads the preset with KerasHub. Raises `UserError` with KerasHub's reason where it cannot."""
    import keras_hub

    if description.head is not None and not (folder / TASK_WEIGHTS).exists():  # KerasHub would start a random classifier
        raise UserError(f"{folder}: task.json describes a classifier, but {TASK_WEIGHTS} is missing")
    model = keras_hub.models.BertBackbone if description.head is None else keras_hub.models.BertTextClassifier
    options = {} if description.head is None else {"preprocessor": None}
    try:
        loaded = model.from_preset(str(folder.resolve()), dtype="float32", **options)
    except Exception as error:  # Keras, h5py and the file system share no base class
        raise UserError(f"{folder}: KerasHub cannot load it ({first_line(error)})") from None
    return Weights(loaded, folder)


class Weights:
    """A KerasHub model's variables by our names."""

    has_pooler = True

    def __init__(self, model, folder: pathlib.Path):
        self.folder = folder
        backbone = getattr(model, "backbone", model)
        self.layers = {
            "token": backbone.token_embedding,
            "position": backbone.position_embedding,
            "segment": backbone.segment_embedding,
            "embedding_norm": backbone.embeddings_layer_norm,
            "hidden": backbone.pooled_dense,
            "output": getattr(model, "output_dense", None),
        }
        for index, block in enumerate(backbone.transformer_layers):
            for part, name in _BLOCK.items():
                layer = block
                for step in name.split("."):
                    layer = getattr(layer, step)
                self.layers[part, index] = layer

    def take(self, slot: tuple[str, int | None, str]) -> np.ndarray:
        """An array as our layers hold it: attention's per-head kernels flattened. Raises `UserError` where it is not finite."""
        part, index, kind = slot
        layer = self.layers[part if index is None else (part, index)]
        if kind == "table":
            return self._finite(layer.position_embeddings if part == "position" else layer.embeddings)
        values = self._finite(getattr(layer, kind))
        if part in ("query", "key", "value"):  # (D, H, d) and (H, d)
            return values.reshape(values.shape[0], -1) if kind == "kernel" else values.reshape(-1)
        if part == "attention_output" and kind == "kernel":  # (H, d, D)
            return values.reshape(-1, values.shape[-1])
        return values

    def _finite(self, variable) -> np.ndarray:
        values = np.asarray(variable)
        if not np.isfinite(values).all():
            raise UserError(f"{self.folder}: {variable.path} holds NaN or infinity; the checkpoint is broken")
        return values


# KerasHub keeps a block's layers under private names and offers no public ones; the test on a tiny preset holds them.
_BLOCK = {
    "query": "_self_attention_layer.query_dense",
    "key": "_self_attention_layer.key_dense",
    "value": "_self_attention_layer.value_dense",
    "attention_output": "_self_attention_layer.output_dense",
    "attention_norm": "_self_attention_layer_norm",
    "expand": "_feedforward_intermediate_dense",
    "contract": "_feedforward_output_dense",
    "feed_forward_norm": "_feedforward_layer_norm",
}
