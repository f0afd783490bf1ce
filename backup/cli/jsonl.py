"""One line of JSONL: `{"id": 7, "value": "text"}`, or with `"base64": "..."` or `"deleted": true`.

Without `id` the database gives a new one. Pure: no files here.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, NamedTuple, NoReturn

from backup.cli.output import value_fields

_MEMBERS = {"id", "value", "base64", "deleted"}
# A byte of a value may be written \u00XX, six bytes; base64 and the members take less than the rest.
_LINE_BYTES_PER_VALUE_BYTE, _LINE_BYTES_BESIDE = 6, 4096


class Line(NamedTuple):
    """id: None for a new one. value: None deletes."""

    id: int | None
    value: bytes | None


def line_bytes_max(record_size_max: int) -> int:
    """No valid line is longer."""
    return record_size_max * _LINE_BYTES_PER_VALUE_BYTE + _LINE_BYTES_BESIDE


def format_line(record_id: int, value: bytes) -> bytes:
    """The line of a record, with its end; the value as text if it is UTF-8, else in base64."""
    fields = {"id": record_id} | value_fields(value)
    return json.dumps(fields, ensure_ascii=False).encode("utf-8") + b"\n"


def parse_line(text: bytes) -> Line:
    """The line, or ValueError that says what is wrong with it. Ids and lengths are not judged here."""
    try:
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_members)
    except UnicodeDecodeError:
        _refuse("not UTF-8")
    except RecursionError:
        _refuse("nested too deep")
    except json.JSONDecodeError as error:
        _refuse(f"not JSON: {error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}")
    if not isinstance(fields, dict):
        _refuse("not a JSON object")
    if unknown := sorted(set(fields) - _MEMBERS):
        _refuse(f"unknown member: {', '.join(unknown)} (id, value, base64 and deleted are known)")
    if len(fields.keys() & {"value", "base64", "deleted"}) != 1:
        _refuse("exactly one of value, base64 and deleted is needed")
    record_id = _parse_id(fields)
    if "deleted" in fields:
        if fields["deleted"] is not True:
            _refuse("deleted must be true")
        if record_id is None:
            _refuse("a deletion needs an id")
        return Line(record_id, None)
    return Line(record_id, _parse_text(fields) if "value" in fields else _parse_base64(fields))


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        _refuse("a member is there twice")
    return fields


def _parse_id(fields: dict[str, Any]) -> int | None:
    if "id" not in fields:
        return None
    record_id = fields["id"]
    if type(record_id) is not int:  # neither true nor 7.0
        _refuse(f"id must be a whole number: {json.dumps(record_id)[:60]}")
    return record_id


def _parse_text(fields: dict[str, Any]) -> bytes:
    if not isinstance(fields["value"], str):
        _refuse("value must be a string")
    try:
        return fields["value"].encode("utf-8")
    except UnicodeEncodeError:
        _refuse("value holds half a surrogate pair: such bytes have to be base64")


def _parse_base64(fields: dict[str, Any]) -> bytes:
    if not isinstance(fields["base64"], str):
        _refuse("base64 must be a string")
    try:
        return base64.b64decode(fields["base64"], validate=True)
    except (binascii.Error, ValueError) as error:
        _refuse(f"bad base64: {error}")


def _refuse(what: str) -> NoReturn:
    raise ValueError(what)
