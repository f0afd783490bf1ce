"""Sizes and times as people write them, and as every command prints them."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

from ourdb.errors import InvalidError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(|B|KiB|MiB|GiB|TiB|KB|MB|GB|TB|K|M|G|T)\s*", re.IGNORECASE)
_FACTORS = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
_FACTORS |= {unit + "IB": _FACTORS[unit] for unit in "KMGT"}
_FACTORS |= {unit + "B": 1000**power for power, unit in enumerate("KMGT", 1)}
_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w|y)\s*", re.IGNORECASE)
_SPAN_MS = {
    "MS": 1,
    "S": 1000,
    "M": 60_000,
    "H": 3_600_000,
    "D": 86_400_000,
    "W": 604_800_000,
    "Y": 31_536_000_000,
}
_NUMERIC_DATE = re.compile(r"\d[-/]\d|\d\.\d+\.\d")
_TIME_MS_MAX = (1 << 48) - 1


def parse_size(text: str) -> int:
    """Bytes of `4096`, `4KiB`, `64MiB`, `1.5GiB` (also `4K`, and decimal `4KB`); InvalidError otherwise."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise InvalidError(f"not a size: {text!r} (write bytes, or 4KiB, 64MiB, 1GiB)")
    return (
        int(float(match[1]) * _FACTORS[match[2].upper()])
        if "." in match[1]
        else int(match[1]) * _FACTORS[match[2].upper()]
    )


def format_size(size: int) -> str:
    """`1.5 GiB` and the like, for people; JSON carries the number."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{size} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def parse_span(text: str) -> int:
    """Milliseconds of `10s`, `5m`, `12h`, `30d`, `2w`; InvalidError otherwise. `0` needs no unit."""
    if text.strip() == "0":
        return 0
    match = _SPAN.fullmatch(text)
    if not match:
        raise InvalidError(f"not a duration: {text!r} (write 10s, 5m, 12h, 30d)")
    return int(float(match[1]) * _SPAN_MS[match[2].upper()])


def format_span(span_ms: int) -> str:
    """As `parse_span` takes it, in the largest of its units up to days that is exact: `30d`, `90m`."""
    for unit in ("d", "h", "m", "s"):
        if span_ms % _SPAN_MS[unit.upper()] == 0 and (span_ms or unit == "s"):
            return f"{span_ms // _SPAN_MS[unit.upper()]}{unit}"
    return f"{span_ms}ms"


def now_ms() -> int:
    """Milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


def format_time(time_ms: int) -> str:
    """RFC 3339, UTC, milliseconds: `2026-11-23T02:41:00.000Z`."""
    moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"


def maybe_time(time_ms: int | None) -> str | None:
    """As `format_time`; None for None."""
    return None if time_ms is None else format_time(time_ms)


def parse_time(text: str, *, now: int | None = None) -> int:
    """Milliseconds since the epoch of RFC 3339 (no zone: local time), `now`, or `90 minutes ago`.

    What is finer than a millisecond is cut off. Raises InvalidError for anything else.
    """
    base = now_ms() if now is None else now
    if text.strip().lower() == "now":
        return base
    try:
        moment: datetime | None = datetime.fromisoformat(text.strip())
    except ValueError:
        moment = _spoken_time(text, base)
    if moment is None:
        raise InvalidError(f"not a time: {text!r} (write 2026-11-23T02:41:00Z, 'now' or '90 minutes ago')")
    span = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    result = span // timedelta(milliseconds=1)
    if not 0 <= result <= _TIME_MS_MAX:
        raise InvalidError(f"time out of range: {text!r}")
    return result


When = datetime | str | int


def to_ms(when: When) -> int:
    """Milliseconds since the epoch of a datetime (naive: local time), a text as `parse_time` takes it, or
    milliseconds themselves. Raises InvalidError."""
    if isinstance(when, datetime):
        when = when.astimezone(UTC).isoformat()
    if isinstance(when, str):
        return parse_time(when)
    if isinstance(when, bool) or not isinstance(when, int) or not 0 <= when <= _TIME_MS_MAX:
        raise InvalidError(f"not a time: {when!r} (a datetime, RFC 3339, or milliseconds since the epoch)")
    return when


def _spoken_time(text: str, base: int) -> datetime | None:
    if _NUMERIC_DATE.search(text) or not re.search("[a-z]", text, re.IGNORECASE):
        return None  # the library would make a date of it that nobody meant: of 2026-13-01 one in January
    import dateparser  # late: it is slow to import, and most times are RFC 3339

    if re.search(r"\bago\b", text, re.IGNORECASE):  # a span: counted in UTC, or a change of clocks shifts it
        reference = datetime.fromtimestamp(base / 1000, UTC).replace(tzinfo=None)
        found = dateparser.parse(
            text, languages=["en"], settings={"RELATIVE_BASE": reference, "TIMEZONE": "UTC"}
        )
        return found and found.replace(tzinfo=UTC)
    reference = datetime.fromtimestamp(base / 1000)
    return dateparser.parse(
        text, languages=["en"], settings={"RELATIVE_BASE": reference, "STRICT_PARSING": True}
    )
