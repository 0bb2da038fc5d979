"""Several runs on one page: their models side by side, how they learned, what was configured differently, what left them."""

from tfkd import report_inputs as inputs
from tfkd import report_page
from tfkd import report_plots as plots
from tfkd import report_words as words
from tfkd.run_dir import RunDir

COLORS = ("#0072b2", "#c77700", "#00876a", "#a3478f", "#b3261e", "#8a7a00", "#7d5bbf", "#5a6770")
"""A run's colour in its picture, readable on a light page and a dark one; a ninth run has the first one's, with other dashes."""
_SAME = ("name", "checkpoint")  # keys of a configuration that say nothing about the result


def page(runs: dict[str, tuple[RunDir, dict, list[dict] | None]]) -> str:
    """One HTML page that needs nothing else, as a run's own.

    Arguments:
        runs: name -> the run, its `report.json` and its `manifest.json`, None where there is none.

    Raises:
        UserError: a run's files cannot be read.
    """
    names = {name: inputs.printable(name) for name in runs}
    tasks = dict.fromkeys(report["task"] for _, report, _ in runs.values())
    groups = [_group(task, {names[name]: run for name, run in runs.items() if run[1]["task"] == task}) for task in tasks]
    template = report_page.environment().get_template("report_comparison.html")
    return inputs.printable(template.render(names=list(names.values()), groups=groups, changed=_changed(runs, names)))


def _group(task: str, runs: dict[str, tuple]) -> dict:
    """What the page shows of the runs of one task."""
    headline = words.headline(next(iter(runs.values()))[1])
    rows = [(name, entry) for name, (_, report, _) in runs.items() for entry in report["models"]]
    axis = report_page.axis([{**entry, "role": (name, entry["role"])} for name, entry in rows], headline.key)
    curves = {name: curve for name, (run, _, _) in runs.items() if (curve := _validation(run, headline.key)) is not None}
    name = f"curve-{task}"
    return {
        "task": task.replace("_", " "),
        "headline": headline,
        "runs": {name: report for name, (_, report, _) in runs.items()},
        "data": len({(report["dataset"].get("name"), report["examples"]) for _, report, _ in runs.values()}),
        "axis": axis,
        "picture": plots.picture(_draw, curves, name=name, alt="validation by epoch", width=7.5, height=3) if curves else None,
        "legend": [(name, COLORS[place % len(COLORS)]) for place, name in enumerate(curves)],
        "exports": [
            {"run": name, **words.export(entry, headline)} for name, (_, _, manifest) in runs.items() for entry in manifest or []
        ],
    }


def _validation(run: RunDir, metric: str) -> tuple[str, tuple[list[float], list[float]]] | None:
    """The student's figure on the validation split, epoch by epoch: the headline, or what chose the epoch; its name first."""
    lines = inputs.history(run.metrics)[0].get("student", [])
    logged = dict.fromkeys(key for line in lines for key in line if key.startswith("val_") and key != "val_loss")
    key = next((key for key in (f"val_{metric}", *logged) if key in logged), None)
    points = [(line["epoch"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
    return (key.removeprefix("val_"), tuple(map(list, zip(*points, strict=True)))) if points else None


def _draw(axes, curves: dict[str, tuple]) -> None:
    for place, (_, points) in enumerate(curves.values()):
        style = {"color": COLORS[place % len(COLORS)], "linestyle": ("-", "--", ":")[place // len(COLORS) % 3]}
        axes.plot(*points, **style, marker="o", markersize=4)
    axes.set_xlabel("epoch")
    axes.set_ylabel(", ".join(dict.fromkeys(key.replace("_", " ") for key, _ in curves.values())))
    axes.locator_params(axis="x", integer=True, nbins=8)


def _changed(runs: dict[str, tuple], names: dict[str, str]) -> list[tuple[str, list[str]]]:
    """The fields of the configurations that are not the same everywhere: key, and its value in each run."""
    flat = {name: dict(_flat(inputs.config(run.config)[1])) for name, (run, _, _) in runs.items()}
    keys = dict.fromkeys(key for fields in flat.values() for key in fields)
    table = [(key, [fields.get(key, words.MISSING) for fields in flat.values()]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1 and key.split(".")[0] not in _SAME]


def _flat(tree: dict, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", words.MISSING if value is None else str(value)
