"""The cheapest way through a store's segments to a seq: fewest segments, then fewest bytes. Pure.

Two segments A, B of a path join if first(A) < first(B) <= last(A) + 1 and last(A) < last(B), at a seq
where the chains of both are known and A is exact: behind A's last record if B knows its chain there, or
before B's first record if A is exact there. A's records count up to that seq, B's after it. Only the last
segment of a path may reach the target, and has to be exact there; the parts of a stretch are used all or
none (docs/architecture.md#restoring).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

from compactor.edges import Edges, usable_edges
from compactor.entries import SegmentEntry
from compactor.generations import Began, Generation
from compactor.head import Head
from ourdb.errors import FencedError, NotFoundError
from ourdb.segment.summary import Run
from ourdb.units import format_time


class Step(NamedTuple):
    """One segment of a path: of its records those with after < seq <= upto are used."""

    segment: SegmentEntry
    after: int
    upto: int


class HeadView(Protocol):
    """A head, and the live segments that it names, by generation, last and first seq."""

    @property
    def head(self) -> Head: ...

    @property
    def segments(self) -> Sequence[SegmentEntry]: ...


class ExactRange(NamedTuple):
    """The part of an exact run, first_seq to run.last_seq, that a path leads to."""

    segment: SegmentEntry
    run: Run
    first_seq: int


def plan_path(
    segments: Sequence[SegmentEntry],
    start: int,
    target: int,
    *,
    chain: int | None = None,
    without: Collection[str] = (),
) -> list[Step] | None:
    """The optimum from `start` (excluded) to `target` (included) through segments of one generation.

    chain: what the first segment has to join at `start`, None: whatever it says. without: keys that are not
    to be used. Returns None if no path leads there, and no step if target <= start.
    """
    if target <= start:
        return []
    search = _Search(usable_edges(segments, start, target, without), start, chain)
    return search.path_to(target)


def exact_ranges(segments: Sequence[SegmentEntry], start: int, chain: int | None = None) -> list[ExactRange]:
    """All that can be restored exactly behind `start` through segments of one generation, by first seq."""
    return sorted(_Search(usable_edges(segments, start, None), start, chain).ranges(), key=lambda r: r[2])


def route(
    view: HeadView, generation: str, target: int, *, without: Collection[str] = ()
) -> list[Step] | None:
    """The path to `target`, which `generation` or an ancestor of it owns, from the first record on.

    None: no path. An ancestor is left exactly where its child says that it left it.
    """
    steps: list[Step] = []
    for owner, upto in ancestry(view.head, generation, target):
        start = owner.first_seq - 1
        own = plan_path(
            segments_of(view, owner.id),
            start,
            upto,
            chain=owner.parent.chain if owner.parent else 0,
            without=without,
        )
        if own is None:
            return None
        steps = own + steps
    return steps


def segments_of(view: HeadView, generation: str) -> Sequence[SegmentEntry]:
    """The live segments that a generation owns, by last and first seq."""
    begin = bisect_left(view.segments, (generation, ""), key=lambda segment: segment.order)
    end = bisect_left(view.segments, (generation, "~"), key=lambda segment: segment.order)
    return view.segments[begin:end]


def ancestry(head: Head, generation: str, target: int | None = None) -> Iterator[tuple[Generation, int]]:
    """A generation and its ancestors, the youngest first, each with the last of its seqs that counts.

    Those that own nothing up to `target` are left out. NotFoundError if one is not in the head.
    """
    upto = head.generations[generation].end_seq if target is None else target
    seen: set[str] = set()
    name: str | None = generation
    while name is not None:
        if name not in head.generations or name in seen:
            raise NotFoundError(
                f"generation {name} is not in the head", kind="no_generation", generation=name
            )
        seen.add(name)
        owner = head.generations[name]
        if upto >= owner.first_seq:
            yield owner, upto
        upto = min(upto, owner.first_seq - 1)
        name = owner.parent.generation if owner.parent else None


def owner_of(head: Head, generation: str, seq: int) -> Generation:
    """The generation that owns `seq` on the line that ends in `generation` (itself for seq 0)."""
    return next((owner for owner, _ in ancestry(head, generation, seq)), head.generations[generation])


def open_lines(head: Head) -> list[Generation]:
    """The generations at which somebody may still write."""
    return [generation for generation in head.generations.values() if generation.open]


def predecessor(head: Head, generation: str) -> Generation | None:
    """The generation that this one took over from, if any."""
    return next((g for g in head.generations.values() if g.successor == generation), None)


def took_over(head: Head, generation: str) -> bool:
    """Whether this one took over from another, which the head may have forgotten since."""
    gone = any(one.successor == generation for one in head.forgotten)
    return gone or predecessor(head, generation) is not None


def begin_time(view: HeadView, generation: Generation) -> int | None:
    """The time of the first record that a generation wrote, None if nothing tells it."""
    if generation.began:
        return generation.began.time
    own = segments_of(view, generation.id)
    first = (segment for segment in own if segment.first_seq == generation.first_seq)
    return min((segment.name.first_time for segment in first), default=None)


def began_with(head: Head, generation: str, time_ms: int) -> Began:
    """What a head says of a generation that holds from now on what lay before its own first record (which has
    this time), so that it needs no parent any more. A generation that says so already stays as it is."""
    child = head.generations[generation]
    if child.began:
        return child.began
    seqs: set[int] = set()
    for owner, _ in ancestry(head, generation):
        seqs.update(owner.began.took_over if owner.began else ())
        if owner.parent and took_over(head, owner.id):
            seqs.add(owner.first_seq)
    return Began(child.first_seq, time_ms, tuple(sorted(seqs)))


def line_of(head: Head, generation: str | None = None) -> Generation | None:
    """The generation in which the line that is meant ends: the named one, else the only open one.

    None: the namespace has no generation yet. NotFoundError (`no_generation`) names those there are,
    FencedError (`two_lines`) lists the open ones.
    """
    if generation is not None:
        if generation in head.generations:
            return head.generations[generation]
        raise NotFoundError(
            f"no generation {generation} in namespace {head.namespace} "
            f"(there are: {', '.join(sorted(head.generations)) or 'none'})",
            kind="no_generation",
            generations=[_as_json(g) for g in head.generations.values()],
        )
    lines = open_lines(head)
    if len(lines) > 1:
        raise FencedError(
            f"{len(lines)} lines are open in namespace {head.namespace}: say which one with --generation: "
            + ", ".join(f"{g.id} (to seq {g.last_seq}, {format_time(g.last_time)})" for g in lines),
            kind="two_lines",
            generations=[_as_json(g) for g in lines],
        )
    return lines[0] if lines else None


def _as_json(generation: Generation) -> dict[str, object]:
    return {
        "generation": generation.id,
        "last_seq": generation.last_seq,
        "last_time": format_time(generation.last_time),
    }


class _Search:
    """Shortest paths from one start to every edge, by dynamic programming over edges in order of last seq."""

    def __init__(self, edges: Edges, start: int, chain: int | None) -> None:
        self._edges = edges
        self._start = start
        self._costs: list[int | None] = [None] * len(edges.firsts)  # of the best path that ends with an edge
        self._costs.append(0)  # and of using none, which counts as one edge more
        self._via: dict[int, tuple[int, int]] = {}  # edge -> edge before, seq of the join: only for overlaps
        self._late: dict[tuple[int, int], tuple[int, tuple[int, int] | None] | None] = {}
        self._who: dict[int, int] = {}  # end of an edge -> the edge that the best path to it ends with
        self._stack: list[tuple[int, int, int]] = []  # last, cost, edge: last and cost both ascend
        self._pushed = 0
        none = len(edges.firsts)
        if chain is None:
            self._who = {edges.begins[edge]: none for edge in range(none) if edges.firsts[edge] == start + 1}
        else:
            self._who = {start << 32 | chain: none}
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
        edges, who, costs = self._edges, self._who, self._costs
        columns = zip(edges.begins, edges.ends, edges.costs, edges.crowded, strict=True)
        for edge, (begin, end, own_cost, crowded) in enumerate(columns):
            before = who.get(begin)
            cost = None if before is None else costs[before]
            if crowded:
                cost = self._enter_overlapping(edge, cost)
            if cost is not None:
                costs[edge] = cost = cost + own_cost
                other = who.get(end)
                if other is None or cost < (costs[other] or 0):
                    who[end] = edge

    def _enter_overlapping(self, edge: int, cost: int | None) -> int | None:
        """The cost of the best path up to an edge that others overlap; cost: by those that end before it.

        The cheapest edge that ends in it is a lower bound, and nearly always joins; if not, all are tried.
        """
        first, last = self._edges.firsts[edge], self._edges.lasts[edge]
        self._push_ending_before(last)
        place = bisect_left(self._stack, (first,))
        if place == len(self._stack) or (cost is not None and self._stack[place][1] >= cost):
            return cost
        end, lowest, before = self._stack[place]
        if self._edges.firsts[before] < first and self._edges.knows(edge, end):
            self._via[edge] = before, end
            return lowest
        found = self._enter(edge, last)
        if found is None:
            return None
        if found[1] is not None:
            self._via[edge] = found[1]
        return found[0]

    def _push_ending_before(self, last: int) -> None:
        while self._edges.lasts[self._pushed] < last:
            cost = self._costs[self._pushed]
            if cost is not None:
                while self._stack and self._stack[-1][1] >= cost:
                    self._stack.pop()
                self._stack.append((self._edges.lasts[self._pushed], cost, self._pushed))
            self._pushed += 1

    def _enter(self, edge: int, below: int) -> tuple[int, tuple[int, int] | None] | None:
        """The least cost up to an edge that is joined before `below`, and how: (edge before, seq of the
        join), None where they just follow each other. All are tried."""
        edges, first = self._edges, self._edges.firsts[edge]
        found: tuple[int, tuple[int, int] | None] | None = None
        if (follows := self._who.get(edges.begins[edge])) is not None:
            found = self._costs[follows] or 0, None
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
        if self._edges.begins[edge] in self._who:
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
        edges, firsts = self._edges, self._edges.firsts
        steps: list[Step] = []
        while True:
            late = self._late.get((edge, upto)) if self._late else None
            via = late[1] if late is not None else self._via.get(edge)
            after = via[1] if via else firsts[edge] - 1
            if edge in edges.parts:
                steps.extend(_clip(edges.members(edge), after, upto))
            else:
                steps.append(Step(edges.segments[edges.indexes[edge]], after, upto))
            if after == self._start:
                return steps[::-1]
            edge, upto = via if via else (self._who[edges.begins[edge]], after)


def _clip(parts: Sequence[SegmentEntry], after: int, upto: int) -> Iterator[Step]:
    """The steps through the parts of a stretch, the last one first."""
    for part in reversed(parts):
        step = Step(part, max(after, part.first_seq - 1), min(upto, part.last_seq))
        if step.after < step.upto:
            yield step
