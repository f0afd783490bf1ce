"""Logs and segments for tests of the format: made by the plain record codec, one record at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from crc32c import crc32c
from zstandard import ZstdCompressor

from ourdb.config import Config
from ourdb.record import BATCH_GOES_ON, TOMBSTONE, decode_record, encode_record
from ourdb.segment.block import BLOCK_RAW_TARGET, Block, cut_blocks, encode_block
from ourdb.segment.columns import Columns, columns_at
from ourdb.segment.header import Header
from ourdb.segment.reader import SegmentReader
from ourdb.segment.summary import Summary, unmerged_summary
from ourdb.segment.writer import FooterPlan, SegmentWriter

UUID = bytes(range(16))
GENERATION = 0x1122334455667788
HEADER = Header(
    uuid=UUID,
    generation=GENERATION,
    file_nr=0,
    file_id=0xABCDEF,
    first_seq=1,
    config=Config(record_nr_max=2**32 - 1),
)


@dataclass
class Log:
    """A history: each write is (id, value or None, time in ms, whether its batch goes on)."""

    writes: Sequence[tuple[int, bytes | None, int, bool]]
    records: list[bytes] = field(default_factory=list)
    chains: list[int] = field(default_factory=lambda: [0])
    tops: list[int | None] = field(default_factory=lambda: [None])

    def __post_init__(self) -> None:
        newest: dict[int, int] = {}
        for seq, (id_, value, time_ms, goes_on) in enumerate(self.writes, 1):
            flags = (TOMBSTONE if value is None else 0) | (BATCH_GOES_ON if goes_on else 0)
            record = encode_record(
                id_, value or b"", seq=seq, prev_seq=newest.get(id_, 0), time_ms=time_ms, flags=flags
            )
            newest[id_] = seq
            self.records.append(record)
            self.chains.append(crc32c(record[:4], self.chains[-1]))
            self.tops.append(max(id_, self.tops[-1] or 0))

    def __len__(self) -> int:
        return len(self.records)

    def columns(self, seqs: Iterable[int] | None = None) -> Columns:
        """The columns of these seqs (default: all)."""
        records = self.take(seqs)
        sizes = [len(record) for record in records]
        return columns_at(b"".join(records), np.cumsum([0, *sizes])[:-1].astype(np.int64))

    def take(self, seqs: Iterable[int] | None = None) -> list[bytes]:
        return self.records if seqs is None else [self.records[seq - 1] for seq in seqs]

    def time(self, seq: int) -> int:
        return self.writes[seq - 1][2]

    def batch_ends(self) -> list[int]:
        return [seq for seq, write in enumerate(self.writes, 1) if not write[3] or seq == len(self.writes)]

    def state(self, seqs: Iterable[int], target: int) -> dict[int, bytes]:
        """What is there at `target` if only these seqs are known."""
        state = {self.writes[seq - 1][0]: self.writes[seq - 1][1] for seq in sorted(seqs) if seq <= target}
        return {id_: value for id_, value in state.items() if value is not None}

    def summary(self, first: int, last: int) -> Summary:
        """Of the unmerged segment of this range."""
        columns = self.columns(range(first, last + 1))
        return unmerged_summary(columns, self.chains[first - 1], self.tops[first - 1])


def plain_log(count: int, *, size: int = 20) -> Log:
    """Writes of a few ids, one tombstone in ten, batches of one."""
    return Log(
        [
            (seq % 7, None if seq % 10 == 9 else b"v%d " % seq * (size // 4), 1000 + 5 * seq, False)
            for seq in range(count)
        ]
    )


def cut(
    records: Sequence[bytes], columns: Columns, *, target: int = BLOCK_RAW_TARGET, zstd: bool = True
) -> list[Block]:
    compressor = ZstdCompressor(level=1) if zstd else None
    blocks, start = [], 0
    for count in cut_blocks(columns.length, target).tolist():
        blocks.append(encode_block(b"".join(records[start : start + count]), count, compressor))
        start += count
    return blocks


def build(
    log: Log,
    summary: Summary | None = None,
    seqs: Iterable[int] | None = None,
    *,
    target: int = BLOCK_RAW_TARGET,
    zstd: bool = True,
    made: int = 3,
    random: int = 9,
    header: Header | bytes = HEADER,
) -> bytes:
    """The bytes of a segment of these seqs (default: the whole log, unmerged)."""
    kept = list(range(1, len(log) + 1) if seqs is None else seqs)
    columns = log.columns(kept)
    plan = FooterPlan(
        summary=summary or log.summary(kept[0], kept[-1]), generation=GENERATION, made=made, random=random
    )
    out = bytearray()
    with SegmentWriter(header, plan, out.extend) as writer:
        start = 0
        for block in cut(log.take(kept), columns, target=target, zstd=zstd):
            writer.add(block, columns[start : start + block.records])
            start += block.records
        writer.finish()
    return bytes(out)


class Record(NamedTuple):
    """value: None is a deletion."""

    seq: int
    id: int
    value: bytes | None


def decoded(segment: SegmentReader) -> Iterator[Record]:
    """All records, verified and decoded one by one."""
    for columns, raw in segment.blocks():
        offset = 0
        for length in columns.raw_sizes.tolist():
            record = decode_record(raw, offset)
            offset += length
            yield Record(record.seq, record.id, None if record.flags & TOMBSTONE else bytes(record.value))


def open_bytes(data: bytes, *, index_bytes: int | None = None, where: str | None = None) -> SegmentReader:
    """A reader of bytes in memory."""
    return SegmentReader(
        len(data), lambda offset, length: data[offset : offset + length], index_bytes=index_bytes, where=where
    )
