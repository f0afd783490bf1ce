"""The database: set, delete, batches, condensing. What is below it is in ourdb/logwriter.py."""

# ruff: noqa: A001, A002  (an id is called id)

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from crc32c import crc32c

from ourdb.active import ENDING_BYTES_A_RECORD, RECORD_BYTES_MIN, area_end
from ourdb.batch import Batch, encode_batch
from ourdb.condense import CondenseReport, condense, find_horizon, forget_mark
from ourdb.config import Config, Sync
from ourdb.directory import Directory
from ourdb.errors import InvalidError, MissingIdError
from ourdb.files import File
from ourdb.logwriter import LogWriter
from ourdb.reading import missing, not_given
from ourdb.record import Buffer
from ourdb.segment.header import HEADER_BYTES
from ourdb.units import GIB

if TYPE_CHECKING:
    from ourdb.opening import Recovered

_CLEAR_RECORDS_MAX = 1 << 20
_pack_head = struct.Struct("<IIQQQ").pack
_pack_crc = struct.Struct("<I").pack
_crc32c = crc32c
_clock = time.time_ns


class OurDB(LogWriter):
    """An embedded key-value database with history: u32 ids, values of bytes, every version kept.

    A mapping of int to bytes. One process writes at a time, any number read (`readonly=True`); threads may
    share a handle. Do not use a handle in a forked child: the lock and the mapping are the parent's too.

    What `set`, `delete`, `set_many` and a batch have returned survives kill -9 of the process. A power cut it
    survives after `sync()`; by itself that is done once a second (sync="interval"), with every write
    ("always"), or not at all ("never").
    """

    __slots__ = (
        "_id_max",
        "_importing",
        "_incremental",
        "_next_id",
        "_value_max",
    )

    def __init__(
        self, directory: Directory, lock_file: File | None, uuid: bytes, config: Config, sync: Sync
    ) -> None:
        """Use `ourdb.open`."""
        super().__init__(directory, lock_file, uuid, config, sync)
        self._incremental = config.mode == "incremental"
        self._id_max, self._value_max = config.record_nr_max, config.record_size_max
        self._next_id = 1
        self._importing = False

    def _adopt(self, found: Recovered) -> None:
        super()._adopt(found)
        if self._incremental and self._lookup.highest is not None:
            self._next_id = self._lookup.highest + 1
        self._importing = self._seq == 0

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
            wide = self._storing
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
            if not live[id]:
                live[id] = 1
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

    # -- the whole database --------------------------------------------------------------------------

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

    def info(self) -> dict[str, Any]:
        """Facts about the database, ready for JSON."""
        from ourdb.check import describe

        self._require_open()
        return describe(self)

    def destroy(self) -> None:
        """Close, and remove the database with all that belongs to it. What is foreign in the directory
        stays."""
        self._require_open()
        directory = self._directory
        self.close()
        with directory.lock():
            directory.destroy()

    def __repr__(self) -> str:
        return f"<OurDB {str(self._directory.path)!r}, last seq {self._seq}>"

    # -- inside, under the lock ------------------------------------------------------------------

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
