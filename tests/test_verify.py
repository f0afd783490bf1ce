"""Verify: every damage is named, and nothing that is none."""

from __future__ import annotations

import json

import pytest

from backup.verify import verify
from compactor.generations import Parent, Pin
from compactor.head import Known
from ourdb.errors import DamageError, NotFoundError
from ourdb.names import probe_key
from tests.worlds import DAY_0, HOUR, World, Write, memory_world, writes

G1, G2 = "1" * 16, "2" * 16


@pytest.fixture(autouse=True)
def meta_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path_factory.mktemp("meta") / "meta.db"))


@pytest.fixture
def world() -> World:
    world = memory_world()
    first = writes(60)
    second = first.copy(40)
    for n in range(10):
        second.append(Write(n, b"second", DAY_0 + HOUR + n * 1000))
    world.line(G1, first, [20, 40])
    world.line(G2, second, parent=(G1, 40), takes_over=G1)
    world.publish()
    return world


def kinds(world: World, *, data: bool = False) -> list[tuple[str, str]]:
    return [(problem.kind, problem.key) for problem in verify(world.url, data=data).problems]


@pytest.mark.parametrize("data", [False, True])
def test_a_whole_store_has_no_problem(world, data):
    report = verify(world.url, data=data)
    assert report.ok
    assert (report.generations, report.segments_checked, report.generation) == (2, 4, G2)
    assert report.bytes_checked == sum(segment.bytes for segment in world.segments)
    assert (report.foreign, report.unnamed) == ((), 0)
    told = report.as_json()
    assert json.loads(json.dumps(told)) == told


def test_structure_needs_one_get_and_one_listing(world):
    sent = verify(world.url).requests
    assert (sent["GET"], sent["LIST"], sum(sent.values())) == (1, 1, 2)


def test_a_missing_object_is_named_with_its_range(world):
    key = world.segments[1].key
    world.change_object(key, None)
    [problem] = verify(world.url).problems
    assert (problem.kind, problem.key, problem.first_seq, problem.last_seq) == ("missing", key, 21, 40)


def test_a_size_that_differs_is_found_without_reading(world):
    key = world.segments[1].key
    world.change_object(key, lambda data: data[:-1])
    assert kinds(world) == [("wrong_size", key)]


@pytest.mark.parametrize("offset", [3, 100, 250, -1, -30, -250])
def test_a_flipped_bit_is_found_by_reading_everything(world, offset):
    key = world.segments[2].key
    world.flip(key, offset)
    assert kinds(world) == []
    [problem] = verify(world.url, data=True).problems
    assert (problem.kind, problem.key, problem.first_seq, problem.last_seq) == ("damaged", key, 41, 60)


def test_flipped_bytes_all_over_a_segment_are_found():
    world = memory_world()
    world.line(G1, writes(3))
    world.publish()
    [segment] = world.segments
    whole = world.store.get(segment.key).data
    for offset in range(0, len(whole), 11):  # each byte has its turn in the tests of the format
        altered = whole[:offset] + bytes([whole[offset] ^ 0x40]) + whole[offset + 1 :]
        world.change_object(segment.key, lambda _, altered=altered: altered)
        assert kinds(world, data=True) == [("damaged", segment.key)], offset


def test_swapped_objects_are_found(world):
    other = world.store.get(world.segments[0].key).data
    key = world.segments[1].key
    world.change_object(key, lambda data: other[: len(data)].rjust(len(data), b"\0"))
    assert kinds(world, data=True) == [("damaged", key)]


def test_a_generation_without_a_path_to_its_end_says_which_range_is_lost(world):
    del world.segments[1]
    world.publish()
    found = verify(world.url).problems
    assert {(p.kind, p.key) for p in found} == {("chain", "head")}
    assert (found[0].first_seq, found[0].last_seq) == (21, 60)


def test_a_generation_that_left_its_parent_with_another_chain_is_found(world):
    parent = world.generations[G2].parent
    assert parent is not None
    wrong = Parent(parent.generation, parent.seq, parent.chain ^ 1)
    world.generations[G2] = type(world.generations[G2])(**{**vars(world.generations[G2]), "parent": wrong})
    world.publish()
    assert ("chain", "head") in kinds(world)


def test_an_end_of_another_chain_is_found(world):
    world.generations[G2] = type(world.generations[G2])(**{**vars(world.generations[G2]), "chain": 1})
    world.publish()
    assert kinds(world) == [("chain", world.segments[3].key)]


def test_a_pin_and_a_branch_point_that_a_merge_gave_up_are_found(world):
    world.segments[:] = [world.segment(G1, 1, 60, [(60, 60)], level=1), world.segments[3]]
    world.pins = (Pin(name="monday", generation=G1, seq=30, time=DAY_0),)
    world.publish()
    found = verify(world.url).problems
    assert {(p.kind, p.key, p.first_seq) for p in found} == {("chain", "head", 30), ("chain", "head", 40)}


def test_foreign_keys_are_listed_and_no_problem(world):
    world.store.put_if_absent("notes.txt", b"mine")
    world.store.put_if_absent("segments/readme", b"mine")
    report = verify(world.url)
    assert report.ok
    assert report.foreign == ("notes.txt", "segments/readme")


def test_uploads_that_nobody_names_are_counted_and_no_problem(world):
    world.segment(G1, 1, 20)
    world.segments.pop()
    world.store.put_if_absent(probe_key(7), b"of a probe that was killed")
    report = verify(world.url, data=True)
    assert report.ok
    assert (report.foreign, report.unnamed) == ((), 2)


def test_what_a_newer_head_names_no_more_is_no_problem(world, monkeypatch):
    """Rule 7: a merge and a prune came between our look at the head and the listing."""
    from compactor.store.memory import MemoryStore

    real = MemoryStore.list

    def racing(self: MemoryStore, prefix: str = "", start_after: str = "") -> object:
        monkeypatch.setattr(MemoryStore, "list", real)
        merged = world.segment(G1, 1, 40, [(40, 40)], level=1)
        old = world.segments[:2]
        world.segments[:] = [merged, *world.segments[2:4]]
        world.publish()
        assert not world.store.delete_many([segment.key for segment in old])
        return real(self, prefix, start_after)

    monkeypatch.setattr(MemoryStore, "list", racing)
    assert verify(world.url).ok


def test_a_damaged_head_is_an_error(world):
    world.flip("head", 20)
    with pytest.raises(DamageError) as caught:
        verify(world.url)
    assert caught.value.kind == "store_damaged"


def test_a_store_that_went_back_is_an_error(world):
    old = world.store.get("head").data
    world.revision, world.kept = 2, Known(2, "2" * 16)
    world.publish()
    verify(world.url)
    world.replace_head(old)
    with pytest.raises(DamageError) as caught:
        verify(world.url)
    assert caught.value.kind == "store_lost_data"


def test_an_unknown_namespace_is_not_found():
    with pytest.raises(NotFoundError):
        verify("memory://nowhere/none")


def test_progress_is_told_while_data_is_read(world):
    seen: list[tuple[int, int, str]] = []
    verify(world.url, data=True, progress=lambda *said: seen.append(said))
    assert seen[-1][0] >= sum(segment.bytes for segment in world.segments)
    assert {what for _, _, what in seen} == {"verifying"}
