"""Which ranges of the sources a merge copies, fetches, or leaves alone."""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compactor.merging.extents
from compactor.merging.extents import Extent, Fragment, find_fragments, join_fragments
from compactor.merging.records import Blocks
from ourdb.segment.block import BlockTable
from ourdb.segment.header import HEADER_BYTES

Piece = tuple[Blocks, np.ndarray[tuple[int], np.dtype[np.bool_]]]
Described = list[tuple[int, int, int, int]]  # source, stored bytes, records, records that live


def pieces_of(blocks: Described, size: int) -> list[Piece]:
    """Blocks one behind the other in their sources, in pieces of `size` blocks."""
    places: dict[int, int] = {}
    pieces = []
    for at in range(0, len(blocks), size):
        here = blocks[at : at + size]
        offsets = []
        for source, stored, _, _ in here:
            offsets.append(places.get(source, HEADER_BYTES))
            places[source] = offsets[-1] + stored
        count = len(here)
        table = BlockTable(
            codec=np.ones(count, np.uint8),
            encryption=np.zeros(count, np.uint8),
            stored_bytes=np.array([stored for _, stored, _, _ in here], np.uint32),
            raw_bytes=np.array([2 * stored for _, stored, _, _ in here], np.uint32),
            records=np.array([records for _, _, records, _ in here], np.uint32),
            crc=np.zeros(count, np.uint32),
        )
        sources = np.array([source for source, _, _, _ in here], np.uint32)
        live = [n < lives for _, _, records, lives in here for n in range(records)]
        pieces.append((Blocks(table, sources, np.array(offsets, np.int64)), np.array(live, np.bool_)))
    return pieces


def extents_of(blocks: Described, copy_min: int, size: int = 100) -> list[Extent]:
    fragments = [
        fragment
        for number, (some, live) in enumerate(pieces_of(blocks, size))
        for fragment in find_fragments(number, some, live)
    ]
    return list(join_fragments(fragments, copy_min))


def shape(extents: list[Extent]) -> list[tuple[str, int, int, int]]:
    return [
        ("copy" if extent.copied else "read", extent.source, extent.offset - HEADER_BYTES, extent.length)
        for extent in extents
    ]


WHOLE, MIXED, DEAD = (3, 3), (3, 1), (3, 0)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_touching_blocks_become_one_range_of_their_source(size: int) -> None:
    blocks = [
        (0, 10, *WHOLE),
        (0, 10, *WHOLE),
        (0, 10, *DEAD),
        (0, 10, *MIXED),
        (0, 10, *WHOLE),
        (1, 20, *MIXED),
        (1, 30, *DEAD),
        (2, 40, *WHOLE),
    ]
    assert shape(extents_of(blocks, 1000, size)) == [
        ("read", 0, 0, 20),
        ("read", 0, 30, 20),
        ("read", 1, 0, 20),
        ("read", 2, 0, 40),
    ]
    assert shape(extents_of(blocks, 20, size)) == [
        ("copy", 0, 0, 20),
        ("read", 0, 30, 20),
        ("read", 1, 0, 20),
        ("copy", 2, 0, 40),
    ]
    assert [extent.decoded for extent in extents_of(blocks, 1000, size)] == [0, 10, 20, 0]


def test_a_long_run_beside_mixed_blocks_is_copied_alone() -> None:
    blocks = [(0, 10, *MIXED), (0, 10, *WHOLE), (0, 10, *MIXED), (0, 60, *WHOLE), (0, 10, *MIXED)]
    assert shape(extents_of(blocks, 50)) == [("read", 0, 0, 30), ("copy", 0, 30, 60), ("read", 0, 90, 10)]


def test_nothing_alive_needs_nothing() -> None:
    assert extents_of([(0, 10, *DEAD), (1, 10, *DEAD)], 1) == []


def test_kept_share_of_mixed_blocks_is_foreseen() -> None:
    (extent,) = extents_of([(0, 30, 3, 1), (0, 10, 2, 2)], 1000)
    assert sum(fragment.after for fragment in extent.fragments) == 10 + 10


@given(
    blocks=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([5, 50, 300]),
            st.integers(1, 3),
            st.sampled_from([0, 1, 3]),
        ),
        max_size=40,
    ),
    copy_min=st.sampled_from([1, 60, 400, 1 << 40]),
    size=st.integers(1, 9),
)
@settings(max_examples=150, deadline=None)
def test_every_block_that_lives_is_in_one_range_in_order(blocks: Described, copy_min: int, size: int) -> None:
    blocks = sorted((source, stored, n, min(n, lives)) for source, stored, n, lives in blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compactor.merging.extents, "READ_BYTES", 120)
        patch.setattr(compactor.merging.extents, "RAW_BYTES", 160)
        extents = extents_of(blocks, copy_min, size)
    found: list[tuple[int, bool]] = []
    for extent in extents:
        check_extent(extent, copy_min)
        for fragment in extent.fragments:
            numbers = range(fragment.piece * size + fragment.first, fragment.piece * size + fragment.end)
            assert fragment.length == sum(blocks[number][1] for number in numbers)
            found += [(number, fragment.mixed) for number in numbers]
    alive = [(n, lives < records) for n, (_, _, records, lives) in enumerate(blocks) if lives]
    assert found == alive
    copied = {number for extent in extents if extent.copied for number in numbers_of(extent, size)}
    for run in whole_runs(blocks):
        long = sum(blocks[number][1] for number in run) >= copy_min
        assert copied.issuperset(run) if long else not copied.intersection(run)


def check_extent(extent: Extent, copy_min: int) -> None:
    assert all(one.touches(two) for one, two in pairwise(extent.fragments))
    if extent.copied:
        assert extent.length >= copy_min
        assert not extent.decoded
        return
    many = sum(fragment.end - fragment.first for fragment in extent.fragments) > 1
    assert extent.length <= 120 or not many
    assert extent.decoded_raw <= 160 or not many


def numbers_of(extent: Extent, size: int) -> list[int]:
    def of(fragment: Fragment) -> range:
        return range(fragment.piece * size + fragment.first, fragment.piece * size + fragment.end)

    return [number for fragment in extent.fragments for number in of(fragment)]


def whole_runs(blocks: Described) -> list[list[int]]:
    """Numbers of whole blocks that touch."""
    runs: list[list[int]] = []
    for (_, whole), group in groupby(
        enumerate(blocks), key=lambda item: (item[1][0], item[1][2] == item[1][3])
    ):
        if whole:
            runs.append([number for number, _ in group])
    return runs
