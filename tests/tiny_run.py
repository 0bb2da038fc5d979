"""A finished run with an untrained student, small enough to be exported again and again."""

import json
import pathlib

import keras
import numpy as np

from tfkd import config
from tfkd.layers.head import ClassificationHead
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.run_dir import RunDir

WORDS = "red green blue cat dog bird runs sleeps sings big small old new and not never very"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + WORDS.split() + list("abcdefghijklmnopqrstuvwxyz")
PIECES += [f"##{character}" for character in "aeioustrnldmcpgh"]
LABELS = ["colours", "animals", "[verbs] of é"]
LENGTH = 12


def build_model(segments: int = 0, policy: str = "float32", **dimensions) -> TransformerWithHead:
    """An untrained student whose weights are large enough for its answers to differ."""
    keras.utils.set_random_seed(7)
    dimensions = {"layers": 1, "width": 16, "heads": 2, **dimensions}
    pooling = dimensions.pop("pooling", "first")
    encoder = TransformerEncoder(len(PIECES), max_positions=16, segments=segments, dtype=policy, **dimensions)
    student = TransformerWithHead(encoder, ClassificationHead(len(LABELS), pooling, dtype=policy), dtype=policy)
    generator = np.random.default_rng(7)
    deviation = 1.6 / dimensions["width"] ** 0.5
    student.set_weights([w + generator.normal(0, deviation, w.shape).astype(w.dtype) for w in student.get_weights()])
    return student


def build_run(path: pathlib.Path, pairs: bool = False, examples: int = 40, policy: str = "float32", **dimensions) -> RunDir:
    """A finished run with such a student, its own vocabulary, and as many test examples of its words."""
    run = RunDir(path)
    path.mkdir(parents=True)
    build_model(2 if pairs else 0, policy, **dimensions).save(run.student)
    run.vocabulary.write_text("".join(piece + "\n" for piece in PIECES), encoding="utf-8")
    run.labels.write_text("".join(label + "\n" for label in LABELS), encoding="utf-8")
    run.tokenizer.write_text(json.dumps({"lowercase": True, "max_length": LENGTH, "pairs": pairs}))
    generator = np.random.default_rng(7)
    texts = [" ".join(generator.choice(WORDS.split(), generator.integers(0, 16))) for _ in range(2 * examples)]
    rows = [{"row": row, "text": texts[row], "label": LABELS[row % 3]} for row in range(examples)]
    for row in rows if pairs else ():
        row["text_pair"] = texts[examples + row["row"]]
    run.examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.path / "calibration.jsonl").write_text("".join(json.dumps({"text": text, "text_pair": text}) + "\n" for text in texts))
    tree = {"data": {"builtin": "docstrings", "max_length": LENGTH}, "student": {"dimensions": {}}}
    run.config.write_text(config.dump(config.parse({**tree, "teacher": {"dimensions": {}, "train": {}}})))
    return run


def tokens(text: str) -> list[int]:
    """WordPiece by hand, for texts of whole words."""
    return [2, *(PIECES.index(word) for word in text.split())][: LENGTH - 1] + [3]


def batch_of(*texts: str, length: int | None = None) -> dict[str, np.ndarray]:
    """Inputs by hand, padded to `length` or to the longest of them."""
    rows = [tokens(text) for text in texts]
    length = length or max(map(len, rows))
    padded = [(row + [0] * (length - len(row)), [1] * len(row) + [0] * (length - len(row))) for row in rows]
    ids, mask = zip(*padded, strict=True)
    return {"token_ids": np.asarray(ids, "int32"), "padding_mask": np.asarray(mask, "int32")}
