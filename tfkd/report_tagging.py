"""The sections of a tagger's page: types of entities, what went wrong with them, sentences on which models differ."""

import numpy as np

from tfkd.report_inputs import View
from tfkd.report_sections import by_label, disagreements
from tfkd.report_words import cut

MOST_WORDS = 60  # of a sentence
LONGEST_WORD = 60  # characters
FATES = ("right", "other type", "other borders", "missed")


def values(view: View) -> dict:
    """What `report_tagging.html` is filled with."""
    found = {role: view.measure.found(outputs) for role, outputs in view.outputs.items()}
    types = view.measure.scheme.types
    return {
        "type_rows": sorted(by_label(view), key=lambda row: -row["support"]),
        "fates": {role: _fates(view.measure.there, entities) for role, entities in found.items()},
        "fate_names": FATES,
        "hues": {name: round(360 * number / len(types)) for number, name in enumerate(types)},
        "unread": int((~view.measure.read).sum()),
        "disagreements": _disagreements(view, found),
    }


def _fates(there: np.ndarray, found: np.ndarray) -> dict[str, int]:
    """What became of the entities that are there, and how many found ones are `invented`: they touch none that is there."""
    types = {(first, last): kind for kind, first, last in found.tolist()}
    counts = dict.fromkeys(FATES, 0)
    for (kind, first, last), touched in zip(there.tolist(), _touching(there, found), strict=True):
        same = types.get((first, last))
        fate = "right" if same == kind else "other type" if same is not None else "other borders" if touched else "missed"
        counts[fate] += 1
    return counts | {"invented": int((~_touching(found, there)).sum())}


def _touching(entities: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(K,) whether each of the entities shares a word with one of the others; both are in reading order."""
    after = np.searchsorted(others[:, 2], entities[:, 1])  # the first of the others that ends at or behind its first word
    begins = np.append(others[:, 1], np.iinfo("int64").max)
    return begins[after] <= entities[:, 2]


def _disagreements(view: View, found: dict[str, np.ndarray]) -> dict:
    """Sentences in which teacher and student find different entities, those first in which most differ."""
    measure = view.measure
    everything = {"true": measure.there} | found
    sentences = {who: _by_sentence(entities, measure.offsets) for who, entities in everything.items()}
    right = {
        role: np.array([one == other for one, other in zip(sentences["true"], sentences[role], strict=True)]) for role in found
    }
    pairs = list(zip(sentences["teacher"], sentences["student"], strict=True))
    gap = np.array([len(one ^ other) for one, other in pairs])

    def shown(row: int) -> dict[str, list[dict]]:
        words = [cut(str(word), LONGEST_WORD) for word, _ in view.examples[row]["label"]]
        return {who: _marked(words, sentences[who][row], measure.scheme.types) for who in ("true", "teacher", "student")}

    return disagreements(view.examples, gap > 0, right, gap, shown, ("has", "all entities right"))


def _by_sentence(entities: np.ndarray, offsets: np.ndarray) -> list[set[tuple[int, int, int]]]:
    """Each sentence's entities: type, first and last word, counted within it."""
    found: list[set] = [set() for _ in offsets[1:]]
    sentences = np.searchsorted(offsets, entities[:, 1], side="right") - 1
    for sentence, (kind, first, last) in zip(sentences.tolist(), entities.tolist(), strict=True):
        begin = int(offsets[sentence])
        found[sentence].add((kind, first - begin, last - begin))
    return found


def _marked(words: list[str], entities: set[tuple[int, int, int]], types: list[str]) -> list[dict]:
    """A sentence in parts `{"text", "type"}`, `type` None outside of entities; what is too long is cut."""
    parts, end = [], 0
    for kind, first, last in sorted(entities, key=lambda entity: entity[1]):
        if first >= MOST_WORDS:
            break
        parts += [
            {"text": " ".join(words[end:first]), "type": None},
            {"text": " ".join(words[first : last + 1]), "type": types[kind]},
        ]
        end = last + 1
    rest = " ".join(words[end:MOST_WORDS]) + (" ..." if len(words) > max(end, MOST_WORDS) else "")
    return [part for part in [*parts, {"text": rest, "type": None}] if part["text"]]
