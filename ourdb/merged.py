"""Writing a file of a merge: the records that are kept, as they are, in blocks of whole records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ourdb.directory import FileEntry
from ourdb.files import File
from ourdb.logtail import verify_block
from ourdb.record import Buffer
from ourdb.rotation import new_header
from ourdb.segment.block import encode_block
from ourdb.segment.columns import Columns
from ourdb.segment.header import Header
from ourdb.segment.leftovers import gather_records, pick_records
from ourdb.segment.reader import SegmentReader
from ourdb.segment.summary import Summary
from ourdb.segment.writer import FooterPlan, SegmentWriter

if TYPE_CHECKING:
    from ourdb.condense import Merge
    from ourdb.database import OurDB


def write_merged(db: OurDB, merge: Merge, summary: Summary, nr: int) -> FileEntry:
    """One file, durable but for its directory entry. It counts when the list of files names it."""
    directory = db._directory
    header = new_header(directory, db.uuid, db.config, nr=nr, first_seq=summary.first_seq)
    plan = FooterPlan(summary=summary, generation=header.generation, made=0, random=header.file_id)
    path = directory.path / f"{nr}.db"
    with directory.fs.open(path, write=True, create=True, exclusive=True) as file:
        try:
            place = _write(file, header, plan, merge, summary)
            file.fsync()
        except BaseException:
            directory.fs.unlink(path)
            raise
    return FileEntry(
        nr=nr,
        file_id=header.file_id,
        first_seq=summary.first_seq,
        sealed=True,
        exact=summary.exact,
        bytes=place,
        last_seq=summary.last_seq,
        records=summary.records,
        first_time=summary.first_time,
        last_time=summary.last_time,
    )


def _write(file: File, header: Header, plan: FooterPlan, merge: Merge, summary: Summary) -> int:
    """The whole file; returns its size."""
    place = 0

    def write(piece: Buffer) -> None:
        nonlocal place
        file.pwrite(memoryview(piece), place)
        place += len(piece)

    with SegmentWriter(header, plan, write) as writer:
        for columns, raw in gather_records(_kept(merge, summary)):
            writer.add(encode_block(raw, len(columns)), columns)
        writer.finish()
    return place


def _kept(merge: Merge, summary: Summary) -> Iterator[tuple[Columns, bytes]]:
    for reader, entry, live in zip(merge.readers, merge.entries, merge.plan.live, strict=True):
        if reader is not None and entry.first_seq <= summary.last_seq and entry.last_seq >= summary.first_seq:
            yield from _kept_of(reader, entry, live, summary)


def _kept_of(
    reader: SegmentReader, entry: FileEntry, live: np.ndarray[Any, Any], summary: Summary
) -> Iterator[tuple[Columns, bytes]]:
    """Of one source. Blocks with nothing to keep are not read."""
    start = 0
    for number in range(len(reader.pages)):
        page = reader.page(number)
        mask = live[start : start + len(page)].copy()
        start += len(page)
        seqs = page.column("seq")
        mask &= (seqs >= summary.first_seq) & (seqs <= summary.last_seq)
        if not mask.any():
            continue
        for block in range(len(page.blocks)):
            here = mask[page.block_starts[block] : page.block_starts[block + 1]]
            if here.any():
                raw, columns = reader.read_block(page, block), page.block_columns(block)
                verify_block(raw, columns, int(page.block_offsets[block]), entry.name)
                yield columns[here], pick_records(raw, columns, here)
