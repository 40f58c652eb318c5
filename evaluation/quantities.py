"""Numbers and text as a reader of a report wants them: three figures and a prefix, intervals."""

import math
import re
from typing import Any

_PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P", 6: "E"}


def quantity(value: float, unit: str = "") -> str:
    """Three significant figures with an SI prefix: 4215808 is `4.22 M`, with unit "B" `4.22 MB`.

    A bare count below one has no prefix (`0.25`); with a unit it has (`3.1 ms`).
    """
    if value == 0:
        return f"0 {unit}".rstrip()
    lowest = -3 if unit else 0
    power = min(max(math.floor(math.log10(abs(value)) / 3), lowest), 6)
    if power < 6 and abs(float(f"{value / 1000.0**power:.3g}")) >= 1000:
        power += 1
    number = float(f"{value / 1000.0**power:.3g}")
    return f"{number:g} {_PREFIXES[power]}{unit}".rstrip()


def duration(seconds: float) -> str:
    """`0.42 s`, `35 s`, `2 min 05 s`, `1 h 12 min`."""
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def with_interval(value: float, ci95: list[float] | None, digits: int) -> str:
    """`0.91 [0.88, 0.94]`, or the value alone where no interval was measured."""
    if ci95 is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{ci95[0]:.{digits}f}, {ci95[1]:.{digits}f}]"


def compact(value: Any) -> str:
    """Any JSON value as short text: floats to four figures, nested values on one line."""
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(compact, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {compact(item)}" for key, item in value.items()) + "}"
    return str(value)


def printable(text: str) -> str:
    """`text` in its own lines, with a mark in the place of every other control character."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)
