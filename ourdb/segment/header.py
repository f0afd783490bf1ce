"""The header of a data file or segment (docs/format.md#header): 80 bytes, none of them idle."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import get_args

from crc32c import crc32c

from ourdb.config import Config, Mode
from ourdb.errors import DamageError, InvalidError, UnknownFormatError
from ourdb.names import FILE_NR_MAX
from ourdb.record import SEQ_MAX, Buffer

MAGIC = b"\x89OurDB\r\n"  # not text, and no transfer in text mode leaves it as it is
VERSION = 1
_FORMAT = struct.Struct("<8sHHI16sQQQIIIIII")
HEADER_BYTES = _FORMAT.size
_MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, kw_only=True)
class Header:
    """uuid: 16 bytes; generation, file_id: u64; file_nr: 0 to 65,535; first_seq: from 1 on.

    In a merged segment only uuid and config mean anything. `config.sync` is not in a header.
    """

    uuid: bytes
    generation: int
    file_nr: int
    file_id: int
    first_seq: int
    config: Config

    def encode(self) -> bytes:
        """HEADER_BYTES bytes; InvalidError if a field is out of range."""
        config = self.config.validate()
        if len(self.uuid) != 16 or not 0 <= self.file_nr <= FILE_NR_MAX or not 1 <= self.first_seq <= SEQ_MAX:
            raise InvalidError(f"not a header: uuid, file_nr {self.file_nr} or first_seq {self.first_seq}")
        body = _FORMAT.pack(
            MAGIC,
            VERSION,
            HEADER_BYTES,
            0,
            self.uuid,
            self.generation,
            self.file_id,
            self.first_seq,
            self.file_nr,
            config.record_nr_max,
            config.record_size_max,
            config.file_size,
            _MODES.index(config.mode),
            0,
        )[:-4]
        return body + crc32c(body).to_bytes(4, "little")

    @classmethod
    def decode(cls, buf: Buffer) -> Header:
        """The header at the start of `buf`. DamageError if it is none, UnknownFormatError for another
        version, flag or mode."""
        if len(buf) < HEADER_BYTES:
            raise DamageError(f"file ends within its header: {len(buf)} bytes", offset=0)
        raw = bytes(memoryview(buf)[:HEADER_BYTES])
        (magic, version, size, flags, uuid, generation, file_id, first_seq, file_nr) = _FORMAT.unpack(raw)[:9]
        nr_max, size_max, file_size, mode, crc = _FORMAT.unpack(raw)[9:]
        if magic != MAGIC:
            raise DamageError("no data file or segment of OurDB: magic does not match", offset=0)
        if version != VERSION:
            raise UnknownFormatError(f"unknown version of a data file: {version}", offset=8, version=version)
        if crc32c(raw[:-4]) != crc:
            raise DamageError("checksum of header does not match", offset=0)
        if size != HEADER_BYTES or flags or mode >= len(_MODES):
            raise UnknownFormatError(f"unknown header: size {size}, flags {flags:#x}, mode {mode}", offset=10)
        if file_nr > FILE_NR_MAX or not 1 <= first_seq <= SEQ_MAX:
            raise DamageError(f"header out of range: file_nr {file_nr}, first_seq {first_seq}", offset=0)
        config = _decode_config(_MODES[mode], nr_max, size_max, file_size)
        return cls(
            uuid=uuid,
            generation=generation,
            file_nr=file_nr,
            file_id=file_id,
            first_seq=first_seq,
            config=config,
        )


def header_crc(header: Buffer) -> int:
    """The checksum that an encoded header ends with; the footer repeats it, which binds the two."""
    return int.from_bytes(bytes(memoryview(header)[HEADER_BYTES - 4 : HEADER_BYTES]), "little")


def _decode_config(mode: Mode, nr_max: int, size_max: int, file_size: int) -> Config:
    try:
        return Config(
            mode=mode, record_nr_max=nr_max, record_size_max=size_max, file_size=file_size
        ).validate()
    except InvalidError as error:
        raise DamageError(f"configuration in header is not valid: {error}", offset=60) from error
