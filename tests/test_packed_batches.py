"""Packed texts: every text is what it is in a row of its own, and hardly a place is padding."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd import config, objectives
from tfkd.data.packed_batches import ENOUGH, PackedBatches, lay, pack
from tfkd.data.pipeline import Batches, choose_buckets
from tfkd.data.store import write_store
from tfkd.data.targets import Class
from tfkd.data.tokenizer import Tokenizer
from tfkd.distiller import Distiller
from tfkd.errors import UserError
from tfkd.layers.head import ClassificationHead
from tfkd.layers.packed_texts import PackedTexts
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import HiddenStateMSE, KLDivergence, MiniLMv2, RKDDistance
from tfkd.teacher import CachedTeacher, LiveTeacher

V, C, B, T, WIDTH = 50, 3, 12, 16, 20
WORDS = [f"w{i}" for i in range(40)]


def model(seed=0, width=24, layers=3, pooling="first", dropout=0.0, **options):
    keras.utils.set_random_seed(seed)
    encoder = TransformerEncoder(V, layers, width, 3, max_positions=T, dropout=dropout, initializer_range=0.2, **options)
    made = TransformerWithHead(encoder, ClassificationHead(C, pooling=pooling, dropout=dropout))
    made.head.output_dense.kernel.assign(made.head.output_dense.kernel * 20)  # answers that differ by more than rounding
    return made


def batch(seed=0, segments=True):
    """Texts of very different lengths, one of them as long as there can be, one of a single piece, one that is filler."""
    random = np.random.default_rng(seed)
    lengths = np.minimum(random.geometric(0.2, B) + 1, T)
    lengths[[0, 2, 5]] = T, 1, 0
    mask = (np.arange(T) < lengths[:, None]).astype("int32")
    x = {"token_ids": random.integers(5, V, (B, T)).astype("int32") * mask, "padding_mask": mask}
    if segments:
        x["segment_ids"] = random.integers(0, 2, (B, T)).astype("int32") * mask
    return x, random.integers(0, C, B).astype("int32"), (lengths > 0) * random.uniform(0.1, 3.0, B).astype("float32")


def packed(x, width=WIDTH):
    packing, starts = pack(x["padding_mask"], width)
    return x | {"packing": packing, "packing_starts": starts}


# ------------------------------------------------------------------------------------------------ where texts lie


def test_the_longest_text_comes_first_and_each_goes_where_there_is_room():
    assert lay(np.array([2, 7, 3, 5, 0, 3]), 8) == [[1], [3, 2], [5, 0]]
    assert lay(np.array([0, 0]), 8) == [[]]


@pytest.mark.parametrize("seed", range(5))
def test_every_place_is_of_one_text_and_texts_come_out_as_they_went_in(seed):
    x, *_ = batch(seed)
    mask = x["padding_mask"]
    packing, starts = pack(mask, WIDTH)
    taken = packing[packing >= 0]
    np.testing.assert_array_equal(np.sort(taken), np.flatnonzero(mask))
    texts = PackedTexts(packing, starts, mask)
    values = np.random.default_rng(seed).normal(size=(B, T, 4)).astype("float32") * mask[..., None]
    laid = tf.stack([texts.pack(values[..., i]) for i in range(4)], axis=-1)
    np.testing.assert_array_equal(texts.unpack(laid), values)
    np.testing.assert_array_equal(texts.pack(np.tile(np.arange(T), (B, 1)))[packing >= 0], texts.positions[packing >= 0])
    together, owner = texts.together.numpy(), np.where(packing < 0, -1, packing // T)
    for row, i, j in itertools.product(range(len(packing)), range(WIDTH), range(WIDTH)):
        assert together[row, i, j] == (owner[row, i] == owner[row, j])


# ------------------------------------------------------------------------------------------------ the same model


@pytest.mark.parametrize(
    ("xla", "options"),
    [
        pytest.param(True, {"layers": 2}, marks=pytest.mark.slow),
        (False, {"pooling": "mean"}),
        (False, {"norm": "pre"}),
        (False, {"norm": "pre", "pooling": "mean", "segments": 0}),
        (False, {"position": "sinusoidal"}),
        (False, {"activation": "relu", "width": 12, "layers": 1}),
    ],
    ids=str,
)
def test_answers_inner_tensors_and_gradients_are_those_of_texts_apart(options, xla):
    made = model(**options)
    x, y, weight = batch(segments=options.get("segments", 2) > 0)
    last = made.encoder.config["layers"] - 1
    names = ("logits", "embeddings", "hidden.0", f"hidden.{last}")

    def learn(x):
        with tf.GradientTape() as tape:
            logits = made(x)  # heads that read one position of the last block have it computed for that one
            inner = made.inner(x, names)
            value = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, logits, sample_weight=weight)
            places = tf.cast(x["padding_mask"], "float32")[..., None]
            value += sum(tf.reduce_mean(tf.sin(inner[name]) * places) for name in names[1:])
        return logits, inner, [tf.convert_to_tensor(each) for each in tape.gradient(value, made.trainable_variables)]

    learn = tf.function(learn, jit_compile=True) if xla else learn
    inputs = {name: tf.constant(value) for name, value in x.items()}
    alone, together = learn(inputs), learn({name: tf.constant(value) for name, value in packed(x).items()})
    texts, places = weight > 0, x["padding_mask"] > 0
    np.testing.assert_allclose(together[0][texts], alone[0][texts], atol=2e-5)
    np.testing.assert_allclose(together[1]["logits"][texts], alone[1]["logits"][texts], atol=2e-5)
    for name in names[1:]:
        np.testing.assert_allclose(together[1][name][places], alone[1][name][places], atol=2e-5, err_msg=name)
        assert not together[1][name].numpy()[~places].any()
    for variable, ours, theirs in zip(made.trainable_variables, together[2], alone[2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-6, err_msg=variable.path)


def test_rows_without_a_text_change_nothing():
    """There are some where R is a multiple of something: answers and gradients are finite and the same."""
    made = model()
    x, y, weight = batch()
    packing, starts = pack(x["padding_mask"], WIDTH, 7)
    assert len(packing) % 7 == 0 and (packing[-1] == -1).all() and len(packing) > len(packed(x)["packing"])
    found = []
    for inputs in (packed(x), x | {"packing": packing, "packing_starts": starts}):
        with tf.GradientTape() as tape:
            logits = made({name: tf.constant(value) for name, value in inputs.items()})
            value = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, logits, sample_weight=weight)
        found.append([logits[weight > 0], *map(tf.convert_to_tensor, tape.gradient(value, made.trainable_variables))])
    for one, other in zip(*found, strict=True):
        assert np.isfinite(other).all()
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


def test_neither_other_texts_of_a_row_nor_its_empty_places_matter_to_a_text():
    made = model(pooling="mean")
    x, *_ = batch()
    laid = packed(x)
    shared = next(row for row in laid["packing"] if len({place // T for place in row if place >= 0}) > 1)
    text, *others = dict.fromkeys(place // T for place in shared if place >= 0)
    ids = x["token_ids"].copy()
    ids[others] = np.where(x["padding_mask"][others], ids[others] % (V - 6) + 6, 0)
    ids = np.where(x["padding_mask"], ids, 9)
    assert (ids[others] != x["token_ids"][others]).any()
    changed = laid | {"token_ids": ids}
    for answer, other in [
        (made(laid), made(changed)),
        (made.inner(laid, ["hidden.1"])["hidden.1"], made.inner(changed, ["hidden.1"])["hidden.1"]),
    ]:
        np.testing.assert_array_equal(answer[text], other[text])
        assert np.abs(np.asarray(answer - other))[others].max() > 1e-3


def test_positions_are_computed_again_for_the_gradients_of_packed_texts_too():
    x, y, weight = batch()
    found = []
    for again in (False, True):
        made = model(dropout=0.3)
        made.encoder.checkpoint_gradients = again
        keras.utils.set_random_seed(3)
        with tf.GradientTape() as tape:
            value = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, made(packed(x), training=True), weight)
        found.append([value, *map(tf.convert_to_tensor, tape.gradient(value, made.trainable_variables))])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("live", "jit", "weighted"), [(True, False, False), (False, True, True), (True, False, True)])
def test_a_distillation_step_is_the_step_of_texts_apart(jit, live, weighted):
    """With inner tensors and pairwise distances; a live teacher reads the packed texts, cached answers come as they were."""
    teacher = LiveTeacher(model(1, width=36, layers=4))
    x, y, weight = batch()
    if not weighted:  # a row without a text would count, and what a model says of it is nobody's business
        x["padding_mask"][5, 0] = 1
    names = ("logits", "pooled", "hidden.1", "hidden.3")
    if not live:
        said = {f"teacher.{name}": np.asarray(value) for name, value in teacher(x, names).items()}
        x, teacher = x | said, CachedTeacher({name: said[f"teacher.{name}"].shape for name in names})
    weights, logs = [], []
    for inputs in (x, packed(x)):
        student = model()
        goals = [KLDivergence(2.0), HiddenStateMSE(layers=[(0, 1), (1, 3)]), RKDDistance()]
        distiller = Distiller(student, teacher, goals, alpha=0.3)
        distiller.compile(
            keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit
        )
        keras.utils.set_random_seed(5)
        data = tf.data.Dataset.from_tensors((inputs, y, weight) if weighted else (inputs, y)).repeat(2)
        logs.append(distiller.fit(data, verbose=0, epochs=1, steps_per_epoch=2).history)
        weights.append(student.get_weights())
    for name, values in logs[0].items():
        np.testing.assert_allclose(values, logs[1][name], rtol=3e-4, err_msg=name)
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-5)


def test_a_teacher_that_is_none_of_ours_reads_the_texts_as_they_are():
    seen = []

    class Foreign(keras.Model):
        def call(self, inputs, training=None):
            seen.append(sorted(inputs))
            return tf.zeros((len(inputs["token_ids"]), C))

    LiveTeacher(Foreign())(packed(batch()[0]))
    assert seen[-1] == ["padding_mask", "segment_ids", "token_ids"]


def test_what_a_shallow_objective_reads_is_had_without_a_single_block():
    made, (x, *_) = model(), batch()
    alone, together = (made.inner(inputs, ["embeddings"])["embeddings"] for inputs in (x, packed(x)))
    np.testing.assert_allclose(together, alone * x["padding_mask"][..., None], atol=1e-6)


def test_what_is_between_positions_is_refused_of_packed_texts():
    with pytest.raises(ValueError, match="attention.0: what is between positions cannot be had of packed texts"):
        model().inner(packed(batch()[0]), ["logits", "attention.0"])


# ------------------------------------------------------------------------------------------------ batches


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Lengths as those of SST-2's phrases: half of them under ten word pieces, a few of sixty."""
    random = np.random.default_rng(0)
    counts = np.minimum(random.lognormal(1.9, 0.8, 3001).astype(int) + 1, 62)
    texts = ({"text": " ".join(random.choice(WORDS, count)), "label": int(random.integers(3))} for count in counts)
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    return write_store(tmp_path_factory.mktemp("data") / "train", texts, tokenizer, 64, Class(labels=["a", "b", "c"]))


def batches_of(store, batch_size=32, **options):
    return PackedBatches(store, batch_size, choose_buckets(store.lengths, 64), shuffle=True, **options)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 5000])
def test_an_epoch_holds_every_row_once_in_batches_of_one_size(store, batch_size):
    batches = batches_of(store, batch_size)
    plan = batches.plan(3)
    assert len(plan) == batches.steps and {len(rows) for rows, _ in plan} == {batch_size}
    rows = np.concatenate([rows for rows, _ in plan])
    np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.arange(len(store)))
    missing = [int((rows < 0).sum()) for rows, _ in plan]
    assert max(missing) - min(missing) <= 1


def test_order_follows_from_seed_and_epoch_alone(store):
    def order(seed, epoch):
        return str([rows.tolist() for rows, _ in batches_of(store, seed=seed).plan(epoch)])

    assert order(0, 0) == order(0, 0)
    assert len({order(seed, epoch) for seed, epoch in itertools.product(range(2), range(3))}) == 6


def test_hardly_a_place_is_padding_and_the_shapes_are_few(store):
    packed, padded = batches_of(store), Batches(store, 32, choose_buckets(store.lengths, 64), shuffle=True)
    assert packed.padding() <= ENOUGH < 0.12 < padded.padding()
    shapes = {x["packing"].shape for epoch in range(3) for x, _, _ in packed.dataset(first_epoch=epoch)}
    assert len(shapes) <= 8 and packed.shapes() <= 3
    assert {width for _, width in shapes} == {packed.width} and packed.longest <= packed.width <= 2 * packed.longest
    places = sum(np.prod(x["packing"].shape) for x, _, _ in packed.dataset())
    assert packed.padding() == 1 - store.lengths.sum() / places
    assert (
        packed.describe()
        == f"a batch's texts packed into {min(packed.heights)} to {max(packed.heights)} rows of {packed.width} word pieces"
    )


def test_labels_weights_and_texts_stay_with_their_rows_in_every_part(store):
    batches = batches_of(store, 30, seed=2)
    for parts in (1, 4):
        plan, size = batches.plan(), -(-30 // parts)
        given = batches.dataset(parts=parts, mine=range(parts))
        rows = np.concatenate([np.concatenate([rows, np.full(size * parts - 30, -1)]) for rows, _ in plan]).reshape(-1, size)
        for mine, (x, y, weight) in zip(rows, given, strict=True):
            np.testing.assert_array_equal(weight, mine >= 0)
            np.testing.assert_array_equal(y.numpy()[mine >= 0], store.column("label")[mine[mine >= 0]])
            expected, _ = pack(x["padding_mask"].numpy(), batches.width)
            np.testing.assert_array_equal(x["packing"], expected)
            np.testing.assert_array_equal(x["padding_mask"].numpy().sum(axis=1)[mine >= 0], store.lengths[mine[mine >= 0]])


def test_packed_batches_go_on_at_any_step(store):
    batches = batches_of(store, 64, seed=4)
    whole = [x["packing"].numpy() for x, _, _ in batches.dataset(repeat=True).take(2 * batches.steps)]
    later = [
        x["packing"].numpy() for x, _, _ in batches.dataset(first_epoch=1, first_step=5, repeat=True).take(batches.steps - 5)
    ]
    for one, other in zip(whole[batches.steps + 5 :], later, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_in_order_are_not_packed(store):
    with pytest.raises(ValueError, match="order of their own"):
        PackedBatches(store, 8, [64])


# ------------------------------------------------------------------------------------------------ the configuration

TREE = {
    "data": {"builtin": "docstrings"},
    "teacher": {"dimensions": {}, "train": {}},
    "student": {"dimensions": {}},
}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"train": {"pack": True, "accumulate": 2}}, "accumulate = 2: packed texts of a batch share rows"),
        ({"train": {"pack": True}, "task": "tagging"}, "train.pack goes with task: classification, .*; not with tagging"),
        (
            {"teacher": {"dimensions": {}, "train": {"pack": True}}, "task": "masked_language_model"},
            "teacher.train.pack goes with task: .*; not with masked_language_model",
        ),
        (
            {"train": {"pack": True}, "distill": {"objectives": ["kl_divergence", "minilm_v2"]}},
            "train.pack: minilm_v2 reads what is between positions",
        ),
        (
            {
                "stages": [
                    {"name": "a", "train": {"pack": True}, "distill": {"objectives": ["attention_score_mse"]}},
                    {"name": "b"},
                ]
            },
            "stage a: train.pack: attention_score_mse reads",
        ),
        ({"compression": {"qat": {"pack": True}}}, "compression.qat.pack: 8 bits are learned from one text to a row"),
    ],
)
def test_what_cannot_be_packed_is_refused_before_anything_runs(tree, message):
    with pytest.raises(UserError, match=message):
        config.parse(TREE | tree)


def test_the_configuration_knows_which_objectives_read_between_positions():
    made = [kind(layers=[(0, 0)]) for kind in vars(objectives).values() if isinstance(kind, type) and hasattr(kind, "stems")]
    between = {each.default_name for each in made if {"attention", "query", "key", "value"}.intersection(each.stems)}
    assert set(config._BETWEEN) == between and MiniLMv2([(0, 0)]).default_name in between
