"""Rounding to 8 bits in training: the arithmetic by hand, the student's computation, and what is learned."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tests.tiny_run import PIECES, batch_of, build_model
from tfkd.layers.embedding_head import EmbeddingHead
from tfkd.layers.fake_quantization import fake_quantize, fake_quantize_kernel
from tfkd.layers.head import RegressionHead
from tfkd.layers.token_head import SpanHead, TokenHead
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.quantized import QuantizedTransformer
from tfkd.models.with_head import TransformerWithHead

TEXTS = ("red cat sings", "old", "never very small blue bird sleeps")


# -------------------------------------------------------------------- arithmetic


def test_rounding_by_hand():
    # s = 2.55 / 255 = 0.01, z = 100: whole hundredths from -1 to 1.55.
    values = ops.array([-2.0, -1.0, -0.004, 0.006, 0.504, 1.55, 3.0])
    np.testing.assert_allclose(fake_quantize(values, -1.0, 1.55), [-1.0, -1.0, 0.0, 0.01, 0.5, 1.55, 1.55], atol=1e-6)


def test_zero_is_always_one_of_the_256_values():
    # s = 0.4 / 255 and -low / s = 63.75, so that z = 64 and the ends move to -64 s and 191 s.
    low, high = -0.1, 0.3
    got = fake_quantize(ops.array([-9.0, 0.0, 9.0]), low, high)
    np.testing.assert_allclose(got, [-64 * 0.4 / 255, 0.0, 191 * 0.4 / 255], rtol=1e-6)


def test_gradients_go_straight_through_inside_and_pull_at_the_ends_outside():
    values = tf.constant([-2.0, 0.506, 3.0])
    low, high = tf.constant(-1.0), tf.constant(1.55)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([values, low, high])
        each = tf.unstack(fake_quantize(values, low, high))
        total = tf.add_n(each)
    np.testing.assert_allclose(tape.gradient(total, values), [0.0, 1.0, 0.0])
    # Outside the answer is an end itself; inside it is s round(x / s), and round(50.6) - 50.6 = 0.4 of ds/dhigh = 1 / 255.
    by_low, by_high = ([float(tape.gradient(one, end)) for one in each] for end in (low, high))
    np.testing.assert_allclose(by_low, [1.0, -0.4 / 255, 0.0], atol=1e-5)
    np.testing.assert_allclose(by_high, [0.0, 0.4 / 255, 1.0], atol=1e-5)


@pytest.mark.parametrize(("low", "high"), ((-1.0, 1.03), (-3.7, 0.2), (0.0, 6.1), (-20.0, 0.0)))
def test_values_are_those_of_tensorflows_own_operator(low, high):
    values = np.random.default_rng(0).uniform(1.2 * low - 0.1, 1.2 * high + 0.1, 2000).astype("float32")
    expected = tf.quantization.fake_quant_with_min_max_args(values, low, high).numpy()
    got, step = ops.convert_to_numpy(fake_quantize(values, low, high)), (high - low) / 255
    assert np.isclose(got, expected, atol=1e-4 * step).mean() > 0.99  # a tie may be rounded either way
    np.testing.assert_allclose(got, expected, atol=1.001 * step)


def test_kernels_have_a_scale_a_column_and_the_gradient_of_the_identity():
    kernel = tf.constant([[1.27, 0.0, 63.5], [-0.014, 0.0, -127.0]])
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        rounded = fake_quantize_kernel(kernel)
    # Scales 0.01, none and 1: 63.5 goes to the even 64.
    np.testing.assert_allclose(rounded, [[1.27, 0.0, 64.0], [-0.01, 0.0, -127.0]], atol=1e-6)
    np.testing.assert_array_equal(tape.gradient(rounded, kernel), np.ones((2, 3)))


# -------------------------------------------------------------------- the student's computation


def plain(name, values, fixed=None):
    """Leaves every intermediate result as it is."""
    return values


def with_head(head, segments=0):
    keras.utils.set_random_seed(3)
    encoder = TransformerEncoder(len(PIECES), 2, 16, 2, max_positions=16, segments=segments, initializer_range=0.3)
    return TransformerWithHead(encoder, head)


STUDENTS = {
    "bert": lambda: build_model(layers=2),
    "segments": lambda: build_model(segments=2),
    "mean": lambda: build_model(layers=2, pooling="mean"),
    "pre-norm sinusoidal": lambda: build_model(layers=2, norm="pre", position="sinusoidal"),
    "relu": lambda: build_model(activation="relu", heads=1),
    "tokens": lambda: with_head(TokenHead(4)),
    "spans": lambda: with_head(SpanHead(2), segments=2),
    "regression": lambda: with_head(RegressionHead(3.0, 2.0)),
}


@pytest.mark.parametrize("make", STUDENTS)
def test_without_rounding_it_is_the_student_and_with_it_nearly(make):
    student, batch = STUDENTS[make](), batch_of(*TEXTS)
    if student.encoder.config["segments"]:
        batch["segment_ids"] = np.tril(np.ones_like(batch["token_ids"]), -1) * batch["padding_mask"]
    model = QuantizedTransformer(student)
    expected, text = np.asarray(student(batch, training=False)), np.asarray(batch["padding_mask"], bool)
    plainly, scale = np.asarray(model.forward(batch, plain)), np.abs(expected).max()
    where = text if isinstance(student.head, SpanHead) else ...  # what is said of padding is another number, and never read
    np.testing.assert_allclose(plainly[where], expected[where], atol=2e-5)
    model.observe([batch])
    assert 0.0 < np.abs(np.asarray(model(batch))[where] - expected[where]).max() < 0.25 * max(1.0, scale)


def test_head_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="a EmbeddingHead cannot be quantized; only ClassificationHead"):
        QuantizedTransformer(with_head(EmbeddingHead(16)))


def test_padding_cannot_matter():
    model = QuantizedTransformer(build_model(layers=2))
    batch = batch_of(*TEXTS)
    model.observe([batch])
    other = {**batch, "token_ids": np.where(batch["padding_mask"] == 1, batch["token_ids"], 9).astype("int32")}
    alone = batch_of(TEXTS[1])
    np.testing.assert_allclose(model(batch)[1], model(other)[1], atol=1e-5)
    np.testing.assert_allclose(model.forward(batch, plain)[1], model.forward(alone, plain)[0], atol=1e-5)


def test_ranges_are_means_over_batches_of_the_extremes_and_hold_zero():
    student = build_model()
    model, batches = QuantizedTransformer(student), [batch_of(text) for text in TEXTS]
    table = np.asarray(student.encoder.embedding.token_table)
    rows = [table[batch["token_ids"]] for batch in batches]
    model.observe(batches)
    low, high = model.ranges["tokens"]
    assert float(low) == pytest.approx(np.mean([part.min() for part in rows]), rel=1e-5)
    assert float(high) == pytest.approx(np.mean([part.max() for part in rows]), rel=1e-5)
    assert all(float(low) <= 0.0 <= float(high) and float(low) < float(high) for low, high in model.ranges.values())
    assert float(model.ranges["block_0_attention_squares"][0]) == 0.0


def test_other_inner_tensors_than_logits_have_no_meaning():
    with pytest.raises(ValueError, match="no inner tensor 'hidden.0'"):
        QuantizedTransformer(build_model()).inner(batch_of("red"), ("logits", "hidden.0"))


def test_variances_that_round_to_zero_give_numbers_and_gradients():
    model, batch = QuantizedTransformer(build_model()), batch_of(*TEXTS)
    model.observe([batch])
    index = [model.names.index(name) for name in model.names if name.endswith("lifted")]
    high = np.array(model.high)
    high[index] *= 1e4
    model.high.assign(high)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model(batch))
    gradients = [g for g in tape.gradient(total, model.trainable_variables) if g is not None]
    assert np.isfinite(float(total)) and all(np.isfinite(tf.convert_to_tensor(g)).all() for g in gradients)


# -------------------------------------------------------------------- learning


@pytest.mark.slow
def test_training_brings_rounded_answers_back_and_moves_ranges():
    student = build_model()
    batch = batch_of(*TEXTS, "big dog runs", "red green blue", "not new and old")
    wanted = np.asarray(student(batch, training=False))
    model = QuantizedTransformer(student)
    model.observe([batch])
    model.high.assign(np.array(model.high) * 4.0)  # six bits are left
    model.low.assign(np.array(model.low) * 4.0)
    before, ranges = float(np.mean((np.asarray(model(batch)) - wanted) ** 2)), np.array(model.high_change)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    for _ in range(40):
        model.train_on_batch(batch, wanted)
    assert float(np.mean((np.asarray(model(batch)) - wanted) ** 2)) < 0.3 * before
    assert np.abs(np.array(model.high_change) - ranges).max() > 1e-3
    assert all(float(low) <= 0.0 <= float(high) for low, high in model.ranges.values())


def test_file_holds_weights_and_ranges(tmp_path):
    model, batch = QuantizedTransformer(build_model(policy="mixed_float16"), pace=7.0), batch_of(*TEXTS)
    model.observe([batch])
    model.high_change.assign(np.full(len(model.names), 0.01))
    model.save(tmp_path / "model.keras")
    read = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(read(batch), model(batch))
    assert (read.names, read.pace) == (model.names, 7.0)
    assert model(batch).dtype == "float32"
