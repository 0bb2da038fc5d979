"""From a source to tokenized splits on disk, done once for the same data, vocabulary and lengths."""

import hashlib
import json
import pathlib
from collections.abc import Iterator

from tfkd.data.sources import Source
from tfkd.data.store import Store, write_store
from tfkd.data.tokenizer import Tokenizer
from tfkd.lock import one_after_another

FORMAT = 2
"""Of a store's files; a change of it makes old caches unused."""


def prepare(source: Source, tokenizer: Tokenizer, max_length: int, cache: pathlib.Path, update=None) -> dict[str, Store]:
    """Tokenizes every split into `cache`, or opens it there.

    Arguments:
        source: the examples, and what their targets are.
        tokenizer: turns text into word pieces.
        max_length: longest row in word pieces.
        cache: folder; the stores lie in it under a digest of all that they depend on.
        update: is told the number of examples done.

    Returns:
        Store by split.

    Raises:
        UserError: a file changed while it was read; nothing of it is kept.
    """
    folder = cache / "data" / prepared_key(source, tokenizer, max_length)
    stores, before = {}, 0
    for split in source.splits:
        path = folder / split
        told = None if update is None else lambda examples, before=before: update(before + examples)
        with one_after_another(folder.with_suffix(".lock")):  # of several runs one tokenizes, and the others find it done
            if (path / "about.json").exists():
                stores[split] = Store(path, source.target)
            else:
                examples = _unchanged(source, split)
                stores[split] = write_store(path, examples, tokenizer, max_length, source.target, told)
        before += stores[split].examples
    return stores


def _unchanged(source: Source, split: str) -> Iterator[dict]:
    """The examples of a split, where all of them are those that the source's key stands for."""
    yield from source.examples(split)
    source.check_unchanged()


def prepared_key(source: Source, tokenizer: Tokenizer, max_length: int) -> str:
    """Hex digest of data and preprocessing: changes when any token id, label or row could."""
    parts = {
        "format": FORMAT,
        "source": source.key,
        "pieces": hashlib.sha256("\n".join(tokenizer.pieces).encode()).hexdigest(),
        "lowercase": tokenizer.lowercase,
        "max_length": max_length,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
