"""An import: the whole file is checked against the database first, then written in batches.

Two passes over the file, so that memory does not grow with it: what the check remembers is two bits
an id that the file names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import IO, Any, NamedTuple

from backup.cli.idset import IdSet
from backup.cli.jsonl import Line, line_bytes_max, parse_line
from ourdb import OurDB
from ourdb.config import RECORD_HEADER_BYTES, Config
from ourdb.errors import Error, InvalidError

BATCH_LINES = 100_000
Watch = Callable[[int], object]  # is told of each line's bytes


class Numbered(NamedTuple):
    number: int
    line: Line


@dataclass(frozen=True, kw_only=True)
class Intake:
    """What an import wrote, or would write. The seqs are None where nothing was written."""

    records: int
    deleted: int
    batches: int
    first_seq: int | None = None
    last_seq: int | None = None
    dry_run: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class BatchMeter:
    """The batch, counted from 0, that each line in turn belongs to: at most `lines_max` lines and half a
    data file in one, but at least a line."""

    def __init__(self, config: Config, lines_max: int) -> None:
        self.lines_max, self.bytes_max = lines_max, config.file_size // 2
        self.batch = self.lines = self.bytes = 0

    def __call__(self, numbered: Numbered) -> int:
        size = RECORD_HEADER_BYTES + len(numbered.line.value or b"")
        if self.lines and (self.lines == self.lines_max or self.bytes + size > self.bytes_max):
            self.batch, self.lines, self.bytes = self.batch + 1, 0, 0
        self.lines += 1
        self.bytes += size
        return self.batch


class Admission:
    """Whether each line in turn can be written, as the lines before it leave the database."""

    def __init__(self, db: OurDB) -> None:
        self.db, self.config = db, db.config
        self.gives_ids = db.config.mode == "incremental"
        self.takes_ids = not self.gives_ids or takes_ids(db)
        self.next_id = db.get_next_id() if self.gives_ids else 0
        self.changed, self.live = IdSet(), IdSet()

    def admit(self, line: Line) -> None:
        """ValueError says why not."""
        record_id = self._id_of(line)
        if line.value is None:
            if not self._exists(record_id):
                raise ValueError(f"cannot delete what is not there: id {record_id}")
            self.live.discard(record_id)
        else:
            if len(line.value) > self.config.record_size_max:
                longest = self.config.record_size_max
                raise ValueError(f"value of {len(line.value)} bytes, record_size_max is {longest}")
            self.live.add(record_id)
        self.changed.add(record_id)

    def _id_of(self, line: Line) -> int:
        record_id = line.id
        if record_id is None:
            if not self.gives_ids:
                raise ValueError("an id is needed: this database is in key-value mode")
            record_id = self.next_id
        lowest = 1 if self.gives_ids else 0
        if not lowest <= record_id <= self.config.record_nr_max:
            raise ValueError(f"id must be {lowest} to {self.config.record_nr_max}: {record_id}")
        if not self.takes_ids and line.id is not None and not self._exists(record_id):
            raise ValueError(f"no such id, and in incremental mode the database gives new ones: {record_id}")
        self.next_id = max(self.next_id, record_id + 1)
        return record_id

    def _exists(self, record_id: int) -> bool:
        return record_id in (self.live if record_id in self.changed else self.db)


def read_lines(file: IO[bytes], config: Config, watch: Watch) -> Iterator[Numbered]:
    """The lines that are not blank. InvalidError (`bad_line`, field `line`) for one that cannot be read."""
    longest = line_bytes_max(config.record_size_max)
    number = 0
    while text := file.readline(longest + 1):
        number += 1
        if len(text) > longest:
            raise _bad_line(
                number, f"longer than any value of {config.record_size_max} bytes (record_size_max)"
            )
        if not text.isspace():
            yield Numbered(number, _parsed(number, text))
        watch(len(text))


def _parsed(number: int, text: bytes) -> Line:
    try:
        return parse_line(text)
    except ValueError as error:
        raise _bad_line(number, str(error)) from error


def check_file(db: OurDB, file: IO[bytes], lines_max: int, watch: Watch) -> Intake:
    """What there is to write. Raises InvalidError (`bad_line`) for the first line that cannot be."""
    admission, meter = Admission(db), BatchMeter(db.config, lines_max)
    records = deleted = batches = 0
    for numbered in read_lines(file, db.config, watch):
        try:
            admission.admit(numbered.line)
        except ValueError as error:
            raise _bad_line(numbered.number, str(error)) from error
        records += 1
        deleted += numbered.line.value is None
        batches = meter(numbered) + 1
    return Intake(records=records, deleted=deleted, batches=batches, dry_run=True)


def write_file(db: OurDB, file: IO[bytes], lines_max: int, watch: Watch) -> Intake:
    """Writes the lines of a file that was checked, batch by batch; what returns is acknowledged.

    An error in the middle leaves whole batches written: its field `records_written` says how many records.
    """
    first_seq, importing = db.last_seq + 1, takes_ids(db)
    lines = read_lines(file, db.config, watch)
    done = Intake(records=0, deleted=0, batches=0)
    try:
        for _, chunk in groupby(
            _with_new_ids(lines) if importing else lines, BatchMeter(db.config, lines_max)
        ):
            records, deleted = _write_batch(db, (line for _, line in chunk), importing)
            done = replace(
                done,
                records=done.records + records,
                deleted=done.deleted + deleted,
                batches=done.batches + 1,
                first_seq=first_seq,
                last_seq=db.last_seq,
            )
    except Error as error:
        error.fields["records_written"] = done.records
        error.message += f" (the first {done.records} records of the file are written)"
        raise
    return done


def _write_batch(db: OurDB, lines: Iterator[Line], importing: bool) -> tuple[int, int]:
    """Records written, and how many of them delete."""
    deleted = 0
    with db.batch(importing=importing) as batch:
        for record_id, value in lines:
            if value is not None:
                batch.set(value, record_id)
            elif record_id is not None:  # parse_line lets no deletion without id through
                batch.delete(record_id)
                deleted += 1
        return len(batch), deleted


def _with_new_ids(lines: Iterator[Numbered]) -> Iterator[Numbered]:
    """Gives new ids above all that were named so far: those of an import may be named in any order."""
    next_id = 1
    for number, line in lines:
        record_id = next_id if line.id is None else line.id
        next_id = max(next_id, record_id + 1)
        yield Numbered(number, Line(record_id, line.value))


def takes_ids(db: OurDB) -> bool:
    """Whether this is an incremental database that has no ids yet, and takes those of an export."""
    return db.config.mode == "incremental" and db.last_seq == 0


def _bad_line(number: int, reason: str) -> InvalidError:
    return InvalidError(f"line {number}: {reason}", kind="bad_line", line=number)
