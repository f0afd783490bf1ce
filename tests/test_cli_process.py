"""The command line as a process: start-up, signals, pipes, and faults of our own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backup.cli.failure import PIPE_CLOSED, Terminated, describe, report
from ourdb.errors import DamageError
from tests.cli_runner import failed, ok

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = [sys.executable, "-m", "backup.cli"]


def run(*words: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [*PROGRAM, *(str(word) for word in words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, **options)


@pytest.mark.parametrize("words", [["--help"], ["backup", "--help"], ["import", "--help"], ["nonsense"]])
def test_help_and_usage_errors_import_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys\nfrom backup.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'boto3', 'botocore', 'numpy', 'rich', 'sqlite_utils', 'dateparser', 'zstandard'}\n"
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == ""


def test_installed_program_and_module_say_the_same() -> None:
    assert run("--help").stdout.decode().startswith("Usage: ourdb ")


def test_interrupt_is_exit_130_and_one_line(tmp_path: Path) -> None:
    ok("init", tmp_path / "db")
    process = subprocess.Popen(
        [*PROGRAM, "import", tmp_path / "db", "-"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    process.stdin.write(b"x" * (1 << 20))  # taken up only by a program that reads by now
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert err.decode().splitlines()[-1] == "ourdb: error: interrupted"


def test_sigterm_is_exit_143(tmp_path: Path) -> None:
    ok("init", tmp_path / "db")
    process = subprocess.Popen(
        [*PROGRAM, "import", tmp_path / "db", "-", "--json"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    process.stdin.write(b"x" * (1 << 20))
    process.stdin.flush()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert json.loads(out)["error"]["kind"] == "terminated"
    assert err == b""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", -2), ("SIGTERM", -15)])
def test_signal_before_the_commands_are_there_is_no_traceback(name: str, code: int) -> None:
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, module, *_):\n"
        f"        if module == 'click': os.kill(os.getpid(), signal.{name})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from backup.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


@pytest.mark.parametrize(("name", "kind"), [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", "Terminated")])
def test_signal_in_a_finalizer_is_raised_once_more(name: str, kind: str) -> None:
    script = (
        "import os, signal, time\n"
        "from backup.cli import signals\n"
        "from backup.cli.failure import Terminated\n"
        "class Deaf:\n"
        f"    def __del__(self): os.kill(os.getpid(), signal.{name})\n"
        "signals.raise_in_main(Terminated)\n"
        "try:\n"
        "    Deaf()\n"
        "    time.sleep(30)\n"
        "except BaseException as error:\n"
        "    print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{kind}\n", "")


def test_ignored_interrupt_stays_ignored() -> None:
    script = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from backup.cli import signals\n"
        "from backup.cli.failure import Terminated\n"
        "signals.end_silently()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "signals.raise_in_main(Terminated)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("closed", "told"), [("<&-", True), (">&-", False), ("2>&-", True), ("<&- >&- 2>&-", False)]
)
@pytest.mark.parametrize("words", [["info", "--json"], ["info"], ["check"]])
def test_closed_standard_files_are_no_fault_of_the_command(
    tmp_path: Path, closed: str, told: bool, words: list[str]
) -> None:
    ok("init", tmp_path / "db")
    command = f'exec "$0" -m backup.cli "$@" {closed}'
    program = ["sh", "-c", command, sys.executable, words[0], str(tmp_path / "db"), *words[1:]]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) == told


def test_reader_that_goes_away_is_no_noise(tmp_path: Path) -> None:
    ok("init", tmp_path / "db")
    lines = b"".join(b'{"id": %d, "value": "%s"}\n' % (number, b"x" * 1000) for number in range(2_000))
    ok("import", tmp_path / "db", "-", stdin=lines)
    process = subprocess.Popen(
        [*PROGRAM, "export", tmp_path / "db"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == PIPE_CLOSED


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_output_that_cannot_be_written_is_an_error(
    tmp_path: Path, options: list[str], unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    ok("init", tmp_path / "db")
    ok("set", tmp_path / "db", 7, "x")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, "get", tmp_path / "db", "7", *options], cwd=ROOT, stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    told = "ourdb: error: standard input or output: no space left on device"
    assert done.stderr.decode().splitlines() == [told]


def test_fault_of_our_own_is_one_line_with_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by\nzero")

    monkeypatch.setattr("ourdb.open", broken)
    error = failed("get", tmp_path, 7)
    assert (error["kind"], error["exit_code"]) == ("internal", 1)
    assert "ZeroDivisionError" in error["message"]


def test_traceback_is_shown_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OURDB_DEBUG", "1")
    assert report(ZeroDivisionError("x"), as_json=False) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "ZeroDivisionError: x"
    assert lines[-1].startswith("ourdb: error: internal error: ZeroDivisionError")


def test_error_says_in_json_what_its_fields_say() -> None:
    error = DamageError("bad record", kind="corrupt", file="0.db", offset=36, seq=1)
    assert describe(error) == {
        "kind": "corrupt",
        "message": "bad record",
        "exit_code": 14,
        "file": "0.db",
        "offset": 36,
        "seq": 1,
    }


@pytest.mark.parametrize(
    ("error", "kind", "exit_code", "message"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "x"),
            "io_error",
            1,
            "x: no such file or directory",
        ),
        (MemoryError(), "out_of_memory", 1, "out of memory"),
        (KeyboardInterrupt(), "interrupted", 130, "interrupted"),
        (Terminated(), "terminated", 143, "ended by SIGTERM"),
    ],
)
def test_every_other_error_has_a_kind(error: BaseException, kind: str, exit_code: int, message: str) -> None:
    assert describe(error) == {"kind": kind, "message": message, "exit_code": exit_code}
