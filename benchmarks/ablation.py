"""What each objective is worth, alone and beside others: `python benchmarks/ablation.py [--only minilm_v2 pkd ...]`.

One data set (CLINC150, two fifths of its training sentences), one teacher, one student (3 of its 6 layers), and one thing changed
at a time: what the student learns from, and what it starts from. Every row is `configs/clinc150.yaml` with a few fields changed:
`--dry-run` prints the commands. Finished rows are in `configs/ablation.json` and are not repeated; `python benchmarks/tables.py`
writes the table.
"""

import argparse
import functools
import itertools
import pathlib
import shlex
import statistics
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.proof import recorded, trained  # noqa: E402 a program of the checkout, run from anywhere
from tfkd.run_dir import RunDir, read_json, write_json  # noqa: E402

RESULTS = ROOT / "configs" / "ablation.json"
COMMON = ("data.splits.train=train[:40%]", "export.formats=[]")
RESPONSE = ("kl_divergence", "reverse_kl", "jensen_shannon", "logits_mse", "decoupled_kd")
FEATURES = ("embedding_mse", "hidden_state_mse", "hidden_state_cosine", "pkd", "layer_norm_mse")
ATTENTION = ("attention_score_mse", "attention_probability_kl", "minilm_v1", "minilm_v2")
PAIRWISE = ("rkd_distance", "rkd_angle", "similarity_preserving", "contrastive")
TOGETHER = {
    "response, hidden states (the recipe)": ("kl_divergence", "hidden_state_mse"),
    "response, attention": ("kl_divergence", "attention_score_mse"),
    "response, relations of queries, keys and values": ("kl_divergence", "minilm_v2"),
    "response, distances and angles": ("kl_divergence", "rkd_distance", "rkd_angle"),
    "response, hidden states, attention, embeddings (TinyBERT's)": (
        "kl_divergence",
        "hidden_state_mse",
        "attention_score_mse",
        "embedding_mse",
    ),
}
LEARNS_FROM = {**{name: (name,) for name in (*RESPONSE, *FEATURES, *ATTENTION, *PAIRWISE)}, **TOGETHER}
AT_RANDOM = ("kl_divergence", "response, hidden states (the recipe)")
"""What is trained once more from random weights of the same sizes."""
RANDOM = "student={dimensions: {layers: 3, width: 384, heads: 12, pooling: mean}}"
STARTS = {"teacher layers": (), "random": (RANDOM,)}
LABELS = "labels alone"


def rows() -> list[tuple[str, str]]:
    """What is trained: (name of what it learns from, name of what it starts from)."""
    return [*((name, "teacher layers") for name in LEARNS_FROM), *((name, "random") for name in AT_RANDOM)]


def command(name: str, start: str, seed: int) -> list[str]:
    """The labels alone are the baseline beside the response, once for each start."""
    objectives = f"distill.objectives=[{', '.join(LEARNS_FROM[name])}]"
    items = [*COMMON, *STARTS[start], objectives, f"baseline={str(name == RESPONSE[0]).lower()}", f"seed={seed}"]
    return ["python", "-m", "tfkd.train", "configs/clinc150.yaml", *(part for item in items for part in ("--set", item))]


def entries(run: RunDir, name: str, start: str, seed: int) -> list[dict]:
    """What is kept of a finished run: the student, and the baseline where there is one."""
    report = read_json(run.report_json)
    kept = {"student": name, "baseline": LABELS, "teacher": "teacher"}
    return [
        {
            "learns_from": kept[model["role"]],
            "start": "the checkpoint" if model["role"] == "teacher" else start,
            "seed": seed,
            "metric": report["metric"],
            "examples": report["examples"],
            "value": model["metrics"][report["metric"]],
            "interval": model["interval"],
        }
        for model in report["models"]
        if model["role"] != "teacher" or name == RESPONSE[0] and start == "teacher layers"
    ]


def table(found: list[dict]) -> str:
    """A row for each thing learnt from, the best first; differences to the labels alone from the same start."""
    if not found:
        return "No run is recorded yet."
    lines = ["| learns from | starts from | accuracy | above the labels alone | seeds |", "|---|---|---|---|---|"]
    by_row = {
        place: list(group)
        for place, group in itertools.groupby(
            sorted(found, key=lambda e: (e["learns_from"], e["start"])), key=lambda e: (e["learns_from"], e["start"])
        )
    }
    means = {place: 100 * statistics.mean(entry["value"] for entry in group) for place, group in by_row.items()}
    for (name, start), mean in sorted(means.items(), key=lambda item: -item[1]):
        alone = means.get((LABELS, start))
        above = "" if alone is None or name == LABELS else f"{mean - alone:+.2f}"
        group = by_row[name, start]
        low, high = (100 * statistics.mean(entry["interval"][side] for entry in group) for side in (0, 1))
        lines.append(f"| {name.replace('_', ' ')} | {start} | {mean:.2f} ({low:.1f} to {high:.1f}) | {above} | {len(group)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=LEARNS_FROM, default=list(LEARNS_FROM), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as data.data_dir=FOLDER")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of what is still to be run")
    options = parser.parse_args()
    for seed, (name, start) in itertools.product(options.seeds, rows()):
        done = any((old["learns_from"], old["start"], old["seed"]) == (name, start, seed) for old in recorded(RESULTS))
        if name not in options.only or done:
            continue
        parts = [*command(name, start, seed), *(part for item in options.set for part in ("--set", item))]
        print(shlex.join(parts), flush=True)
        if options.dry_run:
            continue
        keep = functools.partial(entries, name=name, start=start, seed=seed)
        found = trained(parts, keep)
        write_json(RESULTS, [*recorded(RESULTS), *found])


if __name__ == "__main__":
    main()
