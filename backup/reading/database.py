"""A database as a store has it: its answers, along the path that a restore to the same point would take.

Indexes are fetched as they are needed, the newest first, and kept as files; then a value is one ranged read.
"""

# ruff: noqa: A001, A002  (an id is called id)

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np

from backup.reading.id_search import Hits, IdSearch
from backup.reading.index_cache import CachedFetcher, IndexCache
from backup.reading.indexes import Indexes
from backup.reading.values import ValueReader
from backup.restoring.planner import Plan, Planner
from backup.restoring.target import Wanted
from compactor.entries import SegmentEntry
from compactor.index_points import Point
from compactor.session import Session
from ourdb.config import Config
from ourdb.errors import InvalidError, UnusableError
from ourdb.history import Version
from ourdb.lookup import Lookup
from ourdb.reading import missing
from ourdb.views import Items, Values

D = TypeVar("D")
T = TypeVar("T")


@dataclass(frozen=True)
class _Path:
    """A plan, and what looks along it."""

    plan: Plan
    search: IdSearch
    values: ValueReader


class RemoteDatabase(Mapping[int, bytes]):
    """A database as a store has it, at one point, for reading. For several threads; a context manager.

    point: seq, time and generation; None: nothing was ever written. config: what the database was made with.

    What is asked may raise DamageError (`store_damaged`) where the store is damaged and no other path leads
    to the point; UnreachableError where a compaction has merged the point away since it was opened;
    RefusedError, TemporaryError; UnusableError once it is closed.
    """

    def __init__(
        self, session: Session, wanted: Wanted, generation: str | None, cache: IndexCache, *, threads: int
    ) -> None:
        self._session, self._cache = session, cache
        self._ahead = 2 * threads
        self._doubted: set[str] = set()
        self._lock, self._table_lock = threading.Lock(), threading.Lock()
        self._table: Lookup | None = None
        self._path: _Path | None = None
        self._closing = ExitStack()
        self._closed = False
        self._planner = Planner(
            session,
            wanted,
            generation,
            lambda uuid: CachedFetcher(session.store, uuid, cache),
            stays=True,
            doubt=self._doubt,
        )
        self._pool = ThreadPoolExecutor(threads, "remote")
        self._indexes = Indexes(self._planner.fetcher, self._pool)
        plan = self._planner.persist(lambda plan: plan)
        self.point: Point | None = plan.point
        self.config = Config.from_json(dict(plan.view.head.config))

    # -- one value

    @overload
    def get(self, id: int, default: None = None, /) -> bytes | None: ...
    @overload
    def get(self, id: int, default: D, /) -> bytes | D: ...
    def get(self, id: int, default: Any = None, /) -> Any:
        """The value of an id, or `default`."""
        return self.get_many([id], default)[0]

    def get_many(self, ids: Iterable[int], default: D | None = None) -> list[bytes | D | None]:
        """The values of many ids, in their order; `default` for those that are not there. Those that lie near
        each other are fetched together, several requests at once."""
        wanted = [_number(id) for id in ids]
        inside = np.unique(np.array([id for id in wanted if self._may_hold(id)], np.int64))

        def read(path: _Path) -> dict[int, bytes]:
            if not len(inside):
                return {}
            hits = (hits[hits.alive] for hits in path.search.newest(inside))
            return {id: value for id, _, value in path.values.read(hits)}

        found = self._ask(read)
        return [found.get(id, default) for id in wanted]

    def history(self, id: int, depth: int | None = None) -> list[Version]:
        """The versions of an id up to the point, as far as merges kept them, newest first, at most `depth`; a
        deletion has value None."""
        if depth is not None and depth < 0:
            raise InvalidError(f"depth must not be negative: {depth}")
        number = _number(id)
        if not self._may_hold(number) or depth == 0:
            return []
        return self._ask(lambda path: _versions(path, number, depth))

    # -- a mapping of int to bytes

    def __getitem__(self, id: int) -> bytes:
        value = self.get(id)
        if value is None:
            raise missing(id)
        return value

    def __contains__(self, id: object) -> bool:
        if not isinstance(id, int | np.integer) or not self._may_hold(int(id)):
            return False
        wanted = np.array([int(id)], np.int64)
        return self._ask(lambda path: any(hits.alive.all() for hits in path.search.newest(wanted)))

    def __len__(self) -> int:
        return self._lookup().count

    def __iter__(self) -> Iterator[int]:
        """Ids, ascending."""
        for ids in self._lookup().alive():
            yield from ids.tolist()

    def items(self) -> Items:
        """Ids and values, in log order (by the seq of the value), for so each block is fetched once. In
        memory are some bytes for each id, and values in flight."""
        return Items(self, self._pairs, self.__len__, current=True)

    def values(self) -> Values:
        """The values, in the order of `items`."""
        return Values(self)

    # -- what it cost, and the end

    @property
    def left_out(self) -> tuple[str, ...]:
        """Keys of segments that are damaged or missing, and were not needed so far."""
        return self._planner.left_out

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should be told."""
        return self._session.notes

    @property
    def requests(self) -> dict[str, int]:
        """How many requests were sent, by kind."""
        return self._session.store.requests.counts()

    def on_close(self, action: Callable[[], object]) -> None:
        """What `close` does at last."""
        self._closing.callback(action)

    def close(self) -> None:
        """Gives back connections, threads and memory. Closing twice does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._pool.shutdown(cancel_futures=True)
        self._cache.trim()
        self._table = self._path = None
        self._closing.close()

    def __enter__(self) -> RemoteDatabase:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- beneath

    def _ask(self, question: Callable[[_Path], T]) -> T:
        self._require_open()
        return self._planner.persist(lambda plan: question(self._along(plan)))

    def _along(self, plan: Plan) -> _Path:
        path = self._path
        if path is None or path.plan is not plan:
            search = IdSearch(plan.steps, self._indexes, count=self._ahead)
            path = _Path(plan, search, ValueReader(plan.steps, self._indexes, self._pool, count=self._ahead))
            self._path = path
        return path

    def _lookup(self) -> Lookup:
        """Which seq each id has at the point."""
        with self._table_lock:
            if self._table is None:
                self._table = self._ask(self._make_lookup)
            return self._table

    def _make_lookup(self, path: _Path) -> Lookup:
        lookup = Lookup(self.config.record_nr_max, seq=path.plan.seq)
        for hits in path.search.log():
            lookup.put_many(hits.ids, hits.seqs, hits.alive)
        return lookup

    def _pairs(self) -> Iterator[tuple[int, bytes]]:
        lookup, done = self._lookup(), 0

        def go_on(plan: Plan) -> Iterator[tuple[int, int, bytes]]:
            path = self._along(plan)
            hits = (hits[(lookup.seqs(hits.ids) == hits.seqs) & hits.alive] for hits in path.search.log(done))
            return path.values.read(hits)

        for id, done, value in self._planner.resume(go_on):  # noqa: B007  (`go_on` needs to know it)
            self._require_open()
            yield id, value

    def _doubt(self, entry: SegmentEntry) -> bool:
        """Whether the damage may be that of a copy in the cache: it is let go of, once."""
        self._indexes.forget()
        if entry.key in self._doubted:
            return False
        self._doubted.add(entry.key)
        return self._cache.drop(entry)

    def _may_hold(self, id: int) -> bool:
        return 0 <= id <= self.config.record_nr_max

    def _require_open(self) -> None:
        if self._closed:
            raise UnusableError("the database was closed")


def _versions(path: _Path, id: int, depth: int | None) -> list[Version]:
    """Values are fetched of those records only that have one, and count."""
    found: list[Hits] = []
    count = 0
    for hits in path.search.versions(id, all=depth is None):
        found.append(hits if depth is None else hits[-(depth - count) :])
        count += len(found[-1])
        if count == depth:
            break
    values = {seq: value for _, seq, value in path.values.read(hits[hits.alive] for hits in found)}
    return [
        Version(seq, time_ms, values.get(seq))
        for hits in found
        for seq, time_ms in zip(hits.seqs[::-1].tolist(), hits.times[::-1].tolist(), strict=True)
    ]


def _number(id: int) -> int:
    try:
        return operator.index(id)
    except TypeError as error:
        raise InvalidError(f"an id is an int: {id!r}") from error
