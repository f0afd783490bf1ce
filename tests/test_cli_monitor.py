"""ourdb monitor, meta: what they print, what they refuse, and where they end when one of several fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from compactor.store import open_store
from ourdb import line
from ourdb.names import HEAD_KEY
from tests.cli_runner import failed, ok, ourdb


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path / "meta.db"))


@pytest.fixture
def databases(tmp_path: Path) -> Path:
    """Two databases that were shipped, one of them to two stores, below a folder; and one that was not."""
    folder = tmp_path / "databases"
    for name in ("a", "deep/b", "c"):
        directory = folder / name
        directory.parent.mkdir(parents=True, exist_ok=True)
        ok("init", directory)
        ok("set", directory, 1, "x")
    ok("backup", folder / "a", url(tmp_path, "a"))
    ok("backup", folder / "a", url(tmp_path, "a-too"))
    ok("backup", folder / "deep/b", url(tmp_path, "b"))
    return folder


def url(tmp_path: Path, name: str) -> str:
    return f"file://{tmp_path}/store/{name}"


def listed() -> list[str]:
    return [row["url"] for row in ok("monitor", "list", "--json").json["namespaces"]]


def test_databases_below_a_folder_are_monitored_where_they_were_shipped_to(
    databases: Path, tmp_path: Path
) -> None:
    done = ok("monitor", "add", "--from", databases)
    assert listed() == [url(tmp_path, name) for name in ("a", "a-too", "b")]
    assert f"never shipped: {databases}/c" in done.err
    assert done.text.splitlines()[0] == f"1 segment up to seq 1, nothing new, 1 request: {listed()[0]}"
    table = ok("monitor", "list").text
    assert url(tmp_path, "b") in table


def test_a_folder_without_databases_is_told(tmp_path: Path) -> None:
    assert f"no database below this directory: {tmp_path}" in ok("monitor", "add", "--from", tmp_path).err


def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_gone_through(
    databases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir, closed = os.scandir, str(databases / "deep")

    def refusing(path: str) -> Iterator[os.DirEntry[str]]:
        if path == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)
    done = ourdb("monitor", "add", "--from", databases, "--json")
    assert done.code == 3
    (error,) = done.json["error"]["failed"]
    assert (error["name"], error["error"]["kind"]) == (closed, "io_error")
    assert listed() == [url(tmp_path, "a"), url(tmp_path, "a-too")]


def test_a_mark_of_another_endpoint_is_found_there(
    databases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backup.shipped import shipped_urls

    mark = line.Mark(url="s3://bucket/p/n", generation="1" * 16, seq=1, chain=1, revision=1, run="2" * 16)
    for store in ("s3:http://there:9000/bucket/p/n", "s3:aws/bucket/p/n"):
        line.update(databases / "c", lambda known, store=store: line.raise_mark(known, store, mark))
    assert shipped_urls(databases / "c") == ["s3://bucket/p/n", "s3://bucket/p/n?endpoint=http://there:9000"]


def test_a_namespace_is_removed(databases: Path, tmp_path: Path) -> None:
    one, two = url(tmp_path, "a"), url(tmp_path, "b")
    ok("monitor", "add", one, two)
    assert ok("monitor", "remove", one, "--json").json == {"removed": [one]}
    assert listed() == [two]
    assert ok("monitor", "remove", two).text == f"not monitored any more: {two}\n"
    assert failed("monitor", "remove", two)["kind"] == "not_monitored"


def test_a_sync_says_what_is_new_and_what_it_cost(databases: Path, tmp_path: Path) -> None:
    one = url(tmp_path, "a")
    ok("monitor", "add", one)
    ok("set", databases / "a", 2, "y")
    ok("backup", databases / "a", one, "--meta", tmp_path / "another-machine.db")
    (found,) = ok("meta", "sync", "--json").json["namespaces"]
    assert (found["changed"], found["last_seq"], found["segments"]) == (True, 2, 2)
    (found,) = ok("meta", "sync", one, "--json").json["namespaces"]
    assert not found["changed"]
    assert {kind: count for kind, count in found["requests"].items() if count} == {"GET": 1}
    assert "2 segments up to seq 2, nothing new, 1 request" in ok("meta", "sync", one, "--full").text
    assert ok("meta", "rebuild", "--json").json["namespaces"][0]["last_seq"] == 2


def test_one_of_several_that_fails_does_not_stop_the_others(databases: Path, tmp_path: Path) -> None:
    one, none, two = (url(tmp_path, name) for name in ("a", "none", "b"))
    done = ourdb("monitor", "add", one, none, two, "--json")
    assert done.code == 3
    assert [row["url"] for row in done.json["namespaces"]] == [one, two]
    error = done.json["error"]
    assert error["kind"] == "incomplete"
    assert [(row["name"], row["error"]["kind"]) for row in error["failed"]] == [(none, "no_namespace")]
    open_store(two).delete_many([HEAD_KEY])
    text = ourdb("meta", "sync")
    assert text.code == 3
    assert f"1 of 2 failed, the first: {two}" in text.err
    assert one in text.text


@pytest.mark.parametrize(
    "words",
    [("monitor", "list"), ("meta", "sync"), ("meta", "rebuild"), ("compact", "--all"), ("prune", "--all")],
)
def test_a_list_that_was_lost_with_the_meta_index_is_an_error_until_it_is_there_again(
    databases: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    one = url(tmp_path, "a")
    ok("monitor", "add", one)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"meta.db{suffix}").unlink(missing_ok=True)
    (tmp_path / "meta.db").write_bytes(b"no database, and long enough to be looked at" * 100)
    ok("backup", databases / "a", one)  # the first to find it goes on with a new one
    error = failed(*words)
    assert (error["kind"], error["exit_code"]) == ("meta_damaged", 14)
    assert Path(error["path"]).name.startswith("meta.db.damaged-")
    assert failed("monitor", "remove", one)["kind"] == "meta_damaged"
    ok("monitor", "add", "--from", databases / "a")
    ok(*words)


def test_a_damaged_meta_index_that_is_removed_is_no_error_any_more(databases: Path, tmp_path: Path) -> None:
    (tmp_path / "meta.db").write_bytes(b"")
    (tmp_path / "meta.db.damaged-17").write_bytes(b"x")
    (tmp_path / "meta.db.damaged-17-wal").write_bytes(b"x")
    assert failed("monitor", "list")["path"] == str(tmp_path / "meta.db.damaged-17")
    (tmp_path / "meta.db.damaged-17").unlink()
    assert listed() == []


def test_one_that_fails_alone_has_its_own_exit_code(tmp_path: Path) -> None:
    assert failed("monitor", "add", url(tmp_path, "none"))["kind"] == "no_namespace"
    assert failed("meta", "sync", url(tmp_path, "none"))["kind"] == "not_monitored"
    assert failed("monitor", "add", "--from", tmp_path / "none")["kind"] == "no_directory"


def test_a_database_with_a_damaged_line_is_named(databases: Path, tmp_path: Path) -> None:
    (databases / "a" / line.FILE_NAME).write_text("{")
    done = ourdb("monitor", "add", "--from", databases, "--json")
    assert done.code == 3
    assert done.json["error"]["failed"][0]["name"] == str(databases / "a")
    assert listed() == [url(tmp_path, "b")]


@pytest.mark.parametrize(
    "words",
    [
        ("monitor", "add"),
        ("monitor", "remove"),
        ("monitor", "list", "file:///x/y"),
        ("monitor", "remove", "--from", "."),
        ("monitor", "watch", "file:///x/y"),
        ("meta", "rebuild", "--full"),
        ("meta", "rebuild", "file:///x/y"),
        ("meta", "drop"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(words: tuple[str, ...]) -> None:
    assert failed(*words)["kind"] == "usage"


def test_a_meta_index_that_cannot_be_kept_is_told_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = failed("monitor", "list", "--meta", tmp_path / "file" / "meta.db")
    assert (error["kind"], error["path"]) == ("not_writable", str(tmp_path / "file" / "meta.db"))
    assert "what is monitored stands in the meta index (--meta FILE" in error["message"]


def test_a_missing_action_is_told_on_one_line() -> None:
    message = failed("monitor")["message"]
    assert message.startswith("missing argument 'ACTION'. Choose from: add, remove, list (see")


def test_nothing_monitored_is_nothing_to_do() -> None:
    assert ok("monitor", "list", "--json").json == {"namespaces": []}
    assert ok("meta", "sync", "--json").json == {"namespaces": []}
    assert ok("meta", "sync").text == "nothing is monitored: ourdb monitor add URL\n"
