"""Values of records that were found in an index: blocks fetched by ranged reads, several at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from backup.download import IN_FLIGHT_BYTES_MAX, RAW_BYTES_MAX
from backup.id_search import IN_FLIGHT_MAX, Hits
from backup.indexes import FINDING, READING, Asked, Indexes, RecentlyUsed, ahead
from backup.layout import located
from compactor.fetch import STORED_BYTES_MAX
from compactor.path import Step
from ourdb.errors import DamageError
from ourdb.record import RECORD_HEADER_BYTES, Buffer, Record, decode_record
from ourdb.segment.block import BLOCK_RAW_MAX
from ourdb.segment.page import Page
from ourdb.segment.reader import SegmentReader
from ourdb.units import KIB, MIB

GAP_BYTES_MAX = 256 * KIB  # of blocks that are not wanted: fetching them costs less than one more request
BLOCKS_BYTES_MAX = 16 * MIB  # raw, in memory: ids that follow each other often lie together


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

    def read(self, hits: Iterable[Hits]) -> Iterator[Record]:
        """The records in the order of the hits. What is in memory of them is bounded."""
        asked: Iterator[Asked[None, list[Record]]] = (
            (None, one.memory, partial(self._pool.submit, self._records, one)) for one in self._ranges(hits)
        )
        for _, records in ahead(asked, count=self._count, bytes_max=IN_FLIGHT_BYTES_MAX):
            yield from records

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

    def _records(self, one: _Range) -> list[Record]:
        with located(one.step):
            raw = dict(zip(one.wanted, self._raw_blocks(one), strict=True))
            starts = one.places[one.page.block_starts[one.blocks]]
            offsets = (one.places[one.rows] - starts).tolist()
            records = [
                decode_record(raw[block], offset)
                for block, offset in zip(one.blocks.tolist(), offsets, strict=True)
            ]
            for record, id_, seq in zip(records, one.ids.tolist(), one.seqs.tolist(), strict=True):
                if (record.id, record.seq) != (id_, seq):
                    raise DamageError(f"record {record.seq} lies where the index has {seq}", seq=seq)
        return records

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
