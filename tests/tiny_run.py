"""A finished run with a student that is untrained, or nearly so, and small enough to be exported again and again."""

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


def train(student: TransformerWithHead, steps: int) -> TransformerWithHead:
    """Teach the student to tell colours, animals and verbs, so that its answers are sure enough to survive 8 bits."""
    generator, kinds = np.random.default_rng(3), np.array(WORDS.split()[:9]).reshape(3, 3)
    student.set_weights([w * 0.2 if w.ndim > 1 else w for w in student.get_weights()])
    student.compile(keras.optimizers.Adam(3e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for _ in range(steps):
        labels = generator.integers(0, 3, 64)
        texts = [generator.permutation([*generator.choice(WORDS.split()[9:], 6), generator.choice(kinds[k])]) for k in labels]
        student.train_on_batch(batch_of(*(" ".join(text) for text in texts), length=LENGTH), labels)
    return student


def build_run(
    path: pathlib.Path, pairs: bool = False, examples: int = 40, policy: str = "float32", steps: int = 0, **dimensions
) -> RunDir:
    """A finished run with such a student after `steps` of training, its own vocabulary and as many examples."""
    run = RunDir(path)
    path.mkdir(parents=True)
    student = build_model(2 if pairs else 0, policy, **dimensions)
    (train(student, steps) if steps else student).save(run.student)
    run.vocabulary.write_text("".join(piece + "\n" for piece in PIECES), encoding="utf-8")
    run.labels.write_text("".join(label + "\n" for label in LABELS), encoding="utf-8")
    run.tokenizer.write_text(json.dumps({"lowercase": True, "max_length": LENGTH, "pairs": pairs}))
    generator = np.random.default_rng(7)
    texts = [" ".join(generator.choice(WORDS.split(), generator.integers(0, 16))) for _ in range(2 * examples)]
    if steps:  # one word that says the answer among those that say nothing
        silent, telling = WORDS.split()[9:], WORDS.split()[:9]
        texts = [" ".join([*generator.choice(silent, row % 9), telling[row % 9]]) for row in range(2 * examples)]
    rows = [{"row": row, "text": texts[row], "label": LABELS[row % 9 // 3 if steps else row % 3]} for row in range(examples)]
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
