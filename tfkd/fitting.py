"""One training: a model, labels, and where there is one a teacher; resumable, logged, shown."""

import functools

import keras

from tfkd import callbacks, stopping, strategy
from tfkd.config import Config, Training
from tfkd.distiller import Distiller
from tfkd.errors import UserError
from tfkd.multi_worker import Team, feed
from tfkd.optimizer import adamw
from tfkd.progress import Display
from tfkd.run_dir import RunDir, remove
from tfkd.speed import Speed, forward_flops
from tfkd.tasks.no_labels import NoLabels


def fit(
    role: str,
    model: keras.Model,
    config: Config,
    training: Training,
    train,
    validation,
    task,
    run: RunDir,
    display: Display,
    devices,
    resume: bool,
    *,
    teacher=None,
    objectives=None,
    alpha=1.0,
    stage: str | None = None,
    epochs_before: int = 0,
    labelled: bool = True,
) -> None:
    """Trains `model` in place; it ends with the weights of the epoch that `training.keep` asks for.

    A task that watches nothing in training knows no best epoch: it keeps the last.

    Arguments:
        role: `teacher`, `baseline` or `student`.
        train, validation: `tfkd.data.pipeline.Batches`; without the second no epoch is known to be the best.
        teacher, objectives, alpha: as in `Distiller`; without a teacher it learns from the labels alone.
        stage: name of the student's stage, where there are several.
        epochs_before: of earlier stages: logs count on.
        labelled: whether the batches hold the task's answers; without them nothing of the labels is measured, and alpha is 0.
    """
    validation = validation if task.monitor else None
    best = validation is not None and training.keep != "last"
    steps = train.steps * training.epochs
    speed = Speed(train, flops=_flops(model, teacher))
    saves_memory = training.accumulate > 1 or training.checkpoint_gradients
    xla, reason = strategy.choose_xla(config.strategy.xla, steps, train.shapes(), devices, speed.gigaflops(), saves_memory)
    _check_parts(training, devices.num_replicas_in_sync)
    if hasattr(model, "encoder"):
        model.encoder.checkpoint_gradients = training.checkpoint_gradients
    with devices.scope():
        distiller = Distiller(model, teacher, objectives, alpha=alpha, accumulate=training.accumulate)
        variables, rate = distiller.trainable_variables, training.learning_rate
        optimizer = adamw(variables, steps, rate, training.warmup, training.weight_decay, training.clip_norm)
        loss, watched = (task.loss(training.label_smoothing), task.training_metrics()) if labelled else (NoLabels(), [])
        distiller.compile(optimizer, loss=loss, weighted_metrics=watched, jit_compile=xla)
    title = role if stage is None else f"{role}, {stage}"
    folder = run.checkpoints / (role if stage is None else f"{role}-{stage}")
    monitor = f"val_{task.monitor}" if best else None
    often = {"every": config.checkpoint.steps, "minutes": config.checkpoint.minutes}
    team = Team(devices)
    checkpoint = callbacks.Checkpoint(folder, train.steps, monitor, training.early_stopping, **often, team=team)
    with devices.scope():
        # The optimizer's variables and the metrics now, and not in the first step: a step that makes some is traced twice,
        # workers meet over each new one, and a checkpoint holds the running averages to go on with.
        optimizer.build(variables)
        distiller._symbolic_build(data_batch=next(iter(train.dataset())))
        damaged = checkpoint.resume(distiller) if resume else remove(folder)
        checkpoint.share(distiller)
    state = checkpoint.state
    first, step = state["epochs"], state["step"]
    speed.first = step
    log = callbacks.MetricsLog(
        run.metrics, role, train.steps, stage=stage, epochs_before=epochs_before, table=run.metrics_csv, speed=speed
    )
    if resume:
        log.resume(first, step, state["seconds"])
    for name in damaged or ():
        display.say(f"{title.capitalize()}: the checkpoint {name} is damaged; the one before it is used")
    place = f" and {step:,} steps" if step else ""
    going_on = f", going on after epoch {first}{place}" if first or step else ""
    display.say(f"{title.capitalize()}: {steps:,} steps, XLA {reason}{going_on}")
    if first >= training.epochs or state["stopped"]:
        checkpoint.set_model(distiller)
        checkpoint.on_train_end()
        return
    with display.bar(title, steps) as update, stopping.finishing_steps():
        distiller.fit(
            feed(devices, functools.partial(train.dataset, first_epoch=first, first_step=step, repeat=True)),
            validation_data=None if validation is None else feed(devices, validation.dataset),
            validation_steps=None if validation is None else validation.steps,
            initial_epoch=first,
            epochs=training.epochs,
            steps_per_epoch=train.steps,
            shuffle=False,
            verbose=0,
            callbacks=[
                speed,
                callbacks.ProgressBar(update, train.steps, training.epochs, first * train.steps + step, speed),
                callbacks.BadStepsLimit(title, train.steps, training.max_bad_steps, train.rows_of, display.say),
                log,
                keras.callbacks.TensorBoard(run.tensorboard / folder.name, write_graph=False),
                checkpoint,
            ],
        )
    if best:
        found = f"best validation {task.monitor} {state['best']:.4f} at epoch {state['best_epoch']} of {state['epochs']}"
        display.say(f"{title.capitalize()}: {found}")


def _check_parts(training: Training, replicas: int) -> None:
    if training.accumulate > 1 and training.batch_size % (replicas * training.accumulate):
        raise UserError(
            f"train.accumulate = {training.accumulate} does not divide what each of {replicas} replicas gets of "
            f"train.batch_size = {training.batch_size}; make that a multiple of {replicas * training.accumulate}"
        )


def _flops(student, teacher):
    """Row length -> FLOP of a step on such a row, where the models say how they are made; a backward pass costs two forward."""
    sizes = [getattr(getattr(model, "encoder", None), "config", None) for model in (student, getattr(teacher, "model", None))]
    if sizes[0] is None:
        return None
    return lambda length: 3 * forward_flops(sizes[0], length) + (forward_flops(sizes[1], length) if sizes[1] else 0.0)
