"""How far GPUs carry a distillation: step time by arithmetic, from stated rates. No TensorFlow here.

    python benchmarks/scaling.py [--peak 989] [--forward 0.5] [--training 0.4] [--inside 450] [--between 25] [--batch 1024] ...

Prints the tables of docs/scaling.md; with your own numbers, yours. A step is

    (teacher forward + 3 x student forward) / GPUs  +  all-reduce of the student's gradients  +  what a step costs in any case

with nothing overlapped, so that a real run should be at least as fast.
"""

import argparse
import dataclasses

VOCABULARY = 30_522


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A Transformer encoder by its sizes."""

    name: str
    layers: int
    width: int
    feed_forward: int

    @property
    def parameters(self) -> int:
        """Matrices, biases and normalizations of the blocks, and the embeddings of pieces and 512 positions."""
        d, f = self.width, self.feed_forward
        block = 4 * d * d + 2 * d * f + 9 * d + f
        return self.layers * block + (VOCABULARY + 512) * d + 2 * d

    def forward(self, length: int) -> float:
        """FLOP of a row: 2 a multiply-add; projections and feed-forward, and scores and values, T x T x D each."""
        d, f = self.width, self.feed_forward
        return self.layers * (2 * length * (4 * d * d + 2 * d * f) + 4 * length * length * d)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of the machines.

    Attributes:
        peak: FLOP/s of a GPU's matrix units.
        forward, training: shares of it that a forward pass and a training step reach.
        inside: bytes/s of a GPU to its neighbour in one machine, one direction.
        between: bytes/s of a machine to the next, one direction.
        latency: seconds of a hop between two GPUs, or machines.
        fixed: seconds a step costs whatever is in it.
        a_machine: GPUs of one.
    """

    peak: float = 989e12
    forward: float = 0.5
    training: float = 0.4
    inside: float = 450e9
    between: float = 25e9
    latency: float = 10e-6
    fixed: float = 4e-3
    a_machine: int = 8


def all_reduce(count: int, size: float, rates: Rates) -> float:
    """Seconds of a sum of `size` bytes over GPUs: rings inside of the machines, then one between them.

    A ring of n moves 2 (n - 1) / n of the bytes over every link, in 2 (n - 1) hops (Patarasuk and Yuan 2009).
    """
    here = min(count, rates.a_machine)
    machines = -(-count // rates.a_machine)
    return sum(
        2 * (n - 1) / n * size / speed + 2 * (n - 1) * rates.latency
        for n, speed in ((here, rates.inside), (machines, rates.between))
        if n > 1
    )


def step(count: int, rows: int, length: int, student: Encoder, teacher: Encoder | None, rates: Rates) -> dict[str, float]:
    """Seconds of a step over `count` GPUs by part; `teacher` None: its answers come from disk."""
    share = rows / count
    return {
        "teacher": 0.0 if teacher is None else share * teacher.forward(length) / (rates.peak * rates.forward),
        "student": share * 3 * student.forward(length) / (rates.peak * rates.training),
        "all-reduce": all_reduce(count, 4 * student.parameters, rates),
        "fixed": rates.fixed,
    }


MINILM = Encoder("MiniLM-L6", 6, 384, 1536)
TINY = Encoder("4 x 312", 4, 312, 1200)
BASE = Encoder("BERT-base", 12, 768, 3072)
BILLION = Encoder("1B", 20, 2048, 8192)
PAIRS = ((BASE, MINILM), (BILLION, BASE))


def table(header: list[str], rows: list[list]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def check() -> str:
    """The arithmetic against what two CPU cores were measured to take (batch 32, length 64, XLA, 150 GFLOP/s of matrices)."""
    rows = []
    for what, flop, measured in (
        ("teacher forward, MiniLM-L6", 32 * MINILM.forward(64), 0.305),
        ("plain student step, 4 x 312", 3 * 32 * TINY.forward(64), 0.754),
    ):
        least = flop / 150e9
        rows.append([what, f"{flop / 1e9:.1f}", f"{1000 * least:.0f} ms", f"{1000 * measured:.0f} ms", f"{least / measured:.0%}"])
    return table(["part", "GFLOP", "at the matrix rate", "measured", "share of the rate"], rows)


def batch_for(count: int, teacher: Encoder | None, student: Encoder, length: int, rates: Rates, wanted: float = 0.8) -> int:
    """The smallest power of two of rows at which GPUs do `wanted` of what they would without meeting; so many at least."""
    rows = count
    while True:
        parts = step(count, rows, length, student, teacher, rates)
        work = parts["teacher"] + parts["student"]
        if work / sum(parts.values()) >= wanted:
            return rows
        rows *= 2


def scaling(options: argparse.Namespace, rates: Rates) -> str:
    rows = []
    for teacher, student in PAIRS:
        for asked in (teacher, None):
            alone = None
            for count in options.gpus:
                parts = step(count, options.batch, options.length, student, asked, rates)
                seconds = sum(parts.values())
                alone = alone or seconds * count
                shown = [f"{1000 * parts[name]:.1f}" for name in ("teacher", "student", "all-reduce")]
                who = f"{teacher.name} -> {student.name}, {'live' if asked else 'cached'}"
                speed = f"{options.batch / seconds:,.0f}"
                enough = batch_for(count, asked, student, options.length, rates)
                efficiency = f"{alone / count / seconds:.0%}"
                rows.append([who, count, *shown, f"{1000 * seconds:.1f}", speed, efficiency, f"{enough:,}"])
    header = ["pair", "GPUs", "teacher ms", "student ms", "all-reduce ms", "step ms", "rows/s", "efficiency"]
    return table([*header, "batch for 80 %"], rows)


def caching(options: argparse.Namespace, rates: Rates) -> str:
    """What a cache costs once, and what it must deliver."""
    rows = []
    for teacher, student in PAIRS:
        for count in options.gpus:
            live, cached = (
                sum(step(count, options.batch, options.length, student, asked, rates).values()) for asked in (teacher, None)
            )
            building = options.rows * teacher.forward(options.length) / (rates.peak * rates.forward * count)
            logits, hidden = 4, 2 * options.length * teacher.width
            rate = options.batch / cached
            rows.append(
                [
                    f"{teacher.name} -> {student.name}",
                    count,
                    f"{live / cached:.1f}",
                    f"{building / 60:.1f} min",
                    f"{rate * logits / 1e6:.2f} MB/s",
                    f"{rate * hidden / 1e9:.1f} GB/s",
                    f"{options.rows * hidden / 1e12:.1f} TB",
                ]
            )
    header = ["pair", "GPUs", "faster", f"asking {options.rows:,} rows once", "2 logits", "a hidden layer"]
    return table([*header, "of it on disk"], rows)


def main(arguments: list[str] | None = None) -> None:
    known = Rates()
    parser = argparse.ArgumentParser(prog="python benchmarks/scaling.py", description="Step times over GPUs, by arithmetic.")
    parser.add_argument("--peak", type=float, default=known.peak / 1e12, help="TFLOP/s of a GPU (default: %(default)g)")
    parser.add_argument("--forward", type=float, default=known.forward, help="share that a forward pass reaches")
    parser.add_argument("--training", type=float, default=known.training, help="share that a training step reaches")
    parser.add_argument("--inside", type=float, default=known.inside / 1e9, help="GB/s between GPUs of a machine, one direction")
    parser.add_argument("--between", type=float, default=known.between / 1e9, help="GB/s between machines, one direction")
    parser.add_argument("--fixed", type=float, default=known.fixed * 1e3, help="milliseconds of a step in any case")
    parser.add_argument("--batch", type=int, default=1024, help="rows, over all GPUs")
    parser.add_argument("--length", type=int, default=128, help="word pieces of a row")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the data set, for the cache")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    options = parser.parse_args(arguments)
    speeds = {"peak": options.peak * 1e12, "inside": options.inside * 1e9, "between": options.between * 1e9}
    rates = Rates(**speeds, forward=options.forward, training=options.training, fixed=options.fixed / 1e3)
    for encoder in (TINY, MINILM, BASE, BILLION):
        millions = encoder.parameters / 1e6
        print(f"{encoder.name}: {millions:,.1f} M parameters, {4 * millions:,.0f} MB of gradients")
    print(f"\n{check()}\n\n{scaling(options, rates)}\n\n{caching(options, rates)}")


if __name__ == "__main__":
    main()
