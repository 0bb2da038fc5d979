"""Rows as a file of JSON lines, and as the store that training reads."""

import json
import pathlib

from tfkd.data.files import Files
from tfkd.data.store import Store, write_store
from tfkd.data.target import Target
from tfkd.data.tokenizer import Tokenizer


def write(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def store_rows(folder: pathlib.Path, rows: list[dict], tokenizer: Tokenizer, target: Target, max_length: int) -> Store:
    """Reads rows from a file, as a run does, and tokenizes them into `folder`."""
    files = Files({"train": write(folder / "train.jsonl", rows)}, target)
    return write_store(folder / "store", files.rows("train"), tokenizer, max_length, target)
