"""ourdb backup: ship what is new."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backup.cli.command import SPAN, at_most_one, command, directory_argument, meta_option, url_argument
from backup.cli.failure import report
from backup.cli.output import note, print_json, print_text

if TYPE_CHECKING:
    from backup.report import BackupReport


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `backup.backup` is called with. fork, take_over, new: answers to an exit 16, for one run."""

    fork: bool
    take_over: bool
    new: bool
    single_writer: bool
    dry_run: bool
    meta: Path | None


@command(
    "backup",
    example="""
    ourdb backup notes file:///srv/backup/notes
    ourdb backup notes s3://bucket/laptop/notes --every 10s
    ourdb backup notes file:///srv/backup/notes --dry-run --json
    """,
)
@directory_argument
@url_argument
@click.option("--every", type=SPAN, metavar="10s", help="Run again and again, until SIGTERM.")
@click.option(
    "--fork", is_flag=True, help="This directory's history goes on as a branch beside what is there."
)
@click.option("--take-over", is_flag=True, help="A restored copy takes over; the other writer stops.")
@click.option("--new", is_flag=True, help="The store lost data: ship everything, as a new generation.")
@click.option("--single-writer", is_flag=True, help="Accept a store without compare-and-swap: only we write.")
@click.option("--dry-run", is_flag=True, help="Say what would be uploaded.")
@meta_option
def backup_command(
    directory: Path,
    url: str,
    every: int | None,
    fork: bool,
    take_over: bool,
    new: bool,
    single_writer: bool,
    dry_run: bool,
    meta: Path | None,
    as_json: bool,
) -> None:
    """Ship what is new in DIR to URL. Others may write DIR meanwhile; nothing is locked.

    What it reports is restorable from the store alone. With --every a store that is away is tried again.
    """
    at_most_one(fork=fork, take_over=take_over, new=new)
    at_most_one(every=every is not None, dry_run=dry_run)
    options = Options(
        fork=fork, take_over=take_over, new=new, single_writer=single_writer, dry_run=dry_run, meta=meta
    )
    if every is None:
        _run(directory, url, options, as_json)
    elif every == 0:
        raise click.UsageError("--every needs a time above 0", click.get_current_context())
    else:
        _run_every(directory, url, options, every, as_json)


def _run_every(directory: Path, url: str, options: Options, every_ms: int, as_json: bool) -> None:
    from backup.cli.schedule import repeat

    answered = replace(options, fork=False, take_over=False, new=False)
    pending = [options]  # what was answered once must not answer a later refusal

    def run() -> None:
        _run(directory, url, pending[0] if pending else answered, as_json)
        pending.clear()

    repeat(run, every_ms, lambda error: _report(error, as_json))


def _run(directory: Path, url: str, options: Options, as_json: bool) -> None:
    import backup
    from backup.cli.progress import work_bar

    with work_bar("backing up") as progress:
        done = backup.backup(directory, url, progress=progress, **vars(options))
    for text in done.notes:
        note(text)
    if as_json:
        print_json(done.as_json())
    else:
        print_text(_summary(done, dry_run=options.dry_run))


def _report(error: Exception, as_json: bool) -> None:
    report(error, as_json=as_json)


def _summary(done: BackupReport, *, dry_run: bool) -> str:
    from ourdb.units import format_size, format_time

    requests = f"{sum(done.requests.values())} requests"
    if not done.last_seq:
        return f"the database is empty, {requests}"
    safe = f"seq {done.last_seq} ({format_time(done.last_time)})"
    if not done.segments:
        return f"nothing new, safe up to {safe}, {requests}"
    verb = "would upload" if dry_run else "uploaded"
    return (
        f"{verb} {len(done.segments)} segments, {format_size(done.bytes_uploaded)}; "
        f"{'would be' if dry_run else 'is'} safe up to {safe}, {requests}"
    )
