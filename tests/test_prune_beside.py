"""Prune beside backups, restores and compactions that are under way, and that sleep too long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backup.retention.prune import CLOCK_MS, prune_session
from backup.retention.report import PruneReport
from compactor.compaction.options import Wish
from compactor.compaction.run import compact_session
from compactor.fetch import SegmentFetcher
from compactor.meta.index import MetaIndex
from compactor.path import route
from compactor.policy import DAY_MS
from compactor.publish import may_name
from compactor.session import Session
from compactor.store import NoSuchKey
from compactor.view import View
from ourdb.units import now_ms
from tests.backup_tools import Machine, Shop, shop
from tests.faulty import FaultyStore
from tests.interleaving import Killed

WAIT_MS = DAY_MS + CLOCK_MS
__all__ = ["shop"]


@pytest.fixture(autouse=True)
def clock(shop: Shop) -> None:
    """The store's clock goes on as the test says."""
    shop.bucket.clock_ms = lambda: now_ms() + shop.later_ms


@contextlib.contextmanager
def session(shop: Shop, store: FaultyStore | None = None) -> Any:
    with MetaIndex.open(shop.folder / "keeper.db") as meta:
        yield Session(store or shop.store(), meta)


def prune(shop: Shop, times: int = 1) -> PruneReport:
    """So many runs, a grace time apart."""
    for number in range(times):
        shop.later_ms += WAIT_MS if number else 0
        with session(shop) as at:
            report = prune_session(at, clock_ms=lambda: now_ms() + shop.later_ms)
    return report


def compact(shop: Shop, store: FaultyStore | None = None) -> None:
    with session(shop, store) as at:
        compact_session(at, Wish.of(strategy="all"), clock_ms=lambda: now_ms() + shop.later_ms)


def shipped(shop: Shop, runs: int = 3) -> Machine:
    machine = Machine(shop)
    for _ in range(runs):
        machine.write(5).run()
    return machine


def killed_before_commit(machine: Machine) -> str:
    """Uploads what is new, and dies before it is named; the key."""
    store = machine.shop.store()

    def die() -> None:
        raise Killed

    store.interleave("put_if_match", "head", die)
    with pytest.raises(Killed):
        machine.write(4).run(store)
    return next(key for method, key in store.log if method == "put_stream")


def keys(shop: Shop) -> set[str]:
    root = shop.url.root + "/"
    return {key.removeprefix(root) for key in shop.bucket.objects}


# -- a backup


def test_an_upload_that_is_not_named_yet_is_left_and_named_later(shop: Shop) -> None:
    machine = shipped(shop)
    upload = killed_before_commit(machine)
    prune(shop)
    assert upload in keys(shop)
    report = machine.run()
    assert [segment.key for segment in report.adopted] == [upload]
    prune(shop, times=3)
    assert upload in keys(shop)
    assert machine.stored() == machine.log


@pytest.mark.parametrize("times", [2, 3, 4])  # it is in gone; it is deleted; its entry has left
def test_an_upload_that_was_let_go_of_is_made_anew(shop: Shop, times: int) -> None:
    machine = shipped(shop)
    upload = killed_before_commit(machine)
    prune(shop, times)
    assert (upload in keys(shop)) == (times == 2)
    assert not may_name(upload, shop.view())
    report = machine.run()
    assert report.adopted == ()
    assert machine.stored() == machine.log
    prune(shop, times=3)
    assert machine.stored() == machine.log


@pytest.mark.parametrize("times", [2, 3, 4])
def test_a_backup_that_slept_before_its_commit_ships_once_more(shop: Shop, times: int) -> None:
    machine, store = shipped(shop), shop.store()
    store.interleave("put_if_match", "head", lambda: prune(shop, times) and None)
    machine.write(4).run(store)
    uploads = [key for method, key in store.log if method == "put_stream"]
    assert len(uploads) == 2
    assert machine.stored() == machine.log
    prune(shop, times=3)
    assert uploads[0] not in keys(shop)
    assert machine.stored() == machine.log


# -- a compaction


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_a_compaction_that_slept_before_its_commit_harms_nothing(shop: Shop, times: int) -> None:
    machine, store = shipped(shop), shop.store()
    store.interleave("put_if_match", "head", lambda: prune(shop, times) and None)
    compact(shop, store)
    assert machine.stored() == machine.log
    assert len(shop.view().segments) == 1
    prune(shop, times=4)
    assert machine.stored() == machine.log
    assert keys(shop) == {"head", shop.view().segments[0].key}


# -- a restore


def read_all(shop: Shop, view: View, before: Callable[[int], object]) -> None:
    """Fetches what a restore that has read this head fetches, with something before each object."""
    fetcher = SegmentFetcher(shop.store(), view.head.uuid)
    generation = next(iter(view.head.generations))
    for number, step in enumerate(route(view, generation, view.head.generations[generation].last_seq) or ()):
        before(number)
        fetcher.open(step.segment).check_all()


def test_a_reader_within_the_grace_time_finds_all_that_its_head_names(shop: Shop) -> None:
    shipped(shop, runs=4)
    view = shop.view()
    compact(shop)

    def passes(number: int) -> None:
        shop.later_ms += DAY_MS // 4
        prune(shop)

    read_all(shop, view, passes)


def test_a_reader_that_outlives_the_grace_time_reads_the_head_again(shop: Shop, tmp_path: Path) -> None:
    machine = shipped(shop, runs=4)
    view = shop.view()
    compact(shop)
    with pytest.raises(NoSuchKey):
        read_all(shop, view, lambda number: prune(shop, times=2))
    read_all(shop, shop.view(), lambda number: prune(shop))
    assert machine.stored() == machine.log
