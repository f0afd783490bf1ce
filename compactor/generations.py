"""Generations and pins, as the head names them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compactor.body import Json, Malformed, Members, no_extra, without_defaults
from ourdb.errors import InvalidError
from ourdb.names import parse_generation
from ourdb.record import ID_MAX, SEQ_MAX, TIME_MAX

CHAIN_MAX = 2**32 - 1


@dataclass(frozen=True)
class Parent:
    """Where a generation left another: the one that owns `seq`, and the chain there."""

    generation: str
    seq: int
    chain: int
    extra: Json = field(default_factory=no_extra)

    def as_json(self) -> dict[str, Any]:
        members = {"generation": self.generation, "seq": self.seq, "chain": self.chain}
        return without_defaults(members, self.extra)

    @classmethod
    def from_json(cls, value: object) -> Parent:
        take = Members(value, "parent")
        return cls(
            take.hex("generation", 16),
            take.number("seq", at_most=SEQ_MAX),
            take.number("chain", at_most=CHAIN_MAX),
            take.extra(),
        )


@dataclass(frozen=True)
class Began:
    """Where the own records of a generation begin, once a merge wrote what lay before them into it.

    seq, time (ms): of the first one. took_over: the seqs, ascending, at which a successor began: this
    generation, or one before it that it holds now. Between the point before such a seq and its own record
    the line held what another generation has, and no own point answers for that time.
    """

    seq: int
    time: int
    took_over: tuple[int, ...] = ()
    extra: Json = field(default_factory=no_extra)

    def as_json(self) -> dict[str, Any]:
        members = {"seq": self.seq, "time": self.time, "took_over": list(self.took_over) or None}
        return without_defaults(members, self.extra)

    @classmethod
    def from_json(cls, value: object) -> Began:
        take = Members(value, "began")
        return cls(
            take.number("seq", at_most=SEQ_MAX),
            take.number("time", at_most=TIME_MAX),
            take.each("took_over", _seq),
            take.extra(),
        )


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One unbroken line of writes, up to its end as the store holds it. Times in ms since the epoch.

    as_of: until when its writer had seen every record. successor: the generation that took over.
    kept_to: of its own seqs those behind this one were let go of, None: none was. Nobody writes such a
    generation any more. kept_until: the time of the first of these, or the first of a successor that was
    forgotten: from then on no time means this generation; None: that is not known, or there is none.
    began: a merge, or the first backup of a copy, wrote what lay before its own first record into it; then it
    has no parent.
    """

    id: str
    parent: Parent | None
    last_seq: int
    last_time: int
    chain: int
    highest_id: int | None
    as_of: int
    successor: str | None = None
    kept_to: int | None = None
    kept_until: int | None = None
    began: Began | None = None
    extra: Json = field(default_factory=no_extra)

    @property
    def first_seq(self) -> int:
        """The first seq that is its own."""
        return self.parent.seq + 1 if self.parent else 1

    @property
    def end_seq(self) -> int:
        """Up to here the store has it; `last_seq` is how far it was written."""
        return self.last_seq if self.kept_to is None else self.kept_to

    @property
    def known_to(self) -> int:
        """Up to this time the line that ends here is known, whoever took over from it."""
        known_to = max(self.as_of, self.last_time)
        return known_to if self.kept_until is None else min(known_to, self.kept_until - 1)

    @property
    def open(self) -> bool:
        """Whether somebody may still write it."""
        return self.successor is None and self.kept_to is None

    def as_json(self) -> dict[str, Any]:
        members = {
            "parent": self.parent and self.parent.as_json(),
            "last_seq": self.last_seq,
            "last_time": self.last_time,
            "chain": self.chain,
            "highest_id": self.highest_id,
            "as_of": self.as_of,
            "successor": self.successor,
            "kept_to": self.kept_to,
            "kept_until": self.kept_until,
            "began": self.began and self.began.as_json(),
        }
        return without_defaults(members, self.extra)

    @classmethod
    def from_json(cls, name: str, value: object) -> Generation:
        take = Members(value, "generation")
        _checked_id(name)
        return cls(
            id=name,
            parent=take.maybe("parent", Parent.from_json),
            last_seq=take.number("last_seq", at_most=SEQ_MAX),
            last_time=take.number("last_time", at_most=TIME_MAX),
            chain=take.number("chain", at_most=CHAIN_MAX),
            highest_id=take.maybe_number("highest_id", at_most=ID_MAX),
            as_of=take.number("as_of", at_most=TIME_MAX),
            successor=take.hex("successor", 16) if take.has("successor") else None,
            kept_to=take.maybe_number("kept_to", at_most=SEQ_MAX),
            kept_until=take.maybe_number("kept_until", at_most=TIME_MAX),
            began=take.maybe("began", Began.from_json),
            extra=take.extra(),
        )


@dataclass(frozen=True)
class Forgotten:
    """A generation that the head named once: whoever writes it still is told so. successor: the one that
    took over from it, if any."""

    generation: str
    successor: str | None = None
    extra: Json = field(default_factory=no_extra)

    def as_json(self) -> dict[str, Any]:
        return without_defaults({"generation": self.generation, "successor": self.successor}, self.extra)

    @classmethod
    def from_json(cls, value: object) -> Forgotten:
        take = Members(value, "forgotten")
        return cls(
            take.hex("generation", 16),
            take.hex("successor", 16) if take.has("successor") else None,
            take.extra(),
        )


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A point that is kept exact: its name, the generation that owns it, seq and time (ms)."""

    name: str
    generation: str
    seq: int
    time: int
    extra: Json = field(default_factory=no_extra)

    def as_json(self) -> dict[str, Any]:
        members = {"name": self.name, "generation": self.generation, "seq": self.seq, "time": self.time}
        return without_defaults(members, self.extra)

    @classmethod
    def from_json(cls, value: object) -> Pin:
        take = Members(value, "pin")
        return cls(
            name=take.text("name"),
            generation=take.hex("generation", 16),
            seq=take.number("seq", at_most=SEQ_MAX),
            time=take.number("time", at_most=TIME_MAX),
            extra=take.extra(),
        )


def _seq(value: object) -> int:
    return Members({"seq": value}, "took_over").number("seq", at_most=SEQ_MAX)


def _checked_id(name: str) -> None:
    try:
        parse_generation(name)
    except InvalidError as error:
        raise Malformed(str(error)) from error
