"""Word pieces know where they came from: beside Hugging Face's offsets and word numbers, on any Unicode."""

import random
import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from tokenizers import BertWordPieceTokenizer

from tfkd.data.tokenizer import SPECIAL, Tokenizer
from tfkd.data.words import Locator, pieces_of_words

ALPHABET = "abcdefghijklmnopqrstuvwxyzAÉéüñßœøİıßΣςЖйђşאשעमनقก้າ한각日本①€²ﬁＡ😀🏽!#'-.,/[]"
PIECES = [
    *SPECIAL,
    *dict.fromkeys(ALPHABET),
    *(f"##{character}" for character in dict.fromkeys(ALPHABET)),
    *("the", "##ing", "token", "##ize", "e", "ᄒ", "##ᅡ", "##ᆫ"),
]
PIECES = list(dict.fromkeys(PIECES))
TEXTS = [
    "The tokenizer is tokenizing, isn't it?",
    "Crème BRÛLÉE e\u0301te\u0301 u\u0308 \u0301a",
    "日本語abc 한글한 각",
    "a\x00b\u200bc \ufeffd\u00ade \u202ef",
    "👩‍👩‍👧 😀👍🏽 x\u200dy",
    "İstanbul ΣΑΣ ς ﬁ Ａ ①²",
    "عَرَبِيّ हिन्दी ภาษาไทย",
    "a\u3000b\u00a0c\u2028d\te\n",
    "[CLS] x[SEP]",
    "",
    " ",
    "\u0301",
    "x" * 100 + " " + "y" * 101 + " e\u0301" + "z" * 150 + ".b",
    "ж" * 101 + "é" * 120 + "!",
]


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def both(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("".join(piece + "\n" for piece in PIECES), encoding="utf-8")
    theirs = BertWordPieceTokenizer(str(path), lowercase=request.param)
    theirs._tokenizer.encode_special_tokens = True
    return Tokenizer(PIECES, request.param), theirs


@pytest.fixture(scope="module")
def locate():
    return Locator(Tokenizer(PIECES))


def random_texts(count):
    chance = random.Random(0)
    pool = list(ALPHABET) * 8 + list(" \t\n\u00a0\u200d\ufe0f\u0301\u0308") * 20
    pool += [chr(code) for code in range(0x20, 0x600) if unicodedata.category(chr(code)) != "Cn"]
    anything = [chr(code) for code in [*range(0xD800), *range(0xE000, 0x110000)]]
    texts = ["".join(chance.choice(pool) for _ in range(chance.randrange(50))) for _ in range(count)]
    return texts + ["".join(chance.choices(anything, k=20)) for _ in range(count)]


def test_ids_are_the_tokenizers_own_on_any_text(both):
    ours, _ = both
    texts = TEXTS + random_texts(200)
    expected = ours(tf.constant(texts), max_length=10_000)["token_ids"].to_list()
    assert [located.ids.tolist() for located in Locator(ours)(texts)] == [ids[1:-1] for ids in expected]


def test_characters_are_hugging_faces_and_the_marks_behind_them(both):
    ours, theirs = both
    texts = TEXTS + random_texts(200)
    compared = 0
    for text, located, encoding in zip(texts, Locator(ours)(texts), theirs.encode_batch(texts), strict=True):
        assert (located.starts < located.ends).all() and (located.ends <= len(text)).all()
        if encoding.ids[1:-1] != located.ids.tolist():
            continue  # their Unicode is newer than ours; `test_tokenizer.py` says where
        for (start, end), ours_start, ours_end in zip(encoding.offsets[1:-1], located.starts, located.ends, strict=True):
            assert ours_start == start or unicodedata.category(text[start]) == "Mn"
            assert {unicodedata.category(mark) for mark in text[end:ours_end]} <= {"Mn"}
            compared += 1
    assert compared > 1000


def test_an_accent_written_apart_belongs_to_its_letter(locate):
    located = locate(["cafe\u0301 x"])[0]
    assert [("cafe\u0301 x")[start:end] for start, end in zip(located.starts, located.ends, strict=True)] == [
        "c",
        "a",
        "f",
        "e\u0301",
        "x",
    ]


def test_pieces_between_characters_by_hand(locate):
    located = locate(["the tokenize ab"])[0]  # the, token, ##ize, a, ##b
    assert len(located) == 5
    assert located.pieces_between(0, 3) == (0, 0)
    assert located.pieces_between(4, 12) == (1, 2)
    assert located.pieces_between(6, 10) == (1, 2)  # parts of both pieces
    assert located.pieces_between(13, 15) == (3, 4)
    assert located.pieces_between(0, 15) == (0, 4)
    assert located.pieces_between(3, 4) is None  # a space


def test_one_syllable_gives_pieces_with_the_same_character(locate):
    located = locate(["e 한e"])[0]  # decomposed: three letters, or a word that is unknown as a whole
    assert located.starts.tolist()[1] == 2 and located.pieces_between(2, 3) is not None


def test_no_text_is_no_row(locate):
    assert locate([]) == []


def test_words_alone_are_hugging_faces_split_into_words(both):
    ours, theirs = both
    sentences = [text.split(" ") for text in TEXTS if text] + [["don't", "New York", "\u200b", "é" * 101, "日本", ",", "\ufe0f"]]
    sentences += [text.split(" ") for text in random_texts(200)[:200]]
    encodings = theirs._tokenizer.encode_batch(sentences, is_pretokenized=True)
    ids, counts = pieces_of_words(ours, [word for words in sentences for word in words])
    assert ids.tolist() == [piece for encoding in encodings for piece in encoding.ids[1:-1]]
    numbers = [[number for number in encoding.word_ids if number is not None] for encoding in encodings]
    expected = [np.bincount(np.array(row, int), minlength=len(words)) for row, words in zip(numbers, sentences, strict=True)]
    np.testing.assert_array_equal(counts, np.concatenate(expected))
    assert len(counts) > 300 and (counts == 0).any() and counts.max() > 5


def test_no_words_are_no_pieces():
    ids, counts = pieces_of_words(Tokenizer(PIECES), [])
    assert len(ids) == len(counts) == 0
