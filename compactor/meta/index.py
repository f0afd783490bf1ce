"""The meta index: what this machine knows of its namespaces, in one SQLite file. A cache, no more.

It saves requests (the last head with its ETag, the lists, the result of the probe) and knows the newest
head of each namespace that was acknowledged, so that a store that went back is seen (rule 8). Any
number of processes share it. What is deleted, damaged or stale is read from the store again; where it
cannot be written, `note` says so and the run goes on without it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from crc32c import crc32c

from compactor.head import NOTHING_KNOWN, Head, Known, decode_head
from compactor.lists import StoredList
from compactor.meta import tables
from compactor.meta.file import MetaFile
from compactor.meta.schema import TABLES
from compactor.meta.watchlist import Watchlist
from compactor.view import View
from ourdb.errors import DamageError


class NamespaceRow(NamedTuple):
    """What is known of one namespace; uuid: None before its head was seen."""

    identity: str
    url: str
    uuid: str | None
    known: Known


class NotedUpload(NamedTuple):
    """A multipart upload that was begun here. key: below the namespace."""

    key: str
    upload_id: str
    since_ms: int


def default_path() -> Path:
    """$OURDB_META, else `ourdb/meta.db` in the XDG state folder."""
    if given := os.environ.get("OURDB_META"):
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME")
    return Path(state or "~/.local/state").expanduser() / "ourdb" / "meta.db"


class MetaIndex:
    """For several threads. identity: of a namespace, the same for every spelling of its URL."""

    def __init__(self, file: MetaFile) -> None:
        self._file = file
        self.watchlist = Watchlist(file)

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> MetaIndex:
        """The file at `path` (None: `default_path()`), made or brought up to date where needed.

        A damaged file is moved aside, and one that cannot be written is done without; `note` tells.
        Raises UnknownFormatError for the file of a newer version, and InvalidError for the database of
        another program.
        """
        try:
            place = Path(path) if path is not None else default_path()
        except RuntimeError:  # no home directory
            place = None
        return cls(MetaFile(place))

    @property
    def note(self) -> str | None:
        """What people should be told: that the file was damaged, or is not used."""
        return self._file.note

    @property
    def lasting(self) -> bool:
        """Whether what is written now is there for the next process."""
        return self._file.lasting

    @property
    def path(self) -> Path | None:
        return self._file.path

    @property
    def folder(self) -> Path | None:
        """Where this machine keeps its state; None: nowhere."""
        return self.path.parent if self.path else None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> MetaIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def known(self, identity: str) -> Known:
        """The newest head that is known to be acknowledged."""
        rows = self._file.read(
            "select known_revision, known_run from namespaces where identity = ?", identity
        )
        return Known(*rows[0]) if rows else NOTHING_KNOWN

    def learn(self, identity: str, url: str, known: Known) -> None:
        """Remembers that this head was acknowledged, unless a newer one is known."""
        if known > self.known(identity):
            self._file.write(lambda: tables.raise_known(self._file.db, self._owner(identity, url), known))

    def recall(self, identity: str, namespace: str) -> View | None:
        """The head of the last run with all its lists; None if there is none, if a newer one is known
        since, or if anything of it is missing or damaged here."""
        rows = self._file.read(
            "select etag, written_ms, read_ms, acknowledged, body, crc, n.id, known_revision, known_run "
            "from heads h join namespaces n on n.id = h.namespace where identity = ?",
            identity,
        )
        if not rows or crc32c(rows[0][4]) != rows[0][5]:
            return None
        etag, written_ms, read_ms, acknowledged, data, _, owner, revision, run = rows[0]
        try:
            head = decode_head(data, namespace)
        except DamageError:
            return None
        if head.known < (revision, "") or (head.revision == revision and head.run != run):
            return None
        stored = self._file.do(lambda: tables.read_lists(self._file.db, owner, head, head.list_keys))
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

    def stored_list(self, identity: str, head: Head, key: str) -> StoredList | None:
        """A list of this head that was read or written before; lists never change."""
        rows = self._file.read("select id from namespaces where identity = ?", identity)
        if not rows:
            return None
        owner = rows[0][0]
        return self._file.do(lambda: tables.read_lists(self._file.db, owner, head, (key,))).get(key)

    def remember(self, identity: str, url: str, view: View) -> None:
        """Keeps this head and its lists, and brings the rows of segments and generations in step with
        it; only what differs is written. An older head than the newest one known is not kept."""
        self._file.write(lambda: tables.remember(self._file.db, self._owner(identity, url), view))

    def renew(self, identity: str, url: str, view: View) -> None:
        """As `remember`, with every row written anew."""
        self._file.write(lambda: tables.renew(self._file.db, self._owner(identity, url), view))

    def tidy(self) -> None:
        """Forgets of namespaces that are not monitored what their stores can tell again, and of all what
        probes have found; makes the file small. The newest acknowledged heads and noted uploads stay."""

        def forget_the_rest() -> None:
            sql = "select id from namespaces where id not in (select namespace from monitored)"
            for row in self._file.db.execute(sql).fetchall():
                tables.clear(self._file.db, row[0])
            self._file.db.table("probes").delete_where()

        self._file.write(forget_the_rest)
        self._file.vacuum()

    def probe_result(self, identity: str) -> tuple[bool, str] | None:
        """Whether the store's compare-and-swap holds, and why not; None: it was not tried."""
        rows = self._file.read(
            "select cas, why from probes p join namespaces n on n.id = p.namespace where identity = ?",
            identity,
        )
        return (bool(rows[0][0]), rows[0][1]) if rows else None

    def remember_probe(self, identity: str, url: str, cas: bool, why: str) -> None:
        self._file.write(
            lambda: self._file.db.table("probes").upsert(
                {"namespace": self._owner(identity, url), "cas": int(cas), "why": why}, pk="namespace"
            )
        )

    def note_upload(self, identity: str, url: str, key: str, upload_id: str, since_ms: int) -> None:
        """Remembers a multipart upload, so that it can be aborted if its run does not live to end it."""
        self._file.write(
            lambda: self._file.db.table("uploads").upsert(
                {
                    "namespace": self._owner(identity, url),
                    "key": key,
                    "upload_id": upload_id,
                    "since_ms": since_ms,
                },
                pk=("namespace", "key"),
            )
        )

    def drop_upload(self, identity: str, key: str) -> None:
        """Forgets the upload to this key: it was completed or aborted. Nothing if none was noted."""
        owner = "select id from namespaces where identity = ?"
        sql = f"delete from uploads where key = ? and namespace in ({owner})"
        self._file.write(lambda: self._file.db.conn.execute(sql, [key, identity]))

    def uploads(self, identity: str) -> list[NotedUpload]:
        """The uploads that were begun here and have not ended, the oldest first."""
        rows = self._file.read(
            "select key, upload_id, since_ms from uploads u join namespaces n on n.id = u.namespace "
            "where identity = ? order by since_ms, key",
            identity,
        )
        return [NotedUpload(*row) for row in rows]

    def note_spent(self, identity: str, url: str, key: str) -> None:
        """Remembers that little of this segment could be dropped now that its time is over."""
        self._note_key("spent", identity, url, key)

    def spent(self, identity: str) -> frozenset[str]:
        """The segments of which little could be dropped once their time was over."""
        return self._keys("spent", identity)

    def note_weighed(self, identity: str, url: str, key: str) -> None:
        """Remembers that all segments up to this one were weighed together, or became it."""
        self._note_key("weighed", identity, url, key)

    def weighed(self, identity: str) -> frozenset[str]:
        """The segments with which those ended that were weighed together."""
        return self._keys("weighed", identity)

    def forget(self, identity: str) -> None:
        """Drops all that is known of a namespace, also that it once had a newer head."""
        self._file.write(lambda: self._forget(identity))

    def namespaces(self) -> list[NamespaceRow]:
        rows = self._file.read(
            "select identity, url, uuid, known_revision, known_run from namespaces order by 1"
        )
        return [NamespaceRow(row[0], row[1], row[2], Known(row[3], row[4])) for row in rows]

    def read(self, sql: str, *values: Any) -> list[Any]:
        """The rows of a query on the tables of compactor.meta.schema."""
        return self._file.read(sql, *values)

    def rows(self, table: str, identity: str) -> list[dict[str, Any]]:
        """The rows of `segments` or `generations` of a namespace, by key."""
        owner = self._file.read("select id from namespaces where identity = ?", identity)
        if not owner:
            return []
        rows = self._file.db.table(table).rows_where("namespace = ?", [owner[0][0]], order_by="2")
        return [{name: value for name, value in row.items() if name != "namespace"} for row in rows]

    # -- rows

    def _note_key(self, table: str, identity: str, url: str, key: str) -> None:
        self._file.write(
            lambda: self._file.db.table(table).upsert(
                {"namespace": self._owner(identity, url), "key": key}, pk=("namespace", "key")
            )
        )

    def _keys(self, table: str, identity: str) -> frozenset[str]:
        rows = self._file.read(
            f"select key from {table} t join namespaces n on n.id = t.namespace where identity = ?", identity
        )
        return frozenset(row[0] for row in rows)

    def _owner(self, identity: str, url: str) -> int:
        return tables.owner_of(self._file.db, identity, url)

    def _forget(self, identity: str) -> None:
        rows = self._file.db.execute("select id from namespaces where identity = ?", [identity]).fetchall()
        for owner in (row[0] for row in rows):
            for table in TABLES:
                column = "id" if table == "namespaces" else "namespace"
                self._file.db.table(table).delete_where(f"{column} = ?", [owner])
