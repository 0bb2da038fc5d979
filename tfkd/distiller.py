"""A Keras model that trains a student on labels and on a teacher."""

import keras
import tensorflow as tf
from keras import ops

from tfkd.models.inner import inner_shapes, inner_tensors
from tfkd.objectives import KLDivergence, Objective
from tfkd.schedules import Schedule, bounds, value_at
from tfkd.teacher import LiveTeacher, check_positions

FROM_BATCH = ("padding_mask", "example_weight", "labels", "step")
"""What an objective may ask for, in its `student_names`, that no model holds: the batch and the optimizer do.

    padding_mask    (B, T)  int32, 1 where there is text
    example_weight  (B,)    float32, 0 for the rows that fill up an uneven last batch
    labels          (B,) or (B, T)  as the data give them
    step            ()      float32, the optimizer's steps so far
"""


class Distiller(keras.Model):
    """L = alpha * L_labels + (1 - alpha) * sum_i weight_i * objective_i(student, teacher).

    With the default objective this is Hinton's alpha * CE + (1 - alpha) * T^2 * KL(teacher || student), T = 4. Used as any
    Keras model: `compile`, `fit`, `evaluate`. A step asks the teacher once, outside the tape, and the student once;
    `evaluate` never asks the teacher. Loss scaling under mixed precision, sample weights and `tf.distribute` are kept:
    every average is over the weights of the global batch, so that the number of replicas changes nothing.

    Arguments:
        student: the model to train; calling the distiller calls it.
        teacher: a Keras model, or an object `teacher(inputs, names) -> dict`. It is not tracked: neither trained nor saved.
            None learns from the labels alone, through the very same step: how a teacher is fine-tuned, and the baseline.
        objectives: `Objective` layers; default `[KLDivergence(temperature=4)]`. Their projections are trained with the
            student and stay out of its file.
        alpha: weight of the labels, 0 to 1: a number or a `Schedule`, as every objective's `weight` may be.

    References:
        Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher=None,
        objectives: list[Objective] | None = None,
        alpha: float | Schedule = 0.5,
        **kwargs,
    ):
        # Keras decides by the outer model's policy whether the optimizer scales its loss; that must be the student's.
        super().__init__(**{"dtype": student.dtype_policy, **kwargs})
        least, most = bounds(alpha)
        if not 0.0 <= least <= most <= 1.0:
            raise ValueError(f"alpha = {alpha}: must be from 0 to 1")
        if teacher is None and objectives:
            raise ValueError(f"objectives = {objectives}: they need a teacher")
        self.student = student
        self.teacher = LiveTeacher(teacher) if isinstance(teacher, keras.Model) else teacher
        self.objectives = list(objectives or [KLDivergence()]) if teacher is not None else []
        self.alpha = alpha if teacher is not None else 1.0
        names = [objective.name for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"objectives = {names}: each needs a name of its own; give the repeated ones name=...")
        asked = _union(["logits"], *(objective.student_names for objective in self.objectives))
        self.student_names = tuple(name for name in asked if name not in FROM_BATCH)
        self.teacher_names = _union(*(objective.teacher_names for objective in self.objectives))
        self._build_objectives()
        self.label_tracker = keras.metrics.Mean(name="label_loss") if bounds(self.alpha)[1] > 0.0 else None
        self.trackers = [keras.metrics.Mean(name=name) for name in names]
        self.scheduled = self._scheduled()
        self.schedule_trackers = [keras.metrics.Mean(name=name) for name in self.scheduled]
        self.measuring = False
        self.built = student.built

    def _build_objectives(self):
        """Makes the projections now: the optimizer must know them, and they belong into the strategy's scope."""
        for objective in self.objectives:
            check_positions(self.teacher, objective.teacher_names)
            if not objective.built and hasattr(self.teacher, "shapes"):
                names = [name for name in objective.student_names if name not in FROM_BATCH]
                objective.build(inner_shapes(self.student, names), self.teacher.shapes(objective.teacher_names))

    def _scheduled(self) -> dict[str, Schedule]:
        """The values that change as the training goes on, by the name that logs give them."""
        found = {"alpha": self.alpha}
        for objective in self.objectives:
            found[f"{objective.name}_weight"] = objective.weight
            found[f"{objective.name}_temperature"] = getattr(objective, "temperature", None)
        return {name: value for name, value in found.items() if isinstance(value, Schedule)}

    def call(self, inputs, training=None):
        """The student's answer."""
        return self.student(inputs, training=training)

    def compile(self, optimizer, loss, **kwargs):
        """As `keras.Model.compile`; `loss` is the labels' loss, its own reduction is not used."""
        self.label_loss = keras.losses.get(loss)
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras averages a batch over the replicas to learn its shapes, which turns token ids into fractions and breaks
        # over several workers (keras 3.15). One replica's part has the shapes, and the right types.
        if iterator is not None and self.distribute_strategy.num_replicas_in_sync > 1:
            _, _, batches = next(iter(iterator))
            local = self.distribute_strategy.experimental_local_results
            data_batch, iterator = keras.tree.map_structure(lambda value: local(value)[0], next(batches)), None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def train_step(self, data):
        """One step on a batch `(x, y, sample_weight)`; returns the running averages by name."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher = self.teacher(x, self.teacher_names) if self.objectives else None
        with tf.GradientTape() as tape:
            student = inner_tensors(self.student, x, self.student_names, training=True)
            student |= self._from_batch(x, y, sample_weight)
            loss = self._training_loss(x, y, sample_weight, student, teacher)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        # Keras squares the slices of a sparse gradient before it sums those of a repeated token id, which is not Adam.
        gradients = [_dense(gradient) for gradient in tape.gradient(scaled, variables)]
        # What no term reads stays as it is: the head, say, in a stage on hidden states alone.
        self.optimizer.apply_gradients([pair for pair in zip(gradients, variables, strict=True) if pair[0] is not None])
        return self.compute_metrics(x, y, student["logits"], sample_weight)

    def test_step(self, data):
        """The labels' loss and the metrics of the student alone."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        logits = self(x, training=False)
        values = self._label_values(y, logits)
        self._loss_tracker.update_state(values, sample_weight=_weights(values, x, sample_weight))
        return self.compute_metrics(x, y, logits, sample_weight)

    def _from_batch(self, x, y, sample_weight) -> dict:
        """What `FROM_BATCH` names, as far as this batch holds it."""
        found = {"labels": y, "step": ops.cast(self.optimizer.iterations, "float32")}
        rows = ops.shape(keras.tree.flatten(x)[0])[0]
        found["example_weight"] = ops.ones((rows,)) if sample_weight is None else _of_examples(sample_weight)
        if isinstance(x, dict) and "padding_mask" in x:
            found["padding_mask"] = x["padding_mask"]
        return found

    def evaluate(self, *args, **kwargs):
        """As `keras.Model.evaluate`: the labels' loss and the metrics; no teacher, none of its terms."""
        self.measuring = True
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.measuring = False

    def get_metrics_result(self):
        """Running averages by name; those of the training's terms only while training."""
        results = super().get_metrics_result()
        trackers = (self.label_tracker, *self.trackers, *self.schedule_trackers)
        terms = {tracker.name for tracker in trackers if tracker is not None}
        return {name: value for name, value in results.items() if not (self.measuring and name in terms)}

    def _training_loss(self, x, y, sample_weight, student, teacher):
        step = student["step"]
        alpha = value_at(self.alpha, step)
        terms = []
        if self.label_tracker is not None:
            values = self._label_values(y, student["logits"])
            terms.append((alpha, values, _weights(values, x, sample_weight), self.label_tracker))
        for objective, tracker in zip(self.objectives, self.trackers, strict=True):
            told = (*objective.student_names, *(name for name in objective.optional_names if name in student))
            values = objective(_pick(student, told), _pick(teacher, objective.teacher_names))
            factor = (1.0 - alpha) * value_at(objective.weight, step)
            # What compares answers counts where answers count: a tagger's at first pieces, say; what compares inner
            # tensors, wherever there is text.
            weights = _weights(values, x, sample_weight if "logits" in objective.student_names else student["example_weight"])
            terms.append((factor, values, weights, tracker))
        for (_, schedule), tracker in zip(self.scheduled.items(), self.schedule_trackers, strict=True):
            tracker.update_state(schedule(step))
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        loss = sum(self.student.losses, 0.0) / replicas  # regularizers: once, not once a replica
        for factor, values, weights, tracker in terms:
            tracker.update_state(ops.where(weights > 0.0, values, 0.0), sample_weight=weights)
            loss += factor * global_mean(values, weights)
        # Each replica holds a part of the batch's loss: the parts add up to it, weighted once with the whole batch.
        self._loss_tracker.update_state(loss * replicas, sample_weight=global_sum(ops.sum(student["example_weight"])) / replicas)
        return loss

    def _label_values(self, y, logits):
        """The labels' loss of each example or position, not reduced."""
        unreduced = self.label_loss.call if isinstance(self.label_loss, keras.losses.Loss) else self.label_loss
        return unreduced(y, logits)


def global_mean(values, weights):
    """This replica's part of the weighted mean over all replicas' values; the parts, and their gradients, add up to it.

    Dividing by the replica's own weight instead would count an example more where its replica holds few, and a
    hand-written mean without any such care doubles the gradient on two replicas. A value of weight 0 never matters.
    """
    weighted = ops.where(weights > 0.0, values, 0.0) * weights
    return ops.divide_no_nan(ops.sum(weighted), global_sum(ops.sum(weights)))


def global_sum(value):
    """The sum of a number over all replicas, float32."""
    value = ops.cast(value, "float32")
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def _weights(values, x, sample_weight):
    """Weights of `values` (B,) or (B, T), float32: the sample weights, and for positions the padding mask too."""
    weights = ops.ones(ops.shape(values)[:1]) if sample_weight is None else ops.cast(sample_weight, "float32")
    if len(values.shape) == 1:
        return _of_examples(weights)
    if len(weights.shape) == 1:
        weights = ops.expand_dims(weights, -1)
    return weights * ops.cast(x["padding_mask"], "float32")


def _of_examples(weights):
    """Weights (B,) of examples out of those of examples or of positions (B, T)."""
    weights = ops.cast(weights, "float32")
    return ops.max(weights, axis=-1) if len(weights.shape) == 2 else weights


def _dense(gradient):
    return tf.convert_to_tensor(gradient) if isinstance(gradient, tf.IndexedSlices) else gradient


def _pick(tensors, names):
    return {name: tensors[name] for name in names}


def _union(*names):
    return tuple(dict.fromkeys(name for group in names for name in group))
