import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.optimizer import AdamW, WarmupLinearDecay, adamw


def test_rate_rises_and_falls_in_straight_lines_by_hand():
    rate = WarmupLinearDecay(peak=1.0, warmup_steps=4, total_steps=10)
    # Steps 0..9 take 1/4, 2/4, 3/4, 4/4, then 6/7, 5/7 ... 1/7: neither the first nor the last step is wasted.
    by_hand = [0.25, 0.5, 0.75, 1.0, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7]
    np.testing.assert_allclose([float(rate(step)) for step in range(10)], by_hand, rtol=1e-6)
    assert float(rate(10)) == 0.0 and float(rate(1000)) == 0.0


def test_without_warmup_it_starts_at_the_peak():
    rate = WarmupLinearDecay(peak=0.5, warmup_steps=0, total_steps=5)
    np.testing.assert_allclose([float(rate(s)) for s in range(5)], [0.5, 0.4, 0.3, 0.2, 0.1], rtol=1e-6)


def test_the_schedule_comes_back_from_its_configuration():
    rate = WarmupLinearDecay(0.1, 3, 9)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rate))
    assert [float(again(s)) for s in range(9)] == [float(rate(s)) for s in range(9)]


def test_only_matrices_decay():
    layer, norm = keras.layers.Dense(3, bias_initializer="ones"), keras.layers.LayerNormalization()
    layer.build((None, 2))
    norm.build((None, 3))
    variables = layer.trainable_variables + norm.trainable_variables
    before = {variable.path: variable.numpy() for variable in variables}
    optimizer = adamw(variables, steps=4, learning_rate=0.1, warmup=0.0, weight_decay=0.5, clip_norm=None)
    optimizer.apply([tf.zeros_like(variable) for variable in variables], variables)  # no gradient: decay is all that moves
    for variable in variables:
        factor = 1 - 0.1 * 0.5 if len(variable.shape) == 2 else 1.0
        np.testing.assert_allclose(variable.numpy(), before[variable.path] * factor, rtol=1e-6)


@pytest.mark.parametrize("told", [{}, {"norm": tf.constant(5.0)}], ids=["alone", "told the norm"])
def test_the_global_norm_is_clipped(told):
    variables = [keras.Variable([0.0]), keras.Variable([0.0])]
    seen = []

    class Recording(AdamW):
        def update_step(self, gradient, variable, learning_rate):
            seen.append(float(gradient[0]))
            super().update_step(gradient, variable, learning_rate)

    optimizer = adamw(variables, steps=10, learning_rate=0.1, clip_norm=1.0)
    recording = Recording.from_config(optimizer.get_config())
    gradients = [tf.constant([3.0]), tf.constant([4.0])]
    recording.apply_gradients(zip(gradients, variables, strict=True), **told)
    np.testing.assert_allclose(seen, [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_it_minimizes(clip_norm):
    x = keras.Variable([[3.0, -2.0]])
    optimizer = adamw([x], steps=200, learning_rate=0.1, weight_decay=0.0, clip_norm=clip_norm)
    for _ in range(200):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(x.value**2)
        optimizer.apply(tape.gradient(loss, [x.value]), [x])
    assert float(loss) < 1e-3
