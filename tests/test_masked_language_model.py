"""Masked-language modelling: what is hidden, what scores it, how it is measured."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

from tfkd import config
from tfkd.data import pipeline
from tfkd.data.masking import Masked
from tfkd.data.store import write_store
from tfkd.data.targets import TARGETS
from tfkd.data.tokenizer import Tokenizer
from tfkd.distiller import Distiller
from tfkd.errors import UserError
from tfkd.evaluate import predict
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.tasks.masked_language_model import MaskedLanguageModel
from tfkd.tasks.masked_language_model_metrics import MaskedLanguageModelMeasure

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "un",
    "##believ",
    "##able",
    "cat",
    "dog",
    "sat",
    "ran",
    "the",
    "on",
    "mat",
]
V = len(PIECES)
TEXT = "the unbelievable cat sat on the mat the dog ran on the unbelievable mat"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("masked") / "rows"
    return write_store(path, [{"text": TEXT}, {"text": "cat"}] * 8, Tokenizer(PIECES), 32, Masked())


def draws(store, row, count):
    """Positions asked for and inputs there, over `count` epochs."""
    for seed in range(count):
        x, y, weight = store.target.batch(store, np.array([row]), 32, np.random.default_rng((0, seed)))
        yield x["token_ids"][0], y[0], weight[0]


def test_words_are_hidden_whole_and_special_pieces_never(store):
    ids = store.row("token_ids", 0)
    words = [[i] for i, piece in enumerate(ids) if not PIECES[piece].startswith("##") and piece > 3]
    for word in words:
        while word[-1] + 1 < len(ids) and PIECES[ids[word[-1] + 1]].startswith("##"):
            word.append(word[-1] + 1)
    seen = set()
    for _, y, weight in draws(store, 0, 200):
        asked = set(np.flatnonzero(weight))
        assert all(asked >= set(word) or not asked & set(word) for word in words)
        assert asked <= {i for word in words for i in word}
        assert y[: len(ids)].tolist() == ids.tolist()
        assert 1 <= len(asked) <= 3  # 15 % of 18 pieces, and one long word may come first
        seen |= asked
    assert seen == {i for word in words for i in word}  # every word gets its turn


def test_80_percent_become_mask_10_any_piece_and_10_stay(store):
    masked = same = other = 0
    for inputs, y, weight in draws(store, 0, 3000):
        where = weight > 0
        masked += int((inputs[where] == 4).sum())
        same += int((inputs[where] == y[where]).sum())
        other += int(((inputs[where] != 4) & (inputs[where] != y[where])).sum())
        assert (inputs[~where] == y[~where]).all()
    total = masked + same + other
    # Any piece is [MASK] or the same one in V: shares of 0.8 + 0.1 / V, 0.1 + 0.1 / V and 0.1 (1 - 2 / V).
    assert masked / total == pytest.approx(0.8 + 0.1 / V, abs=0.02)
    assert same / total == pytest.approx(0.1 + 0.1 / V, abs=0.015)
    assert other / total == pytest.approx(0.1 * (1 - 2 / V), abs=0.015)


def test_a_training_draws_anew_each_epoch_and_a_measurement_never(store):
    batches = pipeline.Batches(store, 16, [32], shuffle=True, seed=3)
    first, second = (next(iter(batches.dataset(first_epoch=epoch)))[2].numpy() for epoch in (0, 1))
    assert (first != second).any()
    measured = pipeline.Batches(store, 16, [32])
    one, two = (next(iter(measured.dataset()))[0]["token_ids"].numpy() for _ in range(2))
    assert (one == two).all()
    truth = store.target.truth(store)
    x, y, weight = store.target.batch(store, np.arange(16), 32, None)
    lengths = store.lengths
    flat = np.concatenate([weight[row, : lengths[row]] for row in range(16)])
    assert (truth["asked"] == (flat > 0)).all()


def test_a_row_of_one_word_asks_for_it_and_filler_for_nothing(store):
    _, _, weight = store.target.batch(store, np.array([1, -1]), 8, np.random.default_rng(0))
    assert weight.tolist() == [[0, 1, 0, 0, 0, 0, 0, 0], [0] * 8]


def test_a_vocabulary_without_mask_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"\[MASK\]"):
        write_store(tmp_path / "rows", [{"text": "cat"}], Tokenizer([p for p in PIECES if p != "[MASK]"]), 8, Masked())


def model(seed=0):
    keras.utils.set_random_seed(seed)
    encoder = TransformerEncoder(V, 1, 16, 2, max_positions=32, segments=0, dropout=0.0, initializer_range=0.2, name="encoder")
    return TransformerWithHead(encoder, MaskedLanguageModel().head(V), name="teacher")


def test_pieces_are_scored_by_the_encoders_own_table_which_is_kept_once(tmp_path):
    one = model()
    tables = [variable for variable in one.trainable_variables if tuple(variable.shape) == (V, 16)]
    assert len(tables) == 1
    x = {"token_ids": np.array([[2, 8, 3]], "int32"), "padding_mask": np.ones((1, 3), "int32")}
    hidden = one.encoder(x)
    inner = one.head.layer_norm(one.head.hidden_dense(hidden)).numpy()
    np.testing.assert_allclose(one(x).numpy(), inner @ tables[0].numpy().T + one.head.bias.numpy(), rtol=1e-5, atol=1e-6)
    one.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(again(x).numpy(), one(x).numpy())
    again.encoder.embedding.token_table.assign(again.encoder.embedding.token_table * 2.0)
    assert np.abs(again(x).numpy() - one(x).numpy()).max() > 0.1  # still tied


def test_measures_by_hand():
    truth = {"labels": np.array([5, 6, 7, 8]), "asked": np.array([True, False, True, True]), "offsets": np.array([0, 2, 4])}
    outputs = np.array([[5, math.log(0.5)], [1, -9.0], [9, math.log(0.25)], [8, math.log(0.5)]])
    measure = MaskedLanguageModelMeasure(truth, [])
    found = measure.metrics(outputs)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["perplexity"] == pytest.approx(16 ** (1 / 3))
    on = measure.headline_on(outputs)
    assert on(np.array([1])) == pytest.approx(0.5) and on(np.array([0, 0, 1])) == pytest.approx(3 / 4)
    assert measure.near(outputs, outputs) == {"agreement": 1.0}
    kept = MaskedLanguageModelMeasure.take(truth, np.array([1]))
    assert kept["labels"].tolist() == [7, 8] and kept["offsets"].tolist() == [0, 2]


def test_training_learns_to_fill_in_and_only_hidden_positions_count(store):
    one, task = model(), MaskedLanguageModel()
    batches = pipeline.Batches(store, 16, [32], shuffle=True)
    distiller = Distiller(one)
    distiller.compile(keras.optimizers.Adam(0.02), loss=task.loss(), weighted_metrics=task.training_metrics())
    measure = MaskedLanguageModelMeasure(store.target.truth(store), [])
    measured = pipeline.Batches(store, 16, [32])
    before = measure.metrics(predict(one, measured, keep=task.kept))
    distiller.fit(batches.dataset(repeat=True), steps_per_epoch=1, epochs=60, verbose=0, shuffle=False)
    after = measure.metrics(predict(one, measured, keep=task.kept))
    assert after["perplexity"] < 0.5 * before["perplexity"]
    x, y, weight = store.target.batch(store, np.array([0]), 32, None)
    logits = one({name: tf.constant(value) for name, value in x.items()}).numpy()[0]
    by_hand = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = distiller.evaluate(tf.data.Dataset.from_tensors((x, y, weight)), verbose=0, return_dict=True)["loss"]
    where = np.flatnonzero(weight[0])
    assert loss == pytest.approx(-by_hand[where, y[0, where]].mean(), rel=1e-4)


def test_the_kind_is_in_the_table():
    assert TARGETS["masked"] is Masked


def test_nothing_is_exported_but_what_is_fine_tuned_for_a_task():
    tree = {
        "task": "masked_language_model",
        "data": {"files": {"train": "plain.txt"}},
        "teacher": {"checkpoint": "bert"},
        "student": {"layers": 2},
    }
    loaded = config.parse(tree)
    assert loaded.export.formats == [] and config.parse(yaml.safe_load(config.dump(loaded))) == loaded
    with pytest.raises(UserError, match=r"export.formats = \[tflite\]: task: masked_language_model trains what other tasks"):
        config.parse(tree | {"export": {"formats": ["tflite"]}})
