"""Opening a database: making it, taking the writer's lock, recovering what the last writer left."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ourdb import line
from ourdb.active import ActiveFile
from ourdb.checkpoint import NAME as CHECKPOINT
from ourdb.checkpoint import load_checkpoint
from ourdb.config import Config, LookupKind, Mode, Sync
from ourdb.database import OurDB
from ourdb.directory import (
    CACHE,
    FILES,
    IDENTITY,
    LOCK,
    NOTES,
    SETTINGS,
    TORN,
    Directory,
    FileList,
    Trust,
)
from ourdb.disklookup import DiskLookup
from ourdb.errors import DamageError, ExistsError, InvalidError, NotFoundError, StorageError
from ourdb.files import File, FileSystem, require_linux
from ourdb.history import alive_of
from ourdb.lookup import Lookup, LookupTable, width_for
from ourdb.names import data_file_name
from ourdb.pagetable import remove_files
from ourdb.reader import ReadonlyDB
from ourdb.recovery import Point, check_header, pieces_at, refuse_damage, trusted_places, walk_records
from ourdb.rotation import Before, new_header
from ourdb.sealed import SealedFile
from ourdb.segment.header import HEADER_BYTES, Header
from ourdb.syncing import SYNC_INTERVAL_S, Syncer
from ourdb.tableopening import build_lookup, note_rebuilt, open_lookup
from ourdb.tablepages import TableDamage

_OWN_NAMES = {LOCK, FILES, NOTES, SETTINGS, CACHE, TORN, line.FILE_NAME, line.LOCK_NAME, data_file_name(0)}
_OWN_NAMES |= {name + ".tmp" for name in (FILES, IDENTITY, SETTINGS, line.FILE_NAME)}
_PIECE_BYTES = 1 << 20
LOOKUP_DEFAULT: LookupKind = "memory"


def open(  # noqa: A001
    path: str | os.PathLike[str],
    *,
    mode: Mode | None = None,
    record_nr_max: int | None = None,
    record_size_max: int | None = None,
    file_size: int | None = None,
    sync: Sync | None = None,
    lookup: LookupKind | None = None,
    create: bool = True,
    readonly: bool = False,
    reset: bool = False,
    fs: FileSystem | None = None,
) -> OurDB:
    """Open a database directory; make it if it is not there and `create` says so.

    mode: "kv" (ids are given) or "incremental" (1, 2, 3 ... are given out). record_nr_max: highest id
    allowed, to 2^32-1. record_size_max: longest value in bytes, to 1 GiB. file_size: a data file is rotated
    before it is larger, bytes, below 4 GiB. These four are fixed when the database is made. sync: "never",
    "interval" (each second) or "always"; said here it holds for this handle. lookup: "memory" (5 to 7 bytes
    an id) or "disk" (opens at once, whatever its size); said here it holds from now on, and building the
    other table may take a while. readonly: beside a writer in another process, which is followed; it holds
    the table in memory. reset: throw away what is there. fs: for tests.

    Raises NotFoundError (`no_database`), LockedError (another process writes it), InvalidError (an option
    that contradicts the stored configuration, by name), DamageError (file, offset and seq say where),
    ExistsError (a directory that is not empty and no database), StorageError.
    """
    require_linux()
    directory = Directory(Path(path), fs or FileSystem())
    given = {
        "mode": mode,
        "record_nr_max": record_nr_max,
        "record_size_max": record_size_max,
        "file_size": file_size,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if readonly:
        if reset or lookup is not None:
            what = "reset needs" if reset else "to choose where the lookup table is needs"
            raise InvalidError(f"{what} to write: open without readonly")
        uuid, config = directory.load_identity()
        _refuse_contradictions(config, options)
        return ReadonlyDB.open(directory, uuid, config)
    if not directory.exists() and not create:
        directory.load_identity()  # says what is missing
    if sync is not None:
        options["sync"] = sync
    if lookup not in (None, *get_args(LookupKind)):
        raise InvalidError(f"unknown lookup: {lookup!r} (memory or disk)", option="lookup")
    return _open_writer(directory, options, lookup, reset=reset, create=create)


def create(path: str | os.PathLike[str], *, fs: FileSystem | None = None, **options: Any) -> OurDB:
    """Make a database with these options (those of Config, and `lookup`) and open it. ExistsError if there is
    one."""
    directory = Directory(Path(path), fs or FileSystem())
    if directory.exists():
        raise ExistsError(f"there is a database already: {directory.path}", path=str(directory.path))
    if directory.path.is_file():
        raise ExistsError(f"a file, not a directory: {directory.path}", path=str(directory.path))
    return open(path, fs=fs, **options)


def _open_writer(
    directory: Directory, options: dict[str, Any], lookup: LookupKind | None, *, reset: bool, create: bool
) -> OurDB:
    existed = directory.exists()
    if not existed or reset:
        Config(**options).validate()  # before anything is made, or removed
    if not existed:
        directory.fs.make_directory(directory.path)
    lock = directory.lock()
    try:
        if reset and directory.exists():
            directory.empty()
        if not directory.exists():
            if existed and not (reset or create):
                raise NotFoundError(f"not a database: {directory.path}", path=str(directory.path))
            _make(directory, Config(**options).validate(), lookup)
        lock.ftruncate(0)
        lock.pwrite(b"%d\n" % os.getpid(), 0)
        uuid, stored = directory.load_identity()
        sync = options.pop("sync", stored.sync)
        replace(stored, sync=sync).validate()
        _refuse_contradictions(stored, options)
        return _start(directory, lock, uuid, stored, sync, _choose_lookup(directory, lookup))
    except BaseException:
        lock.close()
        raise


def _choose_lookup(directory: Directory, given: LookupKind | None) -> LookupKind:
    """Where the lookup table is from now on; noted if that is another place than before."""
    if given is None:
        return directory.load_lookup_kind()
    try:
        same = directory.load_lookup_kind() == given
    except DamageError:
        same = False
    if not same:
        directory.replace_lookup_kind(given)
    return given


def _refuse_contradictions(config: Config, options: dict[str, Any]) -> None:
    stored = asdict(config)
    for name, value in options.items():
        if value != stored[name]:
            raise InvalidError(
                f"{name} is {stored[name]!r} in this database and cannot be {value!r}: leave it out",
                option=name,
            )


def _make(directory: Directory, config: Config, lookup: LookupKind | None) -> None:
    """A new, empty database. Its identity is written last: before that there is none, and what a crash left
    is removed here."""
    _remove_leftovers(directory)
    fs = directory.fs
    _sync_parent(directory)
    fs.make_directory(directory.cache)
    fs.make_directory(directory.path / TORN)
    line.create(directory.path, line.new_generation(), fs=fs)
    uuid = secrets.token_bytes(16)
    active = ActiveFile.create(directory, new_header(directory, uuid, config, nr=0, first_seq=1))
    active.close()
    directory.replace_list(FileList(files=(active.entry,), next_nr=1))
    kind = lookup or LOOKUP_DEFAULT
    if kind != "memory":
        directory.replace_lookup_kind(kind)
    directory.write_identity(uuid, config)


def _sync_parent(directory: Directory) -> None:
    """Make the directory's own entry durable: who made it may have been killed before that."""
    try:
        directory.fs.sync_directory(directory.path.parent)
    except StorageError as error:
        if error.kind != "not_writable":  # one that we may not read was made by somebody else
            raise


def _remove_leftovers(directory: Directory) -> None:
    """Of a database that was never finished. ExistsError if anything else is there."""
    foreign = set(directory.fs.names(directory.path)) - _OWN_NAMES
    first = directory.path / data_file_name(0)
    if not foreign and first.is_file():
        with directory.fs.open(first) as file:
            if any(file.pread(36, HEADER_BYTES)):
                foreign.add(first.name)  # there are records: somebody lost ourdb.json
    if foreign:
        raise ExistsError(
            f"neither empty nor a database: {directory.path} (it has {sorted(foreign)[0]})",
            path=str(directory.path),
        )
    directory.empty()


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What the log holds. end: behind the last whole batch, in the active file."""

    files: FileList
    active: ActiveFile
    lookup: LookupTable
    end: Point
    before: Before
    durable_seq: int
    checkpoint_seq: int
    notes: list[str]


def _start(
    directory: Directory, lock: File, uuid: bytes, config: Config, sync: Sync, lookup: LookupKind
) -> OurDB:
    found = recover(directory, uuid, config, lookup)
    db = OurDB(directory, lock, uuid, config, sync)
    try:
        db._adopt(found)
        for note in found.notes:
            db._note(note)
    except BaseException:
        found.active.close()
        found.lookup.close()
        raise
    if sync == "interval":
        db._syncer = Syncer(db, SYNC_INTERVAL_S)
    return db


def recover(directory: Directory, uuid: bytes, config: Config, kind: LookupKind = "memory") -> Recovered:
    """Read the log's end, drop a torn record, and build the lookup table. The writer's lock is held.

    A second recovery changes nothing. DamageError for anything that is not a torn tail.
    """
    notes: list[str] = []
    directory.fs.make_directory(directory.cache)
    directory.fs.make_directory(directory.path / TORN)
    directory.fs.sync_directory(directory.path)  # who renamed the list may have been killed before this
    files = directory.load_list()
    refuse_missing(directory, files)
    lookup, covered = _open_table(directory, files, uuid, config, kind, notes)
    before = Before()
    if files.sealed:
        last = SealedFile(directory, files.sealed[-1], uuid)
        before = Before.after(last.summary)
        if before.highest is not None:
            lookup.highest = max(before.highest, lookup.highest or 0)
        _cut_behind_footer(directory, files)
    active = ActiveFile(directory, files.active, config.file_size)
    try:
        check_header(active.file, files, uuid)
        trust = directory.load_trust(covered)
        end = _recover_active(directory, active, before_time(files), trust, config, notes)
        lookup = _put_active(
            active,
            lookup,
            range(max(covered + 1, files.active.first_seq), end.seq + 1),
            notes,
            lambda: build_lookup(directory, files, uuid, config.record_nr_max),
        )
    except BaseException:
        active.close()
        lookup.close()
        raise
    _remove_unlisted(directory, files, uuid, end.seq, notes)
    return Recovered(
        files=files,
        active=active,
        lookup=lookup,
        end=end,
        before=before,
        durable_seq=end.seq if not trust.same_boot else trust.durable_seq,
        checkpoint_seq=covered,
        notes=notes,
    )


def before_time(files: FileList) -> int:
    """The time of the last record before the active file."""
    return files.sealed[-1].last_time if files.sealed else 0


def refuse_missing(directory: Directory, files: FileList) -> None:
    there = set(directory.data_files())
    for entry in files.files:
        if entry.nr not in there:
            raise DamageError(
                f"data file is missing: {directory.data_path(entry)} (restore the database from a backup)",
                file=entry.name,
                seq=entry.first_seq,
            )


def _open_table(
    directory: Directory, files: FileList, uuid: bytes, config: Config, kind: LookupKind, notes: list[str]
) -> tuple[LookupTable, int]:
    """The table of the sealed files, and the seq up to which its cache has it. What is left of the other kind
    goes."""
    if kind == "disk":
        directory.fs.unlink(directory.cache / CHECKPOINT)
        return open_lookup(directory, files, uuid, config.record_nr_max, notes)
    remove_files(directory)
    lookup, covered = load_table(directory, files, uuid, config, notes)
    if notes:
        directory.fs.unlink(directory.cache / CHECKPOINT)  # so that it is noted once
    return lookup, covered


def load_table(
    directory: Directory, files: FileList, uuid: bytes, config: Config, notes: list[str]
) -> tuple[Lookup, int]:
    """The lookup table of the sealed files: the checkpoint, if it is any good, and the columns of what comes
    after it; and the seq that the checkpoint covers."""
    ids = {entry.file_id for entry in files.files}
    found = load_checkpoint(directory, uuid, config.record_nr_max, ids)
    if found is None and (directory.cache / CHECKPOINT).exists():
        notes.append(
            "the checkpoint of the lookup table is not usable: the table was rebuilt from the data files"
        )
    lookup, covered = (found[0], found[1].seq) if found else (Lookup(config.record_nr_max), 0)
    put_sealed(directory, files, uuid, lookup, covered)
    return lookup, covered


def put_sealed(directory: Directory, files: FileList, uuid: bytes, lookup: Lookup, covered: int) -> None:
    """Put into a table what the sealed files hold beyond `covered`."""
    for entry in files.sealed:
        if entry.last_seq > covered:
            for columns in SealedFile(directory, entry, uuid).columns(first_seq=covered + 1):
                new = columns[int(np.searchsorted(columns.seq, np.uint64(covered), "right")) :]
                lookup.put_many(new.id, new.seq, alive_of(new))


def _recover_active(
    directory: Directory,
    active: ActiveFile,
    time_ms: int,
    trust: Trust,
    config: Config,
    notes: list[str],
) -> Point:
    entry, size = active.entry, active.size
    start = Point(offset=HEADER_BYTES, seq=entry.first_seq - 1, time_ms=time_ms)
    cached = np.frombuffer(active.places, np.uint32)
    used = int(np.argmin(cached != 0)) if not cached.all() else len(cached)
    proven, point = trusted_places(active.map, cached[:used], start, size, config, trust)
    walk = walk_records(active.map, point, size, config)
    whole = np.array(walk.places[: walk.whole], np.uint32)
    ranges = active.file.data_ranges(walk.end.offset, size)
    refuse_damage(active.map, walk, ranges, trust, config, entry.name)
    if not used and walk.whole:
        notes.append(f"the places of {entry.name} were lost: they were rebuilt from its records")
    count = len(proven) + len(whole)
    active.places[len(proven) : count] = whole.data
    if not trust.same_boot:
        _write_again(active, point.offset, walk.end.offset)
    _clear_tail(directory, active, walk.end, ranges, trust, notes)
    if used > count:
        active.places[count:used] = np.zeros(used - count, np.uint32).data
    return walk.end


def _put_active(
    active: ActiveFile,
    lookup: LookupTable,
    seqs: range,
    notes: list[str],
    rebuild: Callable[[], LookupTable],
) -> LookupTable:
    """The table with these records of the active file. A table on disk in which damage shows now is built
    anew, from the sealed files, and has all of them put."""
    try:
        _put_places(active, lookup, seqs)
    except TableDamage as damage:
        note_rebuilt(notes, damage)
        lookup.close()
        lookup = rebuild()
        _put_places(active, lookup, range(active.entry.first_seq, seqs.stop))
    return lookup


def _put_places(active: ActiveFile, lookup: LookupTable, seqs: range) -> None:
    first, last = active.entry.first_seq, seqs.stop - 1
    if last > lookup.seq_max and isinstance(lookup, DiskLookup):
        lookup.widen(width_for(last), seq=seqs.start - 1, file_id=active.entry.file_id)
    for columns in pieces_at(active.map, active.place_column(last - first + 1)[seqs.start - first :]):
        lookup.put_many(columns.id, columns.seq, alive_of(columns))


def _write_again(active: ActiveFile, start: int, end: int) -> None:
    """After a failed sync the system takes pages for clean that are not on the disk, and no later sync writes
    them: unless they are written to again."""
    for offset in range(start, end, _PIECE_BYTES):
        active.file.pwrite(active.map[offset : min(offset + _PIECE_BYTES, end)], offset)


def _clear_tail(
    directory: Directory,
    active: ActiveFile,
    end: Point,
    ranges: list[tuple[int, int]],
    trust: Trust,
    notes: list[str],
) -> None:
    """What lies behind the last whole batch is kept aside and zeroed, durably, before anything is appended:
    else an old record could follow a new one."""
    file = active.file
    dirty, last = [], 0
    for begin, stop in ranges:
        for offset in range(begin, stop, _PIECE_BYTES):
            data = file.pread(min(_PIECE_BYTES, stop - offset), offset).rstrip(b"\0")
            if data:
                dirty.append((offset, len(data)))
                last = offset + len(data)
    torn = directory.path / TORN
    name = f"{active.entry.nr}-{active.entry.file_id:016x}-{end.offset}"
    earlier = [other for other in directory.fs.names(torn) if other.startswith(name)]
    if dirty:
        kept = torn / f"{name}-{len(earlier)}.torn"
        directory.fs.copy_out(file, end.offset, last, kept)
        notes.append(
            f"the log ends after seq {end.seq}: {last - end.offset} bytes of an unfinished write were "
            f"dropped from {active.entry.name} at offset {end.offset} and kept in {TORN}/{kept.name}"
        )
        for offset, length in dirty:
            file.pwrite(bytes(length), offset)
    if dirty or earlier or not trust.same_boot:  # earlier: a recovery may have died before its sync
        file.fdatasync()


def _cut_behind_footer(directory: Directory, files: FileList) -> None:
    """A crash between the commit of a rotation and the cut leaves what was allocated behind the footer."""
    entry = files.sealed[-1]
    with directory.fs.open(directory.data_path(entry), write=True) as file:
        if file.size() > entry.bytes:
            file.ftruncate(entry.bytes)


def _remove_unlisted(
    directory: Directory, files: FileList, uuid: bytes, last_seq: int, notes: list[str]
) -> None:
    """Data files that the list does not name: of a rotation or condensing that did not come to its commit, or
    sources that condensing had no time to remove. One with records beyond the log's end is none of these."""
    listed = {entry.nr for entry in files.files}
    for nr in directory.data_files():
        if nr in listed:
            continue
        path = directory.path / data_file_name(nr)
        with directory.fs.open(path) as file:
            head = file.pread(HEADER_BYTES + 36, 0)
        try:
            header = Header.decode(head)
        except DamageError:
            header = None
        if header and header.uuid != uuid:
            notes.append(f"{path.name} belongs to another database: it was left alone")
            continue
        if header and header.first_seq > last_seq and any(head[HEADER_BYTES:]):
            raise DamageError(
                f"{path.name} goes on after seq {last_seq}, but {FILES}, an old copy, does not name it",
                file=path.name,
                seq=header.first_seq,
            )
        directory.fs.unlink(path)
    kept = {directory.places_path(entry).name for entry in files.files}
    for name in directory.fs.names(directory.cache):
        if name.endswith((".places", ".tmp")) and name not in kept:
            directory.fs.unlink(directory.cache / name)
