"""Writes what was measured into the tables of the three pages that show it: `python benchmarks/tables.py`."""

import itertools
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import ablation, objectives, proof  # noqa: E402 a program of the checkout, run from anywhere

BEGIN, END = "<!-- {}: python benchmarks/tables.py -->", "<!-- end of {} -->"
ROLES = ("teacher", "baseline", "student")


def summary(entries: list[dict]) -> str:
    """Mean accuracy over the seeds, a row for each configuration and data set it was measured on."""
    lines = ["| configuration | measured on | teacher | student alone (baseline) | distilled student | parameters | seeds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (name, measured), group in itertools.groupby(entries, key=lambda e: (e["config"], e["measured_on"])):
        runs = list(group)
        means = {role: 100 * sum(run["models"][role]["accuracy"] for run in runs) / len(runs) for role in ROLES}
        sizes = {role: runs[0]["models"][role]["parameters"] / 1e6 for role in ("teacher", "student")}
        cells = " | ".join(f"{means[role]:.2f} %" for role in ROLES)
        parameters = f"{sizes['teacher']:.1f} M to {sizes['student']:.1f} M"
        lines.append(f"| `{name}` | {measured}, {runs[0]['rows']:,} rows | {cells} | {parameters} | {len(runs)} |")
    return "\n".join(lines)


def details(entries: list[dict]) -> str:
    """Every run with its intervals."""
    lines = ["| configuration | seed | measured on | teacher | baseline | student | student minus baseline | minutes |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for entry in entries:
        cells = []
        for role in ROLES:
            low, high = entry["models"][role]["interval"]
            cells.append(f"{100 * entry['models'][role]['accuracy']:.2f} ({100 * low:.1f} to {100 * high:.1f})")
        difference = entry["student_minus_baseline"]
        low, high = difference["interval"]
        cells.append(f"{100 * difference['difference']:+.2f} ({100 * low:+.1f} to {100 * high:+.1f})")
        cells.append(f"{entry['minutes']:.1f}")
        lines.append(f"| `{entry['config']}` | {entry['seed']} | {entry['measured_on']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def written(text: str, name: str, table: str) -> str:
    """`text` with the part between the two marks of that name replaced."""
    begin, end = BEGIN.format(name), END.format(name)
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{table}\n{end}{tail}"


def pages() -> dict[pathlib.Path, str]:
    """What each page should say now."""
    readme, measured, speed = ROOT / "README.md", ROOT / "configs" / "README.md", ROOT / "benchmarks" / "README.md"
    names = ("results.json", "proof.json", "ablation.json")
    entries, runs, rows = (json.loads((ROOT / "configs" / name).read_text(encoding="utf-8")) for name in names)
    texts = {path: path.read_text(encoding="utf-8") for path in (readme, measured, speed)}
    texts[readme] = written(texts[readme], "results", summary(entries))
    texts[measured] = written(texts[measured], "results", details(entries))
    texts[measured] = written(texts[measured], "proof", proof.table(runs))
    texts[measured] = written(texts[measured], "ablation", ablation.table(rows))
    costs = json.loads(objectives.RESULTS.read_text(encoding="utf-8"))
    texts[speed] = written(texts[speed], "objectives", objectives.table(costs))
    return texts


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
