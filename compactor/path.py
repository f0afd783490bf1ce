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
from typing import Protocol

from compactor.edges import usable_edges
from compactor.entries import SegmentEntry
from compactor.generations import Began, Generation
from compactor.head import Head
from compactor.search import ExactRange as ExactRange
from compactor.search import Search
from compactor.search import Step as Step
from ourdb.errors import FencedError, NotFoundError
from ourdb.units import format_time


class HeadView(Protocol):
    """A head, and the live segments that it names, by generation, last and first seq."""

    @property
    def head(self) -> Head: ...

    @property
    def segments(self) -> Sequence[SegmentEntry]: ...


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
    edges = usable_edges(segments, start, target, chain=chain, without=without)
    return Search(edges, start).path_to(target)


def exact_ranges(segments: Sequence[SegmentEntry], start: int, chain: int | None = None) -> list[ExactRange]:
    """All that can be restored exactly behind `start` through segments of one generation, by first seq."""
    edges = usable_edges(segments, start, None, chain=chain)
    return sorted(Search(edges, start).ranges(), key=lambda found: found.first_seq)


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
