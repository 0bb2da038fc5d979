"""What every task is to training: a head, a loss, what is watched. One task, one file; `tfkd.tasks.table` is the list."""

import keras

from tfkd.errors import UserError


class Task:
    """What differs between tasks while models are made and trained. What is measured at the end is in `tfkd.tasks.measures`.

    A new task sets the class attributes and writes `head`, `loss` and `training_metrics`:

        name       the name in configurations and tables.
        target     which kind of `tfkd.data.targets` its examples carry.
        metric     headline of the report, a key of what its measure answers.
        monitor    name of the training metric that chooses the best epoch on the validation split, larger is better: the
                   headline itself, or where that cannot be added up batch by batch, what is nearest to it; None for none.
        response   the objective that compares student's and teacher's logits, where a configuration names none.

    Arguments:
        target: the targets after train was surveyed; None where no head and no loss is asked for.

    Attributes:
        response_arguments: of `response`, where a configuration does not say otherwise.
    """

    name: str
    target: str
    metric: str
    monitor: str | None
    response = "kl_divergence"
    learns_from_labels = True
    """Whether there is anything to learn without a teacher."""
    per_position = False
    """Whether the head answers for every position of the text."""
    mixture: dict = {"activation": "softmax"}
    """What makes probabilities of its logits: `activation`, and maybe `axis`, of a `TeacherEnsemble`."""
    over_vocabulary = False
    """Whether the head scores the pieces of the vocabulary."""
    kept = None
    """What is kept of a batch's logits to measure them, where they are too many: `(logits, y) -> (B, K) or (B, T, K)`."""

    def __init__(self, target=None):
        self.response_arguments: dict = {}

    def outputs(self, labels: list[str]) -> int:
        """How many numbers the head answers with, for a text or for each of its positions."""
        return len(labels)

    def head(self, outputs: int, pooling: str = "first", dropout: float = 0.1) -> keras.layers.Layer:
        """A new head, to be built with an encoder; its attribute `classes` is `outputs`."""
        raise TypeError(f"{type(self).__name__} must define head(outputs, pooling, dropout)")

    def loss(self, label_smoothing: float = 0.0) -> keras.losses.Loss:
        """The labels' loss: its `call(y, logits)` answers (B,) or (B, T) float32, not reduced."""
        raise TypeError(f"{type(self).__name__} must define loss(label_smoothing)")

    def training_metrics(self) -> list[keras.metrics.Metric]:
        """What is watched in training; one of them is called `monitor`."""
        raise TypeError(f"{type(self).__name__} must define training_metrics()")

    def refuse_smoothing(self, label_smoothing: float) -> None:
        """Raises `UserError` where labels are smoothed that are none."""
        if label_smoothing:
            raise UserError(f"label_smoothing = {label_smoothing}: {self.name} has no classes to smooth; leave it out")


def pooled_head_hidden(pooling: str) -> str | None:
    """Activation between pooling and scores: a mean over the text is scored as it is, one position is transformed first."""
    return "tanh" if pooling == "first" else None
