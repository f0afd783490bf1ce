"""One cut: a head and its segments as they would be without what lies behind a generation's marked points."""

from __future__ import annotations

from dataclasses import replace

from compactor.generations import Forgotten, Generation
from compactor.head import Head
from compactor.index_points import IndexPoints
from compactor.lineage import Shape, begin_time, marked_points, segments_of
from compactor.store import NoSuchKey
from compactor.windows import reaches
from ourdb.errors import DamageError


def cut_behind_marks(shape: Shape, generation: Generation, points: IndexPoints) -> Shape:
    """Without what lies behind the marked points of a generation: pins, and where others left it. The same
    shape if nothing does. points: tells when what goes began, where the head does not."""
    head, segments = shape.head, shape.segments
    marked = marked_points(head, generation.id)
    if not marked:
        return Shape(
            _without(head, generation, begin_time(shape, generation)),
            [entry for entry in segments if entry.generation != generation.id],
        )
    kept_to = max(marked)
    if not generation.open and kept_to == generation.end_seq:
        return shape
    own = segments_of(shape, generation.id)
    whole = {s.stretch.id for s in own if s.stretch and s.first_seq <= kept_to}  # all of its parts or none
    gone = {
        entry.key
        for entry in own
        if entry.first_seq > kept_to and not (entry.stretch and entry.stretch.id in whole)
    }
    until = _earliest(generation.kept_until, _time_behind(shape, generation, kept_to, points))
    shorter = replace(generation, kept_to=kept_to, kept_until=until)
    return Shape(
        replace(head, generations={**head.generations, generation.id: shorter}),
        [entry for entry in segments if entry.key not in gone],
    )


def _time_behind(shape: Shape, generation: Generation, seq: int, points: IndexPoints) -> int | None:
    """The time of the record behind a point; where nothing tells it, one that is not later. None: there is no
    record behind it."""
    if seq == generation.last_seq:
        return None
    for entry in segments_of(shape, generation.id):
        if entry.first_seq == seq + 1:
            return entry.name.first_time
        for run in entry.exact_runs:
            if run.last_seq == seq and run.next_time is not None:
                return run.next_time
    holding = [reach for reach in reaches(shape, generation) if reach.first_seq <= seq <= reach.last_seq]
    for reach in holding:
        try:
            behind = points.first(reach, seq_min=seq + 1)
        except (NoSuchKey, DamageError):
            continue
        if behind:
            return behind.time  # all records of a batch have one time
    return min((reach.first_time for reach in holding), default=0)


def _earliest(*times: int | None) -> int | None:
    return min((time for time in times if time is not None), default=None)


def _without(head: Head, gone: Generation, begin: int | None) -> Head:
    """The head without a generation; whom it took over from was taken over by its successor, or has none, and
    still means no time from its begin on."""
    generations = {}
    for name, generation in head.generations.items():
        if generation.successor == gone.id:
            kept_to = generation.kept_to if gone.successor else generation.end_seq
            generation = replace(
                generation,
                successor=gone.successor,
                kept_to=kept_to,
                kept_until=_earliest(generation.kept_until, begin),
            )
        if name != gone.id:
            generations[name] = generation
    forgotten = (*head.forgotten, Forgotten(gone.id, gone.successor))
    return replace(head, generations=generations, forgotten=forgotten)
