"""Live and cached teachers: whose inputs they read, and what they refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.distiller import Distiller
from tfkd.ensemble import TeacherEnsemble
from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import BinaryKL, KLDivergence, LogitsMSE
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


class Unsaid(keras.Model):
    """Code of its own: nobody knows the shape of its answer before it is given. Per position, or of whole texts."""

    def __init__(self, classes=C, per_position=True):
        super().__init__()
        self.table, self.per_position = keras.layers.Embedding(V, classes), per_position

    def call(self, inputs):
        scores = self.table(inputs["token_ids"])
        return scores if self.per_position else scores[:, 0]


def tagger():
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    return keras.Model(ids, keras.layers.Embedding(V, C, name="scores")(ids))


def fit(student, teacher, x, y, objectives=None):
    distiller = Distiller(student, teacher, objectives, alpha=0.0)
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    return distiller.fit(tf.data.Dataset.from_tensors((x, y)), verbose=0, shuffle=False)


def test_answers_at_positions_of_other_word_pieces_are_refused_where_only_the_student_says_what_they_are():
    """Both have as many positions here, so that nothing else would stop them from being compared."""
    teacher, whole = LiveTeacher(Unsaid(), prefix="teacher."), LiveTeacher(Unsaid(per_position=False), prefix="teacher.")
    x, tags = batch() | batch(seed=1, prefix="teacher."), np.zeros((B, T), "int32")
    assert teacher.shapes(["logits"]) == {"logits": None}
    with pytest.raises(UserError, match="^logits: the teacher has a tokenizer of its own"):
        Distiller(tagger(), teacher)
    with pytest.raises(UserError, match="^logits: the teacher has a tokenizer of its own"):
        fit(Unsaid(), teacher, x, tags)  # nobody says: told from the first batch
    with pytest.raises(UserError, match="^logits: the teacher has a tokenizer of its own"):
        fit(tagger(), TeacherEnsemble([Unsaid(), teacher]), x, tags)
    fit(Unsaid(per_position=False), whole, x, tags[:, 0])


@pytest.mark.parametrize("objective", [KLDivergence, LogitsMSE, BinaryKL])
def test_answers_of_another_size_are_refused_at_the_first_batch_where_nobody_knew_before(model, objective):
    """One score a text would be repeated for each class, without a word."""
    with pytest.raises(ValueError, match=r"logits \(4, 3\), the teacher with \(4, 1\): they need heads of the same size"):
        fit(model, Unsaid(1, per_position=False), batch(), np.zeros(B, "int32"), [objective()])
    with pytest.raises(ValueError, match=r"logits \(4, 3\), the teacher with \(4, 6, 3\): they need heads"):
        fit(model, Unsaid(), batch(), np.zeros(B, "int32"), [objective()])


def test_a_tensor_of_other_axes_than_its_name_says_is_refused(model):
    names = {"hidden.0": "pooled", "pooled": "hidden.0", "attention.1": "hidden.1", "query.0": "hidden.0", "embeddings": "pooled"}
    for name, path in names.items():
        with pytest.raises(ValueError, match=rf"'{path}' has the axes \(.*\); what is called {name} must have \(B, "):
            LiveTeacher(model, names={name: path})
    with pytest.raises(ValueError, match=r"'scores' has the axes \(\?, \?, 3\); what is called pooled must have \(B, D\)"):
        LiveTeacher(tagger(), names={"pooled": "scores"})
    assert LiveTeacher(model, names={"hidden.0": "embeddings", "key.0": "value.1"}).shapes(["hidden.0"])


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
