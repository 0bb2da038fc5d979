"""Several teachers as one: `ensemble(inputs, names) -> {name: tensor}`, as every teacher."""

import copy
import functools

import keras
import numpy as np
from keras import ops

from tfkd.models.inner import over_positions
from tfkd.objectives.text_mask import EXCLUDED
from tfkd.teacher import LiveTeacher

COMBINE = ("average", "random")


class TeacherEnsemble:
    """Several teachers as one: their weighted average, or one of them a step.

    `average` is in probability space: the logits given out are log(sum_k w_k softmax(z_k)), so that their softmax is the
    average. A divergence softened by T sees softmax(logits / T), which is that average distribution to the power 1/T,
    normalized: the average is softened as one teacher's answer would be. It is not the average of the softened
    distributions, sum_k w_k softmax(z_k / T); at T = 1 the two are the same. Inner tensors are averaged as they are, which
    means something only for teachers that share a start (one checkpoint, fine-tuned several times): the axes of
    independently trained models have nothing to do with one another, and `random` is then the better choice.

    `random` asks one teacher a step, for everything, chosen with the probability of its weight: the step costs one teacher.
    The choice follows from `seed` and the number of steps, is the same on all replicas, and goes on where it was when the
    variables of `seed_generator` are saved and restored. Create it inside the strategy's scope.

    Arguments:
        teachers: Keras models, or objects with `teacher(inputs, names)` and `teacher.shapes(names)`, of any make.
        weights: one above 0 for each, in any unit; default: alike.
        combine: `average` or `random`.
        activation: what makes probabilities of the task's logits: `softmax`; `sigmoid`, one for each label; or `linear`, for
            outputs that are values, averaged as they are.
        axis: the one that the softmax is over: the last, classes, or 1, positions, for the ends of answers (B, T, 2). Over
            positions padding has no part in it, whatever a teacher says there.
        seed: of `random`.

    Raises:
        ValueError: arguments that cannot be.
    """

    def __init__(
        self,
        teachers: list,
        weights: list[float] | None = None,
        combine: str = "average",
        activation: str = "softmax",
        axis: int = -1,
        seed: int = 0,
    ):
        self.teachers = [LiveTeacher(teacher) if isinstance(teacher, keras.Model) else teacher for teacher in teachers]
        weights = [1.0] * len(teachers) if weights is None else list(weights)
        if not teachers:
            raise ValueError("teachers = []: give at least one")
        if len(weights) != len(teachers) or not all(0.0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights = {weights}: give {len(teachers)} numbers above 0, one for each teacher")
        if combine not in COMBINE:
            raise ValueError(f"combine = {combine!r}: must be {' or '.join(COMBINE)}")
        if activation not in MIXTURES:
            raise ValueError(f"activation = {activation!r}: must be one of {', '.join(MIXTURES)}")
        self.weights = np.asarray(weights, "float64") / np.sum(weights)
        self.combine = combine
        self.over_positions = activation == "softmax" and axis == 1
        self.mixing = {"weights": self.weights.tolist(), "activation": activation, "axis": axis}
        if self.over_positions:
            self.mixing["padding"] = "excluded"  # a cache of answers in which it had a part is another one
        self.mixture = functools.partial(mix_softmax, axis=axis) if activation == "softmax" else MIXTURES[activation]
        self.seed_generator = keras.random.SeedGenerator(seed) if combine == "random" else None
        self.same_positions = all(getattr(teacher, "same_positions", True) for teacher in self.teachers)
        self.known = {}
        self.texts = {"" if getattr(one, "same_positions", True) else one.prefix for one in self.teachers}

    @property
    def name(self) -> str:
        return " and ".join(getattr(teacher, "name", type(teacher).__name__) for teacher in self.teachers)

    @property
    def variables(self) -> list:
        """The variables of all of them."""
        return [variable for teacher in self.teachers for variable in getattr(teacher, "variables", [])]

    def averaged(self) -> "TeacherEnsemble":
        """The same teachers as their average: what they know together, whoever is asked at a step."""
        average = copy.copy(self)
        average.combine = "average"
        return average

    def reseed(self, seed: int) -> None:
        """Draws from now on as one made with this seed does, whatever was drawn before."""
        if self.seed_generator is not None:
            self.seed_generator.state.assign([seed, 0])

    @property
    def layers(self) -> int | None:
        """How many layers `hidden.i` counts; None where the teachers differ."""
        counts = {getattr(teacher, "layers", None) for teacher in self.teachers}
        return counts.pop() if len(counts) == 1 else None

    def __call__(self, inputs, names=("logits",)) -> dict:
        """Float32 tensors without gradient."""
        return self.of_step()(inputs, names)

    def of_step(self):
        """What one step asks, `(inputs, names) -> {name: tensor}`, in however many parts its batch comes: of `random`, the
        teacher that is drawn now."""
        return functools.partial(self._ask, self._draw() if self.combine == "random" else None)

    def _ask(self, drawn, inputs, names):
        names = tuple(names)
        self.shapes(names)
        if drawn is not None:
            return ops.switch(drawn, [lambda teacher=teacher: teacher(inputs, names) for teacher in self.teachers])
        answers = [teacher(inputs, names) for teacher in self.teachers]
        weights = self.weights.astype("float32")
        mean = {}
        for name in names:
            values = [answer[name] for answer in answers]
            # What nobody could say before: a tensor of one value would be repeated for each of another's, without a word.
            self._agreed(name, [_as_said(value.shape) for value in values])
            if name == "logits":
                mean[name] = self.mixture(self._without_padding(values, inputs), weights)
            else:
                mean[name] = mix_values(values, weights)
        return {name: ops.stop_gradient(mean[name]) for name in names}

    def _without_padding(self, logits, inputs):
        """Logits (B, T, ...) that a softmax over the positions gives padding nothing of."""
        padding_mask = f"{next(iter(self.texts))}padding_mask"  # they all read the same word pieces: see `_shapes`
        if not self.over_positions or not isinstance(inputs, dict) or padding_mask not in inputs:
            return logits
        text = ops.not_equal(inputs[padding_mask], 0)
        return [ops.where(ops.expand_dims(text, list(range(2, len(one.shape)))), one, EXCLUDED) for one in logits]

    def shapes(self, names) -> dict:
        """Name -> shape, None for what a batch decides.

        Raises:
            ValueError: two teachers' tensors of a name differ in shape, or stand for different word pieces.
        """
        names = tuple(names)
        if names not in self.known:
            self.known[names] = self._shapes(names)
        return dict(self.known[names])

    def _shapes(self, names):
        shapes = [teacher.shapes(names) for teacher in self.teachers]
        first = {name: self._agreed(name, [one[name] for one in shapes]) for name in names}
        if len(self.texts) > 1:
            over = [name for name in names if over_positions(name, first[name])]
            if self.over_positions and "logits" in names:  # which they are, even where no teacher says so
                over.append("logits")
            if over:
                raise ValueError(
                    f"{over[0]}: the teachers cut texts into different word pieces, so that the positions of one are not "
                    "another's; leave out what has positions"
                )
        return first

    def _agreed(self, name, shapes):
        """The one shape of a tensor that all say who say one. Raises `ValueError` as `shapes`."""
        said = [index for index, shape in enumerate(shapes) if shape is not None]
        for index in said[1:]:
            if shapes[index] != shapes[said[0]]:
                raise ValueError(
                    f"teachers disagree on {name}: {self._label(said[0])} has {shapes[said[0]]}, {self._label(index)} has "
                    f"{shapes[index]}; leave it out, or map it to layers that agree"
                )
        return shapes[said[0]] if said else None

    def _draw(self):
        """The number of this step's teacher."""
        drawn = keras.random.uniform((), seed=self.seed_generator)
        return ops.sum(ops.cast(drawn >= np.cumsum(self.weights)[:-1].astype("float32"), "int32"))

    def _label(self, index):
        return f"teacher {index} ({getattr(self.teachers[index], 'name', type(self.teachers[index]).__name__)})"


def _as_said(shape):
    """A batch's shape as `shapes` has them; None where the last dimension is not known."""
    return None if shape[-1] is None else (*[None] * (len(shape) - 1), shape[-1])


def mix_values(values: list, weights):
    """sum_k w_k v_k."""
    return sum(float(weight) * value for weight, value in zip(weights, values, strict=True))


def mix_softmax(logits: list, weights, axis: int = -1):
    """log(sum_k w_k softmax(z_k)): the softmax of it is the average of the teachers'. (B, ..., C)."""
    return _log_mean([ops.log_softmax(one, axis=axis) for one in logits], weights)


def mix_sigmoid(logits: list, weights):
    """logit(sum_k w_k sigmoid(z_k)): the sigmoid of it is the average of the teachers'. (B, ..., C)."""
    chance = _log_mean([ops.log_sigmoid(one) for one in logits], weights)
    return chance - _log_mean([ops.log_sigmoid(-one) for one in logits], weights)


def _log_mean(logarithms, weights):
    return ops.logsumexp(ops.stack([one + np.log(weight) for one, weight in zip(logarithms, weights, strict=True)]), axis=0)


MIXTURES = {"softmax": mix_softmax, "sigmoid": mix_sigmoid, "linear": mix_values}
