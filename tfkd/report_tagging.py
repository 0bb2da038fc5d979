"""The sections of a tagger's page: types of entities, what went wrong with them, sentences on which models differ."""

import numpy as np

from tfkd import report_plots as plots
from tfkd.report_inputs import View

MOST_EXAMPLES = 8  # of each kind of disagreement
MOST_WORDS = 60  # of a sentence
LONGEST_WORD = 60  # characters
FATES = ("right", "other type", "other borders", "missed")


def values(view: View) -> dict:
    """What `report_tagging.html` is filled with."""
    found = {role: view.measure.found(outputs) for role, outputs in view.outputs.items()}
    types = view.measure.scheme.types
    return {
        "type_rows": _types(view),
        "fates": {role: _fates(view.measure.there, entities) for role, entities in found.items()},
        "fate_names": FATES,
        "hues": {name: round(360 * number / len(types)) for number, name in enumerate(types)},
        "unread": int((~view.measure.read).sum()),
        "disagreements": _disagreements(view, found),
    }


def _types(view: View) -> list[dict]:
    """A row a type, the most frequent first: support, and figures by role."""
    rows = []
    for entries in zip(*(entry["per_label"] for entry in view.models.values()), strict=True):
        by_role = dict(zip(view.models, entries, strict=True))
        rows.append({"label": entries[0]["label"], "support": entries[0]["support"], "roles": by_role})
    return sorted(rows, key=lambda row: -row["support"])


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
    """Sentences in which teacher and student find different entities: how often, and the longest differences."""
    measure = view.measure
    everything = {"true": measure.there} | found
    sentences = {who: _by_sentence(entities, measure.offsets) for who, entities in everything.items()}
    right = {
        role: np.array([one == other for one, other in zip(sentences["true"], sentences[role], strict=True)]) for role in found
    }
    pairs = list(zip(sentences["teacher"], sentences["student"], strict=True))
    gap = np.array([len(one ^ other) for one, other in pairs])
    kinds = {
        "The teacher has all entities right, the student has not": (gap > 0) & right["teacher"],
        "The student has all entities right, the teacher has not": (gap > 0) & right["student"],
        "Both are wrong, in different ways": (gap > 0) & ~right["teacher"] & ~right["student"],
    }

    def shown(row: int) -> dict[str, list[dict]]:
        words = [plots.cut(str(word), LONGEST_WORD) for word, _ in view.examples[row]["label"]]
        return {who: _marked(words, sentences[who][row], measure.scheme.types) for who in ("true", "teacher", "student")}

    groups = []
    for title, which in kinds.items():
        rows = sorted((int(row) for row in np.flatnonzero(which) if row in view.examples), key=lambda row: -gap[row])
        groups.append({"title": title, "count": int(which.sum()), "shown": [shown(row) for row in rows[:MOST_EXAMPLES]]})
    return {"count": int((gap > 0).sum()), "groups": groups, "texts": bool(view.examples)}


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
