"""A recorded run in which calls fail: once, some times, or until the database is opened again."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

import pytest

import ourdb
from ourdb.errors import DamageError, Error, StorageError, UnusableError
from tests.power.disk import Folder
from tests.power.recorder import Call, Fault
from tests.power.run import Run

_ERRORS = {
    "open": (errno.EIO, errno.EMFILE),
    "write": (errno.EIO, errno.ENOSPC),
    "preallocate": (errno.ENOSPC, errno.EIO),
    "create": (errno.ENOSPC, errno.EIO),
    "map": (errno.ENOMEM,),
    "lock": (errno.ENOLCK,),
}
_LATE = {"rename", "remove", "write", "truncate", "preallocate"}  # may fail after their effect
_DELAY_MAX = 60


class FaultyRun(Run):
    """After a failure the handle goes on or refuses writes; what it says is what is there."""

    def __init__(self, path: Path, seed: object, *, share: float, lookup: str = "memory") -> None:
        super().__init__(path, seed, share=share, lookup=lookup)
        self.fault = self._choose
        self._heal()

    def _heal(self) -> None:
        """No fault for a while."""
        self._next = self.calls + self.rng.randint(1, _DELAY_MAX)
        self._left = self.rng.choice((1, 1, 3, 1000))
        self._what: str | None = None

    def _choose(self, call: Call, number: int) -> Fault | None:
        if number < self._next or not self._left or call.what == "store":
            return None
        if self.model.change.name == "ship" and call.what == "fsync" and call.path.suffix == ".db":
            return None  # the writer would be told too, through its own descriptor: not modelled
        if self._what not in (None, call.what):
            return None
        self._what, self._left = call.what, self._left - 1
        draw = self.rng.random()
        if call.what == "write" and draw < 0.3:
            self.failures["short write"] += 1
            return Fault(short=self.rng.randrange(1 << 20))
        number = self.rng.choice(_ERRORS.get(call.what, (errno.EIO,)))
        late = call.what in _LATE and draw > 0.7
        self.failures[f"{call.what} {errno.errorcode[number]}{' late' if late else ''}"] += 1
        return Fault(number, after=late)

    def failed(self, error: Error) -> None:
        assert not isinstance(error, DamageError), error
        db = self.db
        if db is None:  # it could not be opened
            self.die()
            self._heal()
            return
        self.model.settle(db.last_seq)
        self.in_doubt = True
        if db._failure is None:
            self._still_whole(db)
            return
        self._refuses(db)
        self._heal()
        self.begin("close")
        if self.rng.random() < 0.5:
            db.close()
        self.die()
        if self.rng.random() < 0.5:
            self._evict(self.disk.folder(self.path), self.path)

    def _still_whole(self, db: ourdb.OurDB) -> None:
        """The handle goes on: nothing of what failed is there, and all of the rest."""
        with suppress(StorageError):  # it may still be unable to map a file
            assert dict(db.items()) == self.model.state()

    def _refuses(self, db: ourdb.OurDB) -> None:
        id_ = 1 if self.mode == "kv" else None
        for write in (lambda: db.set(b"", id_), db.sync, db.rotate, db.condense):
            with pytest.raises(UnusableError):
                write()

    def _evict(self, folder: Folder, path: Path) -> None:
        """The kernel needs memory: pages that it takes for clean are read from the disk when they are needed
        again."""
        for name, node in folder.cached.items():
            if isinstance(node, Folder):
                self._evict(node, path / name)
            elif node.dropped:
                content = node.evicted()
                node.cached[:] = content
                (path / name).write_bytes(content)
                self.model.acknowledged = self.model.durable
