"""Monitored namespaces: what the meta index holds of them is kept in step with their heads.

A sync of one reads its head by one request, and what the head names that is not here yet; with nothing
new that is all. What is monitored is known to this machine alone: no store is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from compactor.meta.index import MetaIndex
from compactor.meta.watchlist import Watched
from compactor.namespace import Namespace
from compactor.store import Store, StoreOptions, open_store
from compactor.url import StoreUrl, parse_url
from compactor.view import View
from ourdb.errors import Error, NotFoundError, StorageError
from ourdb.units import format_time, maybe_time, now_ms

Clock = Callable[[], int]
MetaPath = str | os.PathLike[str] | None


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """A namespace after a sync. changed: its head is another one than was known. requests: by kind."""

    namespace: Watched
    changed: bool
    requests: Mapping[str, int]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return watched_json(self.namespace) | {
            "changed": self.changed,
            "requests": dict(self.requests),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class SyncAllReport:
    """failed: by URL; one that fails does not stop the others."""

    synced: tuple[SyncReport, ...]
    failed: Mapping[str, Error]

    def as_json(self) -> dict[str, Any]:
        return {
            "namespaces": [report.as_json() for report in self.synced],
            "failed": [{"url": url, "error": error.as_json()} for url, error in self.failed.items()],
        }


def monitor(
    url: str, *, meta: MetaPath = None, options: StoreOptions | None = None, clock_ms: Clock = now_ms
) -> SyncReport:
    """Monitors a namespace from now on: one request, as sync_one. Again is no mistake.

    meta: path of the meta index, None: the user's own. clock_ms: this machine's clock. Raises NotFoundError
    (`no_namespace`, `no_bucket`): nothing is monitored that was never seen; StorageError (`not_writable`) if
    the meta index cannot be kept; DamageError, RefusedError, TemporaryError.
    """
    with lasting_index(meta) as index, closing(open_store(url, options=options)) as store:
        return _sync(store, index, clock_ms, add=True)


def unmonitor(url: str, *, meta: MetaPath = None) -> None:
    """Monitors a namespace no more; the store is not asked. Raises NotFoundError (`not_monitored`)."""
    with lasting_index(meta) as index:
        place = parse_url(url)
        if not index.watchlist.remove(place.identity):
            raise not_monitored(place, index)


def list_monitored_namespaces(*, meta: MetaPath = None) -> list[Watched]:
    """All that is monitored, by URL, as of the last sync of each (no request). Raises DamageError
    (`meta_damaged`) where the list was lost with a damaged meta index, until something is monitored again."""
    with lasting_index(meta) as index:
        return index.watchlist.all()


def sync_one(
    url: str,
    *,
    full: bool = False,
    meta: MetaPath = None,
    options: StoreOptions | None = None,
    clock_ms: Clock = now_ms,
) -> SyncReport:
    """Brings the meta index in step with one namespace: one request if nothing is new.

    full: everything is fetched again and every row is written anew. Raises NotFoundError (`not_monitored`),
    and what `monitor` raises.
    """
    with lasting_index(meta) as index:
        place = parse_url(url)
        if index.watchlist.find(place.identity) is None:
            raise not_monitored(place, index)
        with closing(open_store(place, options=options)) as store:
            return _sync(store, index, clock_ms, full=full)


def sync_all(
    *,
    full: bool = False,
    meta: MetaPath = None,
    options: StoreOptions | None = None,
    clock_ms: Clock = now_ms,
) -> SyncAllReport:
    """As sync_one, of everything that is monitored."""
    with lasting_index(meta) as index:
        return _sync_each(index, clock_ms, full, options)


def rebuild_meta(
    *, meta: MetaPath = None, options: StoreOptions | None = None, clock_ms: Clock = now_ms
) -> SyncAllReport:
    """Fetches and writes anew what is monitored, forgets what else stores can tell, and makes the file small.

    What only this machine knows stays: what is monitored, noted uploads, and the newest head of each
    namespace that was acknowledged, so that a store that lost data is still seen.
    """
    with lasting_index(meta) as index:
        done = _sync_each(index, clock_ms, True, options)
        index.tidy()
        return done


@contextmanager
def lasting_index(meta: MetaPath) -> Iterator[MetaIndex]:
    """The meta index, if what is written there stays."""
    with MetaIndex.open(meta) as index:
        if not index.lasting:
            raise StorageError(
                f"what is monitored stands in the meta index (--meta FILE, OURDB_META), and {index.note}",
                kind="not_writable",
                path=str(index.path),
            )
        yield index


def not_monitored(place: StoreUrl, index: MetaIndex) -> NotFoundError:
    """The error for a namespace that nobody monitors; it lists those that are."""
    return NotFoundError(
        f"the namespace is not monitored (ourdb monitor add): {place.display}",
        kind="not_monitored",
        monitored=[watched.url for watched in index.watchlist.all()],
    )


def watched_json(watched: Watched) -> dict[str, Any]:
    """A monitored namespace as commands print it."""
    return {
        "url": watched.url,
        "uuid": watched.uuid,
        "since": format_time(watched.since_ms),
        "synced": format_time(watched.synced_ms),
        "generations": watched.generations,
        "segments": watched.segments,
        "bytes": watched.bytes,
        "last_seq": watched.last_seq,
        "last_time": maybe_time(watched.last_time),
        "as_of": maybe_time(watched.as_of),
    }


def _sync_each(index: MetaIndex, clock_ms: Clock, full: bool, options: StoreOptions | None) -> SyncAllReport:
    synced: list[SyncReport] = []
    failed: dict[str, Error] = {}
    for watched in index.watchlist.all():
        try:
            with closing(open_store(watched.url, options=options)) as store:
                synced.append(_sync(store, index, clock_ms, full=full))
        except Error as error:
            if error.kind != "not_monitored":  # another process has taken it off the list meanwhile
                failed[watched.url] = error
    return SyncAllReport(synced=tuple(synced), failed=failed)


def _sync(
    store: Store, index: MetaIndex, clock_ms: Clock, *, full: bool = False, add: bool = False
) -> SyncReport:
    identity = store.url.identity
    namespace = Namespace(store, index)
    before = namespace.remembered()
    view = _read_anew(store, index) if full else _required(namespace.read())
    if add:
        index.watchlist.add(identity, store.url.lasting, clock_ms())
    else:
        index.watchlist.note_sync(identity, clock_ms())
    watched = index.watchlist.find(identity)
    if watched is None:
        raise not_monitored(store.url, index)
    return SyncReport(
        namespace=watched,
        changed=before is None or before.etag != view.etag,
        requests=store.requests.counts(),
        notes=tuple(namespace.notes),
    )


def _read_anew(store: Store, index: MetaIndex) -> View:
    """The view with nothing taken from the meta index but which head was acknowledged."""
    identity, url = store.url.identity, store.url.display
    view = _required(Namespace(store).read(known=index.known(identity)))
    index.learn(identity, url, view.head.kept)
    index.renew(identity, url, view)
    return view


def _required(view: View | None) -> View:
    assert view is not None  # a read that requires a head raises if there is none
    return view
