"""The head: everything that is true of a namespace, and the one object that is ever replaced.

A value and its codec, without I/O: `encode_head(decode_head(data, namespace))` gives the same members,
those too that this program does not know. Source: docs/format.md#head-and-lists
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from compactor import body
from compactor.body import Json, Malformed, Members
from compactor.entries import Gone, GoneList, ListRef, SegmentEntry
from compactor.generations import Began, Forgotten, Generation, Parent, Pin
from ourdb.errors import UnknownFormatError

VERSION = 1
LINES_WORD = "lines"  # that a generation may end before its last seq, or hold what lay before its own
READ_WORDS = frozenset({LINES_WORD})  # what `needs` may ask of a reader, and this program can do
WRITE_WORDS: frozenset[str] = frozenset()  # and of whoever writes the next head


class Known(NamedTuple):
    """A head that is known to be kept: its revision, and the run that wrote it. Compares by revision."""

    revision: int
    run: str


NOTHING_KNOWN = Known(0, "")


class Needs(NamedTuple):
    """Words for what a reader, or a writer, has to know, or else refuse."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


NO_NEEDS = Needs()


@dataclass(frozen=True, kw_only=True)
class Head:
    """The state of a namespace. uuid: of the database, 32 hex digits. run: random, of this very head, 16
    hex digits. host: who wrote it. single_writer: this store has no compare-and-swap, and its owner
    accepted that. config: of the database. lists, added, removed: the live segments are those of the
    lists, less those removed (keys), and those added. floor: nothing below it that was uploaded earlier may
    be named again. kept: the newest head that the writer knew to be acknowledged. forgotten: generations
    that are not there any more."""

    uuid: str
    namespace: str
    revision: int
    run: str
    host: str
    config: Json
    generations: Mapping[str, Generation]
    single_writer: bool = False
    lists: tuple[ListRef, ...] = ()
    added: tuple[SegmentEntry, ...] = ()
    removed: tuple[str, ...] = ()
    pins: tuple[Pin, ...] = ()
    policy: Json | None = None
    gone: tuple[Gone, ...] = ()
    gone_lists: tuple[GoneList, ...] = ()
    floor: int = 0
    kept: Known = NOTHING_KNOWN
    forgotten: tuple[Forgotten, ...] = ()
    needs: Needs = NO_NEEDS
    extra: Json = field(default_factory=body.no_extra)

    @property
    def known(self) -> Known:
        """What somebody knows to whom this head was acknowledged."""
        return Known(self.revision, self.run)

    @property
    def list_keys(self) -> tuple[str, ...]:
        """Every list that the head names, of segments and of what was let go of."""
        return (*(ref.key for ref in self.lists), *(ref.key for ref in self.gone_lists))


def encode_head(head: Head) -> bytes:
    """The bytes of the object."""
    members = {
        "version": VERSION,
        "needs": {"read": head.needs.read, "write": head.needs.write},
        "uuid": head.uuid,
        "namespace": head.namespace,
        "revision": head.revision,
        "run": head.run,
        "host": head.host,
        "single_writer": head.single_writer,
        "config": head.config,
        "generations": {name: generation.as_json() for name, generation in head.generations.items()},
        "lists": [ref.as_json() for ref in head.lists],
        "added": [entry.as_json() for entry in head.added],
        "removed": head.removed,
        "pins": [pin.as_json() for pin in head.pins],
        "policy": head.policy,
        "gone": [gone.as_json() for gone in head.gone],
        "gone_lists": [ref.as_json() for ref in head.gone_lists],
        "floor": head.floor,
        "kept": {"revision": head.kept.revision, "run": head.kept.run} if head.kept.revision else None,
        "forgotten": [one.as_json() for one in head.forgotten] or None,
    }
    return body.pack(body.without_defaults(members, head.extra))


def decode_head(data: bytes, namespace: str, *, where: str = "head") -> Head:
    """The head of this namespace. where: the object, for errors.

    Raises UnknownFormatError (a newer version, or it needs what this program does not know) and
    DamageError (`store_damaged`), also for the head of another namespace.
    """
    members = body.unpack(data, where)
    try:
        take = Members(members, "head")
        needs = _take_needs(take)
        body.refuse_unknown(where, take.number("version"), VERSION, needs.read, READ_WORDS)
        head = _take_head(take, needs)
    except Malformed as error:
        raise body.damaged(where, str(error)) from error
    if head.namespace != namespace:
        raise body.damaged(where, f"it is the head of another namespace: {head.namespace!r}")
    return head


def refuse_to_write(head: Head, where: str) -> None:
    """UnknownFormatError if the head may be read, and not followed, by this program."""
    body.refuse_unknown(where, VERSION, VERSION, head.needs.write, WRITE_WORDS)


def _take_needs(take: Members) -> Needs:
    words = Members(take.mapping("needs"), "needs")
    needs = Needs(words.each("read", body.text_of), words.each("write", body.text_of))
    if words.extra():
        raise UnknownFormatError(f"head needs something of whom this program does not know: {words.extra()}")
    return needs


def _take_head(take: Members, needs: Needs) -> Head:
    head = Head(
        uuid=take.hex("uuid", 32),
        namespace=take.text("namespace"),
        revision=take.number("revision"),
        run=take.hex("run", 16),
        host=take.text("host"),
        single_writer=take.truth("single_writer"),
        config=take.mapping("config"),
        generations={
            name: Generation.from_json(name, it) for name, it in take.mapping("generations").items()
        },
        lists=take.each("lists", ListRef.from_json),
        added=take.each("added", SegmentEntry.from_json),
        removed=take.each("removed", body.text_of),
        pins=take.each("pins", Pin.from_json),
        policy=take.mapping("policy") if take.has("policy") else None,
        gone=take.each("gone", Gone.from_json),
        gone_lists=take.each("gone_lists", GoneList.from_json),
        floor=take.number("floor"),
        kept=take.maybe("kept", _known) or NOTHING_KNOWN,
        forgotten=take.each("forgotten", Forgotten.from_json),
        needs=needs,
        extra=take.extra(),
    )
    _check_lines(head)
    return head


def _known(value: Any) -> Known:
    take = Members(value, "kept")
    return Known(take.number("revision"), take.hex("run", 16))


def _check_lines(head: Head) -> None:
    """Parents and successors are generations of the head, without a circle; nobody ends before it began."""
    for generation in head.generations.values():
        parent = generation.parent
        if generation.last_seq < generation.first_seq - 1 or (
            parent and parent.generation not in head.generations
        ):
            raise Malformed(f"generation {generation.id}: its parent is missing, or it ends before it began")
        if not generation.first_seq <= generation.end_seq + 1 <= generation.last_seq + 1:
            raise Malformed(f"generation {generation.id}: it is kept to a seq that is not its own")
        began = generation.began
        if began and (parent or not 1 < began.seq <= generation.last_seq + 1):
            raise Malformed(f"generation {generation.id}: it began at a seq that is not its own")
        if generation.successor is not None and generation.successor not in head.generations:
            raise Malformed(f"generation {generation.id}: its successor is missing")
    for name in head.generations:
        for step in (_parent_of, _successor_of):
            at: str | None = name
            for _ in head.generations:
                at = step(head, at) if at is not None else None
            if at is not None:
                raise Malformed(f"generation {name}: parents or successors run in a circle")


def _parent_of(head: Head, name: str) -> str | None:
    parent = head.generations[name].parent
    return parent.generation if parent else None


def _successor_of(head: Head, name: str) -> str | None:
    return head.generations[name].successor


__all__ = [
    "NOTHING_KNOWN",
    "Began",
    "Forgotten",
    "Generation",
    "Gone",
    "GoneList",
    "Head",
    "Known",
    "ListRef",
    "Needs",
    "Parent",
    "Pin",
    "SegmentEntry",
    "decode_head",
    "encode_head",
    "refuse_to_write",
]
