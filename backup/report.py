"""What a backup run has to say in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compactor.head import SegmentEntry
from ourdb.units import format_time


@dataclass(frozen=True, kw_only=True)
class SegmentReport:
    """A segment that the run uploaded; in a dry run one that it would upload, with its bytes before
    compression and no key."""

    key: str | None
    generation: str
    first_seq: int
    last_seq: int
    first_time: int
    last_time: int
    records: int
    bytes: int
    level: int = 0

    @classmethod
    def of(cls, entry: SegmentEntry) -> SegmentReport:
        name = entry.name
        return cls(
            key=entry.key,
            generation=entry.generation,
            first_seq=name.first_seq,
            last_seq=name.last_seq,
            first_time=name.first_time,
            last_time=name.last_time,
            records=entry.records,
            bytes=entry.bytes,
            level=entry.level,
        )

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {
            "first_time": format_time(self.first_time),
            "last_time": format_time(self.last_time),
        }


@dataclass(frozen=True, kw_only=True)
class BackupReport:
    """last_seq, last_time (ms): up to there everything is restorable from the store alone. generation: the
    one that owns last_seq. as_of (ms): until when every write is known to be in. segments: those that were
    uploaded; adopted: uploads of a killed run that were used instead. committed: a head was put, in a dry run
    would be. requests: as really sent, by kind. notes: what people should be told."""

    generation: str
    last_seq: int
    last_time: int
    as_of: int
    segments: tuple[SegmentReport, ...]
    adopted: tuple[SegmentReport, ...]
    committed: bool
    dry_run: bool
    requests: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def bytes_uploaded(self) -> int:
        return sum(segment.bytes for segment in self.segments)

    def as_json(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "last_seq": self.last_seq,
            "last_time": format_time(self.last_time) if self.last_seq else None,
            "as_of": format_time(self.as_of) if self.as_of else None,
            "segments": [segment.as_json() for segment in self.segments],
            "adopted": [segment.as_json() for segment in self.adopted],
            "bytes_uploaded": self.bytes_uploaded,
            "committed": self.committed,
            "dry_run": self.dry_run,
            "requests": dict(self.requests),
            "notes": list(self.notes),
        }
