"""Values of records that were found in an index: blocks fetched by ranged reads, several at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import itemgetter

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from backup.reading.id_search import IN_FLIGHT_MAX, Hits
from backup.reading.indexes import FINDING, READING, Asked, Indexes, RecentlyUsed, ahead
from backup.restoring.download import IN_FLIGHT_BYTES_MAX, RAW_BYTES_MAX
from backup.restoring.layout import located
from compactor.fetch import STORED_BYTES_MAX
from compactor.path import Step
from ourdb.errors import DamageError
from ourdb.record import RECORD_HEADER_BYTES, Buffer, decode_record, gather_headers
from ourdb.segment.block import BLOCK_RAW_MAX
from ourdb.segment.page import Page
from ourdb.segment.reader import SegmentReader
from ourdb.units import KIB, MIB

GAP_BYTES_MAX = 256 * KIB  # of blocks that are not wanted: fetching them costs less than one more request
BLOCKS_BYTES_MAX = 16 * MIB  # raw, in memory: ids that follow each other often lie together
_without_header = itemgetter(slice(RECORD_HEADER_BYTES - 4, None))  # of what a record's checksum covers


@dataclass(frozen=True, eq=False)
class _Range:
    """Blocks of a page that one request fetches, and what is wanted of them. rows, ids, seqs: of the records;
    blocks: of each the number of its block; wanted: these numbers, each once; places: of all records of the
    page within its raw blocks."""

    step: Step
    reader: SegmentReader
    page: Page
    page_number: int
    rows: npt.NDArray[np.intp]
    ids: npt.NDArray[np.uint32]
    seqs: npt.NDArray[np.uint64]
    blocks: npt.NDArray[np.intp]
    wanted: list[int]
    places: npt.NDArray[np.int64]

    @property
    def memory(self) -> int:
        """Bytes that it takes while it is read, at most."""
        offsets = self.page.block_offsets
        raw = sum(int(self.page.blocks.raw_bytes[number]) for number in self.wanted)
        return int(offsets[self.wanted[-1] + 1] - offsets[self.wanted[0]]) + 2 * raw


class ValueReader:
    """Reads records of the steps of a path. count: of requests that are on their way at a time. Raises
    NoSuchKey and DamageError (with `key`). For several threads."""

    def __init__(
        self, steps: Sequence[Step], indexes: Indexes, pool: ThreadPoolExecutor, *, count: int
    ) -> None:
        self._steps, self._indexes, self._pool, self._count = steps, indexes, pool, count
        self._blocks: RecentlyUsed[tuple[str, int, int], Buffer] = RecentlyUsed(BLOCKS_BYTES_MAX)

    def read(self, hits: Iterable[Hits]) -> Iterator[tuple[int, int, bytes]]:
        """Id, seq and value of the records, in the order of the hits; what is in memory is bounded."""
        asked: Iterator[Asked[_Range, list[bytes]]] = (
            (one, one.memory, partial(self._pool.submit, self._values, one)) for one in self._ranges(hits)
        )
        for one, values in ahead(asked, count=self._count, bytes_max=IN_FLIGHT_BYTES_MAX):
            yield from zip(one.ids.tolist(), one.seqs.tolist(), values, strict=True)

    def _ranges(self, hits: Iterable[Hits]) -> Iterator[_Range]:
        pages = ahead(self._ask_pages(hits), count=self._count, bytes_max=IN_FLIGHT_MAX)
        for (found, reader), page in pages:
            with located(self._steps[found.step]):
                yield from _split(self._steps[found.step], reader, page, found)

    def _ask_pages(self, hits: Iterable[Hits]) -> Iterator[Asked[tuple[Hits, SegmentReader], Page]]:
        readers: Iterator[Asked[Hits, SegmentReader]] = (
            (one, 0, partial(self._indexes.reader, self._steps[one.step].segment)) for one in hits if len(one)
        )
        for one, reader in ahead(readers, count=self._count, bytes_max=IN_FLIGHT_MAX):
            entry = self._steps[one.step].segment
            yield (one, reader), 0, partial(self._indexes.page, entry, reader, one.page, *FINDING, *READING)

    def _values(self, one: _Range) -> list[bytes]:
        with located(one.step):
            offsets = one.places[one.rows] - one.places[one.page.block_starts[one.blocks]]
            bounds = np.searchsorted(one.blocks, [*one.wanted, one.wanted[-1] + 1]).tolist()
            values: list[bytes] = []
            for raw, (first, end) in zip(self._raw_blocks(one), pairwise(bounds), strict=True):
                values += _values_at(raw, offsets[first:end], one.ids[first:end], one.seqs[first:end])
        return values

    def _raw_blocks(self, one: _Range) -> list[Buffer]:
        keys = [(one.step.segment.key, one.page_number, number) for number in one.wanted]
        kept = [self._blocks.get(key) for key in keys]
        found = [raw for raw in kept if raw is not None]
        if len(found) == len(keys):
            return found
        raws = one.reader.read_blocks(one.page, one.wanted[0], one.wanted[-1] + 1, one.wanted)
        if sum(map(len, raws)) <= BLOCK_RAW_MAX:
            for key, raw in zip(keys, raws, strict=True):
                self._blocks.put(key, bytes(raw), len(raw))
        return raws


def _split(step: Step, reader: SegmentReader, page: Page, found: Hits) -> Iterator[_Range]:
    """The blocks of these records, cut into ranges that are fetched by one request each."""
    sizes = page.column("length").astype(np.int64) + RECORD_HEADER_BYTES
    places = np.concatenate([[0], np.cumsum(sizes)])
    blocks = np.searchsorted(page.block_starts, found.rows, "right") - 1
    wanted = np.unique(blocks)
    for first, end in _together(page, wanted):
        begin, stop = np.searchsorted(blocks, [wanted[first], wanted[end - 1] + 1]).tolist()
        yield _Range(
            step,
            reader,
            page,
            found.page,
            found.rows[begin:stop],
            found.ids[begin:stop],
            found.seqs[begin:stop],
            blocks[begin:stop],
            wanted[first:end].tolist(),
            places,
        )


def _together(page: Page, wanted: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Ranges of the wanted blocks that are near enough, and small enough together."""
    begins, ends = page.block_offsets[wanted], page.block_offsets[wanted + 1]
    raw = np.concatenate([[0], np.cumsum(page.blocks.raw_bytes[wanted], dtype=np.int64)])
    first = 0
    for at in range(1, len(wanted) + 1):
        if (
            at == len(wanted)
            or begins[at] - ends[at - 1] > GAP_BYTES_MAX
            or ends[at] - begins[first] > STORED_BYTES_MAX
            or raw[at + 1] - raw[first] > RAW_BYTES_MAX
        ):
            yield first, at
            first = at


def _values_at(
    raw: Buffer, offsets: npt.NDArray[np.int64], ids: npt.NDArray[np.uint32], seqs: npt.NDArray[np.uint64]
) -> list[bytes]:
    """The values of the records that begin there, each compared with its checksum, id and seq."""
    headers = gather_headers(raw, offsets)
    ends = offsets + RECORD_HEADER_BYTES + headers["length"]
    bodies = list(map(memoryview(raw).__getitem__, map(slice, (offsets + 4).tolist(), ends.tolist())))
    good = np.fromiter(map(crc32c, bodies), np.uint32, len(bodies)) == headers["crc"]
    good &= (headers["id"] == ids) & (headers["seq"] == seqs)
    if not good.all():
        at = int(np.argmin(good))
        decode_record(raw, int(offsets[at]))
        raise DamageError(f"another record lies where the index has seq {seqs[at]}", seq=int(seqs[at]))
    return list(map(bytes, map(_without_header, bodies)))
