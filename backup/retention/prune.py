"""Prune: lets go of what nothing needs, and deletes what was let go of for the grace time.

It is the only command that deletes. A run reads the head, lists the store, plans, puts the head if something
changes, and deletes only what a head has let go of that it knows to be kept: by its own put in this run, or
because the head that it read is one that was acknowledged. After a lost race all of that is done anew
(docs/protocols.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from backup.retention.cuts import Cuts, plan_cuts
from backup.retention.report import PointVerdict, PruneReport, point_verdicts
from backup.retention.sweep import ObjectVerdict, UploadVerdict, Waiting, judge_objects, judge_uploads
from compactor.fetch import SegmentFetcher
from compactor.follow import check_base
from compactor.index_points import IndexPoints
from compactor.policy import Anchor, Policy
from compactor.publish import Change, Patience, follow, publish
from compactor.session import Session, open_session
from compactor.store import Stat, StoreOptions, Upload
from compactor.view import View
from ourdb.errors import InvalidError
from ourdb.units import now_ms

CLOCK_MS = 5 * 60_000  # that a delete waits longer: times are whole seconds, of an upload's begin or its end


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """What a run does on this head. anchor: what the window was counted back from. points: of each
    generation, as they are and as they will be."""

    view: View
    anchor: Anchor
    cuts: Cuts
    points: tuple[PointVerdict, ...]
    objects: tuple[ObjectVerdict, ...]
    uploads: tuple[UploadVerdict, ...]

    def keys(self, state: str) -> list[str]:
        """Of the objects that this becomes of."""
        return [verdict.key for verdict in self.objects if verdict.state == state]

    @property
    def change(self) -> Change | None:
        """What the next head does; None: nothing has to be put."""
        dropped, left = self.cuts.dropped, self._left()
        let_go = self.keys("let_go")
        generations, forget = self.cuts.generations, self.cuts.forget
        if not (dropped or let_go or left or generations or forget):
            return None
        return Change(generations=generations, forget=forget, drop=list(dropped), let_go=let_go, left=left)

    def _left(self) -> list[str]:
        """What leaves `gone`. A list of keys leaves whole: as long as one of them is there, none does."""
        absent = set(self.keys("absent"))
        left = [gone.key for gone in self.view.head.gone if gone.key in absent]
        for ref in self.view.head.gone_lists:
            keys = self.view.stored[ref.key].keys
            if absent.issuperset(keys):
                left += keys
        return left


def prune(
    url: str,
    *,
    dry_run: bool = False,
    grace_ms: int | None = None,
    drop_generation: str | None = None,
    force: bool = False,
    meta: str | os.PathLike[str] | None = None,
    options: StoreOptions | None = None,
) -> PruneReport:
    """Lets lines age out, lets go of objects that no head names, deletes what was let go of long enough, and
    aborts uploads that nobody ends.

    dry_run: only says what and why. grace_ms: for this run, instead of the policy's; 0 deletes all that no
    head names in one run, also what a backup, restore or compaction may be at: only for when nothing else
    runs. drop_generation: the line that ends in it is dead, and goes at once. force: also where the clocks
    of this machine and of the store differ, which else keeps lines from aging out.

    What could not be deleted is in the report. Raises InvalidError, NotFoundError (`no_namespace`,
    `no_generation`), FencedError (`no_cas`, `other_host`), DamageError, RefusedError, TemporaryError: what
    was done before is done, the next run goes on.
    """
    with open_session(url, meta, options) as session:
        return prune_session(
            session, dry_run=dry_run, grace_ms=grace_ms, drop_generation=drop_generation, force=force
        )


def prune_session(
    session: Session,
    *,
    dry_run: bool = False,
    grace_ms: int | None = None,
    drop_generation: str | None = None,
    force: bool = False,
    clock_ms: Callable[[], int] = now_ms,
    patience: Patience | None = None,
) -> PruneReport:
    """As `prune`. clock_ms: of this machine; nothing but the policy's window looks at it."""
    if grace_ms is not None and grace_ms < 0:
        raise InvalidError(f"grace_ms must not be negative: {grace_ms}")
    run = _Prune(session, dry_run, grace_ms, drop_generation, force, clock_ms)
    return run.run(patience or Patience())


class _Prune:
    def __init__(
        self,
        session: Session,
        dry_run: bool,
        grace_ms: int | None,
        drop: str | None,
        force: bool,
        clock_ms: Callable[[], int],
    ) -> None:
        self._session, self._store = session, session.store
        self._dry_run, self._grace_ms, self._drop = dry_run, grace_ms, drop
        self._force, self._clock_ms = force, clock_ms
        self._first: PrunePlan | None = None  # of the first head that was put
        self._puts = 0

    def run(self, patience: Patience) -> PruneReport:
        view = self._session.read()
        while True:
            plan = self.plan(view)
            if self._dry_run:
                return self._report(plan, {}, ())
            writer = self._session.writer(view)
            check_base(view, writer)  # also where nothing is put, but deleted
            change = plan.change or (Change() if self._unsure(plan) else None)
            if change is None:
                return self._delete(plan)
            done = publish(self._session.namespace, follow(view, writer, change))
            if done is None:
                patience.wait()
                view = self._session.read()
                continue
            self._puts += 1
            if self._grace(view) > 0 or self._puts > 1:
                return self._delete(plan)
            self._first, view = plan, done  # what this head let go of goes with the next one

    def plan(self, view: View) -> PrunePlan:
        """What a run does on this head: one listing of objects, one of uploads."""
        listed, now = self._list(view)
        grace = self._grace(view)
        waiting = Waiting(now_ms=now, wait_ms=grace + CLOCK_MS if grace else 0)
        policy = Policy.of(view.head)
        anchor = Anchor.of(view.head, local_ms=self._clock_ms(), store_ms=now)
        anchor = replace(anchor, trusted=anchor.trusted or self._force)
        points = IndexPoints(SegmentFetcher(self._store, view.head.uuid))
        cuts = plan_cuts(view, policy, anchor, points, drop=self._drop)
        reasons = {verdict.generation: verdict.reason for verdict in cuts.verdicts}
        leaving = {key: reasons[entry.generation] for key, entry in cuts.dropped.items()}
        return PrunePlan(
            view=view,
            anchor=anchor,
            cuts=cuts,
            points=tuple(point_verdicts(view, cuts)),
            objects=tuple(judge_objects(view, leaving, listed, waiting)),
            uploads=tuple(judge_uploads(self._uploads(), waiting, all_ours=self._store.url.scheme == "file")),
        )

    def _grace(self, view: View) -> int:
        return Policy.of(view.head).grace_ms if self._grace_ms is None else self._grace_ms

    def _unsure(self, plan: PrunePlan) -> bool:
        """Whether something is to be deleted, and the head that let go of it may not be kept. Without a grace
        time the put that lets go is followed by another."""
        return bool(plan.keys("deleted")) and (not plan.view.acknowledged or self._first is not None)

    def _list(self, view: View) -> tuple[Mapping[str, Stat], int]:
        """Every object, and the store's time when the listing began."""
        listed: dict[str, Stat] = {}
        times = []
        for page in self._store.list():
            listed.update((stat.key, stat) for stat in page.entries)
            times.append(page.date_ms)
        return listed, min((time for time in times if time), default=view.read_ms)

    def _uploads(self) -> Iterator[Upload]:
        yield from self._store.list_uploads()
        meta = self._session.namespace.meta
        for noted in meta.uploads(self._session.identity) if meta else ():
            yield Upload(noted.key, noted.upload_id, noted.since_ms)

    def _delete(self, plan: PrunePlan) -> PruneReport:
        keys = plan.keys("deleted")
        failed = {one.key: one.reason for one in self._store.delete_many(keys)} if keys else {}
        aborted = [upload for upload in plan.uploads if upload.state == "aborted"]
        meta = self._session.namespace.meta
        for upload in aborted:
            self._store.abort_upload(upload.key, upload.upload_id)
            if meta:
                meta.drop_upload(self._session.identity, upload.key)
        return self._report(plan, failed, tuple(keys))

    def _report(self, plan: PrunePlan, failed: Mapping[str, str], deleted: tuple[str, ...]) -> PruneReport:
        """Of a run with two heads: what the first one did, and what became of it since."""
        first = self._first or plan
        anchor = plan.anchor
        untrusted = () if anchor.trusted else (f"no points age out: {anchor.why} (--force)",)
        objects = {verdict.key: verdict for verdict in (*first.objects, *plan.objects)}
        return PruneReport(
            url=self._session.url,
            dry_run=self._dry_run,
            grace_ms=self._grace(plan.view),
            points=first.points,
            objects=tuple(sorted(objects.values(), key=lambda verdict: verdict.key)),
            uploads=plan.uploads,
            committed=self._puts,
            deleted=tuple(key for key in deleted if key not in failed),
            failed=failed,
            requests=self._store.requests.counts(),
            notes=(*self._session.notes, *untrusted),
        )
