"""Texts that differ a little each epoch, so that a teacher is asked about more than what it knows by heart."""

import numpy as np

from tfkd.errors import UserError


class Augmentation:
    """Hides some word pieces behind `[MASK]` and puts pieces of the batch's other texts in the place of some.

    Each piece that is none of the special ones is hidden with probability `mask` and replaced with probability `replace`,
    apart from all others. Pieces that come in its place are drawn as often as they stand in the batch. Lengths do not change,
    so that targets by position and segments stay where they are.

    Arguments:
        mask: share of the pieces that are hidden.
        replace: share of the pieces that are replaced.
        tokenizer: says which pieces are special.

    Raises:
        UserError: the vocabulary has no `[MASK]`, and something is to be hidden.

    References:
        Tang, Lu, Liu, Mou, Vechtomova and Lin 2019, Distilling Task-Specific Knowledge from BERT into Simple Neural Networks,
        arXiv:1903.12136, section 3.2 (masking; there whole words, and the replacement is by part of speech).
    """

    def __init__(self, mask: float, replace: float, tokenizer):
        if mask and tokenizer.mask_id is None:
            raise UserError("augment.mask: the vocabulary has no piece [MASK]; set it to 0 and use augment.replace")
        self.mask, self.replace, self.mask_id = mask, replace, tokenizer.mask_id
        special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id)
        self.special = [piece for piece in special if piece is not None]

    def __call__(self, inputs: dict[str, np.ndarray], random: np.random.Generator) -> dict[str, np.ndarray]:
        """The inputs of a batch with other `token_ids` (B, T); the arrays given stay as they are."""
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
