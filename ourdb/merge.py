"""What a merge keeps (docs/format.md#exact-runs): garbage collection against a protected set.

A version of an id lives from its seq up to the seq of the next version of that id, and is kept if that span
holds a protected seq at which the sources are exact. No data is read for it, only columns.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from ourdb.errors import DamageError, InvalidError
from ourdb.liveness import Keys, Liveness
from ourdb.record import BATCH_GOES_ON
from ourdb.segment.columns import Columns
from ourdb.segment.reader import SegmentReader
from ourdb.segment.summary import Run, RunFold, Summary

Range = tuple[int, int]  # of seq, ends included
KeysOf = Callable[[int, int], Iterable[Keys]]


@dataclass(frozen=True, kw_only=True)
class SourceColumns:
    """A segment that is merged. keys(first_seq, last_seq), columns(first_seq, last_seq): what it has of the
    records of a range (ends included), in order, in pieces; records outside of the range may come too. Both
    are called several times. A piece (a page, say) is all that is in memory at once.
    """

    summary: Summary
    keys: KeysOf
    columns: Callable[[int, int], Iterable[Columns]]

    @classmethod
    def of_reader(cls, reader: SegmentReader) -> SourceColumns:
        """A segment, read page by page."""

        def keys(first_seq: int, last_seq: int) -> Iterator[Keys]:
            for number in reader.find_pages(first_seq=first_seq, last_seq=last_seq):
                page = reader.page(number)
                page.load("id", "seq", "flags")
                yield Keys(page.column("id"), page.column("seq"), page.column("flags"))

        def columns(first_seq: int, last_seq: int) -> Iterator[Columns]:
            for number in reader.find_pages(first_seq=first_seq, last_seq=last_seq):
                yield reader.page(number).columns()

        return cls(summary=reader.summary, keys=keys, columns=columns)

    @classmethod
    def of_columns(cls, summary: Summary, columns: Columns) -> SourceColumns:
        """A segment whose columns are in memory."""
        keys = Keys(columns.id, columns.seq, columns.flags)
        return cls(summary=summary, keys=lambda *_: [keys], columns=lambda *_: [columns])


@dataclass(frozen=True, eq=False)
class MergePlan:
    """live: for each source a mask over its records, in order. summary: of the merged segment, its exact runs
    included."""

    live: tuple[npt.NDArray[np.bool_], ...]
    summary: Summary

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.summary.runs


def plan_merge(
    sources: Sequence[SourceColumns],
    *,
    horizon: int | None,
    pins: Sequence[int],
    keep_versions: int = 0,
    from_start: bool,
    keys: KeysOf | None = None,
) -> MergePlan:
    """What the merge of these segments keeps, and what it can restore exactly afterwards.

    sources: at least one, in order of seq, each beginning where the one before ends; stretches with all their
    parts. horizon: seq from which on everything is protected (for a window in time: the last batch end at or
    before its start); None: nothing is dropped at all. pins: seqs (branch points too) that are protected;
    those outside of the range do not count. keep_versions: as many newest versions of each id are kept
    besides. from_start: the merge begins at seq 1 of a generation without parent, so that a tombstone may go
    when nothing older of its id is kept. keys: of all sources, where they can be read at once; None: one by
    one.

    Protected seqs count where the sources are exact. InvalidError for sources that do not join, and for a pin
    that is not exact or does not end a batch. DamageError if columns contradict their summary.
    """
    _check_sources(sources, from_start)
    first, last = sources[0].summary.first_seq, sources[-1].summary.last_seq
    exact = [(run.first_seq, run.last_seq) for source in sources for run in source.summary.runs]
    inside = sorted({pin for pin in pins if first <= pin <= last})
    _check_pins(sources, inside)
    wanted = [(pin, pin) for pin in inside]
    wanted.append((max(first, min(first if horizon is None else horizon, last)), last))
    kept = _intersect(_unite(wanted), exact)
    if not kept or kept[-1][1] != last:
        raise InvalidError(f"sources of a merge are not exact at their end: seq {last}")
    counts = [source.summary.records for source in sources]
    if keys is None:
        liveness = Liveness(
            [(s.summary.records, s.summary.first_seq, s.summary.last_seq, s.keys) for s in sources]
        )
    else:
        liveness = Liveness([(sum(counts), first, last, keys)])
    if horizon is None:
        liveness.keep_all()
    else:
        liveness.keep_runs(_unite(kept))
        liveness.keep_versions(keep_versions)
        if from_start:
            liveness.drop_tombstones(_unite(kept))
    live = liveness.split(counts)
    return MergePlan(live, _summarize(sources, kept, sum(int(mask.sum()) for mask in live)))


def fold_ranges(
    run: Run, ranges: Sequence[Range], columns: Callable[[int, int], Iterable[Columns]]
) -> list[Run]:
    """The exact runs that these ranges of `run` are: ascending, apart or touching, each ending a batch.

    columns: as in SourceColumns. One pass; DamageError if records are missing or the run's chain differs.
    """
    if list(ranges) == [(run.first_seq, run.last_seq)]:
        return [run]
    bounds = sorted({run.first_seq, *(a for a, _ in ranges), *(b + 1 for _, b in ranges)})
    end = min(bounds[-1], run.last_seq)  # one record behind the last range: its time is the next time
    cells = _fold_cells(run, [*(x for x in bounds if x <= end), end + 1], columns(run.first_seq, end))
    if cells[-1].last_seq == run.last_seq:
        if cells[-1].chain_after != run.chain_after:
            raise DamageError(f"chain at seq {run.last_seq} does not match its records", seq=run.last_seq)
        cells[-1] = replace(cells[-1], next_time=run.next_time)
    found = {cell.first_seq: cell for cell in cells}
    return [found[first] for first, _ in ranges]


def _fold_cells(run: Run, starts: Sequence[int], pieces: Iterable[Columns]) -> list[Run]:
    """Cuts a run before each of `starts` (the last one: its end), and tells each cell's chain and times."""
    cells: list[Run] = []
    fold = RunFold.begin(run.first_seq, run.chain_before, run.highest_before, starts[1] - 1)
    for piece in pieces:
        while len(cells) < len(starts) - 1:
            cell_end = starts[len(cells) + 1] - 1
            fold.add(piece)
            if cells and cells[-1].next_time is None:
                cells[-1] = replace(cells[-1], next_time=fold.start_time)
            if not len(piece) or int(piece.seq[-1]) < cell_end:
                break
            cells.append(fold.finish())
            end = starts[min(len(cells) + 1, len(starts) - 1)] - 1
            fold = RunFold.begin(cell_end + 1, cells[-1].chain_after, fold.known_highest, end)
    if len(cells) != len(starts) - 1:
        raise DamageError(f"records are missing in the exact run from seq {run.first_seq}", seq=run.first_seq)
    return cells


def _summarize(sources: Sequence[SourceColumns], kept: Sequence[Range], records: int) -> Summary:
    first, last = sources[0].summary, sources[-1].summary
    backwards: list[list[Run]] = []
    follower: int | None = None  # first time of the source behind
    for source in reversed(sources):
        found: list[Run] = []
        for run in source.summary.runs:
            begin = bisect_left(kept, run.first_seq, key=itemgetter(1))
            end = bisect_right(kept, run.last_seq, key=itemgetter(0))
            ranges = _intersect(kept[begin:end], [(run.first_seq, run.last_seq)])
            if ranges:
                found += fold_ranges(run, ranges, source.columns)
        if found and found[-1].last_seq == source.summary.last_seq:
            found[-1] = replace(found[-1], next_time=follower)
        backwards.append(found)
        follower = source.summary.first_time
    return Summary(
        first_seq=first.first_seq,
        last_seq=last.last_seq,
        first_time=first.first_time,
        last_time=last.last_time,
        runs=tuple(_join_runs([run for found in reversed(backwards) for run in found])),
        records=records,
        highest_id=last.highest_id,
        chain_before=first.chain_before,
        chain_after=last.chain_after,
        level=1 + max(source.summary.level for source in sources),
    ).validate()


def _join_runs(runs: Sequence[Run]) -> list[Run]:
    """Runs that touch become one."""
    joined: list[Run] = []
    for run in runs:
        if joined and joined[-1].last_seq + 1 == run.first_seq:
            if joined[-1].chain_after != run.chain_before:
                raise InvalidError(f"sources of a merge do not join by chain before seq {run.first_seq}")
            joined[-1] = replace(
                joined[-1],
                last_seq=run.last_seq,
                last_time=run.last_time,
                next_time=run.next_time,
                chain_after=run.chain_after,
            )
        else:
            joined.append(run)
    return joined


def _check_sources(sources: Sequence[SourceColumns], from_start: bool) -> None:
    if not sources:
        raise InvalidError("a merge needs at least one source")
    summaries = [source.summary.validate() for source in sources]
    if from_start and summaries[0].first_seq != 1:
        raise InvalidError(f"merge does not begin at seq 1: {summaries[0].first_seq}")
    for one, two in pairwise(summaries):
        chains = {one.chain_after, two.chain_before} - {None}
        if one.last_seq + 1 != two.first_seq or len(chains) > 1 or one.last_time > two.first_time:
            raise InvalidError(f"sources of a merge do not join: seq {one.last_seq} and {two.first_seq}")
    _check_stretches(summaries)


def _check_stretches(summaries: Sequence[Summary]) -> None:
    """Parts of a stretch are used only all together, one behind the other."""
    due: tuple[int, int, int] | None = None
    for summary in summaries:
        own = summary.stretch and (summary.stretch.id, summary.stretch.part, summary.stretch.parts)
        if (due or own) and own != (due or (own and (own[0], 1, own[2]))):
            raise InvalidError(f"a part of a stretch is missing before or at seq {summary.first_seq}")
        due = (own[0], own[1] + 1, own[2]) if own and own[1] < own[2] else None
    if due:
        raise InvalidError(f"part {due[1]} of {due[2]} of a stretch is missing")


def _check_pins(sources: Sequence[SourceColumns], pins: Sequence[int]) -> None:
    """Each pin is exact and ends a batch; a pin at the end of its source always does."""
    for source in sources:
        summary = source.summary
        for pin in pins[bisect_left(pins, summary.first_seq) : bisect_right(pins, summary.last_seq)]:
            if not summary.serves(pin):
                raise InvalidError(f"pin is not exact in the sources, an earlier merge gave it up: seq {pin}")
            if pin != summary.last_seq and not _ends_batch(source, pin):
                raise InvalidError(f"pin does not end a batch: seq {pin}")


def _ends_batch(source: SourceColumns, seq: int) -> bool:
    for keys in source.keys(seq, seq):
        at = int(np.searchsorted(keys.seq, np.uint64(seq)))
        if at < len(keys.seq) and int(keys.seq[at]) == seq:
            return not int(keys.flags[at]) & BATCH_GOES_ON
    raise DamageError(f"record is missing in an exact run: seq {seq}", seq=seq)


def _unite(ranges: Sequence[Range]) -> list[Range]:
    """The same seqs in as few ranges as possible, ascending."""
    united: list[Range] = []
    for first, last in sorted(ranges):
        if united and first <= united[-1][1] + 1:
            united[-1] = (united[-1][0], max(last, united[-1][1]))
        else:
            united.append((first, last))
    return united


def _intersect(some: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    """Seqs in both; each side ascending and without overlap."""
    found, at = [], 0
    for first, last in some:
        while at and others[at - 1][1] >= first:
            at -= 1
        while at < len(others) and others[at][0] <= last:
            both = (max(first, others[at][0]), min(last, others[at][1]))
            if both[0] <= both[1]:
                found.append(both)
            at += 1
    return found
