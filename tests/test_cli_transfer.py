"""ourdb import and export."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

import ourdb as engine
from ourdb.errors import StorageError
from tests.cli_runner import failed, ok, ourdb


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    ok("init", path)
    return path


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    path = tmp_path / "diary"
    ok("init", path, "--mode", "incremental")
    return path


def lines(*fields: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in fields)


def state(path: Path) -> dict[int, bytes]:
    with engine.open(path, readonly=True) as db:
        return dict(db.items())


def test_import_writes_sets_and_deletions_as_one_batch(notes: Path, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(
        lines({"id": 7, "value": "a"}, {"id": 8, "base64": "/w=="}, {"id": 9, "value": ""})
        + b"\n  \n"
        + lines({"id": 7, "deleted": True}, {"id": 8, "value": "b"})
    )
    told = ok("import", notes, file, "--json").json
    assert told == {"records": 5, "deleted": 1, "batches": 1, "first_seq": 1, "last_seq": 5, "dry_run": False}
    assert state(notes) == {8: b"b", 9: b""}
    assert failed("get", notes, 8, "--seq", 2)["exit_code"] == 13  # inside the batch


def test_dry_run_checks_and_writes_nothing(notes: Path) -> None:
    told = ok("import", notes, "-", "--dry-run", "--json", stdin=lines({"id": 7, "value": "a"})).json
    assert (told["records"], told["dry_run"], told["last_seq"]) == (1, True, None)
    assert state(notes) == {}
    error = failed("import", notes, "-", "--dry-run", stdin=lines({"id": 7, "value": "a"}) + b"{}")
    assert error["line"] == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{\n", "not JSON"),
        (lines({"id": 7, "value": "a", "valeu": "b"}), "unknown member: valeu"),
        (lines({"value": "a"}), "an id is needed"),
        (lines({"id": 16_777_216, "value": "a"}), "id must be 0 to 16777215"),
        (lines({"id": -1, "value": "a"}), "id must be 0 to 16777215"),
        (lines({"id": 7, "value": "x" * 4097}), "4097 bytes"),
        (lines({"id": 99, "deleted": True}), "cannot delete what is not there: id 99"),
        (
            lines({"id": 1, "deleted": True}, {"id": 1, "deleted": True}),
            "cannot delete what is not there: id 1",
        ),
        (b'{"id": 7, "value": "' + b"x" * 100_000 + b'"}\n', "longer than any value"),
    ],
)
def test_bad_line_is_named_and_nothing_is_written(notes: Path, bad: bytes, reason: str) -> None:
    ok("set", notes, 1, "before")
    good = lines({"id": 5, "value": "good"})
    error = failed("import", notes, "-", stdin=good + b"\n" + bad + good)
    assert (error["kind"], error["exit_code"]) == ("bad_line", 2)
    assert error["line"] == 2 + bad.count(b"\n")
    assert reason in error["message"]
    assert f"line {error['line']}" in error["message"]
    assert state(notes) == {1: b"before"}


def test_incremental_import_gives_new_ids_and_lines_may_name_them(diary: Path) -> None:
    ok("set", diary, "one")
    ok(
        "import",
        diary,
        "-",
        stdin=lines({"value": "two"}, {"id": 2, "value": "two again"}, {"id": 1, "deleted": True}),
    )
    assert state(diary) == {2: b"two again"}
    error = failed("import", diary, "-", stdin=lines({"value": "three"}, {"id": 5, "value": "x"}))
    assert (error["kind"], error["line"]) == ("bad_line", 2)


def test_export_of_an_incremental_database_goes_into_an_empty_one(diary: Path, tmp_path: Path) -> None:
    for value in ("one", "two", "three", "four"):
        ok("set", diary, value)
    ok("delete", diary, 2)
    exported = ok("export", diary).out
    copy = tmp_path / "copy"
    ok("init", copy, "--mode", "incremental")
    ok("import", copy, "-", "--batch", 1, stdin=exported)
    assert state(copy) == state(diary) == {1: b"one", 3: b"three", 4: b"four"}
    assert ok("set", copy, "five").text == "5\n"
    assert failed("import", copy, "-", stdin=lines({"id": 99, "value": "x"}))["line"] == 1


def test_export_is_by_ascending_id_with_text_and_base64(notes: Path) -> None:
    ok("set", notes, 9, "Käse")
    ok("set", notes, 2, "-", stdin=b"\xff")
    expected = '{"id": 2, "base64": "/w=="}\n{"id": 9, "value": "Käse"}\n'
    assert ok("export", notes).text == expected
    assert ok("export", notes, "--json").text == expected


def test_export_as_of_a_seq_is_what_was_there_then(notes: Path) -> None:
    ok("set", notes, 1, "a")
    ok("set", notes, 1, "b")
    ok("delete", notes, 1)
    assert ok("export", notes, "--seq", 2).text == '{"id": 1, "value": "b"}\n'
    assert ok("export", notes).text == ""
    assert failed("export", notes, "--seq", 4)["exit_code"] == 13


def test_more_lines_than_a_batch_become_several(notes: Path) -> None:
    many = lines(*({"id": number, "value": "x"} for number in range(10)))
    told = ok("import", notes, "-", "--batch", 4, "--json", stdin=many).json
    assert (told["batches"], told["records"], told["last_seq"]) == (3, 10, 10)
    assert len(ok("export", notes, "--seq", 4).text.splitlines()) == 4
    assert failed("export", notes, "--seq", 5)["exit_code"] == 13


def test_more_than_half_a_data_file_becomes_several_batches(tmp_path: Path) -> None:
    path = tmp_path / "small"
    ok("init", path, "--file-size", "64KiB", "--record-size-max", "4KiB")
    many = lines(*({"id": number, "value": "x" * 4096} for number in range(40)))
    told = ok("import", path, "-", "--json", stdin=many).json
    assert told["batches"] == 6  # of 7 lines each
    assert state(path) == dict.fromkeys(range(40), b"x" * 4096)


def test_import_from_a_pipe_is_read_once(notes: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(lines({"id": 7, "value": "a"}),))
    writer.start()
    ok("import", notes, pipe)
    writer.join()
    assert state(notes) == {7: b"a"}


def test_file_that_is_not_there_is_named(notes: Path, tmp_path: Path) -> None:
    for file in (tmp_path / "nothing.jsonl", tmp_path):
        error = failed("import", notes, file)
        assert (error["kind"], error["exit_code"]) == ("unreadable_file", 2)
        assert str(file) in error["message"]


def test_empty_import_is_done_at_once(notes: Path) -> None:
    assert ok("import", notes, "-", "--json").json["records"] == 0


def test_failure_in_the_middle_says_how_many_records_are_written(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = engine.OurDB.commit
    batches: list[int] = []

    def fail_the_third(*words: Any, **options: Any) -> None:
        batches.append(1)
        if len(batches) == 3:
            raise StorageError("no space left", kind="disk_full")
        commit(*words, **options)

    monkeypatch.setattr(engine.OurDB, "commit", fail_the_third)
    many = lines(*({"id": number, "value": "x"} for number in range(10)))
    done = ourdb("import", notes, "-", "--batch", 4, "--json", stdin=many)
    assert done.code == 1
    assert (done.json["error"]["kind"], done.json["error"]["records_written"]) == ("disk_full", 8)
    assert "the first 8 records" in done.json["error"]["message"]
    assert len(state(notes)) == 8
