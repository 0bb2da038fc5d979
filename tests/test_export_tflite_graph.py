"""The graph written anew for serving answers what the Keras model answers, and holds no more than it needs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from export import graph
from tests.tiny_run import PIECES, build_model
from tfkd.layers.head import ClassificationHead, RegressionHead
from tfkd.layers.token_head import SpanHead, TokenHead
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead


def random_batch(segments: bool = False, rows: int = 3, length: int = 10) -> dict[str, np.ndarray]:
    """Random ids; texts of 10, 4 and 1 pieces."""
    generator = np.random.default_rng(1)
    mask = (np.arange(length) < np.array([10, 4, 1])[:rows, None]).astype("int32")
    batch = {"token_ids": generator.integers(0, len(PIECES), (rows, length)).astype("int32"), "padding_mask": mask}
    return batch | ({"segment_ids": generator.integers(0, 2, (rows, length)).astype("int32")} if segments else {})


MAKES = {
    "bert": {"layers": 2},
    "one block": {"layers": 1},
    "mean": {"layers": 2, "pooling": "mean"},
    "pre-norm": {"layers": 2, "norm": "pre"},
    "pre-norm mean sinusoidal tanh": {"layers": 2, "norm": "pre", "pooling": "mean", "position": "sinusoidal"},
    "relu, one head": {"layers": 2, "activation": "relu", "heads": 1},
    "gelu_tanh, narrow": {"layers": 2, "activation": "gelu_tanh", "feed_forward": 8, "heads": 4},
}


@pytest.mark.parametrize("make", MAKES)
def test_graph_answers_as_the_layers_it_was_trained_with(make):
    model, batch = build_model(**MAKES[make]), random_batch()
    answer = graph.InferenceGraph(model)(batch)
    np.testing.assert_allclose(answer, model(batch, training=False), atol=2e-5)
    assert answer.shape == (3, 3)
    assert np.ptp(answer, axis=0).min() > 1e-2  # a student that answers every text alike would prove little


@pytest.mark.parametrize("given", (True, False))
def test_graph_reads_segments_and_takes_the_first_where_none_are_given(given):
    model, batch = build_model(segments=2, layers=2), random_batch(segments=given)
    np.testing.assert_allclose(graph.InferenceGraph(model)(batch), model(batch, training=False), atol=2e-5)


@pytest.mark.parametrize("head", (lambda: TokenHead(4), lambda: SpanHead(2), lambda: RegressionHead(3.0, 2.0)))
def test_graph_takes_any_head(head):
    keras.utils.set_random_seed(3)
    encoder = TransformerEncoder(len(PIECES), 2, 16, 2, max_positions=16, initializer_range=0.3)
    model, batch = TransformerWithHead(encoder, head()), random_batch()
    np.testing.assert_allclose(graph.InferenceGraph(model)(batch), model(batch, training=False), atol=2e-5)


@pytest.mark.parametrize("shape", ((None, None), (1, 10)))
def test_graph_takes_free_and_fixed_shapes(shape):
    model = build_model(layers=2)
    specs = {name: tf.TensorSpec(shape, tf.int32) for name in ("token_ids", "padding_mask")}
    function = tf.function(graph.InferenceGraph(model), input_signature=[specs])
    batch = random_batch(rows=1)
    np.testing.assert_allclose(function(batch), model(batch, training=False), atol=2e-5)


@pytest.mark.parametrize("pooling", ("first", "mean"))
def test_padding_cannot_matter(pooling):
    model, batch = build_model(layers=2, pooling=pooling), random_batch()
    other = {**batch, "token_ids": np.where(batch["padding_mask"] == 1, batch["token_ids"], 7).astype("int32")}
    assert (other["token_ids"] != batch["token_ids"]).any()
    served = graph.InferenceGraph(model)
    np.testing.assert_array_equal(served(batch), served(other))


def test_masked_score_of_int8_leaks_less_than_a_rounding_error_of_int8():
    model, batch = build_model(layers=2), random_batch()
    exact, moderate = graph.InferenceGraph(model)(batch), graph.InferenceGraph(model, masked_score=-20.0)(batch)
    assert 0.0 < np.abs(exact - moderate).max() < 1e-3


def test_head_that_answers_to_padding_gets_the_moderate_score_too():
    keras.utils.set_random_seed(3)
    encoder = TransformerEncoder(len(PIECES), 2, 16, 2, max_positions=16, initializer_range=0.3)
    model, batch = TransformerWithHead(encoder, SpanHead(2)), random_batch()
    answer, text = graph.InferenceGraph(model, masked_score=-20.0)(batch), batch["padding_mask"] == 1
    np.testing.assert_allclose(answer[text], np.asarray(model(batch, training=False))[text], atol=1e-3)
    np.testing.assert_allclose(answer[~text], -20.0, atol=1e-5)
    assert model.head.masked_score != -20.0


def test_last_block_keeps_no_key_bias_and_the_others_keep_everything():
    # The encoder's weights, and the head's; of the last block all but the 16 numbers of its key bias.
    model = build_model(layers=2)
    whole = sum(weight.size for weight in model.get_weights() if weight.dtype == np.float32)
    assert sum(int(np.prod(variable.shape)) for variable in graph.InferenceGraph(model).variables) == whole - 16
    model = build_model(layers=2, pooling="mean")
    whole = sum(weight.size for weight in model.get_weights() if weight.dtype == np.float32)
    assert sum(int(np.prod(variable.shape)) for variable in graph.InferenceGraph(model).variables) == whole


def test_int8_table_is_within_half_a_step_of_each_row():
    table = np.array([[0.0, 0.0], [1.0, -0.5], [1e-3, 127e-3]], "float32")
    whole, scale = graph.in_int8(tf.constant(table))
    assert whole.dtype == tf.int8
    # By hand: scales 0, 1/127 and 1e-3; -0.5 * 127 = -63.5, which goes to the even -64.
    np.testing.assert_array_equal(whole, [[0, 0], [127, -64], [1, 127]])
    np.testing.assert_allclose(scale, [[0.0], [1 / 127], [1e-3]], rtol=1e-6)


def test_int8_table_changes_answers_a_little():
    model, batch = build_model(layers=2), random_batch()
    exact, table = graph.InferenceGraph(model)(batch), graph.InferenceGraph(model, int8_table=True)(batch)
    assert 0.0 < np.abs(exact - table).max() < 0.3


def test_graph_knows_every_setting_of_the_encoder():
    assert set(TransformerEncoder(8, 1, 4, 1).config) == graph.SETTINGS


def test_setting_that_the_graph_does_not_know_is_refused():
    model = TransformerWithHead(TransformerEncoder(8, 1, 4, 1), ClassificationHead(2))
    model.encoder.config["rotary"] = True
    with pytest.raises(ValueError, match="does not know the encoder's rotary"):
        graph.InferenceGraph(model)
