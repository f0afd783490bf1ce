"""The whole product against a dictionary with history: random writes, rotations, condensing, reopening,
backups, lost machines, and restores to a random point, whose state and history must be the model's."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

import backup
import ourdb
from ourdb.errors import MissingIdError, UnreachableError

IDS = st.integers(0, 12)
VALUES = st.binary(max_size=60)
Write = tuple[int, bytes | None]


class Model:
    """Every write in order, and where batches end."""

    def __init__(self) -> None:
        self.log: list[Write] = []
        self.ends: set[int] = {0}

    def commit(self, writes: list[Write]) -> None:
        self.log += writes
        self.ends.add(len(self.log))

    def state(self, seq: int) -> dict[int, bytes]:
        newest = dict(self.log[:seq])
        return {key: value for key, value in newest.items() if value is not None}

    def history(self, key: int, seq: int) -> list[tuple[int, bytes | None]]:
        versions = [(at, value) for at, (id_, value) in enumerate(self.log[:seq], 1) if id_ == key]
        return versions[::-1]


class Whole(RuleBasedStateMachine):
    points: Bundle[int] = Bundle("points")

    @initialize()
    def make(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="ourdb whole é "))
        self.url = f"file://{self.base}/store/our%20database"
        self.meta = self.base / "meta.db"
        self.path, self.restores = self.base / "db", 0
        self.db = ourdb.open(self.path, file_size=16 * 1024, record_size_max=256)
        self.model, self.shipped = Model(), 0

    def teardown(self) -> None:
        if hasattr(self, "base"):
            self.db.close()
            shutil.rmtree(self.base)

    @rule(key=IDS, value=VALUES)
    def write(self, key: int, value: bytes) -> None:
        self.db.set(value, key)
        self.model.commit([(key, value)])

    @rule(key=IDS)
    def delete(self, key: int) -> None:
        if key in self.db:
            self.db.delete(key)
            self.model.commit([(key, None)])
        else:
            try:
                self.db.delete(key)
            except MissingIdError:
                return
            raise AssertionError("deleted what is not there")

    @rule(writes=st.lists(st.tuples(IDS, VALUES), min_size=1, max_size=60))
    def batch(self, writes: list[tuple[int, bytes]]) -> None:
        with self.db.batch() as batch:
            for key, value in writes:
                batch.set(value, key)
        self.model.commit(list(writes))

    @rule(writes=st.dictionaries(IDS, VALUES, min_size=1))
    def write_many(self, writes: dict[int, bytes]) -> None:
        self.db.set_many(writes)
        self.model.commit(list(writes.items()))

    @rule()
    def rotate(self) -> None:
        self.db.rotate()

    @rule()
    def condense(self) -> None:
        self.db.condense()

    @rule()
    def reopen(self) -> None:
        self.db.close()
        self.db = ourdb.open(self.path)

    @rule(target=points)
    def backup(self) -> int:
        report = backup.backup(self.path, self.url, meta=self.meta)
        assert report.last_seq == len(self.model.log)
        self.shipped = len(self.model.log)
        return self.shipped

    def restored(self, seq: int | None) -> Path:
        self.restores += 1
        path = self.base / f"restored {self.restores}"
        report = backup.restore(self.url, path, seq=seq, meta=self.meta)
        assert report.seq == (self.shipped if seq is None else seq)
        return path

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        if not self.shipped:
            return
        seq = data.draw(st.integers(1, self.shipped))
        if seq not in self.model.ends:
            self.refused(seq)
            return
        path = self.restored(seq)
        with ourdb.open(path, readonly=True) as copy:
            assert copy.last_seq == seq
            assert dict(copy.items()) == self.model.state(seq)
            for key in range(13):
                expected = self.model.history(key, seq)
                assert [(v.seq, v.value) for v in copy.get_history(key)] == expected
        shutil.rmtree(path)

    def refused(self, seq: int) -> None:
        try:
            self.restored(seq)
        except UnreachableError as error:
            ends = self.model.ends & set(range(1, self.shipped + 1))
            before, after = error.fields["nearest_before"], error.fields["nearest_after"]
            assert (before and before["seq"]) == max((x for x in ends if x < seq), default=None)
            assert (after and after["seq"]) == min((x for x in ends if x > seq), default=None)
            return
        raise AssertionError("a restore landed inside a batch")

    @rule()
    def lose_the_machine(self) -> None:
        """Only the store is left: what goes on is a restored copy, on its own generation."""
        if not self.shipped:
            return
        self.db.close()
        shutil.rmtree(self.path)
        self.path = self.restored(None)
        self.db = ourdb.open(self.path)
        del self.model.log[self.shipped :]
        self.model.ends = {end for end in self.model.ends if end <= self.shipped}

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "db"):
            return
        assert self.db.last_seq == len(self.model.log)
        assert dict(self.db.items()) == self.model.state(len(self.model.log))


Whole.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWhole = Whole.TestCase
