"""What a namespace holds, and what the shortest restore path to a point costs: nothing is restored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backup.report import SegmentReport
from backup.restoring.planner import Plan, Planner
from backup.restoring.target import Wanted
from compactor.analysis import Analysis, Holding, analyze_line
from compactor.fetch import SegmentFetcher
from compactor.lineage import owners_of
from compactor.session import Session, open_session
from compactor.store import StoreOptions
from ourdb.units import When, maybe_time


@dataclass(frozen=True, kw_only=True)
class AnalysisReport:
    """generation: in which the line ends, None: nothing was ever written. seq, time (ms), owner: the point
    that the path leads to, and the generation that wrote it. last_seq: the newest of the line. left_out: keys
    of segments that are damaged or missing, which showed while the point was looked up. requests: as really
    sent."""

    namespace: str
    generation: str | None
    owner: str | None
    seq: int
    time: int | None
    last_seq: int
    found: Analysis
    left_out: tuple[str, ...]
    requests: Mapping[str, int]
    notes: tuple[str, ...]

    def as_json(self, *, list_all: bool = False) -> dict[str, Any]:
        """list_all: every live segment of the line too."""
        found = self.found
        told = {
            "namespace": self.namespace,
            "generation": self.generation,
            "last_seq": self.last_seq,
            "line": _holding(found.line),
            "generations": [
                {"generation": name, **_holding(holding)} for name, holding in found.generations.items()
            ],
            "elsewhere": _holding(found.elsewhere),
            "target": {"seq": self.seq, "time": maybe_time(self.time), "generation": self.owner},
            "shortest_restore_path": {
                "segments": len(found.path),
                "bytes": found.path_bytes,
                "requests": found.path_requests,
                "steps": [
                    {
                        **SegmentReport.of(step.segment).as_json(),
                        "used_first_seq": step.after + 1,
                        "used_last_seq": step.upto,
                    }
                    for step in found.path
                ],
            },
            "beside_path": _holding(found.beside),
            "left_out": list(self.left_out),
            "requests": dict(self.requests),
            "notes": list(self.notes),
        }
        if list_all:
            used = {step.segment.key for step in found.path}
            told["segments"] = [
                SegmentReport.of(entry).as_json() | {"on_path": entry.key in used} for entry in found.live
            ]
        return told


def analyze(
    url: str,
    *,
    at: When | None = None,
    seq: int | None = None,
    generation: str | None = None,
    meta: str | os.PathLike[str] | None = None,
    options: StoreOptions | None = None,
) -> AnalysisReport:
    """The figures of one line and the shortest restore path to its newest point, to `seq`, or to the last
    point up to the time `at`: one request, and one or two where an index has to tell the point.

    generation: in which the line ends, needed where two are open. meta: path of the meta index, None: the
    user's own. Raises UnreachableError (with nearest_before and nearest_after), NotFoundError
    (`no_namespace`, `no_generation`), FencedError (`two_lines`), DamageError (no path is left; first_seq and
    last_seq say what is lost), InvalidError, RefusedError, TemporaryError.
    """
    wanted = Wanted.of(at=at, seq=seq, nearest_before=None)
    with open_session(url, meta, options) as session:
        return analyze_session(session, wanted, generation)


def analyze_session(session: Session, wanted: Wanted, generation: str | None = None) -> AnalysisReport:
    """As `analyze`, of a namespace that is open."""
    planner = Planner(session, wanted, generation, lambda uuid: SegmentFetcher(session.store, uuid))

    def tell(plan: Plan) -> AnalysisReport:
        head = plan.view.head
        return AnalysisReport(
            namespace=head.namespace,
            generation=plan.end.id if plan.end else None,
            owner=plan.point.generation if plan.point else None,
            seq=plan.seq,
            time=plan.point.time if plan.point else None,
            last_seq=plan.end.end_seq if plan.end else 0,
            found=analyze_line(plan.view.segments, owners_of(head, plan.end), plan.steps),
            left_out=planner.left_out,
            requests=session.store.requests.counts(),
            notes=session.notes,
        )

    return planner.persist(tell)


def _holding(holding: Holding) -> dict[str, Any]:
    return vars(holding) | {
        "first_time": maybe_time(holding.first_time),
        "last_time": maybe_time(holding.last_time),
        "levels": {str(level): number for level, number in holding.levels.items()},
    }
