"""Which rows and positions of a batch count: padding is blanked here, and nowhere else."""

from keras import ops

POSITION_AXES = {"embeddings": (1,), "hidden": (1,), "logits": (1,)}
POSITION_AXES |= {"attention": (2, 3), "query": (2,), "key": (2,), "value": (2,)}
"""The axes of an inner tensor that run over positions, by the first part of its name."""

EXCLUDED = -1e9
"""Stands for a score that does not take part: beside any real score its exponential is exactly 0, and it is finite."""


class TextMask:
    """Rows and positions that count, read once from a batch.

    What does not count is replaced before anything is computed from it, not multiplied by 0 afterwards: 0 times infinity is
    NaN, in values and in gradients.

    Arguments:
        batch: may hold `padding_mask` (B, T), 1 for text, and `example_weight` (B,), 0 for the rows that fill up a batch.
            What it does not hold excludes nothing.

    Attributes:
        rows: (B,) bool, or None where all count. A row without a position is not a text and does not count.
        positions: (B, T) bool, or None where all count.
    """

    def __init__(self, batch: dict):
        self.rows = self.positions = None
        if "example_weight" in batch:
            self.rows = ops.greater(batch["example_weight"], 0)
        if "padding_mask" in batch:
            self.positions = ops.not_equal(batch["padding_mask"], 0)
            if self.rows is not None:
                self.positions = ops.logical_and(self.positions, ops.expand_dims(self.rows, 1))
            self.rows = ops.any(self.positions, axis=1)

    def blank(self, tensors: dict) -> dict:
        """Inner tensors by name, 0 wherever nothing counts."""
        return {name: self._blank(name, tensor) for name, tensor in tensors.items()}

    def blank_values(self, values):
        """Values (B,) or (B, T), 0 wherever nothing counts."""
        mask = self.rows if len(values.shape) == 1 else self.positions
        return values if mask is None else ops.where(mask, values, 0.0)

    def rows_of(self, tensor):
        """`rows`, written out for a tensor (B, ...) where all count."""
        return _everything(tensor, (0,)) if self.rows is None else self.rows

    def positions_of(self, tensor):
        """`positions`, written out for a tensor (B, T, ...) where all count."""
        return _everything(tensor, (0, 1)) if self.positions is None else self.positions

    def _blank(self, name, tensor):
        axes = POSITION_AXES.get(name.partition(".")[0], ())
        if self.positions is None or not axes or (name == "logits" and len(tensor.shape) == 2):
            masks = {(0,): self.rows}
        else:
            masks = {(0, axis): self.positions for axis in axes}
        for kept, mask in masks.items():
            if mask is not None:
                added = [axis for axis in range(len(tensor.shape)) if axis not in kept]
                tensor = ops.where(ops.expand_dims(mask, added), tensor, 0.0)
        return tensor


def _everything(tensor, kept):
    """True over the axes `kept` of a tensor."""
    reduced = tuple(axis for axis in range(len(tensor.shape)) if axis not in kept)
    return ops.any(ops.ones_like(tensor, dtype="bool"), axis=reduced)


def log_softmax_over(scores, kept):
    """log softmax over the last axis among `kept` alone, a bool mask that broadcasts to the scores' shape (..., N)."""
    return ops.log_softmax(ops.where(kept, scores, EXCLUDED), axis=-1)
