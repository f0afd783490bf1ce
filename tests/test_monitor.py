"""Monitored namespaces: what the meta index holds of them, and what it costs to keep it in step."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import compactor
from compactor import lists
from compactor.follow import follow
from compactor.head import decode_head, encode_head
from compactor.meta.index import MetaIndex
from compactor.publish import publish
from compactor.store import open_store
from compactor.view import View
from ourdb.errors import DamageError, InvalidError, NotFoundError, StorageError, UnknownFormatError
from ourdb.names import HEAD_KEY
from tests.lines import GEN, OTHER, Site

ROOT = Path(__file__).resolve().parent.parent


class Clock:
    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def __call__(self) -> int:
        self.ms += 1000
        return self.ms


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    return tmp_path / "state" / "meta.db"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store/name"


@pytest.fixture
def other_url(url: str) -> str:
    return url.replace("name", "other")


def ship(url: str, count: int, generation: str = GEN, index: MetaIndex | None = None) -> View:
    """A backup of so many seqs; by another machine if it has no meta index."""
    with closing(open_store(url)) as store:
        site = Site(meta=index)
        site.namespace = namespace = site.open(store)
        view = namespace.read(required=False)
        done = publish(
            namespace, follow(view, site.writer(), site.backup(view, count, generation=generation))
        )
        assert done is not None
        return done


def put_head(url: str, data: bytes) -> None:
    with closing(open_store(url)) as store:
        store.put_if_match(HEAD_KEY, data, store.get(HEAD_KEY).etag)


@pytest.fixture
def watched(url: str, meta: Path) -> str:
    """The URL of a monitored namespace of three segments."""
    for count in (3, 4, 5):
        ship(url, count)
    compactor.monitor(url, meta=meta)
    return url


def sent(report: compactor.SyncReport) -> dict[str, int]:
    """The requests, by kind."""
    return {kind: count for kind, count in report.requests.items() if count}


def keys(url: str, meta: Path) -> set[str]:
    return {row.key for row in compactor.list_all_segments(url, meta=meta)}


# -- what is monitored


def test_a_monitored_namespace_is_listed_with_what_it_holds(url: str, meta: Path) -> None:
    for count in (3, 4, 5):
        ship(url, count)
    clock = Clock()
    done = compactor.monitor(url, meta=meta, clock_ms=clock)
    (found,) = compactor.list_monitored_namespaces(meta=meta)
    assert found == done.namespace
    assert (found.url, found.segments, found.last_seq, found.generations) == (url, 3, 12, 1)
    assert found.since_ms == found.synced_ms == clock.ms
    assert sent(done) == {"GET": 1}
    assert done.as_json()["last_seq"] == 12


def test_monitoring_again_keeps_since_when(url: str, meta: Path) -> None:
    ship(url, 1)
    clock = Clock()
    first = compactor.monitor(url, meta=meta, clock_ms=clock)
    again = compactor.monitor(url, meta=meta, clock_ms=clock)
    assert again.namespace.since_ms == first.namespace.since_ms < again.namespace.synced_ms
    assert len(compactor.list_monitored_namespaces(meta=meta)) == 1


def test_every_spelling_of_a_url_is_one_namespace(url: str, tmp_path: Path, meta: Path) -> None:
    ship(url, 12)
    (tmp_path / "link").symlink_to(tmp_path / "store")
    spellings = [url, url.replace("name", "n%61me"), f"file://localhost{tmp_path}/link/name"]
    for spelling in spellings:
        compactor.monitor(spelling, meta=meta)
    assert len(compactor.list_monitored_namespaces(meta=meta)) == 1
    for spelling in spellings:
        assert compactor.sync_one(spelling, meta=meta).namespace.last_seq == 12
        assert compactor.get_segment_range(spelling, meta=meta) is not None
    compactor.unmonitor(spellings[1], meta=meta)
    assert compactor.list_monitored_namespaces(meta=meta) == []


@pytest.mark.s3
def test_what_is_monitored_is_found_from_another_environment(
    s3_url: str, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(s3_url, 3)
    compactor.monitor(s3_url, meta=meta)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    done = compactor.sync_all(meta=meta)
    assert not done.failed
    assert done.synced[0].namespace.last_seq == 3


def test_what_is_not_monitored_is_an_error_that_lists_what_is(
    watched: str, other_url: str, meta: Path
) -> None:
    asked = [
        lambda: compactor.unmonitor(other_url, meta=meta),
        lambda: compactor.sync_one(other_url, meta=meta),
        lambda: compactor.list_all_segments(other_url, meta=meta),
        lambda: compactor.get_segment_range(other_url, meta=meta),
        lambda: compactor.segment_info(other_url, "x", meta=meta),
    ]
    for ask in asked:
        with pytest.raises(NotFoundError) as caught:
            ask()
        assert caught.value.kind == "not_monitored"
        assert caught.value.fields["monitored"] == [watched]


def test_a_namespace_that_is_not_there_is_not_monitored(other_url: str, meta: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        compactor.monitor(other_url, meta=meta)
    assert caught.value.kind == "no_namespace"
    assert compactor.list_monitored_namespaces(meta=meta) == []


def test_what_is_monitored_no_more_is_still_known_to_have_had_its_newest_head(
    watched: str, meta: Path
) -> None:
    before = open_store(watched).get(HEAD_KEY).data
    with MetaIndex.open(meta) as index:
        ship(watched, 1, index=index)
    compactor.unmonitor(watched, meta=meta)
    put_head(watched, before)
    with pytest.raises(DamageError) as caught:
        compactor.monitor(watched, meta=meta)
    assert caught.value.kind == "store_lost_data"


# -- syncing


def test_a_sync_with_nothing_new_is_one_request_and_rewrites_nothing(
    watched: str, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(MetaIndex, "remember", lambda self, identity, url, view: written.append(url))
    clock = Clock()
    done = compactor.sync_one(watched, meta=meta, clock_ms=clock)
    assert sent(done) == {"GET": 1}
    assert not done.changed
    assert not written
    assert done.namespace.synced_ms == clock.ms


def test_a_sync_fetches_only_the_lists_that_are_new(
    watched: str, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 4)
    for _ in range(9):
        ship(watched, 1)
    first = compactor.sync_one(watched, meta=meta)
    assert first.changed
    assert first.requests["GET"] == 2  # the head and its list
    ship(watched, 1)
    assert sent(compactor.sync_one(watched, meta=meta)) == {"GET": 1}
    assert len(keys(watched, meta)) == 13


def test_a_full_sync_fetches_everything_and_heals_what_was_altered_here(
    watched: str, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 2)
    for _ in range(3):
        ship(watched, 1)
    compactor.sync_one(watched, meta=meta)
    whole = keys(watched, meta)
    with sqlite3.connect(meta) as connection:
        connection.execute("delete from segments where first_seq < 5")
        connection.execute("update generations set last_seq = 3")
    connection.close()
    assert keys(watched, meta) < whole
    assert not compactor.sync_one(watched, meta=meta).changed
    done = compactor.sync_one(watched, full=True, meta=meta)
    assert done.requests["GET"] > 1
    assert not done.changed
    assert done.namespace.last_seq == 15
    assert keys(watched, meta) == whole


def test_one_namespace_that_fails_does_not_stop_the_others(watched: str, other_url: str, meta: Path) -> None:
    ship(other_url, 2)
    compactor.monitor(other_url, meta=meta)
    store = open_store(other_url)
    store.delete_many([HEAD_KEY])
    ship(watched, 2)
    done = compactor.sync_all(meta=meta)
    assert [report.namespace.last_seq for report in done.synced] == [14]
    assert set(done.failed) == {other_url}
    told = done.as_json()
    assert told["failed"][0]["error"]["kind"] in ("no_namespace", "store_lost_data")


def test_a_rebuilt_index_holds_what_the_stores_do_and_what_is_monitored(
    watched: str, other_url: str, meta: Path
) -> None:
    ship(other_url, 2)
    compactor.monitor(other_url, meta=meta)
    with MetaIndex.open(meta) as index:
        index.note_upload("x", "url", "key", "id", 5)
        index.remember("x", "url", ship(f"{watched}-unwatched", 1))
        known = {row.identity: row.known for row in index.namespaces()}
    before = compactor.list_monitored_namespaces(meta=meta)
    rows = {url: compactor.list_all_segments(url, meta=meta) for url in (watched, other_url)}
    done = compactor.rebuild_meta(meta=meta)
    assert [sent(report) for report in done.synced] == [{"GET": 1}, {"GET": 1}]
    assert not any(report.changed for report in done.synced)
    assert [row._replace(synced_ms=0) for row in compactor.list_monitored_namespaces(meta=meta)] == [
        row._replace(synced_ms=0) for row in before
    ]
    assert {url: compactor.list_all_segments(url, meta=meta) for url in rows} == rows
    with MetaIndex.open(meta) as index:
        assert {row.identity: row.known for row in index.namespaces()} == known
        assert len(index.uploads("x")) == 1
        assert index.rows("segments", "x") == []


def test_an_index_that_is_not_kept_is_an_error(watched: str, tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("")
    place = tmp_path / "in the way" / "meta.db"
    for ask in (compactor.monitor, compactor.sync_one, compactor.list_all_segments):
        with pytest.raises(StorageError) as caught:
            ask(watched, meta=place)
        assert caught.value.kind == "not_writable"


def test_an_index_of_a_newer_version_is_an_error(watched: str, meta: Path) -> None:
    with sqlite3.connect(meta) as connection:
        connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(UnknownFormatError):
        compactor.sync_all(meta=meta)


# -- what is asked of the index


def test_segments_are_listed_in_order_of_what_they_cover(watched: str, meta: Path) -> None:
    rows = compactor.list_all_segments(watched, meta=meta)
    assert [(row.first_seq, row.last_seq, row.first_time, row.last_time) for row in rows] == [
        (1, 3, 10, 30),
        (4, 7, 40, 70),
        (8, 12, 80, 120),
    ]
    assert {row.generation for row in rows} == {GEN}
    assert [row.records for row in rows] == [3, 4, 5]
    assert compactor.list_all_segments(watched, generation=GEN, meta=meta) == rows


def test_segments_of_one_generation_alone(watched: str, meta: Path) -> None:
    ship(watched, 2, OTHER)
    compactor.sync_one(watched, meta=meta)
    assert [row.first_seq for row in compactor.list_all_segments(watched, meta=meta)] == [1, 1, 4, 8]
    (other,) = compactor.list_all_segments(watched, generation=OTHER, meta=meta)
    assert (other.generation, other.last_seq) == (OTHER, 2)
    found = compactor.get_segment_range(watched, generation=OTHER, meta=meta)
    assert found == (1, 2, 10, 20, 1, other.bytes)
    with pytest.raises(NotFoundError, match=GEN) as caught:
        compactor.list_all_segments(watched, generation="f" * 16, meta=meta)
    assert caught.value.kind == "no_generation"


def test_the_range_is_from_the_first_to_the_last_of_all(watched: str, meta: Path) -> None:
    rows = compactor.list_all_segments(watched, meta=meta)
    found = compactor.get_segment_range(watched, meta=meta)
    assert found is not None
    assert found == (1, 12, 10, 120, 3, sum(row.bytes for row in rows))
    assert (found.first_seq, found.last_seq, found.segments) == (1, 12, 3)


def test_a_namespace_without_segments_has_no_range(watched: str, meta: Path) -> None:
    head = decode_head(open_store(watched).get(HEAD_KEY).data, "name")
    put_head(watched, encode_head(replace(head, revision=head.revision + 1, added=())))
    compactor.sync_one(watched, meta=meta)
    assert compactor.get_segment_range(watched, meta=meta) is None
    assert compactor.list_all_segments(watched, meta=meta) == []


@pytest.mark.parametrize("turn_over", [2, 200])
def test_segment_info_is_what_the_entry_says(
    watched: str, meta: Path, turn_over: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", turn_over)
    view = ship(watched, 6)
    compactor.sync_one(watched, meta=meta)
    for entry in view.segments:
        for name in (entry.key, entry.file_name):
            found = compactor.segment_info(watched, name, meta=meta)
            assert found.entry == entry
            assert (found.listed_in is None) == (turn_over == 200)
            told = found.as_json()
            assert (told["first_seq"], told["last_seq"]) == (entry.first_seq, entry.last_seq)
            assert told["exact_runs"] == [{"first_seq": entry.first_seq, "last_seq": entry.last_seq}]
            assert told["chain_after"] == entry.name.chain_after


def test_a_segment_that_is_not_live_has_no_info(watched: str, meta: Path) -> None:
    key = compactor.list_all_segments(watched, meta=meta)[0].key
    for name in ("nonsense", key.replace("/", "/x", 1), f"elsewhere/{key.rpartition('/')[2]}"):
        with pytest.raises(NotFoundError) as caught:
            compactor.segment_info(watched, name, meta=meta)
        assert caught.value.kind == "no_segment"


def test_a_url_that_is_none_is_refused(watched: str, meta: Path) -> None:
    with pytest.raises(InvalidError):
        compactor.sync_one("not a url", meta=meta)


# -- several processes

WORKER = """
import sys
import compactor
from tests.test_monitor import ship
meta, prefix, name = sys.argv[1:]
own, shared = f"{prefix}/own-{name}", f"{prefix}/shared"
for step in range(8):
    ship(own, 1)
    compactor.monitor(own, meta=meta)
    compactor.monitor(shared, meta=meta)
    compactor.sync_one(shared, full=step % 2 == 0, meta=meta)
    assert compactor.get_segment_range(own, meta=meta).last_seq == step + 1
    assert not compactor.sync_all(meta=meta).failed
    if step == 4:
        compactor.rebuild_meta(meta=meta)
    if step == 6:
        compactor.unmonitor(own, meta=meta)
"""


def test_several_processes_monitor_and_sync_at_once(tmp_path: Path, meta: Path) -> None:
    prefix = f"file://{tmp_path}/store"
    ship(f"{prefix}/shared", 4)
    command = [sys.executable, "-W", "error", "-c", WORKER, str(meta), prefix]
    running = [subprocess.Popen([*command, name], cwd=ROOT, stderr=subprocess.PIPE) for name in "abcd"]
    for process in running:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors.decode()
    found = {row.url: row for row in compactor.list_monitored_namespaces(meta=meta)}
    assert set(found) == {f"{prefix}/shared", *(f"{prefix}/own-{name}" for name in "abcd")}
    assert [row.last_seq for _, row in sorted(found.items())] == [8, 8, 8, 8, 4]
    assert [row.segments for _, row in sorted(found.items())] == [8, 8, 8, 8, 1]
    with sqlite3.connect(meta) as connection:
        assert connection.execute("pragma foreign_key_check").fetchall() == []
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    connection.close()
    assert not list(meta.parent.glob("*.damaged-*"))
