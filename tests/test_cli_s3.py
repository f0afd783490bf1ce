"""The command line against a real S3 server: there and back, and what a server refuses."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from compactor.store import open_store
from tests.cli_runner import failed, ok
from tests.servers import S3Server

pytestmark = pytest.mark.s3


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OURDB_META", str(tmp_path / "meta.db"))
    path = tmp_path / "notes"
    ok("init", path)
    ok("set", path, 7, "buy bread")
    return path


def test_database_goes_there_and_comes_back(notes: Path, s3_url: str) -> None:
    shipped = ok("backup", notes, s3_url, "--json").json
    assert shipped["last_seq"] == 1
    assert shipped["requests"]["PUT"] >= 2
    shutil.rmtree(notes)
    ok("restore", s3_url, notes)
    assert ok("get", notes, 7).text == "buy bread\n"
    assert ok("points", s3_url, "--db", notes, "--json").json["behind"] == {"records": 0, "seconds": 0}
    assert ok("verify", s3_url, "--data", "--json").json["ok"] is True


def test_idle_backup_is_one_request(notes: Path, s3_url: str) -> None:
    ok("backup", notes, s3_url)
    requests = ok("backup", notes, s3_url, "--json").json["requests"]
    assert {kind: count for kind, count in requests.items() if count} == {"GET": 1}


def test_wrong_credentials_are_exit_18_and_show_no_secret(
    notes: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    error = failed("backup", notes, s3_url)
    assert (error["kind"], error["exit_code"]) == ("credentials", 18)
    assert "not-the-secret" not in error["message"]


def test_bucket_that_is_not_there_is_exit_10(notes: Path, s3_environment: S3Server) -> None:
    error = failed("backup", notes, "s3://no-such-bucket-of-ourdb/notes")
    assert (error["kind"], error["exit_code"]) == ("no_bucket", 10)
    assert "no-such-bucket-of-ourdb" in error["message"]


def test_segment_that_is_gone_is_damage_that_names_it(notes: Path, s3_url: str, tmp_path: Path) -> None:
    ok("backup", notes, s3_url)
    key = ok("segments", s3_url, "--json").json["segments"][0]["key"]
    with closing(open_store(s3_url)) as store:
        store.delete_many([key])
    error = failed("restore", s3_url, tmp_path / "copy")
    assert (error["kind"], error["exit_code"], error["key"]) == ("store_damaged", 14, key)
