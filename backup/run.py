"""The backup run: look at the head, decide, ship what is new, commit, note, report (docs/protocols.md)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backup.common import StoredPoints
from backup.context import Context, Gauge, Look, Work
from backup.notebook import Notebook
from backup.options import BackupOptions, Progress
from backup.plan import (
    Before,
    Decision,
    Facts,
    Gap,
    Idle,
    Refuse,
    Ship,
    Start,
    StoreFacts,
    choose,
    decide,
)
from backup.refusal import refusal
from backup.report import BackupReport, SegmentReport
from backup.shipment import Shipment
from compactor.head import NOTHING_KNOWN, Known, Parent
from compactor.meta.index import MetaIndex
from compactor.namespace import Namespace
from compactor.publish import Patience
from compactor.store import open_store
from ourdb import line as lines
from ourdb.errors import InvalidError
from ourdb.line import Line
from ourdb.log import LogReader, Piece
from ourdb.units import now_ms

WRITER_DELAY_MS = 1000  # between a writer's look at the clock and its store


def backup(
    path: str | os.PathLike[str],
    url: str,
    *,
    fork: bool = False,
    take_over: bool = False,
    new: bool = False,
    single_writer: bool = False,
    dry_run: bool = False,
    meta: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    options: BackupOptions | None = None,
) -> BackupReport:
    """Ships what is new in the database directory to the store. Others may write the database meanwhile:
    whole batches, up to the end of the log as it was found, are made durable here and shipped.

    fork, take_over, new (one of them): the way out of a refusal that names it; without such a refusal they
    change nothing, but that a restored copy which has not begun yet is told how to begin. `new` ships
    everything. single_writer: accepts a store without compare-and-swap. dry_run: writes nothing, and reports
    what would be uploaded. meta: path of the meta index, None: the user's own. progress: is called with raw
    bytes done, raw bytes in all, and what is being done, by any thread. options: the rest.

    When it returns, what the report names is restorable from the store alone, on another machine. An empty
    database is shipped too: the store then knows it, with its last seq 0.

    Raises NotFoundError (`no_database`, `no_bucket`), FencedError (`fork`, `behind`, `superseded`, `moved`,
    `other_database`, `no_cas`, `other_host`), DamageError (`corrupt` here; `store_damaged`,
    `store_lost_data` there), RefusedError, StorageError, InvalidError, and TemporaryError: try again, nothing
    whose upload was acknowledged is uploaded twice.
    """
    ways: dict[Start, bool] = {"fork": fork, "take-over": take_over, "new": new}
    told = [how for how, wanted in ways.items() if wanted]
    if len(told) > 1:
        raise InvalidError(f"only one of these at a time: {', '.join(told)}")
    chosen = replace(
        options or BackupOptions(),
        how=told[0] if told else None,
        single_writer=single_writer,
        dry_run=dry_run,
    ).validate()
    directory = Path(path)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(LogReader(directory))
        store = stack.enter_context(contextlib.closing(open_store(url, options=chosen.store)))
        index = stack.enter_context(MetaIndex.open(meta))
        context = Context(
            path=directory,
            log=log,
            store=store,
            namespace=Namespace(store, index),
            notebook=Notebook(directory, store),
            options=chosen,
            gauge=Gauge(progress),
            clock_ms=now_ms,
            monotonic=time.monotonic,
        )
        return BackupRun(context).run()


class BackupRun:
    """One run of one directory to one store."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._work = Work()

    def run(self) -> BackupReport:
        """Looks and ships until the store has everything up to the end of the log, and that is known to be
        kept. Lost races are tried again for a bounded time, each from the start."""
        if self._context.options.dry_run:
            return self._preview()
        patience = Patience(self._context.options.wait_seconds)
        with self._context.notebook.running():
            while True:
                look = self._look()
                line, look, decision = self._resolve(look)
                if isinstance(decision, Idle):
                    return self._idle(look, decision)
                known = self._known(line)
                shipped = Shipment(self._context, self._work, look, line, decision, known).ship()
                if shipped:
                    return self._report(look, shipped.id, shipped.as_of)
                patience.wait()

    def _look(self) -> Look:
        """The head, and after it the end of the log: a run beside this one may have shipped more."""
        context, line = self._context, self._line()
        known = self._known(line)
        view = context.namespace.read(required=False, known=known, accept_loss=True)
        as_of = context.clock_ms() - WRITER_DELAY_MS
        mark = line.marks.get(context.identity)
        end = context.log.find_end(known=(mark.seq, mark.chain) if mark else None)
        return Look(view=view, before=_before(line, known, context.identity), as_of=as_of, end=end)

    def _line(self) -> Line:
        if not self._context.options.dry_run:
            return self._context.notebook.read()
        found = lines.load(self._context.path)
        return found or Line(generation=lines.new_generation(), start="first")

    def _known(self, line: Line) -> Known:
        """The newest head of this store that is known to be kept, by the directory, by the restore that made
        it, or by the meta index; by the directory alone while a new start (--new) has not put anything: the
        meta index knows what was lost."""
        store = self._context.identity
        noted, origin = line.known.get(store), line.origin
        known = [NOTHING_KNOWN]
        if noted:
            known.append(Known(noted.revision, noted.run))
        if origin and origin.store == store:
            known.append(Known(origin.revision, origin.run))
        if line.start != "new" or line.shipped(store):
            known.append(self._context.namespace.known)
        return max(known)

    def _resolve(self, look: Look) -> tuple[Line, Look, Idle | Ship]:
        """What to do, after what the operator chose. Raises the error of a refusal; none is noted."""
        line, look = self._choose(self._line(), None, look)
        decision = self._decide(line, look)
        if isinstance(decision, Refuse):
            line, look = self._choose(line, decision, look)
            decision = self._decide(line, look)
        if isinstance(decision, Refuse):
            raise refusal(
                decision,
                path=self._context.path,
                url=self._context.store.url.display,
                end=look.end.seq,
                line=line,
                head=look.view.head if look.view else None,
            )
        return line, look, decision

    def _choose(self, line: Line, refused: Refuse | None, look: Look) -> tuple[Line, Look]:
        context, head = self._context, look.view.head if look.view else None
        kind = refused.kind if refused else None
        chosen = choose(line, context.options.how, kind, head, context.identity)
        if chosen == line:
            return line, look
        if not context.options.dry_run:
            chosen = context.notebook.choose(line, chosen)
        if chosen.generation == line.generation:
            return chosen, look
        known = None if chosen.start == "new" else look.before.known  # what counts was known before the look
        return chosen, replace(look, before=Before(known=known, mark=None))

    def _decide(self, line: Line, look: Look) -> Decision:
        context = self._context
        return decide(
            Facts(
                uuid=context.uuid,
                head=look.view.head if look.view else None,
                line=line,
                before=look.before,
                end=look.end.seq,
                chain_at=context.log.chain_at,
                offered=self._points(look),
                store=context.identity,
                now_ms=context.clock_ms(),
                as_of_ms=context.options.as_of_ms,
            )
        )

    def _points(self, look: Look) -> StoreFacts:
        context = self._context
        if look.view is None:
            return _NoPoints()
        log = context.log
        return StoredPoints(look.view, context.store, log.uuid, log.chain_at, log.cut_at_or_before)

    def _idle(self, look: Look, decision: Idle) -> BackupReport:
        """Reports what the mark says already; it was acknowledged when the mark was noted."""
        assert look.view is not None
        head = look.view.head
        if not self._context.options.dry_run:
            self._context.notebook.learned(head.kept)
        return self._report(look, decision.generation, head.generations[decision.generation].as_of)

    def _report(
        self, look: Look, generation: str, as_of: int, planned: Sequence[SegmentReport] = ()
    ) -> BackupReport:
        work = self._work
        return BackupReport(
            generation=generation,
            last_seq=look.end.seq,
            last_time=look.end.time_ms,
            as_of=as_of,
            segments=(*planned, *map(SegmentReport.of, work.uploaded)),
            adopted=tuple(map(SegmentReport.of, work.adopted)),
            committed=work.committed,
            dry_run=self._context.options.dry_run,
            requests=self._context.store.requests.counts(),
            notes=tuple(self._context.namespace.notes),
        )

    def _preview(self) -> BackupReport:
        """What a run would upload now."""
        line, look, decision = self._resolve(self._look())
        if isinstance(decision, Idle):
            return self._idle(look, decision)
        shipment = Shipment(self._context, self._work, look, line, decision, self._known(line))
        parts = shipment.parts()
        gaps = [part for part in parts if isinstance(part, Gap)]
        self._work.adopted += [part for part in parts if not isinstance(part, Gap)]
        self._work.committed = True
        planned = [_planned(piece, line) for gap in gaps for piece in shipment.pieces(gap)]
        return self._report(look, line.generation, look.as_of, planned)


class _NoPoints:
    """A store without head offers nothing."""

    def offers(self, parent: Parent) -> bool:
        return False

    def restores(self, generation: str, seq: int) -> bool:
        return False

    def newest_common(self, generation: str, end: int) -> Parent | None:
        return None


def _before(line: Line, known: Known, store: str) -> Before:
    noted = lines.Known(revision=known.revision, run=known.run) if known.revision else None
    return Before(known=noted, mark=line.shipped(store))


def _planned(piece: Piece, line: Line) -> SegmentReport:
    summary = piece.summary
    return SegmentReport(
        key=None,
        generation=line.generation,
        first_seq=summary.first_seq,
        last_seq=summary.last_seq,
        first_time=summary.first_time,
        last_time=summary.last_time,
        records=summary.records,
        bytes=piece.raw_bytes,
    )
