"""How many requests of each kind a store has sent."""

from __future__ import annotations

import threading

KINDS = ("GET", "PUT", "HEAD", "LIST", "DELETE", "POST", "COPY")


class RequestCounter:
    """Counts by kind: PUT with UploadPart, DELETE with DeleteObjects, POST to begin and complete a
    multipart upload, COPY with UploadPartCopy. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(KINDS, 0)

    def add(self, kind: str) -> None:
        """kind: one of KINDS."""
        with self._lock:
            self._counts[kind] += 1

    def counts(self) -> dict[str, int]:
        """Every kind, those never sent with 0."""
        with self._lock:
            return dict(self._counts)
