"""What each objective adds to a step: `python benchmarks/objectives.py [--objectives pkd minilm_v2 ...]`.

A student of 3 layers of width 384 learns from one of 6 (MiniLM-L6), from labels and from one objective; every step is timed in
turn with all the others, round after round. Ratios are to the response alone, `kl_divergence`.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402 a program of the checkout, run from anywhere
import rich.console  # noqa: E402
import rich.table  # noqa: E402

from tfkd.run_dir import write_json  # noqa: E402

RESULTS = ROOT / "benchmarks" / "objectives.json"
"""What `benchmarks/README.md` shows."""
RESPONSE = "kl_divergence"
LAYERS, WIDTH, HEADS, VOCABULARY, CLASSES = (6, 3), 384, 12, 30522, 4


class Subject:
    """A distiller of one objective, and what its steps took."""

    def __init__(self, name: str, teacher, student, compiled: bool):
        import keras

        from tfkd.distiller import Distiller
        from tfkd.objectives import OBJECTIVES, PairwiseObjective, layer_pairs
        from tfkd.optimizer import adamw

        kind = OBJECTIVES[name]
        # What compares examples reads the head's vector by default, and no layer.
        choice = None if issubclass(kind, PairwiseObjective) else getattr(kind, "default_layers", None)
        options = {"layers": layer_pairs(choice, LAYERS[1], LAYERS[0])} if choice is not None else {}
        self.name, self.clock, self.processor = name, [], []
        self.distiller = Distiller(student, teacher, [kind(**options)], alpha=0.5)
        optimizer = adamw(self.distiller.trainable_variables, 10_000, 5e-5)
        labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.distiller.compile(optimizer, labels, jit_compile=compiled)

    def step(self, x, y, counted: bool = True) -> None:
        begin, used = time.perf_counter(), time.process_time()
        self.distiller.train_on_batch(x, y)
        if counted:
            self.clock.append(1e3 * (time.perf_counter() - begin))
            self.processor.append(1e3 * (time.process_time() - used))


def measure(options: argparse.Namespace, console: rich.console.Console) -> list[dict]:
    """A line for each objective: medians of its steps, and their ratios to the response alone."""
    from tfkd.models.encoder import TransformerEncoder
    from tfkd.models.with_head import TransformerWithHead
    from tfkd.tasks.classification import ClassificationHead

    teacher, student = (
        TransformerWithHead(TransformerEncoder(VOCABULARY, layers, WIDTH, HEADS, segments=0), ClassificationHead(CLASSES))
        for layers in LAYERS
    )
    random = np.random.default_rng(0)
    x = {"token_ids": random.integers(1000, VOCABULARY, (options.batch, options.length)).astype("int32")}
    x["padding_mask"] = np.ones_like(x["token_ids"])
    y = random.integers(0, CLASSES, options.batch).astype("int32")
    subjects = []
    for name in dict.fromkeys((RESPONSE, *options.objectives)):
        with console.status(f"{name}: compilation"):
            subjects.append(Subject(name, teacher, student, options.xla))
            subjects[-1].step(x, y, counted=False)
    for number in range(options.rounds):
        with console.status(f"round {number + 1} of {options.rounds}"):
            for subject in subjects:
                subject.step(x, y)
    median = {one.name: [statistics.median(one.clock), statistics.median(one.processor)] for one in subjects}
    return [
        {
            "objective": name,
            "milliseconds": round(clock, 1),
            "ratio": round(clock / median[RESPONSE][0], 3),
            "processor": round(processor, 1),
            "processor_ratio": round(processor / median[RESPONSE][1], 3),
        }
        for name, (clock, processor) in median.items()
    ]


def conditions(told: dict) -> str:
    """How it was measured."""
    shape = f"batch {told['batch']}, length {told['length']}, XLA {'on' if told['xla'] else 'off'}"
    return f"{shape}, {told['rounds']} rounds, load {told['load']:.1f}"


def table(told: dict) -> str:
    """The page's table of what `main` wrote."""
    lines = [f"B{conditions(told)[1:]}:", ""]
    lines += ["| objective | ms a step | of the response's | CPU ms | of the response's |", "|---|---|---|---|---|"]
    lines += [
        f"| `{row['objective']}` | {row['milliseconds']:,.0f} | {row['ratio']:.2f} "
        f"| {row['processor']:,.0f} | {row['processor_ratio']:.2f} |"
        for row in told["objectives"]
    ]
    return "\n".join(lines)


def main() -> None:
    from tfkd.objectives import OBJECTIVES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES), metavar="NAME")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--xla", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=pathlib.Path, help=f"also writes what was measured here; {RESULTS.name} is the page's")
    options = parser.parse_args()
    console = rich.console.Console(width=None if sys.stdout.isatty() else 130)
    rows = measure(options, console)
    told = {key: getattr(options, key) for key in ("batch", "length", "xla", "rounds")}
    told |= {"load": round(os.getloadavg()[0], 1), "objectives": rows}
    shown = rich.table.Table(title=conditions(told))
    for column in ("objective", "ms a step", "of the response's", "CPU ms", "of the response's"):
        shown.add_column(column, justify="left" if column == "objective" else "right")
    for row in rows:
        name, clock, ratio, processor, other = row.values()
        shown.add_row(name, f"{clock:,.0f}", f"{ratio:.2f}", f"{processor:,.0f}", f"{other:.2f}")
    console.print(shown)
    if options.json:
        write_json(options.json, told)


if __name__ == "__main__":
    main()
