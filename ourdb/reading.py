"""Reading: what the writer and the readers in other processes have in common.

Reads take no lock. They use snapshots (the table, the active file, the sealed files) that a writer
replaces whole; what they find is checked by checksum, id and seq, and if anything does not match they
try again under the lock, where it has to.
"""

# ruff: noqa: A001, A002  (an id is called id)

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from datetime import datetime
from mmap import mmap
from operator import itemgetter
from threading import Lock
from typing import Any, Literal, TypeVar, overload

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from ourdb import history
from ourdb.config import Config
from ourdb.directory import Directory
from ourdb.errors import DamageError, InvalidError, MissingIdError, UnreachableError
from ourdb.files import descriptors_max
from ourdb.history import Version
from ourdb.lookup import Lookup, LookupTable, Wide
from ourdb.record import TOMBSTONE, Record, decode_record, gather_headers
from ourdb.sealed import Opened, SealedFile
from ourdb.units import When
from ourdb.views import Items, Values

D = TypeVar("D")
Order = Literal["id", "log"]
Snapshot = tuple[int, mmap, "memoryview[int]"]

_MAPPED_FILES_MAX = 256
_PIECE_IDS = 1 << 15
_FEW_IDS = 16
_head = struct.Struct("<IIIQQ").unpack_from
_without_header = itemgetter(slice(32, None))
_RETRY = (IndexError, ValueError, struct.error, DamageError, FileNotFoundError)


class Reading(MutableMapping[int, bytes]):
    """An open database as far as it is read."""

    __slots__ = (
        "__weakref__",
        "_acquire",
        "_active",
        "_directory",
        "_files",
        "_live",
        "_lock",
        "_lookup",
        "_mapped",
        "_mapped_max",
        "_release",
        "_seq",
        "_storing",
        "_time",
        "_view",
        "_wide",
        "config",
        "notes",
        "uuid",
    )

    def __init__(self, directory: Directory, uuid: bytes, config: Config) -> None:
        self._directory = directory
        self.uuid, self.config = uuid, config
        self.notes: list[str] = []
        self._lock: Any = Lock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._seq = self._time = 0
        self._mapped: list[SealedFile] = []
        self._mapped_max = min(_MAPPED_FILES_MAX, descriptors_max() // 16)  # each has two, and is not alone
        self._files: tuple[list[int], list[SealedFile]] = ([], [])
        self._active: Snapshot
        self._use_lookup(Lookup(config.record_nr_max))

    def _use_lookup(self, lookup: LookupTable) -> None:
        self._lookup = lookup
        self._live: Any = lookup.live
        self._view: memoryview[int] = lookup.view
        self._wide: Wide | None = lookup.wide
        self._storing: Wide | None = lookup.storing

    # -- one value --------------------------------------------------------------------------------

    @overload
    def get(
        self, id: int, default: None = None, *, at: When | None = None, seq: int | None = None
    ) -> bytes | None: ...
    @overload
    def get(self, id: int, default: D, *, at: When | None = None, seq: int | None = None) -> bytes | D: ...
    def get(self, id: int, default: Any = None, *, at: When | None = None, seq: int | None = None) -> Any:
        """The value of an id, or `default`. With `at` or `seq`: as of that time or seq (inclusive).

        Raises UnreachableError if that moment cannot be told exactly (condensed away, inside a batch, beyond
        the last seq), DamageError if the record is damaged on disk. Any thread; takes no lock.
        """
        if at is not None or seq is not None:
            return self._get_as_of(id, default, at, seq)
        try:
            if id < 0 or not self._live[id]:
                return default
            wide = self._wide
            if wide is None:
                found = self._view[id]
            else:
                unpack_from, _, table, width, shift = wide
                low, high = unpack_from(table, id * width)
                found = low | high << shift
            first, mapping, places = self._active
            if found >= first:
                place = places[found - first]
            else:
                firsts, files = self._files
                file = files[bisect_right(firsts, found) - 1]
                mapping, places, _ = file.opened  # type: ignore[misc]
                place = places[found - file.first_seq]
            crc, length, its_id, flags_time, its_seq = _head(mapping, place)
            body = mapping[place + 4 : place + 36 + length]
            if (
                crc32c(body) == crc
                and its_seq == found
                and its_id == id
                and (length or not flags_time >> 48 & 1)
            ):
                return body[32:]
        except (IndexError, ValueError, struct.error):
            pass
        except TypeError as error:
            if not hasattr(id, "__index__"):
                raise InvalidError(f"an id is an int: {id!r}") from error
        return self._get_again(id, default)

    def _get_again(self, id: int, default: Any) -> Any:
        """As `get`, where the way without a lock was not enough: a file to be mapped, a write beside."""
        with self._lock:
            self._require_open()
            if not 0 <= id <= self.config.record_nr_max or not self._live[id]:
                return default
            record = self._load_record(self._lookup.seq(id))
        if record is None or record.id != id or record.flags & TOMBSTONE:
            raise DamageError(f"the newest record of id {id} is missing", id=id, seq=self._lookup.seq(id))
        return record.value

    def _get_as_of(self, id: int, default: Any, at: When | None, seq: int | None) -> Any:
        version = history.as_of(self, at, seq, lambda target: history.version_at(self, id, target))
        return default if version is None or version.value is None else version.value

    def get_many(self, ids: Iterable[int], default: D | None = None) -> list[bytes | D | None]:
        """The values of many ids, in their order; `default` for those that are not there."""
        wanted = list(ids)
        look: Any = self.get  # the overloads of get know no type that may be None
        values: list[bytes | D | None] = []
        for start in range(0, len(wanted), _PIECE_IDS):
            piece = wanted[start : start + _PIECE_IDS]
            found = self._get_piece(piece) if len(piece) >= _FEW_IDS else None
            if found is None:
                found = [look(id, default) for id in piece]
            elif None in found:
                found = [
                    look(id, default) if value is None else value
                    for id, value in zip(piece, found, strict=True)
                ]
            values += found
        return values

    def _get_piece(self, ids: list[int]) -> list[bytes | None] | None:
        """Values by gathered headers; None for each that needs a second look, or for all of them."""
        try:
            wanted = np.array(ids)
            if wanted.dtype.kind not in "iu" or int(wanted.min()) < 0:
                return None
            alive = self._lookup.living(wanted)
            seqs = self._lookup.seqs(wanted)
            if alive.all():
                return self._values(wanted, seqs)
            found = self._values(wanted[alive], seqs[alive])
        except _RETRY:
            return None
        values: list[bytes | None] = [None] * len(ids)
        for index, value in zip(np.flatnonzero(alive).tolist(), found, strict=True):
            values[index] = value
        return values

    def _values(self, ids: NDArray[Any], seqs: NDArray[np.uint64]) -> list[bytes | None]:
        """The value of each id as of the record with that seq; None where that record is not found."""
        first, mapping, places = self._active
        firsts, files = self._files
        which = np.searchsorted(np.array([*firsts, first], np.uint64), seqs, "right") - 1
        values: list[bytes | None] = [None] * len(ids)
        for number in np.unique(which).tolist():
            here = np.flatnonzero(which == number)
            column: NDArray[np.uint32]
            if number == len(firsts):
                column = np.frombuffer(places, np.uint32)[seqs[here] - np.uint64(first)]
                buf = mapping
            else:
                buf, column = self._sealed_places(files[number], seqs[here])
            found = _bodies(buf, column.astype(np.int64), ids[here], seqs[here])
            if len(here) == len(ids):
                return found
            for index, value in zip(here.tolist(), found, strict=True):
                values[index] = value
        return values

    def _sealed_places(self, file: SealedFile, seqs: NDArray[np.uint64]) -> tuple[mmap, NDArray[np.uint32]]:
        opened = file.opened
        if opened is None:
            with self._lock:
                opened = self._map_file(file)
        mapping, places, kept = opened
        column = np.frombuffer(places, np.uint32)
        at = seqs - np.uint64(file.first_seq) if kept is None else np.searchsorted(kept, seqs)
        return mapping, column[at]

    # -- records by seq ---------------------------------------------------------------------------

    def record(self, seq: int) -> Record | None:
        """The record with this seq, checked; None if condensing dropped it. DamageError if it is damaged."""
        try:
            return self._find_record(seq)
        except _RETRY:
            with self._lock:
                self._require_open()
                return self._load_record(seq)

    def _find_record(self, seq: int) -> Record | None:
        first, mapping, places = self._active
        if seq >= first:
            return _decode(mapping, places[seq - first], seq)
        firsts, files = self._files
        where = files[bisect_right(firsts, seq) - 1].place(seq)
        return None if where is None else _decode(*where, seq)

    def _load_record(self, seq: int) -> Record | None:
        """As `record`, under the lock: maps the file if need be, and rebuilds its places if they are
        wrong."""
        first = self._active[0]
        if seq >= first:
            try:
                return self._find_record(seq)
            except _RETRY as error:
                place = self._active[2][seq - first]
                raise self._damage(self._active_name(), place, seq) from error
        firsts, files = self._files
        file = files[bisect_right(firsts, seq) - 1]
        try:
            self._map_file(file)
            return self._find_record(seq)
        except FileNotFoundError as error:
            raise DamageError(
                f"data file is missing: {file.entry.name}", file=file.entry.name, seq=seq
            ) from error
        except _RETRY:
            file.open(rebuild=True)
            try:
                return self._find_record(seq)
            except _RETRY as error:
                where = file.place(seq)
                raise self._damage(file.entry.name, where[1] if where else 0, seq) from error

    def _damage(self, name: str, offset: int, seq: int) -> DamageError:
        return DamageError(
            f"record {seq} is damaged in {name} at offset {offset} (restore it from a backup)",
            file=name,
            offset=offset,
            seq=seq,
        )

    def _map_file(self, file: SealedFile) -> Opened:
        """Under the lock. The mapping that is oldest goes if there are many; who reads it keeps it."""
        if file.opened is not None:
            return file.opened
        self._mapped.append(file)
        if len(self._mapped) > self._mapped_max:
            self._mapped.pop(0).opened = None
        return file.open()

    def _active_name(self) -> str:
        raise NotImplementedError

    def _require_open(self) -> None:
        raise NotImplementedError

    def _look_again(self) -> None:
        """A data file is gone: take the list of files that counts now. The writer has it already."""

    # -- history and past states ------------------------------------------------------------------

    def get_history(self, id: int, depth: int | None = None) -> list[Version]:
        """The versions of an id that were kept, newest first, at most `depth`; a deletion has value None."""
        if depth is not None and depth < 0:
            raise InvalidError(f"depth must not be negative: {depth}")
        return list(history.versions(self, id, depth))

    def items(self, order: Order = "id", *, at: When | None = None, seq: int | None = None) -> Items:
        """Ids and values, by ascending id or (`order="log"`) as they were written; now, or as of a time or
        seq.

        What is written meanwhile may or may not be seen; with `at` or `seq` it is that one state, and
        UnreachableError while it is read if condensing takes it away.
        """
        if order not in ("id", "log"):
            raise InvalidError(f"unknown order: {order!r} (id or log)")
        if at is None and seq is None:
            return Items(self, lambda: self._pairs(order, self._lookup, None), self.__len__, current=True)
        target, lookup = history.as_of(
            self, at, seq, lambda target: (target, history.lookup_at(self, target))
        )
        return Items(self, lambda: self._pairs(order, lookup, target), lambda: lookup.count, current=False)

    def values(self) -> Values:
        return Values(self)

    def _pairs(self, order: Order, lookup: LookupTable, target: int | None) -> Iterator[tuple[int, bytes]]:
        pairs = _by_id(lookup) if order == "id" else history.pairs_in_log(self, lookup, target)
        return self._values_of(pairs, current=target is None)

    def _values_of(
        self, pieces: Iterator[tuple[NDArray[Any], NDArray[np.uint64]]], *, current: bool
    ) -> Iterator[tuple[int, bytes]]:
        for ids, seqs in pieces:
            try:
                values = self._values(ids, seqs)
            except _RETRY:
                values = [None] * len(ids)
            for id, seq, value in zip(ids.tolist(), seqs.tolist(), values, strict=True):
                if value is None:
                    value = self.get(id) if current else self._value_at(seq)
                if value is not None:
                    yield id, value

    def _value_at(self, seq: int) -> bytes:
        record = self.record(seq)
        if record is None:
            raise UnreachableError(f"record {seq} was condensed away meanwhile", seq=seq)
        return record.value

    # -- a mapping of int to bytes ----------------------------------------------------------------

    def __getitem__(self, id: int) -> bytes:
        value = self.get(id)
        if value is None:
            raise missing(id)
        return value

    def __contains__(self, id: object) -> bool:
        if not isinstance(id, int | np.integer):
            return False
        return 0 <= int(id) <= self.config.record_nr_max and bool(self._live[int(id)])

    def __len__(self) -> int:
        return self._lookup.count

    def __iter__(self) -> Iterator[int]:
        for ids in self._lookup.alive():
            yield from ids.tolist()

    def __eq__(self, other: object) -> bool:
        """As of any mapping: the same ids with the same values."""
        if self is other or not isinstance(other, Mapping):
            return self is other
        return len(self) == len(other) and all(other.get(id) == value for id, value in self.items())

    __hash__ = None  # type: ignore[assignment]  # as of any mapping that can change

    @property
    def last_seq(self) -> int:
        """The seq of the last record, 0: there is none yet."""
        return self._seq

    @property
    def last_time(self) -> int:
        """The time of the last record in milliseconds since the epoch, 0: there is none yet."""
        return self._time

    def resolve(self, *, at: datetime | str | int | None = None, seq: int | None = None) -> int:
        """The seq whose state holds at that time or seq; 0: before the first record. UnreachableError."""
        return history.resolve(self, at=at, seq=seq)


def missing(id: int) -> MissingIdError:
    return MissingIdError(f"no such id: {id}", id=id)


def not_given(id: int) -> MissingIdError:
    """For a write in incremental mode."""
    return MissingIdError(
        f"no such id: {id} (in incremental mode the database gives new ones: leave the id out)", id=id
    )


def _decode(mapping: mmap, place: int, seq: int) -> Record:
    record = decode_record(mapping, place)
    if record.seq != seq:
        raise DamageError(f"record {record.seq} lies where {seq} should be", offset=place, seq=seq)
    return record


def _bodies(
    buf: mmap, places: NDArray[np.int64], ids: NDArray[Any], seqs: NDArray[np.uint64]
) -> list[bytes | None]:
    """The values at these places; None where id, seq or checksum is not as it should be."""
    headers = gather_headers(buf, places)
    ends = places + 36 + headers["length"]
    bodies = list(map(buf.__getitem__, map(slice, (places + 4).tolist(), ends.tolist())))
    good = np.fromiter(map(crc32c, bodies), np.uint32, len(bodies)) == headers["crc"]
    good &= (headers["seq"] == seqs) & (headers["id"] == ids)
    good &= (headers["flags_time"] >> np.uint64(48)) & np.uint64(TOMBSTONE) == 0
    values: list[bytes | None] = list(map(_without_header, bodies))
    for index in np.flatnonzero(~good).tolist():
        values[index] = None
    return values


def _by_id(lookup: LookupTable) -> Iterator[tuple[NDArray[Any], NDArray[np.uint64]]]:
    for ids in lookup.alive():
        for start in range(0, len(ids), _PIECE_IDS):
            piece = ids[start : start + _PIECE_IDS]
            yield piece, lookup.seqs(piece)
