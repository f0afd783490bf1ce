"""How an object is put together: pieces in, parts of a multipart upload out. Nothing is read or sent here.

Bytes and short ranges are gathered; a long range of another object is copied by the store. Every part
but the last is long enough for S3, and no more than 10,000 are needed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

from compactor.store.base import CopyRange, Piece
from ourdb.units import GIB, MIB

PARTS_MAX = 10_000
PART_BYTES_MIN = 5 * MIB  # of each but the last
PART_BYTES_MAX = 5 * GIB
COPY_BYTES_MIN = 16 * MIB  # of a range that the store copies: a shorter one costs more requests than it saves
COPY_BYTES_MAX = 256 * MIB  # in one request, which a slow disk too has to answer within read_seconds
FETCH_BYTES_MAX = 4 * MIB  # of a range in one request

Gathered = tuple[Piece, ...]  # bytes, and ranges that are to be fetched, sent together
Part = CopyRange | Gathered


@dataclass(frozen=True, kw_only=True)
class PartSizes:
    """Bytes. least: of each part but the last. gathered: of one that is sent, at least `least`, and up to
    `least` more before a range that is copied. copy_min, copy_max: of a range that is copied, at least twice
    `least`: what its start gives to fill the part before it leaves enough."""

    least: int = PART_BYTES_MIN
    gathered: int = 8 * MIB
    copy_min: int = COPY_BYTES_MIN
    copy_max: int = COPY_BYTES_MAX

    @classmethod
    def of(cls, size_hint: int, part_bytes: int) -> PartSizes:
        """For an object of at most `size_hint` bytes, with parts of part_bytes where that is enough."""
        least = max(PART_BYTES_MIN, -(-size_hint // (PARTS_MAX - 1)))
        return cls(
            least=least,
            gathered=max(least, part_bytes_for(size_hint, part_bytes)),
            copy_min=max(COPY_BYTES_MIN, 2 * least),
            copy_max=min(PART_BYTES_MAX, max(COPY_BYTES_MAX, 2 * least)),
        )


class PartStream:
    """Turns pieces into parts. copies: whether the store copies ranges; else they are gathered too."""

    def __init__(self, sizes: PartSizes, *, copies: bool = True) -> None:
        self.copies = copies
        self._sizes = sizes
        self._waiting: list[Piece] = []
        self._waiting_bytes = 0

    def refuse(self) -> None:
        """The store cannot copy: the range that was given last is given anew, gathered, as all others."""
        self.copies = False

    def parts(self, pieces: Iterable[Piece]) -> Iterator[Part]:
        """The pieces as parts, one by one; whatever is refused must be so before the next is asked for."""
        for piece in pieces:
            if isinstance(piece, CopyRange) and self.copies and piece.length >= self._sizes.copy_min:
                yield from self._copied(piece)
            else:
                yield from self._gathered(piece)
        while self._waiting_bytes > self._sizes.gathered:
            yield self._take(self._sizes.gathered)
        yield from self._flushed()

    def _copied(self, whole: CopyRange) -> Iterator[Part]:
        missing = max(0, self._sizes.least - self._waiting_bytes) if self._waiting else 0
        yield from self._gathered(whole.cut(0, missing))
        yield from self._flushed()
        for part in evenly(whole.cut(missing, whole.length), self._sizes.copy_max):
            if self.copies:
                yield part
            if not self.copies:  # refused just now, or before
                yield from self._gathered(part)

    def _gathered(self, piece: Piece) -> Iterator[Part]:
        """A part is let go of when what waits behind it is long enough for another: so a range that follows
        is seldom fetched in part, to fill one up."""
        start, end = 0, size_of(piece)
        full = self._sizes.gathered + self._sizes.least
        while start < end:
            upto = min(end, start + full - self._waiting_bytes)
            self._waiting.append(_cut(piece, start, upto))
            self._waiting_bytes += upto - start
            start = upto
            if self._waiting_bytes == full:
                yield self._take(self._sizes.gathered)

    def _take(self, size: int) -> Gathered:
        """The first `size` bytes of what waits, which are there."""
        ends = list(accumulate(map(size_of, self._waiting)))
        last = bisect_left(ends, size)
        cut, whole = size - ends[last], self._waiting[last]  # the last piece taken may go on: cut is below 0
        head, rest = _cut(whole, 0, size_of(whole) + cut), _cut(whole, size_of(whole) + cut, size_of(whole))
        taken = (*self._waiting[:last], head)
        self._waiting = [*([rest] if cut else []), *self._waiting[last + 1 :]]
        self._waiting_bytes -= size
        return taken

    def _flushed(self) -> Iterator[Part]:
        if self._waiting:
            part = tuple(self._waiting)
            self._waiting, self._waiting_bytes = [], 0
            yield part


def opening(parts: Iterator[Part], put_bytes_max: int) -> tuple[Gathered | None, list[Part]]:
    """All of it, if it is to go as one put; else None and the first parts."""
    gathered: list[Gathered] = []
    size = 0
    for part in parts:
        if isinstance(part, CopyRange):
            return None, [*gathered, part]
        gathered.append(part)
        size += bytes_of(part)
        if size > put_bytes_max:
            return None, [*gathered]
    return tuple(chain.from_iterable(gathered)), []


def part_bytes_for(size_hint: int | None, part_bytes: int) -> int:
    """Bytes of a part, so that no more than 10,000 are needed; all but the last have the same size."""
    least = -(-(size_hint or 0) // PARTS_MAX)
    return max(part_bytes, -(-least // MIB) * MIB)


def bytes_of(part: Part) -> int:
    return part.length if isinstance(part, CopyRange) else sum(map(size_of, part))


def size_of(piece: Piece) -> int:
    return piece.length if isinstance(piece, CopyRange) else len(piece)


def _cut(piece: Piece, start: int, end: int) -> Piece:
    """From offset `start` up to `end`; bytes are not copied."""
    if isinstance(piece, CopyRange):
        return piece.cut(start, end)
    return piece if (start, end) == (0, len(piece)) else memoryview(piece)[start:end]


def evenly(whole: CopyRange, bytes_max: int) -> Iterator[CopyRange]:
    """The range in as few ranges as can be, of sizes that differ by one byte at most."""
    count = -(-whole.length // bytes_max)
    bounds = [whole.length * number // count for number in range(count)] + [whole.length]
    for start, end in pairwise(bounds):
        yield whole.cut(start, end)
