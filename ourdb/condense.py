"""Merging sealed files: all history is kept unless a window or a number of versions is given.

What is merged is decided first (`plan_condense`), then written. The list of files is the commit: before it
new files are garbage, after it the old ones are. A shipped mark is never merged across, and what comes after
the lowest one stays exact: so an own directory never looks like a fork, and nothing is lost that no store
has."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ourdb import line
from ourdb.active import ENDING_BYTES_A_RECORD, area_end, summarize
from ourdb.directory import IDENTITY, Directory, FileEntry, FileList
from ourdb.errors import DamageError, InvalidError, StorageError, TemporaryError, UnreachableError
from ourdb.history import resolve
from ourdb.layout import Cutter, kept_columns, summarize_cuts
from ourdb.merge import MergePlan, SourceColumns, plan_merge
from ourdb.merged import write_merged
from ourdb.names import SegmentKey, parse_key
from ourdb.sealed import visit_segment
from ourdb.segment.columns import Columns
from ourdb.segment.header import HEADER_BYTES
from ourdb.segment.reader import SegmentReader
from ourdb.segment.summary import Summary
from ourdb.units import now_ms

if TYPE_CHECKING:
    from ourdb.database import OurDB

_TRIES = 3
_RUN_WAIT_S, _RUN_POLL_S = 10.0, 0.05


@dataclass(frozen=True, kw_only=True)
class CondenseReport:
    """files, records, bytes: of the sealed files, before and after. With dry_run nothing was written, and
    bytes_after counts records only."""

    dry_run: bool
    files_before: int
    files_after: int
    records_before: int
    records_after: int
    bytes_before: int
    bytes_after: int

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, eq=False)
class Merge:
    """One merge: its sources, what of them is kept, and the files that come out of it."""

    sources: tuple[SourceColumns, ...]
    entries: tuple[FileEntry, ...]
    readers: tuple[SegmentReader | None, ...]
    plan: MergePlan
    outputs: tuple[Summary, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be kept: horizon, the seq from which on all of it; None: everything."""

    horizon: int | None
    keep_versions: int
    marks: tuple[int, ...]


def condense(
    db: OurDB, *, horizon: int | None, keep_versions: int | None, dry_run: bool, without: str | None = None
) -> CondenseReport:
    """See OurDB.condense. Under the writer's lock."""
    if horizon is None and keep_versions is not None:
        horizon = max(1, db._seq)
    if not dry_run and horizon is not None and db._seq >= db._first:
        _read_marks(db, needed=True)
        _seal_active(db)
    before = db._list.sealed
    for _ in range(_TRIES):
        marks = _read_marks(db, needed=horizon is not None, without=without)
        wish = Wish(horizon=horizon, keep_versions=keep_versions or 0, marks=marks)
        merges = plan_condense(db, wish, dry_run=dry_run)
        if dry_run:
            return _foresee(db, before, merges)
        if not merges or _apply(db, merges):
            return _report(before, db._list.sealed)
    raise TemporaryError(
        f"backups of this database follow one another too fast to condense it: try again: {db.path}",
        kind="busy",
    )


def _seal_active(db: OurDB) -> None:
    """So that what is in it may be dropped, too. Where there is no room for another file it stays as it is:
    condensing the others may make room."""
    try:
        db._rotate()
    except StorageError:
        if db._failure is not None:
            raise


def _report(before: Sequence[FileEntry], after: Sequence[FileEntry]) -> CondenseReport:
    return CondenseReport(
        dry_run=False,
        files_before=len(before),
        files_after=len(after),
        records_before=sum(entry.records for entry in before),
        records_after=sum(entry.records for entry in after),
        bytes_before=sum(entry.bytes for entry in before),
        bytes_after=sum(entry.bytes for entry in after),
    )


def _foresee(db: OurDB, before: Sequence[FileEntry], merges: Sequence[Merge]) -> CondenseReport:
    records = sum(entry.records for entry in before)
    size = sum(entry.bytes for entry in before)
    extra = [m for m in merges if any(not entry.sealed for entry in m.entries)]
    if extra:  # the active file would be sealed first
        records += db._seq - db._first + 1
        size += db._pos
    merged = [entry for merge in merges for entry in merge.entries]
    files = len(before) + len(extra)
    old = sum(entry.bytes if entry.sealed else db._pos for entry in merged)
    live = sum(int(mask.sum()) for merge in merges for mask in merge.plan.live)
    total = sum(len(mask) for merge in merges for mask in merge.plan.live)
    return CondenseReport(
        dry_run=True,
        files_before=files,
        files_after=files - len(merged) + sum(len(merge.outputs) for merge in merges),
        records_before=records,
        records_after=records - total + live,
        bytes_before=size,
        bytes_after=size - old + sum(merge.bytes for merge in merges),
    )


def find_horizon(db: OurDB, window_ms: int | None, keep_versions: int | None) -> int | None:
    """The seq from which on a window keeps everything, None without a window. It reads records, and so has to
    be asked before the writer's lock is taken."""
    if window_ms is not None and window_ms < 0:
        raise InvalidError(f"window must not be negative: {window_ms} ms")
    if keep_versions is not None and keep_versions < 1:
        raise InvalidError(f"keep_versions must be at least 1: {keep_versions}")
    if window_ms is None:
        return None
    try:
        horizon = resolve(db, at=max(0, min(now_ms(), db._time) - window_ms))
    except UnreachableError as error:
        near = error.fields["nearest_before"]
        horizon = near["seq"] if near else 1
    return max(1, horizon)


def _read_marks(db: OurDB, *, needed: bool, without: str | None = None) -> tuple[int, ...]:
    """The seqs at which a store may stand: those that are known to, and the ends of uploads that were
    acknowledged: the head may name them, though nobody lived to note it. without: a store to leave out."""
    directory = db._directory
    known = line.load(directory.path, fs=directory.fs)
    if known is None:
        if needed:
            raise DamageError(
                f"{line.FILE_NAME} is missing, so that nobody knows what was shipped: {directory.path} (put "
                "it back, or back up first; condense without window or keep_versions drops nothing)",
                file=line.FILE_NAME,
                path=str(directory.path / line.FILE_NAME),
            )
        return ()
    if without is not None:
        known = line.forget(known, without)
    keys = [parse_key(upload.key) for upload in known.uploads]
    ends = [key.name.last_seq for key in keys if isinstance(key, SegmentKey)]
    return tuple(sorted({*(mark.seq for mark in known.marks.values()), *ends}))


def plan_condense(db: OurDB, wish: Wish, *, dry_run: bool) -> list[Merge]:
    """The merges that are worth it."""
    active: list[FileEntry] = []
    if dry_run and wish.horizon is not None and db._seq >= db._first:
        active = [db._list.active]
    merges = []
    for entries in _groups([*db._list.sealed, *active], wish.marks, db._seq):
        droppable = wish.horizon is not None and (not wish.marks or _last(entries[-1], db) <= wish.marks[0])
        for some in [entries] if droppable else _packs(entries, db.config.file_size):
            merge = _plan(db, wish if droppable else None, some)
            smaller = not all(mask.all() for mask in merge.plan.live)
            if smaller or len(merge.outputs) < len(some):
                merges.append(merge)
    return merges


def _last(entry: FileEntry, db: OurDB) -> int:
    return entry.last_seq if entry.sealed else db._seq


def _groups(entries: Sequence[FileEntry], marks: Sequence[int], last_seq: int) -> Iterator[list[FileEntry]]:
    """Runs of files between two marks. A file with a mark inside stays as it is."""
    group: list[FileEntry] = []
    for entry in entries:
        last = entry.last_seq if entry.sealed else last_seq
        if any(entry.first_seq <= mark < last for mark in marks):
            if group:
                yield group
            group = []
            continue
        group.append(entry)
        if last in marks:
            yield group
            group = []
    if group:
        yield group


def _packs(entries: Sequence[FileEntry], file_size: int) -> Iterator[list[FileEntry]]:
    """Neighbours that fit into one file together, two or more. Parts of a stretch stay as they are, and so
    does what is not exact: it is merged when something may be dropped."""
    pack: list[FileEntry] = []
    size = records = 0
    for entry in entries:
        size, records = size + entry.bytes, records + entry.records
        if not entry.exact or (pack and size > area_end(file_size, records)):
            if len(pack) > 1:
                yield pack
            pack, size, records = [], entry.bytes, entry.records
        if entry.exact:
            pack.append(entry)
    if len(pack) > 1:
        yield pack


def _plan(db: OurDB, wish: Wish | None, entries: Sequence[FileEntry]) -> Merge:
    sources, readers = [], []
    for entry in entries:
        reader = None
        if entry.sealed:
            reader = visit_segment(db._directory, entry, db.uuid)
            sources.append(SourceColumns.of_reader(reader))
        else:
            sources.append(_active_source(db))
        readers.append(reader)
    plan = plan_merge(
        sources,
        horizon=wish.horizon if wish else None,
        pins=(),
        keep_versions=wish.keep_versions if wish else 0,
        from_start=entries[0].first_seq == 1,
    )
    size = area_end(db.config.file_size, 0) - HEADER_BYTES
    cutter = Cutter(plan.summary.first_seq, plan.runs, size, ENDING_BYTES_A_RECORD)
    total = 0
    for source, live in zip(sources, plan.live, strict=True):
        for kept, closed in kept_columns(source, live):
            cutter.add(kept, closed=closed)
            total += int(kept.raw_sizes.sum())

    def fetch(first_seq: int, last_seq: int) -> Iterable[Columns]:
        for source in sources:
            if source.summary.first_seq <= last_seq and source.summary.last_seq >= first_seq:
                yield from source.columns(first_seq, last_seq)

    outputs = summarize_cuts(plan.summary, cutter.cuts(), fetch)
    return Merge(tuple(sources), tuple(entries), tuple(readers), plan, tuple(outputs), total)


def _active_source(db: OurDB) -> SourceColumns:
    """The active file as it would be when it is sealed now; nothing is written."""
    from ourdb.liveness import Keys

    count = db._seq - db._first + 1
    file = db._file
    summary = summarize(file, count, db._before.chain, db._before.highest)
    return SourceColumns(
        summary=summary,
        keys=lambda *_: (Keys(c.id, c.seq, c.flags) for c in file.columns(count)),
        columns=lambda *_: file.columns(count),
    )


def _apply(db: OurDB, merges: Sequence[Merge]) -> bool:
    """Write what comes out of the merges, and let it count. False, and nothing has changed, if a backup has
    shipped meanwhile what they would drop."""
    directory, files = db._directory, db._list
    numbers = files.free_numbers(sum(len(merge.outputs) for merge in merges))
    made: list[FileEntry] = []
    replaced: dict[FileEntry, list[FileEntry]] = {}
    gone = {entry for merge in merges for entry in merge.entries}
    try:
        for merge in merges:
            here = []
            for summary in merge.outputs:
                here.append(write_merged(db, merge, summary, numbers[len(made)]))
                made.append(here[-1])
            replaced[merge.entries[0]] = here
        directory.fs.sync_directory(directory.path)
        listed = [
            new for entry in files.files for new in (replaced.get(entry, []) if entry in gone else [entry])
        ]
        following = FileList(files=tuple(listed), next_nr=(numbers[-1] + 1) % 65_536)
        with _no_backup_beside(db, merges) as free:
            if free:
                db.drop_checkpoint()
                db.commit_files(following)
    except BaseException:
        if db._failure is None:  # else nobody knows which list counts
            _remove(directory, made)
        raise
    if not free:
        _remove(directory, made)
        return False
    db.replace_files(following)
    _remove(directory, gone)
    return True


@contextmanager
def _no_backup_beside(db: OurDB, merges: Sequence[Merge]) -> Iterator[bool]:
    """While this holds, no backup decides what it ships. False: one has shipped meanwhile what the merges
    would drop. A merge that drops nothing needs none of this: every chain can still be told."""
    dropping = [merge for merge in merges if not all(mask.all() for mask in merge.plan.live)]
    if not dropping:
        yield True
        return
    directory = db._directory
    with _runs_locked(directory), directory.fs.locked(directory.path / line.LOCK_NAME):
        marks = _read_marks(db, needed=True)
        yield not marks or all(merge.entries[-1].last_seq <= marks[0] for merge in dropping)


@contextmanager
def _runs_locked(directory: Directory) -> Iterator[None]:
    """Runs hold a lock on the identity together. Who has it alone knows that none has read what it will
    ship."""
    path = directory.path / IDENTITY
    until = time.monotonic() + _RUN_WAIT_S
    while (file := directory.fs.lock(path, wait=False, create=False)) is None:
        if time.monotonic() > until:
            raise TemporaryError(
                f"a backup of this database is running: condense it when that has ended: {directory.path}",
                kind="busy",
            )
        time.sleep(_RUN_POLL_S)
    with file:
        yield


def _remove(directory: Directory, entries: Iterable[FileEntry]) -> None:
    """Files that no list names, or none any more."""
    for entry in entries:
        directory.fs.unlink(directory.data_path(entry))
        directory.fs.unlink(directory.places_path(entry))


def forget_mark(directory: Directory, store: str) -> None:
    line.update(directory.path, lambda known: line.forget(known, store), fs=directory.fs)
