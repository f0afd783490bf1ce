"""Which namespaces this machine monitors, and what the meta index holds of them."""

from __future__ import annotations

from typing import NamedTuple

from compactor.meta import tables
from compactor.meta.file import MetaFile
from ourdb.errors import DamageError

_WATCHED = """
    select n.identity, m.url, n.uuid, m.since_ms, m.synced_ms,
        (select count(*) from generations where namespace = n.id),
        (select count(*) from segments where namespace = n.id),
        (select coalesce(sum(bytes), 0) from segments where namespace = n.id),
        (select max(last_seq) from generations where namespace = n.id),
        (select max(last_time) from generations where namespace = n.id),
        (select max(as_of) from generations where namespace = n.id)
    from monitored m join namespaces n on n.id = m.namespace
"""
_OWNER = "select id from namespaces where identity = ?"


class Watched(NamedTuple):
    """A namespace that is monitored. url: with the endpoint that was used. since_ms, synced_ms: when it was
    first monitored, and last read, by this machine's clock. last_seq, last_time, as_of: the greatest of any
    generation, None if there is none."""

    identity: str
    url: str
    uuid: str | None
    since_ms: int
    synced_ms: int
    generations: int
    segments: int
    bytes: int
    last_seq: int | None
    last_time: int | None
    as_of: int | None


class Watchlist:
    """Rows of the meta index that no store can tell: they stay when it is rebuilt. identity: of a namespace,
    the same for every spelling of its URL."""

    def __init__(self, file: MetaFile) -> None:
        self._file = file

    def add(self, identity: str, url: str, now_ms: int) -> None:
        """Monitors a namespace from now on; if it is there already, its URL is written anew."""
        sql = (
            "insert into monitored (namespace, url, since_ms, synced_ms) values (?, ?, ?, ?) "
            "on conflict (namespace) do update set url = excluded.url, synced_ms = excluded.synced_ms"
        )

        def put() -> None:
            owner = tables.owner_of(self._file.db, identity, url)
            self._file.db.execute(sql, [owner, url, now_ms, now_ms])

        self._file.write(put)

    def remove(self, identity: str) -> bool:
        """Whether it was there. What is known of the namespace stays."""
        removed: list[int] = []
        sql = f"delete from monitored where namespace in ({_OWNER})"
        self._file.write(lambda: removed.append(self._file.db.execute(sql, [identity]).rowcount))
        return removed[-1] > 0

    def note_sync(self, identity: str, now_ms: int) -> None:
        """Remembers when a namespace was read."""
        sql = f"update monitored set synced_ms = ? where namespace in ({_OWNER})"
        self._file.write(lambda: self._file.db.execute(sql, [now_ms, identity]))

    def find(self, identity: str) -> Watched | None:
        """The namespace if it is monitored."""
        rows = self._file.read(f"{_WATCHED} where n.identity = ?", identity)
        return Watched(*rows[0]) if rows else None

    def all(self) -> list[Watched]:
        """All that is monitored, by URL. Raises DamageError (`meta_damaged`) if that is nothing and a damaged
        meta index lies beside this one: what was monitored may stand there alone."""
        found = [Watched(*row) for row in self._file.read(f"{_WATCHED} order by m.url")]
        aside = None if found else self._file.set_aside()
        if aside is not None:
            raise DamageError(
                "the meta index was damaged, and which namespaces are monitored is lost with it (ourdb "
                f"monitor add URL, or --from DIR; if none were, remove the old file): {aside}",
                kind="meta_damaged",
                path=str(aside),
            )
        return found
