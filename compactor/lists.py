"""The lists that a head refers to, written once, so that the head stays small (docs/format.md).

A list of segments holds at most SEGMENTS_MAX entries. The head keeps what was added and removed since;
beyond TURN_OVER of them the lists turn over: those that lost entries are written anew, and the small
ones are joined so that each is at least twice as long as what follows. An entry so is rewritten
log2(SEGMENTS_MAX / TURN_OVER) times in all, and what one backup writes stays the same for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from compactor import body
from compactor.body import Malformed, Members
from compactor.entries import GoneList, ListRef, SegmentEntry
from ourdb.names import LISTS_PREFIX, ListKey, list_key, parse_key

VERSION = 1
SEGMENTS_MAX = 10_000
GONE_MAX = 10_000
TURN_OVER = 200
NO_WORDS: frozenset[str] = frozenset()
Item = TypeVar("Item")


@dataclass(frozen=True)
class StoredList:
    """The bytes of a list, decoded when asked for. A damaged one is then a DamageError (`store_damaged`)."""

    key: str
    data: bytes
    uuid: str
    namespace: str

    @cached_property
    def segments(self) -> tuple[SegmentEntry, ...]:
        take = self._open("segments")
        try:
            return take.each("segments", SegmentEntry.from_json)
        except Malformed as error:
            raise body.damaged(self.key, str(error)) from error

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Of a list of what was let go of."""
        take = self._open("gone")
        try:
            return take.each("keys", body.text_of)
        except Malformed as error:
            raise body.damaged(self.key, str(error)) from error

    def _open(self, kind: str) -> Members:
        try:
            take = Members(body.unpack(self.data, self.key), "list")
            version = take.number("version")
            body.refuse_unknown(self.key, version, VERSION, take.each("needs", body.text_of), NO_WORDS)
            said = take.text("kind"), take.hex("uuid", 32), take.text("namespace")
            name, revision = take.text("name"), take.number("revision")
        except Malformed as error:
            raise body.damaged(self.key, str(error)) from error
        parsed = parse_key(self.key)
        made = parsed.made if isinstance(parsed, ListKey) else None
        if (*said, LISTS_PREFIX + name, revision) != (kind, self.uuid, self.namespace, self.key, made):
            raise body.damaged(self.key, "it is another list, or of another namespace")
        return take


@dataclass(frozen=True)
class ListOwner:
    """Whose lists these are. made: the revision of the head that the writer had read."""

    uuid: str
    namespace: str
    made: int


def encode_segments(owner: ListOwner, key: str, entries: Sequence[SegmentEntry]) -> bytes:
    """The bytes of a list of segments."""
    return _encode(owner, key, "segments", [entry.as_json() for entry in entries])


def encode_gone(owner: ListOwner, key: str, keys: Sequence[str]) -> bytes:
    """The bytes of a list of what was let go of."""
    return _encode(owner, key, "gone", list(keys))


def refer_segments(key: str, entries: Sequence[SegmentEntry], data: bytes) -> ListRef:
    """What the head says of a list of segments."""
    return ListRef(
        key=key,
        first_seq=min(entry.first_seq for entry in entries),
        last_seq=max(entry.last_seq for entry in entries),
        segments=len(entries),
        bytes=len(data),
    )


def refer_gone(key: str, keys: Sequence[str], since: int | None, data: bytes) -> GoneList:
    """What the head says of a list of what was let go of."""
    return GoneList(key=key, since=since, objects=len(keys), bytes=len(data))


class Shelf:
    """The lists that are there, and those that are being written."""

    def __init__(self, owner: ListOwner, stored: dict[str, StoredList], random: Callable[[], int]) -> None:
        self.stored = stored
        self.new: set[str] = set()
        self._owner = owner
        self._random = random

    def put_segments(self, entries: Sequence[SegmentEntry]) -> ListRef:
        key = self._key()
        data = encode_segments(self._owner, key, entries)
        self._store(key, data)
        return refer_segments(key, entries, data)

    def put_gone(self, keys: Sequence[str], since: int | None) -> GoneList:
        key = self._key()
        data = encode_gone(self._owner, key, keys)
        self._store(key, data)
        return refer_gone(key, keys, since, data)

    def _key(self) -> str:
        return list_key(self._owner.made, self._random())

    def _store(self, key: str, data: bytes) -> None:
        self.stored[key] = StoredList(key, data, self._owner.uuid, self._owner.namespace)
        self.new.add(key)


def needs_turning_over(added: int, removed: int) -> bool:
    """Whether a head with so many entries of its own writes lists instead."""
    return added + removed > TURN_OVER


def turn_over(
    refs: Iterable[ListRef],
    load: Callable[[str], Sequence[SegmentEntry]],
    added: Iterable[SegmentEntry],
    removed: frozenset[str],
) -> tuple[list[ListRef], list[Sequence[SegmentEntry]]]:
    """Which lists stay as they are, and the entries of each that has to be written (pure).

    load: the entries of a list; only lists that change are asked for, and all if something was removed.
    """
    rest = [entry for entry in added if entry.key not in removed]
    kept = []
    for ref in refs:
        entries = load(ref.key) if removed else ()
        left = [entry for entry in entries if entry.key not in removed]
        if len(left) < len(entries):
            rest += left
        else:
            kept.append(ref)
    kept.sort(key=lambda ref: ref.segments)
    while kept and rest and kept[0].segments < min(2 * len(rest), SEGMENTS_MAX):
        rest += load(kept.pop(0).key)
    rest.sort(key=lambda entry: entry.order)
    return kept, list(cut(rest, SEGMENTS_MAX))


def cut(entries: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Pieces of `size` entries, the last one may be shorter."""
    for first in range(0, len(entries), size):
        yield entries[first : first + size]


def _encode(owner: ListOwner, key: str, kind: str, items: list[object]) -> bytes:
    members = {
        "version": VERSION,
        "kind": kind,
        "uuid": owner.uuid,
        "namespace": owner.namespace,
        "revision": owner.made,
        "name": key.removeprefix(LISTS_PREFIX),
        "segments" if kind == "segments" else "keys": items,
    }
    return body.pack(members)
