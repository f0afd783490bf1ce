"""The log as a backup reads it: no lock, no lookup table, little memory.

Files are read with pread, in pieces, never mapped. A process may write, rotate and condense the database
meanwhile: the end of the log is looked for anew whenever it is asked for, and a file that is gone is
looked up in the new list of files.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ourdb.config import Config
from ourdb.directory import Directory, FileEntry, FileList, file_missing
from ourdb.errors import DamageError, InvalidError, TemporaryError
from ourdb.files import File, FileSystem, require_linux
from ourdb.logtail import LogTail, load_tail, verify_block
from ourdb.record import BATCH_GOES_ON, Buffer
from ourdb.sealed import open_segment
from ourdb.segment.columns import Columns
from ourdb.segment.header import HEADER_BYTES, Header
from ourdb.segment.reader import SegmentReader
from ourdb.segment.summary import Run, RunFold, Summary, fold_run
from ourdb.units import GIB

T = TypeVar("T")

_TRIES = 16


@dataclass(frozen=True)
class LogEnd:
    """The last whole batch: its seq (0: the log is empty), its time in ms, the chain there, and the highest
    id ever given (None: none yet)."""

    seq: int
    time_ms: int
    chain: int
    highest_id: int | None


@dataclass(frozen=True)
class Piece:
    """A range of the log that makes one segment: whole batches of one data file, or a condensed file whole.
    raw_bytes: of its records. entry: the data file, as the list named it."""

    summary: Summary
    raw_bytes: int
    entry: FileEntry


class LogReader:
    """Reads the log of a database directory. A context manager. `blocks` may run in several threads."""

    def __init__(self, path: str | os.PathLike[str], *, fs: FileSystem | None = None) -> None:
        """NotFoundError (`no_database`) unless the directory is a database; DamageError."""
        require_linux()
        self._directory = Directory(Path(path), fs or FileSystem())
        self.uuid: bytes
        self.config: Config
        self.uuid, self.config = self._directory.load_identity()
        self._list: FileList = self._directory.load_list()
        self._tail: LogTail | None = None
        self._summaries: dict[int, Summary] = {}

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._tail:
            self._tail.close()
        self._tail = None

    # -- the end ----------------------------------------------------------------------------------

    def find_end(self, *, known: tuple[int, int] | None = None) -> LogEnd:
        """Look for the end of the log, anew: the last whole batch that can be read.

        known: a seq, and the chain there, up to which the log is known to be durable (a shipped mark). Values
        that need no second look are not read here: `blocks` compares each byte. DamageError if the log ends
        before a seq up to which it was durable.
        """
        for _ in range(_TRIES):
            tail = self._follow(known)
            files = self._directory.load_list()
            if files.active.file_id != self._list.active.file_id:
                continue
            self._list = files
            durable_seq = self._directory.load_trust().durable_seq
            if tail.end.seq < durable_seq and self._follow(known).end.seq < durable_seq:
                raise DamageError(
                    f"no valid record {tail.end.seq + 1} in {tail.entry.name} at offset {tail.end.offset}, "
                    f"but the log was durable up to {durable_seq}",
                    file=tail.entry.name,
                    offset=tail.end.offset,
                    seq=tail.end.seq + 1,
                )
            return LogEnd(tail.end.seq, tail.end.time_ms, tail.chain, tail.highest)
        raise TemporaryError(f"files rotate faster than they can be read: {self._directory.path}")

    def _follow(self, known: tuple[int, int] | None) -> LogTail:
        """The active file, read up to its end; the one of the current list."""
        for _ in range(_TRIES):
            self._list = self._directory.load_list()
            try:
                if self._tail is None or self._tail.entry.file_id != self._list.active.file_id:
                    before = self._summary(self._list.sealed[-1]) if self._list.sealed else None
                    tail = load_tail(self._directory, self._list, before, self.uuid, self.config, known)
                    self.close()
                    self._tail = tail
                self._tail.follow()
                return self._tail
            except FileNotFoundError:
                continue
        raise TemporaryError(f"files go away faster than they can be read: {self._directory.path}")

    # -- facts about a seq ------------------------------------------------------------------------

    def chain_at(self, seq: int) -> int | None:
        """The chain at a seq; None if it is beyond the end that was found, or not exact there (condensed)."""
        if seq == 0:
            return 0
        tail = self._require_tail()
        if seq >= tail.entry.first_seq:
            return tail.chain_at(seq) if seq <= tail.end.seq else None
        return self._again(lambda: self._chain_in(self._entry_of(seq), seq))

    def _chain_in(self, entry: FileEntry, seq: int) -> int | None:
        summary = self._summary(entry)
        run = summary.find_run(seq)
        if run is None:
            return None
        return (
            run.chain_after if seq == run.last_seq else fold_run(self._columns(entry, run, seq), run, seq)[1]
        )

    def cut_at_or_before(self, seq: int) -> int:
        """The last seq at or before this one behind which a piece can begin: any but those inside a condensed
        file, which is one piece."""
        entry = self._entry_of(seq) if 0 < seq < self._require_tail().entry.first_seq else None
        if entry is None or entry.exact or seq == entry.last_seq:
            return seq
        return entry.first_seq - 1

    def batch_end_at_or_before(self, seq: int) -> int:
        """The last seq at or before this one where a batch ends; 0: there is none."""
        tail = self._require_tail()
        seq = min(seq, tail.end.seq)
        if seq >= tail.entry.first_seq:
            return tail.batch_end_at_or_before(seq)
        return self._again(lambda: self._batch_end_in(self._entry_of(seq), seq)) if seq > 0 else 0

    def _batch_end_in(self, entry: FileEntry, seq: int) -> int:
        if seq == entry.last_seq:
            return seq
        found = entry.first_seq - 1
        for run in self._summary(entry).runs:
            if run.last_seq <= seq:
                found = run.last_seq
            elif run.first_seq <= seq:
                for columns in self._columns(entry, run, seq):
                    ends = columns.seq[(columns.flags & np.uint16(BATCH_GOES_ON)) == 0]
                    found = int(ends[-1]) if len(ends) else found
        return found

    def make_durable(self, first_seq: int, last_seq: int) -> None:
        """Sync each file that holds a record of this range, sealed ones too, and the directory's entries."""

        def sync() -> None:
            for entry in self._list.files:
                if entry.first_seq <= last_seq and (not entry.sealed or entry.last_seq >= first_seq):
                    with self._directory.fs.open(self._directory.data_path(entry)) as file:
                        file.fsync()
            self._directory.fs.sync_directory(self._directory.path)

        self._again(sync)

    # -- what to ship -----------------------------------------------------------------------------

    def pieces(self, first_seq: int, last_seq: int, *, raw_bytes_max: int = GIB) -> list[Piece]:
        """Cut a range, which begins after a batch end and ends at one, into pieces of whole batches.

        A piece lies in one data file and has at most `raw_bytes_max` bytes of records, unless a single batch
        has more. A condensed file, which is not exact, is one piece, whole, even if it begins before the
        range."""
        tail = self._require_tail()
        if not 1 <= first_seq <= last_seq <= tail.end.seq:
            raise InvalidError(
                f"no such range in the log: {first_seq} to {last_seq} (it ends at {tail.end.seq})"
            )
        return self._again(lambda: list(self._cut(first_seq, last_seq, raw_bytes_max)))

    def _cut(self, first_seq: int, last_seq: int, raw_bytes_max: int) -> Iterator[Piece]:
        for entry in self._list.files:
            if entry.first_seq > last_seq or (entry.sealed and entry.last_seq < first_seq):
                continue
            if entry.sealed and not entry.exact:
                summary = self._summary(entry)
                yield Piece(summary, self._raw_bytes(entry), entry)
                continue
            yield from self._cut_file(entry, max(first_seq, entry.first_seq), last_seq, raw_bytes_max)

    def _raw_bytes(self, entry: FileEntry) -> int:
        file, reader = open_segment(self._directory, entry, self.uuid)
        with file:
            return reader.footer.index_place - HEADER_BYTES

    def _cut_file(
        self, entry: FileEntry, first_seq: int, last_seq: int, raw_bytes_max: int
    ) -> Iterator[Piece]:
        run = self._run_of(entry)
        chain, highest = run.chain_before, run.highest_before
        if first_seq > entry.first_seq:
            before = first_seq - 1
            highest, chain = fold_run(self._columns(entry, run, before), run, before)
        cutter = _Cutter(entry, first_seq, chain, highest, raw_bytes_max)
        for columns in self._columns(entry, run, last_seq):
            yield from cutter.add(columns[int(np.searchsorted(columns.seq, np.uint64(first_seq))) :])
        yield from cutter.finish()

    def _run_of(self, entry: FileEntry) -> Run:
        if entry.sealed:
            return self._summary(entry).runs[0]
        return self._require_tail().run()

    def _columns(self, entry: FileEntry, run: Run, upto_seq: int) -> Iterator[Columns]:
        """Columns of a run of a file, up to a seq."""
        if not entry.sealed:
            yield from self._require_tail().columns(upto_seq)
            return
        file, reader = open_segment(self._directory, entry, self.uuid)
        with file:
            for number in reader.find_pages(first_seq=run.first_seq, last_seq=upto_seq):
                yield _cut_columns(reader.page(number).columns(), run.first_seq, upto_seq)

    def blocks(self, piece: Piece) -> Iterator[tuple[Columns, Buffer]]:
        """The records of a piece in blocks of some 128 KiB: columns and raw bytes, each record compared with
        its checksum. DamageError with file, offset and seq. TemporaryError if condensing has dropped records
        of the piece meanwhile: look for the end again."""
        first, last = piece.summary.first_seq, piece.summary.last_seq
        tail = self._tail
        if tail and tail.entry.file_id == piece.entry.file_id:
            yield from tail.blocks(first, last)
            return
        file, reader = self._open_piece(piece)
        with file:
            yield from _sealed_blocks(reader, file.path.name, first, last)

    def header(self, piece: Piece) -> Header:
        """The header of the piece's file."""
        tail = self._tail
        if tail and tail.entry.file_id == piece.entry.file_id:
            return Header.decode(tail.file.pread(HEADER_BYTES, 0))
        file, reader = self._open_piece(piece)
        with file:
            return reader.header()

    def _open_piece(self, piece: Piece) -> tuple[File, SegmentReader]:
        """The file that holds a piece now: it may have been sealed or condensed since the piece was cut."""
        for _ in range(_TRIES):
            files = self._directory.load_list()
            try:
                for entry in files.sealed:
                    same = entry.file_id == piece.entry.file_id
                    inside = (
                        entry.first_seq <= piece.summary.first_seq
                        and piece.summary.last_seq <= entry.last_seq
                    )
                    if same or (inside and entry.exact and piece.summary.exact):
                        return open_segment(self._directory, entry, self.uuid)
            except FileNotFoundError:
                continue
            break
        raise TemporaryError(
            f"seq {piece.summary.first_seq} to {piece.summary.last_seq} were condensed meanwhile: try again"
        )

    # -- inside -----------------------------------------------------------------------------------

    def _require_tail(self) -> LogTail:
        if self._tail is None:
            self.find_end()
        assert self._tail is not None
        return self._tail

    def _entry_of(self, seq: int) -> FileEntry:
        entries = self._list.files
        return entries[bisect_right(entries, seq, key=lambda entry: entry.first_seq) - 1]

    def _summary(self, entry: FileEntry) -> Summary:
        if entry.file_id not in self._summaries:
            file, reader = open_segment(self._directory, entry, self.uuid)
            file.close()
            self._summaries[entry.file_id] = reader.summary
        return self._summaries[entry.file_id]

    def _again(self, ask: Callable[[], T]) -> T:
        """Ask; if a file is gone it was condensed away: ask again with the new list of files."""
        for _ in range(_TRIES):
            try:
                return ask()
            except FileNotFoundError as error:
                files = self._directory.load_list()
                if files == self._list:
                    raise file_missing(error) from error
                self._list = files
        raise TemporaryError(f"files go away faster than they can be read: {self._directory.path}")


class _Cutter:
    """Cuts the columns of one data file into pieces at batch ends, as they come."""

    def __init__(
        self, entry: FileEntry, first_seq: int, chain: int, highest: int | None, raw_bytes_max: int
    ) -> None:
        self._entry, self._raw_bytes_max = entry, raw_bytes_max
        self._pending: list[Columns] = []  # of a batch that did not end yet
        self._pending_bytes = 0
        self._begin(first_seq, chain, highest)

    def _begin(self, first_seq: int, chain: int, highest: int | None) -> None:
        self._fold = RunFold.begin(first_seq, chain, highest)
        self._raw_bytes = 0
        self._first_time: int | None = None
        self._chain_before = chain

    def add(self, columns: Columns) -> Iterator[Piece]:
        """The next records, in order; the pieces that are complete."""
        ends = np.flatnonzero((columns.flags & np.uint16(BATCH_GOES_ON)) == 0) + 1
        sizes = np.cumsum(columns.raw_sizes)
        start, done = 0, 0  # of the records: those that are in a piece or pending; their bytes
        while len(ends):
            room = self._raw_bytes_max - self._raw_bytes - self._pending_bytes
            fit = int(np.searchsorted(sizes[ends - 1], done + room, "right"))
            if not fit and self._raw_bytes:
                yield self._finish_piece()
                continue
            end = int(ends[max(fit, 1) - 1])
            self._pending.append(columns[start:end])
            self._pending_bytes += int(sizes[end - 1]) - done
            self._take_pending()
            start, done, ends = end, int(sizes[end - 1]), ends[max(fit, 1) :]
        if start < len(columns):
            self._pending.append(columns[start:])
            self._pending_bytes += int(sizes[-1]) - done

    def finish(self) -> Iterator[Piece]:
        """The end of the file, or of the range: a sealed file's last record ends a batch."""
        if self._pending:
            if self._raw_bytes and self._raw_bytes + self._pending_bytes > self._raw_bytes_max:
                yield self._finish_piece()
            self._take_pending()
        if self._raw_bytes:
            yield self._finish_piece()

    def _take_pending(self) -> None:
        for columns in self._pending:
            if self._first_time is None and len(columns):
                self._first_time = int(columns.time[0])
            self._fold.add(columns)
        self._raw_bytes += self._pending_bytes
        self._pending, self._pending_bytes = [], 0

    def _finish_piece(self) -> Piece:
        run = self._fold.finish()
        summary = Summary(
            first_seq=run.first_seq,
            last_seq=run.last_seq,
            first_time=run.last_time if self._first_time is None else self._first_time,
            last_time=run.last_time,
            runs=(run,),
            records=run.last_seq - run.first_seq + 1,
            highest_id=self._fold.highest,
            chain_before=run.chain_before,
            chain_after=run.chain_after,
        ).validate()
        piece = Piece(summary, self._raw_bytes, self._entry)
        self._begin(run.last_seq + 1, run.chain_after, self._fold.highest)
        return piece


def _cut_columns(columns: Columns, first_seq: int, last_seq: int) -> Columns:
    begin, end = np.searchsorted(columns.seq, np.array([first_seq, last_seq + 1], np.uint64))
    return columns[int(begin) : int(end)]


def _sealed_blocks(
    reader: SegmentReader, name: str, first_seq: int, last_seq: int
) -> Iterator[tuple[Columns, Buffer]]:
    for number in reader.find_pages(first_seq=first_seq, last_seq=last_seq):
        page = reader.page(number)
        seqs = page.column("seq")
        starts = page.block_starts
        for block in range(len(page.blocks)):
            if int(seqs[starts[block]]) > last_seq or int(seqs[starts[block + 1] - 1]) < first_seq:
                continue
            raw, columns = reader.read_block(page, block), page.block_columns(block)
            verify_block(raw, columns, int(page.block_offsets[block]), name)
            yield _cut_block(columns, raw, first_seq, last_seq)


def _cut_block(columns: Columns, raw: Buffer, first_seq: int, last_seq: int) -> tuple[Columns, Buffer]:
    """The part of a block that lies in a range of seq."""
    begin, end = (
        int(at) for at in np.searchsorted(columns.seq, np.array([first_seq, last_seq + 1], np.uint64))
    )
    if begin == 0 and end == len(columns):
        return columns, raw
    starts = np.concatenate(([0], np.cumsum(columns.raw_sizes)))
    return columns[begin:end], memoryview(raw)[int(starts[begin]) : int(starts[end])]
