"""Segments as the edges of a graph over seq, in columns: what the search for a path works on."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compactor.entries import SegmentEntry
from ourdb.names import CHAIN_AFTER_PLACE, CHAIN_BEFORE_PLACE, FIRST_PLACE, LAST_PLACE
from ourdb.record import SEQ_MAX
from ourdb.segment.summary import Run

SEGMENT_COST = 1 << 56  # a cost is one number: segments first, then bytes
START, NONE, SEVERAL = -1, -2, -3  # instead of the edge before: where the path starts; none; more than one
_PIECE = 1 << 12
_LOW, _ONES = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)  # of each of eight bytes

Ints = npt.NDArray[np.int64]


@dataclass
class Edges:
    """Edges sorted by last seq. An edge is a segment, or all parts of a stretch together.

    befores, afters: chain before the first and after the last record. leaders: of the edges that end alike,
    in seq and chain, the first. follows: the leader of those that end where this one begins, with the same
    chain; or START, NONE; or SEVERAL, if edges of more than one chain end there. costs: of using it.
    crowded: another edge ends in it. indexes: of the (first) segment. parts: only of edges that are a
    stretch. runs: only of those that are not exact all over.
    """

    firsts: Sequence[int]
    lasts: Sequence[int]
    befores: Sequence[int]
    afters: Sequence[int]
    leaders: Sequence[int]
    follows: Sequence[int]
    costs: Sequence[int]
    crowded: Sequence[int]
    indexes: Sequence[int]
    parts: dict[int, tuple[int, ...]]
    runs: dict[int, tuple[Run, ...]]
    segments: Sequence[SegmentEntry]

    def members(self, edge: int) -> list[SegmentEntry]:
        """The segments of an edge, in order."""
        return [self.segments[index] for index in self.parts.get(edge, (self.indexes[edge],))]

    def knows(self, edge: int, seq: int) -> bool:
        """Whether the chain after `seq` is known from this edge alone."""
        if edge not in self.runs:
            return self.firsts[edge] - 1 <= seq <= self.lasts[edge]
        return seq == self.firsts[edge] - 1 or any(
            run.first_seq - 1 <= seq <= run.last_seq for run in self.runs[edge]
        )

    def exact_at(self, edge: int, seq: int) -> bool:
        """Whether what a path holds up to `seq` is exact there if this edge is its last."""
        if edge not in self.runs:
            return self.firsts[edge] <= seq <= self.lasts[edge]
        return any(run.first_seq <= seq <= run.last_seq for run in self.runs[edge])


class _Ends(NamedTuple):
    """Where a path starts, with which chain (None: any), and its target (None: any)."""

    start: int
    chain: int | None
    target: int | None


@dataclass
class _Columns:
    """One entry a segment; an unknown chain is any number, and is not asked for. special: indexes of those
    that say their runs, or are part of a stretch."""

    first: Ints
    last: Ints
    before: Ints
    after: Ints
    bytes: Ints
    special: list[int]


def usable_edges(
    segments: Sequence[SegmentEntry],
    start: int,
    target: int | None,
    *,
    chain: int | None = None,
    without: Collection[str] = (),
) -> Edges:
    """The edges behind `start` that a path to `target` may use (None: to any seq). chain: at the start, None:
    any.

    What begins after the target, or reaches it and is not exact there, is left out; what reaches beyond it
    counts as ending there. A stretch of which a part is missing is left out whole.
    """
    if without:
        segments = [segment for segment in segments if segment.key not in without]
    columns = _columns(segments)
    usable = (columns.first > start) & (columns.first <= (SEQ_MAX if target is None else target))
    runs: dict[int, tuple[Run, ...]] = {}
    stretches: dict[int, list[int]] = defaultdict(list)
    for index in columns.special:
        segment, exact = segments[index], segments[index].exact_runs
        if segment.stretch is not None:
            usable[index] = False
            stretches[segment.stretch.id].append(index)
        elif [(run.first_seq, run.last_seq) for run in exact] != [(segment.first_seq, segment.last_seq)]:
            runs[index] = exact
            usable[index] &= _may_end(exact, segment.last_seq, target)
    parts: dict[int, tuple[int, ...]] = {}
    for indexes in stretches.values():
        whole = _join_parts(segments, indexes)
        if whole and start < segments[whole[0]].first_seq <= (SEQ_MAX if target is None else target):
            exact = tuple(run for index in whole for run in segments[index].exact_runs)
            usable[whole[0]] = _may_end(exact, segments[whole[-1]].last_seq, target)
            parts[whole[0]], runs[whole[0]] = whole, exact
    ends = _Ends(start, chain, target)
    return _sorted_edges(segments, columns, np.flatnonzero(usable), parts, runs, ends)


def _sorted_edges(
    segments: Sequence[SegmentEntry],
    columns: _Columns,
    chosen: Ints,
    parts: dict[int, tuple[int, ...]],
    runs: dict[int, tuple[Run, ...]],
    ends: _Ends,
) -> Edges:
    tails, costs = chosen.copy(), columns.bytes + SEGMENT_COST
    for index, whole in parts.items():
        tails[chosen == index] = whole[-1]
        costs[index] = sum(costs[list(whole)].tolist())
    lasts = columns.last[tails]
    if ends.target is not None:
        lasts = np.minimum(lasts, ends.target)
    firsts, afters = columns.first[chosen], columns.after[tails]
    order = np.lexsort((firsts, afters, lasts))
    chosen, firsts, lasts, afters = chosen[order], firsts[order], lasts[order], afters[order]
    befores, leaders = columns.before[chosen], _leaders(lasts, afters)
    place_of = {index: place for place, index in enumerate(chosen.tolist()) if index in runs} if runs else {}
    crowded = np.zeros(len(chosen), np.bool_)
    crowded[1:] = lasts[:-1] >= firsts[1:]
    return Edges(
        firsts=firsts.tolist(),
        lasts=lasts.tolist(),
        befores=_packed(befores),
        afters=_packed(afters),
        leaders=_packed(leaders),
        follows=_packed(_followed(firsts, lasts, befores, afters, leaders, ends)),
        costs=_packed(costs[chosen]),
        crowded=crowded.tobytes(),
        indexes=_packed(chosen),
        parts={place_of[index]: whole for index, whole in parts.items() if index in place_of},
        runs={place: runs[index] for index, place in place_of.items()},
        segments=segments,
    )


def _leaders(lasts: Ints, afters: Ints) -> Ints:
    """The first of each row of edges that end alike."""
    places = np.arange(len(lasts))
    places[1:][(lasts[1:] == lasts[:-1]) & (afters[1:] == afters[:-1])] = 0
    return np.maximum.accumulate(places)


def _followed(firsts: Ints, lasts: Ints, befores: Ints, afters: Ints, leaders: Ints, ends: _Ends) -> Ints:
    """`follows` of each edge."""
    begin = np.searchsorted(lasts, firsts - 1, "left")
    end = np.searchsorted(lasts, firsts - 1, "right")
    some = np.flatnonzero(end > begin)
    begin, end = begin[some], end[some]
    alike = leaders[end - 1] == begin
    found = np.full(len(firsts), NONE)
    found[some] = np.where(alike, np.where(afters[begin] == befores[some], begin, NONE), SEVERAL)
    at_start = firsts == ends.start + 1
    found[at_start if ends.chain is None else at_start & (befores == ends.chain)] = START
    return found


def _packed(column: Ints) -> Sequence[int]:
    """Numbers that Python reads one by one, without an object for each of them."""
    return array("q", column.tobytes())


def _columns(segments: Sequence[SegmentEntry]) -> _Columns:
    """Piece by piece, so that a segment is in the cache for all that is asked of it."""
    count = len(segments)
    first, last, before, after, sizes = (np.empty(count, np.int64) for _ in range(5))
    special: list[int] = []
    for begin in range(0, count, _PIECE):
        piece = segments[begin : begin + _PIECE]
        where = slice(begin, begin + len(piece))
        names = "".join([segment.file_name for segment in piece]).encode()
        text = np.frombuffer(names, np.uint8).reshape(len(piece), -1)
        first[where], last[where] = _long(text, FIRST_PLACE), _long(text, LAST_PLACE)
        before[where], after[where] = _number(text, CHAIN_BEFORE_PLACE), _number(text, CHAIN_AFTER_PLACE)
        sizes[where] = [segment.bytes for segment in piece]
        special += [i for i, s in enumerate(piece, begin) if s.runs is not None or s.stretch is not None]
    return _Columns(first, last, before, after, sizes, special)


def _long(text: npt.NDArray[np.uint8], place: int) -> Ints:
    return _number(text, place) << 32 | _number(text, place + 8)


def _number(text: npt.NDArray[np.uint8], place: int) -> Ints:
    """What the eight hex digits at a place of each row say; anything for what are not digits."""
    digits = np.ascontiguousarray(text[:, place : place + 8]).view(">u8").astype(np.uint64)[:, 0]
    digits = (digits & _LOW) + (digits >> np.uint64(6) & _ONES) * np.uint64(9)
    digits = (digits | digits >> np.uint64(4)) & np.uint64(0x00FF00FF00FF00FF)
    digits = (digits | digits >> np.uint64(8)) & np.uint64(0x0000FFFF0000FFFF)
    return ((digits | digits >> np.uint64(16)) & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _may_end(runs: tuple[Run, ...], last: int, target: int | None) -> bool:
    return target is None or last < target or any(run.first_seq <= target <= run.last_seq for run in runs)


def _join_parts(segments: Sequence[SegmentEntry], indexes: list[int]) -> tuple[int, ...] | None:
    """The parts of a stretch in order, if all are there and each begins where the one before ends. Of two
    objects that are the same part the smaller one counts."""
    by_part: dict[int, int] = {}
    wanted = 0
    for index in sorted(indexes, key=lambda i: (-segments[i].bytes, segments[i].file_name)):
        stretch = segments[index].stretch
        if stretch is not None:
            by_part[stretch.part], wanted = index, max(wanted, stretch.parts)
    if sorted(by_part) != list(range(1, wanted + 1)):
        return None
    whole = tuple(by_part[part] for part in range(1, wanted + 1))
    joined = all(segments[a].last_seq + 1 == segments[b].first_seq for a, b in pairwise(whole))
    return whole if joined else None
