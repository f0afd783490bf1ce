"""ourdb backup, restore, points, segments, verify: against local files, end to end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ourdb as engine
from ourdb.units import parse_time
from tests.cli_runner import Ran, failed, ok, ourdb

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def meta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OURDB_META", str(tmp_path / "meta.db"))
    return tmp_path / "meta.db"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/the store/notes"


@pytest.fixture
def notes(tmp_path: Path, url: str) -> Path:
    """Three writes of id 7, backed up."""
    path = tmp_path / "notes"
    ok("init", path)
    for value in ("one", "two", "three"):
        ok("set", path, 7, value)
    ok("backup", path, url)
    return path


def times(path: Path) -> list[str]:
    """Of the versions of id 7, oldest first."""
    versions = ok("history", path, 7, "--json").json["versions"]
    return [version["time"] for version in reversed(versions)]


def test_backup_tells_what_is_safe_now(tmp_path: Path, url: str) -> None:
    path = tmp_path / "notes"
    ok("init", path)
    ok("set", path, 7, "one")
    first = ok("backup", path, url, "--json").json
    assert first["last_seq"] == 1
    assert [(one["first_seq"], one["last_seq"], one["records"]) for one in first["segments"]] == [(1, 1, 1)]
    assert first["bytes_uploaded"] == first["segments"][0]["bytes"] > 0
    assert first["requests"]["PUT"] >= 2
    again = ok("backup", path, url, "--json").json
    assert (again["last_seq"], again["segments"], again["bytes_uploaded"]) == (1, [], 0)
    assert sum(again["requests"].values()) == again["requests"]["GET"] == 1
    assert "nothing new" in ok("backup", path, url).text


def test_dry_run_of_a_backup_uploads_nothing(tmp_path: Path, url: str) -> None:
    path = tmp_path / "notes"
    ok("init", path)
    ok("set", path, 7, "one")
    planned = ok("backup", path, url, "--dry-run", "--json").json
    assert planned["dry_run"] is True
    assert [(one["first_seq"], one["last_seq"]) for one in planned["segments"]] == [(1, 1)]
    assert "would upload 1 segment" in ok("backup", path, url, "--dry-run").text
    assert failed("points", url)["kind"] == "no_namespace"


def test_restore_of_the_latest_has_everything(notes: Path, url: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    told = ok("restore", url, copy, "--json").json
    assert (told["seq"], len(told["segments"])) == (3, 1)
    assert told["bytes_downloaded"] > 0
    assert told["time"] == times(notes)[-1]
    assert ok("history", copy, 7, "--json").json == ok("history", notes, 7, "--json").json


def test_restore_of_a_seq_is_what_was_there_then(notes: Path, url: str, tmp_path: Path) -> None:
    ok("restore", url, tmp_path / "copy", "--seq", 2)
    assert ok("get", tmp_path / "copy", 7).text == "two\n"


def test_time_is_echoed_in_utc_before_anything_happens(notes: Path, url: str, tmp_path: Path) -> None:
    last = times(notes)[-1]
    done = ok("restore", url, tmp_path / "copy", "--at", last.replace("Z", "+00:00"))
    assert done.err.splitlines()[0] == f"ourdb: as of {last}"
    assert ok("get", tmp_path / "copy", 7).text == "three\n"


def test_target_that_cannot_be_met_names_its_neighbours(notes: Path, url: str, tmp_path: Path) -> None:
    error = failed("restore", url, tmp_path / "copy", "--seq", 4)
    assert (error["kind"], error["exit_code"]) == ("unreachable", 13)
    assert error["nearest_before"]["seq"] == 3
    assert parse_time(error["nearest_before"]["time"])
    assert error["nearest_after"] is None
    assert not (tmp_path / "copy").exists()
    ok("restore", url, tmp_path / "copy", "--seq", 4, "--nearest-before")
    assert ok("get", tmp_path / "copy", 7).text == "three\n"
    assert failed("restore", url, tmp_path / "other", "--before", times(notes)[0])["exit_code"] == 13


def test_dry_run_of_a_restore_prints_the_plan(notes: Path, url: str, tmp_path: Path) -> None:
    told = ok("restore", url, tmp_path / "copy", "--dry-run", "--json").json
    assert [(one["first_seq"], one["last_seq"]) for one in told["segments"]] == [(1, 3)]
    assert "would restore" in ok("restore", url, tmp_path / "copy", "--dry-run").text
    assert not (tmp_path / "copy").exists()


def test_destination_that_exists_is_kept_unless_forced(notes: Path, url: str) -> None:
    ok("set", notes, 8, "not shipped")
    error = failed("restore", url, notes)
    assert (error["kind"], error["exit_code"]) == ("exists", 17)
    assert ok("get", notes, 8).text == "not shipped\n"
    ok("restore", url, notes, "--force")
    assert failed("get", notes, 8)["kind"] == "no_such_id"


@pytest.mark.parametrize(
    "options",
    [
        ["--at", "now", "--seq", "1"],
        ["--nearest-before"],
        ["--at", "the day after never"],
        ["--seq", "-1"],
        ["--no-such-option"],
    ],
)
def test_restore_with_options_that_make_no_sense_is_exit_2(
    notes: Path, url: str, tmp_path: Path, options: list[str]
) -> None:
    assert failed("restore", url, tmp_path / "copy", *options)["exit_code"] == 2


def test_points_tell_windows_and_lag(notes: Path, url: str) -> None:
    told = ok("points", url, "--json").json
    (window,) = told["windows"]
    assert (window["first_seq"], window["last_seq"], window["last_time"]) == (1, 3, times(notes)[-1])
    assert (told["gaps"], told["last_seq"]) == ([], 3)
    (generation,) = told["generations"]
    assert (generation["parent"], generation["successor"]) == (None, None)
    assert told["generation"] == window["generation"]
    ok("set", notes, 8, "newer")
    behind = ok("points", url, "--db", notes, "--json").json["behind"]
    assert behind["records"] == 1
    assert behind["seconds"] >= 0
    printed = ok("points", url, "--db", notes).text
    assert window["generation"] in printed
    assert "behind the live database by 1 record," in printed


def test_segments_are_listed_in_order(notes: Path, url: str) -> None:
    ok("set", notes, 7, "four")
    ok("backup", notes, url)
    told = ok("segments", url, "--json").json
    assert [(one["first_seq"], one["last_seq"]) for one in told["segments"]] == [(1, 3), (4, 4)]
    for one in told["segments"]:
        assert (one["level"], one["exact_from_seq"]) == (0, one["first_seq"])
        assert one["key"] in ok("segments", url).text


def test_restored_copy_goes_on_and_two_lines_are_told(notes: Path, url: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    ok("restore", url, copy)
    ok("set", notes, 7, "from the first")
    ok("backup", notes, url)
    ok("set", copy, 7, "from the copy")
    error = failed("backup", copy, url)
    assert (error["kind"], error["exit_code"]) == ("moved", 16)
    assert ok("points", url, "--db", copy, "--json").json["diverged"] is True
    assert ok("points", url, "--db", notes, "--json").json["diverged"] is False
    assert "another history" in ok("points", url, "--db", copy).text
    ok("backup", copy, url, "--fork")
    error = failed("restore", url, tmp_path / "third")
    assert (error["kind"], error["exit_code"]) == ("two_lines", 16)
    values = set()
    for number, line in enumerate(error["generations"]):
        generation = line["generation"]
        ok("restore", url, tmp_path / f"line {number}", "--generation", generation)
        values.add(ok("get", tmp_path / f"line {number}", 7).text)
    assert values == {"from the first\n", "from the copy\n"}


def stored(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "the store").rglob("*.seg"))


def test_verify_of_a_whole_store_ends_well(notes: Path, url: str) -> None:
    assert ok("verify", url, "--json").json["requests"]
    assert ok("verify", url, "--data").text


def test_verify_finds_a_flipped_bit_and_a_missing_object(notes: Path, url: str, tmp_path: Path) -> None:
    (segment,) = stored(tmp_path)
    content = bytearray(segment.read_bytes())
    content[200] ^= 1
    segment.chmod(0o644)
    segment.write_bytes(content)
    assert ourdb("verify", url).code == 0  # names, chain and sizes are right
    assert_damage(ourdb("verify", url, "--data", "--json"), segment.name)
    assert segment.name in ourdb("verify", url, "--data").text
    segment.unlink()
    assert_damage(ourdb("verify", url, "--json"), segment.name)


def assert_damage(done: Ran, name: str) -> None:
    assert done.code == 14
    told: dict[str, Any] = done.json
    assert "Traceback" not in done.err
    assert name in json.dumps(told)


@pytest.mark.parametrize("command", ["points", "segments", "verify", "restore"])
def test_namespace_that_is_not_there_is_exit_10(command: str, tmp_path: Path) -> None:
    rest = [tmp_path / "copy"] if command == "restore" else []
    error = failed(command, f"file://{tmp_path}/store/nothing", *rest)
    assert (error["kind"], error["exit_code"]) == ("no_namespace", 10)


@pytest.mark.parametrize(
    "url", ["", "notes", "ftp://host/notes", "s3://bucket", "s3://b/n?endpiont=http://x"]
)
def test_url_that_is_none_is_exit_2(url: str, tmp_path: Path) -> None:
    ok("init", tmp_path / "db")
    error = failed("backup", tmp_path / "db", url)
    assert error["exit_code"] == 2


def test_meta_index_is_where_the_option_says(notes: Path, url: str, tmp_path: Path) -> None:
    ok("points", url, "--meta", tmp_path / "elsewhere.db")
    assert (tmp_path / "elsewhere.db").exists()


def test_backup_every_ships_what_is_written_meanwhile_and_ends_with_sigterm(tmp_path: Path, url: str) -> None:
    path = tmp_path / "notes"
    ok("init", path)
    command = [sys.executable, "-m", "backup.cli", "backup", path, url, "--every", "50ms", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["last_seq"] == 0
        with engine.open(path) as db:
            db.set(b"meanwhile", 7)
            while json.loads(process.stdout.readline())["last_seq"] == 0:
                pass
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    ok("restore", url, tmp_path / "copy")
    assert ok("get", tmp_path / "copy", 7).text == "meanwhile\n"


def test_remark_is_printed_once(notes: Path, url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = ok("points", url, "--meta", tmp_path / "file" / "meta.db")
    assert len(done.err.splitlines()) == 1
    assert "meta index is not used" in done.err
