"""ourdb compact: against local files, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ourdb as engine
from backup.cli.compact import STRATEGIES
from compactor import strategies
from tests.cli_runner import failed, ok, ourdb


@pytest.fixture(autouse=True)
def meta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OURDB_META", str(tmp_path / "meta.db"))
    return tmp_path / "meta.db"


def shipped(folder: Path, name: str, runs: int = 9) -> str:
    """A database that was backed up after each of `runs` writes; its URL."""
    url = f"file://{folder}/the store/{name}"
    with engine.open(folder / name) as db:
        for number in range(runs):
            db.set(b"value %d" % number, 7)
            ok("backup", folder / name, url)
    return url


@pytest.fixture
def url(tmp_path: Path) -> str:
    return shipped(tmp_path, "notes")


def objects(url: str) -> list[Path]:
    return sorted(path for path in Path(url.removeprefix("file://")).rglob("*") if path.is_file())


def test_strategies_are_those_there_are() -> None:
    assert list(strategies.STRATEGIES) == list(STRATEGIES)


def test_nine_backups_become_one_segment_and_every_write_stays(tmp_path: Path, url: str) -> None:
    done = ok("compact", url, "--json").json
    assert (done["segments_before"], done["segments_after"], done["strategy"]) == (9, 1, "auto")
    assert [one["outcome"] for one in done["sets"]] == ["merged"]
    assert done["bytes_copied"] == 0 < done["bytes_read"]
    assert len(ok("segments", url, "--json").json["segments"]) == 1
    for seq in range(1, 10):
        assert ok("restore", url, tmp_path / f"at {seq}", "--seq", seq, "--json").json["seq"] == seq
        assert ok("get", tmp_path / f"at {seq}", 7).out == b"value %d\n" % (seq - 1)
    again = ok("compact", url, "--json").json
    assert again["sets"] == []
    assert sum(again["requests"].values()) == 1


def test_window_of_zero_leaves_the_newest_version(tmp_path: Path, url: str) -> None:
    text = ok("compact", url, "--strategy", "all", "--window", "0").text
    assert "9 segments to 1" in text
    assert "1 record kept, 8 dropped" in text
    assert "a restore reads 1 segment, 9 before" in text
    error = failed("restore", url, tmp_path / "old", "--seq", 5)
    assert (error["kind"], error["exit_code"]) == ("unreachable", 13)
    assert error["nearest_after"]["seq"] == 9
    ok("restore", url, tmp_path / "new")
    assert ok("get", tmp_path / "new", 7).out == b"value 8\n"


def test_dry_run_prints_the_plan_and_writes_nothing(url: str) -> None:
    before = objects(url)
    text = ok("compact", url, "--dry-run", "--window", "0").text
    assert text.startswith("planned: seq 1 to 9 of generation ")
    assert " less" in text
    assert "a restore would read 1 segment, 9 before" in text
    assert "by about " in text
    assert objects(url) == before


def test_points_that_stay_are_told_with_their_reason(url: str) -> None:
    ok("pin", url, "monday", "--seq", 4)
    text = ok("compact", url, "--window", "0").text
    assert "  seq 4 stays exact: pin monday\n" in text
    assert "  every point from seq 9 on stays exact\n" in text


def test_out_writes_files_below_a_folder(tmp_path: Path, url: str) -> None:
    before = objects(url)
    done = ok("compact", url, "--out", tmp_path / "out", "--json").json
    [file] = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert done["sets"][0]["names"] == [str(file)]
    assert (done["segments_before"], done["segments_after"]) == (9, 1)
    assert objects(url) == before


def test_out_that_cannot_be_a_folder_is_told(tmp_path: Path, url: str) -> None:
    error = failed("compact", url, "--strategy", "all", "--out", tmp_path / ("x" * 300))
    assert (error["kind"], error["exit_code"]) == ("io_error", 1)
    assert "x" * 300 in error["path"]


def test_window_below_the_policy_is_refused(url: str) -> None:
    ok("policy", url, "--window", "30d")
    error = failed("compact", url, "--window", "1d")
    assert (error["kind"], error["exit_code"]) == ("below_policy", 2)


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["--strategy", "best"], "usage", "best"),
        (["--threshold", "1"], "invalid", "at least 2"),
        (["--strategy", "all", "--threshold", "3"], "invalid", "does not have this option"),
        (["--window", "-1d"], "usage", "not a duration"),
        (["--dry-run", "--out", "out"], "usage", "only one of --dry-run and --out"),
        (["--all"], "usage", "a URL, or --all"),
    ],
)
def test_options_that_cannot_be_are_refused(url: str, words: list[str], kind: str, said: str) -> None:
    before = objects(url)
    error = failed("compact", url, *words)
    assert (error["kind"], error["exit_code"]) == (kind, 2)
    assert said in error["message"]
    assert objects(url) == before


def test_neither_url_nor_all_is_a_usage_error() -> None:
    assert failed("compact")["kind"] == "usage"


def test_namespace_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    assert failed("compact", f"file://{tmp_path}/nothing/here")["kind"] == "no_namespace"


def test_damage_is_told_with_what_was_merged_beside_it(url: str) -> None:
    damaged = next(path for path in objects(url) if path.suffix == ".seg")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    error = failed("compact", url, "--strategy", "log")
    assert (error["kind"], error["exit_code"]) == ("store_damaged", 14)
    assert error["key"].endswith(damaged.name)
    assert "damaged" in {one["outcome"] for one in error["sets"]}


def test_all_goes_through_what_is_monitored(tmp_path: Path) -> None:
    assert ok("compact", "--all", "--json").json == {"namespaces": []}
    assert "nothing is monitored" in ok("compact", "--all").text
    urls = [shipped(tmp_path, name) for name in ("one", "two")]
    ok("monitor", "add", *urls)
    done = ok("compact", "--all", "--json").json
    assert [one["segments_after"] for one in done["namespaces"]] == [1, 1]
    text = ok("compact", "--all").text
    assert text.count("nothing to merge; 1 request") == 2


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    urls = [shipped(tmp_path, name) for name in ("one", "two", "three")]
    ok("monitor", "add", *urls)
    Path(urls[1].removeprefix("file://"), "head").write_bytes(b"no head")
    ran = ourdb("compact", "--all", "--json")
    told: dict[str, Any] = ran.json
    assert (ran.code, told["error"]["kind"]) == (3, "incomplete")
    assert [one["name"].endswith("two") for one in told["error"]["failed"]] == [True]
    assert [one["segments_after"] for one in told["namespaces"]] == [1, 1]
    again = ourdb("compact", "--all")
    assert again.code == 3
    assert "1 of 3 failed" in again.err
