"""The search for the cheapest path over edges; compactor.path has the rules. Pure."""

from __future__ import annotations

import gc
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

from compactor.edges import NONE, SEVERAL, START, Edges
from compactor.entries import SegmentEntry
from ourdb.segment.summary import Run


class Step(NamedTuple):
    """One segment of a path: of its records those with after < seq <= upto are used."""

    segment: SegmentEntry
    after: int
    upto: int


class ExactRange(NamedTuple):
    """The part of an exact run, first_seq to run.last_seq, that a path leads to."""

    segment: SegmentEntry
    run: Run
    first_seq: int


class Search:
    """Shortest paths from one start to every edge, by dynamic programming over edges in order of last seq."""

    def __init__(self, edges: Edges, start: int) -> None:
        self._edges = edges
        self._start = start
        self._costs: list[int | None] = [None] * len(edges.firsts)  # of the best path that ends with an edge
        self._via: dict[int, tuple[int, int]] = {}  # edge -> edge before, seq of the join: only for overlaps
        self._late: dict[tuple[int, int], tuple[int, tuple[int, int] | None] | None] = {}
        self._reached: list[int | None] = [None] * len(edges.firsts)  # least cost of those with this leader
        self._best: dict[int, int] = {}  # leader -> the edge of that cost, where it is another one
        self._ended = _Ended(edges.lasts, self._costs)
        self._solve()

    def path_to(self, target: int) -> list[Step] | None:
        """The steps of the best path whose last edge reaches the target."""
        reaching = range(bisect_left(self._edges.lasts, target), len(self._edges.lasts))
        found = [(cost, edge) for edge in reaching if (cost := self._costs[edge]) is not None]
        return self._steps(min(found)[1], target) if found else None

    def ranges(self) -> Iterator[ExactRange]:
        """Each exact run, from the first seq on at which its edge may be the last of a path."""
        for edge in range(len(self._edges.firsts)):
            if self._costs[edge] is not None:
                lowest = self._lowest_end(edge)
                for segment in self._edges.members(edge):
                    for run in segment.exact_runs:
                        if run.last_seq >= lowest:
                            yield ExactRange(segment, run, max(lowest, run.first_seq))

    def _solve(self) -> None:
        edges, costs, reached = self._edges, self._costs, self._reached
        columns = zip(edges.follows, edges.leaders, edges.costs, edges.crowded, strict=True)
        for edge, (before, leader, own_cost, crowded) in enumerate(columns):
            cost = reached[before] if before >= 0 else None if before == NONE else self._follow(edge)
            if crowded:
                cost = self._enter_overlapping(edge, cost)
            if cost is not None:
                costs[edge] = cost = cost + own_cost
                least = reached[leader]
                if least is None or cost < least:
                    reached[leader] = cost
                    if leader != edge:
                        self._best[leader] = edge

    def _follow(self, edge: int) -> int | None:
        """The cost of the best path that ends where this edge begins, None: there is none."""
        leader = self._followed(edge)
        if leader == START:
            return 0
        return None if leader == NONE else self._reached[leader]

    def _followed(self, edge: int) -> int:
        """The leader of the edges that end where this one begins, with the same chain; START or NONE."""
        edges = self._edges
        if edges.follows[edge] != SEVERAL:
            return edges.follows[edge]
        end, chain = edges.firsts[edge] - 1, edges.befores[edge]
        there = range(bisect_left(edges.lasts, end), bisect_right(edges.lasts, end))
        return next((other for other in there if edges.afters[other] == chain), NONE)

    def _enter_overlapping(self, edge: int, cost: int | None) -> int | None:
        """The cost of the best path up to an edge that others overlap; cost: by those that end before it.

        The cheapest edge that ends in it is a lower bound, and nearly always joins; if not, all are tried.
        """
        edges, ended = self._edges, self._ended
        first, last = edges.firsts[edge], edges.lasts[edge]
        if edges.lasts[ended.taken] < last:
            ended.take_before(last)
        place = bisect_left(ended.lasts, first)
        if place == len(ended.lasts) or (cost is not None and ended.costs[place] >= cost):
            return cost
        before = ended.edges[place]
        if edges.firsts[before] < first and (edge not in edges.runs or edges.knows(edge, ended.lasts[place])):
            self._via[edge] = before, ended.lasts[place]
            return ended.costs[place]
        found = self._enter(edge, last)
        if found is None:
            return None
        if found[1] is not None:
            self._via[edge] = found[1]
        return found[0]

    def _enter(self, edge: int, below: int) -> tuple[int, tuple[int, int] | None] | None:
        """The least cost up to an edge that is joined before `below`, and how: (edge before, seq of the
        join), None where they just follow each other. All are tried."""
        edges, first = self._edges, self._edges.firsts[edge]
        found: tuple[int, tuple[int, int] | None] | None = None
        if (cost := self._follow(edge)) is not None:
            found = cost, None
        for before in self._overlapped_by(edge):
            end, lowest = edges.lasts[before], self._costs[before]
            if lowest is None or (found and found[0] <= lowest):
                continue
            if end < below and edges.knows(edge, end):
                found = lowest, (before, end)
            elif edges.exact_at(before, first - 1):
                cost = self._leave(before, first - 1)
                if cost is not None and (found is None or cost < found[0]):
                    found = cost, (before, first - 1)
        return found

    def _overlapped_by(self, edge: int) -> Iterator[int]:
        """The edges that begin before this one and end in it, but not at its end."""
        firsts, lasts = self._edges.firsts, self._edges.lasts
        first = firsts[edge]
        for before in range(bisect_left(lasts, first), bisect_left(lasts, lasts[edge])):
            if firsts[before] < first:
                yield before

    def _leave(self, edge: int, seq: int) -> int | None:
        """The cost of the best path that ends with this edge and leaves it after `seq`: it must have been
        joined before that."""
        joined = self._via[edge][1] if edge in self._via else self._edges.firsts[edge] - 1
        if joined < seq:
            return self._costs[edge]
        if (edge, seq) not in self._late:
            self._late[edge, seq] = self._enter(edge, seq)
        found = self._late[edge, seq]
        return None if found is None else found[0] + self._edges.costs[edge]

    def _lowest_end(self, edge: int) -> int:
        """The first seq to which a path may lead whose last edge is this one: those before it end earlier."""
        first = self._edges.firsts[edge]
        if self._follow(edge) is not None:
            return first
        for before in self._overlapped_by(edge):
            end = self._edges.lasts[before]
            if self._costs[before] is not None and (
                self._edges.knows(edge, end)
                or (self._edges.exact_at(before, first - 1) and self._leave(before, first - 1) is not None)
            ):
                return end + 1
        raise AssertionError("an edge with a cost has an edge before it")

    def _steps(self, edge: int, upto: int) -> list[Step]:
        """The steps of the best path that ends with this edge at this seq."""
        edges, firsts, start = self._edges, self._edges.firsts, self._start
        follows, vias, lates, best = edges.follows, self._via, self._late, self._best
        trail, joins = [edge], [upto]
        while True:  # once for each step of the path: a million of them are walked inline
            late = lates.get((edge, joins[-1])) if lates else None
            via = late[1] if late is not None else vias.get(edge) if vias else None
            if via:
                edge, after = via
            else:
                after = firsts[edge] - 1
                if after == start:
                    joins.append(after)
                    break
                leader = follows[edge]
                if leader == SEVERAL:
                    leader = self._followed(edge)
                edge = best.get(leader, leader)
            joins.append(after)
            trail.append(edge)
        trail.reverse()
        joins.reverse()
        if edges.parts:
            pieces = zip(trail, pairwise(joins), strict=True)
            return [step for e, (after, upto) in pieces for step in _clip(edges.members(e), after, upto)]
        found = map(edges.segments.__getitem__, map(edges.indexes.__getitem__, trail))
        with _no_collections():
            return list(map(Step, found, joins, joins[1:]))


class _Ended:
    """Edges that have ended, without those that another one makes useless because it ended later and costs no
    more: so lasts and costs both ascend. taken: how many edges were looked at."""

    __slots__ = ("_all_costs", "_all_lasts", "costs", "edges", "lasts", "taken")

    def __init__(self, all_lasts: Sequence[int], all_costs: Sequence[int | None]) -> None:
        self.lasts: list[int] = []
        self.costs: list[int] = []
        self.edges: list[int] = []
        self.taken = 0
        self._all_lasts, self._all_costs = all_lasts, all_costs

    def take_before(self, last: int) -> None:
        """Takes the edges that ended before `last`; never less than in the call before."""
        lasts, costs, edges = self.lasts, self.costs, self.edges
        for edge in range(self.taken, len(self._all_lasts)):
            end, cost = self._all_lasts[edge], self._all_costs[edge]
            if end >= last:
                self.taken = edge
                return
            if cost is not None:
                while costs and costs[-1] >= cost:
                    del lasts[-1], costs[-1], edges[-1]
                lasts.append(end)
                costs.append(cost)
                edges.append(edge)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Steps hold no cycles; for a million of them the collector would walk all that lives several times."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _clip(parts: Sequence[SegmentEntry], after: int, upto: int) -> Iterator[Step]:
    """The steps through the parts of a stretch."""
    for part in parts:
        step = Step(part, max(after, part.first_seq - 1), min(upto, part.last_seq))
        if step.after < step.upto:
            yield step
