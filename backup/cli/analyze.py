"""ourdb analyze: what a namespace holds, and the shortest way to restore it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from backup.cli.command import (
    at_most_one,
    at_option,
    command,
    generation_option,
    meta_option,
    seq_option,
    url_argument,
)
from backup.cli.output import count, note, print_json, print_table, print_text

if TYPE_CHECKING:
    from backup.analyze import AnalysisReport
    from compactor.analysis import Holding

_STEPS_MAX = 20  # that are printed unless all are asked for


@command(
    "analyze",
    example="""
    ourdb analyze file:///srv/backup/notes
    ourdb analyze file:///srv/backup/notes --seq 2 --list-all
    """,
)
@url_argument
@click.option("--list-all", is_flag=True, help="Every live segment, and whether the path uses it.")
@generation_option
@at_option
@seq_option
@meta_option
def analyze_command(
    url: str,
    list_all: bool,
    generation: str | None,
    at: int | None,
    seq: int | None,
    meta: Path | None,
    as_json: bool,
) -> None:
    """Say what the store holds of a database, and the shortest restore path to its newest point.

    Shortest is fewest segments, then fewest bytes. Nothing is restored or written there.
    """
    at_most_one(at=at, seq=seq)
    import backup

    done = backup.analyze(url, at=at, seq=seq, generation=generation, meta=meta)
    for text in (*done.notes, *(f"left out, damaged or missing: {key}" for key in done.left_out)):
        note(text)
    if as_json:
        print_json(done.as_json(list_all=list_all))
    else:
        _print_figures(done)
        (_print_segments if list_all else _print_path)(done)


def _print_figures(done: AnalysisReport) -> None:
    from ourdb.units import format_size, format_time

    found = done.found
    if done.generation is None:
        print_text("nothing was ever written")
        return
    print_text(f"generation {done.generation} up to seq {done.last_seq}: {_holding(found.line)}")
    if len(found.generations) > 1:
        for name, holding in found.generations.items():
            print_text(f"  of generation {name}: {_holding(holding)}")
    if found.elsewhere.segments:
        print_text(f"on other lines: {_holding(found.elsewhere)}")
    when = f" ({format_time(done.time)})" if done.time is not None else ""
    print_text(
        f"shortest restore path to seq {done.seq}{when}: {count(len(found.path), 'segment')}, "
        f"{format_size(found.path_bytes)}, at least {count(found.path_requests, 'request')}"
    )
    if found.beside.segments:
        print_text(f"not on it: {_holding(found.beside)}")


def _holding(holding: Holding) -> str:
    from ourdb.units import format_size

    told = f"{count(holding.segments, 'segment')}, {format_size(holding.bytes)}"
    if any(holding.levels):
        levels = (f"{number} of level {level}" for level, number in holding.levels.items())
        told += f" ({', '.join(levels)})"
    return told if not holding.segments else f"{told}, seq {holding.first_seq} to {holding.last_seq}"


def _print_path(done: AnalysisReport) -> None:
    steps = done.found.path
    print_table(
        ("used_first_seq", "used_last_seq", "level", "records", "bytes", "key"),
        [
            (after + 1, upto, entry.level, entry.records, entry.bytes, entry.key)
            for entry, after, upto in steps[-_STEPS_MAX:]
        ],
    )
    if len(steps) > _STEPS_MAX:
        print_text(f"and {len(steps) - _STEPS_MAX} before these (--list-all)")


def _print_segments(done: AnalysisReport) -> None:
    used = {step.segment.key for step in done.found.path}
    columns = ("first_seq", "last_seq", "level", "records", "bytes", "on_path", "key")
    rows = (
        (e.first_seq, e.last_seq, e.level, e.records, e.bytes, "yes" if e.key in used else "no", e.key)
        for e in done.found.live
    )
    print_table(columns, rows)
