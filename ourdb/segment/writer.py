"""Writing a segment: blocks go out as they come, the index is kept until the end (docs/format.md#index)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir

import numpy as np
import zstandard
from crc32c import crc32c

from ourdb.errors import DamageError, InvalidError
from ourdb.files import translate
from ourdb.record import Buffer
from ourdb.segment.block import ZSTD_LEVEL, Block, BlockTable, check_blocks
from ourdb.segment.claims import ClaimChecker
from ourdb.segment.columns import Columns
from ourdb.segment.footer import Footer, encode_runs
from ourdb.segment.header import HEADER_BYTES, Header, header_crc
from ourdb.segment.index import PAGE_RECORDS_MAX, PageEntry, encode_directory, encode_page
from ourdb.segment.summary import Summary

INDEX_MEMORY_MAX = 8 << 20  # more of an index than this waits in a temporary file
_COPY_BYTES = 1 << 20

Write = Callable[[Buffer], object]


@dataclass(frozen=True, kw_only=True)
class FooterPlan:
    """What a footer says that the blocks do not: the summary, and the parts of the name (u64 each).

    A local file has made 0 and its file_id as random.
    """

    summary: Summary
    generation: int
    made: int
    random: int


class IndexBuilder:
    """Builds the index and the footer behind a record area, from pieces of columns and block tables.

    header: the encoded header of the file. write: takes the bytes of the index, in order, as they are made;
    they belong directly behind the last block. So a file of raw blocks is sealed in place: memory is that of
    one page and one piece. One thread.
    """

    def __init__(self, header: bytes, plan: FooterPlan, write: Write) -> None:
        self._uuid, self._header_crc = Header.decode(header).uuid, header_crc(header)
        self._plan = plan
        self._write = write
        self._claims = ClaimChecker(plan.summary)
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self._pending: list[tuple[Columns, BlockTable]] = []
        self._pending_records = 0
        self._pages: list[PageEntry] = []
        self._pages_bytes = 0
        self._offset = HEADER_BYTES  # end of the blocks so far

    def add(self, columns: Columns, blocks: BlockTable) -> None:
        """The next whole blocks, any number, and the columns of their records.

        If they do not belong together or contradict the plan's summary: DamageError, now or later.
        """
        self._pending.append((columns, blocks))
        self._pending_records += len(columns)
        if self._pending_records > PAGE_RECORDS_MAX:
            self._write_pages(until=PAGE_RECORDS_MAX)

    def finish(self) -> Footer:
        """Writes the rest of the index, the directory and the footer, which it returns.

        DamageError if the records that were added are not what the plan's summary claims.
        """
        self._write_pages(until=0)
        self._claims.finish()
        place = self._offset
        pages = [replace(page, place=page.place + place) for page in self._pages]
        tables = encode_directory(pages) + encode_runs(self._plan.summary.runs)
        footer = Footer(
            summary=self._plan.summary,
            uuid=self._uuid,
            generation=self._plan.generation,
            made=self._plan.made,
            random=self._plan.random,
            pages=len(pages),
            index_place=place,
            index_bytes=self._pages_bytes + len(tables),
            directory_crc=crc32c(tables),
            header_crc=self._header_crc,
        )
        self._write(tables + footer.encode())
        return footer

    def _write_pages(self, *, until: int) -> None:
        """Writes full pages while more than `until` records wait."""
        if self._pending_records <= until:
            return
        columns = Columns.concat([piece for piece, _ in self._pending])
        blocks = BlockTable.concat([table for _, table in self._pending])
        ends = np.cumsum(blocks.records, dtype=np.int64)
        if len(ends) == 0 or ends[-1] != len(columns):
            raise DamageError(f"blocks do not hold the {len(columns)} records, from seq {columns.seq[0]}")
        start, first_block = 0, 0
        while len(columns) - start > until:
            next_block = int(np.searchsorted(ends, start + PAGE_RECORDS_MAX, "right"))
            end = int(ends[next_block - 1])
            self._write_page(columns[start:end], blocks[first_block:next_block])
            start, first_block = end, next_block
        self._pending = [(columns[start:], blocks[first_block:])] if start < len(columns) else []
        self._pending_records = len(columns) - start

    def _write_page(self, columns: Columns, blocks: BlockTable) -> None:
        check_blocks(blocks, columns.raw_sizes)
        self._claims.add(columns)
        stored, entry = encode_page(
            columns,
            blocks,
            place=self._pages_bytes,  # from the index's start, which only the end of the blocks will tell
            first_block_offset=self._offset,
            compressor=self._compressor,
        )
        self._write(stored)
        self._pages.append(entry)
        self._pages_bytes += len(stored)
        self._offset += int(blocks.stored_bytes.sum(dtype=np.int64))


class SegmentWriter:
    """Writes a segment front to back. The header goes out at once, each block as it is added, the index at
    the end; until then it waits in memory, beyond INDEX_MEMORY_MAX in a temporary file (StorageError if that
    cannot be written). One thread.

    header: a Header, or the encoded one of a first source that is carried over. write: takes the next bytes.
    Use it as a context manager, so that the temporary file goes.
    """

    def __init__(self, header: Header | bytes, plan: FooterPlan, write: Write) -> None:
        encoded = header.encode() if isinstance(header, Header) else bytes(header)
        if len(encoded) != HEADER_BYTES:
            raise InvalidError(f"a header has {HEADER_BYTES} bytes: {len(encoded)}")
        self._write = write
        self._index = IndexBuilder(encoded, plan, self._keep)
        write(encoded)  # before there is a spool to be closed
        self._spool = SpooledTemporaryFile(max_size=INDEX_MEMORY_MAX)  # noqa: SIM115

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def add(self, block: Block, columns: Columns) -> None:
        """The next block and the columns of its records."""
        self._index.add(columns, BlockTable.of([block]))
        self._write(block.stored)

    def add_blocks(self, blocks: BlockTable, columns: Columns, stored: Buffer) -> None:
        """Several blocks whose stored bytes lie one behind the other, copied as they are."""
        self._index.add(columns, blocks)
        self._write(stored)

    def add_copied(self, blocks: BlockTable, columns: Columns) -> None:
        """As add_blocks, for stored bytes that the caller puts into their place."""
        self._index.add(columns, blocks)

    def finish(self) -> Footer:
        """Writes index and footer. DamageError if the records are not what the plan's summary claims."""
        footer = self.close_index()
        for piece in self.index():
            self._write(piece)
        return footer

    def close_index(self) -> Footer:
        """All blocks were added: the footer, which `index` ends with. DamageError as in `finish`."""
        return self._index.finish()

    def index(self) -> Iterator[bytes]:
        """The index with the footer, in pieces, once it is closed."""
        self._spool.seek(0)
        while piece := self._spool.read(_COPY_BYTES):
            yield piece

    def _keep(self, piece: Buffer) -> None:
        try:
            self._spool.write(piece)
        except OSError as error:
            raise translate("writing a temporary file", Path(gettempdir()), error) from error
