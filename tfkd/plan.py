"""What a run is going to do, shown before it does it."""

import numpy as np
import rich.box
import rich.table
from rich.text import Text

from tfkd.config import Config, Training
from tfkd.data import pipeline
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
    splits = ", ".join(f"{split} {len(store):,}" for split, store in stores.items())
    if config.teacher.checkpoint is None:
        origin = "from scratch, "
    else:
        origin = f"{teacher_name}, " + ("fine-tuned first, " if teacher_training else "as it is, ")
    copied = ""
    if config.student.layers is not None:
        copied = f"teacher's layers {', '.join(map(str, choose_layers(teacher, config.student.layers)))}, "
    alpha, ratio = config.distill.alpha, parameters(teacher) / parameters(student)
    plan = rich.table.Table(title=Text(f"Plan: {config.name}"), box=rich.box.SIMPLE_HEAD, show_header=False, title_justify="left")
    plan.add_column(style="bold")
    plan.add_column(overflow="fold")
    padding = pipeline.Batches(stores["train"], config.train.batch_size, buckets).padding()
    rows = [
        ("data", f"{source.name}: {splits}"),
        ("classes", f"{len(source.labels)}: {shown}"),
        ("lengths", f"batches padded to {', '.join(map(str, buckets))} word pieces, {padding:.0%} of them padding"),
        ("teacher", origin + shape(teacher)),
        ("", "" if teacher_training is None else trained(teacher_training)),
        ("student", f"{copied}{shape(student)}, {ratio:.1f} times smaller"),
        ("", trained(config.train) + (", twice: without the teacher (baseline) and with it" if config.baseline else "")),
        ("objective", f"{alpha:g} x labels + {1 - alpha:g} x KL at temperature {config.distill.temperature:g}"),
        ("devices", f"{devices}, {config.strategy.precision}"),
        ("run", str(run)),
    ]
    for name, value in rows:
        if value:
            plan.add_row(name, Text(value))  # labels and paths may hold [brackets]: no markup
    display.say(plan)
