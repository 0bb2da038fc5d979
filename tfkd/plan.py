"""What a run is going to do, shown before it does it."""

import numpy as np
import rich.box
import rich.table

from tfkd.config import Config, Training
from tfkd.evaluate import parameters
from tfkd.run_dir import RunDir
from tfkd.student import choose_layers


def show_plan(
    display, config: Config, run: RunDir, source, stores, buckets, devices: str, teacher, student, teacher_training, teacher_name
) -> None:
    """Prints what will be done, before it is done."""

    def trained(training: Training) -> str:
        steps = -(-len(stores["train"]) // training.batch_size) * training.epochs
        epochs = "1 epoch" if training.epochs == 1 else f"{training.epochs} epochs"
        return f"{epochs} of {len(stores['train']):,} examples, batch {training.batch_size}: {steps:,} steps"

    def shape(model) -> str:
        size, millions = model.encoder.config, parameters(model) / 1e6
        layers = "1 layer" if size["layers"] == 1 else f"{size['layers']} layers"
        return f"{layers} of width {size['width']}, {size['heads']} heads, {millions:.2f} M parameters"

    counts = np.bincount(stores["train"].labels, minlength=len(source.labels))
    order = np.argsort(-counts, kind="stable")
    shown = ", ".join(f"{source.labels[i]} {counts[i]:,}" for i in order[:10]) + (", ..." if len(counts) > 10 else "")
    rows = ", ".join(f"{split} {len(store):,}" for split, store in stores.items())
    if config.teacher.checkpoint is None:
        origin = "from scratch, "
    else:
        origin = f"{teacher_name}, " + ("fine-tuned first, " if teacher_training else "as it is, ")
    copied = ""
    if config.student.layers is not None:
        copied = f"teacher's layers {', '.join(map(str, choose_layers(teacher, config.student.layers)))}, "
    ratio = parameters(teacher) / parameters(student)
    plan = rich.table.Table(title=f"Plan: {config.name}", box=rich.box.SIMPLE_HEAD, show_header=False, title_justify="left")
    plan.add_column(style="bold")
    plan.add_column(overflow="fold")
    plan.add_row("data", f"{source.name}: {rows}")
    plan.add_row("classes", f"{len(source.labels)}: {shown}")
    plan.add_row("lengths", f"batches padded to {', '.join(map(str, buckets))} word pieces")
    plan.add_row("teacher", origin + shape(teacher))
    if teacher_training is not None:
        plan.add_row("", trained(teacher_training))
    plan.add_row("student", f"{copied}{shape(student)}, {ratio:.1f} times smaller")
    plan.add_row("", trained(config.train) + (", twice: without the teacher (baseline) and with it" if config.baseline else ""))
    plan.add_row(
        "objective",
        f"{config.distill.alpha:g} x labels + {1 - config.distill.alpha:g} x KL at temperature {config.distill.temperature:g}",
    )
    plan.add_row("devices", f"{devices}, {config.strategy.precision}")
    plan.add_row("run", str(run))
    display.say(plan)
