"""A merge: a value that can be looked at, and then written into the store or into a folder."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compactor.entries import SegmentEntry
from compactor.fetch import located
from compactor.merging.compare import compare_states
from compactor.merging.figures import Figures, Spent, sum_requests
from compactor.merging.files import open_file, write_file
from compactor.merging.selection import Estimate, Selection
from compactor.merging.sources import Sources
from compactor.merging.writer import Body
from compactor.path import Step
from compactor.store.parts import COPY_BYTES_MIN
from ourdb.errors import DamageError
from ourdb.layout import Cutter, kept_columns, summarize_cuts
from ourdb.merge import plan_merge
from ourdb.names import parse_generation
from ourdb.segment.claims import ClaimChecker
from ourdb.segment.footer import Footer
from ourdb.segment.reader import SegmentReader
from ourdb.segment.summary import Summary
from ourdb.segment.writer import FooterPlan
from ourdb.units import GIB

STRETCH_RAW_MAX = 3 * GIB  # of records among which nothing is exact: more of them become parts


@dataclass(frozen=True, kw_only=True)
class Written:
    """entries: what a head is to name, in order. figures: as really done."""

    entries: tuple[SegmentEntry, ...]
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What a merge comes to; nothing was written. `of` plans it.

    summary: of all of it. outputs: of each segment that comes out: one, or more where a stretch is cut into
    parts. live: which records of the sources are kept. from_start: nothing lies before them. copy_min: bytes
    of whole blocks that the store is to copy.
    """

    sources: Sources = field(repr=False, compare=False)
    summary: Summary
    outputs: tuple[Summary, ...]
    live: npt.NDArray[np.bool_] = field(repr=False, compare=False)
    from_start: bool
    copy_min: int

    @classmethod
    def of(
        cls,
        sources: Sources,
        *,
        horizon: int | None,
        pins: Sequence[int],
        keep_versions: int = 0,
        from_start: bool,
        stretch_max: int = STRETCH_RAW_MAX,
        copy_min: int = COPY_BYTES_MIN,
    ) -> Merge:
        """What the merge of these sources comes to; horizon, pins, keep_versions and from_start as in
        ourdb.merge.plan_merge, which says what it raises. No request is made for it.

        stretch_max: where nothing is exact within so many raw bytes, they become parts. copy_min: whole
        blocks that touch are copied within the store if they have so many bytes.
        """
        plan = plan_merge(
            sources.columns,
            horizon=horizon,
            pins=pins,
            keep_versions=keep_versions,
            from_start=from_start,
            keys=sources.records.keys,
        )
        live = np.concatenate(plan.live)
        return cls(
            sources=sources,
            summary=plan.summary,
            outputs=_cut(sources, plan.summary, live, stretch_max),
            live=live,
            from_start=from_start,
            copy_min=copy_min,
        )

    @property
    def drops(self) -> bool:
        """Whether any record is not kept."""
        return self.summary.records < self.sources.records.count

    @cached_property
    def figures(self) -> Figures:
        """What it costs to write it, with what it has cost to open the sources."""
        spent, estimates = self.sources.spent, self._estimates
        after = sum(estimate.after for estimate in estimates)
        copied = sum(estimate.copied for estimate in estimates)
        return self._figures(
            Spent(
                fetched=sum(estimate.fetched for estimate in estimates),
                decoded=sum(estimate.decoded for estimate in estimates),
                copied=copied,
                requests=sum_requests(spent.requests, *(estimate.requests for estimate in estimates)),
            ),
            index_bytes=spent.fetched,
            bytes_after=after,
        )

    def write(
        self,
        *,
        generation: str,
        made: int,
        on_begin: Callable[[str, str], None] = lambda key, upload_id: None,
        on_end: Callable[[str], None] = lambda key: None,
        random_u64: Callable[[], int] = lambda: secrets.randbits(64),
    ) -> Written:
        """Writes what comes out into the store, durably, under keys of its own. It counts when a head names
        it; until then it is garbage.

        generation: that it is to belong to (16 hex digits). made: revision of the head that was read.
        on_begin: is told key and id of each multipart upload, on_end: each key once it is there.

        When this returns, what was written was read back and holds the states of the sources. Raises
        NoSuchKey (a source is gone: read the head again), DamageError (`store_damaged`, with `key`: of a
        source, or of what was written), TemporaryError, RefusedError, StorageError.
        """
        merger, before = self.sources.merger, self.sources.merger.spent()
        entries, footers = [], []
        for number in range(len(self.outputs)):
            body = self._body(number, generation, made, random_u64())
            begin = partial(on_begin, body.key)
            size_hint = self._estimates[number].most
            with closing(body.pieces()) as pieces:
                stat = merger.store.assemble(body.key, pieces, size_hint=size_hint, on_begin=begin)
            on_end(body.key)
            entries.append(body.entry(stat.bytes))
            footers.append(body.footer)
        moved = merger.spent()
        with merger.spool([Step(entry, entry.first_seq - 1, entry.last_seq) for entry in entries]) as spool:
            self._check([spool.reader(number) for number in range(len(entries))], entries, footers)
        return Written(entries=tuple(entries), figures=self._really(before, moved, entries))

    def write_files(
        self,
        folder: Path,
        *,
        generation: str,
        made: int,
        random_u64: Callable[[], int] = lambda: secrets.randbits(64),
    ) -> list[Path]:
        """Writes what comes out as files below `folder`, each named by its key (segments/GENERATION/NAME),
        byte by byte what `write` would put there: durable, and compared as there. It raises the same; a file
        that was not finished is removed."""
        paths, entries, footers = [], [], []
        fs, store = self.sources.merger.fs, self.sources.merger.store
        with ExitStack() as stack:
            readers = []
            for number in range(len(self.outputs)):
                body = self._body(number, generation, made, random_u64())
                paths.append(folder / body.key)
                with closing(body.pieces()) as pieces:
                    size = write_file(paths[-1], pieces, store, fs)
                entries.append(body.entry(size))
                footers.append(body.footer)
                file = stack.enter_context(fs.open(paths[-1]))
                readers.append(open_file(file, size))
            self._check(readers, entries, footers)
        return paths

    @cached_property
    def _estimates(self) -> list[Estimate]:
        return [Estimate(self._selection(summary), self.sources.held_from) for summary in self.outputs]

    def _selection(self, summary: Summary) -> Selection:
        return Selection(self.sources.records, self.live, summary, self.copy_min)

    def _body(self, number: int, generation: str, made: int, random: int) -> Body:
        summary = self.outputs[number]
        plan = FooterPlan(summary=summary, generation=parse_generation(generation), made=made, random=random)
        return Body(self.sources, self._selection(summary), plan)

    def _check(
        self,
        readers: Sequence[SegmentReader],
        entries: Sequence[SegmentEntry],
        footers: Sequence[Footer | None],
    ) -> None:
        """What was written says what it was to say, bears it out, and holds the states of its sources."""
        for reader, entry, footer in zip(readers, entries, footers, strict=True):
            with located(entry):
                if reader.footer != footer:
                    raise DamageError("merged segment is not what was written")
                claims = ClaimChecker(reader.summary)
                for columns in reader.columns():
                    claims.add(columns)
                claims.finish()
        records, summary = self.sources.records, self.summary
        with located(entries[-1]):
            compare_states(
                lambda: records.columns(summary.first_seq, summary.last_seq),
                lambda: (columns for reader in readers for columns in reader.columns()),
                summary.runs,
                from_start=self.from_start,
                records=records.count,
            )

    def _really(self, before: Spent, moved: Spent, entries: Sequence[SegmentEntry]) -> Figures:
        """What was done up to now, since the sources were opened. before, moved: before and after the merge
        was written."""
        opened, written, read_back = (
            self.sources.spent,
            moved.since(before),
            self.sources.merger.spent().since(moved),
        )
        requests = sum_requests(opened.requests, written.requests, read_back.requests)
        return self._figures(
            replace(written, requests=requests),
            index_bytes=opened.fetched + read_back.fetched,
            bytes_after=sum(entry.bytes for entry in entries),
        )

    def _figures(self, spent: Spent, *, index_bytes: int, bytes_after: int) -> Figures:
        return Figures(
            segments=len(self.sources.steps),
            segments_after=len(self.outputs),
            records_before=self.sources.records.count,
            records_after=self.summary.records,
            bytes_before=sum(step.segment.bytes for step in self.sources.steps),
            bytes_after=bytes_after,
            index_bytes=index_bytes,
            bytes_fetched=spent.fetched,
            bytes_copied=spent.copied,
            bytes_decoded=spent.decoded,
            bytes_written=bytes_after - spent.copied,
            requests=spent.requests,
        )


def _cut(
    sources: Sources, summary: Summary, live: npt.NDArray[np.bool_], stretch_max: int
) -> tuple[Summary, ...]:
    """The segments that come out."""
    if sources.raw_bytes <= stretch_max or summary.exact:
        return (summary,)
    cutter = Cutter(summary.first_seq, summary.runs, stretch_max, 0, stretches_only=True)
    start = 0
    for source in sources.columns:
        for columns, closed in kept_columns(source, live[start : start + source.summary.records]):
            cutter.add(columns, closed=closed)
        start += source.summary.records
    return tuple(summarize_cuts(summary, cutter.cuts(), sources.records.columns))
