import json

import keras
import numpy as np
import pytest
import scipy.stats

from tfkd import evaluate, run_dir
from tfkd.data.pipeline import Batches
from tfkd.data.store import write_store
from tfkd.data.targets import Class
from tfkd.data.tokenizer import Tokenizer
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.tasks.classification import ClassificationHead
from tfkd.tasks.table import TASKS

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(30))]


def model():
    keras.utils.set_random_seed(0)
    encoder = TransformerEncoder(len(PIECES), 1, 16, 2, max_positions=32, segments=0, initializer_range=0.3)
    return TransformerWithHead(encoder, ClassificationHead(3))


def test_predictions_are_in_the_order_of_the_rows(tmp_path):
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in random.integers(0, 30, random.integers(1, 25))) for _ in range(45)]
    tokenizer, student = Tokenizer(PIECES), model()
    rows = ({"text": text, "label": 0} for text in texts)
    store = write_store(tmp_path / "test", rows, tokenizer, 32, Class(labels=["a", "b"]))
    done = []
    logits = evaluate.predict(student, Batches(store, 8, [12, 32]), done.append)
    one_by_one = [student(tokenizer.padded([text], max_length=32)).numpy()[0] for text in texts]
    np.testing.assert_allclose(logits, one_by_one, atol=1e-5)
    assert logits.dtype == np.float32 and done == [1, 2, 3, 4, 5, 6]


def test_parameters_are_the_trained_numbers_by_hand():
    # Embeddings (35 + 32) x 16, four layer norm vectors in the block and two after the embedding, attention 4 x (16 x 16 + 16),
    # feed-forward 2 x 16 x 64 + 64 + 16, head 16 x 16 + 16 and 16 x 3 + 3.
    by_hand = (35 + 32) * 16 + 6 * 16 + 4 * (16 * 16 + 16) + 2 * 16 * 64 + 64 + 16 + 16 * 16 + 16 + 16 * 3 + 3
    assert evaluate.parameters(model()) == by_hand


class ForEachPosition(keras.layers.Layer):
    """A head that answers for every position: the hidden states, three times the first number of each."""

    names, first_only, classes = (), False, 2

    def call(self, hidden, padding_mask, training=None):
        return keras.ops.concatenate([hidden[..., :1], 3.0 * hidden[..., :1]], axis=-1), {}


def test_answers_for_positions_are_kept_without_padding_one_row_behind_the_other(tmp_path):
    random = np.random.default_rng(1)
    texts = [" ".join(f"w{i}" for i in random.integers(0, 30, random.integers(1, 25))) for _ in range(21)]
    tokenizer, encoder = Tokenizer(PIECES), model().encoder
    tagger = TransformerWithHead(encoder, ForEachPosition())
    rows = ({"text": text, "label": 0} for text in texts)
    store = write_store(tmp_path / "test", rows, tokenizer, 32, Class(labels=["a", "b"]))
    found = evaluate.predict(tagger, Batches(store, 4, [12, 32]))
    assert found.shape == (store.lengths.sum(), 2)
    alone = [tagger(tokenizer.padded([text], max_length=32)).numpy()[0] for text in texts]
    expected = [answers[:length] for answers, length in zip(alone, store.lengths, strict=True)]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)
    kept = evaluate.predict(tagger, Batches(store, 4, [12, 32]), keep=lambda logits, y: logits[..., 1:])
    np.testing.assert_array_equal(kept, found[:, 1:])


def finished_run(path, task, pairs, labels):
    """A run as training leaves it, of models that were never trained."""
    run = run_dir.RunDir(path)
    columns = {"text": "text", "text_pair": "other" if pairs else None, "label": "label"}
    small = {"layers": 1, "width": 16, "heads": 2}
    config = {"task": task, "data": {"files": {"train": "nowhere.csv"}, "columns": columns}, "export": {"formats": []}}
    config |= {"teacher": {"dimensions": small, "train": {}}, "student": {"dimensions": small}, "evaluate": {"bootstrap": 100}}
    run_dir.write_json(run.config, config)  # JSON is YAML
    Tokenizer(PIECES).write(run.vocabulary)
    run_dir.write_json(run.tokenizer, {"lowercase": True, "max_length": 32, "pairs": pairs})
    run_dir.write_text(run.labels, "".join(f"{label}\n" for label in labels))
    models = {}
    for role, place in (("teacher", run.teacher / "model.keras"), ("student", run.student)):
        keras.utils.set_random_seed(len(models))
        encoder = TransformerEncoder(len(PIECES), **small, max_positions=32, segments=2 if pairs else 0, initializer_range=0.5)
        models[role] = TransformerWithHead(encoder, TASKS[task]().head(len(labels)))
        with run_dir.whole(place) as beside:
            models[role].save(beside)
    return run, models


def test_pairs_are_measured_on_another_file_with_columns_of_its_own(tmp_path, capsys):
    run, models = finished_run(tmp_path / "run", "regression", True, ["label"])
    random = np.random.default_rng(2)
    rows = [{"one": f"w{i} w{j}", "two": f"w{k}", "score": float(s)} for i, j, k, s in random.integers(0, 30, (25, 4))]
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--data", str(path), "--text", "one", "--text-pair", "two", "--label", "score"]
    assert evaluate.main([str(run), *options]) == 0
    found = run_dir.read_json(run.path / "evaluation-other.jsonl.json")
    texts = Tokenizer(PIECES).padded([row["one"] for row in rows], [row["two"] for row in rows], max_length=32)
    targets = [row["score"] for row in rows]
    for entry in found["models"]:
        predictions = models[entry["role"]](texts).numpy()[:, 0]
        assert entry["metrics"]["spearman"] == pytest.approx(scipy.stats.spearmanr(predictions, targets).statistic, abs=1e-6)
    assert found["examples"] == 25 and "Spearman" in capsys.readouterr().out
    swapped = ["--data", str(path), "--text", "two", "--text-pair", "one", "--column", "label=score"]
    assert evaluate.main([str(run), *swapped]) == 0  # segments matter: the other order is another question
    again = run_dir.read_json(run.path / "evaluation-other.jsonl.json")
    assert again["models"][1]["metrics"]["pearson"] != found["models"][1]["metrics"]["pearson"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "one"], "name columns of --data; name the file too"),
        (["--data", "{data}", "--column", "question"], "--column question: write KEY=COLUMN"),
        (["--data", "{data}", "--column", "words=w"], "data.columns.words: is not read here"),
        (["--data", "{data}", "--text-pair", "label"], "was trained on single texts: leave --text-pair out"),
        (["--data", "{data}", "--label", "text"], "row 1 (line 2): column text holds 'w1', not a finite number"),
        (["--data", "gone.csv"], "gone.csv: no such file"),
    ],
)
def test_columns_that_do_not_fit_the_run_are_one_line(tmp_path, capsys, options, message):
    run, _ = finished_run(tmp_path / "run", "regression", False, ["label"])
    data = tmp_path / "other.csv"
    data.write_text("text,label\nw1,3\nw2,4\n")
    assert evaluate.main([str(run), *(option.format(data=data) for option in options)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "nowhere: no such run directory"), (["{here}"], "config.yaml is missing")],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    assert evaluate.main([argument.format(here=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
