"""Live and cached teachers: whose inputs they read, and what they refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.tasks.classification import ClassificationHead
from tfkd.teacher import CachedTeacher, LiveTeacher, check_positions

V, D, C, B, T = 30, 8, 3, 4, 6


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return TransformerWithHead(TransformerEncoder(V, 2, D, 2, max_positions=T, initializer_range=0.5), ClassificationHead(C))


def batch(pairs=False, seed=0, prefix=""):
    random = np.random.default_rng(seed)
    mask = (np.arange(T) < np.array([6, 4, 2, 5])[:, None]).astype("int32")
    x = {"token_ids": random.integers(1, V, (B, T)).astype("int32") * mask, "padding_mask": mask}
    x |= {"segment_ids": (np.arange(T) > 2).astype("int32") * mask} if pairs else {}
    return {prefix + name: value for name, value in x.items()}


def test_a_teacher_with_a_tokenizer_of_its_own_reads_its_own_inputs(model):
    teacher, theirs = LiveTeacher(model, prefix="teacher."), batch(seed=1)
    x = batch() | batch(seed=1, prefix="teacher.")
    names = ("logits", "hidden.0")
    expected = model.inner(theirs, names)
    for name, tensor in teacher(x, names).items():
        np.testing.assert_array_equal(tensor, expected[name])
    assert not teacher.same_positions and LiveTeacher(model).same_positions
    assert teacher.layers == 2
    with pytest.raises(ValueError, match=r"reads inputs called teacher....; the batch holds padding_mask, token_ids"):
        teacher(batch())


def test_segments_are_never_made_up_for_a_pair(model):
    teacher = LiveTeacher(model, prefix="teacher.")
    whole = batch(pairs=True) | batch(pairs=True, seed=1, prefix="teacher.")
    np.testing.assert_array_equal(teacher(whole)["logits"], model(batch(pairs=True, seed=1)))
    lacking = {name: value for name, value in whole.items() if name != "teacher.segment_ids"}
    with pytest.raises(ValueError, match="the batch is of pairs, but has no teacher.segment_ids"):
        teacher(lacking)
    single = {name: value for name, value in lacking.items() if name != "segment_ids"}
    np.testing.assert_array_equal(teacher(single)["logits"], model(batch(seed=1)))
    assert teacher.supplied(single) == ["segment_ids"] and teacher.supplied(whole) == []
    keras.utils.set_random_seed(0)
    without = TransformerWithHead(TransformerEncoder(V, 1, D, 2, max_positions=T, segments=0), ClassificationHead(C))
    np.testing.assert_array_equal(LiveTeacher(without, prefix="teacher.")(lacking)["logits"], without(batch(seed=1)))
    np.testing.assert_array_equal(LiveTeacher(without)(whole)["logits"], without(batch()))


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 1, 0]])
def test_classes_are_given_out_in_the_datas_order(model, order):
    answer = LiveTeacher(model, order=order)(batch(), ("logits", "pooled"))
    np.testing.assert_array_equal(answer["logits"], model.inner(batch(), ("logits",))["logits"].numpy()[:, order])
    np.testing.assert_array_equal(answer["pooled"], model.inner(batch(), ("pooled", "logits"))["pooled"])


def test_positions_are_refused_where_they_are_not_the_students(model):
    other = LiveTeacher(model, prefix="teacher.")
    for name in ("embeddings", "hidden.1", "attention.0", "query.1"):
        check_positions(LiveTeacher(model), ("logits", name))
        with pytest.raises(UserError, match=f"^{name}: the teacher has a tokenizer of its own"):
            check_positions(other, ("logits", name))
    check_positions(other, ("logits", "pooled"))
    check_positions(lambda inputs, names: {}, ("hidden.0",))  # a teacher that says nothing of the kind is taken at its word
    tagger = CachedTeacher({"logits": (None, None, C)}, same_positions=False)
    with pytest.raises(UserError, match="^logits: the teacher has a tokenizer of its own"):
        check_positions(tagger, ("logits",))


def test_a_cached_teacher_hands_out_what_the_batch_holds():
    teacher = CachedTeacher({"logits": (None, C), "hidden.1": (None, None, D)})
    held = {"teacher.logits": np.ones((B, C), "float16"), "teacher.hidden.1": np.zeros((B, T, D), "float16")}
    variable = tf.Variable(held["teacher.logits"])
    with tf.GradientTape() as tape:
        answer = teacher(batch() | held | {"teacher.logits": variable * 2}, ("logits", "hidden.1"))
    assert [tensor.dtype for tensor in answer.values()] == ["float32", "float32"]
    np.testing.assert_array_equal(answer["logits"], np.full((B, C), 2.0))
    assert tape.gradient(answer["logits"], variable) is None
    assert teacher.shapes(["hidden.1"]) == {"hidden.1": (None, None, D)} and teacher.same_positions
    with pytest.raises(ValueError, match="the teacher cache has no hidden.0; it holds logits, hidden.1"):
        teacher.shapes(["logits", "hidden.0"])
    with pytest.raises(ValueError, match="the teacher cache has no hidden.0"):
        teacher(held, ["hidden.0"])
    with pytest.raises(ValueError, match="the batch has no teacher.logits; it holds padding_mask, token_ids"):
        teacher(batch())
