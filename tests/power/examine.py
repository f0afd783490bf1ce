"""Opening what a crash has left: nothing that had to be kept is lost, nothing is there that never was."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import ourdb
from ourdb.errors import NotFoundError
from tests.power.crash import killed
from tests.power.disk import Disk, Image, build, read_image
from tests.power.model import Expected, Written, histories_of, state_of
from tests.power.recorder import Call, Fault, WatchedSystem
from tests.power.run import IDS, KINDS, State, take
from tests.power.world import OPTIONS, boot

NAME = "db"
CRASHES_MAX = 3  # one after the other, of which all but the first happen in recovery or soon after


def compare(db: ourdb.OurDB, expected: Expected, low: int) -> int:
    """The state, every history and every record; returns the seq that the log ends with."""
    seq = db.last_seq
    assert low <= seq, f"lost: the log ends at {seq}, {low} had to be there"
    assert expected.ends(seq), f"the log ends at {seq}, inside a batch or behind all that was written"
    log = expected.log[:seq]
    state = state_of(log)
    assert (dict(db.items()), len(db), list(db)) == (state, len(state), sorted(state))
    if db.config.mode == "incremental":
        assert db.get_next_id() > max((record.id for record in log), default=0)
    there = [db.record(at) for at in range(1, seq + 1)]
    gone = frozenset(at for at, record in enumerate(there, 1) if record is None)
    kept = [frozenset(at for at in some if at <= seq) for some in (expected.before, expected.change.dropped)]
    assert gone in kept, f"records that are gone: {sorted(gone)}"
    for record, written in zip(there, log, strict=True):
        if record is not None:
            assert (record.id, None if record.deleted else record.value) == (written.id, written.value)
    for id_, versions in histories_of(log, gone).items():
        assert [(found.seq, found.value) for found in db.get_history(id_)] == versions, id_
    return seq


class Examiner:
    """folder: where directories may be made. mode: of the database. faulty: calls have failed before, so that
    a cache may have been given up. counts: states by kind."""

    def __init__(self, folder: Path, mode: str, *, faulty: bool) -> None:
        self._folder, self._mode, self._faulty = folder, mode, faulty
        self.counts: Counter[str] = Counter()

    def examine(self, state: State, draw: random.Random) -> None:
        """Open what a crash left, compare, open again, write on; and the same for a crash in there."""
        booted = 1
        for crash in range(CRASHES_MAX):
            self.counts[state.kind + (" again" if crash else "")] += 1
            booted += state.kind != "killed"
            following = self._visit(state, draw, booted)
            if following is None:
                break
            state = following

    def _visit(self, state: State, draw: random.Random, booted: int) -> State | None:
        top = self._folder / "crashed"
        watch = _Watch(state.disk.copy(top), state, draw)
        build(top, killed(watch.disk))
        try:
            with boot(booted):
                self._open(top, state, watch)
        except BaseException as error:
            error.add_note(f"{state.kind} at {state.at}")
            raise
        finally:
            watch.fs.end()
            rmtree(top)
        return watch.chosen

    def _open(self, top: Path, state: State, watch: _Watch) -> None:
        with self._opened(top, state, watch.fs) as db:
            seq = compare(db, state.expected, state.low)
            assert self._faulty or not [note for note in db.notes if "on disk is not usable" in note], (
                db.notes
            )
            watch.found(seq)
        before = _lasting(read_image(top))
        with self._opened(top, state, watch.fs) as again:
            assert again.notes == []
            assert compare(again, state.expected, seq) == seq
        assert _lasting(read_image(top)) == before, "a second opening changed something"
        self._go_on(top, watch)

    def _opened(self, top: Path, state: State, fs: WatchedSystem) -> ourdb.OurDB:
        """The database; it has to be there if it was."""
        path = top / NAME
        try:
            return ourdb.open(path, sync="never", create=False, fs=fs)
        except NotFoundError:
            assert not state.expected.created, "the database is gone"
        return ourdb.open(path, mode=self._mode, sync="never", fs=fs, **OPTIONS)  # type: ignore[arg-type]

    def _go_on(self, top: Path, watch: _Watch) -> None:
        """Write on, and read that again."""
        draw = watch.draw
        with ourdb.open(top / NAME, sync="never", fs=watch.fs) as db:
            for _ in range(draw.randint(1, 4)):
                value = draw.randbytes(draw.choice((0, 40, 40, 500)))
                known = db.get_next_id() if self._mode == "incremental" else draw.choice(IDS)
                watch.write(known, value)
                db.set(value, None if self._mode == "incremental" else known)
                watch.written(durable=False)
            if draw.random() < 0.3:
                watch.write(known, None)
                db.delete(known)
                watch.written(durable=False)
            if draw.random() < 0.7:
                db.rotate() if draw.random() < 0.4 else db.sync()
                watch.written(durable=True)
        low = watch.expected.acknowledged
        with ourdb.open(top / NAME, sync="never", fs=watch.fs) as db:
            compare(db, watch.expected, low)


class _Watch:
    """Knows what has to be there while a state is examined, and picks one more crash of it, at any of the
    calls with the same chance."""

    def __init__(self, disk: Disk, state: State, draw: random.Random) -> None:
        self.disk, self.expected, self.draw = disk, state.expected, draw
        self.fs = WatchedSystem(disk, self._see)
        self.chosen: State | None = None
        self._state, self._calls = state, 0
        if state.kind != "killed":  # what else was acknowledged is lost
            self.expected = replace(self.expected, acknowledged=self.expected.durable)

    def _see(self, call: Call) -> Fault | None:
        self._calls += 1
        if self.draw.random() * self._calls < 1:
            kind = self.draw.choice(KINDS)
            at = f"{self._state.at}; then call {self._calls}: {call.what} {call.path.name}"
            self.chosen = State(kind, take(kind, self.disk, self.draw), self.expected, at)
        return None

    def found(self, seq: int) -> None:
        """What is there once the database is open stays; after a power cut it was made durable."""
        durable = seq if self._state.kind != "killed" else self.expected.durable
        log = self.expected.log[:seq]
        self.expected = replace(self.expected, log=log, created=True, acknowledged=seq, durable=durable)

    def write(self, id_: int, value: bytes | None) -> None:
        """A record is about to be written."""
        log = (*self.expected.log, Written(id_, value, ends=True))
        self.expected = replace(self.expected, log=log)

    def written(self, *, durable: bool) -> None:
        """All that was begun is acknowledged."""
        seq = len(self.expected.log)
        self.expected = replace(
            self.expected, acknowledged=seq, durable=seq if durable else self.expected.durable
        )


def _lasting(image: Image) -> Image:
    """Without caches."""
    return {
        name: _lasting(found) if isinstance(found, dict) else found
        for name, found in image.items()
        if name != "cache"
    }
