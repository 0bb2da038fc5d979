"""Over several devices and machines under Keras's own `fit`: what Keras 3.15 does not do right there, cured in one place.

A training step runs once in every replica. `OverReplicas`, mixed into a model, mends three things of `keras.Model.fit`:

1.  To learn the shapes, Keras averages a batch over the replicas. That makes fractions of token ids, and over several workers
    it fails: a batch that lies on several machines cannot be averaged outside a graph. One replica's part has the shapes.
2.  Keras averages what a step returns with `strategy.reduce("MEAN", value, axis=0)` where there are several workers, and the
    running averages are numbers, which have no axis 0. We stack them and average once, `axis=None`: one meeting a step
    instead of one for each name.
3.  Keras compiles the whole step over all replicas as one XLA program, which then is one device's, and cannot read the
    variables of the others. We compile what each replica runs, for the device that it is on; TensorFlow then lets the
    replicas meet inside of the program on GPUs (`_use_merge_call`), and cannot on logical CPUs.

`Team` is what the processes have to agree on outside of a step: whether to go on from a checkpoint, and from which numbers.
"""

import json
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf


class OverReplicas:
    """Stands before `keras.Model` in a class's bases; with one replica everything is as Keras has it."""

    def make_train_function(self, force=False):
        if _alone(self.distribute_strategy):
            return super().make_train_function(force)
        if self.train_function is None or force:
            self.train_function = self._over_replicas(self.train_step)
        return self.train_function

    def make_test_function(self, force=False):
        if _alone(self.distribute_strategy):
            return super().make_test_function(force)
        if self.test_function is None or force:
            self.test_function = self._over_replicas(self.test_step)
        return self.test_function

    def _over_replicas(self, step):
        """`iterator -> averages over the replicas`, which goes `steps_per_execution` steps."""
        strategy, names = self.distribute_strategy, []
        if self.jit_compile:
            step = tf.function(step, jit_compile=True, reduce_retracing=True, autograph=False)  # 3.

        @tf.autograph.experimental.do_not_convert
        def stacked(data):
            logs = step(data)
            names[:] = logs
            return tf.stack([tf.cast(value, "float32") for value in logs.values()])

        @tf.function(reduce_retracing=True, autograph=False)
        def one(data):
            return strategy.reduce("MEAN", strategy.run(stacked, args=(data,)), axis=None)  # 2.

        @tf.function(reduce_retracing=True, autograph=False)
        def next_one(iterator):
            return strategy.reduce("MEAN", strategy.run(stacked, args=(next(iterator),)), axis=None)

        def go(iterator):
            of_tensorflow = isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator))
            values = None
            for _ in range(self.steps_per_execution):
                try:
                    values = next_one(iterator) if of_tensorflow else one(next(iterator))
                except (StopIteration, tf.errors.OutOfRangeError):
                    if values is None:
                        raise
                    break
            return dict(zip(names, tf.unstack(values), strict=True))

        return go

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):  # 1.
        if iterator is not None and not _alone(self.distribute_strategy):
            iterator.reset()  # that of the validation stands at its end after an epoch
            _, _, batches = next(iter(iterator))
            local = self.distribute_strategy.experimental_local_results
            data_batch, iterator = keras.tree.map_structure(lambda value: local(value)[0], next(batches)), None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)


class Team:
    """The processes of one training; of a single one everything here is what it is given.

    Every method but the properties is a meeting: all workers call it, in the same order.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self.count, self.index = 1, 0
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            self.count, self.index = workers(strategy)

    @property
    def chief(self) -> bool:
        """Whether this process is the one that writes."""
        return self.index == 0

    def total(self, value: np.ndarray) -> np.ndarray:
        """The sum of the workers' arrays, which have one shape and type."""
        if self.count == 1:
            return value
        value = np.asarray(value)
        here = self.strategy.num_replicas_in_sync // self.count

        def of_replica(context):
            first = context.replica_id_in_sync_group % here == 0  # a worker speaks once, however many devices it has
            return tf.constant(value if first else np.zeros_like(value))

        return self.strategy.reduce("SUM", self.strategy.experimental_distribute_values_from_function(of_replica), None).numpy()

    def told(self, value=None):
        """What the chief says: anything that JSON holds."""
        if self.count == 1:
            return value
        text = json.dumps(value).encode() if self.chief else b""
        size = int(self.total(np.asarray(len(text), "int64")))
        characters = np.frombuffer(text if self.chief else bytes(size), "uint8")
        return json.loads(self.total(characters.astype("int64")).astype("uint8").tobytes())

    def spread(self, variables: Sequence) -> None:
        """Gives everybody the chief's values of variables."""
        if self.count == 1:
            return
        for variable in variables:
            value = np.asarray(variable.numpy())
            # Collectives know few types; each of these holds the variable's exactly.
            wide = value.astype("int64" if value.dtype.kind in "iub" else "float64" if value.dtype == "float64" else "float32")
            variable.assign(tf.cast(self.total(wide if self.chief else np.zeros_like(wide)), variable.dtype))

    def read(self, model: keras.Model, path) -> None:
        """Reads weights from a file that the chief has."""
        if self.chief:
            model.load_weights(path)
        self.spread(model.variables)


def workers(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """How many processes train together under a strategy, and which of them this is; the chief is 0."""
    resolver = getattr(strategy, "cluster_resolver", None)
    jobs = {} if resolver is None else resolver.cluster_spec().as_dict()
    chiefs, others = len(jobs.get("chief", [])), len(jobs.get("worker", []))
    if chiefs + others < 2:
        return 1, 0
    return chiefs + others, resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)


def feed(strategy: tf.distribute.Strategy, make: Callable[..., tf.data.Dataset]):
    """The batches of a training as its replicas take them.

    Each worker reads its own replicas' rows alone: Keras would have every worker make whole batches and throw most away.

    Arguments:
        make: `make(parts=R, mine=range)`: the dataset of batches cut into R parts, with only those of `mine`, in turn.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return make()

    def of_worker(context):
        here = replicas // context.num_input_pipelines
        return make(parts=replicas, mine=range(context.input_pipeline_id * here, (context.input_pipeline_id + 1) * here))

    return strategy.distribute_datasets_from_function(of_worker)


def _alone(strategy: tf.distribute.Strategy) -> bool:
    several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)  # of which Keras takes even one as several
    return strategy.num_replicas_in_sync == 1 and not several
