"""Stores for tests: files, and a bucket of a real S3 server, which is started when first needed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests import servers
from tests.servers import S3Server

RUN = f"ourdb-test-{secrets.token_hex(6)}"
OTHER_SETTINGS = ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_REGION")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with a bucket. The workers of pytest-xdist share one: the first that needs it
    starts it, the last that leaves stops it."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    base = tmp_path_factory.getbasetemp()
    users = (base.parent if worker else base) / "s3-server"
    users.mkdir(exist_ok=True)
    with _locked(users / "lock"):
        state = users / "server.json"
        if state.exists():
            server = S3Server(**json.loads(state.read_text()))
        else:
            server = servers.start(users)
            state.write_text(json.dumps(server.as_json()))
        (users / f"user-{worker}").touch()
    yield server
    if server.kind == "given":
        servers.remove_objects(server, RUN)
    with _locked(users / "lock"):
        (users / f"user-{worker}").unlink()
        if not list(users.glob("user-*")):
            servers.stop(server)
            state.unlink()
            shutil.rmtree(users / server.kind, ignore_errors=True)  # pytest keeps its last few directories


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """boto3's standard chain leads to the test server and to nothing else."""
    for name in OTHER_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "no-such-file"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def stub_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any will do for a stub."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def s3_url(s3_environment: S3Server) -> str:
    """The URL of a namespace that is not there yet, under a prefix of the test's own."""
    return f"s3://{s3_environment.bucket}/{RUN}/{secrets.token_hex(6)}/name"


@pytest.fixture(params=["memory", "disk"])
def each_lookup(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where new databases hold their lookup table, one place after the other."""
    monkeypatch.setattr("ourdb.opening.LOOKUP_DEFAULT", request.param)
    kind: str = request.param
    return kind


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    """The URL of a namespace that is not there yet, in local files."""
    return f"file://{quote(str(tmp_path))}/store/name"


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def store_url(request: pytest.FixtureRequest) -> str:
    """Each kind of store that outlives a process, one after the other."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
