"""One tag for each word of a sentence, and what becomes of it when words fall into pieces."""

import itertools

import numpy as np

from tfkd.data import columns
from tfkd.data.target import Target, byte_column, counted, only
from tfkd.errors import UserError

UNREAD = -1
"""Stands for the piece of a word that has none: it was cut off, or holds nothing but characters that are dropped."""


class Tags(Target):
    """A tag for each word: y (B, T) int32, the class at a word's first piece, with weight 1 there and 0 elsewhere.

    Each word is tokenized alone, and its first piece speaks for it (Devlin et al. 2018, section 5.3). Rows keep all of their
    words, those too that a model cannot read because the row was cut: what is measured counts them.

    In a store, one entry a word: `tag` its class, `piece` the place of its first piece in the row or `UNREAD`, `end` the
    character after it in `text`, which is the words joined by spaces.
    """

    kind = "tags"
    defaults = {"words": "tokens", "tags": "tags"}
    texts = ()
    keys = ("tags", "words")
    y_shape = weight_shape = (None,)
    holds = {
        "words": ("lists of words", ("lists of text",)),
        "tags": ("lists of tags", ("lists of text", "lists of classes", "lists of whole numbers")),
    }

    # ---------------------------------------------------------------- reading

    def names(self, cells):
        column = self.columns["tags"]
        return [columns.label_name(tag, column) for tag in _list(cells["tags"], column, "tags")]

    def label(self, cells):
        column = self.columns["words"]
        words = [_word(word, place, column) for place, word in enumerate(_list(cells["words"], column, "words"), start=1)]
        tags = [self.classes.class_of(name) for name in self.names(cells)]
        if len(words) != len(tags):
            raise UserError(f"{len(words)} words in {column}, but {len(tags)} tags in {self.columns['tags']}; give each word one")
        return {"text": " ".join(words), "words": words, "label": tags}

    def is_unlabelled(self, cell):
        return bool(cell) and all(tag == -1 for tag in cell)

    def survey(self, examples):
        """Reads until a second tag appears."""
        tag = only(itertools.chain.from_iterable(example["label"] for example in examples))
        return None if tag is None else (f"have the tag {self.labels[tag]} on every word", "a tagger needs two tags at least")

    # ---------------------------------------------------------------- storing

    def encode(self, examples, tokenizer, max_length):
        from tfkd.data.words import pieces_of_words

        pieces, counts = pieces_of_words(tokenizer, [word for example in examples for word in example["words"]])
        lengths = np.array([len(example["words"]) for example in examples], "int64")
        rows, firsts = [], []
        word = piece = 0
        for length in lengths:
            own = counts[word : word + length]
            begins = np.concatenate([[0], np.cumsum(own)])
            kept = pieces[piece : piece + begins[-1]][: max_length - 2]
            rows.append(np.concatenate([[tokenizer.cls_id], kept, [tokenizer.sep_id]]))
            firsts.append(np.where((own > 0) & (begins[:-1] < len(kept)), 1 + begins[:-1], UNREAD))
            word, piece = word + length, piece + begins[-1]
        ends = [np.cumsum([1 + len(word) for word in example["words"]]) - 1 for example in examples]
        return {
            "token_ids": (_joined(rows), np.array([len(row) for row in rows], "int64")),
            "text": byte_column([example["text"].encode() for example in examples]),
            "tag": (_joined([example["label"] for example in examples]), lengths),
            "piece": (_joined(firsts), lengths),
            "end": (_joined(ends), lengths),
        }

    # ---------------------------------------------------------------- batching

    def batch(self, store, rows, length, random):
        y, weight = np.zeros((len(rows), length), "int32"), np.zeros((len(rows), length), "float32")
        for place, row in enumerate(rows):
            if row >= 0:
                pieces = store.row("piece", row)
                read = pieces != UNREAD
                y[place, pieces[read]] = store.row("tag", row)[read]
                weight[place, pieces[read]] = 1.0
        return store.gather(rows, length), y, weight

    # ---------------------------------------------------------------- telling

    def truth(self, store):
        """`labels` (W,) of all words one behind the other and `pieces` (W,), the place of each word's first piece in its row or
        `UNREAD`; `offsets` (R + 1,) where each row's words begin, `piece_offsets` (R + 1,) where its pieces do."""
        (tags, offsets), (pieces, _), (_, begins) = (store.ragged(name) for name in ("tag", "piece", "token_ids"))
        found = {"labels": tags, "pieces": pieces, "offsets": offsets, "piece_offsets": begins}
        return {name: np.array(values) for name, values in found.items()}

    def words(self, store, row: int) -> list[str]:
        """The words of a row, as the source gave them."""
        text, ends = store.text(row), store.row("end", row)
        return [text[begin:end] for begin, end in zip([0, *(ends[:-1] + 1)], ends, strict=True)]

    def told(self, store, row):
        """`[[word, tag], ...]`."""
        tags = [self.labels[tag] for tag in store.row("tag", row)]
        return [list(pair) for pair in zip(self.words(store, row), tags, strict=True)]

    def describe(self, store):
        tags, pieces = store.ragged("tag")[0], store.ragged("piece")[0]
        counts = np.bincount(tags, minlength=len(self.labels))
        unread = int((pieces == UNREAD).sum())
        lost = f"; {unread:,} of {len(pieces):,} words are cut off by data.max_length and count as missed" if unread else ""
        return "tags", counted(counts, self.labels) + lost


def _joined(parts: list) -> np.ndarray:
    return np.concatenate([np.zeros(0, "int32"), *parts]).astype("int32")


def _list(value, column: str, what: str) -> list:
    if not isinstance(value, list | tuple):
        fix = "write a JSON list, in a JSONL or Parquet file" if isinstance(value, str) else "fill it in or leave the row out"
        raise UserError(f"column {column} holds {columns.shown(value)}, not a list of {what}; {fix}")
    if not value:
        raise UserError(f"column {column} is an empty list; fill it in or leave the row out")
    return list(value)


def _word(value, place: int, column: str) -> str:
    try:
        return columns.checked_text(value, column)
    except UserError as error:
        raise UserError(f"word {place}: {error}") from None
