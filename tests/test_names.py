"""Names on disk and in the store: they come back, they sort, and what is foreign stays foreign."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ourdb.errors import InvalidError
from ourdb.names import (
    CHAIN_AFTER_PLACE,
    CHAIN_BEFORE_PLACE,
    FIRST_PLACE,
    HEAD_KEY,
    LAST_PLACE,
    ListKey,
    SegmentKey,
    SegmentName,
    data_file_name,
    format_generation,
    is_ours,
    list_key,
    parse_data_file_name,
    parse_generation,
    parse_key,
    probe_key,
    segment_key,
)
from ourdb.record import SEQ_MAX, TIME_MAX

U64 = st.integers(0, 2**64 - 1)
CHAIN = st.none() | st.integers(0, 2**32 - 1)
NAME = SegmentName(
    last_seq=0x20,
    first_seq=0x10,
    last_time=0x200,
    first_time=0x100,
    horizon=0x18,
    chain_before=0xDEADBEEF,
    chain_after=None,
    made=5,
    random=0xABC,
)
TEXT = (
    "0000000000000020-0000000000000010-000000000200-000000000100-0000000000000018"
    "-deadbeef-xxxxxxxx-0000000000000005-0000000000000abc.seg"
)


@st.composite
def names(draw: st.DrawFn) -> SegmentName:
    first, last = sorted(draw(st.tuples(st.integers(1, SEQ_MAX), st.integers(1, SEQ_MAX))))
    first_time, last_time = sorted(draw(st.tuples(st.integers(0, TIME_MAX), st.integers(0, TIME_MAX))))
    return SegmentName(
        last_seq=last,
        first_seq=first,
        last_time=last_time,
        first_time=first_time,
        horizon=draw(st.just(0) | st.integers(first, last)),
        chain_before=draw(CHAIN),
        chain_after=draw(CHAIN),
        made=draw(U64),
        random=draw(U64),
    )


@given(names(), names(), U64)
@settings(max_examples=100, deadline=None)
def test_segment_names_come_back_and_sort_as_their_text(
    one: SegmentName, two: SegmentName, generation: int
) -> None:
    key = segment_key(format_generation(generation), one)
    assert parse_key(key) == SegmentKey(format_generation(generation), one)
    assert len(one.format()) == 132
    if (one.last_seq, one.first_seq) < (two.last_seq, two.first_seq):
        assert one.format() < two.format()


def test_fields_of_a_segment_name_are_at_their_places() -> None:
    text = replace(NAME, chain_after=0xFEEDF00D).format()
    assert int(text[LAST_PLACE:][:16], 16) == NAME.last_seq
    assert int(text[FIRST_PLACE:][:16], 16) == NAME.first_seq
    assert int(text[CHAIN_BEFORE_PLACE:][:8], 16) == NAME.chain_before
    assert int(text[CHAIN_AFTER_PLACE:][:8], 16) == 0xFEEDF00D


def test_segment_name_is_as_documented() -> None:
    assert NAME.format() == TEXT
    assert SegmentName.parse(TEXT) == NAME
    assert replace(NAME, horizon=0).format().split("-")[4] == "f" * 16


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT.upper(),
        TEXT + " ",
        TEXT + "\n",
        TEXT.removesuffix(".seg"),
        TEXT.replace("deadbeef", "deadbee"),
        TEXT.replace("deadbeef", "xxxxbeef"),
        TEXT.replace("-0000000000000010-", "-0000000000000000-"),
        TEXT.replace("-0000000000000010-", "-0000000000000021-"),
        TEXT.replace("-000000000100-", "-000000000201-"),
        TEXT.replace("-0000000000000018-", "-0000000000000000-"),
        TEXT.replace("-0000000000000018-", "-000000000000000f-"),
        TEXT.replace("0000000000000020-", "8000000000000000-"),
        "０" + TEXT[1:],
    ],
)
def test_what_is_not_the_name_of_a_segment_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        SegmentName.parse(text)
    assert parse_key(f"segments/{'0' * 16}/{text}") is None


def test_keys_are_told_apart_and_foreign_ones_are_none() -> None:
    assert parse_key("head") == HEAD_KEY
    assert parse_key(list_key(3, 2**64 - 1)) == ListKey(3, 2**64 - 1)
    foreign = [
        "",
        "Head",
        "head/",
        "lists/",
        "lists/x.json",
        "segments/",
        f"segments/{TEXT}",
        TEXT,
        f"x/{TEXT}",
    ]
    foreign += [f"segments/{'g' * 16}/{TEXT}", f"segments/{'0' * 16}/a/{TEXT}", f"{'0' * 16}/{TEXT}"]
    assert [parse_key(key) for key in foreign] == [None] * len(foreign)


def test_probes_are_ours_and_name_nothing() -> None:
    assert probe_key(0xA1) == "probe-00000000000000a1"
    assert is_ours(probe_key(0xA1))
    assert parse_key(probe_key(0xA1)) is None
    assert is_ours(HEAD_KEY)
    assert not is_ours("probe-me")
    assert not is_ours("notes.txt")


def test_data_files_are_numbered_without_leading_zeroes() -> None:
    assert [parse_data_file_name(data_file_name(nr)) for nr in (0, 7, 65_535)] == [0, 7, 65_535]
    for text in ("", ".db", "-1.db", "00.db", "65536.db", "1.db.tmp", "1.DB", "１.db"):
        assert parse_data_file_name(text) is None
    for nr in (-1, 65_536):
        with pytest.raises(InvalidError):
            data_file_name(nr)


def test_generations_are_sixteen_hex_digits() -> None:
    assert format_generation(0xAB) == "00000000000000ab"
    assert parse_generation("00000000000000ab") == 0xAB
    for text in ("", "ab", "00000000000000AB", "0x000000000000ab", "00000000000000ab0"):
        with pytest.raises(InvalidError):
            parse_generation(text)
    for number in (-1, 2**64):
        with pytest.raises(InvalidError):
            format_generation(number)
