"""What a database is made with: written once, carried in every data file and in the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from ourdb.errors import InvalidError
from ourdb.units import GIB, KIB, MIB

Mode = Literal["kv", "incremental"]
Sync = Literal["never", "interval", "always"]
LookupKind = Literal["memory", "disk"]

ID_MAX = 2**32 - 1
RECORD_HEADER_BYTES = 36
FILE_OVERHEAD_BYTES = 4 * KIB  # header, and room for what ends a file


@dataclass(frozen=True, kw_only=True)
class Config:
    """mode: who gives the ids ("incremental": the database, from 1 on). record_nr_max: highest id
    allowed, 0 to 2^32-1. record_size_max: longest value in bytes, to 1 GiB. file_size: a data file is
    rotated before it grows beyond this, below 4 GiB. sync: when a write is made durable by default."""

    mode: Mode = "kv"
    record_nr_max: int = 16_777_215
    record_size_max: int = 4 * KIB
    file_size: int = 500 * MIB
    sync: Sync = "interval"

    def validate(self) -> Config:
        """Self, or InvalidError that names the option."""
        if self.mode not in get_args(Mode):
            raise InvalidError(f"unknown mode: {self.mode!r} (kv or incremental)")
        if self.sync not in get_args(Sync):
            raise InvalidError(f"unknown sync: {self.sync!r} (never, interval or always)")
        for name in ("record_nr_max", "record_size_max", "file_size"):
            if type(getattr(self, name)) is not int:
                raise InvalidError(f"{name} is an int: {getattr(self, name)!r}", option=name)
        if not 0 <= self.record_nr_max <= ID_MAX:
            raise InvalidError(f"record_nr_max must be 0 to {ID_MAX}: {self.record_nr_max}")
        if self.mode == "incremental" and self.record_nr_max < 1:
            raise InvalidError("record_nr_max must be at least 1 in incremental mode: the first id is 1")
        if not 0 <= self.record_size_max <= GIB:
            raise InvalidError(f"record_size_max must be 0 to {GIB} (1 GiB): {self.record_size_max}")
        if not 8 * KIB <= self.file_size < 4 * GIB:
            raise InvalidError(f"file_size must be at least 8 KiB and below 4 GiB: {self.file_size}")
        if self.record_size_max + RECORD_HEADER_BYTES + FILE_OVERHEAD_BYTES > self.file_size:
            raise InvalidError(
                f"record_size_max {self.record_size_max} does not fit into file_size {self.file_size}: "
                "make file_size larger"
            )
        return self

    def as_json(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "record_nr_max": self.record_nr_max,
            "record_size_max": self.record_size_max,
            "file_size": self.file_size,
            "sync": self.sync,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Config:
        """The config of a decoded JSON object; InvalidError for a missing or unknown member."""
        known = {"mode", "record_nr_max", "record_size_max", "file_size", "sync"}
        if set(fields) != known:
            raise InvalidError(f"configuration members must be {sorted(known)}: {sorted(fields)}")
        return cls(**fields).validate()
