"""A recorded run: random operations on a database, crashes of its process among them, and crash states taken
at any call, each with what has to be found in it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ourdb
from ourdb import line
from ourdb.errors import Error, InvalidError
from ourdb.log import LogReader
from tests.power.crash import cut_careless, cut_ordered
from tests.power.disk import Disk
from tests.power.model import Change, Expected, Model, Pair
from tests.power.recorder import Call, Fault, Killed, WatchedSystem
from tests.power.world import OPTIONS

KINDS = ("killed", "ordered", "careless")
IDS = range(0, 6000, 250)  # on several pages of a lookup table on disk
STORE = "memory://store"
_SYNCS = ("fsync", "fdatasync")  # before one most is at stake


@dataclass(frozen=True)
class State:
    """What a crash left, and what has to be found in it. at: where in the run."""

    kind: str
    disk: Disk
    expected: Expected
    at: str

    @property
    def low(self) -> int:
        """The last seq that has to be there."""
        return self.expected.acknowledged if self.kind == "killed" else self.expected.durable


def take(kind: str, disk: Disk, rng: random.Random) -> Disk:
    """What a crash of this kind leaves now. After a kill that is more than what is durable."""
    if kind == "killed":
        return disk.copy(disk.root)
    return Disk(disk.root, cut_ordered(disk, rng) if kind == "ordered" else cut_careless(disk, rng))


class Run:
    """path: of the database, in a directory of its own that holds nothing else. share: of the calls at which
    a state is taken. lookup: where its lookup table is, most of the time."""

    def __init__(self, path: Path, seed: object, *, share: float = 0.0, lookup: str = "memory") -> None:
        self.path, self.rng = path, random.Random(f"run {seed}")
        self._seed, self._share, self._lookup = seed, share, lookup
        self.mode = self.rng.choice(("kv", "kv", "kv", "incremental"))
        self._value_size = self.rng.choice((0, 0, 40))  # 40: an old record may follow a new one
        self.disk, self.model = Disk(path.parent), Model()
        self.states: list[State] = []
        self.calls = 0
        self.fault: Callable[[Call, int], Fault | None] = lambda *_: None
        self._kill_at = -1
        self._unknown: list[Change] = []
        self.failures: Counter[str] = Counter()
        self.in_doubt = False  # a condensing has failed, and nobody looked yet whether it came to its commit
        self.fs = self._system()
        self.db: ourdb.OurDB | None = None
        self.sync = "never"

    def _system(self) -> WatchedSystem:
        return WatchedSystem(self.disk, self._see, seed=self.rng.randrange(1 << 30))

    def _see(self, call: Call) -> Fault | None:
        """Before each call."""
        self.calls += 1
        if self._share:
            self._maybe_take(call)
        if 0 < self._kill_at <= self.calls and (call.what in _SYNCS or not self._kill_at % 2):
            raise Killed
        return self.fault(call, self.calls)

    def _maybe_take(self, call: Call) -> None:
        draw = random.Random(f"state {self._seed} {self.calls}")
        if draw.random() < self._share * (3 if call.what in _SYNCS else 1):
            kind = draw.choice(KINDS)
            at = f"call {self.calls}: {call.what} {call.path.name} in {self.model.change.name}"
            self.states.append(State(kind, take(kind, self.disk, draw), self.model.expect(), at))

    # -- the process -------------------------------------------------------------------------------

    def open(self) -> ourdb.OurDB:
        self.begin("open")
        self.sync = self.rng.choice(("never", "interval", "always"))
        lookup = "memory" if self.rng.random() < 0.1 else self._lookup
        self.db = ourdb.open(
            self.path,
            mode=self.mode,  # type: ignore[arg-type]
            sync=self.sync,  # type: ignore[arg-type]
            lookup=lookup,  # type: ignore[arg-type]
            fs=self.fs,
            **OPTIONS,  # type: ignore[arg-type]
        )
        self.model.created = True
        return self.db

    def die(self) -> None:
        """The process is gone, with all that it had open."""
        self.fs.end()
        if self.db is not None:
            self.db._let_go()
        self.db, self.fs = None, self._system()

    def begin(self, name: str) -> None:
        self.model.change = Change(name, self.model.dropped)
        self._unknown.append(self.model.change)

    # -- operations --------------------------------------------------------------------------------

    def step(self) -> None:
        """One operation, or its end by a kill; what came out of it is in the model."""
        db = self.open() if self.db is None else self.db
        names, weights = zip(*_WEIGHTS.items(), strict=True)
        name = self.rng.choices(names, weights)[0]
        self.begin(name)
        getattr(self, f"_{name}")(db)
        if not self.in_doubt:
            self._unknown = []

    def write(self, pairs: Sequence[Pair], action: Callable[[], object]) -> None:
        """Do what writes these records as one batch."""
        assert self.db is not None
        self.model.begin(pairs)
        action()
        self.model.acknowledged = len(self.model.log)
        if self.sync == "always":
            self.model.durable = len(self.model.log)

    def _value(self) -> bytes:
        size = self._value_size or self.rng.choice((0, 5, 40, 40, 200, 600, 600, 2900))
        return self.rng.randbytes(size) if self.rng.random() < 0.7 else bytes(size)

    def _set(self, db: ourdb.OurDB) -> None:
        value = self._value()
        if self.mode == "kv":
            id_ = self.rng.choice(IDS)
            self.write([(id_, value)], lambda: db.set(value, id_))
            return
        present = list(db)
        given = self.rng.choice(present) if present and self.rng.random() < 0.7 else None
        known = given or db.get_next_id()
        if known <= OPTIONS["record_nr_max"]:
            self.write([(known, value)], lambda: db.set(value, given))

    def _delete(self, db: ourdb.OurDB) -> None:
        present = list(db)
        if present:
            id_ = self.rng.choice(present)
            self.write([(id_, None)], lambda: db.delete(id_))

    def _batch(self, db: ourdb.OurDB) -> None:
        present = list(db)
        pairs: list[Pair] = []
        with db.batch() as batch:
            for _ in range(self.rng.randint(1, 12)):
                there = [id_ for id_ in present if id_ in batch]
                if there and self.rng.random() < 0.3:
                    id_ = self.rng.choice(there)
                    batch.delete(id_)
                    pairs.append((id_, None))
                elif self.mode == "kv" or there:
                    id_ = self.rng.choice(there if self.mode != "kv" else IDS)
                    value = self._value()[:300]
                    batch.set(value, id_)
                    pairs.append((id_, value))
            if pairs:
                self.write(pairs, batch.commit)

    def _set_many(self, db: ourdb.OurDB) -> None:
        count = self.rng.randint(1, 40)
        ids = IDS if self.mode == "kv" else list(db)
        if ids:
            pairs = [(self.rng.choice(ids), self._value()[:150]) for _ in range(count)]
            self.write(pairs, lambda: db.set_many(pairs))

    def _sync(self, db: ourdb.OurDB) -> None:
        db.sync()
        self.model.durable = len(self.model.log)

    def _rotate(self, db: ourdb.OurDB) -> None:
        db.rotate()
        self.model.durable = len(self.model.log)

    def _condense(self, db: ourdb.OurDB) -> None:
        window, versions = self.rng.choice(((None, None), (0, None), (40, None), (None, 2), (40, 1)))
        db.condense(window, versions)
        self.note_dropped(db)

    def note_dropped(self, db: ourdb.OurDB) -> None:
        """Which records are there no more."""
        gone = frozenset(seq for seq in range(1, db.last_seq + 1) if db.record(seq) is None)
        for change in self._unknown:  # one that was killed may have come to its commit
            change.dropped = gone
        self.model.dropped = gone
        self._unknown, self.in_doubt = [], False

    def _ship(self, db: ourdb.OurDB) -> None:
        """What a backup does here: reads the log to its end, makes it durable, and notes a mark."""
        with LogReader(self.path, fs=self.fs) as log:
            end = log.find_end()
            assert end.seq == db.last_seq
            if not end.seq:
                return
            log.make_durable(1, end.seq)
            self.model.durable = end.seq
            known = line.load(self.path, fs=self.fs)
            assert known
            mark = line.Mark(
                url=STORE, generation=known.generation, seq=end.seq, chain=end.chain, revision=1, run="0" * 16
            )
            line.update(self.path, lambda old: line.raise_mark(old, STORE, mark), fs=self.fs)

    def _forget(self, db: ourdb.OurDB) -> None:
        try:
            db.forget(STORE)
        except InvalidError:
            return  # nothing was shipped

    def _close(self, db: ourdb.OurDB) -> None:
        db.close()
        if self.sync != "never":
            self.model.durable = len(self.model.log)
        self.db = None
        self.die()

    def _kill(self, db: ourdb.OurDB) -> None:
        """The process is killed at one of the next calls, and another one goes on."""
        self._kill_at = self.calls + self.rng.randint(1, 60)

    # -- all of it ---------------------------------------------------------------------------------

    def go(self, steps: int) -> None:
        """Some operations."""
        for _ in range(steps):
            try:
                fresh = self.db is None
                if fresh:
                    self._opened()
                self.step()
            except Killed:
                self._kill_at = -1
                self.die()
            except Error as error:
                self.failed(error)
        self._kill_at, self.fault = -1, lambda *_: None
        if self.db is None:
            self._opened()
        assert self.db is not None
        self.note_dropped(self.db)
        self.begin("close")
        self._close(self.db)

    def failed(self, error: Error) -> None:
        """An operation has said that it failed: nothing makes one fail here."""
        raise error

    def _opened(self) -> None:
        expected = self.model.expect()
        db = self.open()
        assert db.last_seq >= expected.acknowledged
        assert expected.ends(db.last_seq)
        self.model.cut(db.last_seq)
        self.note_dropped(db)
        assert dict(db.items()) == self.model.state()


_WEIGHTS = {
    "set": 12,
    "delete": 4,
    "batch": 5,
    "set_many": 4,
    "sync": 3,
    "rotate": 2,
    "condense": 3,
    "ship": 2,
    "forget": 1,
    "close": 2,
    "kill": 3,
}
