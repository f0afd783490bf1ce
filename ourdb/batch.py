"""Batches: writes that become visible, and are recovered, together or not at all."""

# ruff: noqa: A001, A002  (an id is called id)

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from struct import Struct
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from ourdb.errors import UnusableError
from ourdb.lookup import LookupTable
from ourdb.record import BATCH_GOES_ON, HEADER_DTYPE, RECORD_HEADER_BYTES, TOMBSTONE, Buffer

if TYPE_CHECKING:
    from ourdb.database import OurDB

D = TypeVar("D")
_GAP = bytes(RECORD_HEADER_BYTES)
_COVERED = Struct("4x32s")
_ALIKE_BYTES_MAX = 1024  # of values of one length, which are copied to compute their checksums


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedBatch:
    """The bytes of a batch, where its records begin in them, and what the lookup table has to learn."""

    data: bytearray
    starts: NDArray[np.int64]
    ids: NDArray[np.uint32]
    seqs: NDArray[np.uint64]
    alive: NDArray[np.bool_]
    distinct: bool


def encode_batch(
    given: Sequence[int],
    values: Sequence[bytes],
    deleted: Sequence[int],
    lookup: LookupTable,
    *,
    first_seq: int,
    time_ms: int,
) -> EncodedBatch:
    """Records `first_seq` and on for these ids and values, all of one time, each but the last saying that the
    batch goes on. deleted: indexes of those that are tombstones, whose value is empty."""
    count = len(given)
    ids = np.array(given, np.uint32)
    seqs = np.arange(first_seq, first_seq + count, dtype=np.uint64)
    alive = np.ones(count, np.bool_)
    alive[list(deleted)] = False
    lengths = np.fromiter(map(len, values), np.int64, count)
    distinct = len(set(given)) == count
    headers = np.empty(count, HEADER_DTYPE)
    flags = np.full(count, BATCH_GOES_ON, np.uint64)
    flags[-1] = 0
    flags |= np.where(alive, 0, TOMBSTONE).astype(np.uint64)
    headers["length"], headers["id"] = lengths, ids
    headers["flags_time"] = (flags << np.uint64(48)) | np.uint64(time_ms)
    headers["seq"], headers["prev_seq"] = seqs, _previous(lookup, ids, seqs, distinct)
    ends = np.cumsum(lengths + RECORD_HEADER_BYTES)
    starts = ends - lengths - RECORD_HEADER_BYTES
    data = bytearray(_GAP.join([b"", *values]))
    alike = int(lengths[0]) <= _ALIKE_BYTES_MAX and bool((lengths == lengths[0]).all())
    if not alike:
        headers["crc"] = _crcs(headers, values)
    view: NDArray[Any] = np.ndarray(
        (len(data) - RECORD_HEADER_BYTES + 1,), f"V{RECORD_HEADER_BYTES}", data, 0, (1,)
    )
    view[starts] = headers.view(f"V{RECORD_HEADER_BYTES}")
    if alike:
        _set_crcs(data, count)
    return EncodedBatch(data=data, starts=starts, ids=ids, seqs=seqs, alive=alive, distinct=distinct)


def _crcs(headers: NDArray[Any], values: Sequence[bytes]) -> NDArray[np.uint32]:
    """Of each record: its header's, continued over its value."""
    covered = chain.from_iterable(_COVERED.iter_unpack(headers.tobytes()))
    return np.fromiter(map(crc32c, values, map(crc32c, covered)), np.uint32, len(values))


def _set_crcs(data: bytearray, count: int) -> None:
    """As `_crcs`, of records of one length where they lie: one call for each."""
    size = len(data) // count
    covered = chain.from_iterable(Struct(f"4x{size - 4}s").iter_unpack(data))
    crcs: NDArray[np.uint32] = np.ndarray((count,), "<u4", data, 0, (size,))
    crcs[:] = np.fromiter(map(crc32c, covered), np.uint32, count)


def _previous(
    lookup: LookupTable, ids: NDArray[np.uint32], seqs: NDArray[np.uint64], distinct: bool
) -> NDArray[np.uint64]:
    """The seq of each id's version before, also where that is in the same batch."""
    previous = lookup.prepare(ids)
    if not distinct:
        order = np.argsort(ids, kind="stable")
        again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
        previous[order[again + 1]] = seqs[order[again]]
    return previous


class Batch:
    """Collects writes for one database; see `OurDB.batch`. One thread."""

    __slots__ = ("_db", "_deleted", "_done", "_ids", "_importing", "_values", "_written")

    def __init__(self, db: OurDB, *, importing: bool) -> None:
        self._db, self._importing = db, importing
        self._ids: list[int] = []
        self._written: list[bytes] = []
        self._deleted: list[int] = []  # indexes of tombstones
        self._values: dict[int, bytes | None] = {}
        self._done = False

    def set(self, value: Buffer, id: int | None = None) -> int:
        """As OurDB.set. A new id is given at once, above all that were given; it stays unused if the batch is
        not written."""
        self._require_open()
        data, given = self._db._clean(value, id)
        self._db.check_value(data)
        if given is None:
            given = self._db.new_id()
        elif given not in self._values:
            self._db.check_id(given, importing=self._importing)
            if self._importing:
                self._db.pass_id(given)
        elif self._values[given] is None:
            self._again(given)
        self._add(given, data)
        return given

    def _add(self, id: int, value: bytes | None) -> None:
        if value is None:
            self._deleted.append(len(self._ids))
        self._ids.append(id)
        self._written.append(value or b"")
        self._values[id] = value

    def _again(self, id: int) -> None:
        """An id that this batch has deleted is not there in incremental mode."""
        if self._db.config.mode == "incremental" and not self._importing:
            from ourdb.reading import missing

            raise missing(id)

    def write_all(self, pairs: Iterable[tuple[int | None, Buffer]]) -> list[int]:
        """Set all pairs and write the batch; returns the ids."""
        given = list(pairs)
        if not self._take_all(given):
            for id, value in given:
                self.set(value, id)
        self.commit()
        return self._ids

    def _take_all(self, pairs: list[tuple[int | None, Buffer]]) -> bool:
        """Whether these are ids and values that need no look one by one, which is dear; then they are
        taken."""
        db = self._db
        if not pairs or db.config.mode == "incremental":
            return False
        ids: list[Any] = [id for id, _ in pairs]
        values: list[Any] = [value for _, value in pairs]
        if set(map(type, ids)) != {int} or set(map(type, values)) != {bytes}:
            return False
        if min(ids) < 0 or max(ids) > db.config.record_nr_max:
            return False
        if max(map(len, values)) > db.config.record_size_max:
            return False
        self._ids, self._written = ids, values
        return True

    def delete(self, id: int) -> None:
        """As OurDB.delete."""
        from ourdb.reading import missing

        self._require_open()
        if id not in self:
            raise missing(id)
        self._add(int(id), None)

    def get(self, id: int, default: D | None = None) -> bytes | D | None:
        """The value that the id has after the writes of this batch so far."""
        if id not in self._values:
            return self._db.get(id, default)
        value = self._values[id]
        return default if value is None else value

    def commit(self) -> None:
        """Write the batch. The `with` block does it at its end."""
        self._require_open()
        self._done = True
        self._db.commit(self._ids, self._written, self._deleted, importing=self._importing)

    def _require_open(self) -> None:
        if self._done:
            raise UnusableError("the batch has ended: begin another", kind="closed")

    def __contains__(self, id: object) -> bool:
        if id in self._values:
            return self._values[id] is not None
        return id in self._db

    def __getitem__(self, id: int) -> bytes:
        from ourdb.reading import missing

        value = self.get(id)
        if value is None:
            raise missing(id)
        return value

    def __setitem__(self, id: int, value: Buffer) -> None:
        self.set(value, id)

    def __delitem__(self, id: int) -> None:
        self.delete(id)

    def __len__(self) -> int:
        """The number of writes so far."""
        return len(self._ids)

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None and not self._done:
            self.commit()
        self._done = True
