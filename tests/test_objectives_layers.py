"""Objectives over layers: a number by hand for each, and what they refuse."""

import numpy as np
import pytest
import tensorflow as tf

from tfkd.objectives import (
    PKD,
    AttentionProbabilityKL,
    AttentionScoreMSE,
    EmbeddingMSE,
    HiddenStateCosine,
    HiddenStateMSE,
    LayerNormMSE,
    MiniLMv1,
    MiniLMv2,
)

FEATURES = [HiddenStateMSE, HiddenStateCosine, PKD, LayerNormMSE]
LAST = [[0, 0]]
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], "int32")
LENGTHS = [4, 3]


def dicts(*sides):
    return [{name: tf.constant(np.asarray(array), "float32") for name, array in side.items()} for side in sides]


def value(objective, student, teacher, mask=None):
    student, teacher = dicts(student, teacher)
    batch = {} if mask is None else {"padding_mask": tf.constant(mask)}
    return objective(student | batch, teacher).numpy().astype("float64")


def shapes(**sizes):
    return {name.replace("_", "."): size for name, size in sizes.items()}


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def relation_by_hand(own, other, row, position, average=False):
    """Mean over heads of KL(teacher || student) at a position of a row, of scores (B, H, T, T) cut to the row's length."""
    length = LENGTHS[row]
    q, p = (softmax(scores[row, :, position, :length]) for scores in (own, other))  # (H, K)
    if average:
        q, p = q.mean(0, keepdims=True), p.mean(0, keepdims=True)
    return (p * np.log(p / q)).sum(-1).mean()


def check_positions(values, by_hand):
    """Values (2, 4) against `by_hand(row, position)` on text, and 0 on padding."""
    expected = [[by_hand(r, t) if t < LENGTHS[r] else 0.0 for t in range(4)] for r in range(2)]
    assert np.min([x for row in expected for x in row if x]) > 1e-3
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# ---------------------------------------------------------------- features


def test_hidden_state_mse_by_hand():
    own = {"hidden.0": [[[1.0, 2.0], [0.0, 0.0]]], "hidden.2": [[[1.0, 1.0], [5.0, 5.0]]]}
    other = {"hidden.1": [[[3.0, 2.0], [0.0, 1.0]]], "hidden.5": [[[1.0, 1.0], [5.0, 1.0]]]}
    # position 0: ((1-3)^2 + 0) / 2 = 2 and 0; position 1: (0 + 1) / 2 = 0.5 and (0 + 16) / 2 = 8
    assert value(HiddenStateMSE([[0, 1], [2, 5]]), own, other).tolist() == [[1.0, 4.25]]


def test_hidden_state_cosine_by_hand():
    own, other = [[[1.0, 0.0], [3.0, 4.0], [1.0, 0.0]]], [[[0.0, 2.0], [6.0, 8.0], [-5.0, 0.0]]]
    values = value(HiddenStateCosine(LAST), {"hidden.0": own}, {"hidden.0": other})
    np.testing.assert_allclose(values, [[1.0, 0.0, 2.0]], atol=1e-6)


def test_pkd_by_hand():
    # (3, 4) / 5 against (1, 0): 0.4^2 + 0.8^2 = 0.8; what is beyond position 0 is not looked at
    own, other = [[[3.0, 4.0], [9.0, 9.0]]], [[[2.0, 0.0], [1.0, 7.0]]]
    np.testing.assert_allclose(value(PKD(LAST), {"hidden.0": own}, {"hidden.0": other}), [0.8], rtol=1e-6)


def test_layer_norm_mse_by_hand():
    # (1, 3) becomes (-1, 1), (7, 1) becomes (1, -1): (2^2 + 2^2) / 2
    values = value(LayerNormMSE(LAST), {"hidden.0": [[[1.0, 3.0]]]}, {"hidden.0": [[[7.0, 1.0]]]})
    np.testing.assert_allclose(values, [[4.0]], rtol=1e-5)
    hidden = normal(0, 1, 2, 6)
    same = value(LayerNormMSE(LAST), {"hidden.0": hidden}, {"hidden.0": 5 * hidden + 3})
    np.testing.assert_allclose(same, 0.0, atol=1e-6)


def test_embedding_mse_by_hand():
    values = value(EmbeddingMSE(), {"embeddings": [[[1.0, 2.0], [4.0, 0.0]]]}, {"embeddings": [[[1.0, 0.0], [1.0, 1.0]]]})
    assert values.tolist() == [[2.0, 5.0]]


def test_zero_vectors_have_a_finite_gradient():
    for kind in (HiddenStateCosine, PKD, LayerNormMSE):
        student = tf.Variable(tf.zeros((1, 2, 3)))
        with tf.GradientTape() as tape:
            values = kind(LAST)({"hidden.0": student + 0}, {"hidden.0": tf.ones((1, 2, 3))})
        assert np.isfinite(values).all() and np.abs(tape.gradient(values, student)).max() < 1e4


@pytest.mark.parametrize("kind", [*FEATURES, EmbeddingMSE])
def test_a_narrower_student_is_projected_by_one_matrix_without_bias(kind):
    pairs, tensor = ([[0, 0], [1, 1]], "hidden_{}") if kind in FEATURES else (None, "embeddings")
    objective = kind(pairs) if pairs else kind()
    names = [tensor.format(i) for i in range(2)] if pairs else [tensor]
    objective.build(*(shapes(**dict.fromkeys(names, (None, None, width))) for width in (2, 3)))
    (kernel,) = objective.trainable_variables
    assert tuple(kernel.shape) == (2, 3)
    kernel.assign([[1.0, 0.0, 2.0], [0.0, -1.0, 1.0]])
    names = [name.replace("_", ".") for name in names]
    own, other = {n: normal(i, 1, 2, 2) for i, n in enumerate(names)}, {n: normal(9 + i, 1, 2, 3) for i, n in enumerate(names)}
    projected = {name: hidden @ np.array([[1.0, 0.0, 2.0], [0.0, -1.0, 1.0]]) for name, hidden in own.items()}
    equal = kind(pairs) if pairs else kind()
    np.testing.assert_allclose(value(objective, own, other), value(equal, projected, other), rtol=1e-5)
    assert not equal.trainable_variables


@pytest.mark.parametrize("kind", [*FEATURES, EmbeddingMSE])
def test_widths_that_differ_are_refused_where_nothing_may_be_projected(kind):
    arguments = {"layers": LAST} if kind in FEATURES else {}
    name = "hidden.0" if kind in FEATURES else "embeddings"
    with pytest.raises(ValueError, match=f"{kind.default_name}: the student is 192 wide, the teacher 384: projection = 'never'"):
        kind(projection="never", **arguments).build({name: (None, None, 192)}, {name: (None, None, 384)})
    kind(projection="never", **arguments).build({name: (None, None, 384)}, {name: (None, None, 384)})
    with pytest.raises(ValueError, match=f"{kind.default_name}: projection = 'maybe': must be auto, always, never"):
        kind(projection="maybe", **arguments)


def test_layers_of_several_widths_are_refused():
    own, other = shapes(hidden_0=(None, None, 4), hidden_1=(None, None, 6)), shapes(hidden_0=(None, None, 8))
    with pytest.raises(ValueError, match=r"the student's layers have \[4, 6\] widths"):
        HiddenStateMSE([[0, 0], [1, 0]]).build(own, other)


def test_a_layer_is_asked_for_once_however_many_pairs_it_is_in():
    objective = MiniLMv1([[0, 1], [0, 2]])
    assert objective.student_names == ("attention.0", "value.0", "padding_mask")
    assert objective.teacher_names == ("attention.1", "attention.2", "value.1", "value.2")


# ---------------------------------------------------------------- attention


def test_attention_score_mse_by_hand():
    own, other = normal(0, 2, 3, 4, 4), normal(1, 2, 3, 4, 4)
    values = value(AttentionScoreMSE(LAST), {"attention.0": own}, {"attention.0": other}, MASK)
    check_positions(values, lambda r, t: ((own - other)[r, :, t, : LENGTHS[r]] ** 2).mean())
    values = value(AttentionScoreMSE(LAST, average_heads=True), {"attention.0": own}, {"attention.0": other[:, :2]}, MASK)
    averaged = own.mean(1) - other[:, :2].mean(1)
    check_positions(values, lambda r, t: (averaged[r, t, : LENGTHS[r]] ** 2).mean())


def test_attention_probability_kl_by_hand():
    # p = (0.9, 0.1), q = (0.5, 0.5) in one head and equal in the other: 0.368064 / 2 at position 0
    log = np.log([[[[0.9, 0.1], [0.5, 0.5]], [[0.3, 0.7], [0.2, 0.8]]]])
    own = np.log([[[[0.5, 0.5], [0.5, 0.5]], [[0.3, 0.7], [0.2, 0.8]]]])
    values = value(AttentionProbabilityKL(LAST), {"attention.0": own + 3.0}, {"attention.0": log})
    np.testing.assert_allclose(values, [[0.184032, 0.0]], atol=1e-5)
    own, other = normal(0, 2, 3, 4, 4), normal(1, 2, 3, 4, 4)
    values = value(AttentionProbabilityKL(LAST), {"attention.0": own}, {"attention.0": other}, MASK)
    check_positions(values, lambda r, t: relation_by_hand(own, other, r, t))


def test_averaged_heads_are_averages_of_probabilities():
    own, other = normal(0, 2, 2, 4, 4), normal(1, 2, 3, 4, 4)
    objective = AttentionProbabilityKL(LAST, average_heads=True)
    values = value(objective, {"attention.0": own}, {"attention.0": other}, MASK)
    check_positions(values, lambda r, t: relation_by_hand(own, other, r, t, average=True))


def test_scores_that_a_model_has_masked_already_are_left_out_too():
    own, other = normal(0, 2, 3, 4, 4), normal(1, 2, 3, 4, 4)
    masked = [np.where(MASK[:, None, None, :] > 0, scores, -1e4) for scores in (own, other)]
    for kind in (AttentionScoreMSE, AttentionProbabilityKL):
        found = [value(kind(LAST), {"attention.0": a}, {"attention.0": b}, MASK) for a, b in ((own, other), masked)]
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("kind", [AttentionScoreMSE, AttentionProbabilityKL, MiniLMv1])
def test_other_numbers_of_heads_are_refused_unless_averaged(kind):
    sides = [shapes(attention_0=(None, heads, None, None), value_0=(None, heads, None, 8)) for heads in (4, 12)]
    with pytest.raises(ValueError, match=f"{kind.default_name}: the student has 4 attention heads, the teacher 12: .*minilm_v2"):
        kind(LAST).build(*sides)
    kind(LAST, average_heads=True).build(*sides)
    with pytest.raises(ValueError, match=f"{kind.default_name}: average_heads = 'yes'"):
        kind(LAST, average_heads="yes")


# ---------------------------------------------------------------- relations


def test_minilm_v1_by_hand():
    sides = [{"attention.0": normal(s, 2, 3, 4, 4), "value.0": normal(s + 1, 2, 3, 4, d)} for s, d in ((0, 2), (5, 6))]
    own, other = (side["value.0"] @ side["value.0"].swapaxes(2, 3) / np.sqrt(side["value.0"].shape[-1]) for side in sides)

    def by_hand(row, position):
        attention = relation_by_hand(sides[0]["attention.0"], sides[1]["attention.0"], row, position)
        return attention + relation_by_hand(own, other, row, position)

    check_positions(value(MiniLMv1(LAST), *sides, MASK), by_hand)


def cut(vectors, heads):
    """Heads side by side, cut anew: (B, H, T, d) -> (B, A, T, H d / A)."""
    joined = np.concatenate([vectors[:, head] for head in range(vectors.shape[1])], axis=-1)
    return np.stack(np.split(joined, heads, axis=-1), axis=1)


@pytest.mark.parametrize("heads", [1, 2, 4, 6, 12])
def test_minilm_v2_by_hand_with_any_heads_that_divide_both_widths(heads):
    # 3 heads of 4 against 2 heads of 12: widths 12 and 24
    stems = ("query", "key", "value")
    sides = [{f"{n}.1": normal(i + s, 2, h, 4, d) for i, n in enumerate(stems)} for s, h, d in ((0, 3, 4), (5, 2, 12))]
    found = {}
    for chosen in (stems, ("key",), ("query", "value")):

        def by_hand(row, position, chosen=chosen):
            total = 0.0
            for name in chosen:
                own, other = (cut(side[f"{name}.1"], heads) for side in sides)
                own, other = (x @ x.swapaxes(2, 3) / np.sqrt(x.shape[-1]) for x in (own, other))
                total += relation_by_hand(own, other, row, position)
            return total

        objective = MiniLMv2([[1, 1]], heads, chosen)
        assert objective.teacher_names == tuple(f"{name}.1" for name in chosen)
        found[chosen] = value(objective, *({n: side[n] for n in objective.teacher_names} for side in sides), MASK)
        check_positions(found[chosen], by_hand)
    np.testing.assert_allclose(found[stems], found[("key",)] + found[("query", "value")], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("student", "teacher", "heads"),
    [((12, 32), (12, 64), 48), ((12, 64), (12, 64), 48), ((16, 64), (16, 64), 64), ((12, 32), (12, 32), 24)]
    + [((2, 64), (12, 32), 16), ((12, 26), (12, 32), 24), ((1, 7), (1, 9), 1)],
)
def test_minilm_v2_takes_as_many_heads_as_published_by_default(student, teacher, heads):
    objective = MiniLMv2(LAST)
    objective.build(*({f"{n}.0": (None, h, None, d) for n in ("query", "key", "value")} for h, d in (student, teacher)))
    assert objective.heads == heads and objective.get_config()["relation_heads"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"relation_heads": 0}, "relation_heads = 0"),
        ({"relation_heads": 2.0}, "relation_heads = 2.0"),
        ({"relation_heads": True}, "relation_heads = True"),
        ({"relations": ()}, "relations = "),
        ({"relations": ("query", "attention")}, "relations = "),
        ({"relations": ("key", "key")}, "relations = "),
    ],
)
def test_minilm_v2_refuses_senseless_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^minilm_v2: {message}"):
        MiniLMv2(LAST, **arguments)


def test_minilm_v2_says_which_heads_would_do():
    sides = [{f"{n}.0": (None, h, None, d) for n in ("query", "key", "value")} for h, d in ((2, 6), (3, 6))]
    with pytest.raises(
        ValueError, match="relation_heads = 4 does not divide the student's width 12 and .* 18: use one of 1, 2, 3, 6"
    ):
        MiniLMv2(LAST, 4).build(*sides)
