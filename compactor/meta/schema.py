"""The tables of the meta index, and how an older file becomes a newer one.

Every row belongs to a namespace. The steps are numbered by their place; the file's `user_version` says
how many it has had. docs/architecture.md says what the meta index is for.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlite_utils import Database

OWNER = [("namespace", "namespaces", "id")]


def _create_tables(db: Database) -> None:
    db.table("namespaces").create(
        {"id": int, "identity": str, "url": str, "uuid": str, "known_revision": int, "known_run": str},
        pk="id",
        not_null={"identity", "url", "known_revision", "known_run"},
    )
    db.table("namespaces").create_index(["identity"], unique=True)
    db.table("heads").create(
        {
            "namespace": int,
            "etag": str,
            "written_ms": int,
            "read_ms": int,
            "acknowledged": int,
            "body": bytes,
            "crc": int,
        },
        pk="namespace",
        foreign_keys=OWNER,
    )
    db.table("lists").create(
        {"namespace": int, "key": str, "body": bytes, "crc": int},
        pk=("namespace", "key"),
        foreign_keys=OWNER,
    )
    db.table("generations").create(
        {
            "namespace": int,
            "generation": str,
            "parent": str,
            "parent_seq": int,
            "last_seq": int,
            "last_time": int,
            "chain": int,
            "highest_id": int,
            "as_of": int,
            "successor": str,
        },
        pk=("namespace", "generation"),
        foreign_keys=OWNER,
    )
    db.table("segments").create(
        {
            "namespace": int,
            "key": str,
            "generation": str,
            "first_seq": int,
            "last_seq": int,
            "first_time": int,
            "last_time": int,
            "level": int,
            "records": int,
            "bytes": int,
            "index_bytes": int,
        },
        pk=("namespace", "key"),
        foreign_keys=OWNER,
    )
    db.table("probes").create({"namespace": int, "cas": int, "why": str}, pk="namespace", foreign_keys=OWNER)


def _watch_and_note(db: Database) -> None:
    """What is monitored, uploads that were begun; version 1 did not enforce foreign keys."""
    for table in ("probes", "segments", "generations", "lists", "heads"):
        db.table(table).delete_where("namespace not in (select id from namespaces)")
    db.table("monitored").create(
        {"namespace": int, "url": str, "since_ms": int, "synced_ms": int},
        pk="namespace",
        not_null={"url", "since_ms", "synced_ms"},
        foreign_keys=OWNER,
    )
    db.table("uploads").create(
        {"namespace": int, "key": str, "upload_id": str, "since_ms": int},
        pk=("namespace", "key"),
        not_null={"upload_id", "since_ms"},
        foreign_keys=OWNER,
    )
    db.table("segments").create_index(["namespace", "generation", "first_seq", "last_seq"])
    db.table("spent").create({"namespace": int, "key": str}, pk=("namespace", "key"), foreign_keys=OWNER)


def _weigh(db: Database) -> None:
    """Up to where the segments whose time is over were weighed together."""
    db.table("weighed").create({"namespace": int, "key": str}, pk=("namespace", "key"), foreign_keys=OWNER)


MIGRATIONS: tuple[Callable[[Database], None], ...] = (_create_tables, _watch_and_note, _weigh)
TABLES = (
    "weighed",
    "spent",
    "uploads",
    "monitored",
    "probes",
    "segments",
    "generations",
    "lists",
    "heads",
    "namespaces",
)
