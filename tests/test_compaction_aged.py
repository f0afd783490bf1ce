"""What `auto` does with segments whose time is over: merged alone, once, if much of them can be dropped."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from compactor.strategies import Auto
from tests.compacting import Bench
from tests.worlds import DAY_0, HOUR, Log, Write

WINDOW = 10 * HOUR


def overwritten(count: int = 60) -> Log:
    """The same five ids again and again, one write an hour."""
    log, random = Log(), Random(1)
    for number in range(1, count + 1):
        log.append(Write(number % 5, random.randbytes(200), DAY_0 + number * HOUR))
    return log


def appended(count: int = 60) -> Log:
    """Each id once."""
    log = Log()
    for number in range(1, count + 1):
        log.append(Write(number, b"only %d" % number, DAY_0 + number * HOUR))
    return log


def test_segment_before_the_window_is_merged_alone_once(tmp_path: Path) -> None:
    log = overwritten()
    bench = Bench(tmp_path).line(log, 20)  # too few for the strategy itself
    bench.pin("monday", 7)
    bench.set_policy(window_ms=WINDOW)
    report = bench.compact("auto")
    assert [(done.first_seq, done.last_seq, done.outcome) for done in report.sets] == [
        (1, 20, "merged"),
        (21, 40, "merged"),
    ]
    assert bench.assert_exact() == [7, 20, 40, *range(41, 61)]
    assert sum(segment.records for segment in bench.segments()) < 60
    assert sum(bench.compact("auto").requests.values()) == 1


def test_segment_with_little_to_drop_is_read_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(appended(), 20)
    bench.set_policy(window_ms=WINDOW)
    before = bench.segments()
    assert {done.outcome for done in bench.compact("auto", dry_run=True).sets} == {"nothing to gain"}
    report = bench.compact("auto")
    assert [done.outcome for done in report.sets] == ["nothing to gain"] * 2
    assert bench.segments() == before
    assert sum(bench.compact("auto").requests.values()) == 1
    assert len(bench.compact("auto", meta="another.db").sets) == 2  # only a cache remembers it


def test_segment_in_the_window_is_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(overwritten(), 20)
    bench.set_policy(window_ms=100 * HOUR)
    assert bench.compact("auto").sets == ()


def test_without_a_policy_no_segment_is_merged_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(overwritten(), 20)
    assert sum(bench.compact("auto").requests.values()) == 1


def test_clock_that_is_ahead_marks_no_segment_as_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(overwritten(), 20)
    bench.set_policy(window_ms=WINDOW)
    bench.skew_ms = 365 * 24 * HOUR
    assert [done.outcome for done in bench.compact("auto").sets] == ["nothing to gain"] * 2
    bench.skew_ms = 0
    assert [done.outcome for done in bench.compact("auto").sets] == ["merged"] * 2


def closing(monkeypatch: pytest.MonkeyPatch, segment_bytes_max: int) -> None:
    """`auto` closes segments of this size."""
    small = Auto(segment_bytes_max=segment_bytes_max)
    monkeypatch.setattr("compactor.compaction.options.strategies.strategy", lambda name: small)


def spread(count: int, ids: int = 40) -> Log:
    """Each id is written again after `ids` writes: a segment of fewer has nothing twice."""
    log, random = Log(), Random(2)
    for number in range(1, count + 1):
        log.append(Write(number % ids, random.randbytes(400), DAY_0 + number * HOUR))
    return log


def test_what_later_segments_overwrote_goes_when_old_ones_are_merged_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing(monkeypatch, 12_000)
    bench = Bench(tmp_path).line(spread(200), 20)  # ten segments of 9 KB, of which two hold what lives
    bench.set_policy(window_ms=WINDOW)
    report = bench.compact("auto")
    assert [(done.first_seq, done.last_seq, done.outcome) for done in report.sets] == [(1, 180, "merged")]
    assert bench.assert_exact() == list(range(180, 201))
    assert sum(segment.records for segment in bench.segments()) == 60
    assert sum(bench.compact("auto").requests.values()) == 1


def test_old_ones_are_merged_together_only_after_they_have_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing(monkeypatch, 12_000)
    bench = Bench(tmp_path).line(spread(200), 20)
    bench.set_policy(window_ms=0)
    merged, largest = [], 0
    for _ in range(20):
        report = bench.compact("auto")
        merged += [done for done in report.sets if done.segments > 1]
        assert sum(bench.compact("auto").requests.values()) == 1
        largest = max(largest, sum(segment.records for segment in bench.segments()))
        bench.back_up(20)
    assert bench.points()[-1] == 600
    assert len(merged) < 10
    assert largest < 150
    bench.assert_exact()


def test_old_ones_without_anything_to_drop_are_weighed_when_they_have_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing(monkeypatch, 12_000)
    bench = Bench(tmp_path).line(spread(400, ids=1000), 20)
    bench.set_policy(window_ms=WINDOW)
    before = bench.segments()
    report = bench.compact("auto")
    assert [(done.segments, done.outcome) for done in report.sets] == [(19, "nothing to gain")]
    assert {done.segments for done in bench.compact("auto").sets} == {1}
    assert bench.segments() == before
    assert sum(bench.compact("auto").requests.values()) == 1


def test_newest_points_of_a_policy_do_not_keep_a_segment_from_being_read_only_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(overwritten(), 20)
    bench.set_policy(window_ms=WINDOW, last=100)
    assert {done.outcome for done in bench.compact("auto").sets} == {"nothing to gain"}
    assert sum(bench.compact("auto").requests.values()) == 1
    assert bench.assert_exact() == list(range(1, 61))
