"""The meta index: what this machine knows of its namespaces, in one SQLite file. A cache, no more.

It saves requests (the last head with its ETag, the lists, the result of the probe) and knows the newest
head of each namespace that was acknowledged, so that a store that went back is seen (rule 8). Any
number of processes share it. What is deleted, damaged or stale is read from the store again; where it
cannot be written, `note` says so and the run goes on without it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from crc32c import crc32c
from sqlite_utils import Database

from compactor.entries import SegmentEntry
from compactor.generations import Generation
from compactor.head import NOTHING_KNOWN, Known, decode_head
from compactor.lists import StoredList
from compactor.schema import BUSY_SECONDS, MIGRATIONS, TABLES
from compactor.view import View
from ourdb.errors import DamageError, UnknownFormatError

Result = TypeVar("Result")
MEMORY = ":memory:"


class NamespaceRow(NamedTuple):
    """What is known of one namespace; uuid: None before its head was seen."""

    identity: str
    url: str
    uuid: str | None
    known: Known


def default_path() -> Path:
    """$OURDB_META, else `ourdb/meta.db` in the XDG state folder."""
    if given := os.environ.get("OURDB_META"):
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME")
    return Path(state or "~/.local/state").expanduser() / "ourdb" / "meta.db"


class MetaIndex:
    """For several threads. identity: of a namespace, the same for every spelling of its URL."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.note: str | None = None
        self._lock = threading.RLock()
        self._inode = 0
        self._db = self._connect()

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> MetaIndex:
        """The file at `path` (None: `default_path()`), made or brought up to date where needed.

        A damaged file is moved aside, and one that cannot be written is done without; `note` tells.
        Raises UnknownFormatError for the file of a newer version.
        """
        try:
            place = Path(path) if path is not None else default_path()
        except RuntimeError:  # no home directory
            place = None
        return cls(place)

    @property
    def folder(self) -> Path | None:
        """Where this machine keeps its state; None: nowhere."""
        return self.path.parent if self.path else None

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> MetaIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def known(self, identity: str) -> Known:
        """The newest head that is known to be acknowledged."""
        rows = self._read("select known_revision, known_run from namespaces where identity = ?", identity)
        return Known(*rows[0]) if rows else NOTHING_KNOWN

    def learn(self, identity: str, url: str, known: Known) -> None:
        """Remembers that this head was acknowledged, unless a newer one is known."""
        if known > self.known(identity):
            self._write(lambda: self._raise_known(self._owner(identity, url), known))

    def recall(self, identity: str, namespace: str) -> View | None:
        """The head of the last run with all its lists; None if there is none, if a newer one is known
        since, or if anything of it is missing or damaged here."""
        rows = self._read(
            "select n.id, etag, written_ms, read_ms, acknowledged, body, crc, known_revision, known_run "
            "from heads h join namespaces n on n.id = h.namespace where identity = ?",
            identity,
        )
        if not rows or crc32c(rows[0][5]) != rows[0][6]:
            return None
        owner, etag, written_ms, read_ms, acknowledged, data, _, revision, run = rows[0]
        try:
            head = decode_head(data, namespace)
        except DamageError:
            return None
        if head.revision < revision or (head.revision == revision and head.run != run):
            return None
        stored = self._stored(owner, head.uuid, namespace, head.list_keys)
        if len(stored) != len(head.list_keys):
            return None
        return View(
            head=head,
            etag=etag,
            written_ms=written_ms,
            read_ms=read_ms,
            acknowledged=bool(acknowledged),
            data=data,
            stored=stored,
        )

    def stored_list(self, identity: str, uuid: str, namespace: str, key: str) -> StoredList | None:
        """A list that was read or written before; lists never change."""
        rows = self._read("select id from namespaces where identity = ?", identity)
        return self._stored(rows[0][0], uuid, namespace, (key,)).get(key) if rows else None

    def remember(self, identity: str, url: str, view: View) -> None:
        """Keeps this head and its lists, and brings the rows of segments and generations in step with
        it; only what differs is written. An older head than the newest one known is not kept."""
        self._write(lambda: self._remember(self._owner(identity, url), view))

    def probe_result(self, identity: str) -> tuple[bool, str] | None:
        """Whether the store's compare-and-swap holds, and why not; None: it was not tried."""
        rows = self._read(
            "select cas, why from probes p join namespaces n on n.id = p.namespace where identity = ?",
            identity,
        )
        return (bool(rows[0][0]), rows[0][1]) if rows else None

    def remember_probe(self, identity: str, url: str, cas: bool, why: str) -> None:
        self._write(
            lambda: self._db.table("probes").upsert(
                {"namespace": self._owner(identity, url), "cas": int(cas), "why": why}, pk="namespace"
            )
        )

    def forget(self, identity: str) -> None:
        """Drops all that is known of a namespace, also that it once had a newer head."""
        self._write(lambda: self._forget(identity))

    def namespaces(self) -> list[NamespaceRow]:
        rows = self._read("select identity, url, uuid, known_revision, known_run from namespaces order by 1")
        return [NamespaceRow(row[0], row[1], row[2], Known(row[3], row[4])) for row in rows]

    def rows(self, table: str, identity: str) -> list[dict[str, Any]]:
        """The rows of `segments` or `generations` of a namespace, by key."""
        owner = self._read("select id from namespaces where identity = ?", identity)
        if not owner:
            return []
        with self._lock:
            where = {"namespace": owner[0][0]}
            return [
                {name: value for name, value in row.items() if name != "namespace"}
                for row in self._db.table(table).rows_where("namespace = :namespace", where, order_by="2")
            ]

    # -- rows

    def _owner(self, identity: str, url: str) -> int:
        rows = self._db.execute("select id from namespaces where identity = ?", [identity]).fetchall()
        if rows:
            return int(rows[0][0])
        made = self._db.table("namespaces").insert(
            {"identity": identity, "url": url, "known_revision": 0, "known_run": ""}
        )
        return int(str(made.last_pk))

    def _raise_known(self, owner: int, known: Known) -> None:
        row = self._db.table("namespaces").get(owner)
        if known > (row["known_revision"], row["known_run"]):
            changes = {"known_revision": known.revision, "known_run": known.run}
            self._db.table("namespaces").update(owner, changes)

    def _remember(self, owner: int, view: View) -> None:
        head = view.head
        row = self._db.table("namespaces").get(owner)
        if head.revision < row["known_revision"]:
            return
        if view.acknowledged:
            self._raise_known(owner, head.known)
        if row["uuid"] != head.uuid:
            self._db.table("namespaces").update(owner, {"uuid": head.uuid})
        self._update_segments(owner, view)
        self._update_generations(owner, view)
        self._update_lists(owner, view)
        self._db.table("heads").upsert(
            {
                "namespace": owner,
                "etag": view.etag,
                "revision": head.revision,
                "written_ms": view.written_ms,
                "read_ms": view.read_ms,
                "acknowledged": int(view.acknowledged),
                "body": view.data,
                "crc": crc32c(view.data),
            },
            pk="namespace",
        )

    def _stored(self, owner: int, uuid: str, namespace: str, keys: tuple[str, ...]) -> dict[str, StoredList]:
        found = {}
        for key in keys:
            rows = self._read("select body, crc from lists where namespace = ? and key = ?", owner, key)
            if rows and crc32c(rows[0][0]) == rows[0][1]:
                found[key] = StoredList(key, rows[0][0], uuid, namespace)
        return found

    def _update_lists(self, owner: int, view: View) -> None:
        table = self._db.table("lists")
        rows = self._db.execute("select key from lists where namespace = ?", [owner]).fetchall()
        had = {row[0] for row in rows}
        for key in had - view.stored.keys():
            table.delete((owner, key))
        table.insert_all(
            {"namespace": owner, "key": key, "body": stored.data, "crc": crc32c(stored.data)}
            for key, stored in view.stored.items()
            if key not in had
        )

    def _update_segments(self, owner: int, view: View) -> None:
        """Decodes only lists that differ from those of the head that the rows are in step with."""
        table, before = self._db.table("segments"), self._view_in_step(owner, view.head.namespace)
        if before is None:
            table.delete_where("namespace = ?", [owner])
            table.insert_all(_segment_row(owner, entry) for entry in view.segments)
            return
        old_only = [key for key in before.list_names if key not in view.list_names]
        new_only = [key for key in view.list_names if key not in before.list_names]
        was = {e.key for key in old_only for e in before.stored[key].segments}
        was |= {e.key for e in before.head.added}
        now = {e.key: e for key in new_only for e in view.stored[key].segments}
        now |= {e.key: e for e in view.head.added}
        removed = frozenset(view.head.removed)
        stale = [(owner, key) for key in (was | removed) - (now.keys() - removed)]
        self._db.conn.executemany("delete from segments where namespace = ? and key = ?", stale)
        fresh = now.keys() - was - removed
        table.upsert_all((_segment_row(owner, now[key]) for key in fresh), pk=("namespace", "key"))

    def _view_in_step(self, owner: int, namespace: str) -> View | None:
        """The view that the rows of segments were brought in step with; None: start anew."""
        rows = self._db.execute("select etag, body, crc from heads where namespace = ?", [owner]).fetchall()
        if not rows or crc32c(rows[0][1]) != rows[0][2]:
            return None
        try:
            head = decode_head(rows[0][1], namespace)
        except DamageError:
            return None
        stored = self._stored(owner, head.uuid, namespace, tuple(ref.key for ref in head.lists))
        if len(stored) < len(head.lists):
            return None
        return View(
            head=head,
            etag=rows[0][0],
            written_ms=0,
            read_ms=0,
            acknowledged=False,
            data=rows[0][1],
            stored=stored,
        )

    def _update_generations(self, owner: int, view: View) -> None:
        table = self._db.table("generations")
        had = {row["generation"]: row for row in table.rows_where("namespace = ?", [owner])}
        now = {name: _generation_row(owner, it) for name, it in view.head.generations.items()}
        for name in had.keys() - now.keys():
            table.delete((owner, name))
        changed = [row for name, row in now.items() if had.get(name) != row]
        table.upsert_all(changed, pk=("namespace", "generation"))

    def _forget(self, identity: str) -> None:
        rows = self._db.execute("select id from namespaces where identity = ?", [identity]).fetchall()
        for owner in (row[0] for row in rows):
            for table in TABLES:
                column = "id" if table == "namespaces" else "namespace"
                self._db.table(table).delete_where(f"{column} = ?", [owner])

    # -- the file

    def _read(self, sql: str, *values: Any) -> list[Any]:
        return self._guarded(lambda: self._db.execute(sql, list(values)).fetchall())

    def _write(self, action: Callable[[], object]) -> None:
        """All of it or nothing; what other processes write meanwhile waits."""

        def transaction() -> None:
            with self._immediate():
                action()

        self._guarded(transaction)

    @contextmanager
    def _immediate(self) -> Iterator[None]:
        """BEGIN IMMEDIATE: a transaction that reads first and then writes could not wait for its turn."""
        if self._db.conn.in_transaction:
            yield
            return
        self._db.conn.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.rollback()
            raise
        self._db.commit()

    def _guarded(self, action: Callable[[], Result]) -> Result:
        """The action; if the file is damaged or cannot be written, once more on a new or on no file."""
        with self._lock:
            for _ in range(2):
                try:
                    return action()
                except sqlite3.DatabaseError as error:
                    with suppress(sqlite3.Error):
                        self._db.close()
                    self._db = self._recover(error)
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
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("PRAGMA synchronous = normal")
            self._migrate(db, path)
        except BaseException:
            connection.close()
            raise
        self._inode = _inode(path)
        return db

    def _migrate(self, db: Database, path: Path | str) -> None:
        version = _version(db)
        if version > len(MIGRATIONS):
            raise UnknownFormatError(
                f"the meta index has version {version}, and this program knows {len(MIGRATIONS)}: {path} "
                "(use a newer program, or another file with --meta)",
                path=str(path),
            )
        if version < len(MIGRATIONS):
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
        where = "no place for it" if self.path is None else str(self.path)
        self.note = f"the meta index is not used, runs need more requests: {why}: {where}"
        connection = sqlite3.connect(MEMORY, check_same_thread=False)
        db = Database(connection)
        self._migrate(db, MEMORY)
        return db

    def _move_aside(self, why: str) -> None:
        """The log before the file: beside a new file an old log would be taken for its own."""
        assert self.path is not None
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        self.note = f"the meta index was damaged and is built anew, the old one is kept: {why}: {aside}"
        for suffix in ("-wal", "-shm", ""):
            with suppress(OSError):
                os.rename(f"{self.path}{suffix}", f"{aside}{suffix}")


def _version(db: Database) -> int:
    return int(db.conn.execute("PRAGMA user_version").fetchone()[0])


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return not isinstance(error, sqlite3.OperationalError) or "no such" in str(error)


def _segment_row(owner: int, entry: SegmentEntry) -> dict[str, Any]:
    name = entry.name
    return {
        "namespace": owner,
        "key": entry.key,
        "generation": entry.generation,
        "first_seq": name.first_seq,
        "last_seq": name.last_seq,
        "first_time": name.first_time,
        "last_time": name.last_time,
        "level": entry.level,
        "records": entry.records,
        "bytes": entry.bytes,
        "index_bytes": entry.index_bytes,
    }


def _generation_row(owner: int, generation: Generation) -> dict[str, Any]:
    parent = generation.parent
    return {
        "namespace": owner,
        "generation": generation.id,
        "parent": parent.generation if parent else None,
        "parent_seq": parent.seq if parent else None,
        "last_seq": generation.last_seq,
        "last_time": generation.last_time,
        "chain": generation.chain,
        "highest_id": generation.highest_id,
        "as_of": generation.as_of,
        "successor": generation.successor,
    }
