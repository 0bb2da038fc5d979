"""How the report says numbers, on the page and on the terminal alike."""

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


def interval(bounds: list[float] | None) -> str:
    """[0.858, 0.884] -> 85.8 to 88.4 %."""
    return MISSING if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"


def points(fraction: float) -> str:
    """-0.0104 -> −1.04: percentage points with their sign."""
    value = round(100 * fraction, 2)
    return f"{'−' if value < 0 else '+' if value > 0 else ''}{abs(value):.2f}"


def decimal(value: float | None, digits: int = 3) -> str:
    """0.97312 -> 0.973."""
    return MISSING if value is None else f"{value:.{digits}f}"


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


def model(report: dict, role: str) -> dict | None:
    """The entry of a role in `report.json`."""
    return next((entry for entry in report["models"] if entry["role"] == role), None)


def measured_on(report: dict) -> str:
    """`2,700 test examples`, or validation examples where the data have no test split."""
    number = report["examples"]
    return f"{number:,} {report['dataset'].get('measured_on', 'test')} example{'s' * (number != 1)}"


def verdict(report: dict) -> str:
    """One sentence: what distillation was worth, and whether the examples suffice to say so."""
    against = report.get("student_minus_baseline")
    if against is None:
        return "No baseline was trained, so this run cannot say what distillation was worth."
    low, high = against["interval"]
    bounds = f"{points(low)} to {points(high)} points"
    gap = against["difference"]
    place = f"{points(abs(gap)).lstrip('+')} points {'above' if gap > 0 else 'below'}" if gap else "level with"
    finding = f"the student is {place} the same student trained without the teacher"
    if report["examples"] < FEW_EXAMPLES:
        return f"Nothing can be said from {measured_on(report)}: {finding}."
    if low > 0:
        return f"Distillation helped: {finding}, and the 95 % interval, {bounds}, excludes 0."
    if high < 0:
        return f"Distillation hurt: {finding}, and the 95 % interval, {bounds}, excludes 0."
    return f"No difference is shown: {finding}, and the 95 % interval, {bounds}, includes 0."


def export(entry: dict) -> dict:
    """An entry of `manifest.json` in words; what it lacks becomes a dash."""
    latency = entry.get("latency_ms") or {}
    return {
        "format": entry["format"],
        "variant": entry["variant"],
        "size": size(entry.get("bytes")),
        "difference": MISSING if entry.get("max_abs_difference") is None else f"{entry['max_abs_difference']:.2g}",
        "agreement": percent(entry.get("agreement")),
        "accuracy": percent((entry.get("metrics") or {}).get("accuracy")),
        "latency": f"{decimal(latency.get('p50'), 2)} / {decimal(latency.get('p95'), 2)}" if latency else MISSING,
        "examples": MISSING if entry.get("examples") is None else f"{entry['examples']:,}",
        "passed": bool(entry.get("passed")),
        "reason": str(entry.get("reason") or ""),
    }
