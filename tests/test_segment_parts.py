"""The parts of a segment by themselves: header, columns, blocks, summaries, footer, index columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from zstandard import ZstdCompressor

from ourdb.config import Config
from ourdb.errors import DamageError, InvalidError, UnknownFormatError
from ourdb.segment.block import (
    BLOCK_RAW_MAX,
    CODEC_NONE,
    CODEC_ZSTD,
    Block,
    BlockEntry,
    BlockTable,
    check_blocks,
    cut_blocks,
    decode_block,
    encode_block,
    verify_records,
)
from ourdb.segment.columns import batch_ends
from ourdb.segment.footer import (
    Footer,
    decode_fields,
    decode_footer,
    decode_runs,
    encode_runs,
)
from ourdb.segment.header import HEADER_BYTES, Header
from ourdb.segment.index import LAYOUTS, ColumnEntry, decode_column, encode_column
from ourdb.segment.summary import Stretch, Summary, cut_summary, fold_run, unmerged_summary
from tests.segment_tools import HEADER, Log, plain_log

ZSTD = ZstdCompressor(level=1)


def entry_of(block: Block, offset: int = HEADER_BYTES, **changes: int) -> BlockEntry:
    entry = BlockEntry(block.codec, 0, len(block.stored), block.raw_bytes, block.records, block.crc, offset)
    return entry._replace(**changes)


@pytest.mark.parametrize("mode", ["kv", "incremental"])
def test_header_comes_back_without_sync(mode: Any) -> None:
    config = Config(mode=mode, record_nr_max=9, record_size_max=100, file_size=1 << 20, sync="always")
    header = replace(HEADER, config=config, file_nr=65_535, generation=2**64 - 1)
    decoded = Header.decode(header.encode() + b"records")
    assert decoded == replace(header, config=replace(config, sync="interval"))


def resealed(raw: bytes, place: int, value: int, size: int) -> bytes:
    """A header with a field changed, and a checksum that fits."""
    body = bytearray(raw[:-4])
    body[place : place + size] = value.to_bytes(size, "little")
    return bytes(body) + crc32c(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("place", "value", "size", "error"),
    [
        (8, 2, 2, UnknownFormatError),
        (10, 84, 2, UnknownFormatError),
        (12, 1, 4, UnknownFormatError),
        (72, 2, 4, UnknownFormatError),
        (48, 0, 8, DamageError),
        (56, 65_536, 4, DamageError),
        (64, 2**31, 4, DamageError),
        (68, 100, 4, DamageError),
    ],
)
def test_header_that_says_what_is_unknown_or_impossible_is_refused(
    place: int, value: int, size: int, error: type[DamageError]
) -> None:
    with pytest.raises(error):
        Header.decode(resealed(HEADER.encode(), place, value, size))


def test_header_with_fields_out_of_range_is_not_written() -> None:
    for changes in ({"uuid": b"x"}, {"file_nr": 65_536}, {"first_seq": 0}, {"config": Config(file_size=1)}):
        with pytest.raises(InvalidError):
            replace(HEADER, **changes).encode()  # type: ignore[arg-type]


def test_blocks_are_cut_at_the_target_and_large_records_stand_alone() -> None:
    assert cut_blocks(np.array([64, 64, 64, 64, 64]), target=200).tolist() == [2, 2, 1]
    assert cut_blocks(np.array([10, 500, 10, 10]), target=200).tolist() == [1, 1, 2]
    assert cut_blocks(np.array([500]), target=200).tolist() == [1]
    assert cut_blocks(np.array([], np.uint32)).tolist() == []


@given(st.lists(st.integers(0, 400), max_size=60), st.integers(36, 900))
@settings(max_examples=60, deadline=None)
def test_blocks_are_as_long_as_the_target_allows(lengths: list[int], target: int) -> None:
    counts = cut_blocks(np.array(lengths, np.uint32), target).tolist()
    assert sum(counts) == len(lengths)
    at = 0
    for count in counts:
        sizes = [length + 36 for length in lengths[at : at + count + 1]]
        assert count == 1 or sum(sizes[:count]) <= target
        assert len(sizes) == count or sum(sizes) > target
        at += count


def test_block_is_compressed_only_where_that_helps() -> None:
    plain, helped = encode_block(bytes(range(256)), 1, ZSTD), encode_block(b"x" * 5000, 1, ZSTD)
    assert (plain.codec, bytes(plain.stored)) == (CODEC_NONE, bytes(range(256)))
    assert helped.codec == CODEC_ZSTD
    assert encode_block(b"x" * 5000, 1).codec == CODEC_NONE
    for block in (plain, helped):
        assert len(decode_block(entry_of(block), block.stored)) == block.raw_bytes


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"codec": 2}, UnknownFormatError),
        ({"encryption": 1}, UnknownFormatError),
        ({"crc": 5}, DamageError),
        ({"stored_bytes": 7}, DamageError),
        ({"raw_bytes": 4999}, DamageError),
        ({"raw_bytes": 2**31}, DamageError),
        ({"codec": CODEC_NONE}, DamageError),
    ],
)
def test_block_that_is_not_what_its_entry_says_is_refused(
    changes: dict[str, int], error: type[DamageError]
) -> None:
    block = encode_block(b"x" * 5000, 1, ZSTD)
    with pytest.raises(error):
        decode_block(entry_of(block, **changes), block.stored)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda frame: frame + b"x",
        lambda frame: frame + frame,
        lambda frame: frame[:-1],
        lambda frame: b"no frame at all",
        lambda frame: ZstdCompressor(write_content_size=False).compress(b"x" * 5000),
        lambda frame: ZSTD.compress(b"x" * 5001),
    ],
)
def test_frame_that_does_not_hold_what_it_should_is_damage(tamper: Callable[[bytes], bytes]) -> None:
    stored = tamper(bytes(encode_block(b"x" * 5000, 1, ZSTD).stored))
    block = Block(CODEC_ZSTD, 5000, 1, crc32c(stored), stored)
    with pytest.raises(DamageError):
        decode_block(entry_of(block), stored)


def test_block_larger_than_the_caller_allows_is_refused_before_it_is_decompressed() -> None:
    block = encode_block(bytes(3 << 20), 1, ZSTD)
    with pytest.raises(DamageError, match="larger than allowed"):
        decode_block(entry_of(block), block.stored, raw_bytes_max=1 << 20)


def test_block_table_must_fit_its_records() -> None:
    sizes = np.full(6, 50, np.int64)
    good = BlockTable.raw([2, 4], [100, 200], [0, 0])
    check_blocks(good, sizes)
    narrow = np.uint32
    for wrong in (
        BlockTable.raw([2, 3], [100, 150], [0, 0]),
        BlockTable.raw([0, 6], [0, 300], [0, 0]),
        BlockTable.raw([], [], []),
        replace(good, raw_bytes=np.array([100, 201], narrow)),
        replace(good, stored_bytes=np.array([99, 200], narrow)),
        replace(good, codec=np.array([1, 1], np.uint8)),
    ):
        with pytest.raises(DamageError):
            check_blocks(wrong, sizes)
    for unknown in ("codec", "encryption"):
        with pytest.raises(UnknownFormatError):
            check_blocks(replace(good, **{unknown: np.array([0, 2], np.uint8)}), sizes)


def test_only_a_single_record_may_make_a_block_larger_than_the_limit() -> None:
    size = BLOCK_RAW_MAX + 1
    check_blocks(BlockTable.raw([1], [size], [0]), np.array([size], np.int64))
    with pytest.raises(DamageError, match="too large"):
        check_blocks(BlockTable.raw([2], [2 * size], [0]), np.full(2, size, np.int64))


@pytest.mark.parametrize("log", [plain_log(30), Log([(seq, b"equal", seq, False) for seq in range(30)])])
def test_records_are_compared_with_their_columns_and_checksums(log: Log) -> None:
    raw, columns = b"".join(log.records), log.columns()
    verify_records(raw, columns)
    other = plain_log(31).columns()[1:]
    for wrong_raw, wrong in (
        (raw[:-1], columns),
        (raw + b"x", columns),
        (raw, columns[:-1]),
        (b"", columns[:0]),
    ):
        with pytest.raises(DamageError):
            verify_records(wrong_raw, wrong)
    for name in ("id", "seq", "time", "flags", "crc", "length"):
        with pytest.raises(DamageError):
            verify_records(raw, replace(columns, **{name: getattr(other, name)}))
    flipped = bytearray(raw)
    flipped[-1] ^= 1
    with pytest.raises(DamageError, match="record is damaged: seq 30") as caught:
        verify_records(flipped, columns, offset=80)
    assert (caught.value.fields["seq"], caught.value.fields["offset"]) == (30, 80)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_index_columns_come_back(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(LAYOUTS)))
    dtype, packing, _ = LAYOUTS[name]
    highest = data.draw(st.sampled_from([1, 255, 65_535, 2**31, np.iinfo(dtype).max]))
    values = data.draw(
        st.lists(st.integers(0, min(highest, int(np.iinfo(dtype).max))), min_size=1, max_size=40)
    )
    kind = data.draw(st.sampled_from(["any", "sorted", "step", "repeated"]))
    array = np.array(values * (50 if kind == "repeated" else 1), dtype)
    if kind == "sorted":
        array.sort()
    if kind == "step":
        array = array[:1] + np.arange(len(array), dtype=dtype) * array[-1:]

    encoding, stored = encode_column(array, packing, ZSTD)

    entry = ColumnEntry(len(stored), crc32c(stored), encoding)
    decoded = decode_column(entry, stored, name, len(array), offset=0)
    assert decoded.dtype == dtype
    assert decoded.tolist() == array.tolist()


def test_regular_columns_take_next_to_nothing() -> None:
    for values in (np.arange(10**6, 10**6 + 60_000, dtype="<u8"), np.full(60_000, 7, "<u8")):
        encoding, stored = encode_column(values, 3, ZSTD)
        assert len(stored) <= 8
        assert decode_column(
            ColumnEntry(len(stored), crc32c(stored), encoding), stored, "seq", 60_000, offset=0
        )[-1]


@given(
    st.sampled_from(list(LAYOUTS)),
    st.integers(0, 255),
    st.integers(1, 70_000),
    st.binary(max_size=60),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_random_index_columns_give_damage_or_that_many_values(
    name: str, encoding: int, count: int, stored: bytes, framed: bool
) -> None:
    stored = ZSTD.compress(stored * 9) if framed else stored
    try:
        values = decode_column(
            ColumnEntry(len(stored), crc32c(stored), encoding), stored, name, count, offset=0
        )
    except DamageError:
        return
    assert len(values) == count


def test_batch_ends_where_the_flag_is_missing_and_at_the_end_of_the_segment() -> None:
    columns = Log([(1, b"", 5, True), (2, b"", 5, False), (3, b"", 6, True)]).columns()
    assert batch_ends(columns).tolist() == [False, True, True]
    assert batch_ends(columns, closed=False).tolist() == [False, True, False]
    assert batch_ends(columns[:0]).tolist() == []


def test_summary_of_a_log_in_pieces_is_that_of_the_whole() -> None:
    log = Log([(at % 5, b"v", 1000 + at // 4, at % 4 != 3) for at in range(40)])
    columns = log.columns()
    whole = unmerged_summary(columns, 0, None)
    assert whole == unmerged_summary((columns[at : at + 3] for at in range(0, 40, 3)), 0, None)
    assert (whole.chain_after, whole.highest_id, whole.records, whole.exact) == (log.chains[40], 4, 40, True)
    assert (whole.horizon, whole.serves(40), whole.serves(41)) == (1, True, False)
    cut = cut_summary(whole, columns, 20)
    assert cut == log.summary(1, 20)
    assert cut == cut_summary(whole, [columns[:7], columns[7:33]], 20)
    assert cut_summary(whole, columns, 40) is whole
    assert fold_run([columns[:9], columns[9:]], whole.runs[0], 31) == (4, log.chains[31])


def test_run_begins_at_the_time_of_its_first_batch_end() -> None:
    log = Log([(1, b"", 5, True), (2, b"", 7, False), (3, b"", 9, False)])
    columns = log.columns()
    for pieces in ([columns], [columns[:1], columns[1:]]):
        summary = unmerged_summary(pieces, 0, None)
        assert (summary.first_time, summary.runs[0].first_time, summary.runs[0].last_time) == (5, 7, 9)


def test_folding_outside_of_a_run_or_without_its_records_is_refused() -> None:
    log = plain_log(20)
    summary = log.summary(3, 20)
    with pytest.raises(InvalidError, match="not in the exact run"):
        fold_run(log.columns(), summary.runs[0], 2)
    with pytest.raises(InvalidError, match="not exact at 21"):
        cut_summary(summary, log.columns(), 21)
    for seqs in ([3, 5, 6], range(3, 9), range(4, 20), []):
        with pytest.raises(DamageError, match="missing"):
            fold_run(log.columns(seqs), summary.runs[0], 12)
    with pytest.raises(InvalidError, match="at least one record"):
        unmerged_summary(log.columns([]), 0, None)


BASE = plain_log(20).summary(3, 20)
RUN = BASE.runs[0]
PART = replace(BASE, stretch=Stretch(7, 2, 3), chain_before=None, chain_after=None, runs=())


@pytest.mark.parametrize(
    "changes",
    [
        {"first_seq": 0},
        {"first_seq": 21},
        {"last_seq": 2**63},
        {"first_time": BASE.last_time + 1},
        {"last_time": 2**48},
        {"records": 0},
        {"records": 17},
        {"records": 19},
        {"highest_id": 2**32},
        {"highest_id": 0},
        {"chain_before": None},
        {"chain_after": None},
        {"chain_before": 5},
        {"chain_after": 5},
        {"runs": ()},
        {"runs": (replace(RUN, last_seq=19, next_time=RUN.last_time),)},
        {"runs": (replace(RUN, next_time=RUN.last_time),)},
        {"runs": (replace(RUN, last_seq=9), replace(RUN, first_seq=10, chain_before=1))},
        {"runs": (replace(RUN, last_seq=9, next_time=RUN.last_time), replace(RUN, first_seq=10))},
        {"runs": (replace(RUN, first_seq=2, chain_before=1),)},
        {"runs": (replace(RUN, first_time=1),)},
        {"runs": (replace(RUN, first_time=RUN.last_time + 1),)},
        {"runs": (replace(RUN, last_time=RUN.last_time + 1),)},
        {"stretch": Stretch(7, 1, 1)},
        {"stretch": Stretch(7, 0, 2)},
        {"stretch": Stretch(7, 3, 2)},
        {"stretch": Stretch(7, 1, 2), "chain_before": None},
        {"stretch": Stretch(7, 2, 2), "chain_after": None},
    ],
)
def test_summary_whose_claims_contradict_each_other_is_damage(changes: dict[str, Any]) -> None:
    BASE.validate()
    with pytest.raises(DamageError):
        replace(BASE, **changes).validate()


def test_summary_from_seq_one_has_nothing_before_it() -> None:
    first = plain_log(5).summary(1, 5)
    for run in (replace(first.runs[0], highest_before=0), replace(first.runs[0], chain_before=9)):
        with pytest.raises(DamageError):
            replace(first, runs=(run,)).validate()
    with pytest.raises(DamageError, match="chain before it"):
        replace(first, chain_before=9, runs=(replace(first.runs[0], first_seq=5),)).validate()


def footer_of(summary: Summary) -> Footer:
    return Footer(
        summary=summary,
        uuid=HEADER.uuid,
        generation=1,
        made=2,
        random=3,
        pages=1,
        index_place=80,
        index_bytes=300,
        directory_crc=4,
        header_crc=5,
    )


@pytest.mark.parametrize(
    "summary", [BASE, PART, replace(BASE, highest_id=None, runs=(replace(RUN, highest_before=None),))]
)
def test_footer_comes_back(summary: Summary) -> None:
    footer = footer_of(summary)
    fields = decode_fields(footer.encode())
    assert decode_footer(fields, decode_runs(encode_runs(summary.runs))) == footer
    if summary.runs:
        with pytest.raises(DamageError):
            decode_footer(fields, ())


@pytest.mark.parametrize(("place", "value", "size"), [(0, 2, 2), (2, 176, 2), (4, 16, 4)])
def test_footer_of_another_version_is_refused(place: int, value: int, size: int) -> None:
    raw = footer_of(BASE).encode()
    with pytest.raises(UnknownFormatError):
        decode_fields(resealed(raw[:-8], place, value, size) + raw[-8:])


@pytest.mark.parametrize(("place", "value", "size"), [(112, 5, 8), (120, 1, 4), (4, 3, 4), (4, 5, 4)])
def test_footer_with_a_value_that_its_flags_deny_is_damage(place: int, value: int, size: int) -> None:
    raw = footer_of(BASE).encode()
    with pytest.raises(DamageError, match="deny"):
        decode_fields(resealed(raw[:-8], place, value, size) + raw[-8:])


def test_run_with_unknown_flags_or_an_idle_value_is_refused() -> None:
    raw = bytearray(encode_runs([RUN]))
    raw[-4] = 4
    with pytest.raises(UnknownFormatError):
        decode_runs(raw)
    raw[-4] = 0
    with pytest.raises(DamageError, match="deny"):
        decode_runs(raw)
