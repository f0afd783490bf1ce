"""After compactions as they really are: every write in the window and every pin is restored, and read from
the store, exactly; the rest is refused or exact."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ourdb
from backup.reading.remote import open_remote
from backup.restoring.restore import restore
from compactor.generations import Pin
from compactor.lineage import owner_of
from compactor.merging import Merge
from compactor.path import route
from ourdb.errors import UnreachableError
from tests.compacting import Bench
from tests.merged import G1, G2, IDS, merged_worlds, offered
from tests.worlds import DAY_0, HOUR, Log, World, Write, memory_world, writes

WINDOWS = [None, 0, 1, 500, 1500, 3000]  # ms; the worlds' writes are up to a second apart


def set_pin(world: World, line: str, seq: int) -> None:
    owner = owner_of(world.view.head, line, seq).id
    time = world.logs[line].time(seq)
    world.pins = (*world.pins, Pin(name=f"pin {len(world.pins)}", generation=owner, seq=seq, time=time))


def promised(world: World, window: int | None) -> list[tuple[str, int]]:
    """What has to be there: all without a window; else what is in it, on each line the last point before it,
    and the pins."""
    newest = max(log.time(len(log)) for log in world.logs.values())
    found = []
    for line, log in world.logs.items():
        ends = log.ends()
        before = [end for end in ends if window is None or log.time(end) <= newest - window]
        first = ends[0] if window is None else before[-1] if before else ends[0]
        pins = {
            one.seq for one in world.pins if owner_of(world.view.head, line, one.seq).id == one.generation
        }
        found += [(line, end) for end in ends if end >= first or end in pins]
    return found


def assert_exact(world: World, folder: Path, line: str, seq: int) -> None:
    """Restored and read in place, with one answer, which is what was written."""
    log, path = world.logs[line], folder / f"{line}-{seq}"
    restore(world.url, path, seq=seq, generation=line, meta=folder / "meta.db")
    with (
        ourdb.open(path, readonly=True) as db,
        open_remote(world.url, seq=seq, generation=line, meta=folder / "meta.db") as remote,
    ):
        assert dict(db.items()) == dict(remote.items()) == log.state(seq)
        for id_ in range(IDS):
            kept = db.get_history(id_)
            assert remote.history(id_) == kept
            written = [(n, w.value) for n, w in enumerate(log.writes[:seq], 1) if w.id == id_]
            found = [(version.seq, version.value) for version in kept]
            assert [pair for pair in written if pair in found] == found[::-1]


def cut_stretches(patch: pytest.MonkeyPatch, raw_max: int) -> None:
    """Merges cut what is not exact into parts of so many bytes."""
    patch.setitem(Merge.of.__func__.__kwdefaults__, "stretch_max", raw_max)


def test_stretch_whose_last_part_begins_exact_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain between the parts is known then, though the first is nowhere exact."""
    cut_stretches(monkeypatch, 1000)
    world, log = memory_world(), Log()
    for number in range(1, 41):
        log.append(Write(number, b"v" * (2000 if number % 20 == 0 else 20), DAY_0 + number * HOUR))
    world.line(G1, log, range(4, 40, 4))
    world.pins = (Pin(name="middle", generation=G1, seq=20, time=log.time(20)),)
    world.publish()
    bench = Bench(tmp_path, world)
    bench.compact("all", window=0)
    parts = [segment for segment in bench.segments() if segment.stretch]
    assert [(part.exact_runs[0].first_seq, part.first_seq) for part in parts if part.exact_runs] == [
        (20, 20),
        (40, 40),
    ]
    for seq in (20, 40):
        assert_exact(world, tmp_path, G1, seq)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(merged_worlds(merged=False), st.data())
def test_what_a_window_and_pins_promise_is_exact_after_any_compactions(tmp_path_factory, world, data):
    folder = tmp_path_factory.mktemp("compacted")
    for line, seq in data.draw(st.lists(st.sampled_from(offered(world)), max_size=2), label="pins"):
        set_pin(world, line, seq)
    world.publish()
    bench, narrowest = Bench(folder, world), None
    for _ in range(data.draw(st.integers(1, 2), label="compactions")):
        window = data.draw(st.sampled_from(WINDOWS), label="window")
        with pytest.MonkeyPatch.context() as patch:
            cut_stretches(patch, data.draw(st.sampled_from([150, 700, 1 << 40]), label="raw bytes of a part"))
            bench.compact(data.draw(st.sampled_from(["all", "log"]), label="strategy"), window=window)
        narrowest = min((one for one in (narrowest, window) if one is not None), default=None)
    there = offered(world)
    must = promised(world, narrowest)
    assert set(must) <= set(there)
    rest = [point for point in there if point not in must]
    some = data.draw(st.lists(st.sampled_from(must), max_size=3, unique=True), label="targets")
    if rest:
        some += data.draw(st.lists(st.sampled_from(rest), max_size=3, unique=True), label="others")
    for line, seq in some:
        assert_exact(world, folder, line, seq)


@pytest.mark.parametrize("strategy", ["all", "log"])
def test_every_write_of_a_window_and_every_pin_is_exact(tmp_path, strategy):
    bench = Bench(tmp_path).line(writes(60), 7)
    world = bench.world
    for seq in (11, 23):
        set_pin(world, G1, seq)
    world.publish()
    bench.compact(strategy, window=15_000)
    here = [seq for _, seq in offered(world)]
    assert {11, 23, *range(45, 61)} <= set(here)
    for seq in here:
        assert_exact(world, tmp_path, G1, seq)
    for seq in set(range(1, 61)) - set(here):
        with pytest.raises(UnreachableError) as caught:
            restore(world.url, tmp_path / "no", seq=seq, meta=tmp_path / "meta.db")
        before, after = (caught.value.fields[side] for side in ("nearest_before", "nearest_after"))
        assert (before and before["seq"]) == max((s for s in here if s < seq), default=None)
        assert after["seq"] == min(s for s in here if s > seq)


def test_a_window_of_nothing_keeps_the_newest_state_and_a_history_of_one(tmp_path):
    bench = Bench(tmp_path).line(writes(60), 7)
    world = bench.world
    bench.compact("all", window=0)
    assert [seq for _, seq in offered(world)] == [60]
    with open_remote(world.url, meta=tmp_path / "meta.db") as remote:
        assert dict(remote.items()) == world.logs[G1].state(60)
        for id_ in range(7):
            assert [v.seq for v in remote.history(id_)] == [
                n for n in range(60, 0, -1) if world.logs[G1].writes[n - 1].id == id_
            ][:1] * (remote.get(id_) is not None)


def test_a_reader_that_is_open_goes_on_over_a_compaction(tmp_path):
    bench = Bench(tmp_path).line(writes(600, ids=50, size=400), 60)
    world, log = bench.world, bench.world.logs[G1]
    old = [entry.key for entry in world.view.segments]
    with open_remote(world.url, meta=tmp_path / "meta.db") as remote:
        items = iter(remote.items())
        found = [next(items)]
        bench.compact("all", window=0)
        assert not world.store.delete_many(old)
        found += items
        assert sorted(found) == sorted(log.state(600).items())
        assert remote.get(1) == log.state(600).get(1)
        assert route(world.view, G1, 600) is not None
        assert remote.left_out == ()


def test_a_reader_of_a_line_goes_on_when_its_parent_is_merged_into_it(tmp_path):
    first = writes(600, ids=50, size=400)
    second = first.copy(400)
    for n in range(100):
        second.append(Write(n % 50, b"second" * 100, DAY_0 + HOUR + n * 1000))
    world = memory_world()
    world.line(G1, first, range(60, 600, 60))
    world.line(G2, second, [450], parent=(G1, 400), takes_over=G1)
    world.publish()
    bench = Bench(tmp_path, world)
    with open_remote(world.url, seq=300, meta=tmp_path / "meta.db") as remote:
        assert remote.point is not None
        assert remote.point.generation == G1
        bench.compact("all")
        assert world.view.head.generations[G2].parent is None  # merged across the branch
        named = {entry.key for entry in world.view.segments}
        old = [entry.key for entry in world.segments if entry.key not in named]
        assert old
        assert not world.store.delete_many(old)
        assert dict(remote.items()) == first.state(300)
        assert remote.left_out == ()
