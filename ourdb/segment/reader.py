"""Reading a segment: one read of its tail, then only what is asked for (docs/format.md#footer)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from crc32c import crc32c

from ourdb.errors import DamageError
from ourdb.record import SEQ_MAX, Buffer
from ourdb.segment.block import decode_block, verify_records
from ourdb.segment.claims import ClaimChecker
from ourdb.segment.columns import Columns
from ourdb.segment.footer import FOOTER_BYTES, RUN_BYTES, Footer, decode_fields, decode_footer, decode_runs
from ourdb.segment.header import HEADER_BYTES, Header, header_crc
from ourdb.segment.index import PAGE_ENTRY_BYTES, Array, PageEntry, decode_directory
from ourdb.segment.page import Page
from ourdb.segment.source import Fetch, Source
from ourdb.segment.summary import Run, Summary

TAIL_BYTES = 64 << 10
READ_BYTES = 1 << 20  # blocks are fetched together up to this, stored,
READ_RAW_BYTES = 4 << 20  # and this, raw: what compresses well must not fill the memory; larger ones alone


class SegmentReader:
    """A segment of `size` bytes. fetch(offset, length) returns these bytes of it.

    tail: the last bytes of it, if the caller has read them; else the last TAIL_BYTES are read, or the whole
    index if `index_bytes` tells its size (that of the list of segments: Footer.index_bytes). expect_name:
    the last part of its key; expect_uuid: 16 bytes: DamageError if it says another. where: path or key, for
    errors; in_store: whether it is a key, which decides over the kind of errors.

    Every method raises DamageError (UnknownFormatError for a newer format) for bytes that are not what was
    written; nothing is allocated by a size that was not checked. Threads may share it if `fetch` allows it.
    """

    def __init__(
        self,
        size: int,
        fetch: Fetch,
        *,
        tail: bytes | None = None,
        index_bytes: int | None = None,
        expect_name: str | None = None,
        expect_uuid: bytes | None = None,
        where: str | None = None,
        in_store: bool = False,
    ) -> None:
        self.size = size
        self._source = Source(size, fetch, where=where or expect_name, in_store=in_store)
        with self._source.located():
            if size < HEADER_BYTES + FOOTER_BYTES:
                raise DamageError(f"too small for a segment: {size} bytes")
            wanted = TAIL_BYTES if index_bytes is None else index_bytes + FOOTER_BYTES
            if tail is None or not FOOTER_BYTES <= len(tail) <= size:
                length = min(max(wanted, FOOTER_BYTES), size)
                tail = bytes(self._source.read(size - length, length))
            self._source.tail = tail
            self.footer, self.pages = self._decode_tail()
            self._check_identity(expect_name, expect_uuid)

    @property
    def summary(self) -> Summary:
        return self.footer.summary

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.footer.summary.runs

    def header(self) -> Header:
        """The header, which has to be the one that the footer was written for."""
        with self._source.located():
            raw = self._source.read(0, HEADER_BYTES)
            header = Header.decode(raw)
            if header_crc(raw) != self.footer.header_crc or header.uuid != self.footer.uuid:
                raise DamageError("header and footer are not of the same file", offset=0)
            return header

    def page(self, number: int) -> Page:
        """A page of the index; nothing of it is read yet."""
        ends = [*(page.first_block_offset for page in self.pages[1:]), self.footer.index_place]
        return Page(self.pages[number], self._source, blocks_end=ends[number])

    def find_pages(self, *, first_seq: int = 1, last_seq: int = SEQ_MAX, id: int | None = None) -> list[int]:  # noqa: A002
        """Numbers of the pages that may hold records of this range (inclusive), and of this id if given."""
        return [
            number
            for number, page in enumerate(self.pages)
            if page.first_seq <= last_seq
            and page.last_seq >= first_seq
            and (id is None or page.lowest_id <= id <= page.highest_id)
        ]

    def columns(self) -> Iterator[Columns]:
        """The columns of all records, page by page."""
        for number in range(len(self.pages)):
            yield self.page(number).columns()

    def arrays(self, *names: str) -> Iterator[tuple[Array, ...]]:
        """The columns that are named (of index.LAYOUTS), page by page; one read for each page."""
        for number in range(len(self.pages)):
            page = self.page(number)
            page.load(*names)
            yield tuple(page.column(name) for name in names)

    def read_block(self, page: Page, number: int) -> Buffer:
        """The raw records of one block of a page, checked by the block's checksum."""
        return self.read_blocks(page, number, number + 1)[0]

    def read_blocks(
        self, page: Page, first: int, end: int, wanted: Iterable[int] | None = None
    ) -> list[Buffer]:
        """The raw records of the blocks `first` to `end` (exclusive) of a page, or of those of them that are
        `wanted`, by one read."""
        with self._source.located():
            begin = int(page.block_offsets[first])
            stored = memoryview(self._source.read(begin, int(page.block_offsets[end]) - begin))
            entries = [page.block(number) for number in wanted or range(first, end)]
            pieces = [stored[entry.offset - begin :][: entry.stored_bytes] for entry in entries]
            return [decode_block(entry, piece) for entry, piece in zip(entries, pieces, strict=True)]

    def blocks(self, *, verify: bool = True) -> Iterator[tuple[Columns, Buffer]]:
        """All blocks in order: columns and raw records, with `verify` each record compared with its columns
        and its checksum. Memory: a page of columns, and READ_RAW_BYTES or the largest block."""
        for number in range(len(self.pages)):
            page = self.page(number)
            for first, end in _read_ranges(page):
                for at, raw in enumerate(self.read_blocks(page, first, end), first):
                    columns = page.block_columns(at)
                    if verify:
                        with self._source.located():
                            verify_records(raw, columns, offset=int(page.block_offsets[at]))
                    yield columns, raw

    def check_all(self) -> None:
        """Reads every byte and verifies it: header, blocks, records, columns, chain of each exact run."""
        self.header()
        claims = ClaimChecker(self.summary)
        for columns in self.columns():
            with self._source.located():
                claims.add(columns)
        with self._source.located():
            claims.finish()
        for _ in self.blocks():
            pass

    def _decode_tail(self) -> tuple[Footer, tuple[PageEntry, ...]]:
        fields = decode_fields(memoryview(self._source.tail)[-FOOTER_BYTES:])
        end = self.size - FOOTER_BYTES
        tables_bytes = fields.pages * PAGE_ENTRY_BYTES + fields.runs * RUN_BYTES
        if fields.index_place < HEADER_BYTES or fields.index_place + fields.index_bytes != end:
            raise DamageError("index does not reach from the last block to the footer", offset=end)
        if not fields.pages or tables_bytes > fields.index_bytes:
            raise DamageError(
                f"index of {fields.index_bytes} bytes is too small for its directory", offset=end
            )
        tables = memoryview(self._source.read(end - tables_bytes, tables_bytes))
        if crc32c(tables) != fields.directory_crc:
            raise DamageError("checksum of the index's directory does not match", offset=end - tables_bytes)
        pages = decode_directory(tables[: fields.pages * PAGE_ENTRY_BYTES])
        footer = decode_footer(fields, decode_runs(tables[fields.pages * PAGE_ENTRY_BYTES :]))
        _check_directory(pages, footer, end - tables_bytes)
        return footer, pages

    def _check_identity(self, name: str | None, uuid: bytes | None) -> None:
        own = self.footer.name.format()
        if name is not None and own != name:
            raise DamageError(f"segment says that it is another one: {own}", own_name=own)
        if uuid is not None and self.footer.uuid != uuid:
            raise DamageError(f"segment is of another database: {self.footer.uuid.hex()}")


def _check_directory(pages: tuple[PageEntry, ...], footer: Footer, place: int) -> None:
    """No gap before, between and behind pages and blocks; ranges in order; counts that add up."""
    summary, next_place, block_offset, last_seq = footer.summary, footer.index_place, HEADER_BYTES, 0
    for page in pages:
        if page.place != next_place or page.first_seq <= last_seq:
            raise DamageError(f"page of the index out of order, from seq {page.first_seq}", offset=page.place)
        if page.first_block_offset < block_offset:
            raise DamageError(f"blocks overlap at offset {page.first_block_offset}", offset=page.place)
        next_place, last_seq = next_place + page.stored_bytes, page.last_seq
        block_offset = page.first_block_offset + 1
    if next_place != place or pages[0].first_block_offset != HEADER_BYTES:
        raise DamageError("index has a gap", offset=place)
    if pages[0].first_seq < summary.first_seq or last_seq > summary.last_seq:
        raise DamageError(f"index is out of the segment's range: {pages[0].first_seq} to {last_seq}")
    if sum(page.records for page in pages) != summary.records:
        raise DamageError(f"index does not have the segment's {summary.records} records", offset=place)


def _read_ranges(page: Page) -> Iterator[tuple[int, int]]:
    """Ranges of blocks of a page that are fetched together."""
    stored, first = page.block_offsets, 0
    raw = np.concatenate([[0], np.cumsum(page.blocks.raw_bytes, dtype=np.int64)])
    while first < len(page.blocks):
        stored_end = int(np.searchsorted(stored, stored[first] + READ_BYTES, "right")) - 1
        raw_end = int(np.searchsorted(raw, raw[first] + READ_RAW_BYTES, "right")) - 1
        end = max(min(stored_end, raw_end), first + 1)
        yield first, end
        first = end
