"""The pages of taggers, of question answering and of masked language models: what they count, by hand."""

import json
import math
import re

import numpy as np
import pytest

from tests.test_report import Reader
from tfkd import report, report_masked_language_model, report_question_answering, report_tagging, run_dir
from tfkd.errors import UserError
from tfkd.tasks.measures import MEASURES

pytestmark = pytest.mark.usefixtures("no_pictures")
TYPES = ["loc", "per"]
LABELS = ["B-loc", "B-per", "I-loc", "I-per", "O"]
SENTENCES = [
    [["Ann", "B-per"], ["Lee", "I-per"], ["left", "O"], ["<Rome>", "B-loc"]],
    [["Bob", "B-per"], ["slept", "O"]],
    [["Nothing", "O"], ["here", "O"]],
]
FOUND = {
    "teacher": [["B-per", "I-per", "O", "B-loc"], ["B-loc", "O"], ["O", "B-per"]],
    "student": [["B-per", "O", "O", "B-loc"], ["B-per", "O"], ["O", "O"]],
}


def page_of(path, task, truth, labels, outputs, examples, vocabulary=()):
    """The page of a run of some models, as text."""
    run = run_dir.RunDir(path)
    path.mkdir()
    np.savez(run.predictions, **truth, **outputs)
    sizes = dict.fromkeys(outputs, 1000)
    told = {"task": task, "dataset": {"name": "few"}, "labels": labels, "truth": truth, "outputs": outputs}
    told |= {"parameters": sizes, "bytes": sizes, "seconds": {"data": 1.0}, "bootstrap": 100}
    run_dir.write_json(run.report_json, report.summarize(**told))
    run_dir.write_text(run.examples, "".join(json.dumps({"row": row} | line) + "\n" for row, line in enumerate(examples)))
    if vocabulary:
        run_dir.write_text(run.vocabulary, "".join(f"{piece}\n" for piece in vocabulary))
    report.write_html(run)
    return run.report_html.read_text(encoding="utf-8")


def test_a_taggers_page_shows_types_errors_and_sentences(tmp_path):
    counts = [len(sentence) for sentence in SENTENCES]
    offsets = np.cumsum([0, *counts])
    truth = {"labels": np.array([LABELS.index(tag) for sentence in SENTENCES for _, tag in sentence])}
    truth |= {"pieces": np.concatenate([np.arange(count) for count in counts]), "offsets": offsets, "piece_offsets": offsets}
    outputs = {
        role: np.eye(5)[[LABELS.index(tag) for sentence in sentences for tag in sentence]].astype("float32")
        for role, sentences in FOUND.items()
    }
    examples = [{"text": " ".join(word for word, _ in sentence), "label": sentence} for sentence in SENTENCES]
    page = page_of(tmp_path / "run", "tagging", truth, LABELS, outputs, examples)
    assert "They find different entities in 3 of 3 test examples" in page
    assert "&lt;Rome&gt; <small>loc</small></span>" in page and "<Rome>" not in page
    assert "Ann Lee <small>per</small></span> left" in page  # true and the teacher's
    assert "Ann <small>per</small></span> Lee left" in page  # the student's
    rows = [line.split("</i>")[1] for line in page.splitlines() if line.startswith('<tr><th scope="row"><i class="dot')][-2:]
    assert rows == [  # right, other type, other borders, missed, invented
        "teacher</th><td>2</td><td>1</td><td>0</td><td>0</td><td>1</td></tr>",
        "student</th><td>2</td><td>0</td><td>1</td><td>0</td><td>0</td></tr>",
    ]


def test_what_became_of_entities_by_hand():
    there = np.array([[0, 0, 1], [1, 3, 3], [0, 5, 7], [1, 9, 9]])
    found = np.array([[0, 0, 1], [0, 3, 3], [1, 6, 6], [0, 7, 8], [1, 11, 12]])
    expected = {"right": 1, "other type": 1, "other borders": 1, "missed": 1, "invented": 1}
    assert report_tagging._fates(there, found) == expected
    nothing = np.zeros((0, 3), int)
    assert report_tagging._fates(there, nothing) == dict.fromkeys(expected, 0) | {"missed": 4}
    assert report_tagging._fates(nothing, found)["invented"] == 5


def test_long_sentences_are_cut_between_words():
    words = [f"w{number}" for number in range(100)]
    parts = report_tagging._marked(words, {(0, 1, 2), (1, 70, 71)}, TYPES)
    assert parts[:2] == [{"text": "w0", "type": None}, {"text": "w1 w2", "type": "loc"}]
    assert len(parts) == 3 and parts[2]["text"].startswith("w3 w4") and parts[2]["text"].endswith("w59 ...")
    assert report_tagging._marked(["a", "b"], {(1, 0, 1)}, TYPES) == [{"text": "a b", "type": "per"}]


def test_a_page_of_answers_shows_lengths_and_examples(tmp_path):
    contexts, gold = ["the cat sat", "<b> dog ran", "x y z"], [["cat"], ["dog ran"], []]
    starts = [[0, 4, 8], [0, 4, 8], [0, 2, 4]]
    ends = [[3, 7, 11], [3, 7, 11], [1, 3, 5]]
    truth = {"labels": np.array([[4, 4], [4, 5], [0, 0]]), "example": np.arange(3), "first": np.full(3, 3)}
    truth["offsets"] = np.array([0, 3, 6, 9])
    truth |= {"start": np.concatenate(starts), "end": np.concatenate(ends)}
    for name, parts in (("contexts", contexts), ("answers", [json.dumps(answers) for answers in gold])):
        truth[name] = np.frombuffer("".join(parts).encode(), "uint8")
        truth[f"{name}_offsets"] = np.cumsum([0, *map(len, parts)])

    def logits(*spans):
        found = np.zeros((21, 2), "float32")
        for row, (first, last) in enumerate(spans):
            found[7 * row + first, 0] = found[7 * row + last, 1] = 5.0
        return found

    outputs = {"teacher": logits((4, 4), (4, 5), (0, 0)), "student": logits((4, 5), (4, 4), (3, 3))}
    examples = [{"text": f"what {row}?", "text_pair": contexts[row], "label": gold[row]} for row in range(3)]
    page = page_of(tmp_path / "run", "question_answering", truth, ["start", "end"], outputs, examples)
    assert "The teacher is right, the student is not" in page and "the teacher alone</th><td>3</td>" in page
    assert '<b class="wrong"><bdi>cat sat</bdi></b>' in page and "<b><bdi>dog ran</bdi></b>" in page
    assert "true no answer" in page and '<blockquote dir="auto">&lt;b&gt; <b>dog ran</b></blockquote>' in page
    assert "no answer</th><td>1</td>" in page and "1 word</th><td>1</td>" in page and "2 words</th><td>1</td>" in page


CONTEXT = " ".join(f"w{number}" for number in range(300))


def windows_of(*windows, answers):
    """What is true of one question whose context is cut into windows of words: `(first word, one after the last, held)`.

    Arguments:
        windows: `held` is the answer's word, None where the window does not hold it.
        answers: that people gave.
    """
    texts, starts, ends, labels = [], [], [], []
    for begin, end, held in windows:
        words = CONTEXT.split()[begin:end]
        places = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
        texts.append(" ".join(words))
        starts.append(places)
        ends.append(places + [len(word) for word in words])
        labels.append((0, 0) if held is None else (3 + held - begin,) * 2)
    rows = len(windows)
    truth = {"labels": np.array(labels), "example": np.zeros(rows, int), "first": np.full(rows, 3)}
    truth |= {"offsets": np.cumsum([0, *map(len, starts)]), "start": np.concatenate(starts), "end": np.concatenate(ends)}
    for name, parts in (("contexts", texts), ("answers", [json.dumps(answers)] * rows)):
        truth[name] = np.frombuffer("".join(parts).encode(), "uint8")
        truth[f"{name}_offsets"] = np.cumsum([0, *map(len, parts)])
    return truth, texts


def answered(truth, row, word):
    """Logits (P, 2) that answer with one word of a row's window."""
    lengths = 4 + np.diff(truth["offsets"])
    found = np.zeros((lengths.sum(), 2), "float32")
    found[lengths[:row].sum() + 3 + word] = 5.0
    return found


def contexts_of(page):
    """What is quoted below the questions."""
    return [part.split("</blockquote>")[0] for part in page.split('<blockquote dir="auto">')[1:] if not part.startswith("<b>")]


def test_an_answer_is_shown_in_the_window_where_it_stands(tmp_path):
    truth, texts = windows_of((0, 160, None), (140, 300, 230), answers=["w230"])
    outputs = {"teacher": answered(truth, 1, 90), "student": answered(truth, 0, 7)}
    examples = [{"text": "which one?", "text_pair": text, "label": ["w230"]} for text in texts]
    page = page_of(tmp_path / "run", "question_answering", truth, ["start", "end"], outputs, examples)
    true, students = contexts_of(page)
    assert true.startswith("…") and true.endswith("…") and " <b>w230</b> w231 " in true and "w160 " not in true
    assert students.startswith("w0 w1 ") and " <b>w7</b> " in students and students.endswith("…")
    assert all(450 < len(text) < 520 for text in (true, students))


def test_the_true_answer_is_shown_first_where_both_are_wrong(tmp_path):
    truth, texts = windows_of((0, 160, None), (140, 300, 230), answers=["w230"])
    outputs = {role: answered(truth, 0, 7) for role in ("teacher", "student")}
    examples = [{"text": "which one?", "text_pair": text, "label": ["w230"]} for text in texts]
    shown = contexts_of(page_of(tmp_path / "run", "question_answering", truth, ["start", "end"], outputs, examples))
    assert [text.partition("<b>")[2].partition("</b>")[0] for text in shown] == ["w230", "w7"]


def test_one_place_is_shown_once_and_without_a_true_one_where_the_teacher_answers(tmp_path):
    for name, held, said in (("two", 150, [(0, 150), (1, 10)]), ("none", None, [(0, 150), (1, 10)])):
        truth, texts = windows_of((0, 160, held), (140, 300, held), answers=["w9999"])
        outputs = {role: answered(truth, *place) for role, place in zip(("teacher", "student"), said, strict=True)}
        examples = [{"text": "which one?", "text_pair": text, "label": ["w9999"]} for text in texts]
        page = page_of(tmp_path / name, "question_answering", truth, ["start", "end"], outputs, examples)
        (shown,) = contexts_of(page)
        assert "<b>w150</b>" in shown and " w100 " in shown  # the teacher's window, which has more before the answer


def test_where_nobody_answers_the_first_window_begins():
    truth, _ = windows_of((0, 160, None), (140, 300, None), answers=[])
    measure = MEASURES["question_answering"](truth, ["start", "end"])
    ((before, answer, behind),) = report_question_answering._contexts(measure, 0, [[-1, -1, -1], [-1, -1, -1]])
    assert before.startswith("w0 w1 ") and before.endswith("…") and answer == behind == ""


# Masked language models.

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##seen", "<cat>", "sat", "dog"]
TEXTS = [[2, 5, 6, 7, 8, 3], [2, 9, 8, 3]]  # unseen <cat> sat; dog sat


def masked(texts=TEXTS, asked=((1, 2, 4), (1,))):
    """What is true of texts of pieces, asked at some places of each."""
    offsets = np.cumsum([0, *map(len, texts)])
    which = np.zeros(offsets[-1], bool)
    for begin, places in zip(offsets, asked, strict=False):
        which[[begin + place for place in places]] = True
    return {"labels": np.concatenate(texts), "asked": which, "offsets": offsets}


def said(truth, *guesses):
    """Outputs (P, 2) of guesses `(piece, probability of the right one)` at the places that are asked for."""
    found = np.full((len(truth["labels"]), 2), -50.0, "float32")
    found[truth["asked"]] = [(piece, math.log(probability)) for piece, probability in guesses]
    return found


def masked_page(path, vocabulary=PIECES, examples=2):
    truth = masked()
    outputs = {
        "teacher": said(truth, (5, 0.5), (6, 0.5), (8, 0.8), (8, 0.1)),
        "student": said(truth, (5, 0.25), (7, 0.01), (8, 0.5), (9, 0.5)),
    }
    kept = [{"text": "x"}] * examples
    return page_of(path, "masked_language_model", truth, [], outputs, kept, vocabulary)


def test_a_masked_language_models_page_counts_pieces_by_word_and_by_frequency(tmp_path):
    sections = Reader(masked_page(tmp_path / "run")).sections
    told = " ".join(sections["pieces"].split())
    assert "4 pieces were asked for" in told
    # Accuracy and perplexity of teacher and student; perplexity is 1 / the geometric mean of the probabilities.
    assert "whole words 2 50.0 % 3.54 100.0 % 2.00" in told  # sat and dog: (0.8 * 0.1) ** -0.5 and (0.5 * 0.5) ** -0.5
    assert "first pieces of words 1 100.0 % 2.00 100.0 % 4.00" in told
    assert "later pieces 1 100.0 % 2.00 0.0 % 100" in told
    assert "1 3 66.7 % 3.42 66.7 % 9.28" in told  # un, ##seen and dog are there once: 0.025 and 0.00125 to the power of -1/3
    assert "2 to 9 1 100.0 % 1.25 100.0 % 2.00" in told and "10 to 99" not in told
    assert " ".join(sections["together"].split()).endswith("both 2 the teacher alone 1 the student alone 1 neither 0")


def test_a_masked_language_models_page_shows_sentences_with_their_gaps(tmp_path):
    page = masked_page(tmp_path / "run")
    section = " ".join(Reader(page).sections["examples"].split())
    teacher, _, rest = section.partition(" The student is right, the teacher is not")
    guesses = "teacher un 50 % ##seen 50 % sat 80 % student un 25 % <cat> 1 % sat 50 %"
    assert teacher.endswith(f"un seen <cat> sat true un ##seen sat {guesses}")
    assert rest == " (1) dog sat true dog teacher sat 10 % student dog 50 % Both are wrong (0)"
    assert "<cat>" not in page and '<bdi class="wrong">&lt;cat&gt;</bdi>' in page
    marked = re.findall(r"<span style=\"background:hsl\((\d+)[^>]*>([^<]*)</span>", page)
    assert marked[:3] == [("215", "un"), ("45", "seen"), ("215", "sat")]  # ##seen is what the example is about
    assert ">un</span><span" in page  # pieces of one word stand together


def test_long_sentences_are_cut_around_the_piece(tmp_path):
    texts = [[2, *[8] * 100, 9, *[7] * 100, 3]]
    truth = masked(texts, [(1, 101)])
    outputs = {"teacher": said(truth, (9, 0.1), (9, 0.9)), "student": said(truth, (9, 0.1), (8, 0.9))}
    page = page_of(tmp_path / "run", "masked_language_model", truth, [], outputs, [{"text": "x"}], PIECES)
    (quote,) = re.findall(r'<blockquote dir="auto">(.*?)</blockquote>', page.partition("Both are wrong")[0])
    words = re.sub(r"<[^>]*>", "", quote).split()
    assert len(words) == 42 and words[0] == words[-1] == "…" and words[21] == "dog"
    wrong = re.findall(r'<blockquote dir="auto">(.*?)</blockquote>', page.partition("Both are wrong")[2])
    assert len(wrong) == 1 and re.sub(r"<[^>]*>", "", wrong[0]).split() == ["sat"] * 40 + ["…"]


@pytest.mark.parametrize(("gone", "sentence"), [("vocabulary", "no vocab.txt"), ("examples", "no examples.jsonl")])
def test_a_masked_language_models_page_does_without_words(tmp_path, gone, sentence):
    page = masked_page(tmp_path / "run", **{"vocabulary": ()} if gone == "vocabulary" else {"examples": 0})
    read = Reader(page)
    assert sentence in "".join(read.texts) and "un seen" not in read.sections["examples"]
    assert ("later pieces" in read.sections["pieces"]) == (gone == "examples") and "2 to 9" in read.sections["pieces"]


def test_a_vocabulary_of_another_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.txt: holds 5 pieces, but predictions\.npz speaks of number 9; train it again"):
        masked_page(tmp_path / "run", PIECES[:5])


def test_pieces_beyond_the_vocabulary_are_numbers_and_nothing_hidden_is_said(tmp_path):
    truth = masked()
    outputs = {role: said(truth, *[(5000, 0.5)] * 4) for role in ("teacher", "student")}
    assert "[5000]" in page_of(tmp_path / "more", "masked_language_model", truth, [], outputs, [{"text": "x"}] * 2, PIECES)
    truth = masked(asked=())
    outputs = {role: np.full((10, 2), -1.0) for role in ("teacher", "student")}
    page = page_of(tmp_path / "none", "masked_language_model", truth, [], outputs, [{"text": "x"}] * 2, PIECES)
    assert "0 pieces were asked for" in page and "nothing was hidden" in page


def test_shares_of_likely_pieces_fall_from_one_to_none():
    class Axes:
        drawn = []

        def __getattr__(self, name):
            return lambda *given, **style: self.drawn.append(given) if name == "plot" else None

    held = np.log(np.array([1e-3, 0.1, 0.1, 0.9]))
    report_masked_language_model.likelihoods(axes := Axes(), {"student": held})
    grid, shares = axes.drawn[0]
    assert [shares[np.searchsorted(grid, place)] for place in (1e-4, 0.01, 0.2, 0.95)] == [1.0, 0.75, 0.25, 0.0]
