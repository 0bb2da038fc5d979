"""Heads, losses and training metrics of tagging and question answering: by hand, beside the measures, and learning."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from tfkd.data.pipeline import Batches
from tfkd.data.spans import Spans
from tfkd.data.store import write_store
from tfkd.data.tags import Tags
from tfkd.data.tokenizer import SPECIAL, Tokenizer
from tfkd.distiller import Distiller
from tfkd.errors import UserError
from tfkd.evaluate import predict
from tfkd.layers.token_head import SpanHead, TokenHead
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import HiddenStateMSE, KLDivergence
from tfkd.tasks.measures import MEASURES
from tfkd.tasks.question_answering import QuestionAnswering, SpanCrossEntropy, SpanF1, best_span
from tfkd.tasks.table import TASKS
from tfkd.tasks.tagging import EntityF1, Tagging
from tfkd.tasks.tagging_metrics import TaggingMeasure

LABELS = ["B-a", "B-b", "I-a", "I-b", "O"]
RANDOM = np.random.default_rng(0)


def test_a_token_head_scores_every_position():
    head = TokenHead(3, dropout=0.5)
    hidden = RANDOM.normal(size=(2, 4, 5)).astype("float32")
    head.build(hidden.shape)
    logits, inner = head(hidden, np.ones((2, 4), "int32"), training=False)
    kernel, bias = (variable.numpy() for variable in head.weights[:2])
    np.testing.assert_allclose(logits, hidden @ kernel + bias, atol=1e-6)
    assert inner == {} and not head.first_only and head.classes == 3
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head))
    assert (again.classes, again.dropout_rate) == (3, 0.5)


def test_a_span_head_leaves_padding_nothing():
    head = SpanHead(dropout=0.0)
    hidden = RANDOM.normal(size=(2, 5, 3)).astype("float32")
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    head.build(hidden.shape)
    logits = head(hidden, mask)[0].numpy()
    assert logits.shape == (2, 5, 2) and (logits[1, 2:] == head.masked_score).all() and (logits[0] > -100).all()
    assert (keras.ops.softmax(logits, axis=1)[1, 2:].numpy() == 0.0).all()
    hidden[1, 2:] = 1e3
    np.testing.assert_array_equal(head(hidden, mask)[0].numpy(), logits)


def test_the_loss_of_a_span_by_hand():
    logits = RANDOM.normal(size=(3, 6, 2)).astype("float32")
    y = np.array([[1, 4], [0, 0], [5, 5]], "int32")
    log_p = np.log(scipy.special.softmax(logits.astype("float64"), axis=1))
    expected = [-(log_p[row, first, 0] + log_p[row, last, 1]) / 2 for row, (first, last) in enumerate(y)]
    np.testing.assert_allclose(SpanCrossEntropy().call(y, logits), expected, rtol=1e-5)


def test_best_spans_agree_with_brute_force():
    logits = RANDOM.normal(size=(20, 9, 2)).astype("float32")
    first, last = (found.numpy() for found in best_span(keras.ops.convert_to_tensor(logits), longest=3))
    for row in range(20):
        spans = {(i, j): logits[row, i, 0] + logits[row, j, 1] for i in range(9) for j in range(i, min(i + 3, 9))}
        assert (first[row], last[row]) == max(spans, key=spans.get)


def test_span_f1_by_hand():
    logits = np.zeros((3, 8, 2), "float32")
    for row, (first, last) in enumerate([(2, 4), (0, 0), (1, 1)]):
        logits[row, first, 0] = logits[row, last, 1] = 5.0
    metric = SpanF1()
    metric.update_state(np.array([[3, 6], [0, 0], [2, 3]], "int32"), logits, np.array([1.0, 1.0, 1.0]))
    assert float(metric.result()) == pytest.approx((2 * 2 / (3 + 4) + 1.0 + 0.0) / 3)
    metric.reset_state()
    metric.update_state(np.array([[3, 6], [0, 0], [2, 3]], "int32"), logits, np.array([1.0, 0.0, 0.0]))
    assert float(metric.result()) == pytest.approx(4 / 7)


def test_where_every_question_has_an_answer_windows_without_it_do_not_count():
    logits = np.zeros((3, 8, 2), "float32")
    for row, (first, last) in enumerate([(2, 4), (5, 5), (0, 0)]):
        logits[row, first, 0] = logits[row, last, 1] = 5.0
    logits[2, 3] = 2.0  # the best that is not [CLS]
    metric = SpanF1(nullable=False)
    metric.update_state(np.array([[3, 6], [0, 0], [3, 3]], "int32"), logits)
    assert float(metric.result()) == pytest.approx((4 / 7 + 1.0) / 2)
    assert QuestionAnswering(Spans()).training_metrics()[0].nullable


def test_entity_f1_in_training_is_the_measures():
    """Random batches with continuation pieces between the words and padding behind them."""
    scheme = Tagging(Tags(labels=LABELS)).scheme
    metric = EntityF1(scheme.kinds[:-1], scheme.continues[:-1])
    tags, outputs, pieces, words, lengths = [], [], [], [], []
    for _ in range(3):
        weight = (RANDOM.random((6, 11)) < 0.6).astype("float32")
        weight[:, 0], weight[5] = 0.0, 0.0  # [CLS], and a filler row
        y, logits = RANDOM.integers(0, 5, (6, 11)), RANDOM.normal(size=(6, 11, 5)).astype("float32")
        logits += 2.0 * np.eye(5)[y]
        metric.update_state((y * weight).astype("int32"), logits, weight)
        for row in range(6):
            places = np.flatnonzero(weight[row])
            tags.append(y[row, places])
            pieces.append(places)
            outputs.append(logits[row])
            words.append(len(places))
            lengths.append(11)
    truth = {"labels": np.concatenate(tags), "pieces": np.concatenate(pieces)}
    truth |= {"offsets": np.cumsum([0, *words]), "piece_offsets": np.cumsum([0, *lengths])}
    expected = TaggingMeasure(truth, LABELS).metrics(np.concatenate(outputs))["f1"]
    assert 0.2 < expected < 0.95
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_tasks_say_what_goes_together():
    tagging, answering = Tagging(Tags(labels=LABELS)), QuestionAnswering()
    for task in (tagging, answering):
        assert TASKS[task.name] is type(task) and MEASURES[task.name].headline == task.metric
        assert [metric.name for metric in task.training_metrics()] == [task.monitor]
    assert tagging.outputs(LABELS) == 5 and answering.outputs(["start", "end"]) == 2
    assert answering.response_arguments == {"over": "positions"}
    with pytest.raises(UserError, match="label_smoothing"):
        answering.loss(0.1)
    with pytest.raises(UserError, match="tags must be"):
        Tagging(Tags(labels=["B-a", "X"]))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_counts_answers_where_the_task_does_and_hidden_states_wherever_there_is_text(parts):
    """Tagging weighs first pieces alone, unlike one another; the text's mask has more positions, and a filler row has none."""
    size, rows, length, kinds = 12, 4, 6, 3
    mask = (np.arange(length) < np.array([6, 4, 3, 5])[:, None]).astype("int32")
    x = {"token_ids": RANDOM.integers(1, size, (rows, length)).astype("int32") * mask, "padding_mask": mask}
    y = RANDOM.integers(0, kinds, (rows, length)).astype("int32")
    weights = np.array([[0, 1, 0, 2, 0, 1], [0, 0.5, 1, 0, 9, 9], [0, 1, 0, 0, 0, 0], [0] * 6], "float32")  # 9: at padding
    models = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        encoder = TransformerEncoder(size, 1, 8, 2, max_positions=length, segments=0, dropout=0.0, initializer_range=0.5)
        models.append(TransformerWithHead(encoder, TokenHead(kinds, dropout=0.0)))
        models[-1].head.output_dense.kernel.assign(models[-1].head.output_dense.kernel * 50)
    (own, h), (other, g) = ([tensor.numpy().astype("float64") for tensor in (one(x), one.encoder(x))] for one in models)
    assert h.shape == g.shape == (rows, length, 8)
    log_q, log_p, soft_q, soft_p = (scipy.special.log_softmax(z, axis=-1) for z in (own, other, own / 2, other / 2))
    labels = -np.take_along_axis(log_q, y[..., None], axis=-1)[..., 0]
    kl = 4 * (np.exp(soft_p) * (soft_p - soft_q)).sum(-1)
    hidden = ((h - g) ** 2).mean(-1)
    words = weights * mask
    text = mask * (words.max(-1, keepdims=True) > 0)
    by_hand = {"label_loss": np.average(labels, weights=words), "kl_divergence": np.average(kl, weights=words)}
    # A row's inner tensors weigh as much as the weightiest of its answers.
    by_hand["hidden_state_mse"] = np.average(hidden, weights=text * words.max(-1, keepdims=True))
    by_hand["loss"] = 0.3 * by_hand["label_loss"] + 0.7 * (by_hand["kl_divergence"] + 2.0 * by_hand["hidden_state_mse"])
    objectives = [KLDivergence(2.0), HiddenStateMSE([(0, 0)], weight=2.0)]
    distiller = Distiller(*models, objectives, alpha=0.3, accumulate=parts)
    distiller.compile(keras.optimizers.SGD(0.1), Tagging(Tags(labels=LABELS)).loss(), jit_compile=False)
    history = distiller.fit(tf.data.Dataset.from_tensors((x, y, weights)), shuffle=False, verbose=0).history
    for name, value in by_hand.items():
        assert history[name][0] == pytest.approx(value, rel=1e-5), name
    assert abs(np.average(kl, weights=text) / by_hand["kl_divergence"] - 1) > 0.05  # what the text's mask would give


PIECES = [*SPECIAL, *"abcdefgh", "##x"]


def tagged():
    """Words ending in x are entities; the piece ##x, not the first one, says so."""
    letters, examples = "abcdefgh", []
    for number in range(16):
        words = [letters[(number * step + step) % 8] + "x" * ((number >> step) & 1) for step in range(4)]
        tags = [1 if len(word) == 1 else 0 for word in words]
        examples.append({"text": " ".join(words), "words": words, "label": tags})
    return Tags(labels=["B-x", "O"]), examples


def answered():
    """The question names the letter before the answer."""
    letters, examples = "abcdefgh", []
    for number in range(16):
        context = " ".join(letters[(number + step * 3) % 8] for step in range(6))
        place = 2 * (number % 4) + 2
        examples.append({"text": context[place - 2], "text_pair": context, "answers": [(context[place : place + 3], place)]})
    return Spans(), examples


@pytest.mark.parametrize("make", [tagged, pytest.param(answered, marks=pytest.mark.slow)])
def test_sixteen_examples_are_learned_by_heart(tmp_path, make):
    target, examples = make()
    task = TASKS["tagging" if make is tagged else "question_answering"](target)
    store = write_store(tmp_path / "rows", examples, Tokenizer(PIECES), 16, target)
    batches = Batches(store, 16, [16])
    keras.utils.set_random_seed(0)
    encoder = TransformerEncoder(len(PIECES), 1, 32, 2, max_positions=16, segments=2 * target.pairs, dropout=0.0)
    model = TransformerWithHead(encoder, task.head(task.outputs(target.labels), dropout=0.0))
    distiller = Distiller(model)
    distiller.compile(keras.optimizers.Adam(1e-2), task.loss(), weighted_metrics=task.training_metrics(), jit_compile=False)
    history = distiller.fit(batches.dataset(repeat=True), epochs=1, steps_per_epoch=60, shuffle=False, verbose=0).history
    assert task.monitor in history
    scores = distiller.evaluate(batches.dataset(), verbose=0, return_dict=True)
    assert scores[task.monitor] == pytest.approx(1.0)
    measure = MEASURES[task.name](target.truth(store), target.labels)
    assert measure.metrics(predict(model, batches))[task.metric] == 1.0
