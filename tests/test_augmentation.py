import re

import numpy as np
import pytest

from tfkd import config
from tfkd.build import Data
from tfkd.data.augmentation import Augmentation
from tfkd.data.packed_batches import PackedBatches
from tfkd.data.pipeline import Batches
from tfkd.data.store import write_store
from tfkd.data.targets import Class
from tfkd.data.tokenizer import Tokenizer
from tfkd.errors import UserError

WORDS = [f"w{i}" for i in range(40)]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
PAD, UNK, CLS, SEP, MASK = range(5)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(PIECES)


@pytest.fixture(scope="module")
def store(tmp_path_factory, tokenizer):
    random = np.random.default_rng(0)
    rows = [{"text": " ".join(random.choice(WORDS, random.integers(1, 20))), "label": i % 2} for i in range(100)]
    return write_store(tmp_path_factory.mktemp("rows") / "train", rows, tokenizer, 16, Class(labels=["a", "b"]))


def batch(words, random):
    ids = random.choice(words, (400, 30)).astype("int32")
    ids[:, 0], ids[:, 19], ids[:, 20:], ids[::7, 5] = CLS, SEP, PAD, UNK
    return {"token_ids": ids, "padding_mask": (ids != PAD).astype("int32")}


def test_shares_are_kept_special_pieces_stay_and_replacements_are_pieces_of_the_batch(tokenizer):
    given = batch([7, 8, 9], np.random.default_rng(0))
    before = given["token_ids"].copy()
    found = Augmentation(0.2, 0.3, tokenizer)(given, np.random.default_rng(1), [30])
    np.testing.assert_array_equal(given["token_ids"], before)
    np.testing.assert_array_equal(found["padding_mask"], given["padding_mask"])
    after, words = found["token_ids"], before > MASK
    np.testing.assert_array_equal(after[~words], before[~words])
    assert after.dtype == np.int32 and set(after[words]) == {MASK, 7, 8, 9}
    assert (after[words] == MASK).mean() == pytest.approx(0.2, abs=0.02)
    # of three pieces as frequent as one another, one in three replacements is the piece itself
    assert (after[words] != before[words]).mean() == pytest.approx(0.2 + 0.3 * 2 / 3, abs=0.02)


def test_a_frequent_piece_replaces_more_often(tokenizer):
    given = batch([7] * 9 + [8], np.random.default_rng(0))
    words = given["token_ids"] > MASK
    after = Augmentation(0.0, 0.9, tokenizer)(given, np.random.default_rng(1), [30])["token_ids"]
    assert (after[words] == 7).mean() == pytest.approx(0.9, abs=0.02)


def test_a_batch_without_a_word_stays_as_it_is(tokenizer):
    ids = np.array([[CLS, SEP, PAD], [CLS, UNK, SEP]], "int32")
    np.testing.assert_array_equal(
        Augmentation(0.5, 0.4, tokenizer)({"token_ids": ids}, np.random.default_rng(0), [3])["token_ids"], ids
    )


def texts_of(x):
    return [row[mask == 1].tolist() for row, mask in zip(x["token_ids"], x["padding_mask"], strict=True)]


def test_a_text_is_followed_by_another_of_the_batch_and_is_one_text_with_it(tokenizer):
    """Every text has a piece of its own, so that both halves can be told; a row that is filler is in none."""
    ids = np.zeros((40, 12), "int32")
    for row in range(39):
        length = 1 + row % 8
        ids[row, : length + 2] = [CLS, *[5 + row] * length, SEP]
    given = {"token_ids": ids, "padding_mask": (ids != PAD).astype("int32")}
    before = ids.copy()
    found = Augmentation(0.0, 0.0, tokenizer, concatenate=1.0)(given, np.random.default_rng(0), [12, 16, 20, 24])
    np.testing.assert_array_equal(given["token_ids"], before)
    alone, followers = texts_of(given), set()
    for row, text in enumerate(texts_of(found)[:39]):
        own, behind = alone[row][:-1], text[len(alone[row]) - 1 :]
        assert text[: len(own)] == own and text[-1] == SEP
        if len(behind) > 1:  # behind the filler's neighbour comes nothing
            other = behind[0] - 5
            assert other != row and behind == alone[other][1:]
            followers.add(other)
    assert len(followers) > 15 and texts_of(found)[39] == []
    longest = max(map(len, texts_of(found)))
    assert found["token_ids"].shape[1] == min(width for width in (12, 16, 20, 24) if width >= longest) > 12
    assert found["token_ids"].dtype == found["padding_mask"].dtype == np.int32


def test_two_texts_are_cut_where_they_are_too_long_and_a_share_of_them_stays_alone(tokenizer):
    given = batch([7, 8], np.random.default_rng(0))  # twenty pieces each
    found = Augmentation(0.0, 0.0, tokenizer, concatenate=0.25)(given, np.random.default_rng(1), [30])
    lengths = found["padding_mask"].sum(axis=1)
    assert set(lengths) == {20, 30} and (lengths == 30).mean() == pytest.approx(0.25, abs=0.06)
    assert all(text[0] == CLS and text[-1] == SEP and text.count(CLS) == text.count(SEP) == 1 for text in texts_of(found))
    expected = Augmentation(0.0, 0.0, tokenizer, concatenate=0.25).mean_lengths(np.full(400, 20))
    assert set(expected) == {20 + round(0.25 * 18)}


@pytest.mark.parametrize("kind", [Batches, PackedBatches])
def test_concatenated_texts_go_through_the_pipeline(store, tokenizer, kind):
    def read(share, **options):
        augment = Augmentation(0.0, 0.0, tokenizer, concatenate=share)
        batches = kind(store, 20, [8, 16, 32], shuffle=True, augment=augment)
        return batches, list(batches.dataset(**options).as_numpy_iterator())

    (alone, before), (joined, after) = read(0.0), read(1.0)
    real = [sum(x["padding_mask"].sum() for x, _, _ in found) for found in (before, after)]
    assert 1.6 < real[1] / real[0] <= 2.0
    assert joined.lengths.sum() == pytest.approx(real[1], rel=0.1) and alone.lengths.sum() == real[0]
    assert joined.padding() == pytest.approx(1 - real[1] / sum(rows * width for rows, width in joined.sizes), abs=0.1)
    assert all(x["token_ids"].shape[1] in (8, 16, 32) for x, _, _ in after)
    whole, parts = after, read(1.0, parts=2, mine=(0, 1))[1]
    for (x, _, _), halves in zip(whole, zip(parts[::2], parts[1::2], strict=True), strict=True):
        assert texts_of(x) == [text for half, _, _ in halves for text in texts_of(half)]


def test_packed_batches_of_longer_texts_have_few_heights_that_are_known(store, tokenizer):
    batches = PackedBatches(store, 32, [32], shuffle=True, augment=Augmentation(0.0, 0.0, tokenizer, concatenate=0.5))
    found = set()
    for epoch in range(10):
        for x, _, _ in batches.dataset(first_epoch=epoch).as_numpy_iterator():
            found.add(len(x["packing"]))
            places = x["packing"][x["packing"] >= 0]
            np.testing.assert_array_equal(np.sort(places), np.flatnonzero(x["padding_mask"]))
    assert found <= set(batches.heights) and all(height % 2 == 0 for height in found)


def test_the_student_asks_about_two_texts_and_what_learns_from_labels_reads_one(store, tokenizer):
    training = config.Training(batch_size=20, augment={"mask": 0.0, "concatenate": 1.0})
    data = Data(None, {"train": store}, [16, 32], "", 0, tokenizer)
    taught, alone = data.train(training, taught=True), data.train(training)
    assert (taught.lengths > store.lengths).all() and (alone.lengths == store.lengths).all()
    plain = data.train(config.Training(batch_size=20))
    for (x, _, _), (y, _, _) in zip(alone.dataset().as_numpy_iterator(), plain.dataset().as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(x["token_ids"], y["token_ids"])


def test_every_epoch_differs_the_same_seed_repeats_and_replicas_share_a_batch(store, tokenizer):
    def ids(batches, **options):
        return np.concatenate([x["token_ids"] for x, _, _ in batches.dataset(**options).as_numpy_iterator()])

    def batches(seed=0):
        return Batches(store, 20, [16], shuffle=True, seed=seed, augment=Augmentation(0.3, 0.1, tokenizer))

    plain = ids(Batches(store, 20, [16], shuffle=True))
    first = ids(batches())
    assert (first == MASK).any() and not (plain == MASK).any()
    assert (np.sort(first) != np.sort(ids(batches(), first_epoch=1))).any()
    np.testing.assert_array_equal(first, ids(batches()))
    np.testing.assert_array_equal(first[20:], ids(batches(), first_step=1))
    np.testing.assert_array_equal(first, ids(batches(), parts=4, mine=range(4)))


def test_what_is_measured_is_never_changed(store, tokenizer):
    changed = Batches(store, 20, [16], augment=Augmentation(0.3, 0.1, tokenizer)).dataset()
    plain = Batches(store, 20, [16]).dataset()
    for one, other in zip(changed.as_numpy_iterator(), plain.as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(one[0]["token_ids"], other[0]["token_ids"])


def test_a_vocabulary_without_a_mask_is_told():
    tokenizer = Tokenizer([piece for piece in PIECES if piece != "[MASK]"])
    with pytest.raises(UserError, match=r"no piece \[MASK\]"):
        Augmentation(0.1, 0.0, tokenizer)
    found = Augmentation(0.0, 0.5, tokenizer)(batch([7, 8], np.random.default_rng(0)), np.random.default_rng(0), [30])
    assert set(np.unique(found["token_ids"])) == {PAD, UNK, CLS, SEP, 7, 8}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.augment={mask: 0}", "train.augment: mask + replace = 0: must be above 0"),
        ("train.augment={mask: 0.6, replace: 0.5}", "mask + replace = 1.1: must be above 0 and below 1"),
        ("train.augment={mask: 0.6, replace: 0.5, concatenate: 0.5}", "mask + replace = 1.1: must be above 0 and below 1"),
        ("train.augment={concatenate: 1.5}", "train.augment.concatenate = 1.5: should be less than or equal to 1"),
        (
            "teacher.cache=false train.augment={concatenate: 0.5}",
            "train.augment.concatenate: labels say nothing of two texts one behind another",
        ),
        ("teacher.train.augment={concatenate: 0.5}", "augment.concatenate is for a student: a teacher learns from labels"),
        (
            "teacher.cache=false train.augment={concatenate: 0.5} task=tagging",
            "train.augment.concatenate goes with single texts of task: ",
        ),
        (
            "teacher.cache=false train.augment={concatenate: 0.5} data={files: {train: a.csv}, columns: {text_pair: b}}",
            "train.augment.concatenate goes with single texts of task: ",
        ),
        ("teacher.cache=true train.augment={}", "teacher.cache: true keeps one answer to every row"),
    ],
)
def test_settings_that_cannot_be_are_one_line(setting, message):
    with pytest.raises(UserError) as caught:
        config.load("configs/quickstart.yaml", re.split(r" (?=\w+[.\w]*=)", setting))
    assert message in str(caught.value)
