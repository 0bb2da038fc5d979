import itertools

import numpy as np
import pytest

from tfkd.data.pipeline import Batches, choose_buckets
from tfkd.data.store import Store, write_store
from tfkd.data.targets import Class
from tfkd.data.tokenizer import Tokenizer

TARGET, PAIRS = Class(labels=["a", "b", "c"]), Class(labels=["a", "b", "c"], text_pair="text_pair")
WORDS = [f"w{i}" for i in range(40)]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(PIECES)


def examples(count, pairs=False, seed=0):
    random = np.random.default_rng(seed)
    for i in range(count):
        words = random.choice(WORDS, random.integers(1, 20))
        example = {"text": " ".join(words), "label": int(random.integers(3))}
        yield example | ({"text_pair": f"w{i % 40} w1"} if pairs else {})


@pytest.fixture
def store(tmp_path, tokenizer):
    return write_store(tmp_path / "train", examples(333), tokenizer, 16, TARGET)


def test_a_store_gives_back_what_was_put_in(tmp_path, tokenizer):
    rows = list(examples(2500, pairs=True))  # more than two chunks
    rows[7]["text"] = "w3 café \U0001f600 w4"
    store = write_store(tmp_path / "train", iter(rows), tokenizer, 16, PAIRS)
    assert len(store) == 2500
    assert [store.text(i) for i in (0, 7, 2499)] == [rows[i]["text"] for i in (0, 7, 2499)]
    assert [store.text_pair(i) for i in (0, 7, 2499)] == [rows[i]["text_pair"] for i in (0, 7, 2499)]
    np.testing.assert_array_equal(store.column("label"), [row["label"] for row in rows])
    first = [2, *(PIECES.index(word) for word in rows[0]["text"].split()), 3]
    second = [PIECES.index("w0"), PIECES.index("w1"), 3]
    batch = store.gather(np.array([0, -1]), 32)
    expected = (first + second)[: store.lengths[0]] if len(first + second) <= 16 else None
    if expected is not None:
        np.testing.assert_array_equal(batch["token_ids"][0, : len(expected)], expected)
        np.testing.assert_array_equal(batch["segment_ids"][0, : len(expected)], [0] * len(first) + [1] * len(second))
    assert batch["padding_mask"][0].sum() == store.lengths[0]
    assert not batch["padding_mask"][1].any()
    assert all(value.dtype == np.int32 for value in batch.values())


def test_a_store_that_was_not_finished_is_not_there(tmp_path, tokenizer):
    def broken():
        yield from examples(1100)
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError):
        write_store(tmp_path / "train", broken(), tokenizer, 16, TARGET)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_split_is_an_empty_store(tmp_path, tokenizer):
    store = write_store(tmp_path / "train", iter(()), tokenizer, 16, TARGET)
    assert len(store) == 0
    assert Batches(store, 4, [16]).plan() == []


def test_memory_does_not_grow_with_the_rows(tmp_path, tokenizer):
    import tracemalloc

    def peak(rows):
        tracemalloc.start()
        write_store(tmp_path / str(rows), ({"text": "w1 " * 30, "label": 0} for _ in range(rows)), tokenizer, 16, TARGET)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1024)  # first use of the tokenizer's graph
    assert peak(20_000) < peak(2_000) + 300_000


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 32, 500])
def test_an_epoch_holds_every_row_once_in_batches_of_one_size(store, shuffle, batch_size):
    batches = Batches(store, batch_size, [4, 8, 12, 16], shuffle=shuffle)
    plan = batches.plan(3)
    assert len(plan) == batches.steps == -(-333 // batch_size)
    rows = np.concatenate([rows for rows, _ in plan])
    np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.arange(333))
    assert all(len(rows) == batch_size for rows, _ in plan)
    assert sum((rows < 0).any() for rows, _ in plan) <= 1
    for rows, length in plan:
        assert store.lengths[rows[rows >= 0]].max() <= length
        assert length in (4, 8, 12, 16)


def test_order_follows_from_seed_and_epoch_alone(store):
    def order(seed, epoch):
        return [tuple(rows) for rows, _ in Batches(store, 16, [8, 16], shuffle=True, seed=seed).plan(epoch)]

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed, epoch in itertools.product(range(2), range(3))}) == 6


def test_an_endless_dataset_starts_at_any_epoch(store):
    batches = Batches(store, 64, [8, 16], shuffle=True, seed=4)
    whole = [x["token_ids"].numpy() for x, _, _ in batches.dataset(repeat=True).take(3 * batches.steps)]
    later = [x["token_ids"].numpy() for x, _, _ in batches.dataset(first_epoch=2, repeat=True).take(batches.steps)]
    for a, b in zip(whole[2 * batches.steps :], later, strict=True):
        np.testing.assert_array_equal(a, b)


def test_filler_rows_weigh_nothing_and_labels_stay_with_their_rows(store):
    batches = Batches(store, 50, [16])
    seen = 0
    for (rows, _), (x, y, weight) in zip(batches.plan(), batches.dataset(), strict=True):
        np.testing.assert_array_equal(weight, rows >= 0)
        np.testing.assert_array_equal(y.numpy()[rows >= 0], store.column("label")[rows[rows >= 0]])
        assert not x["padding_mask"].numpy()[rows < 0].any()
        seen += int(weight.numpy().sum())
    assert seen == 333


def brute_force(lengths, count, multiple):
    """Cheapest padding over every choice of buckets."""
    sizes = sorted({-(-length // multiple) * multiple for length in lengths})
    costs = []
    for number in range(1, min(count, len(sizes)) + 1):
        for chosen in itertools.combinations(sizes[:-1], number - 1):
            buckets = np.array([*chosen, sizes[-1]])
            costs.append(buckets[np.searchsorted(buckets, lengths)].sum())
    return min(costs)


@pytest.mark.parametrize("seed", range(5))
def test_chosen_buckets_are_the_cheapest_there_are(seed):
    random = np.random.default_rng(seed)
    lengths = random.geometric(0.08, 200).clip(1, 60)
    for count in (1, 2, 3, 5):
        buckets = np.array(choose_buckets(lengths, 60, count=count))
        assert len(buckets) <= count and (np.diff(buckets) > 0).all()
        assert buckets[np.searchsorted(buckets, lengths)].sum() == brute_force(lengths, count, 4)


def test_buckets_never_pass_the_longest_allowed():
    assert choose_buckets(np.array([3, 30, 30]), 30) == [4, 30]
    assert choose_buckets(np.array([], int), 30) == [30]


def test_padding_is_counted(tmp_path, tokenizer):
    rows = [{"text": "w1", "label": 0}, {"text": "w1 w2 w3", "label": 1}]  # 3 and 5 pieces in two rows of 8
    store = write_store(tmp_path / "train", iter(rows), tokenizer, 16, TARGET)
    assert Batches(store, 2, [8]).padding() == pytest.approx(1 - 8 / 16)


def test_a_store_is_read_from_disk_again(store):
    again = Store(store.path, TARGET)
    np.testing.assert_array_equal(again.gather(np.arange(5), 16)["token_ids"], store.gather(np.arange(5), 16)["token_ids"])
