"""Restore: a point is found, a path planned, the database built beside its destination, verified, renamed.

What is missing or damaged in the store is gone around, if another path leads to the point, and the report
says so (backup/restoring/planner.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backup.gauge import Meter
from backup.options import Progress
from backup.plan import line_end
from backup.report import SegmentReport
from backup.restoring.destination import Build, Destination
from backup.restoring.download import FileCopier
from backup.restoring.layout import Layout
from backup.restoring.local_files import FilePlan
from backup.restoring.planner import Plan, Planner
from backup.restoring.target import Wanted
from compactor.fetch import SegmentFetcher, estimate_requests
from compactor.head import NOTHING_KNOWN
from compactor.session import Session, open_session
from compactor.spool import IndexSpool
from compactor.store import StoreOptions
from compactor.store.base import check_threads
from ourdb import line
from ourdb.build import DirectoryBuilder, SealedFileBuilder
from ourdb.config import Config
from ourdb.errors import DamageError
from ourdb.files import FileSystem
from ourdb.line import Known, Mark, Origin
from ourdb.log import LogReader
from ourdb.names import parse_generation
from ourdb.units import When, maybe_time


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """threads: that fetch, decompress and write, 1 to 64. store: how requests are made."""

    threads: int = 4
    store: StoreOptions = StoreOptions()  # noqa: RUF009

    def validate(self) -> RestoreOptions:
        """Self, or InvalidError that names the option."""
        check_threads(self.threads)
        return self


@dataclass(frozen=True, kw_only=True)
class RestoreReport:
    """generation: that owns `seq`; None, as is `time` (ms), where nothing was ever written. segments: the
    path. requests: as really sent; of a dry run. requests_estimate: what the rest would need at least.
    bytes: of the path's segments; bytes_downloaded: what was fetched of them. left_out: keys of segments that
    are damaged or missing, and were not needed. replaced: where the database is kept that was there."""

    path: str
    generation: str | None
    seq: int
    time: int | None
    as_of: int | None
    records: int
    segments: tuple[SegmentReport, ...]
    bytes: int
    bytes_downloaded: int
    requests: Mapping[str, int]
    requests_estimate: int
    left_out: tuple[str, ...]
    replaced: str | None
    dry_run: bool
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {
            "time": maybe_time(self.time),
            "as_of": maybe_time(self.as_of),
            "segments": [segment.as_json() for segment in self.segments],
            "requests": dict(self.requests),
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }


def restore(
    url: str,
    path: str | os.PathLike[str],
    *,
    at: When | None = None,
    seq: int | None = None,
    before: When | None = None,
    nearest_before: bool = False,
    generation: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    meta: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    options: RestoreOptions | None = None,
) -> RestoreReport:
    """Makes the database `path` from the store: with all history up to the target, and nothing after it.

    at: the last point up to this time, inclusive; before: exclusive; seq: this point; at most one of them,
    none: the newest. nearest_before: what cannot be met exactly is answered by the nearest point before.
    generation: the line that ends in this one, needed where two lines are open. dry_run: only the plan.
    force: a destination that is not empty is renamed aside once the new one stands. meta: path of the meta
    index, None: the user's own. progress: is called with stored bytes fetched, bytes of the path, and what is
    being done, by any thread.

    The database goes on as a line of its own: its first backup says which (docs/protocols.md). When this
    returns it is durable; if it does not, nothing is at the destination that was not there before.

    Raises UnreachableError (with nearest_before and nearest_after), NotFoundError (`no_namespace`,
    `no_generation`, `no_directory`), FencedError (`two_lines`), ExistsError, LockedError (the destination is
    in use), DamageError (`store_damaged`: no path is left; key, first_seq and last_seq say what is lost;
    `store_lost_data`), InvalidError, StorageError, RefusedError, TemporaryError.
    """
    wanted = Wanted.of(at=at, seq=seq, before=before, nearest_before=nearest_before)
    options = (options or RestoreOptions()).validate()
    destination = Destination(path, force=force)
    with open_session(url, meta, options.store) as session:
        job = _Restore(session, wanted, generation, destination, options, progress)
        return job.plan_only() if dry_run else job.run()


class _Restore:
    """One restore."""

    def __init__(
        self,
        session: Session,
        wanted: Wanted,
        generation: str | None,
        destination: Destination,
        options: RestoreOptions,
        progress: Progress | None,
    ) -> None:
        self._session, self._destination, self._options = session, destination, options
        self._meter = Meter(progress, "restoring")
        self._fs = FileSystem()
        self._planner = Planner(
            session, wanted, generation, lambda uuid: SegmentFetcher(session.store, uuid, self._meter.add)
        )

    def plan_only(self) -> RestoreReport:
        """What would be restored, from where."""
        return self._planner.persist(lambda plan: self._report(plan, 0, None, dry_run=True))

    def run(self) -> RestoreReport:
        """The database stands when this returns."""
        return self._planner.persist(self._build)

    def _build(self, plan: Plan) -> RestoreReport:
        self._meter.all_bytes = sum(step.segment.bytes for step in plan.steps)
        build = self._destination.begin()
        try:
            records = self._write(plan, build)
            replaced = self._destination.put(build)
        except BaseException:
            build.discard()
            raise
        return self._report(plan, records, replaced, dry_run=False)

    def _write(self, plan: Plan, build: Build) -> int:
        """A whole, verified, durable database in the build's directory; returns how many records it has."""
        head, steps, threads = plan.view.head, plan.steps, self._options.threads
        config = Config.from_json(dict(head.config))
        generation = line.new_generation()
        with ExitStack() as stack:
            builder = stack.enter_context(
                DirectoryBuilder(
                    build.path,
                    uuid=bytes.fromhex(head.uuid),
                    config=config,
                    generation=parse_generation(generation),
                    fs=self._fs,
                )
            )
            pool = stack.enter_context(ThreadPoolExecutor(threads, "restore"))
            spool = stack.enter_context(
                IndexSpool(
                    self._planner.fetcher, steps, build.path.parent, pool, ahead=2 * threads, fs=self._fs
                )
            )
            layout = Layout(steps, spool.reader, config.file_size)
            copier = FileCopier(spool, steps, pool, ahead=2 * threads)
            _write_files(layout, copier, builder)
            self._check_chain(plan, layout.chain)
            self._write_line(plan, build.path, generation, layout.chain)
            builder.finish()
        self._check_end(plan, build.path, layout.chain)
        return layout.records

    def _check_chain(self, plan: Plan, chain: int) -> None:
        """At the end of a generation the head says the chain."""
        owner = plan.view.head.generations[plan.point.generation] if plan.point else None
        if owner and owner.last_seq == plan.seq and owner.chain != chain:
            raise DamageError(
                f"the restored chain is not the one that the head says, at seq {plan.seq}",
                kind="store_damaged",
                seq=plan.seq,
            )

    def _check_end(self, plan: Plan, path: Path, chain: int) -> None:
        """The new directory says of itself what was to be restored."""
        with LogReader(path, fs=self._fs) as log:
            end = log.find_end()
        if (end.seq, end.chain) != (plan.seq, chain):
            raise DamageError(f"the restored database ends at seq {end.seq}, not {plan.seq}", seq=end.seq)

    def _write_line(self, plan: Plan, path: Path, generation: str, chain: int) -> None:
        """Where it comes from, and how the line that was read stood then; its point as shipped mark."""
        head, point, identity = plan.view.head, plan.point, self._session.identity
        if point is None and plan.end is None:
            line.create(path, generation, fs=self._fs)
            return
        owner = point.generation if point else plan.end.id if plan.end else ""
        end = line_end(head, owner)
        revision, run = head.kept
        origin = Origin(
            store=identity,
            generation=owner,
            seq=plan.seq,
            chain=chain,
            end_generation=end.id,
            end_last_seq=end.last_seq,
            end_as_of=end.as_of,
            revision=revision,
            run=run,
        )
        mark = Mark(
            url=self._session.url, generation=owner, seq=plan.seq, chain=chain, revision=revision, run=run
        )
        known = {} if head.kept == NOTHING_KNOWN else {identity: Known(revision=revision, run=run)}
        line.create(path, generation, origin=origin, marks={identity: mark}, known=known, fs=self._fs)

    def _report(self, plan: Plan, records: int, replaced: Path | None, *, dry_run: bool) -> RestoreReport:
        stored = sum(step.segment.bytes for step in plan.steps)
        return RestoreReport(
            path=str(self._destination.path),
            generation=plan.point.generation if plan.point else plan.end.id if plan.end else None,
            seq=plan.seq,
            time=plan.point.time if plan.point else None,
            as_of=plan.end.as_of if plan.end else None,
            records=records,
            segments=tuple(SegmentReport.of(step.segment) for step in plan.steps),
            bytes=stored,
            bytes_downloaded=self._meter.done_bytes,
            requests=self._session.store.requests.counts(),
            requests_estimate=sum(estimate_requests(step.segment) for step in plan.steps),
            left_out=self._planner.left_out,
            replaced=str(replaced) if replaced else None,
            dry_run=dry_run,
            notes=self._session.notes,
        )


def _write_files(layout: Layout, copier: FileCopier, builder: DirectoryBuilder) -> None:
    """Copies one file while the one before is read back, compared with its columns, and sealed."""
    sealing: Future[None] | None = None
    with ThreadPoolExecutor(1, "restore-seal") as sealer:
        for plan in layout.files():
            file = builder.file(plan.summary, plan.raw_bytes)
            copier.copy(plan, file)
            if sealing:
                sealing.result()
            sealing = sealer.submit(_seal, copier, plan, file)
        if sealing:
            sealing.result()


def _seal(copier: FileCopier, plan: FilePlan, file: SealedFileBuilder) -> None:
    try:
        file.finish(copier.columns(plan))
    except DamageError:
        copier.find_damage(plan)
        raise
