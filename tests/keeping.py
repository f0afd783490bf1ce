"""A namespace on a clock that stands, the directories that write it, and who compacts and prunes it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import ourdb
from compactor.meta.index import MetaIndex
from compactor.namespace import Namespace
from compactor.policy import Anchor
from compactor.session import Session
from compactor.store.base import Store
from compactor.store.memory import shared_bucket
from compactor.url import parse_url
from compactor.view import View
from ourdb.errors import FencedError
from tests.backup_tools import Machine, Shop
from tests.promises import Clock, History, Pairs, Point, Promises, State
from tests.shelf import children_of

START = 1_830_220_000_000  # 2027-12-31, a Friday: months, years and weeks end soon
_numbers = count()


class Yard:
    """shop: the store. promises: the model. unnamed: since when (the store's clock) an object that is there
    is named by no head, as whoever looks after each step sees it."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock(START)
        self.shop = Shop(folder)
        self.shop.url = parse_url(f"memory://yard{next(_numbers)}/shelf/notes")
        self.shop.bucket = shared_bucket(self.shop.url.bucket)
        self.shop.bucket.clock_ms = self.clock.store_ms
        self.promises = Promises()
        self.unnamed: dict[str, int] = {}
        self.meta = folder / "keeper-meta.db"

    @property
    def url(self) -> str:
        return self.shop.url.display

    @contextlib.contextmanager
    def session(self, store: Store | None = None, meta: Path | None = None) -> Iterator[Session]:
        """Of whoever compacts and prunes."""
        with MetaIndex.open(meta or self.meta) as index:
            yield Session(store or self.shop.store(), index)

    def view(self) -> View:
        """The head as anybody finds it, who knows nothing."""
        view = Namespace(self.shop.store()).read()
        assert view is not None
        return view

    def maybe_view(self) -> View | None:
        return Namespace(self.shop.store()).read(required=False)

    def anchor(self, view: View) -> Anchor:
        return Anchor.of(view.head, local_ms=self.clock.local_ms(), store_ms=self.clock.store_ms())

    def keys(self) -> set[str]:
        """Of all objects, below the namespace."""
        root = self.shop.url.root + "/"
        return {key.removeprefix(root) for key in self.shop.bucket.objects}

    def named(self, view: View) -> set[str]:
        return {"head", *view.head.list_keys, *(entry.key for entry in view.segments)}

    def watch(self) -> View | None:
        """Notes what is named now. What a head names is there."""
        view = self.maybe_view()
        if view is None:
            return None
        named, there = self.named(view), self.keys()
        assert named <= there, f"named and missing: {sorted(named - there)}"
        assert not named & view.gone_keys, "named and let go of"
        self.unnamed = {key: self.unnamed.get(key, self.clock.ms) for key in there - named}
        return view

    def learn(self, view: View, history_of: Callable[[str, int], History]) -> None:
        """All lines and their ends, as the head says it. history_of: of a generation and its last seq."""
        generations = self.promises.generations
        for name, found in view.head.generations.items():
            owner = generations.get(name)
            if owner is None or owner.last < found.last_seq:
                parent = Point(found.parent.generation, found.parent.seq) if found.parent else None
                history = history_of(name, found.last_seq)
                self.promises.shipped(name, history, found.last_seq, parent)
        for name, found in view.head.generations.items():
            generations[name].successor = generations[name].successor or found.successor

    def children(self) -> list[Point]:
        return children_of(self.view())


class Directory(Machine):
    """A database directory with the history of all that was written into it."""

    def __init__(self, yard: Yard, name: str = "", history: History | None = None) -> None:
        super().__init__(yard.shop, name)
        self.yard = yard
        self.history = history or History()

    def commit(self, pairs: Pairs) -> None:
        """One batch; None deletes, and what is not there stays away."""
        state = self.history.state(len(self.history))
        done: list[tuple[int, bytes | None]] = []
        with ourdb.open(self.path) as db, db.batch() as batch:
            for id_, value in pairs:
                if value is not None:
                    batch.set(value, id_)
                    state[id_] = value
                elif id_ in state:
                    batch.delete(id_)
                    del state[id_]
                else:
                    continue
                done.append((id_, value))
        if done:
            self.history.commit(done, self.yard.clock.ms)

    def ship(self, **options: Any) -> str:
        """A backup run that is acknowledged, and all that follows from it; the generation."""
        report = self.run(clock_ms=lambda: self.yard.clock.ms, **options)
        assert report.last_seq == len(self.history)
        self.yard.learn(self.yard.view(), lambda *_: self.history)
        return report.generation

    def ship_anyhow(self, how: str | None = None, **options: Any) -> str:
        """By a fork, if there is no other way."""
        try:
            return self.ship(how=how, **options)
        except FencedError:
            return self.ship(how="fork", **options)

    def state(self) -> State:
        with ourdb.open(self.path, readonly=True) as db:
            return dict(db.items())

    def twin(self) -> Directory:
        """A copy of the directory, as `cp -a` makes it, on the same machine."""
        name = f"twin-{next(_numbers)}"
        shutil.copytree(self.path, self.yard.shop.folder / name)
        return Directory(self.yard, name, self.history.copy())


@contextlib.contextmanager
def standing(clock: Clock) -> Iterator[None]:
    """The engine takes its time from this clock."""
    with mock.patch("ourdb.database._clock", clock.engine_ns):
        yield
