"""The commit: lost races, lost replies, creating, a wedged head, and stores without compare-and-swap."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compactor import lists
from compactor.follow import Change, Draft, follow
from compactor.head import decode_head
from compactor.meta.index import MetaIndex
from compactor.namespace import Namespace
from compactor.publish import FRESH_SECONDS, REFUSALS, Patience, publish
from compactor.store import open_store
from compactor.store.base import PreconditionFailed
from compactor.store.memory import MemoryStore
from compactor.url import parse_url
from compactor.view import View
from ourdb.errors import DamageError, Error, FencedError, InvalidError, TemporaryError
from ourdb.files import FileSystem
from tests.lines import GEN, OTHER, Site, end_of, entry_of


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with MetaIndex.open(tmp_path / "meta.db") as meta:
        yield Site(folder=tmp_path, meta=meta)


def draft_of(site: Site, view: View | None, count: int = 1, namespace: Namespace | None = None) -> Draft:
    return follow(view, site.writer(namespace), site.backup(view, count))


def stored_revision(site: Site) -> int:
    return decode_head(site.plain().get("head").data, "name").revision


# -- budgets


def test_a_first_backup_needs_twelve_requests_and_one_for_each_part_of_the_prefix(site: Site) -> None:
    site.namespace.read(required=False)
    site.namespace.ensure_trusted()
    site.ship(3, namespace=site.namespace)
    parts_above, segment_put, second_read = 1, 1, 1
    sent = sum(site.store.requests.counts().values()) - parts_above - second_read
    assert sent + segment_put <= 12


def test_a_later_commit_is_one_put_and_one_more_for_each_new_list(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 3)
    view: View | None = site.ship(1)
    for _ in range(9):
        draft = draft_of(site, view)
        site.store.log.clear()
        view = publish(site.namespace, draft)
        assert view is not None
        assert [method for method, _ in site.store.log] == ["put_stream"] * len(draft.new) + ["put_if_match"]
        assert len(draft.new) <= 1


def test_a_commit_is_acknowledged_known_and_remembered(site: Site) -> None:
    view = site.ship(2)
    assert view.acknowledged
    assert site.namespace.known == view.head.known
    assert site.open().known == view.head.known
    assert site.open().remembered() == replace(view)
    assert view.written_ms >= site.plain().get("head").modified_ms


# -- rules 1 and 2


def test_a_commit_on_a_head_that_was_replaced_changes_nothing(site: Site) -> None:
    view = site.ship(1)
    draft = draft_of(site, view)
    site.ship(5, namespace=site.open(site.plain()))
    before = site.plain().get("head").data
    assert publish(site.namespace, draft) is None
    assert site.plain().get("head").data == before


def test_the_same_head_is_never_put_on_a_newer_one(site: Site) -> None:
    """A lost race is answered by computing anew: the segment for seq 2 does not fit any more."""
    view = site.ship(1)
    change = site.backup(view, 3)
    site.store.interleave("put_if_match", "head", lambda: site.ship(1, namespace=site.open(site.plain())))
    assert publish(site.namespace, follow(view, site.writer(), change)) is None
    newer = site.namespace.read()
    with pytest.raises(Error) as caught:
        follow(newer, site.writer(), change)
    assert caught.value.kind == "not_following"
    assert stored_revision(site) == 2


@pytest.mark.parametrize("how", ["before", "after", "late", "twice"])
def test_a_lost_reply_is_never_reported_and_never_done_twice(site: Site, how: str) -> None:
    view = site.ship(1)
    site.store.fail("put_if_match", "head", how)  # type: ignore[arg-type]
    done = publish(site.namespace, draft_of(site, view))
    site.store.land()
    if how in ("before", "late"):  # the same bytes on the same ETag: one of the two was taken
        assert done is not None
        assert done.acknowledged
    else:
        assert done is None
        assert site.namespace.known == view.head.known
    assert stored_revision(site) == 2
    again = site.namespace.read()
    assert again is not None
    assert [entry.last_seq for entry in again.segments] == [1, 2]


def test_work_that_is_only_found_in_the_head_is_acknowledged_when_it_is_put_once_more(
    site: Site,
) -> None:
    view = site.ship(1)
    site.store.fail("put_if_match", "head", "after", times=2)
    assert publish(site.namespace, draft_of(site, view)) is None
    found = site.namespace.read()
    assert found is not None
    assert found.head.revision == 2
    assert not found.acknowledged
    once_more = publish(site.namespace, follow(found, site.writer(), Change()))
    assert once_more is not None
    assert once_more.acknowledged
    assert once_more.segments == found.segments


def test_without_any_answer_the_head_is_read_again(site: Site) -> None:
    view = site.ship(1)
    site.store.fail("put_if_match", "head", "before", times=2)
    assert publish(site.namespace, draft_of(site, view)) is None
    assert site.store.sent("put_if_match", "head") == 2
    assert site.ship(1).head.revision == 2


def test_a_commit_on_a_head_older_than_an_acknowledged_one_is_not_even_tried(site: Site) -> None:
    view = site.ship(1)
    draft = draft_of(site, view)
    site.ship(1, namespace=site.open(site.plain()))
    site.store.log.clear()
    assert publish(site.namespace, draft) is None
    assert site.store.log == []


def test_everything_a_head_names_is_there_before_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 0)
    view = site.ship(1)
    draft = draft_of(site, view)
    site.store.fail("put_stream", "lists/", "before")
    with pytest.raises(TemporaryError):
        publish(site.namespace, draft)
    assert stored_revision(site) == view.head.revision


def test_old_and_new_head_in_turn_give_the_revisions_one_after_the_other(site: Site) -> None:
    """A server on several drives was killed in a put: GET gives either head, until a put is acknowledged."""
    first = site.ship(1)
    old = site.store.get("head")
    site.store.fail("put_if_match", "head", "after", times=2)
    publish(site.namespace, draft_of(site, first))
    site.store.tear(old, site.plain().get("head"))
    patience, done = Patience(9, sleep=lambda _: None), None
    while done is None:
        view = site.namespace.read()
        assert view is not None
        done = publish(site.namespace, draft_of(site, view))
        patience.wait()
    assert done.head.generations[GEN].last_seq == done.head.revision
    assert stored_revision(site) == done.head.revision


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_many_writers_at_once_all_get_on_and_nothing_is_lost(tmp_path: Path, kind: str) -> None:
    url = f"file://{tmp_path}/store/name" if kind == "file" else "memory://writers/p/name"
    site, failures = Site(folder=tmp_path), []
    site.ship(1, namespace=Namespace(open_store(url), clock=site.clock.machine))

    def write(count: int) -> None:
        try:
            store = open_store(url)
            namespace, patience = Namespace(store, clock=site.clock.machine), Patience(60)
            for _ in range(count):
                while True:
                    view = namespace.read()
                    assert view is not None
                    end = view.head.generations[GEN].last_seq
                    entry = entry_of(end + 1, end + 1, made=view.head.revision)
                    change = Change(add=[entry], generations={GEN: end_of(end + 1)})
                    if publish(namespace, follow(view, site.writer(namespace), change)):
                        break
                    patience.wait()
            store.close()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=write, args=(6,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    view = Namespace(open_store(url)).read()
    assert view is not None
    assert view.head.revision == 25
    assert [entry.last_seq for entry in view.segments] == list(range(1, 26))


def test_patience_ends_with_try_again() -> None:
    now = iter(range(0, 1000, 30))
    patience = Patience(100, sleep=lambda _: None, clock=lambda: float(next(now)))
    for _ in range(4):
        patience.wait()
    with pytest.raises(TemporaryError) as caught:
        patience.wait()
    assert caught.value.exit_code == 75


# -- rule 8: creating


def test_a_head_is_created_only_after_a_second_get_within_a_minute(site: Site) -> None:
    site.namespace.read(required=False)
    site.store.log.clear()
    assert publish(site.namespace, draft_of(site, None)) is not None
    methods = [method for method, key in site.store.log if not key.startswith("probe")]
    assert methods[-2:] == ["get", "put_if_absent"]
    assert {"list", "heads_above"} <= set(methods)


def test_a_create_whose_get_is_a_minute_old_asks_again(site: Site) -> None:
    def sleep_through_the_answer() -> None:
        site.clock.seconds += FRESH_SECONDS + 1

    site.namespace.ensure_trusted()
    site.store.interleave("get", "head", sleep_through_the_answer)
    site.store.log.clear()
    assert publish(site.namespace, draft_of(site, None)) is not None
    assert [method for method, key in site.store.log if key == "head"] == ["get", "get", "put_if_absent"]


def test_a_create_is_never_repeated_without_another_get(site: Site) -> None:
    site.namespace.ensure_trusted()
    site.store.fail("put_if_absent", "head", "before")
    assert publish(site.namespace, draft_of(site, None)) is None
    assert site.store.sent("put_if_absent", "head") == 1


def test_two_that_create_at_once_give_one_head(site: Site) -> None:
    draft = draft_of(site, None)
    site.namespace.ensure_trusted()
    other = site.open(site.plain())
    site.store.interleave("put_if_absent", "head", lambda: site.ship(2, namespace=other))
    assert publish(site.namespace, draft) is None
    assert decode_head(site.plain().get("head").data, "name").generations[GEN].last_seq == 2
    assert publish(site.namespace, draft) is None  # found by the GET


def test_a_head_is_not_created_because_a_put_was_answered_with_404(site: Site) -> None:
    view = site.ship(1)
    site.store.wedged = True
    assert publish(site.namespace, draft_of(site, view)) is None
    assert site.store.sent("put_if_absent", "head") == 1  # the first one, of the ship
    assert stored_revision(site) == 1


def test_a_head_is_not_created_where_somebody_had_read_one(site: Site) -> None:
    """No machine here knows that there was a head; the names in the store do."""
    view = site.ship(1)
    site.ship(1)
    site.plain().delete_many(["head"])
    other = Site(clock=site.clock, bucket=site.bucket)
    assert other.namespace.read(required=False) is None
    with pytest.raises(DamageError) as caught:
        publish(other.namespace, draft_of(other, None))
    assert caught.value.kind == "store_lost_data"
    assert caught.value.exit_code == 14
    assert "head" not in site.objects()
    assert view.head.revision == 1


def test_uploads_of_a_killed_first_backup_do_not_stop_the_next_one(site: Site) -> None:
    site.backup(None, 5)
    site.plain().put_stream("lists/foreign.txt", [b""])
    assert site.ship(1).head.revision == 1


def test_a_listing_with_traces_of_a_head_that_has_just_come_is_a_lost_race(site: Site) -> None:
    draft = draft_of(site, None)

    def others_come() -> None:
        beside = site.open(site.plain())
        site.ship(1, namespace=beside)
        site.ship(1, namespace=beside)

    site.store.interleave("list", "", others_come)
    assert publish(site.namespace, draft) is None


def test_a_new_start_is_created_whatever_lies_there(site: Site) -> None:
    site.ship(1)
    site.ship(1)
    site.plain().delete_many(["head"])
    fresh = Change(
        add=[entry_of(1, 9, generation=OTHER)],
        generations={OTHER: end_of(9, generation=OTHER)},
        revision_at_least=10**15,
    )
    view = publish(site.namespace, follow(None, site.writer(), fresh))
    assert view is not None
    assert view.head.revision == 10**15
    assert site.open().read().head.revision == 10**15  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("memory://bucket/prefix", "lies inside it"),
        ("memory://bucket/prefix/name/x/inner", "inside the namespace"),
    ],
)
def test_a_namespace_around_or_inside_another_one_is_refused(site: Site, url: str, text: str) -> None:
    site.ship(1)
    store = MemoryStore(parse_url(url), bucket=site.bucket)
    namespace = Namespace(store, clock=site.clock.machine)
    with pytest.raises(InvalidError, match=text) as caught:
        publish(namespace, follow(None, site.writer(namespace), Change()))
    assert caught.value.kind == "nested_namespace"
    with pytest.raises(InvalidError, match=text):
        publish(namespace, follow(None, site.writer(namespace), Change(revision_at_least=10**15)))


# -- rule 10: a wedged head


def refused(site: Site, times: int, namespace: Namespace | None = None) -> None:
    at = namespace or site.namespace
    for _ in range(times):
        view = at.read()
        assert publish(at, draft_of(site, view, namespace=at)) is None


def test_a_head_that_is_refused_three_times_is_put_again_as_it_is_and_the_run_goes_on(site: Site) -> None:
    site.ship(1)
    before = site.plain().get("head").data
    site.store.wedged = True
    created = site.store.sent("put_if_absent", "head")
    refused(site, REFUSALS - 1)
    assert site.store.sent("put_if_absent", "head") == created
    refused(site, 1)
    assert site.store.sent("put_if_absent", "head") == created + 1
    assert site.plain().get("head").data == before
    assert "put again" in site.namespace.notes[0]
    assert site.ship(1).head.revision == 2


def test_a_head_that_is_not_wedged_is_never_overwritten_by_healing(site: Site) -> None:
    site.ship(1)
    site.store.wedged = True
    refused(site, REFUSALS - 1)

    def somebody_heals_and_commits() -> None:
        site.store.wedged = False
        site.ship(7, namespace=site.open(site.plain()))

    site.store.interleave("put_if_absent", "head", somebody_heals_and_commits)
    refused(site, 1)
    assert decode_head(site.plain().get("head").data, "name").generations[GEN].last_seq == 8


def test_a_head_that_has_changed_since_is_not_healed_with_what_was_remembered(site: Site) -> None:
    site.ship(1)
    site.store.wedged = True
    refused(site, REFUSALS - 1)
    view = site.namespace.read()
    site.store.interleave("get", "head", lambda: site.ship(7, namespace=site.open(site.plain())))
    created = site.store.sent("put_if_absent", "head")
    assert publish(site.namespace, draft_of(site, view)) is None
    assert site.store.sent("put_if_absent", "head") == created


def test_a_heal_whose_get_is_a_minute_old_is_not_sent(site: Site) -> None:
    site.ship(1)
    site.store.wedged = True
    refused(site, REFUSALS - 1)
    created = site.store.sent("put_if_absent", "head")

    def sleep_through_the_answer() -> None:
        site.clock.seconds += FRESH_SECONDS + 1

    site.store.interleave("get", "head", sleep_through_the_answer)
    refused(site, 1)
    assert site.store.sent("put_if_absent", "head") == created


def test_a_heal_is_never_repeated_without_another_get(site: Site) -> None:
    site.ship(1)
    site.store.wedged = True
    created = site.store.sent("put_if_absent", "head")
    site.store.fail("put_if_absent", "head", "before")
    refused(site, REFUSALS)
    assert site.store.sent("put_if_absent", "head") == created + 1
    reads = site.store.sent("get", "head")
    refused(site, 1)
    assert site.store.sent("put_if_absent", "head") == created + 2
    assert site.store.sent("get", "head") == reads + 1


def test_refusals_of_another_head_do_not_count(site: Site) -> None:
    site.ship(1)
    for _ in range(REFUSALS + 2):
        view = site.namespace.read()
        site.store.interleave("put_if_match", "head", lambda: site.ship(1, namespace=site.open(site.plain())))
        assert publish(site.namespace, draft_of(site, view)) is None
    assert site.namespace.notes == []
    assert site.store.sent("put_if_absent", "head") == 1


# -- rule 9: --single-writer


def alone(site: Site) -> Namespace:
    site.store.ignores_conditions = True
    namespace = site.open()
    namespace.ensure_trusted(single_writer=True)
    return namespace


def test_a_single_writer_is_noted_in_the_head_and_costs_two_more_requests(site: Site) -> None:
    namespace = alone(site)
    view = site.ship(1, namespace=namespace)
    assert view.head.single_writer
    assert view.head.host == namespace.host.id
    later = site.open()
    draft = draft_of(site, later.read(), namespace=later)
    site.store.log.clear()
    assert publish(later, draft) is not None  # the head says it: no probe, no option
    assert [(method, key) for method, key in site.store.log] == [
        ("get", "head"),
        ("put_stream", "head"),
        ("get", "head"),
    ]


def test_two_processes_of_a_single_writers_host_do_not_overwrite_one_another(site: Site) -> None:
    namespace = alone(site)
    view = site.ship(1, namespace=namespace)
    draft = draft_of(site, view, namespace=namespace)
    site.ship(2, namespace=site.open(site.store))
    assert publish(namespace, draft) is None
    assert decode_head(site.plain().get("head").data, "name").generations[GEN].last_seq == 3


def test_a_single_writers_commit_holds_the_lock_of_this_host(site: Site, tmp_path: Path) -> None:
    namespace = alone(site)
    view = site.ship(1, namespace=namespace)
    free: list[bool] = []

    def try_lock() -> None:
        locks = [path for path in (tmp_path / "locks").glob("*.lock") if path.name != "host.lock"]
        free.extend(FileSystem().lock(path, wait=False) is not None for path in locks)

    site.store.interleave("put_stream", "head", try_lock)
    assert publish(namespace, draft_of(site, view, namespace=namespace)) is not None
    assert free == [False]


def test_another_host_is_refused_on_a_single_writers_store(site: Site, tmp_path: Path) -> None:
    site.ship(1, namespace=alone(site))
    elsewhere = Site(clock=site.clock, bucket=site.bucket, folder=tmp_path / "elsewhere")
    elsewhere.store.ignores_conditions = True
    with pytest.raises(FencedError) as caught:
        elsewhere.ship(1)
    assert caught.value.kind == "other_host"


def test_what_a_single_writer_wrote_is_read_back(site: Site) -> None:
    namespace = alone(site)
    view = site.ship(1, namespace=namespace)
    draft = draft_of(site, view, namespace=namespace)
    other = b"somebody else's head"
    reads: list[Callable[[], object]] = [lambda: None, lambda: site.plain().put_stream("head", [other])]
    site.store.interleave("get", "head", lambda: reads.pop(0)(), times=2)
    with pytest.raises(FencedError, match="read back"):
        publish(namespace, draft)
    assert namespace.known == view.head.known


def test_conditions_of_a_store_that_keeps_them_are_used_though_a_single_writer_is_allowed(site: Site) -> None:
    namespace = site.open()
    namespace.ensure_trusted(single_writer=True)
    view = site.ship(1, namespace=namespace)
    assert not view.head.single_writer
    with pytest.raises(PreconditionFailed):
        site.store.put_if_match("head", b"", '"other"')
