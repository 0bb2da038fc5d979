"""Answers that stand in a text: questions with a context, cut into windows that a model can read."""

import zlib
from collections.abc import Iterator

import numpy as np

from tfkd.data import columns
from tfkd.data.target import Target, byte_column, json_column
from tfkd.errors import UserError


class Spans(Target):
    """First and last piece of an answer: y (B, 2) int32; (0, 0), the piece [CLS], where a row does not hold it whole.

    A row is `[CLS] question [SEP] window [SEP]`: a context that is too long is cut into windows that overlap, so that one
    example gives several rows. A question is cut where it takes more than half of the room, and the context needs the rest.
    Without answers it is unanswerable; with several, a row learns the first one that it holds (Devlin et al. 2018, sections
    4.2 and 4.3).

    In a store: `label` (R, 2) is y, `example` the question a row belongs to, `first` the place of the window's first piece in the
    row, `text` the question, `text_pair` the window's part of the context, `start` and `end` for each of its pieces the first
    character in `text_pair` and the one after the last, `answers` the texts of all answers to the question.

    Arguments:
        stride: pieces from the start of one window to that of the next; default: a third of the longest row, as the 128 of 384
            in BERT's own recipe. Less where a window would begin within a word, or the question leaves less room than that.

    Attributes:
        nullable: whether some questions of train have no answer, once it was surveyed.
    """

    kind = "span"
    defaults = {"question": "question", "context": "context", "answers": "answers"}
    texts = ("question", "context")
    keys = ("answers",)
    holds = {"answers": ("records of text and answer_start", ("records",))}
    group = "text_pair"  # questions about one context stay on one side
    named = False
    nullable = True
    y_shape = (2,)

    def __init__(self, *, stride: int | None = None, **arguments):
        if stride is not None and stride < 1:
            raise UserError(f"data.stride = {stride}: must be at least 1 piece")
        self.stride = stride
        super().__init__(**arguments)
        self.labels = ["start", "end"]

    @property
    def pairs(self):
        return True

    @property
    def rule(self):
        return super().rule | {"stride": self.stride}

    # ---------------------------------------------------------------- reading

    def example(self, cells):
        question = columns.checked_text(cells["question"], self.columns["question"])
        context = columns.checked_text(cells["context"], self.columns["context"])
        return {"text": question, "text_pair": context, "answers": _answers(cells["answers"], context, self.columns)}

    def survey(self, examples: Iterator[dict]):
        """Counts the questions that have an answer."""
        answered = [0, 0]
        for example in examples:
            answered[bool(example["answers"])] += 1
        self.nullable = answered[False] > 0
        return None if answered[True] else ("have no answer", "there is nothing to learn from questions that have none")

    # ---------------------------------------------------------------- storing

    def encode(self, examples, tokenizer, max_length):
        from tfkd.data.words import Locator

        if max_length < 5:
            raise UserError(f"data.max_length = {max_length}: must be at least 5, so that question and context have room")
        locate = Locator(tokenizer)
        questions = locate([example["text"] for example in examples])
        contexts = list(dict.fromkeys(example["text_pair"] for example in examples))  # many questions share one
        located = dict(zip(contexts, locate(contexts), strict=True))
        rows: dict[str, list] = {name: [] for name in ("ids", "segments", "label", "example", "first", "start", "end")}
        texts: dict[str, list] = {"text": [], "text_pair": [], "answers": []}
        frame = tokenizer.cls_id, tokenizer.sep_id
        begins = np.array([not piece.startswith("##") for piece in tokenizer.pieces])  # a word, rather than going on with it
        for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
            context = located[example["text_pair"]]
            ids = question.ids[: max((max_length - 3) // 2, max_length - 3 - len(context))]
            asked = example["text"] if len(ids) == len(question) else example["text"][: question.ends[len(ids) - 1]]
            room = max_length - 3 - len(ids)
            for begin, end in windows(begins[context.ids], room, self.stride or max(1, max_length // 3)):
                row = _row(ids, context, begin, end, example["answers"], frame)
                cut = slice(context.starts[begin], context.ends[end - 1]) if end > begin else slice(0, 0)
                for name, value in (row | {"example": number}).items():
                    rows[name].append(value)
                texts["text"].append(asked.encode())
                texts["text_pair"].append(example["text_pair"][cut].encode())
                texts["answers"].append([answer for answer, _ in example["answers"]])
        return {
            "token_ids": _ragged(rows["ids"]),
            "segment_ids": _ragged(rows["segments"]),
            "label": np.array(rows["label"], "int32").reshape(-1, 2),
            "example": np.array(rows["example"], "int32"),
            "first": np.array(rows["first"], "int32"),
            "start": _ragged(rows["start"]),
            "end": _ragged(rows["end"]),
            "text": byte_column(texts["text"]),
            "text_pair": byte_column(texts["text_pair"]),
            "answers": json_column(texts["answers"]),
        }

    # ---------------------------------------------------------------- telling

    def truth(self, store):
        """Beside `labels` (R, 2) and `example` (R,) what turns outputs into texts: `first` (R,), `start` and `end` of windows'
        pieces, which begin at `offsets` (R + 1,); `contexts` and `answers`, UTF-8 text and JSON, which begin at `..._offsets`;
        and `checksums` (R,), CRC-32 of each row's pieces, by which exports see whether texts fall into the same ones again."""
        start, offsets = store.ragged("start")
        found = {name: np.array(store.column(column)) for name, column in (("labels", "label"), ("example", "example"))}
        found |= {"first": np.array(store.column("first")), "start": np.array(start), "end": np.array(store.ragged("end")[0])}
        found["offsets"] = np.array(offsets)
        found["checksums"] = np.array([zlib.crc32(store.row("token_ids", row)) for row in range(len(store))], "uint32")
        for name, column in (("contexts", "text_pair"), ("answers", "answers")):
            found[name], found[f"{name}_offsets"] = (np.array(part) for part in store.ragged(column))
        return found

    def told(self, store, row):
        """The texts of all answers, none where there is no answer."""
        return store.json(row, "answers")

    def describe(self, store):
        example, label = np.array(store.column("example")), np.array(store.column("label"))
        held = np.bincount(example, weights=label[:, 1] > 0, minlength=store.examples)
        none = int((held == 0).sum())
        line = f"{store.examples:,} questions in {len(store):,} windows"
        return "answers", line + (f", {none:,} of them without an answer in any window" if none else "")


def windows(words: np.ndarray, room: int, stride: int) -> list[tuple[int, int]]:
    """Where windows of at most `room` pieces begin and end, `stride` apart or less, until the last piece is in one.

    They begin with a word, but where a word is longer than `stride`: then each window's own text falls into the same pieces.

    Arguments:
        words: (P,) whether a piece begins a word.
    """
    found = [(0, min(room, len(words)))]
    while found[-1][1] < len(words):
        before = found[-1][0]
        begin = before + min(stride, room)
        while not words[begin] and begin > before + 1:
            begin -= 1
        if not words[begin]:
            begin = before + min(stride, room)
        found.append((begin, min(begin + room, len(words))))
    return found


def _row(question: np.ndarray, context, begin: int, end: int, answers: list[tuple[str, int]], frame: tuple[int, int]) -> dict:
    """One window's pieces, the answer's place among them, and the characters of the window that each piece came from."""
    cls_id, sep_id = frame
    first, shift = len(question) + 2, context.starts[begin] if end > begin else 0
    ids = np.concatenate([[cls_id], question, [sep_id], context.ids[begin:end], [sep_id]])
    held = (0, 0)
    for text, start in answers:
        span = context.pieces_between(start, start + len(text))
        if span is not None and begin <= span[0] and span[1] < end:
            held = (first + span[0] - begin, first + span[1] - begin)
            break
    return {
        "ids": ids,
        "segments": np.repeat([0, 1], [first, len(ids) - first]),
        "label": held,
        "first": first,
        "start": context.starts[begin:end] - shift,
        "end": context.ends[begin:end] - shift,
    }


def _ragged(parts: list) -> tuple[np.ndarray, np.ndarray]:
    values = np.concatenate([np.zeros(0, "int32"), *parts]).astype("int32")
    return values, np.array([len(part) for part in parts], "int64")


def _answers(cell, context: str, named: dict[str, str]) -> list[tuple[str, int]]:
    """(text, first character) of each answer, from `{"text": [...], "answer_start": [...]}` or a list of such records."""
    column = named["answers"]
    shape = 'write {"text": [...], "answer_start": [...]}, empty lists for no answer'
    if isinstance(cell, list) and all(isinstance(record, dict) for record in cell):
        cell = {key: [record.get(key) for record in cell] for key in ("text", "answer_start")}
    if not isinstance(cell, dict) or not all(isinstance(cell.get(key), list) for key in ("text", "answer_start")):
        raise UserError(f"column {column} holds {columns.shown(cell)}, not answers; {shape}")
    if len(cell["text"]) != len(cell["answer_start"]):
        counts = f"{len(cell['text'])} texts, but {len(cell['answer_start'])} starts"
        raise UserError(f"column {column} has {counts}; give each answer both")
    return [_answer(*answer, context, named) for answer in zip(cell["text"], cell["answer_start"], strict=True)]


def _answer(text, start, context: str, named: dict[str, str]) -> tuple[str, int]:
    column = named["answers"]
    text = columns.checked_text(text, f"{column}/text")
    if not isinstance(start, int) or isinstance(start, bool):
        raise UserError(
            f"column {column}/answer_start holds {columns.shown(start)}, not the place of the answer's first character"
        )
    if start < 0 or context[start : start + len(text)] != text:
        place = context.find(text)
        fix = f"it is at {place}" if place >= 0 else "it is nowhere there"
        raise UserError(
            f"column {column}/answer_start is {start}, but the answer {columns.shown(text)} is not at that character of "
            f"{named['context']}; {fix}"
        )
    return text, start
