"""What prune says: for each range of points and each object, why it is kept or goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from backup.retention.cuts import Cuts
from backup.retention.sweep import ObjectVerdict, UploadVerdict
from compactor.lineage import HeadView, marked_points
from compactor.windows import Window, reaches, windows_of
from ourdb.units import maybe_time


@dataclass(frozen=True, kw_only=True)
class PointVerdict:
    """A range of points of a generation, ends included; times in ms, None: the head does not tell."""

    generation: str
    first_seq: int
    last_seq: int
    first_time: int | None
    last_time: int | None
    goes: bool
    reason: str

    def as_json(self) -> dict[str, Any]:
        times = {"first_time": maybe_time(self.first_time), "last_time": maybe_time(self.last_time)}
        return vars(self) | times


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """points, objects, uploads: with what becomes of them, or would in a dry run. committed: how many heads
    were put. deleted: keys. failed: keys that could not be deleted, with the reason; the next run tries
    again."""

    url: str
    dry_run: bool
    grace_ms: int
    points: tuple[PointVerdict, ...]
    objects: tuple[ObjectVerdict, ...]
    uploads: tuple[UploadVerdict, ...]
    committed: int
    deleted: tuple[str, ...]
    failed: Mapping[str, str]
    requests: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def states(self) -> dict[tuple[str, str], tuple[int, int]]:
        """For each state of objects and reason: how many there are, and their bytes."""
        counts: Counter[tuple[str, str]] = Counter()
        sizes: Counter[tuple[str, str]] = Counter()
        for verdict in self.objects:
            counts[verdict.state, verdict.reason] += 1
            sizes[verdict.state, verdict.reason] += verdict.bytes or 0
        return {key: (counts[key], sizes[key]) for key in sorted(counts)}

    @property
    def freed_bytes(self) -> int:
        """Of the objects that were deleted, or would be."""
        return sum(
            verdict.bytes or 0
            for verdict in self.objects
            if verdict.state == "deleted" and verdict.key not in self.failed
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "dry_run": self.dry_run,
            "grace_ms": self.grace_ms,
            "points": [verdict.as_json() for verdict in self.points],
            "objects": [_json(verdict) for verdict in self.objects],
            "uploads": [_json(verdict) for verdict in self.uploads],
            "committed": self.committed,
            "deleted": list(self.deleted),
            "freed_bytes": self.freed_bytes,
            "failed": dict(self.failed),
            "requests": dict(self.requests),
            "notes": list(self.notes),
        }


def _json(verdict: ObjectVerdict | UploadVerdict) -> dict[str, Any]:
    members = dict(vars(verdict))
    return members | {"after": maybe_time(members.pop("after_ms"))}


def point_verdicts(view: HeadView, cuts: Cuts) -> Iterator[PointVerdict]:
    """The windows of each generation, apart where it is cut, and the marked points among them."""
    for verdict in cuts.verdicts:
        generation = view.head.generations[verdict.generation]
        cut = cuts.after.head.generations.get(generation.id)
        for window in windows_of(reaches(view, generation), generation.id):
            kept_to = cut.end_seq if cut else 0
            if window.first_seq <= kept_to:
                yield _verdict(
                    window, window.first_seq, min(window.last_seq, kept_to), verdict.reason, goes=False
                )
            if window.last_seq > kept_to:
                first = max(window.first_seq, kept_to + 1)
                yield _verdict(window, first, window.last_seq, verdict.reason, goes=True)
        for seq, what in marked_points(view.head, generation.id).items():
            yield PointVerdict(
                generation=generation.id,
                first_seq=seq,
                last_seq=seq,
                first_time=None,
                last_time=None,
                goes=False,
                reason=what,
            )


def _verdict(window: Window, first: int, last: int, reason: str, *, goes: bool) -> PointVerdict:
    return PointVerdict(
        generation=window.generation,
        first_seq=first,
        last_seq=last,
        first_time=window.first_time if first == window.first_seq else None,
        last_time=window.last_time if last == window.last_seq else None,
        goes=goes,
        reason=reason,
    )
