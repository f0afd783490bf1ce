"""A database against a dictionary with history, by random steps."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import ourdb
from ourdb.check import find_problems
from ourdb.config import LookupKind
from ourdb.errors import MissingIdError, UnreachableError
from ourdb.log import LogReader

IDS = st.integers(0, 12)
VALUES = st.binary(max_size=40) | st.integers(0, 900).map(bytes)
WRITES = st.lists(st.tuples(IDS, st.none() | VALUES), max_size=8)


class DatabaseMachine(RuleBasedStateMachine):
    """`states`: the state after each batch end that has to be told exactly; `all_states`: after any; `log`:
    all records."""

    lookup: LookupKind = "memory"

    @initialize()
    def begin(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="ourdb-state-")) / "db"
        self.db = ourdb.open(
            self.path, file_size=10 * 1024, record_size_max=1024, sync="never", lookup=self.lookup
        )
        self.reader = ourdb.open(self.path, readonly=True)
        self.model: dict[int, bytes] = {}
        self.states: dict[int, dict[int, bytes]] = {0: {}}
        self.all_states = dict(self.states)
        self.log: list[tuple[int, bytes | None]] = []

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.check_past()
            self.db.close()
            self.reader.close()
            assert find_problems(self.path).problems == []
            shutil.rmtree(self.path.parent)

    def write(self, writes: list[tuple[int, bytes | None]]) -> None:
        for id_, value in writes:
            self.log.append((id_, value))
            if value is None:
                del self.model[id_]
            else:
                self.model[id_] = value
        self.states[len(self.log)] = self.all_states[len(self.log)] = dict(self.model)

    @rule(id_=IDS, value=VALUES)
    def set(self, id_: int, value: bytes) -> None:
        assert self.db.set(value, id_) == id_
        self.write([(id_, value)])

    @rule(id_=IDS)
    def delete(self, id_: int) -> None:
        if id_ in self.model:
            self.db.delete(id_)
            self.write([(id_, None)])
            return
        try:
            self.db.delete(id_)
            raise AssertionError("deleted what was not there")
        except MissingIdError:
            pass

    @rule(writes=WRITES)
    def batch(self, writes: list[tuple[int, bytes | None]]) -> None:
        done = []
        with self.db.batch() as batch:
            for id_, value in writes:
                if value is not None:
                    batch.set(value, id_)
                elif id_ in batch:
                    batch.delete(id_)
                else:
                    continue
                done.append((id_, value))
        if done:
            self.write(done)

    @rule(pairs=st.lists(st.tuples(IDS, VALUES), min_size=1, max_size=8))
    def set_many(self, pairs: list[tuple[int, bytes]]) -> None:
        self.db.set_many(pairs)
        self.write(list(pairs))

    @rule()
    def rotate(self) -> None:
        self.db.rotate()

    @rule()
    def merge(self) -> None:
        self.db.condense()

    @rule(keep=st.integers(1, 3))
    def condense(self, keep: int) -> None:
        self.db.condense(keep_versions=keep)
        end = len(self.log)
        self.states = {0: {}, end: self.states[end]}

    @rule(lose_caches=st.booleans())
    def reopen(self, lose_caches: bool) -> None:
        self.db.close()
        if lose_caches:
            shutil.rmtree(self.path / "cache")
        self.db = ourdb.open(self.path, sync="never")

    @rule()
    def reopen_reader(self) -> None:
        self.reader.close()
        self.reader = ourdb.open(self.path, readonly=True)

    @rule()
    def check_past(self) -> None:
        for seq in list(self.states)[-6:]:
            assert dict(self.db.items(seq=seq)) == self.states[seq]
            for id_ in range(13):
                assert self.db.get(id_, seq=seq) == self.states[seq].get(id_)
        for seq in range(len(self.log)):
            if seq not in self.states:
                self.check_given_up(seq)

    def check_given_up(self, seq: int) -> None:
        """A state that need not be told any more is told rightly or not at all; inside a batch there is
        none."""
        try:
            found = dict(self.db.items(seq=seq))
        except UnreachableError as error:
            for near in (error.fields["nearest_before"], error.fields["nearest_after"]):
                assert near is None or dict(self.db.items(seq=near["seq"])) == self.all_states[near["seq"]]
        else:
            assert found == self.all_states[seq]

    @rule(id_=IDS)
    def check_history(self, id_: int) -> None:
        all_versions = [(seq, value) for seq, (its, value) in enumerate(self.log, 1) if its == id_][::-1]
        found = [(version.seq, version.value) for version in self.db.get_history(id_)]
        assert [version for version in all_versions if version in found] == found
        if id_ in self.model:
            assert found[0] == all_versions[0]

    @rule()
    def check_log(self) -> None:
        with LogReader(self.path) as log:
            end = log.find_end()
            assert end.seq == len(self.log)
            pieces = log.pieces(1, end.seq) if end.seq else []
            assert sum(len(c) for p in pieces for c, _ in log.blocks(p)) == sum(
                p.summary.records for p in pieces
            )

    @invariant()
    def same_state(self) -> None:
        if not hasattr(self, "db"):
            return
        for db in (self.db, self.reader):
            assert dict(db.items()) == self.model
            assert (len(db), db.last_seq) == (len(self.model), len(self.log))
        assert dict(self.db.items("log")) == self.model


TestDatabase = DatabaseMachine.TestCase
TestDatabase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


class DiskMachine(DatabaseMachine):
    lookup = "disk"


TestDatabaseWithTableOnDisk = DiskMachine.TestCase
TestDatabaseWithTableOnDisk.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
