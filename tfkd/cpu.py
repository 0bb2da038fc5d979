"""What TensorFlow is told about the CPU before it is imported."""

import os


def use_onednn() -> None:
    """Has TensorFlow take oneDNN's products and its pool of memory, unless `TF_ENABLE_ONEDNN_OPTS` says otherwise.

    By itself it does so only on CPUs with AVX-512 or newer. With AVX2 alone Eigen's products are slower, and the memory of a step
    goes back to the system after each operation and is handed out anew, page by page, zeroed: up to two fifths of the
    processors' time, measured (benchmarks/README.md).
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
