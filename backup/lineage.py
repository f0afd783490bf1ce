"""Which generations a line goes through."""

from __future__ import annotations

from compactor.generations import Generation
from compactor.head import Head
from compactor.path import predecessor


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
