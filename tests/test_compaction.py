"""Compaction of whole namespaces: what stays restorable, what is dropped, what it costs, whom it meets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compacting import Bench
from tests.worlds import HOUR, writes

STRATEGIES = ("auto", "levels", "log", "all")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_window_stays_exact_and_what_is_before_it_is_refused(tmp_path: Path, strategy: str) -> None:
    log = writes(60, step=HOUR)
    bench = Bench(tmp_path).line(log, 4)
    report = bench.compact(strategy, window=20 * HOUR)
    since = log.time(60) - 20 * HOUR
    points = bench.assert_exact()
    assert [seq for seq in log.ends() if log.time(seq) >= since] == [seq for seq in points if seq >= 40]
    assert report.segments_after == len(bench.segments()) < report.segments_before == 15
    assert not bench.garbage()
