"""Whole segments: written, read by as few bytes as possible, and no damage gets through."""

from __future__ import annotations

import errno
import random
import threading
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

import ourdb.segment.writer
from ourdb.errors import DamageError, InvalidError, StorageError, UnknownFormatError
from ourdb.record import decode_record
from ourdb.segment.block import BlockTable
from ourdb.segment.columns import Columns
from ourdb.segment.footer import FOOTER_BYTES
from ourdb.segment.header import HEADER_BYTES
from ourdb.segment.index import PAGE_ENTRY_BYTES, PAGE_RECORDS_MAX
from ourdb.segment.reader import SegmentReader
from ourdb.segment.summary import Stretch, Summary
from ourdb.segment.writer import FooterPlan, IndexBuilder, SegmentWriter
from tests.segment_tools import GENERATION, HEADER, UUID, Log, build, cut, open_bytes, plain_log

LOG = plain_log(12)
SMALL = build(LOG, target=200)


def merged(log: Log, seqs: list[int], summary: Summary) -> bytes:
    return build(log, summary, seqs, target=300)


@pytest.fixture(scope="module")
def large() -> tuple[Log, bytes]:
    log = Log([(seq % 1000, b"%d" % seq, 1000 + seq // 7, False) for seq in range(70_000)])
    return log, build(log, target=20_000)


def test_segment_gives_back_its_records() -> None:
    reader = open_bytes(SMALL)
    reader.check_all()
    assert reader.header() == HEADER
    assert reader.summary == LOG.summary(1, 12)
    assert (reader.footer.uuid, reader.footer.generation) == (UUID, GENERATION)
    assert b"".join(bytes(raw) for _, raw in reader.blocks()) == b"".join(LOG.records)
    assert Columns.concat(list(reader.columns())).crc.tolist() == LOG.columns().crc.tolist()
    assert len(list(reader.blocks())) > 3


def test_footer_gives_the_segment_its_name() -> None:
    name = open_bytes(SMALL).footer.name
    assert (name.first_seq, name.last_seq, name.horizon, name.made, name.random) == (1, 12, 1, 3, 9)
    expect = name.format()
    fetch = lambda offset, length: SMALL[offset : offset + length]  # noqa: E731
    SegmentReader(len(SMALL), fetch, expect_name=expect, expect_uuid=UUID)
    other = replace(name, random=10).format()
    with pytest.raises(DamageError, match="another one") as caught:
        SegmentReader(len(SMALL), fetch, expect_name=other, in_store=True)
    assert (caught.value.kind, caught.value.fields["key"]) == ("store_damaged", other)
    with pytest.raises(DamageError, match="another database"):
        SegmentReader(len(SMALL), fetch, expect_uuid=bytes(16))


@pytest.mark.parametrize("zstd", [True, False])
def test_every_flipped_bit_is_found(zstd: bool) -> None:
    data = build(LOG, target=200, zstd=zstd)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamageError):
            open_bytes(bytes(flipped)).check_all()


def test_every_truncation_and_every_byte_more_is_found() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(DamageError):
            open_bytes(SMALL[:length]).check_all()
        with pytest.raises(DamageError):
            open_bytes(SMALL[length:] if length else b"").check_all()
    for longer in (SMALL + b"\0", b"\0" + SMALL, SMALL + SMALL, SMALL[:HEADER_BYTES] + SMALL):
        with pytest.raises(DamageError):
            open_bytes(longer).check_all()


def test_bytes_put_between_the_parts_are_found() -> None:
    reader = open_bytes(SMALL)
    places = [HEADER_BYTES, reader.footer.index_place, len(SMALL) - FOOTER_BYTES]
    places += [page.place for page in reader.pages]
    for place in places:
        with pytest.raises(DamageError):
            open_bytes(SMALL[:place] + bytes(4) + SMALL[place:]).check_all()


def test_file_that_shrinks_while_it_is_read_is_damage() -> None:
    size = len(SMALL)
    reader = SegmentReader(
        size, lambda offset, length: SMALL[offset:][: length - 1], tail=SMALL[-FOOTER_BYTES - 400 :]
    )
    with pytest.raises(DamageError, match="cut off"):
        reader.check_all()


def test_header_of_another_file_is_found() -> None:
    other = build(LOG, target=200, header=replace(HEADER, file_id=1))
    with pytest.raises(DamageError, match="not of the same file"):
        open_bytes(other[:HEADER_BYTES] + SMALL[HEADER_BYTES:]).check_all()


def test_errors_say_which_file_and_where() -> None:
    data = bytearray(SMALL)
    data[HEADER_BYTES + 5] ^= 1
    with pytest.raises(DamageError) as caught:
        open_bytes(bytes(data), where="notes/0.db").check_all()
    error = caught.value
    assert (error.kind, error.fields["file"], error.fields["offset"]) == (
        "corrupt",
        "notes/0.db",
        HEADER_BYTES,
    )
    assert error.message.endswith(": notes/0.db")
    assert error.message.count("notes/0.db") == 1


@given(st.binary(max_size=400), st.booleans())
@settings(max_examples=150, deadline=None)
def test_random_bytes_give_our_errors_only(data: bytes, with_footer: bool) -> None:
    with pytest.raises(DamageError):
        open_bytes(data + SMALL[-FOOTER_BYTES:] if with_footer else data).check_all()


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_forged_tables_with_fitting_checksums_give_our_errors_or_a_whole_segment(data: st.DataObject) -> None:
    """What is behind a checksum is not trusted either: any bytes of directory, runs and footer are changed,
    and all checksums over them made to fit."""
    tables = len(SMALL) - FOOTER_BYTES - PAGE_ENTRY_BYTES - 56
    raw = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(tables, len(raw) - 21))
        width = data.draw(st.sampled_from([1, 2, 4]))
        value = data.draw(
            st.sampled_from([b"\0\0\0\0", b"\1\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"])
        )
        raw[place : place + width] = value[:width]
    end = len(raw) - FOOTER_BYTES
    raw[-20:-16] = crc32c(raw[tables:end]).to_bytes(4, "little")
    raw[-12:-8] = crc32c(raw[end:-12]).to_bytes(4, "little")
    try:
        reader = open_bytes(bytes(raw))
        reader.check_all()
    except DamageError:
        return
    assert reader.summary.last_seq == 12


def test_small_segment_is_opened_by_one_read() -> None:
    reads: list[tuple[int, int]] = []

    def fetch(offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return SMALL[offset : offset + length]

    SegmentReader(len(SMALL), fetch).check_all()
    assert reads == [(0, len(SMALL))]
    reads.clear()
    reader = SegmentReader(len(SMALL), fetch, index_bytes=open_bytes(SMALL).footer.index_bytes)
    list(reader.columns())
    assert reads == [(reader.footer.index_place, len(SMALL) - reader.footer.index_place)]


def test_pages_hold_whole_blocks_and_are_read_by_themselves(large: tuple[Log, bytes]) -> None:
    _, data = large
    reads: list[tuple[int, int]] = []

    def fetch(offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return data[offset : offset + length]

    reader = SegmentReader(len(data), fetch, tail=data[-FOOTER_BYTES - 400 :])
    assert len(reader.pages) == 2
    assert all(page.records <= PAGE_RECORDS_MAX for page in reader.pages)
    assert sum(page.records for page in reader.pages) == 70_000
    assert reads == []
    page = reader.page(1)
    page.load("id", "seq", "flags")
    assert page.column("id").tolist() == [(seq - 1) % 1000 for seq in page.column("seq").tolist()]
    assert len(reads) == 1
    assert reads[0][1] < 10_000  # of some 400,000 bytes of index
    assert reader.find_pages(first_seq=70_000) == [1]
    assert reader.find_pages(last_seq=5) == [0]
    assert reader.find_pages(id=999) == [0, 1]
    assert reader.find_pages(id=1000) == []
    assert [len(ids) for (ids,) in reader.arrays("id")] == [page.records for page in reader.pages]


def test_single_record_is_read_by_the_block_that_holds_it(large: tuple[Log, bytes]) -> None:
    log, data = large
    reader = open_bytes(data)
    for seq in (1, 777, 65_000, 70_000):
        (number,) = reader.find_pages(first_seq=seq, last_seq=seq)
        page = reader.page(number)
        index = page.find(seq)
        assert index is not None
        block, offset = page.locate(index)
        assert decode_record(reader.read_block(page, block), offset).value == log.writes[seq - 1][1]
    assert reader.page(0).find(70_000) is None


def test_blocks_of_a_range_are_read_at_once(large: tuple[Log, bytes]) -> None:
    _, data = large
    reader = open_bytes(data)
    page = reader.page(0)
    some = reader.read_blocks(page, 3, 9)
    assert some == [reader.read_block(page, number) for number in range(3, 9)]
    assert sum(len(raw) for raw in some) == int(page.blocks.raw_bytes[3:9].sum())


def test_pieces_in_which_the_index_was_built_do_not_show(large: tuple[Log, bytes]) -> None:
    log, data = large
    reader = open_bytes(data)
    columns = log.columns()
    tables = [reader.page(number).blocks for number in range(2)]
    blocks = BlockTable.concat(tables)
    ends = np.cumsum(blocks.records, dtype=np.int64).tolist()
    rng = random.Random(5)
    out = bytearray()
    plan = FooterPlan(summary=reader.summary, generation=GENERATION, made=3, random=9)
    builder = IndexBuilder(HEADER.encode(), plan, out.extend)
    at = 0
    while at < len(blocks):
        upto = min(at + rng.randrange(1, 60), len(blocks))
        builder.add(columns[ends[at - 1] if at else 0 : ends[upto - 1]], blocks[at:upto])
        at = upto
    footer = builder.finish()
    assert footer == reader.footer
    assert bytes(out) == data[footer.index_place :]


def test_local_file_is_sealed_behind_its_records() -> None:
    raw, columns = b"".join(LOG.records), LOG.columns()
    out = bytearray(HEADER.encode() + raw)
    plan = FooterPlan(summary=LOG.summary(1, 12), generation=GENERATION, made=0, random=HEADER.file_id)
    builder = IndexBuilder(bytes(out[:HEADER_BYTES]), plan, out.extend)
    half = int(columns.raw_sizes[:5].sum())
    table = BlockTable.raw([5, 7], [half, len(raw) - half], [crc32c(raw[:half]), crc32c(raw[half:])])
    builder.add(columns, table)
    builder.finish()

    reader = open_bytes(bytes(out))
    reader.check_all()
    assert reader.footer.name.random == HEADER.file_id
    assert [bytes(block) for _, block in reader.blocks()] == [raw[:half], raw[half:]]


def test_padding_before_the_index_is_refused_though_all_checksums_fit() -> None:
    raw = b"".join(LOG.records)
    out = bytearray(HEADER.encode() + raw + bytes(4))
    plan = FooterPlan(summary=LOG.summary(1, 12), generation=GENERATION, made=0, random=HEADER.file_id)
    builder = IndexBuilder(HEADER.encode(), plan, out.extend)
    builder.add(LOG.columns(), BlockTable.raw([12], [len(raw)], [crc32c(raw)]))
    builder._write_pages(until=0)
    builder._offset += 4
    builder.finish()
    with pytest.raises(DamageError, match="do not fill the record area"):
        open_bytes(bytes(out)).check_all()


def test_index_larger_than_memory_allows_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ourdb.segment.writer, "INDEX_MEMORY_MAX", 10)
    assert build(LOG, target=200) == SMALL


def test_temporary_file_that_cannot_be_written_is_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(ourdb.segment.writer, "SpooledTemporaryFile", lambda max_size: Full())
    with pytest.raises(StorageError) as caught:
        build(LOG, target=200)
    assert caught.value.kind == "disk_full"


def test_blocks_are_copied_as_they_are() -> None:
    reader = open_bytes(SMALL)
    page = reader.page(0)
    out = bytearray()
    plan = FooterPlan(summary=reader.summary, generation=GENERATION, made=3, random=9)
    with SegmentWriter(SMALL[:HEADER_BYTES], plan, out.extend) as writer:
        ends = page.block_offsets.tolist()
        for first, end in ((0, 2), (2, len(page.blocks))):
            records = page.block_starts[first], page.block_starts[end]
            stored = SMALL[ends[first] : ends[end]]
            writer.add_blocks(
                page.blocks[first:end], page.columns()[int(records[0]) : int(records[1])], stored
            )
        writer.finish()
    assert bytes(out) == SMALL


@pytest.mark.parametrize(
    "change",
    [
        {"records": 11, "last_seq": 11},
        {"first_time": 999},
        {"last_time": 2000},
        {"highest_id": 7},
        {"chain_after": 1},
        {"chain_before": 1, "first_seq": 2},
    ],
)
def test_summary_that_the_records_do_not_bear_out_is_not_written(change: dict[str, int]) -> None:
    summary = LOG.summary(1, 12)
    run = {
        name: value for name, value in change.items() if name in ("first_time", "last_time", "chain_after")
    }
    wrong = replace(summary, **change, runs=(replace(summary.runs[0], **run),))  # type: ignore[arg-type]
    with pytest.raises(DamageError):
        build(LOG, wrong)


@pytest.mark.parametrize("seqs", [[1, 2, 4, 5], [1, 2, 2, 3, 4], [1, 3, 2, 4], [2, 3, 4, 5], []])
def test_records_missing_twice_or_out_of_order_are_not_written(seqs: list[int]) -> None:
    with pytest.raises(DamageError):
        build(LOG, LOG.summary(1, 5), seqs)


def test_blocks_and_columns_that_do_not_belong_together_are_not_written() -> None:
    plan = FooterPlan(summary=LOG.summary(1, 12), generation=GENERATION, made=3, random=9)
    columns = LOG.columns()
    (block,) = cut(LOG.records, columns)
    for wrong in (replace(block, records=11), replace(block, raw_bytes=5)):
        with SegmentWriter(HEADER, plan, lambda _: None) as writer:
            writer.add(wrong, columns)
            with pytest.raises(DamageError):
                writer.finish()
    with pytest.raises(InvalidError, match="80 bytes"):
        SegmentWriter(b"short", plan, lambda _: None)


def merged_summary(log: Log) -> tuple[Summary, list[int]]:
    """Exact at 5 to 6 and from 10 to 12: 1 to 4 and 7 to 9 in part."""
    kept = [2, 4, 5, 6, 7, 10, 11, 12]
    whole = log.summary(1, 12)
    first = replace(log.summary(5, 6).runs[0], next_time=log.time(7))
    return replace(whole, records=len(kept), runs=(first, log.summary(10, 12).runs[0]), level=1), kept


def test_merged_segment_keeps_its_runs() -> None:
    summary, kept = merged_summary(LOG)
    reader = open_bytes(merged(LOG, kept, summary))
    reader.check_all()
    assert reader.summary == summary
    assert (reader.summary.horizon, reader.summary.exact) == (10, False)
    assert [reader.summary.serves(seq) for seq in (4, 5, 6, 7, 9, 10, 12)] == [
        False,
        True,
        True,
        False,
        False,
        True,
        True,
    ]


def test_run_claims_are_compared_with_the_records() -> None:
    summary, kept = merged_summary(LOG)
    first, last = summary.runs
    wrong_runs = [
        (replace(first, first_seq=4), last),
        (replace(first, next_time=first.last_time), last),
        (replace(first, chain_before=3), last),
        (replace(first, chain_after=3), last),
        (replace(first, highest_before=2), last),
        (replace(first, first_time=first.first_time + 1), last),
        (replace(first, last_time=first.last_time + 1), last),
        (first, replace(last, first_seq=9)),
        (first, replace(last, highest_before=0)),
    ]
    for runs in wrong_runs:
        with pytest.raises(DamageError):
            merged(LOG, kept, replace(summary, runs=runs))


def test_part_of_a_stretch_says_that_its_chain_is_not_known() -> None:
    part = replace(
        LOG.summary(1, 12), runs=(), records=5, stretch=Stretch(77, 2, 3), chain_before=None, chain_after=None
    )
    part = replace(part, first_seq=1, highest_id=None)
    reader = open_bytes(merged(LOG, [1, 3, 4, 9, 12], part))
    reader.check_all()
    assert reader.summary == part
    assert "-xxxxxxxx-xxxxxxxx-" in reader.footer.name.format()
    assert f"-{'f' * 16}-" in reader.footer.name.format()


def test_largest_ids_empty_values_and_a_large_value_come_back() -> None:
    value = random.Random(1).randbytes(3 << 20)
    log = Log(
        [
            (0, b"", 5, False),
            (2**32 - 1, value, 5, True),
            (0, None, 5, False),
            (7, b"\0" * (2 << 20), 6, False),
        ]
    )
    data = build(log)
    reader = open_bytes(data)
    reader.check_all()
    assert reader.page(0).blocks.records.tolist() == [1, 1, 1, 1]
    assert decode_record(reader.read_block(reader.page(0), 1)).value == value
    assert len(data) < len(value) + 10_000


def test_blocks_that_compress_well_are_not_all_in_memory_at_once() -> None:
    data = build(Log([(seq, bytes(1 << 20), 5, False) for seq in range(9)]))
    reads: list[int] = []

    def fetch(offset: int, length: int) -> bytes:
        reads.append(length)
        return data[offset : offset + length]

    index_bytes = open_bytes(data).footer.index_bytes
    reader = SegmentReader(len(data), fetch, index_bytes=index_bytes)
    assert sum(len(raw) for _, raw in reader.blocks()) > 9 << 20
    assert len(reads) == 1 + 3  # three blocks of 1 MiB each time, though all nine are a few hundred bytes
    assert sum(reads) == len(data) - HEADER_BYTES


def test_threads_share_a_reader(large: tuple[Log, bytes]) -> None:
    _, data = large
    reader = open_bytes(data)
    page, failures = reader.page(0), []

    def read() -> None:
        try:
            for number in range(0, len(page.blocks), 7):
                assert len(reader.read_block(page, number)) == int(page.blocks.raw_bytes[number])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_unknown_version_is_told_from_damage() -> None:
    changed = bytearray(SMALL)
    changed[-FOOTER_BYTES] = 2
    with pytest.raises(UnknownFormatError) as caught:
        open_bytes(bytes(changed))
    assert caught.value.kind == "unknown_format"


@st.composite
def any_log(draw: st.DrawFn) -> Log:
    ids = st.sampled_from([0, 1, 2, 2**32 - 1])
    writes = draw(
        st.lists(st.tuples(ids, st.none() | st.binary(max_size=300), st.booleans()), min_size=1, max_size=30)
    )
    return Log([(id_, value, 1000 + at // 3, goes_on) for at, (id_, value, goes_on) in enumerate(writes)])


@given(log=any_log(), target=st.integers(36, 2000), zstd=st.booleans(), data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_log_comes_back_and_any_other_bytes_are_damage(
    log: Log, target: int, zstd: bool, data: st.DataObject
) -> None:
    segment = build(log, target=target, zstd=zstd)
    reader = open_bytes(segment)
    reader.check_all()
    assert b"".join(bytes(raw) for _, raw in reader.blocks()) == b"".join(log.records)

    place = data.draw(st.integers(0, len(segment) - 1))
    length = data.draw(st.integers(0, 40))
    instead = data.draw(st.binary(max_size=40))
    other = segment[:place] + instead + segment[place + length :]
    if other != segment:
        with pytest.raises(DamageError):
            open_bytes(other).check_all()
