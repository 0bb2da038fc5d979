"""The contract every objective keeps, over the whole table, and one number by hand for each."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.objectives import OBJECTIVES, KLDivergence

B, T, D, H, C = 4, 5, 8, 2, 3
MAKERS = sorted(OBJECTIVES)


def tensors(seed, names):
    """Random inner tensors of the shapes that models give them."""
    random = np.random.default_rng(seed)
    shapes = {"logits": (B, C), "pooled": (B, D), "embeddings": (B, T, D), "hidden": (B, T, D), "attention": (B, H, T, T)}
    shapes |= {"query": (B, H, T, D // H), "key": (B, H, T, D // H), "value": (B, H, T, D // H)}
    return {name: tf.constant(random.normal(size=shapes[name.split(".")[0]]).astype("float32")) for name in names}


def test_the_table_names_every_objective():
    assert len(OBJECTIVES) == 1


@pytest.mark.parametrize("name", MAKERS)
class TestContract:
    def pair(self, name, seed=0):
        objective = OBJECTIVES[name]()
        return objective, tensors(seed, objective.student_names), tensors(seed + 1, objective.teacher_names)

    def test_one_value_an_example_or_position_never_reduced(self, name):
        objective, student, teacher = self.pair(name)
        assert tuple(objective(student, teacher).shape) in ((B,), (B, T))

    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
    def test_float32_whatever_the_models_compute_in(self, name, policy):
        half = policy.removeprefix("mixed_")
        keras.mixed_precision.set_dtype_policy(policy)
        try:
            objective, student, teacher = self.pair(name)
            values = objective({k: tf.cast(v, half) for k, v in student.items()}, teacher)
        finally:
            keras.mixed_precision.set_dtype_policy("float32")
        assert values.dtype == tf.float32
        assert np.isfinite(values.numpy()).all()

    def test_zero_where_student_and_teacher_agree(self, name):
        objective, student, _ = self.pair(name)
        np.testing.assert_allclose(objective(student, student), 0.0, atol=1e-6)

    def test_positive_and_downhill_where_they_differ(self, name):
        objective, student, teacher = self.pair(name)
        variables = {k: tf.Variable(v) for k, v in student.items()}
        with tf.GradientTape() as tape:
            before = tf.reduce_sum(objective({k: v + 0 for k, v in variables.items()}, teacher))
        gradients = tape.gradient(before, variables)
        nearer = {k: v - 1e-3 * gradients[k] for k, v in variables.items()}
        assert 0.0 < tf.reduce_sum(objective(nearer, teacher)) < before

    def test_its_configuration_makes_it_again(self, name):
        objective, student, teacher = self.pair(name)
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
        np.testing.assert_array_equal(again(student, teacher), objective(student, teacher))

    def test_one_compiled_step_gives_the_same_values(self, name):
        objective, student, teacher = self.pair(name)
        compiled = tf.function(objective, jit_compile=True)(student, teacher)
        np.testing.assert_allclose(compiled, objective(student, teacher), rtol=1e-5, atol=1e-6)


def test_kl_divergence_by_hand():
    # softmax([4, 5, 6] / 3) against softmax([6, 5, 4] / 3), times 9, in double precision:
    p, q = np.exp(np.array([4.0, 5.0, 6.0]) / 3), np.exp(np.array([6.0, 5.0, 4.0]) / 3)
    p, q = p / p.sum(), q / q.sum()
    by_hand = 9 * np.sum(p * np.log(p / q))
    assert by_hand == pytest.approx(1.3092, abs=1e-4)
    value = KLDivergence(temperature=3.0)({"logits": tf.constant([[6.0, 5.0, 4.0]])}, {"logits": tf.constant([[4.0, 5.0, 6.0]])})
    assert float(value[0]) == pytest.approx(by_hand, rel=1e-5)


def test_kl_divergence_has_a_direction():
    # KL(p || q) with p = (0.9, 0.1), q = (0.5, 0.5): 0.9 ln 1.8 + 0.1 ln 0.2 = 0.368064; the other way round 0.510826.
    p, q = tf.math.log([[0.9, 0.1]]), tf.math.log([[0.5, 0.5]])
    assert float(KLDivergence(1.0)({"logits": q}, {"logits": p})[0]) == pytest.approx(0.368064, abs=1e-5)
    assert float(KLDivergence(1.0)({"logits": p}, {"logits": q})[0]) == pytest.approx(0.510826, abs=1e-5)


def test_softened_gradients_keep_their_size():
    # Hinton et al. 2015, eq. 4: at a high temperature the gradient nears (z - v) / C for zero-mean logits; T^2 is in it.
    student, teacher = tf.Variable([[0.3, -0.1, -0.2]]), tf.constant([[-0.2, 0.4, -0.2]])
    with tf.GradientTape() as tape:
        value = KLDivergence(1000.0)({"logits": student + 0}, {"logits": teacher})
    np.testing.assert_allclose(tape.gradient(value, student), (student - teacher) / 3, atol=1e-3)


@pytest.mark.parametrize("arguments", [{"temperature": 0.0}, {"temperature": float("nan")}, {"weight": -1.0}])
def test_a_senseless_argument_is_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        KLDivergence(**arguments)


def test_huge_logits_stay_finite():
    value = KLDivergence(1.0)({"logits": tf.constant([[1e4, -1e4]])}, {"logits": tf.constant([[-1e4, 1e4]])})
    assert float(value[0]) == pytest.approx(2e4, rel=1e-5)
