"""ourdb restore: a database as it was at a point in time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from backup.cli.command import (
    at_most_one,
    at_option,
    command,
    directory_argument,
    echo_target,
    generation_option,
    meta_option,
    parse_time,
    seq_option,
    url_argument,
)
from backup.cli.output import count, note, print_json, print_table, print_text

if TYPE_CHECKING:
    from backup.restoring.restore import RestoreReport


@command(
    "restore",
    example="""
    ourdb restore file:///srv/backup/notes notes
    ourdb restore file:///srv/backup/notes earlier --at "10 minutes ago" --nearest-before
    ourdb restore file:///srv/backup/notes first --seq 1 --dry-run
    """,
)
@url_argument
@directory_argument
@at_option
@seq_option
@click.option("--before", callback=parse_time, metavar="T", help="The last point before this time.")
@click.option(
    "--nearest-before", is_flag=True, help="If that cannot be met exactly, the nearest point before."
)
@generation_option
@click.option("--dry-run", is_flag=True, help="Print the plan, fetch no data.")
@click.option("--force", is_flag=True, help="Replace DIR, which is kept until the new one stands.")
@meta_option
def restore_command(
    url: str,
    directory: Path,
    at: int | None,
    seq: int | None,
    before: int | None,
    nearest_before: bool,
    generation: str | None,
    dry_run: bool,
    force: bool,
    meta: Path | None,
    as_json: bool,
) -> None:
    """Make DIR from the store: the latest, or as it was at a time or seq, with the history up to there.

    It is built beside DIR, verified, then renamed. A target that cannot be met exactly is an error (exit
    13) that names the nearest points.
    """
    at_most_one(at=at, seq=seq, before=before)
    if nearest_before and at is None and seq is None and before is None:
        raise click.UsageError("--nearest-before needs --at, --before or --seq", click.get_current_context())
    import backup
    from backup.cli.progress import work_bar

    echo_target(at, before)
    with work_bar("restoring") as progress:
        done = backup.restore(
            url,
            directory,
            at=at,
            seq=seq,
            before=before,
            nearest_before=nearest_before,
            generation=generation,
            dry_run=dry_run,
            force=force,
            meta=meta,
            progress=progress,
        )
    if as_json:
        print_json(done.as_json())
    else:
        _print_report(done, directory, dry_run)


def _print_report(done: RestoreReport, directory: Path, dry_run: bool) -> None:
    from ourdb.units import format_size, format_time

    for text in (*done.notes, *(f"left out, damaged or missing: {key}" for key in done.left_out)):
        note(text)
    if dry_run:
        rows = [(one.first_seq, one.last_seq, one.bytes, one.key) for one in done.segments]
        print_table(("first_seq", "last_seq", "bytes", "key"), rows)
    when = f" ({format_time(done.time)})" if done.time is not None else ""
    fetched = done.bytes if dry_run else done.bytes_downloaded
    print_text(
        f"{'would restore' if dry_run else 'restored'} {directory} to seq {done.seq}{when} "
        f"from {count(len(done.segments), 'segment')}, {format_size(fetched)}; "
        f"{count(sum(done.requests.values()), 'request')}"
    )
    if done.replaced:
        print_text(f"what was there is kept in {done.replaced}")
