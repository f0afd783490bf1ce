"""The file of the meta index: opened by many processes, brought up to date, replaced when damaged."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlite_utils import Database

from compactor.meta.schema import MIGRATIONS
from ourdb.errors import InvalidError, UnknownFormatError

Result = TypeVar("Result")
BUSY_SECONDS = 30
MEMORY = ":memory:"
_ASIDE = ".damaged-"  # and when, in ns; before `-wal` and `-shm`


class MetaFile:
    """For several threads. path: None, or one that cannot be written: it is all in memory, and `note` says
    why. A damaged file is moved aside, a new one begun, and `note` says that. db: for actions of `write`.

    Raises UnknownFormatError for the file of a newer version, InvalidError for another program's database.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.note: str | None = None
        self.lasting = False  # whether what is written is there for the next process
        self._lock = threading.RLock()
        self._inode = 0
        self.db = self._connect()

    def close(self) -> None:
        with self._lock:
            self.db.close()

    def read(self, sql: str, *values: Any) -> list[Any]:
        """All rows of a query."""
        return self.do(lambda: self.db.execute(sql, list(values)).fetchall())

    def write(self, action: Callable[[], object]) -> None:
        """All of it or nothing; what other processes write meanwhile waits."""

        def transaction() -> None:
            with self._immediate():
                action()

        self.do(transaction)

    def set_aside(self) -> Path | None:
        """The newest file that was damaged and moved aside, as long as nobody removes it."""
        if self.path is None:
            return None
        prefix = f"{self.path.name}{_ASIDE}"
        with suppress(OSError):
            names = [name for name in os.listdir(self.path.parent) if name.startswith(prefix)]
            mains = [name for name in names if name.removeprefix(prefix).isdecimal()]
            return self.path.with_name(max(mains)) if mains else None
        return None

    def vacuum(self) -> None:
        """Gives the space of deleted rows back; not while another process is at work."""

        def shrink() -> None:
            with suppress(sqlite3.OperationalError):
                self.db.conn.execute("VACUUM")

        self.do(shrink)

    @contextmanager
    def _immediate(self) -> Iterator[None]:
        """BEGIN IMMEDIATE: a transaction that reads first and then writes could not wait for its turn."""
        self.db.conn.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.rollback()
            raise
        self.db.commit()

    def do(self, action: Callable[[], Result]) -> Result:
        """The action; if the file is damaged or cannot be used, again on a new or on no file."""
        with self._lock:
            for _ in range(2):
                try:
                    return action()
                except sqlite3.ProgrammingError:
                    raise  # a mistake of ours, not of the file
                except sqlite3.DatabaseError as error:
                    with suppress(sqlite3.Error):
                        self.db.close()
                    self.db = self._recover(error)
            return action()

    def _recover(self, error: sqlite3.DatabaseError) -> Database:
        if self.path is not None and _is_damage(error):
            if self._inode == _inode(self.path):
                self._move_aside(str(error))
            return self._connect()
        return self._without(str(error))

    def _connect(self) -> Database:
        if self.path is None:
            return self._without("there is no home directory")
        for _ in range(2):
            try:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                return self._open_file(self.path)
            except OSError as error:
                return self._without(error.strerror or str(error))
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    return self._without(str(error))
                self._move_aside(str(error))
        return self._without("it is damaged and cannot be moved aside")

    def _open_file(self, path: Path) -> Database:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
        try:
            db = Database(connection)
            _refuse_foreign(connection, path)
            _refuse_newer(db, path)  # before a pragma writes to it
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("PRAGMA synchronous = normal")
            connection.execute("PRAGMA foreign_keys = on")
            self._migrate(db)
        except BaseException:
            connection.close()
            raise
        self._inode = _inode(path)
        self.lasting = True
        return db

    def _migrate(self, db: Database) -> None:
        if _version(db) < len(MIGRATIONS):
            db.conn.execute("BEGIN IMMEDIATE")
            try:
                for step in range(_version(db), len(MIGRATIONS)):  # another process may have been first
                    MIGRATIONS[step](db)
                db.conn.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
                db.commit()
            except BaseException:
                db.rollback()
                raise

    def _without(self, why: str) -> Database:
        self.lasting = False
        where = "no place for it" if self.path is None else str(self.path)
        self.note = f"the meta index is not used, runs need more requests: {why.lower()}: {where}"
        connection = sqlite3.connect(MEMORY, check_same_thread=False)
        connection.execute("PRAGMA foreign_keys = on")
        db = Database(connection)
        self._migrate(db)
        return db

    def _move_aside(self, why: str) -> None:
        """The log before the file: beside a new file an old log would be taken for its own."""
        assert self.path is not None
        aside = self.path.with_name(f"{self.path.name}{_ASIDE}{time.time_ns()}")
        self.note = f"the meta index was damaged and is built anew, the old one is kept: {why}: {aside}"
        for suffix in ("-wal", "-shm", ""):
            with suppress(OSError):
                os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")


def _version(db: Database) -> int:
    return int(db.conn.execute("PRAGMA user_version").fetchone()[0])


def _refuse_foreign(connection: sqlite3.Connection, path: Path) -> None:
    """In one statement: another process may be making the tables right now."""
    version, tables = connection.execute(
        "select (select user_version from pragma_user_version), count(*) from sqlite_master"
    ).fetchone()
    if tables and not version:
        raise InvalidError(
            f"not a meta index, but some other SQLite database: {path} (use another file with --meta)",
            path=str(path),
        )


def _refuse_newer(db: Database, path: Path) -> None:
    version = _version(db)
    if version > len(MIGRATIONS):
        raise UnknownFormatError(
            f"the meta index has version {version}, and this program knows {len(MIGRATIONS)}: {path} "
            "(use a newer program, or another file with --meta)",
            path=str(path),
        )


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return not isinstance(error, sqlite3.OperationalError) or "no such" in str(error)
