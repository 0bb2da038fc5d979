"""How the report says what it says, numbers above all, on the page and on the terminal alike."""

from tfkd.tasks.measure import Figure
from tfkd.tasks.measures import MEASURES

ROLES = ("teacher", "baseline", "student")
MISSING = "–"
FEW_EXAMPLES = 30  # below this a bootstrap interval is far too narrow to be worth a sentence

SEED_NOTE = (
    "The interval covers which examples happened to be drawn. Each model was trained once; another seed would move "
    "the numbers too."
)


def percent(fraction: float | None, digits: int = 1) -> str:
    """0.8714 -> 87.1 %."""
    return MISSING if fraction is None else f"{100 * fraction:.{digits}f} %"


def decimal(value: float | None, digits: int = 3) -> str:
    """-0.97312 -> −0.973."""
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", "−")


def number(value: float | None) -> str:
    """1234.5 -> 1,234; 0.012345 -> 0.0123; 3.0 -> 3.00: three digits, or the whole part."""
    if value is None:
        return MISSING
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")).replace("-", "−")


def figure(value: float | None, style: str, digits: int = 0) -> str:
    """A number as its style says it: `percent`, `decimal` or `number`; `digits` more than usual."""
    if style == "number":
        return number(value)
    return percent(value, 1 + digits) if style == "percent" else decimal(value, 3 + digits)


def interval(bounds: list[float] | None, style: str) -> str:
    """[0.858, 0.884] -> 85.8 to 88.4 %, or 0.858 to 0.884."""
    if bounds is None:
        return MISSING
    if style == "percent":
        return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"
    return " to ".join(figure(bound, style) for bound in bounds)


def gap(difference: float, style: str) -> str:
    """-0.0104 -> −1.04 for what is told in percent, in percentage points; −0.010 otherwise. With its sign."""
    value, digits = (100 * difference, 2) if style == "percent" else (difference, 3)
    value = round(value, digits)
    size = number(abs(value)) if style == "number" else f"{abs(value):.{digits}f}"
    return f"{'−' if value < 0 else '+' if value > 0 else ''}{size}"


def amount(number: float | None) -> str:
    """22713216 -> 22.7 M."""
    if number is None:
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.99995 * size:
            return f"{number / size:.1f} {unit}"
    return f"{number:,}"


def size(number: int | None) -> str:
    """17300000 bytes -> 17.3 MB."""
    if number is None:
        return MISSING
    return f"{amount(number)}B" if number >= 1000 else f"{number} B"


def ratio(above: float | None, below: float | None) -> str | None:
    """22.7, 4.4 -> 5.2×; None where it cannot be told."""
    return f"{above / below:.1f}×" if above and below else None


def duration(seconds: float | None) -> str:
    """245.3 -> 4 min 05 s."""
    if seconds is None:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def cut(text: str, length: int) -> str:
    """The first `length` characters, with an ellipsis where more are left out."""
    return text if len(text) <= length else text[: length - 1] + "…"


def around(text: str, begin: int, end: int, length: int) -> tuple[str, str, str]:
    """What stands before `text[begin:end]`, that itself, and what stands behind it: together about `length` characters, with
    ellipses where more are left out."""
    inside = cut(text[begin:end], length)
    room = length - len(inside)
    first = max(0, min(begin - room // 2, len(text) - length))
    before = text[first:begin] if first == 0 else "…" + text[first + 1 : begin]
    return before, inside, cut(text[end:], max(1, length - len(before) - len(inside)))


def model(report: dict, role: str) -> dict | None:
    """The entry of a role in `report.json`."""
    return next((entry for entry in report["models"] if entry["role"] == role), None)


def measured_on(report: dict) -> str:
    """`2,700 test examples`, or validation examples where the data have no test split."""
    number = report["examples"]
    return f"{number:,} {report['dataset'].get('measured_on', 'test')} example{'s' * (number != 1)}"


def headline(report: dict) -> Figure:
    """How the figure is told by which the models of a report are compared."""
    return next(figure for figure in MEASURES[report["task"]].figures if figure.key == report["metric"])


def worth(report: dict) -> str:
    """`helped` or `hurt` where the examples suffice to say so, `open` where they do not."""
    against = report["student_minus_baseline"]
    if against is None or report["examples"] < FEW_EXAMPLES:
        return "open"
    low, high = against["interval"]
    return "helped" if low > 0 else "hurt" if high < 0 else "open"


def verdict(report: dict) -> str:
    """One sentence: what distillation was worth, and whether the examples suffice to say so."""
    if model(report, "baseline") is None:
        return "No baseline was trained, so this run cannot say what distillation was worth."
    against, title, style = report["student_minus_baseline"], headline(report).title, headline(report).style
    if against is None:
        return f"What distillation was worth cannot be said: the {title} is not defined on these examples."
    low, high = against["interval"]
    unit = " points" if style == "percent" else ""
    bounds = f"{gap(low, style)} to {gap(high, style)}{unit}"
    difference = against["difference"]
    place = f"{gap(abs(difference), style).lstrip('+')}{unit} {'above' if difference > 0 else 'below'}"
    finding = f"the student is {place if difference else 'level with'} the same student trained without the teacher"
    if report["examples"] < FEW_EXAMPLES:
        return f"Nothing can be said from {measured_on(report)}: {finding}."
    found = worth(report)
    if found == "open":
        return f"No difference is shown: {finding}, and the 95 % interval, {bounds}, includes 0."
    return f"Distillation {found}: {finding}, and the 95 % interval, {bounds}, excludes 0."


def export(entry: dict, told: Figure) -> dict:
    """An entry of `manifest.json` in words; what it lacks becomes a dash."""
    latency = entry.get("latency_ms") or {}
    return {
        "format": entry["format"],
        "variant": entry["variant"],
        "size": size(entry.get("bytes")),
        "difference": MISSING if entry.get("max_abs_difference") is None else f"{entry['max_abs_difference']:.2g}",
        "agreement": percent(entry.get("agreement")),
        "metric": figure((entry.get("metrics") or {}).get(told.key), told.style),
        "latency": f"{decimal(latency.get('p50'), 2)} / {decimal(latency.get('p95'), 2)}" if latency else MISSING,
        "examples": MISSING if entry.get("examples") is None else f"{entry['examples']:,}",
        "passed": bool(entry.get("passed")),
        "reason": str(entry.get("reason") or ""),
    }
