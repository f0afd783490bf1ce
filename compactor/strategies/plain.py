"""The strategies of the ancestor: everything, halves, levels (docs/decisions/auto-strategy.md compares)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from compactor.strategies.units import Span, Strategy, Unit, check_threshold


@dataclass(frozen=True, kw_only=True)
class All(Strategy):
    """Everything into one segment, whatever its size: the shortest path, and all bytes written anew."""

    name: ClassVar[str] = "all"

    def _choose(self, units: Sequence[Unit]) -> Iterable[Span]:
        return [span_of(units, 0, len(units))]


@dataclass(frozen=True, kw_only=True)
class Log(Strategy):
    """The older half into one segment, and again on the rest: n segments become about log2 n."""

    name: ClassVar[str] = "log"

    def _choose(self, units: Sequence[Unit]) -> Iterator[Span]:
        start = 0
        while half := (len(units) - start) // 2:
            yield span_of(units, start, start + half)
            start += half


@dataclass(frozen=True, kw_only=True)
class Levels(Strategy):
    """Nothing below `threshold` segments; else the newest, so many that one less than the threshold is left,
    and with them the next older one as long as it spans no more seqs than all that was taken so far.

    threshold: at least 2; there are never more segments left than that.
    """

    name: ClassVar[str] = "levels"
    threshold: int = 10

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    def _choose(self, units: Sequence[Unit]) -> Iterable[Span]:
        if len(units) < self.threshold:
            return []
        start = self.threshold - 1
        seqs = sum(unit.seqs for unit in units[start:])
        while start and seqs >= units[start - 1].seqs:
            start -= 1
            seqs += units[start].seqs
        return [span_of(units, start, len(units))]


def span_of(units: Sequence[Unit], start: int, end: int) -> Span:
    return Span(start, end, sum(unit.bytes for unit in units[start:end]))
