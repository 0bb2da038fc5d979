"""MediaPipe Tasks' own `TextClassifier`, in a process of its own, reads raw text as this repository's tokenizer does."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from export import inference, mediapipe
from tests.tiny_run import LABELS
from tfkd.data.docstrings import Docstrings
from tfkd.data.tokenizer import Tokenizer, learn_vocabulary
from tfkd.layers.head import ClassificationHead
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="mediapipe is not installed"),
]

LENGTH = 32
CLASSIFY = """
import json, pathlib, sys
from mediapipe.tasks.python import text
from mediapipe.tasks.python.core.base_options import BaseOptions

options = text.TextClassifierOptions(base_options=BaseOptions(model_asset_path=sys.argv[1]))
with text.TextClassifier.create_from_options(options) as classifier:
    answers = []
    for line in json.loads(pathlib.Path(sys.argv[2]).read_text()):
        (head,) = classifier.classify(line).classifications
        answers.append({each.category_name: each.score for each in head.categories})
pathlib.Path(sys.argv[3]).write_text(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def sentences():
    """Sentences as people write them, capitals and punctuation and all, in ASCII; MediaPipe says of others that it differs."""
    texts = (example["text"] for example in Docstrings().rows("test"))
    chosen = [text for text in texts if text.isascii()]
    assert sum(text != text.lower() for text in chosen[:500]) > 250
    return chosen[:500]


@pytest.fixture(scope="module")
def student(sentences):
    keras.utils.set_random_seed(11)
    pieces = learn_vocabulary(sentences, 1500)
    encoder = TransformerEncoder(len(pieces), 2, 32, 2, max_positions=LENGTH, segments=0, initializer_range=0.3)
    model = TransformerWithHead(encoder, ClassificationHead(len(LABELS)))
    model.set_weights([w + np.random.default_rng(1).normal(0, 0.3, w.shape).astype(w.dtype) for w in model.get_weights()])
    return inference.Student(model, Tokenizer(pieces), tuple(LABELS), False, LENGTH, (LENGTH,))


def classified(path: pathlib.Path, texts: list[str], folder: pathlib.Path) -> list[dict[str, float]]:
    """What MediaPipe answers, label -> score."""
    (folder / "texts").write_text(json.dumps(texts))
    command = [sys.executable, "-c", CLASSIFY, path, folder / "texts", folder / "answers"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "answers").read_text())


def from_token_ids(path: pathlib.Path, student, texts: list[str]) -> np.ndarray:
    """What the same file answers to this repository's tokens, (N, C)."""
    ask = Interpreter(model_path=str(path)).get_signature_runner(mediapipe.SIGNATURE)
    features = student.encode([text.encode() for text in texts], None, LENGTH)
    none = np.zeros((1, LENGTH), "int32")
    rows = ({name: np.asarray(values[row : row + 1]) for name, values in features.items()} for row in range(len(texts)))
    return np.concatenate([ask(**row, segment_ids=none)["scores"] for row in rows])


@pytest.mark.parametrize("variant", ("float32", "int8_dynamic"))
def test_mediapipe_gives_500_sentences_the_label_and_the_scores_that_our_tokens_get(variant, student, sentences, tmp_path):
    path = tmp_path / "model.tflite"
    {"float32": mediapipe.write_float32, "int8_dynamic": mediapipe.write_int8_dynamic}[variant](student, path)
    texts = [*sentences, "", " ", "word " * 1000, "x" * 300, "[SEP] [CLS] a-b_c's 3.14"]
    ours, theirs = from_token_ids(path, student, texts), classified(path, texts, tmp_path)
    assert len(theirs) == 505
    assert [max(answer, key=answer.get) for answer in theirs] == [LABELS[best] for best in ours.argmax(axis=1)]
    np.testing.assert_allclose([[answer[label] for label in LABELS] for answer in theirs], ours, atol=1e-3)
    assert len(set(ours.argmax(axis=1))) > 1  # a student that gives one answer would prove nothing


def test_the_note_is_true_mediapipe_keeps_accents_and_capitals_beyond_ascii(student, sentences, tmp_path):
    path = tmp_path / "model.tflite"
    mediapipe.write_float32(student, path)
    plain, accented = "RETURN the result", "RÉTURN the result"
    one, other = (np.array(list(answer.values())) for answer in classified(path, [plain, accented], tmp_path))
    ours = from_token_ids(path, student, [plain, accented])
    np.testing.assert_allclose(ours[0], ours[1], atol=1e-6)  # our tokenizer reads é and É as e
    assert np.abs(np.sort(one) - np.sort(other)).max() > 1e-3
