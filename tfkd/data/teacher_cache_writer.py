"""Asks a teacher about every row once and keeps the answers, in pieces that are there whole or not at all."""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from tfkd.data.store import Store
from tfkd.data.teacher_cache import FORMAT, MANIFEST, TeacherCache, check_fixed, is_whole, manifest_digest, row_bytes
from tfkd.data.teacher_tensors import LARGEST, at, not_finite, tensors
from tfkd.errors import UserError
from tfkd.run_dir import remove, sha256, size, whole, write_json

CHUNK_BYTES = 64 << 20
MOST_ROWS, FEWEST_ROWS = 4096, 8
"""Of a chunk: what a kill costs at most, and how many a teacher can still be asked about at once. All attention scores of a
BERT-base over 512 positions are 75 MB a row; a chunk is in memory twice, as the teacher's answers and as their bytes."""

SECONDS_BETWEEN_LOOKS = 0.5

ASKING, CHECKING = "teacher's outputs", "check teacher's outputs"


@contextlib.contextmanager
def _unseen(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    yield lambda done, text: None


def write_cache(
    path: str | os.PathLike,
    teacher,
    names,
    store: Store,
    buckets: list[int],
    batch_size: int,
    top_k: int | None = None,
    bar=_unseen,
    say: Callable[[str], None] = lambda line: None,
    jit_compile: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
    team=None,
    beside: Iterable[pathlib.Path] = (),
) -> TeacherCache:
    """Opens the cache at `path`, first writing what of it is missing or damaged.

    Rows lie in the store's order, in chunks, each file named by its number and its SHA-256; the manifest comes last. A
    process killed at any moment leaves whole chunks, and the next call goes on after them to the same bytes: what a
    chunk holds follows from its own rows alone. Of several processes one writes, and the others wait for it.

    Arguments:
        path: the folder; name it by `cache_key`.
        teacher: an object `teacher(inputs, names) -> {name: tensor}` with `shapes(names) -> {name: shape}`, None in a
            shape for B and T, and None for the shape of logits that the model cannot say.
        names: tensors to keep; `logits` always are.
        store: the rows.
        buckets: padded lengths, rising, the last at least the longest row.
        batch_size: rows that the teacher is asked about at once.
        top_k: of logits that a softmax over their last axis reads, keep the k largest and one value for the others (see
            `TopKTensor`).
        bar: `bar(title, rows)` is a context that gives `update(rows done, text)`, as `tfkd.progress.Display.bar`: of the asking,
            and before it of the checking of what is there, which reads every byte.
        say: is told how large the cache will be, before it is written.
        jit_compile: compile the teacher with XLA, once for each bucket.
        chunk_bytes: about the largest file.
        team: a `tfkd.multi_worker.Team`, whose workers write a part of the chunks each. Where they share no disk, each then
            writes the others' too.
        beside: `caches_beside` the path: one that is finished and holds all of `names` is opened in place of a new one.

    Raises:
        UserError: a value beyond float16, with its row; no space, no permission; a task that draws what it reads of a row.
        ValueError: `path` holds other tensors, or those of other rows.
    """
    check_fixed(store)
    path = pathlib.Path(path)
    names = tuple(dict.fromkeys(("logits", *names)))
    layout = tensors(_shapes(teacher, names, store, buckets), top_k)
    writer = _Writer(path, layout, store, chunk_bytes, bar)

    def fill(chunks):
        missing = writer.missing(chunks)
        if not missing:
            return
        writer.check_space()
        say(
            f"Teacher's outputs: {', '.join(names)} of {len(store):,} rows are to take {_megabytes(int(writer.sizes.sum()))} "
            f"in {path}"
        )
        ask = _compiled(teacher, names, layout, jit_compile)
        batch = min(batch_size, writer.chunk_rows)
        with writer.bar(ASKING) as update:
            update(int(writer.rows(missing[0])[0]))  # once: between a worker's chunks lie those of the others
            for index in missing:
                writer.write(index, _answers(ask, writer.rows(index), layout, store, buckets, batch, update))

    with _one_line(path):
        found = _finished(writer)
        found = _with_more(beside, writer) if found is None else found
    if team is not None and team.count > 1:
        if found is None:
            with _alone(writer, together=True):
                fill(range(team.index, writer.chunks, team.count))
        team.told()  # all have come to here
    if found is None:
        with _alone(writer):
            found = _finished(writer)  # by the process that was waited for
            if found is None:
                fill(range(writer.chunks))
                writer.finish(top_k)
                found = TeacherCache(path, verify=False)
    return found.only(names)


def _finished(writer: "_Writer") -> TeacherCache | None:
    """The cache that is to be written, where it is whole."""
    cache = _manifested(writer.path)
    if cache is None:
        return None
    if not _holds(cache, writer):
        raise ValueError(f"{writer.path}: a teacher cache of other tensors or rows; name each cache's folder by its cache_key")
    return cache if _whole(cache, writer) else None  # damaged: what is whole of it is kept


def _with_more(beside: Iterable[pathlib.Path], writer: "_Writer") -> TeacherCache | None:
    """A whole one of the caches `beside` that holds all tensors of the one that is to be written, the smallest first."""
    caches = [cache for cache in map(_manifested, beside) if cache is not None and _holds(cache, writer)]
    return next((cache for cache in sorted(caches, key=lambda cache: cache.bytes) if _whole(cache, writer)), None)


def _manifested(path: pathlib.Path) -> TeacherCache | None:
    """A cache that says it is finished; its chunks are not looked at."""
    if not (path / MANIFEST).exists():
        return None
    try:
        return TeacherCache(path, verify=False)
    except UserError:  # damaged
        return None


def _holds(cache: TeacherCache, writer: "_Writer") -> bool:
    """Whether a cache is of these rows and holds these tensors, or more."""
    asked, held = ([(type(tensor), tensor.name, tensor.parts) for tensor in each] for each in (writer.layout, cache.tensors))
    return all(each in held for each in asked) and np.array_equal(cache.lengths, writer.lengths)


def _whole(cache: TeacherCache, writer: "_Writer") -> bool:
    with writer.bar(CHECKING) as update:
        return not cache.damaged(update)


class _Writer:
    """The files of a cache that is being written."""

    def __init__(self, path: pathlib.Path, layout: list, store: Store, chunk_bytes: int, bar):
        self.path, self.layout = path, layout
        self.lengths = np.asarray(store.lengths, "<i4")
        self.sizes = row_bytes(layout, self.lengths)
        mean = max(int(self.sizes.sum()) // max(len(self.sizes), 1), 1)
        self.chunk_rows = min(max(chunk_bytes // mean, FEWEST_ROWS), MOST_ROWS)
        self.chunks = -(-len(self.lengths) // self.chunk_rows)
        self.entries: list[dict] = [{} for _ in range(self.chunks)]
        self._bar = bar

    @contextlib.contextmanager
    def bar(self, title: str) -> Iterator[Callable[[int], None]]:
        """A bar over all rows; gives `update(rows done)`."""
        rows = len(self.lengths)
        with self._bar(title, rows) as update:
            yield lambda done: update(min(done, rows), f"{rows:,} rows")

    def rows(self, index: int) -> np.ndarray:
        return np.arange(index * self.chunk_rows, min((index + 1) * self.chunk_rows, len(self.lengths)))

    def count(self) -> int:
        """How many chunks are there."""
        return sum(".partial" not in file.name for file in self.path.glob("chunk-*.bin"))

    def missing(self, chunks: Iterable[int]) -> list[int]:
        """Those of `chunks` that are not there whole."""
        if not self.count():
            return list(chunks)
        found = []
        with self.bar(CHECKING) as update:
            for index in chunks:
                found += [] if self.has(index) else [index]
                update((index + 1) * self.chunk_rows)
        return found

    def has(self, index: int) -> bool:
        """Whether a chunk is there whole; what is not is removed."""
        if self.entries[index]:
            return True
        expected = int(self.sizes[self.rows(index)].sum())
        for file in sorted(self.path.glob(f"chunk-{index:06}-*")):
            digest = file.name.removesuffix(".bin").rpartition("-")[2]
            if is_whole(file, expected, digest):
                self.entries[index] = {"file": file.name, "bytes": expected, "sha256": digest}
                return True
            with _one_line(self.path):
                (self.path / MANIFEST).unlink(missing_ok=True)  # it vouches for this file
                remove(file)
        return False

    def check_space(self) -> None:
        """Raises `UserError` where the disk cannot hold what is missing."""
        with _one_line(self.path):
            free = shutil.disk_usage(self.path).free
        missing = int(self.sizes.sum()) - size(self.path)
        if missing > free:
            raise UserError(
                f"{self.path}: {_megabytes(missing)} of teacher outputs are to be written and {_megabytes(free)} are free; "
                "make room, set TFKD_CACHE to a folder on another disk, or use teacher.cache: false"
            )

    def write(self, index: int, answers: Iterator[tuple[int, bytes]]) -> None:
        """Writes a chunk of the rows' records, given in any order."""
        rows = self.rows(index)
        ends = np.cumsum(self.sizes[rows])
        data = memoryview(bytearray(int(ends[-1])))
        for row, record in answers:
            end = int(ends[row - rows[0]])
            data[end - len(record) : end] = record
        digest = hashlib.sha256(data).hexdigest()
        name = f"chunk-{index:06}-{digest}.bin"
        with _one_line(self.path), whole(self.path / name) as beside:
            beside.write_bytes(data)
        self.entries[index] = {"file": name, "bytes": len(data), "sha256": digest}

    def finish(self, top_k: int | None) -> None:
        """Writes the manifest, and removes what it does not list."""
        lengths = self.path / "lengths.int32"
        with _one_line(self.path):
            with whole(lengths) as beside:
                beside.write_bytes(self.lengths.tobytes())
            about = {
                "format": FORMAT,
                "rows": len(self.lengths),
                "chunk_rows": self.chunk_rows,
                "shapes": {tensor.name: list(tensor.shape) for tensor in self.layout},
                "top_k": top_k,
                "lengths": {"file": lengths.name, "bytes": self.lengths.nbytes, "sha256": sha256(lengths)},
                "chunks": self.entries,
            }
            for file in set(self.path.glob("chunk-*")) - {self.path / entry["file"] for entry in self.entries}:
                remove(file)
            write_json(self.path / MANIFEST, about | {"sha256": manifest_digest(about)})


def _shapes(teacher, names, store: Store, buckets: list[int]) -> dict[str, tuple]:
    """Name -> shape with B; where the teacher cannot say, as it answers for one row."""
    shapes = dict(teacher.shapes(names))
    if None in shapes.values():
        if not len(store):
            raise ValueError(f"{store.path} has no rows: the shape of the teacher's answer cannot be found out")
        length = int(buckets[-1])
        answer = teacher(tf.nest.map_structure(tf.constant, store.gather(np.zeros(1, int), length)), names)
        for name, shape in shapes.items():
            if shape is None:
                seen = tuple(answer[name].shape)
                shapes[name] = (None, None, *seen[2:]) if len(seen) > 2 and seen[1] == length else (None, *seen[1:])
    return shapes


def _compiled(teacher, names, layout, jit_compile: bool) -> Callable[[dict], list]:
    """`inputs` -> for each tensor of the layout its parts, NumPy."""

    @tf.function(jit_compile=jit_compile, reduce_retracing=True)
    def graph(inputs):
        answer = teacher(inputs, names)
        return [tensor.encode(tf.convert_to_tensor(answer[tensor.name])) for tensor in layout]

    return lambda inputs: [[part.numpy() for part in parts] for parts in graph(tf.nest.map_structure(tf.constant, inputs))]


def _answers(ask, rows, layout, store, buckets, batch_size, update) -> Iterator[tuple[int, bytes]]:
    """Each of `rows` with its record. The teacher sees them by length, in batches of one size, as few shapes as buckets."""
    by_length = rows[np.argsort(store.lengths[rows], kind="stable")]
    by_length = np.concatenate([np.full(-len(rows) % batch_size, -1), by_length])
    done = int(rows[0])
    for batch in by_length.reshape(-1, batch_size):
        length = int(buckets[min(np.searchsorted(buckets, store.lengths[batch[-1]]), len(buckets) - 1)])
        answer = ask(store.gather(batch, length))
        for tensor, parts in zip(layout, answer, strict=True):
            for part, shape in zip(parts, tensor.parts, strict=True):
                if part.shape != (batch_size, *at(shape, length)):
                    raise ValueError(f"teacher: {tensor.name} is {part.shape}, not {(batch_size, *at(shape, length))}")
        for place, row in enumerate(batch):
            if row >= 0:
                yield row, b"".join(_record(layout, answer, place, row, int(store.lengths[row])))
                done += 1
        update(done)


def _record(layout, answer, place: int, row: int, length: int) -> Iterator[bytes]:
    for tensor, parts in zip(layout, answer, strict=True):
        for values in tensor.pack([part[place, ...] for part in parts], length):
            if not_finite(values):
                beyond = f"a value beyond {LARGEST:,}, the largest of float16" if values.dtype == "float16" else "infinity"
                what = "NaN" if np.isnan(values).any() else beyond
                raise UserError(
                    f"teacher: {tensor.name} of row {row} (counted from 0) has {what}: it cannot be cached; use teacher.cache: "
                    "false, or a teacher whose numbers are sound"
                )
            yield values.tobytes()


@contextlib.contextmanager
def _alone(writer: _Writer, together: bool = False) -> Iterator[None]:
    """Holds the folder's lock, which a process lets go of even as it is killed; `together`: beside others who do so too."""
    kind = fcntl.LOCK_SH if together else fcntl.LOCK_EX
    with contextlib.ExitStack() as files:
        with _one_line(writer.path):
            writer.path.mkdir(parents=True, exist_ok=True)
            lock = files.enter_context(open(writer.path / "lock", "a+b"))
            if not _taken(lock, kind):
                with writer.bar(ASKING) as update:  # as far as the one who holds it has come
                    while not _taken(lock, kind):
                        update(writer.count() * writer.chunk_rows)
                        time.sleep(SECONDS_BETWEEN_LOOKS)
        yield


def _taken(lock, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _one_line(path: pathlib.Path) -> Iterator[None]:
    """Says what the system says of a file: no space, no permission, a read-only disk."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: the teacher's outputs cannot be kept there: {error.strerror or error}; what is done stays: make room or "
            "give permission and run again, set TFKD_CACHE to another folder, or use teacher.cache: false"
        ) from error


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
