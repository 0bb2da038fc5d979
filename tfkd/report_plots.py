"""The report's pictures: small inline SVGs that take their colours and their font from the page around them.

Figures are drawn with Matplotlib's own objects, never with pyplot, so that no state outlives a call. Every colour is
a stand-in that `_svg` replaces by a CSS variable: one picture serves a light page, a dark one and paper.
"""

import io
import re
import warnings
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tfkd.report_words import cut

INK, FAINT, PAPER, MUTED = "#010203", "#010204", "#010205", "#010209"
ROLE_COLORS = {"teacher": "#010206", "baseline": "#010207", "student": "#010208"}
_VARIABLES = {INK: "ink", FAINT: "rule", PAPER: "paper", MUTED: "muted", **{color: role for role, color in ROLE_COLORS.items()}}
_VARIABLES |= {"#000000": "ink", "#ffffff": "paper", "#b0b0b0": "rule"}  # Matplotlib's own black, white and grid
# A second sign beside colour, for eyes and printers that do not tell colours apart.
_DASHES = {"teacher": "-", "baseline": (0, (4, 2)), "student": "-"}
_WIDTHS = {"teacher": 1.2, "baseline": 1.5, "student": 2.0}
_MOST_POINTS = 250
MOST_DOTS = 1000  # of a scatter; more are neither seen nor loaded quickly
SQUARE = {"width": 3.6, "height": 3.3}  # inches, of a picture whose axes are alike
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label may be called $x$
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
}


def picture(draw, *arguments, name: str, alt: str, width: float = 4.1, height: float = 2.7) -> str:
    """Draws one SVG: `draw(axes, *arguments)` in a figure of `width` x `height` inches.

    Arguments:
        draw: one of the functions below.
        name: prefix of the ids inside, unlike any other on the page.
        alt: what the picture shows, in words.

    Returns:
        An `<svg>` element without links, scripts or declarations; equal input gives equal text.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the browser's fonts have it
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS | {"svg.hashsalt": name})
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots(), *arguments)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return inlined(stream.getvalue(), name, alt)


def inlined(text: str, name: str, alt: str) -> str:
    """An SVG file of Matplotlib's as an element of the page: cuts what only a file of its own needs, makes ids unique on the
    page, and hands colour and font to the page.

    Arguments:
        text: the file; black and white in it become the page's ink and paper.
        name, alt: as in `picture`.
    """
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style", "script"):
                parent.remove(child)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): value for key, value in element.attrib.items() if key != "id" or value in used}
        for key, value in element.attrib.items():
            element.attrib[key] = _attribute(key, value, name)
        element.text = (element.text or "").strip() or None
        element.tail = None
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    value = value.replace("url(#", f"url(#{name}-") if key != "href" else value.replace("#", f"#{name}-", 1)
    if key == "style":
        value = re.sub(r"font-family: [^;]*;? ?", "", value)
        for color, variable in _VARIABLES.items():
            value = value.replace(color, f"var(--{variable})")
    if key == "d":
        value = re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split()))  # finer than any printer, and half the bytes
    return value


def _local(name: str) -> str:
    """`{namespace}path` -> `path`: inside HTML an `<svg>` needs no namespaces."""
    return name.rpartition("}")[2]


def line(role: str) -> dict:
    """How the lines of a role are drawn, in every picture."""
    return {"color": ROLE_COLORS[role], "linestyle": _DASHES[role], "linewidth": _WIDTHS[role]}


def curves(axes, training: dict[str, tuple], validation: dict[str, tuple]) -> None:
    """Draws one loss term or metric over epochs: lines in training, dots on the validation split.

    Arguments:
        training: role -> (epochs, values), a point a logging step; long ones are averaged to a readable number.
        validation: role -> (epochs, values), a point an epoch.
    """
    for role in ROLE_COLORS:
        style = line(role)
        if role in training:
            epochs, values = (_thinned(np.asarray(part, dtype=float)) for part in training[role])
            axes.plot(epochs, values, **style, marker="." if len(epochs) == 1 else None)
        if role in validation:
            axes.plot(*validation[role], **style | {"linewidth": 0.8}, marker="o", markersize=4.5)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True, nbins=8)
    axes.locator_params(axis="y", nbins=6)
    axes.margins(x=0.02)


def _thinned(values: np.ndarray) -> np.ndarray:
    """Means of neighbours, at most `_MOST_POINTS` of them."""
    parts = np.array_split(values, min(len(values), _MOST_POINTS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a stretch of nothing but NaN stays a gap
        return np.array([np.nanmean(part) for part in parts])


def dots(axes, x: np.ndarray, y: np.ndarray, role: str, across: str, up: str) -> None:
    """Draws y against x, at most `MOST_DOTS` of them, evenly spread over the rows."""
    rows = np.unique(np.linspace(0, len(x) - 1, min(MOST_DOTS, len(x))).round().astype(int))
    alpha = float(np.clip(120 / len(rows), 0.25, 0.8))
    axes.scatter(x[rows], y[rows], s=9, color=ROLE_COLORS[role], alpha=alpha, linewidth=0, zorder=3)
    axes.set(xlabel=across, ylabel=up)
    axes.locator_params(nbins=6)


def beside(axes, x: np.ndarray, y: np.ndarray, role: str, across: str, up: str) -> None:
    """Draws y against x, which are in the same unit: on the diagonal the two are equal."""
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    room = 0.04 * ((high - low) or 1.0)
    limits = low - room, high + room
    axes.plot(limits, limits, color=MUTED, linewidth=0.6)
    dots(axes, x, y, role, across, up)
    axes.set(xlim=limits, ylim=limits, aspect="equal")


def heat(axes, counts: np.ndarray, labels: list[str], role: str) -> None:
    """Draws a confusion matrix (C, C): shades are shares of the true class (row), numbers are counts."""
    classes = len(labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = min(9.0, 100 / classes)
    for true, predicted in np.argwhere(counts):
        share = float(shares[true, predicted])
        place = {"xy": (predicted, true), "width": 1, "height": 1, "linewidth": 0}
        axes.add_artist(Rectangle(**place, facecolor=ROLE_COLORS[role], alpha=0.02 + 0.98 * share))
        color = PAPER if share > 0.55 else INK
        middle = {"ha": "center", "va": "center_baseline", "color": color, "fontsize": size}
        axes.text(predicted + 0.5, true + 0.5, f"{counts[true, predicted]}", **middle, in_layout=False)
    axes.set(xlim=(0, classes), ylim=(classes, 0), aspect="equal", xlabel="predicted", ylabel="true")
    ticks = np.arange(classes) + 0.5
    names = {"labels": [cut(label, 14) for label in labels], "fontsize": min(9.0, 6 + 20 / classes)}
    axes.set_xticks(ticks, **names, rotation=90 if classes > 4 else 0)
    axes.set_yticks(ticks, **names)
    axes.grid(False)
    axes.spines[:].set_visible(True)


def roc(axes, curves_by_role: dict[str, list[dict]], corner: bool) -> None:
    """Draws each role's ROC curve, averaged over classes at equal false positive rates.

    Arguments:
        curves_by_role: what `classification_metrics.roc_curves` answers.
        corner: shows the corner with few false positives alone, where good models differ.
    """
    right = 0.2 if corner else 1.0
    grid = np.linspace(0.0, right, 200)
    lowest = 1.0
    for role, found in curves_by_role.items():
        rates = [np.interp(grid, curve["false_positive_rate"], curve["true_positive_rate"]) for curve in found]
        mean = np.mean(rates, axis=0)
        lowest = min(lowest, float(np.quantile(mean, 0.1)))
        style = line(role)
        axes.plot(*((grid, mean) if corner else (np.append(0.0, grid), np.append(0.0, mean))), **style)
    if not corner:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.6)
    bottom = max(0.0, lowest - 0.1) if corner else 0.0
    axes.set(xlim=(0, right), ylim=(bottom, 1.01), xlabel="false positive rate", ylabel="true positive rate")
    axes.locator_params(nbins=5)


def areas(axes, curves_by_role: dict[str, list[dict]], labels: list[str]) -> None:
    """Draws the area under the ROC curve of every class, a dot a role."""
    markers = {"teacher": "o", "baseline": "s", "student": "D"}
    classes = sorted({curve["class"] for found in curves_by_role.values() for curve in found})
    for role, found in curves_by_role.items():
        heights = [classes.index(curve["class"]) for curve in found]
        style = {"color": ROLE_COLORS[role], "marker": markers[role], "s": 22, "linewidth": 0}
        axes.scatter([curve["auc"] for curve in found], heights, **style, zorder=3)
    axes.set_yticks(range(len(classes)), labels=[cut(labels[c], 18) for c in classes])
    axes.set(ylim=(len(classes) - 0.4, -0.6), xlabel="area under the curve")
    axes.grid(False, axis="x")


def reliability(axes, bins: list[dict], role: str) -> None:
    """Draws accuracy against confidence, a dot a bin with its area by the bin's examples; on the diagonal is calibrated."""
    confidence = np.array([part["confidence"] for part in bins])
    accuracy = np.array([part["accuracy"] for part in bins])
    share = np.array([part["count"] for part in bins], dtype=float)
    share /= share.sum()
    color = ROLE_COLORS[role]
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.6)
    axes.vlines(confidence, np.minimum(confidence, accuracy), np.maximum(confidence, accuracy), color=color, alpha=0.35)
    axes.plot(confidence, accuracy, color=color, linewidth=1, alpha=0.5)
    axes.scatter(confidence, accuracy, s=8 + 250 * share, color=color, linewidth=0, zorder=3)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal", xlabel="confidence", ylabel="accuracy")
