"""Sizes, spans and times as people write them."""

import time
from collections.abc import Iterator

import pytest

from ourdb.errors import InvalidError
from ourdb.units import format_size, format_span, format_time, parse_size, parse_span, parse_time

NOON = parse_time("2026-03-29T12:00:00Z")


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4KiB", 4096),
        ("4 kib", 4096),
        ("64MiB", 64 << 20),
        ("1.5GiB", 3 << 29),
        ("4KB", 4000),
    ],
)
def test_size_as_written_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "4 bananas", "KiB", "1e3", "0x10"])
def test_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="not a size"):
        parse_size(text)


def test_size_for_people_has_a_unit() -> None:
    assert [format_size(n) for n in (0, 1023, 1024, 500 << 20)] == ["0 B", "1023 B", "1.0 KiB", "500.0 MiB"]


@pytest.mark.parametrize(
    ("text", "ms"), [("0", 0), ("10s", 10_000), ("1.5h", 5_400_000), ("30d", 2_592_000_000)]
)
def test_span_as_written_is_read(text: str, ms: int) -> None:
    assert parse_span(text) == ms


@pytest.mark.parametrize("text", ["10", "-1s", "soon"])
def test_span_without_unit_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="not a duration"):
        parse_span(text)


def test_time_that_was_printed_is_read_back() -> None:
    assert parse_time(format_time(1_795_000_000_123)) == 1_795_000_000_123


def test_time_with_zone_is_converted() -> None:
    assert parse_time("2026-03-29T14:00:00+02:00") == NOON


@pytest.mark.parametrize(
    ("span_ms", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (1500, "1500ms"),
        (90_000, "90s"),
        (5_400_000, "90m"),
        (7_200_000, "2h"),
        (30 * 86_400_000, "30d"),
    ],
)
def test_span_is_printed_in_its_largest_unit_and_read_again(span_ms: int, text: str) -> None:
    assert format_span(span_ms) == text
    assert parse_span(text) == span_ms


@pytest.mark.usefixtures("berlin")
def test_time_without_zone_is_local() -> None:
    assert parse_time("2026-03-29 14:00") == NOON
    assert parse_time("yesterday 13:00", now=NOON) == NOON - 86_400_000


@pytest.mark.usefixtures("berlin")
def test_span_ago_across_a_change_of_clocks_is_elapsed_time() -> None:
    assert parse_time("12 hours ago", now=NOON) == NOON - 12 * 3_600_000  # clocks went forward at 01:00Z


def test_now_is_now() -> None:
    assert parse_time("now", now=NOON) == NOON


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "1960-01-01T00:00:00Z",
        "2026-02-30",
        "2026-13-01",
        "2026-13-01T00:00:00Z",
        "2026-13-01 10:00 UTC",
        "01/02/2026",
        "1.2.2026",
        "5",
        "1700000000",
        "march",
    ],
)
def test_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="time"):
        parse_time(text, now=NOON)
