"""What of a set of segments a merge has to keep exact: window, keep rules, pins, branch points. Pure.

A time means the last batch end at or before it. What a time means is protected where the sources are exact
there; what an earlier merge gave up is not claimed again. Everything is told from the set's own summaries and
columns: no request is made for it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compactor.head import Head
from compactor.lineage import marked_points
from compactor.policy import Policy, boundaries
from ourdb.errors import DamageError
from ourdb.merge import SourceColumns
from ourdb.record import TIME_MAX
from ourdb.segment.columns import batch_ends
from ourdb.segment.summary import Run
from ourdb.units import format_time

FOREVER = TIME_MAX + 1


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is asked for. since_ms: where the window begins, None: everything is kept. boundaries: single
    times (ms). newest: how many of the newest points, of the generation and of each line that left it: before
    the branch point. marked: pins and branch points, by seq, with what they are; branches: these alone."""

    since_ms: int | None
    boundaries: Sequence[int] = ()
    newest: int = 1
    marked: Mapping[int, str] = field(default_factory=dict)
    branches: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Protection:
    """What it comes to in a set. horizon: the seq from which on every point stays; None: every point there
    is. points: single seqs before it, ascending, each with what it is kept for."""

    horizon: int | None
    points: Mapping[int, str] = field(default_factory=dict)

    @property
    def pins(self) -> tuple[int, ...]:
        """The single seqs."""
        return tuple(self.points)


def rules_of(head: Head, generation: str, policy: Policy, anchor_ms: int) -> Rules:
    """What a head asks for in the segments of a generation. policy: that is followed. anchor_ms: the time
    that its window and keep rules are counted back from."""
    parents = [child.parent for child in head.generations.values() if child.parent]
    return Rules(
        since_ms=None if policy.window_ms is None else max(0, anchor_ms - policy.window_ms),
        boundaries=boundaries(policy, anchor_ms),
        newest=policy.newest,
        marked=marked_points(head, generation),
        branches=frozenset(parent.seq for parent in parents if parent.generation == generation),
    )


class Span(NamedTuple):
    """An exact run, and the time from which on something later is meant."""

    run: Run
    until_ms: int


def spans_of(segments: Iterable[tuple[int, Sequence[Run]]]) -> list[Span]:
    """The exact runs of neighbours, in order. segments: of each the time of its first record (ms), and its
    runs. What the last of them ends with is meant for ever: a merge keeps it anyway."""
    found = []
    for (_, runs), (following, _) in pairwise([*segments, (FOREVER, ())]):
        found += [Span(run, following if run.next_time is None else run.next_time) for run in runs]
    return found


def protect(sources: Sequence[SourceColumns], rules: Rules, *, later: Sequence[int] = ()) -> Protection:
    """What a merge of these neighbours has to keep, beside their end, which it always keeps.

    sources: as for a merge, in order. later: seqs of points of the generation that lie behind them,
    ascending; one of each segment is enough. Raises DamageError if columns contradict their summary.
    """
    if rules.since_ms is None:
        return Protection(horizon=None)
    spans = spans_of((s.summary.first_time, s.summary.runs) for s in sources)
    meant = _points_at(sources, spans, sorted({rules.since_ms, *rules.boundaries}))
    last = sources[-1].summary.last_seq
    horizon = meant.get(rules.since_ms) or next(
        (span.run.first_seq for span in spans if span.run.first_time > rules.since_ms), last
    )
    horizon = min([horizon, *_newest(sources, rules.newest - len(later), last)])
    kept = {
        seq: f"among the newest {rules.newest} before a branch point"
        for upto in rules.branches
        for seq in _newest(sources, rules.newest - bisect_right(later, upto), upto)
    }
    kept |= {meant[time]: f"the state at {format_time(time)}" for time in rules.boundaries if time in meant}
    kept |= {seq: rules.marked[seq] for seq in _exact([span.run for span in spans], rules.marked)}
    return Protection(horizon=horizon, points={seq: kept[seq] for seq in sorted(kept) if seq < horizon})


def still_offered(marked: Iterable[int], spans: Sequence[Span], runs: Sequence[Run]) -> bool:
    """Whether a result with these exact runs offers what is marked now and its sources (spans) offered: a
    pin may have come since it was made."""
    return _exact(runs, marked) >= _exact([span.run for span in spans], marked)


def _exact(runs: Sequence[Run], seqs: Iterable[int]) -> set[int]:
    """Those of the seqs that lie in one of the runs, which ascend."""
    firsts = [run.first_seq for run in runs]
    at = ((seq, bisect_right(firsts, seq) - 1) for seq in seqs)
    return {seq for seq, nr in at if nr >= 0 and seq <= runs[nr].last_seq}


def _points_at(
    sources: Sequence[SourceColumns], spans: Sequence[Span], times: Sequence[int]
) -> dict[int, int]:
    """The point that each time (ascending) means; without those that mean none here, or one that is not
    exact."""
    found: dict[int, int] = {}
    for span in spans:
        begin, end = bisect_left(times, span.run.first_time), bisect_left(times, span.until_ms)
        inside = min(bisect_left(times, span.run.last_time), end)
        found |= dict.fromkeys(times[inside:end], span.run.last_seq)
        if asked := times[begin:inside]:
            found |= zip(asked, _last_ends(_source_of(sources, span.run), span.run, asked), strict=True)
    return found


def _last_ends(source: SourceColumns, run: Run, times: Sequence[int]) -> list[int]:
    """The last batch end of a run up to each of these times (ascending, none before the first one)."""
    wanted = np.array(times, np.uint64)
    found = np.zeros(len(times), np.uint64)
    for seqs, ends_at in _ends_of(source, run):
        at = np.searchsorted(ends_at, wanted, "right")
        found[at > 0] = seqs[at[at > 0] - 1]
        if len(ends_at) and int(ends_at[-1]) > times[-1]:
            break
    if not found.all():
        raise DamageError(f"exact run without the batch end that it begins with: seq {run.first_seq}")
    return [int(seq) for seq in found]


def _newest(sources: Sequence[SourceColumns], count: int, upto: int) -> list[int]:
    """The newest `count` points up to a seq, fewer if there are not so many; in no order."""
    found: list[int] = []
    for source in reversed(sources):
        for run in reversed(source.summary.runs):
            if len(found) >= count:
                return found
            if run.first_seq <= upto:
                found += _newest_of(source, run, count - len(found), upto)
    return found


def _newest_of(source: SourceColumns, run: Run, count: int, upto: int) -> list[int]:
    if run.last_seq <= upto and (count == 1 or run.first_seq == run.last_seq):
        return [run.last_seq]
    ends = np.empty(0, np.uint64)
    for seqs, _ in _ends_of(source, run):
        ends = np.concatenate([ends, seqs[seqs <= np.uint64(upto)]])[-count:]
    return [int(seq) for seq in ends]


def _ends_of(
    source: SourceColumns, run: Run
) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]]:
    """Seqs and times of the batch ends of a run, in pieces."""
    for columns in source.columns(run.first_seq, run.last_seq):
        seqs = columns.seq
        ends = batch_ends(columns, closed=False) | (seqs == np.uint64(run.last_seq))
        ends &= (seqs >= np.uint64(run.first_seq)) & (seqs <= np.uint64(run.last_seq))
        yield seqs[ends], columns.time[ends]


def _source_of(sources: Sequence[SourceColumns], run: Run) -> SourceColumns:
    return next(s for s in sources if s.summary.first_seq <= run.first_seq <= s.summary.last_seq)
