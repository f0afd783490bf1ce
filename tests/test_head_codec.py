"""Head and lists as bytes: what is carried, what is refused."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from compactor import body, lists
from compactor.entries import Gone, GoneList, ListRef, SegmentEntry
from compactor.generations import Began, Forgotten, Generation, Parent, Pin
from compactor.head import Head, Known, decode_head, encode_head, refuse_to_write
from compactor.lists import ListOwner, StoredList
from ourdb.errors import DamageError, UnknownFormatError
from ourdb.names import list_key
from ourdb.record import SEQ_MAX
from ourdb.segment.summary import Stretch
from tests.lines import GEN, OTHER, THIRD, UUID, chain_at, end_of, entry_of, summary_of


def full_head() -> Head:
    """Something of everything."""
    return Head(
        uuid=UUID,
        namespace="näme",
        revision=2**60,
        run="1" * 16,
        host="host",
        config={"mode": "kv"},
        generations={
            GEN: replace(end_of(9, successor=OTHER), kept_to=8, kept_until=90),
            OTHER: end_of(20, generation=OTHER, parent=Parent(GEN, 7, chain_at(7))),
            THIRD: replace(end_of(9, generation=THIRD), began=Began(4, 40, (2, 4))),
        },
        single_writer=True,
        lists=(ListRef(key=list_key(3, 4), first_seq=1, last_seq=5, segments=2, bytes=99),),
        added=(entry_of(6, 9), entry_of(8, 20, generation=OTHER, level=1, runs=[(8, 9), (20, 20)])),
        removed=(entry_of(1, 2).key,),
        pins=(Pin(name="daily", generation=GEN, seq=3, time=30),),
        policy={"window_ms": 5},
        gone=(Gone("lists/x.json"), Gone(entry_of(1, 1).key, 17)),
        gone_lists=(GoneList(key=list_key(1, 2), since=None, objects=300, bytes=9),),
        floor=2**55,
        kept=Known(5, "2" * 16),
        forgotten=(Forgotten("d" * 16, THIRD), Forgotten("e" * 16)),
    )


def members_of(head: Head) -> dict[str, Any]:
    return body.unpack(encode_head(head), "head")


def decode(members: dict[str, Any]) -> Head:
    return decode_head(body.pack(members), "näme")


def test_a_head_comes_back_as_it_was() -> None:
    head = full_head()
    assert decode_head(encode_head(head), "näme") == head


def test_unknown_members_at_every_level_are_carried_unchanged() -> None:
    members = members_of(full_head())
    members["later"] = {"deep": [1, None, {"x": 2**61}]}
    for place in (
        members["generations"][OTHER],
        members["generations"][OTHER]["parent"],
        members["generations"][THIRD]["began"],
        members["forgotten"][0],
        members["lists"][0],
        members["added"][0],
        members["added"][1]["runs"][0],
        members["pins"][0],
        members["gone"][0],
        members["gone_lists"][0],
        members["policy"],
        members["config"],
    ):
        place["later"] = "kept"
    packed = body.pack(members)
    assert encode_head(decode_head(packed, "näme")) == packed


def test_unknown_members_in_a_list_are_carried_when_it_is_written_anew() -> None:
    entry = SegmentEntry.from_json({**entry_of(1, 2).as_json(), "later": [1]})
    owner = ListOwner(UUID, "n", 3)
    key = list_key(3, 1)
    stored = StoredList(key, lists.encode_segments(owner, key, [entry]), UUID, "n")
    assert stored.segments[0].as_json()["later"] == [1]


def test_integers_that_a_double_cannot_hold_are_strings_and_both_forms_are_read() -> None:
    head = full_head()
    members = json.loads(zstandard.decompress(encode_head(head)))
    assert members["revision"] == str(2**60)
    assert members["kept"]["revision"] == 5
    members["revision"], members["kept"]["revision"] = 2**60, "5"
    text = zstandard.ZstdCompressor(write_checksum=True).compress(json.dumps(members).encode())
    assert decode_head(text, "näme") == head


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"needs": {"read": ["later"]}}, {"needs": {"prune": ["x"]}}]
)
def test_what_a_reader_must_know_and_does_not_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UnknownFormatError):
        decode({**members_of(full_head()), **change})


def test_what_only_a_writer_must_know_can_be_read() -> None:
    head = decode({**members_of(full_head()), "needs": {"write": ["later"]}})
    with pytest.raises(UnknownFormatError, match="later"):
        refuse_to_write(head, "head")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("uuid", "0" * 31),
        ("revision", -1),
        ("revision", True),
        ("revision", SEQ_MAX + 1),
        ("revision", "1_0"),
        ("run", "G" * 16),
        ("added", [{"generation": GEN, "name": "x"}]),
        ("added", {}),
        ("lists", [{"name": "x"}]),
        ("gone", [7]),
        ("single_writer", 1),
        ("generations", {GEN: {}}),
        ("generations", {GEN: {**end_of(9).as_json(), "kept_to": 10}}),
        ("generations", {GEN: {**end_of(9).as_json(), "began": {"seq": 11, "time": 1}}}),
        ("generations", {GEN: {**end_of(9).as_json(), "began": {"seq": 4, "time": 1, "took_over": ["x"]}}}),
        ("forgotten", [{"generation": "x"}]),
    ],
)
def test_a_member_that_is_not_valid_is_damage(name: str, value: object) -> None:
    with pytest.raises(DamageError) as caught:
        decode({**members_of(full_head()), name: value})
    assert caught.value.kind == "store_damaged"


def test_a_name_that_is_none_is_damage_when_it_is_read() -> None:
    good = entry_of(1, 2).as_json()
    bad = SegmentEntry.from_json({**good, "name": good["name"].replace("-", "_", 6)})
    with pytest.raises(DamageError):
        bad.summary()


def test_a_head_of_before_there_were_cuts_is_read_and_written_back_as_it_was() -> None:
    old = replace(full_head(), generations={GEN: end_of(9)}, forgotten=())
    members = members_of(old)
    assert not {"kept_to", "kept_until", "began"} & members["generations"][GEN].keys()
    assert "forgotten" not in members
    assert decode(members) == old


def test_the_head_of_another_namespace_is_damage() -> None:
    with pytest.raises(DamageError, match="another namespace"):
        decode_head(encode_head(full_head()), "name")


def test_generations_in_a_circle_or_without_parent_are_damage() -> None:
    ends = {
        "circle": {
            GEN: end_of(9, parent=Parent(OTHER, 1, 1)),
            OTHER: end_of(9, generation=OTHER, parent=Parent(GEN, 1, 1)),
        },
        "successors": {GEN: end_of(9, successor=OTHER), OTHER: end_of(9, generation=OTHER, successor=GEN)},
        "orphan": {GEN: end_of(9, parent=Parent(OTHER, 1, 1))},
        "widow": {GEN: end_of(9, successor=OTHER)},
        "early": {GEN: end_of(9), OTHER: end_of(3, generation=OTHER, parent=Parent(GEN, 7, 1))},
    }
    for generations in ends.values():
        members = members_of(full_head())
        members["generations"] = {name: end.as_json() for name, end in generations.items()}
        with pytest.raises(DamageError):
            decode(members)


def test_every_flipped_byte_and_every_truncation_is_damage_or_changes_nothing() -> None:
    data = encode_head(full_head())
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0x41
        with contextlib.suppress(DamageError):
            assert decode_head(bytes(flipped), "näme") == full_head()
        with pytest.raises(DamageError):
            decode_head(data[:place], "näme")
    with pytest.raises(DamageError):
        decode_head(data + b"\0", "näme")


def test_a_body_without_checksum_or_size_is_damage() -> None:
    text = zstandard.decompress(encode_head(full_head()))
    plain = zstandard.ZstdCompressor(write_checksum=False).compress(text)
    unsized = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(text)
    for data in (plain, unsized):
        with pytest.raises(DamageError, match="no checksum or no size"):
            decode_head(data, "näme")


def test_a_body_that_claims_to_be_too_large_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(b" " * 5_000_000)
    assert len(bomb) < 1000
    with pytest.raises(DamageError, match="larger than 1000000 bytes"):
        body.unpack(bomb, "head", bytes_max=1_000_000)


@given(
    st.recursive(st.integers(-(2**63), 2**63) | st.text() | st.none() | st.booleans(), st.lists, max_leaves=9)
)
@settings(max_examples=60)
def test_any_value_in_an_unknown_member_survives_being_read_and_written(value: object) -> None:
    packed = body.pack({"x": value})
    assert body.pack(body.unpack(packed, "x")) == packed


def test_a_segment_entry_says_what_its_summary_said() -> None:
    cases = [
        (entry_of(1, 5), summary_of(1, 5)),
        (entry_of(6, 9), summary_of(6, 9)),
        (entry_of(1, 9, level=3), summary_of(1, 9, level=3)),
        (entry_of(1, 9, runs=[(2, 3), (9, 9)], level=1), summary_of(1, 9, runs=[(2, 3), (9, 9)], level=1)),
    ]
    for entry, summary in cases:
        assert entry.summary() == summary
        assert SegmentEntry.from_json(json.loads(json.dumps(entry.as_json()))).summary() == summary
    assert entry_of(6, 9).runs is None  # derived from the name: heads hold hundreds of these


def test_a_part_of_a_stretch_keeps_its_stretch_and_claims_nothing() -> None:
    stretch = Stretch(2**64 - 1, 1, 2)
    given_ = {**entry_of(1, 9, runs=[(9, 9)]).as_json(), "runs": []}
    given_["stretch"] = {"id": "f" * 16, "part": 1, "parts": 2}
    given_["name"] = given_["name"].replace(f"-{chain_at(9):08x}-", "-xxxxxxxx-")
    entry = SegmentEntry.from_json(given_)
    assert entry.stretch == stretch
    assert SegmentEntry.from_json(json.loads(json.dumps(entry.as_json()))) == entry
    assert SegmentEntry.from_json(json.loads(json.dumps(replace(entry, raw=None).as_json()))) == entry
    assert entry.exact_runs == ()
    assert entry.summary().chain_after is None


def test_a_list_under_another_name_or_of_another_database_is_damage() -> None:
    owner, key = ListOwner(UUID, "n", 3), list_key(3, 1)
    data = lists.encode_segments(owner, key, [entry_of(1, 2)])
    assert len(StoredList(key, data, UUID, "n").segments) == 1
    others = [
        (list_key(3, 2), UUID, "n"),
        (list_key(4, 1), UUID, "n"),
        (key, "0" * 32, "n"),
        (key, UUID, "m"),
    ]
    for name, uuid, namespace in others:
        with pytest.raises(DamageError):
            _ = StoredList(name, data, uuid, namespace).segments
    with pytest.raises(DamageError):
        _ = StoredList(key, data, UUID, "n").keys


def test_two_hundred_entries_make_a_head_of_some_kilobytes() -> None:
    added, first = [], 1
    for _ in range(200):
        added.append(entry_of(first, first + 99, made=first))
        first += 100
    head = Head(
        uuid=UUID,
        namespace="n",
        revision=1,
        run="1" * 16,
        host="",
        config={},
        generations={GEN: end_of(first - 1)},
        added=tuple(added),
    )
    assert len(encode_head(head)) < 14_000


def test_generation_without_parent_begins_at_one() -> None:
    assert end_of(4).first_seq == 1
    assert Generation.from_json(GEN, end_of(4).as_json()) == end_of(4)
