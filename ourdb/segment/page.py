"""A page of the index while it is read: columns are fetched and decoded when they are first asked for."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from ourdb.errors import DamageError
from ourdb.record import RECORD_HEADER_BYTES
from ourdb.segment.block import (
    TABLE_NAMES,
    BlockEntry,
    BlockTable,
    check_blocks,
)
from ourdb.segment.columns import COLUMN_NAMES, Columns
from ourdb.segment.index import LAYOUTS, Array, PageEntry, decode_column
from ourdb.segment.source import Source

BLOCK_COLUMNS = tuple(f"block_{name}" for name in TABLE_NAMES)


class Page:
    """Up to 65,536 records in whole blocks; `blocks_end`: where these end in the file.

    Whatever reads columns raises DamageError or UnknownFormatError if they are not what was written. Threads
    may share a page: at worst a column is fetched twice.
    """

    def __init__(self, entry: PageEntry, source: Source, *, blocks_end: int) -> None:
        self.entry = entry
        self._source = source
        self._blocks_end = blocks_end
        self._arrays: dict[str, Array] = {}

    def __len__(self) -> int:
        return self.entry.records

    def load(self, *names: str) -> None:
        """Fetches the columns of LAYOUTS that are named and not there yet, by one read that spans them."""
        wanted = [name for name in LAYOUTS if name in names and name not in self._arrays]
        if not wanted:
            return
        begin, last = self.entry.column_place(wanted[0]), wanted[-1]
        end = self.entry.column_place(last) + self.entry.column(last).stored_bytes
        with self._source.located():
            stored = memoryview(self._source.read(begin, end - begin))
            for name in wanted:
                place, column = self.entry.column_place(name), self.entry.column(name)
                count = self.entry.blocks if LAYOUTS[name].of_blocks else self.entry.records
                piece = stored[place - begin :][: column.stored_bytes]
                values = decode_column(column, piece, name, count, offset=place)
                self._check_column(name, values)
                self._arrays[name] = values

    def has(self, *names: str) -> bool:
        """Whether these columns are there, and need no read."""
        return all(name in self._arrays for name in names)

    def column(self, name: str) -> Array:
        """One column of LAYOUTS, read-only."""
        self.load(name)
        return self._arrays[name]

    def columns(self) -> Columns:
        """All columns of the records."""
        self.load(*COLUMN_NAMES)
        return Columns(*(self._arrays[name] for name in COLUMN_NAMES))

    @cached_property
    def blocks(self) -> BlockTable:
        """The blocks, checked: known codecs, whole, no gap, and with the sizes that their records need."""
        self.load(*BLOCK_COLUMNS, "length")
        blocks = BlockTable(*(self._arrays[name] for name in BLOCK_COLUMNS))
        start = self.entry.first_block_offset
        with self._source.located():
            check_blocks(blocks, self.column("length").astype(np.int64) + RECORD_HEADER_BYTES)
            if start + int(blocks.stored_bytes.sum(dtype=np.int64)) != self._blocks_end:
                raise DamageError(f"blocks do not fill the record area, from offset {start}", offset=start)
        return blocks

    @cached_property
    def block_offsets(self) -> npt.NDArray[np.int64]:
        """Where each block begins in the file, and where the last one ends."""
        ends = np.cumsum(self.blocks.stored_bytes, dtype=np.int64)
        return np.concatenate([[0], ends]) + self.entry.first_block_offset

    @cached_property
    def block_starts(self) -> npt.NDArray[np.int64]:
        """The index, within the page, of each block's first record; at last the count of records."""
        return np.concatenate([[0], np.cumsum(self.blocks.records, dtype=np.int64)])

    def block(self, number: int) -> BlockEntry:
        """The entry of one block of the page."""
        fields = {name: int(getattr(self.blocks, name)[number]) for name in TABLE_NAMES}
        return BlockEntry(**fields, offset=int(self.block_offsets[number]))

    def block_columns(self, number: int) -> Columns:
        """The columns of the records of one block."""
        return self.columns()[int(self.block_starts[number]) : int(self.block_starts[number + 1])]

    def find(self, seq: int) -> int | None:
        """The index of the record with this seq, or None."""
        seqs = self.column("seq")
        at = int(np.searchsorted(seqs, np.uint64(seq)))
        return at if at < len(seqs) and int(seqs[at]) == seq else None

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the block that holds a record, and where the record begins in the raw block."""
        number = int(np.searchsorted(self.block_starts, index, "right")) - 1
        before = self.column("length")[int(self.block_starts[number]) : index]
        return number, int(before.sum(dtype=np.int64)) + RECORD_HEADER_BYTES * len(before)

    def _check_column(self, name: str, values: Array) -> None:
        entry = self.entry
        if name == "seq":
            ends = (int(values[0]), int(values[-1]))
            good = ends == (entry.first_seq, entry.last_seq) and bool((values[1:] > values[:-1]).all())
        elif name == "id":
            good = (int(values.min()), int(values.max())) == (entry.lowest_id, entry.highest_id)
        else:
            good = True
        if not good:
            raise DamageError(
                f"column {name} is not what the directory says, from seq {entry.first_seq}",
                seq=entry.first_seq,
            )
