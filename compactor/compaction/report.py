"""What a compaction did, or would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from compactor.merging import Figures

Outcome = Literal["merged", "planned", "written", "nothing to gain", "overtaken", "damaged"]
CHANGED: tuple[Outcome, ...] = ("merged", "planned", "written")


@dataclass(frozen=True, kw_only=True)
class SetReport:
    """One set of neighbours. outcome: `merged` is published, `planned` was not written (dry run), `written`
    is in files; `nothing to gain`: nothing would be dropped, and there would be no fewer segments;
    `overtaken`: another run replaced them first; `damaged`: `problem` says what.

    figures: None where it did not come so far. horizon: from this seq on every point stays restorable, None:
    every point there is. kept: the single points before it, and what for. names: keys of the segments, or
    files, that came out of it. beside: segments that became useless and went too.
    """

    generation: str
    first_seq: int
    last_seq: int
    outcome: Outcome
    segments: int
    bytes: int
    figures: Figures | None = None
    horizon: int | None = None
    kept: Mapping[int, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    beside: int = 0
    problem: str | None = None

    @property
    def changed(self) -> bool:
        return self.outcome in CHANGED

    @property
    def segments_after(self) -> int:
        return self.figures.segments_after if self.changed and self.figures else self.segments

    @property
    def bytes_after(self) -> int:
        """Estimated where nothing was written."""
        return self.figures.bytes_after if self.changed and self.figures else self.bytes

    def as_json(self) -> dict[str, Any]:
        figures = self.figures
        return {
            "generation": self.generation,
            "first_seq": self.first_seq,
            "last_seq": self.last_seq,
            "outcome": self.outcome,
            "segments": self.segments,
            "segments_after": self.segments_after,
            "records": figures.records_before if figures else None,
            "records_after": figures.records_after if figures else None,
            "bytes": self.bytes,
            "bytes_after": self.bytes_after,
            "horizon": self.horizon,
            "kept": [{"seq": seq, "why": why} for seq, why in self.kept.items()],
            "figures": figures.as_json() if figures else None,
            "names": list(self.names),
            "beside": self.beside,
            "problem": self.problem,
        }


@dataclass(frozen=True, kw_only=True)
class CompactReport:
    """segments_before, segments_after: that a restore of the newest point reads, of all open lines together;
    after: as foreseen where nothing was published. requests: that were sent, by kind. notes: what people
    should be told."""

    url: str
    strategy: str
    dry_run: bool
    sets: Sequence[SetReport]
    segments_before: int
    segments_after: int
    requests: Mapping[str, int]
    notes: Sequence[str]

    def total(self, name: str) -> int:
        """The sum of a member of the figures, over the sets that were or would be merged."""
        return sum(getattr(each.figures, name) for each in self.sets if each.changed and each.figures)

    def as_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "strategy": self.strategy,
            "dry_run": self.dry_run,
            "sets": [each.as_json() for each in self.sets],
            "segments_before": self.segments_before,
            "segments_after": self.segments_after,
            "bytes_read": self.total("index_bytes") + self.total("bytes_fetched"),
            "bytes_copied": self.total("bytes_copied"),
            "bytes_decoded": self.total("bytes_decoded"),
            "bytes_written": self.total("bytes_written"),
            "requests": dict(self.requests),
            "notes": list(self.notes),
        }
