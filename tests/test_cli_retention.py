"""ourdb policy, pin, unpin, prune: end to end, against local files and a real S3 server."""

from __future__ import annotations

from pathlib import Path

import pytest

from compactor.store import FailedDelete, open_store
from compactor.store.local import LocalStore
from tests.cli_runner import failed, ok, ourdb


@pytest.fixture(autouse=True)
def meta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURDB_META", str(tmp_path / "meta.db"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/the store/notes"


def ship(path: Path, url: str) -> Path:
    """Three writes of id 7, each backed up."""
    ok("init", path)
    for value in ("one", "two", "three"):
        ok("set", path, 7, value)
        ok("backup", path, url)
    return path


@pytest.fixture
def notes(tmp_path: Path, url: str) -> Path:
    return ship(tmp_path / "notes", url)


def test_a_policy_is_shown_set_and_shown_again(notes: Path, url: str) -> None:
    assert ok("policy", url).text.splitlines() == [
        "window    everything, for ever",
        "minimum   1",
        "grace     1d",
    ]
    words = ("--window", "30d", "--keep-daily", 7, "--keep-last", 3, "--grace", "2h", "--minimum", 2)
    told = ok("policy", url, *words, "--json").json
    assert told["policy"] == {
        "window_ms": 30 * 86_400_000,
        "keep": {"hourly": 0, "daily": 7, "weekly": 0, "monthly": 0, "yearly": 0, "last": 3},
        "keep_versions": 0,
        "grace_ms": 7_200_000,
        "minimum": 2,
    }
    assert told["before"]["window_ms"] is None
    assert "keep      7 daily, 3 last" in ok("policy", url).text
    assert ok("policy", url, "--window", "none", "--json").json["policy"]["window_ms"] is None
    assert ok("policy", url, "--window", "0", "--dry-run", "--json").json["policy"]["window_ms"] == 0
    assert ok("policy", url, "--json").json["policy"]["window_ms"] is None


@pytest.mark.parametrize(
    "words",
    [
        ("--window", "soon"),
        ("--window", "-1d"),
        ("--grace", "59m"),
        ("--minimum", "0"),
        ("--keep-daily", "-1"),
        ("--dry-run",),
    ],
)
def test_a_policy_that_is_none_is_exit_2_and_changes_nothing(
    notes: Path, url: str, words: tuple[str, ...]
) -> None:
    before = ok("policy", url, "--json").json["policy"]
    assert failed("policy", url, *words)["exit_code"] == 2
    assert ok("policy", url, "--json").json["policy"] == before


def test_a_span_that_is_out_of_range_is_told_as_people_write_it(notes: Path, url: str) -> None:
    assert "(1h to " in failed("policy", url, "--grace", "59m")["message"]
    ok("policy", url, "--window", "30d")
    assert "keeps 30d, more than this window: 12h" in failed("compact", url, "--window", "12h")["message"]


def test_only_what_takes_the_nearest_point_offers_it(notes: Path, url: str) -> None:
    assert "--nearest-before" in failed("get", url, 7, "--seq", 9)["message"]
    for words in (("pin", url, "p"), ("analyze", url)):
        error = failed(*words, "--seq", 9)
        assert error["nearest_before"]["seq"] == 3
        assert "--nearest-before" not in error["message"]


def test_a_pin_is_made_listed_and_removed(notes: Path, url: str) -> None:
    made = ok("pin", url, "vor dem Umzug", "--seq", 2, "--json").json
    assert (made["name"], made["seq"], made["removed"]) == ("vor dem Umzug", 2, False)
    assert ok("pin", url, "by time", "--at", made["time"], "--json").json["seq"] == 2
    assert "vor dem Umzug" in ok("policy", url).text
    assert "pinned latest: seq 3" in ok("pin", url, "latest").text
    assert failed("pin", url, "latest", "--seq", 1)["kind"] == "pin_exists"
    assert failed("pin", url, "x", "--seq", 9)["exit_code"] == 13
    assert failed("pin", url, "a/b")["exit_code"] == 2
    assert ourdb("pin", url, "x", "--seq", 1, "--at", "now").code == 2
    assert ok("unpin", url, "by time", "--json").json["removed"] is True
    gone = failed("unpin", url, "by time")
    assert (gone["kind"], gone["pins"]) == ("no_pin", ["latest", "vor dem Umzug"])


def leave_orphan(url: str) -> str:
    """An object of ours that no head names; its key."""
    store = open_store(url)
    entry = next(stat.key for page in store.list("segments/") for stat in page.entries)
    orphan = entry[: -len("0" * 16 + ".seg")] + "00000000deadbeef.seg"
    store.put_stream(orphan, [b"orphan"])
    store.put_stream("notes.txt", [b"theirs"])
    store.close()
    return orphan


def test_prune_says_of_each_point_and_object_why_it_is_kept_or_goes(notes: Path, url: str) -> None:
    orphan = leave_orphan(url)
    text = ok("prune", url, "--dry-run", "--grace", "0s").text
    assert "an open line, and the policy has no window: all is kept" in text
    assert "no head names it" in text
    assert "not ours: left alone" in text
    assert orphan not in text
    assert orphan in ok("prune", url, "--dry-run", "--list-all").text
    told = ok("prune", url, "--dry-run", "--json").json
    assert {one["key"]: one["state"] for one in told["objects"]} | {
        orphan: "young",
        "notes.txt": "foreign",
    } == {one["key"]: one["state"] for one in told["objects"]}
    assert [(one["first_seq"], one["last_seq"], one["goes"]) for one in told["points"]] == [(1, 3, False)]
    assert all(one["reason"] for one in [*told["objects"], *told["points"]])
    assert (told["committed"], told["deleted"]) == (0, [])


def test_prune_without_a_grace_time_deletes_what_no_head_names(notes: Path, url: str, tmp_path: Path) -> None:
    orphan = leave_orphan(url)
    done = ok("prune", url, "--grace", "0s", "--json").json
    assert (done["deleted"], done["committed"], done["freed_bytes"]) == ([orphan], 2, 6)
    assert ok("verify", url, "--data", "--json").json["foreign"] == ["notes.txt"]
    assert ok("prune", url).text.endswith("deleted 0 objects, 0 B\n")
    ok("restore", url, tmp_path / "back")
    assert ok("get", tmp_path / "back", 7).text == "three\n"


def test_prune_that_could_not_delete_everything_is_incomplete(
    notes: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan = leave_orphan(url)
    monkeypatch.setattr(
        LocalStore, "delete_many", lambda self, keys: tuple(FailedDelete(key, "locked") for key in keys)
    )
    ran = ourdb("prune", url, "--grace", "0s", "--json")
    assert (ran.code, ran.json["error"]["kind"], ran.json["failed"]) == (3, "incomplete", {orphan: "locked"})
    assert ourdb("prune", url, "--grace", "0s").code == 3


def test_prune_of_all_that_is_monitored_goes_on_where_one_fails(
    notes: Path, url: str, tmp_path: Path
) -> None:
    assert "nothing is monitored" in ok("prune", "--all").text
    other = f"file://{tmp_path}/other/diary"
    ship(tmp_path / "diary", other)
    orphan = leave_orphan(other)
    ok("monitor", "add", url, other)
    (tmp_path / "the store" / "notes" / "head").rename(tmp_path / "head")
    ran = ourdb("prune", "--all", "--grace", "0s", "--json")
    assert (ran.code, [one["deleted"] for one in ran.json["namespaces"]]) == (3, [[orphan]])
    assert [one["name"].replace("%20", " ") for one in ran.json["error"]["failed"]] == [url]
    (tmp_path / "head").rename(tmp_path / "the store" / "notes" / "head")
    assert "other/diary" in ok("prune", "--all").text
    for words in ((), (url, "--all"), ("--all", "--drop-generation", "1" * 16)):
        assert ourdb("prune", *words).code == 2


def test_what_a_dropped_line_was_told_has_no_seq_that_is_none(notes: Path, url: str, tmp_path: Path) -> None:
    ok("restore", url, tmp_path / "copy", "--seq", 2)
    ok("set", tmp_path / "copy", 8, "other")
    ok("backup", tmp_path / "copy", url)  # takes over before the line's end
    (first, _) = ok("points", url, "--json").json["generations"]
    ok("compact", url, "--strategy", "all")
    ok("prune", url, "--drop-generation", first["generation"], "--grace", "0s")
    ok("set", notes, 7, "late")
    error = failed("backup", notes, url)
    assert error["kind"] == "superseded"
    assert "seq 0" not in error["message"]


def test_the_reason_of_an_open_line_names_keep_rules_only_where_there_are_any(notes: Path, url: str) -> None:
    ok("policy", url, "--window", "0s")
    assert "keep rules" not in ok("prune", url, "--dry-run").text
    ok("policy", url, "--keep-daily", 2)
    assert "the state at 2 times of keep rules" in ok("prune", url, "--dry-run").text


def test_a_dead_line_is_dropped_and_its_directory_told(notes: Path, url: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    ok("restore", url, copy)
    ok("set", copy, 7, "four")
    ok("backup", copy, url, "--fork")
    lines = failed("restore", url, tmp_path / "x")["generations"]
    original, fork = (line["generation"] for line in sorted(lines, key=lambda line: line["last_seq"]))
    assert failed("prune", url, "--drop-generation", "0" * 16)["kind"] == "no_generation"
    told = ok("prune", url, "--drop-generation", fork, "--json").json
    assert [one["generation"] for one in told["points"] if one["goes"]] == [fork]
    ok("set", copy, 7, "five")
    assert failed("backup", copy, url)["kind"] == "superseded"
    assert failed("prune", url, "--drop-generation", original)["exit_code"] == 2
    ok("set", notes, 7, "six")
    ok("backup", notes, url)
    ok("restore", url, tmp_path / "back")
    assert ok("get", tmp_path / "back", 7).text == "six\n"


@pytest.mark.parametrize("words", [("policy",), ("pin", "x"), ("unpin", "x"), ("prune",)])
def test_a_namespace_that_is_not_there_is_exit_10(tmp_path: Path, words: tuple[str, ...]) -> None:
    error = failed(words[0], f"file://{tmp_path}/nowhere", *words[1:])
    assert (error["kind"], error["exit_code"]) == ("no_namespace", 10)


def test_all_of_it_on_a_real_server(s3_url: str, tmp_path: Path) -> None:
    ship(tmp_path / "notes", s3_url)
    orphan = leave_orphan(s3_url)
    ok("policy", s3_url, "--window", "30d")
    ok("pin", s3_url, "p")
    assert "p" in ok("policy", s3_url).text
    told = ok("prune", s3_url, "--json").json
    assert {one["key"]: one["state"] for one in told["objects"]}[orphan] == "young"
    assert set(told["requests"]) >= {"GET", "LIST"}
    assert ok("prune", s3_url, "--grace", "0s", "--json").json["deleted"] == [orphan]
    ok("unpin", s3_url, "p")
    assert ok("verify", s3_url, "--data", "--json").json["ok"]
