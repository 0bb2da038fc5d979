import numpy as np
import pytest

from tfkd import config
from tfkd.data.augmentation import Augmentation
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
    found = Augmentation(0.2, 0.3, tokenizer)(given, np.random.default_rng(1))
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
    after = Augmentation(0.0, 0.9, tokenizer)(given, np.random.default_rng(1))["token_ids"]
    assert (after[words] == 7).mean() == pytest.approx(0.9, abs=0.02)


def test_a_batch_without_a_word_stays_as_it_is(tokenizer):
    ids = np.array([[CLS, SEP, PAD], [CLS, UNK, SEP]], "int32")
    np.testing.assert_array_equal(
        Augmentation(0.5, 0.4, tokenizer)({"token_ids": ids}, np.random.default_rng(0))["token_ids"], ids
    )


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
    found = Augmentation(0.0, 0.5, tokenizer)(batch([7, 8], np.random.default_rng(0)), np.random.default_rng(0))
    assert set(np.unique(found["token_ids"])) == {PAD, UNK, CLS, SEP, 7, 8}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.augment={mask: 0}", "train.augment: mask + replace = 0: must be above 0"),
        ("train.augment={mask: 0.6, replace: 0.5}", "mask + replace = 1.1: must be above 0 and below 1"),
        ("teacher.cache=true train.augment={}", "teacher.cache: true keeps one answer to every row"),
    ],
)
def test_settings_that_cannot_be_are_one_line(setting, message):
    with pytest.raises(UserError) as caught:
        config.load("configs/quickstart.yaml", setting.split(" ", 1) if setting.startswith("teacher") else [setting])
    assert message in str(caught.value)
