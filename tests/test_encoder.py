"""The encoder and the classification head: inner tensors by name, nothing computed in vain, saved whole."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.fresh_python import fresh
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.tasks.classification import ClassificationHead

# Keras's own conversion of a variable to NumPy, when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

B, T, D, H, V, LAYERS, CLASSES = 3, 7, 12, 3, 30, 2, 4
MASK = (np.arange(T) < np.array([[7], [4], [1]])).astype("int32")
INPUTS = {
    "token_ids": np.random.default_rng(5).integers(0, V, (B, T)).astype("int32"),
    "padding_mask": MASK,
    "segment_ids": (np.arange(T) > np.array([[3], [1], [0]])).astype("int32") * MASK,
}
SIGNATURE = {name: tf.TensorSpec([None, None], "int32") for name in INPUTS}
ALL = ["embeddings", *(f"{name}.{i}" for name in ("hidden", "attention", "query", "key", "value") for i in range(LAYERS))]


def make_encoder(**changes) -> TransformerEncoder:
    """Every weight random, so that each one matters."""
    arguments = {"vocabulary_size": V, "layers": LAYERS, "width": D, "heads": H, "feed_forward": 20, "max_positions": 16}
    encoder = TransformerEncoder(**arguments | changes)
    randomize(encoder)
    return encoder


def make_model(head: dict | None = None, **changes) -> TransformerWithHead:
    model = TransformerWithHead(make_encoder(**changes), ClassificationHead(CLASSES, **head or {}))
    randomize(model)
    return model


def randomize(model) -> None:
    draw = np.random.default_rng(0)
    for variable in model.trainable_variables:
        centre = 1.0 if variable.name == "gamma" else 0.0
        variable.assign(draw.normal(centre, 0.3, variable.shape))


def inputs_like(**changes) -> dict:
    return INPUTS | changes


def array(tensor) -> np.ndarray:
    return np.asarray(tf.cast(tensor, "float32"))


# ---------------------------------------------------------------- inner tensors


def test_inner_answers_exactly_the_names_asked_for():
    encoder = make_encoder()
    for names in ([], ["embeddings"], ["attention.1", "hidden.0"], ALL):
        assert list(encoder.inner(INPUTS, names)) == names


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_inner_tensors_are_the_stages_of_the_encoder(norm):
    encoder = make_encoder(norm=norm)
    inner = encoder.inner(INPUTS, ALL)
    hidden = encoder.embedding(INPUTS["token_ids"], INPUTS["segment_ids"])
    np.testing.assert_allclose(inner["embeddings"], hidden, rtol=0, atol=1e-6)
    for index, block in enumerate(encoder.blocks):
        hidden, found = block(hidden, MASK, names=("attention", "query", "key", "value"))
        np.testing.assert_allclose(inner[f"hidden.{index}"], hidden, rtol=0, atol=1e-5)
        for name, tensor in found.items():
            np.testing.assert_allclose(inner[f"{name}.{index}"], tensor, rtol=1e-5, atol=1e-5)
    assert inner["attention.0"].shape == (B, H, T, T) and inner["value.1"].shape == (B, H, T, D // H)
    last = encoder.final_norm(hidden) if norm == "pre" else hidden
    np.testing.assert_allclose(encoder(INPUTS), last, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["hidden.2", "hidden.-1", "hidden", "pooled", "logits", "attentions.0", "", "hidden.00"])
def test_unknown_inner_names_are_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match="an encoder of 2 layers has embeddings"):
        make_encoder().inner(INPUTS, ["embeddings", name])
    if name not in ("pooled", "logits"):
        with pytest.raises(ValueError, match="an encoder of 2 layers has embeddings"):
            make_model().inner(INPUTS, ["logits", name])


@pytest.mark.parametrize("head", [{}, {"pooling": "mean"}, {"hidden": None}])
def test_model_with_head_answers_names_of_head_and_encoder_together(head):
    model = make_model(head)
    names = ["pooled", *ALL, "logits"]
    inner = model.inner(INPUTS, names)
    assert list(inner) == names
    np.testing.assert_allclose(inner["logits"], model(INPUTS), rtol=0, atol=1e-5)
    for name, tensor in model.encoder.inner(INPUTS, ALL).items():
        np.testing.assert_allclose(inner[name], tensor, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- the head


def reference_logits(model, hidden: np.ndarray) -> np.ndarray:
    head = model.head
    if head.pooling == "first":
        pooled = hidden[:, 0]
    else:
        pooled = np.stack([states[mask == 1].mean(0) for states, mask in zip(hidden, MASK, strict=True)])
    if head.hidden is not None:
        pooled = pooled @ np.asarray(head.hidden_dense.kernel) + np.asarray(head.hidden_dense.bias)
        pooled = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}[head.hidden](pooled)
    return pooled @ np.asarray(head.output_dense.kernel) + np.asarray(head.output_dense.bias)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("hidden", ["tanh", "relu", None])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_head_is_its_formula(pooling, hidden, norm):
    model = make_model({"pooling": pooling, "hidden": hidden}, norm=norm)
    expected = reference_logits(model, array(model.encoder(INPUTS)))
    np.testing.assert_allclose(model(INPUTS), expected, rtol=1e-5, atol=1e-5)


def test_mean_of_a_text_of_padding_alone_is_finite():
    assert np.isfinite(array(make_model({"pooling": "mean"})(inputs_like(padding_mask=MASK * 0)))).all()


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling = 'last': must be first or mean"):
        ClassificationHead(CLASSES, pooling="last")


# ---------------------------------------------------------------- nothing in vain


def scores_computed(call) -> int:
    """How many attention layers of `call(inputs)` compute scores for every position: each has one product of that shape."""
    specs = {name: tf.TensorSpec(value.shape, "int32") for name, value in INPUTS.items()}
    graph = tf.function(call).get_concrete_function(specs).graph.as_graph_def(add_shapes=True)
    products = [node for node in graph.node if node.op.startswith("BatchMatMul")]
    sizes = [[d.size for d in node.attr["_output_shapes"].list.shape[0].dim] for node in products]
    return sum(size == [B, H, T, T] for size in sizes)


def test_head_of_the_first_position_leaves_the_last_block_to_it_alone():
    first, mean = make_model(), make_model({"pooling": "mean"})
    assert scores_computed(first) == LAYERS - 1
    assert scores_computed(mean) == LAYERS
    assert scores_computed(lambda x: first.inner(x, ["logits", "hidden.0", f"value.{LAYERS - 1}"])) == LAYERS - 1
    for name in ("hidden", "attention", "query"):
        assert scores_computed(lambda x, name=name: first.inner(x, ["logits", f"{name}.{LAYERS - 1}"])) == LAYERS


def test_layers_above_the_deepest_name_are_not_computed():
    model = make_model({"pooling": "mean"})
    for names, layers in ((["embeddings"], 0), (["hidden.0"], 1), (["hidden.0", "value.1"], 2), (["hidden.0", "pooled"], 2)):
        assert scores_computed(lambda x, names=names: model.inner(x, names)) == layers
    assert scores_computed(lambda x: model.encoder.inner(x, ["attention.0"])) == 1


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("names", [["logits"], ["logits", "pooled", "hidden.0", "key.1"]])
def test_first_position_alone_gives_the_same_logits(norm, names):
    model = make_model(norm=norm)
    expected = reference_logits(model, array(model.encoder(INPUTS)))  # from the whole last block
    np.testing.assert_allclose(model.inner(INPUTS, names)["logits"], expected, rtol=1e-6, atol=2e-6)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("changes", [{}, {"norm": "pre", "activation": "relu", "segments": 0, "position": "sinusoidal"}])
@pytest.mark.parametrize("head", [{}, {"pooling": "mean", "hidden": None, "dropout": 0.3}])
def test_saved_model_answers_the_same(tmp_path, changes, head):
    model = make_model(
        head,
        dropout=0.2,
        attention_dropout=0.3,
        embedding_dropout=0.4,
        token_dropout=0.5,
        epsilon=1e-5,
        masked_score=-50.0,
        **changes,
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is TransformerWithHead and loaded.head.get_config() == model.head.get_config()
    assert loaded.encoder.get_config() == model.encoder.get_config()
    np.testing.assert_array_equal(loaded(INPUTS), model(INPUTS))
    for name, tensor in model.inner(INPUTS, ALL).items():
        np.testing.assert_array_equal(loaded.inner(INPUTS, [name])[name], tensor)


def test_a_saved_model_is_read_with_one_import(tmp_path):
    make_model().save(tmp_path / "student.keras")
    code = f"import keras, tfkd.models; print(keras.models.load_model({str(tmp_path / 'student.keras')!r}).count_params())"
    assert fresh(code).stdout.split()[-1] == str(make_model().count_params())


def test_saved_model_keeps_its_precision(tmp_path):
    model = make_model(dtype="mixed_bfloat16")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.encoder.compute_dtype == "bfloat16" and loaded.encoder.blocks[0].attention.compute_dtype == "bfloat16"
    np.testing.assert_array_equal(loaded(INPUTS), model(INPUTS))


def test_encoder_config_round_trip_keeps_every_argument():
    import inspect

    encoder = make_encoder(
        dropout=0.2, attention_dropout=0.3, embedding_dropout=0.4, token_dropout=0.5, epsilon=1e-5, norm="pre", activation="relu"
    )
    again = TransformerEncoder.from_config(encoder.get_config())
    assert dict(again.config) == dict(encoder.config) and again.get_config() == encoder.get_config()
    arguments = [name for name in inspect.signature(TransformerEncoder.__init__).parameters if name not in ("self", "kwargs")]
    assert set(arguments) == set(encoder.config)


def test_weights_have_paths_of_their_own():
    paths = [variable.path for variable in make_model().trainable_variables]
    assert len(set(paths)) == len(paths) == 3 + 2 + LAYERS * 12 + 4


# ---------------------------------------------------------------- precision, padding, graphs


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_mixed_precision_gives_float32_logits_from_its_own_dtype(dtype, pooling):
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(f"mixed_{dtype}")
    try:
        model = make_model({"pooling": pooling})
    finally:
        keras.mixed_precision.set_dtype_policy(before)
    inner = model.inner(INPUTS, [*ALL, "pooled", "logits"])
    assert inner["logits"].dtype == "float32" and model(INPUTS).dtype == "float32"
    assert {tensor.dtype.name for name, tensor in inner.items() if name != "logits"} == {dtype}
    assert all(np.isfinite(array(tensor)).all() for tensor in inner.values())
    exact = array(make_model({"pooling": pooling})(INPUTS))
    assert np.abs(array(inner["logits"]) - exact).max() < (0.02 if dtype == "float16" else 0.15) * np.abs(exact).max()


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_padding_cannot_matter_to_the_last_bit(pooling, dtype):
    model = make_model({"pooling": pooling}, dtype=dtype)
    junk = np.random.default_rng(8).integers(0, V, (B, T)).astype("int32")
    other = inputs_like(token_ids=np.where(MASK, INPUTS["token_ids"], junk), segment_ids=np.where(MASK, INPUTS["segment_ids"], 1))
    assert (other["token_ids"] != INPUTS["token_ids"]).any()
    np.testing.assert_array_equal(model(INPUTS), model(other))


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_more_padding_changes_nothing(pooling):
    model = make_model({"pooling": pooling})
    longer = {name: np.pad(value, ((0, 0), (0, 5))) for name, value in INPUTS.items()}
    np.testing.assert_allclose(model(longer), model(INPUTS), rtol=1e-5, atol=1e-5)


def test_absent_segments_are_the_first_segment():
    model = make_model()
    without = {name: value for name, value in INPUTS.items() if name != "segment_ids"}
    np.testing.assert_array_equal(model(without), model(inputs_like(segment_ids=np.zeros((B, T), "int32"))))
    assert np.abs(array(model(without)) - array(model(INPUTS))).max() > 1e-3


@pytest.mark.parametrize("changes", [{}, {"norm": "pre", "position": "sinusoidal"}])
@pytest.mark.parametrize(
    "compiled, pooling, sizes", [(False, "mean", [(B, T), (1, 3), (2, 2), (0, 4)]), (True, "first", [(2, T), (0, 4)])]
)
def test_one_graph_serves_every_shape(changes, compiled, pooling, sizes):
    model = make_model({"pooling": pooling}, **changes)
    names = ["logits", "hidden.0", "attention.0"]
    graph = tf.function(lambda x: model.inner(x, names), input_signature=[SIGNATURE], jit_compile=compiled)
    for rows, length in sizes:
        part = {name: tf.constant(value[:rows, :length]) for name, value in INPUTS.items()}
        answer = graph(part)
        assert answer["logits"].shape == (rows, CLASSES) and answer["attention.0"].shape == (rows, H, length, length)
        for name, tensor in model.inner(part, names).items():
            np.testing.assert_allclose(answer[name], tensor, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_alone_and_follows_the_seed():
    def losses(seed):
        keras.utils.set_random_seed(seed)
        model = TransformerWithHead(TransformerEncoder(V, 1, D, H, max_positions=16), ClassificationHead(CLASSES))
        return (
            array(model(INPUTS)),
            array(model(INPUTS)),
            array(model(INPUTS, training=True)),
            array(model(INPUTS, training=True)),
        )

    still, again, first, second = losses(1)
    np.testing.assert_array_equal(still, again)
    assert np.abs(first - still).max() > 1e-4 and np.abs(first - second).max() > 1e-4
    for one, other in zip(losses(1), (still, again, first, second), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(losses(2)[0] - still).max() > 1e-4


def test_every_weight_gets_a_gradient():
    for head in ({}, {"pooling": "mean", "hidden": "relu"}):
        model = make_model(head)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(INPUTS, training=True) ** 2)
        weights = [variable.value for variable in model.trainable_variables]
        gradients = tape.gradient(loss, weights)
        assert all(gradient is not None for gradient in gradients)
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
        assert all(np.isfinite(gradient).all() for gradient in dense)
        assert sum(bool(tf.reduce_any(gradient != 0)) for gradient in dense) == len(dense)


def test_default_feed_forward_is_four_times_the_width():
    assert TransformerEncoder(V, 1, D, H).config["feed_forward"] == 4 * D
