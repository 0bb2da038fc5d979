"""One training: a model, labels, and where there is one a teacher; resumable, logged, shown."""

import keras

from tfkd import callbacks, strategy
from tfkd.config import Config, Training
from tfkd.distiller import Distiller
from tfkd.optimizer import adamw
from tfkd.progress import Display
from tfkd.run_dir import RunDir, remove


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
    keep: str = "best",
    epochs_before: int = 0,
) -> None:
    """Trains `model` in place; it ends with its best epoch's weights, or its last's with `keep="last"`.

    Arguments:
        role: `teacher`, `baseline` or `student`.
        train, validation: `tfkd.data.pipeline.Batches`; validation is None where nothing is chosen by it.
        teacher, objectives, alpha: as in `Distiller`; without a teacher it learns from the labels alone.
        stage: name of the student's stage, where there are several.
        epochs_before: of earlier stages: logs count on.
    """
    steps = train.steps * training.epochs
    xla, reason = strategy.choose_xla(config.strategy.xla, steps, len(train.buckets), devices)
    with devices.scope():
        distiller = Distiller(model, teacher, objectives, alpha=alpha)
        variables, rate = distiller.trainable_variables, training.learning_rate
        optimizer = adamw(variables, steps, rate, training.warmup, training.weight_decay, training.clip_norm)
        distiller.compile(
            optimizer, loss=task.loss(training.label_smoothing), weighted_metrics=task.training_metrics(), jit_compile=xla
        )
    title = role if stage is None else f"{role}, {stage}"
    folder = run.checkpoints / (role if stage is None else f"{role}-{stage}")
    monitor = f"val_{task.monitor}" if keep == "best" else None
    checkpoint = callbacks.Checkpoint(folder, monitor, training.early_stopping)
    first = checkpoint.resume(distiller) if resume else 0
    if not first:
        remove(folder)
    going_on = f", going on after epoch {first}" if first else ""
    display.say(f"{title.capitalize()}: {steps:,} steps, XLA {reason}{going_on}")
    if first >= training.epochs or checkpoint.state["stopped"]:
        checkpoint.set_model(distiller)
        checkpoint.on_train_end()
        return
    with display.bar(title, steps) as update:
        distiller.fit(
            train.dataset(first_epoch=first, repeat=True),
            validation_data=None if validation is None else validation.dataset(),
            initial_epoch=first,
            epochs=training.epochs,
            steps_per_epoch=train.steps,
            shuffle=False,
            verbose=0,
            callbacks=[
                callbacks.ProgressBar(update, train.steps, training.epochs),
                callbacks.MetricsLog(run.metrics, role, train.steps, stage=stage, epochs_before=epochs_before),
                keras.callbacks.TensorBoard(run.tensorboard / folder.name, write_graph=False),
                checkpoint,
            ],
        )
    state = checkpoint.state
    if keep == "best":
        best = f"best validation {task.monitor} {state['best']:.4f} at epoch {state['best_epoch']} of {state['epochs']}"
        display.say(f"{title.capitalize()}: {best}")
