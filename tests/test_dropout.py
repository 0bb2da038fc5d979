import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfkd.layers.dropout import Dropout


def dropped(layer, shape=(64, 30, 101), calls=40):
    """(calls, *shape): whether each of so many ones became 0."""
    return np.stack([ops.convert_to_numpy(layer(ops.ones(shape), training=True)) == 0 for _ in range(calls)])


@pytest.mark.parametrize("rate", [0.1, 0.003, 0.25, 0.45, 0.999])
def test_every_value_is_dropped_as_often_as_the_rate_says_and_the_others_are_scaled(rate):
    layer = Dropout(rate, seed=1)
    shares = dropped(layer).mean(axis=(1, 2, 3))
    grain = 1 / 128
    # each call rounds to a 128th: its mean is exact, and its spread at most half of one, over 40 calls
    assert shares.mean() == pytest.approx(rate, abs=4 * (grain / 2) / np.sqrt(40))
    assert (np.abs(shares - rate) < grain * 1.2).all()
    values = ops.convert_to_numpy(layer(ops.full((64, 128), 3.0), training=True))
    np.testing.assert_allclose(values[values != 0], 3.0 / (1.0 - rate), rtol=1e-5)


def test_a_rate_of_whole_128ths_is_kept_by_every_call():
    shares = dropped(Dropout(0.25, seed=2), calls=10).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(shares, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / (64 * 30 * 101)))


def test_values_that_share_a_number_are_dropped_independently_and_so_are_calls():
    found = dropped(Dropout(0.5, seed=3), shape=(500, 8), calls=50).astype("float64")
    correlation = np.corrcoef(found.reshape(-1, 8).T)
    assert np.abs(correlation - np.eye(8)).max() < 0.03
    calls = np.corrcoef(found.reshape(50, -1))
    assert np.abs(calls - np.eye(50)).max() < 0.1


@pytest.mark.parametrize("shape", [(7,), (2, 1), (3, 2, 5), (0, 4), (2, 3, 4, 6)])
def test_any_shape_comes_back_as_it_is(shape):
    for training in (True, False):
        assert Dropout(0.5, seed=0)(ops.ones(shape), training=training).shape == shape


def test_nothing_is_dropped_outside_of_training_and_nothing_drawn():
    layer = Dropout(0.5, seed=0)
    state = layer.seed_generator.state.numpy()
    values = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    np.testing.assert_array_equal(layer(values), values)
    np.testing.assert_array_equal(layer.seed_generator.state.numpy(), state)


@pytest.mark.parametrize("compiled", [False, True])
def test_shapes_that_are_not_known_before_give_the_same_as_those_that_are(compiled):
    drop = tf.function(
        lambda x: layer(x, training=True), jit_compile=compiled, input_signature=[tf.TensorSpec((None, None, None), "float32")]
    )
    layer = Dropout(0.3, seed=5)
    found = drop(tf.ones((4, 6, 11))).numpy()
    layer = Dropout(0.3, seed=5)
    np.testing.assert_array_equal(found, layer(tf.ones((4, 6, 11)), training=True).numpy())


def test_values_that_are_dropped_get_no_gradient_and_no_number_that_is_none_remains():
    layer, x = Dropout(0.5, seed=6), tf.constant([[1.0, 2.0, 3.0, np.inf, np.nan] * 20])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    gradient = tape.gradient(y, x).numpy()
    np.testing.assert_array_equal(gradient, np.where(y.numpy() == 0, 0.0, 2.0))
    assert set(gradient[0]) == {0.0, 2.0} and gradient[0, 3::5].min() == 0.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_half_precision(dtype):
    policy = keras.DTypePolicy("mixed_" + dtype)
    found = Dropout(0.1, dtype=policy)(ops.ones((8, 64)), training=True)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    np.testing.assert_allclose(np.unique(ops.convert_to_numpy(ops.cast(found, "float32"))), [0.0, 1 / 0.9], rtol=5e-3)


def test_whole_vectors_are_dropped_by_a_noise_shape():
    found = ops.convert_to_numpy(Dropout(0.5, noise_shape=(None, None, 1), seed=0)(ops.ones((8, 16, 5)), training=True))
    assert (found == found[..., :1]).all() and 0.3 < (found == 0).mean() < 0.7


def test_it_is_saved_and_read(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Dropout(0.3, seed=4)])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True).layers[0]
    assert type(again) is Dropout and again.rate == 0.3
