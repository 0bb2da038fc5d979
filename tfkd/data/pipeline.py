"""Rows to batches: few shapes, little padding, an order that follows from the seed and the epoch alone."""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfkd.data.augmentation import Augmentation
from tfkd.data.store import Store
from tfkd.data.teacher_cache import TeacherCache, check_fixed

MOST_ROWS_NAMED = 64
"""Of a batch, in a message."""


def choose_buckets(lengths: np.ndarray, max_length: int, count: int = 6, multiple: int = 4) -> list[int]:
    """At most `count` padded lengths that minimize the padding of rows of these `lengths`, by dynamic programming.

    Arguments:
        lengths: (N,) word pieces of each row.
        max_length: no bucket is longer.
        count: how many shapes there may be; XLA compiles each of them once.
        multiple: buckets are multiples of this, but for the last.
    """
    if len(lengths) == 0:
        return [max_length]
    padded = np.minimum(-(-np.asarray(lengths) // multiple) * multiple, max_length)
    sizes, rows = np.unique(padded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(rows)])  # rows shorter than sizes[j]
    # cost[j]: fewest tokens for rows up to sizes[j - 1] with the buckets spent so far; cut[k][j]: where the last one begins.
    cost, cuts = np.concatenate([[0.0], np.full(len(sizes), np.inf)]), []
    for _ in range(min(count, len(sizes))):
        ends = np.arange(1, len(sizes) + 1)
        table = cost[None, :-1] + sizes[ends - 1, None] * (before[ends][:, None] - before[None, :-1])  # (end, begin)
        table[np.arange(len(sizes))[None, :] >= ends[:, None]] = np.inf
        cuts.append(np.argmin(table, axis=1))
        cost = np.concatenate([[0.0], np.min(table, axis=1)])
    buckets, end = [], len(sizes)
    for cut in reversed(cuts):
        if end == 0:
            break
        buckets.append(int(sizes[end - 1]))
        end = int(cut[end - 1])
    return buckets[::-1]


class Batches:
    """Batches of one split as a `tf.data.Dataset` of `(x, y, sample_weight)`.

    Every batch has exactly `batch_size` rows of one bucket's length. A bucket's remainder moves up to the next one, so
    that a single batch of an epoch is filled up, with rows of weight 0: each shape is compiled once, and an epoch has
    the same number of steps whatever its order.

    Arguments:
        store: the rows.
        batch_size: B, over all replicas.
        buckets: padded lengths, rising.
        shuffle: a new order each epoch, the same for the same `seed` and epoch number; else by length, stable.
        seed: of the orders.
        teacher: what a teacher said of these rows; it joins the inputs, each tensor as `teacher.NAME`.
        augment: changes the inputs of each batch that is shuffled, drawn anew each epoch.

    Attributes:
        lengths: (R,) int64, word pieces that are read of each row; their mean, where `augment` lengthens texts.

    Raises:
        ValueError: `teacher` answered for other rows, or for rows as they were before `augment`.
        UserError: `teacher` was asked about the rows as they are, and the target draws anew what a model reads of them.
    """

    def __init__(
        self,
        store: Store,
        batch_size: int,
        buckets: list[int],
        shuffle: bool = False,
        seed: int = 0,
        teacher: TeacherCache | None = None,
        augment: Augmentation | None = None,
    ):
        self.store, self.batch_size, self.shuffle, self.seed = store, batch_size, shuffle, seed
        self.teacher, self.augment = teacher, augment
        self.buckets = np.asarray(buckets)
        self.lengths = np.minimum(augment.mean_lengths(store.lengths) if augment else store.lengths, self.buckets[-1])
        self.bucket_of = np.searchsorted(self.buckets, self.lengths)
        self.steps = -(-len(store) // batch_size)
        if teacher is not None:
            if augment is not None:
                raise ValueError(f"{teacher.path} holds a teacher's answers to the texts as they are, not to augmented ones")
            check_fixed(store)
            if not np.array_equal(teacher.lengths, store.lengths):
                raise ValueError(f"{teacher.path} holds a teacher's answers for other rows than those of {store.path}")

    def with_teacher(self, teacher: TeacherCache) -> "Batches":
        """The same batches with what a teacher said of their rows."""
        return type(self)(self.store, self.batch_size, self.buckets.tolist(), self.shuffle, self.seed, teacher, self.augment)

    def plan(self, epoch: int = 0) -> list[tuple[np.ndarray, int]]:
        """The batches of an epoch: rows (B,), -1 where a row is filler, and the length they are padded to."""
        random = np.random.default_rng((self.seed, epoch))
        batches, waiting = [], np.zeros(0, "int64")
        for bucket, length in enumerate(self.buckets):
            rows = np.flatnonzero(self.bucket_of == bucket)
            rows = np.concatenate([waiting, random.permutation(rows) if self.shuffle else rows])
            full = len(rows) // self.batch_size * self.batch_size
            batches += [(part, int(length)) for part in rows[:full].reshape(-1, self.batch_size)]
            waiting = rows[full:]
        if len(waiting):
            length = int(self.buckets[self.bucket_of[waiting].max()])
            filler = np.full(self.batch_size - len(waiting), -1)
            batches.append((np.concatenate([waiting, filler]), length))
        return [batches[i] for i in random.permutation(len(batches))] if self.shuffle else batches

    def computed(self, batch: tuple[np.ndarray, int]) -> tuple[int, int]:
        """How many rows, and how long, a model computes for a batch of the plan."""
        rows, length = batch
        return len(rows), length

    @functools.cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """What is computed for each batch of the first epoch, as `computed` says it."""
        return [self.computed(batch) for batch in self.plan()]

    @property
    def widths(self) -> list[int]:
        """What a batch may be padded to, rising."""
        return self.buckets.tolist()

    def shapes(self) -> int:
        """How many shapes batches have."""
        return len(self.buckets)

    def describe(self) -> str:
        """The shapes, in words."""
        return f"batches padded to {', '.join(map(str, self.buckets))} word pieces"

    def padding(self) -> float:
        """Share of an epoch's tokens that are padding."""
        tokens = sum(rows * length for rows, length in self.sizes)
        return 1.0 - int(self.lengths.sum()) / tokens if tokens else 0.0

    def rows_of(self, epoch: int, step: int) -> str:
        """Which rows a batch has, in words: for whoever looks for a bad one."""
        rows = self.plan(epoch)[step][0]
        rows = np.sort(rows[rows >= 0])
        named = ", ".join(map(str, rows[:MOST_ROWS_NAMED])) + (" ..." if len(rows) > MOST_ROWS_NAMED else "")
        return f"rows {named} of {self.store.path.name}, counted from 0"

    def dataset(
        self, first_epoch: int = 0, repeat: bool = False, parts: int = 1, mine: Sequence[int] = (0,), first_step: int = 0
    ) -> tf.data.Dataset:
        """The batches of `first_epoch` from `first_step` on, and with `repeat` of all epochs after it, endlessly.

        Arguments:
            parts: each batch is cut into so many equal ones, filled up where they do not divide it.
            mine: those of a batch that are given, in turn, as a batch each.
        """
        size = -(-self.batch_size // parts)

        def generate():
            epoch, first = first_epoch, first_step
            while True:
                for number, (rows, length) in enumerate(self.plan(epoch)[first:], start=first):
                    rows = np.concatenate([rows, np.full(size * parts - len(rows), -1)])
                    place = self.seed, epoch, number + 1  # 0 would be the seed of the order
                    for part in mine:
                        yield self._batch(rows, length, place, slice(part * size, (part + 1) * size))
                if not repeat:
                    return
                epoch, first = epoch + 1, 0

        target = self.store.target
        signature = (
            self._input_signature(size),
            tf.TensorSpec((size, *target.y_shape), target.y_dtype),
            tf.TensorSpec((size, *target.weight_shape), "float32"),
        )
        cardinality = tf.data.INFINITE_CARDINALITY if repeat else (self.steps - first_step) * len(mine)
        batches = tf.data.Dataset.from_generator(generate, output_signature=signature)
        return batches.apply(tf.data.experimental.assert_cardinality(cardinality)).prefetch(4)

    def _batch(
        self, rows: np.ndarray, length: int, place: tuple[int, ...], part: slice = slice(None)
    ) -> tuple[dict, np.ndarray, np.ndarray]:
        """`(x, y, sample_weight)` of a part of `rows`; `place`, which no other batch of a training has, seeds what is drawn.

        It is drawn for the whole batch, so that a row is the same in however many parts.
        """
        random = np.random.default_rng(place) if self.shuffle else None
        x, y, sample_weight = self.store.target.batch(self.store, rows, length, random)
        if self.augment is not None and random is not None:
            x = self.augment(x, random, self.widths)
        x, y, sample_weight = tf.nest.map_structure(lambda values: values[part], (x, y, sample_weight))
        return (x if self.teacher is None else x | self.teacher.gather(rows[part], length)), y, sample_weight

    def _input_signature(self, size: int) -> dict[str, tf.TensorSpec]:
        inputs = {name: tf.TensorSpec((size, None), "int32") for name in self.store.inputs}
        return inputs if self.teacher is None else inputs | self.teacher.signature(size)
