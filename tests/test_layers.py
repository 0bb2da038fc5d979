"""The Transformer's layers against their formulas in NumPy (float64), and under precision, padding, graphs and files."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.layers import activation as activations
from tfkd.layers.attention import MultiHeadSelfAttention
from tfkd.layers.block import TransformerBlock
from tfkd.layers.embedding import TokenEmbedding
from tfkd.layers.feed_forward import FeedForward

# Keras's own conversion of a variable to NumPy, when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

B, T, D, H, F, V = 3, 7, 12, 3, 20, 30
MASK = (np.arange(T) < np.array([[7], [4], [1]])).astype("int32")
FUNCTIONS = {
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "tanh": np.tanh,
}


def hidden_states(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (B, T, D)).astype("float32")


def randomize(layer, seed: int = 0):
    """Gives every weight, biases and normalizations too, values that matter."""
    draw = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(draw.normal(0.3, 0.5, variable.shape))
    return layer


def values(variable) -> np.ndarray:
    return np.asarray(variable).astype("float64")


# ---------------------------------------------------------------- the formulas


def numpy_norm(layer, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.epsilon) * values(layer.gamma) + values(layer.beta)


def numpy_attention(layer, x, mask):
    """softmax(Q K^T / sqrt(d)) V, row by row over the keys that are text; the result and the parts."""
    fused = x @ values(layer.kernel) + values(layer.bias)
    query, key, value = (fused[..., i * D : (i + 1) * D].reshape(B, T, H, D // H).transpose(0, 2, 1, 3) for i in range(3))
    scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(D / H)
    context = np.zeros((B, T, D))
    for row in range(B):
        seen = np.flatnonzero(mask[row])
        for head in range(H):
            weights = np.exp(scores[row, head][:, seen])
            weights /= weights.sum(-1, keepdims=True)
            context[row, :, head * (D // H) : (head + 1) * (D // H)] = weights @ value[row, head, seen]
    output = context @ values(layer.output_kernel) + values(layer.output_bias)
    return output, {"query": query, "key": key, "value": value, "attention": scores}


def numpy_feed_forward(layer, x):
    inner = FUNCTIONS[layer.activation](x @ values(layer.expand.kernel) + values(layer.expand.bias))
    return inner @ values(layer.contract.kernel) + values(layer.contract.bias)


def numpy_block(block, x, mask):
    if block.pre_norm:
        x = x + numpy_attention(block.attention, numpy_norm(block.attention_norm, x), mask)[0]
        return x + numpy_feed_forward(block.feed_forward, numpy_norm(block.feed_forward_norm, x))
    x = numpy_norm(block.attention_norm, x + numpy_attention(block.attention, x, mask)[0])
    return numpy_norm(block.feed_forward_norm, x + numpy_feed_forward(block.feed_forward, x))


def built(layer):
    layer.build((None, None, D))
    return randomize(layer)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_activation_is_its_formula(name):
    x = np.linspace(-6, 6, 241)
    np.testing.assert_allclose(activations.get(name)(x.astype("float32")), FUNCTIONS[name](x), rtol=0, atol=2e-6)


def test_the_two_gelus_differ():
    x = np.array([2.0], "float32")
    assert abs(float(activations.get("gelu")(x)[0]) - 1.9544997) < 1e-6  # 2 Phi(2), from a table of the normal distribution
    assert abs(float(activations.get("gelu_tanh")(x)[0]) - 1.9545977) < 1e-6


def test_unknown_activation_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="activation = 'swish': must be one of gelu, gelu_tanh, relu, tanh"):
        FeedForward(D, F, "swish")


def test_attention_is_its_formula_with_padding():
    layer = built(MultiHeadSelfAttention(D, H))
    x = hidden_states()
    output, inner = layer(x, MASK, names=("query", "key", "value", "attention"))
    expected, parts = numpy_attention(layer, x.astype("float64"), MASK)
    np.testing.assert_allclose(output, expected, rtol=0, atol=2e-5)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(inner[name], parts[name], rtol=0, atol=1e-5)
    seen = np.broadcast_to(MASK[:, None, None, :].astype(bool), (B, H, T, T))
    np.testing.assert_allclose(np.asarray(inner["attention"])[seen], parts["attention"][seen], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(np.asarray(inner["attention"])[~seen], np.float32(-1e4))


def test_attention_gives_out_only_what_is_named():
    layer = built(MultiHeadSelfAttention(D, H))
    assert layer(hidden_states(), MASK)[1] == {}
    assert list(layer(hidden_states(), MASK, names=("key",))[1]) == ["key"]


def test_masked_score_replaces_scores():
    layer = built(MultiHeadSelfAttention(D, H, masked_score=-20.0))
    scores = np.asarray(layer(hidden_states() * 100, MASK, names=("attention",))[1]["attention"])
    assert (scores[1, :, :, 4:] == -20.0).all() and np.abs(scores[1, :, :, :4]).max() > 100


def test_heads_must_divide_width():
    with pytest.raises(ValueError, match="heads = 5 does not divide width = 12"):
        MultiHeadSelfAttention(D, 5)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu"])
def test_feed_forward_is_its_formula(name):
    layer = built(FeedForward(D, F, name))
    np.testing.assert_allclose(layer(hidden_states()), numpy_feed_forward(layer, hidden_states()), rtol=0, atol=2e-5)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("epsilon", [1e-12, 0.5])
def test_block_is_its_formula(norm, epsilon):
    block = built(TransformerBlock(D, H, F, norm=norm, epsilon=epsilon))
    output, inner = block(hidden_states(), MASK)
    np.testing.assert_allclose(output, numpy_block(block, hidden_states().astype("float64"), MASK), rtol=0, atol=1e-4)
    assert inner == {}


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm = 'none': must be post or pre"):
        TransformerBlock(D, H, F, norm="none")


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_first_only_equals_the_first_position_of_the_whole(norm):
    block = built(TransformerBlock(D, H, F, norm=norm))
    whole, first = block(hidden_states(), MASK)[0], block(hidden_states(), MASK, first_only=True)[0]
    assert first.shape == (B, 1, D)
    np.testing.assert_allclose(first[:, 0], whole[:, 0], rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- embedding

IDS = np.random.default_rng(5).integers(0, V, (B, T)).astype("int32")
SEGMENTS = (np.arange(T) > np.array([[3], [1], [0]])).astype("int32")


@pytest.mark.parametrize("segments", [0, 2])
@pytest.mark.parametrize("normalize", [True, False])
def test_embedding_is_a_normalized_sum_of_its_tables(segments, normalize):
    layer = built(TokenEmbedding(V, D, 9, segments=segments, normalize=normalize, epsilon=1e-3))
    expected = values(layer.token_table)[IDS] + values(layer.position_table)[:T]
    for given in (SEGMENTS, None):
        whole = expected + (values(layer.segment_table)[np.zeros_like(IDS) if given is None else given] if segments else 0)
        whole = numpy_norm(layer.layer_norm, whole) if normalize else whole
        np.testing.assert_allclose(layer(IDS, given), whole, rtol=0, atol=1e-5)


def test_sinusoidal_positions_are_the_papers():
    layer = built(TokenEmbedding(V, D, 9, position="sinusoidal", normalize=False))
    added = np.asarray(layer(IDS)) - values(layer.token_table)[IDS]
    for position in range(T):
        for column in range(D):
            angle = position / 10000 ** (column // 2 * 2 / D)
            wave = math.sin(angle) if column % 2 == 0 else math.cos(angle)
            np.testing.assert_allclose(added[:, position, column], wave, rtol=0, atol=1e-6)
    assert layer.position_table is None and len(layer.trainable_variables) == 1


def test_sinusoidal_positions_need_no_fixed_length():
    layer = built(TokenEmbedding(V, D, 9, position="sinusoidal"))
    traced = tf.function(layer, input_signature=[tf.TensorSpec([None, None], "int32")])
    for length in (1, T):
        np.testing.assert_allclose(traced(IDS[:, :length]), layer(IDS[:, :length]), rtol=0, atol=1e-6)


def test_token_dropout_drops_whole_token_vectors_and_nothing_else():
    keras.utils.set_random_seed(0)
    layer = built(TokenEmbedding(V, D, 200, segments=2, normalize=False, dropout=0.0, token_dropout=0.25))
    ids = np.random.default_rng(0).integers(0, V, (10, 200)).astype("int32")
    expected = values(layer.token_table)[ids]
    rest = values(layer.position_table)[:200] + values(layer.segment_table)[0]
    graph = tf.function(lambda x: layer(x, training=True), input_signature=[tf.TensorSpec([None, None], "int32")])
    for answer in (layer(ids, training=True), graph(ids)):
        tokens = np.asarray(answer) - rest
        dropped = np.abs(tokens).max(-1) < 1e-5
        assert 0.2 < dropped.mean() < 0.3  # 2,000 draws: standard error 0.01
        np.testing.assert_allclose(tokens[~dropped], expected[~dropped] / 0.75, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.asarray(layer(ids)) - rest, expected, rtol=0, atol=1e-5)


def test_unknown_position_is_refused():
    with pytest.raises(ValueError, match="position = 'rotary': must be learned or sinusoidal"):
        TokenEmbedding(V, D, 9, position="rotary")


def test_text_longer_than_the_positions_is_refused():
    layer = built(TokenEmbedding(V, D, T - 1))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        layer(IDS)


# ---------------------------------------------------------------- every layer

TABLES = {"epsilon": 1e-5, "dropout": 0.3, "token_dropout": 0.4, "initializer_range": 0.1}
BLOCK = {"activation": "relu", "norm": "pre", "dropout": 0.2, "attention_dropout": 0.3, "epsilon": 1e-5}
LAYERS = {
    "attention": lambda **k: MultiHeadSelfAttention(D, H, dropout=0.3, masked_score=-50.0, initializer_range=0.1, **k),
    "feed_forward": lambda **k: FeedForward(D, F, activation="gelu_tanh", initializer_range=0.1, **k),
    "block": lambda **k: TransformerBlock(D, H, F, masked_score=-50.0, initializer_range=0.1, **BLOCK, **k),
    "embedding": lambda **k: TokenEmbedding(V, D, 9, segments=2, **TABLES, **k),
    "waves": lambda **k: TokenEmbedding(V, D, 9, position="sinusoidal", normalize=False, **TABLES, **k),
}


def apply(name: str, layer, training=False):
    """The layer's main answer for the standard input."""
    if name in ("attention", "block"):
        return layer(hidden_states(), MASK, training=training)[0]
    return layer(hidden_states()) if name == "feed_forward" else layer(IDS, SEGMENTS, training=training)


class Wrapped(keras.Model):
    """A model of one layer, so that it can be saved."""

    def __init__(self, layer, kind, **kwargs):
        super().__init__(**kwargs)
        self.layer, self.kind = layer, kind

    def call(self, inputs):
        return apply(self.kind, self.layer)

    def get_config(self):
        return {"layer": keras.saving.serialize_keras_object(self.layer), "kind": self.kind}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["layer"]), config["kind"])


@pytest.mark.parametrize("name", LAYERS)
def test_config_round_trip_keeps_every_argument(name):
    layer = LAYERS[name]()
    config = layer.get_config()
    again = type(layer).from_config(config)
    assert again.get_config() == config
    import inspect

    arguments = [a for a in inspect.signature(type(layer).__init__).parameters if a not in ("self", "kwargs")]
    assert set(arguments) <= set(config)


@pytest.mark.parametrize("name", LAYERS)
def test_saved_layer_answers_the_same(name, tmp_path):
    model = Wrapped(built(LAYERS[name]()), name)
    before = np.asarray(model(np.zeros((1, 1))))
    model.save(tmp_path / "layer.keras")
    loaded = keras.models.load_model(tmp_path / "layer.keras", custom_objects={"Wrapped": Wrapped})
    np.testing.assert_array_equal(np.asarray(loaded(np.zeros((1, 1)))), before)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_computes_finite_in_its_dtype_near_float32(name, dtype):
    exact, mixed = built(LAYERS[name]()), built(LAYERS[name](dtype=f"mixed_{dtype}"))
    answer = apply(name, mixed)
    assert keras.backend.standardize_dtype(answer.dtype) == dtype
    assert {variable.dtype for variable in mixed.trainable_variables} == {"float32"}
    answer, reference = np.asarray(tf.cast(answer, "float32")), np.asarray(apply(name, exact))
    assert np.isfinite(answer).all()
    assert np.abs(answer - reference).max() < (0.02 if dtype == "float16" else 0.1) * np.abs(reference).max()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_softmax_is_computed_in_float32(dtype):
    # In half precision alone its probabilities were off by 0.2 % (float16) and, under XLA, 2 % (bfloat16) over 600 keys.
    layer = built(MultiHeadSelfAttention(D, H, dtype=f"mixed_{dtype}"))
    graph = tf.function(lambda x: layer(x, MASK)[0]).get_concrete_function(tf.TensorSpec((B, T, D), dtype)).graph
    softmaxes = [operation for operation in graph.get_operations() if operation.type == "Softmax"]
    assert [operation.inputs[0].dtype for operation in softmaxes] == ["float32"]


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "feed_forward"])
def test_dropout_acts_in_training_alone(name):
    layer = built(LAYERS[name]())
    still = np.asarray(apply(name, layer))
    np.testing.assert_array_equal(np.asarray(apply(name, layer)), still)
    assert np.abs(np.asarray(apply(name, layer, training=True)) - still).max() > 1e-3


@pytest.mark.parametrize("name", LAYERS)
def test_kernels_start_small_and_apart(name):
    keras.utils.set_random_seed(3)
    layer = LAYERS[name]()
    layer.build((None, None, D))
    starts = [np.asarray(variable) for variable in layer.trainable_variables if len(variable.shape) == 2]
    assert all(0.05 < start.std() < 0.12 and np.abs(start).max() <= 0.2 + 1e-6 for start in starts)
    flat = [start.ravel()[:20] for start in starts]
    assert not any(np.array_equal(a, b) for i, a in enumerate(flat) for b in flat[:i])


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_padding_values_cannot_matter_to_the_last_bit(dtype, norm):
    block = built(TransformerBlock(D, H, F, norm=norm, dtype=dtype))
    one, other = hidden_states(), hidden_states()
    other[MASK == 0] = np.random.default_rng(9).normal(0, 8, other[MASK == 0].shape)
    answers = [np.asarray(tf.cast(block(x, MASK)[0], "float32"))[MASK == 1] for x in (one, other)]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_text_of_padding_alone_is_finite(dtype):
    block = built(TransformerBlock(D, H, F, dtype=dtype))
    assert np.isfinite(np.asarray(tf.cast(block(hidden_states(), np.zeros_like(MASK))[0], "float32"))).all()


def test_an_empty_batch_gives_an_empty_answer():
    block = built(TransformerBlock(D, H, F))
    assert block(hidden_states()[:0], MASK[:0])[0].shape == (0, T, D)
    assert block(hidden_states()[:0], MASK[:0], first_only=True)[0].shape == (0, 1, D)
    assert built(TokenEmbedding(V, D, 9))(IDS[:0]).shape == (0, T, D)
