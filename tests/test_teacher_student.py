import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd import student as students
from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.inner import inner_tensors
from tfkd.models.with_head import TransformerWithHead
from tfkd.tasks.classification import ClassificationHead
from tfkd.teacher import LiveTeacher, align_labels, build_teacher


def make(layers=4, classes=3, norm="post", seed=0):
    keras.utils.set_random_seed(seed)
    encoder = TransformerEncoder(40, layers, 16, 2, max_positions=10, norm=norm, initializer_range=0.3)
    return TransformerWithHead(encoder, ClassificationHead(classes))


def inputs():
    random = np.random.default_rng(0)
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3], "int32")
    return {"token_ids": random.integers(0, 40, (2, 7)).astype("int32"), "padding_mask": mask}


@pytest.mark.parametrize(
    ("teacher", "student", "chosen"),
    [
        (6, 3, [0, 2, 5]),
        (12, 6, [0, 2, 4, 7, 9, 11]),
        (12, 4, [0, 4, 7, 11]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (6, 1, [0]),
        (24, 2, [0, 23]),
    ],
)
def test_layers_are_spread_from_the_first_to_the_last(teacher, student, chosen):
    assert students.uniform_layers(teacher, student) == chosen


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_student_of_all_layers_is_the_teacher(norm):
    teacher = make(norm=norm)
    student = students.from_layers(teacher, 4)
    np.testing.assert_array_equal(student(inputs()), teacher(inputs()))
    student.head.output_dense.bias.assign([9.0, 9.0, 9.0])
    assert not np.array_equal(student(inputs()), teacher(inputs()))  # a copy, not the same weights


def test_a_student_holds_the_chosen_layers():
    teacher = make()
    student = students.from_layers(teacher, [1, 3])
    hidden = teacher.inner(inputs(), ["embeddings"])["embeddings"]
    mask = inputs()["padding_mask"]
    for index in (1, 3):
        hidden, _ = teacher.encoder.blocks[index](hidden, mask)
    np.testing.assert_allclose(student.inner(inputs(), ["hidden.1"])["hidden.1"], hidden, atol=1e-6)


@pytest.mark.parametrize(("layers", "message"), [(5, "asks for more than the teacher's 4 layers"), ([0, 4], "numbered 0 to 3")])
def test_layers_that_are_not_there_are_refused(layers, message):
    with pytest.raises(UserError, match=message):
        students.from_layers(make(), layers)


def test_layers_of_a_foreign_model_are_refused():
    with pytest.raises(UserError, match="needs a teacher made of encoder layers"):
        students.from_layers(keras.Sequential([keras.layers.Dense(2)]), 1)


def test_labels_in_another_order_are_put_in_the_datas():
    teacher = make()
    before = teacher(inputs()).numpy()
    head, encoder = teacher.head, teacher.encoder
    again = build_teacher(encoder, head, ["a", "b", "c"], ["c", "a", "b"])
    np.testing.assert_allclose(again(inputs()), before[:, [2, 0, 1]], rtol=1e-6)


def test_a_label_map_says_which_means_which():
    assert align_labels(["LABEL_0", "LABEL_1"], ["positive", "negative"], {"LABEL_0": "negative", "LABEL_1": "positive"}) == [
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("label_map", "words"),
    [
        (None, ["[entailment, neutral]", "[yes, no]", "teacher.label_map"]),
        ({"entailment": "yes"}, ["[entailment, neutral]", "[yes, no]"]),
        ({"entailment": "yes", "neutral": "yes"}, ["disagree"]),
        ({"entails": "yes"}, ["the teacher has no label 'entails'"]),
    ],
)
def test_labels_that_disagree_stop_with_both_lists(label_map, words):
    with pytest.raises(UserError) as caught:
        align_labels(["entailment", "neutral"], ["yes", "no"], label_map)
    for word in words:
        assert word in str(caught.value)


def test_classes_without_names_are_never_taken_for_granted():
    """KerasHub heads do not name their classes: their order must be said."""
    model = make(classes=2)
    before = model(inputs()).numpy()
    with pytest.raises(UserError, match=r"the teacher has \[0, 1\], the data \[negative, positive\]"):
        build_teacher(model.encoder, model.head, None, ["negative", "positive"])
    again = build_teacher(model.encoder, model.head, None, ["negative", "positive"], {"0": "positive", "1": "negative"})
    np.testing.assert_allclose(again(inputs()), before[:, [1, 0]], rtol=1e-6)


def test_a_teacher_gives_the_named_tensors_without_gradient_or_dropout():
    model = make()
    teacher = LiveTeacher(model)
    with tf.GradientTape() as tape:
        answer = teacher(inputs(), ("logits", "hidden.1", "attention.0"))
        total = sum(tf.reduce_sum(value) for value in answer.values())
    assert set(answer) == {"logits", "hidden.1", "attention.0"}
    assert all(gradient is None for gradient in tape.gradient(total, model.trainable_variables))
    np.testing.assert_array_equal(answer["logits"], model(inputs(), training=False))


def test_any_keras_model_can_teach_its_logits_and_nothing_else():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    np.testing.assert_array_equal(LiveTeacher(model)(np.ones((3, 4), "float32"))["logits"], model(np.ones((3, 4), "float32")))
    with pytest.raises(ValueError, match=r"no inner tensor 'hidden.0'"):
        inner_tensors(model, np.ones((3, 4), "float32"), ["hidden.0"])
