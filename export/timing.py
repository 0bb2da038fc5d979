"""How long one request takes."""

import time
from collections.abc import Callable, Sequence

import numpy as np


def measure(call: Callable, requests: Sequence, warmup: int = 10) -> np.ndarray:
    """Milliseconds of `call(request)`, one request after another, (N,).

    The first calls of a runtime allocate and compile: `warmup` of them are made and not counted.
    """
    for index in range(warmup):
        call(requests[index % len(requests)])
    times = []
    for request in requests:
        begin = time.perf_counter()
        call(request)
        times.append(time.perf_counter() - begin)
    return np.asarray(times) * 1e3


def latency(milliseconds: np.ndarray) -> dict[str, float]:
    """(N,) -> the median and the value that one request in twenty exceeds."""
    return {name: round(float(np.percentile(milliseconds, at)), 4) for name, at in (("p50", 50), ("p95", 95))}
