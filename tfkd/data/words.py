"""Where word pieces come from: which characters of a text, which word of a list."""

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfkd.data.tokenizer import NO_PIECE, TOO_LONG, Tokenizer

_LONG_WORD = re.compile(re.sub(r"\\x\{([0-9A-F]+)\}", lambda code: re.escape(chr(int(code[1], 16))), TOO_LONG))


@dataclasses.dataclass(frozen=True)
class Located:
    """The word pieces of one text, without special ones, and the characters that each came from.

    Arguments:
        ids: (P,) int32.
        starts: (P,) first character of each piece.
        ends: (P,) character after its last one, combining marks that belong to it included.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def pieces_between(self, start: int, end: int) -> tuple[int, int] | None:
        """First and last piece that hold any of the characters `start` to `end`, which is not included; None for none."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.starts, end, side="left")) - 1
        return (first, last) if first <= last else None


class Locator:
    """Splits texts into word pieces that know their characters; the ids are the tokenizer's own, on any text.

    What the tokenizer drops, decomposes or lower-cases, it does to each character alone. So each character is cleaned
    once, by the tokenizer's own operations, and how many bytes are left of it tells where every byte of a cleaned text
    came from. An own notion of accents and lower case in Python would follow another version of Unicode.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._left: dict[str, bytes] = {}  # character -> what cleaning leaves of it

    def __call__(self, texts: Sequence[str]) -> list[Located]:
        """Word pieces of each text."""
        if not texts:
            return []
        cleaned = self._tokenizer.cleaned(tf.constant([text.encode() for text in texts]))
        self._learn(set().union(*texts))
        found = [ragged.to_list() for ragged in self._tokenizer.located(cleaned)]
        return [self._located(text, *row) for text, *row in zip(texts, cleaned.numpy(), *found, strict=True)]

    def _learn(self, characters: set[str]) -> None:
        new = sorted(characters - self._left.keys())
        if new:
            cleaned = self._tokenizer.cleaned(tf.constant([character.encode() for character in new]))
            self._left.update(zip(new, cleaned.numpy().tolist(), strict=True))

    def _located(self, text: str, cleaned: bytes, ids: list[int], starts: list[int], ends: list[int]) -> Located:
        left = [self._left[character] for character in text]
        source = np.repeat(np.arange(len(text)), [len(part) for part in left])  # byte of the cleaned text -> character
        if len(source) != len(cleaned):
            source = _without_long_words(b"".join(left).decode(), source)
        firsts = source[np.array(starts, "int64")]
        lasts = source[np.array(ends, "int64") - 1]
        return Located(np.array(ids, "int32"), firsts, _after_marks(text, left)[lasts])


def pieces_of_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokenizes each word alone, as Hugging Face's `is_split_into_words` does.

    Returns:
        ids of all words one after the other, int32, and how many each word has, (W,) int64: 0 for a word of nothing but
        characters that are dropped.
    """
    if not words:
        return np.zeros(0, "int32"), np.zeros(0, "int64")
    ids = tokenizer.located(tokenizer.cleaned(tf.constant([word.encode() for word in words])))[0]
    return ids.values.numpy(), ids.row_lengths().numpy()


def _without_long_words(text: str, source: np.ndarray) -> np.ndarray:
    """`source` of a cleaned text in which every word that is too long has become `NO_PIECE`, all of its bytes in one piece."""
    byte = np.cumsum([0, *(len(character.encode()) for character in text)])
    parts, end = [], 0
    for match in _LONG_WORD.finditer(text):
        first, after = byte[match.start()], byte[match.end()]
        parts += [source[end:first], np.full(len(NO_PIECE.encode()) - 1, source[first]), source[after - 1 : after]]
        end = after
    return np.concatenate([*parts, source[end:]])


def _after_marks(text: str, left: list[bytes]) -> np.ndarray:
    """For each character the one after it and after the marks on it, which cleaning drops: `e` and an accent are one letter."""
    after = np.arange(1, len(text) + 1)
    if b"" not in left:
        return after
    for place in range(len(text) - 1, 0, -1):
        if not left[place] and unicodedata.category(text[place]) == "Mn":
            after[place - 1] = after[place]
    return after
