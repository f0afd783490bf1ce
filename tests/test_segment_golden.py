"""Golden files: today's program reads what format version 1 wrote, and writes it the same."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from ourdb.record import decode_record
from ourdb.segment.index import PLAIN, STEP
from ourdb.segment.reader import SegmentReader
from tests.golden.make import FOLDER, HEADER, Golden, make
from tests.segment_tools import open_bytes

NAMES = ["local.db", "uploaded.seg", "merged.seg", "part.seg"]


def content(reader: SegmentReader, name: str) -> dict[str, object]:
    """All that the file holds, in the form of its JSON."""
    records = []
    for columns, raw in reader.blocks():
        offset = 0
        for _ in range(len(columns)):
            record = decode_record(raw, offset)
            offset += 36 + len(record.value)
            records.append(
                {
                    "seq": record.seq,
                    "id": record.id,
                    "time": record.time_ms,
                    "flags": record.flags,
                    "value": record.value.hex(),
                }
            )
    return {"file": name, "summary": asdict(reader.summary), "records": records}


@pytest.fixture(scope="module")
def made() -> dict[str, Golden]:
    return {golden.name: golden for golden in make()}


@pytest.mark.parametrize("name", NAMES)
def test_golden_file_is_read_as_it_was_meant(name: str) -> None:
    reader = open_bytes((FOLDER / name).read_bytes())
    reader.check_all()
    wanted = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(content(reader, name))) == wanted
    assert reader.header() == HEADER


@pytest.mark.parametrize("name", NAMES)
def test_writer_gives_the_same_content(name: str, made: dict[str, Golden]) -> None:
    golden, stored = open_bytes(made[name].data), open_bytes((FOLDER / name).read_bytes())
    assert content(golden, name) == content(stored, name)
    assert golden.footer.name == stored.footer.name
    assert [page.records for page in golden.pages] == [page.records for page in stored.pages]


def test_writer_gives_the_same_bytes_where_nothing_is_compressed(made: dict[str, Golden]) -> None:
    """What zstd makes of the same bytes may change with its version; the rest may not."""
    stored = (FOLDER / "local.db").read_bytes()
    (page,) = open_bytes(stored).pages
    assert {column.encoding & 15 for column in page.columns} <= {PLAIN, STEP}
    assert made["local.db"].data == stored
    for name in NAMES[1:]:
        assert made[name].data[:80] == (FOLDER / name).read_bytes()[:80]
