"""What `python -m serving.client` prints."""

import json
import sys
from collections.abc import Sequence


def print_answers(texts: Sequence[str], pairs: Sequence[str] | None, answers: list[dict], as_json: bool) -> None:
    """Classes as a table; what else models answer with, and with `--json` these too, a JSON object a text."""
    names = ("text",) if pairs is None else ("text", "text_pair")
    asked = [dict(zip(names, row, strict=True)) for row in zip(texts, *([] if pairs is None else [pairs]), strict=True)]
    if as_json or not answers or not {"label", "scores", "truncated"} <= answers[0].keys():
        for row, answer in zip(asked, answers, strict=True):
            print(json.dumps(row | answer))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("label", "score", "", "text"):
        grid.add_column(column, no_wrap=column != "label", overflow="ellipsis", justify="right" if column == "score" else "left")
    for row, answer in zip(asked, answers, strict=True):
        score, cut = f"{max(answer['scores']):.1%}", "cut" if answer["truncated"] else ""
        grid.add_row(Text(answer["label"]), score, Text(cut, "yellow"), Text(" | ".join(row.values())))
    Console(width=None if sys.stdout.isatty() else 120).print(grid)


def print_status(name: str, states: dict[int, str], signatures: dict, as_json: bool) -> None:
    """Versions and signatures of a model."""
    if as_json:
        print(json.dumps({"versions": states, "signatures": signatures}))
        return
    for version, state in sorted(states.items()):
        print(f"{name} version {version}: {state}")
    for signature, sides in signatures.items():
        inputs, outputs = (", ".join(f"{key} {kind}" for key, kind in side.items()) for side in sides.values())
        print(f"{signature}: {inputs} -> {outputs}")
