"""The meta index: a cache that several processes share, and that is built anew when it is lost."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compactor import lists
from compactor.follow import Change, follow
from compactor.head import NOTHING_KNOWN, Known, encode_head
from compactor.lists import StoredList
from compactor.meta import tables
from compactor.meta.file import MetaFile
from compactor.meta.index import MetaIndex, NotedUpload, default_path
from compactor.meta.schema import MIGRATIONS
from compactor.publish import publish
from compactor.view import View
from ourdb.errors import InvalidError, UnknownFormatError
from tests.lines import GEN, Site, entry_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "meta.db"


@pytest.fixture
def site(path: Path) -> Iterator[Site]:
    site = Site(folder=path.parent, meta=MetaIndex.open(path))
    yield site
    assert site.meta is not None
    site.meta.close()


def rows_of(site: Site, table: str = "segments") -> list[dict[str, object]]:
    assert site.meta is not None
    return site.meta.rows(table, site.namespace.identity)


def in_step(site: Site, view: View) -> bool:
    return {row["key"] for row in rows_of(site)} == {entry.key for entry in view.segments}


# -- what it knows


def test_segments_and_generations_are_rows_of_their_namespace(site: Site) -> None:
    site.ship(3)
    view = site.ship(4)
    rows = rows_of(site)
    assert [(row["first_seq"], row["last_seq"], row["records"]) for row in rows] == [(1, 3, 3), (4, 7, 4)]
    assert [row["generation"] for row in rows_of(site, "generations")] == [GEN]
    assert rows_of(site, "generations")[0]["last_seq"] == 7
    assert site.meta is not None
    assert site.meta.rows("segments", "another") == []
    assert [row.uuid for row in site.meta.namespaces()] == [view.head.uuid]


def test_equal_ranges_of_two_namespaces_stay_apart(site: Site) -> None:
    view = site.ship(3)
    assert site.meta is not None
    site.meta.remember("other", "url", view)
    assert len(site.meta.rows("segments", "other")) == len(rows_of(site)) == 1
    site.meta.forget("other")
    assert site.meta.rows("segments", "other") == []
    assert len(rows_of(site)) == 1


def test_rows_follow_each_view_through_lists_and_merges(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 3)
    view = site.ship(1)
    for step in range(30):
        if step % 7 == 6:
            run = view.segments[-4:]
            merged = entry_of(run[0].first_seq, run[-1].last_seq, made=view.head.revision, level=1)
            change = Change(add=[merged], drop=[entry.key for entry in run])
            done = publish(site.namespace, follow(view, site.writer(), change))
            assert done is not None
            view = done
        else:
            view = site.ship(1)
        assert in_step(site, view)


def test_a_commit_writes_only_the_rows_that_differ(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 20)
    for _ in range(30):
        site.ship(1)
    written: list[str] = []
    row = tables._segment_row
    monkeypatch.setattr(tables, "_segment_row", lambda owner, e: written.append(e.key) or row(owner, e))
    opened: list[str] = []
    unpack = StoredList._open
    monkeypatch.setattr(StoredList, "_open", lambda self, kind: opened.append(kind) or unpack(self, kind))
    view = site.ship(1)
    assert written == [view.head.added[-1].key]
    assert opened == []


def test_an_idle_read_writes_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.ship(1)
    remembered: list[View] = []
    monkeypatch.setattr(MetaIndex, "remember", lambda self, identity, url, view: remembered.append(view))
    namespace = site.open()
    for _ in range(2):
        assert namespace.read() is not None
    assert remembered == []


def test_rows_follow_a_head_that_was_put_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 3)
    for _ in range(4):
        old = site.ship(1)
    assert old.head.lists
    merged = entry_of(1, 2, made=old.head.revision, level=1)
    drop = [entry.key for entry in old.segments[:2]]
    view = publish(site.namespace, follow(old, site.writer(), Change(add=[merged], drop=drop)))
    assert view is not None
    assert in_step(site, view)
    raised = replace(old.head, revision=90)
    again = replace(old, head=raised, data=encode_head(raised), etag="put back")
    assert site.meta is not None
    site.meta.remember(site.namespace.identity, "url", again)
    assert in_step(site, again)


def test_an_older_head_than_known_does_not_replace_a_newer_one(site: Site) -> None:
    old, new = site.ship(1), site.ship(1)
    assert site.meta is not None
    site.meta.remember(site.namespace.identity, "url", old)
    recalled = site.meta.recall(site.namespace.identity, "name")
    assert recalled is not None
    assert recalled.head == new.head


def test_known_is_never_lowered(site: Site) -> None:
    assert site.meta is not None
    for revision in (5, 9, 7):
        site.meta.learn("x", "url", Known(revision, "1" * 16))
    assert site.meta.known("x") == Known(9, "1" * 16)
    assert site.meta.known("y") == NOTHING_KNOWN


def test_a_noted_upload_is_known_until_it_is_dropped(site: Site, path: Path) -> None:
    meta, url = site.meta, site.namespace.store.url
    assert meta is not None
    meta.note_upload("x", url.display, "segments/b", "id-2", 9)
    meta.note_upload("x", url.display, "segments/a", "id-1", 5)
    meta.note_upload("y", url.display, "segments/a", "id-3", 1)
    with MetaIndex.open(path) as other:
        assert other.uploads("x") == [
            NotedUpload("segments/a", "id-1", 5),
            NotedUpload("segments/b", "id-2", 9),
        ]
        other.drop_upload("x", "segments/a")
        other.drop_upload("x", "segments/never")
    assert [upload.key for upload in meta.uploads("x")] == ["segments/b"]
    assert [upload.upload_id for upload in meta.uploads("y")] == ["id-3"]
    assert meta.uploads("z") == []


def test_a_row_of_no_namespace_is_refused(site: Site) -> None:
    assert site.meta is not None
    db = site.meta._file.db
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        db.table("uploads").insert({"namespace": 99, "key": "k", "upload_id": "i", "since_ms": 1})


# -- a cache: deleted, damaged, stale, not writable


def test_a_deleted_index_is_built_anew_from_the_store(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 3)
    for _ in range(9):
        view = site.ship(1)
    assert site.meta is not None
    before = rows_of(site), rows_of(site, "generations")
    site.meta.close()
    for file in path.parent.glob("meta.db*"):
        file.unlink()
    site.meta = MetaIndex.open(path)
    assert site.meta.note is None
    site.open().read()
    assert (rows_of(site), rows_of(site, "generations")) == before
    assert in_step(site, view)


@pytest.mark.parametrize("damage", ["garbage", "middle", "empty", "no tables"])
def test_a_damaged_index_is_moved_aside_and_built_anew(site: Site, path: Path, damage: str) -> None:
    for _ in range(9):
        view = site.ship(1)
    assert site.meta is not None
    site.meta.close()
    if damage == "no tables":
        with sqlite3.connect(path) as connection:
            connection.execute("drop table heads")
            connection.execute("drop table segments")
        connection.close()
    else:
        data = bytearray(path.read_bytes())
        place = 0 if damage == "garbage" else len(data) // 3
        data[place : place + 20_000] = b"\xa5" * 20_000
        path.write_bytes(b"" if damage == "empty" else bytes(data))
    site.meta = MetaIndex.open(path)
    namespace = site.open()
    found = namespace.read()
    assert found is not None
    assert found.head == view.head
    site.ship(1, namespace=namespace)
    if damage != "empty":  # an empty file is a new one
        assert "damaged" in str(site.meta.note)
        assert list(path.parent.glob("meta.db.damaged-*"))
    assert len(rows_of(site)) == 10


@pytest.mark.parametrize("table", ["heads", "lists"])
def test_a_flipped_bit_in_what_is_remembered_is_not_taken_for_the_store(
    site: Site, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "TURN_OVER", 2)
    for _ in range(4):
        view = site.ship(1)
    assert site.meta is not None
    db = site.meta._file.db
    with db.conn:
        db.conn.execute(f"update {table} set body = substr(body, 1, 50) || x'00' || substr(body, 52)")
    found = site.open().read()
    assert found is not None
    assert found.segments == view.segments


def test_a_stale_index_is_brought_up_to_date_by_a_read(site: Site) -> None:
    site.ship(1)
    other = Site(clock=site.clock, bucket=site.bucket)
    view = other.ship(5)
    site.namespace.read()
    assert in_step(site, view)
    assert rows_of(site, "generations")[0]["last_seq"] == 6


def test_an_index_that_cannot_be_made_does_not_stop_a_backup(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with MetaIndex.open(tmp_path / "file" / "meta.db") as meta:
        site = Site(meta=meta)
        assert "not used" in site.namespace.notes[0]
        assert site.ship(3).acknowledged
        assert site.open().remembered() is not None  # as long as the process lives


def test_an_index_that_becomes_unwritable_in_a_run_does_not_stop_it(site: Site) -> None:
    site.ship(1)
    assert site.meta is not None
    site.meta._file.db.conn.execute("pragma query_only = on")
    view = site.ship(1)
    assert view.acknowledged
    assert "not used" in str(site.meta.note)
    assert site.ship(1).head.revision == 3


def test_an_index_of_a_newer_version_is_refused_and_unchanged(path: Path) -> None:
    MetaIndex.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode = delete")
    connection.execute(f"pragma user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(UnknownFormatError, match="--meta"):
        MetaIndex.open(path)
    assert path.read_bytes() == before


def test_the_database_of_another_program_is_refused_and_unchanged(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("create table recipes (name text)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(InvalidError, match="some other SQLite database"):
        MetaIndex.open(path)
    assert path.read_bytes() == before


def test_an_older_index_is_brought_up_to_date_and_keeps_its_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compactor.meta.file.MIGRATIONS", MIGRATIONS[:1])
    with MetaIndex.open(path) as meta:
        meta.learn("x", "url", Known(5, "1" * 16))
        meta.remember_probe("y", "url", True, "")
        meta._file.db.conn.execute("pragma foreign_keys = off")
        meta._file.write(lambda: meta._file.db.execute("delete from namespaces where identity = 'y'"))
    monkeypatch.undo()
    with MetaIndex.open(path) as meta:
        assert meta.note is None
        assert meta.known("x") == Known(5, "1" * 16)
        meta.note_upload("x", "url", "key", "id", 7)
        assert meta._file.read("pragma user_version") == [(len(MIGRATIONS),)]
        assert meta._file.read("pragma foreign_key_check") == []
    MetaIndex.open(path).close()  # nothing is done twice


def test_a_write_that_fails_in_the_middle_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    view = site.ship(1)

    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    site.namespace._view = None
    monkeypatch.setattr(tables, "_update_lists", fail)
    with pytest.raises(RuntimeError):
        site.ship(1)
    monkeypatch.undo()
    assert in_step(site, view)


def test_the_place_of_the_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path / "x.db"))
    assert default_path() == tmp_path / "x.db"
    monkeypatch.delenv("OURDB_META")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "ourdb" / "meta.db"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local" / "state" / "ourdb" / "meta.db"


# -- many processes

WRITER = """
import sys
from compactor.head import Known
from compactor.meta.index import MetaIndex
from compactor.store import open_store
from tests.lines import Site
path, name = sys.argv[1:]
site = Site(meta=MetaIndex.open(path))
site.namespace = site.open(open_store(f"file://{path}.store/{name}"))
for step in range(1, 13):
    site.ship(1)
    site.meta.learn("shared", "url", Known(step, name * 16))
    site.meta.remember(f"own-{name}", "url", site.namespace.read())
assert site.meta.note is None, site.meta.note
"""


def test_eight_processes_write_at_once_and_nothing_is_lost(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(path)]
    running = [subprocess.Popen([*command, name], cwd=ROOT, stderr=subprocess.PIPE) for name in "abcdef01"]
    for process in running:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors.decode()
    with MetaIndex.open(path) as meta:
        assert meta.note is None
        assert meta.known("shared").revision == 12
        for name in "abcdef01":
            assert len(meta.rows("segments", f"own-{name}")) == 12
    assert not list(path.parent.glob("*.damaged-*"))


def test_a_process_whose_index_another_one_has_replaced_uses_the_new_one(path: Path) -> None:
    first, second = MetaFile(path), MetaFile(path)
    first._move_aside("test")
    first.db.close()
    first.db = first._connect()
    second.db.close()
    second.db = second._recover(sqlite3.DatabaseError("malformed"))
    assert first._inode == second._inode
    assert len(list(path.parent.glob("meta.db.damaged-*"))) >= 1
    first.close()
    second.close()
