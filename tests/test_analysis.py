"""Analysis: the figures of a line, and the shortest restore path to a point of it."""

from __future__ import annotations

import pytest

import backup
from ourdb.errors import DamageError, FencedError, InvalidError, NotFoundError, UnreachableError
from ourdb.units import format_time
from tests.cli_runner import failed, ok
from tests.worlds import DAY_0, HOUR, World, Write, file_world, memory_world, writes

G1, G2 = "1" * 16, "2" * 16


@pytest.fixture(autouse=True)
def meta_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path_factory.mktemp("meta") / "meta.db"))


def merged_world(world: World | None = None) -> World:
    """1..60 in six segments; 1..40 merged too, exact at its end; the sources are live still."""
    world = world or memory_world()
    world.line(G1, writes(60), [10, 20, 30, 40, 50])
    world.segment(G1, 1, 40, [(40, 40)], level=1)
    world.publish()
    return world


def restored_copy() -> World:
    """G1 to 30 in two segments, left at 20 by G2, which goes on to 30."""
    world = memory_world()
    second = writes(20)
    for n in range(10):
        second.append(Write(n, b"second", DAY_0 + HOUR + n * 1000))
    world.line(G1, writes(30), [15])
    world.line(G2, second, parent=(G1, 20))
    world.publish()
    return world


def steps(report: backup.AnalysisReport) -> list[tuple[int, int, int, int]]:
    return [(s.segment.first_seq, s.segment.last_seq, s.after, s.upto) for s in report.found.path]


def test_the_newest_point_is_reached_through_what_was_merged():
    world = merged_world()
    done = backup.analyze(world.url)
    assert steps(done) == [(1, 40, 0, 40), (41, 50, 40, 50), (51, 60, 50, 60)]
    assert (done.generation, done.owner, done.seq, done.last_seq) == (G1, G1, 60, 60)
    assert done.time == DAY_0 + 60_000
    assert done.requests["GET"] == sum(done.requests.values()) == 1


def test_figures_count_each_live_segment_once():
    world = merged_world()
    found = backup.analyze(world.url).found
    sizes = {(entry.first_seq, entry.last_seq): entry.bytes for entry in world.segments}
    assert (found.line.segments, found.line.bytes) == (7, sum(sizes.values()))
    assert (found.line.first_seq, found.line.last_seq) == (1, 60)
    assert (found.line.first_time, found.line.last_time) == (DAY_0 + 1000, DAY_0 + 60_000)
    assert found.line.levels == {0: 6, 1: 1}
    assert found.path_bytes == sizes[1, 40] + sizes[41, 50] + sizes[51, 60]
    assert found.path_requests == 3
    assert found.beside.segments == 4
    assert found.beside.bytes == found.line.bytes - found.path_bytes
    assert [entry.last_seq for entry in found.live] == [10, 40, 20, 30, 40, 50, 60]


def test_an_older_seq_is_reached_by_the_sources():
    done = backup.analyze(merged_world().url, seq=25)
    assert steps(done) == [(1, 10, 0, 10), (11, 20, 10, 20), (21, 30, 20, 25)]
    assert (done.seq, done.time) == (25, DAY_0 + 25_000)


def test_a_time_means_the_last_point_up_to_it():
    done = backup.analyze(merged_world().url, at=DAY_0 + 25_500)
    assert (done.seq, done.time) == (25, DAY_0 + 25_000)


def test_ancestors_count_up_to_where_they_were_left():
    world = restored_copy()
    done = backup.analyze(world.url, generation=G2)
    assert steps(done) == [(1, 15, 0, 15), (16, 30, 15, 20), (21, 30, 20, 30)]
    assert list(done.found.generations) == [G1, G2]
    assert [holding.segments for holding in done.found.generations.values()] == [2, 1]
    assert done.found.elsewhere.segments == 0
    assert done.as_json()["shortest_restore_path"]["steps"][1]["used_last_seq"] == 20


def test_what_other_lines_have_is_told_apart():
    world = restored_copy()
    done = backup.analyze(world.url, generation=G1)
    assert list(done.found.generations) == [G1]
    assert (done.found.elsewhere.segments, done.found.elsewhere.first_seq) == (1, 21)


def test_segments_behind_where_an_ancestor_was_left_are_not_on_the_line():
    world = memory_world()
    world.line(G1, writes(30), [10, 20])
    world.line(G2, writes(25), parent=(G1, 15))
    world.publish()
    found = backup.analyze(world.url, generation=G2).found
    assert found.generations[G1].segments == 2
    assert (found.elsewhere.segments, found.elsewhere.first_seq) == (1, 21)


def test_nothing_written_yet_is_an_empty_path():
    world = memory_world()
    world.publish()
    done = backup.analyze(world.url)
    assert (done.generation, done.seq, done.time, done.found.path) == (None, 0, None, ())
    assert done.found.line.first_time is None
    assert done.as_json()["target"] == {"seq": 0, "time": None, "generation": None}


def test_json_lists_all_live_segments_where_that_is_asked():
    done = backup.analyze(merged_world().url)
    assert "segments" not in done.as_json()
    rows = done.as_json(list_all=True)["segments"]
    assert [row["on_path"] for row in rows] == [False, True, False, False, False, True, True]
    assert rows[0]["first_time"] == format_time(DAY_0 + 1000)


def test_targets_that_are_not_there_name_the_nearest():
    world = memory_world()
    world.line(G1, writes(60))
    world.segments.clear()
    world.segment(G1, 1, 60, [(40, 40), (60, 60)], level=1)
    world.publish()
    with pytest.raises(UnreachableError) as caught:
        backup.analyze(world.url, seq=50)
    assert caught.value.fields["nearest_before"]["seq"] == 40
    assert caught.value.fields["nearest_after"]["seq"] == 60


def test_a_hole_names_what_nothing_leads_to_any_more():
    world = memory_world()
    world.line(G1, writes(60), [20, 40])
    del world.segments[1]
    world.publish()
    with pytest.raises(DamageError) as caught:
        backup.analyze(world.url)
    assert (caught.value.fields["first_seq"], caught.value.fields["last_seq"]) == (21, 60)


def test_two_open_lines_need_a_choice_and_unknown_names_are_errors():
    world = restored_copy()
    with pytest.raises(FencedError) as fenced:
        backup.analyze(world.url)
    assert fenced.value.kind == "two_lines"
    for generation in ("f" * 16, "nonsense"):
        with pytest.raises(NotFoundError) as caught:
            backup.analyze(world.url, generation=generation)
        assert caught.value.kind == "no_generation"
    with pytest.raises(NotFoundError):
        backup.analyze("memory://empty/name")
    with pytest.raises(InvalidError):
        backup.analyze(world.url, generation=G1, seq=3, at=DAY_0)


def test_a_damaged_index_is_planned_around_and_reported():
    world = memory_world()
    log = writes(60)
    world.line(G1, log, [30])
    duplicate = world.segment(G1, 31, 60)
    world.publish()
    damaged = min((e for e in world.segments if e.first_seq == 31), key=lambda e: (e.index_bytes, e.key))
    world.flip(damaged.key, -30)
    done = backup.analyze(world.url, seq=45)
    assert done.seq == 45
    assert done.left_out == (damaged.key,)
    assert done.found.path[-1].segment.key != damaged.key
    assert duplicate.key in (damaged.key, done.found.path[-1].segment.key)


# -- the command


def test_the_command_tells_figures_and_the_path(tmp_path):
    world = merged_world(file_world(tmp_path))
    text = ok("analyze", world.url).text
    assert f"generation {G1} up to seq 60: 7 segments" in text
    assert "6 of level 0, 1 of level 1" in text
    assert f"shortest restore path to seq 60 ({format_time(DAY_0 + 60_000)}): 3 segments" in text
    assert "not on it: 4 segments" in text
    assert len([line for line in text.splitlines() if line.endswith(".seg")]) == 3
    listed = ok("analyze", world.url, "--list-all").text.splitlines()
    rows = [line.split() for line in listed if line.endswith(".seg")]
    assert [row[5] for row in rows] == ["no", "yes", "no", "no", "no", "yes", "yes"]


def test_the_command_prints_json(tmp_path):
    world = merged_world(file_world(tmp_path))
    told = ok("analyze", world.url, "--seq", 25, "--json").json
    assert told["target"] == {"seq": 25, "time": format_time(DAY_0 + 25_000), "generation": G1}
    assert told["shortest_restore_path"]["segments"] == 3
    assert told["line"]["segments"] == 7
    assert "segments" not in told
    assert len(ok("analyze", world.url, "--list-all", "--json").json["segments"]) == 7
    assert failed("analyze", world.url, "--seq", 61)["kind"] == "unreachable"


def test_a_long_path_is_cut_in_the_text_and_the_rest_counted(tmp_path):
    world = file_world(tmp_path)
    world.line(G1, writes(60), list(range(2, 60, 2)))
    world.publish()
    lines = ok("analyze", world.url).text.splitlines()
    assert len([line for line in lines if line.endswith(".seg")]) == 20
    assert "and 10 before these (--list-all)" in lines
