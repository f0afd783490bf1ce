"""The objects in the store, as head and lists name them: live segments, lists, what was let go of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from compactor.body import Json, Malformed, Members, damaged, no_extra, without_defaults
from compactor.generations import CHAIN_MAX
from ourdb.errors import InvalidError
from ourdb.names import LISTS_PREFIX, SEGMENTS_PREFIX, ListKey, SegmentKey, SegmentName, parse_key
from ourdb.record import ID_MAX, SEQ_MAX, TIME_MAX
from ourdb.segment.summary import Run, Stretch, Summary

NAME_CHARACTERS = 132


@dataclass(frozen=True, kw_only=True)
class SegmentEntry:
    """A live segment, as head and lists name it: what its name says, and what cannot be derived from it.

    file_name: the last part of the key, with range, times, chains, made and random. bytes, index_bytes:
    of the object and of its index with footer. highest_id: the highest id given up to last_seq, None:
    none yet. highest_before: the same before first_seq. runs: its exact runs, None where there is one,
    over all of it (every segment that nobody merged or condensed). raw: what it was decoded from, which is
    written back as it was, with all that this program does not know.
    """

    generation: str
    file_name: str
    bytes: int
    index_bytes: int
    records: int
    highest_id: int | None
    highest_before: int | None
    level: int = 0
    runs: tuple[Run, ...] | None = None
    stretch: Stretch | None = None
    raw: Json | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls, generation: str, name: SegmentName, summary: Summary, *, size: int, index_bytes: int
    ) -> SegmentEntry:
        """The entry of a segment that was uploaded under this name. size: bytes of the object."""
        entry = cls(
            generation=generation,
            file_name=name.format(),
            bytes=size,
            index_bytes=index_bytes,
            records=summary.records,
            highest_id=summary.highest_id,
            highest_before=summary.runs[0].highest_before if summary.exact else None,
            level=summary.level,
            stretch=summary.stretch,
        )
        derivable = summary.exact and entry.exact_runs == summary.runs
        return entry if derivable else replace(entry, runs=summary.runs, highest_before=None)

    @cached_property
    def name(self) -> SegmentName:
        """Raises DamageError for what is not a segment's name."""
        try:
            return SegmentName.parse(self.file_name)
        except InvalidError as error:
            raise damaged(self.key, str(error)) from error

    @property
    def key(self) -> str:
        """Below the namespace."""
        return f"{SEGMENTS_PREFIX}{self.generation}/{self.file_name}"

    @property
    def order(self) -> tuple[str, str]:
        """Sorts by generation, last seq, first seq: the numbers in a name have a fixed width."""
        return self.generation, self.file_name

    @property
    def last_seq(self) -> int:
        return int(self.file_name[:16], 16)

    @property
    def first_seq(self) -> int:
        return int(self.file_name[17:33], 16)

    @property
    def made(self) -> int:
        return self.name.made

    @property
    def exact_runs(self) -> tuple[Run, ...]:
        """The exact runs, the derived one too."""
        if self.runs is not None:
            return self.runs
        name = self.name
        if name.chain_before is None or name.chain_after is None:
            return ()
        return (
            Run(
                first_seq=name.first_seq,
                last_seq=name.last_seq,
                first_time=name.first_time,
                last_time=name.last_time,
                next_time=None,
                chain_before=name.chain_before,
                chain_after=name.chain_after,
                highest_before=self.highest_before,
            ),
        )

    def summary(self) -> Summary:
        """What the footer says of the range."""
        name = self.name
        return Summary(
            first_seq=name.first_seq,
            last_seq=name.last_seq,
            first_time=name.first_time,
            last_time=name.last_time,
            runs=self.exact_runs,
            records=self.records,
            highest_id=self.highest_id,
            chain_before=name.chain_before,
            chain_after=name.chain_after,
            level=self.level,
            stretch=self.stretch,
        )

    def as_json(self) -> Json:
        if self.raw is not None:
            return self.raw
        members = {
            "generation": self.generation,
            "name": self.file_name,
            "bytes": self.bytes,
            "index_bytes": self.index_bytes,
            "records": None if self.records == self.last_seq - self.first_seq + 1 else self.records,
            "highest_id": self.highest_id,
            "highest_before": self.highest_before,
            "level": self.level or None,
            "runs": None if self.runs is None else [_run_json(run) for run in self.runs],
            "stretch": None if self.stretch is None else _stretch_json(self.stretch),
        }
        return without_defaults(members, {})

    @classmethod
    def from_json(cls, value: Any) -> SegmentEntry:
        """Raises Malformed. The name is only looked at as far as it is needed here: a namespace has a
        hundred thousand of these, and most runs need a few."""
        take = Members(value, "segment")
        generation, file_name = take.hex("generation", 16), take.text("name")
        try:
            span = int(file_name[:16], 16) - int(file_name[17:33], 16) + 1
        except ValueError as error:
            raise Malformed(f"segment: not a name: {file_name!r:.100}") from error
        if len(file_name) != NAME_CHARACTERS or span < 1:
            raise Malformed(f"segment: not a name: {file_name!r:.100}")
        return cls(
            generation=generation,
            file_name=file_name,
            bytes=take.number("bytes"),
            index_bytes=take.number("index_bytes"),
            records=take.number("records") if take.has("records") else span,
            highest_id=take.maybe_number("highest_id", at_most=ID_MAX),
            highest_before=take.maybe_number("highest_before", at_most=ID_MAX),
            level=take.maybe_number("level") or 0,
            runs=take.each("runs", _run) if take.has("runs") else None,
            stretch=take.maybe("stretch", _stretch),
            raw=value,
        )


@dataclass(frozen=True, kw_only=True)
class ListRef:
    """A list of segments that the head names. first_seq, last_seq: the least and greatest in it."""

    key: str
    first_seq: int
    last_seq: int
    segments: int
    bytes: int
    extra: Json = field(default_factory=no_extra)

    def as_json(self) -> dict[str, Any]:
        members = {
            "name": self.key.removeprefix(LISTS_PREFIX),
            "first_seq": self.first_seq,
            "last_seq": self.last_seq,
            "segments": self.segments,
            "bytes": self.bytes,
        }
        return without_defaults(members, self.extra)

    @classmethod
    def from_json(cls, value: object) -> ListRef:
        take = Members(value, "list")
        return cls(
            key=_list_key(take.text("name")),
            first_seq=take.number("first_seq", at_most=SEQ_MAX),
            last_seq=take.number("last_seq", at_most=SEQ_MAX),
            segments=take.number("segments"),
            bytes=take.number("bytes"),
            extra=take.extra(),
        )


@dataclass(frozen=True)
class Gone:
    """An object that a head has let go of. since: when that head was written (ms, the store's clock);
    None: by the head that stands, and the next one fills it in."""

    key: str
    since: int | None = None
    extra: Json = field(default_factory=no_extra)

    def as_json(self) -> dict[str, Any]:
        return without_defaults({"key": self.key, "since": self.since}, self.extra)

    @classmethod
    def from_json(cls, value: object) -> Gone:
        take = Members(value, "gone")
        return cls(take.text("key"), take.maybe_number("since"), take.extra())


@dataclass(frozen=True, kw_only=True)
class GoneList:
    """A list of keys that were let go of, none later than `since` says (None: as in Gone)."""

    key: str
    since: int | None
    objects: int
    bytes: int
    extra: Json = field(default_factory=no_extra)

    def as_json(self) -> dict[str, Any]:
        members = {
            "name": self.key.removeprefix(LISTS_PREFIX),
            "since": self.since,
            "objects": self.objects,
            "bytes": self.bytes,
        }
        return without_defaults(members, self.extra)

    @classmethod
    def from_json(cls, value: object) -> GoneList:
        take = Members(value, "gone list")
        return cls(
            key=_list_key(take.text("name")),
            since=take.maybe_number("since"),
            objects=take.number("objects"),
            bytes=take.number("bytes"),
            extra=take.extra(),
        )


def made_of(key: str) -> int | None:
    """`made` of the segment or list that a key names; None for any other key."""
    parsed = parse_key(key)
    if isinstance(parsed, SegmentKey):
        return parsed.name.made
    return parsed.made if isinstance(parsed, ListKey) else None


def _list_key(name: str) -> str:
    if not isinstance(parse_key(LISTS_PREFIX + name), ListKey):
        raise Malformed(f"list: not a name: {name!r:.100}")
    return LISTS_PREFIX + name


def _run_json(run: Run) -> dict[str, Any]:
    members = {
        "first_seq": run.first_seq,
        "last_seq": run.last_seq,
        "first_time": run.first_time,
        "last_time": run.last_time,
        "next_time": run.next_time,
        "chain_before": run.chain_before,
        "chain_after": run.chain_after,
        "highest_before": run.highest_before,
    }
    return without_defaults(members, {})


def _run(value: object) -> Run:
    take = Members(value, "run")
    return Run(
        first_seq=take.number("first_seq", at_most=SEQ_MAX),
        last_seq=take.number("last_seq", at_most=SEQ_MAX),
        first_time=take.number("first_time", at_most=TIME_MAX),
        last_time=take.number("last_time", at_most=TIME_MAX),
        next_time=take.maybe_number("next_time", at_most=TIME_MAX),
        chain_before=take.number("chain_before", at_most=CHAIN_MAX),
        chain_after=take.number("chain_after", at_most=CHAIN_MAX),
        highest_before=take.maybe_number("highest_before", at_most=ID_MAX),
    )


def _stretch_json(stretch: Stretch) -> dict[str, Any]:
    return {"id": f"{stretch.id:016x}", "part": stretch.part, "parts": stretch.parts}


def _stretch(value: object) -> Stretch:
    take = Members(value, "stretch")
    return Stretch(int(take.hex("id", 16), 16), take.number("part"), take.number("parts"))
