"""What each command costs in requests, on one namespace: a table that nothing may exceed unnoticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import backup
import compactor
from backup.retention.prune import prune_session
from compactor.compaction.options import Wish
from compactor.compaction.run import compact_session
from compactor.policy import DAY_MS, HOUR_MS
from tests.keeping import Directory, Yard, standing
from tests.lines import entry_of

SEGMENTS = 9
Budget = Mapping[str, int]


class Desk:
    """A namespace of nine small segments and a pin; all commands share a meta index, as on one machine."""

    def __init__(self, yard: Yard) -> None:
        self.yard, self.url, self.meta = yard, yard.url, yard.meta
        self.directory = Directory(self.yard)
        for number in range(SEGMENTS):
            self.write(number)
            self.ship()
        backup.pin(self.url, "first", seq=2, meta=self.meta)
        backup.set_policy(self.url, window_ms=HOUR_MS, meta=self.meta)
        compactor.monitor(self.url, meta=self.meta)

        self._objects, self._ms = dict(self.yard.shop.bucket.objects), yard.clock.ms
        self._meta, self._directory = self.meta, self.directory

    def again(self, folder: Path) -> None:
        """All as it was when it was made, in copies."""
        objects = self.yard.shop.bucket.objects
        objects.clear()
        objects.update(self._objects)
        self.yard.shop.folder, self.yard.clock.ms = folder, self._ms
        self.meta = self.yard.meta = folder / "meta.db"
        shutil.copy(self._meta, self.meta)
        self.directory = self._directory.twin()

    def write(self, number: int = 0) -> None:
        self.yard.clock.ms += HOUR_MS // 10
        self.directory.commit([(number, b"value"), (99, b"of all")])

    def ship(self) -> Any:
        return self.directory.run(meta=self.meta, clock_ms=self.yard.clock.local_ms)

    def compact(self, **options: Any) -> Any:
        with self.yard.session() as session:
            return compact_session(session, Wish.of(**options), clock_ms=self.yard.clock.local_ms)

    def prune(self, **options: Any) -> Any:
        with self.yard.session() as session:
            return prune_session(session, clock_ms=self.yard.clock.local_ms, **options)

    def restore(self, **options: Any) -> Any:
        return backup.restore(self.url, self.yard.shop.folder / "restored", meta=self.meta, **options)

    def read(self, act: Callable[[backup.RemoteDatabase], object]) -> Any:
        with backup.open_remote(self.url, meta=self.meta) as remote:
            act(remote)
            return remote

    def compacted(self) -> None:
        self.compact(strategy="all")

    def littered(self) -> None:
        self.yard.shop.store().put_if_absent(entry_of(1, 2).key, b"left by a run that died")

    def pruned(self) -> None:
        self.compact(strategy="all")
        self.prune(grace_ms=0)

    def aged(self) -> None:
        self.compact(strategy="all")
        self.prune()
        self.yard.clock.ms += 2 * DAY_MS


Act = Callable[[Desk], Any]
NOTHING: Act = lambda desk: None  # noqa: E731
CASES: list[tuple[str, Act, Act, Budget]] = [
    # what is run, what was before it, how, requests
    ("backup, nothing new", NOTHING, Desk.ship, {"GET": 1}),
    ("backup of new writes", Desk.write, Desk.ship, {"GET": 1, "PUT": 2}),
    ("points", NOTHING, lambda d: backup.points(d.url, meta=d.meta), {"GET": 1}),
    ("segments", NOTHING, lambda d: backup.segments(d.url, meta=d.meta), {"GET": 1}),
    ("verify", NOTHING, lambda d: backup.verify(d.url, meta=d.meta), {"GET": 1, "LIST": 1}),
    (
        "verify --data",
        NOTHING,
        lambda d: backup.verify(d.url, data=True, meta=d.meta),
        {"GET": 1 + SEGMENTS, "LIST": 1},
    ),
    ("restore", NOTHING, Desk.restore, {"GET": 1 + SEGMENTS}),
    ("restore, merged", Desk.compacted, Desk.restore, {"GET": 2}),
    ("restore --seq inside of a segment", Desk.compacted, lambda d: d.restore(seq=16), {"GET": 3}),
    ("restore --dry-run", NOTHING, lambda d: d.restore(dry_run=True), {"GET": 1}),
    ("analyze", NOTHING, lambda d: backup.analyze(d.url, meta=d.meta), {"GET": 1}),
    ("policy", NOTHING, lambda d: backup.policy(d.url, meta=d.meta), {"GET": 1}),
    (
        "policy --window",
        NOTHING,
        lambda d: backup.set_policy(d.url, window_ms=DAY_MS, meta=d.meta),
        {"GET": 1, "PUT": 1},
    ),
    ("pin", NOTHING, lambda d: backup.pin(d.url, "now", meta=d.meta), {"GET": 1, "PUT": 1}),
    (
        "pin --seq inside of a segment",
        Desk.compacted,
        lambda d: backup.pin(d.url, "then", seq=2 * SEGMENTS - 2, meta=d.meta),
        {"GET": 2, "PUT": 1},
    ),
    ("unpin", NOTHING, lambda d: backup.unpin(d.url, "first", meta=d.meta), {"GET": 1, "PUT": 1}),
    ("compact, nothing to do", Desk.compacted, Desk.compact, {"GET": 1}),
    (
        "compact --dry-run",
        NOTHING,
        lambda d: d.compact(strategy="all", dry_run=True),
        {"GET": 1 + SEGMENTS, "HEAD": 1},
    ),
    (
        "compact",
        NOTHING,
        lambda d: d.compact(strategy="all"),
        {"GET": 1 + SEGMENTS + 1, "HEAD": 1, "PUT": 2},
    ),
    ("prune, nothing to do", NOTHING, Desk.prune, {"GET": 1, "LIST": 2}),
    ("prune, what waits", Desk.compacted, Desk.prune, {"GET": 1, "LIST": 2}),
    ("prune, what is ripe", Desk.aged, Desk.prune, {"GET": 1, "LIST": 2, "DELETE": 1}),
    (
        "prune --grace 0s",
        Desk.compacted,
        lambda d: d.prune(grace_ms=0),
        {"GET": 1, "LIST": 2, "DELETE": 1},
    ),
    (
        "prune --grace 0s, what nobody names",
        Desk.littered,
        lambda d: d.prune(grace_ms=0),
        {"GET": 1, "LIST": 4, "PUT": 2, "DELETE": 1},
    ),
    ("prune, what is gone", Desk.pruned, Desk.prune, {"GET": 1, "LIST": 2, "PUT": 1}),
    ("open_remote", NOTHING, lambda d: d.read(lambda remote: None), {"GET": 1}),
    ("get", NOTHING, lambda d: d.read(lambda remote: remote[0]), {"GET": 1 + SEGMENTS}),
    ("get, merged", Desk.compacted, lambda d: d.read(lambda remote: remote[0]), {"GET": 2}),
    ("history, merged", Desk.compacted, lambda d: d.read(lambda remote: remote.history(99)), {"GET": 2}),
    ("items, merged", Desk.compacted, lambda d: d.read(lambda remote: list(remote.items())), {"GET": 2}),
    ("meta sync, nothing new", NOTHING, lambda d: compactor.sync_one(d.url, meta=d.meta), {"GET": 1}),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    yard = Yard(tmp_path_factory.mktemp("desk"))
    with standing(yard.clock):
        yield Desk(yard)


@pytest.fixture
def desk(made: Desk, tmp_path: Path) -> Desk:
    made.again(tmp_path)
    return made


@pytest.mark.parametrize(("before", "run", "budget"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_command_costs_no_more_requests_than_it_is_said_to(
    desk: Desk, before: Act, run: Act, budget: Budget
) -> None:
    before(desk)
    report = run(desk)
    sent = {kind: count for kind, count in report.requests.items() if count}
    assert sent == budget
