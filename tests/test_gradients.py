import numpy as np
import pytest
import tensorflow as tf

from tfkd.gradients import dense, global_norm


def looked_up(values, rows, size=6):
    return tf.IndexedSlices(tf.constant(values, "float32"), tf.constant(rows), tf.constant([size, np.shape(values)[1]]))


def norm_of(*gradients):
    return float(global_norm(gradients, [dense(gradient) for gradient in gradients]))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_norm_is_that_of_the_summed_rows(compiled):
    random = np.random.default_rng(0)
    values, rows, other = random.normal(size=(40, 3)), random.integers(0, 6, 40), random.normal(size=(5, 4))
    table = np.zeros((6, 3))
    np.add.at(table, rows, values)

    @tf.function(jit_compile=compiled)
    def norm(values, other):
        gradients = (tf.IndexedSlices(values, tf.constant(rows), tf.constant([6, 3])), other)
        return global_norm(gradients, [dense(gradient) for gradient in gradients])

    found = float(norm(tf.constant(values, "float32"), tf.constant(other, "float32")))
    assert found == pytest.approx(np.sqrt((table**2).sum() + (other**2).sum()), rel=1e-5)


def test_slices_that_cancel_leave_no_root_of_less_than_0():
    ones = np.ones((3, 2), "float32") * [[0.1], [0.2], [-0.3]]  # in float32 their sum is 7e-9
    assert 0.0 <= norm_of(looked_up(ones, [1, 1, 1])) < 1e-6
    assert norm_of(looked_up([[1.0], [-1.0]], [2, 2])) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_seen_in_the_norm(bad):
    assert not np.isfinite(norm_of(looked_up([[1.0, bad], [1.0, 1.0]], [0, 3])))
    assert not np.isfinite(norm_of(looked_up([[1.0, 1.0]], [0]), tf.constant([bad])))


def test_of_no_gradient_the_norm_is_0():
    assert norm_of() == 0.0
    assert dense(None) is None
