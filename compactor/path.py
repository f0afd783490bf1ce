"""The cheapest way through a store's segments to a seq: fewest segments, then fewest bytes. Pure.

Two segments A, B of a path join if first(A) < first(B) <= last(A) + 1 and last(A) < last(B), at a seq
where the chains of both are known and A is exact: behind A's last record if B knows its chain there, or
before B's first record if A is exact there. A's records count up to that seq, B's after it. Only the last
segment of a path may reach the target, and has to be exact there; the parts of a stretch are used all or
none (docs/architecture.md#restoring).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from compactor.edges import usable_edges
from compactor.entries import SegmentEntry
from compactor.lineage import HeadView, ancestry, segments_of
from compactor.search import ExactRange as ExactRange
from compactor.search import Search
from compactor.search import Step as Step


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
