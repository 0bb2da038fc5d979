"""Examples of several rows, such as pairs of sentences and questions with their windows: asked whole, or not at all."""

import json
import types

import numpy as np
import pytest
from scipy import stats

from export import examples, inference, questions
from export.__main__ import main as export
from export.parity import FLOAT32, Answers, Tolerance, compare
from tests.tiny_run import build_model
from tfkd import config, outputs
from tfkd.data.pipeline import Batches
from tfkd.data.sentences import Sentences
from tfkd.data.spans import Spans
from tfkd.data.store import Store, write_store
from tfkd.data.tokenizer import SPECIAL, Tokenizer
from tfkd.errors import UserError
from tfkd.evaluate import predict
from tfkd.models.with_head import TransformerWithHead
from tfkd.run_dir import RunDir
from tfkd.tasks.question_answering import QuestionAnswering
from tfkd.tasks.question_answering_metrics import QuestionAnsweringMeasure

TREE = {"data": {"builtin": "docstrings"}, "teacher": {"dimensions": {}, "train": {}}, "student": {"dimensions": {}}}


def finished(path, rows: Store, tokenizer: Tokenizer, student=None) -> RunDir:
    """What a run with such a test split holds for its exports; predictions are what `student` answers to token ids (R, T)."""
    run = RunDir(path)
    path.mkdir(exist_ok=True)
    rows.target.labels = rows.target.labels or []
    outputs.write_inputs(run, config.parse(TREE), tokenizer, rows, rows)
    said = {} if student is None else {"student": student, "teacher": student}
    outputs.write_predictions(run, rows.target.truth(rows), said)
    return run


def kept(run: RunDir) -> list[int]:
    return [json.loads(line)["row"] for line in run.examples.read_text().splitlines()]


# -------------------------------------------------------------------- pairs of sentences

WORDS = ["cat", "dog", "sat", "ran", "tree", "house", "red", "old"]
SENTENCES = Tokenizer([*SPECIAL, *WORDS])
VECTORS = np.random.default_rng(2).normal(size=(len(SPECIAL) + len(WORDS), 6)).astype("float32")
VECTORS[: len(SPECIAL)] = 0.0


def bag_of_words(inputs, training=False) -> np.ndarray:
    """A model whose vector of a sentence is the sum of its words', at length 1: (B, 6)."""
    sums = (VECTORS[np.asarray(inputs["token_ids"])] * np.asarray(inputs["padding_mask"])[..., np.newaxis]).sum(axis=1)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)


EMBEDDER = inference.Student(bag_of_words, SENTENCES, (), False, 12, (12,), "sentence_embedding")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A test split of 1,100 judged pairs, 2,200 rows, whose judgements follow the cosines roughly; and its cosines (1100,)."""
    random, folder, found = np.random.default_rng(0), tmp_path_factory.mktemp("pairs"), []
    for _ in range(1100):
        one = list(random.choice(WORDS, 5))
        other = one[: random.integers(0, 6)] + list(random.choice(WORDS, 3))
        score = len(set(one) & set(other)) + random.normal()
        found.append({"text": " ".join(one), "text_pair": " ".join(other), "label": float(score)})
    target = Sentences(text_pair="text_pair", label="label")
    rows = write_store(folder / "rows", found, SENTENCES, 12, target)
    vectors = bag_of_words(rows.gather(np.arange(len(rows)), 12))
    return rows, vectors, (vectors[::2] * vectors[1::2]).sum(axis=1)


def test_a_run_keeps_pairs_whole(pairs, tmp_path):
    places = np.array(kept(finished(tmp_path / "run", pairs[0], SENTENCES)))
    assert len(places) == 2200 and (places == np.arange(2200)).all()  # 1,100 examples of at most 2,000


def test_of_more_pairs_than_are_drawn_both_sides_of_each_are_measured(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "EXAMPLES_KEPT", 1000)
    rows, vectors, cosines = pairs
    run = finished(tmp_path / "run", rows, SENTENCES, vectors)
    places = np.array(kept(run))
    assert len(places) == 2000 and (places[::2] % 2 == 0).all() and (places[1::2] == places[::2] + 1).all()
    asked = questions.load_questions(run, EMBEDDER, 512)
    assert (asked.examples, asked.count, len(asked.texts)) == (512, 1024, 1024 + len(questions.EDGES))
    assert (np.diff(asked.rows) > 0).all() and asked.rows[-1] == places[-1] and asked.left_out is None
    chosen = asked.rows[::2] // 2
    expected = stats.spearmanr(cosines[chosen], np.array(rows.column("label"))[2 * chosen])[0]
    assert 0.2 < expected < 0.95
    answers = Answers(asked.reference(12), 12, np.ones(3), "by hand")
    found = compare(answers, asked, FLOAT32)
    assert (found["examples"], found["reason"]) == (512, None)
    assert found["metrics"] == found["student_metrics"] == {"spearman": pytest.approx(expected, abs=1e-6)}
    assert questions.metric_of(run, asked, "teacher") == {"spearman": pytest.approx(expected, abs=1e-6)}
    again = questions.load_questions(run, EMBEDDER, asked.examples)  # as `export.benchmark` asks, by the manifest's number
    np.testing.assert_array_equal(again.rows, asked.rows)


def test_a_file_whose_cosines_rank_worse_is_refused(pairs, tmp_path):
    asked = questions.load_questions(finished(tmp_path / "run", pairs[0], SENTENCES), EMBEDDER, 512)
    reference = asked.reference(12)
    noise = np.random.default_rng(1).normal(size=reference.shape) * 0.6
    worse = reference + noise
    answers = Answers((worse / np.linalg.norm(worse, axis=1, keepdims=True)).astype("float32"), 12, np.ones(3), "by hand")
    free = Tolerance(None, disagreement=1.0, drop=0.01)
    assert compare(answers, asked, free)["reason"].startswith("spearman falls by 0.")


def test_sentences_that_are_no_pairs_are_drawn_as_rows_are(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "EXAMPLES_KEPT", 4)
    rows = write_store(tmp_path / "rows", [{"text": word} for word in WORDS], SENTENCES, 12, Sentences())
    assert kept(finished(tmp_path / "run", rows, SENTENCES)) == outputs.spread(8, 4) == [0, 2, 4, 6]


# -------------------------------------------------------------------- questions in windows

PIECES = [*SPECIAL, "who", "?", *"abcdefgh", "##b", "##c", "##d", "##x", "\u1100", "##\u1161", "##\u11a8", "\u1161"]
READER = Tokenizer(PIECES)
LENGTH = 10  # [CLS] who ? [SEP], 5 pieces of the context, [SEP]
LATE = "a b c d e f g h"  # in windows of 5 words, 2 apart, the last word is in the last one alone


def points_at_h(inputs, training=False) -> np.ndarray:
    """A model that is sure of `h`, and else of `c`: (B, T, 2)."""
    ids = np.asarray(inputs["token_ids"])
    scores = 9.0 * (ids == PIECES.index("h")) + 1.0 * (ids == PIECES.index("c"))
    return np.repeat(scores[..., np.newaxis], 2, axis=-1).astype("float32")


points_at_h.encoder = types.SimpleNamespace(config={"segments": 2})
LABELS = ("start", "end")
ANSWERER = inference.Student(points_at_h, READER, LABELS, True, LENGTH, (LENGTH,), "question_answering")


def question(context: str, *answers: str) -> dict:
    return {"text": "who?", "text_pair": context, "answers": [(answer, context.index(answer)) for answer in answers]}


def windows_of(folder, found: list[dict]) -> Store:
    return write_store(folder / "rows", found, READER, LENGTH, Spans(stride=2))


def outputs_of(rows: Store) -> np.ndarray:
    """What the run's student answered: (P, 2)."""
    lengths = rows.lengths
    dense = points_at_h(rows.gather(np.arange(len(rows)), LENGTH))
    return np.concatenate([dense[row, : lengths[row]] for row in range(len(rows))])


def compared(run: RunDir, count: int = 500, tolerance=FLOAT32) -> tuple[questions.Questions, dict]:
    asked = questions.load_questions(run, ANSWERER, count)
    return asked, compare(Answers(asked.reference(LENGTH), LENGTH, np.ones(3), "by hand"), asked, tolerance)


def test_a_question_whose_answer_is_in_a_late_window_is_not_counted_as_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "EXAMPLES_KEPT", 9)
    rows = windows_of(tmp_path, [question(LATE, "h") for _ in range(20)])
    assert len(rows) == 60  # three windows each
    run = finished(tmp_path / "run", rows, READER, outputs_of(rows))
    assert np.unique(np.array(kept(run)) // 3, return_counts=True)[1].tolist() == [3] * 9
    monkeypatch.setattr(questions, "FEWEST_EXAMPLES", 1)
    asked, found = compared(run, 4)
    assert (asked.examples, asked.count, found["examples"]) == (4, 12, 4)
    assert found["metrics"] == found["student_metrics"] == {"f1": 1.0, "exact_match": 1.0} and found["reason"] is None


def test_the_manifests_figures_are_the_runs_on_the_same_questions(tmp_path, monkeypatch):
    given = [(LATE, "h"), ("b c", "b c"), (LATE, "c d"), ("b c d", "c"), ("b c d e f g b d h", "g b d h"), ("b d e f", "f")]
    rows = windows_of(tmp_path, [question(*one) for one in given * 5])
    run = finished(tmp_path / "run", rows, READER, outputs_of(rows))
    monkeypatch.setattr(questions, "FEWEST_EXAMPLES", 1)
    asked, found = compared(run, 13)
    chosen = np.unique(np.array(rows.example)[asked.rows])
    assert len(chosen) == asked.examples == 13
    scores = QuestionAnsweringMeasure(rows.target.truth(rows), list(LABELS)).scores(outputs_of(rows))[chosen].mean(axis=0)
    assert 0.0 < scores[1] < scores[0] < 1.0
    assert found["metrics"] == {"f1": pytest.approx(scores[0]), "exact_match": pytest.approx(scores[1])}
    asked = questions.load_questions(run, ANSWERER, 30)
    assert asked.examples == 30
    # A file that is sure of nothing loses the answers of one word.
    refused = compare(
        Answers(0.0 * asked.reference(LENGTH), LENGTH, np.ones(3), "by hand"), asked, Tolerance(None, disagreement=1.0, drop=0.01)
    )
    assert refused["reason"].startswith("f1 falls by 0.")


def test_contexts_of_very_many_windows_are_fewer_questions(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "ROWS_KEPT", 12)
    rows = windows_of(tmp_path, [question(LATE, "h") for _ in range(20)])
    assert len(kept(finished(tmp_path / "run", rows, READER))) == 12


LONG_WORD = "a bbcdbcdbcd h"  # a window begins within the word: it reads ##c there, and its text c
UNKNOWN = "a bxxxxxxx h"  # its text is a word that no piece is in: one piece in place of several
DECOMPOSED = "a b c d \uac01 h"  # one character, three pieces, of which a window ends with the first


@pytest.mark.parametrize("context", (LONG_WORD, UNKNOWN, DECOMPOSED))
@pytest.mark.parametrize("earlier", (False, True))
def test_questions_whose_windows_read_otherwise_as_texts_are_left_out(tmp_path, capsys, context, earlier):
    rows = windows_of(tmp_path, [question(LATE, "h"), question(context, "h"), question("a b h", "h")])
    run = finished(tmp_path / "run", rows, READER, outputs_of(rows))
    if earlier:
        with np.load(run.predictions) as arrays:
            held = {name: arrays[name] for name in arrays.files if name != "checksums"}
        np.savez(run.predictions, **held)
    asked, found = compared(run)
    assert found["reason"] is None and found["metrics"]["f1"] == 1.0
    if earlier and context is LONG_WORD:  # as many pieces as before: nothing tells them apart there, nothing breaks
        assert asked.examples == 3
        return
    assert asked.examples == 2 and 1 not in np.array(rows.example)[asked.rows]
    left_out = "not asked of 3 examples: 1 whose texts fall into other word pieces than were measured"
    assert asked.left_out == left_out and left_out in capsys.readouterr().err


def test_of_an_earlier_runs_torn_questions_the_whole_ones_are_asked(tmp_path):
    rows = windows_of(tmp_path, [question(LATE, "h"), question(LATE, "h"), question("a b h", "h")])
    run = finished(tmp_path / "run", rows, READER, outputs_of(rows))
    lines = run.examples.read_text().splitlines(keepends=True)
    run.examples.write_text("".join(lines[:3] + lines[4:]))  # the second question lacks its first window
    asked, found = compared(run)
    assert (asked.examples, asked.rows.tolist()) == (2, [0, 1, 2, 6]) and found["metrics"]["f1"] == 1.0
    assert asked.left_out == "not asked of 3 examples: 1 without all their rows in the file"
    run.examples.write_text(lines[0])
    with pytest.raises(UserError, match="1 without all their rows in the file; none is left"):
        questions.load_questions(run, ANSWERER, 500)


def test_an_export_goes_on_without_questions_that_it_cannot_ask(tmp_path, capfd):
    rows = windows_of(tmp_path, [question(LATE, "h"), question(UNKNOWN, "h"), question("a b h", "h"), question(LATE, "b c")])
    encoder = build_model(2).encoder
    config_of = encoder.get_config() | {"vocabulary_size": len(PIECES)}
    model = TransformerWithHead(type(encoder).from_config(config_of), QuestionAnswering().head(2, dropout=0.0))
    logits = predict(model, Batches(rows, 8, [LENGTH]))
    tree = TREE | {"task": "question_answering"}
    run = finished(tmp_path / "run", rows, READER, logits)
    model.save(run.student)
    run.tokenizer.write_text(json.dumps({"lowercase": True, "max_length": LENGTH, "pairs": True}))
    files = {"train": "train.jsonl"}
    run.config.write_text(config.dump(config.parse(tree | {"data": {"files": files, "max_length": LENGTH}})))
    assert export([str(run), "--format", "onnx:float32"]) == 0
    said = capfd.readouterr().out
    assert "examples.jsonl: not asked of 4 examples: 1 whose texts fall into other word pieces than were measured" in said
    (entry,) = json.loads(run.manifest.read_text())
    scores = QuestionAnsweringMeasure(rows.target.truth(rows), list(LABELS)).scores(logits)[[0, 2, 3]].mean(axis=0)
    assert entry["examples"] == 3
    assert entry["metrics"] == entry["student_metrics"] == {"f1": pytest.approx(scores[0]), "exact_match": scores[1]}


def test_every_line_is_an_example_where_truth_says_no_other():
    lines = [examples.Line(b"", b"", 7, None), examples.Line(b"", b"", 3, None)]
    found, left_out = examples.whole_examples(ANSWERER, lines, {"labels": np.zeros(9)})
    assert [places.tolist() for places in found] == [[0], [1]] and left_out is None
