"""tools/minio.sh with a stand-in for MinIO: what it starts, waits for and stops, and what it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import ROOT, free_ports

SCRIPT = ROOT / "tools" / "minio.sh"
# The second line is a string to Python; to sh it is the way to a Python whose path has a space in it.
STAND_IN = f"""#!/bin/sh
"exec" "{sys.executable}" "$0" "$@"
import http.server, os, sys
if {{fails}}:
    sys.exit("stand-in: bad settings")
print(os.environ["MINIO_ROOT_USER"], *sys.argv[1:], flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/minio/health/ready" else 404)
        self.end_headers()
host, port = sys.argv[sys.argv.index("--address") + 1].split(":")
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


class Home:
    """A directory for program and data, and the script run with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port, console = free_ports(2)
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "OURDB_MINIO_HOME": str(path),
            "MINIO_PORT": str(self.port),
            "MINIO_CONSOLE_PORT": str(console),
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def install_stand_in(self, *, fails: bool = False) -> None:
        binary = self.path / "bin" / "minio"
        binary.parent.mkdir(parents=True)
        binary.write_text(STAND_IN.format(fails=fails))
        binary.chmod(0o755)

    @property
    def pid(self) -> int:
        return int((self.path / "minio.pid").read_text())


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "minio home")
    yield home
    if (home.path / "minio.pid").exists():
        home.run("stop")


def test_started_server_is_ready_has_the_bucket_and_stops(home: Home) -> None:
    home.install_stand_in()
    started = home.run("start", "--detach")
    assert started.returncode == 0, started.stderr
    assert f"export AWS_ENDPOINT_URL=http://127.0.0.1:{home.port}" in started.stdout
    assert "AWS_ACCESS_KEY_ID=ourdb AWS_SECRET_ACCESS_KEY=ourdb-secret" in started.stdout
    assert (home.path / "data" / "ourdb").is_dir()
    assert (
        (home.path / "minio.log")
        .read_text()
        .startswith(f"ourdb server {home.path}/data --address 127.0.0.1:")
    )
    pid = home.pid
    assert home.run("stop").returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_second_start_is_refused_and_the_first_goes_on(home: Home) -> None:
    home.install_stand_in()
    home.run("start", "--detach")
    pid = home.pid
    second = home.run("start", "--detach")
    assert second.returncode == 1
    assert "runs already" in second.stderr
    assert home.pid == pid
    os.kill(pid, 0)


def test_server_that_ends_at_once_is_told_with_its_last_words(home: Home) -> None:
    home.install_stand_in(fails=True)
    started = home.run("start", "--detach")
    assert started.returncode == 1
    assert "bad settings" in started.stderr
    assert not (home.path / "minio.pid").exists()


def test_without_go_the_ways_out_are_named(home: Home) -> None:
    tools = home.path.with_name("tools")
    tools.mkdir()
    (tools / "dirname").symlink_to(str(shutil.which("dirname")))
    home.environment["PATH"] = str(tools)  # wherever Go may be, it is not there
    installed = home.run("install")
    assert installed.returncode == 1
    assert "install Go" in installed.stderr
    assert "minio-compose.yml" in installed.stderr


def test_stop_without_a_server_says_so(home: Home) -> None:
    stopped = home.run("stop")
    assert stopped.returncode == 0
    assert "does not run" in stopped.stderr


def test_unknown_word_shows_how_it_is_used(home: Home) -> None:
    shown = home.run("restart")
    assert shown.returncode == 2
    assert "tools/minio.sh start" in shown.stderr
