"""make demo: the Unicode character database through OurDB, a store, and back; every record compared.

Python ships two states of it, version 3.2 and the current one. Id = code point, value = its properties
as JSON. Each state is written, backed up to a file:// store, restored (the first one by a time between
the two) and compared with its source. Ends with 1 on any difference. Needs no server.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import backup
import ourdb
from ourdb.units import format_size, format_time, now_ms

State = dict[int, bytes]
LEFT_OUT = {"Cn", "Cs", "Co"}  # not assigned, surrogates, private use
BATCH_RECORDS = 10_000


@dataclass(frozen=True)
class Row:
    """What a step did. records: went through it. bytes: of their values, or where segments moved, theirs."""

    step: str
    records: int
    bytes: int
    segments: int | None
    seconds: float


def main() -> int:
    rows: list[Row] = []
    differences = 0
    with tempfile.TemporaryDirectory(prefix="ourdb-demo-") as directory:
        place = Path(directory)
        live, store = place / "unicode", f"file://{place}/store/unicode"
        states = {ucd.unidata_version: read_state(ucd) for ucd in (unicodedata.ucd_3_2_0, unicodedata)}
        moments: dict[str, int | None] = {}
        before: State = {}
        for version, state in states.items():
            rows.append(write_step(live, version, before, state))
            rows.append(backup_step(live, store, version))
            moments[version] = moment_after(live)
            before = state
        moments[version] = None  # the latest
        shutil.rmtree(live)
        for version, moment in moments.items():
            target = place / f"restored-{version}"
            rows.append(restore_step(store, target, version, moment))
            row, wrong = compare_step(target, version, states[version])
            rows.append(row)
            differences += wrong
    print_rows(rows)
    print(
        f"{differences} records differ"
        if differences
        else f"every record of Unicode {' and '.join(states)} came back as it was"
    )
    return 1 if differences else 0


def read_state(ucd: Any) -> State:
    """Every assigned code point of this version of the Unicode character database."""
    state = {}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        category = ucd.category(character)
        if category not in LEFT_OUT:
            state[code] = json.dumps(properties(ucd, character, category)).encode()
    return state


def properties(ucd: Any, character: str, category: str) -> dict[str, Any]:
    found = {
        "name": ucd.name(character, None),
        "category": category,
        "bidirectional": ucd.bidirectional(character),
        "combining": ucd.combining(character),
        "east_asian_width": ucd.east_asian_width(character),
        "mirrored": ucd.mirrored(character),
        "decomposition": ucd.decomposition(character),
        "decimal": ucd.decimal(character, None),
        "digit": ucd.digit(character, None),
        "numeric": ucd.numeric(character, None),
    }
    return {name: value for name, value in found.items() if value not in (None, "", 0) or name == "numeric"}


def write_step(live: Path, version: str, before: State, state: State) -> Row:
    """Writes only what differs from the state before."""
    changes = [(code, value) for code, value in state.items() if before.get(code) != value]
    gone = sorted(before.keys() - state.keys())
    with measured() as seconds, ourdb.open(live, mode="kv", record_nr_max=sys.maxunicode) as db:
        for batch in batches(changes):
            db.set_many(batch)
        for code in gone:
            db.delete(code)
        db.sync()
    size = sum(len(value) for _, value in changes)
    return Row(f"write Unicode {version}", len(changes) + len(gone), size, None, seconds())


def batches(changes: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    rest = iter(changes)
    while batch := list(islice(rest, BATCH_RECORDS)):
        yield batch


def backup_step(live: Path, store: str, version: str) -> Row:
    with measured() as seconds:
        report = backup.backup(live, store, meta=meta_beside(live))
    records = sum(segment.records for segment in report.segments)
    segments = len(report.segments)
    return Row(f"back up after {version}", records, report.bytes_uploaded, segments, seconds())


def meta_beside(path: Path) -> Path:
    """An index of the demo's own, not that of the person who runs it."""
    return path.with_name("meta.db")


def moment_after(live: Path) -> int:
    """A time later than every write so far, and earlier than every write to come."""
    with ourdb.open(live, readonly=True) as db:
        last = db.last_time
    while now_ms() <= last + 1:
        time.sleep(0.001)
    moment = now_ms()
    while now_ms() <= moment:
        time.sleep(0.001)
    return moment


def restore_step(store: str, target: Path, version: str, moment: int | None) -> Row:
    with measured() as seconds:
        report = backup.restore(store, target, at=moment, meta=meta_beside(target))
    label = f"restore as of {format_time(moment)}" if moment is not None else "restore the latest"
    return Row(label, report.seq, report.bytes_downloaded, len(report.segments), seconds())


def compare_step(target: Path, version: str, state: State) -> tuple[Row, int]:
    """Compares every record, both ways; how many differ."""
    with measured() as seconds, ourdb.open(target, readonly=True) as db:
        restored = dict(db.items())
    wrong = sum(restored.get(code) != state.get(code) for code in restored.keys() | state.keys())
    size = sum(map(len, restored.values()))
    return Row(f"compare with Unicode {version}", len(restored), size, None, seconds()), wrong


@contextmanager
def measured() -> Iterator[Callable[[], float]]:
    """Gives a function that tells, afterwards, the seconds that the block took."""
    began = time.perf_counter()
    ended = None
    yield lambda: (ended or time.perf_counter()) - began
    ended = time.perf_counter()


def print_rows(rows: list[Row]) -> None:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("step")
    for column in ("records", "bytes", "segments", "time", "records/s", "bytes/s"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.step,
            f"{row.records:,}",
            format_size(row.bytes),
            "" if row.segments is None else str(row.segments),
            f"{row.seconds:.2f} s",
            f"{row.records / row.seconds:,.0f}",
            f"{format_size(int(row.bytes / row.seconds))}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print("bytes: of values where they are written and compared, of segments where they are moved")


if __name__ == "__main__":
    sys.exit(main())
