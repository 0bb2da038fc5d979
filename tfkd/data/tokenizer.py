"""Text to WordPiece ids inside the TensorFlow graph, equal to Hugging Face's BERT tokenizer; vocabularies read and learned."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterable

import tensorflow as tf
import tensorflow_text as tf_text

from tfkd import run_dir
from tfkd.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 100  # characters; BERT answers [UNK] to a longer word
_DROPPED = r"[\x{0}-\x{8}\x{B}\x{C}\x{E}-\x{1F}\x{7F}-\x{9F}\x{FFFD}\p{Cf}\p{Co}]+"  # controls, joiners, private use
NO_PIECE = "\U0010fffd"  # private use: a text never holds it after `_DROPPED`, so no piece matches
_LETTERS = (  # Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, Lao, Burmese, Korean, Khmer: no punctuation within
    r"0-9A-Za-z\x{C0}-\x{36F}\x{388}-\x{52F}\x{5D0}-\x{5EA}\x{620}-\x{669}\x{66E}-\x{6D3}\x{900}-\x{963}"
    r"\x{E01}-\x{E4E}\x{E80}-\x{EFF}\x{1000}-\x{1049}\x{1100}-\x{11FF}\x{1780}-\x{17D3}\x{AC00}-\x{D7A3}"
)
TOO_LONG = f"[{_LETTERS}]{{{LONGEST_WORD + 1},}}"


@dataclasses.dataclass(frozen=True)
class _Vocabulary:
    """Pieces and the ids of the special ones. Plain, because `tf.Module` would wrap and track every one of 30,000 strings."""

    pieces: tuple[str, ...]
    ids: dict[str, int]


class Tokenizer(tf.Module):
    """Turns texts into WordPiece ids, the same ones as Hugging Face's `BertTokenizerFast` (Devlin et al. 2018).

    Built from `tensorflow_text` operations, so it runs in `tf.data`, in `tf.function` and inside a SavedModel, which then loads
    in a process that imports nothing but tensorflow and tensorflow_text.

    `FastBertTokenizer` alone is not equal to Hugging Face's: it folds compatibility forms (full-width letters, ligatures, ß) and
    turns control characters into spaces. Here the text is cleaned as BERT does it (controls and format characters dropped;
    with `lowercase`: NFD, accents dropped, lower case), and `FastWordpieceTokenizer` splits it.

    What still differs, on purpose or for good:
      - `[SEP]` and the like written in a text are text: brackets and letters. Hugging Face's default turns them into the special
        token, so that a text could end its own sentence; its `encode_special_tokens = True` does as this class does.
      - Bytes that are not UTF-8 are dropped.
      - Characters that Unicode added or reclassified after its version 9, whose marks and punctuation `tensorflow_text` does not
        know: 837 of 1.1 million code points (418 cased), all of them rare.
      - Words of more than 100 characters are [UNK] as in BERT in the scripts listed at `_LETTERS`, in others if they have more
        than 400 bytes.

    Arguments:
        pieces: the vocabulary in the order of ids; `##` marks a piece that continues a word.
        lowercase: lower-cases and drops accents, as `uncased` checkpoints expect.

    Raises:
        UserError: a piece is missing, empty or there twice.
    """

    def __init__(self, pieces: Iterable[str], lowercase: bool = True):
        super().__init__(name="tokenizer")
        self.lowercase = lowercase
        self._vocabulary = _checked(pieces)
        self._wordpiece = tf_text.FastWordpieceTokenizer(
            list(self._vocabulary.pieces),
            max_bytes_per_word=4 * LONGEST_WORD,  # what is longer in characters is caught before; none of 100 is longer in bytes
            token_out_type=tf.int32,
            unknown_token="[UNK]",
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike, lowercase: bool = True) -> "Tokenizer":
        """Reads `vocab.txt`: one piece a line, the line number is the id.

        Raises:
            UserError: the file is missing or not UTF-8, lacks a special piece, or has a blank or a repeated line.
        """
        try:
            text = pathlib.Path(path).read_bytes().decode("utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: byte {error.start:,} is not UTF-8; a vocabulary has one piece a line") from None
        lines = text.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\n").split("\n")
        try:
            return cls(lines, lowercase)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @property
    def pieces(self) -> list[str]:
        """The vocabulary in the order of ids."""
        return list(self._vocabulary.pieces)

    @property
    def vocabulary_size(self) -> int:
        return len(self._vocabulary.pieces)

    @property
    def pad_id(self) -> int:
        return self._vocabulary.ids["[PAD]"]

    @property
    def unk_id(self) -> int:
        return self._vocabulary.ids["[UNK]"]

    @property
    def cls_id(self) -> int:
        return self._vocabulary.ids["[CLS]"]

    @property
    def sep_id(self) -> int:
        return self._vocabulary.ids["[SEP]"]

    @property
    def mask_id(self) -> int | None:
        """Id of `[MASK]`, None in a vocabulary without."""
        return self._vocabulary.ids.get("[MASK]")

    def __call__(self, texts: tf.Tensor, text_pairs: tf.Tensor | None = None, *, max_length: int) -> dict[str, tf.RaggedTensor]:
        """`[CLS] text [SEP]` or `[CLS] text [SEP] text_pair [SEP]` as ids, cut to `max_length`.

        A pair is cut from its longer text first, as Hugging Face's `longest_first`.

        Arguments:
            texts: (B,) strings; B may be 0.
            text_pairs: (B,) strings.
            max_length: longest answer in pieces, special ones included; at least 3, with pairs 5.

        Returns:
            `token_ids`, and with pairs `segment_ids` (0 up to the first [SEP], 1 after it): (B, None) ragged int32.
        """
        _require_length(max_length, 3 if text_pairs is None else 5)
        first = self._pieces_of(texts)
        if text_pairs is None:
            return {"token_ids": self._framed(first[:, : max_length - 2], starts=True)}
        first, second = _longest_first(first, self._pieces_of(text_pairs), max_length - 3)
        first, second = self._framed(first, starts=True), self._framed(second, starts=False)
        return {
            "token_ids": tf.concat([first, second], axis=1),
            "segment_ids": tf.concat([tf.zeros_like(first), tf.ones_like(second)], axis=1),
        }

    def padded(
        self, texts: tf.Tensor, text_pairs: tf.Tensor | None = None, *, max_length: int, length: int | None = None
    ) -> dict[str, tf.Tensor]:
        """The same ids as dense tensors with their mask: what a model reads.

        Arguments:
            texts: (B,) strings; B may be 0.
            text_pairs: (B,) strings.
            max_length: longest text in pieces, special ones included.
            length: width T of the answer, texts are cut to it; default: the longest text of the batch, and 3 for an empty
                batch, because a reshape to (-1, 0) is not defined.

        Returns:
            `token_ids`, `padding_mask` (1 on a piece, 0 on padding) and with pairs `segment_ids`: (B, T) int32.
        """
        ragged = self(texts, text_pairs, max_length=max_length if length is None else min(max_length, length))
        lengths = ragged["token_ids"].row_lengths()
        width = tf.reduce_max(tf.concat([lengths, [3]], axis=0)) if length is None else length
        shape = tf.stack([tf.size(lengths, tf.int64), width]) if length is None else [None, length]
        dense = {"token_ids": ragged["token_ids"].to_tensor(self.pad_id, shape=shape)}
        dense["padding_mask"] = tf.sequence_mask(lengths, width, dtype=tf.int32)
        if text_pairs is not None:
            dense["segment_ids"] = ragged["segment_ids"].to_tensor(0, shape=shape)
        return dense

    def write(self, path: str | os.PathLike) -> None:
        """Writes `vocab.txt`, whole or not at all."""
        run_dir.write_text(path, "".join(piece + "\n" for piece in self._vocabulary.pieces))

    def cleaned(self, texts: tf.Tensor) -> tf.Tensor:
        """(B,) strings as BERT cleans them; a word that is too long becomes one character that no piece matches."""
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="ignore")
        texts = tf.strings.regex_replace(texts, _DROPPED, "")
        if self.lowercase:
            texts = tf.strings.regex_replace(tf_text.normalize_utf8(texts, "NFD"), r"\p{Mn}+", "")
            # ICU lower-cases by context and locale: a final Σ, and I where LANG is Turkish. BERT does neither.
            texts = tf.strings.regex_replace(tf.strings.lower(texts), "Σ", "σ")
            texts = tf.strings.lower(texts, encoding="utf-8")
        return tf.strings.regex_replace(texts, TOO_LONG, NO_PIECE)

    def located(self, cleaned: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """(B,) cleaned strings -> ids without special pieces, first byte and byte after the last: (B, None) each."""
        return self._wordpiece.tokenize_with_offsets(cleaned)

    def _pieces_of(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """(B,) strings -> (B, None) ids without special pieces."""
        return self._wordpiece.tokenize(self.cleaned(texts))

    def _framed(self, pieces: tf.RaggedTensor, starts: bool) -> tf.RaggedTensor:
        """Puts [SEP] behind every row, and [CLS] before it where it starts."""
        rows = pieces.nrows()
        parts = [tf.fill([rows, 1], self.cls_id)] if starts else []
        return tf.concat([*parts, pieces, tf.fill([rows, 1], self.sep_id)], axis=1)


def _checked(pieces: Iterable[str]) -> _Vocabulary:
    """Checks a vocabulary and finds its special pieces. Raises `UserError` with lines counted from 1."""
    pieces = tuple(pieces)
    lines: dict[str, int] = {}
    for line, piece in enumerate(pieces, start=1):
        if not piece:
            raise UserError(f"line {line:,} is blank; a vocabulary has one piece a line")
        if piece in lines:
            raise UserError(f"lines {lines[piece]:,} and {line:,} both hold {piece}; a piece may be there once")
        lines[piece] = line
    missing = [piece for piece in SPECIAL[:4] if piece not in lines]
    if missing:
        raise UserError(f"{', '.join(missing)} missing; a BERT vocabulary holds {', '.join(SPECIAL[:4])}")
    if lines.keys() <= set(SPECIAL):
        raise UserError("a vocabulary of nothing but special pieces; it is learned from more texts, or read from a whole file")
    return _Vocabulary(pieces, {piece: lines[piece] - 1 for piece in SPECIAL if piece in lines})


def _require_length(max_length: int, least: int) -> None:
    if max_length < least:
        raise UserError(f"data.max_length = {max_length}: must be at least {least}, so that special pieces leave room for text")


def _longest_first(first: tf.RaggedTensor, second: tf.RaggedTensor, budget: int) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Cuts two texts to `budget` pieces together: the longer one down to the shorter, then both alike.

    Of an odd budget the longer text keeps the odd piece, the second where both are equally long, as in Hugging Face tokenizers.
    """
    lengths = first.row_lengths(), second.row_lengths()  # (B,) each
    shorter, longer = tf.minimum(*lengths), tf.maximum(*lengths)
    longer = tf.minimum(longer, tf.maximum(shorter, budget - shorter))
    both = shorter + longer > budget
    shorter = tf.where(both, tf.cast(budget // 2, shorter.dtype), shorter)
    longer = tf.where(both, tf.cast(budget - budget // 2, longer.dtype), longer)
    swapped = lengths[0] > lengths[1]
    return _first_pieces(first, tf.where(swapped, longer, shorter)), _first_pieces(second, tf.where(swapped, shorter, longer))


def _first_pieces(pieces: tf.RaggedTensor, counts: tf.Tensor) -> tf.RaggedTensor:
    """Keeps the first `counts` (B,) pieces of every row."""
    starts = pieces.row_starts()
    return tf.gather(pieces.values, tf.ragged.range(starts, starts + counts))


def learn_vocabulary(texts: Iterable[str], size: int, lowercase: bool = True) -> list[str]:
    """Learns a WordPiece vocabulary with Hugging Face's trainer: special pieces, characters, then merges by frequency.

    The trainer numbers characters in the order of a randomly seeded hash table and breaks ties by number: its vocabularies
    differ from run to run. Characters get fixed numbers here, so the same texts, in any order, give the same vocabulary.

    Arguments:
        texts: read once; memory grows with the distinct words, not with the texts.
        size: most pieces, special ones included. Few texts give fewer.
        lowercase: as the tokenizer's.

    Raises:
        UserError: `size` leaves no room for pieces.
    """
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    if size <= len(SPECIAL):
        raise UserError(f"data.vocabulary_size = {size}: must be above {len(SPECIAL)}, the special pieces")
    normalizer, splitter = normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer()
    words = collections.Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    characters, continuing = _alphabet(words, size)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[*SPECIAL, *characters, *continuing],  # numbers them; the trainer itself is thrown away
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        continuing_subword_prefix="##",
    )
    learner = RustTokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(_repeated(words), trainer)
    return [piece for piece, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1])]


def _alphabet(words: collections.Counter, size: int) -> tuple[list[str], list[str]]:
    """The commonest characters, and those of them that continue a word with `##` before; both sorted.

    Characters seen once are left out, and no more than 1,000 pieces or half the vocabulary go to characters.
    """
    counts, inner = collections.Counter(), set()
    for word, count in words.items():
        for character in word:
            counts[character] += count
        inner.update(word[1:])
    budget = min(size - len(SPECIAL), max(1000, size // 2))
    chosen = []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        budget -= 2 if character in inner else 1
        if budget < 0 or count < 2:
            break
        chosen.append(character)
    return sorted(chosen), [f"##{character}" for character in sorted(chosen) if character in inner]


def _repeated(words: collections.Counter, chunk: int = 1000) -> Iterable[str]:
    """Yields lines that hold every word as often as it was counted: the trainer takes texts, not counts."""
    for word, count in words.items():
        for start in range(0, count, chunk):
            yield " ".join([word] * min(chunk, count - start))
