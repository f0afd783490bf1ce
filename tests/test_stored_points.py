"""Where a line may leave what a store holds: asked of the head, and of the index of one segment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backup.common import StoredPoints
from compactor.generations import Parent
from tests.worlds import UUID, World, memory_world, writes

G1 = "1" * 16
CONDENSED = range(14, 25)  # seqs of our log inside a file that is shipped whole


def cut_at(seq: int) -> int:
    return CONDENSED[0] - 1 if seq in CONDENSED else seq


@pytest.fixture
def world() -> World:
    """One line to 30, in segments of 1..15, 16..23 and 24..30."""
    made = memory_world()
    made.line(G1, writes(30), [15, 23])
    made.publish()
    return made


def points(world: World, **options: object) -> StoredPoints:
    chains = world.logs[G1].chains
    found = StoredPoints(world.view, world.store, UUID, lambda seq: chains[seq])
    return replace(found, **options)  # type: ignore[arg-type]


def test_newest_common_point_is_one_behind_which_our_log_can_be_shipped(world: World) -> None:
    chains = world.logs[G1].chains
    assert points(world).newest_common(G1, 18) == Parent(G1, 18, chains[18])
    assert points(world, cut_at=cut_at).newest_common(G1, 18) == Parent(G1, 13, chains[13])
    assert points(world, cut_at=cut_at).newest_common(G1, 26) == Parent(G1, 26, chains[26])
    assert points(world, cut_at=lambda seq: 0).newest_common(G1, 18) is None


def test_point_behind_which_our_log_cannot_be_shipped_is_not_offered(world: World) -> None:
    chains = world.logs[G1].chains
    for seq, offered in ((13, True), (20, False), (25, True)):
        assert points(world).offers(Parent(G1, seq, chains[seq]))
        assert points(world, cut_at=cut_at).offers(Parent(G1, seq, chains[seq])) == offered


def test_what_was_cut_off_is_not_restored_though_its_segment_is_there(world: World) -> None:
    world.generations[G1] = replace(world.generations[G1], kept_to=20)
    world.publish()
    assert [points(world).restores(G1, seq) for seq in (15, 20, 21)] == [True, True, False]
