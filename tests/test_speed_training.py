"""What makes a training faster or smaller must not make it another one: each way is held to the plain computation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.distiller import Distiller
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import HiddenStateMSE, KLDivergence, RKDDistance
from tfkd.tasks.classification import ClassificationHead

V, C, B, T = 40, 3, 8, 6


def model(seed, layers=2, width=12, dropout=0.0, norm="post", pooling="first"):
    keras.utils.set_random_seed(seed)
    shape = {"layers": layers, "width": width, "heads": 2, "feed_forward": 20}
    encoder = TransformerEncoder(V, **shape, max_positions=T, segments=0, dropout=dropout, norm=norm, initializer_range=0.3)
    made = TransformerWithHead(encoder, ClassificationHead(C, pooling=pooling, dropout=dropout))
    made.head.output_dense.kernel.assign(made.head.output_dense.kernel * 50)  # answers that differ by more than rounding
    return made


def batch(rows=B, seed=0, length=T):
    """Rows of very different lengths and weights, the last of them filler."""
    random = np.random.default_rng(seed)
    mask = (np.arange(length) < random.integers(1, length + 1, rows)[:, None]).astype("int32")
    x = {"token_ids": random.integers(0, V, (rows, length)).astype("int32") * mask, "padding_mask": mask}
    weights = random.uniform(0.1, 3.0, rows).astype("float32")
    weights[-3:] = 0.0
    return x, random.integers(0, C, rows).astype("int32"), weights


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


HOW = {"eagerly": {"run_eagerly": True}, "as a graph": {"jit_compile": False}, "by XLA": {"jit_compile": True}}
EVERY_WAY = ["eagerly", *(pytest.param(how, marks=pytest.mark.slow) for how in ("as a graph", "by XLA"))]


def trained(student, steps=3, batches=None, optimizer=None, how="eagerly", **arguments):
    """What `fit` said of the training, and the weights at its end."""
    distiller = Distiller(student, model(9, width=16), arguments.pop("objectives", None), **arguments)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    distiller.compile(optimizer or keras.optimizers.SGD(0.3), loss=loss(), weighted_metrics=[accuracy], **HOW[how])
    parts = batches or [batch(seed=seed, length=T - seed % 2) for seed in range(steps)]
    # As our pipeline hands them out: so many rows, of a length that no graph knows beforehand.
    spec = tf.nest.map_structure(lambda array: tf.TensorSpec((len(array), *[None] * (array.ndim - 1)), array.dtype), parts[0])
    data = tf.data.Dataset.from_generator(lambda: tf.nest.map_structure(np.copy, parts), output_signature=spec)
    data = data.apply(tf.data.experimental.assert_cardinality(len(parts)))
    return distiller.fit(data, shuffle=False, verbose=0).history, student.get_weights()


def assert_alike(one, other, rtol=5e-5, atol=5e-6):
    assert set(one[0]) == set(other[0])
    for name, values in one[0].items():
        np.testing.assert_allclose(values, other[0][name], rtol=rtol, err_msg=name)
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


# ---------------------------------------------------------------- the last block at one position


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_one_position_of_the_last_block_has_the_gradients_of_all_of_them(norm):
    """Asked for the last hidden states, the model computes them all; the logits' gradients must not be able to tell."""
    student, (x, y, _) = model(1, norm=norm), batch()
    weights = [variable.value for variable in student.trainable_variables]
    found = []
    for names in (("logits",), ("logits", "hidden.1")):
        with tf.GradientTape() as tape:
            inner = student.inner(x, names, training=True)
            value = loss()(y, inner["logits"])
        found.append((inner["logits"], [tf.convert_to_tensor(gradient) for gradient in tape.gradient(value, weights)]))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    for short, full in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(short, full, rtol=1e-4, atol=1e-6)
        assert np.isfinite(short).all()


def test_one_position_is_dropped_out_as_one_position():
    """Dropout draws for (B, 1, D) and (B, H, 1, T): of what it keeps, each row its own."""
    student, (x, _, _) = model(1, layers=1, dropout=0.5), batch()
    x = {name: np.repeat(value[:1], 200, axis=0) for name, value in x.items()}
    drawn = []
    for layer in (student.encoder.blocks[0].dropout, student.encoder.blocks[0].attention.dropout):
        call = layer.call
        layer.call = lambda inputs, training=False, call=call: drawn.append(inputs.shape) or call(inputs, training)
    logits = student(x, training=True)
    assert sorted(map(tuple, drawn)) == [(200, 1, 12), (200, 1, 12), (200, 2, 1, T)]
    assert len(np.unique(np.round(np.asarray(logits), 5), axis=0)) > 150


def test_padding_of_any_kind_leaves_logits_and_gradients_of_the_one_position_alone():
    student, (x, y, _) = model(1), batch()
    junk = {**x, "token_ids": np.where(x["padding_mask"], x["token_ids"], 7).astype("int32")}
    weights = [v.value for v in student.trainable_variables]
    found = []
    for inputs in (x, junk):
        with tf.GradientTape() as tape:
            value = loss()(y, student(inputs, training=True))
        found.append([tf.convert_to_tensor(gradient).numpy() for gradient in tape.gradient(value, weights)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------- parts of a batch


@pytest.mark.parametrize("how", EVERY_WAY)
def test_parts_of_a_batch_are_the_step_of_the_batch(how):
    def run(**arguments):
        student = model(1, pooling="mean")
        objectives = [KLDivergence(2.0), HiddenStateMSE(layers=[(0, 0), (1, 1)])]
        return trained(student, steps=2, objectives=objectives, alpha=0.3, **arguments)

    assert_alike(run(), run(accumulate=4 if how == "by XLA" else 2, how=how))


def test_parts_without_sample_weights_and_with_a_part_of_filler_alone():
    x, y, weights = batch()
    weights[4:] = 0.0
    for given in ([(x, y)], [(x, y, weights)]):
        whole, parts = (trained(model(1, layers=1), batches=given, accumulate=parts) for parts in (1, 2))
        assert_alike(whole, parts)


def test_what_no_term_reads_is_not_decayed_in_parts_either():
    def run(accumulate):
        keras.utils.set_random_seed(0)
        optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)
        objectives = [HiddenStateMSE(layers=[(0, 0)])]
        return trained(model(1), steps=2, objectives=objectives, alpha=0.0, accumulate=accumulate, optimizer=optimizer)

    plain, cut, start = run(1), run(2), model(1).get_weights()
    assert_alike(plain, cut, atol=2e-5)
    np.testing.assert_array_equal(plain[1][-1], start[-1])


def test_each_part_draws_its_own_dropout():
    x, y, _ = batch(rows=4)
    twice = {name: np.concatenate([value, value]) for name, value in x.items()}, np.concatenate([y, y])
    student = model(1, dropout=0.5)
    seen = []

    class Seeing(KLDivergence):
        def call(self, student, teacher):
            seen.append(student["logits"].numpy())
            return super().call(student, teacher)

    trained(student, batches=[twice], objectives=[Seeing(2.0)], accumulate=2)
    assert len(seen) == 2 and np.abs(seen[0] - seen[1]).max() > 1e-3


def test_parts_that_do_not_divide_a_batch_or_compare_its_examples_are_refused():
    with pytest.raises(ValueError, match="rkd_distance compares all examples"):
        Distiller(model(1), model(2), [RKDDistance()], accumulate=2)
    with pytest.raises(ValueError, match="accumulate = 3 does not divide a batch of 8"):
        trained(model(1), accumulate=3)


# ---------------------------------------------------------------- blocks computed again


@pytest.mark.parametrize("how", EVERY_WAY)
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_blocks_computed_again_train_the_same_student_dropout_included(pooling, how):
    """A second draw of dropout in the backward pass would give gradients of another function."""
    results = []
    for again in (False, True):
        student = model(1, dropout=0.3, pooling=pooling)
        student.encoder.checkpoint_gradients = again
        objectives = [KLDivergence(2.0), HiddenStateMSE(layers=[(0, 0)])]
        results.append(trained(student, objectives=objectives, how=how))
    assert_alike(*results)
    assert any((a != b).any() for a, b in zip(results[0][1], model(1, dropout=0.3).get_weights(), strict=True))


def test_blocks_computed_again_keep_nothing_of_their_inside():
    """A step has each block's softmax a second time: the gradients read that one, and nothing keeps the first."""
    student, (x, y, _) = model(1, layers=3, pooling="mean"), batch()

    def softmaxes(again):
        student.encoder.checkpoint_gradients = again

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                value = loss()(y, student(x, training=True))
            return tape.gradient(value, [v.value for v in student.trainable_variables])

        return sum(node.op == "Softmax" for node in step.get_concrete_function().graph.as_graph_def().node)

    assert softmaxes(True) == 2 * softmaxes(False) == 6


def test_a_model_that_is_asked_computes_nothing_again_and_is_saved_as_ever(tmp_path):
    student, (x, _, _) = model(1), batch()
    plain = student(x)
    student.encoder.checkpoint_gradients = True
    np.testing.assert_array_equal(student(x), plain)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    assert not loaded.encoder.checkpoint_gradients
    np.testing.assert_array_equal(loaded(x), plain)
