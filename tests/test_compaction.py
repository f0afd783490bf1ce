"""Compaction of whole namespaces: what stays restorable, what is dropped, what it costs, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compactor.head import encode_head
from compactor.policy import boundaries, policy_for
from compactor.store import open_store
from ourdb.errors import DamageError, ExistsError, FencedError, InvalidError, NotFoundError, UnreachableError
from ourdb.segment.reader import SegmentReader
from tests.compacting import DAY, G1, G2, Bench
from tests.faulty import FaultyStore
from tests.worlds import DAY_0, HOUR, Log, Write, file_world, writes

STRATEGIES = ("auto", "levels", "log", "all")
YEAR = 365 * DAY


def hourly(count: int = 60) -> Log:
    return writes(count, step=HOUR)


def of_kind(kind: str, folder: Path) -> Bench:
    return Bench(folder, file_world(folder / "store") if kind == "file" else None)


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_window_and_pins_stay_exact_and_what_else_is_before_is_refused(
    tmp_path: Path, strategy: str, kind: str
) -> None:
    log = hourly()
    bench = of_kind(kind, tmp_path).line(log, 4)
    bench.pin("monday", 7)
    bench.pin("tuesday", 33)
    report = bench.compact(strategy, window=20 * HOUR, force=True)
    since = log.time(60) - 20 * HOUR
    points = bench.assert_exact()
    assert {7, 33, *(seq for seq in log.ends() if log.time(seq) >= since)} <= set(points)
    assert report.segments_after == len(bench.segments()) < report.segments_before == 15
    assert [done.outcome for done in report.sets] == ["merged"] * len(report.sets)
    assert not bench.garbage()
    if strategy == "all" and kind == "memory":
        assert points == [7, 33, *range(40, 61)]
        with pytest.raises(UnreachableError) as caught:
            bench.find(seq=20)
        assert caught.value.fields["nearest_before"]["seq"] == 7
        assert caught.value.fields["nearest_after"]["seq"] == 33


def test_window_of_zero_keeps_the_newest_versions_alone(tmp_path: Path) -> None:
    log = hourly()
    bench = Bench(tmp_path).line(log, 4)
    report = bench.compact(window=0)
    assert bench.assert_exact() == [60]
    assert bench.segments()[0].records == len(log.state(60)) == report.total("records_after")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_a_policy_nothing_is_dropped(tmp_path: Path, strategy: str) -> None:
    log = hourly()
    bench = Bench(tmp_path).line(log, 4)
    report = bench.compact(strategy)
    assert bench.assert_exact() == log.ends()
    assert sum(segment.records for segment in bench.segments()) == 60
    assert report.total("records_after") == report.total("records_before") > 0
    assert all(done.horizon is None and not done.kept for done in report.sets)


def test_keep_rules_keep_what_their_boundaries_mean(tmp_path: Path) -> None:
    log = writes(200, step=HOUR // 2)
    bench = Bench(tmp_path).line(log, 9)
    bench.set_policy(window_ms=6 * HOUR, hourly=20, daily=3, weekly=1)
    ends = boundaries(policy_for(bench.view.head), log.time(200))
    meant = {time: bench.meant(time) for time in ends}
    report = bench.compact("all")
    assert {time: bench.meant(time) for time in ends} == meant
    points = bench.assert_exact()
    window = [seq for seq in log.ends() if log.time(seq) >= log.time(200) - 6 * HOUR]
    assert set(points) == {seq for seq in meant.values() if seq} | set(window)
    assert len(points) < 50
    assert set(report.sets[0].kept) == {seq for seq in points if seq < window[0]}
    assert all(why.startswith("the state at 2027-01-") for why in report.sets[0].kept.values())


def test_newest_points_stay_whatever_the_window(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(hourly(), 4)
    bench.set_policy(window_ms=0, last=3, minimum=7)
    bench.compact("all")
    assert bench.assert_exact() == [54, 55, 56, 57, 58, 59, 60]


def test_versions_are_kept_beside_what_points_need(tmp_path: Path) -> None:
    log = Log(Write(number % 7, b"%d" % number, DAY_0 + number * HOUR) for number in range(60))
    bench = Bench(tmp_path).line(log, 4)
    bench.set_policy(window_ms=0, keep_versions=2)
    bench.compact("all")
    newest: dict[int, list[int]] = {}
    for seq, write in enumerate(log.writes, 1):
        newest.setdefault(write.id, []).append(seq)
    assert bench.segments()[0].records == sum(len(seqs[-2:]) for seqs in newest.values())
    assert bench.assert_exact() == [60]


def test_branch_points_stay_exact_and_each_generation_is_merged_by_itself(tmp_path: Path) -> None:
    bench, log = Bench(tmp_path), hourly()
    bench.world.line(G1, log, range(4, 60, 4))
    other = log.copy(22)
    for write in writes(30, start=log.time(22) + 1, step=HOUR, ids=9).writes:
        other.append(write)
    bench.world.line(G2, other, range(25, 52, 3), parent=(G1, 22))
    bench.world.publish()
    report = bench.compact("all", window=0)
    assert [done.generation for done in report.sets] == [G1, G2]
    assert bench.assert_exact(G1) == [22, 60]
    assert bench.assert_exact(G2) == [52]
    assert (report.segments_before, report.segments_after) == (25, 2)


def test_points_go_with_their_pin(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(hourly(), 4)
    bench.pin("monday", 7)
    bench.compact("all", window=0)
    assert bench.points() == [7, 60]
    bench.change(pins=())
    report = bench.compact("all", window=0)
    assert bench.assert_exact() == [60]
    assert [(done.segments, done.segments_after) for done in report.sets] == [(1, 1)]
    assert [done.outcome for done in bench.compact("all", window=0).sets] == ["nothing to gain"]


@pytest.mark.parametrize("skew", [YEAR, -YEAR])
def test_clock_that_is_wrong_drops_nothing_unless_forced(tmp_path: Path, skew: int) -> None:
    log = hourly()
    bench = Bench(tmp_path).line(log, 4)
    bench.skew_ms = skew
    report = bench.compact("all", window=20 * HOUR)
    assert bench.assert_exact() == log.ends()
    assert len(bench.segments()) == 1
    assert any(note.startswith("nothing is dropped: the clocks") for note in report.notes)
    bench.compact("all", window=20 * HOUR, force=True)
    kept = range(40, 61) if skew > 0 else log.ends()  # what is behind an early clock is all in the window
    assert bench.assert_exact() == list(kept)


def test_window_is_counted_from_the_newest_record(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(hourly(), 4)
    bench.now_ms += 50 * YEAR
    bench.compact("all", window=HOUR)
    assert bench.assert_exact() == [59, 60]


def test_window_below_the_policy_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(hourly(), 4)
    bench.set_policy(window_ms=20 * HOUR)
    before = bench.objects()
    with pytest.raises(InvalidError, match="change the policy first") as caught:
        bench.compact("all", window=20 * HOUR - 1)
    assert caught.value.kind == "below_policy"
    assert bench.objects() == before
    bench.compact("all", window=30 * HOUR)
    assert bench.points() == list(range(30, 61))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "best"}, "unknown strategy: 'best'"),
        ({"strategy": "auto", "threshold": 1}, "at least 2"),
        ({"strategy": "log", "threshold": 5}, "does not have this option"),
        ({"window": -1}, "negative"),
        ({"window": True}, "negative"),
        ({"dry_run": True, "out": "somewhere"}, "exclude"),
    ],
)
def test_option_that_cannot_be_is_refused_without_a_request(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    bench = Bench(tmp_path).line(hourly(), 4)
    store = FaultyStore(bench.world.store)
    with pytest.raises(InvalidError, match=said):
        bench.compact(store=store, **options)
    assert not store.log


def test_namespace_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        Bench(tmp_path).compact()
    assert caught.value.kind == "no_namespace"


def test_hole_in_the_path_is_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.world.line(G1, hourly(), range(4, 60, 4))
    del bench.world.segments[6]
    bench.world.publish()
    for strategy in STRATEGIES:
        with pytest.raises(DamageError, match="seq 25 to 60") as caught:
            bench.compact(strategy)
        assert caught.value.kind == "store_damaged"


def test_damaged_segment_stays_and_what_lies_around_it_is_merged(tmp_path: Path) -> None:
    log = hourly()
    bench = Bench(tmp_path).line(log, 4)
    keys = [bench.segments()[nr].key for nr in (5, 9)]
    for key in keys:
        bench.world.flip(key, -300)
    told: list[tuple[int, int, str]] = []
    with pytest.raises(DamageError, match="2 of 5 sets") as caught:
        bench.compact("all", progress=lambda *now: told.append(now))
    assert caught.value.kind == "store_damaged"
    assert caught.value.fields["key"] == keys[0]
    sets = caught.value.fields["sets"]
    assert [(done["outcome"], done["first_seq"], done["last_seq"]) for done in sets] == [
        ("damaged", 1, 60),
        ("merged", 1, 20),
        ("damaged", 25, 60),
        ("merged", 25, 36),
        ("merged", 41, 60),
    ]
    assert [segment.first_seq for segment in bench.segments()] == [1, 21, 25, 37, 41]
    assert bench.points() == log.ends()
    assert told[-1][0] == told[-1][1]


def test_segment_of_another_database_is_damage_that_names_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(hourly(), 30)
    key = bench.segments()[1].key
    bench.world.change_object(key, lambda data: data.replace(bytes(range(16)), bytes(range(1, 17))))
    with pytest.raises(DamageError) as caught:
        bench.compact("all")
    assert caught.value.fields["key"] == key


def test_dry_run_writes_nothing_and_tells_the_plan(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(hourly(), 4)
    before, store = bench.objects(), FaultyStore(open_store(bench.world.url))
    planned = bench.compact("all", window=0, store=store, dry_run=True)
    assert bench.objects() == before
    assert {method for method, _ in store.log} <= {"get", "head", "get_tail"}
    assert (planned.segments_before, planned.segments_after) == (15, 1)
    done = bench.compact("all", window=0)
    assert (done.segments_before, done.segments_after) == (15, 1)
    foreseen, real = planned.as_json()["sets"][0], done.as_json()["sets"][0]
    assert (foreseen["outcome"], real["outcome"]) == ("planned", "merged")
    for name in ("segments", "segments_after", "records", "records_after", "bytes", "horizon", "kept"):
        assert foreseen[name] == real[name]
    assert foreseen["bytes_after"] == pytest.approx(real["bytes_after"], rel=0.5)
    assert foreseen["figures"]["requests"]["PUT"] == 1


def test_out_writes_files_and_publishes_nothing(tmp_path: Path) -> None:
    log = hourly()
    bench = Bench(tmp_path).line(log, 4)
    before, head = bench.objects(), bench.view.head
    report = bench.compact("all", window=0, out=tmp_path / "out")
    assert (bench.objects(), bench.view.head) == (before, head)
    assert [done.outcome for done in report.sets] == ["written"]
    [name] = report.sets[0].names
    data = Path(name).read_bytes()
    reader = SegmentReader(len(data), lambda offset, length: data[offset : offset + length], where=name)
    assert reader.summary.records == len(log.state(60))
    assert Path(name).relative_to(tmp_path / "out").parts[:2] == ("segments", G1)


def test_out_that_is_a_file_is_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(hourly(), 4)
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ExistsError, match="out"):
        bench.compact("all", out=tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_progress_ends_with_everything_done(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(hourly(), 4)
    total = sum(segment.bytes for segment in bench.segments()[:13])
    told: list[tuple[int, int, str]] = []
    bench.compact("log", progress=lambda *now: told.append(now))
    assert told[0] == (0, total, "merging seq 1 to 28")
    assert told[-1][:2] == (total, total)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_idle_run_is_one_get_of_the_head(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(hourly(8), 4)
    for _ in range(2):
        store = FaultyStore(open_store(bench.world.url))
        report = bench.compact("auto", store=store)
        assert not report.sets
        assert sum(report.requests.values()) == report.requests["GET"] == 1
    assert store.log == [("get_if_changed", "head")]


@pytest.mark.parametrize("count", [9, 50])
def test_set_of_small_segments_costs_a_request_each_and_a_few(tmp_path: Path, count: int) -> None:
    bench = Bench(tmp_path).line(hourly(4 * count), 4)
    bench.compact("auto", dry_run=True)  # what compare-and-swap costs to be proven comes once
    bench.session().namespace.ensure_trusted()
    store = FaultyStore(open_store(bench.world.url))
    report = bench.compact("all", window=HOUR, store=store)
    assert store.sent("get_tail") == count + 1  # and what was written is read back
    assert sum(report.requests.values()) == len(store.log) == count + 1 + 4
    assert [method for method, _ in store.log if method != "get_tail"] == [
        "get_if_changed",
        "head",
        "assemble",
        "put_if_match",
    ]


def test_store_of_a_single_writer_is_refused_to_other_hosts_before_anything_is_sent(tmp_path: Path) -> None:
    bench = Bench(tmp_path).line(hourly(), 4)
    own = bench.session()
    bench.world.replace_head(encoded_for(bench, own.namespace.host.id))
    before = bench.objects()
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(FencedError) as caught:
        bench.compact("all", meta="elsewhere/meta.db")
    assert caught.value.kind == "other_host"
    assert bench.objects() == before
    bench.compact("all")
    assert len(bench.segments()) == 1


def encoded_for(bench: Bench, host: str) -> bytes:
    return encode_head(replace(bench.view.head, host=host, single_writer=True))
