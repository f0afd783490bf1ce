"""How many requests of each kind a store has sent."""

from __future__ import annotations

import threading

KINDS = ("GET", "PUT", "HEAD", "LIST", "DELETE", "POST", "COPY")


class RequestCounter:
    """Counts by kind: PUT with UploadPart, DELETE with DeleteObjects, POST to begin and complete a
    multipart upload, COPY with UploadPartCopy. bytes_copied, bytes_fetched: by assemble, within the store
    and through this machine. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(KINDS, 0)
        self._bytes_copied = self._bytes_fetched = 0

    def add(self, kind: str) -> None:
        """kind: one of KINDS."""
        with self._lock:
            self._counts[kind] += 1

    def add_copied(self, size: int) -> None:
        """size: bytes that assemble had copied within the store."""
        with self._lock:
            self._bytes_copied += size

    def add_fetched(self, size: int) -> None:
        """size: bytes that assemble fetched, to send them again."""
        with self._lock:
            self._bytes_fetched += size

    @property
    def bytes_copied(self) -> int:
        return self._bytes_copied

    @property
    def bytes_fetched(self) -> int:
        return self._bytes_fetched

    def counts(self) -> dict[str, int]:
        """Every kind, those never sent with 0."""
        with self._lock:
            return dict(self._counts)
