"""Folders of sentence-transformers: the head is the one that modules.json describes, or is refused in one line."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.test_checkpoints import D, batch, config_of, minilm_folder, numpy_encoder, tensors_of, write
from tfkd.checkpoints.checkpoint import open_checkpoint
from tfkd.errors import UserError
from tfkd.models.with_head import TransformerWithHead

TYPES = "sentence_transformers.models."
PARTS = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3_Normalize"}
MEAN = {"word_embedding_dimension": D, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
CLS = {"word_embedding_dimension": D, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
DENSE = {"in_features": D, "out_features": 5, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
DRAW = np.random.default_rng(3)
WEIGHT, BIAS = DRAW.normal(0, 1, (5, D)).astype("float32"), DRAW.normal(0, 1, 5).astype("float32")


def folder_of(path: pathlib.Path, pooling=MEAN, dense=None, names=None, types=TYPES, arrays=None, settings=None) -> str:
    """A tiny BERT without a head, and beside it what sentence-transformers writes."""
    write(path, config_of("bert", None), tensors_of("bert", None))
    names = names or ["Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize"]
    modules = [{"idx": i, "name": str(i), "path": PARTS.get(name, name), "type": types + name} for i, name in enumerate(names)]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "sentence_bert_config.json").write_text(json.dumps(settings or {"max_seq_length": 12, "do_lower_case": False}))
    for folder, content in (("1_Pooling", pooling), ("2_Dense", dense)):
        if content is not None:
            (path / folder).mkdir()
            (path / folder / "config.json").write_text(json.dumps(content))
    if dense is not None:
        save_file(arrays or {"linear.weight": WEIGHT, "linear.bias": BIAS}, path / "2_Dense" / "model.safetensors")
    return str(path)


def vectors_by_hand(pooling: str, layer=None) -> np.ndarray:
    inputs = batch(segments=False)
    hidden = numpy_encoder(config_of("bert", None), tensors_of("bert", None), inputs)[-1]
    mask = inputs["padding_mask"][..., np.newaxis]
    vectors = hidden[:, 0] if pooling == "first" else (hidden * mask).sum(1) / mask.sum(1)
    vectors = vectors if layer is None else layer(vectors)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("made", "pooling", "layer"),
    [
        ({}, "mean", None),
        ({"pooling": CLS}, "first", None),
        ({"pooling": {"embedding_dimension": D, "pooling_mode": "cls"}}, "first", None),
        ({"pooling": {"embedding_dimension": D, "pooling_mode": ["mean"]}, "names": ["Transformer", "Pooling"]}, "mean", None),
        ({"pooling": {"embedding_dimension": D, "pooling_mode": "mean_sqrt_len_tokens"}}, "mean", None),
        ({"pooling": {"word_embedding_dimension": D}}, "mean", None),  # as the library itself takes it
        ({"types": "sentence_transformers.sentence_transformer.modules.pooling."}, "mean", None),
        ({"pooling": CLS, "dense": DENSE}, "first", lambda x: np.tanh(x @ WEIGHT.T + BIAS)),
        (
            {
                "dense": DENSE | {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"},
                "arrays": {"linear.weight": WEIGHT},
            },
            "mean",
            lambda x: x @ WEIGHT.T,
        ),
    ],
)
def test_vectors_are_made_as_the_folder_says(tmp_path, made, pooling, layer):
    found = open_checkpoint(folder_of(tmp_path / "st", **made), vectors=True)
    assert (found.task, found.labels) == ("sentence_embedding", None)
    vectors = TransformerWithHead(found.encoder, found.head)(batch(segments=False))
    np.testing.assert_allclose(vectors, vectors_by_hand(pooling, layer), atol=2e-5)


def test_a_square_layer_without_bias_and_activation_is_not_forgotten(tmp_path):
    square = DRAW.normal(0, 1, (D, D)).astype("float32")
    dense = {"in_features": D, "out_features": D, "bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
    path = folder_of(tmp_path / "st", dense=dense, arrays={"linear.weight": square})
    found = open_checkpoint(path, vectors=True)
    vectors = TransformerWithHead(found.encoder, found.head)(batch(segments=False))
    np.testing.assert_allclose(vectors, vectors_by_hand("mean", lambda x: x @ square.T), atol=2e-5)


def test_other_tasks_see_an_encoder_without_a_head_whatever_makes_its_vectors(tmp_path):
    path = folder_of(tmp_path / "st", pooling={"pooling_mode": "max"})
    found = open_checkpoint(path)
    assert (found.head, found.task) == (None, None) and found.pooler is not None


def test_a_folder_that_says_nothing_of_vectors_brings_no_head(tmp_path):
    path = write(tmp_path / "bert", config_of("bert", None), tensors_of("bert", None))
    assert open_checkpoint(path, vectors=True).head is None


def test_minilm_makes_means():
    head = open_checkpoint(str(minilm_folder()), vectors=True).head
    assert (head.pooling, head.classes, head.output_dense) == ("mean", 384, None)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            {"pooling": {"pooling_mode": "max"}},
            '1_Pooling/config.json: pooling_mode = "max": only mean, mean_sqrt_len_tokens, cls',
        ),
        (
            {"pooling": {"pooling_mode_max_tokens": True}},
            "config.json: pooling_mode_max_tokens = true: only mean, mean_sqrt_len_tokens, cls are read",
        ),
        (
            {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}},
            "pools in several ways (cls, mean); only one is read",
        ),
        ({"pooling": {"pooling_mode_cls_token": "yes"}}, 'pooling_mode_cls_token = "yes": must be true or false'),
        ({"pooling": {"pooling_mode": []}}, "pooling_mode = []: only mean"),
        ({"pooling": None}, "1_Pooling/config.json: no such file, though modules.json names its folder"),
        (
            {"names": ["Transformer", "Pooling", "CNN"]},
            "modules.json: holds Transformer, Pooling, CNN; only Transformer, Pooling or",
        ),
        ({"names": ["Transformer"]}, "modules.json: holds Transformer; only Transformer, Pooling or"),
        ({"dense": DENSE | {"in_features": 7}}, f"in_features = 7: must be the encoder's width, {D}"),
        ({"dense": DENSE | {"use_residual": True}}, "use_residual = true: only a plain layer is read"),
        (
            {"dense": DENSE | {"activation_function": "torch.nn.modules.activation.ReLU"}},
            'activation_function = "torch.nn.modules.activation.ReLU": must be one of torch.nn\'s Identity, Tanh',
        ),
        ({"dense": DENSE, "arrays": {"linear.weight": WEIGHT}}, "2_Dense: no tensor linear.bias in its weights"),
        (
            {"dense": DENSE, "arrays": {"linear.weight": WEIGHT.T.copy(), "linear.bias": BIAS}},
            f"tensor linear.weight is {D} x 5; its config.json asks for 5 x {D}",
        ),
        ({"dense": DENSE | {"bias": False}}, "tensor linear.bias has no place in the layer of its config.json"),
        (
            {"dense": DENSE, "arrays": {"linear.weight": WEIGHT, "linear.bias": BIAS * np.nan}},
            "tensor linear.bias holds NaN or infinity; the checkpoint is broken",
        ),
    ],
)
def test_what_is_not_computed_here_is_refused_in_one_line(tmp_path, made, message):
    with pytest.raises(UserError) as caught:
        open_checkpoint(folder_of(tmp_path / "st", **made), vectors=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "modules.json: must hold a list of modules, not {}"),
        ("[1]", "modules.json: must hold a JSON object, not 1"),
        ("[]", "modules.json: holds nothing; only"),
        ('[{"type": "a.Transformer", "path": "../x"}, {"type": "a.Pooling"}]', 'path = "../x": must be a folder beside'),
        ('[{"type": "a.Transformer"}, {"type": "a.Pooling", "path": "../x"}]', 'path = "../x": must be a folder beside'),
        ('[{"type": "a.Transformer"}, {"type": "a.Pooling", "path": ".."}]', 'path = "..": must be a folder beside'),
        ('[{"type": "a.Transformer"}, {"type": "a.Pooling", "path": 3}]', "path = 3: must be a folder beside"),
        ('[{"type": "a.Transformer"}, {"type": "a.Pooling"}]', "must be a folder beside this file"),
    ],
)
def test_a_list_of_modules_that_is_none_is_refused(tmp_path, content, message):
    path = folder_of(tmp_path / "st")
    (tmp_path / "st" / "modules.json").write_text(content)
    with pytest.raises(UserError) as caught:
        open_checkpoint(path, vectors=True)
    assert message in str(caught.value)


def test_lower_casing_that_the_tokenizer_does_not_do_is_refused(tmp_path):
    path = folder_of(tmp_path / "st", settings={"do_lower_case": True})
    open_checkpoint(path, vectors=True)  # the tokenizer does it
    (tmp_path / "st" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(UserError, match="sentence_bert_config.json: do_lower_case = true: texts are lower-cased here only"):
        open_checkpoint(path, vectors=True)


def test_a_prompt_before_every_text_is_refused(tmp_path):
    path = folder_of(tmp_path / "st")
    about = {"prompts": {"query": "query: ", "passage": ""}, "default_prompt_name": "query"}
    file = tmp_path / "st" / "config_sentence_transformers.json"
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match=f'{file}: default_prompt_name = "query": no prompt is put before texts here'):
        open_checkpoint(path, vectors=True)
    for other in ({"default_prompt_name": None}, {"default_prompt_name": "passage"}):
        file.write_text(json.dumps(about | other))
        open_checkpoint(path, vectors=True)
