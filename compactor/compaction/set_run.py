"""One set of a compaction: index, protection, plan, upload, commit; anew where others were first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compactor.compaction.aged import SHARE_MAX
from compactor.compaction.protect import Protection, Rules, protect, rules_of, spans_of, still_offered
from compactor.compaction.report import Outcome, SetReport
from compactor.compaction.sets import MergeSet
from compactor.compaction.superseded import find_superseded
from compactor.fetch import missing_segment
from compactor.generations import Generation
from compactor.lineage import began_with, segments_of
from compactor.merging import Figures, Merge, Merger, Sources, Written
from compactor.policy import Policy, policy_for
from compactor.publish import Change, Draft, Patience, follow, may_name, publish
from compactor.session import Session
from compactor.store.base import NoSuchKey
from compactor.view import View
from ourdb.segment.summary import Run


@dataclass(kw_only=True)
class Standing:
    """What the sets of a run have in common. view: the head that the next commit follows. window_ms: that the
    run was told. keeps_all: nothing may be dropped. anchor_ms: what times are counted back from. out: a
    folder to write to instead of the store. now_ms: the store's clock."""

    session: Session
    view: View
    window_ms: int | None
    keeps_all: bool
    anchor_ms: int
    dry_run: bool
    out: Path | None
    wait_seconds: float
    now_ms: Callable[[], int]

    @property
    def policy(self) -> Policy:
        """What is kept, as the head says it now. Raises InvalidError (`below_policy`)."""
        return Policy() if self.keeps_all else policy_for(self.view.head, self.window_ms)

    def rules(self, generation: str) -> Rules:
        return rules_of(self.view.head, generation, self.policy, self.anchor_ms)

    def draft(self, change: Change) -> Draft:
        """The head after this one; raises what `follow` does."""
        return follow(self.view, self.session.writer(self.view), change)

    def read(self) -> None:
        """The head as it is now."""
        self.view = self.session.read(uuid=self.view.head.uuid)


@dataclass(frozen=True, kw_only=True)
class _Result:
    """A merge that was uploaded: what it kept, what its sources offered, and what was asked for."""

    written: Written
    kept: Protection
    sources: Sources
    policy: Policy
    rules: Rules

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(entry.key for entry in self.written.entries)

    @property
    def runs(self) -> list[Run]:
        return [run for entry in self.written.entries for run in entry.exact_runs]

    def fits(self, standing: Standing, generation: str) -> bool:
        """Whether it may be named by a head that follows this one, and offers what is protected there."""
        spans = spans_of((each.summary.first_time, each.summary.runs) for each in self.sources.columns)
        rules = standing.rules(generation)
        return (
            all(may_name(entry, standing.view) for entry in self.written.entries)
            and standing.policy == self.policy
            and (rules.newest == 1 or rules.branches <= self.rules.branches)
            and still_offered(rules.marked, spans, self.runs)
        )


class SetRun:
    """Merges one set. Raises DamageError, TemporaryError (others commit all the time, or the store is away)
    and what the store refuses; nothing of the set was published then."""

    def __init__(self, standing: Standing, merger: Merger, chosen: MergeSet) -> None:
        self._standing, self._merger, self._set = standing, merger, chosen
        self._patience = Patience(standing.wait_seconds)

    def run(self) -> SetReport:
        while True:
            if not self._stands():
                return self._report("overtaken")
            try:
                found = self._attempt()
            except NoSuchKey as error:
                self._standing.read()
                if self._stands():
                    raise missing_segment(str(error.fields["key"])) from error
                continue
            if found is not None:
                return found

    def _attempt(self) -> SetReport | None:
        """What became of it; None: the head changed so that the result does not fit it any more."""
        standing, generation = self._standing, self._set.generation.id
        sources = self._merger.open(self._set.steps)
        policy, rules = standing.policy, standing.rules(generation)
        kept = protect(sources.columns, rules, later=self._set.later)
        merge = Merge.of(
            sources,
            horizon=kept.horizon,
            pins=kept.pins,
            keep_versions=policy.keep_versions,
            from_start=self._set.from_start,
        )
        if not self._gains(merge):
            self._note_age(rules)
            return self._report("nothing to gain", kept, merge.figures)
        if standing.dry_run:
            return self._report("planned", kept, merge.figures)
        made = standing.view.head.revision
        if standing.out is not None:
            files = merge.write_files(standing.out, generation=generation, made=made)
            return self._report("written", kept, merge.figures, tuple(map(str, files)))
        written = merge.write(
            generation=generation, made=made, on_begin=self._note_upload, on_end=self._drop_upload
        )
        return self._commit(_Result(written=written, kept=kept, sources=sources, policy=policy, rules=rules))

    def _gains(self, merge: Merge) -> bool:
        if self._set.aged:
            return merge.figures.bytes_after <= SHARE_MAX * self._set.bytes
        ends_early = self._set.last_seq < self._set.steps[-1].segment.last_seq
        return merge.drops or ends_early or len(merge.outputs) < len(self._set.steps)

    def _commit(self, result: _Result) -> SetReport | None:
        """Names the result instead of its sources; on a newer head, where it still fits that one."""
        standing = self._standing
        while True:
            change = self._change(result)
            beside = len(frozenset(change.drop) - self._set.keys)
            report = self._report("merged", result.kept, result.written.figures, result.keys, beside=beside)
            view = publish(standing.session.namespace, standing.draft(change))
            if view is not None:
                standing.view = view
                self._note_merged(result.keys[-1])
                return report
            self._patience.wait()
            standing.read()
            if self._live.issuperset(result.keys):
                return report  # the put was in, its reply was lost
            if not (self._stands() and result.fits(standing, self._set.generation.id)):
                return None

    def _change(self, result: _Result) -> Change:
        standing, generation = self._standing, self._generation()
        entries = result.written.entries
        rules = standing.rules(generation.id)
        return Change(
            add=entries,
            drop=find_superseded(standing.view, self._set, entries, generation, rules, result.kept),
            generations={generation.id: generation},
            horizons={generation.id: result.kept.horizon or 0},
        )

    def _generation(self) -> Generation:
        """The generation as the next head says it: what holds now what its ancestors wrote needs none."""
        head, name = self._standing.view.head, self._set.generation.id
        generation = head.generations[name]
        if not self._set.across:
            return generation
        first = next(step.segment for step in self._set.steps if step.segment.generation == name)
        return replace(generation, parent=None, began=began_with(head, name, first.name.first_time))

    @property
    def _live(self) -> frozenset[str]:
        return frozenset(s.key for s in segments_of(self._standing.view, self._set.generation.id))

    def _stands(self) -> bool:
        """Whether the set is there as it was chosen."""
        live, was = {s.key for s in self._standing.view.segments}, self._set.generation
        now = self._standing.view.head.generations.get(was.id)
        same = now is not None and (now.parent, now.kept_to) == (was.parent, was.kept_to)
        return same and live.issuperset(self._set.keys)

    def _note_age(self, rules: Rules) -> None:
        """So that the next runs need not read these indexes again: the window will not come back to them.
        That the newest points of a policy are kept besides does not count: it would be so for ever."""
        session, last = self._standing.session, self._set.segments[-1]
        meta, since_ms = session.namespace.meta, rules.since_ms
        over = since_ms is not None and last.name.last_time < since_ms
        if not (meta and over and self._set.aged) or self._standing.dry_run:
            return
        if self._set.together:
            meta.note_weighed(session.identity, session.url, last.key)
            return
        for key in sorted(self._set.keys):
            meta.note_spent(session.identity, session.url, key)

    def _note_merged(self, key: str) -> None:
        """The same for what came out of a merge of all that is old: it ends with this segment."""
        session = self._standing.session
        if self._set.together and (meta := session.namespace.meta):
            meta.note_weighed(session.identity, session.url, key)

    def _note_upload(self, key: str, upload_id: str) -> None:
        session = self._standing.session
        if meta := session.namespace.meta:
            meta.note_upload(session.identity, session.url, key, upload_id, self._standing.now_ms())

    def _drop_upload(self, key: str) -> None:
        session = self._standing.session
        if meta := session.namespace.meta:
            meta.drop_upload(session.identity, key)

    def _report(
        self,
        outcome: Outcome,
        kept: Protection | None = None,
        figures: Figures | None = None,
        names: Sequence[str] = (),
        *,
        beside: int = 0,
    ) -> SetReport:
        return report_of(self._set, outcome, kept=kept, figures=figures, names=tuple(names), beside=beside)


def report_of(
    chosen: MergeSet,
    outcome: Outcome,
    *,
    kept: Protection | None = None,
    figures: Figures | None = None,
    names: tuple[str, ...] = (),
    beside: int = 0,
    problem: str | None = None,
) -> SetReport:
    """What is said of a set."""
    return SetReport(
        generation=chosen.generation.id,
        first_seq=chosen.first_seq,
        last_seq=chosen.last_seq,
        outcome=outcome,
        segments=len(chosen.steps),
        bytes=chosen.bytes,
        figures=figures,
        horizon=kept.horizon if kept else None,
        kept=kept.points if kept else {},
        names=names,
        beside=beside,
        problem=problem,
    )
