"""docs/format.md: its tables are the layouts in the code, and its example is what the writer writes."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from crc32c import crc32c

from ourdb.config import Config
from ourdb.names import SegmentName
from ourdb.record import RECORD_HEADER_BYTES, decode_record
from ourdb.segment import footer as footer_module
from ourdb.segment.block import BlockTable
from ourdb.segment.footer import FOOTER_BYTES, RUN_BYTES, FooterFields
from ourdb.segment.header import HEADER_BYTES, Header, header_crc
from ourdb.segment.index import DELTA, LAYOUTS, PAGE_ENTRY_BYTES, PLAIN, SHUFFLED
from ourdb.segment.writer import FooterPlan, IndexBuilder
from tests.segment_tools import Log, open_bytes

TEXT = (Path(__file__).parent.parent / "docs" / "format.md").read_text(encoding="utf-8")
LOG = Log([(7, b"hello", 1000, False), (0, b"", 1005, True), (7, None, 1005, False)])
HEADER = Header(
    uuid=bytes(range(16)),
    generation=0xA1,
    file_nr=0,
    file_id=0xF1,
    first_seq=1,
    config=Config(record_nr_max=99, record_size_max=4096, file_size=1 << 20),
)
Row = tuple[int, int, str]  # offset, size, field


def example_rows() -> list[tuple[int, bytes, str, str]]:
    """(offset, bytes, part, text) of each line of the example."""
    (block,) = re.findall(r"^```hex\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    rows, part = [], ""
    for line in block.splitlines():
        if line.startswith("#"):
            part = line.removeprefix("# ")
            continue
        match = re.fullmatch(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+?) *(?:  (\S.*))?", line)
        assert match, line
        rows.append((int(match[1], 16), bytes.fromhex(match[2]), part, match[3] or ""))
    return rows


def table(name: str) -> list[Row]:
    """The rows of the table behind `<!-- table: name -->` that have a size."""
    (body,) = re.findall(rf"<!-- table: {name} -->\n((?:\|.*\n)+)", TEXT)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]
    return [(int(row[0]), int(row[1]), row[2]) for row in cells if row[1]]


@pytest.fixture(scope="module")
def example() -> bytes:
    return b"".join(row[1] for row in example_rows())


def test_example_lines_follow_each_other() -> None:
    place = 0
    for offset, data, part, _ in example_rows():
        assert offset == place, part
        place += len(data)
    assert f"{place} bytes" in TEXT


def test_example_is_what_the_writer_writes(example: bytes) -> None:
    raw = b"".join(LOG.records)
    out = bytearray(HEADER.encode() + raw)
    plan = FooterPlan(summary=LOG.summary(1, 3), generation=0xA1, made=0, random=0xF1)
    builder = IndexBuilder(HEADER.encode(), plan, out.extend)
    builder.add(LOG.columns(), BlockTable.raw([3], [len(raw)], [crc32c(raw)]))
    builder.finish()
    assert example == bytes(out)


def test_example_is_read(example: bytes) -> None:
    reader = open_bytes(example)
    reader.check_all()
    assert reader.header() == HEADER
    name = reader.footer.name.format()
    assert f"`{name}`" in TEXT
    assert SegmentName.parse(name) == reader.footer.name


def test_numbers_of_the_example_are_those_of_its_bytes(example: bytes) -> None:
    """Each `field: number` is the integer that its bytes are."""
    checked = 0
    for offset, data, part, text in example_rows():
        match = re.match(r"(\w+): (0x[0-9a-f]+|\d+)(?: |$)", text)
        if match:
            assert int.from_bytes(data, "little") == int(match[2], 0), (part, hex(offset))
            checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    ("part", "name"),
    [("header", "header"), ("index: directory", "page"), ("index: exact runs", "run"), ("footer", "footer")],
)
def test_fields_of_the_example_lie_where_the_tables_say(part: str, name: str) -> None:
    rows = [(offset, len(data), text) for offset, data, of, text in example_rows() if of == part]
    start = rows[0][0]
    for (offset, size, field), (place, length, text) in zip(table(name), rows, strict=False):
        assert text.split(":")[0].split(" ")[0] == (field if field != "columns" else "id")
        assert place - start == offset
        assert length == size or field == "columns"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("record", RECORD_HEADER_BYTES),
        ("header", HEADER_BYTES),
        ("page", PAGE_ENTRY_BYTES),
        ("run", RUN_BYTES),
        ("footer", FOOTER_BYTES),
    ],
)
def test_tables_add_up_to_the_sizes_in_the_code(name: str, size: int) -> None:
    place = 0
    for offset, length, field in table(name):
        assert offset == place, field
        place += length
    assert place == size


def test_footer_table_has_the_fields_of_the_code() -> None:
    assert [field for _, _, field in table("footer")] == list(FooterFields._fields)
    sizes = [
        struct.calcsize("<" + code) for code in re.findall(r"\d*[a-zA-Z]", footer_module._FORMAT.format[1:])
    ]
    assert [size for _, size, _ in table("footer")] == sizes


def test_columns_are_those_of_the_code() -> None:
    (body,) = re.findall(r"<!-- columns -->\n((?:\|.*\n)+)", TEXT)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()[2:]]
    packings = {PLAIN: "plain", SHUFFLED: "shuffled", DELTA: "delta"}
    wanted = [
        [
            name,
            str(layout.dtype.itemsize),
            "blocks" if layout.of_blocks else "records",
            packings[layout.packing],
        ]
        for name, layout in LAYOUTS.items()
    ]
    assert rows == wanted


def test_record_fields_of_the_example_are_decoded(example: bytes) -> None:
    record = decode_record(example, HEADER_BYTES)
    assert (record.id, record.value, record.seq, record.time_ms) == (7, b"hello", 1, 1000)
    assert header_crc(example) == crc32c(example[: HEADER_BYTES - 4])
