"""Several texts one behind another in a row, each of which sees itself alone: rows without padding."""

from keras import ops


class PackedTexts:
    """Where the positions of a batch of texts lie in rows that several of them share, and the ways there and back.

    Every way is a gather of whole vectors: what a text's positions hold is what they would hold in a row of its own.

    Arguments:
        source: (R, W) which position of the (B, T) texts, counted through, is at a place; -1 where none is.
        starts: (B,) the place of each text's first position, counted through; a text without positions has any.
        padding_mask: (B, T), 1 for text and 0 for padding.
    """

    def __init__(self, source, starts, padding_mask):
        self.starts, self.mask = starts, padding_mask
        self.texts, self.length = ops.shape(padding_mask)[0], ops.shape(padding_mask)[1]
        self.filled = source >= 0
        self.source = ops.where(self.filled, source, 0)
        self.owner = ops.where(self.filled, self.source // self.length, -1)  # (R, W): whose position it is

    @property
    def positions(self):
        """(R, W): how far into its own text a place is."""
        return self.source % self.length

    @property
    def together(self):
        """(R, W, W): 1 where two places of a row are of one text."""
        return ops.cast(ops.expand_dims(self.owner, 2) == ops.expand_dims(self.owner, 1), "int32")

    @property
    def of_texts(self):
        """(1, B, R * W): 1 where a place is of a text."""
        return ops.cast(ops.reshape(self.owner, (1, 1, -1)) == ops.reshape(ops.arange(self.texts), (1, -1, 1)), "int32")

    def pack(self, ids):
        """(B, T) -> (R, W); 0 where no text is."""
        return ops.where(self.filled, ops.take(ops.reshape(ids, (-1,)), self.source), 0)

    def unpack(self, hidden):
        """(R, W, D) -> (B, T, D); 0 where the mask is."""
        width = hidden.shape[-1]
        places = ops.expand_dims(self.starts, 1) + ops.expand_dims(ops.arange(self.length), 0)
        mask = ops.cast(self.mask, "bool")
        found = ops.take(ops.reshape(hidden, (-1, width)), ops.where(mask, places, 0), axis=0)
        return ops.where(ops.expand_dims(mask, 2), found, ops.zeros((), hidden.dtype))
