"""Steps whose numbers are no finite ones: noticed in the graph, so that nothing waits for the answer."""

import keras
from keras import ops


class BadSteps(keras.layers.Layer):
    """Counts them, and remembers of the last one which step it was and what was wrong.

    Arguments:
        terms: names of the losses, in the order in which `note` gets their values.
    """

    def __init__(self, terms: list[str]):
        super().__init__(name="bad_steps", trainable=False, dtype="float32")
        self.names = ["loss", *terms, "gradients"]
        self.seen = self._counter("seen")  # steps of this training
        self.count = self._counter("count")
        self.last = self._counter("last")  # from 0
        self.values = self._counter("values", "float32", (len(self.names),))

    def _counter(self, name: str, dtype: str = "int64", shape: tuple = ()):
        # Every replica counts the same.
        return self.add_weight(
            shape=shape, dtype=dtype, initializer="zeros", trainable=False, name=name, aggregation="only_first_replica"
        )

    def note(self, values):
        """Takes a step's loss, terms and norm of gradients, (n,), the same on all replicas; whether all are finite numbers."""
        sound = ops.all(ops.isfinite(values))
        self.last.assign(ops.where(sound, self.last, self.seen))
        self.values.assign(ops.where(sound, self.values, values))
        self.count.assign_add(ops.cast(ops.logical_not(sound), "int64"))
        self.seen.assign_add(ops.ones((), "int64"))
        return sound

    def wrong(self) -> list[str]:
        """What was no finite number in the last bad step: `kl_divergence is nan`; the terms, else whatever follows from them."""
        found = {name: float(value) for name, value in zip(self.names, self.values.numpy(), strict=True)}
        bad = {name: value for name, value in found.items() if value - value != 0.0}
        terms = {name: value for name, value in bad.items() if name not in ("loss", "gradients")}
        chosen = terms or ({"loss": bad["loss"]} if "loss" in bad else bad)
        return [f"{name} {'are' if name == 'gradients' else 'is'} {value}" for name, value in chosen.items()]
