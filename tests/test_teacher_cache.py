import contextlib
import errno
import fcntl
import os
import pathlib
import resource
import shutil
import threading
import tracemalloc

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfkd.data import teacher_cache, teacher_cache_writer
from tfkd.data.pipeline import Batches
from tfkd.data.store import write_store
from tfkd.data.targets import TARGETS, Class
from tfkd.data.teacher_cache import MANIFEST, TeacherCache, cache_bytes, cache_key, caches_beside, model_digest
from tfkd.data.teacher_cache_writer import ASKING, CHECKING, write_cache
from tfkd.data.teacher_tensors import MASKED_SCORE
from tfkd.data.tokenizer import Tokenizer
from tfkd.distiller import Distiller
from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import AttentionScoreMSE, HiddenStateMSE, KLDivergence, MiniLMv2
from tfkd.tasks.classification import ClassificationHead
from tfkd.tasks.table import TASKS
from tfkd.teacher import CachedTeacher, LiveTeacher

WORDS = [f"w{i}" for i in range(40)]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
ROWS, C, D, H = 300, 3, 16, 2
BUCKETS = [8, 12, 16]
NAMES = ("logits", "hidden.0", "attention.0")


def model(seed=2, layers=2, width=D, dropout=0.0, activation="gelu"):
    keras.utils.set_random_seed(seed)
    encoder = TransformerEncoder(
        len(PIECES), layers, width, H, max_positions=16, segments=0, dropout=dropout, activation=activation, initializer_range=0.3
    )
    head = ClassificationHead(C, dropout=dropout)
    made = TransformerWithHead(encoder, head)
    head.output_dense.kernel.assign(head.output_dense.kernel * 20)  # answers that differ by more than rounding
    return made


class Table:
    """A teacher that looks up its answers, and counts how often it is asked."""

    def __init__(self):
        self.table, self.times = np.random.default_rng(1).normal(0, 2, (len(PIECES), D)).astype("float32"), 0

    def __call__(self, inputs, names):
        tf.py_function(self.count, [], [])
        mask = tf.cast(inputs["padding_mask"], tf.float32)
        hidden = tf.gather(self.table, inputs["token_ids"])
        scores = tf.einsum("bqd,bkd->bqk", hidden, hidden)[:, None] * tf.reshape(tf.range(1.0, H + 1), (H, 1, 1))
        said = {"logits": tf.einsum("bt,btd->bd", mask, hidden)[:, :C], "hidden.0": hidden, "attention.0": scores}
        return {name: said[name] for name in names}

    def count(self):
        self.times += 1

    def shapes(self, names):
        shapes = {"logits": (None, C), "hidden.0": (None, None, D), "attention.0": (None, H, None, None)}
        return {name: shapes[name] for name in names}


class Bars:
    """What a person is shown: (title, rows done)."""

    def __init__(self):
        self.told = []

    @contextlib.contextmanager
    def __call__(self, title, rows):
        yield lambda done, text: self.told.append((title, done))


class Says:
    """A teacher whose logits are a table by row, the row's number being its second token."""

    def __init__(self, logits):
        self.logits = np.asarray(logits, "float32")

    def __call__(self, inputs, names):
        return {"logits": tf.gather(self.logits, inputs["token_ids"][:, 1] - len(PIECES) + len(WORDS))}

    def shapes(self, names):
        return {"logits": (None, *self.logits.shape[1:])}


@pytest.fixture(scope="module")
def teacher():
    return Table()


def make_store(path, examples):
    return write_store(path, iter(examples), Tokenizer(PIECES), 16, Class(labels=["a", "b", "c"]))


def examples(count=ROWS, seed=0):
    random = np.random.default_rng(seed)
    return [{"text": " ".join(random.choice(WORDS, random.integers(1, 14))), "label": int(i % C)} for i in range(count)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store") / "train", examples())


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Rows [CLS] w0 [SEP], [CLS] w1 [SEP] ..."""
    return make_store(tmp_path_factory.mktemp("store") / "train", [{"text": word, "label": 0} for word in WORDS])


@pytest.fixture(scope="module")
def written(tmp_path_factory, teacher, store):
    """A cache of five chunks, never to be changed."""
    return again(tmp_path_factory.mktemp("cache") / "all", teacher, store)


@pytest.fixture
def copy(tmp_path, written):
    return pathlib.Path(shutil.copytree(written.path, tmp_path / "copy"))


def files(path):
    return {file.name: file.read_bytes() for file in pathlib.Path(path).iterdir()}


def again(path, teacher, store, **arguments):
    return write_cache(path, teacher, NAMES, store, BUCKETS, 16, **{"chunk_bytes": chunks_of_64(store)} | arguments)


def chunks_of_64(store):
    """Bytes of a chunk of 64 rows of `NAMES`."""
    n = store.lengths.astype(int)
    return 64 * (2 * int((C + D * n + H * n**2).sum()) // max(len(n), 1))


# ---------------------------------------------------------------- what is in it


def test_what_is_read_is_what_the_teacher_said(tmp_path, store):
    names = ("logits", "pooled", "embeddings", "hidden.1", "attention.0", "query.0", "value.1")
    teacher = LiveTeacher(model())
    cache = write_cache(tmp_path / "cache", teacher, names, store, BUCKETS, 16, chunk_bytes=1)
    rows = np.array([7, 299, -1, 0, 64, 63, 255])  # of several chunks, and filler
    assert len(cache.files) == -(-ROWS // teacher_cache_writer.FEWEST_ROWS)
    batch = cache.gather(rows, 16)
    inputs = store.gather(rows, 16)
    said = teacher(inputs, names)
    assert set(batch) == {f"teacher.{name}" for name in names}
    mask = inputs["padding_mask"].astype(bool)
    for name in names:
        read, live = batch[f"teacher.{name}"], np.array(said[name])
        assert read.dtype == np.float16 and read.shape == live.shape
        positions = {2: (rows >= 0)[:, None], 3: mask[:, :, None], 4: mask[:, None, :, None]}[live.ndim]
        real = np.broadcast_to(positions, live.shape).copy()
        if name == "attention.0":
            real &= mask[:, None, None, :]
            padded_keys = np.broadcast_to(~mask[:, None, None, :], live.shape)[rows >= 0]
            assert (read[rows >= 0][padded_keys] == np.float16(MASKED_SCORE)).all()
            read = np.where(mask[:, None, None, :], read, 0)
        np.testing.assert_allclose(read[real], live[real], rtol=2**-11, atol=2e-6)
        assert (read[~real] == 0).all()
        assert np.abs(live[real]).max() > 0.1
    n = store.lengths.astype(int)
    values = C + D + D * n + D * n + H * n**2 + H * n * (D // H) + H * n * (D // H)
    assert cache.bytes == 2 * values.sum()


def test_its_size_is_two_bytes_a_value_without_padding(written, store):
    n = store.lengths.astype(int)
    chunks = [file for file in written.path.iterdir() if file.name.startswith("chunk-")]
    assert written.bytes == 2 * (C + D * n + H * n**2).sum() == sum(file.stat().st_size for file in chunks)
    assert cache_bytes(written.shapes(NAMES), store.lengths) == written.bytes
    assert len(chunks) == 5 and len(written) == ROWS


def test_batches_carry_each_rows_own_answer_in_any_order(written, store):
    for shuffle in (False, True):
        batches = Batches(store, 50, BUCKETS, shuffle=shuffle, seed=3, teacher=written)
        for (rows, length), (x, _, _) in zip(batches.plan(), batches.dataset(), strict=True):
            for name, values in written.gather(rows, length).items():
                np.testing.assert_array_equal(x[name], values)
            for name, values in store.gather(rows, length).items():
                np.testing.assert_array_equal(x[name], values)


def test_batches_refuse_the_answers_to_other_rows(written, tmp_path):
    other = make_store(tmp_path / "train", examples(seed=1))
    with pytest.raises(ValueError, match="for other rows"):
        Batches(other, 16, BUCKETS, teacher=written)


def test_a_target_that_draws_what_is_read_is_refused(tmp_path, written, teacher, store, monkeypatch):
    def masked(self, store, rows, length, random):
        x = store.gather(rows, length)
        x["token_ids"][random.random(x["token_ids"].shape) < 0.15] = 4
        return x, np.zeros(len(rows), "int32"), np.ones(len(rows), "float32")

    monkeypatch.setattr(Class, "batch", masked)
    with pytest.raises(UserError, match=r"the task \(class\) draws anew"):
        Batches(store, 16, BUCKETS, shuffle=True, teacher=written)
    with pytest.raises(UserError, match="draws anew"):
        again(tmp_path / "cache", teacher, store)
    assert not (tmp_path / "cache").exists()


def test_a_tensor_that_was_not_cached_is_named(written):
    assert written.shapes(["attention.0"]) == {"attention.0": (None, H, None, None)}
    with pytest.raises(ValueError, match="no tensor 'hidden.7' .* has attention.0, hidden.0, logits"):
        written.shapes(["hidden.7"])


def test_an_empty_split_is_an_empty_cache(tmp_path, teacher):
    store = make_store(tmp_path / "train", [])
    cache = write_cache(tmp_path / "cache", teacher, NAMES, store, [16], 4)
    assert (len(cache), cache.bytes) == (0, 0)
    assert len(TeacherCache(cache.path)) == 0


# ---------------------------------------------------------------- many classes


def top_k_by_hand(row, k):
    """Dense logits: the k largest, and log(sum of exp of the others / their number) for each of those."""
    row = np.asarray(row, "float64")
    kept = np.argsort(-row, kind="stable")[:k]
    others = np.setdiff1d(np.arange(len(row)), kept)
    dense = np.empty(len(row))
    dense[kept], dense[others] = row[kept], np.log(np.exp(row[others]).sum() / len(others))
    return dense


def test_the_largest_logits_are_kept_and_the_others_share_what_is_left(tmp_path, numbered):
    logits = np.random.default_rng(0).normal(0, 3, (40, 11))
    logits[3] = [5, 5, 5, 5, 1, 1, 1, 1, 1, 1, 1]  # more alike than are kept
    logits[4] = 2.0
    logits[5] = [90, 80, 70, -40, -50, -60, -70, -80, -90, -99, -99]  # a sum far below float32's precision
    cache = write_cache(tmp_path / "cache", Says(logits), (), numbered, [4], 8, top_k=3)
    read = cache.gather(np.arange(40), 4)["teacher.logits"].astype("float64")
    np.testing.assert_allclose(read, [top_k_by_hand(row, 3) for row in logits], rtol=2**-10)
    assert cache.bytes == 40 * (3 * 2 + 2 + 3 * 4)
    probabilities = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    seen = np.exp(read - np.log(np.exp(read).sum(-1, keepdims=True)))
    kept = np.argsort(-logits, axis=-1, kind="stable")[:, :3]
    of_kept = [np.take_along_axis(values, kept, -1) for values in (seen, probabilities)]
    np.testing.assert_allclose(*of_kept, rtol=0.02)  # exp of a rounded logit of 10 is off by up to 0.5 %


@pytest.mark.parametrize(("highest", "most"), [(0, 0.002), (15, 0.06)])
def test_what_is_left_out_costs_little_above_temperature_1_too(tmp_path, numbered, highest, most):
    """A flat teacher and a peaked one: beyond the k largest lies the most of what it says at temperature 4, and is taken as even.

    Of that spread the greater part can't be had by any filler; the rest is that the filler's sum is right at temperature 1.
    """
    logits = np.random.default_rng(0).normal(0, 2 if highest else 0.3, (40, 150))
    logits[:, 0] += highest
    cache = write_cache(tmp_path / "cache", Says(logits), (), numbered, [4], 8, top_k=16)
    read = cache.gather(np.arange(40), 4)["teacher.logits"].astype("float64")
    best, others = read.copy(), np.argsort(-logits, axis=-1)[:, 16:]
    tail = np.take_along_axis(logits, others, -1)
    np.put_along_axis(best, others, 4 * np.log(np.exp(tail / 4).mean(-1, keepdims=True)), -1)

    def divergence(kept, temperature):
        teacher, kept = (values / temperature for values in (logits, kept))
        p, q = (values - np.log(np.exp(values).sum(-1, keepdims=True)) for values in (teacher, kept))
        return (np.exp(p) * (p - q)).sum(-1).mean()

    assert divergence(read, 4) < most and divergence(read, 4) < 1.1 * divergence(best, 4)
    assert divergence(read, 1) < (0.002 if highest else 0.03)


def test_top_k_works_by_position(tmp_path, store):
    table = np.random.default_rng(0).normal(0, 2, (len(PIECES), 9)).astype("float32")

    class Positions:
        def __call__(self, inputs, names):
            return {"logits": tf.gather(table, inputs["token_ids"])}

        def shapes(self, names):
            return {"logits": (None, None, 9)}

    cache = write_cache(tmp_path / "cache", Positions(), (), store, BUCKETS, 16, top_k=4)
    read = cache.gather(np.array([5, -1]), 16)["teacher.logits"]
    n = store.lengths[5]
    ids = store.gather(np.array([5]), 16)["token_ids"][0, :n]
    np.testing.assert_allclose(read[0, :n], [top_k_by_hand(table[i], 4) for i in ids], rtol=2**-10, atol=2**-12)
    assert not read[0, n:].any() and not read[1].any()


def test_few_classes_are_kept_whole_whatever_top_k(tmp_path, numbered):
    logits = np.random.default_rng(0).normal(0, 3, (40, 3))
    cache = write_cache(tmp_path / "cache", Says(logits), (), numbered, [4], 8, top_k=3)
    np.testing.assert_array_equal(cache.gather(np.arange(40), 4)["teacher.logits"], logits.astype("float32").astype("float16"))
    with pytest.raises(ValueError, match="top_k = 0"):
        write_cache(tmp_path / "none", Says(logits), (), numbered, [4], 8, top_k=0)


# ---------------------------------------------------------------- values that float16 cannot hold


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize(("value", "words"), [(7e4, "beyond 65,504"), (np.nan, "NaN"), (-np.inf, "")])
def test_what_float16_cannot_hold_is_refused_with_its_row(tmp_path, numbered, value, words, top_k):
    logits = np.random.default_rng(0).normal(0, 3, (40, 5))
    logits[23, 0] = value
    with pytest.raises(UserError, match=r"logits of row 23 \(counted from 0\) has") as caught:
        write_cache(tmp_path / "cache", Says(logits), (), numbered, [4], 8, top_k=top_k)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="manifest.json"):
        TeacherCache(tmp_path / "cache")


def test_what_padding_holds_is_never_looked_at(tmp_path, store):
    class Wild:
        def __call__(self, inputs, names):
            mask = tf.cast(inputs["padding_mask"], tf.bool)[:, :, None]
            return {"logits": tf.ones((16, C)), "hidden.0": tf.where(mask, tf.ones(D), np.nan)}

        def shapes(self, names):
            return {"logits": (None, C), "hidden.0": (None, None, D)}

    cache = write_cache(tmp_path / "cache", Wild(), ("hidden.0",), store, BUCKETS, 16)
    assert np.isfinite(cache.gather(np.arange(20), 16)["teacher.hidden.0"]).all()


@pytest.mark.parametrize("shape", [(C,), (None, 5)])
def test_a_teacher_that_cannot_say_its_shape_is_asked(tmp_path, store, shape):
    class Silent:
        def __call__(self, inputs, names):
            rows, length = tf.shape(inputs["token_ids"])[0], tf.shape(inputs["token_ids"])[1]
            return {"logits": tf.ones([rows, *[length if size is None else size for size in shape]])}

        def shapes(self, names):
            return {"logits": None}

    cache = write_cache(tmp_path / "cache", Silent(), (), store, BUCKETS, 16)
    assert cache.shapes(("logits",)) == {"logits": (None, *shape)}
    assert cache.bytes == 2 * (C * ROWS if shape == (C,) else 5 * store.lengths.sum())


def test_a_teacher_that_answers_in_another_shape_is_refused(tmp_path, store):
    class Other(Table):
        def shapes(self, names):
            return {"logits": (None, C + 1)}

    with pytest.raises(ValueError, match=r"logits is \(16, 3\), not \(16, 4\)"):
        write_cache(tmp_path / "cache", Other(), (), store, BUCKETS, 16)


# ---------------------------------------------------------------- its key


def test_any_change_of_teacher_data_or_tensors_is_another_key(tmp_path, store):
    digest = model_digest(model())
    key = cache_key(digest, store, NAMES)
    copied = make_store(tmp_path / "copied" / "train", examples())
    assert key == cache_key(model_digest(model()), copied, reversed(NAMES)) == cache_key(digest, store, NAMES[1:])
    moved = model()
    kernel = moved.head.output_dense.kernel
    kernel.assign(kernel + np.eye(D, C) * 1e-6)
    other_word, other_order = examples(), examples()
    other_word[17]["text"] += " w3"
    other_order[4], other_order[5] = other_order[5], other_order[4]
    others = [
        cache_key(model_digest(moved), store, NAMES),
        cache_key(model_digest(model(activation="relu")), store, NAMES),
        cache_key(digest, make_store(tmp_path / "word", other_word), NAMES),
        cache_key(digest, make_store(tmp_path / "order", other_order), NAMES),
        cache_key(digest, make_store(tmp_path / "fewer", examples()[:-1]), NAMES),
        cache_key(digest, store, (*NAMES, "hidden.1")),
        cache_key({"model": digest, "order": [0, 2, 1]}, store, NAMES),
        cache_key(digest, store, NAMES, top_k=2),
    ]
    assert len({key, *others}) == 9


@pytest.mark.parametrize("package", ["tensorflow.__version__", "keras.__version__", "importlib.metadata.version"])
def test_another_version_of_what_computes_is_another_key(store, monkeypatch, package):
    key = cache_key("digest", store, NAMES)
    monkeypatch.setattr(package, (lambda package: "0.0") if package.endswith(".version") else "0.0")
    assert cache_key("digest", store, NAMES) != key


def test_a_folder_of_other_tensors_or_rows_is_refused(written, teacher, store, tmp_path):
    other = write_cache(tmp_path / "other", teacher, ("hidden.0",), store, BUCKETS, 16)
    with pytest.raises(ValueError, match="other tensors or rows"):
        again(other.path, teacher, store)
    with pytest.raises(ValueError, match="other tensors or rows"):
        again(written.path, teacher, make_store(tmp_path / "train", examples(seed=1)))


# ---------------------------------------------------------------- more than is asked for


def test_a_finished_cache_with_more_tensors_serves_who_asks_for_fewer(tmp_path, teacher, store, monkeypatch):
    def ask(*names, digest="digest", rows=store):
        path = tmp_path / cache_key(digest, rows, names)
        return write_cache(path, teacher, names, rows, BUCKETS, 16, beside=caches_beside(path))

    most, more = ask("hidden.0", "attention.0"), ask("hidden.0")  # the second is found in the first
    assert most.path == more.path
    before = teacher.times
    part = ask()
    assert part.path == most.path and part.names == ("logits",) and teacher.times == before
    batch, whole = (cache.gather(np.array([3, -1, 299]), 16) for cache in (part, most))
    assert list(batch) == list(part.signature(3)) == ["teacher.logits"] and len(whole) == 3
    np.testing.assert_array_equal(batch["teacher.logits"], whole["teacher.logits"])
    with pytest.raises(ValueError, match="no tensor 'hidden.0' in this teacher cache, which has logits"):
        part.shapes(["hidden.0"])
    other = make_store(tmp_path / "train", examples(seed=1))
    for made in (ask(digest="another"), ask(rows=other)):  # never of another teacher or other rows
        assert made.path != most.path and made.names == ("logits",)
    assert teacher.times > before


def test_of_several_that_serve_the_smallest_whole_one_does(tmp_path, teacher, store):
    keys = {names: tmp_path / cache_key("digest", store, names) for names in ((), ("hidden.0",), NAMES)}
    for names in (("hidden.0",), NAMES):
        write_cache(keys[names], teacher, names, store, BUCKETS, 16)
    beside = caches_beside(keys[()])
    assert set(beside) == {keys["hidden.0",], keys[NAMES]}
    before = teacher.times

    def ask():
        return write_cache(keys[()], teacher, (), store, BUCKETS, 16, beside=beside).path

    assert ask() == keys["hidden.0",]
    for names, then in ((("hidden.0",), keys[NAMES]), (NAMES, keys[()])):
        assert teacher.times == before
        file = next(keys[names].glob("chunk-*"))
        file.write_bytes(file.read_bytes()[:-1])
        assert ask() == then  # nothing is written into a damaged one
        assert (keys[names] / MANIFEST).exists()
    assert teacher.times > before


# ---------------------------------------------------------------- interrupted, damaged, full


def test_a_finished_cache_asks_nobody(written, teacher, store):
    before, bars, said = teacher.times, Bars(), []
    cache = again(written.path, teacher, store, bar=bars, say=said.append)
    assert teacher.times == before and said == []
    assert bars.told == [(CHECKING, done) for done in (64, 128, 192, 256, ROWS)]  # every byte is read: it takes a while
    np.testing.assert_array_equal(
        cache.gather(np.arange(9), 16)["teacher.logits"], written.gather(np.arange(9), 16)["teacher.logits"]
    )


@pytest.mark.parametrize("lost", ["missing", "short", "flipped", "half-written", "manifest", "manifest byte", "lengths"])
def test_what_is_lost_or_damaged_is_made_again_to_the_same_bytes(copy, teacher, store, lost):
    expected = files(copy)
    chunk = sorted(copy.glob("chunk-000002-*"))[0]
    data = chunk.read_bytes()
    flipped = bytearray(data)
    flipped[777] ^= 4
    if lost == "missing":
        chunk.unlink()
    elif lost == "short":
        chunk.write_bytes(data[:-1])
    elif lost == "flipped":
        chunk.write_bytes(flipped)
    elif lost == "half-written":  # killed while writing the third chunk
        (copy / MANIFEST).unlink()
        for index in (2, 3, 4):
            sorted(copy.glob(f"chunk-{index:06}-*"))[0].unlink()
        chunk.with_name(chunk.name.replace(".bin", ".partial.bin")).write_bytes(data[:99])
    elif lost == "manifest":
        (copy / MANIFEST).unlink()
    elif lost == "manifest byte":
        (copy / MANIFEST).write_text((copy / MANIFEST).read_text().replace('"chunk_rows": 64', '"chunk_rows": 65'))
    elif lost == "lengths":
        (copy / "lengths.int32").write_bytes(b"\1" * 4 * ROWS)
    with pytest.raises(
        UserError, match=MANIFEST if "m" in lost and lost != "missing" or "half" in lost else "is damaged or gone"
    ):
        TeacherCache(copy)
    before, bars, said = teacher.times, Bars(), []
    again(copy, teacher, store, bar=bars, say=said.append)
    assert files(copy) == expected
    # 64 rows a chunk in batches of 16; the last chunk has 44.
    assert teacher.times - before == {"half-written": 4 + 4 + 3}.get(lost, 4 if lost in ("missing", "short", "flipped") else 0)
    asked = [done for title, done in bars.told if title == ASKING]
    assert (CHECKING, 64) in bars.told and bars.told[0][0] == CHECKING
    if lost in ("half-written", "missing", "short", "flipped"):
        # Where it begins comes first, so that what was done before says nothing about the pace.
        assert asked[0] == 128 and asked == sorted(asked) and asked[-1] == (ROWS if lost == "half-written" else 192)
        (line,) = said
        size = f"{sum(len(data) for name, data in expected.items() if name.startswith('chunk-')) / 1e6:,.1f} MB"
        assert line == f"Teacher's outputs: logits, hidden.0, attention.0 of 300 rows are to take {size} in {copy}"
    else:
        assert asked == said == []


def test_every_flipped_byte_is_found(copy):
    random = np.random.default_rng(0)
    for file in sorted(copy.glob("[!l]*")) + [copy / "lengths.int32"]:
        data = file.read_bytes()
        for place in random.integers(0, len(data), 5):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(UserError, match=file.name):
                TeacherCache(copy)
        file.write_bytes(data)
    TeacherCache(copy)


def test_a_cache_of_another_format_is_not_read(copy, monkeypatch):
    monkeypatch.setattr("tfkd.data.teacher_cache.FORMAT", 3)
    with pytest.raises(UserError, match="of format 2, this is format 3"):
        TeacherCache(copy)


def test_a_teacher_that_fails_midway_leaves_whole_chunks_to_go_on_from(tmp_path, teacher, store, written):
    calls = []

    class Stopping(Table):
        def count(self):
            calls.append(1)
            if len(calls) == 10:
                raise RuntimeError("stopped")

    with pytest.raises(Exception, match="stopped"):
        again(tmp_path / "cache", Stopping(), store)
    assert sorted(files(tmp_path / "cache")) == sorted(["lock", *(name for name in files(written.path) if name < "chunk-000002")])
    again(tmp_path / "cache", teacher, store)
    assert files(tmp_path / "cache") == files(written.path)


def test_a_full_disk_is_one_line_and_nothing_half_written(tmp_path, teacher, store, written, monkeypatch):
    path = tmp_path / "cache"
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(1)
        if len(calls) == 5:  # a file and its folder each: the third chunk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be kept there: No space left on device") as caught:
        again(path, teacher, store)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert [name[:12] for name in sorted(files(path))] == ["chunk-000000", "chunk-000001", "lock"]
    monkeypatch.undo()
    again(path, teacher, store)
    assert files(path) == files(written.path)


def test_a_disk_too_small_is_said_before_the_teacher_is_asked(tmp_path, teacher, store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 4000, 4000))
    before = teacher.times
    with pytest.raises(UserError, match=r"\d\.\d MB of teacher outputs are to be written and 0.0 MB are free"):
        again(tmp_path / "cache", teacher, store)
    assert teacher.times == before


def test_a_folder_that_cannot_be_is_one_line(tmp_path, teacher, store):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/cache: the teacher's outputs cannot be kept there: Not a directory"):
        again(tmp_path / "file" / "cache", teacher, store)


def test_a_second_process_waits_for_the_first(tmp_path, teacher, store, written, monkeypatch):
    monkeypatch.setattr(teacher_cache_writer, "SECONDS_BETWEEN_LOOKS", 0.02)
    path = tmp_path / "cache"
    path.mkdir()
    bars, before = Bars(), teacher.times
    waiting = threading.Thread(target=again, args=(path, teacher, store), kwargs={"bar": bars})
    with open(path / "lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting.start()
        while len(bars.told) < 2:
            assert waiting.is_alive()
        for file in written.path.glob("[!l]*"):  # meanwhile the first one finishes
            shutil.copy(file, path)
        shutil.copy(written.path / "lengths.int32", path)
    waiting.join(20)
    assert not waiting.is_alive() and bars.told[0] == (ASKING, 0) and bars.told[-1] == (CHECKING, ROWS)
    assert teacher.times == before and files(path) == files(written.path)


def test_more_files_than_a_process_may_open_are_read(tmp_path, teacher, store, monkeypatch):
    monkeypatch.setattr(teacher_cache, "MOST_OPEN", 10)
    cache = write_cache(tmp_path / "cache", teacher, (), store, BUCKETS, 16, chunk_bytes=1)
    assert len(cache.files) == 38
    rows = np.random.default_rng(0).permutation(ROWS)
    expected = cache.gather(rows, 16)["teacher.logits"]
    before, limits = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, limits[1]))
        cache = TeacherCache(cache.path)
        read = np.concatenate([cache.gather(part, 16)["teacher.logits"] for part in np.split(rows, 10)])
        opened = len(os.listdir("/proc/self/fd")) - before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    np.testing.assert_array_equal(read, expected)
    assert opened <= 10


def test_memory_does_not_grow_with_the_rows(tmp_path):
    teacher = Table()

    def peak(rows):
        made = make_store(tmp_path / f"store{rows}", ({"text": "w1 " * 14, "label": 0} for _ in range(rows)))
        tracemalloc.start()
        cache = write_cache(tmp_path / str(rows), teacher, ("hidden.0",), made, BUCKETS, 64, chunk_bytes=64 * 518)
        for first in range(0, rows, 64):
            cache.gather(np.arange(first, min(first + 64, rows)), 16)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert cache.bytes == rows * 2 * (C + 16 * D)
        return size

    peak(64)
    assert peak(1500) < peak(500) + 200 * 1000  # the files grew by 518 bytes a row


# ---------------------------------------------------------------- what a student learns from it


def labels_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def trained(knowledge, store, cache=None):
    """Two epochs, in shuffled buckets, with dropout: the start's weights, the end's, and the history."""
    keras.utils.set_random_seed(5)
    student = model(seed=7, layers=1, dropout=0.2)
    start = student.get_weights()
    distiller = Distiller(student, knowledge, [KLDivergence(2.0), HiddenStateMSE([(0, 0)])], alpha=0.3)
    distiller.compile(keras.optimizers.SGD(0.02, momentum=0.9), loss=labels_loss(), jit_compile=False)
    batches = Batches(store, 20, BUCKETS, shuffle=True, seed=1, teacher=cache)
    dataset = batches.dataset(repeat=True)
    history = distiller.fit(dataset, epochs=2, steps_per_epoch=batches.steps, verbose=0, shuffle=False).history
    return start, student.get_weights(), history


def test_a_student_of_the_cache_is_the_student_of_the_live_teacher(tmp_path, store):
    teacher = model(layers=1)
    cache = again(tmp_path / "cache", LiveTeacher(teacher), store)
    start, live, losses = trained(LiveTeacher(teacher), store)
    _, cached, cached_losses = trained(CachedTeacher(cache.shapes(cache.names)), store, cache)
    moved = max(np.abs(a - b).max() for a, b in zip(start, live, strict=True))
    assert moved > 0.1
    for a, b in zip(cached, live, strict=True):
        np.testing.assert_allclose(a, b, atol=moved * 2**-9)
    for name, values in losses.items():
        np.testing.assert_allclose(cached_losses[name], values, rtol=1e-3, err_msg=name)


def texts(count):
    return [example["text"] for example in examples(count, seed=3)]


def questions(count):
    for text in texts(count):
        answer = text.split()[-1]
        yield {"text": "w1 w2", "text_pair": text, "answers": [(answer, text.rindex(answer))]}


def tagged(count):
    for text in texts(count):
        words = text.split()
        yield {"text": text, "words": words, "label": [int(word[1:]) % C for word in words]}


LEARNED = {
    "attention scores": ("classification", [AttentionScoreMSE([(0, 1)])]),
    "relations": ("classification", [MiniLMv2([(0, 1)], relation_heads=2)]),
    "spans": ("question_answering", [KLDivergence(2.0, over="positions")]),
    "tags": ("tagging", [KLDivergence(2.0)]),
}


@pytest.mark.parametrize("learned", LEARNED)
def test_a_student_of_the_cache_is_that_of_the_live_teacher_whatever_it_learns(tmp_path, learned):
    """What is behind the texts and in rows of filler differs: a live teacher answers for it, in a cache it is 0."""
    name, objectives = LEARNED[learned]
    kind = TASKS[name]
    given = {"classification": examples, "question_answering": questions, "tagging": tagged}[name](30)
    target = TARGETS[kind.target](**({} if name == "question_answering" else {"labels": ["a", "b", "O"]}))
    store = write_store(tmp_path / "store", iter(given), Tokenizer(PIECES), 20, target)
    task = kind(target)

    def made(seed, layers, dropout=0.0):
        keras.utils.set_random_seed(seed)
        encoder = TransformerEncoder(len(PIECES), layers, D, H, 20, segments=2, dropout=dropout, initializer_range=0.3)
        return TransformerWithHead(encoder, task.head(task.outputs(target.labels), dropout=dropout))

    teacher = LiveTeacher(made(2, 2))
    for weight in teacher.model.head.weights:
        weight.assign(weight * 20)  # answers that differ by more than rounding
    asked = objectives[0].teacher_names
    cache = write_cache(tmp_path / "cache", teacher, asked, store, [20], 16).only(asked)
    ends = []
    for knowledge, read in ((teacher, None), (CachedTeacher(cache.shapes(asked)), cache)):
        student = made(7, 1, dropout=0.2)
        start = student.get_weights()
        keras.utils.set_random_seed(5)
        distiller = Distiller(student, knowledge, objectives, alpha=0.1)
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss=task.loss(), jit_compile=False, run_eagerly=True)
        batches = Batches(store, 20, [20], shuffle=True, seed=1, teacher=read)
        assert any((rows < 0).any() for rows, _ in batches.plan()) and batches.padding() > 0.1
        distiller.fit(batches.dataset(), verbose=0, shuffle=False)
        ends.append(student.get_weights())
    live, cached = ends
    moved = max(np.abs(a - b).max() for a, b in zip(start, live, strict=True))
    far = max(np.abs(a - b).max() for a, b in zip(live, cached, strict=True))
    assert moved > 0.01
    # Float16 is right to within 2^-11 of each value, and over the values of a batch that averages out, in part.
    assert 0 < far < moved * 2**-13
