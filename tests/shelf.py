"""What a store holds, read the plainest way: paths of its head, segments decoded record by record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from backup.common import open_segment
from compactor.entries import SegmentEntry
from compactor.generations import Generation
from compactor.lineage import ancestry, owner_of, segments_of
from compactor.offers import offered
from compactor.path import route
from compactor.store.base import Store
from compactor.view import View
from tests.promises import History, Point, Promises, State
from tests.segment_tools import Record, decoded


class Shelf:
    """Segments are never changed: each is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._records: dict[str, list[Record]] = {}

    def records(self, view: View, generation: str, seq: int) -> list[Record]:
        """What a restore to this seq would write, in order."""
        steps = route(view, generation, seq)
        assert steps is not None, f"no path to seq {seq} of {generation}"
        return [
            record
            for step in steps
            for record in self._segment(view, step.segment)
            if step.after < record.seq <= step.upto
        ]

    def load(self, view: View) -> None:
        """Reads all that the head names."""
        for entry in view.segments:
            self._segment(view, entry)

    def _segment(self, view: View, entry: SegmentEntry) -> list[Record]:
        if entry.key not in self._records:
            segment = open_segment(self._store, entry, bytes.fromhex(view.head.uuid))
            self._records[entry.key] = list(decoded(segment))
        return self._records[entry.key]


def points_of(view: View, promises: Promises, generation: Generation) -> list[int]:
    """The points of its own that the head offers, of those that were ever shipped there."""
    history = promises.generations[generation.id].history
    return [
        seq
        for first, last in offered(generation, segments_of(view, generation.id))
        for seq in history.ends(first, min(last, generation.last_seq))
    ]


def all_points(view: View, promises: Promises) -> dict[str, list[int]]:
    """By generation, in the order in which they began: ids are drawn at random."""
    assert view.head.generations.keys() <= promises.generations.keys()
    known = (name for name in promises.generations if name in view.head.generations)
    return {name: points_of(view, promises, view.head.generations[name]) for name in known}


def children_of(view: View) -> list[Point]:
    """Where lines left others."""
    parents = (generation.parent for generation in view.head.generations.values())
    return [Point(parent.generation, parent.seq) for parent in parents if parent]


def points_on_line(view: View, points: Mapping[str, Sequence[int]], generation: str) -> list[int]:
    """The points that the line that ends in a generation leads to, by seq."""
    return sorted(
        seq for owner, upto in ancestry(view.head, generation) for seq in points[owner.id] if seq <= upto
    )


def name_of(view: View, points: Mapping[str, Sequence[int]], promises: Promises, point: Point) -> str | None:
    """A generation of the head by which this point can be asked for, itself if possible, if there is one."""
    for name in sorted(promises.names_of(point), key=lambda name: name != point.generation):
        if name in view.head.generations and point.seq in points.get(
            owner_of(view.head, name, point.seq).id, ()
        ):
            return name
    return None


def check_point(shelf: Shelf, view: View, generation: str, seq: int, history: History) -> list[Record]:
    """The state there is the model's, and so is it at each point that the path's segments claim; nothing was
    made up. Returns the records."""
    records = shelf.records(view, generation, seq)
    truth = history.writes
    assert all((truth[r.seq - 1].id, truth[r.seq - 1].value) == (r.id, r.value) for r in records)
    assert [r.seq for r in records] == sorted({r.seq for r in records})
    wanted = iter([*_claimed(view, generation, seq, history), seq])
    state = State()
    at: int | None = next(wanted)
    for record in [*records, None]:
        while at is not None and (record is None or record.seq > at):
            assert state == history.state(at), f"seq {at} of {generation}, restored to {seq}"
            at = next(wanted, None)
        if record is None:
            break
        if record.value is None:
            state.pop(record.id, None)
        else:
            state[record.id] = record.value
    return records


def _claimed(view: View, generation: str, seq: int, history: History) -> Iterator[int]:
    for step in route(view, generation, seq) or ():
        for run in step.segment.exact_runs:
            last = min(run.last_seq, step.upto, seq - 1)
            yield from history.ends(max(run.first_seq, step.after + 1), last)
