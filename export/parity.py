"""The gate: what a written file answers, beside what the Keras student answers."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from tfkd.tasks.measure import Measure

from .inference import Student
from .questions import Questions
from .timing import latency

SMALLEST = np.finfo("float32").tiny
"""What stands for a probability that float32 rounds to 0."""

ROUNDING = 1e-9
"""39 of 40 is not less than 1 - 1 of 40."""

RESAMPLES = 200
"""Draws behind the question whether chance explains a lower metric."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a file may be from the Keras student.

    Arguments:
        difference: largest |file - student| over all logits, in units of max(1, largest |student|); None: not limited.
        disagreement: share of examples that may get another answer.
        drop: how much of the metric may be lost.
    """

    difference: float | None
    disagreement: float
    drop: float


FLOAT32 = Tolerance(difference=1e-4, disagreement=0.0, drop=0.0)
"""Other kernels add in another order: about 1e-6 is seen. 1e-4 is far above that and far below what any real defect does."""

FLOAT16 = Tolerance(difference=0.03, disagreement=0.01, drop=0.005)
"""Weights of 11 bits: one in 2,000 each, some thousandths in a logit."""

INT8 = Tolerance(difference=None, disagreement=0.02, drop=0.01)
"""Rounded weights move every logit; what counts is the answer."""

INT8_FULL = Tolerance(difference=None, disagreement=0.05, drop=0.01)
"""Rounded activations move it further: more answers change, as many for the better as for the worse."""

INT4 = Tolerance(difference=None, disagreement=0.1, drop=0.02)
"""Sixteen values a weight."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One file of a format.

    Arguments:
        name: as in the manifest.
        file: its final name under `export/`.
        write: writes the student to a path.
        tolerance: what the written file is held to, where a configuration does not say otherwise.
        made_of: the student that is written, and that the file's answers are compared with, where it is another one. What the
            file may lose of the metric is still counted from the student of the run.
    """

    name: str
    file: str
    write: Callable[[Student, pathlib.Path], None]
    tolerance: Tolerance
    made_of: Callable[[Student], Student] | None = None


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a file, or one of its signatures, said to all questions.

    Arguments:
        logits: (N, C), or (N, T, C) with an answer for every position of texts padded to T = `length`.
        length: what texts were cut at.
        milliseconds: of single requests, (n,).
        request: what such a request was, in words.
        scores: probabilities (N, C) by the signature that gave them; `serving_default` answers raw text.
        labels: N label strings answered to raw text; None where the format takes no text.
        truncated: (N,) whether a raw text was cut.
        signature: which one it was, of a file that is asked by its signatures.
        note: what a person should know of the file.
        normalized: `logits` are logarithms of probabilities: the file answers with scores alone.
    """

    logits: np.ndarray
    length: int
    milliseconds: np.ndarray
    request: str
    scores: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    labels: list[str] | None = None
    truncated: np.ndarray | None = None
    signature: str | None = None
    note: str | None = None
    normalized: bool = False


def compare(answers: Answers | list[Answers], questions: Questions, tolerance: Tolerance) -> dict:
    """What the manifest says of a file; `reason` is why it must not be shipped, or None.

    Of several signatures every one must pass. The worst of them stands for the file; its metric is that of the longest.
    """
    results = [_compare(each, questions, tolerance) for each in (answers if isinstance(answers, list) else [answers])]
    failed = next((result for result in results if result["reason"]), None)
    last = max(results, key=lambda result: result["length"])
    whole = {key: value for key, value in (failed or last).items() if key not in ("signature", "length", "latency_ms")}
    for key, worst in (("max_abs_difference", max), ("mean_abs_difference", max), ("agreement", min)):
        known = [result[key] for result in results if result.get(key) is not None]
        whole |= {key: worst(known)} if known else {}
    if failed and len(results) > 1:
        whole["reason"] = f"{failed['signature']}: {failed['reason']}"
    if results[0]["signature"]:
        whole["signatures"] = [{key: value for key, value in result.items() if key != "reason"} for result in results]
    return whole


def loss(answers: list[Answers], questions: Questions, tolerance: Tolerance) -> dict:
    """What a file loses of the metric against a student that is not the one it was made of: `student_metrics` and `reason`."""
    longest = max(answers, key=lambda each: each.length)
    reference, free = questions.reference(longest.length), dataclasses.replace(tolerance, disagreement=1.0)
    found, reason = _measure(longest.logits, reference, questions, longest.length, free, 0.0)
    return {
        "student_metrics": found["student_metrics"],
        "reason": reason and f"against {questions.student.run.student.name}: {reason}",
    }


def _compare(answers: Answers, questions: Questions, tolerance: Tolerance) -> dict:
    result = {"signature": answers.signature, "length": answers.length, "examples": questions.examples, "reason": None}
    reference, logits = questions.reference(answers.length), np.asarray(answers.logits)
    if answers.normalized:
        reference = np.log(np.maximum(probabilities(questions.student.task, reference), SMALLEST))
    if logits.shape != reference.shape:
        return {**result, "reason": f"answers with logits of shape {logits.shape} instead of {reference.shape}"}
    read = _positions(questions, answers.length, reference)
    for who, values in (("the Keras student itself", reference), ("the file", logits)):
        if broken := int((~np.isfinite(values) & read).any(axis=tuple(range(1, values.ndim))).sum()):
            return {**result, "reason": f"{who} answers NaN or infinity to {broken} of {len(values)} texts"}
    difference = np.abs(logits.astype("float64") - reference)[np.broadcast_to(read, logits.shape)]
    result |= {"max_abs_difference": float(difference.max()), "mean_abs_difference": float(difference.mean())}
    scale = max(1.0, float(np.abs(reference[np.broadcast_to(read, logits.shape)]).max()))
    limit = (tolerance.difference or 0.0) * scale
    measured, other_answers = _measure(logits, reference, questions, answers.length, tolerance, limit)
    reason = (
        (_too_different(result, limit) if tolerance.difference is not None else None)
        or other_answers
        or _wrong_scores(answers, questions.student.task, FLOAT32.difference * scale)
        or _wrong_labels(answers, questions.student.labels)
        or _wrong_truncation(answers, questions)
    )
    timed = {"latency_ms": latency(answers.milliseconds)} if answers.signature else {}
    return {**result, **measured, **timed, "reason": reason}


def _positions(questions: Questions, length: int, reference: np.ndarray) -> np.ndarray:
    """Which logits count, as a mask that broadcasts over them: those of padding, where there are any, do not."""
    if reference.ndim == 2:
        return np.ones((1, 1), bool)
    return questions.features(length)["padding_mask"].astype(bool)[..., np.newaxis]


def _too_different(result: dict, limit: float) -> str | None:
    largest = result["max_abs_difference"]
    return f"logits differ by up to {largest:.3g}, allowed are {limit:.3g}" if largest > limit else None


def _measure(logits, reference, questions: Questions, length: int, tolerance: Tolerance, limit: float) -> tuple[dict, str | None]:
    """Agreement and metric of the examples, and what is too bad about them, or None."""
    measure = questions.measure
    ours, theirs = logits[: questions.count], reference[: questions.count]
    if reference.ndim > 2:
        mask = questions.features(length)["padding_mask"][: questions.count].astype(bool)
        if length < questions.max_length and mask[:, -1].any():  # measured are all positions of all texts, and some were cut
            return dict.fromkeys(("agreement", "metrics", "student_metrics")), None
        ours, theirs = ours[mask], theirs[mask]
    near = measure.near(ours, theirs)
    found = {"agreement": near.get("agreement"), "metrics": measure.summary(ours), "student_metrics": measure.summary(theirs)}
    if questions.student.task == "classification":
        return found, _too_many_other_classes(ours, theirs, measure.truth["labels"], tolerance, limit)
    return found, _too_many_other_answers(ours, theirs, measure, near, tolerance)


def _too_many_other_classes(logits, reference, targets: np.ndarray, tolerance: Tolerance, limit: float) -> str | None:
    """Other classes than the student's, and what they cost.

    One example is always allowed where any is: of 30 examples a single one is already 3 %. A loss of the metric counts
    only if chance does not explain it: with `lost` and `gained` examples that one of the two got right alone, the
    standard error of their difference is sqrt(lost + gained), and two of it are allowed (McNemar 1947).
    """
    count = len(targets)
    ours, theirs = logits.argmax(axis=1), reference.argmax(axis=1)
    # Two classes closer than twice the allowed difference may change places within it.
    margin = reference.max(axis=1) - reference[np.arange(count), ours]
    other = (ours != theirs) & (margin > 2.0 * limit)
    if other.sum() > _share(tolerance.disagreement, count):
        return f"another class for {other.sum()} of {count} examples, allowed are {_share(tolerance.disagreement, count)}"
    lost, gained = int((other & (theirs == targets)).sum()), int((other & (ours == targets)).sum())
    if lost - gained > max(_share(tolerance.drop, count), 2.0 * (lost + gained) ** 0.5):
        fall = f"{(lost - gained) / count:.1%}, allowed are {tolerance.drop:.1%}"
        return f"accuracy falls by {fall}: {lost} examples lost, {gained} gained"
    return None


def _too_many_other_answers(ours, theirs, measure: Measure, near: dict, tolerance: Tolerance) -> str | None:
    """The same for what is not one class a text: how near the answers are, and a fall of the metric that chance does not explain.

    Where the difference of the logits is limited, it leaves no room for other answers.
    """
    if tolerance.difference is not None:
        return None
    figure = measure.nearness[0]
    value, least = near[figure.key], 1.0 - max(tolerance.disagreement, 1.0 / measure.examples)
    if value is not None and value < least - ROUNDING:
        return f"{figure.key} with the student's answers is {value:.3f}, allowed is {least:.3f} at least"
    against = measure.difference(ours, theirs, resamples=RESAMPLES, seed=0)
    if against is not None and -against["difference"] > tolerance.drop and against["interval"][1] < 0.0:
        return f"{measure.headline} falls by {-against['difference']:.3f}, allowed are {tolerance.drop:.3f}"
    return None


def _share(share: float, count: int) -> int:
    return max(1, int(share * count)) if share else 0


def probabilities(task: str, logits: np.ndarray) -> np.ndarray:
    """What a format that answers with scores makes of logits: softmax of classes, sigmoids of labels, else the answer itself."""
    logits = logits.astype("float64")
    if task == "classification":
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)
    return np.exp(-np.logaddexp(0.0, -logits)) if task == "multilabel" else logits


def _wrong_scores(answers: Answers, task: str, limit: float) -> str | None:
    """Scores beside what the file's own logits make. A probability moves by less than its logits do."""
    expected = probabilities(task, answers.logits)
    for signature, scores in answers.scores.items():
        if scores.shape != expected.shape:
            return f"{signature} answers with scores of shape {scores.shape} instead of {expected.shape}"
        difference = float(np.abs(scores - expected).max())
        if not difference <= limit:  # NaN is not
            return f"{signature}'s scores are off those of the logits by up to {difference:.3g}, allowed are {limit:.3g}"
    return None


def _wrong_labels(answers: Answers, labels: tuple[str, ...]) -> str | None:
    if answers.labels is None:
        return None
    scores = answers.scores["serving_default"]
    for row, label in enumerate(answers.labels):
        best = [labels[index] for index in np.flatnonzero(scores[row] == scores[row].max())]
        if label not in best:
            return f"serving_default answers {label!r} where class {labels.index(best[0])} is {best[0]!r} (labels.txt)"
    return None


def _wrong_truncation(answers: Answers, questions: Questions) -> str | None:
    if answers.truncated is None:
        return None
    wanted = questions.truncated()
    wrong = np.flatnonzero(answers.truncated != wanted)
    return f"serving_default's truncated is wrong for {len(wrong)} of {len(wanted)} texts" if len(wrong) else None
