"""Sealing the active file and beginning the next: the order of steps, and what a crash between two leaves.

1. Space for the next file and for the index: a full disk is found before anything was changed.
2. The records are made durable; index and footer are appended and made durable. The file still counts as
   active: recovery drops what lies behind its last record.
3. The list of files is replaced: the commit. Files that it does not name are removed by recovery.
4. What is allocated behind the footer is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ourdb.active import ENDING_BYTES, ENDING_BYTES_A_RECORD, ActiveFile, summarize, write_ending
from ourdb.config import Config
from ourdb.directory import Directory, FileEntry, FileList, random_u64
from ourdb.errors import Error, StorageError
from ourdb.line import load as load_line
from ourdb.segment.header import HEADER_BYTES, Header
from ourdb.segment.summary import Summary


@dataclass(frozen=True, kw_only=True)
class Before:
    """What holds at the seq before the active file: chain, and the highest id ever given, None: none."""

    chain: int = 0
    highest: int | None = None

    @classmethod
    def after(cls, summary: Summary) -> Before:
        return cls(chain=summary.chain_after or 0, highest=summary.highest_id)


@dataclass(frozen=True, kw_only=True)
class Rotated:
    """The list that counts now, the entry of the sealed file, the new active file, and what holds before
    it."""

    files: FileList
    entry: FileEntry
    active: ActiveFile
    before: Before


class NothingChanged(Exception):
    """There is no space, or no number, for the next file: the database is as it was."""

    def __init__(self, error: Error) -> None:
        super().__init__(str(error))
        self.error = error


def new_header(directory: Directory, uuid: bytes, config: Config, *, nr: int, first_seq: int) -> Header:
    line = load_line(directory.path, fs=directory.fs)
    return Header(
        uuid=uuid,
        generation=int(line.generation, 16) if line else 0,
        file_nr=nr,
        file_id=random_u64(),
        first_seq=first_seq,
        config=config,
    )


def rotate(
    directory: Directory,
    files: FileList,
    active: ActiveFile,
    before: Before,
    *,
    uuid: bytes,
    config: Config,
    last_seq: int,
    end: int,
) -> Rotated:
    """Under the writer's lock. Raises NothingChanged (disk full, no number free, line.json damaged); after
    any other error the file has to be recovered."""
    records = last_seq - active.entry.first_seq + 1
    try:
        [nr] = files.free_numbers(1)
        header = new_header(directory, uuid, config, nr=nr, first_seq=last_seq + 1)
    except Error as error:
        raise NothingChanged(error) from error
    following = _prepare(directory, active, header, end + ENDING_BYTES + ENDING_BYTES_A_RECORD * records)
    active.file.fdatasync()
    summary = summarize(active, records, before.chain, before.highest)
    size = write_ending(active, active.file.pread(HEADER_BYTES, 0), summary, end)
    active.file.fdatasync()
    sealed = replace(
        active.entry,
        sealed=True,
        bytes=size,
        last_seq=last_seq,
        records=records,
        first_time=summary.first_time,
        last_time=summary.last_time,
    )
    replaced = FileList(files=(*files.sealed, sealed, following.entry), next_nr=(nr + 1) % 65_536)
    directory.replace_list(replaced)
    active.file.ftruncate(size)
    active.places_file.ftruncate(4 * records)
    active.close()
    return Rotated(files=replaced, entry=sealed, active=following, before=Before.after(summary))


def _prepare(directory: Directory, active: ActiveFile, header: Header, size: int) -> ActiveFile:
    try:
        following = ActiveFile.create(directory, header)
    except StorageError as error:
        raise NothingChanged(error) from error
    try:
        active.file.fallocate(0, max(size, active.size))
    except StorageError as error:
        following.close()
        directory.fs.unlink(directory.data_path(following.entry))
        directory.fs.unlink(directory.places_path(following.entry))
        raise NothingChanged(error) from error
    return following
