"""Pieces as parts: sizes that S3 takes, bytes in their order, whatever the pieces are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compactor.store.base import CopyRange, Piece
from compactor.store.parts import (
    COPY_BYTES_MIN,
    PART_BYTES_MAX,
    PART_BYTES_MIN,
    PARTS_MAX,
    Part,
    PartSizes,
    PartStream,
    bytes_of,
    evenly,
    opening,
    part_bytes_for,
    size_of,
)
from ourdb.units import GIB, MIB

TINY = PartSizes(least=5, gathered=8, copy_min=16, copy_max=50)
BYTES = memoryview(bytes(64 * MIB))  # slices of it cost nothing


def of(length: int, start: int = 0) -> CopyRange:
    return CopyRange("segments/a", '"e"', start, length)


def plain(size: int) -> memoryview:
    return BYTES[:size]


def in_parts(pieces: Sequence[Piece], sizes: PartSizes = TINY, *, copies: bool = True) -> list[Part]:
    return list(PartStream(sizes, copies=copies).parts(pieces))


def shape(parts: Sequence[Part]) -> list[int | str]:
    """Sizes; those of copied parts as text."""
    return [f"{part.length}" if isinstance(part, CopyRange) else bytes_of(part) for part in parts]


def content(parts: Sequence[Part], source: bytes) -> bytes:
    """The bytes of the parts, whose ranges are all of `source`."""

    def of_piece(piece: Piece) -> bytes:
        if isinstance(piece, CopyRange):
            return source[piece.start : piece.start + piece.length]
        return bytes(piece)

    return b"".join(
        of_piece(piece) for part in parts for piece in (part if isinstance(part, tuple) else (part,))
    )


class TestShapes:
    @pytest.mark.parametrize(
        ("pieces", "shaped"),
        [
            ([], []),
            ([b""], []),
            ([b"abc", b"", b"de"], [5]),
            ([b"x" * 20], [8, 8, 4]),
            ([of(15)], [8, 7]),
            ([of(16)], ["16"]),
            ([of(16), b"end"], ["16", 3]),
            ([b"x" * 6, of(16)], [6, "16"]),  # long enough for a part of its own
            ([b"x" * 3, of(16)], [5, "14"]),
            ([b"x" * 10, of(16)], [10, "16"]),  # rather than 8 and 2, which had to be filled up
            ([b"x" * 12, of(16)], [12, "16"]),
            ([b"x" * 13, of(16)], [8, 5, "16"]),
            ([b"x" * 3, of(15), b"y"], [8, 8, 3]),
            ([of(50)], ["50"]),
            ([of(51)], ["25", "26"]),
            ([of(101)], ["33", "34", "34"]),
            ([of(16), of(3), of(16), of(2)], ["16", 5, "14", 2]),
        ],
    )
    def test_pieces_become_these_parts(self, pieces: list[Piece], shaped: list[int | str]) -> None:
        assert shape(in_parts(pieces)) == shaped

    def test_store_that_does_not_copy_gathers_everything(self) -> None:
        assert shape(in_parts([b"x" * 3, of(16), b"y"], copies=False)) == [8, 8, 4]

    def test_range_that_is_refused_is_gathered_and_so_is_all_behind_it(self) -> None:
        stream = PartStream(TINY)
        parts = []
        for part in stream.parts([b"x" * 3, of(101), of(20), b"y"]):
            if isinstance(part, CopyRange):
                stream.refuse()
            else:
                parts.append(part)
        assert shape(parts) == [5, *[8] * 15]  # 3 bytes and 2 of the range; 99, 20 and 1

    def test_large_object_has_no_more_parts_than_there_may_be(self) -> None:
        for size in (50 * GIB, 500 * GIB, 5 * 1024 * GIB):
            sizes = PartSizes.of(size, 8 * MIB)
            assert -(-size // sizes.least) <= PARTS_MAX
            assert sizes.least <= sizes.gathered <= PART_BYTES_MAX
            assert 2 * sizes.least <= sizes.copy_min <= sizes.copy_max <= PART_BYTES_MAX

    def test_worst_order_of_pieces_stays_within_10000_parts(self) -> None:
        size = 4 * 1024 * GIB
        sizes = PartSizes.of(size, 8 * MIB)
        pair = sizes.copy_min + sizes.least
        pieces = [piece for _ in range(size // pair) for piece in (of(sizes.least), of(sizes.copy_min))]
        parts = in_parts(pieces, sizes)
        assert len(parts) <= PARTS_MAX
        assert min(map(bytes_of, parts[:-1])) >= PART_BYTES_MIN

    @pytest.mark.parametrize(("hint", "size"), [(None, 8), (80_000 * MIB, 8), (80_001 * MIB, 9)])
    def test_part_size_grows_with_the_hint(self, hint: int | None, size: int) -> None:
        assert part_bytes_for(hint, 8 * MIB) == size * MIB


class TestOpening:
    def open(self, *pieces: Piece, put_bytes_max: int = 20) -> tuple[list[int | str] | None, list[int | str]]:
        whole, first = opening(PartStream(TINY).parts(pieces), put_bytes_max)
        return whole and shape([whole]), shape(first)

    def test_what_fits_one_put_is_given_as_one(self) -> None:
        assert self.open(b"x" * 20) == ([20], [])
        assert opening(iter(()), 20) == ((), [])

    def test_more_than_one_put_is_parts(self) -> None:
        assert self.open(b"x" * 21) == (None, [8, 8, 5])

    def test_copied_range_is_parts_whatever_its_size(self) -> None:
        assert self.open(b"x" * 2, of(16), put_bytes_max=100) == (None, [5, "13"])

    def test_nothing_behind_the_first_parts_is_asked_for(self) -> None:
        def pieces() -> Iterator[Piece]:
            yield of(16)
            raise AssertionError("asked for more")

        assert opening(PartStream(TINY).parts(pieces()), 20) == (None, [of(16)])


@st.composite
def tiny_pieces(draw: st.DrawFn) -> list[Piece]:
    """Pieces of few bytes, whose ranges are of an object of 400."""
    pieces: list[Piece] = []
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.booleans()):
            pieces.append(draw(st.binary(max_size=30)))
        else:
            length = draw(st.integers(0, 200))
            pieces.append(of(length, draw(st.integers(0, 400 - length))))
    return pieces


SOURCE = bytes(number * 7 % 251 for number in range(400))


class TestWhateverThePieces:
    @settings(max_examples=300)
    @given(tiny_pieces(), st.integers(-1, 6))
    def test_bytes_are_the_same_and_sizes_are_allowed(self, pieces: list[Piece], refused: int) -> None:
        """refused: which copy is the first to be refused, -1: none."""
        stream = PartStream(TINY)
        parts: list[Part] = []
        copied = 0
        for part in stream.parts(pieces):
            if isinstance(part, CopyRange) and copied == refused:
                stream.refuse()
                continue
            copied += isinstance(part, CopyRange)
            parts.append(part)
        assert content(parts, SOURCE) == content([tuple(pieces)], SOURCE)
        assert all(bytes_of(part) >= TINY.least for part in parts[:-1])
        most = TINY.gathered + TINY.least
        for part in parts:
            assert 0 < bytes_of(part) <= (TINY.copy_max if isinstance(part, CopyRange) else most)

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.one_of(
                st.integers(0, 20 * MIB).map(plain),
                st.integers(0, 40 * MIB).map(of),
                st.integers(COPY_BYTES_MIN, 20 * GIB).map(of),
            ),
            max_size=12,
        ),
        st.sampled_from([5 * MIB, 8 * MIB, 100 * MIB]),
    )
    def test_parts_have_the_sizes_that_s3_takes(self, pieces: list[Piece], part_bytes: int) -> None:
        size = sum(map(size_of, pieces))
        parts = in_parts(pieces, PartSizes.of(size, part_bytes))
        assert sum(map(bytes_of, parts)) == size
        assert len(parts) <= PARTS_MAX
        for part in parts[:-1]:
            assert PART_BYTES_MIN <= bytes_of(part) <= PART_BYTES_MAX
        fetched = sum(size_of(piece) for part in parts if isinstance(part, tuple) for piece in part)
        long = [piece for piece in pieces if isinstance(piece, CopyRange) and piece.length >= COPY_BYTES_MIN]
        copied = sum(piece.length for piece in long)
        assert fetched <= size - copied + len(long) * PART_BYTES_MIN

    @given(st.integers(1, 50 * GIB), st.integers(50 * MIB, 5 * GIB))
    def test_cuts_of_a_range_are_even_and_as_few_as_can_be(self, length: int, bytes_max: int) -> None:
        cuts = list(evenly(of(length, 7), bytes_max))
        assert len(cuts) == -(-length // bytes_max)
        assert max(one.length for one in cuts) - min(one.length for one in cuts) <= 1
        ends = [7, *(one.start + one.length for one in cuts)]
        assert [one.start for one in cuts] == ends[:-1]
        assert ends[-1] == 7 + length
