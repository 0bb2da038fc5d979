"""From the vectors of a text's positions to one vector of the text."""

from keras import ops

POOLING = ("first", "mean")


def check_pooling(pooling: str) -> None:
    """Raises `ValueError` for a way to pool that there is not."""
    if pooling not in POOLING:
        raise ValueError(f"pooling = {pooling!r}: must be {' or '.join(POOLING)}")


def pool(hidden, padding_mask, pooling: str):
    """(B, T, D), (B, T) -> (B, D): the vector of position 0 (`first`), or the mean over the text's positions (`mean`)."""
    if pooling == "first":
        return hidden[:, 0]
    mask = ops.cast(ops.expand_dims(padding_mask, -1), hidden.dtype)  # (B, T, 1)
    return ops.sum(hidden * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1.0)
