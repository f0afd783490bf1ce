"""The whole of retention against a model with all versions: writes, backups, compactions with each strategy,
policies, pins, prunes, damage, restores and reads at any point, copies that go on, on a clock that stands.

`OURDB_COMPACTION` is the number of examples, of more steps each than the suite has time for.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import backup
import ourdb
from backup.restoring.target import Wanted
from backup.retention.pins import pin_session, unpin_session
from backup.retention.policy import set_policy_session
from backup.retention.prune import prune_session
from compactor.compaction.options import Wish
from compactor.compaction.run import compact_session
from compactor.entries import SegmentEntry
from compactor.follow import Change, Writer, follow
from compactor.lineage import owner_of, segments_of
from compactor.merging import Merge, Merger
from compactor.path import Step, plan_path
from compactor.policy import DAY_MS, HOUR_MS
from compactor.publish import publish
from compactor.strategies import Auto, Levels
from compactor.view import View
from ourdb.errors import DamageError, Error, UnreachableError
from ourdb.units import parse_time
from tests.keeping import Directory, Yard, standing
from tests.promises import Owner, Point
from tests.segment_tools import Record
from tests.shelf import Shelf, all_points, check_point, children_of, name_of, points_on_line

EXAMPLES = int(os.environ.get("OURDB_COMPACTION", "0"))
MINUTE_MS, SECOND_MS = 60_000, 1000
SPANS = (0, 1, SECOND_MS, 10 * MINUTE_MS, HOUR_MS, 5 * HOUR_MS, DAY_MS, 8 * DAY_MS, 40 * DAY_MS)
WINDOWS = (0, SECOND_MS, HOUR_MS, DAY_MS, 10 * DAY_MS)
IDS = st.integers(0, 9)
VALUES = st.binary(max_size=40)
NAMES = ("daily", "before the change", "é")
COUNTS = st.integers(0, 3)
DIRECTORIES_MAX = 4


class Retention(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32 - 1))
    def make(self, seed: int) -> None:
        self.random = random.Random(seed)  # of choices that need not shrink: what is looked at
        self.base = Path(tempfile.mkdtemp(prefix="ourdb keeps é "))
        self.yard = Yard(self.base)
        self.stack = ExitStack()
        self.stack.enter_context(standing(self.yard.clock))
        self.directories = [Directory(self.yard)]
        self.shelf = Shelf(self.yard.shop.store())
        self.restores = 0

    def teardown(self) -> None:
        if not hasattr(self, "stack"):
            return
        try:
            view = self.yard.maybe_view()
            if view and sys.exc_info()[0] is None:
                self.check(view, samples=None)
        finally:
            self.stack.close()
            shutil.rmtree(self.base)

    # -- what writers do

    def directory(self, number: int) -> Directory:
        return self.directories[number % len(self.directories)]

    @rule(
        number=st.integers(0, 9), pairs=st.lists(st.tuples(IDS, st.none() | VALUES), min_size=1, max_size=6)
    )
    def batch(self, number: int, pairs: list[tuple[int, bytes | None]]) -> None:
        self.directory(number).commit(pairs)

    @rule(number=st.integers(0, 9), id_=IDS, value=VALUES)
    def write(self, number: int, id_: int, value: bytes) -> None:
        self.directory(number).commit([(id_, value)])

    @rule(number=st.integers(0, 9), id_=IDS)
    def delete(self, number: int, id_: int) -> None:
        self.directory(number).commit([(id_, None)])

    @rule(span=st.sampled_from(SPANS))
    def wait(self, span: int) -> None:
        self.yard.clock.ms += span

    @rule(number=st.integers(0, 9), bounded=st.booleans())
    def ship(self, number: int, bounded: bool) -> None:
        self.directory(number).ship_anyhow(segment_bytes=200 if bounded else 1 << 30)
        self.watch()

    @rule(
        number=st.integers(0, 9),
        pairs=st.lists(st.tuples(IDS, VALUES), min_size=1, max_size=3),
        wait=st.sampled_from(SPANS[1:5]),
        rounds=st.integers(2, 12),
    )
    def ship_often(self, number: int, pairs: list[tuple[int, bytes]], wait: int, rounds: int) -> None:
        """As a schedule does: each write in a segment of its own."""
        directory = self.directory(number)
        for at in range(rounds):
            self.yard.clock.ms += wait
            directory.commit([((id_ + at) % 10, value) for id_, value in pairs])
            directory.ship_anyhow()
        self.watch()

    @precondition(lambda self: any(self.yard.promises.kept()))
    @rule(choice=st.integers(0, 999), how=st.sampled_from([None, "take-over", "fork"]), id_=IDS)
    def go_on(self, choice: int, how: str | None, id_: int) -> None:
        """A copy is restored to some point, and goes on from there."""
        view = self.yard.view()
        point, name = self.somewhere(view, choice)
        copy = self.restored(view, point, name)
        self.directories = [*self.directories[1 - DIRECTORIES_MAX :], copy]
        self.yard.clock.ms += SECOND_MS
        copy.commit([(id_, b"goes on %d" % self.restores)])
        copy.ship_anyhow(how)
        self.watch()

    # -- what keepers do

    @precondition(lambda self: any(self.yard.promises.kept()))
    @rule(
        name=st.sampled_from(("auto", "levels", "log", "all")),
        threshold=st.sampled_from((None, 2, 3)),
        window=st.none() | st.sampled_from(WINDOWS),
        skew=st.sampled_from(
            (0, 0, 0, 0, 4 * MINUTE_MS, -4 * MINUTE_MS, HOUR_MS, -400 * DAY_MS, 400 * DAY_MS)
        ),
        force=st.booleans(),
    )
    def compact(self, name: str, threshold: int | None, window: int | None, skew: int, force: bool) -> None:
        if threshold is not None and name not in ("auto", "levels"):
            threshold = None
        yard, policy = self.yard, self.yard.promises.policy
        yard.clock.skew_ms = skew
        before = yard.view()
        least = (
            0 if before.head.policy is None else math.inf if policy.window_ms is None else policy.window_ms
        )
        refused = window is not None and window < least
        error = attempt(lambda: self.run_compaction(name, threshold=threshold, window=window, force=force))
        if refused:
            assert error is not None
            assert error.kind == "below_policy"
            assert yard.view().head == before.head
            return
        if error:
            raise error
        anchor = yard.anchor(before)
        asked = policy.window_ms if window is None else window
        points = all_points(before, yard.promises)
        if anchor.trusted or force:
            yard.promises.compacted(anchor.time_ms, asked, points, yard.children())
        view = self.watch()
        if asked is None or not (anchor.trusted or force):
            now = all_points(view, yard.promises)
            assert all(set(was) <= set(now[name]) for name, was in points.items()), "dropped without a reason"
        check_paths(before, view, name, threshold)
        self.check(view)

    @precondition(lambda self: any(self.yard.promises.kept()))
    @rule(choice=st.integers(0, 999))
    def merge_beside(self, choice: int) -> None:
        """Two ways to the same points: a merge of neighbours is named beside them, as by a compaction that
        drops nothing it replaces."""
        view = self.yard.view()
        names = list(all_points(view, self.yard.promises))
        generation = view.head.generations[names[choice % len(names)]]
        steps = (
            plan_path(segments_of(view, generation.id), generation.first_seq - 1, generation.end_seq) or []
        )
        first = choice % max(1, len(steps) - 1)
        some = steps[first : first + 2]
        if len(some) < 2 or any(
            (s.after + 1, s.upto) != (s.segment.first_seq, s.segment.last_seq) for s in some
        ):
            return
        with self.yard.session() as session:
            namespace, held = session.namespace, session.read()
            with Merger(session.store, held.head.uuid) as merger:
                plan = Merge.of(merger.open(some), horizon=None, pins=(), from_start=False)
                written = plan.write(generation=generation.id, made=held.head.revision)
            writer = Writer(
                uuid=held.head.uuid, namespace=namespace.name, config=held.head.config, host=namespace.host.id
            )
            change = Change(add=written.entries, pins=held.head.pins)
            assert publish(namespace, follow(held, writer, change))
        self.check(self.watch())

    @precondition(lambda self: any(self.yard.promises.kept()))
    @rule(
        window=st.none() | st.sampled_from(WINDOWS),
        daily=COUNTS,
        weekly=COUNTS,
        monthly=COUNTS,
        last=COUNTS,
        keep_versions=COUNTS,
    )
    def policy(self, window: int | None, **counts: Any) -> None:
        wanted = replace(self.yard.promises.policy, window_ms=window, **counts)
        with self.yard.session() as session:
            set_policy_session(session, window_ms=window, **counts)
        self.yard.promises.policy = wanted
        self.watch()

    @precondition(lambda self: any(self.yard.promises.kept()))
    @rule(name=st.sampled_from(NAMES), choice=st.integers(0, 999), shift=st.integers(-2, 2))
    def pin(self, name: str, choice: int, shift: int) -> None:
        view = self.yard.view()
        point, line = self.somewhere(view, choice)
        seq = max(1, point.seq + shift)
        points = points_on_line(view, all_points(view, self.yard.promises), line)
        owner = next((at.id for at, upto in self.yard.promises.line(line) if at.first <= seq <= upto), "")
        have = self.yard.promises.pins.get(name)
        want = Point(owner, seq)
        with self.yard.session() as session:
            error = attempt(lambda: pin_session(session, name, Wanted.of(seq=seq), line))
        if seq not in points:
            assert isinstance(error, UnreachableError), error
            self.check_nearest(error, points, seq)
        elif have:
            moved = owner_of(view.head, line, seq).id != have.generation  # written into who took over
            assert error.kind == "pin_exists" if error else have == want
            assert have != want or error is None or moved
        else:
            assert error is None
            self.yard.promises.pinned(name, want)
        self.check(self.watch())

    @precondition(lambda self: self.yard.promises.pins)
    @rule(choice=st.integers(0, 9))
    def unpin(self, choice: int) -> None:
        name = sorted(self.yard.promises.pins)[choice % len(self.yard.promises.pins)]
        with self.yard.session() as session:
            unpin_session(session, name)
        del self.yard.promises.pins[name]
        self.watch()

    @precondition(lambda self: any(self.yard.promises.kept()))
    @rule(at_once=st.booleans(), skew=st.sampled_from((0, 0, 0, HOUR_MS, -400 * DAY_MS)))
    def prune(self, at_once: bool, skew: int) -> None:
        yard = self.yard
        yard.clock.skew_ms = skew
        before, there, since = yard.view(), yard.keys(), dict(yard.unnamed)
        grace = 0 if at_once else yard.promises.policy.grace_ms
        ripe = {
            key for key in before.gone_keys & there if yard.clock.ms - since[key] >= grace + 6 * MINUTE_MS
        }
        anchor, children = yard.anchor(before), yard.children()
        with yard.session() as session:
            prune_session(session, grace_ms=0 if at_once else None, clock_ms=yard.clock.local_ms)
        if anchor.trusted:
            yard.promises.pruned(anchor.time_ms, children)
        view = self.watch()
        deleted = there - yard.keys()
        young = {key for key in deleted if yard.clock.ms - since.get(key, yard.clock.ms) < grace}
        assert not young, "deleted within the grace time"
        assert ripe <= deleted, "what was let go of long ago is there still"
        if at_once:
            assert yard.keys() == yard.named(view), "with no grace one run deletes all that no head names"
        self.check(view)

    @precondition(lambda self: any(self.yard.promises.kept()))
    @rule(choice=st.integers(0, 9))
    def drop_line(self, choice: int) -> None:
        yard = self.yard
        yard.clock.skew_ms = 0
        view = yard.view()
        names = list(all_points(view, yard.promises))
        name = names[choice % len(names)]
        lines = [g for g in view.head.generations.values() if g.open]
        pinned = any(point.generation == name for point in yard.promises.pins.values())
        anchor, children = yard.anchor(view), yard.children()
        with yard.session() as session:
            clock_ms = yard.clock.local_ms
            refused = attempt(lambda: prune_session(session, drop_generation=name, clock_ms=clock_ms))
        if refused:
            assert pinned or [g.id for g in lines] == [name], refused
            return
        yard.promises.dropped(name, children)
        yard.promises.pruned(anchor.time_ms, children)
        self.check(self.watch())

    # -- what breaks

    @precondition(lambda self: any(self.yard.promises.kept()))
    @rule(
        choice=st.integers(0, 999),
        offset=st.integers(0, 9999),
        remove=st.booleans(),
        name=st.sampled_from((None, "auto", "all")),
    )
    def damage(self, choice: int, offset: int, remove: bool, name: str | None) -> None:
        """An object is damaged, and found so; somebody compacts; it comes back as it was, and all is well."""
        view = self.yard.view()
        if not view.segments:
            return
        names = list(self.yard.promises.generations)
        entries = sorted(view.segments, key=lambda entry: (names.index(entry.generation), entry.file_name))
        entry = entries[choice % len(entries)]
        objects, key = self.yard.shop.bucket.objects, f"{self.yard.shop.url.root}/{entry.key}"
        good = objects.pop(key)
        if not remove:
            data = bytearray(good.data)
            data[offset % len(data)] ^= 1 << offset % 8
            objects[key] = replace(good, data=bytes(data))
        try:
            self.check_damaged(view, entry)
            if name:
                self.compact_damaged(name)
        finally:
            objects[key] = good
        self.check(self.watch())

    def check_damaged(self, view: View, entry: SegmentEntry) -> None:
        report = backup.verify(self.yard.url, data=True, meta=self.base / "verify-meta.db")
        assert {problem.key for problem in report.problems} == {entry.key}
        points = all_points(view, self.yard.promises)
        for point in self.sample(points, 3):
            error = attempt(partial(self.compare_restored, view, point, point.generation))
            if error:
                assert isinstance(error, DamageError), error
                assert error.fields["key"] == entry.key
                assert error.fields["first_seq"] <= error.fields["last_seq"]

    def compact_damaged(self, name: str) -> None:
        yard = self.yard
        yard.clock.skew_ms = 0
        before = yard.view()
        points, anchor = all_points(before, yard.promises), yard.anchor(before)
        yard.promises.compacted(anchor.time_ms, yard.promises.policy.window_ms, points, yard.children())
        error = attempt(lambda: self.run_compaction(name))
        assert error is None or isinstance(error, DamageError), error

    def run_compaction(self, name: str, **options: Any) -> None:
        with self.yard.session() as session:
            compact_session(session, Wish.of(strategy=name, **options), clock_ms=self.yard.clock.local_ms)

    # -- what readers do

    @precondition(lambda self: any(self.yard.promises.kept()))
    @rule(choice=st.integers(0, 999), shift=st.integers(-2, 2))
    def restore_seq(self, choice: int, shift: int) -> None:
        view = self.yard.view()
        point, line = self.somewhere(view, choice)
        points = all_points(view, self.yard.promises)
        seq = max(1, point.seq + shift)
        on_line = points_on_line(view, points, line)
        if seq in on_line:
            self.compare_restored(view, Point(line, seq), line)
            self.compare_read(view, Point(line, seq), line, seq=seq)
            return
        for refused in (self.restore_into, self.read_remote):
            error = attempt(partial(refused, line, seq=seq))
            assert isinstance(error, UnreachableError), error
            self.check_nearest(error, on_line, seq)

    @precondition(lambda self: any(self.yard.promises.kept()))
    @rule(choice=st.integers(0, 999), shift=st.sampled_from((-HOUR_MS, -1, 0, 1, SECOND_MS, HOUR_MS)))
    def restore_time(self, choice: int, shift: int) -> None:
        view = self.yard.view()
        point, line = self.somewhere(view, choice)
        time = self.yard.promises.generations[point.generation].history.time(point.seq) + shift
        points = all_points(view, self.yard.promises)
        answer = self.answer(view, line, time)
        error = attempt(lambda: self.read_remote(line, at=time).close())
        if error:
            assert isinstance(error, UnreachableError), error
            assert answer is None or self.gone(view, points, answer), f"{answer} is there: {error}"
            self.check_nearest_times(error, points, time)
            return
        assert answer is not None
        with self.read_remote(line, at=time) as remote:
            assert remote.point is not None
            found = Point(remote.point.generation, remote.point.seq)
        assert self.same_point(found, answer)
        self.compare_read(view, found, line, at=time)

    # -- what all of them rely on

    def watch(self) -> View:
        view = self.yard.watch()
        assert view is not None
        return view

    def somewhere(self, view: View, choice: int) -> tuple[Point, str]:
        """A point that is promised, and a line to ask for it."""
        points, promises = all_points(view, self.yard.promises), self.yard.promises
        kept = list(promises.kept())
        point = kept[choice % len(kept)]
        name = name_of(view, points, promises, point)
        assert name, f"promised and not offered: {point}"
        return point, name

    def sample(self, points: dict[str, list[int]], count: int) -> list[Point]:
        every = [Point(name, seq) for name, seqs in points.items() for seq in seqs]
        return self.random.sample(every, min(count, len(every)))

    def check(self, view: View, samples: int | None = 4) -> None:
        """Every promised point is offered; what is offered is right (some of it, None: all); the store is as
        its head says."""
        promises = self.yard.promises
        points = all_points(view, promises)
        for point in promises.kept():
            assert name_of(view, points, promises, point), f"promised and not offered: {point}"
        count = sum(map(len, points.values()))
        for point in self.sample(points, count if samples is None else samples):
            check_point(self.shelf, view, *point, promises.generations[point.generation].history)
        assert not backup.verify(
            self.yard.url, data=samples is None, meta=self.base / "verify-meta.db"
        ).problems

    def check_nearest(self, error: UnreachableError, points: list[int], seq: int) -> None:
        before, after = error.fields["nearest_before"], error.fields["nearest_after"]
        assert (before and before["seq"]) == max((at for at in points if at < seq), default=None)
        assert (after and after["seq"]) == min((at for at in points if at > seq), default=None)

    def check_nearest_times(self, error: UnreachableError, points: dict[str, list[int]], time: int) -> None:
        for side, late in (("nearest_before", False), ("nearest_after", True)):
            near = error.fields[side]
            if near:
                assert (parse_time(near["time"]) > time) is late
                assert near["seq"] in points[near["generation"]]

    def gone(self, view: View, points: dict[str, list[int]], point: Point) -> bool:
        """Whether this point cannot be asked for by a time: it is not there, or its line was cut."""
        owner = view.head.generations.get(point.generation)
        return owner is None or owner.kept_to is not None or point.seq not in points[point.generation]

    def answer(self, view: View, line: str, time: int) -> Point | None:
        """What a time means on a line, by the model; None: it is not known there."""
        promises = self.yard.promises

        def at(owner: Owner, upto: int) -> Point | None:
            if upto >= owner.first and time >= owner.first_time:
                seq = max(seq for seq in owner.ends if seq <= upto and owner.history.time(seq) <= time)
                return Point(owner.id, seq)
            taken = next(
                (other for other in promises.generations.values() if other.successor == owner.id), None
            )
            if taken:
                return at(taken, taken.last) if time <= self.known_to(view, taken) else None
            return (
                at(promises.generations[owner.parent.generation], owner.parent.seq) if owner.parent else None
            )

        owner = promises.generations[line]
        return at(owner, owner.last) if time <= self.known_to(view, owner) else None

    def known_to(self, view: View, owner: Owner) -> int:
        found = view.head.generations.get(owner.id)
        last = owner.history.time(owner.last) if owner.last else 0
        return max(last, found.as_of) if found else last

    def same_point(self, found: Point, answer: Point) -> bool:
        on_line = self.yard.promises.line(found.generation)
        return found.seq == answer.seq and any(
            at.id == answer.generation and found.seq <= upto for at, upto in on_line
        )

    def restore_into(self, line: str, **target: Any) -> Path:
        self.restores += 1
        path = self.base / f"restored {self.restores}"
        backup.restore(self.yard.url, path, generation=line, meta=self.base / "reader-meta.db", **target)
        return path

    def read_remote(self, line: str, **target: Any) -> backup.RemoteDatabase:
        cache = self.base / "indexes"
        return backup.open_remote(
            self.yard.url, generation=line, meta=self.base / "reader-meta.db", cache=cache, **target
        )

    def compare_restored(self, view: View, point: Point, line: str) -> None:
        history = self.yard.promises.generations[line].history
        path = self.restore_into(line, seq=point.seq)
        records = check_point(self.shelf, view, line, point.seq, history)
        with ourdb.open(path, readonly=True) as copy:
            assert copy.last_seq == point.seq
            assert dict(copy.items()) == history.state(point.seq)
            for id_ in range(10):
                assert [(v.seq, v.value) for v in copy.get_history(id_)] == versions(records, id_)
        shutil.rmtree(path)

    def compare_read(self, view: View, point: Point, line: str, **target: Any) -> None:
        """What a target of a line answers from the store alone is this point."""
        history = self.yard.promises.generations[point.generation].history
        state, records = history.state(point.seq), check_point(self.shelf, view, *point, history)
        with self.read_remote(line, **target) as remote:
            assert remote.point is not None
            assert remote.point.seq == point.seq
            assert dict(remote.items()) == state
            assert [remote.get(id_) for id_ in range(10)] == [state.get(id_) for id_ in range(10)]
            assert remote.get_many(range(10)) == [state.get(id_) for id_ in range(10)]
            for id_ in range(10):
                assert [(v.seq, v.value) for v in remote.history(id_)] == versions(records, id_)

    def restored(self, view: View, point: Point, line: str) -> Directory:
        history = self.yard.promises.generations[line].history
        self.restores += 1
        copy = Directory(self.yard, self.restore_into(line, seq=point.seq).name, history.copy(point.seq))
        with ourdb.open(copy.path, readonly=True) as db:
            assert dict(db.items()) == history.state(point.seq)
        return copy


def attempt(call: Callable[[], object]) -> Error | None:
    """How it was refused, if it was."""
    try:
        call()
    except Error as error:
        return error
    return None


def versions(records: list[Record], id_: int) -> list[tuple[int, bytes | None]]:
    """Of one id, the newest first."""
    return [(record.seq, record.value) for record in reversed(records) if record.id == id_]


def check_paths(before: View, after: View, name: str, threshold: int | None) -> None:
    """No more segments lead to the end of a generation than its strategy allows. What was read to be written
    into those that took over is merged by the next run, if anything still needs it."""
    left = {point.generation for point in Counter(children_of(before)) - Counter(children_of(after))}
    for generation in after.head.generations.values():
        if generation.id in left:
            continue
        was, now = (
            plan_path(segments_of(view, g.id), g.first_seq - 1, g.end_seq) or []
            for view, g in ((before, before.head.generations[generation.id]), (after, generation))
        )
        plain = all(
            (step.after + 1, step.upto) == (step.segment.first_seq, step.segment.last_seq) for step in was
        )
        if plain and was and now:
            assert len(now) <= allowed(name, threshold, was, now)


def allowed(name: str, threshold: int | None, was: list[Step], now: list[Step]) -> float:
    if name == "all":
        return 1
    if name == "log":
        left, count = len(was), 1
        while left > 1:
            left, count = left - left // 2, count + 1
        return count
    if name == "levels":
        return min(len(was), threshold or Levels().threshold)
    sizes = [step.segment.bytes for step in (*was, *now)]
    chosen = Auto(threshold=threshold) if threshold else Auto()
    classes = 1 + math.floor(math.log(chosen.segment_bytes_max / 2 / min(sizes), chosen.threshold))
    return 4 * sum(sizes) / chosen.segment_bytes_max + (chosen.threshold - 1) * classes


Retention.TestCase.settings = settings(
    max_examples=EXAMPLES or 12,
    stateful_step_count=60 if EXAMPLES else 30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestRetention = Retention.TestCase
