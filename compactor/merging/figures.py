"""What a merge costs: bytes and requests, as foreseen or as done."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compactor.store.requests import RequestCounter


@dataclass(frozen=True, kw_only=True)
class Figures:
    """segments, records, bytes: of the sources, and of what comes out. Bytes, stored: index_bytes, fetched of
    indexes (of segments up to 64 KiB it is all of them); bytes_fetched, of blocks; bytes_copied, within the
    store; bytes_decoded, of blocks that were decompressed; bytes_written, sent by this machine. requests: by
    kind.

    Of a merge that was not written bytes_after, bytes_written and requests are estimates: what is compressed
    anew is taken to compress as well as before.
    """

    segments: int
    segments_after: int
    records_before: int
    records_after: int
    bytes_before: int
    bytes_after: int
    index_bytes: int
    bytes_fetched: int
    bytes_copied: int
    bytes_decoded: int
    bytes_written: int
    requests: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"requests": dict(self.requests)}


class Tally:
    """Bytes so far: fetched of the sources, and decoded of these. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.fetched = self.decoded = 0

    def add(self, *, fetched: int = 0, decoded: int = 0) -> None:
        with self._lock:
            self.fetched += fetched
            self.decoded += decoded


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What was spent up to a moment, or between two: bytes as in Figures, requests by kind."""

    fetched: int
    decoded: int
    copied: int
    requests: Mapping[str, int]

    @classmethod
    def now(cls, tally: Tally, requests: RequestCounter) -> Spent:
        """Up to now."""
        return cls(
            fetched=tally.fetched + requests.bytes_fetched,
            decoded=tally.decoded,
            copied=requests.bytes_copied,
            requests=requests.counts(),
        )

    def since(self, before: Spent) -> Spent:
        """What was spent after `before`."""
        return Spent(
            fetched=self.fetched - before.fetched,
            decoded=self.decoded - before.decoded,
            copied=self.copied - before.copied,
            requests={kind: count - before.requests[kind] for kind, count in self.requests.items()},
        )


def sum_requests(*counts: Mapping[str, int]) -> dict[str, int]:
    """Requests by kind of all of these."""
    kinds = dict.fromkeys(kind for count in counts for kind in count)
    return {kind: sum(count.get(kind, 0) for count in counts) for kind in kinds}
