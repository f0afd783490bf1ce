"""The bytes of head and lists: canonical JSON in one zstd frame that carries its size and a checksum.

Integers above 2^53 are written as strings, because many readers of JSON keep doubles; both forms are
taken. Members that this program does not know stay with the value they stand in (`extra`) and are
written back as they were. Source: docs/format.md#head-and-lists
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import zstandard

from ourdb.errors import DamageError, UnknownFormatError
from ourdb.units import MIB

BODY_BYTES_MAX = 256 * MIB
INT_MAX = 2**63 - 1  # SQLite and int64 columns end here
_EXACT_MAX = 2**53
_LEVEL = 9
_HEX = frozenset("0123456789abcdef")
Json = Mapping[str, Any]
Value = TypeVar("Value")


class Malformed(ValueError):
    """A member is missing or is not what it should be; whoever knows the object says where."""


def pack(members: Json) -> bytes:
    """The body as it is stored. The same members give the same bytes."""
    text = json.dumps(_spelled(members), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(text.encode())


def unpack(data: bytes, where: str, *, bytes_max: int = BODY_BYTES_MAX) -> dict[str, Any]:
    """The members of a stored body. where: the object, for the error.

    Raises DamageError (`store_damaged`): not one whole frame with size and checksum, larger than
    bytes_max (told before anything is allocated), altered, or not a JSON object.
    """
    try:
        frame = zstandard.get_frame_parameters(data)
        size = frame.content_size
        if not frame.has_checksum or size == zstandard.CONTENTSIZE_UNKNOWN:
            raise Malformed("the frame has no checksum or no size")
        if size > bytes_max or frame.window_size > max(bytes_max, 1024):
            raise Malformed(f"larger than {bytes_max} bytes: {size}")
        text = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
        members = json.loads(text, parse_constant=_no_constant)
    except (zstandard.ZstdError, ValueError, RecursionError) as error:
        raise damaged(where, str(error)) from error
    if not isinstance(members, dict):
        raise damaged(where, "not a JSON object")
    return members


def damaged(where: str, why: str) -> DamageError:
    """What is said of an object that cannot be read: never answered with something older."""
    return DamageError(f"damaged in the store: {where}: {why}", kind="store_damaged", key=where)


class Members:
    """The members of one JSON object, taken one by one; what is left over is `extra`.

    Every method raises Malformed with the member's name.
    """

    def __init__(self, members: object, what: str) -> None:
        if not isinstance(members, dict):
            raise Malformed(f"{what} is not an object")
        self._left = dict(members)
        self._what = what

    def number(self, name: str, *, at_most: int = INT_MAX) -> int:
        """An integer from 0 to at_most; also as a string of digits."""
        found = self._left.pop(name, None)
        if isinstance(found, str) and found.isascii() and found.isdecimal() and len(found) < 20:
            found = int(found)
        if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= at_most:
            self._refuse(name, found)
        return found

    def maybe_number(self, name: str, *, at_most: int = INT_MAX) -> int | None:
        """As `number`; None where the member is missing or null."""
        return self.number(name, at_most=at_most) if self._given(name) else None

    def text(self, name: str) -> str:
        found = self._left.pop(name, None)
        if not isinstance(found, str):
            self._refuse(name, found)
        return found

    def hex(self, name: str, digits: int) -> str:
        """Exactly so many hex digits, in lower case."""
        found = self.text(name)
        if len(found) != digits or not _HEX.issuperset(found):
            self._refuse(name, found)
        return found

    def truth(self, name: str) -> bool:
        found = self._left.pop(name, None)
        if not isinstance(found, bool):
            self._refuse(name, found)
        return found

    def mapping(self, name: str) -> dict[str, Any]:
        """An object; empty where it is missing."""
        found = self._left.pop(name, None)
        if found is None:
            return {}
        if not isinstance(found, dict):
            self._refuse(name, found)
        return found

    def each(self, name: str, decode: Callable[[Any], Value]) -> tuple[Value, ...]:
        """A list, each item decoded; empty where it is missing."""
        found = self._left.pop(name, None)
        if found is None:
            return ()
        if not isinstance(found, list):
            self._refuse(name, found)
        return tuple(map(decode, found))

    def maybe(self, name: str, decode: Callable[[Any], Value]) -> Value | None:
        """A value, decoded; None where the member is missing or null."""
        return decode(self._left.pop(name)) if self._given(name) else None

    def has(self, name: str) -> bool:
        """Whether the member is there and not null."""
        return self._left.get(name) is not None

    def extra(self) -> dict[str, Any]:
        """What nobody has taken."""
        return self._left

    def _given(self, name: str) -> bool:
        if self._left.get(name) is None:
            self._left.pop(name, None)
            return False
        return True

    def _refuse(self, name: str, found: object) -> NoReturn:
        raise Malformed(f"{self._what}: {name} is not valid: {found!r:.100}")


def without_defaults(members: Json, extra: Json) -> dict[str, Any]:
    """What is written: members that are None are left out, unknown ones come back where they were."""
    return {**extra, **{name: value for name, value in members.items() if value is not None}}


def no_extra() -> Json:
    """The default of `extra`."""
    return {}


def text_of(item: object) -> str:
    """A string in a list."""
    if not isinstance(item, str):
        raise Malformed(f"not a string: {item!r:.100}")
    return item


def refuse_unknown(where: str, version: int, known: int, needs: Iterable[str], words: frozenset[str]) -> None:
    """UnknownFormatError for another version, or for a word of `needs` that this program does not know."""
    if version != known:
        raise UnknownFormatError(
            f"unknown version {version} (this program knows {known}; use a newer one): {where}", key=where
        )
    unknown = sorted(set(needs) - words)
    if unknown:
        raise UnknownFormatError(
            f"needs what this program does not know ({', '.join(unknown)}; use a newer one): {where}",
            key=where,
        )


def _spelled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _spelled(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _EXACT_MAX:
        return str(value)
    return value


def _no_constant(name: str) -> NoReturn:
    raise Malformed(f"not JSON: {name}")
