"""A Keras model that trains a student on labels and on a teacher."""

import keras
import tensorflow as tf
from keras import ops

from tfkd.models.inner import inner_tensors
from tfkd.objectives import KLDivergence, Objective
from tfkd.teacher import LiveTeacher


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
        objectives: `Objective` layers; default `[KLDivergence(temperature=4)]`.
        alpha: weight of the labels, 0 to 1.

    References:
        Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """

    def __init__(
        self, student: keras.Model, teacher=None, objectives: list[Objective] | None = None, alpha: float = 0.5, **kwargs
    ):
        # Keras decides by the outer model's policy whether the optimizer scales its loss; that must be the student's.
        super().__init__(**{"dtype": student.dtype_policy, **kwargs})
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha = {alpha}: must be from 0 to 1")
        if teacher is None and objectives:
            raise ValueError(f"objectives = {objectives}: they need a teacher")
        self.student = student
        self.teacher = LiveTeacher(teacher) if isinstance(teacher, keras.Model) else teacher
        self.objectives = list(objectives or [KLDivergence()]) if teacher is not None else []
        self.alpha = alpha if teacher is not None else 1.0
        self.student_names = _union(["logits"], *(objective.student_names for objective in self.objectives))
        self.teacher_names = _union(*(objective.teacher_names for objective in self.objectives))
        self.label_tracker = keras.metrics.Mean(name="label_loss") if self.alpha > 0.0 else None
        names = [objective.name for objective in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"objectives = {names}: each needs a name of its own; give the repeated ones name=...")
        self.trackers = [keras.metrics.Mean(name=name) for name in names]
        self.measuring = False
        self.built = student.built

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
            loss = self._training_loss(x, y, sample_weight, student, teacher)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        # Keras squares the slices of a sparse gradient before it sums those of a repeated token id, which is not Adam.
        gradients = [_dense(gradient) for gradient in tape.gradient(scaled, variables)]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self.compute_metrics(x, y, student["logits"], sample_weight)

    def test_step(self, data):
        """The labels' loss and the metrics of the student alone."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        logits = self(x, training=False)
        values = self._label_values(y, logits)
        self._loss_tracker.update_state(values, sample_weight=_weights(values, x, sample_weight))
        return self.compute_metrics(x, y, logits, sample_weight)

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
        terms = {tracker.name for tracker in (self.label_tracker, *self.trackers) if tracker is not None}
        return {name: value for name, value in results.items() if not (self.measuring and name in terms)}

    def _training_loss(self, x, y, sample_weight, student, teacher):
        terms = []
        if self.alpha > 0.0:
            terms.append((self.alpha, self._label_values(y, student["logits"]), self.label_tracker))
        for objective, tracker in zip(self.objectives, self.trackers, strict=True):
            factor = (1.0 - self.alpha) * objective.weight
            terms.append(
                (factor, objective(_pick(student, objective.student_names), _pick(teacher, objective.teacher_names)), tracker)
            )
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        loss = sum(self.student.losses, 0.0) / replicas  # regularizers: once, not once a replica
        for factor, values, tracker in terms:
            weights = _weights(values, x, sample_weight)
            tracker.update_state(values, sample_weight=weights)
            loss += factor * global_mean(values, weights)
        examples = ops.shape(keras.tree.flatten(x)[0])[0] if sample_weight is None else ops.sum(sample_weight)
        # Each replica holds a part of the batch's loss: the parts add up to it, weighted once with the whole batch.
        self._loss_tracker.update_state(loss * replicas, sample_weight=global_sum(examples) / replicas)
        return loss

    def _label_values(self, y, logits):
        """The labels' loss of each example or position, not reduced."""
        unreduced = self.label_loss.call if isinstance(self.label_loss, keras.losses.Loss) else self.label_loss
        return unreduced(y, logits)


def global_mean(values, weights):
    """This replica's part of the weighted mean over all replicas' values; the parts, and their gradients, add up to it.

    Dividing by the replica's own weight instead would count an example more where its replica holds few, and a
    hand-written mean without any such care doubles the gradient on two replicas.
    """
    return ops.divide_no_nan(ops.sum(values * weights), global_sum(ops.sum(weights)))


def global_sum(value):
    """The sum of a number over all replicas, float32."""
    value = ops.cast(value, "float32")
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def _weights(values, x, sample_weight):
    """Weights of `values` (B,) or (B, T), float32: the sample weights, and for positions the padding mask too."""
    weights = ops.ones_like(values) if sample_weight is None else ops.cast(sample_weight, values.dtype)
    if len(values.shape) == 2:
        if len(weights.shape) == 1:
            weights = ops.expand_dims(weights, -1)
        weights = weights * ops.cast(x["padding_mask"], values.dtype)
    return weights


def _dense(gradient):
    return tf.convert_to_tensor(gradient) if isinstance(gradient, tf.IndexedSlices) else gradient


def _pick(tensors, names):
    return {name: tensors[name] for name in names}


def _union(*names):
    return tuple(dict.fromkeys(name for group in names for name in group))
