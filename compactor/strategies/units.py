"""What strategies choose from: a generation's segments in the order of their ranges, in units that only go
together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple, NoReturn, Protocol, TypeVar

from ourdb.errors import InvalidError
from ourdb.segment.summary import Stretch


class Segment(Protocol):
    """What a strategy knows of a segment; `SegmentEntry` is one. bytes: of the object."""

    @property
    def generation(self) -> str: ...
    @property
    def first_seq(self) -> int: ...
    @property
    def last_seq(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def stretch(self) -> Stretch | None: ...


S = TypeVar("S", bound=Segment)


class Unit(NamedTuple):
    """Segments start to end (excluded) of the input: one, or all parts of a stretch, which has no known
    chain where it was cut. seqs, bytes: how many it spans."""

    start: int
    end: int
    seqs: int
    bytes: int


class Span(NamedTuple):
    """Units start to end (excluded), and their bytes together: a set, if there are two or more."""

    start: int
    end: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """Says which neighbours are to be merged. Frozen; an object that exists has valid options."""

    name: ClassVar[str]

    def partition(self, segments: Sequence[S]) -> list[tuple[S, ...]]:
        """The sets to merge, each into one segment, in the order of their ranges. Pure.

        segments: live ones of one generation, in the order of their ranges, each beginning behind the one
        before it: a restore path to the generation's end, for instance. A set is a run of neighbours in that
        order, two or more; the parts of a stretch are in it all or none. Sets do not touch each other's
        segments, and what is in none stays as it is: an empty list says that there is nothing to do.
        InvalidError that names the range: a hole, an overlap, out of order, parts of a stretch missing, two
        generations.
        """
        units = units_of(segments)
        return [
            tuple(segments[units[span.start].start : units[span.end - 1].end])
            for span in self._choose(units)
            if span.end - span.start > 1
        ]

    @abstractmethod
    def _choose(self, units: Sequence[Unit]) -> Iterable[Span]:
        """Spans in order, none overlapping; those of a single unit are not merged."""


def units_of(segments: Sequence[Segment]) -> list[Unit]:
    """The units that the segments are. InvalidError as `Strategy.partition` says."""
    for before, after in pairwise(segments):
        if after.generation != before.generation or after.first_seq != before.last_seq + 1:
            _refuse(before, after)
    units: list[Unit] = []
    start = 0
    while start < len(segments):
        end = start + 1 if segments[start].stretch is None else _end_of_stretch(segments, start)
        seqs = segments[end - 1].last_seq - segments[start].first_seq + 1
        units.append(Unit(start, end, seqs, sum(segment.bytes for segment in segments[start:end])))
        start = end
    return units


def check_threshold(threshold: int) -> None:
    """InvalidError below 2: a segment alone is merged with nothing."""
    if threshold < 2:
        raise InvalidError(f"threshold must be at least 2 segments: {threshold}")


def _end_of_stretch(segments: Sequence[Segment], start: int) -> int:
    stretch = segments[start].stretch
    assert stretch is not None
    for nr in range(stretch.parts):
        part = segments[start + nr].stretch if start + nr < len(segments) else None
        if part != Stretch(stretch.id, nr + 1, stretch.parts):
            at = segments[min(start + nr, len(segments) - 1)]
            raise InvalidError(
                f"part {nr + 1} of {stretch.parts} of a stretch is missing at seq {at.first_seq} "
                f"to {at.last_seq}: parts are merged all together",
                first_seq=at.first_seq,
                last_seq=at.last_seq,
            )
    return start + stretch.parts


def _refuse(before: Segment, after: Segment) -> NoReturn:
    first, last = after.first_seq, after.last_seq
    if after.generation != before.generation:
        what = f"segments of two generations, {before.generation} and {after.generation}: the second from"
    elif first > before.last_seq:
        first, last = before.last_seq + 1, first - 1
        what = "segments with a hole between them:"
    elif last >= before.first_seq:
        first, last = max(first, before.first_seq), min(last, before.last_seq)
        what = "segments that overlap:"
    else:
        what = f"segments out of order, behind seq {before.last_seq} comes"
    raise InvalidError(f"{what} seq {first} to {last}", first_seq=first, last_seq=last)
