"""Tagging, measured: entities found, entities there, and which of them are the same. NumPy alone.

W words of N sentences, C tags. An entity counts as found where type, first and last word are all right, as the CoNLL-2003
script `conlleval` and seqeval's default mode count; words that a model did not get to read count against it.
"""

import numpy as np

from tfkd.errors import UserError
from tfkd.tasks.measure import Figure, Measure, class_nearness, finite, log_softmax, ratio, taken


class Scheme:
    """What each tag says of a word: outside, or inside an entity of some type, and whether one goes on there.

    With tags such as `B-person` and `I-person` an entity begins at B, and at an I that does not continue one of its own type,
    as after O: what models, and people, now and then write. Where no tag has such a prefix, as for parts of speech, each word
    is an entity of its own, and F1 is the share of words that are right. `O` is always outside.

    Arguments:
        labels: names of the C tags.

    Attributes:
        types: names of the E types, sorted.
        kinds: (C + 1,) type of each tag, -1 for none; the last one is that of -1, no answer.
        continues: (C + 1,) whether a tag continues an entity of its type before it.

    Raises:
        UserError: some tags have prefixes and others neither prefix nor `O`.
    """

    def __init__(self, labels: list[str]):
        prefixed = any(label.startswith(("B-", "I-")) for label in labels)
        names = {label: label[2:] if prefixed else label for label in labels if label != "O"}
        strange = [label for label, name in names.items() if prefixed and (label[:2] not in ("B-", "I-") or not name)]
        if strange:
            raise UserError(f"tag {strange[0]}: tags must be O, B-TYPE and I-TYPE, or all without such prefixes")
        self.types = sorted(set(names.values()))
        self.kinds = np.array([self.types.index(names[label]) if label in names else -1 for label in labels] + [-1])
        self.continues = np.array([prefixed and label.startswith("I-") for label in labels] + [False])

    def entities(self, tags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Type, first and last word (K, 3) of the entities in reading order.

        Arguments:
            tags: (W,) classes of the words of all sentences, -1 for no answer.
            offsets: (N + 1,) where each sentence begins.
        """
        kinds = self.kinds[tags]
        before = np.concatenate([[-1], kinds[:-1]])
        before[offsets[offsets < len(tags)]] = -1
        goes_on = self.continues[tags] & (kinds >= 0) & (kinds == before)
        first = np.flatnonzero((kinds >= 0) & ~goes_on)
        last = np.flatnonzero((kinds >= 0) & ~np.append(goes_on[1:], False))
        return np.stack([kinds[first], first, last], axis=1)


class TaggingMeasure(Measure):
    """Entities by span: precision, recall and F1, over all and by type, and the share of words with the right tag.

    Arguments:
        truth: `labels` (W,) tags of all words; `pieces` (W,) which of its sentence's pieces speaks for a word, -1 where it was
            not read; `offsets` and `piece_offsets` (N + 1,), where each sentence's words and pieces begin.
        labels: names of the C tags.
    """

    headline = "f1"
    figures = (
        Figure("f1", "F1", "percent"),
        Figure("precision", "precision", "percent"),
        Figure("recall", "recall", "percent"),
        Figure("f1_macro", "macro F1"),
        Figure("accuracy", "tags right", "percent"),
    )
    nearness = (Figure("agreement", "same tag as teacher", "percent"), Figure("kl", "KL from teacher in nats"))

    def __init__(self, truth, labels):
        super().__init__(truth, labels)
        self.scheme = Scheme(self.labels)
        self.tags, self.offsets = np.asarray(truth["labels"], "int64"), np.asarray(truth["offsets"], "int64")
        if not len(self.tags):
            raise UserError("there are no words to measure; the test split is empty")
        self.read = np.asarray(truth["pieces"]) >= 0
        begins = np.repeat(np.asarray(truth["piece_offsets"])[:-1], np.diff(self.offsets))
        self.speaking = (truth["pieces"] + begins)[self.read]  # which of the P outputs
        self.positions = int(truth["piece_offsets"][-1])
        self.there = self.scheme.entities(self.tags, self.offsets)

    @property
    def examples(self):
        return len(self.offsets) - 1

    @staticmethod
    def take(truth, rows):
        words, offsets = taken(truth["offsets"], rows)
        parts = {"labels": truth["labels"][words], "pieces": truth["pieces"][words], "offsets": offsets}
        return parts | {"piece_offsets": taken(truth["piece_offsets"], rows)[1]}

    def found(self, outputs: np.ndarray) -> np.ndarray:
        """Logits (P, C) -> type, first and last word (K, 3) of the entities that a model finds."""
        return self.scheme.entities(self.answers(outputs), self.offsets)

    def answers(self, outputs: np.ndarray) -> np.ndarray:
        """Logits (P, C) -> the tag (W,) of each word, -1 for a word that was not read."""
        answers = np.full(len(self.tags), -1)
        answers[self.read] = self._words(outputs).argmax(axis=1)
        return answers

    def metrics(self, outputs):
        """`f1`, `precision` and `recall` over all entities, `f1_macro` the mean over the types that occur in truth or answers,
        `accuracy` of the words, `cross_entropy` in nats of the words that were read (None for none), and `unread`, the share of
        the words that were not. What would be 0/0 counts as 0."""
        answers, counts = self.answers(outputs), self._by_type(outputs)
        occurs = counts[:, 1:].sum(axis=1) > 0
        precision, recall, f1 = scores(counts.sum(axis=0))
        right = log_softmax(self._words(outputs))[np.arange(self.read.sum()), self.tags[self.read]]
        return {
            "f1": float(f1),
            "precision": float(precision),
            "recall": float(recall),
            "f1_macro": float(scores(counts[occurs])[2].mean()) if occurs.any() else 0.0,
            "accuracy": float((answers == self.tags).mean()),
            "cross_entropy": float(-right.mean()) if len(right) else None,
            "unread": float(1.0 - self.read.mean()),
        }

    def headline_on(self, outputs):
        found = self.found(outputs)
        sentences = [
            np.bincount(np.searchsorted(self.offsets, part[:, 1], side="right") - 1, minlength=self.examples)
            for part in (self._right(found), found, self.there)
        ]
        counts = np.stack(sentences, axis=1)  # (N, 3): their sums are all that F1 needs
        return lambda rows: float(scores(counts[rows].sum(axis=0))[2])

    def near(self, outputs, teacher):
        """Share of words with equal tags, and mean KL(teacher || student) in nats, of the words that were read."""
        ours, theirs = self._words(outputs), self._words(teacher)
        return class_nearness(ours, theirs) if len(ours) else {"agreement": None, "kl": None}

    def per_label(self, outputs):
        """Precision, recall and F1 of each type of entity, sorted by name; `support` is how many there are."""
        counts = self._by_type(outputs)
        columns = zip(self.scheme.types, *scores(counts), counts[:, 2], strict=True)
        return [
            {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(support)}
            for name, p, r, f, support in columns
        ]

    def _words(self, outputs: np.ndarray) -> np.ndarray:
        """Logits of the words that were read, float64."""
        outputs = finite(outputs, len(self.labels))
        if len(outputs) != self.positions:
            raise UserError(f"{len(outputs):,} positions were scored, but the sentences have {self.positions:,}")
        return outputs[self.speaking]

    def _right(self, found: np.ndarray) -> np.ndarray:
        """Those of the entities (K, 3) that are there."""
        at = np.full((len(self.tags), 2), -1)  # by first word: type and last word of what is there
        at[self.there[:, 1]] = self.there[:, [0, 2]]
        return found[(at[found[:, 1]] == found[:, [0, 2]]).all(axis=1)]

    def _by_type(self, outputs: np.ndarray) -> np.ndarray:
        """(E, 3) entities of each type that are right, found, and there."""
        found = self.found(outputs)
        parts = (self._right(found), found, self.there)
        return np.stack([np.bincount(part[:, 0], minlength=len(self.scheme.types)) for part in parts], axis=1)


def scores(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(..., 3) entities right, found and there -> precision, recall and F1 = 2 right / (found + there), 0 for 0/0."""
    right, found, there = np.moveaxis(np.asarray(counts), -1, 0)
    return ratio(right, found), ratio(right, there), ratio(2 * right, found + there)


def decode(tags: np.ndarray, words: list[str], labels: list[str]) -> list[tuple[str, int, int, str]]:
    """The entities of one sentence: (type, first word, last word, text).

    Arguments:
        tags: (W,) classes of the words, -1 for none.
        words: the W words.
        labels: names of the tags.
    """
    scheme = Scheme(labels)
    found = scheme.entities(np.asarray(tags, "int64"), np.array([0, len(words)])).tolist()
    return [(scheme.types[kind], first, last, " ".join(words[first : last + 1])) for kind, first, last in found]
