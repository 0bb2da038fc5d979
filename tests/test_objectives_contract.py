"""The contract that every objective keeps, over the whole table."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.objectives import OBJECTIVES, Objective, PairwiseObjective, ResponseObjective
from tfkd.schedules import Schedule

B, T, D, H, C = 5, 6, 8, 2, 3
LENGTHS = np.array([6, 4, 2, 3, 0])  # the last row fills up the batch: padding alone, weight 0
MASK = (np.arange(T) < LENGTHS[:, None]).astype("int32")
WEIGHT = (LENGTHS > 0).astype("float32")
SHAPES = {"logits": (B, C), "pooled": (B, D), "embeddings": (B, T, D), "hidden": (B, T, D), "attention": (B, H, T, T)}
SHAPES |= {"query": (B, H, T, D // H), "key": (B, H, T, D // H), "value": (B, H, T, D // H)}
POSITION_AXES = {"logits": [1], "embeddings": [1], "hidden": [1], "attention": [2, 3], "query": [2], "key": [2], "value": [2]}

RESPONSES = [name for name, kind in OBJECTIVES.items() if issubclass(kind, ResponseObjective)]
PAIRWISE = [name for name, kind in OBJECTIVES.items() if issubclass(kind, PairwiseObjective)]
LAYERED = [name for name, kind in OBJECTIVES.items() if kind.default_layers is not None and name not in PAIRWISE]
LAYERS = {"layers": [[0, 1], [1, 3]]}

# Every objective in its plainest form, then in every other that runs other code: (name, arguments, shape of the logits).
PLAIN = [(name, {}, (B, C)) for name in RESPONSES] + [("embedding_mse", {}, None)]
PLAIN += [(name, LAYERS, None) for name in LAYERED] + [(name, {}, None) for name in PAIRWISE]
OTHERS = [(name, {}, (B, T, C)) for name in RESPONSES]
OTHERS += [(name, {"over": "positions"}, (B, T, 2)) for name in ("kl_divergence", "reverse_kl", "jensen_shannon", "decoupled_kd")]
OTHERS += [("logits_mse", {"deviation": 0.5}, (B, 1)), ("binary_kl", {"classes": "sum"}, (B, 1))]
OTHERS += [("kl_divergence", {"temperature": Schedule(8.0, 1.0, 100)}, (B, C))]
OTHERS += [(name, {"average_heads": True, **LAYERS}, None) for name in ("attention_score_mse", "attention_probability_kl")]
OTHERS += [("minilm_v1", {"average_heads": True, **LAYERS}, None)]
OTHERS += [(name, {"vector": "mean", **LAYERS}, None) for name in PAIRWISE]
ALWAYS = {"projection": "always"}
PROJECTED = [("embedding_mse", ALWAYS, None), ("contrastive", ALWAYS, None)]
PROJECTED += [(n, ALWAYS | LAYERS, None) for n in ("hidden_state_mse", "hidden_state_cosine", "pkd", "layer_norm_mse")]
CASES = PLAIN + OTHERS + PROJECTED


def called(case):
    name, arguments, logits = case
    words = [f"{key}={value}" if isinstance(value, str | bool) else key for key, value in arguments.items()]
    return "-".join([name, *words, *([f"{len(logits)} axes"] if logits else [])])


def over(cases, slow=()):
    """A test for each case; those also in `slow` wait for the slow tests, where another form of the same is fast."""
    given = [pytest.param(case, marks=pytest.mark.slow) if case in slow else case for case in cases]
    return pytest.mark.parametrize("case", given, ids=[called(case) for case in cases])


def is_tensor(name):
    """Whether a name is that of a model's inner tensor, and not the batch's."""
    return name.split(".")[0] in SHAPES


def make(case):
    keras.utils.set_random_seed(3)
    return OBJECTIVES[case[0]](**case[1])


def tensors(case, names, seed):
    """Random inner tensors of the shapes that models give them, and what else is asked for."""
    random, found = np.random.default_rng(seed), {}
    shapes = SHAPES | ({"logits": case[2]} if case[2] else {})
    for name in names:
        if name == "labels":
            shape, classes = ((B, 2), 2) if case[1].get("over") else (case[2][:-1], C)
            found[name] = tf.constant(random.integers(0, classes, shape), "int32")
        elif name == "step" or is_tensor(name):
            found[name] = tf.constant(40.0 if name == "step" else random.normal(size=shapes[name.split(".")[0]]), "float32")
    return found


def batch(mask=MASK, weight=WEIGHT):
    return {"padding_mask": tf.constant(mask), "example_weight": tf.constant(weight)}


def value_and_gradient(objective, student, teacher):
    variables = {name: tensor for name, tensor in student.items() if is_tensor(name)}
    with tf.GradientTape() as tape:
        tape.watch(list(variables.values()))
        values = objective(student, teacher)
        total = tf.reduce_sum(values)
    return values, tape.gradient(total, variables)


@functools.cache
def prepared(index):
    """Objective, student, teacher, values and gradients of a case, the batch padded."""
    objective = make(CASES[index])
    student = tensors(CASES[index], objective.student_names, 0) | batch()
    teacher = tensors(CASES[index], objective.teacher_names, 1)
    return objective, student, teacher, *value_and_gradient(objective, student, teacher)


def of(case):
    return prepared(CASES.index(case))


def counts(values):
    """Where a value counts."""
    return WEIGHT > 0 if len(values.shape) == 1 else MASK > 0


def with_junk(tensors, seed):
    """The tensors with 1e30, infinities and NaN at all padding: at its positions, and in all of a row without text."""
    random, found = np.random.default_rng(seed), {}
    for name, tensor in tensors.items():
        array, junk = np.array(tensor), random.choice([1e30, -1e30, np.inf, -np.inf, np.nan], tensor.shape)
        if is_tensor(name):
            padding = np.zeros(array.shape, bool)
            padding[LENGTHS == 0] = True
            for axis in POSITION_AXES.get(name.split(".")[0], []) if array.ndim > 2 else []:
                np.moveaxis(padding, axis, 1)[MASK == 0] = True
            assert padding.any() and not padding.all()
            array = np.where(padding, junk, array).astype("float32")
        found[name] = tf.constant(array)
    return found


def test_the_table_names_every_objective():
    assert len(OBJECTIVES) == 19 and all(kind.default_name == name for name, kind in OBJECTIVES.items())
    assert (len(RESPONSES), len(LAYERED), len(PAIRWISE)) == (6, 8, 4)
    assert {name for name, *_ in PLAIN} == set(OBJECTIVES)


@over(CASES)
def test_one_value_an_example_or_position_never_reduced(case):
    objective, student, _, values, gradients = of(case)
    per_position = case[2] == (B, T, C) or case[0] in ("embedding_mse", *LAYERED)
    if case[0] == "pkd" or case[1].get("over"):
        per_position = False
    assert tuple(values.shape) == ((B, T) if per_position else (B,))
    assert values.dtype == tf.float32 and np.isfinite(values).all()
    assert (values.numpy()[counts(values)] > 0).all()
    assert set(gradients) == {name for name in objective.student_names if is_tensor(name)}
    assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in gradients.values())
    assert len(objective.trainable_variables) == (case in PROJECTED)
    assert objective.needs_labels == (case[0] == "decoupled_kd")


@over(CASES)
def test_padding_and_filler_rows_give_exactly_0(case):
    _, _, _, values, gradients = of(case)
    assert not values.numpy()[~counts(values)].any()
    assert not any(gradient.numpy()[LENGTHS == 0].any() for gradient in gradients.values())


@pytest.mark.parametrize("axes", [1, 2])
def test_an_objective_of_ones_own_gets_0_for_padding_too(axes):
    class One(Objective):
        default_name = "one"
        student_names, teacher_names = ("hidden.0", "padding_mask"), ("hidden.0",)

        def values(self, student, teacher, mask):
            return keras.ops.ones_like(student["hidden.0"][(slice(None),) * axes + (0,) * (3 - axes)])

    student = tensors((None, {}, None), ["hidden.0"], 0) | batch()
    np.testing.assert_array_equal(One()(student, student), WEIGHT if axes == 1 else MASK)


@over(CASES)
def test_padding_cannot_matter_to_the_last_bit(case):
    objective, student, teacher, values, gradients = of(case)
    junk_values, junk_gradients = value_and_gradient(objective, with_junk(student, 5), with_junk(teacher, 6))
    np.testing.assert_array_equal(junk_values, values)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(junk_gradients[name], gradient, err_msg=name)


@over(CASES)
def test_a_batch_of_nothing_but_padding_gives_0(case):
    objective, student, teacher, *_ = of(case)
    nothing = student | batch(np.zeros_like(MASK), np.zeros_like(WEIGHT))
    values, gradients = value_and_gradient(objective, nothing, teacher)
    assert not np.any(values) and not any(np.any(gradient) for gradient in gradients.values())


@over(CASES)
def test_more_padding_changes_nothing(case):
    def longer(tensors):
        found = {}
        for name, tensor in tensors.items():
            axes = POSITION_AXES.get(name.split(".")[0], []) if len(tensor.shape) > 2 else []
            axes = [1] if name == "padding_mask" or (name == "labels" and case[2] == (B, T, C)) else axes
            pad = [(0, 3 * (axis in axes)) for axis in range(len(tensor.shape))]
            found[name] = tf.constant(np.pad(tensor, pad)) if pad else tensor
        return found

    objective, student, teacher, values, _ = of(case)
    padded = objective(longer(student), longer(teacher)).numpy()
    np.testing.assert_allclose(padded[:, :T] if padded.ndim == 2 else padded, values, rtol=2e-5, atol=1e-7)


@over(CASES, slow=OTHERS + PROJECTED)
def test_a_batch_that_says_nothing_of_padding_has_none(case):
    objective, student, teacher, *_ = of(case)
    silent = {name: tensor for name, tensor in student.items() if name not in ("padding_mask", "example_weight")}
    whole = batch(np.ones_like(MASK), np.ones_like(WEIGHT))
    np.testing.assert_array_equal(objective(silent, teacher), objective(silent | whole, teacher))


@over([case for case in CASES if case not in PROJECTED and case[0] != "contrastive"])  # that has another minimum, tested with it
def test_zero_and_flat_where_student_and_teacher_agree(case):
    objective, student, teacher, *_ = of(case)
    own = [tensor for name, tensor in student.items() if is_tensor(name)]
    values, gradients = value_and_gradient(objective, student, dict(zip(teacher, own, strict=True)))
    np.testing.assert_allclose(values, 0.0, atol=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, 0.0, atol=1e-5, err_msg=name)


@over(CASES, slow=OTHERS + PROJECTED)
def test_the_gradient_leads_downhill(case):
    objective, student, teacher, values, gradients = of(case)
    nearer = student | {name: student[name] - 1e-3 * gradient for name, gradient in gradients.items()}
    assert tf.reduce_sum(objective(nearer, teacher)) < tf.reduce_sum(values)


@pytest.mark.parametrize("policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
@over(CASES, slow=OTHERS)
def test_float32_whatever_the_models_compute_in(case, policy):
    objective, student, teacher, *_ = of(case)
    rounded = {k: tf.cast(v, policy.removeprefix("mixed_")) if is_tensor(k) else v for k, v in student.items()}
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        half = make(case)
        values = half(rounded, teacher)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert values.dtype == tf.float32 and all(weight.dtype == "float32" for weight in half.weights)
    np.testing.assert_array_equal(values, objective({k: tf.cast(v, student[k].dtype) for k, v in rounded.items()}, teacher))


@over(CASES)
def test_its_configuration_makes_it_again(case):
    objective, student, teacher, values, _ = of(case)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
    assert type(again) is type(objective)
    configs = [keras.saving.serialize_keras_object(one)["config"] for one in (again, objective)]
    assert configs[0] == configs[1] and set(case[1]) <= set(configs[0])
    assert (again.student_names, again.teacher_names) == (objective.student_names, objective.teacher_names)
    if not again.built:
        again.build(*({name: tensor.shape for name, tensor in side.items()} for side in (student, teacher)))
    again.set_weights(objective.get_weights())
    np.testing.assert_array_equal(again(student, teacher), values)


def compiled(cases, compute):
    """`compute` of all the cases in one XLA program that leaves open every size that a batch decides."""

    def spec(name, tensor):
        fixed = {"attention": [1], "query": [1, 3], "key": [1, 3], "value": [1, 3]}
        known = fixed.get(name.split(".")[0], [len(tensor.shape) - 1] if is_tensor(name) else [])
        return tf.TensorSpec([size if axis in known else None for axis, size in enumerate(tensor.shape)], tensor.dtype)

    given = [of(case) for case in cases]
    pairs = [(student, teacher) for _, student, teacher, _, _ in given]
    signature = [tuple({name: spec(name, tensor) for name, tensor in side.items()} for side in pair) for pair in pairs]

    @tf.function(jit_compile=True, input_signature=[signature])
    def step(pairs):
        return [compute(one[0], *pair) for one, pair in zip(given, pairs, strict=True)]

    return zip(cases, step(pairs), [(values, gradients) for *_, values, gradients in given], strict=True)


# Divergences of near distributions are differences of near numbers, here times up to 8 T^2 = 128.
NEAR = {"rtol": 1e-4, "atol": 2e-5}


def test_compiled_by_xla_the_values_are_the_same():
    for case, values, (expected, _) in compiled(PLAIN, lambda objective, student, teacher: objective(student, teacher)):
        np.testing.assert_allclose(values, expected, **NEAR, err_msg=called(case))


@pytest.mark.slow
@over(CASES)
def test_a_step_compiled_by_xla_has_the_same_gradients(case):
    for _, (values, gradients), (expected, expected_gradients) in compiled([case], value_and_gradient):
        np.testing.assert_allclose(values, expected, **NEAR)
        for name, gradient in expected_gradients.items():
            np.testing.assert_allclose(gradients[name], gradient, **NEAR, err_msg=name)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_senseless_weight_is_refused_by_name(name):
    for weight in (-1.0, float("nan"), float("inf"), Schedule(1.0, -1.0, 10)):
        with pytest.raises(ValueError, match=f"^{name}: weight = "):
            OBJECTIVES[name](weight=weight, **(LAYERS if name in LAYERED else {}))


@pytest.mark.parametrize("name", LAYERED)
def test_layers_are_pairs_of_numbers(name):
    for layers in ("uniform", [], [[0]], [[0, -1]], [[0.0, 1]], [[0, 1], [0, 1]], 3, [3], [[True, 1]]):
        with pytest.raises(ValueError, match=f"^{name}: layers"):
            OBJECTIVES[name](layers)
