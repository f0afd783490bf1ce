"""What the documents say is so: their commands run, their tables are complete, their links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from backup.cli.command import Command
from backup.cli.group import COMMANDS, cli
from ourdb import errors
from tests.cli_runner import failed, ok

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ERRORS = (ROOT / "docs" / "errors.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """A directory to run in, with `bin/ourdb` for its PATH."""
    program = tmp_path / "bin" / "ourdb"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m backup.cli "$@"\n')
    program.chmod(0o755)
    (tmp_path / "work").mkdir()
    return tmp_path


def run_shell(shell: Path, script: str) -> str:
    """The script's output; it must end well, each command of it."""
    environment = os.environ | {
        "PATH": f"{shell / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OURDB_META": str(shell / "meta.db"),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=shell / "work", env=environment, capture_output=True
    )
    assert done.returncode == 0, (script, done.stdout.decode(), done.stderr.decode())
    return done.stdout.decode()


def test_readme_shell_blocks_run_as_they_stand(shell: Path) -> None:
    blocks = fenced(README, "sh")
    assert len(blocks) >= 3
    run_shell(shell, "\n".join(blocks))


def test_readme_python_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = fenced(README, "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OURDB_META", str(tmp_path / "meta.db"))
    exec(compile(block.replace("/srv/backup", f"{tmp_path}/backup"), "README.md", "exec"), {})
    assert "windows" in capsys.readouterr().out


def find(name: str) -> Command:
    command = cli.get_command(click.Context(cli), name)
    assert isinstance(command, Command)
    return command


EXAMPLES = [
    pytest.param(name, [line.strip() for line in find(name).example.strip().splitlines()], id=name)
    for name in COMMANDS
]


ELSEWHERE = re.compile(r"s3://| --every |ago")  # what needs a server, does not end, or another day


def prepare(name: str, store: str) -> None:
    """What the examples of a command take to be there."""
    if name == "init":
        return
    ok("init", "notes")
    for words in ([7, "a"], [8, "b"], [7, "c"]):
        ok("set", "notes", *words)
    ok("backup", "notes", store)
    if name == "restore":
        shutil.rmtree("notes")
        return
    ok("init", "copy")
    ok("init", "diary", "--mode", "incremental")
    Path("notes.jsonl").write_bytes(ok("export", "notes").out)


@pytest.mark.parametrize(("name", "lines"), EXAMPLES)
def test_help_example_runs(name: str, lines: list[str], shell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shell / "work")
    monkeypatch.setenv("OURDB_META", str(shell / "meta.db"))
    prepare(name, f"file://{shell}/backup/notes")
    for line in lines:
        if ELSEWHERE.search(line):
            continue
        here = line.replace("/srv/backup", f"{shell}/backup")
        if re.search("[|>]", here):
            run_shell(shell, here)
        else:
            ok(*shlex.split(here)[1:])


@pytest.mark.parametrize(("name", "lines"), EXAMPLES)
def test_help_example_is_valid_usage(name: str, lines: list[str]) -> None:
    for line in lines:
        for call in re.findall(r"ourdb [^|>]*", line):
            words = shlex.split(call)[1:]
            find(words[0]).make_context(words[0], words[1:])
    assert any(f"ourdb {name} " in line for line in lines)


def test_help_of_each_command_has_example_and_json_option() -> None:
    for name in COMMANDS:
        text = find(name).get_help(click.Context(find(name), info_name=name))
        assert "\nExample:\n  " in text
        assert "--json" in text


def test_readme_table_names_every_command() -> None:
    rows = re.findall(r"^\| `ourdb ([a-z]+) ", README, re.MULTILINE)
    assert rows == list(COMMANDS)


def test_readme_names_only_make_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+(?:-[a-z]+)*)`", README)) | set(
        re.findall(r"^make (\S+)", README, re.M)
    )
    assert named
    assert named <= targets


def test_make_names_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3.10"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    words = ["make", f"PYTHON={old}", f"VENV={tmp_path}/venv", "demo"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), target


def families() -> dict[str, type[errors.Error]]:
    return {
        name: family
        for name, family in inspect.getmembers(errors, inspect.isclass)
        if issubclass(family, errors.Error)
    }


def raised_kinds() -> set[tuple[str, int]]:
    """Every kind that is raised anywhere, with its exit code, read from the source."""
    known = families()
    found = {(family.default_kind, family.exit_code) for family in known.values()}
    for package in ("ourdb", "compactor", "backup"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
                    for keyword in node.keywords:
                        if keyword.arg == "kind" and isinstance(keyword.value, ast.Constant):
                            found.add((str(keyword.value.value), known[node.func.id].exit_code))
    return found


def documented_kinds() -> set[tuple[str, int]]:
    return {(kind, int(code)) for kind, code in re.findall(r"^\| `(\w+)` +\| (\d+) ", ERRORS, re.MULTILINE)}


def test_errors_page_has_every_kind_with_its_exit_code() -> None:
    beside = {("usage", 2), ("internal", 1), ("out_of_memory", 1), ("interrupted", 130), ("terminated", 143)}
    assert documented_kinds() >= raised_kinds() | beside


def test_errors_page_has_every_exit_code_with_its_class() -> None:
    rows = dict(re.findall(r"^\| (\d+) +\| [^|]+\| `?(\w+)?`?", ERRORS, re.MULTILINE))
    for name, family in families().items():
        if family.__bases__ == (errors.Error,) and family.exit_code != 1:
            assert rows[str(family.exit_code)] == name


def test_errors_page_shows_the_error_that_a_program_gets(tmp_path: Path) -> None:
    (block,) = fenced(ERRORS, "json")
    ok("init", tmp_path / "db")
    assert failed("get", tmp_path / "db", 7) == json.loads(block)["error"]


def test_decisions_page_lists_each_decision_by_its_title() -> None:
    folder = ROOT / "docs" / "decisions"
    titles = {path.name: path.read_text().partition("\n")[0][2:] for path in folder.glob("*.md")}
    listed = re.findall(r"^- \[(.*)\]\(([^()]*)\)$", (folder / "README.md").read_text(), re.MULTILINE)
    assert {name: title for title, name in listed} | {"README.md": "Decisions"} == titles


def test_pages_that_the_code_names_exist() -> None:
    for package in ("ourdb", "compactor", "backup"):
        for file in (ROOT / package).rglob("*.py"):
            for page in re.findall(r"docs/[\w/-]+\.md", file.read_text()):
                assert (ROOT / page).exists(), (file, page)
