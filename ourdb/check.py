"""Looking at a database without changing it: facts about it, and whether every byte is as it was written."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ourdb import line
from ourdb.checkpoint import NAME as CHECKPOINT
from ourdb.checkpoint import load_checkpoint
from ourdb.config import Config
from ourdb.directory import Directory, FileEntry, FileList, file_missing
from ourdb.errors import DamageError
from ourdb.files import File, FileSystem, require_linux
from ourdb.recovery import Point, check_header, find_later_write, follow_file
from ourdb.sealed import open_segment
from ourdb.segment.header import HEADER_BYTES
from ourdb.tableopening import find_state, read_pages
from ourdb.tablepages import TableDamage
from ourdb.units import format_time

if TYPE_CHECKING:
    from ourdb.database import OurDB

_TRIES = 16
_SEARCH_BYTES = 1 << 20


@dataclass(kw_only=True)
class CheckReport:
    """What was read. problems: damage, each with message, file, offset and seq where they are known. notes:
    what is odd and harmless, such as a cache that will be rebuilt."""

    files: int = 0
    records: int = 0
    bytes: int = 0
    last_seq: int = 0
    last_time: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "records": self.records,
            "bytes": self.bytes,
            "last_seq": self.last_seq,
            "last_time": format_time(self.last_time) if self.last_seq else None,
            "problems": self.problems,
            "notes": self.notes,
        }


def check(path: str | os.PathLike[str], *, fs: FileSystem | None = None) -> CheckReport:
    """Read everything; DamageError, with all that was found in its field `problems`, if anything is damaged.

    Needs no lock, and writes nothing. NotFoundError if there is no database.
    """
    report = find_problems(path, fs=fs)
    if report.problems:
        first = report.problems[0]
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        where = {name: first.get(name) for name in ("kind", "file", "offset", "seq")}
        raise DamageError(f"{first['message']}{more}", **where, **report.as_json())
    return report


def find_problems(path: str | os.PathLike[str], *, fs: FileSystem | None = None) -> CheckReport:
    """As `check`, but damage is only reported."""
    require_linux()
    directory = Directory(Path(path), fs or FileSystem())
    report = CheckReport()
    try:
        uuid, config = directory.load_identity()
        for attempt in range(_TRIES):
            report = CheckReport()
            files = directory.load_list()
            try:
                _check_files(directory, files, uuid, config, report)
                break
            except FileNotFoundError as error:
                if attempt == _TRIES - 1 or directory.load_list() == files:
                    raise file_missing(error) from error
        _check_caches(directory, files, uuid, config, report)
    except DamageError as error:
        _report(report, error)
    return report


def _report(report: CheckReport, error: DamageError) -> None:
    report.problems.append({"message": str(error), "kind": error.kind, **error.fields})


def _check_files(
    directory: Directory, files: FileList, uuid: bytes, config: Config, report: CheckReport
) -> None:
    chain: int | None = 0
    for entry in files.sealed:
        report.files += 1
        try:
            chain = _check_sealed(directory, entry, uuid, chain, report)
        except DamageError as error:
            chain = None
            _report(report, error)
    report.files += 1
    try:
        _check_active(directory, files, uuid, config, report)
    except DamageError as error:
        _report(report, error)


def _check_sealed(
    directory: Directory, entry: FileEntry, uuid: bytes, chain: int | None, report: CheckReport
) -> int | None:
    """Every byte of a sealed file; returns the chain at its end."""
    file, reader = open_segment(directory, entry, uuid)
    with file:
        reader.check_all()
    summary = reader.summary
    if chain is not None and summary.chain_before not in (None, chain):
        raise DamageError(
            f"chain before seq {entry.first_seq} is not that of the file before",
            file=entry.name,
            seq=entry.first_seq,
        )
    report.records += entry.records
    report.bytes += entry.bytes
    report.last_seq, report.last_time = entry.last_seq, entry.last_time
    return summary.chain_after


def _check_active(
    directory: Directory, files: FileList, uuid: bytes, config: Config, report: CheckReport
) -> None:
    entry = files.active
    with directory.fs.open(directory.data_path(entry)) as file:
        check_header(file, files, uuid)
        end = Point(offset=HEADER_BYTES, seq=entry.first_seq - 1, time_ms=report.last_time)
        problem, further = None, _follow(file, end, config)
        while further != end:  # what was written between two looks is no damage
            end = further
            problem = _judge_end(directory, files, file, end, config)
            further = _follow(file, end, config)
        if end.seq < entry.first_seq:
            problem = _judge_end(directory, files, file, end, config)
    report.records += end.seq - entry.first_seq + 1
    report.bytes += end.offset
    report.last_seq, report.last_time = end.seq, end.time_ms
    if problem:
        raise DamageError(
            f"no valid record {end.seq + 1} in {entry.name} at offset {end.offset}, but {problem}",
            file=entry.name,
            offset=end.offset,
            seq=end.seq + 1,
        )


def _follow(file: File, start: Point, config: Config) -> Point:
    """Where the last whole batch ends, each byte of it checked."""
    end = start
    for _, _, upto in follow_file(file, start, config):
        end = upto
    return end


def _judge_end(directory: Directory, files: FileList, file: File, end: Point, config: Config) -> str | None:
    """Why the log cannot end there, None: it can."""
    trust = directory.load_trust()
    if end.seq < trust.durable_seq:
        return f"the log was durable up to {trust.durable_seq}"
    tail = file.pread(_SEARCH_BYTES, end.offset)
    if not trust.same_boot or not any(tail[:36]) or directory.load_list() != files:
        return None
    later = find_later_write(tail, 1, len(tail), end.seq + 1, tail[:36], config)
    return f"record {later} lies behind it" if later else None


def _check_caches(
    directory: Directory, files: FileList, uuid: bytes, config: Config, report: CheckReport
) -> None:
    ids = {entry.file_id for entry in files.files}
    try:
        kind = directory.load_lookup_kind()
        state = find_state(directory, files, uuid, config.record_nr_max) if kind == "disk" else None
        if state is not None:
            for _ in read_pages(directory, state):
                pass
    except TableDamage as damage:
        report.notes.append(f"the lookup table on disk is not usable ({damage}): it will be rebuilt")
    path = directory.cache / CHECKPOINT
    if path.exists() and load_checkpoint(directory, uuid, config.record_nr_max, ids) is None:
        report.notes.append("the checkpoint of the lookup table is not usable: it will be rebuilt")


def describe(db: OurDB) -> dict[str, Any]:
    """Facts about an open database, ready for JSON."""
    known = line.load(db._directory.path, fs=db._directory.fs)
    files = db._list
    marks = known.marks if known else {}
    last_seq = db.last_seq
    return {
        "path": str(db.path),
        "uuid": db.uuid.hex(),
        **db.config.as_json(),
        "lookup": db._directory.load_lookup_kind(),
        "generation": known.generation if known else None,
        "ids": len(db),
        "records": sum(entry.records for entry in files.sealed) + last_seq - files.active.first_seq + 1,
        "first_seq": 1 if last_seq else None,
        "last_seq": last_seq,
        "last_time": format_time(db.last_time) if last_seq else None,
        "bytes": sum(entry.bytes for entry in files.sealed) + db.active_bytes,
        "files": len(files.files),
        "lookup_width": db._lookup.width,
        "stores": [
            {"url": mark.url, "generation": mark.generation, "seq": mark.seq}
            for _, mark in sorted(marks.items())
        ],
        "notes": list(db.notes),
    }
