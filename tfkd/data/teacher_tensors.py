"""How one tensor of a teacher lies on disk, a row at a time: in float16, its padding left out.

Logits of a single number, a regression's, stay float32: they are in the data's units, whatever those are, and are few.
"""

import math

import numpy as np
import tensorflow as tf

FLOAT, INDEX = "<f2", "<i4"
LARGEST = 65504
"""Of float16."""

MASKED_SCORE = -1e4
"""What the attention scores of padded keys are read back as: exp(-1e4) is 0 beside any real score, as in the layers."""

Shape = tuple[int | None, ...]
"""Of one row: no B, and None wherever the row's length goes."""


class DenseTensor:
    """A tensor kept whole: a row's real positions, one value after another.

    Arguments:
        name: as in the models, `hidden.3`. The padded keys of `attention.*` are read back as `MASKED_SCORE`, whatever
            else is padded as 0.
        shape: of one row, such as (C,), (None, D), (H, None, None).
    """

    def __init__(self, name: str, shape: Shape):
        self.name, self.shape = name, tuple(shape)
        self.parts = (self.shape,)
        self.scores = name.startswith("attention.")
        self.dtype = "float32" if name == "logits" and self.shape[-1:] == (1,) else "float16"

    def bytes(self, lengths):
        """Bytes of a row of this length; an array of lengths gives an array."""
        return np.dtype(self.dtype).itemsize * _size(self.shape, lengths)

    def encode(self, tensor: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """(B, ...) as the teacher gives it -> the parts (B, ...) that are kept. Runs in a graph."""
        return (tf.cast(tensor, self.dtype),)

    def pack(self, parts: list[np.ndarray], length: int) -> list[np.ndarray]:
        """One row's padded parts -> the arrays to write, in order."""
        return [np.ascontiguousarray(part[_real(shape, length)]) for part, shape in zip(parts, self.parts, strict=True)]

    def unpack(self, record: np.ndarray, row: np.ndarray, length: int) -> None:
        """Fills `row`, padded and all 0 so far, from its bytes on disk."""
        kept = record.view(np.dtype(self.dtype).newbyteorder("<"))
        row[_real(self.shape, length)] = kept.reshape(at(self.shape, length))
        if self.scores:
            row[..., length:] = MASKED_SCORE


class TopKTensor:
    """Logits over many classes: the k largest values and their classes, and one value that stands for all the others.

    That filler is log(sum of exp of the others) - log(C - k): their probability, spread evenly over them. It is right for a
    softmax over the last axis alone, and the configuration refuses it elsewhere: of single sigmoids, values or a vector the
    others have no sum. A KL at temperature 1 sees the k largest with the teacher's own probabilities, and the others with
    their right sum, as if all alike; what it misses is exactly how the others differ.

    Above temperature 1 the others weigh more, and somewhat too much, for an even spread is the flattest there is. Of 150
    normal logits with a standard deviation of 2, one of them 15 higher, those beyond k = 16 have 0.1 % of the probability at
    temperature 1 and 62 % at 4, where the filler gives them 66 %; KL(teacher || kept) is 0.001 and 0.05 nats. A filler with
    the right sum at 4 would be wrong at every other temperature, and leaves 0.047: most of what is lost is how they differ.

    Arguments:
        name: as in the models.
        shape: of one row; its last axis is C.
        k: values kept, below C.
    """

    def __init__(self, name: str, shape: Shape, k: int):
        self.name, self.shape, self.k, self.dtype = name, tuple(shape), k, "float16"
        self.parts = tuple((*shape[:-1], size) for size in (k, 1, k))

    def bytes(self, lengths):
        """Bytes of a row of this length; an array of lengths gives an array."""
        return _size(self.shape[:-1], lengths) * (2 * self.k + 2 + 4 * self.k)

    def encode(self, tensor: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """(B, ..., C) -> values (B, ..., k), filler (B, ..., 1), classes (B, ..., k) int32. Runs in a graph."""
        values, indices = tf.math.top_k(tensor, self.k)
        least = values[..., -1:]
        # Classes as large as the least that is kept: those beyond the k belong to the others.
        ties = _count(tensor == least) - _count(values == least)
        smaller = tf.where(tensor < least, tensor, -np.inf)
        largest = tf.where(ties > 0, least, tf.reduce_max(smaller, axis=-1, keepdims=True))
        total = tf.reduce_sum(tf.exp(smaller - largest), axis=-1, keepdims=True) + ties
        filler = largest + tf.math.log(total) - math.log(self.shape[-1] - self.k)
        # A NaN is neither among the largest nor smaller than them: it must not get lost.
        filler += tf.reduce_sum(tf.where(tf.math.is_finite(tensor), 0.0, tensor), axis=-1, keepdims=True)
        return tf.cast(values, tf.float16), tf.cast(filler, tf.float16), tf.cast(indices, tf.int32)

    pack = DenseTensor.pack

    def unpack(self, record: np.ndarray, row: np.ndarray, length: int) -> None:
        """Fills `row`, padded and all 0 so far, from its bytes on disk."""
        lead = at(self.shape[:-1], length)
        ends = np.cumsum([math.prod(lead) * size for size in (2 * self.k, 2, 4 * self.k)])
        values, filler, indices = np.split(record, ends[:-1])
        real = row[_real(self.shape[:-1], length)]
        real[...] = filler.view(FLOAT).reshape(*lead, 1)
        np.put_along_axis(real, indices.view(INDEX).reshape(*lead, self.k), values.view(FLOAT).reshape(*lead, self.k), -1)


def tensors(shapes: dict[str, Shape], top_k: int | None) -> list[DenseTensor | TopKTensor]:
    """How each tensor is kept, sorted by name.

    Arguments:
        shapes: name -> shape with B, as a teacher's `shapes` answers.
        top_k: for `logits` over more classes than this; None keeps them all.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k = {top_k}: must be at least 1")
    found = []
    for name in sorted(shapes):
        shape = tuple(shapes[name])[1:]
        few = name != "logits" or top_k is None or not shape or shape[-1] is None or shape[-1] <= top_k
        found.append(DenseTensor(name, shape) if few else TopKTensor(name, shape, top_k))
    return found


def at(shape: Shape, length: int) -> tuple[int, ...]:
    """`shape` of a row that is `length` long."""
    return tuple(length if size is None else size for size in shape)


def not_finite(values: np.ndarray) -> bool:
    """Whether `values` hold inf or NaN; in float16 their exponent's bits are then all set, which is quick to see."""
    if values.dtype != "float16":
        return values.dtype.kind == "f" and not bool(np.isfinite(values).all())
    return bool(((values.view("<u2") & 0x7C00) == 0x7C00).any())


def _real(shape: Shape, length: int) -> tuple[slice, ...]:
    return tuple(slice(length) if size is None else slice(None) for size in shape)


def _size(shape: Shape, lengths):
    return math.prod((lengths if size is None else size for size in shape), start=1)


def _count(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(values, tf.float32), axis=-1, keepdims=True)
