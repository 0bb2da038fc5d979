"""Runs a configuration with several seeds and records what came out: `python benchmarks/seeds.py CONFIG [--seeds 0 1 2]`.

`--record RUN...` records runs that are already finished. Results go to `configs/results.json`; `python benchmarks/tables.py`
writes them into the READMEs.
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.proof import recorded, train  # noqa: E402 a program of the checkout, run from anywhere
from tfkd import config  # noqa: E402
from tfkd.run_dir import RunDir, read_json, write_json  # noqa: E402

RESULTS = ROOT / "configs" / "results.json"


def record(run: RunDir) -> dict:
    """Adds a finished run to the results, in place of an earlier one of the same configuration, data and seed."""
    run.require(run.config, run.report_json)
    report, settings = read_json(run.report_json), config.load(run.config)
    split = settings.data.splits.test or report["dataset"]["measured_on"]  # TFDS: what the test split really is
    files = [(report, f"{report['dataset']['name']} {split}")]
    for path in sorted(run.path.glob("evaluation-*.json")):
        files.append((read_json(path), path.stem.removeprefix("evaluation-")))
    entries = recorded(RESULTS)
    for found, measured_on in files:
        entry = {
            "config": settings.name,
            "seed": settings.seed,
            "measured_on": measured_on,
            "rows": found["examples"],
            "models": {
                model["role"]: {
                    found["metric"]: model["metrics"][found["metric"]],
                    "interval": model["interval"],
                    "parameters": model["parameters"],
                }
                for model in found["models"]
            },
            "student_minus_baseline": found["student_minus_baseline"],
            "minutes": round(sum(report["seconds"].values()) / 60, 1),
        }
        key = ("config", "seed", "measured_on")
        entries = [old for old in entries if any(old[k] != entry[k] for k in key)] + [entry]
    write_json(RESULTS, sorted(entries, key=lambda e: (e["config"], e["measured_on"], e["seed"])))
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", help="a configuration, such as configs/quickstart.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--record", nargs="+", default=[], metavar="RUN", help="record these finished runs instead")
    options = parser.parse_args()
    runs = [RunDir(path) for path in options.record]
    for seed in options.seeds if options.config else []:
        output = ROOT / "runs" / f"{pathlib.Path(options.config).stem}-seed{seed}"
        overrides = [part for item in [f"seed={seed}", *options.set] for part in ("--set", item)]
        train(["-m", "tfkd.train", options.config, *overrides, "--output", str(output)])
        runs.append(RunDir(output))
    for run in runs:
        found = record(run)
        print(run, {role: round(model["accuracy"], 4) for role, model in found["models"].items()})


if __name__ == "__main__":
    main()
