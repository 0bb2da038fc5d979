"""Answers to questions, measured as the SQuAD script measures them: exact match, and F1 of the words. NumPy alone.

R rows (windows) of Q questions, P pieces of all rows one behind the other.
"""

import collections
import hashlib
import json
import re
import string
import zlib

import numpy as np

from tfkd.errors import UserError
from tfkd.tasks.measure import Figure, Measure, finite, taken

LONGEST_ANSWER = 30
"""Pieces of the longest answer that is looked for, as in Devlin et al. 2018."""

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LENGTHS = (("no answer", 0, 0), ("1 word", 1, 1), ("2 words", 2, 2), ("3 to 5 words", 3, 5), ("6 words or more", 6, np.inf))
_ROWS_AT_ONCE = 256


class QuestionAnsweringMeasure(Measure):
    """Exact match and F1, the best over the answers that people gave, averaged over the questions.

    A question's answer is the span with the largest sum of start and end score over its windows: of at most 30 pieces, within
    the context. Where some questions of the split have no answer, a model may answer with none: it does where [CLS], in the
    window where it scores least, scores above the best span (Devlin et al. 2018, section 4.3).

    Arguments:
        truth: as `tfkd.data.spans.Spans.truth` answers.
        labels: `start` and `end`.

    References:
        Rajpurkar et al. 2016, SQuAD, arXiv:1606.05250, section 6.1; 2018, Know What You Don't Know, arXiv:1806.03822.
    """

    headline = "f1"
    figures = (Figure("f1", "F1", "percent"), Figure("exact_match", "exact match", "percent"))
    nearness = (Figure("agreement", "same answer as teacher", "percent"), Figure("kl", "KL from teacher in nats"))

    def __init__(self, truth, labels):
        super().__init__(truth, labels)
        if not len(truth["example"]):
            raise UserError("there are no questions to measure; the test split is empty")
        counts = np.diff(truth["offsets"])
        ends = np.cumsum(truth["first"] + counts + 1)  # [CLS], question and [SEP] before a window, [SEP] after it
        self.begins = np.concatenate([[0], ends[:-1]])  # (R,) place of each row's [CLS] among the P pieces
        self.windows = np.stack([truth["first"], counts], axis=1)
        self.pieces = int(ends[-1])
        numbers, self.rows, self.question = np.unique(truth["example"], return_index=True, return_inverse=True)
        self.gold = [json.loads(self._text("answers", row)) for row in self.rows]
        self.nullable = _nullable(truth)
        self._known: dict[bytes, tuple[list[str], np.ndarray, np.ndarray]] = {}

    @property
    def examples(self):
        return len(self.rows)

    @staticmethod
    def take(truth, rows):
        """What some windows are measured by. Whether a model may answer with none is still as the whole split has it."""
        found = {name: truth[name][rows] for name in ("labels", "example", "first", "checksums") if name in truth}
        found["nullable"] = np.array(_nullable(truth))
        pieces, found["offsets"] = taken(truth["offsets"], rows)
        found |= {name: truth[name][pieces] for name in ("start", "end")}
        for name in ("contexts", "answers"):
            places, found[f"{name}_offsets"] = taken(truth[f"{name}_offsets"], rows)
            found[name] = truth[name][places]
        return found

    @staticmethod
    def same_pieces(truth, read):
        """A window that begins within a word, or that cuts a character of several pieces, falls into others by its own text."""
        pieces = read()
        if "checksums" in truth:
            return np.array([zlib.crc32(ids) for ids in pieces], "uint32") == truth["checksums"]
        # An earlier run tells how many pieces each row had, and no more.
        return np.array([len(ids) for ids in pieces]) == truth["first"] + np.diff(truth["offsets"]) + 1

    def answers(self, outputs: np.ndarray) -> list[str]:
        """Logits (P, 2) -> the answer to each question, cut from its context; empty for none."""
        return self._judged(outputs)[0]

    def scores(self, outputs: np.ndarray) -> np.ndarray:
        """F1 and exact match (Q, 2) of each question."""
        return self._judged(outputs)[1]

    def places(self, outputs: np.ndarray) -> np.ndarray:
        """Where each answer stands: (Q, 3) the window's row, the first character there, the one after the last; -1 for none."""
        return self._judged(outputs)[2]

    def window(self, row: int) -> str:
        """A row's part of its context."""
        return self._text("contexts", row)

    def held(self, row: int) -> tuple[int, int] | None:
        """A true answer's first character in a row's window and the one after its last; None where it holds none whole."""
        first, last = self.truth["labels"][row] - self.truth["first"][row]
        if first < 0:
            return None
        begin = self.truth["offsets"][row]
        return int(self.truth["start"][begin + first]), int(self.truth["end"][begin + last])

    def _judged(self, outputs: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Answers, their scores and their places, found once for equal outputs: figures, intervals and pages all begin with them,
        and they take a second for a thousand questions."""
        outputs = self._checked(outputs)
        key = hashlib.sha256(outputs.tobytes()).digest()
        if key not in self._known:
            places = self._read(outputs)
            answers = [self.window(row)[begin:end] if row >= 0 else "" for row, begin, end in places.tolist()]
            pairs = zip(answers, self.gold, strict=True)
            scores = np.array([(word_f1(answer, gold), exact_match(answer, gold)) for answer, gold in pairs])
            self._known[key] = answers, scores, places
        return self._known[key]

    def _read(self, outputs: np.ndarray) -> np.ndarray:
        """The place (Q, 3) of the answer to each question, the best span in all its windows."""
        score, first, last = self._best_spans(outputs)
        best = np.full(self.examples, -np.inf)
        np.maximum.at(best, self.question, score)
        null = np.full(self.examples, np.inf)
        np.minimum.at(null, self.question, outputs[self.begins].sum(axis=1))
        places = np.full((self.examples, 3), -1)
        for row in range(len(self.begins) - 1, -1, -1):  # of equal windows the first one is left standing
            question = self.question[row]
            answered = np.isfinite(best[question]) and not (self.nullable and null[question] > best[question])
            if answered and score[row] == best[question]:
                begin = self.truth["offsets"][row]
                places[question] = row, self.truth["start"][begin + first[row]], self.truth["end"][begin + last[row]]
        return places

    def metrics(self, outputs):
        """`f1` and `exact_match`; with questions that have no answer also both of those that have one, and the share
        `unanswerable_right` of the others. None for the mean over no questions."""
        scores = self.scores(outputs)
        found = {"f1": float(scores[:, 0].mean()), "exact_match": float(scores[:, 1].mean())}
        if self.nullable:
            answerable = np.array([bool(answers) for answers in self.gold])
            parts = {"f1_answerable": scores[answerable, 0], "exact_match_answerable": scores[answerable, 1]}
            parts["unanswerable_right"] = scores[~answerable, 1]
            found |= {name: float(part.mean()) if len(part) else None for name, part in parts.items()}
        return found

    def headline_on(self, outputs):
        scores = self.scores(outputs)[:, 0]
        return lambda rows: float(scores[rows].mean())

    def summary(self, outputs):
        f1, exact_match = self.scores(outputs).mean(axis=0)
        return {"f1": float(f1), "exact_match": float(exact_match)}

    def near(self, outputs, teacher):
        """Share of questions with the same answer, and KL(teacher || student) in nats, the mean over starts and ends of rows."""
        ours, theirs = self.answers(outputs), self.answers(teacher)
        log_student, log_teacher = self._log_softmax(self._checked(outputs)), self._log_softmax(self._checked(teacher))
        divergence = np.add.reduceat(np.exp(log_teacher) * (log_teacher - log_student), self.begins).mean()
        agreement = np.mean([normalized(one) == normalized(other) for one, other in zip(ours, theirs, strict=True)])
        return {"agreement": float(agreement), "kl": max(0.0, float(divergence))}

    def per_label(self, outputs):
        """F1 and exact match by the number of words in the first answer that people gave."""
        scores, lengths = self.scores(outputs), np.array([len(answers[0].split()) if answers else 0 for answers in self.gold])
        found = []
        for label, least, most in _LENGTHS:
            which = (lengths >= least) & (lengths <= most)
            if which.any():
                f1, exact = scores[which].mean(axis=0)
                found.append({"label": label, "support": int(which.sum()), "f1": float(f1), "exact_match": float(exact)})
        return found

    def _best_spans(self, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each row (R,) the best sum of scores, -inf without a context, and the span's first and last piece in its window."""
        parts = []
        for begin in range(0, len(self.begins), _ROWS_AT_ONCE):
            rows = range(begin, min(begin + _ROWS_AT_ONCE, len(self.begins)))
            longest = max(1, self.windows[rows, 1].max())
            scores = np.full((2, len(rows), longest + LONGEST_ANSWER), -np.inf)
            for place, row in enumerate(rows):
                first, count = self.windows[row]
                scores[:, place, :count] = outputs[self.begins[row] + first :][:count].T
            sums = np.stack([scores[0, :, :longest] + scores[1, :, more : more + longest] for more in range(LONGEST_ANSWER)], -1)
            best = sums.reshape(len(rows), -1).argmax(axis=1)
            first, more = np.divmod(best, LONGEST_ANSWER)
            parts.append((sums.reshape(len(rows), -1)[np.arange(len(rows)), best], first, first + more))
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _log_softmax(self, outputs: np.ndarray) -> np.ndarray:
        """Over the positions of each row: (P, 2)."""
        lengths = np.diff(np.append(self.begins, self.pieces))
        shifted = outputs - np.repeat(np.maximum.reduceat(outputs, self.begins), lengths, axis=0)
        return shifted - np.repeat(np.log(np.add.reduceat(np.exp(shifted), self.begins)), lengths, axis=0)

    def _text(self, name: str, row: int) -> str:
        offsets = self.truth[f"{name}_offsets"]
        return self.truth[name][offsets[row] : offsets[row + 1]].tobytes().decode()

    def _checked(self, outputs: np.ndarray) -> np.ndarray:
        outputs = finite(outputs, 2)
        if len(outputs) != self.pieces:
            raise UserError(f"{len(outputs):,} positions were scored, but the rows have {self.pieces:,}")
        return outputs


def _nullable(truth: dict[str, np.ndarray]) -> bool:
    """Whether some question of the split has no answer: no other list is as short in JSON as `[]`."""
    return bool(truth["nullable"] if "nullable" in truth else (np.diff(truth["answers_offsets"]) <= 2).any())


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and surplus white space, as the SQuAD script compares answers."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: list[str]) -> float:
    """1 where the answer is one of those that people gave, else 0; without any, where it is empty."""
    return float(any(normalized(answer) == normalized(one) for one in _said(gold)))


def word_f1(answer: str, gold: list[str]) -> float:
    """2 |A and B| / (|A| + |B|) of the words of two answers, counted as often as they occur; the best over `gold`."""
    return max(_overlap(normalized(answer).split(), normalized(one).split()) for one in _said(gold))


def _overlap(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    shared = sum((collections.Counter(answer) & collections.Counter(gold)).values())
    return 2.0 * shared / (len(answer) + len(gold))


def _said(gold: list[str]) -> list[str]:
    """The answers that say something, as the SQuAD 2.0 script takes them; the empty one where none does."""
    return [one for one in gold if normalized(one)] or [""]
