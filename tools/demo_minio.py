"""make demo-minio: the README's way through MinIO, on a server of its own.

Runs the commands of README.md ("Against MinIO, or any S3") one by one, compares what they print with
what it says they print, and then takes a larger database the same way: export, back up, destroy,
restore, export, compare. The server is built by tools/minio.sh if it is not there.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORDS = 100_000
LARGER = """
ourdb init larger
ourdb import larger lines.jsonl
ourdb export larger > before.jsonl
ourdb backup larger s3://ourdb/laptop/larger
rm -r larger
ourdb restore s3://ourdb/laptop/larger larger
ourdb export larger > after.jsonl
cmp before.jsonl after.jsonl
ourdb verify s3://ourdb/laptop/larger --data
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="ourdb-demo-") as directory:
        place = Path(directory)
        with minio(place / "minio") as endpoint:
            work = place / "work"
            work.mkdir()
            os.environ["OURDB_META"] = str(place / "meta.db")
            run_readme(work, endpoint)
            write_lines(work / "lines.jsonl")
            for command in LARGER.strip().splitlines():
                run(command, work)
    print(f"\nthe README's way works, and {RECORDS:,} records came back as they were")
    return 0


def readme_steps() -> list[tuple[str, str]]:
    """Each command of the README's MinIO way with the output that is shown for it."""
    readme = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"^```console\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    return [
        (command, shown) for command, shown in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE)
    ]


def run_readme(work: Path, endpoint: str) -> None:
    for command, shown in readme_steps():
        if command.startswith("export "):
            for name, _, value in (word.partition("=") for word in command.split()[1:]):
                os.environ[name] = value
            os.environ["AWS_ENDPOINT_URL"] = endpoint  # port 9000 may be in use here
            continue
        printed = run(command, work)
        if shown and printed != shown:
            raise SystemExit(f"the README says that this prints {shown!r}")


def run(command: str, work: Path) -> str:
    """Runs and shows a command, which must end well; what it printed."""
    print(f"$ {command}", flush=True)
    done = subprocess.run(["bash", "-c", command], cwd=work, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}")
    return done.stdout


def write_lines(path: Path) -> None:
    with path.open("w") as file:
        for number in range(RECORDS):
            fields = {"id": number, "value": f"record {number} " + "=" * (number % 200)}
            file.write(json.dumps(fields) + "\n")


@contextmanager
def minio(home: Path) -> Iterator[str]:
    """MinIO with data of its own on a free port; its endpoint."""
    script = ROOT / "tools" / "minio.sh"
    subprocess.run([script, "install"], check=True)
    cached = Path(os.environ.get("OURDB_MINIO_HOME", ROOT / ".cache" / "minio"))
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "minio").symlink_to(cached / "bin" / "minio")
    port, console = free_ports()
    settings = {"OURDB_MINIO_HOME": str(home), "MINIO_PORT": port, "MINIO_CONSOLE_PORT": console}
    environment = os.environ | settings
    subprocess.run([script, "start", "--detach"], env=environment, check=True, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run([script, "stop"], env=environment, check=True)


def free_ports() -> tuple[str, str]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        first, second = (str(one.getsockname()[1]) for one in sockets)
    return first, second


if __name__ == "__main__":
    # `ourdb` of the same environment comes first, and none of the person's own settings leak in.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        os.environ.pop(name, None)
    sys.exit(main())
