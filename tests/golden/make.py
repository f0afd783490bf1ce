"""Makes the golden files of format version 1, and what they hold: `python -m tests.golden.make`.

They are made once and kept for ever: a later version of the program has to read them. The test makes them
anew in memory and compares.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from crc32c import crc32c

from ourdb.config import Config
from ourdb.record import BATCH_GOES_ON, TOMBSTONE
from ourdb.segment.block import BlockTable
from ourdb.segment.header import Header
from ourdb.segment.summary import Stretch, Summary
from ourdb.segment.writer import FooterPlan, IndexBuilder
from tests.segment_tools import GENERATION, UUID, Log, build

FOLDER = Path(__file__).parent / "format-v1"
CONFIG = Config(mode="incremental", record_nr_max=2**32 - 1, record_size_max=65_536, file_size=1 << 20)
HEADER = Header(
    uuid=UUID, generation=GENERATION, file_nr=3, file_id=0x0F1E2D3C4B5A6978, first_seq=1, config=CONFIG
)
TIME = 1_795_402_800_000  # 2026-11-22
EARLY = 86_400_000  # the day after the epoch: no column of so few records is worth compressing

SMALL = Log(
    [
        (1, b"first", EARLY, False),
        (0, b"", EARLY + 40, True),
        (2**32 - 1, b"\x00\xff" * 9, EARLY + 40, False),
        (1, None, EARLY + 41, False),
        (1, b"again", EARLY + 41, True),
        (7, b"seven", EARLY + 41, False),
        (0, b"filled", EARLY + 1000, False),
    ]
)


def _value(number: int) -> bytes | None:
    return None if number % 11 == 0 else b'{"n": %d, "text": "%s"}' % (number, b"la" * (number % 30))


LARGE = Log([(at % 40, _value(at), TIME + at // 2, at % 2 == 0) for at in range(300)])


@dataclass(frozen=True)
class Golden:
    """A file and what it holds: the summary, and the seqs of its log."""

    name: str
    data: bytes
    log: Log
    summary: Summary
    seqs: Sequence[int]

    def as_json(self) -> dict[str, Any]:
        return {
            "file": self.name,
            "summary": asdict(self.summary),
            "records": [self._record(seq) for seq in self.seqs],
        }

    def _record(self, seq: int) -> dict[str, Any]:
        id_, value, time_ms, goes_on = self.log.writes[seq - 1]
        flags = (TOMBSTONE if value is None else 0) | (BATCH_GOES_ON if goes_on else 0)
        return {"seq": seq, "id": id_, "time": time_ms, "flags": flags, "value": (value or b"").hex()}


def make() -> list[Golden]:
    """All golden files."""
    return [_local(), _segment(), _merged(), _part()]


def _local() -> Golden:
    """A sealed local file: two raw blocks."""
    halves = [b"".join(SMALL.records[:3]), b"".join(SMALL.records[3:])]
    header, summary = HEADER.encode(), SMALL.summary(1, 7)
    out = bytearray(header + b"".join(halves))
    plan = FooterPlan(summary=summary, generation=GENERATION, made=0, random=HEADER.file_id)
    builder = IndexBuilder(header, plan, out.extend)
    builder.add(
        SMALL.columns(),
        BlockTable.raw([3, 4], [len(half) for half in halves], [crc32c(half) for half in halves]),
    )
    builder.finish()
    return Golden("local.db", bytes(out), SMALL, summary, range(1, 8))


def _segment() -> Golden:
    """A segment as it is uploaded: several compressed blocks."""
    summary = LARGE.summary(101, 300)
    data = build(LARGE, summary, range(101, 301), target=4000, header=HEADER)
    return Golden("uploaded.seg", data, LARGE, summary, range(101, 301))


def _merged() -> Golden:
    """A merged one: a pin at 60, and exact runs from 100 to 120 and from 250 on."""
    runs = [LARGE.summary(a, b).runs[0] for a, b in ((60, 60), (100, 120), (250, 300))]
    seqs = [*range(30, 61, 3), *range(70, 100, 7), *range(100, 121), *range(140, 250, 9), *range(250, 301)]
    summary = replace(
        LARGE.summary(1, 300),
        runs=tuple(
            replace(run, next_time=None if run.last_seq == 300 else LARGE.time(run.last_seq + 1))
            for run in runs
        ),
        records=len(seqs),
        level=2,
    )
    return Golden("merged.seg", build(LARGE, summary, seqs, target=4000, header=HEADER), LARGE, summary, seqs)


def _part() -> Golden:
    """The second part of a stretch that was cut into three."""
    seqs = list(range(101, 200, 4))
    summary = replace(
        LARGE.summary(101, 200),
        runs=(),
        records=len(seqs),
        highest_id=None,
        chain_before=None,
        chain_after=None,
        last_time=LARGE.time(200),
        level=1,
        stretch=Stretch(0xFEEDFACECAFEBEEF, 2, 3),
    )
    return Golden("part.seg", build(LARGE, summary, seqs, target=4000, header=HEADER), LARGE, summary, seqs)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for golden in make():
        (FOLDER / golden.name).write_bytes(golden.data)
        text = json.dumps(golden.as_json(), indent=1)
        (FOLDER / f"{golden.name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
