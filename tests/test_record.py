"""The record codec: what it gives back, what it refuses, and that no flipped bit gets through."""

from __future__ import annotations

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from ourdb.errors import DamageError, Error, InvalidError, UnknownFormatError
from ourdb.record import (
    BATCH_GOES_ON,
    ID_MAX,
    RECORD_HEADER_BYTES,
    SEQ_MAX,
    TIME_MAX,
    TOMBSTONE,
    decode_record,
    encode_record,
    gather_headers,
)


@given(
    id_=st.sampled_from([0, 1, ID_MAX]),
    value=st.binary(max_size=60),
    seq=st.integers(1, SEQ_MAX),
    time_ms=st.integers(0, TIME_MAX),
    goes_on=st.booleans(),
    before=st.binary(max_size=9),
)
@settings(max_examples=100, deadline=None)
def test_record_comes_back_from_any_place(
    id_: int, value: bytes, seq: int, time_ms: int, goes_on: bool, before: bytes
) -> None:
    flags = BATCH_GOES_ON if goes_on else 0
    encoded = encode_record(id_, value, seq=seq, prev_seq=seq - 1, time_ms=time_ms, flags=flags)

    record = decode_record(before + encoded + b"behind", len(before))

    assert record[:6] == (id_, value, seq, seq - 1, time_ms, flags)
    assert record.crc == crc32c(encoded[4:])
    assert len(encoded) == RECORD_HEADER_BYTES + len(value)
    assert not record.deleted


def test_tombstone_has_no_value() -> None:
    encoded = encode_record(7, b"", seq=2, prev_seq=1, time_ms=5, flags=TOMBSTONE)
    assert decode_record(encoded).deleted
    with pytest.raises(InvalidError, match="tombstone of id 7"):
        encode_record(7, b"x", seq=2, prev_seq=1, time_ms=5, flags=TOMBSTONE)


def test_every_flipped_bit_is_damage() -> None:
    encoded = encode_record(7, b"value", seq=2, prev_seq=1, time_ms=5)
    for bit in range(8 * len(encoded)):
        flipped = bytearray(encoded)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamageError):
            decode_record(flipped)


def test_every_prefix_is_damage() -> None:
    encoded = encode_record(7, b"value", seq=2, prev_seq=1, time_ms=5)
    for length in range(len(encoded)):
        with pytest.raises(DamageError):
            decode_record(encoded[:length])
        with pytest.raises(DamageError):
            decode_record(encoded + encoded, limit=length)


def test_zeroes_are_no_record() -> None:
    with pytest.raises(DamageError):
        decode_record(bytes(RECORD_HEADER_BYTES))


@pytest.mark.parametrize(
    ("seq", "prev_seq", "flags", "error"),
    [
        (0, 0, 0, DamageError),
        (SEQ_MAX + 1, 0, 0, DamageError),
        (5, 5, 0, DamageError),
        (5, 1, TOMBSTONE, DamageError),
        (5, 1, 4, UnknownFormatError),
        (5, 1, 1 << 15, UnknownFormatError),
    ],
)
def test_valid_checksum_over_impossible_fields_is_refused(
    seq: int, prev_seq: int, flags: int, error: type[Error]
) -> None:
    body = (
        (1).to_bytes(4, "little")
        + (9).to_bytes(4, "little")
        + (flags << 48 | 77).to_bytes(8, "little")
        + seq.to_bytes(8, "little")
        + prev_seq.to_bytes(8, "little")
        + b"v"
    )
    with pytest.raises(error):
        decode_record(crc32c(body).to_bytes(4, "little") + body)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": -1},
        {"id": ID_MAX + 1},
        {"seq": 0},
        {"seq": SEQ_MAX + 1},
        {"prev_seq": 3},
        {"time_ms": TIME_MAX + 1},
        {"flags": 4},
    ],
)
def test_encode_refuses_what_a_reader_would_refuse(fields: dict[str, int]) -> None:
    good = {"id": 1, "seq": 3, "prev_seq": 0, "time_ms": 0, "flags": 0} | fields
    with pytest.raises(InvalidError):
        encode_record(good.pop("id"), b"v", **good)


@given(st.binary(max_size=120), st.integers(-3, 130))
@settings(max_examples=200, deadline=None)
def test_random_bytes_give_damage_and_nothing_else(raw: bytes, offset: int) -> None:
    with pytest.raises(DamageError):
        decode_record(raw, offset)


def test_headers_are_gathered_at_odd_offsets() -> None:
    records = [encode_record(seq, b"x" * seq, seq=seq, prev_seq=0, time_ms=9) for seq in range(1, 9)]
    raw = b"".join(records)
    offsets = np.cumsum([0, *map(len, records)])[:-1]

    for buffer in (raw, bytearray(raw), memoryview(raw), np.frombuffer(raw, np.uint8)):
        headers = gather_headers(buffer, offsets)
        assert (
            headers["id"].tolist()
            == headers["seq"].tolist()
            == headers["length"].tolist()
            == list(range(1, 9))
        )
        assert [int(crc) for crc in headers["crc"]] == [crc32c(record[4:]) for record in records]


def test_header_beyond_the_end_is_refused() -> None:
    raw = bytes(RECORD_HEADER_BYTES)
    assert len(gather_headers(b"", np.array([], np.int64))) == 0
    for buffer, offset in ((raw, 1), (raw[:-1], 0)):
        with pytest.raises(IndexError):
            gather_headers(buffer, np.array([offset]))
