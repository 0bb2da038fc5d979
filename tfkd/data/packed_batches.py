"""Batches whose texts lie one behind another in a few long rows, for trainings on texts of very different lengths."""

import functools

import numpy as np
import tensorflow as tf

from tfkd.data.pipeline import Batches

SAMPLED = 200
"""Batches of the first epoch that the width of a row is chosen by."""
ENOUGH = 0.08
"""Share of padding that no wider rows are tried to get under: attention costs the square of a row's width."""


class PackedBatches(Batches):
    """Batches of one split for a training, with hardly any padding and in one shape or two.

    Every batch draws one row of the data from each of B groups of like lengths, so that all batches are about as long
    altogether. Their texts are laid into R rows of W word pieces, the longest first and each where there is room (first-fit
    decreasing; Krell et al. 2021, arXiv:2107.02027). The inputs are those of `Batches`, padded to the longest text, and

        packing          (R, W) int32   see `tfkd.layers.packed_texts.PackedTexts`
        packing_starts   (B,) int32

    which our encoder computes its layers by. What is missing to whole batches are rows of weight 0, spread over the epoch.
    Where `augment` lengthens texts, batches differ more, and R is a multiple of B / 16, so that there are few shapes still.

    Arguments: as of `Batches`.
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        if not self.shuffle:
            raise ValueError("packed batches come in an order of their own: shuffle=False cannot be had")
        longer = self.augment is not None and self.augment.concatenate
        self.longest = int(self.buckets[-1] if longer else self.lengths.max(initial=1))
        self.multiple = max(1, self.batch_size // 16) if longer else 1
        self.width = self._choose_width()

    @functools.cached_property
    def heights(self) -> list[int]:
        """How many rows the batches of the first epoch have, each number once; with longer texts, about so many."""
        heights = {rows for rows, _ in self.sizes}
        spread = (-self.multiple, 0, self.multiple) if self.multiple > 1 else (0,)
        return sorted({max(1, rows + more) for rows in heights for more in spread})

    @property
    def widths(self) -> list[int]:
        return [self.longest]

    def shapes(self) -> int:
        return len(self.heights)

    def describe(self) -> str:
        heights = f"{self.heights[0]}" if len(self.heights) == 1 else f"{self.heights[0]} to {self.heights[-1]}"
        rows = "row" if self.heights == [1] else "rows"
        return f"a batch's texts packed into {heights} {rows} of {self.width} word pieces"

    def plan(self, epoch: int = 0) -> list[tuple[np.ndarray, int]]:
        """The batches of an epoch: rows (B,), -1 where a row is filler, and the length of the longest text there is."""
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.store))
        order = order[np.argsort(self.store.lengths[order], kind="stable")]
        filler = np.full(self.steps * self.batch_size - len(order), -1)
        groups = np.concatenate([filler, order]).reshape(self.batch_size, self.steps)
        batches = random.permuted(random.permuted(groups, axis=1).T, axis=1)
        return [(rows, self.longest) for rows in batches]

    def computed(self, batch: tuple[np.ndarray, int]) -> tuple[int, int]:
        rows, _ = batch
        return _up(len(lay(self._lengths_of(rows), self.width)), self.multiple), self.width

    def _choose_width(self) -> int:
        """From the longest text to twice that: the smallest that leaves `ENOUGH` padding or less, else what leaves least."""
        lengths = [self._lengths_of(rows) for rows, _ in self.plan()[:SAMPLED]]
        texts, places = sum(each.sum() for each in lengths), {}
        for width in range(self.longest, 2 * self.longest + 1, max(1, self.longest // 16)):
            places[width] = width * sum(len(lay(each, width)) for each in lengths)
            if texts >= (1.0 - ENOUGH) * places[width]:
                return width
        return min(places, key=places.get)

    def _lengths_of(self, rows: np.ndarray) -> np.ndarray:
        return np.where(rows < 0, 0, self.lengths[rows])

    def _batch(self, rows, length, place, part=slice(None)):
        x, y, sample_weight = super()._batch(rows, length, place, part)
        packing, starts = pack(x["padding_mask"], self.width, self.multiple)
        return x | {"packing": packing, "packing_starts": starts}, y, sample_weight

    def _input_signature(self, size: int) -> dict[str, tf.TensorSpec]:
        packing = {"packing": tf.TensorSpec((None, self.width), "int32"), "packing_starts": tf.TensorSpec((size,), "int32")}
        return super()._input_signature(size) | packing


def lay(lengths: np.ndarray, width: int) -> list[list[int]]:
    """Which texts share a row of `width`, by first-fit decreasing; texts of length 0 are in none."""
    rows: list[list[int]] = []
    room: list[int] = []
    for text in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[text])
        if length == 0:
            break
        row = next((number for number, left in enumerate(room) if left >= length), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(width)
        rows[row].append(text)
        room[row] -= length
    return rows or [[]]


def pack(padding_mask: np.ndarray, width: int, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """`packing` (R, W), R a `multiple`, and `packing_starts` (B,) of texts that begin at position 0; see `PackedBatches`."""
    texts, length = padding_mask.shape
    lengths = padding_mask.sum(axis=1)
    rows = lay(lengths, width)
    packing, starts = np.full((_up(len(rows), multiple), width), -1, "int32"), np.zeros(texts, "int32")
    for row, members in enumerate(rows):
        at = 0
        for text in members:
            starts[text] = row * width + at
            packing[row, at : at + lengths[text]] = text * length + np.arange(lengths[text])
            at += lengths[text]
    return packing, starts


def _up(rows: int, multiple: int) -> int:
    return -(-rows // multiple) * multiple
