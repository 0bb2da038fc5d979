"""All replicas' rows: the one place where an objective looks beyond its own replica, and beyond keras.ops."""

import keras
from keras import ops


def gather(tensor):
    """The rows (B, ...) of all R replicas, in their order: (R B, ...). The gradient reaches the replica that they came from.

    Every replica must hold as many rows, which batches filled up to one size do. Made of a sum over replicas: TensorFlow's
    own `all_gather` always waits for all replicas to meet, which they cannot within a function compiled by XLA.
    """
    replicas, replica = _replicas()
    if replicas == 1:
        return tensor
    import tensorflow as tf

    slots = ops.reshape(ops.equal(ops.arange(replicas), replica), (replicas,) + (1,) * len(tensor.shape))
    spread = ops.where(slots, ops.expand_dims(tensor, 0), 0.0)  # (R, B, ...), 0 but in this replica's slot
    together = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, spread)
    return ops.reshape(together, (replicas * ops.shape(tensor)[0], *tensor.shape[1:]))


def own_rows(rows):
    """Where this replica's rows (B, ...) stand among all that `gather` gives: (B,) int32."""
    count = ops.shape(rows)[0]
    return ops.arange(count, dtype="int32") + _replicas()[1] * count


def _replicas():
    """The number of replicas, and which of them this is."""
    if keras.backend.backend() != "tensorflow":
        return 1, 0
    import tensorflow as tf

    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1 or tf.distribute.in_cross_replica_context():  # in no replica, the rows at hand are all there are
        return 1, 0
    return replicas, tf.distribute.get_replica_context().replica_id_in_sync_group
