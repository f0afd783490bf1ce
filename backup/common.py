"""What a store holds at single points, compared with our log: where a new generation may leave an old one.

Answered from the head where names and runs tell it, else from the index of one segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compactor.head import Parent, SegmentEntry
from compactor.lineage import segments_of
from compactor.path import route
from compactor.store import NoSuchKey, Store
from compactor.view import View
from ourdb.errors import DamageError
from ourdb.segment.columns import batch_ends, extend_chain
from ourdb.segment.reader import SegmentReader
from ourdb.segment.summary import Run, fold_run

ChainAt = Callable[[int], int | None]
CutAt = Callable[[int], int]


def cut_anywhere(seq: int) -> int:
    """Of a log without condensed files."""
    return seq


def open_segment(store: Store, entry: SegmentEntry, uuid: bytes) -> SegmentReader:
    """A segment of the store: one request for its index. Raises NoSuchKey, DamageError."""
    return SegmentReader(
        entry.bytes,
        lambda offset, length: store.get_range(entry.key, offset, length),
        index_bytes=entry.index_bytes,
        expect_name=entry.file_name,
        expect_uuid=uuid,
        where=entry.key,
        in_store=True,
    )


@dataclass(frozen=True)
class StoredPoints:
    """view: the head that is followed. uuid: of the database. chain_at, cut_at: of our log; cut_at gives the
    last seq at or before one behind which it can be shipped.

    An index that is damaged or missing proves nothing: the point then counts as not offered, more is
    uploaded, and the store is whole again.
    """

    view: View
    store: Store
    uuid: bytes
    chain_at: ChainAt
    cut_at: CutAt = cut_anywhere

    def offers(self, parent: Parent) -> bool:
        """Whether the generation owns this seq and the store restores it exactly, with this chain; and what
        comes behind it can be shipped by itself."""
        owner = self.view.head.generations.get(parent.generation)
        if owner is None or not owner.first_seq <= parent.seq <= owner.end_seq:
            return False
        if self.cut_at(parent.seq) < parent.seq:
            return False
        steps = route(self.view, parent.generation, parent.seq)
        return steps is not None and self._chain_of(steps[-1].segment, parent.seq) == parent.chain

    def restores(self, generation: str, seq: int) -> bool:
        """Whether the store still restores this seq of the generation exactly. Asks the head alone."""
        owner = self.view.head.generations[generation]
        return seq <= owner.end_seq and route(self.view, generation, seq) is not None

    def newest_common(self, generation: str, end: int) -> Parent | None:
        """The newest point up to `end`, of the generation or an ancestor, that is exact in the store, has our
        chain, and is not inside a condensed file of ours."""
        for owner in self._ancestry(generation):
            upto = min(end, self.view.head.generations[owner].end_seq)
            for entry in reversed(segments_of(self.view, owner)):
                for run in reversed(entry.exact_runs):
                    found = self._common_in(entry, run, upto)
                    if found and route(self.view, owner, found[0]):
                        return Parent(owner, *found)
        return None

    def _ancestry(self, generation: str) -> Iterator[str]:
        at: str | None = generation
        while at is not None:
            yield at
            parent = self.view.head.generations[at].parent
            at = parent.generation if parent else None

    def _common_in(self, entry: SegmentEntry, run: Run, end: int) -> tuple[int, int] | None:
        """The newest batch end of a run up to `end` at which our chain is the store's, with the chain."""
        last = run.last_seq
        if last <= end and self.cut_at(last) == last and self.chain_at(last) == run.chain_after:
            return last, run.chain_after
        before = run.first_seq - 1
        if before >= end or (before and self.chain_at(before) != run.chain_before):
            return None
        try:
            return self._search(entry, run, min(end, run.last_seq))
        except (DamageError, NoSuchKey):
            return None

    def _search(self, entry: SegmentEntry, run: Run, last: int) -> tuple[int, int] | None:
        crcs, ends = _run_columns(open_segment(self.store, entry, self.uuid), run, last)
        low, high = 0, len(ends)  # our chain is the store's at ends[:low], and not from ends[high] on
        while low < high:
            middle = (low + high) // 2
            count = int(ends[middle]) + 1
            if self.chain_at(run.first_seq + count - 1) == extend_chain(run.chain_before, crcs[:count]):
                low = middle + 1
            else:
                high = middle
        while low:
            count = int(ends[low - 1]) + 1
            seq = run.first_seq + count - 1
            cut = self.cut_at(seq)
            if cut == seq:
                return seq, extend_chain(run.chain_before, crcs[:count])
            low = int(np.searchsorted(ends, cut - run.first_seq, "right"))
        return None

    def _chain_of(self, entry: SegmentEntry, seq: int) -> int | None:
        run = entry.summary().find_run(seq)
        if run is None:
            return None
        if seq == run.last_seq:
            return run.chain_after
        try:
            return fold_run(open_segment(self.store, entry, self.uuid).columns(), run, seq)[1]
        except (DamageError, NoSuchKey):
            return None


def _run_columns(
    reader: SegmentReader, run: Run, last: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.intp]]:
    """The record checksums of an exact run up to `last`, and the places of its batch ends among them."""
    crcs, ends = [], []
    for columns in reader.columns():
        begin, end = np.searchsorted(columns.seq, np.array([run.first_seq, last + 1], np.uint64))
        here = columns[int(begin) : int(end)]
        crcs.append(here.crc)
        ends.append(batch_ends(here, closed=False))
    closed = np.concatenate(ends)
    if len(closed) and last == run.last_seq:
        closed[-1] = True  # a run ends at a batch end, whatever the flag says after a merge
    return np.concatenate(crcs), np.flatnonzero(closed)
