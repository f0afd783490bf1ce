"""A small world in which everything repeats: a clock, random numbers and a boot id of the test's own, and
limits of the engine so low that a few records meet them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import ourdb.active
import ourdb.condense
import ourdb.database
import ourdb.directory
import ourdb.idpages
import ourdb.logwriter
import ourdb.lookup
import ourdb.opening
import ourdb.pagetable
import ourdb.recovery
import ourdb.tablekeeper

OPTIONS = {"record_nr_max": 6000, "record_size_max": 3000, "file_size": 12 << 10}
KIB = 1024
PIECES = (ourdb.tableformat, ourdb.tablepages, ourdb.tableopening, ourdb.idpages)


class Clock:
    """Milliseconds that go on by themselves, now and then by more than a few."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self.now = rng, 1_700_000_000_000

    def ns(self) -> int:
        self.now += self._rng.choice((0, 0, 1, 2, 50))
        return self.now * 1_000_000

    def ms(self) -> int:
        return self.ns() // 1_000_000


@contextmanager
def small_world(seed: object) -> Iterator[None]:
    """Within it the same seed does the same."""
    rng = random.Random(f"world {seed}")
    clock = Clock(rng)
    with ExitStack() as stack:
        for target, name, value in (
            (ourdb.database, "_clock", clock.ns),
            (ourdb.condense, "now_ms", clock.ms),
            (ourdb.directory, "now_ms", clock.ms),
            (ourdb.opening, "SYNC_INTERVAL_S", 3600.0),
            (ourdb.active, "STEP_BYTES_MIN", 4 * KIB),
            (ourdb.active, "STEP_BYTES_MAX", 4 * KIB),
            (ourdb.logwriter, "_CHECKPOINT_BYTES_MIN", 6 * KIB),
            (ourdb.logwriter, "_CHECKPOINT_FACTOR", 0),
            (ourdb.recovery, "_UNPROVEN_RECORDS", 2),
            (ourdb.lookup, "_BITS", {2: 5, 3: 6, 4: 8, 6: 48}),
            (ourdb.pagetable, "WAL_BYTES_MIN", 512),
            (ourdb.tablekeeper, "BACKGROUND", False),
            (ourdb.tablepages, "CHANGED_PAGES_MAX", 3),
            (ourdb.tablepages, "_RUN_PAGES", 2),
            *((module, "_PIECE_PAGES", 2) for module in PIECES),
            (ourdb.directory.secrets, "randbelow", rng.randrange),
            (ourdb.directory.secrets, "token_bytes", rng.randbytes),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        yield


@contextmanager
def boot(number: int) -> Iterator[None]:
    """The machine as it was started for this time."""
    with mock.patch.object(ourdb.directory, "boot_id", return_value=number.to_bytes(16, "little")):
        yield
