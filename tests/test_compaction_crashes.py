"""Whoever compacts, prunes or sets a policy dies at any request, or is not answered: garbage is left, and no
more."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from backup.restoring.target import Wanted
from backup.retention.pins import pin_session
from backup.retention.policy import set_policy_session
from backup.retention.prune import prune_session
from compactor.compaction.options import CompactOptions, Wish
from compactor.compaction.run import compact_session
from compactor.policy import HOUR_MS, Policy
from compactor.store.base import Store
from ourdb.errors import TemporaryError
from tests.interleaving import ENDS, Killed, Run, land
from tests.keeping import Directory, Yard, standing
from tests.promises import Point
from tests.shelf import Shelf, all_points, check_point, name_of

COMMANDS = ("compact", "compact across", "prune", "policy")
ONE_THREAD = CompactOptions(threads=1, wait_seconds=30)
ROUNDS = 12
SHIFTS = int(os.environ.get("OURDB_CRASHES", "1"))  # 6: all ends at all requests


class Site:
    """A namespace whose window is an hour: a line that another took over, a fork beside them, merged and
    plain segments, a pin, and what was let go of long ago. `again` makes it as it was."""

    def __init__(self, folder: Path) -> None:
        self.yard = Yard(folder)
        self.metas = count()
        with standing(self.yard.clock):
            self._fill()
        self._objects = dict(self.yard.shop.bucket.objects)
        self._unnamed, self._ms = dict(self.yard.unnamed), self.yard.clock.ms

    def _fill(self) -> None:
        yard = self.yard
        directory = Directory(yard)
        self.ship(directory, 6)
        with yard.session() as session:
            pin_session(session, "third", Wanted.of(seq=4))
            yard.promises.pinned("third", Point(next(iter(yard.promises.generations)), 4))
            compact_session(session, Wish.of(strategy="log"), clock_ms=yard.clock.local_ms)
            set_policy_session(session, window_ms=HOUR_MS, daily=2)
        yard.watch()
        copy = directory.twin()
        self.ship(directory, 2)
        copy.commit([(7, b"of a copy")])
        copy.ship(how="fork")
        self.ship(directory, 3)
        yard.clock.ms += 30 * HOUR_MS
        self.ship(directory, 2)
        view = yard.watch()
        assert view is not None
        anchor = yard.anchor(view).time_ms
        yard.promises.policy = Policy.of(view.head)
        yard.promises.compacted(anchor, HOUR_MS, all_points(view, yard.promises), yard.children())
        yard.promises.pruned(anchor, yard.children())

    def ship(self, directory: Directory, rounds: int) -> None:
        for _ in range(rounds):
            self.yard.clock.ms += 20 * 60_000
            seq = len(directory.history)
            directory.commit([(seq % 3, b"value %d" % seq), (5, b"of both")])
            directory.ship()

    def again(self) -> None:
        objects = self.yard.shop.bucket.objects
        objects.clear()
        objects.update(self._objects)
        self.yard.unnamed, self.yard.clock.ms = dict(self._unnamed), self._ms

    def body(self, command: str) -> Callable[[Store], object]:
        """The command as a process of its own has it, on a machine that knows nothing."""
        meta = self.yard.meta.with_name(f"meta-{next(self.metas)}.db")
        clock_ms = self.yard.clock.local_ms
        commands: dict[str, Callable[[Any], object]] = {
            "compact": lambda session: compact_session(
                session, Wish.of(strategy="levels", threshold=2), options=ONE_THREAD, clock_ms=clock_ms
            ),
            "compact across": lambda session: compact_session(
                session, Wish.of(strategy="all"), options=ONE_THREAD, clock_ms=clock_ms
            ),
            "prune": lambda session: prune_session(session, clock_ms=clock_ms),
            "policy": lambda session: set_policy_session(session, last=2),
        }

        def run(store: Store) -> object:
            with self.yard.session(store, meta) as session:
                return commands[command](session)

        return run

    def finish(self, command: str) -> None:
        """The next run, by somebody else, to whom nothing happens."""
        self.body(command)(self.yard.shop.store())

    def check(self) -> None:
        """What the policy protected when the command was begun is offered, and all that is offered is right;
        one prune later nothing is left that no head names."""
        yard = self.yard
        view = yard.watch()
        assert view is not None
        self._check_points()
        with yard.session(meta=yard.meta.with_name(f"meta-{next(self.metas)}.db")) as session:
            prune_session(session, grace_ms=0, clock_ms=yard.clock.local_ms)
        view = yard.watch()
        assert view is not None
        assert yard.keys() == yard.named(view)
        self._check_points()

    def _check_points(self) -> None:
        view, promises, shelf = self.yard.view(), self.yard.promises, Shelf(self.yard.shop.store())
        points = all_points(view, promises)
        for point in promises.kept():
            assert name_of(view, points, promises, point), point
        for name, seqs in points.items():
            for seq in seqs:
                check_point(shelf, view, name, seq, promises.generations[name].history)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.mark.parametrize("shift", range(SHIFTS))
@pytest.mark.parametrize("command", COMMANDS)
def test_run_that_ends_badly_at_any_request_leaves_garbage_only(site: Site, command: str, shift: int) -> None:
    """Each request has another bad end, in turn; with every shift (OURDB_CRASHES) each has all of them."""
    for number in count():
        site.again()
        landing: list[Callable[[], Any]] = []
        run = Run(site.yard.shop.store().inner, site.body(command), landing)
        if not all(run.step() for _ in range(number)) or not run.step(ENDS[(number + shift) % len(ENDS)]):
            break
        run.finish()
        error = run.error
        assert error is None or isinstance(error, (Killed, TemporaryError)), error
        for send in landing:
            land(send)
        site.finish(command)
        site.check()
    assert number > 2
