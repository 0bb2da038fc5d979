"""A Keras model that trains a student on labels and on a teacher."""

import keras
import tensorflow as tf
from keras import ops

from tfkd.accumulation import in_parts
from tfkd.bad_steps import BadSteps
from tfkd.global_mean import global_mean, global_sum, weights_of, weights_of_examples
from tfkd.gradients import dense, global_norm
from tfkd.models.inner import inner_shapes, inner_tensors
from tfkd.multi_worker import OverReplicas
from tfkd.objectives import FROM_BATCH, KLDivergence, Objective, PairwiseObjective
from tfkd.optimizer import AdamW
from tfkd.schedules import Schedule, ScheduledValue, bounds, value_at
from tfkd.teacher import LiveTeacher, check_positions


class Distiller(OverReplicas, keras.Model):
    """L = alpha * L_labels + (1 - alpha) * sum_i weight_i * objective_i(student, teacher).

    With the default objective this is Hinton's alpha * CE + (1 - alpha) * T^2 * KL(teacher || student), T = 4. Used as any
    Keras model: `compile`, `fit`, `evaluate`. A step asks the teacher once, outside the tape, and the student once;
    `evaluate` never asks the teacher. Loss scaling under mixed precision, sample weights and `tf.distribute` are kept:
    every average is over the weights of the global batch, so that the number of replicas changes nothing; nor does it where
    `tfkd.optimizer.adamw` clips, while Keras's own optimizers clip what each replica holds.

    Arguments:
        student: the model to train; calling the distiller calls it.
        teacher: a Keras model, or an object `teacher(inputs, names) -> dict`. It is not tracked: neither trained nor saved.
            None learns from the labels alone, through the very same step: how a teacher is fine-tuned, and the baseline.
        objectives: `Objective` layers; default `[KLDivergence(temperature=4)]`. Their projections are trained with the
            student and stay out of its file.
        alpha: weight of the labels, 0 to 1: a number or a `Schedule`, as every objective's `weight` may be.
        accumulate: parts, one after another, that a step computes its batch in: its memory is that of a part, its gradients are
            those of the batch. What compares examples with one another would see those of a part alone, and is refused.

    References:
        Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher=None,
        objectives: list[Objective] | None = None,
        alpha: float | Schedule = 0.5,
        accumulate: int = 1,
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
        self.teacher_seed = getattr(teacher, "seed_generator", None)  # of one drawn at random: tracked, and so resumed
        self.objectives = list(objectives or [KLDivergence()]) if teacher is not None else []
        self.alpha = alpha if teacher is not None else 1.0
        names = [objective.name for objective in self.objectives]
        self.accumulate = accumulate
        apart = [objective.name for objective in self.objectives if isinstance(objective, PairwiseObjective)]
        if accumulate > 1 and apart:
            raise ValueError(
                f"accumulate = {accumulate}: {apart[0]} compares all examples of a batch, which cannot come in parts"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"objectives = {names}: each needs a name of its own; give the repeated ones name=...")
        asked = _union(["logits"], *(objective.student_names for objective in self.objectives))
        self.student_names = tuple(name for name in asked if name not in FROM_BATCH)
        self.teacher_names = _union(*(objective.teacher_names for objective in self.objectives))
        self._build_objectives()
        self.label_tracker = keras.metrics.Mean(name="label_loss") if bounds(self.alpha)[1] > 0.0 else None
        self.trackers = [keras.metrics.Mean(name=name) for name in names]
        self.scheduled = self._scheduled()
        self.schedule_trackers = [ScheduledValue(name=name) for name in self.scheduled]
        self.measuring = False
        self.bad_steps = BadSteps([*(["label_loss"] if self.label_tracker is not None else []), *names])
        self.built = student.built

    def _build_objectives(self):
        """Makes the projections now: the optimizer must know them, and they belong into the strategy's scope."""
        for objective in self.objectives if hasattr(self.teacher, "shapes") else ():
            build_objective(objective, self.student, self.teacher)

    def _scheduled(self) -> dict[str, Schedule]:
        """The values that change as the training goes on, by the name that logs give them."""
        found = {"alpha": self.alpha}
        for objective in self.objectives:
            found[f"{objective.name}_weight"] = objective.weight
            found[f"{objective.name}_temperature"] = getattr(objective, "temperature", None)
        return {name: value for name, value in found.items() if isinstance(value, Schedule)}

    def call(self, inputs, training=None):
        """The student's answer. A functional student takes of the batch what it knows, as in training."""
        return inner_tensors(self.student, inputs, ("logits",), training=training)["logits"]

    def compile(self, optimizer, loss, **kwargs):
        """As `keras.Model.compile`; `loss` is the labels' loss, its own reduction is not used."""
        self.label_loss = keras.losses.get(loss)
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def train_step(self, data):
        """One step on a batch `(x, y, sample_weight)`; returns the running averages by name, and what schedules say at the step.

        A step whose loss or gradients are no finite numbers changes no weight and counts in no average; `bad_steps` counts it.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        from_batch = self._from_batch(x, y, sample_weight)
        compute = self._gradients if self.accumulate == 1 else self._accumulated
        # Once a step, so that a teacher drawn at random is one teacher for all parts of the batch.
        teacher = getattr(self.teacher, "of_step", lambda: self.teacher)() if self.objectives else None
        loss, terms, gradients, logits = compute(x, y, sample_weight, teacher)
        # What no term reads stays as it is: the head, say, in a stage on hidden states alone.
        known = [pair for pair in zip(gradients, self.trainable_variables, strict=True) if pair[0] is not None]
        pairs = [(dense(gradient), variable) for gradient, variable in known]
        norm = global_norm([gradient for gradient, _ in known], [gradient for gradient, _ in pairs])
        parts = [loss, *(mean for mean, _, _, _ in terms), self._watched(norm)]
        sound = self.bad_steps.note(global_sum(ops.stack(parts)))
        self._apply(pairs, sound, norm)
        self._track(loss, terms, from_batch, sound)
        logits = ops.where(sound, logits, 0.0)
        if sample_weight is not None:
            sample_weight = ops.where(sound, ops.cast(sample_weight, "float32"), 0.0)
        return self.compute_metrics(x, y, logits, sample_weight)

    def _gradients(self, x, y, sample_weight, teacher, totals=None):
        """The loss of a batch, or of a part of one, its terms, a gradient for each variable or None, and the logits."""
        known = teacher(x, self.teacher_names) if self.objectives else None
        with tf.GradientTape() as tape:
            student = inner_tensors(self.student, x, self.student_names, training=True)
            # Again, for a model that could not say its shapes before there was a batch.
            check_positions(self.teacher, self.teacher_names, {name: value.shape for name, value in student.items()})
            student |= self._from_batch(x, y, sample_weight)
            loss, terms = self._training_loss(x, y, sample_weight, student, known, totals)
            scaled = self.optimizer.scale_loss(loss)
        return loss, terms, tape.gradient(scaled, self.trainable_variables), student["logits"]

    def _accumulated(self, x, y, sample_weight, teacher):
        """As `_gradients`, part after part."""
        examples = self._from_batch(x, y, sample_weight)["example_weight"]
        sample_weight = examples if sample_weight is None else sample_weight
        likes = [examples, *([x["padding_mask"]] if isinstance(x, dict) and "padding_mask" in x else [])]
        weights = {True: sample_weight, False: examples}
        totals = {
            (answers, len(like.shape)): global_sum(ops.sum(weights_of(like, x, weight)))
            for answers, weight in weights.items()
            for like in likes
        }
        known = {}

        def compute(batch):
            loss, terms, gradients, logits = self._gradients(*batch, teacher, totals)
            means, values, weights, known["trackers"] = (list(column) for column in zip(*terms, strict=True))
            known["read"] = [gradient is not None for gradient in gradients]
            return (loss, means, [dense(gradient) for gradient in gradients if gradient is not None]), (values, weights, logits)

        summed, (values, weights, logits) = in_parts(compute, (x, y, sample_weight), self.accumulate)
        loss, means, sums = summed
        sums = iter(sums)
        gradients = [next(sums) if read else None for read in known["read"]]
        return loss, list(zip(means, values, weights, known["trackers"], strict=True)), gradients, logits

    def _watched(self, norm):
        """The norm, to see whether gradients are finite; 0 where a loss scale is there to be lowered instead."""
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer) and self.optimizer.built:
            return ops.where(self.optimizer.dynamic_scale > 1.0, 0.0, norm)
        return norm

    def _apply(self, pairs, sound, norm):
        """The optimizer's step, where the numbers are sound; `norm` is that of this replica's gradients."""
        one = tf.distribute.get_strategy().num_replicas_in_sync == 1
        ours = isinstance(self.optimizer, AdamW) and not self.optimizer.gradient_accumulation_steps
        told = {"norm": norm} if one and ours else {}

        def step(*pairs):
            self.optimizer.apply_gradients(pairs, **told)

        def over_replicas(strategy, *pairs):
            ops.cond(sound, lambda: strategy.extended.call_for_each_replica(step, args=pairs), lambda: None)

        if not one and not tf.__internal__.distribute.strategy_supports_no_merge_call():
            # Where replicas meet there must be no condition around it, as in Keras's own LossScaleOptimizer.
            tf.distribute.get_replica_context().merge_call(over_replicas, args=tuple(pairs))
        elif self.jit_compile and ours:
            self.optimizer.apply_where(sound, pairs, **told)
        else:
            ops.cond(sound, lambda: step(*pairs), lambda: None)

    def make_test_function(self, force=False):
        """As Keras's, but never compiled by XLA: a validation has too few batches to earn the seconds that each length takes."""
        compiled, self.jit_compile = self.jit_compile, False
        try:
            return super().make_test_function(force)
        finally:
            self.jit_compile = compiled

    def test_step(self, data):
        """The labels' loss and the metrics of the student alone."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        logits = self(x, training=False)
        values = self._label_values(y, logits)
        weights = weights_of(values, x, sample_weight)
        self._loss_tracker.update_state(ops.where(weights > 0.0, values, 0.0), sample_weight=weights)
        return self.compute_metrics(x, y, logits, sample_weight)

    def _from_batch(self, x, y, sample_weight) -> dict:
        """What `FROM_BATCH` names, as far as this batch holds it."""
        found = {"labels": y, "step": ops.cast(self.optimizer.iterations, "float32")}
        whole = x["token_ids"] if isinstance(x, dict) and "token_ids" in x else keras.tree.flatten(x)[0]
        rows = ops.shape(whole)[0]  # packed rows are fewer
        found["example_weight"] = ops.ones((rows,)) if sample_weight is None else weights_of_examples(sample_weight, x)
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

    def _training_loss(self, x, y, sample_weight, student, teacher, totals=None):
        """The loss, and of each term its mean, values, their weights and its tracker.

        Arguments:
            totals: of a part of a batch, the sums of the weights in the whole of it: those of answers (True) or of examples
                (False), with one value an example (1) or a position (2).
        """
        step = student["step"]
        alpha = value_at(self.alpha, step)
        terms = []
        if self.label_tracker is not None:
            values = self._label_values(y, student["logits"])
            terms.append((alpha, values, sample_weight, True, self.label_tracker))
        for objective, tracker in zip(self.objectives, self.trackers, strict=True):
            told = (*objective.student_names, *(name for name in objective.optional_names if name in student))
            values = objective(_pick(student, told), _pick(teacher, objective.teacher_names))
            factor = (1.0 - alpha) * value_at(objective.weight, step)
            # What compares answers counts where answers count: a tagger's at first pieces, say; what compares inner
            # tensors, wherever there is text.
            answers = "logits" in objective.student_names
            terms.append((factor, values, sample_weight if answers else student["example_weight"], answers, tracker))
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        shares = replicas if totals is None else replicas * self.accumulate
        loss, means = sum(self.student.losses, 0.0) / shares, []  # regularizers: once, not once a replica
        for factor, values, given, answers, tracker in terms:
            weights = weights_of(values, x, given)
            mean = global_mean(values, weights, None if totals is None else totals[answers, len(values.shape)])
            loss += factor * mean
            means.append((mean, values, weights, tracker))
        return loss, means

    def _track(self, loss, terms, from_batch, sound):
        """Adds a step to the running averages, where one of bad numbers adds nothing, and notes what schedules say at it."""
        for schedule, tracker in zip(self.scheduled.values(), self.schedule_trackers, strict=True):
            tracker.update_state(schedule(from_batch["step"]))
        for _, values, weights, tracker in terms:  # the mean, and what it is of
            weights = ops.where(sound, weights, 0.0)
            tracker.update_state(ops.where(weights > 0.0, values, 0.0), sample_weight=weights)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        rows = ops.where(sound, global_sum(ops.sum(from_batch["example_weight"])), 0.0)
        # Each replica holds a part of the batch's loss: the parts add up to it, weighted once with the whole batch.
        self._loss_tracker.update_state(ops.where(sound, loss * replicas, 0.0), sample_weight=rows / replicas)

    def _label_values(self, y, logits):
        """The labels' loss of each example or position, not reduced."""
        unreduced = self.label_loss.call if isinstance(self.label_loss, keras.losses.Loss) else self.label_loss
        return unreduced(y, logits)


def build_objective(objective: Objective, student, teacher) -> None:
    """Makes what an objective learns, unless it is made. Raises `ValueError` where it does not fit the two models."""
    shapes = inner_shapes(student, [name for name in objective.student_names if name not in FROM_BATCH])
    check_positions(teacher, objective.teacher_names, shapes)
    if not objective.built:
        objective.build(shapes, teacher.shapes(objective.teacher_names))


def _pick(tensors, names):
    return {name: tensors[name] for name in names}


def _union(*names):
    return tuple(dict.fromkeys(name for group in names for name in group))
