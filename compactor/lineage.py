"""Lines: how the generations of a head descend from each other, and which of their points are marked. Pure.

An ancestor is left at a branch point by its child; a predecessor is taken over by its successor.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from compactor.entries import SegmentEntry
from compactor.generations import Began, Generation
from compactor.head import Head
from ourdb.errors import FencedError, NotFoundError
from ourdb.units import format_time


class HeadView(Protocol):
    """A head, and the live segments that it names, by generation, last and first seq."""

    @property
    def head(self) -> Head: ...

    @property
    def segments(self) -> Sequence[SegmentEntry]: ...


@dataclass(frozen=True)
class Shape:
    """A head and its live segments as they would be, or as far as they are of use."""

    head: Head
    segments: Sequence[SegmentEntry]


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


def marked_points(head: Head, generation: str) -> dict[int, str]:
    """The single points of a generation that stay exact, by seq, ascending, each with what it is: pins, and
    where another one left it."""
    found: dict[int, list[str]] = {}
    for pin in head.pins:
        if pin.generation == generation:
            found.setdefault(pin.seq, []).append(f"pin {pin.name}")
    for other in head.generations.values():
        if other.parent and other.parent.generation == generation:
            found.setdefault(other.parent.seq, []).append(f"branch point of generation {other.id}")
    return {seq: ", ".join(found[seq]) for seq in sorted(found)}


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
    return Began(child.first_seq, time_ms, take_overs(head, generation, child.end_seq))


def take_overs(head: Head, generation: str, upto: int) -> tuple[int, ...]:
    """The seqs up to this one at which a successor began, of a generation and its ancestors, ascending."""
    seqs: set[int] = set()
    for owner, _ in ancestry(head, generation, upto):
        seqs.update(owner.began.took_over if owner.began else ())
        if owner.parent and took_over(head, owner.id):
            seqs.add(owner.first_seq)
    return tuple(sorted(seq for seq in seqs if seq <= upto))


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


def owners_of(head: Head, end: Generation | None) -> dict[str, int]:
    """The generations of a line and up to which of their seqs they count, the oldest first: ancestors up to
    where they were left, and whole those that were taken over, whose points times still mean."""
    found: dict[str, int] = {}

    def visit(generation: Generation, upto: int) -> None:
        if found.get(generation.id, -1) < upto:
            found[generation.id] = upto
            taken = predecessor(head, generation.id)
            if taken:
                visit(taken, taken.end_seq)
            if generation.parent:
                visit(head.generations[generation.parent.generation], generation.parent.seq)

    if end:
        visit(end, end.end_seq)
    return {owner.id: found[owner.id] for owner in oldest_first(head) if owner.id in found}


def oldest_first(head: Head) -> list[Generation]:
    """Each generation behind its parent and the one that it took over from."""
    ordered: list[Generation] = []
    seen: set[str] = set()

    def visit(generation: Generation) -> None:
        if generation.id not in seen:
            seen.add(generation.id)
            taken = predecessor(head, generation.id)
            if taken:
                visit(taken)
            if generation.parent:
                visit(head.generations[generation.parent.generation])
            ordered.append(generation)

    for generation in head.generations.values():
        visit(generation)
    return ordered


def _as_json(generation: Generation) -> dict[str, object]:
    return {
        "generation": generation.id,
        "last_seq": generation.last_seq,
        "last_time": format_time(generation.last_time),
    }
