"""Format durations, bytes, counts and signed numbers for people, and names for Markdown."""

import math
import re
from typing import Any


def format_duration(seconds: float) -> str:
    """A duration in its natural unit: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def format_age(seconds: float) -> str:
    """The time since an event: 45 s ago. A negative time, by clocks of two hosts that differ, is 0 s ago."""
    return f"{format_duration(max(0.0, seconds))} ago"


def format_bytes(count: float) -> str:
    """Bytes in their natural unit: 12 MiB, 3.5 GiB."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def format_times(count: int) -> str:
    """A count of repetitions: once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 label, 1,200 trials."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, for people: +0.012, −0.012 with the minus sign U+2212, and 0.000 without a sign."""
    rounded = f"{value:+.{digits}f}"
    return rounded.replace("-", "\N{MINUS SIGN}") if float(rounded) else rounded[1:]


def escape_markdown(text: object) -> str:
    """Escape text so that Markdown shows it literally: no HTML, table cell, link, code or emphasis."""
    return re.sub(r"([\\|\[\]`*])", r"\\\1", str(text)).replace("<", "&lt;")


def code(text: str) -> str:
    """A code span of Markdown that shows the text literally, also where it has backticks."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def finite(value: Any) -> Any:
    """The value with None in place of NaN and infinity, also within lists and dicts: JSON has no such numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def inert_cell(value: Any) -> Any:
    """The value of a CSV cell; a text that a spreadsheet would run as a formula begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
