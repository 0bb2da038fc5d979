import keras
import numpy as np
import pytest

from tfkd import evaluate
from tfkd.data.pipeline import Batches
from tfkd.data.store import write_store
from tfkd.data.tokenizer import Tokenizer
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.tasks.classification import ClassificationHead

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(30))]


def model():
    keras.utils.set_random_seed(0)
    encoder = TransformerEncoder(len(PIECES), 1, 16, 2, max_positions=32, segments=0, initializer_range=0.3)
    return TransformerWithHead(encoder, ClassificationHead(3))


def test_predictions_are_in_the_order_of_the_rows(tmp_path):
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in random.integers(0, 30, random.integers(1, 25))) for _ in range(45)]
    tokenizer, student = Tokenizer(PIECES), model()
    store = write_store(tmp_path / "test", ({"text": text, "label": 0} for text in texts), tokenizer, max_length=32)
    done = []
    logits = evaluate.predict(student, Batches(store, 8, [8, 16, 32]), done.append)
    one_by_one = [student(tokenizer.padded([text], max_length=32)).numpy()[0] for text in texts]
    np.testing.assert_allclose(logits, one_by_one, atol=1e-5)
    assert logits.dtype == np.float32 and done == [1, 2, 3, 4, 5, 6]


def test_parameters_are_the_trained_numbers_by_hand():
    # Embeddings (35 + 32) x 16, four layer norm vectors in the block and two after the embedding, attention 4 x (16 x 16 + 16),
    # feed-forward 2 x 16 x 64 + 64 + 16, head 16 x 16 + 16 and 16 x 3 + 3.
    by_hand = (35 + 32) * 16 + 6 * 16 + 4 * (16 * 16 + 16) + 2 * 16 * 64 + 64 + 16 + 16 * 16 + 16 + 16 * 3 + 3
    assert evaluate.parameters(model()) == by_hand


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "nowhere: no such run directory"), (["{here}"], "config.yaml is missing")],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    assert evaluate.main([argument.format(here=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
