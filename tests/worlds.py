"""Stores made by hand for tests: any history, cut into any segments, merged or not, under one head.

The commit protocol has tests of its own; here the head is put as it is said, so that shapes can be made
that no single run would make.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import zstandard
from crc32c import crc32c

from compactor.body import Json
from compactor.entries import SegmentEntry
from compactor.generations import Forgotten, Generation, Parent, Pin
from compactor.head import Head, Known, encode_head
from compactor.namespace import Namespace
from compactor.store import Store, open_store
from compactor.view import View
from ourdb.config import Config
from ourdb.names import HEAD_KEY
from ourdb.record import BATCH_GOES_ON, TOMBSTONE, encode_record, gather_headers
from ourdb.segment.block import encode_block
from ourdb.segment.columns import columns_of
from ourdb.segment.footer import segment_name
from ourdb.segment.header import Header
from ourdb.segment.summary import Run, Stretch, Summary
from ourdb.segment.writer import FooterPlan, SegmentWriter

UUID = bytes(range(16))
HOUR = 3_600_000
DAY_0 = 1_800_000_000_000  # some day
_buckets = itertools.count(1)

State = dict[int, bytes]


@dataclass(frozen=True)
class Write:
    """A record to be: value None deletes; goes_on: the batch goes on after it."""

    id: int
    value: bytes | None
    time: int
    goes_on: bool = False


class Log:
    """Records 1..n, as an engine would have written them."""

    def __init__(self, writes: Iterable[Write] = ()) -> None:
        self.writes: list[Write] = []
        self.raw: list[bytes] = []
        self.chains = [0]
        self.highest: list[int | None] = [None]
        self._newest: dict[int, int] = {}
        for write in writes:
            self.append(write)

    def __len__(self) -> int:
        return len(self.writes)

    def append(self, write: Write) -> int:
        seq = len(self.writes) + 1
        flags = (TOMBSTONE if write.value is None else 0) | (BATCH_GOES_ON if write.goes_on else 0)
        record = encode_record(
            write.id,
            write.value or b"",
            seq=seq,
            prev_seq=self._newest.get(write.id, 0),
            time_ms=write.time,
            flags=flags,
        )
        self._newest[write.id] = seq
        self.writes.append(write)
        self.raw.append(record)
        self.chains.append(crc32c(record[:4], self.chains[-1]))
        highest = self.highest[-1]
        self.highest.append(write.id if highest is None else max(highest, write.id))
        return seq

    def batch(self, pairs: Iterable[tuple[int, bytes | None]], time: int) -> int:
        listed = list(pairs)
        for at, (id_, value) in enumerate(listed, 1):
            self.append(Write(id_, value, time, at < len(listed)))
        return len(self)

    def copy(self, upto: int) -> Log:
        return Log(self.writes[:upto])

    def time(self, seq: int) -> int:
        return self.writes[seq - 1].time

    def ends(self) -> list[int]:
        """The seqs that end a batch."""
        return [seq for seq, write in enumerate(self.writes, 1) if not write.goes_on]

    def state(self, seq: int) -> State:
        """What a database holds at a seq."""
        held: State = {}
        for write in self.writes[:seq]:
            if write.value is None:
                held.pop(write.id, None)
            else:
                held[write.id] = write.value
        return held

    def run(self, first: int, last: int, end: int) -> Run:
        """An exact run of a segment that ends at `end`."""
        ends = (seq for seq in range(first, last + 1) if not self.writes[seq - 1].goes_on)
        return Run(
            first_seq=first,
            last_seq=last,
            first_time=self.time(next(ends, last)),
            last_time=self.time(last),
            next_time=None if last == end else self.time(last + 1),
            chain_before=self.chains[first - 1],
            chain_after=self.chains[last],
            highest_before=self.highest[first - 1],
        )

    def kept(self, first: int, last: int, runs: Sequence[tuple[int, int]]) -> list[int]:
        """The seqs that a merge keeps: all in the runs, and each version that lives somewhere in them."""
        protected = [seq for a, b in runs for seq in range(a, b + 1)]
        found = {seq for seq in protected if first <= seq <= last}
        for point in protected:
            newest = {self.writes[seq - 1].id: seq for seq in range(first, point + 1)}
            found.update(newest.values())
        return sorted(found)


def writes(count: int, *, start: int = DAY_0, step: int = 1000, ids: int = 7, size: int = 20) -> Log:
    """`count` records, one a batch, `step` ms apart; each eighth deletes."""
    return Log(
        Write(n % ids, None if n % 8 == 7 else f"{n}-".encode() * (1 + n % size), start + n * step)
        for n in range(1, count + 1)
    )


@dataclass
class World:
    """One namespace. Segments are uploaded at once; `publish` puts the head."""

    store: Store
    config: Config = field(default_factory=lambda: Config(file_size=64 << 10))
    generations: dict[str, Generation] = field(default_factory=dict)
    logs: dict[str, Log] = field(default_factory=dict)
    segments: list[SegmentEntry] = field(default_factory=list)
    pins: tuple[Pin, ...] = ()
    forgotten: tuple[Forgotten, ...] = ()
    policy: Json | None = None
    revision: int = 0
    kept: Known = Known(0, "")  # noqa: RUF009

    def line(
        self,
        name: str,
        log: Log,
        cuts: Sequence[int] = (),
        *,
        parent: tuple[str, int] | None = None,
        as_of: int | None = None,
        takes_over: str | None = None,
    ) -> None:
        """A generation with this log, its own part of which is cut behind the seqs `cuts` into segments."""
        self.logs[name] = log
        start = parent[1] if parent else 0
        self.generations[name] = Generation(
            id=name,
            parent=Parent(parent[0], start, log.chains[start]) if parent else None,
            last_seq=len(log),
            last_time=log.time(len(log)) if len(log) else 0,
            chain=log.chains[-1],
            highest_id=log.highest[-1],
            as_of=as_of if as_of is not None else (log.time(len(log)) if len(log) else DAY_0),
        )
        if takes_over:
            self.generations[takes_over] = replace(self.generations[takes_over], successor=name)
        ends = [start, *cuts, len(log)]
        for before, last in itertools.pairwise(ends):
            if before < last:
                self.segment(name, before + 1, last)

    def segment(
        self,
        generation: str,
        first: int,
        last: int,
        runs: Sequence[tuple[int, int]] | None = None,
        *,
        stretch: Stretch | None = None,
        level: int = 0,
    ) -> SegmentEntry:
        """Uploads a segment, with `runs` a merged one that is exact only there, and names it."""
        log = self.logs[generation]
        exact = [(first, last)] if runs is None else list(runs)
        seqs = list(range(first, last + 1)) if runs is None else log.kept(first, last, exact)
        if stretch and not exact:
            seqs = list(range(first, last + 1))
        inner_start, inner_end = (
            bool(stretch and stretch.part > 1),
            bool(stretch and stretch.part < stretch.parts),
        )
        summary = Summary(
            first_seq=first,
            last_seq=last,
            first_time=log.time(first),
            last_time=log.time(last),
            runs=tuple(log.run(a, b, last) for a, b in exact),
            records=len(seqs),
            highest_id=log.highest[last],
            chain_before=None if inner_start else log.chains[first - 1],
            chain_after=None if inner_end else log.chains[last],
            level=level,
            stretch=stretch,
        )
        random = len(self.segments) + 1
        data = bytearray()
        header = Header(
            uuid=UUID,
            generation=int(generation, 16),
            file_nr=0,
            file_id=random,
            first_seq=first,
            config=self.config,
        )
        plan = FooterPlan(summary=summary, generation=int(generation, 16), made=0, random=random)
        with SegmentWriter(header, plan, data.extend) as writer:
            for piece in _pieces([log.raw[seq - 1] for seq in seqs]):
                raw = b"".join(piece)
                offsets = np.cumsum([0, *map(len, piece[:-1])])
                block = encode_block(raw, len(piece), zstandard.ZstdCompressor(level=1))
                writer.add(block, columns_of(gather_headers(raw, offsets)))
            footer = writer.finish()
        entry = SegmentEntry.of(
            generation,
            segment_name(summary, made=0, random=random),
            summary,
            size=len(data),
            index_bytes=footer.index_bytes,
        )
        self.store.put_if_absent(entry.key, bytes(data))
        self.segments.append(entry)
        return entry

    def publish(self) -> None:
        """Puts the head that names all this."""
        self.revision += 1
        head = Head(
            uuid=UUID.hex(),
            namespace=self.store.url.namespace,
            revision=self.revision,
            run=f"{self.revision:016x}",
            host="f" * 16,
            config=self.config.as_json(),
            generations=self.generations,
            pins=self.pins,
            policy=self.policy,
            forgotten=self.forgotten,
            added=tuple(sorted(self.segments, key=lambda entry: entry.order)),
            kept=self.kept,
        )
        self.replace_head(encode_head(head))

    def replace_head(self, data: bytes) -> None:
        there = self.store.head(HEAD_KEY)
        if there is None:
            self.store.put_if_absent(HEAD_KEY, data)
        else:
            self.store.put_if_match(HEAD_KEY, data, there.etag)

    @property
    def view(self) -> View:
        found = Namespace(self.store).read()
        assert found is not None
        return found

    @property
    def url(self) -> str:
        return self.store.url.display

    def change_object(self, key: str, change: Callable[[bytes], bytes] | None) -> None:
        """Damages an object, or removes it."""
        data = self.store.get(key).data
        assert not self.store.delete_many([key])
        if change:
            self.store.put_if_absent(key, change(data))

    def flip(self, key: str, offset: int) -> None:
        """One bit of an object; an offset below 0 counts from its end."""

        def change(data: bytes) -> bytes:
            altered = bytearray(data)
            altered[offset] ^= 1
            return bytes(altered)

        self.change_object(key, change)


def memory_world() -> World:
    return World(open_store(f"memory://world{next(_buckets)}/name"))


def file_world(folder: Path) -> World:
    return World(open_store(f"file://{folder}/name"))


def _pieces(records: list[bytes]) -> Iterable[list[bytes]]:
    """Blocks of a few records, so that small worlds have many; a large record has its own."""
    piece: list[bytes] = []
    for record in records:
        if piece and (len(piece) == 5 or len(piece[0]) + len(record) > 128 << 10):
            yield piece
            piece = []
        piece.append(record)
    yield piece
