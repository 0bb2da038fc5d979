"""A batch computed part after part, so that what has to be in memory at once is that of a part."""

import tensorflow as tf


def in_parts(compute, batch, parts: int):
    """Adds up and joins what `compute` says of the parts of a batch, cut along its rows in their order.

    Arguments:
        compute: a part of `batch` -> `(summed, joined)`, two nested structures of tensors: of the first, the parts' are added
            up; of the second, which hold something for every row, put together again. It is traced twice, whatever `parts` is.
        batch: nested tensors of B rows each; `parts` must divide B.

    Returns:
        `(summed, joined)` of the whole batch.
    """
    cut = tf.nest.map_structure(lambda tensor: _cut(tensor, parts), batch)

    def part(index):
        summed, joined = compute(tf.nest.map_structure(lambda tensor: tensor[index], cut))
        return tf.nest.map_structure(tf.convert_to_tensor, (summed, joined))

    # Apart from the others: it says what there is to add up. A loop, for parts that stand side by side would be computed so.
    summed, joined = part(0)
    rows = [tf.TensorArray(value.dtype, parts, element_shape=value.shape).write(0, value) for value in tf.nest.flatten(joined)]

    def add(index, summed, rows):
        more, joined = part(index)
        summed = tf.nest.map_structure(tf.add, summed, more)
        rows = [array.write(index, value) for array, value in zip(rows, tf.nest.flatten(joined), strict=True)]
        return index + 1, summed, rows

    start = tf.constant(1), summed, rows
    _, summed, rows = tf.while_loop(
        lambda index, *_: index < parts, add, start, parallel_iterations=1, maximum_iterations=parts - 1
    )
    return summed, tf.nest.pack_sequence_as(joined, [_joined(array) for array in rows])


def _cut(tensor, parts: int):
    """(B, ...) -> (parts, B / parts, ...)."""
    tensor = tf.convert_to_tensor(tensor)
    rows, shape = tensor.shape[0], tensor.shape[1:]
    if rows is not None and rows % parts:
        raise ValueError(f"accumulate = {parts} does not divide a batch of {rows}")
    sizes = tf.shape(tensor)
    cut = tf.reshape(tensor, tf.concat([[parts, sizes[0] // parts], sizes[1:]], axis=0))
    return tf.ensure_shape(cut, (parts, None if rows is None else rows // parts, *shape))


def _joined(array):
    """A `TensorArray` of (b, ...) -> (parts * b, ...)."""
    stacked = array.stack()
    sizes = tf.shape(stacked)
    whole = tf.reshape(stacked, tf.concat([sizes[:1] * sizes[1:2], sizes[2:]], axis=0))
    return tf.ensure_shape(whole, (None, *array.element_shape[1:]))
