"""Reading a head: what it costs, what is remembered, and how a store that lost data is found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compactor import lists
from compactor.follow import Change, follow
from compactor.head import NOTHING_KNOWN, Known, decode_head, encode_head
from compactor.meta.index import MetaIndex
from compactor.namespace import Namespace
from compactor.publish import publish
from compactor.store.base import Reply
from ourdb.errors import DamageError, FencedError, NotFoundError, TemporaryError
from tests.lines import UUID, Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with MetaIndex.open(tmp_path / "meta.db") as meta:
        yield Site(folder=tmp_path, meta=meta)


def lost(namespace: Namespace, known: Known = NOTHING_KNOWN) -> DamageError:
    with pytest.raises(DamageError) as caught:
        namespace.read(required=False, known=known)
    assert caught.value.kind == "store_lost_data"
    assert caught.value.exit_code == 14
    return caught.value


def put_back(site: Site, reply: Reply) -> None:
    site.plain().put_stream("head", [reply.data])


# -- what a read costs


def test_an_idle_read_is_one_get_that_decodes_no_list(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 2)
    for _ in range(5):
        site.ship(1)
    site.store.log.clear()
    opened = []
    monkeypatch.setattr(lists.StoredList, "_open", lambda self, kind: opened.append(kind))
    view = site.open().read()
    assert site.store.log == [("get_if_changed", "head")]
    assert view is not None
    assert view.head.lists
    assert opened == []


def test_a_process_that_remembers_nothing_gets_the_head_and_each_list_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 2)
    for _ in range(4):
        site.ship(1)
    other = Site(clock=site.clock, bucket=site.bucket)
    view = other.namespace.read()
    assert view is not None
    assert other.store.sent("get") == 1 + len(view.head.list_keys)
    assert [entry.last_seq for entry in view.segments] == [1, 2, 3, 4]
    other.store.log.clear()
    site.ship(1)
    other.namespace.read()
    assert [key for _, key in other.store.log] == ["head"]


def test_a_run_can_start_from_the_head_of_the_last_one_without_a_request(site: Site) -> None:
    last = site.ship(3)
    site.store.log.clear()
    view = site.open().remembered()
    assert view is not None
    assert (view.head, view.etag, view.acknowledged) == (last.head, last.etag, True)
    assert site.store.log == []


def test_a_run_does_not_start_from_a_head_if_a_newer_one_is_known_since(site: Site) -> None:
    view = site.ship(3)
    namespace = site.open()
    site.meta.learn(namespace.identity, "url", Known(view.head.revision + 1, "f" * 16))  # type: ignore[union-attr]
    assert namespace.remembered() is None
    assert site.namespace.remembered() is None


def test_a_namespace_that_is_not_there_is_an_error_only_where_it_is_required(site: Site) -> None:
    assert site.namespace.read(required=False) is None
    assert not site.namespace.exists()
    with pytest.raises(NotFoundError) as caught:
        site.namespace.read()
    assert caught.value.kind == "no_namespace"


def test_the_head_of_another_database_is_refused(site: Site) -> None:
    site.ship(1)
    assert site.open().read(uuid=UUID) is not None
    with pytest.raises(FencedError) as caught:
        site.open().read(uuid="0" * 32)
    assert caught.value.kind == "other_database"


# -- rule 7: lists that are gone


def turned_over(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A namespace with a list, and a machine that has read nothing yet."""
    monkeypatch.setattr(lists, "TURN_OVER", 2)
    for _ in range(4):
        site.ship(1)
    return Site(clock=site.clock, bucket=site.bucket)


def test_a_list_that_was_replaced_and_deleted_meanwhile_is_no_damage(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = turned_over(site, monkeypatch)
    old = site.namespace.read()
    assert old is not None
    assert old.list_names

    def turn_over_and_delete() -> None:
        while old.list_names & site.ship(1).list_names:
            pass
        site.plain().delete_many(sorted(old.list_names))

    other.store.interleave("get", "lists/", turn_over_and_delete)
    view = other.namespace.read()
    assert view is not None
    assert not view.list_names & old.list_names
    assert other.store.sent("get", "head") == 2


def test_a_list_that_is_missing_and_still_named_is_damage(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = turned_over(site, monkeypatch)
    key = next(iter(site.namespace.read().list_names))  # type: ignore[union-attr]
    site.plain().delete_many([key])
    with pytest.raises(DamageError) as caught:
        other.namespace.read()
    assert caught.value.kind == "store_damaged"
    assert caught.value.fields["key"] == key
    assert other.store.sent("get", "head") == 2  # it was read again before that was said


def test_lists_that_vanish_again_and_again_end_in_try_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compactor.namespace.READS_MAX", 3)
    other = turned_over(site, monkeypatch)

    def turn_over_and_delete() -> None:
        old = site.namespace.read()
        assert old is not None
        while old.list_names & site.ship(1).list_names:
            pass
        site.plain().delete_many(sorted(old.list_names))

    other.store.interleave("get", "lists/", turn_over_and_delete, times=1000)
    with pytest.raises(TemporaryError):
        other.namespace.read()


# -- rule 8: going back is seen


def test_a_head_that_is_missing_although_one_was_acknowledged_is_lost_data(site: Site) -> None:
    site.ship(1)
    site.plain().delete_many(["head"])
    lost(site.namespace)
    lost(site.open())


def test_a_head_of_a_lower_revision_than_acknowledged_is_lost_data(site: Site) -> None:
    site.ship(1)
    old = site.store.get("head")
    site.ship(1)
    put_back(site, old)
    error = lost(site.open())
    assert (error.fields["revision"], error.fields["known_revision"]) == (1, 2)
    lost(site.open())  # again: the refusal is not forgotten, and the old head is not taken for known


def test_the_same_revision_from_another_run_is_lost_data(site: Site) -> None:
    site.ship(1)
    old = site.store.get("head")
    site.ship(1)
    put_back(site, old)
    other = Site(clock=site.clock, bucket=site.bucket)
    assert other.ship(2).head.revision == 2
    lost(site.open())


def test_what_the_database_directory_knows_counts_as_well(site: Site) -> None:
    view = site.ship(1)
    other = Site(clock=site.clock, bucket=site.bucket)
    assert other.namespace.read(known=view.head.known) is not None
    lost(other.namespace, Known(2, "2" * 16))
    lost(other.namespace, Known(1, "2" * 16))


def test_a_head_that_was_only_read_is_not_known(site: Site) -> None:
    """It may vanish again (a put that was cut): what vanished was never acknowledged to anybody."""
    site.ship(1)
    old = site.store.get("head")
    other = Site(clock=site.clock, bucket=site.bucket)
    site.ship(1)
    view = other.namespace.read()
    assert view is not None
    assert not view.acknowledged
    put_back(site, old)
    again = other.namespace.read()
    assert again is not None
    assert again.head.revision == 1


def test_what_a_head_names_as_kept_is_known(site: Site) -> None:
    site.ship(1)
    old = site.store.get("head")
    kept = site.ship(1).head.known
    view = site.ship(1)
    assert view.head.kept == kept
    other = Site(clock=site.clock, bucket=site.bucket)
    other.namespace.read()
    assert other.namespace.known == kept
    put_back(site, old)
    lost(other.namespace)


def test_known_means_known_before_the_head_was_asked_for(site: Site) -> None:
    """An overlapping run of the same machine commits while our GET is on its way."""
    site.ship(1)
    old = site.store.get("head")
    beside = site.open(site.plain())

    def commit_and_answer_with_the_old_head() -> None:
        site.ship(1, namespace=beside)
        site.store.tear(old)

    late = site.open()
    site.store.interleave("get_if_changed", "head", commit_and_answer_with_the_old_head)
    view = late.read()
    assert view is not None
    assert view.head.revision == 1
    site.store.tear()
    assert late.read().head.revision == 2  # type: ignore[union-attr]


def test_a_new_start_takes_the_store_as_it_finds_it(site: Site) -> None:
    site.ship(1)
    old = site.store.get("head")
    site.ship(1)
    put_back(site, old)
    view = site.namespace.read(accept_loss=True)
    assert view is not None
    assert view.head.revision == 1
    assert not view.acknowledged
    site.plain().delete_many(["head"])
    assert site.namespace.read(accept_loss=True, required=False) is None
    assert site.namespace.known.revision == 2


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "json"])
def test_a_damaged_head_is_damage_and_is_never_answered_with_something_older(site: Site, how: str) -> None:
    site.ship(1)
    site.ship(1)
    data = site.store.get("head").data
    bad = {"cut": data[:-3], "flipped": data[:40] + b"\0" + data[41:], "empty": b"", "json": b"{}"}[how]
    site.plain().put_stream("head", [bad])
    with pytest.raises(DamageError) as caught:
        site.open().read()
    assert caught.value.kind == "store_damaged"


def test_the_head_of_a_namespace_that_was_copied_under_another_name_is_damage(site: Site) -> None:
    view = site.ship(1)
    site.plain().put_stream("head", [encode_head(replace(view.head, namespace="other"))])
    with pytest.raises(DamageError, match="another namespace"):
        site.open().read()


# -- rule 9: trust


def test_a_store_is_probed_once_with_six_requests(site: Site) -> None:
    namespace = site.open()
    before = sum(site.store.requests.counts().values())
    namespace.ensure_trusted()
    assert sum(site.store.requests.counts().values()) - before <= 6
    assert namespace.single_writer is False
    assert not [key for key in site.objects() if key.startswith("probe")]
    site.store.log.clear()
    site.open().ensure_trusted()
    assert site.store.log == []


@pytest.mark.parametrize("how", ["ignores_conditions", "lacks_conditions"])
def test_a_store_without_compare_and_swap_is_refused_with_the_reason(site: Site, how: str) -> None:
    setattr(site.store, how, True)
    for _ in range(2):
        with pytest.raises(FencedError) as caught:
            site.open().ensure_trusted()
        assert caught.value.kind == "no_cas"
        assert caught.value.fields["reason"]
    site.open().ensure_trusted(single_writer=True)
    setattr(site.store, how, False)
    repaired = site.open()
    repaired.ensure_trusted()  # a refusal is not for ever: the store is asked again
    assert repaired.single_writer is False


def test_a_publish_probes_before_its_first_put(site: Site) -> None:
    site.store.ignores_conditions = True
    namespace = site.open()
    with pytest.raises(FencedError):
        publish(namespace, follow(None, site.writer(namespace), Change()))
    assert "head" not in site.objects()


def test_the_view_says_when_the_head_was_written_and_read_by_the_stores_clock(site: Site) -> None:
    site.ship(1)
    reply = site.store.get("head")
    other = Site(clock=site.clock, bucket=site.bucket)
    site.clock.ms += 50_000
    view = other.namespace.read()
    assert view is not None
    assert view.written_ms == reply.modified_ms
    assert view.read_ms > reply.modified_ms + 49_000
    assert decode_head(view.data, "name") == view.head
