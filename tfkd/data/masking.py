"""Texts that ask for their own words: some are hidden, anew each epoch, and the model is to say what stood there."""

import numpy as np

from tfkd.data.target import Target
from tfkd.errors import UserError

SHARE = 0.15
"""Of the pieces of a text that are asked for (Devlin et al. 2018, section 3.1)."""

MASKED, REPLACED = 0.8, 0.1
"""Of those: hidden behind [MASK], replaced by any piece; what remains stays as it is, and is asked for all the same."""

_MEASURING = 0x6D61736B
"""Seeds what is hidden when a model is measured: the same of a row for every model, in every run."""


class Masked(Target):
    """The pieces that stood at some positions: y (B, T) int32, with weight 1 at those positions and 0 elsewhere.

    Whole words are hidden, every piece of them or none, drawn until 15 % of a text's pieces are asked for, one at least. Each
    piece that is asked for becomes [MASK] with probability 0.8, any piece with 0.1, and stays with 0.1. Every epoch draws
    anew; when a model is measured, a row's draw follows from its number alone.

    In a store: `begins`, for each piece whether a word begins with it (1), goes on (0), or it is a special piece (2), and
    `vocabulary` (R, 2), the ids of [MASK] and how many pieces there are.

    References:
        Devlin, Chang, Lee and Toutanova 2018, BERT, arXiv:1810.04805, section 3.1; whole words: the authors' release of May
        2019, in the README of google-research/bert.
    """

    kind = "masked"
    labelled = False
    defaults = {"text": "text", "text_pair": None}
    keys = ()
    named = False
    y_shape = weight_shape = (None,)

    @property
    def rule(self):
        return super().rule | {"begins": 1}

    def label(self, cells):
        return {}

    # ---------------------------------------------------------------- storing

    def encode(self, examples, tokenizer, max_length):
        if tokenizer.mask_id is None:
            raise UserError("the vocabulary has no piece [MASK]: no word can be hidden; take a checkpoint that has one")
        found = super().encode(examples, tokenizer, max_length)
        ids, lengths = found["token_ids"]
        kinds = np.array([0 if piece.startswith("##") else 1 for piece in tokenizer.pieces], "uint8")
        for special in (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id):
            kinds[special] = 2
        vocabulary = np.tile(np.array([tokenizer.mask_id, len(kinds)], "int32"), (len(examples), 1))
        return found | {"begins": (kinds[ids], lengths), "vocabulary": vocabulary}

    def targets(self, examples):
        return {}

    # ---------------------------------------------------------------- batching

    def batch(self, store, rows, length, random):
        x = store.gather(rows, length)
        y, weight = x["token_ids"].copy(), np.zeros((len(rows), length), "float32")
        for place, row in enumerate(rows):
            if row >= 0:
                asked, instead = _draw(store, int(row), random or np.random.default_rng((_MEASURING, int(row))))
                x["token_ids"][place, asked] = instead
                weight[place, asked] = 1.0
        return x, y, weight

    # ---------------------------------------------------------------- telling

    def truth(self, store):
        """`labels` (P,) the pieces, `asked` (P,) whether a position is asked for, and `offsets` (R + 1,)."""
        pieces, offsets = store.ragged("token_ids")
        asked = np.zeros(len(pieces), bool)
        for row in range(store.rows):
            places, _ = _draw(store, row, np.random.default_rng((_MEASURING, row)))
            asked[offsets[row] + places] = True
        return {"labels": np.array(pieces), "asked": asked, "offsets": np.array(offsets)}

    def told(self, store, row):
        return None

    def describe(self, store):
        return "targets", f"{SHARE:.0%} of the pieces, whole words, hidden anew each epoch"


def _draw(store, row: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which positions of a row are asked for, rising, and the pieces that stand there instead."""
    begins, pieces = store.row("begins", row), store.row("token_ids", row)
    mask, vocabulary = store.column("vocabulary")[row]
    words = np.flatnonzero(begins == 1)
    if not len(words):
        return np.zeros(0, "int64"), np.zeros(0, "int32")
    # A word goes on to the next position at which no piece continues it.
    stops = np.flatnonzero(begins != 0)
    ends = np.append(stops, len(begins))[np.searchsorted(stops, words, side="right")]
    sizes = ends - words
    order = random.permutation(len(words))
    wanted = max(1, round(SHARE * int(sizes.sum())))
    chosen, count = [order[0]], int(sizes[order[0]])
    for word in order[1:]:
        if count + sizes[word] <= wanted:
            chosen.append(word)
            count += int(sizes[word])
    asked = np.sort(np.concatenate([np.arange(words[word], ends[word]) for word in chosen]))
    fate, any_piece = random.random(len(asked)), random.integers(0, vocabulary, len(asked))
    instead = np.where(fate < MASKED, mask, np.where(fate < MASKED + REPLACED, any_piece, pieces[asked]))
    return asked, instead.astype("int32")
