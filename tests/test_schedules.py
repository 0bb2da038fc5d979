import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.schedules import Schedule, bounds, value_at


def values(schedule, steps):
    return [float(schedule(step)) for step in range(steps)]


def test_linear_goes_in_equal_parts_and_then_stays():
    np.testing.assert_allclose(values(Schedule(1.0, 0.2, 5), 7), [1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2], rtol=1e-6)


def test_cosine_leaves_and_arrives_slowly():
    expected = [4 - 3 * (1 - math.cos(math.pi * step / 8)) / 2 for step in range(9)]
    np.testing.assert_allclose(values(Schedule(4.0, 1.0, 9, "cosine"), 9), expected, rtol=1e-6)


def test_by_epoch_a_value_holds_for_an_epoch_and_the_last_epoch_has_the_end():
    np.testing.assert_allclose(values(Schedule(0.0, 1.0, 6, every=2), 6), [0, 0, 0.5, 0.5, 1, 1], rtol=1e-6)


def test_one_step_or_one_epoch_has_the_start():
    assert values(Schedule(3.0, 1.0, 1), 1) == [3.0]
    assert values(Schedule(3.0, 1.0, 4, every=4), 4) == [3.0] * 4


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("every", [41, 47, 55, 61])
def test_compiled_every_epoch_begins_at_its_first_step(every, jit_compile):
    """Of 1 / 41 in float32 forty-one are less than 1."""
    epochs = 20
    schedule = Schedule(0.0, epochs - 1.0, epochs * every, every=every)
    compiled = tf.function(lambda steps: schedule(steps), jit_compile=jit_compile)
    found = compiled(tf.range(epochs * every, dtype="float32"))
    np.testing.assert_allclose(found, np.repeat(np.arange(epochs), every), atol=1e-4)


@pytest.mark.parametrize("arguments", [{"shape": "square"}, {"steps": 0}, {"every": 0}])
def test_a_senseless_schedule_is_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Schedule(**{"start": 1.0, "end": 0.0, "steps": 3} | arguments)


def test_numbers_stay_numbers_and_bounds_are_the_ends():
    assert value_at(0.3, 7) == 0.3
    assert bounds(0.3) == (0.3, 0.3)
    assert bounds(Schedule(4.0, 1.0, 9)) == (1.0, 4.0)


def test_a_schedule_survives_saving():
    schedule = Schedule(4.0, 1.0, 9, "cosine", every=3)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert again.get_config() == schedule.get_config()
