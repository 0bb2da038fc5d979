"""Folders of sentence-transformers: a Hugging Face encoder, and beside it how the vectors of positions become one of the text."""

import pathlib
from typing import TYPE_CHECKING

from tfkd.checkpoints.description import Fields
from tfkd.checkpoints.safetensors_files import ONE_FILE, read_tensors
from tfkd.errors import UserError, show
from tfkd.run_dir import read_json

if TYPE_CHECKING:
    from tfkd.layers.embedding_head import EmbeddingHead

MODULES, SETTINGS, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
SMALL_FILES = (MODULES, SETTINGS, PROMPTS, "*_Pooling/config.json", "*_Dense/config.json")
WEIGHT_FILES = (f"*_Dense/{ONE_FILE}",)
POOLING = {"mean": "mean", "mean_sqrt_len_tokens": "mean", "cls": "first"}
"""sentence-transformers' name -> ours. A sum over the square root of the length has a mean's direction, and here unit length."""
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How versions before 5 say it: one flag for each way -> the name that later ones give."""
ACTIVATIONS = {"Identity": "linear", "Tanh": "tanh"}
"""Last part of a PyTorch class's name -> ours."""
ORDER = (("Transformer", "Pooling"), ("Transformer", "Pooling", "Dense"))
"""The modules that are read, in their order. `Normalize` may stand behind: here all vectors have unit length."""


def describe(folder: pathlib.Path, width: int, lowercase: bool) -> tuple[dict, pathlib.Path | None]:
    """Arguments of `EmbeddingHead`, and the folder of the layer behind the pooling, None where there is none.

    Arguments:
        width: of the encoder.
        lowercase: whether its word pieces are of lower-cased text.

    Raises:
        UserError: the vectors are made in a way that is not computed here; the message names file, key and value.
    """
    modules = _modules(folder)
    settings, prompts = (Fields.optional(folder / name) for name in (SETTINGS, PROMPTS))
    if prompts.fields("prompts").get(str(prompts.get("default_prompt_name"))):
        prompts.refuse("default_prompt_name", "no prompt is put before texts here: write it into the data, and set this to null")
    if settings.flag("do_lower_case", False) and not lowercase:
        settings.refuse("do_lower_case", "texts are lower-cased here only where the tokenizer does it, with its accents")
    pooling = _fields(folder, modules["Pooling"])
    head = {"pooling": _pooling(pooling)}
    if "Dense" not in modules:
        return head, None
    dense = _fields(folder, modules["Dense"])
    if dense.count("in_features") != width:
        dense.refuse("in_features", f"must be the encoder's width, {width}")
    if dense.flag("use_residual", False):
        dense.refuse("use_residual", "only a plain layer is read")
    activation = str(dense.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        dense.refuse("activation_function", f"must be one of torch.nn's {', '.join(ACTIVATIONS)}")
    head |= {"classes": dense.count("out_features"), "bias": dense.flag("bias", True), "activation": ACTIVATIONS[activation]}
    return head, folder / modules["Dense"]


def open_head(folder: pathlib.Path, width: int, lowercase: bool) -> "EmbeddingHead":
    """The head, built, weights loaded. Raises `UserError` as `describe`, and where weights are missing, misshapen or broken."""
    from tfkd.layers.embedding_head import EmbeddingHead

    arguments, layer = describe(folder, width, lowercase)
    head = EmbeddingHead(**arguments, name="head")
    head.build((None, None, width))
    if layer is not None:
        shapes = {"linear.weight": (head.classes, width)} | ({"linear.bias": (head.classes,)} if head.bias else {})
        found = read_tensors(layer, shapes)
        head.output_dense.kernel.assign(found["linear.weight"].T)
        if head.bias:
            head.output_dense.bias.assign(found["linear.bias"])
    return head


def _modules(folder: pathlib.Path) -> dict[str, str]:
    """What modules.json lists, by the last part of the class's name -> the folder it is in, in its order."""
    file = folder / MODULES
    listed = read_json(file)
    if not isinstance(listed, list):
        raise UserError(f"{file}: must hold a list of modules, not {show(listed)}")
    modules = [Fields(module, file) for module in listed]
    names = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if tuple(names[:-1] if names[-1:] == ["Normalize"] else names) not in ORDER:
        read = " or ".join(", ".join(order) for order in ORDER)
        raise UserError(f"{file}: holds {', '.join(names) or 'nothing'}; only {read} are read, and Normalize behind them")
    for module, name in zip(modules, names, strict=True):
        path = module.get("path", "")
        beside = path not in ("", "..") and path == pathlib.PurePath(str(path)).name
        if not (beside if name != "Transformer" else path == ""):
            module.refuse("path", "must be a folder beside this file, and of the Transformer this folder itself")
    return {name: module.get("path", "") for name, module in zip(names, modules, strict=True)}


def _fields(folder: pathlib.Path, path: str) -> Fields:
    file = folder / path / "config.json"
    if not file.exists():
        raise UserError(f"{file}: no such file, though {MODULES} names its folder")
    return Fields(read_json(file), file)


def _pooling(config: Fields) -> str:
    flags = [mode for key, mode in FLAGS.items() if config.flag(key, False)]
    key = "pooling_mode" if "pooling_mode" in config else next((key for key, mode in FLAGS.items() if mode in flags), "")
    modes = config.get("pooling_mode", flags or ["mean"])
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) > 1:
        raise UserError(f"{config.file}: pools in several ways ({', '.join(map(str, modes))}); only one is read")
    if not modes or modes[0] not in POOLING:
        config.refuse(key, f"only {', '.join(POOLING)} are read")
    return POOLING[modes[0]]
