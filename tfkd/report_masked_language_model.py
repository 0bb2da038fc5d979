"""The sections of a masked language model's page: which hidden pieces are told right, how likely, and sentences with gaps."""

import numpy as np

from tfkd import report_plots as plots
from tfkd.errors import UserError
from tfkd.report_inputs import View
from tfkd.report_plots import MOST_DOTS, SQUARE
from tfkd.report_sections import MOST_EXAMPLES
from tfkd.report_words import cut
from tfkd.tasks.masked_language_model_metrics import scores

MOST_PIECES = 40  # of a sentence
LONGEST_PIECE = 30  # characters
FREQUENCIES = (("1", 1, 1), ("2 to 9", 2, 9), ("10 to 99", 10, 99), ("100 to 999", 100, 999), ("1,000 or more", 1000, np.inf))
TICKS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LEAST_DRAWN = 1e-5
LEAST = -20.0  # nats: less likely pieces are drawn here, so that one of them does not press all others together


def values(view: View) -> dict:
    """What `report_masked_language_model.html` is filled with."""
    truth, vocabulary = view.measure.truth, _checked(view)
    asked = np.flatnonzero(truth["asked"])  # (A,) places among the P pieces
    true = truth["labels"][asked]
    told = {role: view.measure.asked(outputs) for role, outputs in view.outputs.items()}
    right = {role: likely == true for role, (likely, _) in told.items()}
    log_probabilities = {role: found for role, (_, found) in told.items()}
    kinds = {"piece": _by_word(truth["labels"], asked, vocabulary), "times in these texts": _by_frequency(truth["labels"], asked)}
    return {
        "hidden": len(asked),
        "drawn": min(MOST_DOTS, len(asked)),
        "known": bool(vocabulary),
        "tables": {title: _rows(parts, right, log_probabilities) for title, parts in kinds.items() if parts},
        "together": _together(right),
        "pictures": _pictures(log_probabilities),
        "groups": _groups(view, asked, told, right),
    }


def _checked(view: View) -> list[str]:
    """The vocabulary. Raises `UserError` where it is of another run than the pieces."""
    largest = int(view.measure.truth["labels"].max(initial=0))
    if view.vocabulary and largest >= len(view.vocabulary):
        pieces = f"{len(view.vocabulary):,} pieces, but predictions.npz speaks of number {largest:,}"
        raise UserError(f"vocab.txt: holds {pieces}; train it again, or go on with --resume")
    return view.vocabulary


def _by_word(labels: np.ndarray, asked: np.ndarray, vocabulary: list[str]) -> dict[str, np.ndarray]:
    """(A,) which of the hidden pieces are words, and which begin one or go on with it; nothing without a vocabulary."""
    if not vocabulary:
        return {}
    goes_on = np.array([piece.startswith("##") for piece in vocabulary])[labels]
    followed = np.append(goes_on[1:], False)  # a row ends with [SEP], which goes on with nothing
    kinds = {"whole words": ~goes_on & ~followed, "first pieces of words": ~goes_on & followed, "later pieces": goes_on}
    return {title: which[asked] for title, which in kinds.items()}


def _by_frequency(labels: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
    """(A,) which of the hidden pieces stand how often in the measured texts."""
    counts = np.bincount(labels)[labels[asked]] if len(asked) else np.zeros(0)
    return {title: (counts >= least) & (counts <= most) for title, least, most in FREQUENCIES}


def _rows(parts: dict[str, np.ndarray], right: dict[str, np.ndarray], log_probabilities: dict[str, np.ndarray]) -> list[dict]:
    """A row a part that holds some pieces: its `label`, its `support`, and by `roles` the figures on it."""
    return [
        {
            "label": label,
            "support": int(which.sum()),
            "roles": {role: scores(right[role][which], log_probabilities[role][which]) for role in right},
        }
        for label, which in parts.items()
        if which.any()
    ]


def _together(right: dict[str, np.ndarray]) -> list[tuple[str, int]]:
    """How many hidden pieces teacher and student tell, together and alone."""
    teacher, student = right["teacher"], right["student"]
    counts = {"both": teacher & student, "the teacher alone": teacher & ~student, "the student alone": student & ~teacher}
    return [(who, int(which.sum())) for who, which in (counts | {"neither": ~teacher & ~student}).items()]


def _pictures(log_probabilities: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """Pictures with their titles: how likely each model held the right pieces, and the student beside the teacher."""
    if not len(log_probabilities["teacher"]):
        return []
    held = {role: np.maximum(found, LEAST) for role, found in log_probabilities.items()}
    drawn = held["teacher"], held["student"], "student", "teacher", "student"
    shares, beside = "share of the right pieces held at least so likely", "log-probability of the right piece, in nats"
    return [
        (shares, plots.picture(likelihoods, held, name="likelihoods", alt=shares, **SQUARE)),
        (beside, plots.picture(plots.beside, *drawn, name="beside", alt=f"{beside}, student against teacher", **SQUARE)),
    ]


def _groups(view: View, asked: np.ndarray, told: dict[str, tuple], right: dict[str, np.ndarray]) -> list[dict]:
    """Hidden pieces by who tells them, spread evenly over the kept sentences, one of a sentence; none without a vocabulary."""
    offsets = view.measure.truth["offsets"]
    rows = np.searchsorted(offsets, asked, side="right") - 1
    teacher, student = right["teacher"], right["student"]
    kinds = {
        "The teacher is right, the student is not": teacher & ~student,
        "The student is right, the teacher is not": student & ~teacher,
        "Both are wrong": ~teacher & ~student,
    }
    groups = []
    for title, which in kinds.items():
        found: dict[int, int] = {}
        for number in np.flatnonzero(which).tolist():
            if view.vocabulary and int(rows[number]) in view.examples:
                found.setdefault(int(rows[number]), number)
        chosen = list(found.values())[:: max(1, -(-len(found) // MOST_EXAMPLES))]
        shown = [_shown(view, offsets[rows[number] :][:2].tolist(), asked, number, told) for number in chosen]
        groups.append({"title": title, "count": int(which.sum()), "shown": shown})
    return groups


def _shown(view: View, ends: list[int], asked: np.ndarray, number: int, told: dict[str, tuple]) -> dict:
    """A sentence around one of its hidden pieces, and what each model says of all that are hidden there.

    Arguments:
        ends: places of the row's [CLS] and of the next row's.
        number: of the piece, among those that are asked for.
    """
    labels, vocabulary = view.measure.truth["labels"], view.vocabulary
    first, last = ends[0] + 1, ends[1] - 1  # without [CLS] and the last [SEP]
    begin = max(first, min(int(asked[number]) - MOST_PIECES // 2, last - MOST_PIECES))
    end = min(last, begin + MOST_PIECES)
    gaps = range(*np.searchsorted(asked, [begin, end]).tolist())

    def name(piece) -> str:  # a model may have more embeddings than there are pieces
        return cut(vocabulary[int(piece)], LONGEST_PIECE) if piece < len(vocabulary) else f"[{int(piece)}]"

    hidden = {int(asked[gap]): "here" if gap == number else "hidden" for gap in gaps}
    parts = [{"text": "… ", "kind": None}] if begin > first else []
    for place in range(begin, end):
        piece = name(labels[place])
        parts.append({"text": piece.removeprefix("##"), "kind": hidden.get(place)})
        if place + 1 < end and not vocabulary[labels[place + 1]].startswith("##"):
            parts.append({"text": " ", "kind": None})
    said = {
        role: [
            {"piece": name(likely[gap]), "right": bool(likely[gap] == labels[asked[gap]]), "held": float(np.exp(found[gap]))}
            for gap in gaps
        ]
        for role, (likely, found) in told.items()
    }
    return {
        "parts": [*parts, *([{"text": " …", "kind": None}] if end < last else [])],
        "true": [{"piece": name(labels[asked[gap]]), "here": gap == number} for gap in gaps],
        "said": said,
    }


def likelihoods(axes, held: dict[str, np.ndarray]) -> None:
    """Draws for each role the share of right pieces that it holds at least so likely, against that probability.

    Arguments:
        held: role -> (A,) log-probabilities of the right pieces, in nats.
    """
    grid = np.geomspace(LEAST_DRAWN, 1.0, 120)
    for role, found in held.items():
        shares = 1.0 - np.searchsorted(np.sort(found), np.log(grid) - 1e-9) / len(found)
        axes.plot(grid, shares, **plots.line(role))
    axes.set(xscale="log", xlim=(LEAST_DRAWN, 1.0), ylim=(0.0, 1.01), xlabel="probability of the right piece")
    axes.set_xticks(TICKS, labels=[f"{100 * tick:g} %" for tick in TICKS])
    axes.minorticks_off()
