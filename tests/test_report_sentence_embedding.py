"""The page of sentence vectors: cosines beside judgements, or beside the teacher's alone."""

import json
import re

import numpy as np
import pytest

from tests.test_report import Reader, page_of
from tfkd import outputs as written
from tfkd import report, report_sentence_embedding, run_dir
from tfkd.data.sentences import Sentences
from tfkd.data.store import write_store
from tfkd.data.tokenizer import Tokenizer


def vectors(rows, seed, width=8):
    found = np.random.default_rng(seed).normal(size=(rows, width)).astype("float32")
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def make_run(path, labels=None, pairs=30, paired=True, models=None, texts=None, kept=None):
    """A run of the three models, or of `models`, on pairs of sentences, or on as many sentences twice."""
    run, rows = run_dir.RunDir(path), 2 * pairs
    path.mkdir(parents=True)
    truth = {"example": np.repeat(np.arange(pairs), 2) if paired else np.arange(rows)}
    truth["labels"] = np.full(rows, np.nan) if labels is None else np.repeat(labels, 2)
    models = models or {role: vectors(rows, seed) for seed, role in enumerate(("teacher", "baseline", "student"))}
    np.savez(run.predictions, **truth, **models)
    sizes = dict.fromkeys(models, 1000)
    told = {"task": "sentence_embedding", "dataset": {"name": "few"}, "labels": [], "truth": truth, "outputs": models}
    told |= {"parameters": sizes, "bytes": sizes, "seconds": {"data": 1.0}, "bootstrap": 100}
    run_dir.write_json(run.report_json, report.summarize(**told))
    kept = range(rows) if kept is None else sorted(kept)
    lines = [{"row": row, "text": (texts or {}).get(row, f"sentence {row}")} for row in kept]
    run_dir.write_text(run.examples, "".join(json.dumps(line) + "\n" for line in lines))
    return run


def judged(pairs=30):
    return np.random.default_rng(9).integers(0, 6, pairs).astype("float32")


def told(page, section):
    return " ".join(Reader(page).sections[section].split())


def at_cosine(cosine):
    """Two vectors with that cosine."""
    return [[1.0, 0.0], [cosine, (1.0 - cosine**2) ** 0.5]]


def test_page_draws_cosines_beside_judgements_and_beside_the_teacher(tmp_path):
    run = make_run(tmp_path / "run", judged(), texts={0: "<script>alert(1)</script>", 1: "x" * 1000}, kept={0, 1})
    page = page_of(run)
    read = Reader(page)
    own = ["judgements", "teacher", "pairs"]
    assert list(read.sections) == ["models", "training", *own, "exports", "data", "configuration", "time"]
    assert not {"script", "link", "img"} & set(read.elements) and "http" not in page
    assert len(read.ids) == len(set(read.ids)) and all(link[1:] in read.ids for link in read.links)
    for role in ("teacher", "baseline", "student"):
        figures = next(entry["metrics"] for entry in report.read_report(run)["models"] if entry["role"] == role)
        said = f"{role} Spearman {figures['spearman']:.3f}, Pearson {figures['pearson']:.3f}".replace("-", "−")
        assert said in told(page, "judgements")
    assert re.findall(r'aria-label="cosines of the (\w+) against the (\w+)', page) == [
        *((role, "judgements") for role in ("teacher", "baseline", "student")),
        *((role, "teacher") for role in ("baseline", "student")),
    ]
    pairs = told(page, "pairs")
    assert pairs.count(f"<script>alert(1)</script> {'x' * 399}… judged") == 2


def test_pairs_that_tell_most_come_first_by_hand(tmp_path, no_pictures):
    cosines = {"teacher": [0.9, 0.5, 0.1, 0.3], "student": [0.8, 0.9, 0.14, 0.32]}
    models = {role: np.array([vector for cosine in found for vector in at_cosine(cosine)]) for role, found in cosines.items()}
    run = make_run(tmp_path / "run", np.array([4.0, 1.0, 0.0, 5.0]), pairs=4, models=models, texts={2: "<b>most</b>"})
    page = page_of(run)
    teacher, _, people = told(page, "pairs").partition("The student is farthest from the judgement, in the order of all pairs")
    firsts = re.findall(r"(<b>most</b>|sentence \d) sentence (\d)", teacher)
    assert firsts == [("<b>most</b>", "3"), ("sentence 0", "1"), ("sentence 4", "5"), ("sentence 6", "7")]
    # Above how many: 1.00 is the second of four judgements, 0.500 the third of the teacher's cosines, 0.900 the last one.
    assert "judged 1.00 (38 %) · teacher 0.500 (62 %) · student 0.900 (88 %)" in teacher
    # By order the student is two places off on the second pair and on the fourth, and none on the others.
    assert [int(row) for row in re.findall(r"sentence (\d) judged", people)] == [3, 7, 1, 5]
    assert "<b>most</b>" not in page
    assert "student Spearman 0.800, mean difference 0.140" in told(page, "teacher")  # ranks 4 3 1 2 and 3 4 1 2


def test_only_pairs_whose_sentences_were_both_kept_are_shown(tmp_path, no_pictures):
    page = page_of(make_run(tmp_path / "run", judged(), kept={0, 2, 3, 5}))
    assert "sentence 2 sentence 3" in told(page, "pairs") and "sentence 0" not in page and "sentence 5" not in page


@pytest.mark.parametrize("paired", [True, False])
def test_without_judgements_the_teacher_alone_is_the_measure(tmp_path, paired):
    page = page_of(make_run(tmp_path / "run", paired=paired))
    read = Reader(page)
    assert "judgements" not in read.sections and "#judgements" not in read.links
    assert ("The sentences are no pairs" in read.sections["teacher"]) != paired
    assert "Nobody judged how alike they are" in read.sections["teacher"] and "judged" not in read.sections["pairs"]
    assert re.findall(r'aria-label="cosines of the (\w+) against', page) == ["baseline", "student"]
    assert re.search(r"teacher −?0\.\d{3} · baseline −?0\.\d{3} · student −?0\.\d{3}", told(page, "pairs"))


@pytest.mark.parametrize("constant", ["student", "judged"])
def test_an_undefined_spearman_is_a_dash(tmp_path, constant):
    models = {"teacher": vectors(60, 0), "student": vectors(60, 1)}
    if constant == "student":
        models["student"] = np.tile(at_cosine(0.7), (30, 1)).astype("float32")
    page = page_of(make_run(tmp_path / "run", np.full(30, 2.0) if constant == "judged" else judged(), models=models))
    assert "student Spearman –, Pearson –" in told(page, "judgements")
    assert ("student Spearman –, mean difference" in told(page, "teacher")) == (constant == "student")


@pytest.mark.parametrize("paired", [True, False])
def test_one_pair_and_vectors_of_other_widths_have_a_page(tmp_path, paired):
    models = {"teacher": vectors(2, 0, width=8), "student": vectors(2, 1, width=3)}
    page = page_of(make_run(tmp_path / "run", np.array([3.0]) if paired else None, pairs=1, paired=paired, models=models))
    assert "sentence 0 sentence 1" in told(page, "pairs")


def test_shares_above_count_equal_ones_half():
    shares = report_sentence_embedding._above(np.array([1.0, 5.0, 1.0 + 1e-9, 7.0]))
    np.testing.assert_allclose(shares, [0.25, 0.625, 0.25, 0.875])


def test_a_page_without_examples_says_so(tmp_path, no_pictures):
    run = make_run(tmp_path / "run", judged())
    run.examples.unlink()
    assert "no examples.jsonl" in told(page_of(run), "pairs")


def test_a_run_keeps_both_sentences_of_a_pair(tmp_path, monkeypatch):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"]
    pairs = [{"text": "cat", "text_pair": "cat cat"}] * 50
    store = write_store(tmp_path / "rows", pairs, Tokenizer(pieces), 8, Sentences(text_pair="text_pair"))
    assert written.kept(store) == list(range(100))
    monkeypatch.setattr(written, "EXAMPLES_KEPT", 15)
    kept = written.kept(store)
    assert len(kept) == 30 and kept[:6] == [0, 1, 6, 7, 12, 13] and [row + 1 for row in kept[::2]] == kept[1::2]
