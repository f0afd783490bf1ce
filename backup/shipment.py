"""Shipping on one head: what is uploaded already, what has to be, and the commits that name it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from backup.adopt import find_left, is_ours
from backup.context import Context, Look, Work
from backup.plan import Gap, Ship, cover
from backup.upload import Task, Uploader
from compactor.generations import Began
from compactor.head import Generation, Known, SegmentEntry
from compactor.lineage import take_overs
from compactor.publish import Change, Writer, follow, may_name, publish
from ourdb.line import Line, Mark
from ourdb.log import Piece
from ourdb.names import SegmentName
from ourdb.segment.summary import Summary

Part = SegmentEntry | Gap


class Shipment:
    """One attempt: ships the decision's range on the head of `look`, in one or several commits.

    line: as it was decided on. known: the newest head of the store that is known to be kept.
    """

    def __init__(
        self, context: Context, work: Work, look: Look, line: Line, decision: Ship, known: Known
    ) -> None:
        self._context, self._work, self._look, self._line = context, work, look, line
        self._decision, self._known = decision, known
        self._view = look.view  # what the next commit follows
        self._halted = False
        self._begins = decision.begins

    def parts(self) -> list[Part]:
        """The range in order: uploads of this run and of killed ones that may be named, and the gaps."""
        after, end = self._decision.after, self._look.end.seq
        return cover(after, end, self._uploaded_before(after, end)) if after < end else []

    def pieces(self, gap: Gap) -> list[Piece]:
        """The segments to be made of a gap."""
        segment_bytes = self._context.options.segment_bytes
        return self._context.log.pieces(gap.first_seq, gap.last_seq, raw_bytes_max=segment_bytes)

    def ship(self) -> Generation | None:
        """Uploads and commits up to the end of the log. The generation as it was committed; None: others
        were first, or the floor has risen, and everything has to be looked at anew. Local records are durable
        before they are shipped."""
        context, end = self._context, self._look.end.seq
        context.namespace.ensure_trusted(self._view, single_writer=context.options.single_writer)
        if self._decision.after < end:
            context.log.make_durable(self._decision.after + 1, end)
        complete: list[SegmentEntry] = []
        committed_at = context.monotonic()
        with contextlib.closing(self._entries(self.parts())) as entries:  # an error ends all uploads
            for entry in entries:
                complete.append(entry)
                due = context.monotonic() - committed_at >= context.options.commit_seconds
                if due and entry.last_seq < end and not self._halted:
                    raises_floor = self._starts_anew  # above the names of what is under way
                    if self._commit(complete) is None or raises_floor:
                        self._halted = True  # what is under way ends, and is named after the next look
                    complete, committed_at = [], context.monotonic()
        return None if self._halted else self._commit(complete, whole=True)

    # -- uploads

    def _entries(self, parts: Sequence[Part]) -> Generator[SegmentEntry]:
        """The segments of all parts in order; gaps are uploaded, several segments at a time."""
        items: list[SegmentEntry | Piece] = []
        for part in parts:
            items += self.pieces(part) if isinstance(part, Gap) else [part]
        pieces = [item for item in items if isinstance(item, Piece)]
        self._context.gauge.expect(sum(piece.raw_bytes for piece in pieces))
        with self._uploader() as uploader:
            uploads = uploader.upload(self._tasks(pieces))
            for item in items:
                if isinstance(item, SegmentEntry):
                    yield item
                    continue
                entry = next(uploads, None)
                if entry is None:
                    return
                self._work.uploaded.append(entry)
                yield entry

    def _tasks(self, pieces: Sequence[Piece]) -> Iterator[Task]:
        for piece in pieces:
            if self._halted:
                return
            made = self._view.head.revision if self._view else 0
            yield Task(piece, self._line.generation, made)

    def _uploader(self) -> Uploader:
        context = self._context
        return Uploader(
            context.log,
            context.store,
            context.notebook,
            threads=context.options.threads,
            advance=context.gauge.advance,
        )

    def _uploaded_before(self, after: int, end: int) -> list[SegmentEntry]:
        context, generation = self._context, self._line.generation
        chain_at = context.log.chain_at
        own = [
            entry
            for entry in self._work.uploaded
            if entry.generation == generation
            and may_name(entry, self._view)
            and is_ours(entry.name, after, end, chain_at)
        ]
        known = {entry.key for entry in self._work.uploaded}
        left = find_left(
            [upload for upload in self._line.uploads if upload.key not in known],
            context.store,
            context.log.uuid,
            view=self._view,
            generation=generation,
            after=after,
            end=end,
            chain_at=chain_at,
            same_range=self._same_range,
        )
        return [*own, *left]

    def _same_range(self, name: SegmentName) -> Summary | None:
        pieces = self.pieces(Gap(name.first_seq, name.last_seq))
        return pieces[0].summary if len(pieces) == 1 else None

    # -- commits

    def _commit(self, entries: Sequence[SegmentEntry], *, whole: bool = False) -> Generation | None:
        """Names these segments in a head; whole: they reach the end of the log. None: the race was lost."""
        context = self._context
        generation = self._grown(entries, whole)
        generations = {generation.id: generation}
        follows = self._decision.follows if self._begins else None
        if self._view and follows:
            taken = self._view.head.generations[follows]
            generations[follows] = replace(taken, successor=generation.id)
        change = Change(add=entries, generations=generations, revision_at_least=self._least_revision())
        done = publish(context.namespace, follow(self._view, self._writer(), change))
        if done is None:
            return None
        mark = Mark(
            url=context.store.url.display,
            generation=generation.id,
            seq=generation.last_seq,
            chain=generation.chain,
            revision=done.head.revision,
            run=done.head.run,
        )
        context.notebook.shipped(mark, done)
        mine = {entry.key for entry in self._work.uploaded}
        self._work.adopted += [entry for entry in entries if entry.key not in mine]
        self._work.committed = True
        self._view, self._begins, self._known = done, False, done.head.known
        return generation

    def _grown(self, entries: Sequence[SegmentEntry], whole: bool) -> Generation:
        """Our generation with these segments at its end. `as_of` is true of the end of the log alone."""
        decision, name = self._decision, self._line.generation
        old = self._view.head.generations.get(name) if self._view else None
        grown = old or Generation(
            id=name,
            parent=decision.parent,
            last_seq=decision.after,
            last_time=0,
            chain=decision.chain,
            highest_id=None,
            as_of=0,
        )
        if entries:
            last = entries[-1].summary()
            assert last.chain_after is not None
            grown = replace(
                grown,
                last_seq=last.last_seq,
                last_time=last.last_time,
                chain=last.chain_after,
                highest_id=last.highest_id,
            )
            grown = replace(grown, began=grown.began or self._began(grown, entries))
        return replace(grown, as_of=max(grown.as_of, self._look.as_of)) if whole else grown

    def _began(self, grown: Generation, entries: Sequence[SegmentEntry]) -> Began | None:
        """Where the own records of a copy begin that took over and had to ship what lay before them, too: a
        time before that still means the line that it took over from."""
        origin, head = self._line.origin, self._view.head if self._view else None
        if head is None or origin is None or origin.seq == 0 or origin.store != self._context.identity:
            return None
        first = next((entry for entry in entries if entry.first_seq == origin.seq + 1), None)
        if first is None or grown.parent or self._line.start not in ("plain", "take-over"):
            return None
        known = origin.generation in head.generations
        before = take_overs(head, origin.generation, origin.seq) if known else ()
        return Began(first.first_seq, first.name.first_time, (*before, first.first_seq))

    def _writer(self) -> Writer:
        context = self._context
        return Writer(
            uuid=context.uuid,
            namespace=context.namespace.name,
            config=context.log.config.as_json(),
            host=context.namespace.host.id,
            known=max(self._known, context.namespace.known),
            single_writer=bool(context.namespace.single_writer),
            take_host=context.options.how == "take-over",
        )

    @property
    def _starts_anew(self) -> bool:
        return self._begins and self._line.start == "new"

    def _least_revision(self) -> int:
        """For `backup --new` the store's time in microseconds: above whatever anybody knew before."""
        if not self._starts_anew:
            return 0
        page = next(iter(self._context.store.list("lists/")), None)
        store_ms = max(self._view.read_ms if self._view else 0, page.date_ms if page else 0)
        known = max(self._known, self._context.namespace.known)
        return max((store_ms or self._context.clock_ms()) * 1000, known.revision + 1)
