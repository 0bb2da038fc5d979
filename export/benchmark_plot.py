"""The picture of a benchmark: how well an artifact answers against what it weighs and how long it takes."""

import pathlib

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker  # noqa: E402

COLOURS = {"tflite": "#0072b2", "mediapipe": "#56b4e9", "onnx": "#d55e00", "saved_model": "#009e73", "keras": "#000000"}
"""Okabe and Ito's colours, which people who see fewer of them tell apart."""

MARKERS = {"float32": "o", "float16": "s", "int8_dynamic": "^", "int8": "D", "int4_dynamic": "v", "teacher": "*"}


def draw(result: dict, path: pathlib.Path) -> None:
    """Writes `path`.svg and `path`.png: a colour a format, a marker a variant; signatures of shorter texts are hollow.

    Arguments:
        result: what `benchmark.json` holds.
        path: without a suffix.
    """
    rows = [row for row in result["rows"] if row["metrics"] and row["threads"]]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for row in rows:
        colour = COLOURS.get(row["format"], "#777777")
        style = {"marker": MARKERS.get(row["variant"], "P"), "s": 170 if row["variant"] == "teacher" else 55, "zorder": 3}
        style |= {"edgecolors": colour, "facecolors": "none" if shorter(row, rows) else colour, "label": name(row)}
        height = row["metrics"][result["metric"]]
        left.scatter(row["bytes"] / 1e6, height, **style)
        right.scatter(row["threads"]["1"]["batch_1"]["p50"], height, **style)
    for axes, title in ((left, "MB on disk"), (right, "ms a text: p50, batch 1, one thread")):
        axes.set_xlabel(title)
        axes.grid(alpha=0.3, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        if rows:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(ticker.NullFormatter())
            axes.tick_params(axis="x", labelsize=8)
            axes.margins(x=0.15, y=0.2)
    left.set_ylabel(f"{result['metric'].replace('_', ' ')}, {result['examples']:,} test examples")
    if rows:
        figure.legend(*right.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    try:
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tfkd"}):  # words stay words, in the page's font
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=150)
    finally:
        pyplot.close(figure)


def shorter(row: dict, rows: list[dict]) -> bool:
    """Whether the same file has a signature for longer texts."""
    same = [other["length"] for other in rows if (other["format"], other["variant"]) == (row["format"], row["variant"])]
    return row["length"] is not None and row["length"] < max(same)


def name(row: dict) -> str:
    """`tflite int8, 32`: format, variant and length; `teacher`."""
    if row["variant"] == "teacher":
        return "teacher"
    return f"{row['format']} {row['variant']}" + (f", {row['length']}" if row["length"] else "")
