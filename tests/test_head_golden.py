"""Golden head and lists: today's program reads what format version 1 wrote, and writes it the same.

Beside each object lies its body as plain JSON, for people; they were written once, and are kept for ever.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from compactor import body, lists
from compactor.head import Head, decode_head, encode_head
from compactor.lists import ListOwner, StoredList
from compactor.policy import Policy
from ourdb.names import LISTS_PREFIX
from tests.golden.make import FOLDER

FORMAT = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
NAMESPACE = "näme"


def plain(name: str) -> dict[str, Any]:
    """The body as people read it."""
    members: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return members


@pytest.fixture
def head() -> Head:
    return decode_head((FOLDER / "head").read_bytes(), NAMESPACE)


def stored(name: str) -> tuple[StoredList, ListOwner]:
    members = plain(name)
    owner = ListOwner(members["uuid"], members["namespace"], int(members["revision"]))
    data = (FOLDER / name).read_bytes()
    return StoredList(LISTS_PREFIX + members["name"], data, owner.uuid, owner.namespace), owner


@pytest.mark.parametrize("name", ["head", "segments-list", "gone-list"])
def test_golden_object_holds_what_people_read(name: str) -> None:
    assert body.unpack((FOLDER / name).read_bytes(), name) == plain(name)


def test_golden_head_is_read_and_written_the_same(head: Head) -> None:
    assert body.unpack(encode_head(head), "head") == plain("head")
    assert Policy.of(head).as_json() == plain("head")["policy"]


def test_golden_lists_are_read_and_written_the_same() -> None:
    segments, owner = stored("segments-list")
    again = lists.encode_segments(owner, segments.key, segments.segments)
    assert body.unpack(again, segments.key) == plain("segments-list")
    assert [entry.summary().first_seq for entry in segments.segments] == [1, 3, 21, 26]
    gone, owner = stored("gone-list")
    assert body.unpack(lists.encode_gone(owner, gone.key, gone.keys), gone.key) == plain("gone-list")


def test_golden_head_has_something_of_everything(head: Head) -> None:
    for field in fields(head):
        assert field.name == "extra" or getattr(head, field.name), field.name
    for field in fields(Policy):
        assert field.name == "extra" or getattr(Policy.of(head), field.name) != field.default, field.name
    generations = head.generations.values()
    for name in ("parent", "successor", "kept_to", "kept_until", "began", "highest_id"):
        assert any(getattr(generation, name) is not None for generation in generations), name


def test_format_page_lists_every_member_of_the_golden_head() -> None:
    section = FORMAT.partition("\n### Head\n")[2].partition("\nThe live segments")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == plain("head").keys()


def test_format_page_names_every_member_within_the_golden_head() -> None:
    section = FORMAT.partition("\n### Head\n")[2].partition("\n### Lists\n")[0]
    named = set(re.findall(r"""[`"](\w+)[`"]""", section))

    def check(value: Any, where: str) -> None:
        if isinstance(value, list):
            for each in value:
                check(each, where)
        elif isinstance(value, dict):
            for name, each in value.items():
                assert name in named or where in ("generations", "config"), f"{where}: {name}"
                check(each, name)

    check(plain("head"), "head")
