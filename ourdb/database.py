"""The database as its one writer has it: set, delete, batches, rotation, durability."""

# ruff: noqa: A001, A002  (an id is called id)

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from crc32c import crc32c

from ourdb import rotation
from ourdb.active import ENDING_BYTES_A_RECORD, RECORD_BYTES_MIN, ActiveFile, area_end
from ourdb.batch import Batch, encode_batch
from ourdb.checkpoint import NAME as CHECKPOINT
from ourdb.checkpoint import Covered, write_checkpoint
from ourdb.condense import CondenseReport, condense, find_horizon, forget_mark
from ourdb.config import Config, Sync
from ourdb.directory import Directory, FileEntry, FileList, SyncMark
from ourdb.errors import Error, InvalidError, MissingIdError, UnusableError
from ourdb.files import File
from ourdb.reading import Reading, missing, not_given
from ourdb.record import Buffer
from ourdb.sealed import SealedFile
from ourdb.segment.header import HEADER_BYTES
from ourdb.syncing import Syncer
from ourdb.units import GIB, MIB

if TYPE_CHECKING:
    from ourdb.opening import Recovered

T = TypeVar("T", bound="OurDB")

SYNC_INTERVAL_S = 1.0
_CHECKPOINT_BYTES_MIN, _CHECKPOINT_FACTOR = 64 * MIB, 4
_CLEAR_RECORDS_MAX = 1 << 20
_pack_head = struct.Struct("<IIQQQ").pack
_pack_crc = struct.Struct("<I").pack
_crc32c = crc32c
_clock = time.time_ns


class _Closed:
    """In the place of what a closed handle had: whatever is asked of it, it says so."""

    def _refuse(self, *_: object) -> Any:
        raise UnusableError("the database is closed: open it again", kind="closed")

    __getitem__ = __getattr__ = _refuse


class OurDB(Reading):
    """An embedded key-value database with history: u32 ids, values of bytes, every version kept.

    A mapping of int to bytes. One process writes at a time, any number read (`readonly=True`); threads may
    share a handle. Do not use a handle in a forked child: the lock and the mapping are the parent's too.

    What `set`, `delete`, `set_many` and a batch have returned survives kill -9 of the process. A power cut it
    survives after `sync()`; by itself that is done once a second (sync="interval"), with every write
    ("always"), or not at all ("never").
    """

    __slots__ = (
        "_always",
        "_before",
        "_checkpoint",
        "_durable",
        "_failure",
        "_file",
        "_first",
        "_id_max",
        "_importing",
        "_incremental",
        "_limit",
        "_list",
        "_lock_file",
        "_logged",
        "_map",
        "_mark",
        "_next_id",
        "_places",
        "_pos",
        "_sync",
        "_sync_lock",
        "_syncer",
        "_time_held",
        "_value_max",
    )

    def __init__(
        self, directory: Directory, lock_file: File | None, uuid: bytes, config: Config, sync: Sync
    ) -> None:
        """Use `ourdb.open`."""
        super().__init__(directory, uuid, config)
        self._lock_file = lock_file
        self._sync: Sync = sync
        self._always = sync == "always"
        self._incremental = config.mode == "incremental"
        self._id_max, self._value_max = config.record_nr_max, config.record_size_max
        self._sync_lock = threading.Lock()
        self._failure: Error | None = None
        self._time_held = False
        self._limit = self._pos = self._first = self._durable = 0
        self._logged = 0  # bytes of the log since the last checkpoint
        self._checkpoint = 0  # its size
        self._next_id = 1
        self._importing = False
        self._syncer: Syncer | None = None
        self._mark: SyncMark | None = None
        self._before: rotation.Before

    def _adopt(self, found: Recovered) -> None:
        """Begin with what recovery has found."""
        self._list, self._before = found.files, found.before
        self._use_lookup(found.lookup)
        self._use_file(found.active)
        self._pos, self._seq, self._time = found.end.offset, found.end.seq, found.end.time_ms
        self._durable = found.durable_seq
        self._mark = SyncMark(self._directory, self._durable)
        self._use_sealed(found.files, {})
        self._logged = sum(e.bytes for e in found.files.sealed if e.last_seq > found.checkpoint_seq)
        if self._incremental and self._lookup.highest is not None:
            self._next_id = self._lookup.highest + 1
        self._importing = self._seq == 0
        self._set_limit(self._pos)

    # -- writing ----------------------------------------------------------------------------------

    def set(self, value: Buffer, id: int | None = None) -> int:
        """Write a value; returns its id.

        value: 0 to `record_size_max` bytes. id: 0 to `record_nr_max`; in incremental mode that of a record
        that is there, or None for a new one.

        Raises InvalidError (value too large, id out of range) and MissingIdError (an id that is not there,
        incremental mode) before anything is written; StorageError (`disk_full`): nothing was written, the
        database stays usable; UnusableError (`closed`, `poisoned` after a failed write or fsync).
        """
        if type(value) is not bytes or type(id) is not int:
            value, id = self._clean(value, id)
        length = len(value)
        if length > self._value_max:
            raise self._too_large(length)
        self._acquire()
        try:
            if self._incremental:
                id = self._give(id)
            elif not 0 <= id <= self._id_max:  # type: ignore[operator]
                raise self._out_of_range(id)
            pos = self._pos
            end = pos + 36 + length
            if end > self._limit:
                pos = self._make_room(36 + length, 1)
                end = pos + 36 + length
            now = _clock() // 1_000_000
            if now < self._time:
                now = self._hold_time(now)
            seq = self._seq + 1
            wide = self._wide
            if wide is None:
                view = self._view
                body = _pack_head(length, id, now, seq, view[id]) + value  # type: ignore[index]
                self._map[pos:end] = _pack_crc(_crc32c(body)) + body
                self._places[seq - self._first] = pos
                view[id] = seq  # type: ignore[index]
            else:
                unpack_from, pack_into, table, width, shift = wide
                at = id * width  # type: ignore[operator]
                low, high = unpack_from(table, at)
                body = _pack_head(length, id, now, seq, low | high << shift) + value
                self._map[pos:end] = _pack_crc(_crc32c(body)) + body
                self._places[seq - self._first] = pos
                pack_into(table, at, seq & (1 << shift) - 1, seq >> shift)
            live = self._live
            if not live[id]:  # type: ignore[index]
                live[id] = 1  # type: ignore[index]
                self._lookup.note_new(id)  # type: ignore[arg-type]
            self._time = now
            self._pos = end
            self._seq = seq
        except BaseException as error:
            self._settle(error)
            raise
        finally:
            self._release()
        if self._always:
            self._sync_to(seq)
        return id  # type: ignore[return-value]

    def delete(self, id: int) -> None:
        """Write a tombstone: the id has no value from now on; its history stays. MissingIdError if it has
        none."""
        with self._writing():
            if id not in self:
                raise missing(id)
            seq = self._append([int(id)], [b""], [0])
        if self._always:
            self._sync_to(seq)

    def batch(self, *, importing: bool = False) -> Batch:
        """A context manager that collects writes: all of them when it ends, none after an exception.

        It has `set`, `get`, `delete`, `db[id]`, `in`, and sees its own writes. importing: in incremental
        mode, take given ids that are not there yet; only while nothing but imports was written to the
        database."""
        return Batch(self, importing=importing)

    def set_many(
        self,
        pairs: Mapping[int, Buffer] | Iterable[tuple[int | None, Buffer]],
        *,
        importing: bool = False,
    ) -> list[int]:
        """Write many values as one batch; returns their ids. In incremental mode id None is a new one.

        All of them or, after an error or a crash, none. importing: as for `batch`. Raises as `set` does, and
        InvalidError for a batch that is larger than `file_size` or 1 GiB.
        """
        given = pairs.items() if isinstance(pairs, Mapping) else pairs
        batch = Batch(self, importing=importing)
        return batch.write_all(given)

    def commit(
        self, ids: Sequence[int], values: Sequence[bytes], deleted: Sequence[int], *, importing: bool = False
    ) -> None:
        """Write these records as one batch; `deleted`: indexes of the tombstones. Used by `Batch`."""
        if not ids:
            return
        with self._writing():
            self._importing &= importing
            seq = self._append(ids, values, deleted)
        if self._always:
            self._sync_to(seq)

    def __setitem__(self, id: int, value: Buffer) -> None:
        if id is None:
            raise InvalidError("an id is an int: None")
        self.set(value, id)

    def __delitem__(self, id: int) -> None:
        self.delete(id)

    def popitem(self) -> tuple[int, bytes]:
        """Delete the lowest id; returns it and its value. MissingIdError if there is none."""
        for id in self:
            return id, self.pop(id)
        raise MissingIdError("the database is empty")

    def clear(self) -> None:
        """Delete every id, as one batch; as several if one does not fit into a file."""
        room = area_end(self.config.file_size, 0) - HEADER_BYTES
        fit = min(room // (RECORD_BYTES_MIN + ENDING_BYTES_A_RECORD), _CLEAR_RECORDS_MAX)
        ids = iter(self)
        while some := list(islice(ids, fit)):
            self.commit(some, [b""] * len(some), range(len(some)))

    def get_next_id(self) -> int:
        """The id that the next `set` without one will give: one above the highest ever given. Incremental
        mode only (InvalidError)."""
        self._require_open()
        if not self._incremental:
            raise InvalidError("ids are given by the caller in kv mode: there is no next id")
        return self._next_id

    # -- inside, under the lock ------------------------------------------------------------------

    def _writing(self) -> _Writing:
        return _Writing(self)

    def _clean(self, value: Any, id: Any) -> tuple[bytes, int | None]:
        """Arguments of `set` as bytes and int, or InvalidError."""
        if type(value) is not bytes:
            value = clean_value(value)
        if id is None and not self._incremental:
            raise InvalidError("an id is needed in kv mode")
        return value, None if id is None else clean_id(id)

    def _too_large(self, length: int) -> InvalidError:
        return InvalidError(f"value is too large: {length} bytes, record_size_max is {self._value_max}")

    def _out_of_range(self, id: object) -> InvalidError:
        return InvalidError(f"id must be 0 to {self._id_max} (record_nr_max): {id}")

    def check_value(self, value: bytes) -> None:
        """InvalidError if a value is too large."""
        if len(value) > self._value_max:
            raise self._too_large(len(value))

    def check_id(self, id: int, *, importing: bool) -> None:
        """InvalidError or MissingIdError if this id cannot be written."""
        if not (1 if self._incremental else 0) <= id <= self._id_max:
            if self._incremental and not importing:
                raise not_given(id)
            raise self._out_of_range(id)
        if self._incremental and importing and not (self._importing or self._live[id]):
            raise InvalidError(f"only an empty incremental database takes ids: {id}")
        if self._incremental and not importing and not self._live[id]:
            raise not_given(id)

    def _give(self, id: int | None) -> int:
        """The id of a write in incremental mode: a new one, or one that is there."""
        if id is None:
            id = self.take_next_id()
        else:
            self.check_id(id, importing=False)
        self._importing = False
        return id

    def take_next_id(self) -> int:
        """A new id, given once. Under the lock."""
        id = self._next_id
        if id > self._id_max:
            raise InvalidError(f"all ids are given: record_nr_max is {self._id_max}")
        self._next_id = id + 1
        return id

    def pass_id(self, id: int) -> None:
        """New ids come behind this one, which an import gives: also those of its batch."""
        with self._lock:
            self._next_id = max(self._next_id, id + 1)

    def new_id(self) -> int:
        """A new id for a batch that is not written yet."""
        with self._lock:
            self._require_writable()
            return self.take_next_id()

    def _append(self, ids: Sequence[int], values: Sequence[bytes], deleted: Sequence[int]) -> int:
        """Append one batch; returns its last seq."""
        count = len(ids)
        size = RECORD_BYTES_MIN * count + sum(map(len, values))
        if size > GIB or HEADER_BYTES + size > area_end(self.config.file_size, count):
            raise InvalidError(
                f"a batch must fit into file_size ({self.config.file_size}) and 1 GiB: "
                f"{size} bytes, {count} records"
            )
        if self._pos + size > self._limit:
            self._make_room(size, count)
        now = _clock() // 1_000_000
        if now < self._time:
            now = self._hold_time(now)
        start, first = self._pos, self._seq + 1
        encoded = encode_batch(ids, values, deleted, self._lookup, first_seq=first, time_ms=now)
        self._map[start : start + size] = encoded.data
        slot = first - self._first
        self._places[slot : slot + count] = (encoded.starts + start).astype(np.uint32).data
        self._lookup.put_many(encoded.ids, encoded.seqs, encoded.alive, distinct=encoded.distinct)
        if self._incremental and self._lookup.highest is not None:
            self._next_id = max(self._next_id, self._lookup.highest + 1)
        self._time, self._pos, self._seq = now, start + size, first + count - 1
        return self._seq

    def _make_room(self, size: int, records: int) -> int:
        """Room for these bytes and records; returns where they go. Slow path of every limit: a closed or
        poisoned handle, a wider lookup table, more space in the file, the next file."""
        self._require_writable()
        if self._seq + records > self._lookup.seq_max:
            self._lookup.widen(self._seq + records)
            self._use_lookup(self._lookup)
        count = self._seq - self._first + 1
        if self._pos + size > area_end(self.config.file_size, count + records):
            self._rotate()
        if self._pos + size > self._file.size:
            self._file.grow(self._pos + size)
            self._use_file(self._file)
        self._set_limit(self._pos + size)
        return self._pos

    def _set_limit(self, needed: int) -> None:
        """The one number that `set` compares with: whichever limit comes first, if records were as small as
        they can be. It is set anew each time that it is reached."""
        count = self._seq - self._first + 1
        rest = max(0, area_end(self.config.file_size, count) - self._pos)
        in_file = self._pos + rest * RECORD_BYTES_MIN // (RECORD_BYTES_MIN + 16)
        in_table = self._pos + RECORD_BYTES_MIN * (self._lookup.seq_max - self._seq)
        limit = max(needed, min(self._file.size, in_file, in_table))
        self._limit = -1 if self._failure else limit

    def _use_file(self, file: ActiveFile) -> None:
        self._file, self._first = file, file.entry.first_seq
        self._map, self._places = file.map, file.places
        self._active = (self._first, file.map, file.places)

    def _hold_time(self, now: int) -> int:
        """Times never go back: a clock that does is held at the last record's, and that is noted once."""
        if not self._time_held:
            self._time_held = True
            self._note(
                f"the clock is {self._time - now} ms before the last record: its time is used until then"
            )
        return self._time

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self._directory.note(text)

    def _settle(self, error: BaseException) -> None:
        """After an exception inside a write: nothing was written if it is one of ours; else (an interrupt)
        nobody knows how far it came, and only recovery can tell."""
        if not isinstance(error, Error):
            self._poison(UnusableError(f"a write was interrupted ({type(error).__name__})", kind="poisoned"))

    def _poison(self, error: Error) -> None:
        self._failure = self._failure or error
        self._limit = -1
        if self._mark:
            self._mark.distrust()

    def _require_open(self) -> None:
        if self._lock_file is None:
            raise UnusableError(f"the database is closed: {self._directory.path}", kind="closed")

    def _require_writable(self) -> None:
        self._require_open()
        if self._failure is not None:
            raise UnusableError(
                f"an earlier write or sync failed: {self._failure} (close the database and open it again)",
                kind="poisoned",
            ) from self._failure

    # -- durability, rotation ----------------------------------------------------------------------

    def sync(self) -> None:
        """Make durable what was written so far: it survives a power cut. After an error the database refuses
        writes until it is opened again."""
        self._require_writable()
        self._sync_to(self._seq)

    def _sync_to(self, seq: int) -> None:
        with self._sync_lock:  # one sync for all who wait here
            if self._durable >= seq:
                return
            self._require_writable()
            target, file = self._seq, self._file  # in this order: what another file holds is durable
            try:
                file.file.fdatasync()
                self._set_durable(target)
            except Error as error:
                self._poison(error)
                raise

    def _set_durable(self, seq: int) -> None:
        self._durable = max(self._durable, seq)
        if self._mark:
            self._mark.write(self._durable)

    def rotate(self) -> None:
        """Seal the active file, durably, and begin the next one. Nothing happens if it has no record."""
        with self._writing():
            if self._seq >= self._first:
                self._rotate()

    def _rotate(self) -> None:
        """Under the lock."""
        with self._sync_lock:
            try:
                sealed = rotation.rotate(
                    self._directory,
                    self._list,
                    self._file,
                    self._before,
                    uuid=self.uuid,
                    config=self.config,
                    last_seq=self._seq,
                    end=self._pos,
                )
            except rotation.NothingChanged as refused:
                raise refused.error from refused
            except BaseException as error:
                self._poison(error if isinstance(error, Error) else UnusableError("rotation was interrupted"))
                raise
            self._logged += self._pos
            self._list, self._before = sealed.files, sealed.before
            self._add_sealed(sealed.entry)
            self._pos = HEADER_BYTES
            self._use_file(sealed.active)
            self._set_durable(self._seq)
        if self._logged >= max(_CHECKPOINT_BYTES_MIN, _CHECKPOINT_FACTOR * self._checkpoint):
            self._write_checkpoint(sealed.entry.file_id)
        self._set_limit(self._pos)

    def _write_checkpoint(self, file_id: int) -> None:
        """The records that it covers are durable. A cache: where there is no room, there is none."""
        try:
            covered = Covered(seq=self._seq, file_id=file_id)
            self._checkpoint = write_checkpoint(self._directory, self._lookup, self.uuid, covered)
            self._logged = 0
        except (Error, FileNotFoundError) as error:
            self.notes.append(f"no checkpoint was written: {error}")

    def condense(
        self,
        window_ms: int | None = None,
        keep_versions: int | None = None,
        *,
        dry_run: bool = False,
        without: str | None = None,
    ) -> CondenseReport:
        """Merge sealed files. All history is kept unless a window or a number of versions is given.

        window_ms: keep every state of the last so many milliseconds, counted back from the earlier of now and
        the last record; before it only what these states need. keep_versions: keep that many versions of each
        id besides; without window_ms nothing else is kept of the past. What was not shipped to a store yet,
        to any one that this database was backed up to, stays whole; `forget` drops a store, `without` leaves
        it (its identity) out of account this once. dry_run: plan only."""
        self._require_writable()
        horizon = find_horizon(self, window_ms, keep_versions)
        with self._writing():
            return condense(
                self, horizon=horizon, keep_versions=keep_versions, dry_run=dry_run, without=without
            )

    def forget(self, store: str) -> None:
        """Drop the shipped mark of a store (its identity), so that condensing need not spare what it has
        not."""
        forget_mark(self._directory, store)

    def commit_files(self, files: FileList) -> None:
        """Condensing has made new files, which are durable: they count when this returns. Under the lock."""
        try:
            self._directory.replace_list(files)
        except BaseException as error:
            self._poison(error if isinstance(error, Error) else UnusableError("condensing was interrupted"))
            raise

    def drop_checkpoint(self) -> None:
        """The file that it ends in is about to be condensed away: another is written when one is due."""
        self._directory.fs.unlink(self._directory.cache / CHECKPOINT)
        self._checkpoint = 0
        self._logged = sum(entry.bytes for entry in self._list.sealed)

    def replace_files(self, files: FileList) -> None:
        """Use the files of another list. Under the lock."""
        kept = {file.entry: file for file in self._files[1]}
        self._list = files
        self._use_sealed(files, kept)
        self._mapped = [file for file in self._files[1] if file.opened]

    # -- the end ----------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """Facts about the database, ready for JSON."""
        from ourdb.check import describe

        self._require_open()
        return describe(self)

    def close(self) -> None:
        """Give the lock back. Durable when it returns, unless sync is "never". Closing twice is no error."""
        if self._syncer:
            self._syncer.stop()
        with self._lock:
            if self._lock_file is None:
                return
            try:
                self._finish()
            finally:
                self._let_go()

    def _finish(self) -> None:
        """Sync what is left, and a checkpoint if reading the log again would take long."""
        if self._failure is not None:
            return
        logged = self._logged + self._pos
        wanted = logged >= max(_CHECKPOINT_BYTES_MIN, _CHECKPOINT_FACTOR * self._checkpoint)
        if self._sync != "never" or wanted:
            self._sync_to(self._seq)
        if wanted and self._seq:
            active = self._seq >= self._first
            self._write_checkpoint((self._list.files[-1] if active else self._list.files[-2]).file_id)

    def _let_go(self) -> None:
        self._limit = -1
        if self._mark:
            self._mark.close()
        self._file.close()
        self._closed()
        if self._lock_file:
            self._lock_file.close()
        self._lock_file = None

    def _closed(self) -> None:
        """Let go of tables and mappings."""
        closed: Any = _Closed()
        self._live = self._lookup = self._map = self._places = closed
        self._files, self._mapped = ([], []), []
        self._active = (0, closed, closed)

    def destroy(self) -> None:
        """Close, and remove the database with all that belongs to it. What is foreign in the directory
        stays."""
        self._require_open()
        directory = self._directory
        self.close()
        with directory.lock():
            directory.destroy()

    def _use_sealed(self, files: FileList, kept: Mapping[FileEntry, SealedFile]) -> None:
        """Publish the sealed files of a list, all at once: other threads read beside."""
        found = [kept.get(entry) or SealedFile(self._directory, entry, self.uuid) for entry in files.sealed]
        self._files = ([entry.first_seq for entry in files.sealed], found)

    def _add_sealed(self, entry: FileEntry) -> None:
        firsts, files = self._files
        file = SealedFile(self._directory, entry, self.uuid)
        self._files = ([*firsts, entry.first_seq], [*files, file])

    def _active_name(self) -> str:
        return self._list.active.name

    @property
    def active_bytes(self) -> int:
        """Bytes of header and records in the active file."""
        return self._pos

    @property
    def path(self) -> str:
        """The directory."""
        return str(self._directory.path)

    def __enter__(self: T) -> T:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OurDB {str(self._directory.path)!r}, last seq {self._seq}>"


class _Writing:
    """The writer's lock for all but `set`: what goes wrong inside, and is not ours, poisons the handle."""

    __slots__ = ("_db",)

    def __init__(self, db: OurDB) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db._lock.acquire()
        try:
            self._db._require_writable()
        except BaseException:
            self._db._lock.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._db._settle(error)
        finally:
            self._db._lock.release()


def clean_value(value: Any) -> bytes:
    """A value as bytes, or InvalidError."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise InvalidError(f"a value is bytes, not {type(value).__name__}")
    return bytes(value)


def clean_id(id: Any) -> int:
    """An id as int, or InvalidError."""
    if isinstance(id, bool) or not hasattr(id, "__index__"):
        raise InvalidError(f"an id is an int: {id!r}")
    return int(id.__index__())
