"""Versions of an id, and states of the past: which moments can be told exactly, and what held then."""

# ruff: noqa: A002  (an id is called id)

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ourdb.directory import file_missing
from ourdb.errors import InvalidError, UnreachableError
from ourdb.lookup import Lookup, LookupTable
from ourdb.record import BATCH_GOES_ON, TOMBSTONE, Record
from ourdb.recovery import pieces_at
from ourdb.sealed import SealedFile
from ourdb.segment.columns import Columns
from ourdb.segment.summary import Run
from ourdb.units import When, format_time, to_ms

if TYPE_CHECKING:
    from ourdb.reading import Reading

T = TypeVar("T")

_TRIES = 16


class Version(NamedTuple):
    """One write of an id. time_ms: milliseconds since the epoch. value: None if the id was deleted."""

    seq: int
    time_ms: int
    value: bytes | None


def versions(db: Reading, id: int, depth: int | None = None) -> Iterator[Version]:
    """The versions of an id, newest first."""
    seq, count = _newest_seq(db, id), 0
    while seq and (depth is None or count < depth):
        record = db.record(seq)
        if record is None:
            seq = _older_seq(db, id, seq)
            continue
        yield _version(record)
        seq, count = record.prev_seq, count + 1


def version_at(db: Reading, id: int, target: int) -> Version | None:
    """The version that held at a seq that `resolve` gave; None: there was none."""
    seq = _newest_seq(db, id)
    while seq:
        record = db.record(seq)
        if record is None:
            seq = _older_seq(db, id, seq)
        elif record.seq <= target:
            return _version(record)
        else:
            seq = record.prev_seq
    return None


def _version(record: Record) -> Version:
    return Version(record.seq, record.time_ms, None if record.flags & TOMBSTONE else record.value)


def _newest_seq(db: Reading, id: int) -> int:
    if not hasattr(id, "__index__"):
        raise InvalidError(f"an id is an int: {id!r}")
    return db._lookup.seq(id) if 0 <= id <= db.config.record_nr_max else 0


def _older_seq(db: Reading, id: int, before_seq: int) -> int:
    """The newest version below `before_seq` that was kept, found by the index columns, 0 if none was."""
    return again(db, partial(_find_older, db, id, before_seq))


def _find_older(db: Reading, id: int, before_seq: int) -> int:
    firsts, files = db._files
    for file in reversed(files[: bisect_right(firsts, before_seq - 1)]):
        found = file.find_ids(id, before_seq)
        if found:
            return found
    return 0


# -- moments --------------------------------------------------------------------------------------


def resolve(db: Reading, *, at: When | None = None, seq: int | None = None) -> int:
    """The seq of the state that held at a time, or at a seq (both inclusive); 0: before the first record.

    A time after the last record is the last state. UnreachableError names the nearest moments that can be
    told: the seq is inside a batch, beyond the end, or was condensed away.
    """
    if (at is None) == (seq is None):
        raise InvalidError("give a time or a seq, not both")
    if seq is not None:
        return again(db, partial(_resolve_seq, db, seq))
    return again(db, partial(_resolve_time, db, to_ms(at)))  # type: ignore[arg-type]


def as_of(db: Reading, at: When | None, seq: int | None, ask: Callable[[int], T]) -> T:
    """What `ask` says of the state at a time or seq. UnreachableError also if it is condensed away while
    `ask` looks: it may have missed records then."""
    files = db._files
    found = ask(resolve(db, at=at, seq=seq))
    if db._files is not files:
        resolve(db, at=at, seq=seq)
    return found


def _resolve_seq(db: Reading, seq: int) -> int:
    if isinstance(seq, bool) or not isinstance(seq, int) or seq < 0:
        raise InvalidError(f"not a seq: {seq!r}")
    if seq == 0:
        return 0
    if seq > db.last_seq:
        raise _unreachable(f"seq {seq} is beyond the last one: {db.last_seq}", _point(db, db.last_seq), None)
    first, before, after = _exact_range(db, seq)
    if first:
        record = db.record(seq)
        if record is not None and _ends_batch(db, record):
            return seq
        begin, end = _batch_around(db, seq)
        text = f"seq {seq} is inside a batch ({begin + 1} to {end})"
        return _refuse(text, _point(db, begin), _point(db, end))
    return _refuse(f"seq {seq} was condensed away", before, after)


def _resolve_time(db: Reading, time_ms: int) -> int:
    last_seq = db.last_seq
    active_first = db._active[0]  # before the list of sealed files: none is missed
    _, files = db._files
    first_time = files[0].entry.first_time if files else _time_of(db, active_first)
    if last_seq == 0 or first_time is None or time_ms < first_time:
        return 0
    if last_seq >= active_first:
        active_time = _time_of(db, active_first)
        if active_time is not None and time_ms >= active_time:
            return _last_at(db, active_first, last_seq, time_ms)
    file = files[bisect_right(files, time_ms, key=lambda file: file.entry.first_time) - 1]
    entry = file.entry
    if time_ms >= entry.last_time and (entry.exact or file.summary.serves(entry.last_seq)):
        return entry.last_seq
    if entry.exact:
        return _last_at(db, entry.first_seq, entry.last_seq, time_ms)
    runs = file.summary.runs
    for run in runs:
        if run.first_time <= time_ms < (entry.last_time if run.next_time is None else run.next_time):
            return _last_at(db, run.first_seq, run.last_seq, time_ms)
    text = f"the state at {format_time(time_ms)} was condensed away"
    earlier = [run for run in runs if run.last_time <= time_ms]
    later = [run for run in runs if run.first_time > time_ms]
    before = _end_of(earlier[-1]) if earlier else _before_file(db, file)
    return _refuse(text, before, _start_of(db, later[0]) if later else None)


def _last_at(db: Reading, first_seq: int, last_seq: int, time_ms: int) -> int:
    """The last seq of an exact range whose time is not above `time_ms`: it ends a batch, whose records
    share their time."""
    seqs = range(first_seq, last_seq + 1)
    return first_seq - 1 + bisect_right(seqs, time_ms, key=lambda seq: _time_of(db, seq) or 0)


def _time_of(db: Reading, seq: int) -> int | None:
    record = db.record(seq) if 0 < seq <= db.last_seq else None
    return record.time_ms if record else None


Point = dict[str, Any]


def _exact_range(db: Reading, seq: int) -> tuple[bool, Point | None, Point | None]:
    """Whether every record around `seq` is there; else the nearest points before and after."""
    if seq >= db._active[0]:
        return True, None, None
    firsts, files = db._files
    file = files[bisect_right(firsts, seq) - 1]
    if file.entry.exact:
        return True, None, None
    runs = file.summary.runs
    if any(run.first_seq <= seq <= run.last_seq for run in runs):
        return True, None, None
    earlier = [run for run in runs if run.last_seq < seq]
    later = [run for run in runs if run.first_seq > seq]
    before = _end_of(earlier[-1]) if earlier else _before_file(db, file)
    return False, before, _start_of(db, later[0]) if later else None


def _before_file(db: Reading, file: SealedFile) -> Point | None:
    """The end of the file before this one, if it can be told: each file but a part is exact at its end."""
    _, files = db._files
    at = files.index(file)
    while at > 0:
        entry = files[at - 1].entry
        if entry.exact or files[at - 1].summary.serves(entry.last_seq):
            return {"seq": entry.last_seq, "time": format_time(entry.last_time)}
        at -= 1
    return None


def _end_of(run: Run) -> Point:
    return {"seq": run.last_seq, "time": format_time(run.last_time)}


def _start_of(db: Reading, run: Run) -> Point | None:
    """The first batch end of a run."""
    _, end = _batch_around(db, run.first_seq)
    return _point(db, min(end, run.last_seq))


def _point(db: Reading, seq: int) -> Point | None:
    time_ms = _time_of(db, seq)
    return None if time_ms is None else {"seq": seq, "time": format_time(time_ms)}


def _ends_batch(db: Reading, record: Record) -> bool:
    """The last record of a sealed file does, whatever its flag says after a merge."""
    if not record.flags & BATCH_GOES_ON:
        return True
    if record.seq >= db._active[0]:
        return False
    firsts, files = db._files
    return files[bisect_right(firsts, record.seq) - 1].entry.last_seq == record.seq


def _batch_around(db: Reading, seq: int) -> tuple[int, int]:
    """The batch ends before and at or after `seq`, both known to be in an exact range."""
    begin, end = seq - 1, seq
    while begin > 0 and (record := db.record(begin)) is not None and not _ends_batch(db, record):
        begin -= 1
    while (record := db.record(end)) is not None and not _ends_batch(db, record):
        end += 1
    return begin, end


def _unreachable(text: str, before: Point | None, after: Point | None) -> UnreachableError:
    near = [
        f"{name} {point['seq']} ({point['time']})"
        for name, point in (("before", before), ("after", after))
        if point
    ]
    hint = f" (nearest points: {', '.join(near)})" if near else ""
    return UnreachableError(text + hint, nearest_before=before, nearest_after=after)


def _refuse(text: str, before: Point | None, after: Point | None) -> int:
    raise _unreachable(text, before, after)


# -- states ---------------------------------------------------------------------------------------


def log_columns(db: Reading, upto_seq: int) -> Iterator[Columns]:
    """The columns of all records that were kept, up to a seq, piece by piece in log order. Where condensing
    takes a file away meanwhile it goes on with the new one, behind what was given out."""
    first, mapping, places = db._active  # before the list of sealed files: none is missed
    done = 0
    while done < min(upto_seq, first - 1):
        last_seq, pieces = again(db, partial(_columns_behind, db, done))
        for columns in pieces:
            new = _cut(columns, done, upto_seq)
            if len(new):
                yield new
        done = last_seq
    count = upto_seq - first + 1
    if count > 0:
        yield from pieces_at(mapping, np.frombuffer(places, np.uint32, count))


def _columns_behind(db: Reading, seq: int) -> tuple[int, Iterator[Columns]]:
    """Of the file that has the next seq: the last one of its range, and the columns of its pages. The file is
    open when this returns."""
    firsts, files = db._files
    file = files[bisect_right(firsts, seq + 1) - 1]
    pieces = file.columns(first_seq=seq + 1)
    head = list(islice(pieces, 1))
    return file.entry.last_seq, chain(head, pieces)


def again(db: Reading, ask: Callable[[], T]) -> T:
    """Ask; if a data file is gone it was condensed away: ask again with the new list of files."""
    for _ in range(_TRIES):
        try:
            return ask()
        except FileNotFoundError as error:
            gone = error
            db._look_again()
    raise file_missing(gone) from gone


def _cut(columns: Columns, after_seq: int, upto_seq: int) -> Columns:
    """Of these records those behind one seq and up to another."""
    start, stop = 0, len(columns)
    if int(columns.seq[0]) <= after_seq:
        start = int(np.searchsorted(columns.seq, np.uint64(after_seq), "right"))
    if int(columns.seq[-1]) > upto_seq:
        stop = int(np.searchsorted(columns.seq, np.uint64(upto_seq), "right"))
    return columns[start:stop]


def lookup_at(db: Reading, target: int) -> Lookup:
    """The lookup table as it was at a seq that `resolve` gave."""
    lookup = Lookup(db.config.record_nr_max, seq=target)
    for columns in log_columns(db, target):
        lookup.put_many(columns.id, columns.seq, alive_of(columns))
    return lookup


def alive_of(columns: Columns) -> NDArray[np.bool_]:
    """Which records are no tombstones."""
    alive: NDArray[np.bool_] = (columns.flags & np.uint16(TOMBSTONE)) == 0
    return alive


def pairs_in_log(
    db: Reading, lookup: LookupTable, target: int | None
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint64]]]:
    """Ids and seqs of the newest records, in log order."""
    for columns in log_columns(db, db.last_seq if target is None else target):
        newest = (lookup.seqs(columns.id) == columns.seq) & alive_of(columns)
        if newest.any():
            yield columns.id[newest], columns.seq[newest]
