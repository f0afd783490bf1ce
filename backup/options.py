"""How a backup run goes about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from backup.plan import Start
from compactor.publish import PATIENCE_SECONDS
from compactor.store import StoreOptions
from compactor.store.base import check_threads
from ourdb.errors import InvalidError
from ourdb.units import GIB, MIB

Progress = Callable[[int, int, str], None]  # raw bytes done, raw bytes in all, what is being done


def _store_options() -> StoreOptions:
    """What is in memory at a time: a part for each thread, and a whole put for each of two segments."""
    return StoreOptions(threads=3, put_bytes_max=8 * MIB)


@dataclass(frozen=True, kw_only=True)
class BackupOptions:
    """how: the way out of a refusal that the operator chose. single_writer: a store without compare-and-swap
    is accepted. dry_run: nothing is written. as_of_ms: how old `as_of` may get before it is put by itself.
    commit_seconds: how often a long run commits what is complete; the default is a quarter of the shortest
    grace time that a policy may set. wait_seconds: how long lost races are tried again. segment_bytes: of
    records in a segment at most, but for a batch or condensed file that is larger. threads: that compress,
    1 to 64, None: one for each
    processor."""

    how: Start | None = None
    single_writer: bool = False
    dry_run: bool = False
    as_of_ms: int = 600_000
    commit_seconds: float = 900.0
    wait_seconds: float = PATIENCE_SECONDS
    segment_bytes: int = GIB
    threads: int | None = None
    store: StoreOptions = field(default_factory=_store_options)

    def validate(self) -> BackupOptions:
        """Self, or InvalidError that names the option."""
        if min(self.as_of_ms, self.commit_seconds, self.wait_seconds) < 0:
            raise InvalidError("as_of_ms, commit_seconds and wait_seconds must not be negative")
        if self.segment_bytes < 1:
            raise InvalidError(f"segment_bytes must be at least 1: {self.segment_bytes}")
        if self.threads is not None:
            check_threads(self.threads)
        return self
