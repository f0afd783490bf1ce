"""The demos: what they show is so, and a difference is not passed over."""

from __future__ import annotations

import importlib.util
import sys
import unicodedata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ourdb
from tests import servers

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    return load("demo")


@pytest.fixture(scope="module")
def states(demo: ModuleType) -> dict[str, dict[int, bytes]]:
    return {ucd.unidata_version: demo.read_state(ucd) for ucd in (unicodedata.ucd_3_2_0, unicodedata)}


def test_states_are_the_two_unicode_versions(states: dict[str, dict[int, bytes]]) -> None:
    older, newer = states.values()
    assert len(older) == 95_221
    assert len(newer) > 144_000
    assert b"LATIN SMALL LETTER A" in newer[ord("a")]
    assert not any(0xD800 <= code <= 0xF8FF for code in newer)  # surrogates and private use


def test_demo_restores_both_states_and_says_so(
    demo: ModuleType,
    states: dict[str, dict[int, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def few(ucd: Any) -> dict[int, bytes]:
        state = states[ucd.unidata_version]
        return {code: state[code] for code in range(0x400) if code in state}

    monkeypatch.setattr(demo, "read_state", few)
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert "every record of Unicode 3.2.0" in printed
    assert printed.count("compare with Unicode") == 2


def test_demo_counts_what_differs(demo: ModuleType, tmp_path: Path) -> None:
    with ourdb.open(tmp_path / "db") as db:
        db.set_many({1: b"same", 2: b"other", 3: b"too many"})
    _, wrong = demo.compare_step(tmp_path / "db", "1.0", {1: b"same", 2: b"one", 4: b"missing"})
    assert wrong == 3


def test_demo_ends_with_1_on_a_difference(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = demo.compare_step
    monkeypatch.setattr(demo, "read_state", lambda ucd: {1: ucd.unidata_version.encode()})
    monkeypatch.setattr(demo, "compare_step", lambda *words: (honest(*words)[0], 1))
    assert demo.main() == 1
    assert "2 records differ" in capsys.readouterr().out


def test_minio_demo_follows_the_readme() -> None:
    steps = load("demo_minio").readme_steps()
    commands = [command.split()[:2] for command, _ in steps]
    assert ["ourdb", "backup"] in commands
    assert ["rm", "-r"] in commands
    assert ["ourdb", "restore"] in commands
    assert steps[-1] == ("ourdb get notes 7", "buy bread\n")
    assert f"AWS_ACCESS_KEY_ID={servers.ACCESS_KEY}" in steps[0][0]
