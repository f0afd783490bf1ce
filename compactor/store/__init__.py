"""Where backups are kept: one protocol, and stores in memory, in local files and in S3 buckets."""

from __future__ import annotations

from compactor.store.base import (
    CopyRange,
    FailedDelete,
    ListPage,
    NoAnswer,
    NoSuchKey,
    NotSupported,
    Piece,
    PreconditionFailed,
    Reply,
    Stat,
    Store,
    StoreOptions,
    Tail,
    Upload,
)
from compactor.store.probe import ProbeResult, probe
from compactor.url import StoreUrl, parse_url

__all__ = [
    "CopyRange",
    "FailedDelete",
    "ListPage",
    "NoAnswer",
    "NoSuchKey",
    "NotSupported",
    "Piece",
    "PreconditionFailed",
    "ProbeResult",
    "Reply",
    "Stat",
    "Store",
    "StoreOptions",
    "Tail",
    "Upload",
    "open_store",
    "probe",
]


def open_store(url: str | StoreUrl, *, options: StoreOptions | None = None) -> Store:
    """The store of a URL: `file:///path/to/prefix/name`, `s3://bucket/prefix/name?endpoint=..&region=..`,
    or `memory://bucket/name` (as long as this process lives).

    Sends no request yet and writes nothing. Close it after use. Raises InvalidError for a URL that is
    none, RefusedError (`credentials`) for a profile that does not exist.
    """
    place = parse_url(url) if isinstance(url, str) else url
    if place.scheme == "s3":
        from compactor.store.s3 import S3Store  # late: boto3 takes long to import

        return S3Store(place, options)
    if place.scheme == "memory":
        from compactor.store.memory import MemoryStore

        return MemoryStore(place, options)
    from compactor.store.local import LocalStore

    return LocalStore(place, options)
