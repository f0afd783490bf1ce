"""How far a command is, for whoever watches it."""

from __future__ import annotations

import threading

from backup.options import Progress


class Meter:
    """Counts bytes that came from the store, by any thread, and tells `progress`. all_bytes: as expected."""

    def __init__(self, progress: Progress | None, what: str) -> None:
        self.done_bytes = 0
        self.all_bytes = 0
        self._progress, self._what = progress, what
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """So many bytes more."""
        with self._lock:
            self.done_bytes += size
            if self._progress:
                self._progress(self.done_bytes, max(self.all_bytes, self.done_bytes), self._what)
