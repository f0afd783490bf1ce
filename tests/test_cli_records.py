"""ourdb init, set, get, delete, history, info, check, condense."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

import ourdb as engine
from ourdb.units import parse_time
from tests.cli_runner import failed, ok, ourdb


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A key-value database, in a path with a space and more than ASCII."""
    path = tmp_path / "meine Größen"
    ok("init", path)
    return path


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    path = tmp_path / "diary"
    ok("init", path, "--mode", "incremental")
    return path


def test_init_makes_what_its_options_say(tmp_path: Path) -> None:
    path = tmp_path / "db"
    options = ["--mode", "incremental", "--record-size-max", "1KiB", "--record-nr-max", "500"]
    made = ok("init", path, *options, "--file-size", "1MiB", "--sync", "always", "--json").json
    assert made["mode"] == "incremental"
    with engine.open(path, create=False) as db:
        assert made["uuid"] == db.uuid.hex()
        assert db.config.as_json() == {
            "mode": "incremental",
            "record_nr_max": 500,
            "record_size_max": 1024,
            "file_size": 1 << 20,
            "sync": "always",
        }


def test_init_over_a_database_is_refused_and_changes_nothing(notes: Path) -> None:
    ok("set", notes, 7, "kept")
    error = failed("init", notes, "--mode", "incremental")
    assert (error["kind"], error["exit_code"]) == ("exists", 17)
    assert ok("get", notes, 7).text == "kept\n"


def test_init_with_an_option_out_of_range_makes_nothing(tmp_path: Path) -> None:
    assert failed("init", tmp_path / "db", "--record-nr-max", 2**32)["exit_code"] == 2
    assert failed("init", tmp_path / "db", "--file-size", "5 parsecs")["kind"] == "usage"
    assert not (tmp_path / "db").exists()


def test_what_was_set_is_what_get_prints(notes: Path) -> None:
    assert ok("set", notes, 7, "Brot & Käse").out == b""
    assert ok("get", notes, 7).text == "Brot & Käse\n"
    assert ok("get", notes, 7, "--raw").text == "Brot & Käse"
    assert ok("get", notes, 7, "--json").json == {"id": 7, "value": "Brot & Käse"}


def test_value_from_standard_input_keeps_every_byte(notes: Path) -> None:
    value = bytes(range(256)) + b"\n"
    ok("set", notes, 0, "-", stdin=value)
    assert ok("get", notes, 0, "--raw").out == value
    assert base64.b64decode(ok("get", notes, 0, "--json").json["base64"]) == value
    printed = ok("get", notes, 0)
    assert base64.b64decode(printed.text) == value
    assert "base64" in printed.err


def test_empty_value_is_a_value(notes: Path) -> None:
    ok("set", notes, 1, "")
    assert ok("get", notes, 1, "--raw").out == b""
    assert ok("get", notes, 1, "--json").json == {"id": 1, "value": ""}


def test_incremental_database_gives_and_prints_ids(diary: Path) -> None:
    assert ok("set", diary, "monday").text == "1\n"
    assert ok("set", diary, "tuesday", "--json").json == {"id": 2, "seq": 2}
    assert ok("set", diary, 1, "monday, corrected").out == b""
    assert ok("get", diary, 1).text == "monday, corrected\n"
    assert failed("set", diary, 3, "not given yet")["exit_code"] in (1, 2)


def test_key_value_database_needs_an_id(notes: Path) -> None:
    assert failed("set", notes, "no id")["exit_code"] == 2


def test_value_too_large_is_refused_by_its_size(notes: Path) -> None:
    error = failed("set", notes, 1, "-", stdin=b"x" * 4097)
    assert error["exit_code"] == 2
    assert "4096" in error["message"]


def test_id_out_of_range_is_refused(notes: Path) -> None:
    assert failed("set", notes, 16_777_216, "x")["exit_code"] == 2
    assert failed("set", notes, "seven", "x")["kind"] == "usage"


def test_past_values_are_read_by_seq_and_by_time(notes: Path) -> None:
    for value in ("one", "two", "three"):
        ok("set", notes, 7, value)
    times = [version["time"] for version in ok("history", notes, 7, "--json").json["versions"]]
    assert ok("get", notes, 7, "--seq", 2).text == "two\n"
    assert ok("get", notes, 7, "--at", times[0]).text == "three\n"
    assert failed("get", notes, 7, "--at", times[0], "--seq", 1)["kind"] == "usage"
    assert failed("get", notes, 8, "--seq", 2)["kind"] == "no_such_id"


def test_history_is_newest_first_and_shows_deletions(notes: Path) -> None:
    ok("set", notes, 7, "one")
    ok("set", notes, 7, "-", stdin=b"\xff")
    assert ok("delete", notes, 7, "--json").json == {"id": 7, "deleted": True, "seq": 3}
    told = ok("history", notes, 7, "--json").json
    assert told["id"] == 7
    shown = [{name: version[name] for name in version if name != "time"} for version in told["versions"]]
    assert shown == [{"seq": 3, "deleted": True}, {"seq": 2, "base64": "/w=="}, {"seq": 1, "value": "one"}]
    assert all(parse_time(version["time"]) for version in told["versions"])
    assert len(ok("history", notes, 7, "--depth", 2, "--json").json["versions"]) == 2
    lines = ok("history", notes, 7).text.splitlines()
    assert [line.split()[-1] for line in lines] == ["value", "(deleted)", "base64:/w==", "one"]


def test_what_is_not_there_is_exit_1(notes: Path) -> None:
    ok("set", notes, 8, "x")
    ok("delete", notes, 8)
    for words in (
        ["get", notes, 7],
        ["get", notes, 8],
        ["delete", notes, 7],
        ["delete", notes, 8],
        ["history", notes, 7],
    ):
        error = failed(*words)
        assert (error["kind"], error["exit_code"]) == ("no_such_id", 1)


@pytest.mark.parametrize(
    "words", [["get", 7], ["set", 7, "x"], ["delete", 7], ["info"], ["check"], ["export"]]
)
def test_directory_that_is_no_database_is_exit_10(words: list[object], tmp_path: Path) -> None:
    name, *rest = words
    for path in (tmp_path / "nothing", tmp_path):
        error = failed(name, path, *rest)
        assert (error["kind"], error["exit_code"]) == ("no_database", 10)
    assert list(tmp_path.iterdir()) == []


def test_second_writer_is_exit_11_and_readers_are_not(notes: Path) -> None:
    with engine.open(notes) as db:
        db.set(b"x", 7)
        assert ok("get", notes, 7).text == "x\n"
        assert failed("set", notes, 7, "y")["exit_code"] == 11


def test_info_tells_configuration_and_counts(notes: Path) -> None:
    for value in ("one", "two"):
        ok("set", notes, 7, value)
    told = ok("info", notes, "--json").json
    assert told["mode"] == "kv"
    assert told["last_seq"] == 2
    assert "2" in ok("info", notes).text


def test_check_of_a_whole_database_ends_well(notes: Path) -> None:
    ok("set", notes, 7, "one")
    before = {file: file.read_bytes() for file in notes.rglob("*") if file.is_file()}
    assert ok("check", notes, "--json").json["records"] == 1
    assert ok("check", notes).text
    assert {file: file.read_bytes() for file in notes.rglob("*") if file.is_file()} == before


def test_check_of_a_damaged_database_is_exit_14(notes: Path) -> None:
    with engine.open(notes) as db:
        for number in range(100):
            db.set(b"x" * 100, number)
        db.rotate()
    data = sorted(notes.glob("*.db"))[0]
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    error = failed("check", notes)
    assert error["exit_code"] == 14


def test_condense_keeps_the_newest_and_what_it_is_told(notes: Path) -> None:
    for value in ("one", "two", "three"):
        ok("set", notes, 7, value)
    planned = ok("condense", notes, "--keep-versions", 2, "--dry-run", "--json").json
    assert planned["dry_run"] is True
    assert len(ok("history", notes, 7, "--json").json["versions"]) == 3
    ok("condense", notes, "--keep-versions", 2)
    values = [version["value"] for version in ok("history", notes, 7, "--json").json["versions"]]
    assert values == ["three", "two"]
    assert failed("condense", notes, "--window", "1d", "--keep-versions", 1)["kind"] == "usage"


def test_no_command_is_a_usage_error_that_names_the_help() -> None:
    done = ourdb()
    assert (done.code, done.out, done.err) == (2, b"", "ourdb: error: missing command (see ourdb --help)\n")


def test_unknown_command_names_the_nearest(tmp_path: Path) -> None:
    assert "did you mean export?" in failed("exprot", tmp_path)["message"]
    assert ourdb("--version").code == 0


def test_init_over_a_file_is_exit_17(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = failed("init", tmp_path / "file")
    assert (error["kind"], error["exit_code"]) == ("exists", 17)


def test_errors_name_the_way_out(tmp_path: Path) -> None:
    assert "no such directory; ourdb init" in failed("get", tmp_path / "none", 7)["message"]
    ok("init", tmp_path / "diary", "--mode", "incremental")
    error = failed("set", tmp_path / "diary", 99, "x")
    assert (error["kind"], error["exit_code"]) == ("no_such_id", 1)
    assert "leave the id out" in error["message"]


def test_id_that_was_not_there_then_is_told_so(tmp_path: Path) -> None:
    ok("init", tmp_path / "db")
    ok("set", tmp_path / "db", 7, "x")
    assert failed("get", tmp_path / "db", 7, "--seq", 0)["message"] == "no such id then: 7"


def test_dry_run_of_forget_foresees_and_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path / "meta.db"))
    path, url = tmp_path / "db", f"file://{tmp_path}/store/db"
    ok("init", path)
    ok("set", path, 7, "one")
    ok("backup", path, url)
    for value in ("two", "three"):
        ok("set", path, 7, value)
    words = ["condense", path, "--keep-versions", 1, "--forget", url, "--json"]
    foreseen = ok(*words, "--dry-run").json
    assert foreseen["records_after"] < foreseen["records_before"]
    assert [store["seq"] for store in ok("info", path, "--json").json["stores"]] == [1]
    assert ok(*words).json["records_after"] == foreseen["records_after"]
