"""What a head offers, and that the next one still does: the checks of protocol rule 3. Pure.

A point is offered if a path leads to it and it lies in an exact run. Every point that the head before
offers, and that its window, pins or branch points protect, has to be offered by the one after; what is
new has to join in seq and chain. Otherwise the work was computed on something else and is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compactor.entries import SegmentEntry
from compactor.generations import Generation
from compactor.head import Head
from compactor.lineage import marked_points, open_lines
from compactor.path import exact_ranges
from ourdb.errors import Error

Ranges = Sequence[tuple[int, int]]
Segments = Mapping[str, Sequence[SegmentEntry]]  # by generation


def refuse(why: str, **fields: object) -> Error:
    """The work does not fit the head that it would follow: it has to be computed again, on that head."""
    return Error(f"the new head would not be right, nothing was put: {why}", kind="not_following", **fields)


def by_generation(segments: Iterable[SegmentEntry]) -> dict[str, list[SegmentEntry]]:
    """The segments of each generation, by last and first seq."""
    found: dict[str, list[SegmentEntry]] = {}
    for segment in sorted(segments, key=lambda entry: entry.order):
        found.setdefault(segment.generation, []).append(segment)
    return found


def offered(generation: Generation, segments: Sequence[SegmentEntry]) -> Ranges:
    """The seqs that this generation owns and offers, as ranges, ends included, in order and apart."""
    parent = generation.parent
    ranges = exact_ranges(segments, generation.first_seq - 1, parent.chain if parent else 0)
    joined: list[tuple[int, int]] = []
    for first, last in sorted((exact.first_seq, exact.run.last_seq) for exact in ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return _clipped(joined, generation.end_seq)


def holds(ranges: Ranges, first: int, last: int) -> bool:
    """Whether one of the ranges has both, and all between."""
    return any(begin <= first and last <= end for begin, end in ranges)


def _clipped(ranges: Ranges, end: int) -> Ranges:
    return [(first, min(last, end)) for first, last in ranges if first <= end]


def check_additions(old: Head | None, new: Head, added: Iterable[SegmentEntry]) -> None:
    """For a head that only adds behind the ends: each generation goes on where it ended, and ends where its
    last segment does."""
    for name, segments in by_generation(added).items():
        if name not in new.generations:
            raise refuse(f"segments of a generation that is not in it: {name}")
        end = new.generations[name]
        before = old.generations.get(name) if old else None
        start = (before.last_seq, before.chain) if before else _start(end)
        for segment in segments:
            said = segment.name
            if (said.first_seq, said.chain_before) != (start[0] + 1, start[1]):
                raise refuse(f"a segment does not join at seq {start[0]}: {segment.key}", seq=start[0])
            if not segment.summary().validate().exact:
                raise refuse(f"a segment is not exact and nothing stands beside it: {segment.key}")
            start = said.last_seq, said.chain_after or 0
        if start != (end.last_seq, end.chain):
            raise refuse(f"generation {name} does not end where its segments do, at seq {start[0]}")


def check_all(
    old: Head | None, new: Head, before: Segments, after: Segments, horizons: Mapping[str, int]
) -> None:
    """For any other change. horizons: from which seq on all points of a generation are protected by its
    window, 0 (every one) where it is not named. What the new head keeps no more of a generation (`kept_to`)
    was decided to go."""
    for name, end in new.generations.items():
        now = offered(end, after.get(name, ()))
        marked = set(marked_points(new, name))
        were = set(marked_points(old, name)) if old else set()
        _check_end(end, after.get(name, ()), now)
        if old and name in old.generations:
            was = _clipped(offered(old.generations[name], before.get(name, ())), end.end_seq)
            _check_kept(name, was, now, horizons.get(name, 0), were | marked)
        for seq in marked - were:
            if not holds(now, seq, seq):
                raise refuse(f"a pin or branch point is not offered: seq {seq} of {name}", seq=seq)
    for name in new.generations.keys() - (old.generations.keys() if old else set()):
        _check_parent(new.generations[name], after)
    if lost := sorted(pin.name for pin in new.pins if pin.generation not in new.generations):
        raise refuse(f"a pin would be lost, its generation is not in it: {lost[0]}")
    if stray := sorted(set(after) - new.generations.keys()):
        raise refuse(f"segments of a generation that is not in it: {stray[0]}")


def check_generations(old: Head | None, new: Head) -> None:
    """Generations only go on: none goes back, changes its parent, or goes on once it has a successor or is
    kept up to a seq only; a successor is a new generation. Those that vanish are told to be forgotten, and
    stay so. Where all was open, something is."""
    before = old.generations if old else {}
    forgotten = {one.generation for one in new.forgotten}
    for name, was in before.items():
        now = new.generations.get(name)
        if now is None and name not in forgotten:
            raise refuse(f"generation {name} is missing")
        if now is not None and old:
            _check_same_line(old, new, was, now)
            _check_cut(new, was, now)
    if forgotten & new.generations.keys():
        raise refuse("a generation that was forgotten would come back")
    if old and open_lines(old) and not open_lines(new):
        raise refuse("no line would be open any more")
    for name, now in new.generations.items():
        parent = now.parent
        if parent is None:
            continue
        owner = new.generations.get(parent.generation)
        if owner is None or not owner.first_seq <= parent.seq <= owner.end_seq:
            raise refuse(f"generation {name} leaves {parent.generation} at a seq that it does not own")


def _check_same_line(old: Head, new: Head, was: Generation, now: Generation) -> None:
    name = now.id
    whole = now.parent is None and now.began is not None and now.began.seq == was.first_seq > 1
    if now.parent != was.parent and not whole:
        raise refuse(f"generation {name} would have another parent", seq=was.last_seq)
    begins = was.began is None and now.began is not None and was.last_seq < now.began.seq
    if now.parent == was.parent and now.began != was.began and not begins:
        raise refuse(f"generation {name} would begin elsewhere")
    if now.last_seq < was.last_seq or now.as_of < was.as_of:
        raise refuse(f"generation {name} would go back", seq=was.last_seq)
    if now.last_seq == was.last_seq and now.chain != was.chain:
        raise refuse(f"the chain of generation {name} would change at seq {was.last_seq}")
    successor = _successor_left(old, new, was.successor)
    if was.successor and now.successor != successor:
        raise refuse(f"generation {name} was taken over by {successor}, and that would change")
    if now.open and not was.open:
        raise refuse(f"generation {name} is not written any more and would be open")
    if not was.open and (now.last_seq, now.as_of) != (was.last_seq, was.as_of):
        raise refuse(f"generation {name} was taken over by {was.successor or 'nobody'} and would go on")
    if now.successor != was.successor and now.successor != successor and now.successor in old.generations:
        raise refuse(f"generation {name} would be taken over by one that is there already")


def _successor_left(old: Head, new: Head, successor: str | None) -> str | None:
    """Who takes the place of a successor that is forgotten: its own one."""
    while successor is not None and successor not in new.generations and successor in old.generations:
        successor = old.generations[successor].successor
    return successor


def _check_cut(new: Head, was: Generation, now: Generation) -> None:
    """What was let go of stays so, and nothing that is marked goes."""
    if now.kept_to == was.kept_to:
        return
    if now.kept_to is None or now.kept_to > was.end_seq:
        raise refuse(f"what was let go of generation {now.id} would come back", seq=was.end_seq)
    lost = {seq for seq in marked_points(new, now.id) if seq > now.kept_to}
    if lost:
        raise refuse(f"a pin or branch point would be lost: seq {min(lost)} of generation {now.id}")


def _start(end: Generation) -> tuple[int, int]:
    return (end.parent.seq, end.parent.chain) if end.parent else (0, 0)


def _check_end(end: Generation, segments: Sequence[SegmentEntry], ranges: Ranges) -> None:
    if end.end_seq < end.first_seq:
        return
    chains = {s.name.chain_after for s in segments if s.last_seq == end.last_seq}
    known = end.end_seq < end.last_seq or end.chain in chains
    if not holds(ranges, end.end_seq, end.end_seq) or not known:
        raise refuse(f"no path leads to the end of generation {end.id}, seq {end.end_seq}", seq=end.end_seq)


def _check_parent(child: Generation, segments: Segments) -> None:
    """Where the chain of the parent is known there, it is the child's. Inside of a run only the index can
    tell: whoever starts a generation has looked."""
    parent = child.parent
    if parent is None:
        return
    known = set()
    for segment in segments.get(parent.generation, ()):
        for run in segment.exact_runs:
            if run.last_seq == parent.seq:
                known.add(run.chain_after)
            if run.first_seq == parent.seq + 1:
                known.add(run.chain_before)
    if known and parent.chain not in known:
        raise refuse(f"generation {child.id} leaves seq {parent.seq} with another chain", seq=parent.seq)


def _check_kept(name: str, was: Ranges, now: Ranges, horizon: int, marked: set[int]) -> None:
    for first, last in was:
        if last >= horizon and not holds(now, max(first, horizon), last):
            raise refuse(
                f"points of generation {name} that are protected would be lost, "
                f"in seq {max(first, horizon)} to {last}",
                seq=max(first, horizon),
            )
        for seq in marked:
            if first <= seq <= last and not holds(now, seq, seq):
                raise refuse(f"a pin or branch point would be lost: seq {seq} of generation {name}", seq=seq)
