"""A line of JSONL, and the set of ids of an import."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup.cli.idset import IdSet
from backup.cli.jsonl import Line, format_line, line_bytes_max, parse_line


@given(st.integers(0, 2**32 - 1), st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_formatted_line_parses_to_the_same(record_id: int, value: bytes) -> None:
    line = format_line(record_id, value)
    assert line.count(b"\n") == 1
    assert parse_line(line) == Line(record_id, value)


@given(st.binary(max_size=100) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))
def test_no_line_of_a_value_is_longer_than_its_bound(value: bytes) -> None:
    fields = json.loads(format_line(2**32 - 1, value))
    assert len(json.dumps(fields)) + 1 <= line_bytes_max(len(value))  # as the most wordy writer has it


def test_text_and_bytes_have_their_own_members() -> None:
    assert format_line(7, "Grüße".encode()) == '{"id": 7, "value": "Grüße"}\n'.encode()
    assert format_line(7, b"\xff\x00") == b'{"id": 7, "base64": "/wA="}\n'
    assert format_line(7, b"") == b'{"id": 7, "value": ""}\n'


def test_line_without_id_asks_for_a_new_one() -> None:
    assert parse_line(b'{"value": "text"}') == Line(None, b"text")


def test_deletion_has_no_value() -> None:
    assert parse_line(b'{"id": 7, "deleted": true}') == Line(7, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"id": 7, "value": "\xff"}', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"id": 7, "value": "a", "Value": "b"}', "unknown member: Value"),
        (b'{"id": 7, "value": "a", "base64": "YQ=="}', "exactly one of"),
        (b'{"id": 7, "value": "a", "deleted": true}', "exactly one of"),
        (b'{"id": 7}', "exactly one of"),
        (b'{"id": 7, "id": 8, "value": "a"}', "twice"),
        (b'{"id": "7", "value": "a"}', "id must be a whole number"),
        (b'{"id": 7.0, "value": "a"}', "id must be a whole number"),
        (b'{"id": true, "value": "a"}', "id must be a whole number"),
        (b'{"id": null, "value": "a"}', "id must be a whole number"),
        (b'{"id": 7, "value": 1}', "value must be a string"),
        (b'{"id": 7, "value": "\\ud800"}', "surrogate"),
        (b'{"id": 7, "base64": 1}', "base64 must be a string"),
        (b'{"id": 7, "base64": "YQ"}', "bad base64"),
        (b'{"id": 7, "base64": "Y\\nQ=="}', "bad base64"),
        ('{"id": 7, "base64": "ä==="}'.encode(), "bad base64"),
        (b'{"id": 7, "deleted": false}', "deleted must be true"),
        (b'{"id": 7, "deleted": 1}', "deleted must be true"),
        (b'{"deleted": true}', "a deletion needs an id"),
    ],
)
def test_bad_line_is_refused_with_the_reason(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_line(text)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0, 1, 7, 8, 65_535, 65_536, 2**32 - 1]))))
def test_id_set_is_a_set(steps: list[tuple[bool, int]]) -> None:
    ids, expected = IdSet(), set()
    for adds, record_id in steps:
        if adds:
            ids.add(record_id)
            expected.add(record_id)
        else:
            ids.discard(record_id)
            expected.discard(record_id)
    for record_id in (0, 1, 6, 7, 8, 9, 65_535, 65_536, 65_537, 2**32 - 1):
        assert (record_id in ids) == (record_id in expected)
