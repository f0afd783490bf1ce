"""What the parts of one backup run share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from backup.notebook import Notebook
from backup.options import BackupOptions, Progress
from backup.plan import Before
from compactor.head import SegmentEntry
from compactor.namespace import Namespace
from compactor.store import Store
from compactor.view import View
from ourdb.log import LogEnd, LogReader


class Gauge:
    """Tells how much of the raw bytes is done. For several threads."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._done = self._total = 0

    def expect(self, raw_bytes: int) -> None:
        self._move(0, raw_bytes)

    def advance(self, raw_bytes: int) -> None:
        self._move(raw_bytes, 0)

    def _move(self, done: int, more: int) -> None:
        with self._lock:
            self._done += done
            self._total += more
            if self._progress:
                self._progress(self._done, self._total, "uploading")


@dataclass(frozen=True, kw_only=True)
class Context:
    """path: of the directory. clock_ms: the local clock. monotonic: seconds, for the pace of commits."""

    path: Path
    log: LogReader
    store: Store
    namespace: Namespace
    notebook: Notebook
    options: BackupOptions
    gauge: Gauge
    clock_ms: Callable[[], int]
    monotonic: Callable[[], float]

    @property
    def uuid(self) -> str:
        return self.log.uuid.hex()

    @property
    def identity(self) -> str:
        """Of the store: the same however its URL is spelled."""
        return self.namespace.identity


@dataclass(frozen=True, kw_only=True)
class Look:
    """The store and the log as one attempt found them. as_of: the time (ms) just before the log's end was
    looked for, less a second."""

    view: View | None
    before: Before
    as_of: int
    end: LogEnd


@dataclass
class Work:
    """What the run has done. uploaded: every segment, named or not. adopted: uploads of killed runs that a
    commit has named."""

    uploaded: list[SegmentEntry] = field(default_factory=list)
    adopted: list[SegmentEntry] = field(default_factory=list)
    committed: bool = False
