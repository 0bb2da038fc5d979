"""A teacher's answers on disk: asked once for every row, then read instead of computed, epoch after epoch and run after run.

Measured with 20,000 rows of SST-2's lengths (13 word pieces in the mean), teacher 6 layers of width 384 and 12 heads, in
milliseconds of one CPU core. "Gather" is `TeacherCache.gather`; a batch of 32 is a 35 ms step of a 2-layer student of width
128, a 194 ms step of one of 3 layers and width 384, and 1.2 ms of pipeline with the logits alone, 7.6 with all 14 tensors.

    kept                                               bytes a row    gather, 1,000 rows    gather, batch of 32
    logits of 2 classes                                          4                     4                    0.1
    and 6 hidden states                                     61,160                    83                    2.7
    and embeddings and 6 layers' attention scores          107,589                   133                    4.3
    logits of 30,522 pieces a position, top_k 32             2,502  (787,134 without top_k)                13.2
"""

import copy
import functools
import hashlib
import importlib.metadata
import json
import mmap
import os
import pathlib
import re
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tfkd.data.store import Store
from tfkd.data.teacher_tensors import at, tensors
from tfkd.errors import UserError
from tfkd.run_dir import read_json, sha256

FORMAT = 2
"""Of a cache's files and of how a teacher is asked; a change of it makes old caches unused."""

PREFIX = "teacher."
"""Before a tensor's name in a batch's inputs: `teacher.logits`."""

MANIFEST = "manifest.json"

MOST_OPEN = 128
"""Files of a cache that are mapped at a time: each takes a file descriptor, of which a process may have 1,024, or 256. They hold
8 GB; of a larger cache, shuffled, most rows need a file opened: 0.4 ms for a batch of 32 become 1.2 (375 files, one CPU core)."""

_REPAIR = "run again, which makes it anew, or delete the folder"


def model_digest(model: keras.Model) -> str:
    """Hex digest of a model's architecture and weights, however many models were made before it."""
    config = _without_counters(keras.saving.serialize_keras_object(model))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for weight in model.get_weights():
        digest.update(f"{weight.dtype}{weight.shape}".encode())
        digest.update(np.ascontiguousarray(weight).view("uint8").data)
    return digest.hexdigest()


def cache_key(teacher, store: Store, names, top_k: int | None = None) -> str:
    """Hex digests of all that a cache depends on: name its folder by it, and no cache is ever used for something else.

    What comes before the hyphen is of all but `names`: folders that begin alike hold more or fewer tensors of the same answers.

    Arguments:
        teacher: all that decides what the teacher says, as JSON can hold it: `model_digest` of its model, or
            `tfkd.run_dir.sha256` of its files; and where they are not the plain ones its tokenizer, the order of its classes,
            its own names of tensors, the weights of several.
        store: the rows; every file of theirs is read.
        names: the tensors asked for; `logits` are always among them.
        top_k: as in `write_cache`.
    """
    parts = {
        "format": FORMAT,
        "computed by": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "keras_hub": importlib.metadata.version("keras-hub"),
        },
        "teacher": teacher,
        "store": store.key,
        "rows": len(store),
        "top_k": top_k,
    }
    answers, kept = (
        hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for part in (parts, sorted({"logits", *names}))
    )
    return f"{answers[:32]}-{kept[:12]}"


def caches_beside(path: pathlib.Path) -> list[pathlib.Path]:
    """Folders beside `path`, named by `cache_key` as it is, that hold other tensors of the same answers."""
    return sorted(set(path.parent.glob(f"{path.name.rpartition('-')[0]}-*")) - {path})


def check_fixed(store: Store) -> None:
    """Raises `UserError` where a training draws anew what it reads of a row: no answer of a teacher then holds for long."""
    rows = np.arange(min(64, len(store)))
    length = int(store.lengths[rows].max(initial=1))
    read = store.target.batch(store, rows, length, np.random.default_rng(0))[0]
    if any(not np.array_equal(read[name], values) for name, values in store.gather(rows, length).items()):
        raise UserError(
            f"teacher.cache: true: the task ({store.target.kind}) draws anew each time what is read of a text, so that no answer "
            "holds for two epochs; use teacher.cache: false"
        )


class TeacherCache:
    """A finished cache, memory-mapped: only what a batch asks for is read.

    It is found by row, so that shuffling, buckets and replicas are all the same to it. In memory it takes 12 bytes a row.

    Arguments:
        path: a folder that `write_cache` wrote.
        verify: read every byte and compare it with its checksum first.

    Attributes:
        names: of the tensors that are read.
        lengths: (N,) int32, positions of each row.
        bytes: of all tensors on disk.

    Raises:
        UserError: it is not finished, or damaged.
    """

    def __init__(self, path: str | os.PathLike, verify: bool = True):
        self.path = pathlib.Path(path)
        about = read_json(self.path / MANIFEST)
        if not isinstance(about, dict) or about.pop("sha256", None) != manifest_digest(about):
            raise UserError(f"{self.path / MANIFEST} is damaged; {_REPAIR}")
        if about["format"] != FORMAT:
            raise UserError(f"{self.path} is a teacher cache of format {about['format']}, this is format {FORMAT}; {_REPAIR}")
        self.rows, self.chunk_rows, self.top_k = about["rows"], about["chunk_rows"], about["top_k"]
        self.files, lengths = about["chunks"], about["lengths"]
        self.tensors = tensors({name: (None, *shape) for name, shape in about["shapes"].items()}, self.top_k)
        self.names = tuple(tensor.name for tensor in self.tensors)
        self.bytes = sum(entry["bytes"] for entry in self.files)
        damaged = [] if _is_whole(self.path, lengths) else [self.path / lengths["file"]]
        damaged += self.damaged() if verify else []
        if damaged:
            raise UserError(f"{damaged[0]} is damaged or gone, {len(damaged)} of {len(self.files) + 1} files; {_REPAIR}")
        self.lengths = np.fromfile(self.path / lengths["file"], "<i4")
        self.starts = _starts(row_bytes(self.tensors, self.lengths), self.chunk_rows)
        self._chunk = functools.lru_cache(MOST_OPEN)(self._map)

    def __len__(self) -> int:
        return self.rows

    def damaged(self, progress: Callable[[int], None] = lambda rows: None) -> list[pathlib.Path]:
        """The chunks whose bytes are not those that were written, or that are gone; `progress` is told rows read so far."""
        found = []
        for number, entry in enumerate(self.files, start=1):
            if not _is_whole(self.path, entry):
                found.append(self.path / entry["file"])
            progress(min(number * self.chunk_rows, self.rows))
        return found

    def only(self, names) -> "TeacherCache":
        """The same cache, of which these tensors alone are read."""
        part = copy.copy(self)
        part.names = tuple(sorted(self.shapes(names)))
        return part

    def shapes(self, names) -> dict[str, tuple[int | None, ...]]:
        """Shape of each named tensor, None for B and for T.

        Raises:
            ValueError: it was not cached.
        """
        shapes = {tensor.name: (None, *tensor.shape) for tensor in self._read()}
        for name in names:
            if name not in shapes:
                raise ValueError(f"no tensor {name!r} in this teacher cache, which has {', '.join(self.names)}")
        return {name: shapes[name] for name in names}

    def gather(self, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """What the teacher said of `rows` (B,), each padded to `length`: (B, ...) under `teacher.NAME`, float16 as a rule.

        Padding is 0, the attention scores of padded keys are `MASKED_SCORE`. A row of -1 is all 0.
        """
        batch = {tensor.name: np.zeros((len(rows), *at(tensor.shape, length)), tensor.dtype) for tensor in self._read()}
        for place, row in enumerate(rows):
            if row >= 0:
                chunk, start, positions = self._chunk(row // self.chunk_rows), self.starts[row], int(self.lengths[row])
                for tensor in self.tensors:
                    stop = start + tensor.bytes(positions)
                    if tensor.name in batch:
                        tensor.unpack(chunk[start:stop], batch[tensor.name][place, ...], positions)
                    start = stop
        return {PREFIX + name: values for name, values in batch.items()}

    def signature(self, batch_size: int) -> dict[str, tf.TensorSpec]:
        """Of what `gather` returns."""
        return {PREFIX + t.name: tf.TensorSpec((batch_size, *t.shape), t.dtype) for t in self._read()}

    def _read(self) -> list:
        return [tensor for tensor in self.tensors if tensor.name in self.names]

    def _map(self, index: int) -> np.ndarray:
        """A chunk's bytes (N,) uint8; its file is closed when nobody holds them any more."""
        with open(self.path / self.files[index]["file"], "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), "uint8")


def _without_counters(value):
    """A serialized model without what says nothing of its answers: the numbers in automatic names, how it was compiled."""
    if isinstance(value, list | tuple):
        return [_without_counters(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {key: _without_counters(each) for key, each in value.items() if key != "compile_config"}
    config, kind = found.get("config"), found.get("class_name")
    if isinstance(config, dict) and isinstance(config.get("name"), str) and isinstance(kind, str):
        plain = re.sub(r"_\d+$", "", config["name"])
        if plain.replace("_", "") == kind.lower():
            config["name"] = plain
    return found


def manifest_digest(about: dict) -> str:
    """Hex digest of what a manifest says, so that it is known whole too."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def is_whole(path: pathlib.Path, size: int, digest: str) -> bool:
    """Whether a file is there with these bytes."""
    return path.is_file() and path.stat().st_size == size and sha256(path) == digest


def _is_whole(folder: pathlib.Path, entry: dict) -> bool:
    return is_whole(folder / entry["file"], entry["bytes"], entry["sha256"])


def row_bytes(tensors: list, lengths: np.ndarray) -> np.ndarray:
    """(N,) int64, bytes of each row's record."""
    lengths = np.asarray(lengths, "int64")
    return sum((np.broadcast_to(tensor.bytes(lengths), lengths.shape) for tensor in tensors), np.zeros_like(lengths))


def cache_bytes(shapes: dict, lengths: np.ndarray, top_k: int | None = None) -> int:
    """Bytes that a cache of rows of these lengths will take, to say before it is written."""
    return int(row_bytes(tensors(shapes, top_k), lengths).sum())


def _starts(sizes: np.ndarray, chunk_rows: int) -> np.ndarray:
    """(N,) int64, where in its chunk each row begins."""
    starts = np.cumsum(sizes) - sizes
    for first in range(0, len(starts), chunk_rows):
        starts[first : first + chunk_rows] -= starts[first]
    return starts
