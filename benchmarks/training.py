"""How long a step of training takes, and beside it a step of others: `python benchmarks/training.py [--items live torch ...]`.

Every item runs in a process of its own, all of them are open at once, and they are timed in turn, a few steps each, round after
round: whatever else the machine does meets all of them alike, and the ratios stand. Milliseconds are medians over the rounds;
"CPU ms" is the processors' time, which says more where others use them too.

    student         a plain step on the labels, ours
    teacher         the teacher's forward pass alone, ours
    live            our distillation step, response only
    cached          the same with the teacher's answers read with the batch
    inner           our step on answers, hidden states and attention
    packed-student, packed-live
                    the first and the third with texts packed (`train.pack`), of SST-2
    keras           `keras.distillation.Distiller` over KerasHub models of the same shapes, response only
    keras-xla       the same, compiled by XLA
    torch-student, torch-teacher, torch, torch-inner
                    PyTorch, eager, over `transformers` models of the same shapes, by the Python that TFKD_REFERENCE_PYTHON names

Teacher: 6 layers, width 384 (MiniLM-L6). Student: 4 layers, width 312, 1,200 inside. Both read 30,522 word pieces with 12 heads.
`--shapes tiny` is 4 layers of width 128 and one of width 32 instead: where what surrounds the arithmetic counts.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import rich.console
import rich.table

ROOT = pathlib.Path(__file__).parent.parent
OURS = ("student", "teacher", "live", "cached", "inner")
PACKED = ("packed-student", "packed-live")
KERAS = ("keras", "keras-xla")
TORCH = ("torch-student", "torch-teacher", "torch", "torch-inner")
ITEMS = (*OURS, *PACKED, *KERAS, *TORCH)
SHAPES = {
    "minilm": (
        {"layers": 6, "width": 384, "heads": 12, "feed_forward": 1536},
        {"layers": 4, "width": 312, "heads": 12, "feed_forward": 1200},
    ),
    "tiny": (
        {"layers": 4, "width": 128, "heads": 4, "feed_forward": 512},
        {"layers": 1, "width": 32, "heads": 4, "feed_forward": 128},
    ),
}
"""Teacher and student."""
VOCABULARY = 30522
CLASSES = 2


# ---------------------------------------------------------------- work


def forward(shape: dict, rows: int, length: int, texts: int, first_only: bool) -> float:
    """Floating-point operations of an encoder's matrix products, two a multiplication and addition.

    Arguments:
        texts: how many lie in the rows.
        first_only: the last block computes queries, feed-forward and sums for the first position of each text alone.
    """
    width, inner = shape["width"], shape["feed_forward"]
    tokens = rows * length
    block = tokens * (8 * width**2 + 4 * width * inner + 4 * length * width)
    first = texts * (4 * width**2 + 4 * width * inner + 4 * length * width)
    last = tokens * 4 * width**2 + first if first_only else block
    return (shape["layers"] - 1) * block + last


def work(item: str, shapes: str, *batch: int) -> float:
    """Operations of a step on a batch of so many rows, length and texts: a backward pass is twice its forward pass."""
    first = item in (*OURS, *PACKED) and item != "inner"
    sizes = SHAPES[shapes]
    student = 0.0 if item.endswith("teacher") else 3 * forward(sizes[1], *batch, first)
    teacher = 0.0 if item.endswith("student") or item == "cached" else forward(sizes[0], *batch, first)
    return student + teacher


# ---------------------------------------------------------------- batches


def write_batches(path: pathlib.Path, options: argparse.Namespace) -> None:
    """The batches that all items read: full texts of one length, or those of SST-2 in our own pipeline's shapes."""
    if options.sst2 is not None:
        command = [sys.executable, str(ROOT / "benchmarks" / "training_process.py"), "batches", options.sst2, str(path)]
        subprocess.run([*command, str(options.batch), str(options.steps)], check=True, env=environment())
        return
    random = np.random.default_rng(0)
    ids = random.integers(1000, VOCABULARY, (options.steps, options.batch, options.length)).astype("int32")
    labels = random.integers(0, CLASSES, (options.steps, options.batch)).astype("int32")
    arrays = {f"token_ids_{i}": ids[i] for i in range(options.steps)} | {f"labels_{i}": labels[i] for i in range(options.steps)}
    np.savez(path, **arrays, **{f"padding_mask_{i}": np.ones_like(ids[i]) for i in range(options.steps)})


def environment() -> dict:
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


# ---------------------------------------------------------------- processes


class Item:
    """A process that answers each line it is sent with the milliseconds of the steps of a round."""

    def __init__(self, name: str, batches: pathlib.Path, options: argparse.Namespace):
        self.name, self.rounds, self.processor = name, [], []
        folder = ROOT / "benchmarks"
        script, python = folder / "training_process.py", sys.executable
        if name in TORCH:
            script, python = folder / "training_torch.py", os.environ["TFKD_REFERENCE_PYTHON"]
        about = {"item": name, "batches": str(batches), "vocabulary": VOCABULARY, "classes": CLASSES}
        about |= {"teacher": SHAPES[options.shapes][0], "student": SHAPES[options.shapes][1], "xla": options.xla}
        about |= {name: getattr(options, name) for name in ("accumulate", "checkpoint_gradients", "steps_per_execution")}
        command = [python, str(script), json.dumps(about)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), stderr=subprocess.PIPE
        )
        self.ready = self._answer()

    def round(self) -> None:
        print("go", file=self.process.stdin, flush=True)
        found = self._answer()
        self.rounds.append(found["milliseconds"])
        self.processor.append(found["processor"])

    def end(self) -> dict:
        """Closes it; the most memory that it held, and what it held before the models."""
        self.process.stdin.close()
        found = self._answer()
        self.process.wait()
        return found

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"{self.name}: ended without an answer:\n{self.process.stderr.read()[-3000:]}")


def measure(options: argparse.Namespace, console: rich.console.Console) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        batches = pathlib.Path(folder, "batches.npz")
        write_batches(batches, options)
        with np.load(batches) as file:
            masks = [file[name] for name in file.files if name.startswith("padding_mask_")]
            pipelines = {name: json.loads(str(file[name])) for name, _, _ in PIPELINES if name in file.files}
            packed = [file[f"packed_packing_{i}"] >= 0 for i in range(len(masks))] if "packed_pipeline" in pipelines else []
        items = []
        for name in options.items:
            with console.status(f"{name}: models, compilation"):
                items.append(Item(name, batches, options))
        load = [os.getloadavg()[0]]
        for number in range(options.rounds):
            for item in items:
                with console.status(f"round {number + 1} of {options.rounds}: {item.name}"):
                    item.round()
            load.append(os.getloadavg()[0])
        ends = {item.name: item.end() for item in items}
    shapes = sorted({mask.shape[1] for mask in masks})
    text, padded = sum(int(mask.sum()) for mask in masks), sum(mask.size for mask in masks)
    about = {"batch": options.batch, "lengths": shapes, "padding": round(1 - text / padded, 4), "rounds": options.rounds}
    about |= {"steps_a_round": len(masks), "processors": os.cpu_count(), "load": [round(min(load), 1), round(max(load), 1)]}
    about |= pipelines
    filled = {item: packed if item.name in PACKED else masks for item in items}
    about |= {"items": {item.name: result(item, options, filled[item], ends[item.name]) for item in items}}
    return {"shapes": options.shapes, **about}


def result(item: Item, options: argparse.Namespace, masks: list, end: dict) -> dict:
    """Medians over the rounds, of the mean step of each; `masks` (rows, length) are where what it computes is text."""
    milliseconds = [sum(steps) / len(masks) for steps in item.rounds]
    median = statistics.median(milliseconds)
    seconds = median * len(masks) / 1e3
    operations = sum(work(item.name, options.shapes, *mask.shape, options.batch) for mask in masks)
    return {
        "milliseconds": round(median, 1),
        "least": round(min(milliseconds), 1),
        "most": round(max(milliseconds), 1),
        "processor": round(statistics.median(item.processor) / len(masks), 1),
        "examples_per_second": round(options.batch * len(masks) / seconds, 1),
        "tokens_per_second": round(sum(int(mask.sum()) for mask in masks) / seconds, 1),
        "gflop_a_step": round(operations / len(masks) / 1e9, 1),
        "gflop_per_second": round(operations / seconds / 1e9, 1),
        "peak_megabytes": round(end["peak_bytes"] / 1e6),
        "megabytes_before_models": round(end["base_bytes"] / 1e6),
        "compile_seconds": round(item.ready["seconds"], 1),
    }


# ---------------------------------------------------------------- showing

RATIOS = (
    ("live", ("teacher", "student"), 1.05),
    ("live", ("keras",), None),
    ("live", ("keras-xla",), 0.75),
    ("live", ("torch",), 0.85),
    ("student", ("torch-student",), 1.0),
    ("teacher", ("torch-teacher",), None),
    ("cached", ("student",), 1.05),
    ("inner", ("torch-inner",), None),
    ("packed-student", ("student",), None),
    ("packed-live", ("live",), None),
    ("packed-live", ("keras-xla",), 0.75),
)
"""What is divided by the sum of what, and how much it should be at most."""
PIPELINES = (("pipeline", "input pipeline", ("live", "student")), ("packed_pipeline", "packed input pipeline", PACKED))
"""Key of what was measured of a pipeline, its name, and the steps that it must be faster than."""


def ratios(found: dict) -> dict[str, dict]:
    """Ratios of the rounds' medians, as far as their items were timed."""
    items, made = found["items"], {}
    for one, others, most in RATIOS:
        if one in items and all(other in items for other in others):
            both = ("milliseconds", "processor")
            clock, processor = (items[one][of] / sum(items[other][of] for other in others) for of in both)
            name = f"{one} / ({' + '.join(others)})"
            made[name] = {"ratio": round(clock, 3), "processor": round(processor, 3), "wanted": most}
    return made


def show(found: dict, console: rich.console.Console) -> None:
    table = rich.table.Table(title=f"batch {found['batch']}, lengths {found['lengths']}, {100 * found['padding']:.1f} % padding")
    columns = ("item", "ms a step", "(least to most)", "CPU ms", "examples/s", "tokens/s", "GFLOP a step", "GFLOP/s", "peak MB")
    for column in columns:
        table.add_column(column, justify="left" if column == "item" else "right")
    for name, entry in found["items"].items():
        spread = f"{entry['least']:,.0f} to {entry['most']:,.0f}"
        cells = [f"{entry['milliseconds']:,.0f}", spread, f"{entry['processor']:,.0f}", f"{entry['examples_per_second']:,.1f}"]
        cells += [f"{entry['tokens_per_second']:,.0f}", f"{entry['gflop_a_step']:.1f}", f"{entry['gflop_per_second']:.1f}"]
        table.add_row(name, *cells, f"{entry['peak_megabytes']:,}")
    console.print(table)
    for name, entry in found["ratios"].items():
        wanted = f" (at most {entry['wanted']} wanted)" if entry["wanted"] else ""
        console.print(f"{name} = {entry['ratio']:.3f}, by processor time {entry['processor']:.3f}{wanted}")
    for name, title, timed in PIPELINES:
        if name not in found:
            continue
        rate, padding, shapes = found[name].values()
        console.print(f"{title}: {rate:,.0f} batches/s; {100 * padding:.1f} % padding in an epoch, {len(shapes)} shapes")
        for item in [item for item in timed if item in found["items"]]:
            ratio = found["items"][item]["milliseconds"] * rate / 1e3
            console.print(f"{title} / {item} = {ratio:.1f} times as fast (at least 5 wanted)")
    console.print(f"{found['processors']} processors, load {found['load'][0]} to {found['load'][1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", nargs="+", choices=ITEMS, help="default: all; PyTorch's where there is a Python for them")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--sst2", metavar="FOLDER", help="TFDS folder that holds glue/sst2: its batches instead; none, no run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a round; of SST-2, as many batches drawn from an epoch")
    parser.add_argument("--shapes", choices=SHAPES, default="minilm", help="of the models (default: %(default)s)")
    parser.add_argument("--xla", action=argparse.BooleanOptionalAction, default=True, help="compiles our items")
    parser.add_argument("--steps-per-execution", type=int, default=1, help="of our items' `fit`")
    parser.add_argument("--accumulate", type=int, default=1, help="parts that our steps compute a batch in")
    parser.add_argument("--checkpoint-gradients", action="store_true", help="our student computes each block again")
    parser.add_argument("--json", type=pathlib.Path, help="also writes what was measured here")
    options = parser.parse_args()
    console = rich.console.Console(width=None if sys.stdout.isatty() else 130)
    reference = os.environ.get("TFKD_REFERENCE_PYTHON")
    absent = {*(() if reference else TORCH), *(() if options.sst2 else PACKED)}
    options.items = options.items or [item for item in ITEMS if item not in absent]
    if not options.sst2 and set(options.items) & set(PACKED):
        parser.error("packed texts are those of SST-2: give --sst2 too")
    if not reference and set(options.items) & set(TORCH):
        parser.error("TFKD_REFERENCE_PYTHON must name a Python that has torch and transformers")
    if options.sst2 is not None and not pathlib.Path(options.sst2, "glue", "sst2").is_dir():
        console.print(f"Not measured: {options.sst2} holds no glue/sst2")
        return
    found = measure(options, console)
    found["ratios"] = ratios(found)
    show(found, console)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
