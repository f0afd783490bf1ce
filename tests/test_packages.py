"""The packages: what is installed, and which may import which."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "ourdb": {"ourdb"},
    "compactor": {"ourdb", "compactor"},
    "backup": {"ourdb", "compactor", "backup"},
}


def imported(path: Path) -> set[str]:
    """The first names of what a module imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_package_imports_only_those_below_it(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert imported(path) & MAY_IMPORT.keys() <= MAY_IMPORT[package], path


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = [path.parent for package in MAY_IMPORT for path in (ROOT / package).rglob("__init__.py")]
    named = sorted(".".join(folder.relative_to(ROOT).parts) for folder in found)
    assert sorted(project["tool"]["setuptools"]["packages"]) == named
