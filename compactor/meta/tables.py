"""The rows of a namespace in the meta index, kept in step with its head: only what differs is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from crc32c import crc32c
from sqlite_utils import Database

from compactor.entries import SegmentEntry
from compactor.generations import Generation
from compactor.head import Head, Known, decode_head
from compactor.lists import StoredList
from compactor.view import View
from ourdb.errors import DamageError


def remember(db: Database, owner: int, view: View) -> None:
    """Head, lists, generations and segments of this view; nothing if a newer head is known."""
    head, row = view.head, db.table("namespaces").get(owner)
    if head.revision < row["known_revision"]:
        return
    if view.acknowledged:
        raise_known(db, owner, head.known)
    if row["uuid"] != head.uuid:
        db.table("namespaces").update(owner, {"uuid": head.uuid})
    _update_segments(db, owner, view)
    _update_generations(db, owner, head)
    _update_lists(db, owner, view)
    db.table("heads").upsert(
        {
            "namespace": owner,
            "etag": view.etag,
            "written_ms": view.written_ms,
            "read_ms": view.read_ms,
            "acknowledged": int(view.acknowledged),
            "body": view.data,
            "crc": crc32c(view.data),
        },
        pk="namespace",
    )


def owner_of(db: Database, identity: str, url: str) -> int:
    """The number of a namespace, which gets one if it has none."""
    rows = db.execute("select id from namespaces where identity = ?", [identity]).fetchall()
    if rows:
        return int(rows[0][0])
    made = db.table("namespaces").insert(
        {"identity": identity, "url": url, "known_revision": 0, "known_run": ""}
    )
    return int(str(made.last_pk))


def renew(db: Database, owner: int, view: View) -> None:
    """As `remember`, with nothing taken over from the rows that are there."""
    if view.head.revision >= db.table("namespaces").get(owner)["known_revision"]:
        clear(db, owner)
        remember(db, owner, view)


def clear(db: Database, owner: int) -> None:
    """Forgets head, lists, generations and segments: all that the store can tell again."""
    for table in ("heads", "lists", "generations", "segments"):
        db.table(table).delete_where("namespace = ?", [owner])


def raise_known(db: Database, owner: int, known: Known) -> None:
    """Never lowered."""
    row = db.table("namespaces").get(owner)
    if known > (row["known_revision"], row["known_run"]):
        db.table("namespaces").update(owner, {"known_revision": known.revision, "known_run": known.run})


def read_lists(db: Database, owner: int, head: Head, keys: Iterable[str]) -> dict[str, StoredList]:
    """Those of the lists that are here and whole."""
    found = {}
    for key in keys:
        sql = "select body, crc from lists where namespace = ? and key = ?"
        row = db.execute(sql, [owner, key]).fetchone()
        if row and crc32c(row[0]) == row[1]:
            found[key] = StoredList(key, row[0], head.uuid, head.namespace)
    return found


def _update_lists(db: Database, owner: int, view: View) -> None:
    rows = db.execute("select key from lists where namespace = ?", [owner]).fetchall()
    had = {row[0] for row in rows}
    for key in had - view.stored.keys():
        db.table("lists").delete((owner, key))
    db.table("lists").upsert_all(
        (
            {"namespace": owner, "key": key, "body": stored.data, "crc": crc32c(stored.data)}
            for key, stored in view.stored.items()
            if key not in had
        ),
        pk=("namespace", "key"),
    )


def _update_segments(db: Database, owner: int, view: View) -> None:
    """Decodes only the lists that differ from those of the head that the rows are in step with."""
    before = _in_step_with(db, owner, view.head.namespace)
    stale, fresh = _difference(before, view) if before else (None, view.segments)
    if stale is None:
        db.table("segments").delete_where("namespace = ?", [owner])
        fresh = view.segments
    else:
        keys = [(owner, key) for key in stale]
        db.conn.executemany("delete from segments where namespace = ? and key = ?", keys)
    rows = (_segment_row(owner, entry) for entry in fresh)
    db.table("segments").upsert_all(rows, pk=("namespace", "key"))


def _difference(before: View, view: View) -> tuple[Iterable[str] | None, Iterable[SegmentEntry]]:
    """Keys of rows to delete, and entries to write. None: all of them, because something that had been
    removed lives again in a list that both have (an older head was put back)."""
    was = {e.key for key in before.list_names - view.list_names for e in before.stored[key].segments}
    was |= {e.key for e in before.head.added}
    now = {e.key: e for key in view.list_names - before.list_names for e in view.stored[key].segments}
    now |= {e.key: e for e in view.head.added}
    removed = frozenset(view.head.removed)
    back = frozenset(before.head.removed) - removed - was
    if back and any(e.key in back for key in view.list_names for e in view.stored[key].segments):
        return None, ()
    live = now.keys() - removed
    return (was | removed) - live, [now[key] for key in live - was]


def _in_step_with(db: Database, owner: int, namespace: str) -> View | None:
    """The view that the rows of segments were made from; None: there is none, or it is damaged."""
    row = db.execute("select etag, body, crc from heads where namespace = ?", [owner]).fetchone()
    if not row or crc32c(row[1]) != row[2]:
        return None
    try:
        head = decode_head(row[1], namespace)
    except DamageError:
        return None
    stored = read_lists(db, owner, head, (ref.key for ref in head.lists))
    if len(stored) < len(head.lists):
        return None
    return View(
        head=head, etag=row[0], written_ms=0, read_ms=0, acknowledged=False, data=row[1], stored=stored
    )


def _update_generations(db: Database, owner: int, head: Head) -> None:
    table = db.table("generations")
    had = {row["generation"]: row for row in table.rows_where("namespace = ?", [owner])}
    now = {name: _generation_row(owner, generation) for name, generation in head.generations.items()}
    for name in had.keys() - now.keys():
        table.delete((owner, name))
    changed = [row for name, row in now.items() if had.get(name) != row]
    table.upsert_all(changed, pk=("namespace", "generation"))


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
