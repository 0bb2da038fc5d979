"""One tag for each word of a text: named entities, parts of speech."""

import keras
import numpy as np
from keras import ops

from tfkd.layers.token_head import TokenHead
from tfkd.tasks.classification import SmoothedCrossEntropy
from tfkd.tasks.tagging_metrics import Scheme
from tfkd.tasks.task import Task


@keras.saving.register_keras_serializable(package="tfkd")
class EntityF1(keras.metrics.Metric):
    """2 right / (found + there) over the entities of all batches; 0 for 0/0.

    Positions of weight 0 are no words: they are left out before entities are read, so that the pieces between two first ones
    do not part them. Words that were cut off are not seen here, where the measure of the test split counts them.

    Arguments:
        kinds: (C,) type of each tag, -1 for none, as `tfkd.tasks.tagging_metrics.Scheme` numbers them.
        continues: (C,) whether a tag continues an entity of its type.
    """

    def __init__(self, kinds, continues, name: str = "entity_f1", **kwargs):
        super().__init__(name=name, **kwargs)
        self.kinds, self.continues = list(map(int, kinds)), list(map(bool, continues))
        self.right = self.add_variable((), "zeros", name="right")
        self.all = self.add_variable((), "zeros", name="all")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Tags (B, T), logits (B, T, C), weights (B, T)."""
        tags, answers = ops.cast(y_true, "int32"), ops.cast(ops.argmax(y_pred, axis=-1), "int32")
        word = ops.ones_like(tags) if sample_weight is None else ops.cast(ops.greater(sample_weight, 0), "int32")
        place = ops.cumsum(ops.ones_like(tags), axis=1) - 1
        order = ops.argsort(place + (1 - word) * ops.shape(tags)[1], axis=1)  # words first, in their order
        word = ops.take_along_axis(word, order, axis=1)
        there = self._entities(ops.take_along_axis(tags, order, axis=1), word, place)
        found = self._entities(ops.take_along_axis(answers, order, axis=1), word, place)
        same = ops.logical_and(there[0] >= 0, ops.logical_and(there[0] == found[0], there[1] == found[1]))
        self.right.assign_add(2.0 * _count(same))
        self.all.assign_add(_count(there[0] >= 0) + _count(found[0] >= 0))

    def _entities(self, tags, word, place):
        """(B, T) -> at the first word of each entity its type, -1 elsewhere, and for every word where an entity next ends."""
        kinds = ops.where(word > 0, ops.take(np.array(self.kinds, "int32"), tags), -1)
        before = ops.concatenate([-ops.ones_like(kinds[:, :1]), kinds[:, :-1]], axis=1)
        goes_on = ops.logical_and(ops.take(np.array(self.continues), tags), ops.logical_and(kinds >= 0, kinds == before))
        follows = ops.concatenate([goes_on[:, 1:], ops.zeros_like(goes_on[:, :1])], axis=1)
        ends = ops.logical_and(kinds >= 0, ops.logical_not(follows))
        later = ops.expand_dims(place, 1) >= ops.expand_dims(place, 2)  # (B, T, T): word, and where it may end
        none = ops.shape(tags)[1]
        last = ops.min(ops.where(ops.logical_and(later, ops.expand_dims(ends, 1)), ops.expand_dims(place, 1), none), axis=-1)
        return ops.where(goes_on, -1, kinds), last

    def result(self):
        return ops.divide_no_nan(self.right, self.all)

    def get_config(self):
        return {**super().get_config(), "kinds": self.kinds, "continues": self.continues}


class Tagging(Task):
    """A tag for each word: softmax cross-entropy at the first piece of each; F1 of entities, by type, first and last word."""

    name = "tagging"
    target = "tags"
    metric, monitor = "f1", "entity_f1"
    per_position = True

    def __init__(self, target=None):
        super().__init__(target)
        self.scheme = None if target is None else Scheme(target.labels)

    def head(self, outputs, pooling="first", dropout=0.1):
        return TokenHead(outputs, dropout, name="head")

    def loss(self, label_smoothing=0.0):
        return SmoothedCrossEntropy(label_smoothing)

    def training_metrics(self):
        return [EntityF1(self.scheme.kinds[:-1], self.scheme.continues[:-1], name=self.monitor)]


def _count(which):
    return ops.sum(ops.cast(which, "float32"))
