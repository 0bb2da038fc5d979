"""Hugging Face folders: what their JSON and vocabulary say. No transformers, no PyTorch, no pickles."""

import pathlib

from tfkd.checkpoints.description import Description, Fields, check_vocabulary, read_vocabulary, slots
from tfkd.checkpoints.safetensors_files import Tensors
from tfkd.errors import UserError, first_line, show
from tfkd.run_dir import read_json

SMALL_FILES = ("config.json", "vocab.txt", "tokenizer_config.json", "tokenizer.json")
FAMILIES = ("bert", "distilbert", "electra")
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
PROBLEMS = {
    "single_label_classification": "classification",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}
"""What Hugging Face calls a text classifier's problem -> our task."""
TOKEN_TASKS = {"ForTokenClassification": "tagging", "ForQuestionAnswering": "question_answering"}
"""How the names of architectures end -> our task."""
HEAD_ACTIVATIONS = {"bert": "tanh", "distilbert": "relu", "electra": "gelu"}
TOKENIZERS = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "PreTrainedTokenizer", "TokenizersBackend")


def fetch(repository: str, revision: str | None, files: tuple[str, ...]) -> pathlib.Path:
    """Downloads those of `files` (names or patterns) that a repository of the Hugging Face Hub has, unless they are in its cache.

    Raises:
        UserError: no such repository or revision, no permission, or no network.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except errors.GatedRepoError:
        why = "it is gated; accept its conditions on its page, then log in with `hf auth login` or set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        why = "no such repository, or a private one; for that log in with `hf auth login` or set HF_TOKEN"
    except errors.RevisionNotFoundError:
        why = f"it has no revision {revision}"
    except errors.HFValidationError:
        why = "write hf://owner/name"
    except errors.LocalEntryNotFoundError:
        why = "not in the cache, and the Hub cannot be reached; download it where there is a network and give its folder"
    except Exception as error:  # httpx, the Hub's own and the file system's errors share no base class
        why = first_line(error)
    raise UserError(f"hf://{repository}: {why}")


def describe(folder: pathlib.Path, name: str) -> Description:
    """Reads config.json, the vocabulary and the tokenizer's settings.

    Raises:
        UserError: something is missing, broken, or would be computed differently here.
    """
    config = Fields(read_json(folder / "config.json"), folder / "config.json")
    if config.get("model_type") not in FAMILIES:
        config.refuse("model_type", f"only WordPiece encoders are read: {', '.join(FAMILIES)}")
    encoder = _encoder(config)
    task = _task(config)
    labels = None if task in (None, "question_answering") else _labels(config)
    head = None if task is None else _head(config, task, 2 if labels is None else len(labels))
    pieces, file = _pieces(folder)
    pieces = check_vocabulary(pieces, file, encoder["vocabulary_size"])
    return Description(name, encoder, head, labels, pieces, _lowercase(folder), task)


def weights(folder: pathlib.Path, description: Description) -> Tensors:
    """Opens the weights; checks names and shapes, not yet values. Raises `UserError` where config.json says otherwise."""
    config = Fields(read_json(folder / "config.json"), folder / "config.json")
    tensors = Tensors(folder, config.get("model_type"), description.task)
    if not config.get("architectures") and tensors.name(("output", None, "kernel")):
        raise UserError(
            f"{config.file}: no architectures, but the weights hold a classifier; say which it is, such as "
            '"architectures": ["BertForSequenceClassification"]'
        )
    expected = slots(description.encoder, description.head, tensors.has_pooler)
    tensors.check(expected, description.head is None, "config.json")
    return tensors


def _encoder(config: Fields) -> dict:
    """Arguments of `TransformerEncoder`."""
    if config.get("position_embedding_type", "absolute") != "absolute":
        config.refuse("position_embedding_type", "only absolute positions are read")
    for key in ("is_decoder", "add_cross_attention", "pruned_heads"):
        if config.get(key):
            config.refuse(key, "only whole encoders are read")
    return _distilbert(config) if config.get("model_type") == "distilbert" else _bert(config)


def _bert(config: Fields) -> dict:
    width = config.count("hidden_size")
    if config.get("model_type") == "electra" and config.count("embedding_size") != width:
        config.refuse("embedding_size", f"only embeddings as wide as the encoder ({width}) are read")
    epsilon = config.get("layer_norm_eps", 1e-12)
    if type(epsilon) is not float or not 0 < epsilon < 1:
        config.refuse("layer_norm_eps", "must be a number between 0 and 1")
    return {
        "vocabulary_size": config.count("vocab_size"),
        "layers": config.count("num_hidden_layers"),
        "width": width,
        "heads": config.count("num_attention_heads"),
        "feed_forward": config.count("intermediate_size"),
        "max_positions": config.count("max_position_embeddings", 512),
        "segments": config.count("type_vocab_size", 2),
        "activation": _activation(config, "hidden_act"),
        "dropout": config.share("hidden_dropout_prob", 0.1),
        "attention_dropout": config.share("attention_probs_dropout_prob", 0.1),
        "epsilon": epsilon,
    }


def _distilbert(config: Fields) -> dict:
    return {
        "vocabulary_size": config.count("vocab_size"),
        "layers": config.count("n_layers"),
        "width": config.count("dim"),
        "heads": config.count("n_heads"),
        "feed_forward": config.count("hidden_dim"),
        "max_positions": config.count("max_position_embeddings", 512),
        "segments": 0,
        "activation": _activation(config, "activation"),
        "dropout": config.share("dropout", 0.1),
        "attention_dropout": config.share("attention_dropout", 0.1),
        "epsilon": 1e-12,
    }


def _activation(config: Fields, key: str) -> str:
    name = config.get(key, "gelu")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        config.refuse(key, f"must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _task(config: Fields) -> str | None:
    """The task whose head the architecture has; None where it has none of ours."""
    architecture = str(next(iter(config.items("architectures")), ""))
    for ending, task in TOKEN_TASKS.items():
        if architecture.endswith(ending):
            return task
    if not architecture.endswith("ForSequenceClassification"):
        return None
    outputs = len(_labels(config))
    problem = config.get("problem_type", "single_label_classification" if outputs > 1 else "regression")
    if problem not in PROBLEMS:
        config.refuse("problem_type", f"must be one of {', '.join(PROBLEMS)}")
    if problem == "regression" and outputs > 1:
        raise UserError(f"{config.file}: a head for {show(problem)} of {outputs} numbers; only one number is read")
    return PROBLEMS[problem]


def _head(config: Fields, task: str, classes: int) -> dict:
    """Arguments of the task's head, as a family's architecture has it."""
    family = config.get("model_type")
    if task in TOKEN_TASKS.values():
        return {"classes": classes, "dropout": config.share("classifier_dropout", 0.1)}
    if family == "distilbert":
        dropout = config.share("seq_classif_dropout", 0.2)
    else:
        dropout = config.share("classifier_dropout", config.share("hidden_dropout_prob", 0.1))
    return {"classes": classes, "pooling": "first", "hidden": HEAD_ACTIVATIONS[family], "dropout": dropout}


def _labels(config: Fields) -> list[str]:
    """Label names in class order."""
    names = config.fields("id2label").values
    if not names:  # what Hugging Face takes an absent table to mean
        names = {str(index): f"LABEL_{index}" for index in range(config.count("num_labels", 2))}
    if sorted(names, key=lambda key: (len(key), key)) != [str(index) for index in range(len(names))]:
        config.refuse("id2label", f"must name the classes 0 to {len(names) - 1}")
    labels = [names[str(index)] for index in range(len(names))]
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        config.refuse("id2label", "must give every class a name of its own")
    return labels


def _pieces(folder: pathlib.Path) -> tuple[list[str], pathlib.Path]:
    """The vocabulary in id order, from vocab.txt or else tokenizer.json, and the file that had it."""
    file = folder / "tokenizer.json"
    tokenizer = Fields.optional(file)
    model = tokenizer.fields("model")
    if model.get("type", "WordPiece") != "WordPiece" or model.get("continuing_subword_prefix", "##") != "##":
        raise UserError(f"{file}: a {model.get('type')} tokenizer; only BERT's WordPiece with ## is read")
    if (folder / "vocab.txt").exists() or not file.exists():
        return read_vocabulary(folder / "vocab.txt"), folder / "vocab.txt"
    ids = dict(model.fields("vocab").values)
    for token in tokenizer.items("added_tokens"):
        added = Fields(token, file)
        ids[str(added.get("content"))] = added.get("id")
    if sorted(ids.values(), key=str) != sorted(range(len(ids)), key=str):
        raise UserError(f"{file}: the ids of its {len(ids)} pieces are not 0 to {len(ids) - 1}")
    return sorted(ids, key=ids.get), file


def _lowercase(folder: pathlib.Path) -> bool:
    """Whether texts are lower-cased: tokenizer_config.json, then tokenizer.json, as in transformers, then BERT's default, yes.

    Raises:
        UserError: the tokenizer is not BERT's, or lower-cases and strips accents one without the other.
    """
    settings = Fields.optional(folder / "tokenizer_config.json")
    if str(settings.get("tokenizer_class", TOKENIZERS[0])).removesuffix("Fast") not in TOKENIZERS:
        settings.refuse("tokenizer_class", "only BERT's WordPiece tokenizer is read")
    normalizer = Fields.optional(folder / "tokenizer.json").fields("normalizer")
    if (folder / "tokenizer.json").exists() and normalizer.get("type") != "BertNormalizer":
        raise UserError(f"{normalizer.file}: normalizer = {show(normalizer.values)}: only a BertNormalizer is read")
    lowercase = settings.flag("do_lower_case", normalizer.flag("lowercase", True))
    for fields, accents, chinese in (
        (settings, "strip_accents", "tokenize_chinese_chars"),
        (normalizer, "strip_accents", "handle_chinese_chars"),
    ):
        if fields.flag(accents, lowercase) != lowercase:
            fields.refuse(accents, f"must be {show(lowercase)} like lower-casing; only BERT's own two ways are read")
        if not fields.flag(chinese, True):
            fields.refuse(chinese, "must be true; only BERT's own way is read")
    return lowercase
