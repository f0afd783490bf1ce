"""The footer: the last bytes of a segment, and the table of exact runs before it (docs/format.md#footer)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crc32c import crc32c

from ourdb.errors import DamageError, UnknownFormatError
from ourdb.names import SegmentName
from ourdb.record import Buffer
from ourdb.segment.header import VERSION
from ourdb.segment.summary import Run, Stretch, Summary

MAGIC = b"\x89OurEND\n"
_FORMAT = struct.Struct("<HHI16sQQQQQQQQQQQQIIIIIIIIIII8s")
FOOTER_BYTES = _FORMAT.size
_CRC_PLACE = FOOTER_BYTES - 12  # the checksum covers what is before it; the magic behind it is compared
_RUN = struct.Struct("<QQQQQIIII")
RUN_BYTES = _RUN.size

_CHAIN_BEFORE, _CHAIN_AFTER, _HIGHEST_ID, _STRETCH = 1, 2, 4, 8
_NEXT_TIME, _HIGHEST_BEFORE = 1, 2


class FooterFields(NamedTuple):
    """The footer as it lies in the file: all that a segment says of itself but its exact runs."""

    version: int
    footer_bytes: int
    flags: int
    uuid: bytes
    generation: int
    made: int
    random: int
    first_seq: int
    last_seq: int
    first_time: int
    last_time: int
    horizon: int
    records: int
    index_place: int
    index_bytes: int
    stretch_id: int
    stretch_part: int
    stretch_parts: int
    pages: int
    runs: int
    level: int
    highest_id: int
    chain_before: int
    chain_after: int
    directory_crc: int
    header_crc: int
    crc: int
    magic: bytes


@dataclass(frozen=True, kw_only=True)
class Footer:
    """generation, made (revision of the head that its writer had read), random: u64; made 0 and random =
    file_id in a local file. index_place, index_bytes: pages, directory and runs. directory_crc: of the
    directory and the runs. header_crc: the checksum that the header ends with."""

    summary: Summary
    uuid: bytes
    generation: int
    made: int
    random: int
    pages: int
    index_place: int
    index_bytes: int
    directory_crc: int
    header_crc: int

    @property
    def name(self) -> SegmentName:
        """The segment's own name: the last part of its key. That is how a swapped object is found."""
        return segment_name(self.summary, made=self.made, random=self.random)

    def encode(self) -> bytes:
        """FOOTER_BYTES bytes. DamageError if the summary contradicts itself."""
        summary = self.summary.validate()
        stretch = summary.stretch or Stretch(0, 0, 0)
        chain_before, chain_before_flag = _optional(summary.chain_before, _CHAIN_BEFORE)
        chain_after, chain_after_flag = _optional(summary.chain_after, _CHAIN_AFTER)
        highest_id, highest_flag = _optional(summary.highest_id, _HIGHEST_ID)
        flags = chain_before_flag | chain_after_flag | highest_flag | (_STRETCH if summary.stretch else 0)
        fields = FooterFields(
            version=VERSION,
            footer_bytes=FOOTER_BYTES,
            flags=flags,
            uuid=self.uuid,
            generation=self.generation,
            made=self.made,
            random=self.random,
            first_seq=summary.first_seq,
            last_seq=summary.last_seq,
            first_time=summary.first_time,
            last_time=summary.last_time,
            horizon=summary.horizon,
            records=summary.records,
            index_place=self.index_place,
            index_bytes=self.index_bytes,
            stretch_id=stretch.id,
            stretch_part=stretch.part,
            stretch_parts=stretch.parts,
            pages=self.pages,
            runs=len(summary.runs),
            level=summary.level,
            highest_id=highest_id,
            chain_before=chain_before,
            chain_after=chain_after,
            directory_crc=self.directory_crc,
            header_crc=self.header_crc,
            crc=0,
            magic=MAGIC,
        )
        covered = _FORMAT.pack(*fields)[:_CRC_PLACE]
        return covered + crc32c(covered).to_bytes(4, "little") + MAGIC


def decode_fields(buf: Buffer) -> FooterFields:
    """The footer in these FOOTER_BYTES bytes. DamageError, or UnknownFormatError for another version."""
    if len(buf) != FOOTER_BYTES or bytes(memoryview(buf)[-8:]) != MAGIC:
        raise DamageError("no footer at the end: cut off, or not a segment")
    raw = bytes(buf)
    fields = FooterFields._make(_FORMAT.unpack(raw))
    if fields.version != VERSION:
        raise UnknownFormatError(f"unknown version of a segment: {fields.version}", version=fields.version)
    if crc32c(raw[:_CRC_PLACE]) != fields.crc:
        raise DamageError("checksum of footer does not match")
    if fields.footer_bytes != FOOTER_BYTES or fields.flags > 15:
        raise UnknownFormatError(f"unknown footer: {fields.footer_bytes} bytes, flags {fields.flags:#x}")
    _check_unused(fields.flags, _CHAIN_BEFORE, fields.chain_before)
    _check_unused(fields.flags, _CHAIN_AFTER, fields.chain_after)
    _check_unused(fields.flags, _HIGHEST_ID, fields.highest_id)
    _check_unused(fields.flags, _STRETCH, fields.stretch_id | fields.stretch_part | fields.stretch_parts)
    return fields


def decode_footer(fields: FooterFields, runs: Sequence[Run]) -> Footer:
    """The footer with its runs. DamageError if what they claim does not hold together."""
    flags = fields.flags
    summary = Summary(
        first_seq=fields.first_seq,
        last_seq=fields.last_seq,
        first_time=fields.first_time,
        last_time=fields.last_time,
        runs=tuple(runs),
        records=fields.records,
        highest_id=fields.highest_id if flags & _HIGHEST_ID else None,
        chain_before=fields.chain_before if flags & _CHAIN_BEFORE else None,
        chain_after=fields.chain_after if flags & _CHAIN_AFTER else None,
        level=fields.level,
        stretch=Stretch(fields.stretch_id, fields.stretch_part, fields.stretch_parts)
        if flags & _STRETCH
        else None,
    ).validate()
    footer = Footer(
        summary=summary,
        uuid=fields.uuid,
        generation=fields.generation,
        made=fields.made,
        random=fields.random,
        pages=fields.pages,
        index_place=fields.index_place,
        index_bytes=fields.index_bytes,
        directory_crc=fields.directory_crc,
        header_crc=fields.header_crc,
    )
    if summary.horizon != fields.horizon or len(runs) != fields.runs:
        raise DamageError(f"horizon or count of exact runs does not match: {fields.horizon}, {fields.runs}")
    return footer


def segment_name(summary: Summary, *, made: int, random: int) -> SegmentName:
    """The name of the segment that this is the summary of."""
    return SegmentName(
        last_seq=summary.last_seq,
        first_seq=summary.first_seq,
        last_time=summary.last_time,
        first_time=summary.first_time,
        horizon=summary.horizon,
        chain_before=summary.chain_before,
        chain_after=summary.chain_after,
        made=made,
        random=random,
    )


def encode_runs(runs: Sequence[Run]) -> bytes:
    """The table of runs: RUN_BYTES each."""
    return b"".join(map(_encode_run, runs))


def decode_runs(buf: Buffer) -> tuple[Run, ...]:
    """The runs of a table whose checksum was compared."""
    return tuple(_decode_run(*fields) for fields in _RUN.iter_unpack(buf))


def _encode_run(run: Run) -> bytes:
    next_time, next_flag = _optional(run.next_time, _NEXT_TIME)
    highest, highest_flag = _optional(run.highest_before, _HIGHEST_BEFORE)
    return _RUN.pack(
        run.first_seq,
        run.last_seq,
        run.first_time,
        run.last_time,
        next_time,
        run.chain_before,
        run.chain_after,
        highest,
        next_flag | highest_flag,
    )


def _decode_run(*fields: int) -> Run:
    first_seq, last_seq, first_time, last_time, next_time, chain_before, chain_after, highest, flags = fields
    if flags & ~(_NEXT_TIME | _HIGHEST_BEFORE):
        raise UnknownFormatError(f"unknown flags of an exact run: {flags:#x}")
    _check_unused(flags, _NEXT_TIME, next_time)
    _check_unused(flags, _HIGHEST_BEFORE, highest)
    return Run(
        first_seq=first_seq,
        last_seq=last_seq,
        first_time=first_time,
        last_time=last_time,
        next_time=next_time if flags & _NEXT_TIME else None,
        chain_before=chain_before,
        chain_after=chain_after,
        highest_before=highest if flags & _HIGHEST_BEFORE else None,
    )


def _check_unused(flags: int, flag: int, value: int) -> None:
    if value and not flags & flag:
        raise DamageError(f"footer or exact run has a value that its flags {flags:#x} deny: {value}")


def _optional(value: int | None, flag: int) -> tuple[int, int]:
    """The value and its flag, or zeros: 0 itself is a valid id, chain and time."""
    return (0, 0) if value is None else (value, flag)
