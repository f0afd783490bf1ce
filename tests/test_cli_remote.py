"""ourdb get, history of a URL: as of a restored directory, without a restore."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.cli_runner import failed, ok


@pytest.fixture(autouse=True)
def meta_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path / "meta.db"))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "meine Größen"
    ok("init", path)
    for value in ("one", "two", "three"):
        ok("set", path, 7, value)
    ok("set", path, 8, "-", stdin=b"\xff")
    ok("delete", path, 8)
    return path


@pytest.fixture
def url(tmp_path: Path, notes: Path) -> str:
    found = f"file://{tmp_path}/store/notes"
    ok("backup", notes, found)
    return found


def times(notes: Path) -> list[str]:
    return [version["time"] for version in ok("history", notes, 7, "--json").json["versions"]][::-1]


@pytest.mark.parametrize("when", [[], ["--seq", 2], ["--before", "third"], ["--at", "third"]])
def test_a_url_answers_as_the_directory_does(notes: Path, url: str, when: list[object]) -> None:
    words = [times(notes)[2] if word == "third" else word for word in when]
    for place in (notes, url):
        assert ok("get", place, 7, *words).text == ok("get", notes, 7, *words).text
        assert ok("get", place, 7, *words, "--raw").out == ok("get", notes, 7, *words, "--raw").out
        assert ok("history", place, 7, *words).text == ok("history", notes, 7, *words).text
        assert ok("history", place, 7, *words, "--depth", 1).text.count("\n") == 2


def test_json_of_a_url_says_which_point_it_was(notes: Path, url: str) -> None:
    told = ok("get", url, 7, "--seq", 2, "--json").json
    assert (told["id"], told["value"]) == (7, "two")
    assert (told["point"]["seq"], told["point"]["time"]) == (2, times(notes)[1])
    listed = ok("history", url, 8, "--json").json
    assert listed["point"]["seq"] == 5
    assert [version.get("deleted", False) for version in listed["versions"]] == [True, False]
    assert base64.b64decode(listed["versions"][1]["base64"]) == b"\xff"


def test_what_is_not_there_is_exit_1(url: str) -> None:
    for words in (["get", url, 9], ["get", url, 8], ["history", url, 9]):
        error = failed(*words)
        assert (error["kind"], error["exit_code"]) == ("no_such_id", 1)
    assert failed("get", url, 8, "--seq", 3)["message"] == "no such id then: 8"


def test_a_target_that_cannot_be_met_is_exit_13_and_the_way_out_works(url: str) -> None:
    error = failed("get", url, 7, "--seq", 9)
    assert (error["kind"], error["exit_code"]) == ("unreachable", 13)
    assert error["nearest_before"]["seq"] == 5
    assert "--nearest-before" in error["message"]
    assert ok("get", url, 7, "--seq", 9, "--nearest-before").text == "three\n"


def test_two_lines_need_a_generation(notes: Path, url: str, tmp_path: Path) -> None:
    ok("restore", url, tmp_path / "copy")
    ok("set", tmp_path / "copy", 7, "of the copy")
    ok("backup", tmp_path / "copy", url, "--fork")
    assert failed("get", url, 7)["kind"] == "two_lines"
    lines = failed("history", url, 7)["generations"]
    found = {ok("get", url, 7, "--generation", line["generation"]).text for line in lines}
    assert found == {"three\n", "of the copy\n"}
    assert failed("get", url, 7, "--generation", "f" * 16)["kind"] == "no_generation"


def test_a_namespace_that_is_not_there_is_exit_10(tmp_path: Path) -> None:
    error = failed("get", f"file://{tmp_path}/store/none", 7)
    assert (error["kind"], error["exit_code"]) == ("no_namespace", 10)
    assert failed("get", "ftp://host/name", 7)["exit_code"] == 2


def test_how_a_time_was_understood_is_said_first(url: str) -> None:
    done = ok("get", url, 7, "--before", "2100-01-01T00:00:00Z", "--nearest-before")
    assert "before 2100-01-01T00:00:00.000Z" in done.err
    assert done.text == "three\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--generation", "1" * 16],
        ["--seq", 1, "--nearest-before"],
        ["--nearest-before"],
        ["--at", "now", "--before", "now"],
        ["--at", "now", "--seq", 1],
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(notes: Path, words: list[object]) -> None:
    for name in ("get", "history"):
        assert failed(name, notes, 7, *words)["kind"] == "usage"


def test_before_the_first_moment_a_directory_has_nothing(notes: Path) -> None:
    assert failed("get", notes, 7, "--before", "1970-01-01T00:00:00Z")["kind"] == "no_such_id"
    assert failed("history", notes, 7, "--seq", 0)["message"] == "no such id then: 7"


def test_damage_is_exit_14_and_names_the_object(url: str, tmp_path: Path) -> None:
    (segment,) = (tmp_path / "store").rglob("*.seg")
    content = bytearray(segment.read_bytes())
    content[100] ^= 1
    segment.chmod(0o600)
    segment.write_bytes(content)
    error = failed("get", url, 7)
    assert (error["kind"], error["exit_code"]) == ("store_damaged", 14)
    assert error["key"].endswith(segment.name)
