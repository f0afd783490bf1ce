"""Points and segments: what can be restored now, told from the head."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import ourdb
from backup.points import points
from backup.segments import segments
from compactor import windows
from compactor.windows import Window
from ourdb.errors import FencedError, NotFoundError
from ourdb.units import format_time
from tests.worlds import DAY_0, HOUR, World, Write, memory_world, writes

G1, G2 = "1" * 16, "2" * 16


@pytest.fixture(autouse=True)
def meta_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path_factory.mktemp("meta") / "meta.db"))


def ranges(rows: list[dict[str, object]]) -> list[tuple[object, object, object]]:
    return [(row["generation"], row["first_seq"], row["last_seq"]) for row in rows]


def world_of(*cuts: int) -> World:
    world = memory_world()
    world.line(G1, writes(60), cuts, as_of=DAY_0 + 90_000)
    world.publish()
    return world


def restored_copy() -> World:
    world = memory_world()
    first = writes(30)
    second = first.copy(20)
    for n in range(10):
        second.append(Write(n, b"second", DAY_0 + HOUR + n * 1000))
    world.line(G1, first, [15])
    world.line(G2, second, parent=(G1, 20), takes_over=G1)
    world.publish()
    return world


def test_segments_that_join_are_one_window_with_its_times():
    found = points(world_of(20, 40).url).as_json()
    assert ranges(found["windows"]) == [(G1, 1, 60)]
    assert found["windows"][0]["first_time"] == format_time(DAY_0 + 1000)
    assert found["windows"][0]["last_time"] == format_time(DAY_0 + 60_000)
    assert len(found["windows"][0]["segments"]) == 3
    assert found["gaps"] == []
    assert (found["last_seq"], found["last_time"]) == (60, format_time(DAY_0 + 60_000))
    assert found["as_of"] == format_time(DAY_0 + 90_000)
    assert (found["generation"], found["namespace"]) == (G1, "name")
    assert "behind" not in found
    assert found["requests"]["GET"] == sum(found["requests"].values()) == 1
    assert json.loads(json.dumps(found)) == found


def test_a_window_is_made_once_however_many_segments_it_joins(monkeypatch):
    made = []

    def counting(**fields: object) -> windows.Window:
        made.append(len(fields["segments"]))
        return Window(**fields)

    monkeypatch.setattr(windows, "Window", counting)
    assert len(points(world_of(*range(1, 60)).url).windows) == 1
    assert made == [60]


def test_what_a_merge_gave_up_is_a_gap_between_windows():
    world = memory_world()
    world.line(G1, writes(60), [60])
    world.segments.clear()
    world.segment(G1, 1, 50, [(7, 7), (30, 50)], level=1)
    world.segment(G1, 51, 60)
    world.publish()
    found = points(world.url).as_json()
    assert ranges(found["windows"]) == [(G1, 7, 7), (G1, 30, 60)]
    assert ranges(found["gaps"]) == [(G1, 1, 6), (G1, 8, 29)]
    assert found["gaps"][0]["first_time"] is None
    assert found["gaps"][1]["first_time"] == format_time(DAY_0 + 7000)
    assert found["gaps"][1]["last_time"] == format_time(DAY_0 + 30_000)


def test_what_comes_behind_a_missing_segment_is_a_gap():
    world = world_of(20, 40)
    del world.segments[1]
    world.publish()
    found = points(world.url).as_json()
    assert ranges(found["windows"]) == [(G1, 1, 20)]
    assert ranges(found["gaps"]) == [(G1, 21, 60)]


def test_generations_say_where_they_left_and_who_follows():
    found = points(restored_copy().url).as_json()
    assert ranges(found["windows"]) == [(G1, 1, 30), (G2, 21, 30)]
    told = {row["generation"]: row for row in found["generations"]}
    assert (told[G1]["parent"], told[G1]["left_at_seq"], told[G1]["successor"]) == (None, None, G2)
    assert (told[G2]["parent"], told[G2]["left_at_seq"], told[G2]["successor"]) == (G1, 20, None)
    assert told[G2]["last_seq"] == 30
    assert told[G2]["last_time"] == format_time(DAY_0 + HOUR + 9000)
    assert ranges(points(restored_copy().url, generation=G1).as_json()["windows"]) == [(G1, 1, 30)]


def test_a_fork_reaches_its_parent_only_up_to_where_it_left():
    world = restored_copy()
    world.generations[G1] = replace(world.generations[G1], successor=None)
    world.publish()
    assert ranges(points(world.url, generation=G2).as_json()["windows"]) == [(G1, 1, 20), (G2, 21, 30)]
    assert ranges(points(world.url, generation=G1).as_json()["windows"]) == [(G1, 1, 30)]
    with pytest.raises(FencedError) as caught:
        points(world.url)
    assert caught.value.kind == "two_lines"


def test_a_fork_in_the_middle_of_a_segment_has_the_time_of_where_it_left():
    world = restored_copy()
    found = points(world.url, generation=G2).as_json()
    assert found["windows"][0]["last_seq"] == 30  # taken over: its own end still counts
    world.generations[G1] = replace(world.generations[G1], successor=None)
    world.publish()
    found = points(world.url, generation=G2).as_json()
    assert found["windows"][0]["last_seq"] == 20
    assert found["windows"][0]["last_time"] == format_time(DAY_0 + 20_000)
    assert found["requests"]["GET"] == 2


@pytest.mark.parametrize("change", [None, lambda data: data[:-1]])
def test_a_damaged_index_leaves_a_time_open_and_the_rest_is_told(change):
    world = restored_copy()
    world.generations[G1] = replace(world.generations[G1], successor=None)
    world.publish()
    world.change_object(world.segments[1].key, change)
    found = points(world.url, generation=G2)
    assert (found.windows[0].last_seq, found.windows[0].last_time) == (20, None)
    assert found.last_seq == 30


def test_an_empty_namespace_has_no_window():
    world = memory_world()
    world.publish()
    found = points(world.url).as_json()
    assert (found["windows"], found["gaps"], found["generation"], found["last_seq"]) == ([], [], None, 0)


def test_unknown_namespaces_and_generations_are_not_found():
    with pytest.raises(NotFoundError, match="no such namespace"):
        points("memory://nowhere/none")
    with pytest.raises(NotFoundError, match=G2):
        points(world_of().url, generation=G2)


class TestBehind:
    def database(self, world: World, folder: object, more: int) -> str:
        from backup.restoring.restore import restore

        restore(world.url, f"{folder}/db")
        with ourdb.open(f"{folder}/db") as db:
            for n in range(more):
                db.set(b"more", n)
        return f"{folder}/db"

    def test_is_nothing_for_a_database_that_the_store_has_whole(self, tmp_path):
        world = world_of(20)
        found = points(world.url, db=self.database(world, tmp_path, 0)).as_json()
        assert found["behind"] == {"records": 0, "seconds": 0.0}

    def test_counts_records_and_seconds_since_the_newest_in_the_store(self, tmp_path):
        world = memory_world()
        world.line(G1, writes(10, start=DAY_0 - 10 * 365 * 24 * HOUR), [])
        world.publish()
        path = self.database(world, tmp_path, 3)
        with ourdb.open(path, readonly=True) as db:
            wanted = (db.last_time - world.logs[G1].time(10)) / 1000
        assert points(world.url, db=path).as_json()["behind"] == {"records": 3, "seconds": wanted}

    def test_of_another_database_is_refused(self, tmp_path):
        with ourdb.open(tmp_path / "db"):
            pass
        with pytest.raises(FencedError) as caught:
            points(world_of().url, db=tmp_path / "db")
        assert caught.value.kind == "other_database"

    def test_of_what_is_no_database_is_not_found(self, tmp_path):
        with pytest.raises(NotFoundError):
            points(world_of().url, db=tmp_path)


def test_segments_are_listed_in_order_of_range_with_what_is_exact():
    world = world_of(20, 40)
    merged = world.segment(G1, 1, 40, [(7, 7), (30, 40)], level=1)
    world.publish()
    found = segments(world.url).as_json()
    rows = [(s["first_seq"], s["last_seq"], s["level"], s["exact_from_seq"]) for s in found["segments"]]
    assert rows == [(1, 20, 0, 1), (1, 40, 1, 30), (21, 40, 0, 21), (41, 60, 0, 41)]
    told = found["segments"][1]
    assert (told["key"], told["bytes"], told["records"]) == (merged.key, merged.bytes, merged.records)
    assert told["exact_runs"][0] == {"first_seq": 7, "last_seq": 7}
    assert found["generation"] == G1
    assert sum(found["requests"].values()) == 1


def test_segments_are_those_of_the_line():
    url = restored_copy().url
    assert [s.segment.generation for s in segments(url, generation=G2).segments] == [G1, G1, G2]
    assert segments(url).segments == segments(url, generation=G2).segments
    with pytest.raises(NotFoundError):
        segments(url, generation="3" * 16)


def test_segments_of_two_open_lines_need_a_generation():
    world = restored_copy()
    world.generations[G1] = replace(world.generations[G1], successor=None)
    world.publish()
    with pytest.raises(FencedError) as caught:
        segments(world.url)
    assert caught.value.kind == "two_lines"
    assert {s.segment.generation for s in segments(world.url, generation=G1).segments} == {G1}
