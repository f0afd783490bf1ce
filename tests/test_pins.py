"""Pins and the policy: what a head keeps is reported only when a put of the run itself was acknowledged."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backup.restoring.target import Wanted
from backup.retention.pins import check_name, pin_session, unpin_session
from backup.retention.policy import policy_session, set_policy_session
from compactor.head import Head, Known, decode_head, encode_head
from compactor.host import Host
from compactor.meta.index import MetaIndex
from compactor.policy import Policy
from compactor.publish import Patience
from compactor.session import Session
from compactor.store import Store
from ourdb.errors import (
    DamageError,
    Error,
    ExistsError,
    FencedError,
    InvalidError,
    NotFoundError,
    TemporaryError,
    UnreachableError,
)
from tests.faulty import FaultyStore
from tests.worlds import DAY_0, HOUR, World, Write, memory_world, writes

G1, G2 = "1" * 16, "2" * 16


def hasty() -> Patience:
    return Patience(0.1, sleep=lambda _: None)


class Desk:
    """A machine at a store that may fail: it has committed there before, so that no probe is needed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = FaultyStore(world.store)
        self.session = session_on(self.store)
        self.session.namespace.single_writer = False

    @property
    def head(self) -> Head:
        reply = self.world.store.get("head")
        return decode_head(reply.data, "name")

    @property
    def pins(self) -> dict[str, tuple[str, int]]:
        return {pin.name: (pin.generation, pin.seq) for pin in self.head.pins}

    def pin(self, name: str, generation: str | None = None, **wanted: Any) -> Any:
        return pin_session(self.session, name, Wanted.of(**wanted), generation, patience=hasty())

    def unpin(self, name: str) -> Any:
        return unpin_session(self.session, name, patience=hasty())

    def set_policy(self, **changes: Any) -> Any:
        return set_policy_session(self.session, patience=hasty(), **changes)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path))


def session_on(store: Store) -> Session:
    """As a new machine has it."""
    return Session(store, MetaIndex.open(Path(os.environ["OURDB_META"], f"{secrets.token_hex(4)}.db")))


def desk() -> Desk:
    """Thirty writes, one a second, in three segments; what is merged of them is exact at 5, and from 9 on."""
    world = memory_world()
    world.line(G1, writes(30), [10, 20], as_of=DAY_0 + 60_000)
    world.segments = [s for s in world.segments if s.first_seq != 1]
    world.segment(G1, 1, 10, [(5, 5), (9, 10)], level=1)
    world.publish()
    return Desk(world)


def test_the_newest_point_is_pinned_and_only_once() -> None:
    at = desk()
    report = at.pin("now").as_json()
    assert (report["generation"], report["seq"], at.pins) == (G1, 30, {"now": (G1, 30)})
    at.pin("now", seq=30)
    assert at.pins == {"now": (G1, 30)}


@pytest.mark.parametrize(
    ("wanted", "seq"), [({"seq": 5}, 5), ({"at": DAY_0 + 12_500}, 12), ({"at": DAY_0 + 60_000}, 30)]
)
def test_a_point_is_pinned_by_seq_or_by_time(wanted: dict[str, int], seq: int) -> None:
    at = desk()
    at.pin("p", **wanted)
    assert at.pins == {"p": (G1, seq)}
    assert at.head.pins[0].time == DAY_0 + seq * 1000


def test_a_name_is_of_one_point() -> None:
    at = desk()
    at.pin("p", seq=5)
    with pytest.raises(ExistsError) as caught:
        at.pin("p", seq=9)
    assert (caught.value.kind, caught.value.exit_code) == ("pin_exists", 17)
    assert caught.value.fields["seq"] == 5
    assert at.pins == {"p": (G1, 5)}


@pytest.mark.parametrize(("seq", "nearest"), [(4, (None, 5)), (7, (5, 9)), (31, (30, None))])
def test_what_is_not_offered_exactly_is_not_pinned(seq: int, nearest: tuple[int | None, int | None]) -> None:
    at = desk()
    before = at.head
    with pytest.raises(UnreachableError) as caught:
        at.pin("p", seq=seq)
    points = [caught.value.fields[side] for side in ("nearest_before", "nearest_after")]
    assert tuple(point and point["seq"] for point in points) == nearest
    assert at.head == before


def test_nothing_is_pinned_where_nothing_was_written() -> None:
    world = memory_world()
    world.line(G1, writes(0))
    world.publish()
    with pytest.raises(UnreachableError, match="nothing was written"):
        Desk(world).pin("p")


def test_a_pin_says_which_generation_owns_its_seq() -> None:
    world = memory_world()
    first = writes(10)
    second = first.copy(6)
    second.append(Write(1, b"x", DAY_0 + HOUR))
    world.line(G1, first)
    world.line(G2, second, parent=(G1, 6))
    world.publish()
    at = Desk(world)
    with pytest.raises(FencedError) as caught:
        at.pin("p")
    assert caught.value.kind == "two_lines"
    at.pin("old", G2, seq=6)
    at.pin("new", G2)
    assert at.pins == {"old": (G1, 6), "new": (G2, 7)}


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\nb", "\x7f", "x" * 101])
def test_a_name_that_is_none_is_invalid(name: str) -> None:
    with pytest.raises(InvalidError, match="name of a pin"):
        check_name(name)
    assert check_name("vor dem Umzug: äöü, 25 %")


def test_unpin_lets_go_and_says_of_what() -> None:
    at = desk()
    at.pin("p", seq=5)
    at.pin("q", seq=9)
    report = at.unpin("p").as_json()
    assert (report["seq"], report["removed"], at.pins) == (5, True, {"q": (G1, 9)})
    with pytest.raises(NotFoundError) as caught:
        at.unpin("p")
    assert (caught.value.kind, caught.value.fields["pins"]) == ("no_pin", ["q"])


# -- who is first, what is lost


def other(at: Desk) -> Desk:
    """Another machine at the same store, where nothing fails."""
    return Desk(at.world)


def test_a_pin_that_lost_the_race_is_computed_again_on_the_head_that_won() -> None:
    at = desk()
    at.store.interleave("put_if_match", "head", lambda: other(at).pin("theirs", seq=9))
    at.pin("ours", seq=5)
    assert at.pins == {"theirs": (G1, 9), "ours": (G1, 5)}


def test_a_pin_whose_name_was_taken_meanwhile_is_refused() -> None:
    at = desk()
    at.store.interleave("put_if_match", "head", lambda: other(at).pin("p", seq=9))
    with pytest.raises(ExistsError):
        at.pin("p", seq=5)
    assert at.pins == {"p": (G1, 9)}


def test_a_pin_on_a_point_that_a_merge_took_meanwhile_is_refused() -> None:
    at = desk()

    def merge() -> None:
        world = at.world
        world.segments = [s for s in world.segments if s.first_seq != 11]
        world.segment(G1, 11, 20, [(20, 20)], level=1)
        world.publish()

    at.store.interleave("put_if_match", "head", merge)
    with pytest.raises(UnreachableError):
        at.pin("p", seq=15)
    assert at.pins == {}


def test_a_pin_is_reported_only_after_a_put_of_its_own() -> None:
    """After a kill in the middle of a put the store shows old and new in turn, until a put is whole."""
    at = desk()
    before = at.world.store.get("head")
    other(at).pin("p", seq=5)
    after = at.world.store.get("head")
    at.store.tear(after)  # what is read now, and may not be kept
    at.pin("p", seq=5)
    assert not at.store.torn  # a put went through, and settled it
    assert at.pins == {"p": (G1, 5)}
    assert at.head.revision == decode_head(before.data, "name").revision + 2


@pytest.mark.parametrize("how", ["before", "after", "twice", "late"])
@pytest.mark.parametrize("what", ["pin", "unpin", "policy"])
def test_a_put_without_an_answer_is_found_or_done_again(what: str, how: Any) -> None:
    at = desk()
    at.pin("old", seq=9)
    at.store.fail("put_if_match", "head", how, times=2)
    act = {
        "pin": lambda: at.pin("p", seq=5),
        "unpin": lambda: at.unpin("old"),
        "policy": lambda: at.set_policy(window_ms=HOUR),
    }[what]
    act()
    at.store.land()
    assert (
        at.pins
        == {
            "pin": {"old": (G1, 9), "p": (G1, 5)},
            "unpin": {},
            "policy": {"old": (G1, 9)},
        }[what]
    )
    assert Policy.of(at.head).window_ms == (HOUR if what == "policy" else None)


def test_an_unpin_whose_reply_was_lost_leaves_what_has_the_name_by_now() -> None:
    at = desk()
    at.pin("p", seq=5)
    at.store.fail("put_if_match", "head", "after", times=1)
    at.store.interleave("put_if_match", "head", lambda: other(at).pin("p", seq=9))
    assert at.unpin("p").as_json()["seq"] == 5
    assert at.pins == {"p": (G1, 9)}


@pytest.mark.parametrize("what", ["pin", "unpin", "policy"])
def test_a_fault_at_any_request_leaves_a_head_on_which_the_next_run_succeeds(what: str) -> None:
    def act(at: Desk) -> None:
        if what == "pin":
            at.pin("p", seq=15)
        elif what == "unpin":
            at.unpin("old")
        else:
            at.set_policy(daily=3)

    def ready() -> Desk:
        at = desk()
        at.pin("old", seq=9)
        at.session = session_on(at.store)
        at.session.namespace.single_writer = False
        at.store.log.clear()
        return at

    counted = ready()
    act(counted)
    requests = list(dict.fromkeys(counted.store.log))
    assert len(requests) >= 2
    for method, key in requests:
        for how in ("before", "after"):
            at = ready()
            at.store.fail(method, key, how, times=10**9)  # type: ignore[arg-type]
            with contextlib.suppress(TemporaryError) if what == "unpin" else pytest.raises(TemporaryError):
                act(at)  # that the pin is gone needs no put
            again = other(at)
            if not (what == "unpin" and "old" not in at.pins):
                act(again)
            assert ("p" in at.pins, "old" in at.pins) == (what == "pin", what != "unpin")
            assert Policy.of(at.head).daily == (3 if what == "policy" else 0)


def test_a_segment_that_is_damaged_is_gone_around_or_named() -> None:
    at = desk()
    entry = next(s for s in at.world.segments if s.first_seq == 11)
    at.world.flip(entry.key, -20)
    with pytest.raises(DamageError):
        at.pin("p", seq=15)
    assert at.pin("end").pin.seq == 30  # the head tells it


def test_a_machine_that_knows_a_newer_head_does_not_pin_on_an_older_one() -> None:
    at = desk()
    at.session.namespace.learn(Known(99, "9" * 16))
    with pytest.raises(DamageError) as caught:
        at.pin("p")
    assert caught.value.kind == "store_lost_data"


def test_a_single_writers_store_is_left_to_its_host() -> None:
    at = desk()
    set_host = at.session.namespace.host = Host(None)
    other_head = at.head
    assert set_host.id != other_head.host
    at.world.replace_head(encode_head(replace(other_head, single_writer=True)))
    for act in (lambda: at.pin("p"), lambda: at.set_policy(daily=1)):
        with pytest.raises(FencedError) as caught:
            act()
        assert caught.value.kind == "other_host"


# -- policy


def test_without_a_policy_everything_is_kept() -> None:
    report = policy_session(desk().session)
    assert (report.policy, report.before, report.pins) == (Policy(), None, ())


def test_what_is_not_named_stays_and_members_of_newer_programs_are_carried() -> None:
    at = desk()
    at.world.policy = {"window_ms": 5, "later": 1}
    at.world.publish()
    report = at.set_policy(daily=7, grace_ms=2 * HOUR)
    assert at.head.policy == {"window_ms": 5, "daily": 7, "grace_ms": 2 * HOUR, "later": 1}
    assert report.before is not None
    assert (report.before.daily, report.policy.daily) == (0, 7)
    at.set_policy(window_ms=None)
    assert at.head.policy == {"daily": 7, "grace_ms": 2 * HOUR, "later": 1}


@pytest.mark.parametrize(
    "changes", [{"grace_ms": HOUR - 1}, {"window_ms": -1}, {"minimum": 0}, {"daily": -1}]
)
def test_a_policy_that_is_none_changes_nothing(changes: dict[str, int]) -> None:
    at = desk()
    before = at.head
    with pytest.raises(InvalidError):
        at.set_policy(**changes)
    assert at.head == before


def test_a_dry_run_says_what_would_be_and_puts_nothing() -> None:
    at = desk()
    before = at.head
    report = set_policy_session(at.session, dry_run=True, window_ms=HOUR)
    assert (report.policy.window_ms, at.head) == (HOUR, before)
    assert at.store.sent("put_if_match") == 0


def test_two_that_change_different_members_both_win() -> None:
    at = desk()
    at.store.interleave("put_if_match", "head", lambda: other(at).set_policy(window_ms=HOUR))
    at.set_policy(daily=7)
    assert at.head.policy == {"window_ms": HOUR, "daily": 7}


# -- requests


def test_requests_of_each_command_are_few() -> None:
    at = desk()

    def sent(act: Any) -> dict[str, int]:
        before = at.store.requests.counts()
        act()
        after = at.store.requests.counts()
        return {
            kind: after[kind] - before.get(kind, 0) for kind in after if after[kind] > before.get(kind, 0)
        }

    assert sent(lambda: policy_session(at.session)) == {"GET": 1}
    assert sent(lambda: at.pin("end")) == {"GET": 1, "PUT": 1}
    assert sent(lambda: at.pin("middle", seq=15)) == {"GET": 2, "PUT": 1}
    assert sent(lambda: at.unpin("end")) == {"GET": 1, "PUT": 1}
    assert sent(lambda: at.set_policy(daily=1)) == {"GET": 1, "PUT": 1}
    assert sent(lambda: at.set_policy(daily=1)) == {"GET": 1}  # it stands, and is known to be kept
    with pytest.raises(Error):
        at.unpin("end")
