"""ourdb points, segments, verify: what a store holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backup.cli.command import command, generation_option, meta_option, parse_directory, url_argument
from backup.cli.failure import report
from backup.cli.output import count, note, print_json, print_table, print_text
from backup.cli.progress import work_bar

if TYPE_CHECKING:
    from backup.verify import VerifyReport
    from ourdb.errors import DamageError

_RANGE = ("generation", "first_seq", "last_seq", "first_time", "last_time")


@command(
    "points",
    example="""
    ourdb points file:///srv/backup/notes
    ourdb points file:///srv/backup/notes --db notes --json
    """,
)
@url_argument
@generation_option
@click.option(
    "--db", callback=parse_directory, metavar="DIR", help="Live database: also say how far behind it is."
)
@meta_option
def points_command(
    url: str, generation: str | None, db: Path | None, meta: Path | None, as_json: bool
) -> None:
    """List what can be restored now: windows in which every point can, and the gaps between them."""
    import backup

    found = backup.points(url, generation=generation, db=db, meta=meta).as_json()
    _print_notes(found)
    if as_json:
        print_json(found)
        return
    print_table(_RANGE, _rows(found["windows"], _RANGE))
    for gap in found["gaps"]:
        print_text(f"gap: {gap['first_seq']} to {gap['last_seq']} of generation {gap['generation']}")
    if len(found["generations"]) > 1:
        print_text("")
        columns = ("generation", "parent", "left_at_seq", "last_seq", "kept_to", "last_time", "successor")
        print_table(columns, _rows(found["generations"], columns))
    if found["as_of"]:
        print_text(f"complete up to {found['as_of']}")
    if behind := found.get("behind"):
        print_text(
            f"behind the live database by {count(behind['records'], 'record')}, {behind['seconds']:g} seconds"
        )
        if found["diverged"]:
            print_text("the live database has another history than the store: a backup is refused as a fork")


@command("segments", example="ourdb segments file:///srv/backup/notes")
@url_argument
@generation_option
@meta_option
def segments_command(url: str, generation: str | None, meta: Path | None, as_json: bool) -> None:
    """List the segments that hold the database, in order of what they cover."""
    import backup

    found = backup.segments(url, generation=generation, meta=meta).as_json()
    _print_notes(found)
    if as_json:
        print_json(found)
        return
    columns = ("first_seq", "last_seq", "last_time", "level", "records", "bytes", "key")
    print_table(columns, _rows(found["segments"], columns))


@command("verify", example="ourdb verify file:///srv/backup/notes --data")
@url_argument
@click.option("--data", is_flag=True, help="Read and check every byte, not names, chain and sizes alone.")
@meta_option
def verify_command(url: str, data: bool, meta: Path | None, as_json: bool) -> int:
    """Check that what the store should have is there and unharmed; exit 14 with a list if it is not."""
    import backup

    with work_bar("verifying") as progress:
        found = backup.verify(url, data=data, meta=meta, progress=progress)
    for text in found.notes:
        note(text)
    told, error = found.as_json(), None if found.ok else _error(found)
    if as_json:
        print_json(told if error is None else told | {"error": error.as_json()})
    else:
        _print_findings(found)
        if error is not None:
            return report(error, as_json=False)
    return 0 if error is None else error.exit_code


def _error(found: VerifyReport) -> DamageError:
    from ourdb.errors import DamageError

    number = len(found.problems)
    return DamageError(
        f"{count(number, 'problem')} in the store, the first: {found.problems[0].message} (put back what is "
        "lost, or back up to another URL while the database is there)",
        kind="store_damaged",
        key=found.problems[0].key,
    )


def _print_findings(found: VerifyReport) -> None:
    from ourdb.units import format_size

    for problem in found.problems:
        kind = "" if problem.message.startswith(problem.kind) else f"{problem.kind}: "
        print_text(f"{kind}{problem.message}")
    for key in found.foreign:
        print_text(f"foreign, left alone: {key}")
    what = "every byte read" if found.data else "names, chain and sizes"
    print_text(
        f"{count(found.segments_checked, 'segment')}, {format_size(found.bytes_checked)} ({what}): "
        f"{count(len(found.problems), 'problem')}; {count(sum(found.requests.values()), 'request')}"
    )


def _rows(listed: list[dict[str, Any]], columns: tuple[str, ...]) -> list[list[Any]]:
    return [[row.get(column) for column in columns] for row in listed]


def _print_notes(found: dict[str, Any]) -> None:
    for text in found["notes"]:
        note(text)
