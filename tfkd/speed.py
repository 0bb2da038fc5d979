"""How fast a training goes and what it takes: examples, tokens and model FLOP a second, memory."""

import collections
import resource
import sys
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

WINDOW = 20.0
"""Seconds of the past that a speed is the mean of."""


class Speed(keras.callbacks.Callback):
    """Measures while a training goes on; called, it says what it found last.

    Arguments:
        batches: a `tfkd.data.pipeline.Batches`, whose plan says what each step holds.
        first: steps of the first epoch that were done before and take no time now.
        flops: FLOP of a training step on one row of so many word pieces; None where the model does not say.
    """

    def __init__(self, batches, first: int = 0, flops: Callable[[int], float] | None = None):
        super().__init__()
        self.batches, self.first, self.flops = batches, first, flops
        self.past: collections.deque = collections.deque()
        self.found: dict[str, float] = {}

    def __call__(self) -> dict[str, float]:
        """`examples_per_second`, `tokens_per_second` (padding is none), `gigaflops` (model FLOP a second / 1e9), `memory_gb`."""
        return self.found | memory() if self.found else {}

    def on_epoch_begin(self, epoch, logs=None):
        plan, lengths = self.batches.plan(epoch), self.batches.lengths
        work = [self._work(batch, lengths) for batch in plan]
        self.done = np.cumsum([(0.0, 0.0, 0.0), *work], axis=0)
        self.past.clear()
        self.past.append((time.monotonic(), self.first))

    def on_train_batch_end(self, batch, logs=None):
        now, done = time.monotonic(), min(batch + 1, len(self.done) - 1)
        if done <= self.first:
            self.past[0] = (now, self.first)
            return
        self.past.append((now, done))
        while len(self.past) > 2 and now - self.past[0][0] > WINDOW:
            self.past.popleft()
        begin, before = self.past[0]
        rates = (self.done[done] - self.done[before]) / max(now - begin, 1e-9)
        names = ("examples_per_second", "tokens_per_second", *(("gigaflops",) if self.flops else ()))
        self.found = {name: round(float(rate), 1) for name, rate in zip(names, rates, strict=False)}

    def on_epoch_end(self, epoch, logs=None):
        self.first = 0

    def gigaflops(self) -> float | None:
        """Model FLOP of the mean step / 1e9; None where nobody says."""
        if self.flops is None or not self.batches.sizes:
            return None
        return sum(rows * self.flops(length) for rows, length in self.batches.sizes) / 1e9 / len(self.batches.sizes)

    def _work(self, batch, lengths) -> tuple[float, float, float]:
        real = batch[0][batch[0] >= 0]
        rows, length = self.batches.computed(batch)
        return len(real), float(lengths[real].sum()), rows * self.flops(length) / 1e9 if self.flops else 0.0


def memory() -> dict[str, float]:
    """`memory_gb`: the most that this process had in memory; `gpu_memory_gb`: what the first GPU holds now."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"memory_gb": round(largest / 1e9, 2)}
    if gpus := tf.config.list_logical_devices("GPU"):
        found["gpu_memory_gb"] = round(tf.config.experimental.get_memory_info(gpus[0].name)["current"] / 1e9, 2)
    return found


def forward_flops(size: dict, length: int) -> float:
    """FLOP of a Transformer encoder's forward pass on one row: 2 a multiply-add, of its blocks alone.

    Four products of (T, D) with (D, D), two with the feed-forward's (D, F), and scores and values, each T x T x D.

    Arguments:
        size: `layers`, `width`, `feed_forward` of `TransformerEncoder.config`.
        length: T.
    """
    width = size["width"]
    inner = size.get("feed_forward") or 4 * width
    return size["layers"] * length * (2 * (4 * width * width + 2 * width * inner) + 4 * length * width)
