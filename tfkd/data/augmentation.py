"""Texts that differ a little each epoch, so that a teacher is asked about more than what it knows by heart."""

from collections.abc import Sequence

import numpy as np

from tfkd.errors import UserError


class Augmentation:
    """Puts texts of a batch one behind another, hides some word pieces behind `[MASK]`, and replaces some.

    A text is followed by another one of the batch with probability `concatenate`: `[CLS] one other [SEP]`, cut where it is
    too long. Then each piece that is none of the special ones is hidden with probability `mask` and replaced with probability
    `replace`, apart from all others. Pieces that come in its place are drawn as often as they stand in the batch. Without
    `concatenate` lengths do not change, so that targets by position and segments stay where they are.

    Arguments:
        mask: share of the pieces that are hidden.
        replace: share of the pieces that are replaced.
        tokenizer: says which pieces are special.
        concatenate: share of the texts that another one follows.

    Raises:
        UserError: the vocabulary has no `[MASK]`, and something is to be hidden.

    References:
        Tang, Lu, Liu, Mou, Vechtomova and Lin 2019, Distilling Task-Specific Knowledge from BERT into Simple Neural Networks,
        arXiv:1903.12136, section 3.2 (masking; there whole words, and the replacement is by part of speech).
        Nguyen, Murray and Chiang 2021, Data Augmentation by Concatenation for Low-Resource Translation, arXiv:2105.01691.
    """

    def __init__(self, mask: float, replace: float, tokenizer, concatenate: float = 0.0):
        if mask and tokenizer.mask_id is None:
            raise UserError("augment.mask: the vocabulary has no piece [MASK]; set it to 0 and use augment.replace")
        self.mask, self.replace, self.concatenate = mask, replace, concatenate
        self.mask_id, self.sep_id = tokenizer.mask_id, tokenizer.sep_id
        special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id)
        self.special = [piece for piece in special if piece is not None]

    def __call__(
        self, inputs: dict[str, np.ndarray], random: np.random.Generator, lengths: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """The inputs of a batch with other `token_ids` (B, T) and `padding_mask`; the arrays given stay as they are.

        Arguments:
            lengths: what a batch may be padded to, rising. T becomes another one of them where texts became longer.
        """
        if self.concatenate:
            inputs = self._concatenated(inputs, random, lengths)
        ids = inputs["token_ids"]
        words = ~np.isin(ids, self.special)
        pieces = ids[words]
        if not len(pieces):
            return inputs
        fate = random.random(ids.shape)
        changed = np.where(words & (fate < self.mask), self.mask_id or 0, ids)
        others = pieces[random.integers(0, len(pieces), ids.shape)]
        changed = np.where(words & (fate >= self.mask) & (fate < self.mask + self.replace), others, changed)
        return inputs | {"token_ids": changed.astype(ids.dtype)}

    def mean_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """How long texts of these lengths (R,) are to be expected, cut ones aside: whole numbers again."""
        longer = self.concatenate * max(0.0, float(np.mean(lengths)) - 2.0) if len(lengths) else 0.0
        return lengths + round(longer)

    def _concatenated(self, inputs: dict, random: np.random.Generator, lengths: Sequence[int]) -> dict:
        ids = inputs["token_ids"]
        texts = [row[:length] for row, length in zip(ids, inputs["padding_mask"].sum(axis=1), strict=True)]
        others = (np.arange(len(texts)) + random.integers(1, max(2, len(texts)), len(texts))) % len(texts)
        followed = random.random(len(texts)) < self.concatenate
        made = [
            np.append([*text[:-1], *texts[other][1:-1]][: lengths[-1] - 1], self.sep_id) if follow and len(text) else text
            for text, other, follow in zip(texts, others, followed, strict=True)
        ]
        longest = max(map(len, made))
        width = next(length for length in lengths if length >= longest)
        token_ids, mask = np.zeros((len(made), width), ids.dtype), np.zeros((len(made), width), ids.dtype)
        for row, text in enumerate(made):
            token_ids[row, : len(text)], mask[row, : len(text)] = text, 1
        return inputs | {"token_ids": token_ids, "padding_mask": mask}
