"""What distillation is worth: data sets x students x recipes x seeds, `python benchmarks/proof.py [--data clinc150 ...]`.

Every run is a configuration of `configs/` with a few fields changed, so that each can be repeated alone: `--dry-run` prints the
commands. Finished runs are in `configs/proof.json` and are not repeated, one that was stopped goes on from its checkpoint;
`python benchmarks/tables.py` writes the tables.
"""

import argparse
import functools
import hashlib
import itertools
import pathlib
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tfkd.run_dir import RunDir, cache_root, read_json, remove, write_json  # noqa: E402 a program of the checkout, run from anywhere

RESULTS = ROOT / "configs" / "proof.json"
RUNS = cache_root() / "runs"
"""Where the unfinished ones are."""
DATA = ("sst2", "clinc150", "stsb", "wnut17", "squad")
STUDENTS = {
    "half": (),
    # From nothing: more epochs at a higher rate, for the student alone as for the distilled one.
    "small": (
        "student={dimensions: {layers: 2, width: 192, heads: 12, pooling: mean}}",
        "train.epochs=8",
        "train.learning_rate=5e-4",
    ),
}
STAGED = {
    "sst2": (
        "stages=null",
        "train={epochs: 2, batch_size: 32, learning_rate: 5e-5}",
        "distill={alpha: 0.5, temperature: 2.0, objectives: [kl_divergence, hidden_state_mse]}",
    )
}
"""One training in place of the stages, where a configuration has some: for the small student, which starts at random."""
OWN = {("sst2", "small"): ("train.epochs=4",)}
"""Of one data set's student: SST-2 has ten times the sentences."""
RECIPES = ("response", "best")
"""The student alone is trained beside `response`: the recipe makes no difference to it."""


def overrides(data: str, student: str, recipe: str, seed: int) -> list[str]:
    """The fields in which a run differs from its configuration."""
    single, first = STAGED.get(data, ()), "distill"
    if data in STAGED and student == "half":
        single, first = (), "stages.0.distill"  # of the recipe's stages the last one learns from answers alone as it is
    chosen = {"response": f"{first}.objectives=null", "best": "baseline=false"}[recipe]
    return [*single, *STUDENTS[student], *OWN.get((data, student), ()), chosen, f"seed={seed}", "export.formats=[]"]


def command(data: str, student: str, recipe: str, seed: int) -> list[str]:
    parts = [part for item in overrides(data, student, recipe, seed) for part in ("--set", item)]
    return ["python", "-m", "tfkd.train", f"configs/{data}.yaml", *parts]


def train(arguments: list[str]) -> None:
    """Runs `python ARGUMENTS`; where that fails, this program ends as it did: the run has said why."""
    code = subprocess.run([sys.executable, *arguments], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def trained(parts: list[str], keep: Callable[[RunDir], Any]) -> Any:
    """What `keep` makes of the run that a command gives; of the run itself nothing stays once it is finished."""
    run = RunDir(RUNS / hashlib.sha256(shlex.join(parts).encode()).hexdigest()[:16])
    resume = ["--resume"] if run.config.exists() else []
    train([*parts[1:], "--output", str(run), *resume])
    kept = keep(run)
    remove(run.path)
    return kept


def recorded(path: pathlib.Path) -> list[dict]:
    """What a file of results holds so far."""
    return read_json(path) if path.exists() else []


def entry(run: RunDir, data: str, student: str, recipe: str, seed: int, set: list[str]) -> dict:
    """What is kept of a finished run; `set` are the fields that were changed beside the recipe's, the precision for one."""
    report = read_json(run.report_json)
    models = {
        model["role"]: {
            "parameters": model["parameters"],
            "interval": model["interval"],
            "value": model["metrics"][report["metric"]],
            "metrics": {name: value for name, value in model["metrics"].items() if isinstance(value, int | float)},
        }
        for model in report["models"]
    }
    return {
        **{"data": data, "student": student, "recipe": recipe, "seed": seed, "set": set},
        **{"metric": report["metric"], "examples": report["examples"], "models": models},
        "minutes": round(sum(report["seconds"].values()) / 60, 1),
    }


def table(entries: list[dict]) -> str:
    """Means over seeds, a row for each data set and student; `kept` is the better recipe's share of the teacher's figure.

    Minutes are of the first seed's runs: of the one on the answers with its teacher and the student alone, and of the recipe's.
    """
    if not entries:
        return "No run is recorded yet."
    columns = ["data", "measured by", "student", "size", "teacher", "alone (baseline)", "response only", "the recipe"]
    columns += ["kept", "minutes"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for (data, student), group in itertools.groupby(entries, key=lambda e: (e["data"], e["student"])):
        runs = list(group)
        response, best = ([run for run in runs if run["recipe"] == recipe] for recipe in ("response", "best"))
        found = {
            # Once a seed: its recipes have one teacher.
            "teacher": [*{run["seed"]: run["models"]["teacher"] for run in runs}.values()],
            "baseline": [run["models"]["baseline"] for run in response],
            "response": [run["models"]["student"] for run in response],
            "best": [run["models"]["student"] for run in best],
        }
        most = max((_mean(found[name]) for name in ("response", "best") if found[name]), default=None)
        cells = [
            f"`{data}`",
            f"{runs[0]['metric']}, {runs[0]['examples']:,}",
            student,
            f"{runs[0]['models']['student']['parameters'] / 1e6:.1f} M",
            *map(_cell, found.values()),
            "" if most is None else f"{100 * most / _mean(found['teacher']):.1f} %",
            " + ".join(f"{part[0]['minutes']:.0f}" for part in (response, best) if part),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(models: list[dict]) -> float:
    return statistics.mean(model["value"] for model in models)


def _cell(models: list[dict]) -> str:
    """`mean ± half of the 95 % interval over examples (each seed's)`, in percent; that half is the mean over the seeds."""
    if not models:
        return ""
    half = statistics.mean((model["interval"][1] - model["interval"][0]) / 2 for model in models)
    values = [f"{100 * model['value']:.2f}" for model in models]
    each = f" ({', '.join(values)})" if len(models) > 1 else ""
    return f"{100 * _mean(models):.2f} ± {100 * half:.1f}{each}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--student", nargs="+", default=list(STUDENTS), choices=STUDENTS)
    parser.add_argument("--recipe", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as data.data_dir=FOLDER")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of what is still to be run")
    options = parser.parse_args()
    for place in itertools.product(options.seeds, options.data, options.student, options.recipe):
        seed, data, student, recipe = place
        key = {"data": data, "student": student, "recipe": recipe, "seed": seed}
        if any(all(old[name] == value for name, value in key.items()) for old in recorded(RESULTS)):
            continue
        parts = [*command(data, student, recipe, seed), *(part for item in options.set for part in ("--set", item))]
        print(shlex.join(parts), flush=True)
        if options.dry_run:
            continue
        found = trained(parts, functools.partial(entry, **key, set=options.set))
        entries = [*recorded(RESULTS), found]  # read now: others may have been recorded meanwhile
        order = {name: place for place, name in enumerate((*DATA, *STUDENTS, *RECIPES))}
        entries.sort(key=lambda e: (order[e["data"]], order[e["student"]], order[e["recipe"]], e["seed"]))
        write_json(RESULTS, entries)


if __name__ == "__main__":
    main()
