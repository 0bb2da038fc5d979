"""Inner tensors of models that are not ours: Keras functional models, nested ones, KerasHub."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfkd.distiller import Distiller
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.foreign import to_logits
from tfkd.models.inner import inner_shapes, inner_tensors, over_positions, view
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import OBJECTIVES, KLDivergence
from tfkd.tasks.classification import ClassificationHead
from tfkd.teacher import LiveTeacher

V, D, C, B, T = 30, 8, 3, 4, 6


class Counted(layers.Dense):
    """A Dense that counts how often it is called on real tensors."""

    calls = 0

    def call(self, inputs, training=None):
        if not isinstance(inputs, keras.KerasTensor) and tf.executing_eagerly():
            self.calls += 1
        return super().call(inputs)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def batch(seed=0):
    random = np.random.default_rng(seed)
    mask = (np.arange(T) < np.array([6, 4, 2, 5])[:, None]).astype("int32")
    return {"token_ids": random.integers(1, V, (B, T)).astype("int32") * mask, "padding_mask": mask}


def backbone(name="backbone", rate=0.0, dtype=None, mask_zero=False):
    """Embedding, two blocks that share their inner names with the classifier around them, two outputs."""
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    padding_mask = keras.Input((None,), dtype="int32", name="padding_mask")
    hidden = layers.Embedding(V, D, mask_zero=mask_zero, dtype=dtype, name="embedding")(token_ids)
    for index in range(2):
        hidden = Counted(D, activation="tanh", dtype=dtype, name=f"block_{index}")(hidden)
        hidden = layers.Dropout(rate, dtype=dtype, name=f"dropout_{index}")(hidden)
    hidden = hidden * keras.ops.expand_dims(keras.ops.cast(padding_mask, hidden.dtype), -1)
    pooled = layers.Dense(D, dtype=dtype, name="dense")(hidden[:, 0, :])
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    return keras.Model(inputs, {"sequence": hidden, "pooled": pooled}, name=name)


def classifier(inside=None, activation=None, dtype=None, **kwargs):
    inside = inside or backbone(dtype=dtype)
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")}
    pooled = inside(inputs, **kwargs)["pooled"]
    scores = layers.Dense(C, activation=activation, dtype=dtype, name="dense")(pooled)
    return keras.Model(inputs, scores, name="classifier")


def pieces(inside, x, name):
    """A layer's output by Keras's own means: a sub-model of the backbone alone."""
    return keras.Model(inside.input, inside.get_layer(name).output)(x)


# ---------------------------------------------------------------- nested models


def test_layers_inside_a_nested_model_are_named_and_are_what_keras_computes():
    inside = backbone()
    model, x = classifier(inside), batch()
    names = ["logits", "backbone/block_0", "backbone/dropout_1", "backbone:pooled", "backbone/dense", "dense"]
    inner = inner_tensors(model, x, names)
    assert list(inner) == names
    np.testing.assert_array_equal(inner["logits"], model(x))
    np.testing.assert_array_equal(inner["backbone/block_0"], pieces(inside, x, "block_0"))
    np.testing.assert_array_equal(inner["backbone/dropout_1"], pieces(inside, x, "dropout_1"))
    np.testing.assert_array_equal(inner["backbone:pooled"], inside(x)["pooled"])
    np.testing.assert_array_equal(inner["backbone/dense"], inside(x)["pooled"])  # not the classifier's layer of that name
    np.testing.assert_array_equal(inner["dense"], model(x))
    shapes = inner_shapes(model, names)
    assert shapes["backbone/block_0"] == (None, None, D) and shapes["logits"] == (None, C)


def test_every_layer_runs_once_and_only_those_that_are_needed():
    inside = backbone()
    model, x = classifier(inside), batch()
    blocks = [inside.get_layer(f"block_{index}") for index in range(2)]
    for names, calls in (
        (["logits", "backbone/block_0", "backbone/block_1"], [1, 1]),
        (["backbone/block_0"], [1, 0]),
        (["backbone/embedding"], [0, 0]),
        (["logits"], [1, 1]),
        ([], [0, 0]),
    ):
        for block in blocks:
            block.calls = 0
        assert set(inner_tensors(model, x, names)) == set(names)
        assert [block.calls for block in blocks] == calls, names


def test_looking_inside_leaves_the_model_as_it_was(tmp_path):
    inside = backbone()
    model, x = classifier(inside), batch()
    every = [*model.layers, *inside.layers]
    before = [(len(layer._inbound_nodes), len(layer._outbound_nodes), layer.trainable) for layer in every]
    inner_tensors(model, x, ["logits", "backbone/block_1"])
    inner_shapes(model, ["backbone/block_1"])
    assert [(len(layer._inbound_nodes), len(layer._outbound_nodes), layer.trainable) for layer in every] == before
    assert inside.get_layer("block_1").output.shape == (None, None, D)  # Keras refuses it of a layer called twice
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Counted": Counted})
    np.testing.assert_array_equal(again(x), model(x))
    found = inner_tensors(again, x, ["backbone/block_1"])["backbone/block_1"]
    np.testing.assert_array_equal(found, pieces(inside, x, "block_1"))


def test_the_end_of_a_path_will_do_where_only_one_ends_so():
    model, x = classifier(), batch()
    np.testing.assert_array_equal(
        inner_tensors(model, x, ["block_1"])["block_1"], inner_tensors(model, x, ["backbone/block_1"])["backbone/block_1"]
    )
    left, right = backbone("left"), backbone("right")
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")}
    both = keras.Model(inputs, left(inputs)["pooled"] + right(inputs)["pooled"])
    with pytest.raises(ValueError, match="ends several paths, left/block_1, right/block_1"):
        inner_tensors(both, x, ["block_1"])
    found = inner_tensors(both, x, ["left/block_1", "right/block_1", "logits"])
    np.testing.assert_array_equal(found["right/block_1"], pieces(right, x, "block_1"))
    np.testing.assert_array_equal(found["logits"], both(x))


def test_calls_of_a_shared_model_have_names_of_their_own():
    inside = backbone()
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask", "other_ids")]
    first = inside({"token_ids": inputs[0], "padding_mask": inputs[1]})["pooled"]
    second = inside({"token_ids": inputs[2], "padding_mask": inputs[1]})["pooled"]
    model = keras.Model(inputs, layers.Dot(1, name="dot")([first, second]))
    x = batch() | {"other_ids": batch(1)["token_ids"]}
    found = inner_tensors(model, x, ["backbone@0/block_1", "backbone@1/block_1", "logits"])
    other = {"token_ids": x["other_ids"], "padding_mask": x["padding_mask"]}
    np.testing.assert_array_equal(found["backbone@0/block_1"], pieces(inside, batch(), "block_1"))
    np.testing.assert_array_equal(found["backbone@1/block_1"], pieces(inside, other, "block_1"))
    np.testing.assert_array_equal(found["logits"], model(x))


def test_models_nested_in_nested_ones_and_sequences_are_opened():
    tail = keras.Sequential([keras.Input((D,)), layers.Dense(D, name="wide"), layers.Dense(C, name="narrow")], name="tail")
    inside = classifier()
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")}
    scores = tail(layers.Dense(D, name="lift")(inside(inputs)))
    model, x = keras.Model(inputs, scores, name="outer"), batch()
    names = ["classifier/backbone/block_0", "tail/wide", "tail/narrow", "logits"]
    found = inner_tensors(model, x, names)
    np.testing.assert_array_equal(found["logits"], model(x))
    np.testing.assert_array_equal(found["tail/narrow"], model(x))
    wide = tail.get_layer("wide")(model.get_layer("lift")(inside(x)))
    np.testing.assert_array_equal(found["tail/wide"], wide)
    np.testing.assert_array_equal(found["classifier/backbone/block_0"], pieces(inside.get_layer("backbone"), x, "block_0"))


# ---------------------------------------------------------------- as Keras runs them


@pytest.mark.parametrize("built_with", [{}, {"training": False}])  # Keras lets the caller's word go over the graph's
def test_dropout_acts_in_training_alone_and_draws_what_the_model_would(built_with):
    inside = backbone(rate=0.5)
    model, x = classifier(inside, **built_with), batch()
    np.testing.assert_array_equal(inner_tensors(model, x, ["logits"], training=False)["logits"], model(x, training=False))
    states = [variable for variable in model.variables if "seed" in variable.path]
    start = [variable.numpy() for variable in states]
    drawn = model(x, training=True)
    for variable, value in zip(states, start, strict=True):
        variable.assign(value)
    found = inner_tensors(model, x, ["logits", "backbone/dropout_0"], training=True)
    np.testing.assert_array_equal(found["logits"], drawn)
    assert (found["backbone/dropout_0"].numpy() == 0.0).mean() > 0.2
    assert np.abs(drawn - model(x, training=False)).max() > 1e-3


def test_half_precision_runs_as_the_model_does():
    inside = backbone(dtype="mixed_bfloat16")
    model, x = classifier(inside, dtype="mixed_bfloat16"), batch()
    found = inner_tensors(model, x, ["logits", "backbone/block_1"])
    assert found["backbone/block_1"].dtype == "bfloat16" and found["logits"].dtype == "float32"
    np.testing.assert_array_equal(found["logits"], tf.cast(model(x), "float32"))


@pytest.mark.filterwarnings("ignore:Layer 'inside'")  # Keras fears for the mask that its layers inside do pass on
def test_masks_cross_the_walls_of_nested_models():
    """An Embedding's mask goes into a nested model and out of it again, to a layer that averages over what is not masked."""
    states = keras.Input((None, D))
    inside = keras.Model(states, layers.Dense(D, name="change")(states), name="inside")
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    hidden = inside(layers.Embedding(V, D, mask_zero=True)(ids))
    model = keras.Model(ids, layers.GlobalAveragePooling1D(name="mean")(hidden))
    x = batch()
    found = inner_tensors(model, x, ["inside/change", "mean"])
    np.testing.assert_array_equal(found["mean"], model(x["token_ids"]))
    hidden = found["inside/change"].numpy()
    by_hand = np.stack([row[:length].mean(0) for row, length in zip(hidden, x["padding_mask"].sum(1), strict=True)])
    np.testing.assert_allclose(found["mean"], by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_one_graph_serves_every_shape(compiled):
    model = classifier()
    signature = {name: tf.TensorSpec((None, None), "int32") for name in ("token_ids", "padding_mask")}
    names = ("logits", "backbone/block_1")
    graph = tf.function(lambda x: inner_tensors(model, x, names), input_signature=[signature], jit_compile=compiled)
    for rows, length in ((B, T), (1, 3)):
        part = {name: tf.constant(value[:rows, :length]) for name, value in batch().items()}
        for name, tensor in inner_tensors(model, part, names).items():
            np.testing.assert_allclose(graph(part)[name], tensor, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- inputs and outputs


def test_what_the_model_does_not_take_is_dropped_and_other_libraries_names_are_known():
    ids = keras.Input((None,), dtype="int64", name="input_ids")
    mask = keras.Input((None,), dtype="float32", name="attention_mask")
    hidden = layers.Embedding(V, D)(ids) * keras.ops.expand_dims(mask, -1)
    model = keras.Model([mask, ids], layers.Dense(C)(keras.ops.sum(hidden, 1)))
    x = batch()
    answer = inner_tensors(model, x | {"segment_ids": x["token_ids"], "teacher.logits": x["token_ids"]}, ["logits"])
    np.testing.assert_array_equal(answer["logits"], model([x["padding_mask"].astype("float32"), x["token_ids"].astype("int64")]))
    assert view(model).takes == ["padding_mask", "token_ids"]


def test_an_input_that_the_batch_lacks_is_named():
    ids = keras.Input((None,), dtype="int32", name="words")
    model = keras.Model(ids, layers.Dense(C)(layers.Embedding(V, D)(ids)[:, 0]), name="strange")
    with pytest.raises(ValueError, match="strange takes an input 'words'; the batch holds padding_mask, token_ids"):
        inner_tensors(model, batch(), ["logits"])
    np.testing.assert_array_equal(inner_tensors(model, batch()["token_ids"], ["logits"])["logits"], model(batch()["token_ids"]))


def test_inputs_may_be_a_list_in_the_models_order():
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("a", "b"))
    model, x = keras.Model([ids, mask], layers.Dense(C)(layers.Embedding(V, D)(ids * mask)[:, 0]), name="two"), batch()
    listed = [x["token_ids"], x["padding_mask"]]
    np.testing.assert_array_equal(inner_tensors(model, listed, ["logits"])["logits"], model(listed))
    with pytest.raises(ValueError, match="two takes 2 inputs, a, b; the batch has 1"):
        inner_tensors(model, x["token_ids"], ["logits"])


def test_a_model_of_one_length_gets_its_padding_and_gives_out_the_texts_positions():
    length = 10
    ids, mask = (keras.Input((length,), dtype="int32", name=name) for name in ("input_ids", "attention_mask"))
    hidden = layers.Embedding(V, D, name="embedding")(ids) * keras.ops.expand_dims(keras.ops.cast(mask, "float32"), -1)
    tagger = keras.Model([ids, mask], layers.Dense(C, name="scores")(hidden), name="tagger")
    flat = keras.Model([ids, mask], layers.Dense(C)(layers.Flatten()(hidden)), name="flat")  # takes no other length
    x = batch()
    padded = [np.pad(x[name], ((0, 0), (0, length - T))) for name in ("token_ids", "padding_mask")]
    mapping = {"hidden.0": "embedding"}
    signature = {name: tf.TensorSpec((None, None), "int32") for name in x}  # the length is not known when this is traced
    graph = tf.function(lambda x: inner_tensors(tagger, x, ("logits", "hidden.0"), mapping=mapping), input_signature=[signature])
    for found in (inner_tensors(tagger, x, ("logits", "hidden.0"), mapping=mapping), graph(x)):
        np.testing.assert_allclose(found["logits"], tagger(padded)[:, :T], rtol=1e-6)
        np.testing.assert_allclose(found["hidden.0"], tagger.get_layer("embedding")(x["token_ids"]), rtol=1e-6)
    assert inner_shapes(tagger, ["logits", "hidden.0"], mapping) == {"logits": (None, None, C), "hidden.0": (None, None, D)}
    np.testing.assert_allclose(inner_tensors(flat, x, ["logits"])["logits"], flat(padded), rtol=1e-6)
    assert view(flat).max_length == length and view(classifier()).max_length is None
    longer = {name: np.pad(value, ((0, 0), (0, length))) for name, value in x.items()}
    with pytest.raises(ValueError, match=f"flat takes {length} word pieces; the batch has {T + length}"):
        inner_tensors(flat, longer, ["logits"])
    with pytest.raises(tf.errors.InvalidArgumentError):
        graph(longer)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_become_logits_again(activation):
    inside = backbone()
    model, plain, x = classifier(inside, activation), classifier(inside), batch()
    plain.get_layer("dense").set_weights(model.get_layer("dense").get_weights())
    outer = keras.Model(model.input, model(model.input))  # the activation is then inside a nested model
    for one in (model, outer):
        logits = inner_tensors(one, x, ["logits"])["logits"].numpy()
        expected = plain(x).numpy()
        if activation == "softmax":  # which forgets a constant
            logits, expected = logits - logits.max(-1, keepdims=True), expected - expected.max(-1, keepdims=True)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(inner_tensors(plain, x, ["logits"])["logits"], plain(x))
    as_said = LiveTeacher(model, activation="linear")(x)["logits"]
    np.testing.assert_array_equal(as_said, model(x))
    with pytest.raises(ValueError, match="activation = 'tanh': must be one of linear, softmax, sigmoid"):
        LiveTeacher(model, activation="tanh")


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_of_0_and_1_become_finite_logits(activation):
    logits = to_logits(np.array([[0.0, 1.0]], "float32"), activation).numpy()
    assert np.isfinite(logits).all() and logits[0, 0] < -15 and logits[0, 1] >= 0


def test_a_model_of_several_outputs_says_which_are_logits():
    inside, x = backbone(), batch()
    with pytest.raises(ValueError, match="backbone answers with sequence, pooled, none of them called logits"):
        inner_tensors(inside, x, ["logits"])
    found = inner_tensors(inside, x, ["logits"], mapping={"logits": "dense"})["logits"]
    np.testing.assert_array_equal(found, inside(x)["pooled"])
    named = keras.Model(inside.input, {"logits": inside.output["pooled"], "more": inside.output["sequence"]})
    np.testing.assert_array_equal(inner_tensors(named, x, ["logits"])["logits"], inside(x)["pooled"])


# ---------------------------------------------------------------- names


def test_a_mapping_gives_a_foreign_model_our_names():
    model, x = classifier(), batch()
    mapping = {"hidden.0": "backbone/dropout_0", "embeddings": "embedding"}
    found = inner_tensors(model, x, ["hidden.0", "embeddings", "logits"], mapping=mapping)
    plain = inner_tensors(model, x, ["backbone/dropout_0", "backbone/embedding"])
    np.testing.assert_array_equal(found["hidden.0"], plain["backbone/dropout_0"])
    np.testing.assert_array_equal(found["embeddings"], plain["backbone/embedding"])
    assert inner_shapes(model, ["hidden.0"], mapping) == {"hidden.0": (None, None, D)}
    with pytest.raises(ValueError, match="no inner tensor 'backbone/blok_0' for 'hidden.0'; near it: backbone/block_0"):
        view(model, {"hidden.0": "backbone/blok_0"})


def test_a_mapping_renames_our_own_models_tensors_too():
    model, x = ours(), batch()
    found = inner_tensors(model, x, ["hidden.0", "logits"], mapping={"hidden.0": "hidden.1"})
    np.testing.assert_array_equal(found["hidden.0"], model.inner(x, ["hidden.1"])["hidden.1"])
    assert inner_shapes(model, ["key.0"], {"key.0": "attention.1"}) == {"key.0": (None, 2, None, None)}
    with pytest.raises(ValueError, match="no inner tensor 'hidden.7'"):
        view(model, {"hidden.0": "hidden.7"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("block_2", "no inner tensor 'block_2'; near it: .*backbone/block_"),
        ("backbone/block", "near it: .*backbone/block_0"),
        ("hidden.1", r"which of its layers is layer 1 must be said, as in \{hidden.1: "),
        ("attention.0", "keep attention scores, queries, keys and values to themselves; use objectives over hidden states"),
        ("value.3", "keep attention scores, queries, keys and values to themselves"),
        ("", "no inner tensor ''"),
    ],
)
def test_unknown_names_are_refused_with_near_ones_or_the_reason(name, message):
    with pytest.raises(ValueError, match=message):
        inner_tensors(classifier(), batch(), ["logits", name])
    with pytest.raises(ValueError, match=message):
        inner_shapes(classifier(), [name])


def test_a_model_with_code_of_its_own_has_logits_and_nothing_else():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inside = classifier()

        def call(self, inputs, training=None):
            return self.inside(inputs, training=training) * 2.0

    class Overridden(keras.Model):  # functional by its constructor, but its graph is not what runs
        def __init__(self, inside):
            super().__init__(inside.input, inside.output)
            self.inside = inside

        def call(self, inputs, training=None):
            return self.inside(inputs, training=training) * 2.0

    x = batch()
    for model in (Own(), Overridden(classifier())):
        np.testing.assert_array_equal(inner_tensors(model, x, ["logits"])["logits"], model.inside(x) * 2.0)
        assert inner_shapes(model, ["logits"]) == {"logits": None}
        assert inner_tensors(model, x, []) == {}
        with pytest.raises(ValueError, match="neither tfkd's nor functional: it has logits, but no inner tensor 'hidden.0'"):
            inner_shapes(model, ["hidden.0"])


# ---------------------------------------------------------------- our models


def ours(head=None, **changes):
    encoder = TransformerEncoder(V, 2, D, 2, max_positions=T, **changes)
    return TransformerWithHead(encoder, head or ClassificationHead(C))


@pytest.mark.parametrize("changes", [{}, {"norm": "pre", "segments": 0}, {"dtype": "mixed_bfloat16"}])
def test_shapes_are_known_before_a_batch(changes):
    model, x = ours(**changes), batch()
    names = ["logits", "pooled", "embeddings"]
    names += [f"{family}.{index}" for family in ("hidden", "attention", "query", "key", "value") for index in range(2)]
    for one, asked in ((model, names), (model.encoder, names[2:])):
        shapes = inner_shapes(one, asked)
        assert list(shapes) == asked
        for name, tensor in inner_tensors(one, x, asked).items():
            assert len(shapes[name]) == len(tensor.shape) and shapes[name][0] is None
            for known, size in zip(shapes[name], tensor.shape, strict=True):
                assert known in (None, size), name
            if name != "logits" and name != "pooled":
                assert shapes[name].count(None) == (3 if name.startswith("attention") else 2)
    assert inner_shapes(model, ["logits", "pooled"]) == {"logits": (None, C), "pooled": (None, D)}


def test_shapes_of_unknown_names_are_refused():
    for one in (ours(), ours().encoder):
        with pytest.raises(ValueError, match="an encoder of 2 layers has embeddings"):
            inner_shapes(one, ["hidden.2"])
    with pytest.raises(ValueError, match="no inner tensor 'logits'"):
        inner_shapes(ours().encoder, ["logits"])


@pytest.mark.parametrize(
    ("name", "shape", "over"),
    [("hidden.3", (None, None, 4), True), ("embeddings", None, True), ("attention.0", (None, 2, None, None), True)]
    + [("pooled", (None, 4), False), ("logits", (None, 3), False), ("logits", (None, None, 3), True), ("logits", None, False)],
)
def test_positions_are_told_from_names_and_shapes(name, shape, over):
    assert over_positions(name, shape) is over


# ---------------------------------------------------------------- distilling


def test_our_student_learns_from_inside_a_functional_teacher():
    """By layer index, though the teacher's layers have paths; the widths are the same, so nothing is projected."""
    teacher, x = classifier(), batch()
    student = ours(dropout=0.0)
    objectives = [OBJECTIVES["hidden_state_mse"](layers=[(1, 0)]), KLDivergence()]
    distiller = Distiller(student, LiveTeacher(teacher, names={"hidden.0": "block_0"}), objectives, alpha=0.0)
    distiller.compile(keras.optimizers.SGD(0.0), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = distiller.fit(tf.data.Dataset.from_tensors((x, np.zeros(B, "int32"))), verbose=0, shuffle=False).history
    mask = x["padding_mask"][..., None]
    by_hand = (student.inner(x, ["hidden.1"])["hidden.1"] - pieces(teacher.get_layer("backbone"), x, "block_0")) ** 2
    assert history["hidden_state_mse"][0] == pytest.approx(float((by_hand * mask).numpy().sum() / mask.sum() / D), rel=1e-5)


def test_a_functional_student_learns_and_its_teacher_does_not():
    teacher, student = classifier(), classifier()
    before, x = teacher.get_weights(), batch()
    distiller = Distiller(student, teacher, [KLDivergence(2.0)], alpha=0.0)
    distiller.compile(keras.optimizers.SGD(0.5), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensors((x, np.zeros(B, "int32")))
    history = distiller.fit(data, epochs=4, verbose=0, shuffle=False).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
