"""Segments, generations and namespaces without a database: what tests of the head are made of."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from compactor.entries import SegmentEntry
from compactor.follow import Change, Writer, follow
from compactor.generations import Generation, Parent
from compactor.host import Host
from compactor.meta.index import MetaIndex
from compactor.namespace import Namespace
from compactor.publish import publish
from compactor.store.base import Store
from compactor.store.memory import Bucket, MemoryStore
from compactor.url import parse_url
from compactor.view import View
from ourdb.names import SegmentName
from ourdb.segment.summary import Run, Summary
from tests.faulty import FaultyStore

GEN, OTHER, THIRD = "a" * 16, "b" * 16, "c" * 16
UUID = "0123456789abcdef" * 2
URL = "memory://bucket/prefix/name"
CONFIG = {"mode": "kv", "file_size": 1 << 20}


class Clock:
    """Milliseconds of the store, and seconds of the machine: both stand until they are told to go on."""

    def __init__(self) -> None:
        self.ms = 1_800_000_000_000
        self.seconds = 1000.0

    def store_ms(self) -> int:
        self.ms += 1
        return self.ms

    def machine(self) -> float:
        return self.seconds


def chain_at(seq: int, salt: int = 0) -> int:
    """A chain that depends on the seq (and on the history, by its salt)."""
    return 0 if seq == 0 else (seq * 2654435761 + salt) & 0xFFFFFFFF


def summary_of(
    first: int, last: int, *, salt: int = 0, level: int = 0, runs: list[tuple[int, int]] | None = None
) -> Summary:
    """Of seqs first to last, each with a time of ten times its seq. runs: None for all of it."""
    spans = [(first, last)] if runs is None else runs
    exact = tuple(
        Run(
            first_seq=a,
            last_seq=b,
            first_time=a * 10,
            last_time=b * 10,
            next_time=None if b == last else b * 10 + 10,
            chain_before=chain_at(a - 1, salt),
            chain_after=chain_at(b, salt),
            highest_before=None if a == 1 else a - 1,
        )
        for a, b in spans
    )
    whole = runs is None
    return Summary(
        first_seq=first,
        last_seq=last,
        first_time=first * 10,
        last_time=last * 10,
        runs=exact,
        records=last - first + 1 if whole else max(1, sum(b - a + 1 for a, b in spans)),
        highest_id=last,
        chain_before=chain_at(first - 1, salt),
        chain_after=chain_at(last, salt),
        level=level,
    ).validate()


def entry_of(
    first: int,
    last: int,
    *,
    generation: str = GEN,
    made: int = 0,
    salt: int = 0,
    level: int = 0,
    runs: list[tuple[int, int]] | None = None,
) -> SegmentEntry:
    """An uploaded segment."""
    summary = summary_of(first, last, salt=salt, level=level, runs=runs)
    name = SegmentName(
        last_seq=last,
        first_seq=first,
        last_time=summary.last_time,
        first_time=summary.first_time,
        horizon=summary.horizon,
        chain_before=summary.chain_before,
        chain_after=summary.chain_after,
        made=made,
        random=random.getrandbits(64),
    )
    return SegmentEntry.of(generation, name, summary, size=1000 + last, index_bytes=100)


def end_of(
    last: int,
    *,
    generation: str = GEN,
    salt: int = 0,
    parent: Parent | None = None,
    successor: str | None = None,
) -> Generation:
    """A generation that ends at this seq."""
    return Generation(
        id=generation,
        parent=parent,
        last_seq=last,
        last_time=last * 10,
        chain=chain_at(last, salt),
        highest_id=last or None,
        as_of=last * 10 + 5,
        successor=successor,
    )


@dataclass
class Site:
    """A bucket, and one machine that writes there."""

    clock: Clock = field(default_factory=Clock)
    bucket: Bucket = field(default_factory=Bucket)
    meta: MetaIndex | None = None
    folder: Path | None = None
    uuid: str = UUID

    def __post_init__(self) -> None:
        self.bucket.clock_ms = self.clock.store_ms
        self.store = FaultyStore(self.plain())
        self.namespace = self.open()

    def plain(self) -> Store:
        return MemoryStore(parse_url(URL), bucket=self.bucket)

    def open(self, store: Store | None = None, meta: MetaIndex | None = None) -> Namespace:
        """A namespace as a new process has it (with the site's meta index, if it has one)."""
        return Namespace(
            store or self.store, meta or self.meta, host=Host(self.folder), clock=self.clock.machine
        )

    def writer(self, namespace: Namespace | None = None, **changes: object) -> Writer:
        at = namespace or self.namespace
        writer = Writer(uuid=self.uuid, namespace=at.name, config=CONFIG, host=at.host.id, known=at.known)
        return replace(writer, single_writer=bool(at.single_writer), **changes)  # type: ignore[arg-type]

    def ship(self, count: int, *, namespace: Namespace | None = None, generation: str = GEN) -> View:
        """One backup of `count` seqs by a machine that reads the head first."""
        at = namespace or self.namespace
        view = at.read(required=False)
        change = self.backup(view, count, generation=generation)
        done = publish(at, follow(view, self.writer(at), change))
        assert done is not None
        return done

    def backup(self, view: View | None, count: int, *, generation: str = GEN, upload: bool = True) -> Change:
        """What a backup of the next `count` seqs of a generation changes; its segment is uploaded."""
        end = view.head.generations.get(generation) if view else None
        first = end.last_seq + 1 if end else 1
        entry = entry_of(
            first, first + count - 1, generation=generation, made=view.head.revision if view else 0
        )
        if upload:
            self.plain().put_stream(entry.key, [b"segment"])
        generations = {generation: end_of(first + count - 1, generation=generation)}
        return Change(add=[entry], generations=generations)

    def objects(self) -> Mapping[str, object]:
        root = parse_url(URL).root + "/"
        return {key.removeprefix(root): value for key, value in self.bucket.objects.items()}
