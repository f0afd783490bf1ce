"""Compaction: a strategy's sets of a namespace become one segment each (docs/protocols.md)."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from compactor.compaction.options import CompactOptions, Progress, Wish
from compactor.compaction.report import CompactReport, SetReport
from compactor.compaction.set_run import SetRun, Standing, report_of
from compactor.compaction.sets import MergeSet, find_sets, sets_around
from compactor.lineage import HeadView, open_lines
from compactor.merging import Merger
from compactor.path import route
from compactor.policy import Anchor, policy_for
from compactor.publish import Change
from compactor.session import Session, open_session
from compactor.view import View
from compactor.windows import lost_range
from ourdb.errors import DamageError, ExistsError
from ourdb.names import HEAD_KEY
from ourdb.units import now_ms


def compact(
    url: str,
    *,
    strategy: str = "auto",
    threshold: int | None = None,
    window: int | None = None,
    dry_run: bool = False,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    meta: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    options: CompactOptions | None = None,
) -> CompactReport:
    """Merges the segments of a namespace, as a strategy says, and publishes each set as soon as it is done.

    strategy: `auto`, `levels`, `log` or `all`; threshold: of auto and levels, at least 2 segments. window: ms
    before now in which every point stays restorable, 0: the newest only; not less than the policy's, None:
    the policy's. Without either nothing is dropped, segments are only joined. Pins, branch points and what
    keep rules name stay restorable in any case. dry_run: writes nothing, and reports what would be done; the
    indexes of the sets are read for it. out: a folder to write the merged segments to, as files under their
    names in the store; nothing is published. force: drops although the clocks of this machine and of the
    store differ by more than five minutes. meta: path of the meta index, None: the user's own. progress: is
    called with bytes done, bytes in all, and what is being done, by any thread.

    What the report calls merged is published, in a head that names it instead of its sources. They stay in
    the store for the grace time, and until `prune`.

    Raises InvalidError (also `below_policy`), NotFoundError (`no_namespace`), FencedError (`no_cas`,
    `other_host`), DamageError (`store_damaged`: what could be merged is, what is damaged stays), ExistsError
    (`out`), RefusedError, StorageError, and TemporaryError: try again.
    """
    wish = Wish.of(
        strategy=strategy, threshold=threshold, window=window, dry_run=dry_run, out=out, force=force
    )
    chosen = options or CompactOptions()
    with open_session(url, meta, chosen.store) as session:
        return compact_session(session, wish, progress=progress, options=chosen)


def compact_session(
    session: Session,
    wish: Wish,
    *,
    progress: Progress | None = None,
    options: CompactOptions | None = None,
    clock_ms: Callable[[], int] = now_ms,
) -> CompactReport:
    """`compact` for a namespace that is open. clock_ms: of this machine."""
    return _Compaction(session, wish, options or CompactOptions(), clock_ms, progress).run()


class _Compaction:
    def __init__(
        self,
        session: Session,
        wish: Wish,
        options: CompactOptions,
        clock_ms: Callable[[], int],
        progress: Progress | None,
    ) -> None:
        self._session, self._wish, self._clock_ms = session, wish, clock_ms
        self._options, self._progress = options.validate(), progress
        self._notes: list[str] = []
        self._done: list[SetReport] = []

    def run(self) -> CompactReport:
        """Where nothing is to be merged, the GET of the head is the only request."""
        wish, requests = self._wish, self._session.store.requests
        sent = requests.counts()
        view = self._session.read()
        since_ms = self._window_start(view)
        spent, weighed = self._remembered()
        sets = find_sets(view, wish.strategy, since_ms=since_ms, spent=spent, weighed=weighed)
        before = newest_path(view)
        after = len(before)
        if sets:
            _check_folder(wish.out)
            standing = self._stand(view, drops=since_ms is not None)
            self._merge(standing, sets)
            if wish.publishes:
                after = len(newest_path(standing.view))
            else:
                after -= sum(
                    _saved(chosen, done, before) for chosen, done in zip(sets, self._done, strict=True)
                )
        return CompactReport(
            url=self._session.url,
            strategy=wish.strategy.name,
            dry_run=wish.dry_run,
            sets=tuple(self._done),
            segments_before=len(before),
            segments_after=after,
            requests={kind: count - sent[kind] for kind, count in requests.counts().items()},
            notes=(*self._session.notes, *self._notes),
        )

    def _window_start(self, view: View) -> int | None:
        """Where the window begins as far as is known without a request; None: nothing may be dropped."""
        window_ms = policy_for(view.head, self._wish.window_ms).window_ms
        anchor = Anchor.of(view.head, local_ms=self._clock_ms(), store_ms=0)
        return None if window_ms is None else anchor.time_ms - window_ms

    def _remembered(self) -> tuple[frozenset[str], frozenset[str]]:
        """What this machine knows of segments whose time is over."""
        meta, identity = self._session.namespace.meta, self._session.identity
        return (meta.spent(identity), meta.weighed(identity)) if meta else (frozenset(), frozenset())

    def _stand(self, view: View, *, drops: bool) -> Standing:
        """What the sets have in common. Refuses, before anything is uploaded, what could not be committed."""
        session, wish = self._session, self._wish
        local_ms, stat = self._clock_ms(), session.store.head(HEAD_KEY)
        store_ms = stat.date_ms if stat else 0  # a head that was not changed was not sent, nor a Date kept
        anchor = Anchor.of(view.head, local_ms=local_ms, store_ms=store_ms)
        keeps_all = not anchor.trusted and not wish.force  # also where a policy comes in the middle
        if keeps_all and drops:
            self._notes.append(f"nothing is dropped: {anchor.why} (set the clock, or say --force)")
        ahead_ms = store_ms - local_ms if store_ms else 0
        standing = Standing(
            session=session,
            view=view,
            window_ms=wish.window_ms,
            keeps_all=keeps_all,
            anchor_ms=anchor.time_ms,
            dry_run=wish.dry_run,
            out=wish.out,
            wait_seconds=self._options.wait_seconds,
            now_ms=lambda: self._clock_ms() + ahead_ms,
        )
        if wish.publishes:
            session.namespace.ensure_trusted(view)
            standing.draft(Change())
        return standing

    def _merge(self, standing: Standing, sets: Sequence[MergeSet]) -> None:
        """All sets. Of one with a damaged segment what lies around that is tried; then DamageError is raised
        at the end."""
        problems: list[DamageError] = []
        gauge = _Gauge(self._progress)
        gauge.expect(sets)
        waiting = deque(sets)
        store, uuid, options = self._session.store, standing.view.head.uuid, self._options
        with Merger(
            store, uuid, threads=options.threads, folder=options.folder, on_bytes=gauge.advance
        ) as merger:
            while waiting:
                chosen = waiting.popleft()
                gauge.begin(chosen)
                try:
                    self._done.append(SetRun(standing, merger, chosen).run())
                except DamageError as error:
                    key = error.fields.get("key")
                    if key not in chosen.keys:
                        raise
                    problems.append(error)
                    self._done.append(report_of(chosen, "damaged", problem=error.message))
                    smaller = sets_around(chosen, key, self._wish.strategy)
                    gauge.expect(smaller)
                    waiting.extendleft(reversed(smaller))
                gauge.advance(chosen.bytes)
        if problems:
            raise self._damage(problems)

    def _damage(self, problems: Sequence[DamageError]) -> DamageError:
        first = problems[0]
        fields = {**first.fields, "sets": [done.as_json() for done in self._done]}
        return DamageError(
            f"{len(problems)} of {len(self._done)} sets could not be merged, what lies around the damage was "
            f"tried by itself (ourdb verify --data lists all damage): {first.message}",
            kind=first.kind,
            **fields,
        )


def _check_folder(folder: Path | None) -> None:
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):  # Path.exists may raise
        raise ExistsError(f"the folder to write to exists, and is none: {folder}", path=str(folder))


class _Gauge:
    """How much of all sets is done, in bytes; a set counts for what its segments have."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._total = self._before = self._size = self._moved = 0
        self._what = ""
        self._lock = threading.Lock()

    def expect(self, sets: Sequence[MergeSet]) -> None:
        """So much more is to be done."""
        self._total += sum(chosen.bytes for chosen in sets)

    def begin(self, chosen: MergeSet) -> None:
        """What follows is of this set."""
        self._before, self._size, self._moved = self._before + self._size, chosen.bytes, 0
        self._what = f"merging seq {chosen.first_seq} to {chosen.last_seq}"
        self.advance(0)

    def advance(self, more_bytes: int) -> None:
        """For several threads."""
        with self._lock:
            self._moved = min(self._moved + more_bytes, self._size)
            if self._progress:
                self._progress(self._before + self._moved, self._total, self._what)


def newest_path(view: HeadView) -> frozenset[str]:
    """The keys of the segments that a restore of the newest point reads, of all open lines. Raises
    DamageError (`store_damaged`) that names a range to which no path leads."""
    keys: set[str] = set()
    for line in open_lines(view.head):
        steps = route(view, line.id, line.end_seq)
        if steps is None:
            raise lost_range(view, line)
        keys.update(step.segment.key for step in steps)
    return frozenset(keys)


def _saved(chosen: MergeSet, done: SetReport, path: frozenset[str]) -> int:
    """By how many segments a path is shorter once a set is merged as foreseen."""
    on_path = len(chosen.keys & path)
    return on_path - done.segments_after if on_path and done.changed else 0
