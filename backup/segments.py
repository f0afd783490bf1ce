"""The live segments of a namespace, in order of what they cover."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backup.report import SegmentReport
from compactor.entries import SegmentEntry
from compactor.lineage import line_of, owners_of
from compactor.session import open_session
from compactor.store import StoreOptions


@dataclass(frozen=True, kw_only=True)
class LiveSegment:
    """exact_from_seq: from there to its end every restore point is exact; None: it has no exact end.
    exact_runs: all ranges in which every point is, ends included."""

    segment: SegmentReport
    exact_from_seq: int | None
    exact_runs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, entry: SegmentEntry) -> LiveSegment:
        runs = tuple((run.first_seq, run.last_seq) for run in entry.exact_runs)
        exact_end = bool(runs) and runs[-1][1] == entry.last_seq
        return cls(
            segment=SegmentReport.of(entry),
            exact_from_seq=runs[-1][0] if exact_end else None,
            exact_runs=runs,
        )

    def as_json(self) -> dict[str, Any]:
        return self.segment.as_json() | {
            "exact_from_seq": self.exact_from_seq,
            "exact_runs": [{"first_seq": first, "last_seq": last} for first, last in self.exact_runs],
        }


@dataclass(frozen=True, kw_only=True)
class SegmentsReport:
    """generation: in which the line ends; None: nothing was ever written. Each segment names the one that
    owns it."""

    namespace: str
    generation: str | None
    segments: tuple[LiveSegment, ...]
    requests: Mapping[str, int]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "namespace": self.namespace,
            "generation": self.generation,
            "segments": [segment.as_json() for segment in self.segments],
            "requests": dict(self.requests),
            "notes": list(self.notes),
        }


def segments(
    url: str,
    *,
    generation: str | None = None,
    meta: str | os.PathLike[str] | None = None,
    options: StoreOptions | None = None,
) -> SegmentsReport:
    """What the head names of one line, by first and last seq: one request. generation: in which the line
    ends, needed where two are open.

    Raises NotFoundError (`no_namespace`, `no_generation`), FencedError (`two_lines`), DamageError,
    RefusedError, TemporaryError.
    """
    with open_session(url, meta, options) as session:
        view = session.read()
        end = line_of(view.head, generation)
        owners = owners_of(view.head, end)
        live = [entry for entry in view.segments if entry.first_seq <= owners.get(entry.generation, 0)]
        return SegmentsReport(
            namespace=view.head.namespace,
            generation=end.id if end else None,
            segments=tuple(
                LiveSegment.of(entry)
                for entry in sorted(live, key=lambda e: (e.first_seq, e.last_seq, e.generation))
            ),
            requests=session.store.requests.counts(),
            notes=session.notes,
        )
