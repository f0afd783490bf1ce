"""Prune and objects: what is let go of, when it is deleted, and what never is (protocol rules 5 to 7)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backup.retention.prune import CLOCK_MS, prune_session
from backup.retention.report import PruneReport
from compactor import lists
from compactor.entries import SegmentEntry, made_of
from compactor.follow import Change, follow
from compactor.head import Head, Needs, decode_head, encode_head
from compactor.meta.index import MetaIndex
from compactor.policy import DAY_MS, HOUR_MS
from compactor.publish import Patience, publish
from compactor.session import Session
from compactor.store.base import FailedDelete, Failures
from compactor.view import View
from ourdb.errors import DamageError, Error, InvalidError, TemporaryError
from tests.faulty import FaultyStore, How
from tests.lines import GEN, Clock, Site, end_of, entry_of

WAIT_MS = DAY_MS + CLOCK_MS


class Keeper:
    """A machine that prunes: it has a meta index, and has committed at this store before."""

    def __init__(self, place: Place, name: str) -> None:
        self.place = place
        self.store = FaultyStore(place.plain())
        self.meta = MetaIndex.open(place.root / f"{name}.db")
        self.session = Session(self.store, self.meta)
        self.session.namespace.single_writer = False

    def prune(self, **options: Any) -> PruneReport:
        patience = Patience(0.1, sleep=lambda _: None)
        return prune_session(self.session, clock_ms=lambda: self.place.clock.ms, patience=patience, **options)


class Place(Site):
    """A namespace on a clock that stands; whoever looks sees all objects."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._keepers = 0
        super().__init__(clock=Clock())

    def keeper(self) -> Keeper:
        self._keepers += 1
        return Keeper(self, f"keeper-{self._keepers}")

    @property
    def head(self) -> Head:
        return decode_head(self.plain().get("head").data, "name")

    def view(self) -> View:
        view = self.open(self.plain()).read()
        assert view is not None
        return view

    def commit(self, change: Callable[[View], Change]) -> View:
        """By somebody else, at once."""
        namespace = self.open(self.plain())
        namespace.single_writer = False
        view = namespace.read()
        assert view is not None
        done = publish(namespace, follow(view, self.writer(namespace), change(view)))
        assert done is not None
        return done

    def upload(self, first: int, last: int, made: int | None = None) -> SegmentEntry:
        """An object that no head names."""
        entry = entry_of(first, last, made=self.head.revision if made is None else made)
        self.plain().put_stream(entry.key, [b"segment"])
        return entry

    def merge(self, *sources: SegmentEntry) -> SegmentEntry:
        """Replaces segments that follow each other by one."""
        into = self.upload(sources[0].first_seq, sources[-1].last_seq)
        self.commit(lambda _: Change(add=[into], drop=[one.key for one in sources]))
        return into

    def later(self, span_ms: int) -> None:
        self.clock.ms += span_ms

    def there(self, *keys: str) -> list[bool]:
        return [key in self.objects() for key in keys]

    def whole(self) -> bool:
        """Everything that the head names is there, and nothing of it is let go of."""
        view = self.view()
        named = {"head", *view.head.list_keys, *(entry.key for entry in view.segments)}
        return named <= self.objects().keys() and not named & view.gone_keys


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Three segments of three seqs each."""
    made = Place(tmp_path)
    for _ in range(3):
        made.ship(3)
    yield made
    assert made.whole()


def states(report: PruneReport) -> dict[str, str]:
    return {verdict.key: verdict.state for verdict in report.objects}


def sent(keeper: Keeper, act: Callable[[], Any]) -> dict[str, int]:
    before = keeper.store.requests.counts()
    act()
    after = keeper.store.requests.counts()
    return {kind: number - before[kind] for kind, number in after.items() if number > before[kind]}


# -- what becomes of an object


def test_where_nothing_is_to_be_done_nothing_is_put(place: Place) -> None:
    keeper, before = place.keeper(), place.head
    assert sent(keeper, keeper.prune) == {"GET": 1, "LIST": 2}
    assert place.head == before
    assert set(states(keeper.prune()).values()) == {"live"}


def test_what_a_merge_replaced_is_deleted_after_the_grace_time_and_five_minutes(place: Place) -> None:
    a, b, _ = place.view().segments
    place.merge(a, b)
    keeper = place.keeper()
    assert states(keeper.prune())[a.key] == "waiting"
    place.later(WAIT_MS - 1000)
    assert states(keeper.prune())[a.key] == "waiting"
    assert place.there(a.key, b.key) == [True, True]
    place.later(1000)
    report = keeper.prune()
    assert set(report.deleted) == {a.key, b.key}
    assert report.freed_bytes == 2 * len(b"segment")
    assert place.there(a.key, b.key) == [False, False]


def test_an_entry_leaves_when_its_object_is_seen_to_be_absent_and_the_floor_rises_above_it(
    place: Place,
) -> None:
    """gone-early: an entry that leaves with the sending of a DELETE lets a late one hit what is named."""
    a, b, _ = place.view().segments
    place.merge(a, b)
    place.later(WAIT_MS)
    keeper = place.keeper()
    keeper.prune()
    assert {gone.key for gone in place.head.gone} == {a.key, b.key}
    assert place.head.floor == 0
    report = keeper.prune()
    assert states(report)[a.key] == "absent"
    assert place.head.gone == ()
    made = [number for key in (a.key, b.key) if (number := made_of(key)) is not None]
    assert place.head.floor == max(made) + 1


@pytest.mark.parametrize("how", ["before", "late"])
def test_an_object_whose_delete_did_not_come_through_stays_let_go_of(place: Place, how: How) -> None:
    a, b, _ = place.view().segments
    place.merge(a, b)
    place.later(WAIT_MS)
    keeper = place.keeper()
    keeper.store.fail("delete_many", "", how)
    with pytest.raises(TemporaryError):
        keeper.prune()
    assert {gone.key for gone in place.head.gone} == {a.key, b.key}
    assert set(keeper.prune().deleted) == {a.key, b.key}
    keeper.store.land()


def test_an_orphan_is_let_go_of_first_and_deleted_after_another_grace_time(place: Place) -> None:
    """orphan-at-once: its writer may sleep just before the put that names it."""
    orphan = place.upload(20, 22)
    keeper = place.keeper()
    assert states(keeper.prune())[orphan.key] == "young"
    place.later(WAIT_MS)
    assert states(keeper.prune())[orphan.key] == "let_go"
    assert place.there(orphan.key) == [True]
    assert orphan.key in place.view().gone_keys
    place.later(WAIT_MS - 1000)
    assert states(keeper.prune())[orphan.key] == "waiting"
    place.later(2000)
    assert keeper.prune().deleted == (orphan.key,)
    assert place.there(orphan.key) == [False]


def test_the_grace_time_counts_from_the_put_that_let_go_and_not_from_what_its_writer_had_read(
    place: Place,
) -> None:
    """since-read: whoever let go of it may have slept before its put, and a reader began meanwhile."""
    orphan = place.upload(20, 22)
    place.later(WAIT_MS)
    sleeper, keeper = place.keeper(), place.keeper()
    sleeper.store.interleave("put_if_match", "head", lambda: place.later(3 * WAIT_MS))
    assert states(sleeper.prune())[orphan.key] == "let_go"
    for _ in range(2):
        assert states(keeper.prune())[orphan.key] == "waiting"
        place.commit(lambda _: Change())
    assert place.there(orphan.key) == [True]


def test_what_is_not_ours_is_reported_and_never_touched(place: Place) -> None:
    foreign = ["notes.txt", "segments/readme", "lists/x.json", f"segments/{GEN}/name.seg", "probe-me"]
    for key in foreign:
        place.plain().put_stream(key, [b"theirs"])
    probe = f"probe-{'0' * 16}"
    place.plain().put_stream(probe, [b"ours"])
    keeper = place.keeper()
    place.later(WAIT_MS)
    report = keeper.prune(grace_ms=0)
    assert {key: states(report)[key] for key in foreign} == dict.fromkeys(foreign, "foreign")
    assert all(place.there(*foreign))
    assert place.there(probe) == [False]
    keeper.prune()
    assert place.head.floor == 0  # a probe's name says nothing


def test_without_a_grace_time_one_run_puts_twice_and_deletes_all_that_no_head_names(place: Place) -> None:
    a, b, _ = place.view().segments
    place.merge(a, b)
    orphan = place.upload(20, 22)
    keeper = place.keeper()
    report = keeper.prune(grace_ms=0)
    assert (report.committed, set(report.deleted)) == (2, {a.key, b.key, orphan.key})
    named = {"head", *(entry.key for entry in place.view().segments)}
    assert place.objects().keys() == named
    assert keeper.prune(grace_ms=0).committed == 1  # the entries leave
    assert keeper.prune(grace_ms=0).committed == 0
    assert place.head.gone == ()


def test_a_grace_time_of_a_run_may_be_shorter_than_the_policys(place: Place) -> None:
    a, b, _ = place.view().segments
    place.merge(a, b)
    place.later(HOUR_MS + CLOCK_MS)
    keeper = place.keeper()
    assert keeper.prune().deleted == ()
    assert set(keeper.prune(grace_ms=HOUR_MS).deleted) == {a.key, b.key}
    with pytest.raises(InvalidError):
        keeper.prune(grace_ms=-1)


def test_the_policys_grace_time_counts(place: Place) -> None:
    a, b, _ = place.view().segments
    place.merge(a, b)
    place.commit(lambda _: Change(policy={"grace_ms": HOUR_MS}))
    place.later(HOUR_MS + CLOCK_MS)
    assert set(place.keeper().prune().deleted) == {a.key, b.key}


def test_a_dry_run_says_what_would_be_and_writes_nothing(place: Place) -> None:
    a, b, _ = place.view().segments
    place.merge(a, b)
    place.later(WAIT_MS)
    orphan = place.upload(20, 22)
    place.later(-WAIT_MS)
    young = place.upload(23, 25)
    place.later(2 * WAIT_MS)
    keeper, before = place.keeper(), dict(place.objects())
    report = keeper.prune(dry_run=True)
    expected = {a.key: "deleted", b.key: "deleted", orphan.key: "let_go", young.key: "let_go"}
    assert {key: states(report)[key] for key in expected} == expected
    assert (report.deleted, report.committed, report.freed_bytes) == ((), 0, 14)
    assert place.objects() == before
    assert sent(keeper, lambda: keeper.prune(dry_run=True)) == {"GET": 1, "LIST": 2}


def test_a_store_that_tells_no_time_has_nothing_deleted(place: Place) -> None:
    a, b, _ = place.view().segments
    place.merge(a, b)
    orphan = place.upload(20, 22)
    place.later(WAIT_MS)
    keeper = place.keeper()
    place.bucket.clock_ms = lambda: 0
    found = states(keeper.prune())
    assert [found[key] for key in (a.key, b.key, orphan.key)] == ["waiting", "waiting", "young"]


# -- many, and those that cannot be deleted


def test_thousands_of_objects_are_listed_let_go_of_and_deleted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "GONE_MAX", 1000)
    orphans = [place.upload(100 + number, 100 + number).key for number in range(2500)]
    place.later(WAIT_MS)
    keeper = place.keeper()
    assert sent(keeper, keeper.prune) == {"GET": 1, "LIST": 4, "PUT": 4}
    assert (len(place.head.gone_lists), place.head.gone) == (3, ())
    place.later(WAIT_MS)
    assert sent(keeper, keeper.prune) == {"GET": 1, "LIST": 4, "DELETE": 3}
    assert not any(place.there(*orphans))
    gone_lists = [ref.key for ref in place.head.gone_lists]
    keeper.prune()  # they leave whole, and are let go of themselves
    assert place.head.gone_lists == ()
    assert {gone.key for gone in place.head.gone} == set(gone_lists)
    place.later(WAIT_MS)
    assert set(keeper.prune().deleted) == set(gone_lists)
    keeper.prune()
    assert place.objects().keys() == {"head", *(entry.key for entry in place.view().segments)}


class Stubborn(FaultyStore):
    """Some keys cannot be deleted."""

    def __init__(self, inner: Any, keys: set[str]) -> None:
        super().__init__(inner)
        self.keys = keys

    def delete_many(self, keys: Any) -> Failures:
        names = list(keys)
        super().delete_many([name for name in names if name not in self.keys])
        return tuple(FailedDelete(name, "locked") for name in names if name in self.keys)


def test_what_cannot_be_deleted_is_reported_and_its_list_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphans = [place.upload(100 + number, 100 + number).key for number in range(300)]
    place.later(WAIT_MS)
    keeper = place.keeper()
    keeper.prune()
    place.later(WAIT_MS)
    stubborn = Stubborn(place.plain(), {orphans[7]})
    keeper.session = Session(stubborn, keeper.meta)
    keeper.session.namespace.single_writer = False
    report = keeper.prune()
    assert (report.failed, len(report.deleted)) == ({orphans[7]: "locked"}, 299)
    before = place.head
    keeper.prune()
    assert place.head == before
    stubborn.keys.clear()
    assert keeper.prune().deleted == (orphans[7],)
    keeper.prune()
    assert place.head.gone_lists == ()


def test_a_list_that_was_replaced_waits_like_any_object(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lists-at-once: a reader of the head before still needs it."""
    monkeypatch.setattr(lists, "TURN_OVER", 2)
    place.ship(1)
    old = place.view()
    assert old.head.lists
    for _ in range(9):
        place.ship(1)
    replaced = [key for key in old.head.list_keys if key not in place.head.list_keys]
    assert replaced
    keeper = place.keeper()
    keeper.prune()
    assert all(place.there(*replaced))
    place.later(WAIT_MS)
    assert set(replaced) <= set(keeper.prune().deleted)


# -- uploads


def test_uploads_that_nobody_ends_are_aborted_those_that_only_this_machine_knows_too(place: Place) -> None:
    keeper, root = place.keeper(), place.plain().url.root
    ours, young, noted, newer = (entry_of(first, first + 1).key for first in (30, 32, 34, 36))
    identity, url = keeper.session.identity, keeper.session.url
    place.bucket.uploads[f"{root}/{ours}", "1"] = place.clock.ms
    place.bucket.uploads[f"{root}/theirs", "2"] = place.clock.ms
    keeper.meta.note_upload(identity, url, noted, "3", place.clock.ms)
    place.later(WAIT_MS)
    place.bucket.uploads[f"{root}/{young}", "4"] = place.clock.ms
    keeper.meta.note_upload(identity, url, newer, "5", place.clock.ms)
    assert keeper.prune(dry_run=True).uploads
    assert keeper.store.sent("abort_upload") == 0
    report = keeper.prune()
    assert {(upload.key, upload.state) for upload in report.uploads} == {
        (ours, "aborted"),
        (noted, "aborted"),
        ("theirs", "foreign"),
        (young, "young"),
        (newer, "young"),
    }
    assert {upload.key for upload in place.plain().list_uploads()} == {"theirs", young}
    assert [upload.key for upload in keeper.meta.uploads(identity)] == [newer]


# -- beside others


def test_a_prune_that_lost_the_race_looks_anew_at_what_is_unnamed(place: Place) -> None:
    """prune-no-recheck: meanwhile somebody names what it was about to let go of."""
    orphan = place.upload(10, 12)
    place.later(WAIT_MS)
    keeper = place.keeper()
    keeper.store.interleave(
        "put_if_match",
        "head",
        lambda: place.commit(lambda _: Change(add=[orphan], generations={GEN: end_of(12)})),
    )
    other = place.upload(50, 51)
    place.later(WAIT_MS)
    report = keeper.prune()
    assert (states(report)[orphan.key], states(report)[other.key]) == ("live", "let_go")
    assert orphan.key not in place.view().gone_keys
    place.later(WAIT_MS)
    assert keeper.prune().deleted == (other.key,)


def test_nothing_is_deleted_on_the_word_of_a_head_that_was_only_read(place: Place) -> None:
    """delete-after-read: a head that was put by half may vanish, and the one before names the objects."""
    a, b, _ = place.view().segments
    place.merge(a, b)
    place.later(WAIT_MS)
    keeper = place.keeper()
    keeper.store.fail("put_if_match", "head", times=10**9)
    with pytest.raises(TemporaryError):
        keeper.prune()
    assert keeper.store.sent("delete_many") == 0
    assert place.there(a.key, b.key) == [True, True]
    again = place.keeper()
    again.prune()
    assert again.store.log[-1][0] == "delete_many"
    assert ("put_if_match", "head") in again.store.log


def test_a_head_that_is_known_to_be_kept_needs_no_put_before_the_deletes(place: Place) -> None:
    orphan = place.upload(50, 51)
    place.later(WAIT_MS)
    keeper = place.keeper()
    assert keeper.prune().committed == 1
    place.later(WAIT_MS)
    assert sent(keeper, keeper.prune) == {"GET": 1, "LIST": 2, "DELETE": 1}
    assert place.there(orphan.key) == [False]


def test_a_target_that_went_back_has_nothing_deleted_by_who_remembers(place: Place) -> None:
    """prune-cached: what the head of the last run let go of may be named again."""
    a, b, _ = place.view().segments
    old = place.plain().get("head").data
    place.merge(a, b)
    keeper = place.keeper()
    keeper.prune(grace_ms=0, dry_run=True)
    place.commit(lambda _: Change())
    keeper.prune()
    place.later(WAIT_MS)
    keeper.session.namespace.learn(place.head.known)
    there = place.plain().head("head")
    assert there is not None
    place.plain().put_if_match("head", old, there.etag)
    with pytest.raises(DamageError) as caught:
        keeper.prune()
    assert caught.value.kind == "store_lost_data"
    stranger = place.keeper()
    assert states(stranger.prune())[a.key] == "live"
    assert place.there(a.key, b.key) == [True, True]


def test_a_name_that_was_let_go_of_once_is_not_taken_again_however_late_its_delete_lands(
    place: Place,
) -> None:
    """gone-early, look: a sleeper brings an object back, and a DELETE of a second prune is under way."""
    orphan = place.upload(10, 12)
    place.later(WAIT_MS)
    keeper, sleeper = place.keeper(), place.keeper()
    keeper.prune()
    place.later(WAIT_MS)
    sleeper.store.fail("delete_many", "", "late")
    with pytest.raises(TemporaryError):
        sleeper.prune()
    keeper.prune()
    keeper.prune()
    assert place.head.gone == ()
    place.plain().put_stream(orphan.key, [b"segment"])  # the writer's PUT, once more
    with pytest.raises(Exception, match="let go of"):
        place.commit(lambda _: Change(add=[orphan], generations={GEN: end_of(12)}))
    sleeper.store.land()
    assert place.whole()


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"single_writer": True, "host": "x"}, "other_host"),
        ({"needs": Needs(write=("new",))}, "unknown_format"),
    ],
)
def test_nothing_is_deleted_by_who_may_not_write_the_head(
    place: Place, changes: dict[str, Any], kind: str
) -> None:
    a, b, _ = place.view().segments
    place.merge(a, b)
    place.later(WAIT_MS)
    there = place.plain().head("head")
    assert there is not None
    place.plain().put_if_match("head", encode_head(replace(place.head, **changes)), there.etag)
    with pytest.raises(Error) as caught:
        place.keeper().prune()
    assert caught.value.kind == kind
    assert place.there(a.key, b.key) == [True, True]
    assert place.keeper().prune(dry_run=True).deleted == ()


# -- faults at every request


def busy(root: Path) -> Place:
    """Something of everything: to be deleted, to be let go of, absent, and an upload."""
    place = Place(root)
    for _ in range(4):
        place.ship(2)
    a, b, c, _ = place.view().segments
    merged = place.merge(a, b)
    place.later(WAIT_MS)
    assert not place.plain().delete_many([a.key])
    place.upload(20, 22)
    place.bucket.uploads[f"{place.plain().url.root}/{entry_of(30, 31).key}", "id"] = place.clock.ms
    place.later(WAIT_MS)
    place.merge(merged, c)
    return place


@pytest.mark.parametrize("grace_ms", [None, 0])
@pytest.mark.parametrize("how", ["before", "after", "late", "twice"])
def test_a_fault_at_any_request_harms_nothing_and_the_next_run_ends_it(
    tmp_path: Path, how: How, grace_ms: int | None
) -> None:
    counted = busy(tmp_path / "counted").keeper()
    counted.prune(grace_ms=grace_ms)
    requests = list(dict.fromkeys(method for method, _ in counted.store.log))
    assert {"get", "list", "list_uploads", "put_if_match", "delete_many", "abort_upload"} <= set(requests)
    for number, method in enumerate(requests):
        for times in (1, 10**9) if how in ("before", "after") else (1,):
            place = busy(tmp_path / f"{number}-{times}")
            keeper, named = place.keeper(), place.view()
            keeper.store.fail(method, "", how, times=times)
            with contextlib.suppress(TemporaryError):
                keeper.prune(grace_ms=grace_ms)
            assert place.whole()
            if grace_ms is None:  # whoever read the head before still finds all
                assert all(place.there(*(entry.key for entry in named.segments)))
            again = place.keeper()
            for _ in range(4):
                again.prune()
                keeper.store.land()
                assert place.whole()
                place.later(WAIT_MS)
            assert place.objects().keys() == {"head", *(entry.key for entry in place.view().segments)}
            assert place.head.gone == ()
            assert place.bucket.uploads == {}
