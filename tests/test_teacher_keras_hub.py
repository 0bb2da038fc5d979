"""KerasHub models as they are, as teachers: their layers by index, their inputs."""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from tfkd.checkpoints.keras_file import open_keras_file
from tfkd.distiller import Distiller
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.inner import inner_shapes, inner_tensors, view
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import OBJECTIVES, KLDivergence
from tfkd.tasks.classification import ClassificationHead
from tfkd.teacher import LiveTeacher, check_positions

V, D, C, B, T = 40, 16, 3, 4, 6
SIZE = {"vocabulary_size": V, "num_layers": 2, "num_heads": 2, "hidden_dim": D, "intermediate_dim": 24, "max_sequence_length": 12}
KINDS = {
    "bert": (keras_hub.models.BertBackbone, keras_hub.models.BertTextClassifier),
    "distil_bert": (keras_hub.models.DistilBertBackbone, keras_hub.models.DistilBertTextClassifier),
    "roberta": (keras_hub.models.RobertaBackbone, keras_hub.models.RobertaTextClassifier),
}


def classifier(kind="bert", **changes):
    keras.utils.set_random_seed(0)
    backbone, task = KINDS[kind]
    model = task(backbone=backbone(**SIZE), num_classes=C, preprocessor=None, **changes)
    for variable in model.trainable_variables:  # a start whose answers tell one text, and one segment, from another
        if variable.path.endswith(("embeddings", "logits/kernel")):
            variable.assign(variable * 30)
    return model


def batch(pairs=False):
    random = np.random.default_rng(0)
    mask = (np.arange(T) < np.array([6, 4, 2, 5])[:, None]).astype("int32")
    x = {"token_ids": random.integers(1, V, (B, T)).astype("int32") * mask, "padding_mask": mask}
    return x | ({"segment_ids": (np.arange(T) > 1).astype("int32") * mask} if pairs else {})


def own(model, x):
    """The batch as KerasHub wants it."""
    needed = {symbol.name for symbol in model.inputs}
    return {name: value for name, value in (x | {"segment_ids": x["token_ids"] * 0}).items() if name in needed}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_known_by_index_and_are_what_the_backbone_computes(kind):
    model, x = classifier(kind), batch()
    names = ["embeddings", "hidden.0", "hidden.1", "pooled", "logits"]
    inner = inner_tensors(model, x, names)
    np.testing.assert_array_equal(inner["logits"], model(own(model, x)))
    last = model.backbone(own(model, x))
    np.testing.assert_array_equal(inner["hidden.1"], last["sequence_output"] if kind == "bert" else last)
    hidden = inner["embeddings"]
    for index, layer in enumerate(model.backbone.transformer_layers):
        hidden = layer(hidden, padding_mask=x["padding_mask"])
        np.testing.assert_allclose(inner[f"hidden.{index}"], hidden, rtol=1e-5, atol=1e-5)
    shapes = inner_shapes(model, names)
    assert shapes["hidden.1"] == shapes["embeddings"] == (None, None, D) and shapes["pooled"] == (None, D)
    assert view(model).layers == 2 and view(model).max_length == 12
    with pytest.raises(ValueError, match="no inner tensor 'hidden.2': it has hidden.0 to hidden.1"):
        inner_shapes(model, ["hidden.2"])
    with pytest.raises(ValueError, match="attention scores, queries, keys and values to themselves"):
        inner_shapes(model, ["attention.0"])


def test_a_backbone_alone_is_known_too_and_two_in_a_model_are_not_mixed_up():
    one, two = keras_hub.models.BertBackbone(**SIZE, name="one"), keras_hub.models.DistilBertBackbone(**SIZE, name="two")
    x = batch()
    full = own(one, x)
    np.testing.assert_array_equal(inner_tensors(one, x, ["hidden.1"])["hidden.1"], one(full)["sequence_output"])
    shared = {name: one.input[name] for name in ("token_ids", "padding_mask")}
    both = keras.Model(one.input, one(one.input)["sequence_output"] + two(shared))
    with pytest.raises(ValueError, match=r"which of its layers is layer 0 must be said"):
        inner_tensors(both, x, ["hidden.0"])
    found = inner_tensors(both, x, ["hidden.0"], mapping={"hidden.0": "two/transformer_layer_0"})["hidden.0"]
    np.testing.assert_array_equal(found, inner_tensors(two, x, ["hidden.0"])["hidden.0"])


def test_segments_are_zeros_for_single_texts_the_batchs_for_pairs_and_never_made_up_for_pairs():
    model = classifier()
    teacher, single, pair = LiveTeacher(model), batch(), batch(pairs=True)
    np.testing.assert_array_equal(teacher(single)["logits"], model(own(model, single)))
    np.testing.assert_array_equal(teacher(pair)["logits"], model(pair))
    assert np.abs(model(pair) - model(own(model, single))).max() > 1e-4
    assert teacher.supplied(single) == ["segment_ids"] and teacher.supplied(pair) == []
    other = LiveTeacher(model, prefix="teacher.")
    prefixed = {f"teacher.{name}": value for name, value in pair.items()}
    np.testing.assert_array_equal(other(pair | prefixed)["logits"], model(pair))
    prefixed.pop("teacher.segment_ids")
    with pytest.raises(ValueError, match="the batch is of pairs, but has no teacher.segment_ids"):
        other(pair | prefixed)
    np.testing.assert_array_equal(other(single | prefixed)["logits"], model(own(model, single)))


def test_a_teacher_without_segments_reads_pairs_without_them():
    model, pair = classifier("distil_bert"), batch(pairs=True)
    teacher = LiveTeacher(model)
    np.testing.assert_array_equal(teacher(pair)["logits"], model(own(model, pair)))
    assert teacher.supplied(batch()) == []
    other = LiveTeacher(model, prefix="teacher.")
    x = pair | {"teacher.token_ids": pair["token_ids"][:, :3], "teacher.padding_mask": pair["padding_mask"][:, :3]}
    short = {name: value[:, :3] for name, value in pair.items()}
    np.testing.assert_array_equal(other(x)["logits"], model(own(model, short)))
    check_positions(other, ("logits", "pooled"))
    with pytest.raises(ValueError, match="hidden.1: the teacher has a tokenizer of its own"):
        check_positions(other, ("pooled", "hidden.1"))


def test_a_softmax_on_the_classifier_is_undone():
    model, x = classifier(activation="softmax"), batch()
    logits = LiveTeacher(model)(x)["logits"]
    np.testing.assert_allclose(tf.nn.softmax(logits), model(own(model, x)), rtol=1e-5, atol=1e-6)


def test_a_keras_file_of_a_task_is_read_with_its_layers(tmp_path):
    model, x = classifier(), batch()
    model.save(tmp_path / "teacher.keras")
    again = LiveTeacher(open_keras_file(tmp_path / "teacher.keras"))
    for name, tensor in again(x, ("logits", "hidden.1")).items():
        np.testing.assert_array_equal(tensor, inner_tensors(model, x, [name])[name])


@pytest.mark.slow
def test_a_student_of_ours_learns_a_tasks_hidden_states_by_index_in_one_pass_of_each():
    model, x = classifier(), batch()
    encoder = TransformerEncoder(V, 1, 8, 2, max_positions=12, segments=0, dropout=0.0)
    student = TransformerWithHead(encoder, ClassificationHead(C, dropout=0.0))
    objectives = [OBJECTIVES["hidden_state_mse"](layers=[(0, 1)]), OBJECTIVES["embedding_mse"](), KLDivergence()]
    distiller = Distiller(student, model, objectives, alpha=0.0)
    distiller.compile(keras.optimizers.Adam(0.01), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensors((x, np.zeros(B, "int32"))).repeat(8)
    before = model.get_weights()
    history = distiller.fit(data, epochs=3, verbose=0, shuffle=False).history
    for name in ("hidden_state_mse", "embedding_mse", "kl_divergence"):
        assert history[name][-1] < history[name][0]
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
