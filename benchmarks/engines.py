"""The databases that are measured, behind one small face each. Ids are u32, values bytes.

All in the same durability class: what was written survives a kill of the process, no write waits for the
disk. Each is opened as its documentation shows, with ids as its own kind of fixed-width key.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import ourdb

_KEY = struct.Struct(">I")  # big-endian: key order is id order


class Engine(Protocol):
    """get gives None for what is not there. set is one write, visible and kept when it returns."""

    def __init__(self, path: Path) -> None: ...
    @property
    def set(self) -> Callable[[int, bytes], object]: ...
    @property
    def get(self) -> Callable[[int], bytes | None]: ...
    def set_many(self, ids: Sequence[int], values: Sequence[bytes]) -> None: ...
    def get_many(self, ids: Sequence[int]) -> list[bytes | None]: ...
    def close(self) -> None: ...


class Ourdb:
    """Also keeps the history, and checks a checksum at every read."""

    def __init__(self, path: Path) -> None:
        self._db = ourdb.open(path, sync="never")
        write = self._db.set
        self.set = lambda record_id, value: write(value, record_id)
        self.get = self._db.get

    def set_many(self, ids: Sequence[int], values: Sequence[bytes]) -> None:
        self._db.set_many(zip(ids, values, strict=True))

    def get_many(self, ids: Sequence[int]) -> list[bytes | None]:
        return list(self._db.get_many(ids))

    def close(self) -> None:
        self._db.close()


class Rocksdict:
    """Default options, raw mode, write-ahead log on and not synced."""

    def __init__(self, path: Path) -> None:
        from rocksdict import Options, Rdict

        self._db = Rdict(str(path), Options(raw_mode=True))
        pack, put, get = _KEY.pack, self._db.put, self._db.get
        self.set = lambda record_id, value: put(pack(record_id), value)
        self.get = lambda record_id: get(pack(record_id))

    def set_many(self, ids: Sequence[int], values: Sequence[bytes]) -> None:
        from rocksdict import WriteBatch

        batch = WriteBatch(raw_mode=True)
        for record_id, value in zip(ids, values, strict=True):
            batch.put(_KEY.pack(record_id), value)
        self._db.write(batch)

    def get_many(self, ids: Sequence[int]) -> list[bytes | None]:
        found: list[bytes | None] = self._db.get([_KEY.pack(record_id) for record_id in ids])
        return found

    def close(self) -> None:
        self._db.close()


class Lmdb:
    """sync=False: a transaction is in the page cache when it returns. A map of 16 GiB."""

    def __init__(self, path: Path) -> None:
        import lmdb

        self._env = lmdb.open(str(path), map_size=16 << 30, sync=False)

    def set(self, record_id: int, value: bytes) -> None:
        with self._env.begin(write=True) as transaction:
            transaction.put(_KEY.pack(record_id), value)

    def get(self, record_id: int) -> bytes | None:
        with self._env.begin() as transaction:
            found: bytes | None = transaction.get(_KEY.pack(record_id))
        return found

    def set_many(self, ids: Sequence[int], values: Sequence[bytes]) -> None:
        with self._env.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(list(zip(map(_KEY.pack, ids), values, strict=True)))

    def get_many(self, ids: Sequence[int]) -> list[bytes | None]:
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            found = dict(cursor.getmulti([_KEY.pack(record_id) for record_id in ids]))
        return [found.get(_KEY.pack(record_id)) for record_id in ids]

    def close(self) -> None:
        self._env.close()


class Sqlite:
    """WAL, synchronous=OFF, one transaction a write."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY, value BLOB)")

    def set(self, record_id: int, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO records VALUES (?, ?)", (record_id, value))

    def get(self, record_id: int) -> bytes | None:
        row = self._db.execute("SELECT value FROM records WHERE id = ?", (record_id,)).fetchone()
        return row[0] if row else None

    def set_many(self, ids: Sequence[int], values: Sequence[bytes]) -> None:
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO records VALUES (?, ?)", zip(ids, values, strict=True))
        self._db.execute("COMMIT")

    def get_many(self, ids: Sequence[int]) -> list[bytes | None]:
        places = ",".join("?" * len(ids))
        rows: list[Any] = self._db.execute(
            f"SELECT id, value FROM records WHERE id IN ({places})", list(ids)
        ).fetchall()
        found = dict(rows)
        return [found.get(record_id) for record_id in ids]

    def close(self) -> None:
        self._db.close()


ENGINES: dict[str, type[Engine]] = {"ourdb": Ourdb, "rocksdict": Rocksdict, "lmdb": Lmdb, "sqlite3": Sqlite}
